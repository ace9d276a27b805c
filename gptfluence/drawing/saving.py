"""The files of a figure and of a table. The same frame and versions give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gptfluence.common.provenance import save
from gptfluence.drawing.style import STYLE, style
from gptfluence.drawing.typeset import Table


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
    """Write name.csv (numbers, tidy), .tex (to include), .md, .html (a part of a page) and .json; returns the paths.

    A data frame is printed as it is, with four significant digits. No file is touched whose content would not change.
    """
    table = table if isinstance(table, Table) else Table.from_frame(table)
    contents = {
        ".csv": _csv(table.numbers),
        ".tex": table.to_tex(caption, label=f"tab:{name}").encode(),
        ".md": table.to_markdown().encode(),
        ".html": table.to_html().encode(),
    }
    return save(folder, name, contents, caption=caption, provenance=provenance)


def _render(figure: Figure, kind: str) -> bytes:
    nothing = {"pdf": ("Creator", "Producer", "CreationDate"), "png": ("Software",)}[kind]  # dates, tools' versions
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=dict.fromkeys(nothing), dpi=STYLE["savefig.dpi"])
    return buffer.getvalue()


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n", float_format="%.9g").encode()
