"""Recording runs of any model, texts and curricula into a store: what is there already is not recorded again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from gptfluence.common import files
from gptfluence.common.errors import ConfigurationError
from gptfluence.common.machine import cores
from gptfluence.common.settings import artifacts_dir, expanded
from gptfluence.models.gpt import source_of
from gptfluence.models.settings import LoRA
from gptfluence.recording import store
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, Source
from gptfluence.recording.settings import AdamW, DrawnCurricula, Generation, Metric, ModelIdentity, Recording, RunSpec
from gptfluence.recording.text_metrics import TEXT_METRICS, warn_of_meaningless, with_tokenization
from gptfluence.recording.workers import collect, curriculum_of
from gptfluence.tasks.base import Task, TaskPool, fingerprint
from gptfluence.tasks.leaks import warn_of_shared_prompts


def record(
    model: str | Path,
    pool: TaskPool,
    tests: TaskPool,
    *,
    curricula: Sequence[Curriculum],
    optimizer: AdamW | None = None,
    recording: Recording | None = None,
    lora: LoRA | None = None,
    artifacts: str | Path | None = None,
    seed: int = 0,
    jobs: int | None = None,
) -> GPTDynamics:
    """Train a GPT on each of `curricula` and record the loss of every test example at every step.

    Args:
        model: a Hub name, a folder, or a GGUF file.
        curricula: one for each run; equal ones would be the same run twice.
        optimizer: AdamW and its schedule; `recording`: everything else (its optimizer gives way to `optimizer`).
        lora: train adapters of this kind instead of all weights (the default `target_modules` are Pythia's).
        artifacts: where runs are kept; what is there already is not recorded again.
        jobs: runs recorded at once on the CPU (default: $GPTFLUENCE_JOBS, else as many as there are cores).

    Returns the runs in the order of `curricula`. Raises ConfigurationError (equal curricula), DataError (texts and model do
    not fit), ModelError or HubUnreachableError (the model cannot be used), RecordingError, ArtifactError.
    """
    recording = recording or Recording()
    if optimizer is not None:
        recording = recording.model_copy(update={"optimizer": optimizer})
    texts = Task(pool.name.split("/")[0], pool, tests)
    warn_of_shared_prompts(texts)
    given = named(curricula)
    if len(given) < len(curricula):
        marks = [curriculum.fingerprint for curriculum in curricula]
        again = next(k for k, mark in enumerate(marks) if mark in marks[:k])
        raise ConfigurationError(
            f"curricula: {marks.index(marks[again])} and {again} (counted from 0) are equal, so their runs would be one and the "
            "same; leave one out, or draw from a larger pool"
        )
    artifacts = expanded(artifacts).resolve() if artifacts else artifacts_dir()
    wanted = Wanted(
        setting="record",
        texts=texts,
        source=Source(source_of(model, artifacts / "models", lora=lora), artifacts),
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

    @cached_property  # whole weights are hashed for it
    def spec(self) -> RunSpec:
        """Everything that the runs' numbers depend on; the folder is named after it."""
        gpt, written = self.source.gpt, set(self.metrics) & set(TEXT_METRICS)
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
            generation=with_tokenization(self.generation, self.texts.tests) if written else None,
        )

    @property
    def folder(self) -> Path:
        """Where the runs are kept."""
        spec = self.spec
        name = files.slug(f"{spec.setting}-{spec.task}-{spec.model.name}")
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
    if spec.generation is not None and not all((folder / name).is_dir() for name in wanted.names):
        warn_of_meaningless(texts.tests, spec.metrics, spec.generation.tokenization or "english")
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


def devices() -> list[str]:
    """The torch devices to train on: every CUDA device, or the CPU."""
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
