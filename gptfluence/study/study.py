"""A study: a profile, and the artifacts that follow from it.

Whatever is asked for is loaded if it was made before and made if it was not: recorded runs, fitted simulators. Each lies
in a folder whose name ends in a hash of everything it depends on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gptfluence.common import files
from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.common.settings import artifacts_dir, canonical
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import PublishedModel
from gptfluence.profile.load import load_profile, parse_overrides
from gptfluence.profile.schema import Profile, Setting
from gptfluence.published import importing
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, Source, join_tests
from gptfluence.recording.record import Wanted, default_jobs, named, record_missing
from gptfluence.recording.settings import DrawnCurricula
from gptfluence.scoring import evaluation
from gptfluence.simulators import METHODS, applicable
from gptfluence.simulators.options import Variant
from gptfluence.tasks import sources
from gptfluence.tasks.base import TASKS, Task, TaskPool, fingerprint
from gptfluence.tasks.instructions import mixture
from gptfluence.tasks.layouts import LAYOUTS
from gptfluence.tasks.settings import unknown_task

if TYPE_CHECKING:
    from gptfluence.models.encoders import Encoder
    from gptfluence.simulators.base import Simulator

# Overrides that change where things are read or how fast, but no number: figures keep the profile's name.
_NEUTRAL = re.compile(r"^(name|data_dir|jobs_per_device)$")


UNSEEN = ("training", "test", "both")


@dataclass(frozen=True)
class Study:
    """Use `Study.load`. `jobs`: runs recorded at once on the CPU."""

    profile: Profile
    label: str  # the profile's name; with overrides that change numbers, a hash of them behind it
    source: str = ""  # what `load` was given: a profile's name or a path
    overrides: tuple[str, ...] = ()
    artifacts: Path = field(default_factory=artifacts_dir)
    jobs: int = field(default_factory=default_jobs)

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

        artifacts: where recorded runs and fitted simulators are kept (default: `artifacts_dir()`).

        Raises ConfigurationError that names profile, field and remedy.
        """
        if isinstance(overrides, Mapping):
            overrides = [f"{name}={value}" for name, value in overrides.items()]
        overrides = (overrides,) if isinstance(overrides, str) else tuple(overrides)
        loaded = load_profile(profile, overrides)
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
    def _tasks(self) -> dict[Any, Any]:
        return {}

    def task(self, name: str) -> Task:
        """The texts of a task. Raises ConfigurationError (unknown), DataError (unusable), HubUnreachableError."""
        return self._parts(name)[0]

    def unseen(self, name: str) -> Task:
        """Further texts of a task, none of them in its pool or tests (`unseen_pool_size` and `unseen_test_size`).

        Raises ConfigurationError if the profile keeps none apart.
        """
        unseen = self._parts(name)[1]
        if unseen is None:
            raise ConfigurationError(
                f"profile {self.profile.name!r}: tasks.{name}: no unseen examples are kept apart; set unseen_pool_size and "
                "unseen_test_size, both above 0"
            )
        return unseen

    def _parts(self, name: str) -> tuple[Task, Task | None]:
        """The task, and its unseen part if the profile keeps one."""
        if name not in self.profile.tasks:
            problem = unknown_task(name, self.profile.tasks)
            raise ConfigurationError(f"profile {self.profile.name!r}: {problem}")
        if name not in self._tasks:
            given = self.profile.tasks[name]
            self._tasks[name] = sources.load_parts(name, given, seed=self.profile.seed, data_dir=self.profile.data_dir)
        return self._tasks[name]

    def _texts(self, setting: str, task: str | Task | None, unseen: str | None) -> tuple[Task, list[int] | None]:
        """What runs of a setting train on and are tested on, and the sizes of a mixture's parts.

        unseen: None; "training": the unseen pool, tested on known and unseen tests; "test": the known pool, unseen tests
        """
        chosen = self.setting(setting)
        if isinstance(task, Task):
            return task, None
        if setting == "instruction_tuning":
            key = (setting, unseen)
            if key not in self._tasks:
                self._tasks[key] = self._mixture(chosen, unseen)
            return self._tasks[key]
        return self._one(chosen, task or chosen.tasks[0], unseen), None

    def _mixture(self, chosen: Setting, unseen: str | None) -> tuple[Task, list[int]]:
        """Unseen parts may be kept by some tasks only: of the others the known examples are trained on, and none tested."""
        kept = [name for name in chosen.tasks if unseen is None or self._parts(name)[1] is not None]
        if not kept:
            self.unseen(chosen.tasks[0])  # says what to set
        texts = {name: self._one(chosen, name, unseen if name in kept else None) for name in chosen.tasks}
        return mixture(texts, [name for name in _tested_tasks(chosen) if name in kept], self.profile.seed)

    def _one(self, chosen: Setting, name: str, unseen: str | None) -> Task:
        known = _first(self.task(name), chosen)
        if unseen is None:
            return known
        other = _first(self.unseen(name), chosen)
        if unseen == "test":
            return Task(name, known.pool, other.tests)
        return Task(name, other.pool, TaskPool(known.tests.name, (*known.tests, *other.tests)))

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
        task: str | Task | None = None,
        *,
        model: str | None = None,
        metric: str | None = None,
    ) -> GPTDynamics:
        """The profile's runs of one task (in instruction tuning: of the mixture); those missing are recorded first.
        Published ones must have been imported.

        task: a task of the profile, or texts of one's own
        metric: only the test examples that have it. In instruction tuning `task` leaves that task's test examples.

        Raises errors of `gptfluence.common.errors` that name profile, run, step or example; what is recorded is kept.
        """
        chosen = self.setting(setting)
        source = self.model(model or chosen.model).config
        if isinstance(source, PublishedModel):
            dynamics = self._published(source, setting, task)
        else:
            dynamics = self._recorded(setting, task, model, chosen.runs.names, {})
        if metric is not None:
            dynamics = dynamics.for_metric(metric)
        if setting == "instruction_tuning" and task is not None:
            dynamics = dynamics.of_tests(_rows_of(dynamics, task))
        return dynamics

    def unseen_dynamics(
        self, setting: str = "fine_tuning", task: str | None = None, *, unseen: str, model: str | None = None
    ) -> GPTDynamics:
        """`unseen_runs` runs on examples that no simulator was fitted on (paper, section 4.5; tables 11 and 12).

        unseen: "training": curricula over the unseen pool, the known tests; "test": curricula over the known pool, the
            unseen tests; "both".
        """
        if unseen not in UNSEEN:
            raise ConfigurationError(unknown("value", unseen, UNSEEN, where="unseen: "))
        names = [f"test-{index:03d}" for index in range(self.setting(setting).unseen_runs)]
        where = "test" if unseen == "test" else "training"
        dynamics = self._recorded(setting, task, model, names, {}, unseen=where)
        if unseen == "test":
            return dynamics
        known = {example.id for example in self._texts(setting, task, None)[0].tests}
        rows = [row for row, e in enumerate(dynamics.tests) if (e.id in known) == (unseen == "training")]
        return dynamics.of_tests(rows)

    def _published(self, source: PublishedModel, setting: str, task: str | None) -> GPTDynamics:
        chosen = self.setting(setting)
        tasks = _tested_tasks(chosen) if setting == "instruction_tuning" else [task or chosen.tasks[0]]
        parts = []
        for name in tasks:
            if name not in self.profile.tasks:
                problem = unknown_task(name, self.profile.tasks)
                raise ConfigurationError(f"profile {self.profile.name!r}: {problem}")
            folder = importing.find(self.artifacts / "dynamics", source, setting=setting, task=name)
            seeds = source.seeds[name].model_dump() if name in source.seeds else None
            parts.append(importing.load(folder, chosen.runs, seeds))
        return parts[0] if len(parts) == 1 else join_tests("mixture", parts)

    def record(
        self,
        curricula: Curriculum | Sequence[Curriculum],
        setting: str = "fine_tuning",
        task: str | Task | None = None,
        *,
        model: str | None = None,
        ends_only: bool = False,
    ) -> GPTDynamics:
        """Really train on curricula of one's own, from the same initial weights, to check what was simulated.

        The runs are named after their curricula (`run-<hash>`) and recorded once. ends_only: measured before the first and
        after the last step only, which saves most of the time where there are many tests; other steps are nan.
        """
        name = model or self.setting(setting).model
        if isinstance(self.model(name).config, PublishedModel):
            raise ConfigurationError(
                f"profile {self.profile.name!r}: model {name!r} has published runs only and cannot be trained; record "
                "with a profile whose model has another `source`"
            )
        given = named([curricula] if isinstance(curricula, Curriculum) else curricula)
        return self._recorded(setting, task, model, list(given), given, ends_only=ends_only)

    def _recorded(
        self,
        setting: str,
        task: str | None,
        model: str | None,
        names: list[str],
        curricula: dict[str, Curriculum],
        unseen: str | None = None,
        ends_only: bool = False,
    ) -> GPTDynamics:
        chosen = self.setting(setting)
        model = model or chosen.model
        texts, groups = self._texts(setting, task, unseen)
        optimizer = chosen.recording.optimizer.for_one(model if setting == "instruction_tuning" else texts.name)
        drawn = canonical(chosen.curriculum.for_model(model))
        wanted = Wanted(
            setting=setting if unseen is None else f"{setting}-unseen_{unseen}",
            texts=texts,
            source=Source(self.model(model), self.artifacts),
            recording=chosen.recording.model_copy(update={"optimizer": optimizer}),
            drawn=DrawnCurricula(**drawn, groups=groups or None),
            metrics=_metrics_of({bool(example.choices) for example in texts.tests}, chosen.metrics),
            generation=chosen.generation,
            seed=self.profile.seed,
            names=names,
            curricula=curricula,
            ends_only=ends_only,
        )
        return record_missing(wanted, jobs=self.jobs, jobs_per_device=self.profile.jobs_per_device)

    # --- fitted simulators ---

    def simulator(
        self,
        name: str,
        setting: str = "fine_tuning",
        task: str | Task | None = None,
        *,
        metric: str = "loss",
        model: str | None = None,
        tests: Sequence[int] | None = None,
    ) -> Simulator:
        """The simulator of this name in the profile, fitted on the training runs of a task (once; then loaded).

        name: may change options of the profile's: "gptfluence markov_order=2". In instruction tuning one simulator is
            fitted on the tests of all tasks.
        tests: fit on the test examples at these positions alone (of those that have the metric)
        """
        fitted_on = None if setting == "instruction_tuning" else task
        dynamics = self.dynamics(setting, fitted_on, model=model, metric=metric)
        return self._simulator(name, dynamics if tests is None else dynamics.of_tests(tests), metric)

    def variant(self, name: str, **changes: Any) -> Variant:
        """A method of the profile, with some options changed."""
        known, *texts = name.split()
        if known not in self.profile.simulators:
            where = f"profile {self.profile.name!r}: methods: "
            raise ConfigurationError(unknown("method", known, self.profile.simulators, where=where))
        variant = Variant(known, "", self.profile.simulators[known])
        return variant.with_(**parse_overrides(texts), **changes)

    def _simulator(self, name: str, dynamics: GPTDynamics, metric: str) -> Simulator:
        from gptfluence.simulators.base import Simulator, fit_key

        variant = self.variant(name)
        simulator = variant.create()
        if not isinstance(simulator, Simulator):
            raise ConfigurationError(
                f"method {name!r} is no simulator: it needs the checkpoints of the very run it explains; Study.simulate "
                "predicts the held-out runs with it"
            )
        simulator.bind(dynamics, load_encoder=self._encoder)
        train, validation, _ = dynamics.split()
        key = fit_key(simulator, dynamics, metric)
        folder = self.artifacts / "simulators" / f"{variant.method}-{dynamics.task}-{dynamics.model}-{metric}-{key[:8]}"
        files.made(folder, partial(_fit_and_save, simulator, train, validation, metric), what=f"simulator {name}")
        del simulator  # it may hold gigabytes
        return Simulator.from_pretrained(folder).bind(dynamics, load_encoder=self._encoder)

    def _encoder(self, spec: str) -> Encoder:
        """An encoder by what `encoders.load` calls it, or a model of the profile (its last token)."""
        from gptfluence.models import encoders

        of_model = spec in self.profile.models
        found = f"{self.model(spec).location()}:last" if of_model else spec
        encoder = encoders.load(found, cache=self.artifacts / "features")
        encoder.name = spec
        return encoder

    # --- predictions ---

    def simulate(
        self,
        setting: str = "fine_tuning",
        task: str | None = None,
        *,
        metric: str = "loss",
        methods: Sequence[str] = (),
        model: str | None = None,
        observed: int = 1,
        unseen: str | None = None,
    ) -> tuple[GPTDynamics, dict[str, np.ndarray]]:
        """The held-out runs, and what each method predicts for them from their first `observed` values.

        unseen: predict runs of `unseen_dynamics` instead.

        Returns the recorded test runs and, for each method, float32 [runs, steps + 1, tests]. TracIn-CP and Grad-Dot
        predict the loss of known examples only: otherwise they are left out, and an error if nothing else is asked for.
        """
        whole = self._simulate(setting, task, metric, methods, model, observed, unseen)
        return self._of_task(*whole, setting, task, metric, observed, unseen)[1:]

    def _simulate(
        self,
        setting: str,
        task: str | None,
        metric: str,
        methods: Sequence[str],
        model: str | None,
        observed: int,
        unseen: str | None,
    ) -> tuple[GPTDynamics, GPTDynamics, dict[str, np.ndarray]]:
        """What simulators were fitted on, the held-out runs, and the predictions; of a mixture all tasks' tests."""
        # in instruction tuning a simulator is fitted on all tasks' tests, whichever task is looked at
        dynamics = self.dynamics(setting, None if setting == "instruction_tuning" else task, model=model, metric=metric)
        if unseen is None:
            test = dynamics.split()[2]
        else:
            test = self.unseen_dynamics(setting, task, unseen=unseen, model=model).for_metric(metric)
        if not len(test):
            raise ConfigurationError(
                f"profile {self.profile.name!r}: settings.{setting}.runs.test is 0; one held-out run at least is needed"
            )
        start = test.trajectories(metric)[:, :observed]
        variants = {name: self.variant(name) for name in self.methods(methods, setting)}
        left = applicable(list(variants.values()), metric, known=unseen is None)
        along = [Variant(name, "", options).create() for name, options in self.profile.simulators.items()]
        predicted = {}
        for name, variant in variants.items():
            if variant in left:
                if METHODS[variant.kind].load().replays:
                    predictor = variant.create().bind(dynamics, together=along)
                    predicted[name] = predictor.predict(test, observed, metric=metric)
                else:
                    fitted = self._simulator(name, dynamics, metric)
                    predicted[name] = fitted.simulate(test.curricula, start, pool=test.pool, tests=test.tests)
        return dynamics, test, predicted

    def _of_task(
        self,
        dynamics: GPTDynamics,
        test: GPTDynamics,
        predicted: Mapping[str, np.ndarray],
        setting: str,
        task: str | None,
        metric: str,
        observed: int,
        unseen: str | None,
    ) -> tuple[GPTDynamics, GPTDynamics, dict[str, np.ndarray]]:
        """What `_simulate` found, of one task of a mixture."""
        if setting != "instruction_tuning" or task is None:
            return dynamics, test, dict(predicted)
        rows = _rows_of(test, task)
        dynamics, test = dynamics.of_tests(_rows_of(dynamics, task)), test.of_tests(rows)
        predicted = {name: values[:, :, rows] for name, values in predicted.items()}
        if unseen is not None:
            # the mean of this task's tests: fitted on all tasks' it would give unseen ones the mean change of these all
            for name in predicted:
                if self.variant(name).kind == "mean_trajectory":
                    predicted[name] = _mean_trajectory(dynamics.split()[0], test, metric, observed)
        return dynamics, test, predicted

    def methods(self, names: Sequence[str] = (), setting: str = "fine_tuning") -> list[str]:
        """These methods, or all that a setting compares. Raises ConfigurationError for one the profile does not have."""
        for name in names:
            self.variant(name)
        return list(names) or self.setting(setting).methods or list(self.profile.simulators)

    def evaluate(
        self,
        setting: str = "fine_tuning",
        *,
        metric: str = "loss",
        tasks: Sequence[str] = (),
        methods: Sequence[str] = (),
        model: str | None = None,
        observed: int = 1,
        unseen: str | None = None,
    ) -> pd.DataFrame:
        """Every method on the held-out runs of every task.

        Returns a tidy frame: setting, task, model, metric, method, run, statistic, value (see `evaluation.evaluate`).
        """
        frames, whole = [], None
        for task in tasks or self.tested(setting, metric):
            if whole is None or setting != "instruction_tuning":  # a mixture's tasks are simulated together
                whole = self._simulate(setting, task, metric, methods, model, observed, unseen)
            dynamics, test, predicted = self._of_task(*whole, setting, task, metric, observed, unseen)
            train = dynamics.split()[0]
            reference: Any = train if unseen is None else _mean_trajectory(train, test, metric, observed)
            for method, values in predicted.items():
                frame = evaluation.evaluate(values, test, metric=metric, observed=observed, reference=reference)
                columns = {"setting": setting, "task": task, "model": test.model, "metric": metric, "method": method}
                frames.append(frame.assign(**columns)[[*columns, *frame.columns]])
        return pd.concat(frames, ignore_index=True)

    def tested(self, setting: str = "fine_tuning", metric: str = "loss") -> list[str]:
        """The tasks of a setting that are tested and have the metric."""
        chosen = self.setting(setting)
        if metric not in chosen.metrics:
            raise ConfigurationError(
                unknown("metric", metric, chosen.metrics, where=f"profile {self.profile.name!r}: settings.{setting}: ")
            )
        return [task for task in _tested_tasks(chosen) if metric in _metrics_of({self.is_labelled(task)}, [metric])]

    def is_labelled(self, task: str) -> bool:
        """Whether a task's targets are labels, by the profile alone: texts may be far away."""
        given = self.profile.tasks[task]
        label = getattr(given, "label", None)
        return label is not None or (given.source != "local" and task in LAYOUTS and LAYOUTS[task].label is not None)

    def is_published(self, model: str) -> bool:
        """Whether a model has published runs only and cannot be trained on other curricula."""
        return isinstance(self.profile.models[model], PublishedModel)

    def keeps_unseen(self, task: str) -> bool:
        """Whether the profile keeps training and test examples of a task apart."""
        return getattr(self.profile.tasks[task], "unseen_pool_size", 0) > 0

    def is_fitted(self, method: str) -> bool:
        """Whether a method of the profile is fitted on runs, and takes time for it."""
        kind = METHODS[self.variant(method).kind].load()
        return not kind.trivial and not kind.replays


def _fit_and_save(simulator: Simulator, train: GPTDynamics, validation: GPTDynamics, metric: str, folder: Path) -> None:
    simulator.fit(train, validation, metric=metric)
    light = {"gradients": False} if "tangents" in simulator.needs else {}  # they lie in the cache of tangents
    simulator.save_pretrained(folder, **light)


def _first(task: Task, setting: Setting) -> Task:
    """The first examples of a task, as many as the setting uses."""
    if setting.pool_size is None and setting.test_size is None:
        return task
    pool, tests = task.pool[: setting.pool_size], task.tests[: setting.test_size]
    return Task(task.name, TaskPool(task.pool.name, pool), TaskPool(task.tests.name, tests))


def _tested_tasks(setting: Setting) -> list[str]:
    return [task for task in setting.tasks if not setting.test_tasks or task in setting.test_tasks]


def _rows_of(dynamics: GPTDynamics, task: str) -> list[int]:
    rows = [row for row, example in enumerate(dynamics.tests) if example.task == task]
    if not rows:
        raise ConfigurationError(unknown("task", task, dict.fromkeys(example.task for example in dynamics.tests)))
    return rows


def _mean_trajectory(train: GPTDynamics, test: GPTDynamics, metric: str, observed: int) -> np.ndarray:
    """What the mean trajectory of `train` says of runs whose examples it may not know: [runs, steps + 1, tests]."""
    from gptfluence.simulators.reference import MeanTrajectory

    start = test.trajectories(metric)[:, :observed]
    fitted = MeanTrajectory().fit(train, metric=metric)
    return fitted.simulate(test.curricula, start, pool=test.pool, tests=test.tests)


def _metrics_of(labelled: set[bool], metrics: Sequence[str]) -> list[str]:
    """Those metrics that some of the tests have: accuracy needs labels, BLEU and ROUGE-L free text."""
    needed = {"loss": labelled, "accuracy": {True}, "bleu": {False}, "rouge_l": {False}}
    return [metric for metric in metrics if needed[metric] & labelled]
