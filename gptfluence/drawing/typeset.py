"""A table as people print it: LaTeX with booktabs, Markdown, and HTML."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "²": "$^2$",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "−": "$-$", "–": "--", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "±": r"$\pm$",
    "×": r"$\times$", "≠": r"$\neq$", "≤": r"$\leq$", "≥": r"$\geq$", "·": r"$\cdot$", "∞": r"$\infty$", "<": "$<$", ">": "$>$",
    "α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "ρ": r"$\rho$", "µ": r"$\mu$", "μ": r"$\mu$", "σ": r"$\sigma$", "δ": r"$\delta$", "Δ": r"$\Delta$",
}  # fmt: skip
TEX_WORDS = dict.fromkeys(("R²dev", "R2_dev"), r"$R^2_{\mathrm{dev}}$")
PAGE_ROWS = 50  # of a table that still fits on a page
FITTED = "\\begin{adjustbox}{max width=\\textwidth, max totalheight=0.8\\textheight}"


@dataclass(frozen=True)
class Table:
    """Cells of text with a header of one or two lines, and the numbers they were made from.

    columns: (heading, second line) of each column, no two the same; alike headings side by side are set once, above
        their second lines
    rows: one text per column; bold: the cells to stress, bool [rows, columns]
    stubs: how many columns at the left name the row; a value of all but the last is set once per run of rows
    numbers: the tidy frame behind it, for the CSV and for `readings.of_table`; notes: lines below the table
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

    def to_frame(self) -> pd.DataFrame:
        """The cells as text, one heading per column."""
        return pd.DataFrame(self.rows, columns=[", ".join(filter(None, column)) for column in self.columns])

    def to_markdown(self) -> str:
        """A pipe table, and the notes below it."""
        bold = self._stressed()
        # on some pages "$" begins a formula
        escaped = [[cell.replace("|", "\\|").replace("$", "\\$") for cell in row] for row in self._merged()]
        cells = [[f"**{cell}**" if bold[i, j] else cell for j, cell in enumerate(row)] for i, row in enumerate(escaped)]
        headings = [", ".join(filter(None, column)).replace("|", "\\|") for column in self.columns]
        align = ["left" if self._left(j) else "right" for j in range(len(self.columns))]
        frame = pd.DataFrame(cells, columns=headings)
        text = frame.to_markdown(index=False, tablefmt="pipe", colalign=align, disable_numparse=True)
        return text + "\n" + "".join(f"\n{note}\n" for note in self.notes)

    def to_html(self) -> str:
        """A table element and its notes, as a part of a page; whatever a cell holds is shown and not obeyed."""
        styler = self._styler(html.escape, "font-weight: bold")
        sides = [{"selector": f".col{j}", "props": "text-align: left"} for j in self._words()]
        text = styler.set_table_styles([{"selector": "th, td", "props": "text-align: right"}, *sides]).to_html(
            sparse_columns=True, exclude_styles=False
        )
        return text + "".join(f"<p>{html.escape(note)}</p>\n" for note in self.notes)

    def _repr_html_(self) -> str:
        """The table in a notebook, where Jupyter would take "$" for the beginning of a formula."""
        return f'<div class="mathjax_ignore tex2jax_ignore">{self.to_html()}</div>'

    def to_tex(self, caption: str = "", label: str = "") -> str:
        """A table with its caption and label, to \\input into a document that uses booktabs and adjustbox.

        It is as wide as the page at most, of one column or two; what is wider is set smaller. A table longer than a page becomes
        several, of which the first has caption and label, and the others "continued" and the same number.
        """
        title = tex(" ".join(caption.split()))
        first, *others = self._pages()
        notes = "".join(f"\\par\\noindent{{\\footnotesize {tex(note)}}}\n" for note in self.notes)
        columns = "@{}" + "".join("l" if self._left(j) else "r" for j in range(len(self.columns))) + "@{}"
        floats = [
            first._float(columns, title, label),
            *(page._float(columns, title and "(continued)", "") for page in others),
        ]
        floats[1:] = [text.replace("\\caption{", "\\addtocounter{table}{-1}\n\\caption[]{") for text in floats[1:]]
        floats[-1] = floats[-1].replace("\\end{table*}", f"{notes}\\end{{table*}}")
        return "% needs booktabs and adjustbox\n" + "".join(floats)

    def _pages(self) -> list[Table]:
        """The table in parts that fit on a page each, cut between groups of rows where that is possible."""
        starts, breaks = [0], self._breaks()
        while len(self.rows) - starts[-1] > PAGE_ROWS:
            full = starts[-1] + PAGE_ROWS
            starts.append(max((row for row in breaks if starts[-1] < row <= full), default=full))
        parts, bold = [slice(*ends) for ends in pairwise([*starts, len(self.rows)])], self._stressed()
        return [replace(self, rows=self.rows[part], bold=bold[part]) for part in parts]

    def _float(self, columns: str, title: str, label: str) -> str:
        """One table* of LaTeX; title: of its caption, as LaTeX sets it."""
        text = self._styler(tex, "textbf:--rwrap").to_latex(
            column_format=columns,
            hrules=True,
            sparse_columns=True,
            multicol_align="c",
            environment="table*",
            position_float="centering",
            caption=title or None,
            label=label or None,
        )
        head, rows, foot = self._parts_of(text)
        head = head.replace("\\begin{tabular}", f"{FITTED}\n\\begin{{tabular}}")
        foot = foot.replace("\\end{tabular}", "\\end{tabular}\n\\end{adjustbox}")
        # LaTeX takes a bracket or a star that begins a row for an option of the rule or row above
        rows = ["{}" * row.startswith(("[", "*")) + row for row in rows]
        breaks = self._breaks()
        spaced = ["\\addlinespace\n" * (i in breaks) + row for i, row in enumerate(rows)]
        return f"{head}{''.join(spaced)}{foot}"

    def _styler(self, escape: Callable[[str], str], bold: str) -> Styler:
        """pandas' printer of the table; bold: its style for cells that are stressed."""
        from pandas.io.formats.style import Styler  # imports jinja2 and its templates

        columns = pd.MultiIndex.from_tuples(self._headings())
        if not any(second for second in columns.get_level_values(0)):
            columns = columns.droplevel(0)
        frame = pd.DataFrame(self._merged(), columns=columns)
        styles = np.where(self._stressed(), bold, "")
        name = hashlib.sha256(repr((self.columns, self.rows)).encode()).hexdigest()[:8]  # several may be on one page
        styler = Styler(frame, uuid=name, cell_ids=False).hide(axis="index").format(escape)
        return styler.format_index(escape, axis=1).apply(lambda _: styles, axis=None)

    def _headings(self) -> list[tuple[str, str]]:
        """(upper, lower) line of the header: a heading that stands alone is in the lower one, right above the cells."""
        spans = [heading for (heading, second), (after, _) in pairwise(self.columns) if second and heading == after]
        return [column if column[0] in spans else ("", ", ".join(filter(None, column))) for column in self.columns]

    def _parts_of(self, tex: str) -> tuple[str, list[str], str]:
        """pandas' LaTeX up to the first row, its rows, and the rest; with thin rules below headings of two lines."""
        lines = tex.splitlines(keepends=True)
        rules, start = [], 1
        for heading, width in self._spans():
            rules += [f"\\cmidrule(lr){{{start}-{start + width - 1}}}"] if heading else []
            start += width
        if rules:
            lines.insert(lines.index("\\toprule\n") + 2, " ".join(rules) + "\n")
        last = lines.index("\\midrule\n")
        end = last + 1 + len(self.rows)
        return "".join(lines[: last + 1]), lines[last + 1 : end], "".join(lines[end:])

    def _spans(self) -> list[tuple[str, int]]:
        """The upper line of the header: headings and how many columns they stand above."""
        spans: list[tuple[str, int]] = []
        for heading, _ in self._headings():
            alike = spans and spans[-1][0] == heading
            spans[-1:] = [(heading, spans[-1][1] + 1)] if alike else [*spans[-1:], (heading, 1)]
        return spans

    def _stressed(self) -> np.ndarray:
        """bool [rows, columns]: the cells that are bold; an empty one is not."""
        filled = np.array([[bool(cell) for cell in row] for row in self.rows], bool).reshape(-1, len(self.columns))
        return filled & (np.False_ if self.bold is None else self.bold)

    def _words(self) -> list[int]:
        return [j for j in range(len(self.columns)) if self._left(j)]

    def _left(self, column: int) -> bool:
        """Columns of numbers end at the right, so that digits stand below each other; words start at the left."""
        if column < self.stubs:
            return True
        cells = [row[column] for row in self.rows if row[column]]
        return bool(cells) and sum(cell[0] in "0123456789−-+.∞" for cell in cells) * 2 < len(cells)

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


def tex(text: str) -> str:
    """Text as LaTeX sets it: signs that mean something there are escaped, and some are set as formulas."""
    result, rest = "", text
    while rest:
        key = next((word for word in TEX_WORDS if rest.startswith(word)), rest[0])
        result += TEX_WORDS.get(key) or TEX.get(key, key)
        rest = rest[len(key) :]
    return result
