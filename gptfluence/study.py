"""A study: a profile, and the artifacts that follow from it.

Whatever is asked for is loaded if it was made before and made if it was not: recorded runs, fitted simulators. Each lies
in a folder whose name ends in a hash of everything it depends on.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gptfluence import config, evaluation, files
from gptfluence.config import Profile, Recording, Setting
from gptfluence.dynamics import store
from gptfluence.dynamics.collect import collect, curriculum_of
from gptfluence.dynamics.curriculum import Curriculum
from gptfluence.dynamics.gptdynamics import GPTDynamics
from gptfluence.errors import ConfigurationError, unknown
from gptfluence.models import ModelSource
from gptfluence.tasks import sources
from gptfluence.tasks.base import TASKS, Task, TaskPool, fingerprint

if TYPE_CHECKING:
    from gptfluence.dynamics.tangents import TangentFeatures
    from gptfluence.simulators.base import Simulator

# Overrides that change where things are read or how fast, but no number: figures keep the profile's name.
_NEUTRAL = re.compile(r"^(name|data_dir|jobs_per_device|tasks\.\w+\.(pool|tests)|models\.[\w.-]+\.path)$")


@dataclass(frozen=True)
class Study:
    """Use `Study.load`. `jobs`: runs recorded at once on the CPU."""

    profile: Profile
    label: str  # the profile's name; with overrides that change numbers, a hash of them behind it
    source: str = ""  # what `load` was given: a profile's name or a path
    overrides: tuple[str, ...] = ()
    artifacts: Path = field(default_factory=config.artifacts_dir)
    jobs: int = field(default_factory=lambda: _cores())

    @classmethod
    def load(
        cls,
        profile: str | Path = "mini",
        overrides: Iterable[str] | Mapping[str, Any] = (),
        *,
        artifacts: str | Path | None = None,
        jobs: int | None = None,
    ) -> Study:
        """Open a profile by name or path, with some of its fields replaced, e.g. `["settings.fine_tuning.runs.train=3"]`.

        artifacts: where recorded runs and fitted simulators are kept (default: `config.artifacts_dir()`).

        Raises ConfigurationError that names profile, field and remedy.
        """
        if isinstance(overrides, Mapping):
            overrides = [f"{name}={value}" for name, value in overrides.items()]
        overrides = (overrides,) if isinstance(overrides, str) else tuple(overrides)
        loaded = config.load_profile(profile, overrides)
        changes = sorted(text for text in overrides if not _NEUTRAL.match(text.partition("=")[0].strip()))
        named = any(text.partition("=")[0].strip() == "name" for text in overrides)
        label = loaded.name if named or not changes else f"{loaded.name}-{fingerprint(changes)[:6]}"
        options: dict[str, Any] = {}
        if artifacts is not None:
            options["artifacts"] = Path(artifacts).expanduser().resolve()
        if jobs is not None:
            if jobs < 1:
                raise ConfigurationError(f"jobs must be 1 or more, not {jobs}")
            options["jobs"] = jobs
        return cls(loaded, label, str(profile), overrides, **options)

    def with_overrides(self, *overrides: str) -> Study:
        """The same study with more fields replaced, e.g. `"settings.fine_tuning.runs.train=8"`."""
        return Study.load(self.source, (*self.overrides, *overrides), artifacts=self.artifacts, jobs=self.jobs)

    # --- what there is ---

    def setting(self, name: str = "fine_tuning") -> Setting:
        if name not in self.profile.settings:
            raise ConfigurationError(
                unknown("setting", name, self.profile.settings, where=f"profile {self.profile.name!r}: ")
            )
        return self.profile.settings[name]  # type: ignore[index]

    @cached_property
    def _tasks(self) -> dict[str, Task]:
        return {}

    def task(self, name: str) -> Task:
        """The texts of a task. Raises ConfigurationError (unknown), DataError (unusable), HubUnreachableError."""
        if name not in self.profile.tasks:
            problem = config.unknown_task(name, self.profile.tasks)
            raise ConfigurationError(f"profile {self.profile.name!r}: {problem}")
        if name not in self._tasks:
            self._tasks[name] = sources.load(
                name, self.profile.tasks[name], seed=self.profile.seed, data_dir=self.profile.data_dir
            )
        return self._tasks[name]

    def model(self, name: str) -> ModelSource:
        if name not in self.profile.models:
            where = f"profile {self.profile.name!r}: "
            raise ConfigurationError(unknown("model", name, self.profile.models, where=where))
        corpus = {"names": list(TASKS), "seed": self.profile.seed, "examples_per_task": 1000}
        return ModelSource(name, self.profile.models[name], self.artifacts / "models", corpus)

    # --- recorded runs ---

    def dynamics(
        self,
        setting: str = "fine_tuning",
        task: str = "sst2",
        *,
        model: str | None = None,
        metric: str | None = None,
    ) -> GPTDynamics:
        """The profile's runs of one task; those that are missing are recorded first.

        Raises errors of `gptfluence.errors` that name profile, run, step or example; what is recorded is kept.
        """
        return self._recorded(setting, task, model, self.setting(setting).runs.names, {})

    def record(
        self,
        curricula: Curriculum | Sequence[Curriculum],
        setting: str = "fine_tuning",
        task: str = "sst2",
        *,
        model: str | None = None,
    ) -> GPTDynamics:
        """Really train on curricula of one's own, from the same initial weights, to check what was simulated.

        The runs are named after their curricula (`run-<hash>`) and recorded once.
        """
        named = _named([curricula] if isinstance(curricula, Curriculum) else curricula)
        return self._recorded(setting, task, model, list(named), named)

    def _recorded(
        self, setting: str, task: str, model: str | None, names: list[str], curricula: dict[str, Curriculum]
    ) -> GPTDynamics:
        chosen = self.setting(setting)
        return _record_missing(
            self.artifacts,
            setting=setting,
            task=self.task(task),
            model=self.model(model or chosen.model),
            recording=chosen.recording.model_copy(update={"optimizer": chosen.recording.optimizer.for_task(task)}),
            drawn=config.canonical(chosen.curriculum),
            seed=self.profile.seed,
            names=names,
            curricula=curricula,
            jobs=self.jobs,
            jobs_per_device=self.profile.jobs_per_device,
        )

    # --- fitted simulators ---

    def simulator(
        self,
        name: str,
        setting: str = "fine_tuning",
        task: str = "sst2",
        *,
        metric: str = "loss",
        model: str | None = None,
    ) -> Simulator:
        """The simulator of this name in the profile, fitted on the training runs of a task (once; then loaded)."""
        return self._simulator(name, self.dynamics(setting, task, model=model), metric)

    def _simulator(self, name: str, dynamics: GPTDynamics, metric: str) -> Simulator:
        from gptfluence import encoders, simulators
        from gptfluence.simulators.base import FORMAT_VERSION, Simulator

        if name not in self.profile.simulators:
            where = f"profile {self.profile.name!r}: "
            raise ConfigurationError(unknown("method", name, self.profile.simulators, where=where))
        train, validation, _ = dynamics.split()
        options = dict(self.profile.simulators[name])
        kind = options.pop("kind", name)
        encoder = None
        if "encoder" in options:
            encoder = options["encoder"] = encoders.load(options["encoder"], cache=self.artifacts / "features")
        tangents = None
        if simulators.needs_tangents(kind):
            tangents = options["tangents"] = self._tangents(dynamics, options.get("tangents", {}))
        simulator = simulators.create(kind, **options)
        key = fingerprint(
            {
                # with its defaults, so that a fit made with other defaults is not taken for this one
                "simulator": [
                    kind,
                    {**simulator.hyperparameters(), "encoder": encoder.fingerprint if encoder else None},
                ],
                "metric": metric,
                "dynamics": dynamics.provenance["folder"],
                "runs": [dynamics.provenance["runs"][run] for run in train.names + validation.names],
                "format": FORMAT_VERSION,
            }
        )
        folder = self.artifacts / "simulators" / f"{name}-{dynamics.task}-{dynamics.model}-{metric}-{key[:8]}"
        with files.locked(folder.parent / f".{folder.name}.lock"):
            if folder.is_dir() and (problem := files.damage(folder)):
                aside = files.set_aside(folder)
                warnings.warn(f"{problem}; set aside as {aside.name}, fitting it again", stacklevel=2)
            if not folder.is_dir():
                fitted = simulator.fit(train, validation, metric=metric)
                with files.new_folder(folder, f"saving simulator {name}") as new:
                    fitted.save_pretrained(new)
        loaded = Simulator.from_pretrained(folder)
        if tangents is not None:
            loaded.tangents = tangents  # type: ignore[attr-defined]  # for examples that it was not fitted on
        return loaded

    def _tangents(self, dynamics: GPTDynamics, options: dict[str, Any]) -> TangentFeatures:
        """What takes gradients of the GPT that `dynamics` was recorded from; its checkpoints are of the first run."""
        from gptfluence.dynamics.tangents import TangentFeatures

        known = ("coordinates", "candidates", "mass", "checkpoints", "seed")
        for option in options:
            if option not in known:
                raise ConfigurationError(unknown("option", option, known, where="simulator 'tangent': tangents: "))
        if options.get("checkpoints"):
            options = {**options, "reference": dynamics.split()[0].curricula[0]}
        return TangentFeatures(
            self.model(dynamics.model),
            dynamics.pool,
            Recording.model_validate(dynamics.provenance["spec"]["recording"]),
            cache=self.artifacts / "tangents",
            device=_devices()[0],
            **options,
        )

    # --- predictions ---

    def simulate(
        self,
        setting: str = "fine_tuning",
        task: str = "sst2",
        *,
        metric: str = "loss",
        methods: Sequence[str] = (),
        model: str | None = None,
        observed: int = 1,
    ) -> tuple[GPTDynamics, dict[str, np.ndarray]]:
        """The held-out runs, and what each method predicts for them from their first `observed` values.

        Returns the recorded test runs and, for each method, float32 [runs, steps + 1, tests].
        """
        dynamics = self.dynamics(setting, task, model=model)
        test = dynamics.split()[2]
        if not len(test):
            raise ConfigurationError(
                f"profile {self.profile.name!r}: settings.{setting}.runs.test is 0; one held-out run at least is needed"
            )
        start = test.trajectories(metric)[:, :observed]
        predicted = {
            name: self._simulator(name, dynamics, metric).simulate(test.curricula, start)
            for name in self.methods(methods)
        }
        return test, predicted

    def methods(self, names: Sequence[str] = ()) -> list[str]:
        """These methods, or all of the profile's. Raises ConfigurationError for one the profile does not have."""
        for name in names:
            if name not in self.profile.simulators:
                where = f"profile {self.profile.name!r}: methods: "
                raise ConfigurationError(unknown("method", name, self.profile.simulators, where=where))
        return [name for name in self.profile.simulators if not names or name in names]

    def evaluate(
        self,
        setting: str = "fine_tuning",
        *,
        metric: str = "loss",
        tasks: Sequence[str] = (),
        methods: Sequence[str] = (),
        model: str | None = None,
    ) -> pd.DataFrame:
        """Every method on the held-out runs of every task.

        Returns a tidy frame: setting, task, model, metric, method, run, statistic, value (see `evaluation.evaluate`).
        """
        chosen = self.setting(setting)
        frames = []
        for task in tasks or chosen.tasks:
            train = self.dynamics(setting, task, model=model).split()[0]
            test, predicted = self.simulate(setting, task, metric=metric, methods=methods, model=model)
            for method, values in predicted.items():
                frame = evaluation.evaluate(values, test, metric=metric, reference=train)
                columns = {"setting": setting, "task": task, "model": test.model, "metric": metric, "method": method}
                frames.append(frame.assign(**columns)[[*columns, *frame.columns]])
        return pd.concat(frames, ignore_index=True)


# --- recording without a profile ---------------------------------------------------------------------------------------


def record(
    model: str | Path,
    pool: TaskPool,
    tests: TaskPool,
    *,
    curricula: Sequence[Curriculum],
    optimizer: config.AdamW | None = None,
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
        jobs: runs recorded at once on the CPU (default: as many as there are cores).

    Returns the runs in the order of `curricula`.
    """
    recording = recording or Recording()
    if optimizer is not None:
        recording = recording.model_copy(update={"optimizer": optimizer})
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        chosen: Any = config.GGUFModel(source="gguf", path=path.resolve())
    elif path.exists():
        chosen = config.LocalModel(source="local", path=path.resolve())
    else:
        chosen = config.HubModel(source="hub", path=str(model))
    named = _named(curricula)
    artifacts = Path(artifacts).expanduser().resolve() if artifacts else config.artifacts_dir()
    return _record_missing(
        artifacts,
        setting="record",
        task=Task(pool.name.split("/")[0], pool, tests),
        model=ModelSource(path.stem, chosen, artifacts / "models"),
        recording=recording,
        drawn=None,
        seed=seed,
        names=list(named),
        curricula=named,
        jobs=jobs or _cores(),
        jobs_per_device=1,
    )


def _named(curricula: Sequence[Curriculum]) -> dict[str, Curriculum]:
    if not len(curricula):
        raise ConfigurationError("curricula: none given; give one at least")
    return {f"run-{curriculum.fingerprint}": curriculum for curriculum in curricula}


def _record_missing(
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
    jobs: int,
    jobs_per_device: int,
) -> GPTDynamics:
    """Record those runs of `names` that are missing and load them all. `drawn`: how curricula not given are drawn."""
    spec = {
        "format": store.FORMAT,
        "setting": setting,
        "task": task.name,
        "pool_fingerprint": task.pool.fingerprint,
        "tests_fingerprint": task.tests.fingerprint,
        "model": {"name": model.name, "identity": model.identity()},
        "recording": config.canonical(recording),
        "curriculum": drawn,
        "seed": seed,
    }
    if curricula:
        steps = max(curriculum.steps for curriculum in curricula.values())
    else:
        steps = curriculum_of(spec, names[0], len(task.pool)).steps  # says what is wrong before any process is started
    name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{setting}-{task.name}-{model.name}")
    folder = artifacts / "dynamics" / f"{name}-{fingerprint(spec)[:8]}"
    store.write_folder(folder, spec, task)
    devices = _devices()
    collect(
        folder,
        names,
        model={"name": model.name, "config": config.canonical(model.config), "corpus": model.corpus},
        models=artifacts / "models",
        jobs=jobs if devices == ["cpu"] else len(devices) * jobs_per_device,
        devices=devices,
        curricula=curricula,
        steps=steps,
        title=f"recording {task.name} with {model.name}",
    )
    return store.load(folder, names)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices() -> list[str]:
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
