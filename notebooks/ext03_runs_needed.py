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
# # Beyond the paper: how many recorded runs does a simulator need?
#
# Recording is expensive: 25 runs of a real GPT take days of a GPU. Here every simulator is fitted on the first 1, 2, 5, 10
# and 25 of the training runs, and measured on the same held-out runs. *A curve that is high from the left needs few runs.*
# R²dev compares with the mean of all training runs throughout. So the mean trajectory of fewer runs lies below 0, and the true
# mean, which even all K runs only estimate, at 1/(K+1).
#
# ![R²dev by number of training runs, profile mini](../figures/mini/ext03_runs_needed.png)
#
# Inputs: recorded runs. Simulators are fitted on fewer of them. Outputs: `figures/<profile>/ext03_runs_needed.*`.
#
# `papermill notebooks/ext03_runs_needed.ipynb out.ipynb -p profile smoke -y 'counts: [1, 2]'`

# %% tags=["parameters"]
profile: str = "mini"
tasks: list[str] = []  # SST-2 and WebNLG
methods: list[str] = []  # mean trajectory, counts, Simfluence, GPTfluence, low-rank deviations, tangent simulator
counts: list[int] = [1, 2, 5, 10, 25]  # training runs; counts above what the profile has are left out
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import pandas as pd

import gptfluence as gf
from gptfluence.experiments import shifted

nb = gf.Notebook("ext03_runs_needed", globals())
available = nb.study.setting().runs.train
used = [count for count in counts if count <= available]
used

# %%
results, sources = shifted.runs_needed(nb.campaigns, nb.methods, used)
explained = results[results["statistic"] == "r2_dev"]
explained.pivot_table(index=["task", "fitted_on"], columns="method", values="value", sort=False).round(2)

# %%
frame = results.assign(panel=results["task"].map(gf.names.task)).rename(columns={"fitted_on": "x", "method": "series"})
drawn = dict(list(frame.groupby("statistic", sort=False)))
marks = {"singles": drawn.get("r2_dev_of_run"), "training_runs": available, "floor": -1.0}
layout = {"columns": len(nb.tasks), "panel_height": 1.9}
picture = gf.points.plot_intervals(drawn["r2_dev"], xlabel="training runs", ylabel="R²dev", **marks, **layout)
picture

# %% [markdown]
# ## What runs and tangents cost
#
# Costs are counted in forwards of the GPT over one text. A recorded run trains on its batches (a forward, and a backward
# that counts as two) and measures every test example after every step. The tangent simulator takes a backward for each output
# (`TangentSimulator.forwards`). The other simulators need only the recorded runs.

# %%
costs = []
for campaign in nb.campaigns:
    source = campaign.dynamics()
    one = source.curricula[0]
    run = one.steps * (3 * one.batches.shape[1] + len(source.tests))
    for name in nb.methods:
        if nb.study.variant(name).kind == "tangent":
            taken = campaign.simulator(name).forwards
            costs.append((gf.names.task(source.task), gf.names.method(name), run, taken, taken / run))
costs = pd.DataFrame(costs, columns=["task", "method", "one recorded run", "tangents", "tangents, in runs"])
costs.round(2)

# %%
held, selecting = len(sources[0].split()[2]), len(sources[0].split()[1])
caption = (
    f"Explained deviation R2_dev of the loss on {held} held-out runs drawn alike, by number of runs that the simulator was "
    f"fitted on (and {selecting} validation runs that choose epochs and settings). {nb.study.profile.subject} "
    f"({sources[0].model}). R2_dev = 1 - MSE / MSE(mean of all {available} training runs). "
    f"{gf.readings.known_mean(available)} {gf.readings_beyond.INTERVALS}"
)
if len(costs):
    worth = ", ".join(f"{row.task} {row.method} {row[-1]:.1f}" for row in costs.itertuples())
    caption += f" Cost of the tangents, in recorded runs: {worth}."
nb.save_figure(
    picture,
    results,
    "ext03_runs_needed",
    caption=caption,
    sources=sources,
    reading=gf.readings.best_points(drawn["r2_dev"]),
)
