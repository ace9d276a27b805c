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
# # Tables 11 and 12: examples that no simulator was fitted on
#
# GPTfluence knows examples by their text, so it can be asked about unseen examples. There are three cases: *unseen training
# examples* with known tests, known training examples with *unseen test examples*, and *both*. Simfluence has numbers only for
# the ids that it was fitted on, so it has no row here. The baselines need no ids. The mean trajectory of unseen tests is the
# mean change of the known ones, added to the observed start.
#
# [Table 11, profile mini](../figures/mini/tab11_unseen_fine_tuning.md)
#
# Inputs: recorded runs, also on unseen examples, and fitted simulators (made if missing). Outputs:
# `figures/<profile>/tab11_unseen_fine_tuning.*`, and with `setting` instruction_tuning
# `figures/<profile>/tab12_unseen_instruction_tuning.*`. With everything recorded it takes a few seconds. The unseen runs of
# profile `mini` take about two minutes on two cores.
#
# `papermill notebooks/tab11_12_unseen.ipynb out.ipynb -p profile smoke -p setting instruction_tuning`

# %% tags=["parameters"]
profile: str = "mini"
setting: str = "fine_tuning"  # table 11; instruction_tuning: table 12
model: str = ""  # the setting's first
tasks: list[str] = []  # RTE and WebNLG
methods: list[str] = []  # GPTfluence and the baselines
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import pandas as pd

import gptfluence as gf

nb = gf.Notebook("tab11_12_unseen", globals())
nb.tested

# %% [markdown]
# Runs on unseen examples are recorded for this. No simulator is fitted on them.

# %%
dynamics = [campaign.unseen(unseen) for unseen in nb.row.unseen for campaign in nb.campaigns]
dynamics

# %%
results = pd.concat(nb.evaluate(unseen=unseen).assign(unseen=unseen) for unseen in nb.row.unseen)
results.head(8)

# %%
summary = gf.summarize(results).drop(columns=["setting", "model"])
reported = gf.tables.reported(int(nb.row.label.split()[-1]))
table = gf.tables.methods_by_task(summary, reported, by=["unseen", "metric"], average=False)
table

# %% [markdown]
# The spread over runs of the mean error, beside the spread over trajectories. The last columns count predictions that diverged
# and runs without a rank correlation.

# %%
gf.tables.spread(summary)

# %%
caption = (
    f"Unseen examples in {nb.setting.replace('_', ' ')}, mean (standard deviation over runs and examples). Measured: "
    f"{nb.study.profile.subject} ({dynamics[0].model}), {len(dynamics[0])} runs for each case. Simfluence knows only the ids that "
    f"it was fitted on, so it has no row. Paper: {nb.row.label.lower()}, Pythia-410M on the real tasks. "
    "R2_dev = 1 - MSE / MSE of the mean training trajectory (of unseen tests: of the mean change of the known ones)."
)
reading = gf.readings.of_table(table)
nb.save_table(table, caption=caption, sources=dynamics, reading=reading)
