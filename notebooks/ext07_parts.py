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
# It linearises a GPT about its weights before training, and about those of one recorded run; it samples coordinates; recorded
# runs correct what it simulates; unseen tests are measured along one of them. Here it is fitted with one part taken away at a
# time. *What a part adds is how far the points fall without it.*
#
# ![R²dev without each part, profile mini](../figures/mini/ext07_parts.png)
#
# Inputs: recorded runs; fits simulators of its own. Outputs: `figures/<profile>/ext07_parts.*`.
#
# `papermill notebooks/ext07_parts.ipynb out.ipynb -p profile mini -y 'tasks: [webnlg]' -p output_dir figures/mini-webnlg`

# %% tags=["parameters"]
profile: str = "mini"
tasks: list[str] = []  # the first of SST-2 and WebNLG
kinds: list[str] = ["alike", "few", "sorted", "biased", "unseen_tests"]
parts: list[str] = [
    "coordinates",
    "reference",
    "runs",
    "runs and reference",
    "following",
]  # taken away; also: candidates
runs: int = 3  # recorded of each kind, but for `alike` and the unseen ones, whose runs are the profile's
overrides: list[str] = []  # changes to the profile
output_dir: str = ""  # figures/<profile>

# %%
import json

import gptfluence as gf
from gptfluence import intervals, shifted

nb = gf.Notebook("ext07_parts", globals())
kind, options = nb.study.options("tangent")
tangents = options.get("tangents", {})
base = {key: value for key, value in tangents.items() if key != "checkpoints"}
known = {  # part -> what is left, and its settings
    "coordinates": (
        "a quarter of the coordinates",
        {"tangents": {**tangents, "coordinates": max(1, tangents.get("coordinates", 8192) // 4)}},
    ),
    "candidates": ("one candidate a token", {"tangents": {**tangents, "candidates": 1}}),
    "reference": ("no reference run", {"tangents": base}),
    "runs": ("no correction by recorded runs", {"corrected": False}),
    "runs and reference": ("neither reference nor correction", {"tangents": base, "corrected": False}),
    "following": ("unseen tests not followed", {"followed": False}),
}
nb.choose("parts", parts, list(known))
nb.choose("kinds", kinds, list({**shifted.KINDS, **shifted.UNSEEN}))
nb.choose("runs", runs, range(1, 1001))
chosen = nb.parameters["tasks"] or shifted.chosen_tasks(nb.study)[:1]
labels, changes = {"tangent": "whole"}, []
for number, part in enumerate(parts):
    label, changed = known[part]
    if part in ("reference", "following", "runs and reference") and not tangents.get("checkpoints"):
        print(f"{part}: this profile's tangents have no reference run")
        continue
    labels[f"tangent_{number}"] = label
    changes.append(f"simulators.tangent_{number}={json.dumps({**options, 'kind': kind, **changed})}")
study = nb.study.with_overrides(*changes)
labels

# %%
results, sources = shifted.explained(study, chosen, kinds, list(labels), runs=runs)
results = results[results["simulator"] != shifted.ONE_RUN]
results = results.assign(simulator=results["simulator"].map(labels))
explained = results[results["statistic"] == "r2_dev"]
explained.pivot_table(index=["task", "simulator"], columns="curricula", values="value", sort=False).round(2)

# %% [markdown]
# What the validation runs chose, and the error of each choice on them (`off as before` is the linearisation at the level of the
# recorded runs):

# %%
for task in chosen:
    for name, label in labels.items():
        print(f"{gf.names.task(task)}, {label}: {study.simulator(name, 'fine_tuning', task).report.selected_by}")

# %%
frame = explained.assign(panel=explained["task"].map(gf.names.task))
frame = frame.rename(columns={"curricula": "x", "simulator": "series"})
frame["x"] = frame["x"].str.replace("_", " ")
picture = intervals.plot_intervals(frame, xlabel="curricula", ylabel="R²dev", floor=-1.0, panel_height=1.9)
picture

# %%
held, trained = len(sources[0].split()[2]), len(sources[0].split()[0])
caption = (
    f"Explained deviation R2_dev = 1 - MSE / MSE(mean training trajectory) of the loss, by kind of curriculum, of the tangent "
    f"simulator with one part taken away at a time. {nb.study.profile.title} ({sources[0].model}); fitted on {trained} training "
    f"runs, {held} held-out runs drawn alike, {runs} of every other kind. The whole one: {json.dumps(tangents)}. Bars: 90% bootstrap intervals over "
    "runs (of two or three runs hardly more than their range)."
)
table = explained.pivot_table(index="simulator", columns="curricula", values="value", sort=False, aggfunc="mean")
lost = (table.loc["whole"] - table).drop("whole")
reading = " ".join(
    f"{label}: loses {'; '.join(f'{value:.2f} {curricula}' for curricula, value in row.items())}."
    for label, row in lost.round(2).iterrows()
)
nb.save_figure(picture, results, "ext07_parts", caption=caption, sources=sources, reading=reading)
