"""What became of each planned output: made, failed in a cell, or kept waiting by a step that failed before it.

Nothing is guessed: a notebook that ends well leaves its executed copy, one that fails leaves a file that names the cell,
and steps before it leave their logs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptfluence.common import files
from gptfluence.workflow.catalogue import Output, Runs


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
    """What became of the planned outputs, as the files below `build` (build/<study>) tell."""
    return [_outcome(name, output, build) for name, output in wanted.items()]


def summary(found: Iterable[Outcome], study: str) -> str:
    """One line on all outputs, and one on each that failed or was kept waiting."""
    found = list(found)
    made = sum(outcome.state == "made" for outcome in found)
    lines = [f"study {study}: {made} of {len(found)} outputs made"]
    lines += [f"  {outcome}" for outcome in found if outcome.state in ("failed", "blocked")]
    waiting = [outcome.output for outcome in found if outcome.state == "not run"]
    lines += [f"  not run: {', '.join(waiting)}"] if waiting else []
    return "\n".join(lines)


def _outcome(name: str, output: Output, build: Path) -> Outcome:
    executed = build / "notebooks" / f"{name}.ipynb"
    log = build / "logs" / f"notebook-{name}.log"
    failure = _read(build / "failures" / f"{name}.json")
    if failure is not None:
        cause, cell = str(failure.get("cause", "")), failure.get("cell")
        return Outcome(name, output.notebook, "failed", cause, cell, str(log) if log.is_file() else "")
    if executed.is_file():
        return Outcome(name, output.notebook, "made")
    for runs in output.fits:
        blocked = _failed_step(runs, build, unseen=output.unseen)
        if blocked is not None:
            cause, path = blocked
            return Outcome(name, output.notebook, "blocked", cause, None, str(path))
    if log.is_file():  # started, and ended without a word: killed, or out of memory
        cause = f"it left no result; its log ends with: {_last_line(log) or 'nothing'}"
        return Outcome(name, output.notebook, "failed", cause, None, str(log))
    return Outcome(name, output.notebook, "not run")


def _failed_step(runs: Runs, build: Path, *, unseen: bool) -> tuple[str, Path] | None:
    """The first step for these runs that left a log but no result: what its log says last, and the log."""
    for step in ("collect", "unseen", "fit") if unseen else ("collect", "fit"):
        log = build / "logs" / f"{step}-{runs.name}.log"
        if log.is_file() and not (build / step / f"{runs.name}.json").is_file():
            return f"{step} {runs.name}: {_last_line(log) or 'ended without a message'}", log
    return None


def _last_line(log: Path) -> str:
    """What went wrong, as far as the log says: its last line that begins with "error:", else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or [""])[-1]


def _read(path: Path) -> dict[str, Any] | None:
    """None if there is no such file; one that cannot be read still says that something failed."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"cause": f"{path} cannot be read"}
    return found if isinstance(found, dict) else {"cause": f"{path} cannot be read"}
