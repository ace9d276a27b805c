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
# # Table 3: simulation of BLEU and ROUGE-L in instruction tuning
#
# The quality of what the GPT *writes* for a test example, at every step of training. It is noisier than the loss, and often
# constant for many steps. Simulators are fitted on the trajectories of BLEU (0-100) and ROUGE-L (0-1) themselves, one for
# each metric, and start from the value before training.
#
# [Table 3, profile mini](../figures/mini/tab03_instruction_tuning_generation.md)
#
# Inputs: recorded runs of each GPT and fitted simulators (made if missing). Outputs:
# `figures/<profile>/tab03_instruction_tuning_generation.*`. With everything recorded it takes a few seconds.
#
# The default profile has the sizes that stand for 410M and 1B, profile `mini-all` that for 2.8B, too.
#
# `papermill notebooks/tab03_instruction_tuning_generation.ipynb out.ipynb -p profile smoke -y 'metrics: [bleu]'`

# %% tags=["parameters"]
profile: str = "mini"
models: list[str] = []  # those of the profile that stand for the paper's 410M, 1B and 2.8B
tasks: list[str] = []  # all whose targets are text
methods: list[str] = []  # all of the profile's that know the metric
metrics: list[str] = []  # BLEU and ROUGE-L
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("tab03_instruction_tuning_generation", globals())
dynamics = [campaign.dynamics() for campaign in nb.campaigns]
nb.tested

# %%
results = nb.evaluate()
results.head(8)

# %% [markdown]
# Means and, in parentheses, standard deviations over all runs and test examples, as in the paper. Errors of BLEU and
# ROUGE-L are on scales of their own and cannot be compared with each other.

# %%
summary = gf.summarize(results)
table = gf.tables.methods_by_task(summary, gf.tables.reported(3), by=["model", "metric"])
table

# %% [markdown]
# The spread over runs of the mean error, beside the spread over trajectories. The last columns count predictions that diverged
# and runs without a rank correlation (where all test examples end at the same value).

# %%
gf.tables.spread(summary).drop(columns=["setting"])

# %%
interval = nb.study.setting("instruction_tuning").generation.every
every = "every step"
if interval > 1:
    every = f"one step in {interval}; simulators are fitted, and errors taken, at these steps and the last alone"
caption = (
    f"Simulation of BLEU and ROUGE-L in instruction tuning. Measured: {nb.study.profile.subject} ({', '.join(nb.models)}), "
    f"{len(dynamics[0].split()[2])} held-out runs. Numbers are means (standard deviation over runs and examples). Paper: table 3, Pythia "
    f"on the real tasks. Texts are generated at {every}. R2_dev = 1 - MSE / MSE of the mean training trajectory."
)
reading = gf.readings.of_table(table)
nb.save_table(table, caption=caption, sources=dynamics, reading=reading)
