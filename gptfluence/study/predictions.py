"""Predictions of several methods for one set of recorded runs, and how far they are off."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.settings import Metric
from gptfluence.scoring.evaluation import evaluate
from gptfluence.simulators.options import Variant

if TYPE_CHECKING:
    from gptfluence.study.campaign import Campaign


@dataclass(frozen=True)
class Predictions:
    """recorded: the runs; values: variant -> float32 [runs, steps + 1, tests] in the metric's unit.

    held_out: whether the runs are the campaign's held-out ones, whose examples every simulator knows
    observed: how many values of each run the methods were given
    refused: variant -> why it has nothing to say of these runs
    train: the training runs, whose mean is the 0 of R²dev
    """

    campaign: Campaign = field(repr=False)
    metric: Metric
    observed: int
    recorded: GPTDynamics
    held_out: bool
    train: GPTDynamics
    values: dict[Variant, np.ndarray] = field(default_factory=dict, repr=False)
    refused: dict[Variant, str] = field(default_factory=dict)

    def of(self, task: str) -> Predictions:
        """Those for the tests of one task of a mixture; of a single task all of them."""
        if not self.campaign.is_mixture:
            return self
        rows = rows_of(self.recorded, task)
        recorded, train = self.recorded.of_tests(rows), self.train.of_tests(rows_of(self.train, task))
        values = {variant: values[:, :, rows] for variant, values in self.values.items()}
        chosen = replace(self, recorded=recorded, train=train, values=values)
        if not self.held_out:
            # Fitted on all tasks' tests it would give unseen ones the mean change of all tasks: here it is this task's.
            mean = {variant: chosen.mean_trajectory() for variant in values if variant.kind == "mean_trajectory"}
            values.update(mean)
        return chosen

    def mean_trajectory(self) -> np.ndarray:
        """What the mean of the training runs predicts, float32 [runs, steps + 1, tests]; it may not know the examples."""
        from gptfluence.simulators.reference import MeanTrajectory

        fitted = MeanTrajectory().fit(self.train, metric=self.metric)
        return fitted.predict(self.recorded, self.observed, metric=self.metric)

    def evaluate(self) -> pd.DataFrame:
        """A tidy frame: setting, model, task, metric, method, variant, run, statistic, value (`scoring/evaluation.py`)."""
        reference = self.train if self.held_out else self.mean_trajectory()
        frames = []
        task = self.recorded.tests[0].task if self.campaign.is_mixture else self.campaign.task
        for variant, values in self.values.items():
            frame = evaluate(values, self.recorded, metric=self.metric, observed=self.observed, reference=reference)
            columns = {
                "setting": self.campaign.setting_name,
                "model": self.recorded.model,
                "task": task,
                "metric": self.metric,
                "method": variant.method,
                "variant": variant.variant,
            }
            frames.append(frame.assign(**columns)[[*columns, *frame.columns]])
        return pd.concat(frames, ignore_index=True)


def rows_of(dynamics: GPTDynamics, task: str) -> list[int]:
    """Positions of the test examples of a task. Raises ConfigurationError if there are none."""
    rows = [row for row, example in enumerate(dynamics.tests) if example.task == task]
    if not rows:
        raise ConfigurationError(unknown("task", task, dict.fromkeys(example.task for example in dynamics.tests)))
    return rows
