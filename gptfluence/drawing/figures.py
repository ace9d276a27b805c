"""The house style of figures, trajectories drawn in it, and the files of a figure or a table.

Figures are drawn at the width they are printed at in a two-column ACL page, from one tidy frame each, and are saved
with that frame. The same frame and versions give the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gptfluence.common.errors import ConfigurationError
from gptfluence.common.provenance import save
from gptfluence.drawing import names
from gptfluence.drawing.typeset import Table, text_width, wrap_text
from gptfluence.recording.dynamics import GPTDynamics

COLUMN, PAGE = 3.03, 6.3  # inches: a column and the page of an ACL paper
STYLE: dict[str, Any] = {
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
    "ps.fonttype": 42,
    "svg.hashsalt": "gptfluence",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.2,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "savefig.bbox": None,  # the size asked for is the size of the file
    "figure.constrained_layout.use": True,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the house style inside the block, whatever the reader's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


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
    simulator was given the value; optionally metric, one per panel. A simulated line starts at the last observed point,
    marked by a dot. A line that leaves the range of the recorded one by more than that range is cut, and a triangle
    at the edge says where.
    Raises ConfigurationError for missing columns, an empty frame, or a panel without a recorded trajectory.
    """
    _check(frame)
    panels = list(frame["panel"].unique())
    series = sorted(frame["series"].unique(), key=_order)
    columns = columns or _columns(len(panels), width)
    rows = math.ceil(len(panels) / columns)
    with style():
        figure = Figure(figsize=(width, rows * panel_height + 0.35), dpi=STYLE["figure.dpi"], layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        figure.get_layout_engine().set(w_pad=0.06)
        labels, cut = [], False
        # panels of several metrics have an axis label each, which leaves less room for their titles
        beside = 0.55 if "metric" in frame and frame["metric"].nunique() > 1 else 0.3
        for position, axis in enumerate(axes.flat):
            if position >= len(panels):
                axis.set_visible(False)
                continue
            part = frame[frame["panel"] == panels[position]]
            drawn = part["metric"].iloc[0] if "metric" in part else metric
            cut |= _draw_panel(axis, part, series)
            axis.set_title(_wrapped(str(panels[position]), width / columns - beside, STYLE["axes.titlesize"]))
            labels.append(names.metric(drawn, unit=True))
        for position, label in enumerate(labels):
            axis = axes.flat[position]
            if position % columns == 0 or len(set(labels)) > 1:
                axis.set_ylabel(_wrapped(label, panel_height - 0.5, STYLE["axes.labelsize"]))
            if position + columns >= len(panels):
                axis.set_xlabel(xlabel)
        _legend(figure, series, width, cut)
    return figure


def trajectory_frame(
    simulated: Mapping[str, tuple[GPTDynamics, Mapping[str, np.ndarray]]],
    *,
    metric: str = "loss",
    examples: int = 2,
    observed: int = 1,
) -> pd.DataFrame:
    """The frame that `plot_trajectories` draws: `examples` test examples of each task, in its first held-out run.

    simulated: task -> what `Study.simulate` returns: recorded runs, and method -> float32 [runs, steps + 1, tests].
    Examples lie at equal ranks of the error of GPTfluence (or of the last method), from the best to the worst predicted.
    """
    rows = []
    for task, (recorded, predicted) in simulated.items():
        if not predicted:
            raise ConfigurationError("trajectory_frame: no method given; simulate with one at least")
        run, truth = recorded.names[0], recorded.trajectories(metric)[0]
        by = "gptfluence" if "gptfluence" in predicted else list(predicted)[-1]
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.nan_to_num(np.square(predicted[by][0] - truth).mean(axis=0), nan=np.inf)
        ranks = np.linspace(0, len(error) - 1, min(examples, len(error)) + 2)[1:-1].round().astype(int)
        for example in np.argsort(error, kind="stable")[ranks].tolist():
            series = {"recorded": truth, **{method: values[0] for method, values in predicted.items()}}
            for name, values in series.items():
                steps = np.arange(len(truth))
                rows.append(
                    pd.DataFrame(
                        {
                            "panel": f"{names.task(task)}, example {example}",
                            "task": task,
                            "run": run,
                            "example": recorded.tests[example].id,
                            "series": name,
                            "step": steps,
                            "value": np.asarray(values[:, example], dtype=np.float64),
                            "observed": steps < observed,
                        }
                    )
                )
    return pd.concat(rows, ignore_index=True)


def reading(frame: pd.DataFrame) -> str:
    """What the panels show, computed: in how many each method comes closest, and how far off it is on average."""
    wide = frame[~frame["observed"]].pivot(index=["panel", "step"], columns="series", values="value")
    with np.errstate(over="ignore", invalid="ignore"):
        mse = (wide.drop(columns="recorded").sub(wide["recorded"], axis=0) ** 2).groupby(level="panel").mean()
    mse = mse.fillna(np.inf)
    won = mse.idxmin(axis=1).value_counts()
    parts = [
        f"{names.method(name)} in {int(won.get(name, 0))} (mean squared error {mse[name].mean():.3g})"
        for name in sorted(mse.columns, key=lambda name: (-won.get(name, 0), mse[name].mean()))
    ]
    return f"Closest to what was recorded, of {len(mse)} panels: {', '.join(parts)}."


def save_figure(
    figure: Figure, frame: pd.DataFrame, folder: Path, name: str, *, caption: str, provenance: Mapping[str, Any]
) -> list[Path]:
    """Write name.pdf, .png, .csv (every number drawn) and .json (caption and provenance); returns their paths.

    No file is touched whose content would not change. Raises ArtifactError where nothing can be written.
    """
    with style():
        contents = {".pdf": _render(figure, "pdf"), ".png": _render(figure, "png"), ".csv": _csv(frame)}
    return save(folder, name, contents, caption=caption, provenance=provenance)


def save_table(
    table: Table | pd.DataFrame, folder: Path, name: str, *, caption: str, provenance: Mapping[str, Any]
) -> list[Path]:
    """Write name.csv (numbers, tidy), .tex (booktabs, to include), .md, .png (to look at) and .json; returns the paths.

    A data frame is printed as it is, with four significant digits. No file is touched whose content would not change.
    """
    table = table if isinstance(table, Table) else Table.from_frame(table)
    with style():
        picture = _render(table.draw(PAGE), "png")
    contents = {
        ".csv": _csv(table.numbers),
        ".tex": table.to_tex(caption).encode(),
        ".md": table.to_markdown().encode(),
        ".png": picture,
    }
    return save(folder, name, contents, caption=caption, provenance=provenance)


def _render(figure: Figure, kind: str) -> bytes:
    nothing = {"pdf": ("Creator", "Producer", "CreationDate"), "png": ("Software",)}[kind]  # dates, tools' versions
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=dict.fromkeys(nothing), dpi=STYLE["savefig.dpi"])
    return buffer.getvalue()


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n", float_format="%.9g").encode()


def _check(frame: pd.DataFrame) -> None:
    missing = {"panel", "series", "step", "value", "observed"} - set(frame.columns)
    if missing:
        raise ConfigurationError(f"plot_trajectories: the frame has no column {', '.join(sorted(missing))}")
    if frame.empty:
        raise ConfigurationError("plot_trajectories: the frame is empty; select at least one trajectory")
    without = set(frame["panel"]) - set(frame.loc[frame["series"] == "recorded", "panel"])
    if without:
        raise ConfigurationError(f"plot_trajectories: no recorded trajectory in panel {', '.join(map(str, without))}")


def _order(series: str) -> tuple[int, str]:
    known = names.family(series)
    return (list(names.METHODS).index(known) if known else len(names.METHODS), series)


def _columns(panels: int, width: float) -> int:
    """Panels in a row: four (two in a column of text), or three where that leaves fewer places empty."""
    most = 4 if width > 4 else 2
    if panels <= most or most < 4:
        return min(panels, most)
    return min((4, 3), key=lambda columns: -panels % columns)


def _draw_panel(axis: Axes, part: pd.DataFrame, series: Sequence[str]) -> bool:
    """Draw one panel; True if a line leaves it."""
    recorded = part[part["series"] == "recorded"].sort_values("step")
    low, high = recorded["value"].min(), recorded["value"].max()
    span = (high - low) or max(abs(high), 1.0) * 0.1
    limits = low - span, high + span
    seen, beyond = [recorded["value"]], []
    for position, name in enumerate(series):
        line = part[part["series"] == name].sort_values("step")
        if name == "recorded" or line.empty:
            continue
        line = _from_last_observed(line, recorded)
        look = names.line(name, position)
        values = line["value"].to_numpy(dtype=float)
        inside = np.isfinite(values) & (values >= limits[0]) & (values <= limits[1])
        every = max(1, len(line) // 6)
        axis.plot(
            line["step"],
            np.clip(values, limits[0] - 9 * span, limits[1] + 9 * span),  # infinity cannot be drawn, a steep line can
            color=look.color,
            linestyle=look.dash,
            marker=look.marker,
            markevery=(1 + (position * every) // max(len(series), 1), every),  # staggered, so that none hides another
            markeredgewidth=0.8,
        )
        seen.append(line["value"][inside])
        if not inside.all():
            first = int(np.argmin(inside))
            beyond.append((line["step"].iloc[first], not values[first] < limits[0], look.color))
    axis.plot(recorded["step"], recorded["value"], color=names.LINES["recorded"].color, zorder=2.5, linewidth=1.4)
    observed = recorded[recorded["observed"].astype(bool)]
    if len(observed):
        last = observed.iloc[-1]
        axis.plot(last["step"], last["value"], "o", color="black", markersize=3.6, zorder=4, clip_on=False)
        if len(observed) > 1:
            axis.axvspan(observed["step"].iloc[0], last["step"], color="#f0f0f0", zorder=0, linewidth=0)
    shown = pd.concat(seen)
    top, bottom = (limits[1] if any(up for _, up, _ in beyond) else shown.max()), shown.min()
    bottom = limits[0] if any(not up for _, up, _ in beyond) else bottom
    margin = 0.06 * ((top - bottom) or span)
    axis.set_ylim(bottom - margin, top + margin)
    steps = part["step"]
    axis.set_xlim(steps.min(), steps.max() if steps.max() > steps.min() else steps.min() + 1)
    for step, up, color in beyond:
        edge = top + margin if up else bottom - margin
        axis.plot(step, edge, marker="^" if up else "v", color=color, markersize=4.5, clip_on=False, zorder=5)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(4))
    return bool(beyond)


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


def _legend(figure: Figure, series: Sequence[str], width: float, cut: bool) -> None:
    """The series of `plot_trajectories`, the last observed point, and lines that leave their panel."""
    handles = [method_handle(name, position) for position, name in enumerate(series)]
    handles.append(Line2D([], [], color="black", linestyle="", marker="o", markersize=3.6, label="last observed"))
    place_legend(figure, [*handles, cut_handle()] if cut else handles, width)


def method_handle(name: str, position: int = 0) -> Line2D:
    """A method as legends show it; `position` as for `names.line`."""
    look = names.line(name, position)
    options = {"color": look.color, "linestyle": look.dash, "marker": look.marker, "markeredgewidth": 0.8}
    return Line2D([], [], label=names.method(name), **options)


def cut_handle() -> Line2D:
    """The triangle at an edge where a line leaves its panel, as legends show it."""
    return Line2D([], [], color="#767676", linestyle="", marker="^", markersize=4.5, label="leaves the axes")


def place_legend(figure: Figure, handles: Sequence[Line2D], width: float) -> None:
    """One legend above all panels, in as few rows of alike length as fit into `width` inches."""
    size = STYLE["legend.fontsize"]
    spacing = {"handlelength": 2.6, "columnspacing": 1.2, "handletextpad": 0.5}  # in units of the font's size
    widths = [text_width(handle.get_label(), size) + sum(spacing.values()) * size / 72 for handle in handles]
    columns = len(handles) if sum(widths) <= width else max(1, int(width // max(widths)))
    columns = math.ceil(len(handles) / math.ceil(len(handles) / columns))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, **spacing)


def _wrapped(text: str, room: float, size: float) -> str:
    """Text in as many lines as fit into `room` inches."""
    return "\n".join(wrap_text([text], max(room, 0.5), size))
