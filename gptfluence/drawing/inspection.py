"""Figure 7: how fast wrong labels are found, what correcting them is worth, and the sentences that say so."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gptfluence.drawing import names, panels
from gptfluence.drawing.panels import Looks
from gptfluence.drawing.style import PAGE, style
from gptfluence.drawing.tables import with_variants
from gptfluence.scoring.inspection import mean_with_interval

FOUND, ACCURACY, AUC = "flipped labels found", "test accuracy", "area under the ROC curve"  # panels
COLUMNS = ("flipped", "panel", "series", "variant", "repeat", "x", "value", "low", "high")
YLABELS = {FOUND: "share of flipped labels", ACCURACY: "accuracy (0–1)", AUC: "AUC (0.5: chance)"}
INSPECTED = "share of examples inspected"


def plot_inspection(frame: pd.DataFrame, *, width: float = PAGE, height: float = 1.75) -> Figure:
    """A row for each share of labels flipped: the flips found, the accuracy after correcting them, and areas under ROC curves.

    frame: see `experiments.mislabelled.results`. Lines and large marks are rows without a repeat, with their intervals as
    bands or bars where they have one; small dots are single repeats (of accuracies, where means have no interval).
    Raises ConfigurationError for missing columns or an empty frame.
    """
    panels.check("plot_inspection", frame, COLUMNS, "pass a frame of experiments.mislabelled.results()")
    frame, looks = panels.with_series(frame, listed=True)
    shares = list(dict.fromkeys(frame["flipped"]))
    with style():
        figure, axes = panels.grid(len(shares), len(YLABELS), width, height)
        letters = iter(ascii_lowercase)
        for row, share in enumerate(shares):
            for axis, (panel, ylabel) in zip(axes[row], YLABELS.items(), strict=True):
                part = frame[(frame["flipped"] == share) & (frame["panel"] == panel)]
                {FOUND: _found, ACCURACY: _accuracy, AUC: _areas}[panel](axis, part, looks)
                last = row == len(shares) - 1
                axis.set(
                    title=f"({next(letters)}) {share:.0%} flipped: {panel.replace('area under the ROC curve', 'AUC')}"
                )
                axis.set(ylabel=ylabel, xlabel=INSPECTED if last and panel != AUC else "")
        panels.place_legend(figure, panels.series_handles(looks), width)
    return figure


def _found(axis: Axes, part: pd.DataFrame, looks: Looks) -> None:
    for label, rows in part[part["repeat"].isna()].groupby("label", sort=False):
        look = looks[label]
        axis.fill_between(rows["x"], rows["low"], rows["high"], color=look.color, alpha=0.15, linewidth=0)
        axis.plot(rows["x"], rows["value"], color=look.color, linestyle=look.dash, marker=look.marker)
    panels.stagger_markers(axis, 6)
    axis.margins(x=0.01)


def _accuracy(axis: Axes, part: pd.DataFrame, looks: Looks) -> None:
    means = part[part["repeat"].isna()]
    labels = [label for label in looks if (means["label"] == label).any()]
    for place, label in enumerate(labels):
        rows, look = means[means["label"] == label], looks[label]
        # so that no interval hides another; what is reported at one place stands there
        aside = 0.01 * (place - (len(labels) - 1) / 2) * (len(rows) > 1)
        errors = np.nan_to_num([rows["value"] - rows["low"], rows["high"] - rows["value"]])
        shown = {"color": look.color, "linestyle": look.dash, "marker": look.marker}
        axis.errorbar(rows["x"] + aside, rows["value"], yerr=errors, elinewidth=0.7, linewidth=0.9, **shown)
        if rows["low"].isna().all():
            seeds = part[(part["label"] == label) & part["repeat"].notna()]
            axis.plot(seeds["x"] + aside, seeds["value"], linestyle="", marker=".", markersize=2.5, color=look.color)


def _areas(axis: Axes, part: pd.DataFrame, looks: Looks) -> None:
    means, single = part[part["repeat"].isna()].set_index("label"), part[part["repeat"].notna()]
    measured = [label for label in looks if (single["label"] == label).any()]
    for label in means.index.difference(measured):  # chance: known, not measured
        mean, look = means.loc[label], looks[label]
        axis.axhspan(mean["low"], mean["high"], color=look.color, alpha=0.15, linewidth=0)
        axis.axhline(mean["value"], color=look.color, linestyle=look.dash, linewidth=0.9)
    for place, label in enumerate(measured):
        mean, look, values = means.loc[label], looks[label], single.loc[single["label"] == label, "value"]
        beside = place + np.linspace(0.15, 0.4, len(values))
        axis.plot(beside, values, linestyle="", marker=".", markersize=2.5, color=look.color, alpha=0.6)
        axis.plot([place] * 2, [mean["low"], mean["high"]], color=look.color, linewidth=1.0)
        axis.plot(place, mean["value"], marker=look.marker, color=look.color, markersize=4)
    axis.set_xticks([])
    axis.set_xlim(-0.4, len(measured) - 0.4)


# --- readings --------------------------------------------------------------------------------------------------------


def of_inspection(frame: pd.DataFrame, inspected: float = 0.2) -> str:
    """How well each method finds the flips, whether fitting taught GPTfluence to, and what correcting them is worth.

    frame: as `plot_inspection` takes it; inspected: near which share of examples inspected accuracies are told
    """
    sentences = []
    for share, part in with_variants(frame).groupby("flipped", sort=False):
        sentences += [f"{share:.0%} of the labels flipped: {_told_areas(part)}", _told_accuracies(part, inspected)]
    return " ".join(sentences)


def _told_areas(part: pd.DataFrame) -> str:
    areas = part[part["panel"] == AUC]
    means = areas[areas["repeat"].isna()].sort_values("value", ascending=False, kind="stable")
    [chance] = means[means["series"] == "random"].to_dict("records")
    listed = ", ".join(
        f"{names.method(row['series'], row['variant'])} {_interval(row)}"
        for row in means[means["series"] != "random"].to_dict("records")
    )
    text = f"AUC {listed}; by chance 0.50, and most single random orders within {chance['low']:.2f} to {chance['high']:.2f}."
    seeds = areas[areas["repeat"].notna() & (areas["series"] == "gptfluence")]
    wide = seeds.pivot(index="repeat", columns="variant", values="value")
    gain = dict(zip(("value", "low", "high"), mean_with_interval(wide[""] - wide["untrained"]), strict=True))
    if not np.isfinite(gain["low"]):
        return text
    told = "finds more than" if gain["low"] > 0 else "finds less than" if gain["high"] < 0 else "cannot be told from"
    return f"{text} Fitted GPTfluence {told} its untrained weights (difference in AUC {_interval(gain)})."


def _told_accuracies(part: pd.DataFrame, inspected: float) -> str:
    means = part[(part["panel"] == ACCURACY) & part["repeat"].isna() & (part["series"] != "paper")]
    wide = means.pivot(index="x", columns=["series", "variant"], values="value")
    between = wide.index[(wide.index > 0) & (wide.index < 1)]
    if not len(between):
        return ""
    shown = float(between[np.abs(between - inspected).argmin()])
    ranked = wide.loc[shown].sort_values(ascending=False, kind="stable")
    listed = ", ".join(f"{names.method(*key)} {value:.2f}" for key, value in ranked.items())
    start, end = (f"{wide.loc[x].mean():.2f}" if x in wide.index else "–" for x in (0.0, 1.0))
    return f"Accuracy {start} with nothing corrected, {end} with everything; with {shown:.0%} inspected: {listed}."


def _interval(row: Mapping[str, float]) -> str:
    bounds = f" ({row['low']:.2f} to {row['high']:.2f})" if np.isfinite(row["low"]) else ""
    return f"{row['value']:.2f}{bounds}"
