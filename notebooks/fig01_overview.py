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
# # Figure 1: collect, fit, simulate
#
# The method in one picture, drawn from recorded runs. *Left:* one of the training runs, with the examples of the pool in the
# batch of each update, and the losses of the test examples. *Middle:* a simulator is fitted on all training runs. The epoch
# with the best simulations of the validation runs is kept. *Right:* a curriculum that the simulator never saw. It predicts
# the losses from their values before training (dots).
#
# ![Figure 1, profile mini](../figures/mini/fig01_overview.png)
#
# Inputs: recorded runs and a fitted simulator (made if missing). Outputs: `figures/<profile>/fig01_overview.*`. With
# everything recorded it takes a few seconds.
#
# `papermill notebooks/fig01_overview.ipynb out.ipynb -p profile smoke -p task webnlg -p examples 3`

# %% tags=["parameters"]
profile: str = "mini"
task: str = ""  # the profile's first
model: str = ""  # the profile's first
method: str = "gptfluence"  # or another simulator that is fitted in epochs
examples: int = 2  # test examples that are followed
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("fig01_overview", globals())
nb.choose("examples", examples, [1, 2, 3])
campaign = nb.study.campaign("fine_tuning", nb.task, model=nb.model)
dynamics = campaign.dynamics()
dynamics

# %% [markdown]
# How the simulator was fitted, and what it predicts for the held-out runs from their first values.

# %%
report = campaign.simulator(method).report
[predicted] = campaign.predict([method]).values.values()
report

# %%
frame = gf.overview.overview_frame(dynamics, report, predicted, method=method, examples=examples)
frame.groupby(["panel", "series"], sort=False)["y"].describe()

# %%
picture = gf.overview.plot_overview(frame)
picture

# %%
train = dynamics.split()[0]
caption = (
    f"Collect, fit, simulate. Drawn from {nb.study.profile.subject} ({dynamics.model}), fine-tuning on {gf.names.task(nb.task)}. Left: "
    f"the curriculum and the recorded losses of one of {len(train)} training runs ({examples} of {len(dynamics.tests)} "
    f"test examples stand out). Middle: {gf.names.method(method)} is fitted on these runs, and validation runs choose the "
    "epoch that is kept. Right: the curriculum of a held-out run, and the losses recorded and simulated from the values "
    "before training."
)
reading = gf.readings.of_overview(frame, runs=len(train))
nb.save_figure(picture, frame, caption=caption, sources=[dynamics], reading=reading)
