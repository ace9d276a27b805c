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
# # Figure 7: finding mislabelled training data
#
# Some labels of the training pool are flipped. Each method scores every training example, and the examples are inspected
# from the most suspect down. *Left: the higher a curve, the sooner the flips are found. Random inspection finds,
# averaged over many orders, the same share of flips as it inspects. Right: flipped labels among the inspected are corrected,
# and the GPT is trained again. A good order restores the accuracy after few inspections.*
#
# TracIn-CP scores an example by its self-influence (the squared norm of its own gradient, summed over checkpoints),
# GPTfluence by its simulated multiplicative factor on its own loss.
#
# ![Figure 7, profile mini](../figures/mini/fig07_mislabelled_data.png)
#
# Inputs: runs on the flipped pool and a simulator fitted on them (made if missing). Outputs:
# `figures/<profile>/fig07_mislabelled_data.*`. From nothing, profile `mini` takes about three minutes on two cores.
#
# The paper flips 40% of the labels. From 128 examples with so much noise a nano model learns nothing. Its accuracy stays at
# chance, and no score can find a flip. So the default here is 20%.
#
# `papermill notebooks/fig07_mislabelled_data.ipynb out.ipynb -p profile smoke -p flipped_fraction 0.4`

# %% tags=["parameters"]
profile: str = "mini"
task: str = ""  # SST-2, or the first whose targets are labels
seeds: list[int] = [0, 1, 2]  # which labels are flipped, and the order of training
flipped_fraction: float = 0.2  # the paper's is 0.4
runs: int = 8  # recorded on the flipped pool, to fit GPTfluence on
learning_rate_factor: float = 6.0  # times the profile's rate, with which labels are hardly learned in so few steps
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import pandas as pd

import gptfluence as gf
from gptfluence.experiments.mislabelled import Experiment

nb = gf.Notebook("fig07_mislabelled_data", globals())
experiments = [
    Experiment(
        nb.study,
        nb.task,
        seed=seed,
        flipped_fraction=flipped_fraction,
        runs=runs,
        learning_rate_factor=learning_rate_factor,
    )
    for seed in seeds
]
first = experiments[0]
print(f"{first.flipped.sum()} of {len(first.flipped)} labels flipped, {first.curriculum.steps} steps of training")

# %% [markdown]
# How many of the flips are found among the first examples inspected?

# %%
found = pd.concat([experiment.found() for experiment in experiments]).assign(panel="flipped labels found")
found.groupby(["method", "seed"])["value"].mean().unstack("method").round(3)  # area under each curve

# %% [markdown]
# Correct the flips among those inspected, train again from the same weights on the same batches, and measure the share of
# test examples whose right label is the most likely one.

# %%
accuracy = pd.concat([experiment.accuracy() for experiment in experiments]).assign(panel="test accuracy")
accuracy.pivot_table(index="inspected", columns="method", values="value", aggfunc="mean").round(3)

# %%
columns = {"method": "series", "seed": "repeat", "inspected": "x"}
frame = pd.concat([found, accuracy])[["panel", *columns, "value"]].rename(columns=columns)
ylabels = {"flipped labels found": "fraction of flipped labels", "test accuracy": "accuracy after retraining (0–1)"}
picture = gf.points.plot_curves(frame, xlabel="fraction of training examples inspected", ylabels=ylabels)
picture

# %%
caption = (
    f"Finding mislabelled training data: {gf.names.task(nb.task)}, {flipped_fraction:.0%} of the labels of {len(first.flipped)} "
    f"training examples flipped (in the paper 40%), learning rate {learning_rate_factor:g} times the profile's. "
    f"{nb.study.profile.title} ({first.dynamics.model}). Lines: mean over {len(seeds)} seeds, with "
    "bands from the lowest to the highest. GPTfluence: the example's multiplicative factor on its own loss, fitted on "
    f"{runs} runs. TracIn-CP: self-influence over 10 checkpoints, parameters of the last transformer block."
)
reading = " ".join(
    f"{panel}: {gf.readings.mean_and_range(part, flipped_fraction)}" for panel, part in frame.groupby("panel")
)
nb.save_figure(
    picture,
    frame,
    caption=caption,
    sources=[experiment.dynamics for experiment in experiments],
    reading=reading,
)
