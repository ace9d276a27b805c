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
# # Beyond the paper: search for a better curriculum
#
# With a simulator one can try thousands of curricula for the price of one training. Curricula are drawn alike, the ten with
# the lowest simulated final loss of chosen test examples are kept, and the GPT is really trained on the best one. *The
# simulated loss of the best is too low, because the best of many also has the most favourable error. The trained loss counts.
# It is compared with random choice, and with curricula of the examples on which the base model is worst or best.*
#
# ![Simulated and trained final loss of what was chosen, profile mini](../figures/mini/ext06_curriculum_search.png)
#
# Inputs: recorded runs and fitted simulators (made if missing). Outputs: `figures/<profile>/ext06_curriculum_search.*`.
#
# `papermill notebooks/ext06_curriculum_search.ipynb out.ipynb -p profile smoke -p candidates 50`

# %% tags=["parameters"]
profile: str = "mini"
task: str = ""  # SST-2
methods: list[str] = []  # GPTfluence, low-rank deviations, the tangent simulator
candidates: int = 2000
best: int = 10
tests: list[int] = []  # positions of the test examples whose final loss should be low; default: all
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import pandas as pd

import gptfluence as gf
from gptfluence.experiments.search import compare

nb = gf.Notebook("ext06_curriculum_search", globals())
nb.choose("candidates", candidates, range(1, 10_000_001))
campaign = nb.study.campaign("fine_tuning", nb.task)
results, found, sources = compare(campaign, nb.methods, tests=tests, count=candidates, best=best)

# %% [markdown]
# The best candidates of each simulator, by their numbers. Each can be drawn again from its number alone.

# %%
pd.DataFrame(
    {name: [f"{i} ({v:.4f})" for i, v in zip(one.index, one.value, strict=True)] for name, one in found.items()}
)

# %% [markdown]
# Simulated and trained final loss of the chosen curricula. `random` is the mean of the held-out runs. Each curriculum was
# trained once, whoever simulates it.

# %%
means = results.groupby(["choice", "method"], sort=False)[["simulated", "recorded"]].mean().reset_index()
means.round(4)

# %%
is_best = means["choice"] == "best"
means["x"] = means["choice"].where(~is_best, "best by " + means["method"].map(gf.names.method))
means = pd.concat([means[is_best], means[~is_best]])
trained = means.drop_duplicates("x").assign(series="recorded", value=lambda rows: rows["recorded"])
simulated = means.assign(series=means["method"], value=means["simulated"])
runs = results[(results["choice"] == "random") & (results["method"] == nb.methods[0])]["recorded"]
frame = pd.concat([trained, simulated], ignore_index=True).assign(
    panel=gf.names.task(nb.task), low=float("nan"), high=float("nan")
)
frame.loc[(frame["x"] == "random") & (frame["series"] == "recorded"), ["low", "high"]] = [runs.min(), runs.max()]
picture = gf.points.plot_intervals(
    frame, xlabel="curriculum", ylabel="final loss (nats per target token)", line=None, panel_height=1.9
)
picture

# %%
caption = (
    f"Final loss of {len(tests) or len(sources[0].tests)} test examples of {gf.names.task(nb.task)}, really trained (recorded) "
    f"and simulated. Best: the best of {candidates} curricula simulated by each method. Random: mean of {len(runs)} held-out runs, "
    f"with a bar from the lowest to the highest. Hardest and easiest: curricula of the examples with the highest and lowest loss of "
    f"the base model. {nb.study.profile.subject} ({sources[0].model})."
)
reading = gf.readings_beyond.of_search(results, candidates)
nb.save_figure(picture, results, "ext06_curriculum_search", caption=caption, sources=sources, reading=reading)
