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
# # Figure 3: checkpoint interval
#
# What if only every c-th step had been recorded? Simulators are fitted as if each checkpoint stood for the steps until the
# next one, so that every step of an interval has the jump of the whole interval as its target. Predictions are compared with
# every recorded step. Errors are divided by persistence's on the same task before the (geometric) mean over the tasks of
# instruction tuning is taken, so that no task decides. Of other statistics the median over tasks is shown.
#
# ![Figure 3, profile mini](../figures/mini/fig03_checkpoint_interval.png)
#
# Inputs: recorded runs and fitted simulators (made if missing). Outputs: `figures/<profile>/fig03_checkpoint_interval.*`.
# With everything recorded, profile `mini` takes a few minutes on two cores, for a fit of each interval and method.
# With `coarsening` interpolate, values between checkpoints lie on a straight line.
#
# `papermill notebooks/fig03_checkpoint_interval.ipynb out.ipynb -p profile smoke -y 'intervals: [1, 4]'`

# %% tags=["parameters"]
profile: str = "mini"
model: str = ""  # the profile's first
intervals: list[int] = []  # 1, 2, 4, 6, 8 and 10
tasks: list[str] = []  # all that the profile tests
methods: list[str] = []  # GPTfluence and Simfluence
coarsening: str = "hold"  # as in the paper; or interpolate
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("fig03_checkpoint_interval", globals())
nb.choose("intervals", intervals, range(1, 1001))
nb.choose("coarsening", coarsening, ["hold", "interpolate"])
[campaign] = nb.campaigns
dynamics = campaign.dynamics()
dynamics

# %% [markdown]
# Only training runs are reduced to checkpoints. Validation and held-out runs are compared at every step.

# %%
change = {} if coarsening == "hold" else {"coarsening": coarsening}
variants = nb.varied(sorted(nb.values), **change)
results = nb.evaluate(variants)
chosen = {one.variant: getattr(one.options, nb.row.varies) for one in variants if one.variant}
results["interval"] = results["variant"].map(chosen).astype(float)
results.head(8)

# %%
frame = gf.sweeps.sweep(results.drop(columns="variant"), "interval")
frame.head(8)

# %%
fitted_on = len(dynamics.split()[0])
picture = gf.sweeps.plot_sweep(frame, "interval", xlabel="checkpoint interval (steps)", training_runs=fitted_on)
picture

# %%
caption = (
    f"Loss simulation in instruction tuning, fitted on every c-th step only ({coarsening}), over {len(nb.tasks)} "
    f"tasks: {gf.sweeps.MEANS_OVER_TASKS}. {nb.study.profile.subject} ({dynamics.model}), {len(dynamics.split()[2])} held-out runs of "
    f"{dynamics.curricula[0].steps} steps, compared at every step. Horizontal lines: "
    "baselines, which have no interval. 1 - R2_dev = MSE / MSE of the mean training trajectory. "
    f"{gf.readings.known_mean(fitted_on, rest=True)} {gf.readings_beyond.INTERVALS}"
)
reading = gf.readings.of_sweep(frame, "interval", "interval")
nb.save_figure(picture, frame, caption=caption, sources=[dynamics], reading=reading)
