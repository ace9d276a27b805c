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
# # Figure 6: model sizes
#
# Are large GPTs harder to simulate than small ones? Loss simulation in instruction tuning for each GPT of the profile, from
# the smallest to the largest, over all tasks. Errors are divided by persistence's on the same GPT and task.
#
# ![Figure 6, profile mini](../figures/mini/fig06_model_sizes.png)
#
# Inputs: recorded runs of every GPT and fitted simulators (made if missing). Outputs:
# `figures/<profile>/fig06_model_sizes.*`. With everything recorded it takes a few seconds.
#
# The default profile has three sizes, profile `mini-all` all six.
#
# `papermill notebooks/fig06_model_sizes.ipynb out.ipynb -p profile smoke -y 'methods: [persistence, gptfluence]'`

# %% tags=["parameters"]
profile: str = "mini"
models: list[str] = []  # all of the profile's
tasks: list[str] = []  # all that the profile tests
methods: list[str] = []  # GPTfluence, Simfluence and the baselines
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("fig06_model_sizes", globals())
nb.models = gf.names.by_size(nb.models)
dynamics = [campaign.dynamics() for campaign in nb.campaigns]
dynamics

# %%
results = nb.evaluate()
results.head(8)

# %%
frame = gf.sweeps.sweep(results.drop(columns="variant"), "model")
frame.head(8)

# %%
fitted_on = len(dynamics[0].split()[0])
picture = gf.sweeps.plot_sweep(frame, "model", xlabel="GPT", panel_height=1.6, training_runs=fitted_on)
picture

# %% [markdown]
# As a table, beside the paper's plain means over tasks for the sizes that it reports (table 1).

# %%
table = gf.tables.methods_by_task(gf.summarize(results), gf.tables.reported(1), by=["model"])
whole = table.numbers[table.numbers["task"].isin([gf.tables.OVER_TASKS, gf.tables.PAPERS_MEAN])]
whole.pivot_table(index=["model", "method"], columns="statistic", values=["value", "paper"], sort=False).round(4)

# %%
caption = (
    f"Loss simulation in instruction tuning for GPTs of several sizes, over {len(nb.tasks)} tasks: {gf.sweeps.MEANS_OVER_TASKS}. "
    f"{nb.study.profile.subject}, {len(dynamics[0].split()[2])} held-out runs of each GPT. "
    "1 - R2_dev = MSE / MSE of the mean training trajectory of the same GPT. "
    f"{gf.readings.known_mean(fitted_on, rest=True)} {gf.readings_beyond.INTERVALS}"
)
reading = gf.readings.of_sweep(frame, "model", "GPT") + " " + gf.readings.of_table(table)
nb.save_figure(picture, frame, caption=caption, sources=dynamics, reading=reading)
