"""Record many runs: several processes on one store, none in another's way, each run taken by one of them.

`main` is a worker, in a process of its own: it reads a job (JSON) from standard input, records runs, and prints a line of
JSON for every step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np

from gptfluence.common import errors, files
from gptfluence.common.errors import GPTfluenceError, RecordingError
from gptfluence.common.machine import cores
from gptfluence.common.progress import Progress
from gptfluence.common.settings import ROOT
from gptfluence.recording import store
from gptfluence.recording.curriculum import Curriculum, draw_curriculum
from gptfluence.recording.settings import Generation, RunSpec
from gptfluence.tasks.base import Task, fingerprint

if TYPE_CHECKING:
    from gptfluence.models.gpt import GPT
    from gptfluence.recording.recorder import Recorder


@dataclass(frozen=True)
class Job:
    """What one worker is to record. `curricula`: of runs whose curriculum is given, not drawn."""

    folder: Path  # which says what is recorded, from which GPT (`store.read_spec`, `store.read_source`)
    names: tuple[str, ...]
    device: str = "cpu"
    curricula: dict[str, list[list[int]]] | None = None
    scoring_processes: int = 0

    def to_json(self) -> str:
        return json.dumps({**self.__dict__, "folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> Job:
        values = json.loads(text)
        values.update(folder=Path(values["folder"]), names=tuple(values["names"]))
        return cls(**values)


def run_seed(study_seed: int, name: str) -> int:
    """A seed of a run's own: adding runs or settings never changes another run."""
    return int(fingerprint([study_seed, name]), 16) % 2**31


def curriculum_of(spec: RunSpec, name: str, pool_size: int) -> Curriculum:
    """The curriculum that is drawn for the run of this name. Raises RecordingError if the spec draws none."""
    drawn = spec.curriculum
    if drawn is None:
        raise RecordingError(f"run {name}: its curriculum is not given and the folder draws none")
    return draw_curriculum(
        pool_size,
        subset=drawn.subset_size,
        batch=drawn.batch_size,
        epochs=drawn.epochs,
        groups=drawn.groups,
        rng=np.random.default_rng(run_seed(spec.seed, name)),
    )


def recorder_of(spec: RunSpec, task: Task, gpt: GPT, device: str, scoring_processes: int = 0) -> Recorder:
    """A recorder for the runs of a dynamics folder, of which `spec` and `task` were read. Raises as `Recorder` does."""
    from gptfluence.recording.recorder import Recorder

    return Recorder(
        gpt,
        task.pool,
        task.tests,
        spec.recording,
        metrics=spec.metrics,
        generation=spec.generation or Generation(),
        device=device,
        scoring_processes=scoring_processes,
    )


def record_run(
    folder: Path,
    spec: RunSpec,
    recorder: Recorder,
    name: str,
    given: list[list[int]] | None,
    on_step: Callable[[int], None],
) -> None:
    """Record one run and write it into its folder; the caller sees to it that nobody else does.

    given: its curriculum, as lists of positions in the pool; None: the one that is drawn for its name
    """
    curriculum = Curriculum(np.array(given)) if given else curriculum_of(spec, name, len(recorder.pool))
    seed = run_seed(spec.seed, name)
    run = recorder.record(name, curriculum, seed=seed, ends_only=spec.ends_only, on_step=on_step)
    store.write_run(folder, run, {"seed": seed, "device": recorder.device.split(":")[0]})


def record_runs(job: Job, report: Callable[[str, int], None]) -> None:
    """Record those runs of a job that nobody has recorded and nobody is recording; then wait for the others' to end.

    report: called with the run's name and step, for the runs that are recorded here.
    """
    from gptfluence.recording.recorder import single_thread

    spec, task, source = store.read_spec(job.folder), store.read_task(job.folder), store.read_source(job.folder)
    if source is None:
        raise RecordingError(
            f"{job.folder}: it does not say which GPT is trained: {store.SOURCE} is missing; record through gf.record or a "
            "Study, which write it: no run is lost"
        )
    recorder: Recorder | None = None
    with single_thread():
        try:
            for wait in (False, True):  # first what is free, then what another process has begun (and may have died on)
                for name in job.names:
                    if (job.folder / name).is_dir():
                        continue
                    with files.locked(store.lock_path(job.folder, name), wait=wait) as mine:
                        if not mine or (job.folder / name).is_dir():
                            continue
                        if recorder is None:
                            recorder = recorder_of(spec, task, source.gpt.load(), job.device, job.scoring_processes)
                        given = (job.curricula or {}).get(name)
                        record_run(job.folder, spec, recorder, name, given, lambda step, name=name: report(name, step))
        finally:
            if recorder is not None:
                recorder.close()


def collect(
    folder: Path,
    names: Sequence[str],
    *,
    jobs: int,
    devices: Sequence[str] = ("cpu",),
    curricula: dict[str, Curriculum] | None = None,
    steps: int,
    title: str,
) -> None:
    """Record the runs of these names that are missing, `jobs` at a time, and return when all are there.

    jobs: processes; on a CPU each has one thread. With 1 the work is done in this process.
    devices: torch devices, dealt to the processes in turn.
    steps: of the longest run; title: for the progress line.

    Raises the error of the first worker that fails; the runs that are complete are kept.
    """
    missing = store.missing_runs(folder, names)
    if not missing:
        return
    given = {name: c.batches.tolist() for name, c in (curricula or {}).items() if name in missing}
    jobs = max(1, min(jobs, len(missing)))
    # on a CPU the cores are busy training; beside a GPU they are free to score texts
    scoring = 0 if devices[0] == "cpu" else max(1, cores() // jobs - 1)
    common = {"folder": folder, "curricula": given, "scoring_processes": scoring}
    with Progress(title, total=len(missing) * (steps + 1), runs=len(missing)) as progress:
        if jobs == 1:
            record_runs(Job(names=tuple(missing), device=devices[0], **common), progress.step)
        else:
            # each worker begins at another place, so that they rarely ask for the same lock
            rotated = [
                tuple(missing[k * len(missing) // jobs :] + missing[: k * len(missing) // jobs]) for k in range(jobs)
            ]
            work = [Job(names=part, device=devices[k % len(devices)], **common) for k, part in enumerate(rotated)]
            _run_workers(work, progress.step)
    absent = [name for name in missing if not (folder / name).is_dir()]
    if absent:
        raise RecordingError(f"{title}: run {absent[0]} was not recorded; run again to record what is missing")


# A worker imports from where its parent does, but never from the working directory: a user's random.py or profile.py there
# would be taken for Python's own.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from gptfluence.recording import workers; workers.main()"
)


def _import_path() -> list[str]:
    # paths that are no strings, which some users put there, Python passes over
    return [*(place for place in sys.path if isinstance(place, str) and place), str(ROOT)]


def _run_workers(work: Sequence[Job], report: Callable[[str, int], None]) -> None:
    messages: Queue[tuple[int, str | None]] = Queue()
    processes = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        for index, job in enumerate(work):
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", START, str(os.getpid()), json.dumps(_import_path())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",  # what libraries print is only shown
                env=environment,
            )
            processes.append(process)
            Thread(target=_forward, args=(process, index, messages), daemon=True).start()
            process.stdin.write(job.to_json())  # type: ignore[union-attr]
            process.stdin.close()  # type: ignore[union-attr]
        # drain stderr in the background, or a talkative worker would block on a full pipe
        tails = [_Tail(process.stderr) for process in processes]  # type: ignore[arg-type]
        open_streams = len(processes)
        while open_streams:
            try:
                index, line = messages.get(timeout=1.0)
            except Empty:
                continue
            if line is None:
                open_streams -= 1
                if code := processes[index].wait():
                    killed = "; it was killed, as where memory runs out: record fewer runs at once (jobs)"
                    raise RecordingError(
                        f"a recording process ended with code {code}: {tails[index].text()}{killed * (code == -signal.SIGKILL)}"
                    )
                continue
            message = json.loads(line)
            if "error" in message:
                kind = getattr(errors, message["kind"], RecordingError)
                raise kind(message["error"])
            report(message["run"], message["step"])
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()


class _Tail:
    """The last lines a worker wrote to standard error."""

    def __init__(self, stream: object):
        self._lines: list[str] = []
        self._thread = Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream) -> None:
        for line in stream:
            self._lines = [*self._lines[-19:], line.rstrip()]

    def text(self) -> str:
        self._thread.join(timeout=5)
        return " | ".join(line for line in self._lines[-3:] if line) or "it said nothing"


def _forward(process: subprocess.Popen, index: int, messages: Queue) -> None:
    for line in process.stdout:  # type: ignore[union-attr]
        if line.startswith("{"):  # libraries may print, too
            messages.put((index, line))
    messages.put((index, None))


def main() -> None:
    """Do the job that standard input holds, for the process whose number is the first argument."""
    parent, job = int(sys.argv[1]), Job.from_json(sys.stdin.read())
    last = 0.0

    def report(run: str, step: int) -> None:
        nonlocal last
        if os.getppid() != parent:  # killed: nobody wants this any more, and nobody else should wait for us
            os._exit(1)
        now = time.monotonic()
        if now - last > 0.2 or step == 0:
            last = now
            print(json.dumps({"run": run, "step": step}), flush=True)

    try:
        record_runs(job, report)
    except GPTfluenceError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}), flush=True)
