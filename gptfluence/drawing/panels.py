"""What figures of several panels share: the frame's columns and series, seaborn's plots, edges, and the legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names
from gptfluence.drawing.style import STYLE, empty_figure, text_width

if TYPE_CHECKING:
    import seaborn.objects as so

OFF_AXIS = "leaves the axes"  # what a triangle at an edge means, as legends say it
LOG_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))  # multiples of powers of ten, until ticks are enough
Looks = Mapping[str, names.Line]  # series in print -> how it is drawn


def check(where: str, frame: pd.DataFrame, columns: Sequence[str], hint: str) -> None:
    """Raise ConfigurationError, with a hint what to give, for a frame that is empty or lacks columns."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ConfigurationError(f"{where}: the frame has no column {', '.join(missing)}; {hint}")
    if frame.empty:
        raise ConfigurationError(f"{where}: the frame is empty; {hint}")


def with_series(frame: pd.DataFrame, column: str = "series", *, listed: bool = False) -> tuple[pd.DataFrame, Looks]:
    """The frame with each row's series in print, and how each is drawn.

    column: who predicts, by name; a column `variant`, where there is one, tells variants of a method apart
    listed: series in the order of `names.METHODS`, else in order of appearance
    Returns the frame with a column `label`, and label -> line.
    """
    variants = frame["variant"].fillna("") if "variant" in frame else pd.Series("", frame.index)
    keys = list(zip(frame[column], variants, strict=True))
    unique = list(dict.fromkeys(keys))
    if listed:
        unique = sorted(unique, key=lambda key: names.place(*key))
    labels = {key: names.method(*key) for key in unique}
    looks = {labels[key]: line for key, line in names.lines(unique).items()}
    return frame.assign(label=[labels[key] for key in keys]).reset_index(drop=True), looks


def plot(frame: pd.DataFrame, looks: Looks, **axes: str) -> so.Plot:
    """A plot of seaborn with the lines of the series, in the style that is in force; the frame is of `with_series`."""
    import seaborn.objects as so  # takes seconds

    shown = {"color": "color", "marker": "marker", "linestyle": "dash"}
    scales = {
        aspect: so.Nominal({label: getattr(look, name) for label, look in looks.items()}, order=list(looks))
        for aspect, name in shown.items()
    }
    drawn = so.Plot(frame, **dict.fromkeys(shown, "label"), **axes).scale(**scales)
    return drawn.theme({key: mpl.rcParams[key] for key in so.Plot.config.theme})


def error_left(frame: pd.DataFrame, r2: pd.Series | None = None) -> pd.DataFrame:
    """The frame with 1 - R2_dev in place of R2_dev and its interval, so that a logarithmic axis can show how near to 1 it is.

    r2: bool, the rows that are R2_dev (default: all); columns value, low and high are changed there
    """
    others = pd.Series(False, frame.index) if r2 is None else ~r2
    ends = {"value": "value", "low": "high", "high": "low"}
    return frame.assign(**{name: frame[name].where(others, 1 - frame[end]) for name, end in ends.items()})


def grid(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """A figure of `rows` x `columns` panels, `height` inches each, and its axes [rows, columns]; room for a legend."""
    gap = options.pop("gap", 0.05)
    figure = empty_figure(width, rows * height + 0.5, gap=gap)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def shape_of(panels: int, width: float) -> tuple[int, int]:
    """(rows, columns) for so many panels: four in a row on a page, two in a column of text."""
    columns = min(panels, 4 if width > 4 else 2)
    return math.ceil(panels / columns), columns


def off_axis(
    axis: Axes,
    x: float,
    color: str,
    *,
    above: bool,
    aside: float = 0.0,
    across: bool = False,
    hollow: bool = False,
) -> None:
    """Mark a value that lies off the axis: a triangle at the edge that it lies beyond.

    aside: widths of a triangle that it is moved to the right, beside those of others; across: x is a fraction of the axis
    """
    transform = axis.transAxes if across else axis.get_xaxis_transform()
    moved = transform + ScaledTranslation(aside * 4 / 72, 0, axis.figure.dpi_scale_trans)
    look = {"marker": "^" if above else "v", "color": color, "markersize": 4.5, "clip_on": False, "zorder": 5}
    look |= {"markerfacecolor": "none"} if hollow else {}
    axis.plot([x], [1.0 if above else 0.0], transform=moved, **look)


def log_axis(axis: Axes, low: float, high: float) -> None:
    """Make the vertical axis logarithmic from low to high (both above 0), with a few ticks in plain numbers."""
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in LOG_STEPS:
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    else:
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    axis.yaxis.set_major_locator(FixedLocator(ticks[:: math.ceil(len(ticks) / 6) or 1]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def mark_known_mean(axis: Axes, training_runs: int, *, rest: bool = False) -> None:
    """A thin labelled line at 1/(K+1): the R2_dev that the true mean of runs drawn alike would have.

    The 0 of R2_dev is the mean of K training runs. Its MSE is 1 + 1/K times that of the true mean, which it estimates. So the
    true mean has 1 - 1/(1 + 1/K) = 1/(K+1), and less than that does not show that a method knows of the curriculum.
    rest: the axis shows 1 - R2_dev. Call this when the axis has its limits; nothing is drawn beyond them.
    """
    level, text = 1 / (training_runs + 1), "1/(K+1)"
    if rest:
        level, text = 1 - level, "K/(K+1)"
    low, high = axis.get_ylim()
    if not low <= level <= high:
        return
    color, size = "#767676", STYLE["ytick.labelsize"] - 1.5
    axis.axhline(level, color=color, linewidth=0.5, linestyle=(0, (4, 2)), zorder=1)
    axis.text(1.005, level, text, transform=axis.get_yaxis_transform(), va="center", fontsize=size, color=color)


def stagger_markers(axis: Axes, about: int) -> None:
    """Show `about` markers on each line, those of several lines at different points so that none hides another."""
    lines = axis.get_lines()
    for position, line in enumerate(lines):
        every = max(1, len(line.get_xdata()) // about)
        line.set_markevery(((position * every) // max(len(lines), 1), every))


def series_handles(looks: Looks) -> list[Line2D]:
    """The series as legends show them."""
    return [
        Line2D([], [], color=look.color, linestyle=look.dash, marker=look.marker, markeredgewidth=0.8, label=label)
        for label, look in looks.items()
    ]


def edge_handle(label: str = OFF_AXIS, *, above: bool = True, hollow: bool = False) -> Line2D:
    """The triangle of `off_axis`, as legends show it."""
    look = {"marker": "^" if above else "v", "markersize": 4.5, **({"markerfacecolor": "none"} if hollow else {})}
    return Line2D([], [], color="#767676", linestyle="", label=label, **look)


def single_handle() -> Line2D:
    """The small dot of a single run, as legends show it."""
    return Line2D([], [], color="#767676", linestyle="", marker="o", markersize=1.6, label="a single run")


def place_legend(figure: Figure, handles: Sequence[Any], width: float) -> None:
    """One legend above all panels, in as few rows of alike length as fit into `width` inches; more than two make room."""
    size = STYLE["legend.fontsize"]
    spacing = {"handlelength": 2.6, "columnspacing": 1.2, "handletextpad": 0.5}  # in units of the font's size
    widths = [text_width(handle.get_label(), size) + sum(spacing.values()) * size / 72 for handle in handles]
    rows, columns = 1, len(handles)
    # each column is as wide as its widest entry
    while columns > 1 and sum(max(part) for part in np.array_split(widths, columns)) > width:
        rows += 1
        columns = math.ceil(len(handles) / rows)
    figure.set_figheight(figure.get_figheight() + max(rows - 2, 0) * 1.5 * size / 72)
    figure.legend(handles=list(handles), loc="outside upper center", ncols=columns, **spacing)
