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
# # Table 1: loss simulation in instruction tuning
#
# GPTs of several sizes are each trained on a mixture of six tasks with instructions, and tested on five of them. One
# simulator is fitted on the tests of all tasks. On held-out curricula it starts from the losses before training and
# predicts the rest. *Lower errors are better. R²dev above 0 means that a method predicts some of a curriculum's own
# effect. Below 0, the mean of the training runs, which knows nothing of the curriculum, predicts better.*
#
# [Table 1, profile mini](../figures/mini/tab01_instruction_tuning_loss.md)
#
# Inputs: recorded runs of each GPT and fitted simulators (made if missing). Outputs:
# `figures/<profile>/tab01_instruction_tuning_loss.*`. With everything recorded it takes a few seconds.
#
# The default profile has the sizes that stand for 410M and 1B, profile `mini-all` that for 2.8B, too.
#
# `papermill notebooks/tab01_instruction_tuning_loss.ipynb out.ipynb -p profile smoke -y 'models: [nano-smoke]'`

# %% tags=["parameters"]
profile: str = "mini"
models: list[str] = []  # those of the profile that stand for the paper's 410M, 1B and 2.8B
tasks: list[str] = []  # all that the profile tests
methods: list[str] = []  # all of the profile's
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("tab01_instruction_tuning_loss", globals())
dynamics = [campaign.dynamics() for campaign in nb.campaigns]
dynamics

# %% [markdown]
# Every method simulates the held-out runs of every GPT. There is one row for each run and statistic.

# %%
results = nb.evaluate()
results.head(8)

# %% [markdown]
# Means over all runs and test examples, tasks side by side, for each GPT and statistic. (Their standard deviations are in the
# CSV, and below.) The paper's numbers stand below those measured, and are those of the Pythia that a model is or stands
# for. Over all tasks, errors are relative to persistence's, so that no task decides. TracIn-CP and Grad-Dot use gradients of
# the last block. Rows with (update) multiply gradients of all parameters with the updates that AdamW made in the held-out
# run.

# %%
summary = gf.summarize(results)
table = gf.tables.methods_by_task(summary, gf.tables.reported(1), by=["model"], tasks_across=True)
table

# %% [markdown]
# The spread over runs of the mean error, beside the spread over trajectories. The last columns count predictions that diverged
# and runs without a rank correlation.

# %%
gf.tables.spread(summary).drop(columns=["setting", "metric"])

# %%
known = summary["method"].map(gf.names.family)
gradients = known.isin(["tracin_cp", "grad_dot"]).any()
caption = (
    "Loss simulation in instruction tuning, means over runs and examples (their standard deviations are in the CSV). Measured: "
    f"{nb.study.profile.subject} ({', '.join(nb.models)}), {len(dynamics[0].split()[2])} held-out runs, "
    f"{len(dynamics[0].tests)} test examples over all tasks. Paper: table 1, Pythia on the real tasks"
    + (", its TracIn-CP and Grad-Dot scaled on the test run itself" if gradients else "")
    + (
        ". Measured TracIn-CP and Grad-Dot follow the held-out run itself, scaled on the first validation run, or on "
        "that run itself (oracle). Oracle and update rows are told what they predict and do not compete for bold"
        if gradients
        else ""
    )
    + ". R2_dev = 1 - MSE / MSE of the mean training trajectory."
)
reading = gf.readings.of_table(table)
nb.save_table(table, caption=caption, sources=dynamics, reading=reading)
