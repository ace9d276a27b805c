"""The runs that were published with the paper (Hugging Face data set ernie-research/GPTDynamics), in the store.

Published data begins at step 1, after the first update, and has nothing for step 0. So row 0 of an imported trajectory is
published step 1, and an imported curriculum begins with the batch of published step 2; the first batch is never used.
A learning rate or batch loss that was not published is nan.

A run is stored as `seed-<s>` in a folder for its task, GPT, series (its name without seed) and pool. Which runs fit and
which are held out is decided when they are loaded, so other splits need no new import. An instruction-tuned run becomes
one run for each task that it was tested on, all with the same curriculum.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from gptfluence.common import files
from gptfluence.common.errors import ArtifactError, ConfigurationError, DataError
from gptfluence.common.settings import expanded
from gptfluence.models.settings import PublishedModel
from gptfluence.published.archive import Archive, open_archive
from gptfluence.published.runs import FoundRun, Outline, find_runs, outline, trajectories
from gptfluence.published.text import TextReader
from gptfluence.recording import store
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.recording.settings import Runs
from gptfluence.tasks.base import Task, TaskPool, fingerprint

IMPORT = "gptfluence import-published PATH"


@dataclass
class ImportedRun:
    """What became of one published run. result: "imported", "there already" or "skipped" (`note` says why)."""

    run: FoundRun
    result: str = "imported"
    kind: str = ""  # a key of TEXTS
    pool: str = ""  # "seen" or "unseen"
    steps: int = 0  # updates, the first not counted
    tests: int = 0
    metrics: list[str] = field(default_factory=list)
    note: str = ""

    def to_row(self) -> dict[str, str]:
        """For a table: every value in print."""
        shown = {"steps": self.steps, "tests": self.tests, "metrics": " ".join(self.metrics)}
        series, _, seed = self.run.name.rpartition("_seed-")
        return {
            "series": series or self.run.folder or ".",
            "task": self.kind or "?",
            "seed": seed if series else "?",
            "layout": self.run.layout,
            "pool": self.pool,
            "result": self.result,
            **{name: str(value) if value else "" for name, value in shown.items()},
            "note": self.note,
        }


@dataclass
class ImportReport:
    runs: list[ImportedRun]
    notes: list[str]  # on texts

    def count(self, result: str) -> int:
        return sum(run.result == result for run in self.runs)


def import_published(
    path: str | Path, artifacts: Path, *, on_run: Callable[[ImportedRun, int], None] | None = None
) -> ImportReport:
    """Read every run of a published archive into `artifacts`; what is there already stays, so a rerun goes on.

    path: the folder of the data set, its tar of runs (texts are then looked for beside it), or any folder with both
    on_run: called after each run, with what became of it and the number of all runs

    A run that cannot be used is skipped, and the report says why. Raises DataError that names the archive, or its
    member, if nothing in it can be read.
    """
    path = expanded(path)
    with open_archive(path, artifacts / "published") as archive:
        return _Import(archive, artifacts / "dynamics", on_run or (lambda *_: None)).run()


class _Import:
    def __init__(self, archive: Archive, root: Path, on_run: Callable[[ImportedRun, int], None]):
        self._archive, self._root = archive, root
        self._notes: dict[str, None] = {}  # in order, each once
        self._texts: dict[str, TextReader] = {}
        self._reports: list[ImportedRun] = []
        self._on_run = on_run

    def run(self) -> ImportReport:
        self._reports = [ImportedRun(run) for run in find_runs(self._archive.names)]
        broken = f"links that lead nowhere: {', '.join(self._archive.broken)}" if self._archive.broken else ""
        if not self._reports:
            raise DataError(
                f"{self._archive.place}: no runs in it (folders with train_samples_id.json, or with log.out); give the "
                f"folder or the tar of the published GPTDynamics data{broken and f' ({broken})'}"
            )
        if broken:
            self._note(broken)
        outlines = self._outlines()
        for group in self._series(outlines):
            self._import_series(group, outlines)
        return ImportReport(self._reports, list(self._notes))

    def _outlines(self) -> dict[int, Outline]:
        """By position in the reports: what could be read of runs; the others are reported as skipped."""
        outlines: dict[int, Outline] = {}
        taken: dict[tuple, str] = {}
        for position, report in enumerate(self._reports):
            try:
                run = report.run
                report.kind, model = run.kind, run.model
                texts = self._texts.setdefault(run.kind, TextReader(self._archive, run.kind, self._note))
                outlined = outline(self._archive, run, texts)
                report.pool = "seen" if outlined.batches.max() < texts.texts.seen else "unseen"
                key = (run.kind, model, report.pool, run.series, run.seed)
                if key in taken:
                    raise DataError(f"the same run is in {taken[key]}")
                taken[key], outlines[position] = run.folder.rpartition("/")[0] or ".", outlined
            except DataError as error:
                self._done(report, "skipped", str(error))
        return outlines

    def _note(self, text: str) -> None:
        self._notes[text] = None

    def _done(self, report: ImportedRun, result: str, note: str = "") -> None:
        report.result, report.note = result, "; ".join(filter(None, [report.note, note]))
        self._on_run(report, len(self._reports))

    def _series(self, outlines: dict[int, Outline]) -> list[list[int]]:
        """Positions of runs that go into one folder, seeds in order."""
        groups: dict[tuple, list[int]] = {}
        for position in outlines:
            report = self._reports[position]
            groups.setdefault((report.kind, report.run.series, report.pool), []).append(position)
        return [sorted(group, key=lambda position: self._reports[position].run.seed) for group in groups.values()]

    def _import_series(self, group: list[int], outlines: dict[int, Outline]) -> None:
        chosen = _common_tests([outlines[position].tests for position in group])
        first = self._reports[group[0]]
        texts = self._texts[first.kind]
        folders: dict[str, tuple[Path, list[int]]] = {}
        try:
            beyond = [test for test in chosen if test >= len(texts.tests)]
            if beyond:
                raise DataError(f"test example {beyond[0]} is out of range; {texts.texts.test} has {len(texts.tests)}")
            for task in texts.texts.tests:
                of_task = [test for test in chosen if texts.task_of(test) == task]
                if of_task:
                    folders[task] = (self._folder(first, texts, task, of_task), of_task)
        except DataError as error:
            for position in group:
                self._done(self._reports[position], "skipped", str(error))
            return
        for position in group:
            report = self._reports[position]
            try:
                self._done(report, self._import_run(report, outlines[position], texts, folders))
            except DataError as error:
                self._done(report, "skipped", str(error))

    def _folder(self, report: ImportedRun, texts: TextReader, name: str, tests: Sequence[int]) -> Path:
        """The dynamics folder of a series for one task, made if it is not there."""
        pool = texts.pool_of(report.pool)
        task = Task(name, pool, TaskPool(f"{name}/tests", tuple(texts.tests[test] for test in tests)), may_overlap=True)
        overlap = len(set(task.pool.texts) & set(task.tests.texts))
        if overlap:
            self._note(f"{texts.texts.test}: {overlap} test texts of {name} are also training texts")
        gpt = report.run.model.removesuffix("-deduped")
        spec = {
            "format": store.FORMAT,
            "setting": texts.texts.setting,
            "task": name,
            "pool_fingerprint": task.pool.fingerprint,
            "tests_fingerprint": task.tests.fingerprint,
            "model": {"name": gpt, "identity": {"published": report.run.model}},
            "published": {"series": report.run.series, "pool": report.pool, "row_0": "published step 1"},
        }
        unseen = "-unseen" if report.pool == "unseen" else ""
        kind = texts.texts.setting
        folder = self._root / f"published-{kind}-{name}-{gpt}{unseen}-{fingerprint(spec)[:8]}"
        store.write_folder(folder, spec, task)
        return folder

    def _import_run(
        self, report: ImportedRun, outlined: Outline, texts: TextReader, folders: Mapping[str, tuple[Path, list[int]]]
    ) -> str:
        """Store a run for each task. Returns "imported", or "there already" if there was nothing to store."""
        run, name = report.run, f"seed-{report.run.seed:03d}"
        steps, source = len(outlined.batches), run.fingerprint(self._archive)
        report.steps = steps - 1
        report.tests = sum(len(tests) for _, tests in folders.values())
        missing = [folder for folder, _ in folders.values() if store.missing_runs(folder, [name])]
        for folder, _ in folders.values():
            if folder not in missing:
                facts = json.loads((folder / name / "run.json").read_text(encoding="utf-8"))
                if facts.get("files") != source:
                    raise DataError(
                        f"{folder.name}/{name} was imported from other files; to have these instead, delete that folder"
                    )
        if not missing:
            return "there already"
        values = trajectories(self._archive, run, texts, steps)
        facts = {"published": run.name, "layout": run.layout, "files": source, "device": "published"}
        wanted = {test for _, tests in folders.values() for test in tests}
        more = len(set().union(*(found.keys() for found in values.values())) - wanted)
        notes = [f"{more} tests that other runs of the series do not have are left out"] if more else []
        nothing = np.full(steps - 1, np.nan, np.float32)
        to_write = []
        for task, (folder, tests) in folders.items():
            stored: dict[str, np.ndarray] = {}
            for metric, found in values.items():
                absent = [test for test in tests if test not in found]
                if not absent:
                    stored[metric] = np.array([found[test] for test in tests], np.float32).T.copy()
                elif metric == "loss":
                    raise DataError(
                        f"{task}: the loss of {len(absent)} of {len(tests)} tests is missing, test {absent[0]} first"
                    )
                elif len(absent) < len(tests):
                    notes.append(f"{task}: {metric} left out, as {len(absent)} of {len(tests)} tests have none")
            if not stored:
                raise DataError(f"{task}: no metric has a value for all of its {len(tests)} tests; {'; '.join(notes)}")
            to_write.append((folder, stored))
        report.metrics = list(dict.fromkeys(metric for _, stored in to_write for metric in stored))
        report.note = "; ".join(notes)
        for folder, stored in to_write:
            training_run = TrainingRun(
                name=name,
                curriculum=Curriculum(outlined.batches[1:]),
                trajectories=stored,
                learning_rate=nothing if outlined.learning_rate is None else outlined.learning_rate[1:],
                batch_loss=nothing if outlined.batch_loss is None else outlined.batch_loss[1:],
                gradient_norm=nothing,
            )
            with files.locked(store.lock_path(folder, name)):
                if not (folder / name).is_dir():  # else another import was faster
                    store.write_run(folder, training_run, facts)
        return "imported"


def _common_tests(measured: Sequence[frozenset[int]]) -> list[int]:
    """The set of tests that most runs of a series were measured on (of equally frequent ones the largest), in order."""
    counts = Counter(measured)
    return sorted(max(counts, key=lambda tests: (counts[tests], len(tests), sorted(tests))))


# --- reading them back -----------------------------------------------------------------------------------------------


def find(root: Path, model: PublishedModel, *, setting: str, task: str) -> Path:
    """The folder of imported runs below `root` that a profile's model, setting and task mean.

    Raises ArtifactError if there is none, saying what to do, or ConfigurationError if there are several.
    """
    fitting, others = [], set()
    for file in sorted(root.glob("published-*/spec.json")):
        spec = store.spec_values(file.parent)
        told = spec["published"]
        others.add(f"{spec['setting']} {spec['task']} {spec['model']['name']} ({told['pool']} pool)")
        if (
            (spec["setting"], spec["task"], spec["model"]["name"], told["pool"])
            == (setting, task, model.gpt, model.pool)
            and fnmatchcase(told["series"], model.series)
            and store.run_names(file.parent)
        ):
            fitting.append((file.parent, told["series"]))
    if not fitting:
        there = "; ".join(sorted(others)) or "none"
        raise ArtifactError(
            f"no published runs of {model.gpt} on {task} ({setting}, {model.pool} pool, series {model.series!r}) are "
            f"imported; run: {IMPORT} (imported so far: {there})"
        )
    if len(fitting) > 1:
        named = "; ".join(f"{series} in {folder.name}" for folder, series in fitting)
        raise ConfigurationError(
            f"published runs of {model.gpt} on {task} ({setting}): {len(fitting)} series fit: {named}. Choose one with "
            "the model's field `series` (* stands for anything), or delete the folders that are not wanted"
        )
    return fitting[0][0]


def load(folder: Path, runs: Runs, seeds: Mapping[str, Sequence[int]] | None = None) -> GPTDynamics:
    """Imported runs, named by their part in the study: train-001, validation-026, test-028.

    runs: how many of each; used if `seeds` gives no list. Then the highest seeds are held out for testing, those before
        them for validation, and the lowest fit; with seeds 1-32 and 25 + 2 + 5 runs that is 1-25, 26-27 and 28-32.
    seeds: part -> its seeds

    Raises ConfigurationError if a run is not there, or in two parts.
    """
    present = sorted(int(name.removeprefix("seed-")) for name in store.run_names(folder))
    parts = dict(seeds) if seeds else _default_seeds(folder, present, runs)
    chosen = {f"seed-{seed:03d}": f"{part}-{seed:03d}" for part, given in parts.items() for seed in given}
    listed = [seed for given in parts.values() for seed in given]
    if len(set(listed)) != len(listed):
        twice = sorted(seed for seed, count in Counter(listed).items() if count > 1)
        raise ConfigurationError(f"seeds: {twice[0]} is listed twice; a run is for one part of the study only")
    absent = sorted(set(listed) - set(present))
    if absent:
        raise ConfigurationError(
            f"seeds: no run with seed {absent[0]} is imported in {folder.name}; there are {_ranges(present)}"
        )
    stored = store.load(folder, list(chosen))
    renamed = tuple(replace(run, name=chosen[run.name]) for run in stored.runs)
    sums = {chosen[name]: value for name, value in stored.provenance["runs"].items()}
    return replace(stored, runs=renamed, provenance={**stored.provenance, "runs": sums})


def _default_seeds(folder: Path, present: Sequence[int], runs: Runs) -> dict[str, Sequence[int]]:
    needed = runs.train + runs.validation + runs.test
    if len(present) < needed:
        raise ConfigurationError(
            f"the profile asks for {runs.train} + {runs.validation} + {runs.test} runs, but {folder.name} has "
            f"{len(present)} (seeds {_ranges(present)}); lower settings.<name>.runs, or import more with: {IMPORT}"
        )
    behind = len(present) - runs.test
    return {
        "train": present[: runs.train],
        "validation": present[behind - runs.validation : behind],
        "test": present[behind:],
    }


def _ranges(numbers: Sequence[int]) -> str:
    """
    >>> _ranges([1, 2, 3, 7])
    '1-3, 7'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
