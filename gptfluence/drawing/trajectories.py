"""Recorded and simulated trajectories: small multiples that start where the observed part ends, or lie inside bands."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from string import ascii_lowercase
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names, panels
from gptfluence.drawing.panels import Looks
from gptfluence.drawing.style import PAGE, empty_figure, style, wrapped
from gptfluence.recording.dynamics import GPTDynamics

Simulated = tuple[GPTDynamics, Mapping[Hashable, np.ndarray]]  # recorded runs, and method or variant -> predictions
POINTS = ("observed", "panel", "series", "step", "value")
BANDS = ("panel", "series", "step", "value", "low", "high")
BEFORE = "before"  # the series of what a change starts from
RECORDED = names.method("recorded")
LINEAR = 1.5  # so many ranges of the recorded line above and below it an axis is linear
FAR = 1000.0  # times the half of the linear part of an axis: what goes farther is off the axis
FOLD_DECADE = 0.25  # height of a factor of ten beyond the linear part, in halves of that part
FOLD_LINE: dict[str, Any] = {"color": "#767676", "linewidth": 0.5, "linestyle": (0, (1, 1)), "zorder": 1}


# --- what is drawn ---------------------------------------------------------------------------------------------------


def trajectory_frame(
    simulated: Mapping[str, Simulated], *, metric: str = "loss", examples: int = 2, observed: int = 1
) -> pd.DataFrame:
    """The frame that `plot_trajectories` draws: `examples` test examples of each task, in its first held-out run.

    simulated: task -> recorded runs, and method (or variant of one) -> float32 [runs, steps + 1, tests]
    Examples lie at equal ranks of the error of GPTfluence (or of the last method), from the best to the worst predicted.
    """
    rows = []
    for task, (recorded, predicted) in simulated.items():
        if not predicted:
            raise ConfigurationError("trajectory_frame: no method given; simulate with one at least")
        run, truth = recorded.names[0], recorded.trajectories(metric)[0]
        series = {("recorded", ""): truth} | {names.name_and_variant(key): v[0] for key, v in predicted.items()}
        by = ("gptfluence", "") if ("gptfluence", "") in series else list(series)[-1]
        steps = np.arange(len(truth))
        for example in at_equal_ranks(series[by], truth, examples):
            for (name, variant), values in series.items():
                columns = {
                    "panel": f"{names.task(task)}, example {example}",
                    "task": task,
                    "run": run,
                    "example": recorded.tests[example].id,
                    "series": name,
                    "variant": variant,
                    "step": steps,
                    "value": np.asarray(values[:, example], dtype=np.float64),
                    "observed": steps < observed,
                }
                rows.append(pd.DataFrame(columns))
    frame = pd.concat(rows, ignore_index=True)
    return frame if frame["variant"].any() else frame.drop(columns="variant")


def at_equal_ranks(predicted: np.ndarray, truth: np.ndarray, count: int) -> list[int]:
    """Positions of `count` tests at equal ranks of the prediction's error, the best first; both [steps + 1, tests]."""
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.nan_to_num(np.square(predicted - truth).mean(axis=0), nan=np.inf)
    ranks = np.linspace(0, len(error) - 1, min(count, len(error)) + 2)[1:-1].round().astype(int)
    return np.argsort(error, kind="stable")[ranks].tolist()


def lettered_frame(parts: Mapping[tuple[str, str], Simulated], *, examples: int = 1, observed: int = 1) -> pd.DataFrame:
    """The frame of lettered panels for `plot_trajectories`, with the metric of each panel in a column.

    parts: (metric, task) -> as for `trajectory_frame`, which chooses the examples, in the order of the letters. The panels
        of a part share its letter.
    Raises ConfigurationError if there is no part.
    """
    if not parts:
        raise ConfigurationError("lettered_frame: nothing to draw; give one (metric, task) at least")
    frames = []
    for letter, ((metric, task), simulated) in zip(ascii_lowercase, parts.items(), strict=False):
        part = trajectory_frame({task: simulated}, metric=metric, examples=examples, observed=observed)
        part["panel"] = f"({letter}) " + part["panel"]
        part.insert(2, "metric", metric)
        frames.append(part)
    return pd.concat(frames, ignore_index=True)


# --- small multiples -------------------------------------------------------------------------------------------------


def plot_trajectories(
    frame: pd.DataFrame,
    *,
    metric: str = "loss",
    columns: int | None = None,
    width: float = PAGE,
    panel_height: float = 1.45,
    xlabel: str = "training step",
) -> Figure:
    """Small multiples of recorded v. simulated trajectories, one panel per value of `panel`, in order of appearance.

    frame: one row per point: panel (its title), series ("recorded" or a method), step, value, and observed: whether the
    simulator was given the value; optionally variant, and metric, one per panel. A simulated line starts at the last
    observed point, marked by a dot. Axes are linear near the recorded line (`LINEAR`), and logarithmic beyond, where
    thin lines mark the change. So the recorded line can be read, and the others are inside. A line that goes `FAR` times as
    far is cut, and a triangle at the edge says where.
    Raises ConfigurationError for missing columns, an empty frame, or a panel without a recorded trajectory.
    """
    panels.check("plot_trajectories", frame, POINTS, "select at least one trajectory")
    without = set(frame["panel"]) - set(frame.loc[frame["series"] == "recorded", "panel"])
    if without:
        raise ConfigurationError(f"plot_trajectories: no recorded trajectory in panel {', '.join(map(str, without))}")
    frame, looks = panels.with_series(frame, listed=True)
    titles = list(frame["panel"].unique())
    columns = columns or _columns(len(titles), width)
    several = "metric" in frame and frame["metric"].nunique() > 1
    # panels of several metrics have an axis label each, which leaves less room for their titles
    beside, cut, folded = 0.55 if several else 0.3, False, False
    with style():
        gap = 0.06 if columns < 5 else 0.02
        figure, axes = panels.grid(math.ceil(len(titles) / columns), columns, width, panel_height, gap=gap)
        for position, axis in enumerate(axes.flat):
            if position >= len(titles):
                axis.remove()
                continue
            part = frame[frame["panel"] == titles[position]]
            lost, far = _draw_panel(axis, part, looks)
            cut, folded = cut | lost, folded | far
            axis.set_title(wrapped(str(titles[position]), width / columns - beside, "axes.titlesize"))
            if position % columns == 0 or several:
                drawn = part["metric"].iloc[0] if "metric" in part else metric
                axis.set_ylabel(wrapped(names.metric(drawn, unit=True), panel_height - 0.5, "axes.labelsize"))
            if position + columns >= len(titles):
                axis.set_xlabel(xlabel)
        observed = Line2D([], [], color="black", linestyle="", marker="o", markersize=3.6, label="last observed")
        handles = [*panels.series_handles(looks), observed]
        handles += [Line2D([], [], label="log axis beyond", **FOLD_LINE)] if folded else []
        panels.place_legend(figure, [*handles, panels.edge_handle()] if cut else handles, width)
    return figure


def _columns(count: int, width: float) -> int:
    """Panels in a row: up to five (two in a column of text), as many as leave the fewest places empty; four if in doubt."""
    if width <= 4:
        return min(count, 2)
    return count if count < 4 else min((4, 5, 3), key=lambda columns: -count % columns)


def _draw_panel(axis: Axes, part: pd.DataFrame, looks: Looks) -> tuple[bool, bool]:
    """Draw one panel; returns whether a line leaves it, and whether one leaves the linear part of its axis."""
    recorded = part[part["series"] == "recorded"].sort_values("step")
    low, high = recorded["value"].min(), recorded["value"].max()
    span = (high - low) or max(abs(high), 1.0) * 0.1
    middle, half = (low + high) / 2, (high - low) / 2 + LINEAR * span
    seen, beyond = [recorded["value"]], []
    for position, label in enumerate(looks):
        line = part[part["label"] == label].sort_values("step")
        if label == RECORDED or line.empty:
            continue
        line = _from_last_observed(line, recorded)
        limits = middle - FAR * half, middle + FAR * half
        inside = _draw_line(axis, line, looks[label], limits, position / max(len(looks), 1))
        seen.append(line["value"][inside])
        if not inside.all():
            first = int(np.argmin(inside))
            below = line["value"].iloc[first] < middle
            beyond.append((line["step"].iloc[first], not below, looks[label].color))
    axis.plot(recorded["step"], recorded["value"], color=looks[RECORDED].color, zorder=2.5, linewidth=1.4)
    _mark_observed(axis, recorded)
    shown, above = pd.concat(seen), {up for _, up, _ in beyond}
    bottom, top = shown.min(), shown.max()
    bottom = min(bottom, low - span) if False in above else bottom
    top = max(top, high + span) if True in above else top
    folded = _fold(axis, (bottom, top), middle, half)
    steps = part["step"]
    axis.set_xlim(steps.min(), steps.max() if steps.max() > steps.min() else steps.min() + 1)
    for step, up, color in beyond:
        panels.off_axis(axis, step, color, above=up)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return bool(beyond), folded


def _fold(axis: Axes, ends: tuple[float, float], middle: float, half: float) -> bool:
    """A vertical axis that holds both ends: linear within `half` of `middle`, logarithmic beyond. True if it reaches beyond."""

    def forward(values: np.ndarray) -> np.ndarray:
        away = (np.asarray(values, dtype=float) - middle) / half
        beyond = np.log10(np.maximum(np.abs(away), 1))
        return np.where(beyond > 0, np.sign(away) * (1 + FOLD_DECADE * beyond), away)

    def inverse(places: np.ndarray) -> np.ndarray:
        away = np.asarray(places, dtype=float)
        beyond = np.maximum(np.abs(away) - 1, 0) / FOLD_DECADE
        return middle + half * np.where(beyond > 0, np.sign(away) * 10**beyond, away)

    bottom, top = forward(np.array(ends))
    height = (top - bottom) or 1.0
    axis.set_yscale("function", functions=(forward, inverse))
    axis.set_ylim(*inverse(np.array([bottom - 0.06 * height, top + 0.06 * height])))
    edges = [edge for edge in (-1.0, 1.0) if bottom < edge < top]
    for edge in edges:
        axis.axhline(float(inverse(np.array(edge))), **FOLD_LINE)
    low, high = inverse(np.clip([bottom, top], -1, 1))
    every = MaxNLocator(4).tick_values(low, high)
    ticks = [tick for tick in every if low <= tick <= high]
    step = every[1] - every[0]
    for end, far in ((math.ceil(ends[0] / step) * step, bottom < -1), (math.floor(ends[1] / step) * step, top > 1)):
        if far:  # one number on the logarithmic part: about the farthest that a line goes
            near = np.abs(forward(np.array(ticks)) - forward(np.array(end))) < 0.15 * height
            ticks = [*np.array(ticks)[~near], end]
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    return bool(edges)


def _draw_line(
    axis: Axes, line: pd.DataFrame, look: names.Line, limits: tuple[float, float], share: float
) -> np.ndarray:
    """Draw one simulated line; returns bool [steps]: where it is inside the limits. share: 0-1, staggers its markers."""
    values = line["value"].to_numpy(dtype=float)
    low, high = limits
    every = max(1, len(line) // 6)
    axis.plot(
        line["step"],
        np.clip(values, low, high),  # infinity cannot be drawn, a steep line can
        color=look.color,
        linestyle=look.dash,
        marker=look.marker,
        markevery=(1 + int(share * every), every),
        markeredgewidth=0.8,
    )
    return np.isfinite(values) & (values >= low) & (values <= high)


def _mark_observed(axis: Axes, recorded: pd.DataFrame) -> None:
    """A dot on the last point that simulators were given, and a shade behind all of them."""
    observed = recorded[recorded["observed"].astype(bool)]
    if observed.empty:
        return
    last = observed.iloc[-1]
    axis.plot(last["step"], last["value"], "o", color="black", markersize=3.6, zorder=4, clip_on=False)
    if len(observed) > 1:
        axis.axvspan(observed["step"].iloc[0], last["step"], color="#f0f0f0", zorder=0, linewidth=0)


def _from_last_observed(line: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """The predicted part of a line, with the observed point that it starts from in front."""
    observed = line["observed"].astype(bool)
    predicted = line[~observed]
    if observed.any():
        return pd.concat([line[observed].iloc[-1:], predicted])
    if predicted.empty:
        return predicted
    start = recorded[recorded["observed"].astype(bool) & (recorded["step"] < predicted["step"].iloc[0])]
    return pd.concat([start.iloc[-1:], predicted])


# --- bands -----------------------------------------------------------------------------------------------------------


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
    import seaborn.objects as so

    panels.check("plot_bands", frame, BANDS, "give one point at least")
    frame, looks = panels.with_series(frame)
    banded = np.isfinite(frame[["low", "high"]]).all(axis=1)
    titles = list(dict.fromkeys(frame["panel"]))
    columns = min(columns, len(titles))
    with style():
        figure = empty_figure(width, math.ceil(len(titles) / columns) * panel_height + 0.45)
        plot = panels.plot(frame, looks, x="step", y="value").facet(col="panel", wrap=columns)
        band = so.Band(alpha=0.2, edgewidth=0)
        # Seaborn draws a band where both of its ends are finite.
        plot = plot.add(band, ymin="low", ymax="high", legend=False) if banded.any() else plot
        plot = plot.add(so.Line(edgewidth=0.8), legend=False)
        plot.share(x=False, y=False).on(figure).plot()
        for place, (axis, title) in enumerate(zip(figure.axes, titles, strict=True)):
            axis.set_title(wrapped(str(title), width / columns - 0.35, "axes.titlesize"))
            axis.set_xlabel("training step" if place + columns >= len(titles) else "")
            axis.set_ylabel(wrapped(ylabel, panel_height - 0.4, "axes.labelsize") if place % columns == 0 else "")
            axis.margins(x=0)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(4))
            panels.stagger_markers(axis, 5)
            for drawn in axis.get_lines():
                drawn.set_zorder(2.5 if same_color(drawn.get_color(), names.LINES["recorded"].color) else 2)
        handles = panels.series_handles(looks)
        for handle, name in zip(handles, dict.fromkeys(frame["series"]), strict=True):
            handle.set_label((labels or {}).get(name, handle.get_label()))
        if banded.any():
            handles.append(Patch(color="#767676", alpha=0.3, linewidth=0, label="band"))
        panels.place_legend(figure, handles, width)
    return figure
