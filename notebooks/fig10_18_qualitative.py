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
# # Figures 10-18: recorded and simulated trajectories
#
# Each panel shows one test example in one held-out run: its recorded trajectory (black), and the prediction of each method
# from the first value alone (the dot). Examples are chosen by their place in the ranking of GPTfluence's error, from well
# predicted to badly predicted, so that the gallery does not flatter.
#
# | figure | setting | metric | model stands for |
# |---|---|---|---|
# | 10, 11 | instruction tuning | loss | Pythia-410M, Pythia-1B |
# | 12, 13 | instruction tuning | BLEU | Pythia-410M, Pythia-1B |
# | 14, 15 | instruction tuning | ROUGE-L | Pythia-410M, Pythia-1B |
# | 16, 17, 18 | fine-tuning | loss, BLEU, ROUGE-L | Pythia-410M |
#
# ![Figure 16, profile mini](../figures/mini/fig16_fine_tuning_loss.png)
#
# Inputs: recorded runs and fitted simulators (made if missing). Outputs: one figure a run, for example
# `figures/<profile>/fig16_fine_tuning_loss.*`. With everything recorded and fitted it takes a few seconds.
#
# `papermill notebooks/fig10_18_qualitative.ipynb out.ipynb -p profile smoke -p figure 17 -p examples 3`

# %% tags=["parameters"]
profile: str = "mini"
figure: int = 16
model: str = ""  # the one of the figure's size
tasks: list[str] = []  # all of the profile's that have the metric
methods: list[str] = []  # all of the setting's but TracIn-CP and Grad-Dot
examples: int = 2  # panels for each task
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("fig10_18_qualitative", globals())
nb.choose("examples", examples, range(1, 9))
[metric] = nb.metrics

# %% [markdown]
# Every method simulates the held-out runs. The mean trajectory is among them in any case: R²dev compares with it.

# %%
simulated = nb.predict()

# %% [markdown]
# One panel for each chosen (task, test example), in the first held-out run, as a tidy frame.

# %%
frame = gf.trajectories.trajectory_frame(
    {task: found for (_, task), found in simulated.items()}, metric=metric, examples=examples
)
frame.head()

# %%
picture = gf.trajectories.plot_trajectories(frame, metric=metric)
picture

# %% [markdown]
# How typical are these examples? Every method on all trajectories of the held-out runs.

# %%
results = gf.gallery.results_of(simulated)
gf.summarize(results).query("statistic == 'r2_dev'").pivot(index="task", columns="method", values="value")

# %%
recorded = [test for test, _ in simulated.values()]
printed = gf.names.metric(metric)
caption = (
    f"{printed[0].upper()}{printed[1:]} of test examples during {nb.setting.replace('_', '-')} on a held-out curriculum, "
    f"recorded and simulated from the value before training. Drawn from {nb.study.profile.subject} ({recorded[0].model}). Each "
    "task has examples at evenly spaced ranks of GPTfluence's error, from the best to the worst predicted."
)
reading = gf.readings.of_gallery(frame, results, {metric: gf.gallery.reported(nb.setting, metric, nb.model)})
nb.save_figure(picture, frame, caption=caption, sources=recorded, reading=reading)
