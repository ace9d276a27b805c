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
# # Beyond the paper: what of a curriculum's own effect is predicted?
#
# Simulators are fitted on curricula drawn alike. Most of a loss curve is the same for all of these, so even the mean of the
# training runs, which knows nothing of the curriculum, has small errors. *R²dev is the share of a curriculum's own effect
# that a simulator predicts: 1 is perfect, 0 is the mean of the training runs, below 0 is worse.* A "what if" question is
# about other kinds of curricula (they are listed in docs/glossary.md), or about unseen examples. Runs of each kind are
# recorded here, and every simulator is measured on them.
#
# The training runs are drawn alike. If a kind shifts the level of *all* its runs, R²dev is near 1 for any method that gets
# this level right. *R² within the kind is the harder question: its 0 is the mean of the other runs of the same kind.*
#
# ![R²dev by kind of curriculum, profile mini](../figures/mini/ext01_explained_deviation.png)
#
# Inputs: recorded runs and fitted simulators (made if missing), and runs of every other kind. Outputs:
# `figures/<profile>/ext01_explained_deviation.*` and `ext01_other_metrics.*`.
# With more cores, runs are recorded side by side.
#
# `papermill notebooks/ext01_explained_deviation.ipynb out.ipynb -p profile smoke -y 'kinds: [alike, sorted]'`

# %% tags=["parameters"]
profile: str = "mini"
tasks: list[str] = []  # all of the profile
models: list[str] = []  # default: the profile's first; others are in settings.fine_tuning.models
methods: list[str] = []  # the baselines, Simfluence, GPTfluence, low-rank deviations, the tangent simulator
kinds: list[str] = [
    "alike",
    "few",
    "sorted",
    "biased",
    "unseen_tests",
    "unseen_pool",
]  # and dropped, added, faster, longer, which profile confirmation shows
shifted_tasks: list[str] = []  # tasks of kinds other than alike; default: SST-2 and WebNLG, where the profile has them
other_metrics: list[str] = []  # accuracy, BLEU and ROUGE-L (of SST-2 and WebNLG drawn alike) where they are recorded
runs: int = 5  # recorded of each kind (R² within it needs five); `alike` and the unseen kinds have the profile's runs
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import pandas as pd

import gptfluence as gf
from gptfluence.experiments import shifted

nb = gf.Notebook("ext01_explained_deviation", globals())
known = {**shifted.KINDS, **shifted.UNSEEN_KINDS}
nb.choose("kinds", kinds, list(known))
nb.choose("runs", runs, range(1, 1001))
nb.choose("shifted_tasks", shifted_tasks, nb.tasks)
of_all_kinds = shifted_tasks or [task for task in ("sst2", "webnlg") if task in nb.tasks] or nb.tasks
further = nb.output("ext01_other_metrics")
nb.choose("other_metrics", other_metrics, further.row.metrics)
for kind in kinds:
    print(f"{kind:12} {known[kind]}")

# %% [markdown]
# Each kind is recorded, and simulated from the losses before training. For `faster` and `longer` the tangent simulator is
# told the learning rates. Other simulators cannot use them. Some simulators refuse runs longer than those they were fitted on,
# or unseen examples, and have no value there. On unseen tests 0 is the mean training trajectory of *these* tests. With a
# reference run, the tangent simulator trains that run again and measures these tests along it, so it knows one training run.
# *One recorded run* shows the R²dev of that run's own losses. On an unseen pool 0 is the mean training trajectory of the known
# pool. For longer runs the mean trajectory stays at its last value.
#
# For `unseen_tests` a simulator is fitted on every other test example and predicts the rest, and then the other way round.
#
# Beside R²dev stand R² within the kind and the rank correlations over test examples: of the final loss, and of the final loss
# less that of the mean trajectory. The first is high even for the mean trajectory. The second asks whether test examples are
# ranked by how much the curriculum changes them.

# %%
parts = []
for campaign in nb.campaigns:
    wanted = kinds if campaign.task in of_all_kinds else [kind for kind in kinds if kind == "alike"]
    if wanted:
        parts.append(shifted.explained([campaign], wanted, nb.methods, runs=runs))
results = pd.concat([part.frame for part in parts], ignore_index=True)
sources = [dynamics for part in parts for dynamics in part.sources]
table = results[results["statistic"].isin(["r2_dev", "r2_within", "final_step_spearman", "deviation_spearman"])]
table.pivot_table(index=["model", "task", "kind", "statistic"], columns="method", values="value", sort=False).round(2)

# %%
shown = results if kinds == ["alike"] else results[results["task"].isin(of_all_kinds)]
titles = shown["task"].map(gf.names.task)
if len(nb.models) > 1:
    titles += ", " + shown["model"]
frame = shown.assign(panel=titles, x=shown["kind"].str.replace("_", " ")).rename(columns={"method": "series"})
drawn = dict(list(frame.groupby("statistic", sort=False)))
explained, fitted_on = drawn["r2_dev"], len(sources[0].split()[0])
marks = {"singles": drawn.get("r2_dev_of_run"), "within": drawn.get("r2_within"), "training_runs": fitted_on}
picture = gf.points.plot_intervals(explained, xlabel="curricula", ylabel="R²dev", floor=-1.0, **marks)
picture

# %% [markdown]
# ## All tasks and metrics, drawn alike
#
# Accuracy follows from simulated outputs of the label words. BLEU and ROUGE-L score sampled texts: a run recorded once more
# with other random numbers has other scores. *The ceiling is what a simulator would reach that knows the expected score of
# every text*. Anything above it is sampling noise. (Step 0 is observed, and its score stands until the next texts.)

# %%
metrics = other_metrics or further.row.metrics
campaigns = nb.study.campaigns("fine_tuning", further.tasks, models=nb.models) if further.tasks else []
others, of_others = shifted.other_metrics(campaigns, metrics, nb.methods)
others[others["statistic"] == "r2_dev"].pivot_table(
    index=["model", "task", "metric"], columns="method", values="value", sort=False
).round(3)

# %%
held = len(sources[0].split()[2])
caption = (
    f"Explained deviation R2_dev = 1 - MSE / MSE(mean training trajectory) of the loss, by kind of curriculum. "
    f"{nb.study.profile.subject} ({', '.join(nb.models)}), {held} held-out runs drawn alike, {runs} of every other kind "
    f"(of {', '.join(gf.names.task(task) for task in of_all_kinds)}). "
    f"{gf.readings_beyond.KINDS} {gf.readings.known_mean(fitted_on)} "
    "Unseen tests: 0 is the mean of these tests, and a tangent simulator with a reference run measures them along that run. "
    f"Unseen pool: 0 is the mean on the known pool. {gf.readings_beyond.INTERVALS}"
    + (" The CSV holds other metrics, too (ext01_other_metrics)." if len(others) else "")
)
competing = results[results["method"] != shifted.ONE_RUN]
best = gf.readings.best_points(explained[explained["series"] != shifted.ONE_RUN])
nb.save_figure(
    picture,
    pd.concat([results, others]) if len(others) else results,
    "ext01_explained_deviation",
    caption=caption,
    sources=[*sources, *of_others],
    reading=f"{best}\n{gf.readings_beyond.of_explained(competing)}".rstrip(),
)

# %%
if others.empty:
    print(f"profile {profile!r} records none of {', '.join(metrics)} of {', '.join(further.tasks) or 'its tasks'}")
else:
    alike = pd.concat([results[results["kind"] == "alike"], others])
    frame = alike.rename(columns={"method": "series"}).assign(
        panel="drawn alike" if len(nb.models) == 1 else alike["model"],
        x=alike["task"].map(gf.names.task) + " " + alike["metric"].map(gf.names.metric),
    )
    drawn = dict(list(frame.groupby("statistic", sort=False)))
    explained = drawn["r2_dev"]
    marks = {"singles": drawn.get("r2_dev_of_run"), "training_runs": fitted_on}
    picture = gf.points.plot_intervals(explained, xlabel="task and metric", ylabel="R²dev", floor=-1.0, **marks)
    caption = (
        "Explained deviation R2_dev = 1 - MSE / MSE(mean training trajectory) by task and metric. "
        f"{nb.study.profile.subject} ({', '.join(nb.models)}), {others['runs'].max()} held-out runs drawn alike. Ceiling: 1 less the "
        "share of the deviation that is sampling noise, estimated by recording the same runs twice. "
        f"{gf.readings.known_mean(fitted_on)} {gf.readings_beyond.INTERVALS}"
    )
    competing = explained[explained["series"] != shifted.CEILING]
    nb.save_figure(
        picture,
        alike,
        "ext01_other_metrics",
        caption=caption,
        sources=[*sources, *of_others],
        reading=gf.readings.best_points(competing),
    )
