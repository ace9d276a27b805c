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
# ![R²dev by kind of curriculum, profile mini](../figures/mini/ext01_explained_deviation.png)
#
# Inputs: recorded runs and fitted simulators (made if missing), and runs of every other kind. Outputs:
# `figures/<profile>/ext01_explained_deviation.*` and `ext01_other_metrics.*`. With the training runs recorded and simulators
# fitted on them, profile `mini` takes 12 minutes of one core. With more cores, runs are recorded side by side.
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
    "dropped",
    "added",
    "faster",
    "longer",
    "unseen_tests",
    "unseen_pool",
]
other_metrics: list[str] = []  # accuracy, BLEU and ROUGE-L (of SST-2 and WebNLG drawn alike) where they are recorded
runs: int = 3  # recorded of each kind; `alike` and the unseen kinds have the profile's runs
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

# %%
results, sources = shifted.explained(nb.campaigns, kinds, nb.methods, runs=runs)
explained = results[results["statistic"] == "r2_dev"]
explained.pivot_table(index=["model", "task", "kind"], columns="method", values="value", sort=False).round(2)

# %% [markdown]
# Are test examples ranked rightly by how much the curriculum changes them? This is the rank correlation, over test examples,
# of the final loss less that of the mean trajectory.

# %%
ranks = results[results["statistic"] == "deviation_spearman"]
ranks.pivot_table(index=["model", "task", "kind"], columns="method", values="value", sort=False).round(2)

# %%
titles = explained["task"].map(gf.names.task)
if len(nb.models) > 1:
    titles += ", " + explained["model"]
frame = explained.assign(panel=titles).rename(columns={"kind": "x", "method": "series"})
frame["x"] = frame["x"].str.replace("_", " ")
picture = gf.points.plot_intervals(frame, xlabel="curricula", ylabel="R²dev", floor=-1.0)
picture

# %% [markdown]
# ## Other metrics
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
held = explained[explained["kind"] == "alike"]["runs"].max()
caption = (
    f"Explained deviation R2_dev = 1 - MSE / MSE(mean training trajectory) of the loss, by kind of curriculum. "
    f"{nb.study.profile.title} ({', '.join(nb.models)}), {held} held-out runs drawn alike, {runs} of every other kind. "
    "Unseen tests: 0 is the mean of these tests, and a tangent simulator with a reference run measures them along that run. "
    "Unseen pool: 0 is the mean on the known pool. Bars: 90% bootstrap intervals over runs (with two or three runs hardly "
    "more than their range)." + (" The CSV holds other metrics, too (ext01_other_metrics)." if len(others) else "")
)
nb.save_figure(
    picture,
    pd.concat([results, others]) if len(others) else results,
    "ext01_explained_deviation",
    caption=caption,
    sources=[*sources, *of_others],
    reading=gf.readings.best_points(frame[frame["series"] != shifted.ONE_RUN]),
)

# %%
if others.empty:
    print(f"profile {profile!r} records none of {', '.join(metrics)} of {', '.join(further.tasks) or 'its tasks'}")
else:
    drawn = others[others["statistic"] == "r2_dev"].rename(columns={"method": "series"})
    drawn = drawn.assign(
        panel="drawn alike" if len(nb.models) == 1 else drawn["model"],
        x=drawn["task"].map(gf.names.task) + " " + drawn["metric"].map(gf.names.metric),
    )
    picture = gf.points.plot_intervals(drawn, xlabel="task and metric", ylabel="R²dev", floor=-1.0)
    caption = (
        f"Explained deviation R2_dev = 1 - MSE / MSE(mean training trajectory) of metrics other than the loss. "
        f"{nb.study.profile.title} ({', '.join(nb.models)}), {others['runs'].max()} held-out runs drawn alike. Ceiling: 1 less the "
        "share of the deviation that is sampling noise, estimated by recording the same runs twice. Bars: 90% bootstrap intervals over "
        "runs."
    )
    competing = drawn[drawn["series"] != shifted.CEILING]
    nb.save_figure(
        picture,
        others,
        "ext01_other_metrics",
        caption=caption,
        sources=of_others,
        reading=gf.readings.best_points(competing),
    )
