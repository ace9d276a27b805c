"""The house style: how figures look at the width they are printed at in a two-column ACL page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

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


def empty_figure(width: float, height: float, *, gap: float = 0.05) -> Figure:
    """A figure without axes, its size in inches; gap: inches that its layout leaves beside each panel."""
    figure = Figure(figsize=(width, height), dpi=STYLE["figure.dpi"], layout="constrained")
    figure.get_layout_engine().set(w_pad=gap)  # type: ignore[union-attr]
    return figure


def text_width(text: str, size: float) -> float:
    """Width in inches of one line of text in the house font, `size` points high."""
    if not text.strip():
        return 0.0
    font = FontProperties(family=STYLE["font.family"])
    return float(TextPath((0, 0), text, size=size, prop=font).get_extents().xmax) / 72 + 0.02


def wrapped(text: str, width: float, size: str | float) -> str:
    """Text in lines no wider than `width` inches (half an inch at least), broken at blanks; a word may be wider.

    size: in points, or the name of the entry of STYLE that holds it
    """
    points = STYLE[size] if isinstance(size, str) else size
    lines: Sequence[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, points) > max(width, 0.5):
            lines = [*lines, word]
        else:
            lines = [*lines[:-1], longer]
    return "\n".join(lines)
