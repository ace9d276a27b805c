"""Deviations from the mean trajectory, from text features and recorded runs alone: all steps fitted at once, in closed form.

What a curriculum does to a test example, apart from the mean trajectory, is taken to be a sum over what was seen:

    y_t(z') = mean_t(z') + sum_i (e_t(i) - mean e_t(i)) A(i, z'),    e_t(i) = sum_{s <= t} keep^(t-s) lr_s [share of i in c_s]

with A = Phi W Psi^T of low rank, Phi and Psi the leading directions of the texts' similarity. W is fitted as `linear` says. It
is what can be had without the GPT's gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.encoded import EncodesTexts, TextEncoder
from gptfluence.simulators.linear import LinearDeviations, Solution, errors_left_out, exposures, rule, solutions
from gptfluence.tasks.base import TaskPool

KEEPS = (1.0, 0.98, 0.9)  # of an exposure, each step
OWN = (0.0, 0.3, 0.9)  # share of an example's similarity that is to itself alone


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


@dataclass(kw_only=True, eq=False)
class LowRank(EncodesTexts, LinearDeviations):
    """Mean trajectory plus low-rank deviations, from text features.

    rank: directions of text similarity that are kept, of pool and of tests
    encoder: a name that `gptfluence.models.encoders.load` knows, or an object with `name` and `encode(pool)`

    A masked example counts as one of average text, since runs that train on equally much do not say what less training does. How
    long an exposure is remembered, how much an example is like itself only, and the ridge are chosen on runs left out.
    """

    name = "low_rank"
    format = 4

    rank: int = 48
    encoder: str | TextEncoder = "minilm-cls"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigurationError(f"low_rank: rank must be 1 or more, not {self.rank}")
        self._check_encoder()

    def _described(self, examples: TaskPool, *, of: str = "") -> np.ndarray:
        features = np.asarray(self._loaded_encoder().encode(examples), np.float64)
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    def _learn(self, train: GPTDynamics, batches: np.ndarray, values: np.ndarray) -> tuple[Solution, str]:
        features = self._described(train.pool), self._described(train.tests)
        errors: dict[tuple[float, float, float], float] = {}
        for keep, own in product(KEEPS, OWN):
            of_pool, of_tests = (Directions.of(part, self.rank, own)(None) for part in features)
            exposed = exposures(batches, self._rates, keep, of_pool)
            found = errors_left_out(exposed, values, of_tests, measured=self._measured)
            errors |= {(keep, own, ridge): error for ridge, error in found.items()}
        nothing = (1.0, 0.0, np.inf)
        best = self._keep, self._own, ridge = min(errors, key=errors.__getitem__, default=nothing)
        said = "one run: its own trajectory"
        if errors:
            settings = f"keep {best[0]}, own {best[1]}, ridge {best[2]}"
            said = rule(len(values), errors[best], errors[nothing], settings)
        self._pool, self._tests = (Directions.of(part, self.rank, self._own) for part in features)
        exposed = self._exposed(train.batches, None)
        found = solutions(exposed, values[: len(train)], self._directions(None), measured=self._measured)
        return dict(found)[ridge], said

    def _exposed(self, batches: np.ndarray, pool: np.ndarray | None) -> np.ndarray:
        return exposures(batches, self._rates[: batches.shape[1]], self._keep, self._pool(pool))

    def _directions(self, tests: np.ndarray | None) -> np.ndarray:
        return self._tests(tests)

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {**super()._arrays(), "chosen": np.array([self._keep, self._own])}
        for side, directions in (("pool", self._pool), ("tests", self._tests)):
            arrays |= {f"{side}.{key}": value for key, value in vars(directions).items()}
        return arrays

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        super()._restore(arrays)
        self._keep, self._own = arrays["chosen"].tolist()
        self._pool, self._tests = (
            Directions(*(arrays[f"{side}.{key}"] for key in ("mean", "axes", "fitted"))) for side in ("pool", "tests")
        )
