"""What recording the runs of a study takes on this machine: time, memory and disk, from a short probe.

A probe records the first steps of a run, in as many processes at once as the study would use: processes that share a
machine slow one another down. Fits, and the runs that notebooks record for themselves, are not in it.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gptfluence.common import machine
from gptfluence.common.errors import ModelError
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.record import Wanted, devices
from gptfluence.recording.settings import Generation
from gptfluence.recording.store import missing_runs
from gptfluence.recording.text_metrics import TEXT_METRICS
from gptfluence.recording.workers import curriculum_of
from gptfluence.study.study import Study
from gptfluence.workflow import catalogue
from gptfluence.workflow.row import Runs

STEPS = 4  # of a probe, or fewer if runs have fewer
FILES = 32_000  # bytes that a run takes on the disk besides its numbers
_LESS_MEMORY = "record fewer runs at once (--jobs), lower recording.token_budget, or choose a smaller model"


@dataclass(frozen=True)
class Recording:
    """The recording of the runs of one folder. unseen: as in `Campaign.wanted`"""

    runs: Runs
    unseen: str | None
    wanted: Wanted
    missing: int

    @property
    def curriculum(self) -> Curriculum:
        return curriculum_of(self.wanted.spec, self.wanted.names[0], len(self.wanted.texts.pool))

    @property
    def disk(self) -> int:
        """Bytes of the runs that are missing: float32 numbers that hardly compress, of the steps at which they are measured."""
        wanted, end = self.wanted, self.curriculum.steps
        written = sum(_writes(self.generation, step, end) for step in range(end + 1))
        rows = sum(written if metric in TEXT_METRICS else end + 1 for metric in wanted.metrics)
        of_pool = (end + 1) * len(wanted.texts.pool) * wanted.recording.record_pool
        return self.missing * (4 * (rows * len(wanted.texts.tests) + of_pool) + FILES)

    @property
    def generation(self) -> Generation | None:
        """How texts are generated; None: none are."""
        return self.wanted.generation if self.wanted.spec.generation is not None else None


@dataclass(frozen=True)
class Probe:
    """Seconds to load the GPT and to record one run, and bytes of one process at its largest."""

    load: float
    run: float
    memory: int


def recordings(study: Study, only: str = "*") -> list[Recording]:
    """What a study records before its notebooks start, of the outputs that fit the pattern.

    Raises errors of `common/errors.py` that name what is wrong with profile, texts or model.
    """
    wanted = catalogue.chosen(study, only).values()
    with_unseen = {runs for output in wanted if output.row.unseen for runs in output.needs}
    found = []
    for runs in catalogue.before(wanted):
        if not study.trains(runs.model):
            continue
        campaign = runs.campaign(study)
        for unseen in (None, "training", "test") if runs in with_unseen else (None,):
            asked = campaign.wanted(unseen)
            found.append(Recording(runs, unseen, asked, len(missing_runs(asked.folder, asked.names))))
    return found


def notebooks_that_record(study: Study, only: str = "*") -> list[str]:
    """Notebooks whose own runs are not among `recordings`."""
    wanted = catalogue.chosen(study, only).values()
    return list(dict.fromkeys(catalogue.notebook_of(one.row) for one in wanted if one.row.trains))


def probe(study: Study, recording: Recording) -> Probe:
    """Record the first steps of a run, in as many processes at once as would be recording; nothing is kept.

    Raises ModelError if a process is killed, which means that they need more memory than there is.
    """
    on_gpu = devices() != ["cpu"]
    processes = study.profile.jobs_per_device if on_gpu else min(study.jobs, recording.missing)
    context = multiprocessing.get_context("spawn")
    given = (study.origin, study.overrides, str(study.artifacts), recording.runs, recording.unseen)
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
            probes = list(pool.map(_probe, [given] * processes))
    except BrokenExecutor as error:
        raise ModelError(
            f"{recording.runs.name}: a process that recorded the first steps of a run was killed; {processes} at once are too "
            f"many for this machine's {machine.memory() / 1e9:.1f} GB of memory: {_LESS_MEMORY}"
        ) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return Probe(
        statistics.fmean(one.load for one in probes),
        statistics.fmean(one.run for one in probes),
        max(one.memory for one in probes),
    )


def _probe(given: tuple[str, tuple[str, ...], str, Runs, str | None]) -> Probe:
    """In a process of its own, which tells how much memory it took."""
    from gptfluence.recording.recorder import Recorder, single_thread

    origin, overrides, artifacts, runs, unseen = given
    study = Study.load(origin, overrides, artifacts=artifacts, jobs=1)
    wanted = runs.campaign(study).wanted(unseen)
    started = time.perf_counter()
    marks: list[float] = []
    with single_thread():
        gpt = wanted.source.gpt.load()
        one = Recording(runs, unseen, wanted, 1)
        curriculum = one.curriculum
        first = Curriculum(curriculum.batches[:STEPS])
        with Recorder(
            gpt,
            wanted.texts.pool,
            wanted.texts.tests,
            wanted.recording,
            metrics=wanted.metrics,
            generation=wanted.generation,
            device=devices()[0],
        ) as recorder:
            loaded = time.perf_counter()
            recorder.record("probe", first, on_step=lambda _: marks.append(time.perf_counter()))
    spent = [after - before for before, after in zip([loaded, *marks], marks, strict=False)]
    seconds = _of_run(spent, curriculum.steps, one.generation)
    return Probe(loaded - started, seconds, _most_memory())


def _most_memory() -> int:
    """Bytes of this process at its largest."""
    status = Path("/proc/self/status")
    if status.is_file():  # what `getrusage` says begins with the parent's here
        [peak] = [
            line.split()[1] for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")
        ]
        return int(peak) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _writes(generation: Generation | None, step: int, end: int) -> bool:
    """Whether texts are written after a step of a run that has `end`."""
    return generation is not None and generation.due(step, end)


def _of_run(spent: list[float], steps: int, generation: Generation | None) -> float:
    """Seconds of a run of `steps`, from those of its first ones.

    spent: of the measurement before training and of each step of the probe
    """
    last = len(spent) - 1
    groups: dict[bool, list[float]] = {True: [], False: []}
    for step, seconds in enumerate(spent[1:], start=1):
        groups[_writes(generation, step, last)].append(seconds)
    # the first step is slower than the others: memory is claimed, and the optimizer made
    typical = {with_texts: statistics.median(found[-2:]) for with_texts, found in groups.items() if found}
    with_texts = typical.get(True, 0.0)
    return spent[0] + sum(
        with_texts if _writes(generation, step, steps) else typical.get(False, with_texts)
        for step in range(1, steps + 1)
    )


def lines(study: Study, only: str = "*") -> Iterator[str]:
    """The plan in words, a line for each folder of runs as soon as it was probed, and the sums.

    Raises ModelError, after the plan, if the processes at once need more memory than the machine has.
    """
    seconds, disk, most = 0.0, 0, 0
    yield f"{'runs on':44} {'to do':>9} {'steps':>6} {'tests':>6} {'s a run':>8} {'hours':>6} {'GB':>5}"
    for one in recordings(study, only):
        name = one.runs.name + (f" (unseen {one.unseen})" if one.unseen else "")
        done = f"{one.missing}/{len(one.wanted.names)}"
        sizes = f"{one.curriculum.steps:6} {len(one.wanted.texts.tests):6}"
        if not one.missing:
            yield f"{name:44} {done:>9} {sizes}"
            continue
        found = probe(study, one)
        at_once = (
            min(study.jobs, one.missing) if devices() == ["cpu"] else len(devices()) * study.profile.jobs_per_device
        )
        spent = found.load + found.run * -(-one.missing // at_once)
        seconds, disk, most = seconds + spent, disk + one.disk, max(most, found.memory * at_once)
        yield f"{name:44} {done:>9} {sizes} {found.run:8.1f} {spent / 3600:6.2f} {found.memory / 1e9:5.1f}"
    yield f"recording: {seconds / 3600:.2f} hours, {most / 1e9:.1f} GB of memory, {disk / 1e6:.0f} MB of disk for the runs"
    if more := notebooks_that_record(study, only):
        yield f"not in it: fits, and the runs that these record for themselves: {', '.join(more)}"
    there = machine.memory()
    if most > there:
        raise ModelError(
            f"{most / 1e9:.1f} GB of memory are needed, and this machine has {there / 1e9:.1f}: {_LESS_MEMORY}"
        )
