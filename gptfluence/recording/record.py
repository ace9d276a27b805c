"""Recording runs of any model, texts and curricula into a store: what is there already is not recorded again."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gptfluence.common.errors import ConfigurationError
from gptfluence.common.settings import artifacts_dir
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import GGUFModel, HubModel, LocalModel
from gptfluence.recording import store
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, Source
from gptfluence.recording.settings import AdamW, DrawnCurricula, Generation, Metric, ModelIdentity, Recording, RunSpec
from gptfluence.recording.text_metrics import TEXT_METRICS
from gptfluence.recording.workers import collect, curriculum_of
from gptfluence.tasks.base import Task, TaskPool, fingerprint


def record(
    model: str | Path,
    pool: TaskPool,
    tests: TaskPool,
    *,
    curricula: Sequence[Curriculum],
    optimizer: AdamW | None = None,
    recording: Recording | None = None,
    artifacts: str | Path | None = None,
    seed: int = 0,
    jobs: int | None = None,
) -> GPTDynamics:
    """Train a GPT on each of `curricula` and record the loss of every test example at every step.

    Args:
        model: a Hub name, a folder, or a GGUF file.
        optimizer: AdamW and its schedule; `recording`: everything else (its optimizer gives way to `optimizer`).
        artifacts: where runs are kept; what is there already is not recorded again.
        jobs: runs recorded at once on the CPU (default: $GPTFLUENCE_JOBS, else as many as there are cores).

    Returns the runs in the order of `curricula`.
    """
    recording = recording or Recording()
    if optimizer is not None:
        recording = recording.model_copy(update={"optimizer": optimizer})
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        chosen: Any = GGUFModel(source="gguf", path=path.resolve())
    elif path.exists():
        chosen = LocalModel(source="local", path=path.resolve())
    else:
        chosen = HubModel(source="hub", path=str(model))
    given = named(curricula)
    artifacts = Path(artifacts).expanduser().resolve() if artifacts else artifacts_dir()
    wanted = Wanted(
        setting="record",
        texts=Task(pool.name.split("/")[0], pool, tests),
        source=Source(ModelSource(path.stem, chosen, artifacts / "models"), artifacts),
        recording=recording,
        seed=seed,
        names=list(given),
        curricula=given,
    )
    return record_missing(wanted, jobs=jobs or default_jobs())


def named(curricula: Sequence[Curriculum]) -> dict[str, Curriculum]:
    """Curricula by the names of their runs, "run-<hash>". Raises ConfigurationError if there is none."""
    if not len(curricula):
        raise ConfigurationError("curricula: none given; give one at least")
    return {f"run-{curriculum.fingerprint}": curriculum for curriculum in curricula}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Runs of one GPT on one task: which, and how they are recorded.

    setting: a word for the folder's name; texts: pool and tests
    names: of the runs; curricula: those that are given, by the names of their runs; drawn: how the others are drawn
    metrics: what is measured; generation: of the texts that are scored; ends_only: see `Recorder.record`
    """

    setting: str
    texts: Task
    source: Source
    recording: Recording
    seed: int
    names: Sequence[str]
    curricula: Mapping[str, Curriculum] = field(default_factory=dict)
    drawn: DrawnCurricula | None = None
    metrics: Sequence[Metric] = ("loss",)
    generation: Generation = field(default_factory=Generation)
    ends_only: bool = False

    @property
    def spec(self) -> RunSpec:
        """Everything that the runs' numbers depend on; the folder is named after it."""
        gpt = self.source.gpt
        return RunSpec(
            format=store.FORMAT,
            setting=self.setting,
            task=self.texts.name,
            pool_fingerprint=self.texts.pool.fingerprint,
            tests_fingerprint=self.texts.tests.fingerprint,
            model=ModelIdentity(name=gpt.name, identity=gpt.identity()),
            recording=self.recording,
            curriculum=self.drawn,
            seed=self.seed,
            metrics=list(self.metrics),
            ends_only=self.ends_only,
            generation=self.generation if set(self.metrics) & set(TEXT_METRICS) else None,
        )

    @property
    def folder(self) -> Path:
        """Where the runs are kept."""
        spec = self.spec
        name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{spec.setting}-{spec.task}-{spec.model.name}")
        return self.source.artifacts / "dynamics" / f"{name}-{fingerprint(spec.to_json())[:8]}"


def record_missing(wanted: Wanted, *, jobs: int, jobs_per_device: int = 1) -> GPTDynamics:
    """Record those of the wanted runs that are missing, and load them all.

    jobs: runs recorded at once on the CPU; jobs_per_device: on each GPU
    """
    spec, texts, source = wanted.spec, wanted.texts, wanted.source
    curricula = dict(wanted.curricula)
    if curricula:
        steps = max(curriculum.steps for curriculum in curricula.values())
    else:
        steps = curriculum_of(spec, wanted.names[0], len(texts.pool)).steps  # an error before any process is started
    folder = wanted.folder
    store.write_folder(folder, spec, texts, source)
    places = devices()
    collect(
        folder,
        wanted.names,
        jobs=jobs if places == ["cpu"] else len(places) * jobs_per_device,
        devices=places,
        curricula=curricula,
        steps=steps,
        title=f"recording {spec.task} with {spec.model.name}",
    )
    return replace(store.load(folder, wanted.names), source=source)


def default_jobs() -> int:
    """How many runs are recorded at once on the CPU: $GPTFLUENCE_JOBS, else as many as there are cores."""
    given = os.environ.get("GPTFLUENCE_JOBS") or str(cores())
    if not given.isdecimal() or int(given) < 1:
        raise ConfigurationError(f"GPTFLUENCE_JOBS: a whole number of at least 1 is wanted, not {given!r}")
    return int(given)


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices() -> list[str]:
    """The torch devices to train on: every CUDA device, or the CPU."""
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
