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
# # Table 4: simulation of BLEU and ROUGE-L in fine-tuning
#
# A GPT is fine-tuned on each task whose targets are text, and what it writes for every test example is scored along the
# way. Simulators are fitted on these trajectories, one for each task and metric (BLEU 0-100, ROUGE-L 0-1).
#
# [Table 4, profile mini](../figures/mini/tab04_fine_tuning_generation.md)
#
# Inputs: recorded runs and fitted simulators (made if missing). Outputs: `figures/<profile>/tab04_fine_tuning_generation.*`.
# With everything recorded it takes a few seconds.
#
# `papermill notebooks/tab04_fine_tuning_generation.ipynb out.ipynb -p profile smoke -y 'metrics: [rouge_l]'`

# %% tags=["parameters"]
profile: str = "mini"
model: str = ""  # the profile's first
tasks: list[str] = []  # all whose targets are text
methods: list[str] = []  # all of the profile's that know the metric
metrics: list[str] = []  # BLEU and ROUGE-L
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("tab04_fine_tuning_generation", globals())
dynamics = [campaign.dynamics() for campaign in nb.campaigns]
dynamics

# %%
results = nb.evaluate()
results.head(8)

# %% [markdown]
# Means and, in parentheses, standard deviations over all runs and test examples, as in the paper. Its numbers beside them
# are those of Pythia-410M on the real tasks.

# %%
summary = gf.summarize(results).drop(columns=["setting", "model"])
table = gf.tables.methods_by_task(summary, gf.tables.reported(4), by=["metric"])
table

# %% [markdown]
# The spread over runs of the mean error, beside the spread over trajectories. The last columns count predictions that diverged
# and runs without a rank correlation (where all test examples end at the same value).

# %%
gf.tables.spread(summary)

# %%
interval = nb.study.setting("fine_tuning").generation.every
every = "every step"
if interval > 1:
    every = f"one step in {interval}; simulators are fitted, and errors taken, at these steps and the last alone"
caption = (
    f"Simulation of BLEU and ROUGE-L in fine-tuning. Measured: {nb.study.profile.subject} ({dynamics[0].model}), "
    f"{len(dynamics[0].split()[2])} held-out runs of {dynamics[0].curricula[0].steps} steps, {len(dynamics[0].tests)} test "
    "examples a task. Numbers are means (standard deviation over runs and examples). Paper: table 4, Pythia-410M on the real tasks. "
    f"Texts are generated at {every}. R2_dev = 1 - MSE / MSE of the mean training trajectory."
)
reading = gf.readings.of_table(table)
nb.save_table(table, caption=caption, sources=dynamics, reading=reading)
