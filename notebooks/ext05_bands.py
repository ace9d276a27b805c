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
# # Beyond the paper: bands, and whether they hold what they promise
#
# How far can a simulated curve be trusted? Split conformal prediction puts a band around it that should hold the *whole*
# recorded curve in nine cases of ten. This works for every simulator, if the new run is drawn like the runs that calibrated
# the band. Two things weaken it here. Curves of one run are not independent (`unit` "run" allows for that with wider bands).
# And some calibration runs are validation runs, which took part in the fit. *Good bands are narrow and have coverage at the
# line. For other kinds of curricula nothing is promised*: there a band is widened if the simulated run is further from the
# mean of the fitted runs than any of these. The figure tests this rule.
#
# ![Bands and their coverage, profile mini](../figures/mini/ext05_bands.png)
#
# Inputs: recorded runs. Simulators are fitted without the runs that calibrate. Outputs: `figures/<profile>/ext05_bands.*`
# (coverage) and `ext05_bands_paths.*` (some curves inside their bands).
#
# `papermill notebooks/ext05_bands.ipynb out.ipynb -p profile smoke -p calibration 2 -p level 0.8`

# %% tags=["parameters"]
profile: str = "mini"
tasks: list[str] = []  # SST-2 and WebNLG
methods: list[str] = []  # mean trajectory, counts, Simfluence, GPTfluence, low-rank deviations, tangent simulator
kinds: list[str] = ["alike", "few", "sorted", "biased"]  # and dropped, added, faster
runs: int = 5  # recorded of each kind but `alike`
calibration: int = 8  # training runs left out of the fit
level: float = 0.9  # promised coverage
unit: str = "path"  # what counts as exchangeable: "path", or "run" with wider bands (gptfluence/scoring/conformal.py)
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf
from gptfluence.experiments import band_coverage, shifted
from gptfluence.scoring import conformal

nb = gf.Notebook("ext05_bands", globals())
nb.choose("kinds", kinds, list(shifted.KINDS))
nb.choose("unit", unit, conformal.UNITS)
options = {"calibration": calibration, "level": level, "runs": runs}
results, paths, sources = band_coverage.covered(nb.campaigns, kinds, nb.methods, **options)

# %% [markdown]
# Coverage of whole paths, and mean width in nats per target token. `unit` "run" keeps its promise even if the paths of one run
# are alike. Its bands are infinite if there are too few calibration runs for the level. Widths are means over runs.

# %%
tables = dict(list(results.groupby("statistic", sort=False)))
tables["coverage"].pivot_table(index=["task", "unit", "kind"], columns="method", values="value", sort=False).round(2)

# %%
tables["mean_width"].pivot_table(index=["task", "unit", "kind"], columns="method", values="value", sort=False).round(3)

# %%
frame = results.assign(panel=results["task"].map(gf.names.task)).rename(columns={"kind": "x", "method": "series"})
drawn = dict(list(frame[frame["unit"] == unit].groupby("statistic", sort=False)))
marks = {"singles": drawn.get("coverage_of_run"), "line": level}
picture = gf.points.plot_intervals(drawn["coverage"], xlabel="curricula", ylabel="coverage of whole paths", **marks)
picture

# %% [markdown]
# What bands look like: the last simulator's, for the test example of median error in the first run of some kinds.

# %%
last = paths[paths["of"] == paths["of"].iloc[-1]]
shown = last[last["panel"].str.endswith(tuple(f": {kind}" for kind in kinds[:3]))]
examples = gf.trajectories.plot_bands(shown, ylabel=gf.names.metric("loss", unit=True), columns=3)
examples

# %%
used = int(results["calibration_runs"].max())
caption = (
    f"Share of whole paths inside {level:.0%} bands (line: {level:.0%}), by kind of curriculum. Bands are split conformal, from "
    f"{used} calibration runs drawn alike, exchangeable unit: {unit}. "
    f"{nb.study.profile.subject} ({sources[0].model}). {gf.readings_beyond.INTERVALS} "
    "Coverage is promised only for curricula drawn alike."
)
reading = gf.readings_beyond.of_coverage(tables["coverage"][tables["coverage"]["unit"] == unit])
nb.save_figure(picture, results, "ext05_bands", caption=caption, sources=sources, reading=reading)
nb.save_figure(
    examples,
    shown,
    "ext05_bands_paths",
    caption=f"Recorded and simulated losses inside {level:.0%} bands. {caption}",
    sources=sources,
    reading=reading,
)
