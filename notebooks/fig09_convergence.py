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
# # Figure 9: convergence
#
# A simulator learns to predict one step from the true step before. It is used to simulate a whole run from its own
# predictions. Above: the error of one step on the training runs, which is minimised. Below: the error of whole simulated
# validation runs, which chooses the epoch that is kept (the mark).
#
# ![Figure 9, profile mini](../figures/mini/fig09_convergence.png)
#
# Inputs: recorded runs and fitted simulators (made if missing). Outputs: `figures/<profile>/fig09_convergence.*`. With
# everything fitted it takes a few seconds.
#
# `papermill notebooks/fig09_convergence.ipynb out.ipynb -p profile smoke -y 'tasks: [sst2]'`

# %% tags=["parameters"]
profile: str = "mini"
model: str = ""  # the profile's first
tasks: list[str] = []  # all of the profile's
methods: list[str] = []  # all that the profile compares and that are fitted
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("fig09_convergence", globals())
dynamics = [campaign.dynamics() for campaign in nb.campaigns]
dynamics

# %%
reports = {(campaign.task, name): campaign.simulator(name).report for campaign in nb.campaigns for name in nb.methods}
reports

# %%
frame = gf.sweeps.convergence(reports)
picture = gf.sweeps.plot_convergence(frame)
picture

# %%
caption = (
    f"Convergence of simulators in fine-tuning (loss). {nb.study.profile.subject} ({dynamics[0].model}). Above: one-step MSE on "
    f"{len(dynamics[0].split()[0])} training runs. Below: all-steps MSE of rollouts on {len(dynamics[0].split()[1])} "
    "validation runs. Marks: the epoch that is kept. An epoch visits every transition of the training runs once. "
    + gf.readings.of_ends(reports)
)
reading = gf.readings.of_convergence(frame)
nb.save_figure(picture, frame, caption=caption, sources=dynamics, reading=reading)
