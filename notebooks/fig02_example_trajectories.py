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
# # Figure 2: example trajectories in instruction tuning
#
# One GPT is trained on a mixture of tasks with instructions. Each panel shows one test example in one held-out run: its
# recorded trajectory (black), and the prediction of each method from the first value alone (the dot). (a) loss on RTE, (b)
# loss on WMT16, (c) BLEU on WebNLG, (d) ROUGE-L on WMT16, as far as the profile tests them. The example of a panel is the
# middle one in the ranking by GPTfluence's error, so that the panels do not flatter. The reading below is about all examples.
#
# ![Figure 2, profile mini](../figures/mini/fig02_example_trajectories.png)
#
# Inputs: recorded runs and fitted simulators (made if missing). Outputs: `figures/<profile>/fig02_example_trajectories.*`.
# With everything recorded and fitted it takes a few seconds.
#
# `papermill notebooks/fig02_example_trajectories.ipynb out.ipynb -p profile smoke -p examples 2`

# %% tags=["parameters"]
profile: str = "mini"
model: str = ""  # the profile's first
methods: list[str] = []  # default: all of the setting's, with one TracIn-CP and one Grad-Dot
examples: int = 1  # panels for each metric and task
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("fig02_example_trajectories", globals())
nb.choose("examples", examples, range(1, 9))
gf.readings.panel_names(nb.panels)

# %% [markdown]
# The held-out runs of each panel's task, and what every method predicts for them. The mean trajectory is simulated in any
# case: R²dev compares with it.

# %%
simulated = nb.predict()

# %%
frame = gf.trajectories.lettered_frame(simulated, examples=examples)
frame.head()

# %%
picture = gf.trajectories.plot_trajectories(frame)
picture

# %% [markdown]
# How typical are these examples? Every method on all trajectories of the held-out runs.

# %%
results = gf.gallery.results_of(simulated)
gf.summarize(results).query("statistic == 'r2_dev'").pivot(index=["metric", "task"], columns="method", values="value")

# %%
recorded = [test for test, _ in simulated.values()]
caption = (
    f"Trajectories of test examples in instruction tuning on a held-out curriculum, recorded and simulated from the first "
    f"value: {gf.readings.panel_names(nb.panels)}. Drawn from {nb.study.profile.subject} ({recorded[0].model}). Examples lie at evenly spaced ranks "
    "of GPTfluence's error."
)
reported = {metric: gf.gallery.reported(nb.setting, metric, nb.model) for metric, _ in nb.panels}
reading = gf.readings.of_gallery(frame, results, reported)
nb.save_figure(picture, frame, caption=caption, sources=recorded, reading=reading)
