"""A campaign: one GPT on one task or mixture, with its texts, recorded runs, fitted simulators and predictions.

Runs and fitted simulators are cached: each is loaded if it exists and computed otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from pydantic import ValidationError

from gptfluence.common import files
from gptfluence.common.errors import ConfigurationError, OutOfReachError, unknown
from gptfluence.profile.load import explain
from gptfluence.profile.schema import Setting
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.record import Wanted, named
from gptfluence.recording.settings import Metric
from gptfluence.recording.store import missing_runs
from gptfluence.simulators.methods import applicable
from gptfluence.simulators.options import Variant
from gptfluence.study.predictions import Predictions
from gptfluence.study.runs import Recorded, RunSource, metrics_of
from gptfluence.study.texts import Texts, checked_unseen
from gptfluence.tasks.base import Task

if TYPE_CHECKING:
    from gptfluence.simulators.base import Predictor, Simulator
    from gptfluence.study.study import Study

Method = str | Variant


@dataclass(frozen=True)
class Campaign:
    """Made by `Study.campaign`.

    setting_name, setting: the way of training, with the learning rate and the epochs of this campaign; model: the GPT's name
    task: what it is trained on: a task, or "mixture"; tasks: those of its tests that are asked about
    own_texts: texts that replace the profile's
    """

    study: Study
    setting_name: str
    setting: Setting
    model: str
    task: str
    tasks: tuple[str, ...]
    is_mixture: bool
    source: RunSource
    own_texts: Task | None = None

    def __repr__(self) -> str:
        return f"Campaign: {self.study.label}, {self.setting_name}, {self.task}, {self.model}"

    # --- variations ---

    def with_(
        self,
        *,
        learning_rate: float | None = None,
        subset_size: int | None = None,
        metrics: Sequence[Metric] | None = None,
        runs: Mapping[str, int] | None = None,
        record_pool: bool | None = None,
        texts: Task | None = None,
    ) -> Campaign:
        """The same campaign with other numbers, or other texts; its runs are recorded apart.

        runs: how many for each part, e.g. {"train": 8}; the other parts keep their number

        Raises ConfigurationError that names the field.
        """
        values = self.setting.model_dump()
        if learning_rate is not None:
            values["recording"]["optimizer"]["learning_rate"] = learning_rate
        if subset_size is not None:
            values["curriculum"]["subset_size"] = subset_size
        if metrics is not None:
            values["metrics"] = list(metrics) or ["loss"]
        if runs is not None:
            values["runs"] |= dict(runs)
        if record_pool is not None:
            values["recording"]["record_pool"] = record_pool
        try:
            setting = Setting.model_validate(values)
        except ValidationError as error:
            raise ConfigurationError(explain(error, f"{self!r}: with_")) from None
        return replace(self, setting=setting, own_texts=texts or self.own_texts)

    @property
    def losses_only(self) -> Campaign:
        """The same campaign with nothing recorded but losses: its further runs need no generated texts."""
        return self.with_(metrics=["loss"])

    def only(self, tasks: Sequence[str]) -> Campaign:
        """The same campaign, asked about the tests of these tasks. Raises ConfigurationError for one it does not test."""
        for task in tasks:
            if task not in self.tasks:
                raise ConfigurationError(unknown("task", task, self.tasks))
        return replace(self, tasks=tuple(task for task in self.tasks if task in tasks) or self.tasks)

    # --- texts and runs ---

    @property
    def texts(self) -> Task:
        """The examples that runs are trained and tested on."""
        return self._known_texts.task

    @cached_property
    def _known_texts(self) -> Texts:
        return Texts(self.own_texts) if self.own_texts is not None else self._of_profile(None)

    def _of_profile(self, unseen: str | None) -> Texts:
        texts = self.study.texts
        if self.is_mixture:
            return texts.of_mixture(self.setting, unseen)
        return texts.of_task(self.setting, self.task, unseen)

    def tested(self, metric: Metric) -> list[str]:
        """Those of `tasks` whose tests have the metric. Raises ConfigurationError for one that is not recorded."""
        if metric not in self.setting.metrics:
            where = f"profile {self.study.profile.name!r}: settings.{self.setting_name}: "
            raise ConfigurationError(unknown("metric", metric, self.setting.metrics, where=where))
        return [task for task in self.tasks if metrics_of({self._is_labelled(task)}, [metric])]

    def _is_labelled(self, task: str) -> bool:
        if self.own_texts is None:
            return self.study.is_labelled(task)
        return bool(self.own_texts.tests[0].choices)

    def dynamics(self, metric: Metric | None = None) -> GPTDynamics:
        """The profile's runs; those that are missing are recorded first, published ones must have been imported.

        metric: only the test examples that have it

        Raises errors of `common/errors.py` that name profile, run, step or example; what is recorded is kept.
        """
        recorded = self._recorded
        return recorded if metric is None else recorded.for_metric(metric)

    @cached_property
    def _recorded(self) -> GPTDynamics:
        return self.source.of_profile(self.setting, self._known_texts if self.source.trains else None)

    def wanted(self, unseen: str | None = None) -> Wanted:
        """What is recorded for the profile's runs, or for its runs on unseen examples ("training", "test").

        Raises ConfigurationError if the GPT has published runs only.
        """
        if not isinstance(self.source, Recorded):
            raise ConfigurationError(f"{self!r}: its runs were published with the paper; nothing is recorded for it")
        names = self.setting.runs.names if unseen is None else self._unseen_names
        texts = self._known_texts if unseen is None else self._of_profile(unseen)
        return self.source.wanted(self.setting, texts, names, unseen=unseen)

    @property
    def _unseen_names(self) -> list[str]:
        return [f"test-{index:03d}" for index in range(self.setting.unseen_runs)]

    def held_out(self, metric: Metric = "loss") -> GPTDynamics:
        """The held-out runs. Raises ConfigurationError if there are none."""
        test = self.dynamics(metric).split()[2]
        if not len(test):
            raise ConfigurationError(
                f"profile {self.study.profile.name!r}: settings.{self.setting_name}.runs.test is 0; one held-out run at least is needed"
            )
        return test

    def unseen(self, which: str, metric: Metric | None = None) -> GPTDynamics:
        """`unseen_runs` runs on examples that no simulator was fitted on (paper, section 4.5; tables 11 and 12).

        which: "training": curricula over the unseen pool, the known tests; "test": curricula over the known pool, the
            unseen tests; "both"
        """
        part = "test" if checked_unseen(which) == "test" else "training"
        if self.own_texts is not None:
            raise ConfigurationError(f"{self!r}: texts of one's own keep no unseen examples apart; ask the profile's")
        dynamics = self.source.of_curricula(self.setting, self._of_profile(part), self._unseen_names, unseen=part)
        if which != "test":
            known = {example.id for example in self.texts.tests}
            rows = [row for row, e in enumerate(dynamics.tests) if (e.id in known) == (which == "training")]
            dynamics = dynamics.of_tests(rows)
        return dynamics if metric is None else dynamics.for_metric(metric)

    def record(self, curricula: Curriculum | Sequence[Curriculum], *, ends_only: bool = False) -> GPTDynamics:
        """Really train on curricula of one's own, from the same initial weights, to check what was simulated.

        The runs are named after their curricula (`run-<hash>`) and recorded once. ends_only: measured before the first and
        after the last step only, which saves most of the time where there are many tests; other steps are nan.
        """
        given = named([curricula] if isinstance(curricula, Curriculum) else curricula)
        texts = self._known_texts if self.source.trains else None
        return self.source.of_curricula(self.setting, texts, given, ends_only=ends_only)

    # --- simulators ---

    def variants(self, methods: Sequence[Method] = ()) -> list[Variant]:
        """These methods, or all that the setting compares, as variants. Raises ConfigurationError for an unknown one."""
        return [self.variant(method) for method in methods or self.study.methods((), self.setting_name)]

    def variant(self, method: Method) -> Variant:
        return method if isinstance(method, Variant) else self.study.variant(method, self.setting_name)

    def simulator(self, method: Method, *, metric: Metric = "loss", tests: Sequence[int] | None = None) -> Simulator:
        """The simulator of a method, fitted on the training runs (once, then loaded).

        tests: fit on the test examples at these positions alone (of those that have the metric)
        """
        from gptfluence.simulators.base import Simulator

        dynamics = self.dynamics(metric)
        dynamics = dynamics if tests is None else dynamics.of_tests(tests)
        folder = self._fitted(self.variant(method), dynamics, metric)  # nothing of the fit, which may hold gigabytes
        return Simulator.from_pretrained(folder).bind(dynamics, load_encoder=self.study.encoder)

    def _fitted(self, variant: Variant, dynamics: GPTDynamics, metric: Metric) -> Path:
        """The folder of a simulator that is fitted on these runs."""
        from gptfluence.simulators.base import Simulator, fit_key

        simulator = variant.create()
        if not isinstance(simulator, Simulator):
            raise ConfigurationError(
                f"method {variant.method!r} is no simulator: it needs the checkpoints of the very run it explains; "
                "Campaign.predict predicts the held-out runs with it"
            )
        simulator.bind(dynamics, load_encoder=self.study.encoder)

        def fit(folder: Path) -> None:
            train, validation, _ = dynamics.split()
            simulator.fit(train, validation, metric=metric)
            gradients = (
                {"gradients": False} if "tangents" in simulator.needs else {}
            )  # they lie in the cache of tangents
            simulator.save_pretrained(folder, **gradients)

        key = fit_key(simulator, dynamics, metric)[:8]
        name = f"{files.slug(f'{variant.method}-{dynamics.task}-{dynamics.model}-{metric}')}-{key}"
        return files.made(self.study.artifacts / "simulators" / name, fit, what=f"simulator {variant}")

    # --- predictions ---

    def check_gpt(self, methods: Sequence[Method] = ()) -> None:
        """Raise ModelError, before runs that are missing are recorded, if a method cannot replay runs of this GPT."""
        replaying = [method for method in (self.variant(one).create() for one in methods) if method.replays]
        if not replaying or not isinstance(self.source, Recorded) or "_recorded" in vars(self):
            return
        wanted = self.wanted()
        if missing_runs(wanted.folder, wanted.names):
            gpt = self.source.model.load()
            for method in replaying:
                method.check_gpt(gpt)

    def predict(
        self,
        methods: Sequence[Method] = (),
        *,
        metric: Metric = "loss",
        observed: int = 1,
        runs: GPTDynamics | None = None,
    ) -> Predictions:
        """What each method predicts for the held-out runs, or for `runs`, from their first `observed` values.

        Methods that replay the run they explain (TracIn-CP, Grad-Dot) predict the loss of the held-out runs only. They are
        left out elsewhere, and an error if nothing else is asked for.

        Raises OutOfReachError if a simulator can say nothing of examples that it was not fitted on.
        """
        chosen = applicable(self.variants(methods), metric, known=runs is None)
        [found] = self.predict_each(chosen, [runs], metric=metric, observed=observed)
        for reason in found.refused.values():
            raise OutOfReachError(reason)
        return found

    def predict_each(
        self,
        methods: Sequence[Method],
        asked: Sequence[GPTDynamics | None],
        *,
        metric: Metric = "loss",
        observed: int = 1,
        tests: Sequence[int] | None = None,
    ) -> list[Predictions]:
        """`predict` for several sets of runs (None: the held-out ones), but a refusal is noted, not raised.

        Each simulator is loaded once, and none while another is (some hold gigabytes). tests: as in `simulator`
        """
        variants = self.variants(methods)
        chosen = applicable(variants, metric, known=all(given is None for given in asked))
        self.check_gpt(chosen)
        recorded = [self.held_out(metric) if runs is None else runs.for_metric(metric) for runs in asked]
        found = [
            self.predictions(runs, metric, observed, held_out=given is None)
            for runs, given in zip(recorded, asked, strict=True)
        ]
        for predictions in found:
            reason = "it replays the held-out runs, and predicts nothing but their loss"
            predictions.refused.update({variant: reason for variant in variants if variant not in chosen})
        for variant in chosen if asked else ():
            predictor = self._predictor(variant, metric, tests)
            for predictions in found:
                try:
                    predictions.values[variant] = predictor.predict(predictions.recorded, observed, metric=metric)
                except OutOfReachError as error:
                    predictions.refused[variant] = str(error)
            del predictor  # before the next is loaded
        return found

    def _predictor(self, variant: Variant, metric: Metric, tests: Sequence[int] | None) -> Predictor:
        """A method that is ready to predict: a fitted simulator, or one that replays the runs that it explains."""
        predictor = variant.create()
        if not predictor.replays:
            return self.simulator(variant, metric=metric, tests=tests)
        replaying = [one for one in (variant.create() for variant in self.variants()) if one.replays]
        return predictor.bind(self.dynamics(metric), together=replaying)  # one replay of a run serves all of them

    def predictions(
        self, runs: GPTDynamics, metric: Metric = "loss", observed: int = 1, *, held_out: bool = False
    ) -> Predictions:
        """Predictions for `runs`, with no method yet."""
        return Predictions(self, metric, observed, runs, held_out, self.dynamics(metric).split()[0])

    def evaluate(
        self,
        methods: Sequence[Method] = (),
        *,
        metric: Metric = "loss",
        observed: int = 1,
        runs: GPTDynamics | None = None,
    ) -> pd.DataFrame:
        """Every method on the held-out runs, or on `runs`, of each of `tasks` that has the metric.

        Returns a tidy frame: setting, model, task, metric, method, variant, run, statistic, value (`common/frames.py`,
        `scoring/evaluation.py`).
        """
        tasks = self.tested(metric)
        if not tasks:
            raise ConfigurationError(
                f"{self!r}: the tests of {', '.join(self.tasks)} have no {metric}; choose another metric"
            )
        predictions = self.predict(methods, metric=metric, observed=observed, runs=runs)
        return pd.concat([predictions.of(task).evaluate() for task in tasks], ignore_index=True)
