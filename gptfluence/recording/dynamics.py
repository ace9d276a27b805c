"""GPTDynamics: what was recorded while a GPT was trained again and again (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.models.gpt import ModelSource
from gptfluence.recording.curriculum import NOBODY, Curriculum
from gptfluence.recording.settings import RunSpec
from gptfluence.recording.text_metrics import TEXT_METRICS
from gptfluence.tasks.base import TaskPool

if TYPE_CHECKING:
    from gptfluence.recording.fed import FedTokens


@dataclass(frozen=True)
class TrainingRun:
    """One GPT trained on one curriculum.

    trajectories: metric name -> float32 [steps + 1, tests]; row 0 is measured before the first update; nan for tests
        that do not have the metric (see `GPTDynamics.for_metric`), and for steps that were not measured (`Recorder.record`)
    pool_trajectories: the same for the examples of the pool, float32 [steps + 1, pool]; empty if not recorded
    learning_rate, batch_loss, gradient_norm: float32 [steps]; of update t in row t-1 (nats per target token, in which those of
        masked examples count as 0)
    skipped: bool [steps]; updates that the optimizer left out, as in half precision where gradients overflow; None: none
    """

    name: str  # e.g. "train-007"; its part before the dash is the split
    curriculum: Curriculum
    trajectories: dict[str, np.ndarray] = field(repr=False)
    pool_trajectories: dict[str, np.ndarray] = field(repr=False, default_factory=dict)
    learning_rate: np.ndarray | None = field(repr=False, default=None)
    batch_loss: np.ndarray | None = field(repr=False, default=None)
    gradient_norm: np.ndarray | None = field(repr=False, default=None)
    skipped: np.ndarray | None = field(repr=False, default=None)

    @property
    def split(self) -> str:
        return self.name.rsplit("-", 1)[0]


@dataclass(frozen=True)
class Source:
    """The GPT that runs were recorded from, and the folder of artifacts that they lie in, for caches.

    tokens: of pool and tests, where they are not what the GPT's tokenizer makes of the texts: of runs that a Trainer trained
    """

    gpt: ModelSource
    artifacts: Path
    tokens: FedTokens | None = None


@dataclass(frozen=True)
class GPTDynamics:
    """Recorded runs of one GPT on one task: curricula in, trajectories out. Immutable; subsets are new objects.

    provenance: "folder", "runs" (name -> hash), "device", and "spec" as it was read, for files that say where numbers are from
    spec: how the runs were recorded; None for runs that were imported or made by hand
    source: the GPT itself; None where it is not known, as for imported runs
    """

    task: str
    model: str
    pool: TaskPool
    tests: TaskPool
    runs: tuple[TrainingRun, ...] = field(repr=False)
    provenance: dict = field(repr=False, default_factory=dict)
    spec: RunSpec | None = field(repr=False, default=None)
    source: Source | None = field(repr=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", tuple(self.runs))
        for run in self.runs:
            if run.curriculum.highest >= len(self.pool):
                raise ConfigurationError(
                    f"run {run.name}: its curriculum names example {run.curriculum.highest}, but the pool "
                    f"has {len(self.pool)}"
                )
            for metric, values in run.trajectories.items():
                expected = (run.curriculum.steps + 1, len(self.tests))
                if values.shape != expected:
                    raise ConfigurationError(
                        f"run {run.name}: {metric} has shape {list(values.shape)}, not [steps + 1, tests] = "
                        f"{list(expected)}"
                    )

    def __len__(self) -> int:
        return len(self.runs)

    def __repr__(self) -> str:
        steps = sorted({run.curriculum.steps for run in self.runs})
        shape = f"{len(self)} runs x {'/'.join(map(str, steps)) or 0} steps x {len(self.tests)} tests"
        return f"GPTDynamics: {self.task}, {self.model}, {shape}, {' and '.join(self.metrics) or 'no metric'}"

    @property
    def metrics(self) -> list[str]:
        return list(self.runs[0].trajectories) if self.runs else []

    @property
    def curricula(self) -> list[Curriculum]:
        return [run.curriculum for run in self.runs]

    @property
    def names(self) -> list[str]:
        return [run.name for run in self.runs]

    @property
    def batches(self) -> np.ndarray:
        """int32 [runs, steps, widest]: the curricula as one array. Raises ConfigurationError if their lengths differ."""
        return stack_curricula(self.curricula)

    def trajectories(self, metric: str = "loss", *, of: str = "tests") -> np.ndarray:
        """float32 [runs, steps + 1, tests]; `of="pool"`: [runs, steps + 1, pool]. Losses are in nats per target token.

        Raises ConfigurationError if the metric was not recorded or the runs differ in length.
        """
        if of not in ("tests", "pool"):
            raise ConfigurationError(unknown("of", of, ["tests", "pool"]))
        recorded = [run.trajectories if of == "tests" else run.pool_trajectories for run in self.runs]
        for run, values in zip(self.runs, recorded, strict=True):
            if metric not in values:
                raise ConfigurationError(unknown("metric", metric, values, where=f"run {run.name}, {of}: "))
        shapes = {values[metric].shape for values in recorded}
        if len(shapes) != 1:
            raise ConfigurationError(
                f"trajectories: {len(self)} runs with {len(shapes)} different shapes cannot be stacked; choose runs of "
                "equal length"
            )
        return np.stack([values[metric] for values in recorded])

    def measured(self, metric: str = "loss") -> np.ndarray:
        """int [rows]: the steps that a metric was measured at, first and last among them; runs must be of equal length.

        Between them a score of texts stands as it was (`Generation.every`), so that what trajectories hold there is no
        measurement: no prediction is fitted to it or scored on it. Other metrics are measured at every step.
        """
        steps = np.arange(self.trajectories(metric).shape[1])
        generation = self.spec.generation if self.spec else None
        if metric not in TEXT_METRICS or generation is None:
            return steps
        return steps[generation.due(steps, steps[-1])]

    def interpolated(self) -> GPTDynamics:
        """The same runs with values between the steps that were measured, linear in the steps (`TrainerRecorder(every=...)`).

        For simulators, which want a value at each step. Raises ConfigurationError if the first or the last step was not measured.
        """
        return replace(self, runs=tuple(replace(run, trajectories=_interpolated(run)) for run in self.runs))

    def push_to_hub(self, name: str, *, private: bool | None = None) -> str:
        """Share the runs as the data set `name` ("user/name") of the Hugging Face Hub, in Parquet and with a card.

        `load_dynamics(name)` reads them. The GPT, its tokens and what was measured of the pool stay here. Returns the address of
        the commit; raises what `sharing.push` raises.
        """
        from gptfluence.recording.sharing import push

        return push(self, name, private=private)

    def of_tests(self, positions: Sequence[int]) -> GPTDynamics:
        """The same runs with these test examples only, in this order (positions in `tests`)."""
        chosen = np.asarray(positions, dtype=np.int64)
        if len(chosen) == len(self.tests) and (chosen == np.arange(len(self.tests))).all():
            return self
        runs = tuple(
            replace(run, trajectories={metric: values[:, chosen] for metric, values in run.trajectories.items()})
            for run in self.runs
        )
        return replace(self, tests=TaskPool(self.tests.name, tuple(self.tests[row] for row in chosen)), runs=runs)

    def for_metric(self, metric: str) -> GPTDynamics:
        """The same runs with the test examples that have this metric (BLEU and ROUGE-L: those with free text)."""
        if not self.runs:
            return self
        if metric not in self.metrics:
            raise ConfigurationError(unknown("metric", metric, self.metrics, where=f"run {self.runs[0].name}, tests: "))
        return self.of_tests(np.flatnonzero(~np.isnan(self.runs[0].trajectories[metric]).all(axis=0)))

    def select(self, names: Sequence[str]) -> GPTDynamics:
        """The runs of these names, in this order."""
        by_name = {run.name: run for run in self.runs}
        for name in names:
            if name not in by_name:
                raise ConfigurationError(unknown("run", name, by_name))
        return replace(self, runs=tuple(by_name[name] for name in names))

    def split(
        self, *, validation: int | None = None, test: int | None = None
    ) -> tuple[GPTDynamics, GPTDynamics, GPTDynamics]:
        """The runs that fit a simulator, those that select it, and those held out.

        Runs of a study say by name which they are. For others say how many: the last `test` are held out, the
        `validation` before them select, all earlier ones fit. Raises ConfigurationError if none would be left to fit on.
        """
        if validation is None and test is None:
            parts = [[run for run in self.runs if run.split == part] for part in ("train", "validation", "test")]
        else:
            held, selecting = test or 0, validation or 0
            fitting = len(self) - held - selecting
            if min(held, selecting) < 0 or fitting < 1:
                raise ConfigurationError(
                    f"split: of {len(self)} runs, {selecting} for validation and {held} for testing leave none to fit on"
                )
            ends = (fitting, fitting + selecting)
            parts = [list(self.runs[: ends[0]]), list(self.runs[ends[0] : ends[1]]), list(self.runs[ends[1] :])]
        if not parts[0]:
            raise ConfigurationError(
                "split: no run is named as a training run; say how many are for validation and testing, e.g. "
                "split(validation=1, test=2)"
            )
        train, selected, held_out = (replace(self, runs=tuple(runs)) for runs in parts)
        return train, selected, held_out

    def to_frame(self, metric: str = "loss", *, of: str = "tests") -> pd.DataFrame:
        """Tidy: one row for each run, step and example, with columns run, split, step, example, id, <metric>."""
        ids = np.array([example.id for example in (self.tests if of == "tests" else self.pool)])
        frames = []
        for run in self.runs:
            values = (run.trajectories if of == "tests" else run.pool_trajectories)[metric]
            rows, columns = values.shape
            frames.append(
                pd.DataFrame(
                    {
                        "run": run.name,
                        "split": run.split,
                        "step": np.repeat(np.arange(rows), columns),
                        "example": np.tile(np.arange(columns), rows),
                        "id": np.tile(ids, rows),
                        metric: values.ravel(),
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)


def _interpolated(run: TrainingRun) -> dict[str, np.ndarray]:
    found, steps = {}, np.arange(run.curriculum.steps + 1)
    for metric, values in run.trajectories.items():
        measured = np.flatnonzero(~np.isnan(values).all(axis=1))
        if not {0, run.curriculum.steps} <= {*measured.tolist()}:
            raise ConfigurationError(
                f"run {run.name}: {metric} was not measured at the first and at the last step; record it again with every=1"
            )
        columns = [np.interp(steps, measured, column) for column in values[measured].T]
        found[metric] = np.stack(columns, axis=1).astype(np.float32)
    return found


def join_tests(task: str, parts: Sequence[GPTDynamics]) -> GPTDynamics:
    """Runs whose tests were stored task by task, as runs on all of them: ids become "<task>/<id>".

    A metric that a part lacks is nan there. Raises ConfigurationError if the parts are not of the same runs.
    """
    first = parts[0]
    for part in parts[1:]:
        if (
            part.names != first.names
            or part.curricula != first.curricula
            or part.pool.fingerprint != first.pool.fingerprint
        ):
            raise ConfigurationError(
                f"runs on {part.task} are not those on {first.task}: names, curricula and pools must be the same"
            )
    tests = tuple(
        replace(example, id=f"{part.task}/{example.id}", task=part.task) for part in parts for example in part.tests
    )
    metrics = dict.fromkeys(metric for part in parts for metric in part.metrics)
    runs = []
    for index, run in enumerate(first.runs):
        shape = run.curriculum.steps + 1
        trajectories = {
            metric: np.concatenate(
                [
                    part.runs[index].trajectories.get(metric, np.full((shape, len(part.tests)), np.nan, np.float32))
                    for part in parts
                ],
                axis=1,
            )
            for metric in metrics
        }
        runs.append(replace(run, trajectories=trajectories))
    provenance = {
        **first.provenance,
        "folder": "+".join(part.provenance["folder"] for part in parts),
        "runs": {name: "+".join(part.provenance["runs"][name] for part in parts) for name in first.names},
    }
    return GPTDynamics(task, first.model, first.pool, TaskPool(f"{task}/tests", tests), tuple(runs), provenance)


def stack_curricula(curricula: Sequence[Curriculum] | np.ndarray) -> np.ndarray:
    """int32 [curricula, steps, widest] from curricula of equally many steps (an array of that shape is passed through)."""
    if isinstance(curricula, np.ndarray):
        return curricula
    steps = sorted({curriculum.steps for curriculum in curricula})
    if len(steps) != 1:
        raise ConfigurationError(
            f"curricula of different lengths cannot be simulated at once: {f'{steps} steps' if steps else 'none given'}; pass "
            "those with equally many steps together"
        )
    stacked = np.full((len(curricula), steps[0], max(each.batch_size for each in curricula)), NOBODY, np.int32)
    for row, curriculum in zip(stacked, curricula, strict=True):
        row[:, : curriculum.batch_size] = curriculum.batches
    return stacked
