"""What all benchmarks share: sides that are timed in turn, and one JSON file for each benchmark with everything found.

A benchmark yields comparisons. A comparison has sides, for example an obvious loop and this package, and each side has the
seconds of every repetition. The printed tables, the JSON files and the tables of benchmarks/README.md are all made from them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from gptfluence.common import files, provenance
from gptfluence.common.machine import cores

RESULTS = Path(__file__).resolve().parent / "results"
ALSO_COMPARED = ("captum", "dattri-llm", "pandas")  # beside the packages whose versions every output names
QUIET = 0.1  # at most so many cores may be busy with other work on a machine that counts as quiet


@dataclass(frozen=True)
class Side:
    """One way to do the work. `also`: other numbers of it by what they are, for example {"peak GiB": 0.4}."""

    label: str
    repetitions: list[float]  # in the comparison's unit
    also: dict[str, float | None] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return median(self.repetitions)


@dataclass(frozen=True)
class Comparison:
    """Sides that do the same work, measured side by side.

    unit: of every repetition, for example "seconds a step"
    reference: label of the side that the others are compared with; "" for none, and then there are no ratios
    slowdown: a ratio says how many times longer a side takes than the reference, not how many times faster it is
    """

    title: str
    unit: str
    sides: list[Side]
    reference: str = ""
    slowdown: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def ratio_is(self) -> str:
        """How ratios are to be read; "" if there are none."""
        if not self.reference:
            return ""
        return f"it / {self.reference}" if self.slowdown else f"{self.reference} / it"

    def ratio(self, side: Side) -> float | None:
        """Of the medians. None if nothing is compared."""
        if not self.reference:
            return None
        (other,) = (other for other in self.sides if other.label == self.reference)
        return side.median / other.median if self.slowdown else other.median / side.median

    def facts(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        sides = [
            {
                "label": side.label,
                "repetitions": side.repetitions,
                "median": side.median,
                "unit": self.unit,
                "ratio": self.ratio(side),
                "also": side.also,
            }
            for side in self.sides
        ]
        return {
            "title": self.title,
            "unit": self.unit,
            "reference": self.reference,
            "ratio_is": self.ratio_is,
            "sides": sides,
            "notes": self.notes,
        }


class Rows(NamedTuple):
    """A table of one comparison: `head`, and as many cells in each row."""

    head: list[str]
    cells: list[list[str]]


def rows_of(facts: Mapping[str, Any]) -> Rows:
    """The table of one comparison as it stands in the JSON file; printed and written to the README alike."""
    sides = facts["sides"]
    also = list(dict.fromkeys(name for side in sides for name in side["also"]))
    ratio = [facts["ratio_is"]] if facts["ratio_is"] else []
    cells = [
        [side["label"], number(side["median"])]
        + [number(side["ratio"]) for _ in ratio]
        + [number(side["also"].get(name)) for name in also]
        for side in sides
    ]
    return Rows(["", facts["unit"], *ratio, *also], cells)


def number(value: float | None) -> str:
    """Three digits are all that times are worth."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_text(facts: Mapping[str, Any]) -> str:
    """A comparison for the terminal."""
    table = rows_of(facts)
    columns = list(zip(table.head, *table.cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = ["", facts["title"], *(f"({note})" for note in facts["notes"])]
    for row in (table.head, *table.cells):
        first, *rest = (cell.ljust(width) if k == 0 else cell.rjust(width) for k, (cell, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        lines.append("   ".join((first, *rest)).rstrip())
    return "\n".join(lines)


def as_markdown(facts: Mapping[str, Any]) -> str:
    """A comparison for the README."""
    table = rows_of(facts)
    lines = [f"{facts['title']}" + "".join(f"; {note}" for note in facts["notes"]) + ":", ""]
    lines.append("| " + " | ".join(table.head) + " |")
    lines.append("|---|" + "---:|" * (len(table.head) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in table.cells]
    return "\n".join(lines) + "\n"


# --- timing ------------------------------------------------------------------------------------------------------------


def alternate(
    ways: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call every way in turn, `repeats` times over, so that other work on the machine slows all of them alike.

    warm_up: call each once before, uncounted. Returns the seconds of every call by the way's name.
    """
    if warm_up:
        for way in ways.values():
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(timed(way, clock)[0])
    return seconds


def timed(way: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    """Seconds of one call, and what it returned."""
    started = clock()
    result = way()
    return clock() - started, result


class Apart(NamedTuple):
    """A call in a process of its own."""

    seconds: float  # wall time; the start of the process and its imports are counted
    peak: float  # memory, GiB
    result: Any


def measured_apart(function: Callable, *arguments: object) -> Apart:
    """Call a function in a new process. Ends the program where the call fails."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    started = time.perf_counter()
    process = context.Process(target=_call, args=(results, function, arguments))
    process.start()
    process.join()
    seconds = time.perf_counter() - started
    if process.exitcode != 0:
        raise SystemExit(f"{function.__name__} ended with code {process.exitcode}")
    peak, result = results.get()
    return Apart(seconds, peak, result)


def _call(results: Any, function: Callable, arguments: tuple) -> None:
    result = function(*arguments)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss is in bytes there, in KiB elsewhere
    results.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, result))


# --- a benchmark and its file ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder.

    name: of its JSON file
    description: for --help
    add_options: adds what may be changed, with the values of a full measurement as defaults
    quick: other values of these options, with which it takes seconds
    measure: from the options, comparisons as they are found. It ends the program where sides disagree.
    """

    name: str
    description: str
    add_options: Callable[[argparse.ArgumentParser], None]
    quick: Mapping[str, Any]
    measure: Callable[[argparse.Namespace], Iterable[Comparison]]

    def main(self, arguments: list[str] | None = None) -> None:
        """Measure and print; with --results write FOLDER/NAME.json, too, once everything was measured."""
        parser = argparse.ArgumentParser(
            description=self.description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--quick", action="store_true", help=f"take seconds: {dict(self.quick)}")
        parser.add_argument("--results", type=Path, help=f"write {self.name}.json into this folder, too")
        self.add_options(parser)
        if parser.parse_args(arguments).quick:
            parser.set_defaults(**self.quick)
        options = parser.parse_args(arguments)
        load, started = Load(), time.perf_counter()
        found = []
        for comparison in self.measure(options):
            found.append(comparison.facts())
            print(as_text(found[-1]), flush=True)
        if options.results is not None:
            chosen = {name: value for name, value in vars(options).items() if name not in ("quick", "results")}
            seconds = time.perf_counter() - started
            content = {
                "comparisons": found,
                "options": chosen,
                "mode": "quick" if options.quick else "full",
                "seconds": round(seconds, 1),
            }
            write(options.results, self.name, content, load)


def write(folder: Path, name: str, content: Mapping[str, Any], load: Load | None) -> Path:
    """Write `content` into FOLDER/NAME.json, with the machine, the versions and the commit that it was measured with.

    load: since the measurement began; None if it was measured at another time
    """
    path = folder / f"{name}.json"
    facts = {
        "benchmark": name,
        **content,
        "machine": machine(load),
        "versions": versions(),
        **provenance.git_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files.write_json(path, facts)
    return path


def versions() -> dict[str, str]:
    """Of Python, the packages that every output names, and those that are compared with."""
    found = provenance.versions()
    for package in ALSO_COMPARED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


class Load:
    """How busy the machine was with other work since this object was made."""

    def __init__(self) -> None:
        self.average = list(os.getloadavg())  # processes that ran or waited, in the last 1, 5 and 15 minutes
        self._started = self._now()

    @staticmethod
    def _now() -> tuple[float, float | None, float]:
        """Seconds: wall time, processor time of all processes (None where /proc does not say), of this one and its own."""
        own = sum(os.times()[:4])
        try:
            with open("/proc/stat", encoding="ascii") as file:
                user, nice, system, _, _, irq, softirq, *_ = map(int, file.readline().split()[1:])
        except (OSError, ValueError):
            return time.perf_counter(), None, own
        return time.perf_counter(), (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK"), own

    def others(self) -> float | None:
        """How many cores other processes kept busy, on average. None where the system does not say."""
        (began, all_before, own_before), (now, all_now, own_now) = self._started, self._now()
        if all_before is None or all_now is None or now <= began:
            return None
        return max(0.0, (all_now - all_before) - (own_now - own_before)) / (now - began)


def machine(load: Load | None) -> dict[str, Any]:
    """What it was measured on, and whether that was quiet (None where `load` does not say)."""
    facts = {
        "processor": processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": platform.platform(),
    }
    if load is None:
        return {**facts, "load_average": None, "cores_busy_with_other_work": None, "quiet": None}
    others = load.others()
    return {
        **facts,
        "load_average": [round(value, 2) for value in load.average],
        "cores_busy_with_other_work": None if others is None else round(others, 2),
        "quiet": (load.average[0] if others is None else others) <= QUIET,
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, encoding="utf-8", check=False
        )
        if asked.returncode == 0:
            return asked.stdout.strip()
    return platform.processor() or platform.machine()
