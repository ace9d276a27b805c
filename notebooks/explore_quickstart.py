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
# # What would this GPT have learned from other data?
#
# The whole method on one page: record a few training runs, look at them, fit a simulator, ask it
# about a curriculum nobody trained on, then really train on that curriculum and compare.
#
# ![A curriculum nobody trained on: simulated, then really trained](../figures/mini/explore_quickstart.png)
#
# `papermill notebooks/explore_quickstart.ipynb out.ipynb -p task rte -p runs 12`

# %% tags=["parameters"]
profile: str = "mini"
task: str = ""  # SST-2
runs: int = 8  # recorded to fit on; two more runs are for validation and testing
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import numpy as np
import pandas as pd

import gptfluence as gf

nb = gf.Notebook("explore_quickstart", globals())
nb.choose("runs", runs, range(1, 1001))
campaign = nb.study.campaign("fine_tuning", nb.task).with_(runs={"train": runs, "validation": 1, "test": 1})

# %% [markdown]
# ## 1. Record
# A small GPT is trained again and again, each time on a random subset of the pool in a random order: the *curriculum*. The
# loss of every test example is measured before training and after every update. Runs that were recorded before are loaded.

# %%
dynamics = campaign.dynamics()
dynamics

# %%
print("a training example:", repr(dynamics.pool[0].text))
print("a test example:    ", repr(dynamics.tests[0].text))
print("the first batches of a curriculum:", dynamics.curricula[0].batches[:3].tolist())
dynamics.to_frame("loss").head(3)

# %% [markdown]
# How far do curves drift over a run, and how much do they differ from run to run? The curriculum causes only the second.

# %%
losses = dynamics.trajectories("loss")
mean = losses.mean(axis=0)
print(f"mean loss before {losses[:, 0].mean():.3f}, after {losses[:, -1].mean():.3f} nats per target token")
print(f"drift (mean squared change of the mean curve) {np.square(mean - mean[0]).mean():.4f}")
print(f"difference between runs (variance)             {losses.var(axis=0, ddof=1).mean():.4f}")

# %% [markdown]
# ## 2. Fit
# GPTfluence predicts the next loss of a test example from its last one and from the batch, through features of the texts:
# $\hat y_t = \alpha(c_t)\, y_{t-1} + \beta(c_t)$, each a sum over the examples of the batch. The tangent simulator is not in
# the paper. It trains the GPT's linearisation instead.

# %%
train, validation, test = dynamics.split()
simulators = {name: campaign.simulator(name) for name in ("gptfluence", "tangent")}
{name: simulator.report for name, simulator in simulators.items()}

# %% [markdown]
# ## 3. Simulate a curriculum that nobody trained on
# Take the held-out run's curriculum, leave a quarter of its examples out, and show one example eight times more. The
# simulators see the losses before training and the new curriculum, nothing else.

# %%
curriculum = test.curricula[0]
dropped = np.unique(curriculum.batches)[::4].tolist()
what_if = curriculum.without(examples=dropped).repeated(example=int(np.unique(curriculum.batches)[1]), times=8)
start = test.trajectories("loss")[:, :1]
simulated = {name: simulator.simulate([what_if], start) for name, simulator in simulators.items()}
what_if, simulated["gptfluence"].shape

# %% [markdown]
# ## 4. Compare with really training on it

# %%
truth = campaign.record(what_if)
reference = train.trajectories("loss").mean(axis=0)[: what_if.steps + 1]
predicted = {
    "persistence": np.broadcast_to(start, reference[None].shape),
    "mean_trajectory": reference[None],
    **simulated,
}
scores = [
    gf.evaluate(values, truth, reference=reference).assign(task=nb.task, method=name)
    for name, values in predicted.items()
]
table = gf.tables.methods_by_task(gf.summarize(pd.concat(scores)))
table

# %%
frame = gf.trajectories.trajectory_frame({nb.task: (truth, predicted)}, metric="loss", examples=4)
picture = gf.trajectories.plot_trajectories(frame, metric="loss")
picture

# %%
caption = (
    f"A curriculum that nobody trained on, simulated and then really trained. {nb.study.profile.subject} ({truth.model}), task "
    f"{gf.names.task(nb.task)}. Simulators are fitted on {runs} runs. Panels: test examples from the best to the worst predicted."
)
reading = f"{gf.readings.of_trajectories(frame)} Over all test examples: {gf.readings.of_table(table)}"
nb.save_figure(picture, frame, caption=caption, sources=[dynamics, truth], reading=reading)
