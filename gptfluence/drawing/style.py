"""The house style: how figures look at the width they are printed at in a two-column ACL page."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.textpath import TextPath
from matplotlib.ticker import LogFormatter

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


class PlainFigure(Figure):
    """A figure whose texts are drawn as they are: "$" is a sign and begins no formula, except in numbers of log axes."""

    def draw(self, renderer: RendererBase) -> None:
        """As matplotlib's; warns of characters that the font lacks."""
        formulas: set[int] = set()
        for axis in (axis for axes in self.axes for axis in (axes.xaxis, axes.yaxis)):
            labels = [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]
            if isinstance(axis.get_major_formatter(), LogFormatter):
                formulas |= set(map(id, labels))
        texts = [text for text in self.findobj(Text) if isinstance(text, Text)]
        for text in texts:
            text.set_parse_math(id(text) in formulas)
        _warn_of_missing_glyphs("".join(text.get_text() for text in texts if id(text) not in formulas))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            super().draw(renderer)


def _warn_of_missing_glyphs(characters: str) -> None:
    font = get_font(findfont(FontProperties(family=STYLE["font.family"])))
    missing = sorted({one for one in characters if not one.isspace() and not font.get_char_index(ord(one))})
    if missing:
        warnings.warn(
            f"{STYLE['font.family']}, the font of figures, lacks {' '.join(missing)}: boxes are drawn in their place",
            stacklevel=2,
        )


def empty_figure(width: float, height: float, *, gap: float = 0.05) -> Figure:
    """A figure without axes, its size in inches; gap: inches that its layout leaves beside each panel."""
    figure = PlainFigure(figsize=(width, height), dpi=STYLE["figure.dpi"], layout="constrained")
    figure.get_layout_engine().set(w_pad=gap)  # type: ignore[union-attr]
    return figure


def text_width(text: str, size: float) -> float:
    """Width in inches of one line of text in the house font, `size` points high."""
    if not text.strip():
        return 0.0
    font = FontProperties(family=STYLE["font.family"])
    plain = text.replace("$", r"\$")  # no formula
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # said when it is drawn
        return float(TextPath((0, 0), plain, size=size, prop=font).get_extents().xmax) / 72 + 0.02


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
