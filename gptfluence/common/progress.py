"""How far a recording is: a bar with rate and time left in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts steps over all runs that are recorded at once. Use as a context manager."""

    def __init__(self, title: str, *, total: int, runs: int):
        self._title, self._total, self._runs = title, total, runs
        self._done: dict[str, int] = {}
        self._console = Console(file=sys.stderr)
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        self._started = self._said = time.monotonic()
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(self._title, total=self._total, state="")
            self._bar.start()
        else:
            self._say(f"{self._title}: {self._runs} runs to record; stop at any time, a rerun goes on")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None:
            self._say(f"{self._title}: {self._runs} runs recorded in {_duration(time.monotonic() - self._started)}")

    def step(self, run: str, step: int) -> None:
        """Run `run` has measured step `step` (0: before the first update)."""
        self._done[run] = step + 1
        done = sum(self._done.values())
        now = time.monotonic()
        if self._bar is None and now - self._said < SECONDS_BETWEEN_LINES:
            return
        rate = done / max(now - self._started, 1e-9)
        begun = len(self._done)
        state = f"run {begun}/{self._runs}  {rate:.3g} steps/s  left {_duration((self._total - done) / rate)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, state=state)
        else:
            self._said = now
            self._say(f"{self._title}: {100 * done // self._total}%  {state}")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
