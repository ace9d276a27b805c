"""What became of each output: its notebook made it, failed in a cell, or waited for an earlier step that failed.

The files that the workflow leaves say so: a notebook that ends well leaves its executed copy, a notebook that fails leaves
a file that names the cell, and every step leaves a log.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptfluence.common import files
from gptfluence.workflow.catalogue import leader, notebook_of
from gptfluence.workflow.row import Output, Runs


@dataclass(frozen=True)
class Outcome:
    """state: "made", "failed", "blocked" (a step before it failed) or "not run"; `cause` says why if it was not made."""

    output: str
    notebook: str
    state: str
    cause: str = ""
    cell: int | None = None  # as the executed notebook counts them: In [3]
    log: str = ""  # a path, from the folder that the workflow runs in

    def __str__(self) -> str:
        where = f"notebook {self.notebook}" + (f", cell {self.cell}" if self.cell is not None else "")
        log = f" (log: {self.log})" if self.log else ""
        if self.state == "failed":
            return f"{self.output} failed: {where}: {self.cause}{log}"
        if self.state == "blocked":
            return f"{self.output} could not be made: {where}, needs a step that failed: {self.cause}{log}"
        return f"{self.output}: {where}: {self.state}"


def write_failure(path: Path, notebook: str, cell: int | None, cause: str) -> None:
    """Keep where and why a notebook failed, for the page and the summary."""
    files.write_json(path, {"notebook": notebook, "cell": cell, "cause": cause})


def outcomes(wanted: Mapping[str, Output], build: Path) -> list[Outcome]:
    """What became of these outputs, according to the files in `build` (build/<study>)."""
    return [_outcome(name, output, build) for name, output in wanted.items()]


def summary(found: Iterable[Outcome], study: str) -> str:
    """One line on all outputs, and a line for each output that failed or waited in vain."""
    found = list(found)
    made = sum(outcome.state == "made" for outcome in found)
    lines = [f"study {study}: {made} of {len(found)} outputs made"]
    lines += [f"  {outcome}" for outcome in found if outcome.state in ("failed", "blocked")]
    waiting = [outcome.output for outcome in found if outcome.state == "not run"]
    lines += [f"  not run: {', '.join(waiting)}"] if waiting else []
    return "\n".join(lines)


def _outcome(name: str, output: Output, build: Path) -> Outcome:
    notebook, run = notebook_of(output.row), leader(output.row).name
    executed = build / "notebooks" / f"{run}.ipynb"
    log = build / "logs" / f"notebook-{run}.log"
    failure = _read(build / "failures" / f"{run}.json")
    if failure is not None:
        cause, cell = str(failure.get("cause", "")), failure.get("cell")
        return Outcome(name, notebook, "failed", cause, cell, str(log) if log.is_file() else "")
    if executed.is_file():
        return Outcome(name, notebook, "made")
    for runs in output.needs:
        blocked = _failed_step(runs, build, unseen=bool(output.row.unseen))
        if blocked is not None:
            cause, path = blocked
            return Outcome(name, notebook, "blocked", cause, None, str(path))
    if log.is_file():  # it started and ended without a message: killed, or out of memory
        cause = f"it left no result; its log ends with: {_last_line(log) or 'nothing'}"
        return Outcome(name, notebook, "failed", cause, None, str(log))
    return Outcome(name, notebook, "not run")


def _failed_step(runs: Runs, build: Path, *, unseen: bool) -> tuple[str, Path] | None:
    """The first step for these runs that left a log but no result: the last message of its log, and the log's path."""
    for step in ("collect", "unseen", "fit") if unseen else ("collect", "fit"):
        log = build / "logs" / f"{step}-{runs.name}.log"
        if log.is_file() and not (build / step / f"{runs.name}.json").is_file():
            return f"{step} {runs.name}: {_last_line(log) or 'ended without a message'}", log
    return None


def _last_line(log: Path) -> str:
    """The last line of a log that begins with "error:"; if there is none, its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or [""])[-1]


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a file of failure; None if there is no file. A file that cannot be read still means a failure."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"cause": f"{path} cannot be read"}
    return found if isinstance(found, dict) else {"cause": f"{path} cannot be read"}
