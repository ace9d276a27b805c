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
# # Beyond the paper: what if these examples had not been there?
#
# k examples of a held-out run's curriculum are left out, and others of it take their places. k goes from one to a quarter of
# the subset. The GPT is really trained again on each such curriculum. The *linear datamodelling score* is the rank
# correlation, over those curricula, between a test example's predicted and true final loss, averaged over test examples: *1
# means that a method ranks the sets rightly for every test example, 0 that it knows nothing.* TracIn-CP and Grad-Dot see the
# checkpoints of the run itself. Simulators see only the curriculum.
#
# ![Linear datamodelling score by number of examples left out, profile mini](../figures/mini/ext04_leave_out.png)
#
# Inputs: recorded runs and fitted simulators (made if missing). The GPT is trained once for each set left out. Outputs:
# `figures/<profile>/ext04_leave_out.*`.
#
# `papermill notebooks/ext04_leave_out.ipynb out.ipynb -p profile smoke -y 'sizes: [1, 4]' -p draws 4`

# %% tags=["parameters"]
profile: str = "mini"
tasks: list[str] = []  # SST-2 and WebNLG
methods: list[str] = []  # mean trajectory, counts, Simfluence, GPTfluence, low-rank deviations, tangent simulator
scores: list[str] = ["tracin_cp_10", "grad_dot"]  # by gradients along the run itself
sizes: list[int] = []  # examples left out; default: 1 example, 1/32, 1/8 and 1/4 of the subset
draws: int = 8  # sets of each size; the GPT is trained once for each
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import pandas as pd

import gptfluence as gf
from gptfluence.experiments.leave_out import leave_out

nb = gf.Notebook("ext04_leave_out", globals())
subset = nb.study.setting().curriculum.subset_size
left_out = sizes or sorted({max(1, subset // part) for part in (subset, 32, 8, 4)})
print(f"{left_out} of {subset} examples left out, {draws} sets each")

# %%
found = [leave_out(one, nb.methods, scores, sizes=left_out, draws=draws) for one in nb.campaigns]
results = pd.concat([frame for frame, _ in found], ignore_index=True)
sources = [source for _, runs in found for source in runs]
results.pivot_table(index=["task", "left_out"], columns="method", values="value", sort=False).round(2)

# %%
frame = results.assign(panel=results["task"].map(gf.names.task)).rename(columns={"left_out": "x", "method": "series"})
frame = frame[frame.groupby("series")["value"].transform(lambda values: values.notna().any())]
picture = gf.points.plot_intervals(
    frame,
    xlabel="training examples left out",
    ylabel="linear datamodelling score",
    columns=len(nb.tasks),
    panel_height=1.9,
)
picture

# %%
caption = (
    f"Leave-k-out, checked by retraining: linear datamodelling score of final losses over {draws} sets of each size, and over "
    f"all sets. "
    f"{nb.study.profile.subject} ({sources[0].model}). {gf.readings_beyond.INTERVALS_OF_SETS} TracIn-CP and "
    "Grad-Dot use gradients of the last transformer block along the run itself."
)
reading = f"{gf.readings.best_points(frame)}\n{gf.readings_beyond.without_score(results)}".rstrip()
nb.save_figure(picture, results, "ext04_leave_out", caption=caption, sources=sources, reading=reading)
