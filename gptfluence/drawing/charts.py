"""Figures of how well methods do against something that was varied, and of how fits converge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names
from gptfluence.drawing.figures import PAGE, STYLE, cut_handle, method_handle, place_legend, style
from gptfluence.drawing.tables import PRINTED
from gptfluence.drawing.typeset import wrap_text
from gptfluence.scoring.evaluation import explained_deviation, summarize
from gptfluence.simulators.base import FitReport

LOG_FROM = 30  # an axis of errors is logarithmic if its largest value is so many times the smallest
WORST_R2 = -1.0  # of a better method what is below is not told apart from other failures
CURVES = {"training_loss": "training loss", "validation_mse": "validation all-steps MSE"}
SWEEP = ["method", "statistic", "value", "std_over_runs", "undefined", "diverged"]


def sweep(results: pd.DataFrame, x: str, *, panel: Sequence[str] = ()) -> pd.DataFrame:
    """Statistics against what was varied, averaged over tasks (within a panel).

    results: rows of `Study.evaluate` with a column `x`; missing (nan) for methods that it does not concern
    panel: further columns that tell panels apart

    Returns columns (panel,) x, method, statistic (the paper's and R2_dev), value (the mean over tasks; nan if a task has
    none), std_over_runs (population standard deviation over runs of a run's mean over tasks), undefined (runs without a
    rank correlation), diverged (predicted trajectories).
    """
    missing = [column for column in (x, *panel) if column not in results]
    if missing:
        raise ConfigurationError(
            f"sweep: the frame has no column {', '.join(missing)}; add it to rows of Study.evaluate"
        )
    keys = [*panel, x, "method"]
    by_task = summarize(results[[*dict.fromkeys([*keys, "task"]), "run", "statistic", "value"]])
    parts = by_task[by_task["statistic"].isin(PRINTED)].groupby([*keys, "statistic"], sort=False, dropna=False)
    found = parts.agg(value=("value", lambda values: values.mean(skipna=False)), undefined=("undefined", "sum"))
    each = results.pivot(index=[*dict.fromkeys([*keys, "task"]), "run"], columns="statistic", values="value")
    each["r2_dev"] = [explained_deviation(*pair) for pair in each[["all_steps_mse", "mse_mean_trajectory"]].to_numpy()]
    with np.errstate(invalid="ignore", over="ignore"):
        runs = each.groupby([*keys, "run"], sort=False, dropna=False).mean()[PRINTED]
        spread = runs.groupby(keys, sort=False, dropna=False).std(ddof=0)
    found = found.join(spread.stack().rename_axis([*keys, "statistic"]).rename("std_over_runs"))
    diverged = by_task[by_task["statistic"] == "diverged"].groupby(keys, sort=False, dropna=False)["value"].sum()
    found = found.reset_index().merge(diverged.rename("diverged").reset_index(), on=keys, how="left")
    return found.astype({"diverged": int, "undefined": int})[[*panel, x, *SWEEP]]


def plot_sweep(
    frame: pd.DataFrame,
    x: str,
    *,
    xlabel: str,
    unit: str = "",
    panel: str | None = None,
    statistics: Sequence[str] = PRINTED,
    join: bool = True,
    width: float = PAGE,
    panel_height: float = 1.35,
) -> Figure:
    """One panel for each statistic, one line for each method; bars are the standard deviation over runs.

    frame: rows of `sweep`; x holds numbers or words (shown in order of appearance). A method with a missing x is a
    horizontal line: it knows nothing of what is varied.
    panel: a column whose values get a column of panels each, statistics then are rows; unit: of the metric, for labels
    join: whether points of a method are joined by a line

    Values off the axis (not finite, or R2_dev far below the others) are triangles at its edge.
    Raises ConfigurationError for missing columns or an empty frame.
    """
    needed = [x, "method", "statistic", "value", "std_over_runs", *([panel] if panel else [])]
    missing = [column for column in needed if column not in frame]
    if missing or frame.empty:
        what = f"has no column {', '.join(missing)}" if missing else "is empty"
        raise ConfigurationError(f"plot_sweep: the frame {what}; pass rows of sweep()")
    panels = list(frame[panel].unique()) if panel else [""]
    methods = _methods(frame["method"])
    places = _places(frame[x])
    shape = (len(statistics), len(panels)) if panel else _grid(len(statistics), width)
    cut = False
    with style():
        figure = Figure(figsize=(width, shape[0] * panel_height + 0.5), dpi=STYLE["figure.dpi"], layout="constrained")
        axes = figure.subplots(*shape, squeeze=False)
        figure.get_layout_engine().set(w_pad=0.05)
        for position, axis in enumerate(axes.flat):
            row, column = divmod(position, shape[1])
            index = row if panel else position
            if index >= len(statistics):
                axis.set_visible(False)
                continue
            statistic = statistics[index]
            part = frame[frame["statistic"] == statistic]
            part = part[part[panel] == panels[column]] if panel else part
            cut |= _draw_statistic(axis, part, x, places, methods, join)
            if not part["value"].notna().any():
                axis.set_yticks([])
                axis.text(0.5, 0.5, "undefined", ha="center", va="center", transform=axis.transAxes)
            label = _label(statistic, unit)
            if panel:
                axis.set_title(_wrapped(str(panels[column]), width / shape[1]) if row == 0 else "")
                axis.set_ylabel(label.replace(" ", "\n", 1) if column == 0 else "")
            else:
                axis.set_title(_wrapped(label, width / shape[1]))
            if row == shape[0] - 1 or (not panel and index + shape[1] >= len(statistics)):
                axis.set_xlabel(_wrapped(xlabel, width / shape[1]))
        handles = [method_handle(name, order) for order, name in enumerate(methods)]
        place_legend(figure, [*handles, cut_handle()] if cut else handles, width)
    return figure


def convergence(reports: Mapping[tuple[str, str], FitReport]) -> pd.DataFrame:
    """How fits went, epoch by epoch.

    reports: (task, method) -> the report of the fit
    Returns columns task, method, curve ("training_loss": one-step MSE, "validation_mse": all-steps MSE of rollouts), epoch
    (from 1), value (the metric's unit squared), best (whether this epoch's weights are kept).
    """
    rows = [
        (task, method, curve, epoch, float(value), epoch == report.best_epoch)
        for (task, method), report in reports.items()
        for curve in CURVES
        for epoch, value in enumerate(getattr(report, curve), start=1)
    ]
    return pd.DataFrame(rows, columns=["task", "method", "curve", "epoch", "value", "best"])


def plot_convergence(
    frame: pd.DataFrame, *, unit: str = "nats", width: float = PAGE, panel_height: float = 1.4
) -> Figure:
    """Training loss (above) and validation error (below) against epochs, a column of panels for each task.

    frame: rows of `convergence`. A dot marks the epoch that was kept. Axes of errors are logarithmic; what is not finite is
    a triangle at the upper edge. Raises ConfigurationError for an empty frame.
    """
    if frame.empty:
        raise ConfigurationError("plot_convergence: the frame is empty; name a method that is fitted in epochs")
    tasks, methods = list(frame["task"].unique()), _methods(frame["method"])
    curves = [curve for curve in CURVES if (frame["curve"] == curve).any()]
    cut = False
    with style():
        size = (width, len(curves) * panel_height + 0.5)
        figure = Figure(figsize=size, dpi=STYLE["figure.dpi"], layout="constrained")
        axes = figure.subplots(len(curves), len(tasks), squeeze=False, sharex="col")
        figure.get_layout_engine().set(w_pad=0.04)
        for (row, column), axis in np.ndenumerate(axes):
            part = frame[(frame["curve"] == curves[row]) & (frame["task"] == tasks[column])]
            cut |= _draw_curves(axis, part, methods)
            if row == 0:
                axis.set_title(names.task(tasks[column]))
            if row == len(curves) - 1:
                axis.set_xlabel("epoch")
            if column == 0:
                first, _, rest = CURVES[curves[row]].partition(" ")
                axis.set_ylabel(f"{first}\n{rest}{f' ({unit}²)' if unit else ''}")
        handles = [method_handle(name, order) for order, name in enumerate(methods)]
        for handle in handles:
            handle.set_markevery([0])
        place_legend(figure, [*handles, cut_handle()] if cut else handles, width)
    return figure


def sweep_reading(frame: pd.DataFrame, x: str, what: str) -> str:
    """What a sweep shows: the best and the worst value of each method, and where it beats the mean trajectory.

    what: the word for what is varied, in the singular
    """
    sentences = []
    varied = frame[frame[x].notna()]
    others = [column for column in frame if column not in (x, *SWEEP)]
    for key, rows in varied.groupby([*others, "method"], sort=False):
        method = str(key[-1])
        name = " ".join([*map(str, key[:-1]), names.method(method)])
        mse = rows[rows["statistic"] == "all_steps_mse"].set_index(x)["value"]
        finite = mse[np.isfinite(mse)]
        if method in names.TRIVIAL or finite.empty:
            continue
        ratio = finite.max() / finite.min() if finite.min() > 0 else math.inf
        r2 = rows[rows["statistic"] == "r2_dev"].set_index(x)["value"]
        lost = rows.drop_duplicates([x])["diverged"].sum()
        sentences.append(
            f"{name}: all-steps MSE is lowest at {what} {_plain(finite.idxmin())} ({finite.min():.3g}), highest at "
            f"{_plain(finite.idxmax())} ({ratio:.3g} times that); R²dev is above 0 at {int((r2 > 0).sum())} of {len(r2)} values"
            + (f"; {lost} trajectories diverged." if lost else ".")
        )
    return " ".join(sentences)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def convergence_reading(frame: pd.DataFrame) -> str:
    """Which epochs were kept, and how far validation errors are from training losses."""
    parts = []
    for method, rows in frame.groupby("method", sort=False):
        kept, last = rows[rows["best"]], rows.groupby("task")["epoch"].max()
        wide = kept.pivot(index="task", columns="curve", values="value")
        text = f"{names.method(str(method))} stopped after {last.min()} to {last.max()} epochs"
        best = kept.groupby("task")["epoch"].first()
        if len(best):
            text += f" and kept epochs {best.min()} to {best.max()}"
        if {"training_loss", "validation_mse"} <= set(wide):
            ratio = float((wide["validation_mse"] / wide["training_loss"]).median())
            text += (
                f"; there the all-steps error of rollouts is {ratio:.3g} times (median over tasks) the one-step error that is "
                "minimised"
            )
        parts.append(f"{text}.")
    best = frame[frame["best"] & (frame["curve"] == "validation_mse")]
    lowest = best.loc[best.groupby("task")["value"].idxmin(), "method"].value_counts() if len(best) else {}
    shares = [f"{names.method(str(method))} on {count}" for method, count in lowest.items()]
    return " ".join(
        [*parts, f"Lowest validation error: {', '.join(shares)} of {best['task'].nunique()} tasks."]
        if shares
        else parts
    )


def _methods(column: pd.Series) -> list[str]:
    known = list(names.METHODS)
    rank = {name: known.index(family) if (family := names.family(name)) else len(known) for name in column.unique()}
    return sorted(rank, key=lambda name: rank[name])


def _places(values: pd.Series) -> dict[Any, float]:
    """Where values lie on the x axis: numbers at themselves, words one after another."""
    found = list(values.dropna().unique())
    numeric = all(isinstance(value, int | float | np.number) for value in found)
    return {value: float(value) if numeric else float(position) for position, value in enumerate(found)}


def _grid(panels: int, width: float) -> tuple[int, int]:
    columns = min(panels, 4 if width > 4 else 2)
    return math.ceil(panels / columns), columns


def _label(statistic: str, unit: str) -> str:
    power = {"all_steps_mse": "²", "all_steps_mae": ""}.get(statistic)
    suffix = f" ({unit}{power})" if unit and power is not None else ""
    return f"{names.statistic(statistic)}{suffix}"


def _wrapped(title: str, width: float) -> str:
    """A panel's title in as many lines as a panel of this width in inches asks for."""
    return "\n".join(wrap_text([title], width - 0.35, STYLE["axes.titlesize"]))


def _draw_statistic(
    axis: Axes, part: pd.DataFrame, x: str, places: dict[Any, float], methods: list[str], join: bool
) -> bool:
    """Draw one panel; True if a value lies off the axis."""
    values = part["value"].to_numpy(float)
    statistic = part["statistic"].iloc[0] if len(part) else ""
    limits = _limits(values, part["std_over_runs"].to_numpy(float), statistic)
    if limits.log:
        axis.set_yscale("log")
    cut = False
    varied = [method for method in methods if part.loc[part["method"] == method, x].notna().any()]
    shift = 0.0 if join else 0.12
    for order, method in enumerate(methods):
        look = names.line(method, order)
        aside = varied.index(method) - (len(varied) - 1) / 2 if method in varied else order
        rows = part[part["method"] == method]
        flat = rows[rows[x].isna()]
        for value in flat["value"]:
            inside = np.isfinite(value) and limits.low <= value <= limits.high
            if inside:
                axis.axhline(value, color=look.color, linestyle=look.dash, zorder=1.5)
                middle = (min(places.values()) + max(places.values())) / 2
                axis.plot(middle, value, marker=look.marker, color=look.color, markeredgewidth=0.8, zorder=1.6)
            else:
                cut |= _mark(axis, 0.5, value, limits, look.color, aside, axis.transAxes)
        rows = rows[rows[x].notna()]
        rows = rows.assign(place=rows[x].map(places)).sort_values("place")
        at, y = rows["place"].to_numpy(float) + shift * aside, rows["value"].to_numpy(float)
        inside = np.isfinite(y) & (y >= limits.low) & (y <= limits.high)
        with np.errstate(invalid="ignore"):
            spread = np.where(inside & np.isfinite(rows["std_over_runs"]), rows["std_over_runs"], 0.0)
        axis.errorbar(
            at[inside],
            y[inside],
            yerr=spread[inside],
            color=look.color,
            linestyle=look.dash if join else "none",
            marker=look.marker,
            markeredgewidth=0.8,
            elinewidth=0.7,
            capsize=1.5,
        )
        for place, value in zip(at[~inside], y[~inside], strict=True):
            cut |= _mark(axis, place, value, limits, look.color, aside, axis.get_xaxis_transform())
    axis.set_ylim(limits.low, limits.high)
    _ticks(axis, places)
    if not limits.log:
        axis.yaxis.set_major_locator(MaxNLocator(4))
    if statistic == "r2_dev" and limits.low < 0 < limits.high:
        axis.axhline(0, color="#767676", linewidth=0.6, zorder=1)
    return cut


class _Limits:
    """The range of a y axis and whether it is logarithmic."""

    def __init__(self, low: float, high: float, log: bool):
        self.low, self.high, self.log = low, high, log


def _limits(values: np.ndarray, spread: np.ndarray, statistic: str) -> _Limits:
    spread = np.where(np.isfinite(spread), spread, 0.0)
    finite = np.isfinite(values)
    if not finite.any():
        return _Limits(0.0, 1.0, False)
    values, spread = values[finite], spread[finite]
    if statistic in ("r2_dev", "final_step_spearman"):
        low = min(WORST_R2, float(values.max()) - 0.5) if statistic == "r2_dev" else -1.0
        low, high = max(low, float((values - spread).min())), min(1.0, float((values + spread).max()))
        margin = 0.08 * (high - low or 0.1)
        return _Limits(low - margin, high + margin, False)
    positive = values[values > 0]
    if len(positive) and len(positive) == len(values) and positive.max() / positive.min() > LOG_FROM:
        top = min(float(positive.max()), float(positive.min()) * 1e6)
        return _Limits(float(positive.min()) / 1.6, top * 1.6, True)
    low, high = float((values - spread).min()), float((values + spread).max())
    low = max(low, 0.0)
    margin = 0.08 * (high - low or abs(high) or 1.0)
    return _Limits(max(low - margin, 0.0) if low > 0 else low - margin / 2, high + margin, False)


def _mark(
    axis: Axes, place: float, value: float, limits: _Limits, color: str, aside: float, transform: Transform
) -> bool:
    """A triangle at the edge where a value lies, beside those of other methods; nothing for one that is undefined."""
    if np.isnan(value):
        return False
    up = value > limits.high
    moved = transform + ScaledTranslation(aside * 4 / 72, 0, axis.figure.dpi_scale_trans)
    options = {"marker": "^" if up else "v", "color": color, "markersize": 4.0, "clip_on": False, "zorder": 5}
    axis.plot(place, 1.0 if up else 0.0, transform=moved, **options)
    return True


def _ticks(axis: Axes, places: dict[Any, float]) -> None:
    numeric = all(
        float(place) == value for value, place in places.items() if isinstance(value, int | float | np.number)
    )
    words = not numeric or any(isinstance(value, str) for value in places)
    at = list(places.values())
    margin = 0.06 * (max(at) - min(at) or 1.0) if not words else 0.4
    axis.set_xlim(min(at) - margin, max(at) + margin)
    if words:
        long = max(len(str(value)) for value in places) * len(places) > 18
        rotation = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if long else {}
        axis.set_xticks(at, [str(value) for value in places], **rotation)
    else:
        axis.set_xticks(at, [f"{value:g}" for value in places])
    axis.xaxis.set_minor_locator(NullLocator())


def _draw_curves(axis: Axes, part: pd.DataFrame, methods: list[str]) -> bool:
    values = part["value"].to_numpy(float)
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return False
    low, high = positive.min() / 1.3, min(positive.max(), positive.min() * 1e4) * 1.3
    axis.set_yscale("log")
    cut = False
    for order, method in enumerate(methods):
        rows = part[part["method"] == method].sort_values("epoch")
        if rows.empty:
            continue
        look = names.line(method, order)
        y = rows["value"].to_numpy(float)
        inside = np.isfinite(y) & (y <= high)
        shown = np.where(np.isfinite(y), np.minimum(y, high * 100), high * 100)
        axis.plot(rows["epoch"], shown, color=look.color, linestyle=look.dash)
        best = rows[rows["best"] & inside]
        axis.plot(best["epoch"], best["value"], look.marker, color=look.color, markersize=4, zorder=4)
        if not inside.all():
            first = int(np.argmin(inside))
            axis.plot(rows["epoch"].iloc[first], high, "^", color=look.color, markersize=4.5, clip_on=False, zorder=5)
            cut = True
    axis.set_ylim(low, high)
    axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    return cut
