"""What tasks teach a GPT, as a figure of few panels and as a table: of the frame of `experiments.task_statistics`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gptfluence.drawing import names, panels
from gptfluence.drawing.style import PAGE, style, wrapped
from gptfluence.drawing.typeset import Table
from gptfluence.profile.schema import LEARNING, SLOW_DRIFT

COLUMNS = ("model", "task", "regime", "statistic", "value")
ACCURACY, LOSS_FALL, SHARE = 0.8, 1 / 3, 0.5  # goals: accuracy and fall of free text's loss at least, share under
FLOOR = -0.5  # R²dev below it is a triangle at the edge
UNIT = (-0.03, 1.03)
REGIMES = {LEARNING: names.Line("#0072B2", "-", ""), SLOW_DRIFT: names.Line("#E69F00", (0, (2, 1)), "")}
HEADINGS = {  # statistic -> the columns of the table
    "loss_before": ("Loss (nats)", "before"),
    "loss_after": ("Loss (nats)", "after"),
    "accuracy_before": ("Accuracy", "before"),
    "accuracy_after": ("Accuracy", "after"),
    "first_component_share": ("Share of deviations", "first component"),
    "counts_share": ("Share of deviations", "labels or formats"),
    "counts_r2_dev": ("R²dev", "counts"),
    "persistence_ratio": ("MSE", "persistence / mean"),
    "pool_examples_that_matter": ("Pool examples that matter", ""),
    "move_ratio": ("Move ratio", ""),
}


class _Panel(NamedTuple):
    """Two statistics, hollow and full, or one, full. joined: by a line from the one to the other; limits: of the y axis."""

    title: str
    ylabel: str
    statistics: tuple[str, ...]
    joined: bool = False
    lines: tuple[float, ...] = ()
    limits: tuple[float, float] | None = None


PANELS = (
    _Panel("Loss", "nats per target token", ("loss_before", "loss_after"), joined=True),
    _Panel("Accuracy", "accuracy (0–1)", ("accuracy_before", "accuracy_after"), True, (0.5, ACCURACY), UNIT),
    _Panel("Share of the deviations", "share (0–1)", ("counts_share", "first_component_share"), False, (SHARE,), UNIT),
    _Panel("Label and format counts alone", "R²dev", ("counts_r2_dev",), False, (0.0,), (FLOOR, 1.03)),
)


def plot_tasks(
    frame: pd.DataFrame, *, training_runs: int | None = None, width: float = PAGE, panel_height: float = 1.55
) -> Figure:
    """Loss and accuracy before and after training, what share of the deviations is simple, and what counts explain.

    frame: columns `COLUMNS`. Models stand one below the other. A panel whose statistics no task has is left out. R2_dev below
    `FLOOR` is a triangle at the edge. training_runs: K of `panels.mark_known_mean`, for R2_dev
    Raises ConfigurationError for missing columns or an empty frame.
    """
    panels.check("plot_tasks", frame, COLUMNS, "give the frame of task_statistics.of_tasks")
    models = list(dict.fromkeys(frame["model"]))
    drawn = [
        (model, panel, part)
        for model in models
        for panel in PANELS
        if len(part := frame[(frame["model"] == model) & frame["statistic"].isin(panel.statistics)].dropna())
    ]
    with style():
        figure, axes = panels.grid(math.ceil(len(drawn) / 2), 2, width, panel_height)
        for axis in axes.flat[len(drawn) :]:
            axis.remove()
        for axis, (model, panel, part) in zip(axes.flat, drawn, strict=False):
            _draw(axis, panel, part, width / 2 - 0.6)
            if training_runs is not None and "counts_r2_dev" in panel.statistics:
                panels.mark_known_mean(axis, training_runs)
            axis.set_title(panel.title if len(models) == 1 else f"{model}: {panel.title[0].lower()}{panel.title[1:]}")
        handles = _handles(frame)
        if (frame.loc[frame["statistic"] == "counts_r2_dev", "value"] < FLOOR).any():
            handles.append(panels.edge_handle(f"below {FLOOR:g}", above=False))
        panels.place_legend(figure, handles, width)
    return figure


def _draw(axis: Axes, panel: _Panel, part: pd.DataFrame, room: float) -> None:
    tasks = list(dict.fromkeys(part["task"]))
    for level in panel.lines:
        axis.axhline(level, color="#404040", linewidth=0.6, zorder=1)
    for regime, aside in zip(REGIMES, (-0.14, 0.14), strict=True):
        wide = part[part["regime"] == regime].pivot(index="task", columns="statistic", values="value")
        wide = wide.reindex(index=tasks, columns=list(panel.statistics))
        look, places = REGIMES[regime], np.arange(len(tasks)) + aside
        below = wide < (panel.limits or (-math.inf, 0))[0]
        values = wide.mask(below)
        if panel.joined:
            ends = values.to_numpy().T
            axis.plot([places, places], ends, color=look.color, linestyle=look.dash, linewidth=0.9, zorder=2)
        for statistic, full in zip(panel.statistics[::-1], (True, False), strict=False):
            face = look.color if full else "white"
            axis.plot(places, values[statistic], "o" if full else "s", color=look.color, markerfacecolor=face, zorder=3)
        for place in places[below.any(axis=1)]:
            panels.off_axis(axis, place, look.color, above=False)
    axis.set_xticks(
        range(len(tasks)), [wrapped(names.task(task), room / len(tasks), "xtick.labelsize") for task in tasks]
    )
    axis.set_xlim(-0.5, len(tasks) - 0.5)
    axis.set_ylabel(panel.ylabel)
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="x", visible=False)
    axis.yaxis.set_major_locator(MaxNLocator(5))
    if panel.limits:
        axis.set_ylim(panel.limits)


def _handles(frame: pd.DataFrame) -> list[Line2D]:
    regimes = [regime for regime in REGIMES if (frame["regime"] == regime).any()]
    lines = [Line2D([], [], color=REGIMES[one].color, linestyle=REGIMES[one].dash, label=one) for one in regimes]
    meaning = {
        "before training, or labels and formats": ("s", "white"),
        "after training, or first component": ("o", "#404040"),
    }
    return lines + [
        Line2D([], [], color="#404040", linestyle="", marker=marker, markerfacecolor=face, label=label)
        for label, (marker, face) in meaning.items()
    ]


def table(frame: pd.DataFrame) -> Table:
    """A row for each task and regime (and model, where there are several); its `numbers` are the frame."""
    several = frame["model"].nunique() > 1
    shown = [statistic for statistic in HEADINGS if (frame["statistic"] == statistic).any()]
    keys = ["model", "task", "regime"]
    wide = frame.pivot(index=keys, columns="statistic", values="value").reindex(columns=shown)
    wide = wide.loc[list(dict.fromkeys(frame[keys].itertuples(index=False, name=None)))]
    rows = []
    for (model, task, regime), values in wide.iterrows():
        cells = [_number(value, statistic) for statistic, value in values.items()]
        rows.append([*([model] if several else []), names.task(task), regime, *cells])
    columns = [*([("Model", "")] if several else []), ("Task", ""), ("Regime", "")]
    return Table(columns + [HEADINGS[one] for one in shown], rows, frame, stubs=len(columns))


def _number(value: float, statistic: str) -> str:
    if np.isnan(value):
        return "–"
    text = (
        f"{value:.3f}"
        if HEADINGS[statistic][0] in ("Loss (nats)", "Accuracy", "Share of deviations")
        else f"{value:.3g}"
    )
    return text.replace("-", "−")
