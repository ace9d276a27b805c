"""Figure 1: collect, fit, simulate, drawn from one GPT's really recorded runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names, panels
from gptfluence.drawing.style import PAGE, empty_figure, style
from gptfluence.drawing.trajectories import at_equal_ranks
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import FitReport

COLUMNS = ["panel", "series", "example", "x", "y", "shown"]
PANELS = ("curriculum", "trajectories", "training loss", "validation error", "new curriculum", "simulation")
SHADES = ("#000000", "#8a8a8a", "#bdbdbd")  # of the examples that are followed


def overview_frame(
    dynamics: GPTDynamics,
    report: FitReport,
    predicted: np.ndarray,
    *,
    method: str = "gptfluence",
    metric: str = "loss",
    examples: int = 2,
) -> pd.DataFrame:
    """Every number of figure 1, tidy: panel, series, example (position), x, y, shown.

    dynamics: all runs; the first training run and the first held-out one are drawn
    report: how the simulator was fitted; predicted: float32 [held-out runs, steps + 1, tests], from their first values

    x is a step or an epoch; y is the position of a training example in the pool, the metric, or an error in its unit
    squared. `shown`: test examples that stand out, `examples` of them at equal ranks of the prediction's error.
    Raises ConfigurationError if the simulator was not fitted in epochs, or `examples` exceeds the tests.
    """
    if not len(report.training_loss):
        raise ConfigurationError(f"overview_frame: {method} is not fitted in epochs; choose gptfluence or simfluence")
    train, validation, held_out = dynamics.split()
    truth = held_out.trajectories(metric)[0]
    if not 1 <= examples <= min(len(SHADES), truth.shape[1]):
        raise ConfigurationError(
            f"overview_frame: examples must be 1 to {min(len(SHADES), truth.shape[1])}, not {examples}"
        )
    shown = np.array(at_equal_ranks(predicted[0], truth, examples))
    collected, mean = train.trajectories(metric), np.empty(0)
    if len(validation):
        error = validation.trajectories(metric) - collected.mean(axis=0, dtype=np.float64)
        mean = np.full(len(report.validation_mse), np.square(error[:, 1:]).mean())
    parts = [
        _batches("curriculum", train),
        _lines("trajectories", "recorded", collected[0], shown),
        _curve("training loss", method, report.training_loss),
        _curve("validation error", method, report.validation_mse, report.best_epoch),
        _curve("validation error", "mean_trajectory", mean),
        _batches("new curriculum", held_out),
        _lines("simulation", "recorded", truth[:, shown], None, shown),
        _lines("simulation", method, predicted[0][:, shown], None, shown),
    ]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)[COLUMNS]


def plot_overview(frame: pd.DataFrame, *, metric: str = "loss", width: float = PAGE, height: float = 2.9) -> Figure:
    """Three columns, collect, fit and simulate, from a frame of `overview_frame`."""
    panels.check("plot_overview", frame, sorted(COLUMNS), "pass a frame of overview_frame()")
    parts = {panel: frame[frame["panel"] == panel] for panel in PANELS}
    method = parts["training loss"]["series"].iloc[0]
    value = names.metric(metric, unit=True).replace(" (", "\n(").replace(" per target", " per\ntarget")
    unit = "nats²" if metric == "loss" else f"{names.metric(metric)}²"
    with style():
        figure = empty_figure(width, height)
        figure.get_layout_engine().set(h_pad=0.03)  # type: ignore[union-attr]
        axes = figure.subplots(2, 3, sharex="col", height_ratios=[1, 1.25])
        for column, title in enumerate(("1. Collect", "2. Fit", "3. Simulate")):
            axes[0, column].set_title(title, fontweight="bold")
        for column, panel in ((0, "curriculum"), (2, "new curriculum")):
            part = parts[panel]
            axes[0, column].plot(part["x"], part["y"], linestyle="", marker="s", markersize=0.9, color="black")
            axes[0, column].set_ylabel("example of\nthe pool")
        _draw_recorded(axes[1, 0], parts["trajectories"])
        _draw_simulated(axes[1, 2], parts["simulation"], method)
        for column in (0, 2):
            axes[1, column].set(xlabel="training step", ylabel=value)
        for row, panel in enumerate(("training loss", "validation error")):
            _draw_fit(axes[row, 1], parts[panel], method)
        axes[0, 1].set_ylabel(f"one-step\nMSE ({unit})")
        axes[1, 1].set(xlabel="epoch of fitting", ylabel=f"all-steps MSE,\nvalidation ({unit})")
        for axis in axes.flat:
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        figure.align_ylabels(axes)
        figure.legend(handles=_handles(frame, method), loc="outside lower center", ncols=5, handlelength=2.6)
    return figure


def _batches(panel: str, runs: GPTDynamics) -> pd.DataFrame:
    """The first run's curriculum: one row for each example of each batch; batch of update t at x = t."""
    rows, columns = np.nonzero(runs.curricula[0].batches >= 0)
    shown = runs.curricula[0].batches[rows, columns]
    return pd.DataFrame({"panel": panel, "series": "batch", "example": shown, "x": rows + 1, "y": shown, "shown": True})


def _lines(
    panel: str, series: str, values: np.ndarray, shown: np.ndarray | None, positions: np.ndarray | None = None
) -> pd.DataFrame:
    """values: [steps + 1, tests]; shown: the tests that stand out (None: all); positions: of these tests (None: 0, 1, ...)"""
    steps, tests = values.shape
    positions = np.arange(tests) if positions is None else positions
    return pd.DataFrame(
        {
            "panel": panel,
            "series": series,
            "example": np.repeat(positions, steps),
            "x": np.tile(np.arange(steps), tests),
            "y": values.T.ravel().astype(np.float64),
            "shown": np.repeat(np.ones(tests, bool) if shown is None else np.isin(positions, shown), steps),
        }
    )


def _curve(panel: str, series: str, values: np.ndarray, best: int = 0) -> pd.DataFrame:
    """A value for each epoch, counted from 1; the best epoch is `shown`."""
    epochs = np.arange(1, len(values) + 1)
    return pd.DataFrame(
        {"panel": panel, "series": series, "example": -1, "x": epochs, "y": values, "shown": epochs == best}
    )


def _draw_recorded(axis: Axes, part: pd.DataFrame) -> None:
    followed = list(part.loc[part["shown"], "example"].unique())
    for example, line in part.groupby("example", sort=False):
        shade = SHADES[followed.index(example)] if example in followed else "#d9d9d9"
        on_top = example in followed
        axis.plot(line["x"], line["y"], color=shade, linewidth=1.3 if on_top else 0.4, zorder=3 if on_top else 1)
    values = part["y"]
    # a few hard examples must not press the others flat
    low, high = np.nanquantile(values, [0.02, 0.98])
    kept = part.loc[part["shown"], "y"]
    low, high = min(low, kept.min()), max(high, kept.max())
    axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _draw_simulated(axis: Axes, part: pd.DataFrame, method: str) -> None:
    recorded = part[part["series"] == "recorded"]
    look = _line(method)
    for shade, (example, line) in zip(SHADES, recorded.groupby("example"), strict=False):
        simulated = part[(part["series"] == method) & (part["example"] == example)]
        axis.plot(line["x"], line["y"], color=shade, linewidth=1.3)
        axis.plot(
            simulated["x"], simulated["y"], color=look.color, linestyle=look.dash, marker=look.marker,
            markevery=max(1, len(simulated) // 5), markersize=2.6,
        )  # fmt: skip
        axis.plot(line["x"].iloc[:1], line["y"].iloc[:1], "o", color=shade, markersize=4, zorder=4, clip_on=False)
    low, high = recorded["y"].min(), recorded["y"].max()
    span = (high - low) or 1.0
    seen = part.loc[np.isfinite(part["y"]), "y"].clip(low - span, high + span)
    axis.set_ylim(seen.min() - 0.05 * span, seen.max() + 0.05 * span)


def _draw_fit(axis: Axes, part: pd.DataFrame, method: str) -> None:
    look = _line(method)
    line = part[part["series"] == method]
    axis.plot(line["x"], line["y"], color=look.color, linestyle=look.dash)
    axis.plot(line.loc[line["shown"], "x"], line.loc[line["shown"], "y"], "*", color=look.color, markersize=7)
    mean = part[part["series"] == "mean_trajectory"]
    axis.plot(mean["x"], mean["y"], color=_line("mean_trajectory").color, linestyle=_line("mean_trajectory").dash)
    if (line["y"] > 0).all() and line["y"].max() > 20 * line["y"].min():
        axis.set_yscale("log")
        if line["y"].max() < 100 * line["y"].min():  # a power of ten would be the only tick
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.yaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(9, 9)))
        axis.yaxis.set_minor_formatter(NullFormatter())


def _line(method: str) -> names.Line:
    return names.lines([(method, "")])[method, ""]


def _handles(frame: pd.DataFrame, method: str) -> list[Line2D]:
    look, mean = _line(method), _line("mean_trajectory")
    handles = [
        Line2D([], [], color="black", linewidth=1.3, label="recorded"),
        Line2D([], [], color=look.color, linestyle=look.dash, marker=look.marker, label=names.method(method)),
        Line2D([], [], color="black", linestyle="", marker="o", label="last observed"),
        Line2D([], [], color=look.color, linestyle="", marker="*", markersize=7, label="epoch kept"),
    ]
    if (frame["series"] == "mean_trajectory").any():
        handles.insert(2, Line2D([], [], color=mean.color, linestyle=mean.dash, label="mean trajectory"))
    return handles
