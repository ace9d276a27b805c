"""Influences along recorded runs, and what they predict; influences are kept as artifacts.

An influence depends on the run alone, so it lies in a folder of its own for each run and method, named after a hash of
both. All methods that miss a run share one replay of it, and processes take different runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptfluence.common import files
from gptfluence.common.errors import ConfigurationError
from gptfluence.common.progress import Progress
from gptfluence.gradients.products import Replayer
from gptfluence.recording.dynamics import GPTDynamics, Source, TrainingRun
from gptfluence.recording.record import devices
from gptfluence.recording.recorder import single_thread
from gptfluence.recording.settings import RunSpec
from gptfluence.recording.store import not_repeatable
from gptfluence.recording.workers import run_seed
from gptfluence.simulators import replay
from gptfluence.tasks.base import fingerprint

FILE = "influence.parquet"


class Scaled(replay.Scoring, Protocol):
    """What is asked of a method here; see `simulators.tracin.TracIn`."""

    name: str
    format: int
    metrics: tuple[str, ...]
    scale: str


def origin(dynamics: GPTDynamics) -> tuple[Source, RunSpec]:
    """The GPT that runs are of, and how they were recorded. Raises ConfigurationError where that is not known."""
    if problem := not_repeatable(dynamics):
        raise ConfigurationError(f"runs cannot be replayed: {problem}")
    assert dynamics.source is not None
    assert dynamics.spec is not None
    return dynamics.source, dynamics.spec


@dataclass(frozen=True)
class Influences:
    """Influences along the runs of one GPT: loaded if they were computed before, computed if not.

    dynamics: all runs, with all their tests; its first validation run fits scales
    methods: those that one replay of a run serves
    """

    dynamics: GPTDynamics
    methods: Sequence[Scaled]

    def __post_init__(self) -> None:
        self._known()

    def _known(self) -> tuple[Source, RunSpec]:
        source, spec = origin(self.dynamics)
        if self.dynamics.tests.fingerprint != spec.tests_fingerprint:
            raise ConfigurationError(
                f"influences are computed on all test examples of {self.dynamics.task} at once; give the runs with all of them"
            )
        return source, spec

    def predict(self, method: Scaled, recorded: GPTDynamics, observed: int = 1) -> np.ndarray:
        """float32 [runs, steps + 1, tests], from the first `observed` losses of the runs `recorded`.

        Raises ConfigurationError if a scale is to be fitted on a validation run and there is none, or tests are others.
        """
        if recorded.tests.fingerprint != self.dynamics.tests.fingerprint:
            raise ConfigurationError(f"method {method.name!r}: the tests are not those it is bound to; call bind again")
        fitted_on = None
        if method.scale == "validation":
            validation = self.dynamics.split()[1]
            if not len(validation):
                raise ConfigurationError(
                    f"method {method.name!r}: its scale is fitted on a validation run, and there is none; set runs.validation to 1 "
                    "or more, or scale: none"
                )
            # one number for each task: a run says enough of it, and to replay one is most of what these methods cost
            fitted_on = replace(validation, runs=validation.runs[:1])
        self._compute([recorded, *([fitted_on] if fitted_on is not None else ())])
        (metric,) = method.metrics
        losses, influence = recorded.trajectories(metric), self.load(method, recorded)
        scale: float | np.ndarray = 1.0
        if fitted_on is not None:
            scale = self._scales(self.load(method, fitted_on), fitted_on.trajectories(metric))[None]
        elif method.scale == "oracle":
            scale = np.stack([self._scales(influence[k : k + 1], losses[k : k + 1]) for k in range(len(losses))])
        return replay.predict(influence, losses[:, :observed], scale)

    def _scales(self, influence: np.ndarray, losses: np.ndarray) -> np.ndarray:
        """float64 [tests]: of each test's task the scale that fits these runs, as the published ones are."""
        of_task = np.array([example.task for example in self.dynamics.tests])
        scales = np.empty(len(of_task))
        for task in np.unique(of_task):
            tests = of_task == task
            scales[tests] = replay.fit_scale(influence[:, :, tests], losses[:, :, tests])
        return scales

    def load(self, method: Scaled, recorded: GPTDynamics) -> np.ndarray:
        """float32 [runs, steps, tests]; see `replay.influences`. Raises ArtifactError if damaged or not there."""
        arrays = []
        for run in recorded.runs:
            folder = self._folder(method, recorded, run)
            files.verify(folder)
            values = pq.read_table(folder / FILE)["influence"].to_numpy()
            arrays.append(values.reshape(run.curriculum.steps, len(recorded.tests)))
        return np.stack(arrays)

    def _compute(self, parts: Sequence[GPTDynamics]) -> None:
        """Replay those runs that lack an influence of any method; first those that no other process is at."""
        wanted = [(part, run) for part in parts for run in part.runs if self._missing(part, run)]
        if not wanted:
            return
        source, spec = self._known()
        total = sum(run.curriculum.steps + 1 for _, run in wanted)
        title = f"replaying {self.dynamics.task} with {self.dynamics.model}"
        recorder: Replayer | None = None
        with single_thread(), Progress(title, total=total, runs=len(wanted)) as progress:
            try:
                for wait in (False, True):
                    for part, run in wanted:
                        with files.locked(self._lock(part, run), wait=wait) as mine:
                            missing = self._missing(part, run) if mine else {}
                            if not missing:
                                continue
                            if recorder is None:
                                texts = self.dynamics.pool, self.dynamics.tests
                                recorder = Replayer(
                                    source.gpt.load(),
                                    *texts,
                                    spec.recording,
                                    device=devices()[0],
                                    tokens=None if source.tokens is None else source.tokens.both,
                                )
                            seed, step = run_seed(spec.seed, run.name), partial(progress.step, run.name)
                            found = replay.influences(recorder, run, missing, seed=seed, on_step=step)
                            for name, influence in found.items():
                                self._save(missing[name], part, run, influence)
            finally:
                if recorder is not None:
                    recorder.close()

    def _missing(self, recorded: GPTDynamics, run: TrainingRun) -> dict[str, Scaled]:
        """Methods whose influences along `run` are not there or damaged; one of those that differ in scale only."""
        missing: dict[str, Scaled] = {}
        for method in self.methods:
            folder = self._folder(method, recorded, run)
            if not folder.is_dir() or files.damage(folder):
                missing.setdefault(folder.name, method)
        return missing

    def _save(self, method: Scaled, recorded: GPTDynamics, run: TrainingRun, influence: np.ndarray) -> None:
        steps, tests = influence.shape
        table = {
            "step": np.repeat(np.arange(1, steps + 1, dtype=np.int32), tests),
            "example": np.tile(np.arange(tests, dtype=np.int32), steps),
            "influence": influence.ravel(),
        }

        def write(folder: Path) -> None:
            pq.write_table(pa.table(table), folder / FILE, compression="zstd")
            files.write_json(folder / "influence.json", self._identity(method, recorded, run))

        files.made(self._folder(method, recorded, run), write, what=f"influences {method.name} of {run.name}")

    def _identity(self, method: Scaled, recorded: GPTDynamics, run: TrainingRun) -> dict[str, Any]:
        return {
            "dynamics": recorded.provenance["folder"],
            "run": run.name,
            "content": recorded.provenance["runs"][run.name],
            "options": method.influence_options,
            "unit": "nats per token, positive where the loss falls",
            "format": method.format,
        }

    def _folder(self, method: Scaled, recorded: GPTDynamics, run: TrainingRun) -> Path:
        options = method.influence_options
        what = f"{options['direction']}-{options['checkpoints']}-{options['parameters']}"
        slug = files.slug(f"{recorded.task}-{recorded.model}")
        key = fingerprint(self._identity(method, recorded, run))[:8]
        return self._root / f"{what}-{slug}-{run.name}-{key}"

    def _lock(self, recorded: GPTDynamics, run: TrainingRun) -> Path:
        return self._root / f".{recorded.provenance['folder']}-{run.name}.lock"

    @property
    def _root(self) -> Path:
        return self._known()[0].artifacts / "influence"
