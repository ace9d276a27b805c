"""Statistics with their intervals side by side, and curves with a band over repeats, drawn with seaborn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import panels
from gptfluence.drawing.panels import Looks
from gptfluence.drawing.style import PAGE, empty_figure, style, wrapped

POINTS = ("panel", "series", "x", "value", "low", "high")
CURVES = ("panel", "series", "repeat", "x", "value")
WIDTH = 0.8  # of the points at one x, as a share of the room there: what seaborn gives marks that have no width


def plot_intervals(
    frame: pd.DataFrame,
    *,
    xlabel: str,
    ylabel: str,
    singles: pd.DataFrame | None = None,
    within: pd.DataFrame | None = None,
    training_runs: int | None = None,
    floor: float | None = None,
    line: float | None = 0.0,
    log: bool = False,
    width: float = PAGE,
    panel_height: float = 1.5,
    columns: int = 1,
) -> Figure:
    """One panel for each value of `panel`; in it, for each value of x in order of appearance, a point for each series.

    frame: one row per point: panel, series (a method), x, value, low, high, optionally variant; a value that is nan is not
    drawn, nor is an interval that is.
    singles: single runs, which are small dots; within: R2 within the kind, which are dashes; both have rows like `frame`
    training_runs: K of `panels.mark_known_mean`, for an axis of R2_dev; line: another level that is marked
    log: vertical axes are logarithmic and show 1 - R2 (`panels.error_left`) in all frames; then floor must be above 0
    floor: points below it are triangles at the lower edge (hollow for a dash), and single runs are left out
    Raises ConfigurationError for missing columns or an empty frame.
    """
    import seaborn.objects as so

    panels.check("plot_intervals", frame, POINTS, "give one point at least")
    parts = {"point": frame, "single": singles, "dash": within}
    marks = pd.concat([rows.assign(mark=mark) for mark, rows in parts.items() if rows is not None])
    marks, looks = panels.with_series(marks)
    # what is recorded has no marker on lines
    looks = {label: look._replace(marker=look.marker or "D") for label, look in looks.items()}
    titles, positions = list(dict.fromkeys(frame["panel"])), list(dict.fromkeys(frame["x"]))
    room = (width / columns - 0.6) / len(positions)
    ticks = [wrapped(str(x), room, "xtick.labelsize") for x in positions]
    marks = marks.assign(
        place=marks["x"].map(positions.index), tick=marks["x"].map(dict(zip(positions, ticks, strict=True)))
    )
    drawn, below = _inside(marks, floor)
    drawn = drawn.assign(**{mark: drawn["value"].where(drawn["mark"] == mark) for mark in parts})
    dodge = so.Dodge(by=["color"])
    with style():
        figure = empty_figure(width, math.ceil(len(titles) / columns) * panel_height + 0.45)
        plot = panels.plot(drawn, looks, x="tick", y="point").facet(col="panel", order=titles, wrap=columns)
        bar = so.Range(linestyle="-", linewidth=1.0)
        plot = plot.add(bar, dodge, linestyle=None, ymin="low", ymax="high", legend=False)
        plot = plot.scale(x=so.Nominal(order=ticks)).add(so.Dot(pointsize=3.6, edgewidth=0.9), dodge, legend=False)
        if singles is not None:
            plot = plot.add(
                so.Dot(pointsize=1.6, marker="o", edgewidth=0), dodge, marker=None, y="single", legend=False
            )
        if within is not None:
            plot = plot.add(so.Dash(linewidth=1.3), dodge, y="dash", linestyle=None, legend=False)
        plot.share(x=False, y=False).on(figure).plot()
        for place, (axis, title) in enumerate(zip(figure.axes, titles, strict=True)):
            part = drawn[drawn["panel"] == title]
            _finish(axis, len(positions), line)
            cut = bool((below["panel"] == title).any())
            if log or cut:
                _set_limits(axis, part, floor if cut else None, line, log)
            _mark_below(axis, below[below["panel"] == title], looks)
            _mark_empty(axis, positions, set(marks[(marks["panel"] == title) & marks["value"].notna()]["x"]))
            if training_runs is not None:
                panels.mark_known_mean(axis, training_runs, rest=log)
            axis.set_title(str(title))
            axis.set_xlabel(xlabel if place + columns >= len(titles) else "")
            axis.set_ylabel(wrapped(ylabel, panel_height - 0.4, "axes.labelsize") if place % columns == 0 else "")
        panels.place_legend(
            figure, [*panels.series_handles(looks), *_handles(singles, within, below, floor, log)], width
        )
    return figure


def plot_curves(
    frame: pd.DataFrame,
    *,
    xlabel: str,
    ylabels: Mapping[str, str],
    width: float = PAGE,
    height: float = 2.3,
) -> Figure:
    """One panel for each of `ylabels`, which names its vertical axis; the mean over repeats, and a band from least to most.

    frame: one row per point: panel, series (a method), repeat (a seed or a run), x, value, optionally variant
    Raises ConfigurationError for missing columns, an empty frame, or a panel without a label.
    """
    import seaborn.objects as so

    panels.check("plot_curves", frame, CURVES, "give one repeat at least")
    unnamed = set(frame["panel"]) - set(ylabels)
    if unnamed:
        raise ConfigurationError(f"plot_curves: panel {sorted(unnamed)[0]!r} has no label in ylabels")
    frame, looks = panels.with_series(frame)
    with style():
        figure = empty_figure(width, height, gap=0.06)
        plot = panels.plot(frame, looks, x="x", y="value").facet(col="panel", order=list(ylabels))
        plot = plot.add(so.Band(alpha=0.15, edgewidth=0), so.Est("mean", errorbar=("pi", 100)), legend=False)
        plot = plot.add(so.Line(edgewidth=0.8), so.Agg("mean"), legend=False)
        plot.share(x=False, y=False).on(figure).plot()
        for axis, (panel, ylabel) in zip(figure.axes, ylabels.items(), strict=True):
            axis.set(title=panel, xlabel=xlabel, ylabel=ylabel)
            axis.margins(x=0.01)
            axis.yaxis.set_major_locator(MaxNLocator(5))
            panels.stagger_markers(axis, 8)
        panels.place_legend(figure, panels.series_handles(looks), width)
    return figure


def _inside(frame: pd.DataFrame, floor: float | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows whose value is not below the floor, the intervals of points cut there, and the rows that get a triangle."""
    bottom = -math.inf if floor is None else floor
    below = frame[(frame["value"] < bottom) & (frame["mark"] != "single")]
    drawn = frame[~(frame["value"] < bottom)]
    bounded = (
        np.isfinite(drawn["low"]) & np.isfinite(drawn["high"]) & drawn["value"].notna() & (drawn["mark"] == "point")
    )
    return drawn.assign(low=drawn["low"].clip(lower=bottom).where(bounded), high=drawn["high"].where(bounded)), below


def _finish(axis: Axes, positions: int, line: float | None) -> None:
    """What a panel shows besides its points: the level that is marked, and thin lines between the places on its x axis."""
    if line is not None:
        axis.axhline(line, color="#404040", linewidth=0.6, zorder=1)
    for edge in np.arange(0.5, positions - 1):
        axis.axvline(edge, color="#e6e6e6", linewidth=0.5, zorder=0)
    axis.set_xlim(-0.5, positions - 0.5)
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="x", visible=False)
    axis.yaxis.set_major_locator(MaxNLocator(5))


def _set_limits(axis: Axes, part: pd.DataFrame, floor: float | None, line: float | None, log: bool) -> None:
    """A range that begins at the floor, if there is one, and holds all other points, their intervals and the marked level."""
    ends = part[["value", "low", "high"]].to_numpy(dtype=float)
    held = [*ends[np.isfinite(ends) & ((ends > 0) | (not log))], *([] if line is None else [line])]
    low, high = (min(held), max(held)) if held else (1.0, 1.0)
    low = low if floor is None else floor
    if log:
        margin = max(high / low, 1.5) ** 0.06
        panels.log_axis(axis, low if floor is not None else low / margin, high * margin)
    else:
        axis.set_ylim(low, high + 0.06 * ((high - low) or 1.0))


def _mark_below(axis: Axes, rows: pd.DataFrame, looks: Looks) -> None:
    """Triangles at the lower edge, where seaborn would have put the points."""
    order: Sequence[str] = list(looks)
    for row in rows.itertuples():
        offset = (order.index(row.label) - (len(order) - 1) / 2) * WIDTH / len(order)
        panels.off_axis(axis, row.place + offset, looks[row.label].color, above=False, hollow=row.mark == "dash")


def _mark_empty(axis: Axes, positions: Sequence[object], measured: set) -> None:
    """Say where nothing was measured, which an empty place does not."""
    for place, x in enumerate(positions):
        if x not in measured:
            look = {"ha": "center", "va": "center", "color": "#767676", "fontsize": "x-small"}
            axis.text(place, 0.8, "not\nmeasured", transform=axis.get_xaxis_transform(), **look)


def _handles(
    singles: pd.DataFrame | None, within: pd.DataFrame | None, below: pd.DataFrame, floor: float | None, rest: bool
) -> list[Line2D]:
    """The marks of single runs and of R2 within the kind, and the triangles of both, as legends show them."""
    look, r2 = {"color": "#767676", "linestyle": ""}, f"{'1 − ' if rest else ''}R² within the kind"
    found = []
    if singles is not None and len(singles):
        found.append(panels.single_handle())
    if within is not None and len(within):
        found.append(Line2D([], [], marker="_", markersize=6, markeredgewidth=1.3, label=r2, **look))
    if (below["mark"] == "point").any():
        found.append(panels.edge_handle(f"below {floor:g}", above=False))
    if (below["mark"] == "dash").any():
        found.append(panels.edge_handle(f"{r2} below {floor:g}", above=False, hollow=True))
    return found
