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
# # Tables 5-9: hyperparameters
#
# The five tables of the paper's appendix as one, each value beside the profile's own, what differs marked: how the GPTs are
# trained (tables 5 and 7) and how the simulators are fitted (tables 6, 8 and 9). A profile
# has one entry for each simulator, so where the paper fits it otherwise in instruction tuning a difference is shown.
#
# ![Tables 5 to 9, profile mini](../figures/mini/tab05_hyperparameters.png)
#
# Inputs: the profile, nothing else. Outputs: `figures/<profile>/tab05_hyperparameters.*`. It takes a few seconds.
#
# `papermill notebooks/tab05_hyperparameters.ipynb out.ipynb -p profile paper`

# %% tags=["parameters"]
profile: str = "mini"
overrides: list[str] = []  # changes to the profile
output_dir: str = ""  # figures/<profile>; with other parameters than these build/<profile>/figures

# %%
import gptfluence as gf

nb = gf.Notebook("tab05_hyperparameters", globals(), setting=None)
compared = gf.hyperparameters.compared(nb.study.profile)
compared[compared["differs"]]

# %%
table = gf.hyperparameters.table(compared)
table

# %%
caption = (
    f"Hyperparameters: tables 5 to 9 of the paper beside profile {nb.study.label} ({nb.study.profile.title}). Simulators' "
    "values are those that are used, defaults included."
)
reading = gf.hyperparameters.reading(compared)
nb.save_table(table, "tab05_hyperparameters", caption=caption, sources=[], reading=reading)
