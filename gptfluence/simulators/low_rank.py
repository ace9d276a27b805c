"""Deviations from the mean trajectory, from text features and recorded runs alone: all steps fitted at once, in closed form.

What a curriculum does to a test example, apart from the mean trajectory, is taken to be a sum over what was seen:

    y_t(z') = mean_t(z') + sum_i (e_t(i) - mean e_t(i)) A(i, z'),    e_t(i) = sum_{s <= t} keep^(t-s) lr_s [share of i in c_s]

with A = Phi W Psi^T of low rank, Phi and Psi the leading directions of the texts' similarity. Ridge regression over all
steps of all runs gives W; with much ridge the mean trajectory is left. It is what can be had without the GPT's gradients.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from gptfluence.common.errors import ConfigurationError, OutOfReachError
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import FitReport, Simulator, carried
from gptfluence.simulators.encoded import EncodesTexts, TextEncoder
from gptfluence.tasks.base import TaskPool

KEEPS = (1.0, 0.98, 0.9)  # of an exposure, each step
OWN = (0.0, 0.3, 0.9)  # share of an example's similarity that is to itself alone
FOLDS = 5
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)  # times the largest singular value, squared


@dataclass(frozen=True)
class Directions:
    """Maps features to low-rank coordinates: mean float64 [d], axes float64 [d, rank]; own: of the fitted examples."""

    mean: np.ndarray
    axes: np.ndarray
    fitted: np.ndarray  # float64 [examples, rank + own]: of the examples it was made from

    @classmethod
    def of(cls, features: np.ndarray, rank: int, own: float) -> Directions:
        """Principal axes of normalised features, scaled to a mean square norm of 1 - own, and `own` for each example."""
        mean = features.mean(axis=0)
        centred = features - mean
        _, size, axes = np.linalg.svd(centred, full_matrices=False)
        kept = axes[: min(rank, int((size > 1e-6 * size[:1]).sum()))].T
        text = centred @ kept
        scale = np.sqrt((1 - own) / max(float(np.square(text).sum(axis=1).mean()), 1e-12))
        identity = np.sqrt(own) * np.eye(len(features)) if own else np.zeros((len(features), 0))
        return cls(mean, kept * scale, np.hstack([text * scale, identity]))

    def __call__(self, features: np.ndarray | None) -> np.ndarray:
        """float64 [examples, rank + own]; None: the fitted examples. Others share nothing with them but their text."""
        if features is None:
            return self.fitted
        text = (features - self.mean) @ self.axes
        return np.hstack([text, np.zeros((len(text), self.fitted.shape[1] - text.shape[1]))])


def exposures(batches: np.ndarray, rates: np.ndarray, keep: float, coordinates: np.ndarray) -> np.ndarray:
    """float64 [curricula, steps + 1, rank]: what was seen so far, in the coordinates [pool, rank] of the examples.

    batches: int [curricula, steps, batch]; rates: float [steps], relative to their mean
    """
    seen = coordinates[batches].mean(axis=2) * rates[None, :, None]
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
    exposed: np.ndarray, values: np.ndarray, tests: np.ndarray, measured: np.ndarray
) -> Iterator[tuple[float, Solution]]:
    """For each ridge, infinite at last, its solution.

    exposed: float64 [runs, steps + 1, rank]; values: float64 [runs, steps + 1, tests]; tests: float64 [tests, rank]
    measured: int [rows], the steps that count

    W minimises |X W T' - Y|^2 + ridge |X|^2 |T|^2 |W|^2 (spectral norms of X and T), solved in the eigenvectors of X'X and T'T.
    """
    middle, mean = exposed.mean(axis=0), values.mean(axis=0)
    x = (exposed - middle)[:, measured].reshape(-1, exposed.shape[2])
    y = (values - mean)[:, measured].reshape(-1, values.shape[2])
    of_pool, pool_axes = np.linalg.eigh(x.T @ x)
    of_tests, test_axes = np.linalg.eigh(tests.T @ tests)
    both = np.outer(of_pool.clip(min=0), of_tests.clip(min=0))
    rotated = pool_axes.T @ (x.T @ y @ tests) @ test_axes
    for ridge in (*RIDGES, np.inf):
        weights = np.zeros_like(rotated)
        if np.isfinite(ridge) and both.max() > 0:
            weights = pool_axes @ (rotated / (both + ridge * both.max())) @ test_axes.T
        yield ridge, Solution(weights, middle, mean)


@dataclass(frozen=True)
class Deviations:
    """What was fitted: deviations from the mean trajectory of any curriculum.

    keep: of an exposure, each step; rates: float64 [steps], learning rates relative to their mean
    """

    keep: float
    rates: np.ndarray
    pool: Directions
    tests: Directions
    solution: Solution

    def __call__(
        self, batches: np.ndarray, pool: np.ndarray | None = None, tests: np.ndarray | None = None
    ) -> np.ndarray:
        """float64 [curricula, steps + 1, tests]; batches: int [curricula, steps, batch]; features of others than the fitted."""
        exposed = exposures(batches, self.rates[: batches.shape[1]], self.keep, self.pool(pool))
        return (exposed - self.solution.exposed[: exposed.shape[1]]) @ self.solution.weights @ self.tests(tests).T


@dataclass(kw_only=True, eq=False)
class LowRank(EncodesTexts, Simulator):
    """Mean trajectory plus low-rank deviations, from text features.

    rank: directions of text similarity that are kept, of pool and of tests
    encoder: a name that `gptfluence.models.encoders.load` knows, or an object with `name` and `encode(pool)`

    How long an exposure is remembered, how much an example is like itself only, and the ridge are chosen on runs left out,
    training and validation runs in turn: two validation runs alone choose too badly.
    """

    name = "low_rank"
    format = 4

    rank: int = 48
    encoder: str | TextEncoder = "minilm-cls"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigurationError(f"low_rank: rank must be 1 or more, not {self.rank}")
        self._check_encoder()

    def _features(self, examples: TaskPool) -> np.ndarray:
        features = np.asarray(self._loaded_encoder().encode(examples), np.float64)
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    # --- fitting ---

    def _fit(self, train: GPTDynamics, validation: GPTDynamics | None, metric: str) -> FitReport:
        begin = time.perf_counter()
        features = self._features(train.pool), self._features(train.tests)
        rates = train.runs[0].learning_rate
        known = rates is not None and np.isfinite(rates).all()  # published runs may come without
        rates = rates.astype(np.float64) if known else np.ones(train.batches.shape[1])
        rates = rates / max(float(rates.mean()), 1e-300)
        runs = train
        if validation is not None and validation.batches.shape == (len(validation), *train.batches.shape[1:]):
            runs = replace(train, runs=(*train.runs, *validation.runs))
        (keep, self._own, ridge), rule = self._choose(runs, metric, rates, features)
        pool, tests = (Directions.of(values, self.rank, self._own) for values in features)
        exposed = exposures(train.batches, rates, keep, pool(None))
        values = train.trajectories(metric).astype(np.float64)
        solved = dict(solutions(exposed, values, tests(None), train.measured(metric)))
        self._deviations = Deviations(keep, rates, pool, tests, solved[ridge])
        self._carried = np.ones((2, len(self._mean) - 1))  # a loss is what it is, and what it is off is taken to stay
        if metric != "loss":
            left = train.trajectories(metric) - self._deviations(train.batches)
            self._carried = np.stack([carried(left - level) for level in (self._mean, self._change[:, None])])
        return FitReport(seconds=time.perf_counter() - begin, selected_by=rule)

    def _choose(
        self, runs: GPTDynamics, metric: str, rates: np.ndarray, features: tuple[np.ndarray, np.ndarray]
    ) -> tuple[tuple[float, float, float], str]:
        """keep, own and ridge with the least all-steps error on runs left out, and the rule in words."""
        nothing = (1.0, 0.0, np.inf)
        folds = min(FOLDS, len(runs))
        if folds < 2:
            return nothing, "one run: its own trajectory"
        errors: dict[tuple[float, float, float], float] = {}
        values, measured = runs.trajectories(metric).astype(np.float64), runs.measured(metric)
        for keep, own in product(KEEPS, OWN):
            of_pool, of_tests = (Directions.of(part, self.rank, own)(None) for part in features)
            exposed = exposures(runs.batches, rates, keep, of_pool)
            for held in (np.arange(len(runs)) % folds == k for k in range(folds)):
                for ridge, (weights, middle, mean) in solutions(exposed[~held], values[~held], of_tests, measured):
                    predicted = (exposed[held] - middle) @ weights @ of_tests.T + mean
                    error = float(np.square(predicted - values[held])[:, measured[1:]].mean()) * held.sum() / len(runs)
                    errors[keep, own, ridge] = errors.get((keep, own, ridge), 0.0) + error
        best = min(errors, key=errors.__getitem__)
        rule = (
            f"all-steps MSE of runs left out, {folds} folds: {errors[best]:.3g} against {errors[nothing]:.3g} of the mean "
            f"trajectory (keep {best[0]}, own {best[1]}, ridge {best[2]})"
        )
        return best, rule

    # --- rollouts ---

    @property
    def _mean(self) -> np.ndarray:
        """float64 [steps + 1, tests]: the mean recorded trajectory."""
        return self._deviations.solution.mean

    @property
    def _change(self) -> np.ndarray:
        """float64 [steps + 1]: the mean trajectory's change, over test examples; the level of others is observed."""
        return (self._mean - self._mean[0]).mean(axis=1)

    def _prepare(self, pool: TaskPool | None, tests: TaskPool | None) -> Any:
        return tuple(None if examples is None else self._features(examples) for examples in (pool, tests))

    def _rollout(self, prepared: Any, batches: np.ndarray, observed: np.ndarray) -> np.ndarray:
        pool, tests = prepared
        steps, seen = batches.shape[1], observed.shape[1]
        if steps >= len(self._mean):
            raise OutOfReachError(
                f"low_rank: a curriculum has {steps} steps, but the fitted runs have {len(self._mean) - 1}; there is no "
                "mean beyond them"
            )
        predicted = self._deviations(batches, pool, tests)
        if tests is None:
            predicted = predicted + self._mean[: steps + 1]
        else:
            predicted = predicted + self._change[: steps + 1, None]
        share = self._carried[0 if tests is None else 1, min(seen, self._carried.shape[1]) - 1]
        predicted = predicted + share * (observed[:, -1:] - predicted[:, seen - 1 : seen])
        predicted[:, :seen] = observed
        return predicted.astype(np.float32)

    # --- files ---

    def _arrays(self) -> dict[str, np.ndarray]:
        fit = self._deviations
        arrays = {
            **fit.solution._asdict(),
            "rates": fit.rates,
            "chosen": np.array([fit.keep, self._own]),
            "carried": self._carried,
        }
        for side, directions in (("pool", fit.pool), ("tests", fit.tests)):
            arrays |= {f"{side}.{key}": value for key, value in vars(directions).items()}
        return arrays

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        assert self.fitted is not None
        solution = Solution(*(arrays[key] for key in Solution._fields))
        keep, self._own = arrays["chosen"].tolist()
        pool, tests = (
            Directions(*(arrays[f"{side}.{key}"] for key in ("mean", "axes", "fitted"))) for side in ("pool", "tests")
        )
        self._deviations = Deviations(keep, arrays["rates"], pool, tests, solution)
        self._carried = arrays["carried"]
        if self._mean.shape != (self.fitted.steps + 1, self.fitted.tests_size):
            raise ValueError(f"mean has shape {list(self._mean.shape)}")
