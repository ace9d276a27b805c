"""An import as people see it: a line of progress, a table of what became of every run, and an error if it was nothing."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from gptfluence.common.errors import DataError
from gptfluence.common.progress import SECONDS_BETWEEN_LINES
from gptfluence.published.importing import ImportedRun, ImportReport, import_published

WIDTH = 140  # of the table where there is no terminal
RIGHT = ("seed", "steps", "tests")


def run(path: Path, artifacts: Path) -> ImportReport:
    """Import, and print the table. Raises DataError if not one run was imported or is there already."""
    console = Console(file=sys.stderr)
    done, said = 0, time.monotonic()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task(f"importing {path.name}", total=None)

        def on_run(_: ImportedRun, total: int) -> None:
            nonlocal done, said
            done += 1
            bar.update(shown, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                print(f"importing {path.name}: {done} of {total} runs", file=sys.stderr, flush=True)

        report = import_published(path, artifacts, on_run=on_run)
    out = Console()
    show(report, out if out.is_terminal else Console(width=WIDTH))
    if report.count("skipped") == len(report.runs):
        raise DataError(f"{path}: nothing was imported; the first reason: {report.runs[0].note}")
    return report


def show(report: ImportReport, console: Console) -> None:
    """Print a table of the runs for each series, then the notes on texts, then the totals."""
    series: dict[str, list[dict[str, str]]] = {}
    for imported in report.runs:
        row = imported.to_row()
        series.setdefault(row.pop("series"), []).append(row)
    for name, rows in series.items():
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in rows[0]:
            table.add_column(column, justify="right" if column in RIGHT else "left", overflow="fold")
        for row in rows:
            table.add_row(*row.values())
        console.print(f"\n{name}", markup=False, highlight=False, style="bold")
        console.print(table, markup=False, highlight=False)
    console.print()
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    counts = ", ".join(f"{report.count(result)} {result}" for result in ("imported", "there already", "skipped"))
    console.print(f"{len(report.runs)} runs: {counts}", highlight=False)
