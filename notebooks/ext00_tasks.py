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
# # Beyond the paper: what do the tasks teach, and does it matter what is in the examples?
#
# A simulator can only be judged on tasks that a GPT learns, and whose curves differ by *what is in* the examples of a
# curriculum. If one number for each run and step says most of what differs, or counts of labels do, a good simulation of them
# says little. This notebook shows for every task whether the GPT learns it, and how much of what differs is so simple.
#
# It shows two regimes. *Learning* is training at the profile's own rates. *Slow drift* has a tenth of them: curves move little
# and nearly coincide, as the paper's do. (If the profile's own rates are those of slow drift, it shows this regime only.)
#
# ![Loss, accuracy and shares of every task, profile mini](../figures/mini/ext00_tasks.png)
#
# Inputs: recorded runs (made if missing). Runs of slow drift are recorded here, and the GPT is trained once for each example
# left out. Outputs: `figures/<profile>/ext00_tasks.*` and, as a table, `ext00_statistics.*`.
#
# `papermill notebooks/ext00_tasks.ipynb out.ipynb -p profile smoke -y 'tasks: [sst2]' -p left_out 3`

# %% tags=["parameters"]
profile: str = "mini"
tasks: list[str] = []  # all of the profile
models: list[str] = []  # default: the profile's first; others are in settings.fine_tuning.models
slow_drift: float = 0.1  # the learning rate of slow drift, as a fraction of the profile's
train: int = 8  # training runs that describe each regime; no more than the profile has
held_out: int = 3  # held-out runs that do
left_out: int = 12  # examples left out, one at a time; the GPT is trained once for each; 0: none
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf
from gptfluence.experiments import task_statistics

nb = gf.Notebook("ext00_tasks", globals())
nb.choose("train", train, range(2, 1001))
nb.choose("held_out", held_out, range(1, 1001))
nb.choose("left_out", left_out, [0, *range(3, 1001)])
profile_runs = nb.campaigns[0].setting.runs
fitted_on, tested_on = min(train, profile_runs.train), min(held_out, profile_runs.test)
options = {"slow_drift": slow_drift, "train": fitted_on, "held_out": tested_on, "left_out": left_out}
results, sources = task_statistics.of_tasks(nb.campaigns, **options)

# %% [markdown]
# - *first component*: the share of the deviations from the mean trajectory (over runs, steps and test examples) that lies in
#   their first principal component; 1 means that one number for each run and step says everything.
# - *labels or formats*: the share that is one number for each run and step times the label's sign. With free text: one number
#   for each run, step and group of formats (length, end, number of sentences).
# - *counts*: R²dev of counts of labels and formats, a method that knows nothing of what texts say.
# - *persistence / mean*: the error of persistence over that of the mean trajectory. It is large in slow drift.
# - *that matter*: how many examples of a curriculum move a test example by themselves, when the GPT is trained without one of
#   them (by more than three standard deviations of the noise). Some seem to by chance; the table's caption says how many.
# - *move ratio*: how many times further an example left out moves the tests that share a rare word with it.

# %%
table = gf.task_panels.table(results)
table

# %%
picture = gf.task_panels.plot_tasks(results, training_runs=fitted_on)
picture

# %%
what = (
    "What tasks teach and what differs between curricula. Loss and accuracy: means over test examples and held-out runs, before "
    "and after training. Shares: of the sum of squared deviations from the mean trajectory. R2_dev = 1 - MSE / MSE of the mean "
    "training trajectory, of counts of labels and formats alone."
)
runs = (
    f"{nb.study.profile.subject} ({', '.join(nb.models)}). Each regime: the first {fitted_on} training and {tested_on} held-out "
    "runs, since shares and R2_dev depend on how many there are."
)
if results["regime"].nunique() > 1:
    runs += f" Slow drift: {slow_drift:g} times the learning rate of learning."
goals = "Lines: chance and goals (accuracy 0.8, shares under 0.5), and R2_dev 0 (the mean training trajectory)."
goals += f" {gf.readings.known_mean(fitted_on)}"
reading = gf.readings_beyond.of_tasks(results)
nb.save_figure(picture, results, caption=f"{what} {goals} {runs}", sources=sources, reading=reading)

# %%
retrained = ""
if left_out:
    retrained = f"One example left out: {left_out} times. {task_statistics.chance(nb.campaigns[0], left_out)}"
caption = " ".join(filter(None, [what, retrained, runs]))
nb.save_table(table, "ext00_statistics", caption=caption, sources=sources, reading=reading)
