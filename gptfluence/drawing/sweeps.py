"""How well methods do against something that was varied, and how fits converge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names, panels
from gptfluence.drawing.panels import Looks
from gptfluence.drawing.style import PAGE, empty_figure, style, wrapped
from gptfluence.drawing.tables import PRINTED
from gptfluence.scoring import intervals
from gptfluence.scoring.across_tasks import REFERENCE, RELATIVE, over_tasks
from gptfluence.scoring.evaluation import summarize
from gptfluence.simulators.base import FitReport

FAR = 1e4  # an error so many times the smallest is off the axis, unless it is the best of its method
# for captions:
MEANS_OVER_TASKS = "errors are geometric means of the error divided by persistence's, other statistics medians"
SHOWN = (*RELATIVE.values(), *PRINTED)  # a panel each, as far as a frame has them
CURVES = {"training_loss": "training loss", "validation_mse": "validation all-steps MSE"}
CONVERGENCE = ["task", "method", "curve", "epoch", "value", "best"]
SWEEP = ["statistic", "value", "low", "high", "undefined", "diverged", "run"]
# of intervals; other statistics are errors
SCALES = {"final_step_spearman": intervals.CORRELATION, "r2_dev": intervals.EXPLAINED}


def sweep(results: pd.DataFrame, x: str, *, panel: Sequence[str] = (), relative: bool = True) -> pd.DataFrame:
    """Statistics against what was varied, over all tasks together (of a panel).

    results: rows of `Campaign.evaluate` with a column `x`; missing (nan) for methods that it does not concern
    panel: further columns that tell panels apart
    relative: errors relative to persistence's (`across_tasks.over_tasks`); otherwise as they are, of one task in each panel

    Returns columns (panel,) x, method, (variant,) statistic (the paper's and R2_dev), value (nan if a task has none), low and
    high (its interval over runs, see `intervals`), undefined (runs without a rank correlation), diverged (predicted
    trajectories), run. So few runs that there is no interval have rows of their own, whose statistics end in `OF_RUN`.
    Raises ConfigurationError if relative errors lack persistence, or others a single task.
    """
    panels.check("sweep", results, [x, *panel], "add it to rows of Campaign.evaluate")
    keys = [*panel, x, "method", *(["variant"] if "variant" in results else [])]
    rows = results[[*dict.fromkeys([*keys, "task"]), "run", "statistic", "value"]]
    within = list(panel)
    if relative:
        reference = results[results["method"] == REFERENCE]
        if reference.empty:
            raise ConfigurationError(f"sweep: errors are divided by those of {REFERENCE!r}; add it to the methods")
        within += [x] if reference[x].notna().all() else []
    elif results.groupby(list(panel) or [lambda _: 0])["task"].nunique().max() > 1:
        raise ConfigurationError("sweep: errors of several tasks have no common size; choose relative=True")

    def of(by_task: pd.DataFrame) -> pd.DataFrame:
        found = by_task.loc[by_task["statistic"].isin(PRINTED), [*dict.fromkeys([*keys, "task"]), "statistic", "value"]]
        return over_tasks(found, within) if relative else found[[*keys, "statistic", "value"]]

    by_task = summarize(rows)
    found = _with_runs(rows, within, of(by_task), lambda some: of(summarize(some)))
    for name, column in (("undefined", "undefined"), ("diverged", "value")):
        of_task = "final_step_spearman" if name == "undefined" else "diverged"
        counts = by_task[by_task["statistic"] == of_task].groupby(keys, sort=False, dropna=False)[column].sum()
        found = found.merge(counts.rename(name).reset_index(), on=keys, how="left")
    found.loc[found["statistic"] != "final_step_spearman", "undefined"] = 0
    found = found.astype({"diverged": int, "undefined": int})[[*keys, *SWEEP]]
    return found if "variant" in found and found["variant"].any() else found.drop(columns="variant", errors="ignore")


def _with_runs(
    rows: pd.DataFrame, within: Sequence[str], found: pd.DataFrame, of: Callable[[pd.DataFrame], pd.DataFrame]
) -> pd.DataFrame:
    """Statistics `found` with columns low, high and run: intervals over runs, or where they are few, rows of single runs.

    rows: of `Campaign.evaluate`; runs of different groups of `within` are others. of: the statistics of some of the rows
    """
    keys = [column for column in found if column != "value"]
    groups = rows.groupby(list(within), dropna=False)["run"] if within else rows.groupby(lambda _: 0)["run"]
    place = groups.transform(lambda names: pd.factorize(names)[0])
    count = groups.transform("nunique")
    runs = range(int(count.max()))
    if len(runs) < intervals.FEWEST:
        single = pd.concat([of(rows[rows["run"] == name]).assign(run=name) for name in rows["run"].unique()])
        single["statistic"] += intervals.OF_RUN
        return pd.concat([found.assign(run=""), single], ignore_index=True).assign(low=np.nan, high=np.nan)
    without = (
        pd.concat([of(rows[(place != k) & (count > k)]) for k in runs]).groupby(keys, dropna=False)["value"].agg(list)
    )
    found = found.merge(without.rename("without").reset_index(), on=keys, how="left")
    ends = [
        intervals.jackknife(row.value, row.without, SCALES.get(row.statistic, intervals.ERROR))[1:3]
        for row in found.itertuples()
    ]
    return found.drop(columns="without").assign(**pd.DataFrame(ends, found.index, ["low", "high"]), run="")


def plot_sweep(
    frame: pd.DataFrame,
    x: str,
    *,
    xlabel: str,
    unit: str = "",
    panel: str | None = None,
    training_runs: int | None = None,
    join: bool = True,
    width: float = PAGE,
    panel_height: float = 1.35,
) -> Figure:
    """One panel for each statistic, one line for each method; bars are intervals, small dots single runs.

    frame: rows of `sweep`; x holds numbers or words (shown in order of appearance). A method with a missing x is a
    horizontal line: it knows nothing of what is varied.
    panel: a column whose values get a column of panels each, statistics then are rows; unit: of the metric, for labels
    training_runs: K of `panels.mark_known_mean`, for R2_dev; join: whether points of a method are joined by a line

    Errors are drawn on logarithmic axes, and R2_dev as the error that is left, 1 - R2_dev. Every method has a point in every
    panel where it has a finite value. Values off the axis (not finite, or errors far above all others) are triangles at its
    edge. Raises ConfigurationError for missing columns or an empty frame.
    """
    needed = [x, "method", "statistic", "value", "low", "high", *([panel] if panel else [])]
    panels.check("plot_sweep", frame, needed, "pass rows of sweep()")
    frame, looks = panels.with_series(
        panels.error_left(frame, frame["statistic"].str.startswith("r2_dev")), "method", listed=True
    )
    places = _places(frame[x])
    statistics = [statistic for statistic in SHOWN if (frame["statistic"] == statistic).any()]
    cases = list(frame[panel].unique()) if panel else [None]
    shape = (len(statistics), len(cases)) if panel else panels.shape_of(len(statistics), width)
    cut = False
    with style():
        figure, axes = panels.grid(*shape, width, panel_height)
        for position, axis in enumerate(axes.flat):
            row, column = divmod(position, shape[1])
            index = row if panel else position
            if index >= len(statistics):
                axis.remove()
                continue
            part = frame[frame["statistic"].isin([statistics[index], statistics[index] + intervals.OF_RUN])]
            part = part[part[panel] == cases[column]] if panel else part
            cut |= _draw_statistic(axis, part, x, places, looks, join)
            if training_runs is not None and statistics[index] == "r2_dev":
                panels.mark_known_mean(axis, training_runs, rest=True)
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
        if frame["statistic"].str.endswith(intervals.OF_RUN).any():
            handles.append(panels.single_handle())
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
    if statistic == "r2_dev":
        return "1\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}R²dev"
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
    """Draw one panel; True if a value lies off the axis. Single runs that do are left out."""
    # Horizontal lines have neither bars nor dots.
    single = part["statistic"].str.endswith(intervals.OF_RUN)
    dots, part = part[single & part[x].notna()], part[~single]
    undefined = bool(part["value"].isna().all())
    part = part.assign(low=part["low"].where(part[x].notna()), high=part["high"].where(part[x].notna()))
    limits = _limits(pd.concat([part, dots]))
    if limits.log:
        panels.log_axis(axis, limits.low, limits.high)
    if undefined:
        axis.set_yticks([])
        axis.text(0.5, 0.5, "undefined", ha="center", va="center", transform=axis.transAxes)
    varied = part.loc[part[x].notna(), "label"].unique()
    order = [label for label in looks if label in varied]
    flat = [label for label in looks if label not in varied]
    taken = sorted(places.values())
    free = [(left + right) / 2 for left, right in pairwise(taken)] or taken  # where no points are
    cut = False
    for label, look in looks.items():
        rows = part[part["label"] == label]
        if label in flat:
            at = free[int((flat.index(label) + 0.5) * len(free) / len(flat))]
            cut |= _draw_flat(axis, rows["value"].to_numpy(float), look, limits, at)
        else:
            aside = order.index(label) - (len(order) - 1) / 2
            rows = rows[rows[x].notna()]
            cut |= _draw_varied(axis, rows, rows[x].map(places).to_numpy(float), look, limits, aside, join)
            mine = dots[(dots["label"] == label) & limits.hold(dots["value"].to_numpy(float))]
            at = mine[x].map(places).to_numpy(float) + (0.0 if join else 0.12 * aside)
            axis.plot(at, mine["value"], linestyle="", marker=".", markersize=2.5, color=look.color, zorder=2)
    _ticks(axis, places)
    if not limits.log and not undefined:
        axis.set_ylim(limits.low, limits.high)
        axis.yaxis.set_major_locator(MaxNLocator(4))
    if (part["statistic"] == "r2_dev").all() and limits.low < 1 < limits.high:
        axis.axhline(1, color="#767676", linewidth=0.6, zorder=1)  # as good as the mean trajectory
    return cut


def _draw_flat(axis: Axes, values: np.ndarray, look: names.Line, limits: _Limits, at: float) -> bool:
    """A horizontal line, with its marker at `at`, for a method that knows nothing of what is varied; True if off the axis."""
    inside = limits.hold(values)
    for value in values[inside]:
        axis.axhline(value, color=look.color, linestyle=look.dash, zorder=1.5)
        axis.plot(at, value, marker=look.marker, color=look.color, markeredgewidth=0.8, zorder=3)
    beyond = values[~inside & ~np.isnan(values)]
    for value in beyond:
        panels.off_axis(axis, at, look.color, above=value > limits.high)
    return bool(len(beyond))


def _draw_varied(
    axis: Axes, rows: pd.DataFrame, at: np.ndarray, look: names.Line, limits: _Limits, aside: float, join: bool
) -> bool:
    """The points of a method, with bars, at their places on the x axis; True if one lies off the axis."""
    order = np.argsort(at, kind="stable")
    y, low, high = (rows[column].to_numpy(float)[order] for column in ("value", "low", "high"))
    at = at[order] + (0.0 if join else 0.12 * aside)
    inside = limits.hold(y)
    # A value over tasks can lie beyond those of all single runs. Where a run has none the bar ends at the value.
    bars = [y[inside] - low[inside], high[inside] - y[inside]]
    axis.errorbar(
        at[inside],
        y[inside],
        yerr=[np.where(np.isfinite(bar) & (bar > 0), bar, 0) for bar in bars],
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


def _limits(part: pd.DataFrame) -> _Limits:
    """The range that holds the points of a panel with their bars, but not errors that are far above all others."""
    log = bool(len(part)) and part["statistic"].iloc[0] != "final_step_spearman"
    usable = part[np.isfinite(part["value"]) & ((part["value"] > 0) | (not log))]
    if usable.empty:
        return _Limits(0.1, 1.0, log)
    if log:
        of_each = usable.groupby("label")["value"].min()  # the best of every method is shown
        usable = usable[usable["value"] <= max(of_each.max(), FAR * of_each.min())]
    ends = usable[["value", "low", "high"]].to_numpy(float)
    ends = ends[np.isfinite(ends) & ((ends > 0) | (not log))]
    low, high = float(ends.min()), float(ends.max())
    if log:
        margin = max(high / low, 1.5) ** 0.08
        return _Limits(low / margin, high * margin, True)
    margin = 0.08 * (high - low or 0.1)
    return _Limits(low - margin, high + margin, False)


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
