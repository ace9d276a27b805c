"""Curves of a value against something, one line for each method with a band over seeds or runs, in the house style."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names
from gptfluence.drawing.figures import PAGE, STYLE, style

COLUMNS = ("panel", "series", "repeat", "x", "value")


def plot_curves(
    frame: pd.DataFrame,
    *,
    xlabel: str,
    ylabels: Mapping[str, str],
    width: float = PAGE,
    height: float = 2.3,
) -> Figure:
    """One panel for each of `ylabels`, which names its vertical axis; the mean over repeats, and a band from least to most.

    frame: one row per point: panel, series (a method), repeat (a seed or a run), x, value
    Raises ConfigurationError for missing columns, an empty frame, or a panel without a label.
    """
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise ConfigurationError(f"plot_curves: the frame has no column {', '.join(missing)}")
    if frame.empty:
        raise ConfigurationError("plot_curves: the frame is empty; give one repeat at least")
    unnamed = set(frame["panel"]) - set(ylabels)
    if unnamed:
        raise ConfigurationError(f"plot_curves: panel {sorted(unnamed)[0]!r} has no label in ylabels")
    series = list(dict.fromkeys(frame["series"]))
    with style():
        figure = Figure(figsize=(width, height), dpi=STYLE["figure.dpi"], layout="constrained")
        axes = figure.subplots(1, len(ylabels), squeeze=False)[0]
        figure.get_layout_engine().set(w_pad=0.06)
        for axis, (panel, label) in zip(axes, ylabels.items(), strict=True):
            part = frame[frame["panel"] == panel]
            for position, name in enumerate(series):
                each = part[part["series"] == name].groupby("x")["value"]
                if not len(each):
                    continue
                look, mean = names.line(name, position), each.mean()
                every = max(1, len(mean) // 8)
                axis.fill_between(mean.index, each.min(), each.max(), color=look.color, alpha=0.15, linewidth=0)
                axis.plot(
                    mean.index,
                    mean,
                    color=look.color,
                    linestyle=look.dash,
                    marker=look.marker,
                    markevery=((position * every) // max(len(series), 1), every),
                    markeredgewidth=0.8,
                )
            axis.set_title(panel)
            axis.set_xlabel(xlabel)
            axis.set_ylabel(label)
            axis.margins(x=0.01)
            axis.yaxis.set_major_locator(MaxNLocator(5))
        handles = []
        for position, name in enumerate(series):
            look = names.line(name, position)
            options = {"color": look.color, "linestyle": look.dash, "marker": look.marker, "markeredgewidth": 0.8}
            handles.append(Line2D([], [], label=names.method(name), **options))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=2.6)
    return figure


def mean_and_range(frame: pd.DataFrame, x: float) -> str:
    """What a panel shows at the point nearest to `x`, computed: the mean and range over repeats of each series."""
    shown = float(min(frame["x"].unique(), key=lambda value: abs(value - x)))
    parts = []
    for name, part in frame[np.isclose(frame["x"], shown)].groupby("series", sort=False):
        values = part["value"]
        parts.append(f"{names.method(str(name))} {values.mean():.2f} ({values.min():.2f} to {values.max():.2f})")
    return f"at {shown:.2f}: {', '.join(parts)}"
