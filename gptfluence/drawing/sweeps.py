"""How well methods do against something that was varied, and how fits converge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from gptfluence.drawing import names, panels
from gptfluence.drawing.panels import Looks
from gptfluence.drawing.style import PAGE, empty_figure, style, wrapped
from gptfluence.drawing.tables import PRINTED
from gptfluence.scoring.evaluation import explained_deviation, summarize
from gptfluence.simulators.base import FitReport

LOG_FROM = 30  # an axis of errors is logarithmic if its largest value is so many times the smallest
WORST_R2 = -1.0  # of a better method what is below is not told apart from other failures
CURVES = {"training_loss": "training loss", "validation_mse": "validation all-steps MSE"}
CONVERGENCE = ["task", "method", "curve", "epoch", "value", "best"]
SWEEP = ["method", "statistic", "value", "std_over_runs", "undefined", "diverged"]


def sweep(results: pd.DataFrame, x: str, *, panel: Sequence[str] = ()) -> pd.DataFrame:
    """Statistics against what was varied, averaged over tasks (within a panel).

    results: rows of `Campaign.evaluate` with a column `x`; missing (nan) for methods that it does not concern
    panel: further columns that tell panels apart

    Returns columns (panel,) x, method, (variant,) statistic (the paper's and R2_dev), value (the mean over tasks; nan if a task has
    none), std_over_runs (population standard deviation over runs of a run's mean over tasks), undefined (runs without a
    rank correlation), diverged (predicted trajectories).
    """
    panels.check("sweep", results, [x, *panel], "add it to rows of Campaign.evaluate")
    keys = [*panel, x, "method", *(["variant"] if "variant" in results else [])]
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
    found = found.astype({"diverged": int, "undefined": int})[[*keys, *SWEEP[1:]]]
    return found if "variant" in found and found["variant"].any() else found.drop(columns="variant", errors="ignore")


def plot_sweep(
    frame: pd.DataFrame,
    x: str,
    *,
    xlabel: str,
    unit: str = "",
    panel: str | None = None,
    statistics: Sequence[str] = PRINTED,
    training_runs: int | None = None,
    join: bool = True,
    width: float = PAGE,
    panel_height: float = 1.35,
) -> Figure:
    """One panel for each statistic, one line for each method; bars are the standard deviation over runs.

    frame: rows of `sweep`; x holds numbers or words (shown in order of appearance). A method with a missing x is a
    horizontal line: it knows nothing of what is varied.
    panel: a column whose values get a column of panels each, statistics then are rows; unit: of the metric, for labels
    training_runs: K of `panels.mark_known_mean`, for R2_dev; join: whether points of a method are joined by a line

    Values off the axis (not finite, or R2_dev far below the others) are triangles at its edge.
    Raises ConfigurationError for missing columns or an empty frame.
    """
    needed = [x, "method", "statistic", "value", "std_over_runs", *([panel] if panel else [])]
    panels.check("plot_sweep", frame, needed, "pass rows of sweep()")
    frame, looks = panels.with_series(frame, "method", listed=True)
    places = _places(frame[x])
    cases = list(frame[panel].unique()) if panel else [None]
    shape = (len(statistics), len(cases)) if panel else panels.shape_of(len(statistics), width)
    cut = False
    with style():
        figure, axes = panels.grid(*shape, width, panel_height)
        for position, axis in enumerate(axes.flat):
            row, column = divmod(position, shape[1])
            index = row if panel else position
            if index >= len(statistics):
                axis.set_visible(False)
                continue
            part = frame[frame["statistic"] == statistics[index]]
            part = part[part[panel] == cases[column]] if panel else part
            cut |= _draw_statistic(axis, part, x, places, looks, join)
            if training_runs is not None and statistics[index] == "r2_dev":
                panels.mark_known_mean(axis, training_runs)
            label = _label(statistics[index], unit)
            if panel:
                axis.set_title(
                    wrapped(str(cases[column]), width / shape[1] - 0.35, "axes.titlesize") if row == 0 else ""
                )
                axis.set_ylabel(label.replace(" ", "\n", 1) if column == 0 else "")
            else:
                axis.set_title(wrapped(label, width / shape[1] - 0.35, "axes.titlesize"))
            if row == shape[0] - 1 or (not panel and index + shape[1] >= len(statistics)):
                axis.set_xlabel(wrapped(xlabel, width / shape[1] - 0.35, "axes.titlesize"))
        handles = panels.series_handles(looks)
        panels.place_legend(figure, [*handles, panels.edge_handle()] if cut else handles, width)
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
    return pd.DataFrame(rows, columns=CONVERGENCE)


def plot_convergence(
    frame: pd.DataFrame, *, unit: str = "nats", width: float = PAGE, panel_height: float = 1.4
) -> Figure:
    """Training loss (above) and validation error (below) against epochs, a column of panels for each task.

    frame: rows of `convergence`. A dot marks the epoch that was kept. Axes of errors are logarithmic; what is not finite is
    a triangle at the upper edge. Raises ConfigurationError for an empty frame.
    """
    import seaborn.objects as so

    panels.check("plot_convergence", frame, CONVERGENCE, "name a method that is fitted in epochs")
    frame, looks = panels.with_series(frame, "method", listed=True)
    tasks = list(frame["task"].unique())
    curves = [curve for curve in CURVES if (frame["curve"] == curve).any()]
    edges = {key: _edges(part["value"]) for key, part in frame.groupby(["curve", "task"])}
    high = np.array([edges[key][1] for key in zip(frame["curve"], frame["task"], strict=True)])
    off = ~(frame["value"].to_numpy(float) <= high)  # also what is not a number
    # infinity cannot be drawn, a steep line can
    frame = frame.assign(
        shown=np.where(off, high * 100, frame["value"]), kept=frame["value"].where(frame["best"] & ~off)
    )
    with style():
        figure = empty_figure(width, len(curves) * panel_height + 0.5, gap=0.04)
        plot = panels.plot(frame, looks, x="epoch").facet(row="curve", col="task", order={"row": curves, "col": tasks})
        plot = plot.add(so.Line(marker=""), y="shown", marker=None, legend=False)
        plot = plot.add(so.Dot(pointsize=4), y="kept", legend=False).share(x="col", y=False)
        plot.on(figure).plot()
        for axis, (curve, task) in zip(figure.axes, [(c, t) for c in curves for t in tasks], strict=True):
            axis.set_yscale("log")
            axis.set_ylim(*edges[curve, task])
            axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            axis.set_title(names.task(task) if curve == curves[0] else "")
            axis.set_xlabel("epoch" if curve == curves[-1] else "")
            first, _, rest = CURVES[curve].partition(" ")
            axis.set_ylabel(f"{first}\n{rest}{f' ({unit}²)' if unit else ''}" if task == tasks[0] else "")
            lost = frame[off & (frame["curve"] == curve) & (frame["task"] == task)].sort_values("epoch")
            for row in lost.drop_duplicates("label").itertuples():
                panels.off_axis(axis, row.epoch, looks[row.label].color, above=True)
        handles = panels.series_handles(looks)
        for handle in handles:
            handle.set_markevery([0])
        panels.place_legend(figure, [*handles, panels.edge_handle()] if off.any() else handles, width)
    return figure


def _edges(values: pd.Series) -> tuple[float, float]:
    """Where the logarithmic axis of errors begins and ends: at most a factor of 10,000 apart."""
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.empty:
        return 0.1, 1.0
    return positive.min() / 1.3, min(positive.max(), positive.min() * 1e4) * 1.3


def _places(values: pd.Series) -> dict[Any, float]:
    """Where values lie on the x axis: numbers at themselves, words one after another."""
    found = list(values.dropna().unique())
    numeric = all(isinstance(value, int | float | np.number) for value in found)
    return {value: float(value) if numeric else float(position) for position, value in enumerate(found)}


def _label(statistic: str, unit: str) -> str:
    power = {"all_steps_mse": "²", "all_steps_mae": ""}.get(statistic)
    suffix = f" ({unit}{power})" if unit and power is not None else ""
    return f"{names.statistic(statistic)}{suffix}"


class _Limits(NamedTuple):
    """The range of a y axis, whether it is logarithmic, and that values beyond it are marked at its edges."""

    low: float
    high: float
    log: bool

    def hold(self, values: np.ndarray) -> np.ndarray:
        return np.isfinite(values) & (values >= self.low) & (values <= self.high)


def _draw_statistic(axis: Axes, part: pd.DataFrame, x: str, places: dict[Any, float], looks: Looks, join: bool) -> bool:
    """Draw one panel; True if a value lies off the axis."""
    values = part["value"].to_numpy(float)
    undefined = bool(np.isnan(values).all())
    if undefined:
        axis.set_yticks([])
        axis.text(0.5, 0.5, "undefined", ha="center", va="center", transform=axis.transAxes)
    statistic = part["statistic"].iloc[0] if len(part) else ""
    limits = _limits(values, part["std_over_runs"].to_numpy(float), statistic)
    if limits.log:
        axis.set_yscale("log")
    varied = part.loc[part[x].notna(), "label"].unique()
    order = [label for label in looks if label in varied]
    cut, middle = False, (min(places.values()) + max(places.values())) / 2
    for position, (label, look) in enumerate(looks.items()):
        rows = part[part["label"] == label]
        aside = order.index(label) - (len(order) - 1) / 2 if label in order else position
        cut |= _draw_flat(axis, rows.loc[rows[x].isna(), "value"].to_numpy(float), look, limits, middle, aside)
        rows = rows[rows[x].notna()]
        cut |= _draw_varied(axis, rows, rows[x].map(places).to_numpy(float), look, limits, aside, join)
    axis.set_ylim(limits.low, limits.high)
    _ticks(axis, places)
    if not limits.log and not undefined:
        axis.yaxis.set_major_locator(MaxNLocator(4))
    if statistic == "r2_dev" and limits.low < 0 < limits.high:
        axis.axhline(0, color="#767676", linewidth=0.6, zorder=1)
    return cut


def _draw_flat(axis: Axes, values: np.ndarray, look: names.Line, limits: _Limits, middle: float, aside: float) -> bool:
    """A horizontal line for a method that knows nothing of what is varied; True if it lies off the axis."""
    inside = limits.hold(values)
    for value in values[inside]:
        axis.axhline(value, color=look.color, linestyle=look.dash, zorder=1.5)
        axis.plot(middle, value, marker=look.marker, color=look.color, markeredgewidth=0.8, zorder=1.6)
    beyond = values[~inside & ~np.isnan(values)]
    for value in beyond:
        panels.off_axis(axis, 0.5, look.color, above=value > limits.high, aside=aside, across=True)
    return bool(len(beyond))


def _draw_varied(
    axis: Axes, rows: pd.DataFrame, at: np.ndarray, look: names.Line, limits: _Limits, aside: float, join: bool
) -> bool:
    """The points of a method, with bars, at their places on the x axis; True if one lies off the axis."""
    order = np.argsort(at, kind="stable")
    y, spread = (rows[column].to_numpy(float)[order] for column in ("value", "std_over_runs"))
    at = at[order] + (0.0 if join else 0.12 * aside)
    inside = limits.hold(y)
    axis.errorbar(
        at[inside],
        y[inside],
        yerr=np.where(np.isfinite(spread), spread, 0.0)[inside],
        color=look.color,
        linestyle=look.dash if join else "none",
        marker=look.marker,
        markeredgewidth=0.8,
        elinewidth=0.7,
        capsize=1.5,
    )
    beyond = ~inside & ~np.isnan(y)
    for place, value in zip(at[beyond], y[beyond], strict=True):
        panels.off_axis(axis, place, look.color, above=value > limits.high, aside=aside)
    return bool(beyond.any())


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
