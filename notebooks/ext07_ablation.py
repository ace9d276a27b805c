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
# # Beyond the paper: what does each part of the tangent simulator add?
#
# The tangent simulator linearises a GPT about its weights before training, and about those of a reference run. It samples
# coordinates, and recorded runs correct its simulations. Unseen tests are measured along the reference run. In this ablation
# it is fitted again without one part or two. *Drawn is 1 − R²dev, the share of the deviation that is not explained: the
# higher the points, the more a part adds.* The table of differences has their intervals. Without tangents of a training run
# (`checkpoints=[]`) all tangents are those of the base model, and unseen tests have no reference run to follow.
#
# ![R²dev with less, profile mini](../figures/mini/ext07_ablation.png)
#
# Inputs: recorded runs. Simulators are fitted for this alone. Outputs: `figures/<profile>/ext07_ablation.*`.
#
# `papermill notebooks/ext07_ablation.ipynb out.ipynb -p output_dir figures/mini-webnlg -y 'tasks: [webnlg]'`

# %% tags=["parameters"]
profile: str = "mini"
tasks: list[str] = []  # the first of SST-2 and WebNLG
kinds: list[str] = ["alike", "few", "sorted", "biased", "unseen_tests"]
variants: list[str] = []  # of those in the next cell; default: all that differ from the profile's own
runs: int = 5  # recorded of each kind; `alike` and the unseen kinds have the profile's runs
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf
from gptfluence.drawing.panels import error_left
from gptfluence.experiments import shifted

nb = gf.Notebook("ext07_ablation", globals())
tangent = nb.study.variant("tangent", nb.setting)
options = tangent.options
less = [
    tangent.with_(coordinates=max(1, options.coordinates // 4)),
    tangent.with_(candidates=1),
    tangent.with_(checkpoints=[]),  # no reference run, so that there is none to follow either
    tangent.with_(use_corrections=False),
    tangent.with_(checkpoints=[], use_corrections=False),
    tangent.with_(follow_reference=False),
]
nb.choose("variants", variants, [one.variant for one in less])
nb.choose("kinds", kinds, list({**shifted.KINDS, **shifted.UNSEEN_KINDS}))
nb.choose("runs", runs, range(1, 1001))
# options that change nothing here: candidates of labelled tasks are the label words, whatever their number
idle = {"candidates"} if all(nb.study.is_labelled(task) for task in nb.tasks) else set()
idle |= set() if options.checkpoints else {"follow_reference"}
own = options.arguments()
different = []
for one in less:
    changed = {name for name, value in one.options.arguments().items() if value != own[name]}
    if changed and not changed & idle and one.options not in [other.options for other in different]:
        different.append(one)
used = [one for one in less if one.variant in variants] or different
used

# %%
results, sources = shifted.explained(nb.campaigns, kinds, [tangent, *used], runs=runs, against=tangent)
results = results[results["method"] != shifted.ONE_RUN]
table = results[results["statistic"].isin(["r2_dev", "r2_within"])]
table.pivot_table(index=["task", "variant", "statistic"], columns="kind", values="value", sort=False).round(2)

# %% [markdown]
# R²dev less that of the tangent simulator itself, with 90% intervals over runs, which are the same for both.

# %%
differences = results[results["statistic"] == "r2_dev_difference"]
shown = differences.assign(text=gf.readings_beyond.signed(differences))
shown.pivot(index=["task", "variant"], columns="kind", values="text")

# %% [markdown]
# How corrections of known tests were chosen. If validation runs chose, the error of each choice on these is shown. (`off as
# before` is the linearisation at the level of the recorded runs.) Corrections of unseen tests are chosen in each of two fits.

# %%
for campaign in nb.campaigns:
    for one in [tangent, *used]:
        rule = campaign.simulator(one).report.selected_by
        print(
            f"{gf.names.task(campaign.task)}, {gf.names.method(one.method, one.variant)}: {rule.partition('; unseen')[0]}"
        )

# %%
frame = error_left(results, results["statistic"].str.match("r2_(dev|within)(_of_run)?$"))
frame = frame.assign(panel=frame["task"].map(gf.names.task), x=frame["kind"].str.replace("_", " "))
drawn = dict(list(frame.rename(columns={"method": "series"}).groupby("statistic", sort=False)))
trained, validated, held = (len(part) for part in sources[0].split())
marks = {"singles": drawn.get("r2_dev_of_run"), "within": drawn.get("r2_within"), "training_runs": trained}
layout = {"floor": 1e-4, "line": 1.0, "log": True, "panel_height": 1.9}
picture = gf.points.plot_intervals(drawn["r2_dev"], xlabel="curricula", ylabel="1 − R²dev", **marks, **layout)
picture

# %%
apart = " (the reference run takes no part in corrections)" if options.checkpoints else ""
caption = (
    f"Ablation of the tangent simulator: the share of the deviation that is not explained, 1 - R2_dev = MSE / MSE(mean training "
    f"trajectory) of the loss, by kind of curriculum, on a logarithmic axis (1: no better than the mean). "
    f"{nb.study.profile.subject} ({sources[0].model}), fitted on {trained} training and {validated} validation "
    f"runs{apart}. {held} held-out runs are drawn alike (with unseen tests, too), {runs} are of every other kind. The full simulator has "
    f"{options.coordinates:,} coordinates, at most {options.candidates} candidates a token of free text, and tangents of one "
    f"training run after step {', '.join(map(str, options.checkpoints)) or '0 alone'}. "
    f"{gf.readings_beyond.KINDS} {gf.readings.known_mean(trained, rest=True)} {gf.readings_beyond.INTERVALS}"
)
reading = gf.readings_beyond.of_differences(differences)
nb.save_figure(picture, results, "ext07_ablation", caption=caption, sources=sources, reading=reading)
