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
# # Figures 19-30: trajectories with unseen examples
#
# Each panel shows one test example while a GPT is fine-tuned: its recorded trajectory (black), and the one simulated from the
# first value alone (the dot). In each figure the training examples, the test examples or both are unseen. Simfluence is
# missing because it knows only the ids that it was fitted on.
#
# | unseen: | test examples | training examples | both |
# |---|---|---|---|
# | RTE, loss | 19 | 20 | 21 |
# | WebNLG, loss | 22 | 23 | 24 |
# | WebNLG, BLEU | 25 | 26 | 27 |
# | WebNLG, ROUGE-L | 28 | 29 | 30 |
#
# ![Figure 20, profile mini](../figures/mini/fig20_rte_loss_unseen_training.png)
#
# Inputs: recorded runs on known and unseen examples and fitted simulators (made if missing). Outputs: one figure a run, for
# example `figures/<profile>/fig20_rte_loss_unseen_training.*`. With everything recorded and fitted it takes a few seconds.
#
# `papermill notebooks/fig19_30_unseen_qualitative.ipynb out.ipynb -p profile smoke -p figure 27 -p examples 2`

# %% tags=["parameters"]
profile: str = "mini"
figure: int = 20
model: str = ""  # the profile's first
methods: list[str] = []  # GPTfluence and the baselines
examples: int = 4  # panels
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("fig19_30_unseen_qualitative", globals())
nb.choose("examples", examples, range(1, 17))
[(metric, task)], [unseen] = nb.panels, nb.row.unseen

# %%
simulated = nb.predict(unseen=unseen)[metric, task]
recorded = simulated[0]
recorded

# %%
frame = gf.trajectories.trajectory_frame({task: simulated}, metric=metric, examples=examples)
frame.head()

# %%
picture = gf.trajectories.plot_trajectories(frame, metric=metric)
picture

# %% [markdown]
# How typical are these examples? Every method on all trajectories of these runs.

# %%
results = gf.gallery.results_of({(metric, task): simulated})
gf.summarize(results).pivot(index="statistic", columns="method", values="value").loc[["all_steps_mse", "r2_dev"]]

# %%
caption = (
    f"{gf.names.task(task)}, {gf.names.metric(metric)}, with {gf.names.unseen(unseen)} in fine-tuning: recorded, and simulated "
    f"from the value before training. Drawn from {nb.study.profile.subject} ({recorded.model}). Panels: examples at evenly spaced ranks "
    "of GPTfluence's error, from the best to the worst predicted. Simfluence cannot simulate what it was not fitted on."
)
reading = gf.readings.of_gallery(frame, results, {})
reading = f"{reading} {gf.readings.beside_paper(results, (metric, task), unseen, recorded.model)}".rstrip()
nb.save_figure(picture, frame, caption=caption, sources=[recorded], reading=reading)
