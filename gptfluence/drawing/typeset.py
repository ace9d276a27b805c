"""A table as people print it: LaTeX with booktabs, Markdown, HTML in a notebook, and a picture to look at."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from tabulate import tabulate

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "R²dev": r"$R^2_{\mathrm{dev}}$", "²": "$^2$",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "−": "$-$", "–": "--", "†": r"$^\dagger$", "±": r"$\pm$",
    "×": r"$\times$", "≠": r"$\neq$", "·": r"$\cdot$", "∞": r"$\infty$", "<": "$<$", ">": "$>$",
    "α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "ρ": r"$\rho$",
}  # fmt: skip
PAGE_ROWS = 50  # of a table that is still set in one piece


@dataclass(frozen=True)
class Table:
    """Cells of text with a header of one or two lines, and the numbers they were made from.

    columns: (heading, second line) of each column; alike headings side by side are set once, above their second lines
    rows: one text per column; bold: the cells to stress, bool [rows, columns]
    stubs: how many columns at the left name the row; a value of all but the last is set once per run of rows
    numbers: the tidy frame behind it, for the CSV and for `tables.reading`; notes: lines below the table
    """

    columns: list[tuple[str, str]]
    rows: list[list[str]]
    numbers: pd.DataFrame = field(repr=False)
    bold: np.ndarray | None = field(repr=False, default=None)
    stubs: int = 1
    notes: tuple[str, ...] = ()

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Table:
        """A plain data frame (no index), numbers with four significant digits."""

        def text(value: object) -> str:
            if isinstance(value, bool | np.bool_):
                return "yes" if value else "no"
            if isinstance(value, float | np.floating):
                return "" if np.isnan(value) else f"{value:.4g}".replace("-", "−")
            return "" if value is None or value is pd.NA else str(value)

        rows = [[text(value) for value in row] for row in frame.itertuples(index=False)]
        return cls(columns=[(str(name), "") for name in frame.columns], rows=rows, numbers=frame)

    def is_bold(self, row: int, column: int) -> bool:
        return self.bold is not None and bool(self.bold[row, column])

    def to_frame(self) -> pd.DataFrame:
        """The cells as text, one heading per column."""
        return pd.DataFrame(self.rows, columns=[", ".join(filter(None, column)) for column in self.columns])

    def to_markdown(self) -> str:
        headings = [", ".join(filter(None, column)).replace("|", "\\|") for column in self.columns]
        rows = [
            [f"**{cell}**" if cell and self.is_bold(i, j) else cell.replace("|", "\\|") for j, cell in enumerate(row)]
            for i, row in enumerate(self._merged())
        ]
        align = ["left" if self._left(j) else "right" for j in range(len(self.columns))]
        text = tabulate(rows, headers=headings, tablefmt="pipe", colalign=align, disable_numparse=True)
        return text + "\n" + "".join(f"\n{note}\n" for note in self.notes)

    def to_tex(self, caption: str = "") -> str:
        """A tabular to \\input into a table environment; needs booktabs. The caption is a comment at its top.

        A table of groups of groups that is longer than a page has a tabular for each of its blocks.
        """
        if self.stubs > 2 and len(self.rows) > PAGE_ROWS:
            starts = [row[0] for i, row in enumerate(self.rows) if not self._repeated(i)]
            parts = [
                f"\\par\\medskip\\noindent\\emph{{{_tex(name)}}}\\par\\smallskip\n{block.to_tex()}"
                for name, block in zip(starts, self._blocks(), strict=True)
            ]
            return (f"% {' '.join(caption.split())}\n" if caption else "") + "\n".join(parts)
        lines = [f"% {' '.join(caption.split())}" if caption else None, r"% needs \usepackage{booktabs}"]
        align = "".join("l" if self._left(j) else "r" for j in range(len(self.columns)))
        lines += [rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}", r"\toprule"]
        if self._two_lines:
            spans, rules, start = [], [], 1
            for heading, width in self._spans():
                two = width > 1
                spans.append(rf"\multicolumn{{{width}}}{{c}}{{{_tex(heading)}}}" if two else "")
                rules += [rf"\cmidrule(lr){{{start}-{start + width - 1}}}"] if two else []
                start += width
            lines += [" & ".join(spans) + r" \\", " ".join(rules) or None]
        lines += [" & ".join(_tex(text) for text in self._lower()) + r" \\"]
        lines += [r"\midrule"]
        for i, row in enumerate(self._merged()):
            lines += [r"\addlinespace"] if i in self._breaks() else []
            cells = [_tex(cell) for cell in row]
            cells = [rf"\textbf{{{cell}}}" if cell and self.is_bold(i, j) else cell for j, cell in enumerate(cells)]
            lines += [" & ".join(cells) + r" \\"]
        lines += [r"\bottomrule"]
        lines += [
            rf"\multicolumn{{{len(self.columns)}}}{{@{{}}l}}{{\footnotesize {_tex(note)}}} \\" for note in self.notes
        ]
        return "\n".join(line for line in [*lines, r"\end{tabular}"] if line is not None) + "\n"

    def _repr_html_(self) -> str:
        def cell(tag: str, text: str, span: int = 1, left: bool = False) -> str:
            align = "left" if left else "center" if span > 1 else "right"
            return f'<{tag} colspan="{span}" style="text-align:{align}">{text}</{tag}>'

        head = ""
        if self._two_lines:
            upper = [cell("th", html.escape(heading) if span > 1 else "", span) for heading, span in self._spans()]
            head += f"<tr>{''.join(upper)}</tr>"
        lower = [cell("th", html.escape(text), left=self._left(j)) for j, text in enumerate(self._lower())]
        head += f"<tr>{''.join(lower)}</tr>"
        body = ""
        for i, row in enumerate(self._merged()):
            texts = [f"<b>{html.escape(c)}</b>" if self.is_bold(i, j) else html.escape(c) for j, c in enumerate(row)]
            body += f"<tr>{''.join(cell('td', text, left=self._left(j)) for j, text in enumerate(texts))}</tr>"
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{notes}"

    def draw(self, width: float, *, size: float = 7.5, smallest: float = 6.0) -> Figure:
        """The table as a figure `width` inches wide; smaller letters, and then a wider figure, if it does not fit."""
        natural = self._widths(size)
        gap = 0.11
        room = width - 0.1 - gap * (len(natural) - 1)
        scale = min(1.0, max(smallest / size, room / sum(natural)))
        size, widths = size * scale, [column * scale for column in natural]
        width = max(width, sum(widths) + gap * (len(widths) - 1) + 0.1)
        gap = (width - 0.1 - sum(widths)) / max(len(widths) - 1, 1) if len(widths) > 2 else gap
        line, heads = size * 1.75 / 72, 2 if self._two_lines else 1
        breaks = self._breaks()
        notes = wrap_text(self.notes, width - 0.1, size - 0.5)
        height = 0.1 + line * (heads + len(self.rows) + 0.35 * len(breaks) + 0.5) + line * 0.9 * len(notes) + 0.05
        figure = Figure(figsize=(width, height), dpi=200)
        figure.set_layout_engine("none")
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set(xlim=(0, width), ylim=(height, 0))
        axis.axis("off")
        lefts = [0.05 + sum(widths[:j]) + gap * j for j in range(len(widths))]
        end = lefts[-1] + widths[-1]

        def put(j: int, y: float, text: str, bold: bool = False) -> None:
            x, side = (lefts[j], "left") if self._left(j) else (lefts[j] + widths[j], "right")
            axis.text(x, y, text, ha=side, va="center", fontsize=size, fontweight="bold" if bold else "normal")

        y = 0.05
        axis.plot([lefts[0], end], [y, y], color="black", linewidth=1.0)
        if self._two_lines:
            start = 0
            for heading, span in self._spans():
                if span > 1:
                    left, right = lefts[start], lefts[start + span - 1] + widths[start + span - 1]
                    axis.text((left + right) / 2, y + line / 2, heading, ha="center", va="center", fontsize=size)
                    axis.plot([left, right], [y + line, y + line], color="black", linewidth=0.4)
                start += span
            y += line
        for j, text in enumerate(self._lower()):
            put(j, y + line / 2, text)
        y += line
        axis.plot([lefts[0], end], [y, y], color="black", linewidth=0.6)
        y += line * 0.15
        for i, row in enumerate(self._merged()):
            if i in breaks:
                axis.plot([lefts[0], end], [y + line * 0.17] * 2, color="#bbbbbb", linewidth=0.4)
                y += line * 0.35
            for j, cell in enumerate(row):
                put(j, y + line / 2, cell, self.is_bold(i, j))
            y += line
        y += line * 0.15
        axis.plot([lefts[0], end], [y, y], color="black", linewidth=1.0)
        for note in notes:
            y += line * 0.9
            axis.text(lefts[0], y - line * 0.3, note, ha="left", va="center", fontsize=size - 0.5, color="#333333")
        return figure

    @property
    def _two_lines(self) -> bool:
        return any(span > 1 for _, span in self._spans())

    def _lower(self) -> list[str]:
        """The lower line of the header, right above the cells: also the headings that stand alone."""
        lower: list[str] = []
        for _, span in self._spans():
            start = len(lower)
            alone = ", ".join(filter(None, self.columns[start]))
            lower += [second for _, second in self.columns[start : start + span]] if span > 1 else [alone]
        return lower

    def _left(self, column: int) -> bool:
        """Columns of numbers end at the right, so that digits stand below each other; words start at the left."""
        if column < self.stubs:
            return True
        cells = [row[column] for row in self.rows if row[column]]
        return bool(cells) and sum(cell[0] in "0123456789−-+.∞" for cell in cells) * 2 < len(cells)

    def _spans(self) -> list[tuple[str, int]]:
        spans: list[tuple[str, int]] = []
        for heading, second in self.columns:
            if spans and second and spans[-1][0] == heading:
                spans[-1] = (heading, spans[-1][1] + 1)
            else:
                spans.append((heading, 1))
        return spans

    def _breaks(self) -> set[int]:
        """Rows that start a new group: a column that names groups changes."""
        return {i for i in range(1, len(self.rows)) if self._repeated(i) < self.stubs - 1}

    def _repeated(self, row: int) -> int:
        """How many of the columns that name groups say the same as in the row above."""
        same = 0
        while same < self.stubs - 1 and row and self.rows[row][same] == self.rows[row - 1][same]:
            same += 1
        return same

    def _merged(self) -> list[list[str]]:
        return [[*[""] * self._repeated(i), *row[self._repeated(i) :]] for i, row in enumerate(self.rows)]

    def _blocks(self) -> list[Table]:
        """One table for each run of rows with the same first column, without that column."""
        starts = [i for i in range(len(self.rows)) if self.stubs < 2 or not self._repeated(i)]
        blocks = []
        for start, end in zip(starts, [*starts[1:], len(self.rows)], strict=True):
            bold = None if self.bold is None else self.bold[start:end, 1:]
            rows = [row[1:] for row in self.rows[start:end]]
            blocks.append(replace(self, columns=self.columns[1:], rows=rows, bold=bold, stubs=self.stubs - 1, notes=()))
        blocks[-1] = replace(blocks[-1], notes=self.notes)
        return blocks

    def _widths(self, size: float) -> list[float]:
        """Width of each column in inches, wide enough for a heading that spans several."""
        widths = []
        for j, lower in enumerate(self._lower()):
            cells = [text_width(row[j], size, self.is_bold(i, j)) for i, row in enumerate(self.rows)]
            widths.append(max([*cells, text_width(lower, size)]))
        start = 0
        for heading, span in self._spans():
            lacking = text_width(heading, size) - sum(widths[start : start + span]) if self._two_lines else 0
            for j in range(start, start + span):
                widths[j] += max(lacking, 0) / span
            start += span
        return widths


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width in inches of one line of text in the house font, `size` points high."""
    if not text.strip():
        return 0.0
    font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return float(TextPath((0, 0), text, size=size, prop=font).get_extents().xmax) / 72 + 0.02


def wrap_text(notes: Sequence[str], width: float, size: float) -> list[str]:
    """Lines no wider than `width` inches, broken at blanks; a single word may be wider."""
    lines = []
    for note in notes:
        line = ""
        for word in note.split():
            if line and text_width(f"{line} {word}", size) > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    return lines


def _tex(text: str) -> str:
    result, rest = "", text
    while rest:
        key = "R²dev" if rest.startswith("R²dev") else rest[0]
        result += TEX.get(key, key)
        rest = rest[len(key) :]
    return result
