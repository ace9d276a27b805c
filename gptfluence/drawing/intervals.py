"""Statistics with their intervals side by side, and trajectories inside bands, in the house style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names
from gptfluence.drawing.figures import PAGE, STYLE, method_handle, place_legend, style
from gptfluence.drawing.typeset import wrap_text

POINTS = ("panel", "series", "x", "value", "low", "high")
BANDS = ("panel", "series", "step", "value", "low", "high")
BEFORE = "before"  # the series of what a change starts from


def plot_intervals(
    frame: pd.DataFrame,
    *,
    xlabel: str,
    ylabel: str,
    floor: float | None = None,
    line: float | None = 0.0,
    width: float = PAGE,
    panel_height: float = 1.5,
    columns: int = 1,
) -> Figure:
    """One panel for each value of `panel`; in it, for each value of x in order of appearance, a point for each series.

    frame: one row per point: panel, series (a method), x, value, low, high; a value that is nan is not drawn, nor is an
    interval that is. floor: values below it are drawn on it as triangles that point down. line: a level that is marked.
    Raises ConfigurationError for missing columns or an empty frame.
    """
    _check("plot_intervals", frame, POINTS)
    panels, positions = list(dict.fromkeys(frame["panel"])), list(dict.fromkeys(frame["x"]))
    series = list(dict.fromkeys(frame["series"]))
    below = False
    with style():
        figure, axes = _panels(len(panels), columns, width, panel_height, ylabel)
        for place, axis in enumerate(axes):
            if line is not None:
                axis.axhline(line, color="#404040", linewidth=0.6, zorder=1)
            part = frame[frame["panel"] == panels[place]]
            drawn = [
                _draw_points(axis, part[part["series"] == name], positions, series, position, floor)
                for position, name in enumerate(series)
            ]
            if any(drawn):
                below = True
                ends = part[["value", "high"]].to_numpy(dtype=float)
                top = max(np.nanmax(ends, initial=floor), line if line is not None else floor)
                axis.set_ylim(floor, top + 0.06 * ((top - floor) or 1.0))
            room = (width / columns - 0.6) / max(len(positions), 1)
            labels = ["\n".join(wrap_text([str(x)], room, STYLE["xtick.labelsize"])) for x in positions]
            axis.set_xticks(range(len(positions)), labels)
            axis.set_xlim(-0.5, len(positions) - 0.5)
            axis.tick_params(axis="x", length=0)
            axis.grid(axis="x", visible=False)
            for edge in np.arange(0.5, len(positions) - 1):
                axis.axvline(edge, color="#e6e6e6", linewidth=0.5, zorder=0)
            axis.set_title(str(panels[place]))
            if place + columns >= len(panels):
                axis.set_xlabel(xlabel)
            axis.yaxis.set_major_locator(MaxNLocator(5))
        handles = [method_handle(name, position) for position, name in enumerate(series)]
        if below:
            handles.append(
                Line2D([], [], color="#767676", linestyle="", marker="v", markersize=4.5, label=f"below {floor:g}")
            )
        place_legend(figure, handles, width)
    return figure


def plot_bands(
    frame: pd.DataFrame,
    *,
    ylabel: str,
    labels: Mapping[str, str] | None = None,
    columns: int = 3,
    width: float = PAGE,
    panel_height: float = 1.5,
) -> Figure:
    """Small multiples of recorded and simulated trajectories, the latter inside their bands.

    frame: one row per point: panel, series ("recorded", "before", or a method), step, value, low, high (nan: no band).
    labels: what series are called in the legend, where that is not what methods are called.
    Raises ConfigurationError for missing columns or an empty frame.
    """
    _check("plot_bands", frame, BANDS)
    panels, series = list(dict.fromkeys(frame["panel"])), list(dict.fromkeys(frame["series"]))
    columns = min(columns, len(panels))
    with style():
        figure, axes = _panels(len(panels), columns, width, panel_height, ylabel)
        for place, axis in enumerate(axes):
            part = frame[frame["panel"] == panels[place]]
            for position, name in enumerate(series):
                one = part[part["series"] == name].sort_values("step")
                look = names.line(name, position)
                if one["low"].notna().any():
                    finite = one[np.isfinite(one["low"]) & np.isfinite(one["high"])]
                    axis.fill_between(
                        finite["step"], finite["low"], finite["high"], color=look.color, alpha=0.2, linewidth=0
                    )
                axis.plot(
                    one["step"],
                    one["value"],
                    color=look.color,
                    linestyle=look.dash,
                    marker=look.marker,
                    markevery=max(1, len(one) // 5),
                    markeredgewidth=0.8,
                    zorder=2.5 if name == "recorded" else 2,
                )
            title = wrap_text([str(panels[place])], width / columns - 0.35, STYLE["axes.titlesize"])
            axis.set_title("\n".join(title))
            axis.set_xlim(part["step"].min(), part["step"].max())
            if place + columns >= len(panels):
                axis.set_xlabel("training step")
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(4))
        handles = [method_handle(name, position) for position, name in enumerate(series)]
        for handle, name in zip(handles, series, strict=True):
            handle.set_label((labels or {}).get(name, handle.get_label()))
        if frame["low"].notna().any():
            handles.append(Patch(color="#767676", alpha=0.3, linewidth=0, label="band"))
        place_legend(figure, handles, width)
    return figure


def best_by(frame: pd.DataFrame, *, higher: bool = True) -> str:
    """Who is best in each panel and at each x, computed, and by how much it leads: one sentence a panel."""
    sentences = []
    for panel, part in frame.groupby("panel", sort=False):
        table = part.pivot_table(index="x", columns="series", values="value", sort=False)
        table = table.replace([np.inf, -np.inf], np.nan).dropna(how="all")
        best = table.idxmax(axis=1) if higher else table.idxmin(axis=1)
        parts = [f"{x}: {names.method(str(name))} {table.loc[x, name]:.2f}" for x, name in best.items()]
        sentences.append(f"{panel}, best at {'; '.join(parts)}." if parts else f"{panel}: no value is defined.")
    return "\n".join(sentences)


def _draw_points(
    axis: Axes, part: pd.DataFrame, positions: Sequence, series: Sequence[str], position: int, floor: float | None
) -> bool:
    """Draw one series; True if a value lies below the floor."""
    look, below = names.line(series[position], position), False
    offset = (position - (len(series) - 1) / 2) * 0.8 / max(len(series), 1)
    for row in part.itertuples():
        x = positions.index(row.x) + offset
        if np.isnan(row.value):
            continue
        if floor is not None and row.value < floor:
            axis.plot(x, floor, marker="v", color=look.color, markersize=4.5, clip_on=False, zorder=3)
            below = True
            continue
        if np.isfinite(row.low) and np.isfinite(row.high):
            low = row.low if floor is None else max(row.low, floor)
            axis.plot([x, x], [low, row.high], color=look.color, linewidth=1.0, zorder=2)
        axis.plot(
            x, row.value, marker=look.marker or "o", color=look.color, markersize=3.6, markeredgewidth=0.9, zorder=3
        )
    return below


def _panels(count: int, columns: int, width: float, height: float, ylabel: str) -> tuple[Figure, list[Axes]]:
    """A grid of `count` panels, the label of their y axes at the left of each row."""
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width, rows * height + 0.45), dpi=STYLE["figure.dpi"], layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("\n".join(wrap_text([ylabel], height - 0.4, STYLE["axes.labelsize"])))
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def _check(where: str, frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ConfigurationError(f"{where}: the frame has no column {', '.join(missing)}")
    if frame.empty:
        raise ConfigurationError(f"{where}: the frame is empty; give one point at least")
