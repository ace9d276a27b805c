"""What TracIn-CP and Grad-Dot predict for the held-out runs of a study; influences are kept as artifacts.

An influence depends on the run alone, so it lies in a folder of its own for each run and method, named after a hash of
both. All methods of a profile that miss a run share one replay of it, and processes take different runs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptfluence.common import files
from gptfluence.common.errors import ConfigurationError
from gptfluence.common.progress import Progress
from gptfluence.gradients.products import Replayer
from gptfluence.models.gpt import ModelSource
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.recording.recorder import single_thread
from gptfluence.recording.settings import Recording
from gptfluence.recording.workers import run_seed
from gptfluence.simulators import tracin
from gptfluence.simulators.tracin import TracIn
from gptfluence.tasks.base import fingerprint

FORMAT = 1
METRIC = "loss"  # gradients of anything else are not to be had
FILE = "influence.parquet"


def methods_of(simulators: Mapping[str, Mapping[str, Any]]) -> dict[str, TracIn]:
    """Those of a profile's `simulators:` that are TracIn-CP or Grad-Dot. Raises ConfigurationError for their options."""
    return {
        name: tracin.create(name, options)
        for name, options in simulators.items()
        if options.get("kind", name) in tracin.METHODS
    }


def applicable(names: Sequence[str], methods: Mapping[str, TracIn], metric: str, *, known: bool = True) -> list[str]:
    """`names` without the methods of gradients if `metric` is not the loss, or examples are unseen (`known` is False).

    Raises ConfigurationError if none is left.
    """
    left = [name for name in names if (metric == METRIC and known) or name not in methods]
    if names and not left:
        what = f"the loss only, not {metric!r}" if known else "the held-out runs on known examples only"
        raise ConfigurationError(f"method {names[0]!r}: gradients explain {what}; choose another method")
    return left


@dataclass(frozen=True)
class Influences:
    """Influences along the runs of one study and task: loaded if they were computed before, computed if not.

    methods: all of the profile's, so that one replay serves them all
    """

    artifacts: Path
    dynamics: GPTDynamics
    methods: Mapping[str, TracIn]
    model: ModelSource

    def predict(self, names: Sequence[str], *, observed: int = 1, device: str = "cpu") -> dict[str, np.ndarray]:
        """For each method float32 [test runs, steps + 1, tests], from the first `observed` losses of the test runs.

        Raises ConfigurationError if a scale is to be fitted on validation runs and there is none.
        """
        _, validation, test = self.dynamics.split()
        fitted = [name for name in names if self.methods[name].scale == "validation"]
        if fitted and not len(validation):
            raise ConfigurationError(
                f"method {fitted[0]!r}: its scale is fitted on validation runs, and there is none; set runs.validation to 1 "
                "or more, or scale: none"
            )
        needed = [*test.runs, *(validation.runs if fitted else ())]
        self.compute(needed, device=device)
        recorded = test.trajectories(METRIC)
        return {
            name: tracin.predict(self.load(name, test.runs), recorded[:, :observed], self._scale(name))
            for name in names
        }

    def _scale(self, name: str) -> float | np.ndarray:
        _, validation, test = self.dynamics.split()
        how = self.methods[name].scale
        if how == "none":
            return 1.0
        runs = validation if how == "validation" else test
        influence, losses = self.load(name, runs.runs), runs.trajectories(METRIC)
        together = [slice(None)] if how == "validation" else [slice(run, run + 1) for run in range(len(runs))]
        of_task = np.array([example.task for example in self.dynamics.tests])
        scales = np.empty((len(together), len(of_task)))
        for row, chosen in enumerate(together):
            for task in np.unique(of_task):  # one for each task, as the published ones are
                tests = of_task == task
                scales[row, tests] = tracin.fit_scale(influence[chosen][:, :, tests], losses[chosen][:, :, tests])
        return scales

    def scales(self, names: Sequence[str]) -> dict[str, float | np.ndarray]:
        """The scale of each method: 1, or float64 [1, tests], for "oracle" [test runs, tests]; equal within a task."""
        return {name: self._scale(name) for name in names}

    def load(self, name: str, runs: Sequence[TrainingRun]) -> np.ndarray:
        """float32 [runs, steps, tests]; see `tracin.influences`. Raises ArtifactError if damaged or not there."""
        arrays = []
        for run in runs:
            folder = self._folder(name, run)
            files.verify(folder)
            values = pq.read_table(folder / FILE)["influence"].to_numpy()
            arrays.append(values.reshape(run.curriculum.steps, len(self.dynamics.tests)))
        return np.stack(arrays)

    def compute(self, runs: Sequence[TrainingRun], *, device: str = "cpu") -> None:
        """Replay those of `runs` that lack an influence of any method; first those that no other process is at."""
        runs = [run for run in runs if self._missing(run)]
        if not runs:
            return
        total = sum(run.curriculum.steps + 1 for run in runs)
        spec = self.dynamics.provenance["spec"]
        recorder: Replayer | None = None
        title = f"replaying {self.dynamics.task} with {self.dynamics.model}"
        with single_thread(), Progress(title, total=total, runs=len(runs)) as progress:
            try:
                for wait in (False, True):
                    for run in runs:
                        with files.locked(self._lock(run), wait=wait) as mine:
                            missing = self._missing(run) if mine else {}
                            if not missing:
                                continue
                            if recorder is None:
                                recording = Recording.model_validate(spec["recording"])
                                gpt, pool, tests = self.model.load(), self.dynamics.pool, self.dynamics.tests
                                recorder = Replayer(gpt, pool, tests, recording, device=device)
                            seed = run_seed(spec["seed"], run.name)
                            step = partial(progress.step, run.name)
                            found = tracin.influences(recorder, run, missing, seed=seed, on_step=step)
                            for name, influence in found.items():
                                self._save(name, run, influence)
            finally:
                if recorder is not None:
                    recorder.close()

    def _missing(self, run: TrainingRun) -> dict[str, TracIn]:
        """Methods whose influences along `run` are not there or damaged; one for rows that differ in scale only."""
        missing: dict[Path, str] = {}
        for name in self.methods:
            folder = self._folder(name, run)
            if not folder.is_dir() or files.damage(folder):
                missing.setdefault(folder, name)
        return {name: self.methods[name] for name in missing.values()}

    def _save(self, name: str, run: TrainingRun, influence: np.ndarray) -> None:
        steps, tests = influence.shape
        table = {
            "step": np.repeat(np.arange(1, steps + 1, dtype=np.int32), tests),
            "example": np.tile(np.arange(tests, dtype=np.int32), steps),
            "influence": influence.ravel(),
        }
        folder = self._folder(name, run)
        if folder.is_dir():
            problem, aside = files.damage(folder), files.set_aside(folder)
            warnings.warn(f"{problem}; set aside as {aside.name}, computed it again", stacklevel=2)
        with files.new_folder(folder, f"saving influences {name}") as new:
            pq.write_table(pa.table(table), new / FILE, compression="zstd")
            files.write_json(new / "influence.json", self._identity(name, run))

    def _identity(self, name: str, run: TrainingRun) -> dict[str, Any]:
        provenance = self.dynamics.provenance
        return {
            "dynamics": provenance["folder"],
            "run": run.name,
            "content": provenance["runs"][run.name],
            "options": self.methods[name].influence_options,
            "unit": "nats per token, positive where the loss falls",
            "format": FORMAT,
        }

    def _folder(self, name: str, run: TrainingRun) -> Path:
        options = self.methods[name].influence_options
        what = f"{options['direction']}-{options['checkpoints']}-{options['parameters']}"
        key = fingerprint(self._identity(name, run))[:8]
        return self.artifacts / "influence" / f"{what}-{self._slug}-{run.name}-{key}"

    def _lock(self, run: TrainingRun) -> Path:
        return self.artifacts / "influence" / f".{self.dynamics.provenance['folder']}-{run.name}.lock"

    @property
    def _slug(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]", "_", f"{self.dynamics.task}-{self.dynamics.model}")
