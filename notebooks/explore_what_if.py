# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What if? Change a curriculum by hand
#
# Choose training examples to drop, repeat, move or rewrite. A simulator predicts within seconds what the GPT would have
# learned, with bands around it. Then the GPT is really trained on the changed curriculum, and its losses are drawn over the
# bands. Change the parameters and run again. `gptfluence what-if` does the same from the shell.
#
# ![A changed curriculum: simulated, and trained](../figures/mini/explore_what_if.png)
#
# `papermill notebooks/explore_what_if.ipynb out.ipynb -p profile smoke -y 'repeat: [3]' -y 'drop: []'`

# %% tags=["parameters"]
profile: str = "mini"
task: str = ""  # SST-2
method: str = "tangent"
run: int = 0  # the held-out run whose curriculum is changed
drop: list[int] = []  # positions in the pool; default, if nothing else is changed: a quarter of the run's examples
repeat: list[int] = []  # shown `times` more times
times: int = 8
first: list[int] = []  # moved to the beginning
last: list[int] = []  # moved to the end
rewrite: list[str] = []  # "POSITION=new target", such as "17= negative"
level: float = 0.9  # of the bands
examples: int = 5  # drawn, besides the mean
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import numpy as np

import gptfluence as gf
from gptfluence.experiments.what_if import Changes, ask

nb = gf.Notebook("explore_what_if", globals())
nb.choose("examples", examples, range(1, 12))
campaign = nb.study.campaign("fine_tuning", nb.task)
test = campaign.held_out()
nothing_given = not (drop or repeat or first or last or rewrite)
dropped = np.unique(test.curricula[run].batches)[::4].tolist() if nothing_given else drop
changes = Changes(tuple(dropped), tuple(repeat), times, tuple(first), tuple(last), tuple(rewrite))
for position in [*dropped[:2], *repeat[:2], *first[:1], *last[:1]]:
    print(position, repr(test.pool[position].text))

# %% [markdown]
# Simulated first, then trained. Losses are means over all test examples.

# %%
answer = ask(campaign, changes, run=run, method=method, level=level)
answer.table().T

# %%
frame = answer.frame(examples)
labels = {"recorded": "trained on the change"}
picture = gf.trajectories.plot_bands(frame, ylabel=gf.names.metric("loss", unit=True), labels=labels)
picture

# %%
caption = (
    f"A held-out curriculum of {gf.names.task(nb.task)} changed by hand ({changes}), simulated by "
    f"{gf.names.method(method)} inside {level:.0%} bands and then really trained. {nb.study.profile.subject} "
    f"({answer.base.model}). Bands are calibrated on unchanged curricula, for single test "
    "examples. They promise nothing for changed curricula."
)
reading = gf.readings_beyond.of_what_if(answer.table().iloc[0])
nb.save_figure(picture, frame, "explore_what_if", caption=caption, sources=[answer.base, answer.truth], reading=reading)
