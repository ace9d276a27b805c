"""Simulators that learn next to nothing: what a real one has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import FitReport, Simulator
from gptfluence.simulators.checks import check_mean_reaches
from gptfluence.tasks.base import TaskPool


def mean_prediction(mean: np.ndarray, observed: np.ndarray, steps: int, *, unseen: bool, name: str) -> np.ndarray:
    """The mean trajectory as a prediction for curricula of so many steps: float32 [curricula or 1, steps + 1, tests].

    mean: float32 [fitted steps + 1, fitted tests]; observed: float32 [curricula, k, tests]
    unseen: the tests are others than the fitted ones; they get the mean change of these, added to their first value

    Raises OutOfReachError, in which `name` is the simulator's, for more steps than the fitted runs have.
    """
    check_mean_reaches(steps, len(mean) - 1, name=name)
    if not unseen:
        return mean[None, : steps + 1]
    change = (mean - mean[0]).mean(axis=1)
    return observed[:, :1] + change[None, : steps + 1, None]


def _with_observed(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Put the observed rows [curricula, k, tests] in front of `predicted` [curricula, steps + 1, tests], in place."""
    predicted[:, : observed.shape[1]] = observed
    return predicted


@dataclass(kw_only=True, eq=False)
class Persistence(Simulator):
    """The last observed value for ever. Works for any pool, tests and curriculum."""

    name = "persistence"
    trivial = True

    def _fit(self, train: GPTDynamics, validation: GPTDynamics | None, metric: str) -> FitReport:
        return FitReport()

    def _prepare(self, pool: TaskPool | None, tests: TaskPool | None) -> None:
        return None

    def _rollout(self, prepared: None, batches: np.ndarray, observed: np.ndarray) -> np.ndarray:
        curricula, steps = batches.shape[:2]
        predicted = np.empty((curricula, steps + 1, observed.shape[2]), np.float32)
        predicted[:] = observed[:, -1:]
        return _with_observed(predicted, observed)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {}

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        pass


@dataclass(kw_only=True, eq=False)
class MeanTrajectory(Simulator):
    """The mean over the training runs of each test example's trajectory, whatever the curriculum.

    For test examples it was not fitted on: the mean over the fitted ones of the change since step 0, added to the
    observed start. Curricula with fewer steps than the fitted ones get the first part; longer ones are refused.
    """

    name = "mean_trajectory"
    trivial = True

    def _fit(self, train: GPTDynamics, validation: GPTDynamics | None, metric: str) -> FitReport:
        self._mean = train.trajectories(metric).mean(axis=0, dtype=np.float64).astype(np.float32)
        return FitReport()

    def _prepare(self, pool: TaskPool | None, tests: TaskPool | None) -> bool:
        return tests is not None

    def _rollout(self, unseen: bool, batches: np.ndarray, observed: np.ndarray) -> np.ndarray:
        curricula, steps = batches.shape[:2]
        predicted = np.empty((curricula, steps + 1, observed.shape[2]), np.float32)
        predicted[:] = mean_prediction(self._mean, observed, steps, unseen=unseen, name=self.name)
        return _with_observed(predicted, observed)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"mean": self._mean}

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        assert self.fitted is not None
        self._mean = arrays["mean"]
        if self._mean.shape != (self.fitted.steps + 1, self.fitted.tests_size):
            raise ValueError(f"mean has shape {list(self._mean.shape)}")
