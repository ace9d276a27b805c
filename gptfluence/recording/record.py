"""Recording runs of any model, texts and curricula into a store: what is there already is not recorded again."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptfluence.common.errors import ConfigurationError
from gptfluence.common.settings import artifacts_dir, canonical
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import GGUFModel, HubModel, LocalModel
from gptfluence.recording import store
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.settings import AdamW, Generation, Recording
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
    return record_missing(
        artifacts,
        setting="record",
        task=Task(pool.name.split("/")[0], pool, tests),
        model=ModelSource(path.stem, chosen, artifacts / "models"),
        recording=recording,
        drawn=None,
        seed=seed,
        names=list(given),
        curricula=given,
        jobs=jobs or default_jobs(),
        jobs_per_device=1,
    )


def named(curricula: Sequence[Curriculum]) -> dict[str, Curriculum]:
    """Curricula by the names of their runs, "run-<hash>". Raises ConfigurationError if there is none."""
    if not len(curricula):
        raise ConfigurationError("curricula: none given; give one at least")
    return {f"run-{curriculum.fingerprint}": curriculum for curriculum in curricula}


def record_missing(
    artifacts: Path,
    *,
    setting: str,
    task: Task,
    model: ModelSource,
    recording: Recording,
    drawn: dict | None,
    seed: int,
    names: list[str],
    curricula: dict[str, Curriculum],
    metrics: Sequence[str] = ("loss",),
    generation: Generation | None = None,
    ends_only: bool = False,
    jobs: int,
    jobs_per_device: int,
) -> GPTDynamics:
    """Record those runs of `names` that are missing and load them all.

    drawn: how curricula not given are drawn; ends_only: see `Recorder.record`
    """
    spec = {
        "format": store.FORMAT,
        "setting": setting,
        "task": task.name,
        "pool_fingerprint": task.pool.fingerprint,
        "tests_fingerprint": task.tests.fingerprint,
        "model": {"name": model.name, "identity": model.identity()},
        "recording": canonical(recording),
        "curriculum": drawn,
        "seed": seed,
    }
    if set(metrics) != {"loss"}:
        spec["metrics"] = sorted(metrics)
    if ends_only:
        spec["ends_only"] = True
    if set(metrics) & set(TEXT_METRICS):
        spec["generation"] = canonical(generation or Generation())
    if curricula:
        steps = max(curriculum.steps for curriculum in curricula.values())
    else:
        steps = curriculum_of(spec, names[0], len(task.pool)).steps  # says what is wrong before any process is started
    name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{setting}-{task.name}-{model.name}")
    folder = artifacts / "dynamics" / f"{name}-{fingerprint(spec)[:8]}"
    store.write_folder(folder, spec, task)
    places = devices()
    collect(
        folder,
        names,
        model={"name": model.name, "config": canonical(model.config), "corpus": model.corpus},
        models=artifacts / "models",
        jobs=jobs if places == ["cpu"] else len(places) * jobs_per_device,
        devices=places,
        curricula=curricula,
        steps=steps,
        title=f"recording {task.name} with {model.name}",
    )
    return store.load(folder, names)


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
