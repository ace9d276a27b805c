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
# # Figure 5: text encoders
#
# GPTfluence sees examples through a frozen text encoder. Does it matter which? The paper compares MiniLM, BERT and Pythias.
# Each profile has its own list. There a model stands for its last token's hidden state, and `index` for no text: each
# example has a number of its own, and nothing is shared between examples.
#
# ![Figure 5, profile mini](../figures/mini/fig05_encoders.png)
#
# Inputs: recorded runs, encoded texts and fitted simulators (made if missing). Outputs: `figures/<profile>/fig05_encoders.*`.
# With everything recorded, profile `mini` takes a few minutes on two cores, for a fit of each encoder.
#
# `papermill notebooks/fig05_encoders.ipynb out.ipynb -p profile smoke -y 'encoders: [minilm-cls, index]'`

# %% tags=["parameters"]
profile: str = "mini"
model: str = ""  # the GPT that is simulated: the profile's first
encoders: list[str] = []  # all of the profile's
tasks: list[str] = []  # all that the profile tests
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("fig05_encoders", globals())
[campaign] = nb.campaigns
dynamics = campaign.dynamics()
dynamics

# %%
results = nb.evaluate()
chosen = {one.variant: getattr(one.options, nb.row.varies) for one in nb.variants if one.variant}
results["encoder"] = results["variant"].map(chosen)
results.head(8)

# %%
frame = gf.sweeps.sweep(results.drop(columns="variant"), "encoder")
frame.head(8)

# %%
fitted_on = len(dynamics.split()[0])
layout = {"join": False, "panel_height": 1.7}
picture = gf.sweeps.plot_sweep(frame, "encoder", xlabel="encoder", training_runs=fitted_on, **layout)
picture

# %%
caption = (
    f"Loss simulation in instruction tuning by GPTfluence with different frozen text encoders, over {len(nb.tasks)} "
    f"tasks: {gf.sweeps.MEANS_OVER_TASKS}. {nb.study.profile.subject} ({dynamics.model}), {len(dynamics.split()[2])} held-out runs. "
    "A model's name stands for its last token's hidden state, index for one-hot ids. Horizontal lines: "
    "baselines, which use no encoder. 1 - R2_dev = MSE / MSE of the mean training trajectory. "
    f"{gf.readings.known_mean(fitted_on, rest=True)} {gf.readings_beyond.INTERVALS}"
)
reading = gf.readings.of_sweep(frame, "encoder", "encoder")
nb.save_figure(picture, frame, caption=caption, sources=[dynamics], reading=reading)
