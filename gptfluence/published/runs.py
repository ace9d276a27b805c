"""Published runs, processed or raw: which there are in an archive, and their numbers.

Processed: `runs/<task>/<run name>/` with `train_samples_id.json` and `all_<metric>_trajectory.out`. Raw: a folder with
`log.out` and `loss_<task>/loss_<task>_checkpoint-<k>.out` (or `metric_...`), whose ids count from 0 in each task.
Run names end in `_seed-<s>`. What is wrong with a run is a DataError that names the file; no number is guessed.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gptfluence.common.errors import DataError
from gptfluence.published.archive import Archive
from gptfluence.published.text import TEXTS, TextReader, read_lines

METRICS = {"loss": "loss", "bleu": "bleu", "rougeL": "rouge_l"}  # as published: as here
LARGEST = {"loss": float("inf"), "bleu": 100.0, "rougeL": 1.0}
SAMPLES, LOG = "train_samples_id.json", "log.out"

_NAME = re.compile(r"^(?P<series>.+)_seed-(?P<seed>\d+)$")
_MODEL = re.compile(r"_model-([^_]+)")
_TRAJECTORY = re.compile(r"^all_(\w+)_trajectory\.out$")
_CHECKPOINT = re.compile(r"^(?P<kind>loss|metric)_(?P<task>\w+)_checkpoint-(?P<step>\d+)\.out$")
_LINE_ID = re.compile(rb'^\s*\{\s*"id"\s*:\s*(\d+)\s*,', re.MULTILINE)
_LOGGED = re.compile(r"\{[^{}]*'samples_id'[^{}]*\}")
ABSENT = 5  # so many absent ids or steps are named


@dataclass(frozen=True)
class FoundRun:
    """A folder of an archive that holds a run. `files`: those that are read, relative to it."""

    folder: str
    layout: str  # "processed" or "raw"
    files: tuple[str, ...] = field(repr=False)

    @property
    def name(self) -> str:
        return self.folder.rsplit("/", 1)[-1]

    @property
    def series(self) -> str:
        """The name without its seed: runs of one series differ by nothing else."""
        return self._match["series"]

    @property
    def seed(self) -> int:
        return int(self._match["seed"])

    @property
    def _match(self) -> re.Match:
        match = _NAME.match(self.name)
        if match is None:
            raise DataError(f"run name {self.name!r} does not end in _seed-<number>; rename its folder")
        return match

    @property
    def model(self) -> str:
        """As the name says, e.g. pythia-410m-deduped."""
        match = _MODEL.search(self.name)
        if match is None:
            raise DataError(f"run name {self.name!r} does not say the GPT (..._model-<name>_...)")
        return match[1]

    @property
    def kind(self) -> str:
        """A key of `TEXTS`: from the folder above the run's, or the beginning of its name."""
        above = self.folder.split("/")[-2] if "/" in self.folder else ""
        if "mislabelled" in self.name or "mislabelled" in above:
            return "mislabelled"
        start = self.name.removeprefix("output_")
        told = {kind for kind in TEXTS if above == kind or start.startswith(f"{kind}_")}
        if len(told) != 1:
            said = "different tasks" if told else "no task"
            raise DataError(
                f"its name and the folder above it say {said} ({', '.join(sorted(told)) or above or 'no folder'}); the "
                f"place is <task>/<run name>, with a task of {', '.join(TEXTS)}"
            )
        return told.pop()

    def path(self, file: str) -> str:
        return f"{self.folder}/{file}" if self.folder else file

    def fingerprint(self, archive: Archive) -> str:
        """Twelve hexadecimal digits of the SHA-256 of all that is read: names and content."""
        total = hashlib.sha256()
        for file in self.files:
            total.update(f"{file}\0".encode() + hashlib.sha256(archive.read(self.path(file))).digest())
        return total.hexdigest()[:12]


def find_runs(names: Iterable[str]) -> list[FoundRun]:
    """The runs among the files of these names, processed ones first, then by folder."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in names:
        *parents, base = name.split("/")
        trajectory, checkpoint = _TRAJECTORY.match(base), _CHECKPOINT.match(base)
        layout = "processed"
        if checkpoint and parents and parents[-1] == f"{checkpoint['kind']}_{checkpoint['task']}":
            layout, base = "raw", f"{parents.pop()}/{base}"
        elif base == LOG:
            layout = "raw"
        elif base != SAMPLES and not (trajectory and trajectory[1] in METRICS):
            continue
        found.setdefault((layout, "/".join(parents)), []).append(base)
    return [FoundRun(folder, layout, tuple(sorted(files))) for (layout, folder), files in sorted(found.items())]


@dataclass(frozen=True)
class Outline:
    """What a run is, read without its numbers.

    batches: int [published steps, batch]; row t-1 is published step t
    learning_rate, batch_loss: float32 [published steps]; None for a processed run, which has none
    tests: ids of the test examples with a first value (of the loss; if there is none, of the first metric there is)
    """

    batches: np.ndarray
    learning_rate: np.ndarray | None
    batch_loss: np.ndarray | None
    tests: frozenset[int]


def outline(archive: Archive, run: FoundRun, texts: TextReader) -> Outline:
    """Raises DataError if the run has no complete curriculum or no measurement at all, or names unknown examples."""
    if run.layout == "processed":
        if SAMPLES not in run.files:
            raise DataError(f"{SAMPLES} is missing, so nothing says what was trained on")
        rows = read_lines(archive.read(run.path(SAMPLES)), SAMPLES)
        for number, row in enumerate(rows, start=1):
            if type(row.get("step")) is not int or not _is_batch(row.get("samples_id")):
                raise DataError(f'{SAMPLES}, line {number}: must be {{"step": whole number, "samples_id": [ids]}}')
        steps, rates, losses = [row["step"] for row in rows], None, None
        batches = [row["samples_id"] for row in rows]
    else:
        rows = _log(archive, run)
        steps, batches = [row["step"] for row in rows], [row["samples_id"] for row in rows]
        rates = np.array([row["learning_rate"] for row in rows], np.float32)
        losses = np.array([row["loss"] for row in rows], np.float32)
    where = SAMPLES if run.layout == "processed" else LOG
    order = _in_order(steps, range(1, len(steps) + 1), "step", where)
    if len(steps) < 2:
        raise DataError(f"{where}: one step only; an imported run begins at step 1, so it needs two")
    if len({len(batch) for batch in batches}) != 1:
        raise DataError(f"{where}: batches of different sizes ({sorted({len(batch) for batch in batches})})")
    ids = np.array(batches)[order]
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= len(texts.pool):
        wrong = low if low < 0 else high
        raise DataError(f"{where}: example {wrong} is out of range; {texts.texts.train} has 0 to {len(texts.pool) - 1}")
    pick = lambda values: None if values is None else values[order]  # noqa: E731
    return Outline(ids, pick(rates), pick(losses), frozenset(_measured(archive, run, texts)))


def trajectories(archive: Archive, run: FoundRun, texts: TextReader, steps: int) -> dict[str, dict[int, np.ndarray]]:
    """metric -> test id -> float64 [steps], row t-1 being published step t; loss in nats, BLEU 0-100, ROUGE-L 0-1.

    Raises DataError if a value is missing, there twice, out of range or no finite number.
    """
    read = _processed if run.layout == "processed" else _raw
    values = read(archive, run, texts, steps)
    for metric, found in values.items():
        for test in found:
            if test >= len(texts.tests):
                raise DataError(
                    f"{metric}: test example {test} is out of range; {texts.texts.test} has 0 to {len(texts.tests) - 1}"
                )
    return {METRICS[metric]: values[metric] for metric in METRICS if metric in values}


def _measured(archive: Archive, run: FoundRun, texts: TextReader) -> list[int]:
    """Ids of the tests that the run's most telling file has, without reading values."""
    if run.layout == "raw":
        return [
            _test_id(local, task, texts, run.path(first))
            for task, files in _checkpoints(run, texts, "loss").items()
            for first in [files[min(files)]]
            for local in _column(read_lines(archive.read(run.path(first)), first), "id", first)
        ]
    for metric in METRICS:
        if (file := f"all_{metric}_trajectory.out") in run.files:
            content = archive.read(run.path(file))
            ids = [int(digits) for digits in _LINE_ID.findall(content)]
            if len(ids) != content.count(b"\n") + (not content.endswith(b"\n")):
                ids = _column(read_lines(content, file), "id", file)  # type: ignore[assignment]  # other order of keys
            return ids
    raise DataError("no trajectory file (all_loss_trajectory.out, ...)")


# --- processed -------------------------------------------------------------------------------------------------------


def _processed(archive: Archive, run: FoundRun, texts: TextReader, steps: int) -> dict[str, dict[int, np.ndarray]]:
    values: dict[str, dict[int, np.ndarray]] = {}
    expected = list(range(1, steps + 1))
    for metric in METRICS:
        file = f"all_{metric}_trajectory.out"
        if file not in run.files:
            continue
        rows = read_lines(archive.read(run.path(file)), file)
        ids = _column(rows, "id", file)
        _refuse_twice(ids, "test example", file)
        found = values[metric] = {}
        for number, row in enumerate(rows):
            where = f"{file}, test example {ids[number]}"
            points = row.get("loss_trajectory")  # called so whatever the metric
            if not isinstance(points, list) or not all(type(point) is dict for point in points):
                raise DataError(f'{where}: must have "loss_trajectory": [{{"step": 1, "loss": ...}}, ...]')
            at = _column(points, "step", where)
            numbers = _numbers(_column(points, "loss", where, whole=False), metric, where)
            if at != expected:
                numbers = numbers[_in_order(at, expected, "step", where)]
            found[ids[number]] = numbers  # type: ignore[index]
    return values


# --- raw -------------------------------------------------------------------------------------------------------------


def _log(archive: Archive, run: FoundRun) -> list[dict]:
    """The training steps of a log; everything else in it is passed over."""
    if LOG not in run.files:
        raise DataError(f"{LOG} is missing, so nothing says what was trained on")
    rows = []
    # a progress bar returns the carriage and writes over itself
    for number, line in enumerate(re.split(r"[\r\n]", archive.read(run.path(LOG)).decode("utf-8", "replace")), start=1):
        for text in _LOGGED.findall(line):
            where = f"{LOG}, line {number}"
            try:
                row = ast.literal_eval(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                raise DataError(f"{where}: a training step that cannot be read: {text[:80]!r}") from None
            step = row.get("step") if isinstance(row, dict) else None
            if type(step) is not int or not _is_batch(row.get("samples_id")):
                raise DataError(f"{where}: a training step must have 'step': whole number, 'samples_id': [ids]")
            for key in ("loss", "learning_rate"):
                if type(row.get(key)) not in (int, float):
                    raise DataError(f"{where}: a training step must have {key!r}: number")
            rows.append(row)
    if not rows:
        raise DataError(f"{LOG}: no training step in it (a line with {{'samples_id': [...], 'step': 1, ...}})")
    return rows


def _checkpoints(run: FoundRun, texts: TextReader, metric: str) -> dict[str, dict[int, str]]:
    """task -> step -> the file with this metric; the loss comes from `loss_<task>` where there is one."""
    by_kind: dict[str, dict[str, dict[int, str]]] = {"loss": {}, "metric": {}}
    for file in run.files:
        if match := _CHECKPOINT.match(file.rsplit("/", 1)[-1]):
            task, step = match["task"], int(match["step"])
            if task not in texts.texts.tests:
                known = ", ".join(texts.texts.tests)
                raise DataError(f"{file}: task {task!r} is not one that these runs are tested on ({known})")
            files = by_kind[match["kind"]].setdefault(task, {})
            if step in files:
                raise DataError(f"{file}: checkpoint {step} is there twice")
            files[step] = file
    chosen = {**by_kind["metric"], **by_kind["loss"]} if metric == "loss" else by_kind["metric"]
    if metric == "loss" and not chosen:
        raise DataError("no measurement (loss_<task>/loss_<task>_checkpoint-<k>.out, ...)")
    return chosen


def _raw(archive: Archive, run: FoundRun, texts: TextReader, steps: int) -> dict[str, dict[int, np.ndarray]]:
    values: dict[str, dict[int, np.ndarray]] = {}
    cached: dict[str, list[dict]] = {}
    loss, others = _checkpoints(run, texts, "loss"), _checkpoints(run, texts, "metric")
    for task in loss:
        read: dict[str, dict[int, str]] = {}  # metric -> its files
        read["loss"] = loss[task]
        for metric in METRICS:
            if metric != "loss" and task in others:
                read[metric] = others[task]
        for files in read.values():
            folder = files[min(files)].split("/")[0]
            _in_order(list(files), range(1, steps + 1), "checkpoint", folder)
        cached.clear()
        for metric, files in read.items():
            first: list[int] = []
            table: np.ndarray | None = None
            for step in range(1, steps + 1):
                file = files[step]
                if file not in cached:
                    cached[file] = read_lines(archive.read(run.path(file)), file)
                rows = cached[file]
                if step == 1:
                    if all(metric not in row for row in rows):
                        break  # not published for this task
                    first = _column(rows, "id", file)  # type: ignore[assignment]
                    _refuse_twice(first, "test example", file)
                    table = np.empty((steps, len(first)))
                ids = _column(rows, "id", file)
                numbers = _numbers(_column(rows, metric, file, whole=False), metric, file)
                if ids != first:
                    numbers = numbers[_in_order(ids, first, "test example", file)]
                table[step - 1] = numbers  # type: ignore[index]
            if table is not None:
                found = values.setdefault(metric, {})
                for position, local in enumerate(first):
                    found[_test_id(local, task, texts, file)] = table[:, position]
    return values


def _test_id(local: int, task: str, texts: TextReader, where: str) -> int:
    first, last = texts.texts.tests[task]
    if not 0 <= local <= last - first:
        raise DataError(f"{where}: test example {local} is out of range; {task} has 0 to {last - first}")
    return first + local


# --- both ------------------------------------------------------------------------------------------------------------


def _is_batch(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(item) is int for item in value)


def _column(rows: Sequence[dict], key: str, where: str, *, whole: bool = True) -> list[int] | list[float]:
    """The value of `key` in every row; whole numbers, or numbers. Raises DataError that names a row without."""
    values = [row.get(key) for row in rows]
    allowed = {int} if whole else {int, float}
    if not set(map(type, values)) <= allowed:
        number, wrong = next((n, value) for n, value in enumerate(values, start=1) if type(value) not in allowed)
        kind = "whole number" if whole else "number"
        raise DataError(f"{where}, entry {number}: {key!r} must be a {kind}, not {wrong!r}")
    if whole and min(values, default=0) < 0:  # type: ignore[type-var]
        raise DataError(f"{where}: {key!r} must not be negative ({min(values)})")  # type: ignore[type-var]
    return values  # type: ignore[return-value]


def _numbers(values: Sequence[float], metric: str, where: str) -> np.ndarray:
    """float64, checked: finite, and in the unit that the metric is published in."""
    try:
        numbers = np.array(values, np.float64)
    except OverflowError:  # a whole number beyond float64
        numbers = np.array([np.inf])
    slack = 1e-6  # sums of rounded shares
    wrong = ~(np.isfinite(numbers) & (numbers >= -slack) & (numbers <= LARGEST[metric] + slack))
    if wrong.any():
        position = int(wrong.argmax())
        raise DataError(
            f"{where}: {metric} must be a finite number from 0 to {LARGEST[metric]:g}, not {numbers[position]} (entry "
            f"{position + 1})"
        )
    return numbers


def _refuse_twice(ids: Sequence[float], kind: str, where: str) -> None:
    if len(set(ids)) != len(ids):
        seen: set[float] = set()
        twice = next(number for number in ids if number in seen or seen.add(number))
        raise DataError(f"{where}: {kind} {twice} is there twice")


def _in_order(found: Sequence[float], expected: Iterable[int], kind: str, where: str) -> list[int]:
    """Positions that put `found` into the order of `expected`. Raises DataError unless both hold the same, once."""
    _refuse_twice(found, kind, where)
    place = {number: position for position, number in enumerate(found)}
    expected = list(expected)
    absent = [number for number in expected if number not in place]
    if absent:
        shown = ", ".join(map(str, absent[:ABSENT])) + (", ..." if len(absent) > ABSENT else "")
        raise DataError(f"{where}: {kind} {shown} missing ({len(absent)} of {len(expected)})")
    if len(place) > len(expected):
        beyond = sorted(set(place) - set(expected))
        raise DataError(f"{where}: {kind} {beyond[0]} is one too many; {len(expected)} were expected")
    return [place[number] for number in expected]
