"""What recorded runs say beyond a linearisation: how far it was off, and how far its deviations are to be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KNOTS = np.array([0.0, 0.05, 0.15, 0.4, 1.0])  # as fractions of a run; denser where losses move fast
RIDGE = 1e-3  # on the coefficients, relative to the mean square of what they multiply


@dataclass(frozen=True)
class Correction:
    """y = p + sum_j s_jt c_jt + k_t (p - mean p), s and k piecewise linear in t.

    p is predicted, and the sum of all c is what p was off in recorded runs, or an estimate of it. With s = 1 and k = -1 this is
    the mean of these runs, or its estimate, with s = k = 0 the prediction itself; fitted coefficients minimise the squared error of each run when the others
    give c and mean p.
    """

    coefficients: np.ndarray  # float64 [c and one more, knots]: s and k

    @staticmethod
    def hats(fractions: np.ndarray) -> np.ndarray:
        """float64 [knots, steps + 1]: piecewise linear functions of the fraction of a run, each 1 at one knot, else 0."""
        return np.stack([np.interp(fractions, KNOTS, unit) for unit in np.eye(len(KNOTS))])

    @classmethod
    def constant(cls, off: int, s: float, k: float) -> Correction:
        """The same at all steps; `off`: how many c there are."""
        return cls(np.repeat([[s]] * off + [[k]], len(KNOTS), axis=1))

    @classmethod
    def fit(
        cls, predicted: np.ndarray, recorded: np.ndarray, off: Sequence[np.ndarray], fractions: np.ndarray
    ) -> Correction:
        """Both: float [runs, rows, tests], runs >= 2. off: each c, for every run from the others, or in a shape to broadcast.

        fractions: float [rows], how much of a run is over at each row
        """
        runs = len(predicted)
        residual = recorded.astype(np.float64) - predicted
        deviation = (predicted - predicted.mean(axis=0, dtype=np.float64)) * (runs / (runs - 1))
        terms, hats = np.broadcast_arrays(*off, deviation), cls.hats(fractions)
        products = [[(left * right).sum(axis=(0, 2)) for right in (*terms, residual)] for left in terms]
        gram = np.block([[(hats * product) @ hats.T for product in row[:-1]] for row in products])
        moment = np.concatenate([hats @ row[-1] for row in products])
        size = np.diag(gram).reshape(len(terms), -1).mean(axis=1).repeat(len(KNOTS))
        solution = np.linalg.lstsq(gram + RIDGE * np.diag(size), moment, rcond=None)[0]
        return cls(solution.reshape(len(terms), len(KNOTS)))

    def apply(
        self, predicted: np.ndarray, off: Sequence[np.ndarray], mean: np.ndarray, times: np.ndarray
    ) -> np.ndarray:
        """Corrected predictions, float [curricula, steps + 1, tests].

        off: every c, float [recorded steps + 1, tests or 1]; mean: of the predictions for recorded runs, float
        [recorded steps + 1, tests]; times: float [steps + 1], the recorded step that each simulated one is like
        """
        *trust, deviation = self.coefficients @ self.hats(times / (len(mean) - 1))
        corrected = predicted + deviation[:, None] * (predicted - _at(times, mean))
        for s, c in zip(trust, off, strict=True):
            corrected = corrected + s[:, None] * _at(times, c)
        return corrected


def of_others(values: np.ndarray) -> np.ndarray:
    """float64 [runs, ...]: for each run the mean of all others."""
    return (values.sum(axis=0, dtype=np.float64) - values) / (len(values) - 1)


def _at(times: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Rows of `array` [recorded steps + 1, tests] at `times`, between steps on a straight line."""
    low = np.minimum(times.astype(int), len(array) - 2)
    share = (times - low)[:, None]
    return (1 - share) * array[low] + share * array[low + 1]
