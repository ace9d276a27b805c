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
# A simulated curve is of use where one knows how far to trust it. Split conformal prediction puts a band around it that
# is to hold the *whole* recorded curve in nine cases of ten, whatever the simulator, as long as the new run is drawn like those
# that calibrated the band. Two things weaken that here: curves of one run are not independent (`unit` run allows for it, with
# wider bands), and of the calibration runs the validation runs had a say in the fit. *Coverage at the line and narrow bands are
# good. For sorted, repeated or biased curricula nothing is promised*: there a band widens as the simulated run is further from the
# mean of the fitted ones than any of those is, a guess that the figure puts to the test.
#
# ![Bands and their coverage, profile mini](../figures/mini/ext05_bands.png)
#
# Inputs: recorded runs; fits simulators without those that calibrate. Outputs: `figures/<profile>/ext05_bands.*` (coverage) and
# `ext05_bands_paths.*` (some curves inside their bands).
#
# `papermill notebooks/ext05_bands.ipynb out.ipynb -p profile smoke -p calibration 2 -p level 0.8`

# %% tags=["parameters"]
profile: str = "mini"
tasks: list[str] = []  # SST-2 and WebNLG
methods: list[str] = []  # the mean trajectory, Simfluence, GPTfluence, low-rank deviations, the tangent simulator
kinds: list[str] = ["alike", "few", "sorted", "biased", "dropped", "added", "faster"]
runs: int = 3  # recorded of each kind but `alike`
calibration: int = 8  # training runs left out of the fit
level: float = 0.9  # promised coverage
unit: str = "path"  # what is taken for exchangeable: "path", or "run" (wider; see gptfluence/conformal.py)
overrides: list[str] = []  # changes to the profile
output_dir: str = ""  # figures/<profile>; with other parameters than these build/<profile>/figures

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
# Coverage (of whole paths) and mean width in nats per target token. `unit` "run" promises the same whatever paths of one
# run have in common; it is infinite where there are too few calibration runs for the level. Widths are means over runs.

# %%
tables = dict(list(results.groupby("statistic", sort=False)))
tables["coverage"].pivot_table(index=["task", "unit", "kind"], columns="method", values="value", sort=False).round(2)

# %%
tables["mean_width"].pivot_table(index=["task", "unit", "kind"], columns="method", values="value", sort=False).round(3)

# %%
coverage = tables["coverage"][tables["coverage"]["unit"] == unit]
frame = coverage.assign(panel=coverage["task"].map(gf.names.task)).rename(columns={"kind": "x", "method": "series"})
picture = gf.points.plot_intervals(frame, xlabel="curricula", ylabel="coverage of whole paths", line=level)
picture

# %% [markdown]
# What bands look like: the test example of median error in the first run of some kinds, by the last simulator.

# %%
last = paths[paths["of"] == paths["of"].iloc[-1]]
shown = last[last["panel"].str.endswith(tuple(f": {kind}" for kind in kinds[:3]))]
examples = gf.trajectories.plot_bands(shown, ylabel=gf.names.metric("loss", unit=True), columns=3)
examples

# %%
used = int(results["calibration_runs"].max())
caption = (
    f"Coverage of {level:.0%} bands (line) by kind of curriculum: share of whole paths inside, split conformal, {used} calibration "
    f"runs drawn alike, exchangeable unit: {unit}. {nb.study.profile.title} ({sources[0].model}). Bars: 90% bootstrap intervals over runs. "
    "Only for curricula drawn alike is coverage promised; bands widen in proportion where a simulated run is further from the "
    "mean of the fitted runs than any of those."
)
reading = gf.readings_beyond.of_coverage(coverage)
nb.save_figure(picture, results, "ext05_bands", caption=caption, sources=sources, reading=reading)
nb.save_figure(
    examples,
    shown,
    "ext05_bands_paths",
    caption=f"Recorded and simulated losses inside {level:.0%} bands. {caption}",
    sources=sources,
    reading=reading,
)
