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
# # Table 2: loss simulation in fine-tuning
#
# A GPT is fine-tuned on each task many times (in the paper 32), each time on another random curriculum. Training runs fit a
# simulator, and validation runs choose its best epoch. On held-out runs it predicts the rest from the loss before training.
# *Lower errors are better.
# R²dev above 0 means that a method predicts some of a curriculum's own effect. Below 0, the mean of the training runs, which
# knows nothing of the curriculum, predicts better.*
#
# [Table 2, profile mini](../figures/mini/tab02_fine_tuning_loss.md)
#
# Inputs: recorded runs and fitted simulators (made if missing). Outputs: `figures/<profile>/tab02_fine_tuning_loss.*`.
# With everything recorded and fitted it takes a few seconds.
#
# `papermill notebooks/tab02_fine_tuning_loss.ipynb out.ipynb -p profile smoke -y 'tasks: [sst2]'`

# %% tags=["parameters"]
profile: str = "mini"
tasks: list[str] = []  # all of the profile's
methods: list[str] = []  # all of the profile's
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("tab02_fine_tuning_loss", globals())
dynamics = [campaign.dynamics() for campaign in nb.campaigns]
dynamics

# %% [markdown]
# Every method simulates the held-out runs. There is one row for each run and statistic.

# %%
results = nb.evaluate()
results.head(12)

# %% [markdown]
# Means and, in parentheses, standard deviations over all runs and test examples, as in the paper. Its numbers beside them
# are those of Pythia-410M on the real tasks.

# %%
summary = gf.summarize(results).drop(columns=["setting", "model", "metric"])
table = gf.tables.methods_by_task(summary, gf.tables.reported(2))
table

# %% [markdown]
# The spread over runs of the mean error, beside the spread over trajectories. The last columns count predictions that diverged
# and runs without a rank correlation.

# %%
gf.tables.spread(summary)

# %%
caption = (
    f"Loss simulation in fine-tuning. Measured: {nb.study.profile.subject} ({dynamics[0].model}), "
    f"{len(dynamics[0].split()[2])} held-out runs of {dynamics[0].curricula[0].steps} steps, {len(dynamics[0].tests)} test "
    "examples a task. Numbers are means (standard deviation over runs and examples). Paper: table 2, Pythia-410M on the real tasks. "
    "R2_dev = 1 - MSE / MSE of the mean training trajectory."
)
reading = gf.readings.of_table(table)
nb.save_table(table, caption=caption, sources=dynamics, reading=reading)
