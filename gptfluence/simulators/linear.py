"""What simulators share that add to the mean trajectory a deviation which is linear in what a run has seen so far:

    y_t(z') = mean_t(z') + sum_kl (x_t(k) - mean x_t(k)) W(k, l) T(z', l)

x_t(k) is an exposure: coordinate k of the examples seen so far, summed over the steps; T(z', l) are coordinates of the test
example. Ridge regression over all steps of all runs gives W in closed form; with much ridge the mean trajectory is left.
Settings are chosen on runs left out, training and validation runs in turn: two validation runs alone choose too badly.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from gptfluence.recording.curriculum import places
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import FitReport, Simulator, carried
from gptfluence.simulators.checks import check_mean_reaches
from gptfluence.tasks.base import TaskPool

FOLDS = 5
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)  # times the largest singular value, squared


def exposures(batches: np.ndarray, rates: np.ndarray, keep: float, coordinates: np.ndarray) -> np.ndarray:
    """What was seen so far, float64 [curricula, steps + 1, rank]: e_t = sum_{s <= t} keep^(t-s) lr_s (mean over c_s).

    The mean is over the places of a step, and a masked one is 0 in it; it is 0 of a step that has no place.
    batches: int [curricula, steps, batch], as in `Curriculum`; rates: float [steps], relative to their mean; coordinates: float [pool, rank] of
    the examples
    """
    coordinates = np.vstack([coordinates, np.zeros_like(coordinates[:1])])  # the last row: nobody's
    sums = coordinates[np.maximum(batches, -1)].sum(axis=2)
    seen = sums / np.maximum(places(batches), 1)[..., None] * rates[None, :, None]
    out = np.zeros((len(batches), batches.shape[1] + 1, coordinates.shape[1]))
    for step in range(batches.shape[1]):
        out[:, step + 1] = keep * out[:, step] + seen[:, step]
    return out


class Solution(NamedTuple):
    """Weights float64 [rank, rank], mean exposure [steps + 1, rank] and mean trajectory [steps + 1, tests]."""

    weights: np.ndarray
    exposed: np.ndarray
    mean: np.ndarray


def solutions(
    exposed: np.ndarray,
    values: np.ndarray,
    tests: np.ndarray,
    ridges: Sequence[float] = RIDGES,
    *,
    measured: np.ndarray | None = None,
) -> Iterator[tuple[float, Solution]]:
    """For each ridge, infinite at last, its solution.

    exposed: float64 [runs, steps + 1, rank]; values: float64 [runs, steps + 1, tests]; tests: float64 [tests, rank]
    measured: int [rows], the steps that count, 0 among them; None: all

    W minimises |X W T' - Y|^2 + ridge |X|^2 |T|^2 |W|^2 (spectral norms of X and T), solved in the eigenvectors of X'X and T'T.
    """
    middle, mean = exposed.mean(axis=0), values.mean(axis=0)
    counted = np.arange(values.shape[1]) if measured is None else measured
    x = (exposed - middle)[:, counted].reshape(-1, exposed.shape[2])
    y = (values - mean)[:, counted].reshape(-1, values.shape[2])
    of_pool, pool_axes = np.linalg.eigh(x.T @ x)
    of_tests, test_axes = np.linalg.eigh(tests.T @ tests)
    both = np.outer(of_pool.clip(min=0), of_tests.clip(min=0))
    rotated = pool_axes.T @ (x.T @ y @ tests) @ test_axes
    for ridge in (*ridges, np.inf):
        weights = np.zeros_like(rotated)
        if np.isfinite(ridge) and both.max() > 0:
            weights = pool_axes @ (rotated / (both + ridge * both.max())) @ test_axes.T
        yield ridge, Solution(weights, middle, mean)


def errors_left_out(
    exposed: np.ndarray,
    values: np.ndarray,
    tests: np.ndarray,
    ridges: Sequence[float] = RIDGES,
    *,
    measured: np.ndarray | None = None,
) -> dict[float, float]:
    """The all-steps MSE of each ridge on runs left out of the fit, each run once; arguments as in `solutions`.

    Ridge inf is the mean trajectory. Empty for a single run, which leaves none to fit on.
    """
    folds = min(FOLDS, len(values))
    errors: dict[float, float] = {}
    if folds < 2:
        return errors
    counted = np.arange(1, values.shape[1]) if measured is None else measured[1:]
    for held in (np.arange(len(values)) % folds == k for k in range(folds)):
        found = solutions(exposed[~held], values[~held], tests, ridges, measured=measured)
        for ridge, (weights, middle, mean) in found:
            predicted = (exposed[held] - middle) @ weights @ tests.T + mean
            squares = np.square(predicted - values[held])
            error = float(squares[:, counted].mean()) * held.sum() / len(values)
            errors[ridge] = errors.get(ridge, 0.0) + error
    return errors


def rule(runs: int, best: float, of_mean: float, settings: str) -> str:
    """How settings were chosen, in words; best, of_mean: all-steps MSE of runs left out."""
    return (
        f"all-steps MSE of runs left out, {min(FOLDS, runs)} folds: {best:.3g} against {of_mean:.3g} of the mean "
        f"trajectory ({settings})"
    )


class LinearDeviations(Simulator):
    """Base of simulators that predict the mean trajectory plus deviations that are linear in exposures.

    A subclass says what the coordinates of examples are, and how exposures are made of them. `_rates` are the learning rates
    of the fitted runs relative to their mean, float64 [steps]. `_measured` are the steps that they were measured at, int [rows].
    """

    _rates: np.ndarray
    _measured: np.ndarray
    _solution: Solution
    _carried: np.ndarray  # float64 [2, steps]: share of an observation's error that stays; of fitted tests, of others

    # --- for subclasses -------------------------------------------------------------------------------------------

    @abstractmethod
    def _learn(self, train: GPTDynamics, batches: np.ndarray, values: np.ndarray) -> tuple[Solution, str]:
        """Choose settings on these runs left out in turn, then fit `train`'s; the solution, and the rule in words.

        batches: int [runs, steps, batch]; values: float64 [runs, steps + 1, tests]: of the training runs, and behind them of
        the validation runs if their curricula have the same shape
        """

    @abstractmethod
    def _described(self, examples: TaskPool, *, of: str) -> np.ndarray:
        """What `_exposed` (of="pool") or `_directions` (of="tests") needs of examples that were not fitted."""

    @abstractmethod
    def _exposed(self, batches: np.ndarray, pool: np.ndarray | None) -> np.ndarray:
        """float64 [curricula, steps + 1, rank]; pool: None for the fitted pool."""

    @abstractmethod
    def _directions(self, tests: np.ndarray | None) -> np.ndarray:
        """float64 [tests, rank]: T; tests: None for the fitted ones."""

    def _change(self, tests: np.ndarray | None) -> np.ndarray:
        """float64 [steps + 1, 1 or tests]: how far test examples move that were not fitted on; tests: None as if the fitted.

        Here the mean over the fitted test examples.
        """
        return (self._solution.mean - self._solution.mean[0]).mean(axis=1, keepdims=True)

    # --- fitting --------------------------------------------------------------------------------------------------

    def _fit(self, train: GPTDynamics, validation: GPTDynamics | None, metric: str) -> FitReport:
        begin = time.perf_counter()
        rates = train.runs[0].learning_rate
        known = rates is not None and np.isfinite(rates).all()  # published runs may come without
        rates = rates.astype(np.float64) if known else np.ones(train.batches.shape[1])
        self._rates = rates / max(float(rates.mean()), 1e-300)
        runs = train
        if validation is not None and validation.batches.shape[1] == train.batches.shape[1]:
            runs = replace(train, runs=(*train.runs, *validation.runs))
        self._measured = train.measured(metric)
        self._solution, said = self._learn(train, runs.batches, runs.trajectories(metric).astype(np.float64))
        self._carried = np.ones((2, len(self._solution.mean) - 1))  # what a loss is off is taken to stay
        if metric != "loss":
            left = train.trajectories(metric) - self._deviations(train.batches)
            levels = self._solution.mean, self._change(None)
            self._carried = np.stack([carried(left - level, self._measured) for level in levels])
        return FitReport(seconds=time.perf_counter() - begin, selected_by=said)

    # --- rollouts -------------------------------------------------------------------------------------------------

    def _deviations(
        self, batches: np.ndarray, pool: np.ndarray | None = None, tests: np.ndarray | None = None
    ) -> np.ndarray:
        """float64 [curricula, steps + 1, tests]; batches: int [curricula, steps, batch]; None: the fitted examples."""
        exposed = self._exposed(batches, pool)
        middle = self._solution.exposed[: exposed.shape[1]]
        return (exposed - middle) @ self._solution.weights @ self._directions(tests).T

    def _prepare(self, pool: TaskPool | None, tests: TaskPool | None) -> Any:
        given = ("pool", pool), ("tests", tests)
        return tuple(None if examples is None else self._described(examples, of=side) for side, examples in given)

    def _rollout(self, prepared: Any, batches: np.ndarray, observed: np.ndarray) -> np.ndarray:
        pool, tests = prepared
        steps, seen = batches.shape[1], observed.shape[1]
        check_mean_reaches(steps, len(self._solution.mean) - 1, name=self.name)
        level = self._solution.mean if tests is None else self._change(tests)
        predicted = self._deviations(batches, pool, tests) + level[: steps + 1]
        share = self._carried[0 if tests is None else 1, min(seen, self._carried.shape[1]) - 1]
        predicted = predicted + share * (observed[:, -1:] - predicted[:, seen - 1 : seen])
        predicted[:, :seen] = observed
        return predicted.astype(np.float32)

    # --- files ----------------------------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, np.ndarray]:
        return {**self._solution._asdict(), "rates": self._rates, "carried": self._carried}

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        assert self.fitted is not None
        self._solution = Solution(*(arrays[key] for key in Solution._fields))
        self._rates, self._carried = arrays["rates"], arrays["carried"]
        if self._solution.mean.shape != (self.fitted.steps + 1, self.fitted.tests_size):
            raise ValueError(f"mean has shape {list(self._solution.mean.shape)}")
