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
# # Figure 8: trajectories on unseen training data
#
# The GPT is fine-tuned on unseen training examples. The simulator knows only their texts. Each panel shows one test example:
# its recorded trajectory (black), and the one simulated from the first value alone (the dot). Loss on RTE and
# BLEU on WebNLG, as far as the profile keeps unseen examples of them. Simfluence is missing because it knows only the ids
# that it was fitted on.
#
# ![Figure 8, profile mini](../figures/mini/fig08_unseen_examples.png)
#
# Inputs: recorded runs on known and unseen examples and fitted simulators (made if missing). Outputs:
# `figures/<profile>/fig08_unseen_examples.*`. With everything recorded and fitted it takes a few seconds.
#
# `papermill notebooks/fig08_unseen_examples.ipynb out.ipynb -p profile smoke -p unseen both`

# %% tags=["parameters"]
profile: str = "mini"
model: str = ""  # the profile's first
methods: list[str] = []  # GPTfluence and the baselines
unseen: str = "training"  # which examples are unseen: training, test or both
examples: int = 2  # panels for each metric and task
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("fig08_unseen_examples", globals())
nb.choose("unseen", unseen, list(gf.gallery.UNSEEN))
nb.choose("examples", examples, range(1, 9))
gf.readings.panel_names(nb.panels)

# %%
simulated = nb.predict(unseen=unseen)

# %%
frame = gf.trajectories.lettered_frame(simulated, examples=examples)
frame.head()

# %%
picture = gf.trajectories.plot_trajectories(frame)
picture

# %% [markdown]
# How typical are these examples? Every method on all trajectories of these runs.

# %%
results = gf.gallery.results_of(simulated)
gf.summarize(results).query("statistic == 'r2_dev'").pivot(index=["metric", "task"], columns="method", values="value")

# %%
recorded = [test for test, _ in simulated.values()]
caption = (
    f"Trajectories with {gf.names.unseen(unseen)} in fine-tuning, recorded and simulated from the first value: "
    f"{gf.readings.panel_names(nb.panels)}. Drawn from {nb.study.profile.subject} ({recorded[0].model}). Examples lie at evenly spaced ranks "
    "of GPTfluence's error. Simfluence cannot simulate what it was not fitted on."
)
reading = gf.readings.of_gallery(frame, results, {})
for metric, task in nb.panels:
    reading = f"{reading} {gf.readings.beside_paper(results, (metric, task), unseen, recorded[0].model)}".rstrip()
nb.save_figure(picture, frame, caption=caption, sources=recorded, reading=reading)
