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
# # Beyond the paper: how far ahead can one simulate?
#
# A simulator continues from its own predictions, so its errors may grow with every step. The squared error at each step is
# shown beside that of the mean trajectory, which is the same for every curriculum. *Where a curve rises above the mean
# trajectory's, the rest of the run is better guessed without the simulator.*
#
# ![Error by step, profile mini](../figures/mini/ext02_horizon.png)
#
# Inputs: recorded runs and fitted simulators (made if missing). Outputs: `figures/<profile>/ext02_horizon.*`.
#
# `papermill notebooks/ext02_horizon.ipynb out.ipynb -p profile smoke -y 'tasks: [sst2]'`

# %% tags=["parameters"]
profile: str = "mini"
tasks: list[str] = []  # SST-2 and WebNLG
methods: list[str] = []  # mean trajectory, counts, Simfluence, GPTfluence, low-rank deviations, tangent simulator
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import numpy as np

import gptfluence as gf
from gptfluence.experiments import shifted

nb = gf.Notebook("ext02_horizon", globals())
results, sources = shifted.by_step(nb.campaigns, nb.methods)
results.head()

# %% [markdown]
# The error at some steps, relative to that of the mean trajectory (1 is as good, 0 perfect).

# %%
sums = results.groupby(["task", "method", "step"], sort=False)[["mse", "mse_mean_trajectory"]].sum()
relative = (sums["mse"] / sums["mse_mean_trajectory"]).unstack("step")
relative[np.unique(np.linspace(1, relative.columns.max(), 6).round().astype(int))].round(2)

# %%
frame = results.rename(columns={"method": "series", "run": "repeat", "step": "x"})
frame = frame.assign(panel=frame["task"].map(gf.names.task), value=np.sqrt(frame["mse"]))
ylabels = {gf.names.task(task): "error (RMS, nats per target token)" for task in nb.tasks}
picture = gf.points.plot_curves(frame, xlabel="training step", ylabels=ylabels)
picture

# %%
caption = (
    f"Root mean squared error of the simulated loss over test examples, by step. Line: mean over {len(sources[0].split()[2])} "
    f"held-out runs. Band: from the lowest to the highest. {nb.study.profile.subject} ({sources[0].model}). The "
    "value before training is observed."
)
reading = gf.readings_beyond.of_horizon(results)
nb.save_figure(picture, results, "ext02_horizon", caption=caption, sources=sources, reading=reading)
