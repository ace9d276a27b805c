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
# # Tables 5 to 9: hyperparameters
#
# The five tables of the paper's appendix. Each shows the paper's values beside the profile's, and marks those that differ:
# how the GPTs are trained (tables 5 and 7) and how the simulators are fitted (tables 6, 8 and 9). A profile has one entry for
# each simulator, and a setting may have options of its own. Table 9 has those of fine-tuning.
#
# [Table 5, profile mini](../figures/mini/tab05_hyperparameters_instruction_tuning.md)
#
# Inputs: the profile, nothing else. Outputs: `figures/<profile>/tab05_hyperparameters_instruction_tuning.*` and so on, one for
# each table. It takes a few seconds.
#
# `papermill notebooks/tab05_09_hyperparameters.ipynb out.ipynb -p profile paper`

# %% tags=["parameters"]
profile: str = "mini"
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("tab05_09_hyperparameters", globals())
compared = gf.hyperparameters.compared(nb.study.profile)
gf.hyperparameters.table(compared[7])

# %%
for name, title in nb.saved.items():
    number = int(name[3:5])
    caption = (
        f"{title}: table {number} of the paper beside profile {nb.study.label} ({nb.study.profile.subject}). Options that "
        "the profile does not set have their default values."
    )
    reading = gf.readings.of_hyperparameters(compared[number], gf.hyperparameters.NOT_USED)
    nb.save_table(gf.hyperparameters.table(compared[number]), name, caption=caption, sources=[], reading=reading)
