"""Bands around simulated trajectories that hold the recorded ones with a chosen probability: split conformal prediction.

A band is as wide at step t as the simulator's typical error there, times one number q, so that a whole path is inside or is
not; and it widens with the whole run's distance from what is typical. The score of a path is how many such errors it is off
at its worst step,

    S = max_t |y_t - yhat_t| / (error_t w),        band: yhat_t +- q error_t w,

and q is a quantile of the scores of calibration runs, which the simulator was not fitted on (Vovk et al., 2005; Lei et al.,
2018, arXiv:1604.04173, whose locally weighted bands these are). w is 1 for a run that is simulated to lie no further from the
mean simulated run than the furthest fitted run does, root mean squared over steps and test examples; k for one k times as
far. So a run that is taken to move further is taken to be predicted worse in proportion, which no calibration run can show.

What is promised: if calibration runs and the new run are exchangeable (curricula drawn alike, the same GPT and settings),
a path is inside with at least the chosen probability, averaged over calibration sets, curricula and test examples; not for
each curriculum, nor for each test example. Paths of one run share its curriculum and are not independent. `unit="run"` takes
this into account as two-layer exchangeability does (Lee, Barber, Willett, 2023, arXiv:2306.06342): the guarantee holds
whatever the dependence within a run, at the price of wider bands, and of at least level / (1 - level) calibration runs.
`unit="path"` takes paths for exchangeable; with few calibration runs its coverage varies from one calibration set to the
next. (w depends on a run's curriculum and first values and on fitted runs alone, which changes nothing of this.) For a
curriculum unlike the calibration ones (repeated, sorted, biased, another learning rate) nothing is promised: w is a guess
there, and measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptfluence.common.errors import ConfigurationError, unknown

UNITS = ("path", "run")
FLOOR = 1e-3  # of the largest typical error: where a simulator is as good as exact, a band has still some width


@dataclass(frozen=True)
class Typical:
    """What is typical of a simulator on runs that do not calibrate; those it was fitted on will do.

    error: float64 [steps + 1], root mean squared error at each step, 0 where observed
    centre: float64 [steps + 1, tests], the mean of the simulated runs
    distance: from it to the furthest simulated run, root mean squared over steps and test examples
    """

    error: np.ndarray
    centre: np.ndarray
    distance: float

    @classmethod
    def of(cls, predicted: np.ndarray, recorded: np.ndarray, *, observed: int = 1) -> Typical:
        """Both: float [runs, steps + 1, tests]. Raises ConfigurationError for errors that are not finite, or all 0."""
        predicted = np.asarray(predicted, np.float64)
        error = predicted - recorded
        if error.ndim != 3 or not error.size:
            raise ConfigurationError(f"bands: errors must be [runs, steps + 1, tests], not {list(error.shape)}")
        typical = np.sqrt(np.square(error).mean(axis=(0, 2)))
        if not (np.isfinite(typical).all() and typical.max() > 0):
            raise ConfigurationError(
                "bands: the simulator's errors are not finite, or 0 at every step; bands need one that does not diverge"
            )
        floor = FLOOR * typical.max()
        typical = np.maximum(typical, floor)
        typical[:observed] = 0
        centre = predicted.mean(axis=0)
        distance = float(np.sqrt(np.square(predicted - centre).mean(axis=(1, 2)).max()))
        return cls(typical, centre, max(distance, floor))  # less than the floor is rounding, not a distance

    def widening(self, predicted: np.ndarray) -> np.ndarray:
        """float64 [..., 1, 1], 1 or more: w of float [..., steps + 1, tests]; values that are not finite do not count."""
        squares = np.square(predicted - self.centre[: predicted.shape[-2]])
        finite = np.isfinite(squares)
        total, count = (part.sum(axis=(-2, -1), keepdims=True) for part in (np.where(finite, squares, 0), finite))
        return np.maximum(1.0, np.sqrt(total / np.maximum(count, 1)) / self.distance)

    def extended(self, steps: int) -> Typical:
        """For longer runs: beyond the end of the fitted ones the last typical error and the last mean stand."""
        at = np.minimum(np.arange(steps + 1), len(self.error) - 1)
        return Typical(self.error[at], self.centre[at], self.distance)


@dataclass(frozen=True)
class Bands:
    """quantile: typical errors on either side, inf if nothing can be promised; runs: how many calibrated."""

    typical: Typical
    quantile: float
    level: float
    unit: str
    runs: int
    observed: int = 1

    def around(self, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper edge, float64, of float [..., steps + 1, tests]; of fewer steps than fitted: the first of them.

        Raises ConfigurationError for more steps than the bands were made for.
        """
        predicted = np.asarray(predicted, np.float64)
        error = self.typical.error
        if predicted.shape[-2] > len(error):
            raise ConfigurationError(
                f"bands: made for {len(error) - 1} steps, asked for {predicted.shape[-2] - 1}; calibrate them on runs "
                "of that length"
            )
        half = np.zeros_like(predicted)
        steps = slice(self.observed, predicted.shape[-2])
        half[..., steps, :] = self.quantile * error[steps, None] * self.typical.widening(predicted)
        return predicted - half, predicted + half

    def covered(self, predicted: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        """bool [..., tests]: whether the whole recorded path after what was observed lies inside.

        Raises ConfigurationError if `recorded` was not measured at every step.
        """
        if np.isnan(recorded).any():
            raise ConfigurationError("bands: recorded values are nan; give runs that were measured at every step")
        low, high = self.around(predicted)
        inside = (recorded >= low) & (recorded <= high)
        return inside[..., self.observed :, :].all(axis=-2)


def scores(predicted: np.ndarray, recorded: np.ndarray, typical: Typical, *, observed: int = 1) -> np.ndarray:
    """float64 [runs, tests]: max over predicted steps of |error| / (typical error, widened); inf if a path is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        predicted = np.asarray(predicted, np.float64)
        error = np.abs(predicted - recorded) / typical.widening(predicted)
        error = error[:, observed:] / typical.error[observed : error.shape[1], None]
        return np.nan_to_num(error, nan=np.inf).max(axis=1)


def calibrate(
    predicted: np.ndarray,
    recorded: np.ndarray,
    typical: Typical,
    *,
    level: float = 0.9,
    unit: str = "path",
    observed: int = 1,
) -> Bands:
    """Bands from calibration runs, float [runs, steps + 1, tests], and what is `Typical` of others.

    The quantile is the smallest score with at least the share `level` of all scores at or below it, where one more path
    (unit "path") or one more run (unit "run") counts as infinitely bad; inf if there are too few for the level.

    Raises ConfigurationError for a level outside (0, 1), an unknown unit, or shapes that disagree.
    """
    if not 0 < level < 1:
        raise ConfigurationError(f"bands: level must be above 0 and below 1, not {level}")
    if unit not in UNITS:
        raise ConfigurationError(unknown("unit", unit, UNITS, where="bands: "))
    if (
        np.shape(predicted) != np.shape(recorded)
        or np.ndim(predicted) != 3
        or np.shape(predicted)[1:] != typical.centre.shape
    ):
        raise ConfigurationError(
            f"bands: predicted {list(np.shape(predicted))}, recorded {list(np.shape(recorded))} and what is typical "
            f"{list(typical.centre.shape)} disagree; give [runs, steps + 1, tests] of the same tests and as many steps"
        )
    found = scores(predicted, recorded, typical, observed=observed)
    count = found.size if unit == "path" else len(found)
    # the share of the scores that is needed, with one more unit at infinity; rounded before it is rounded up, since
    # 0.9 * 10 / 9 * 9 is not 9 in binary
    needed = int(np.ceil(np.round(level * (count + 1) / count * found.size, 9)))
    ordered = np.sort(found, axis=None)
    quantile = float(ordered[needed - 1]) if needed <= found.size else float("inf")
    return Bands(typical, quantile, level, unit, len(found), observed)


def coverage(bands: Bands, predicted: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """float [runs]: the share of each run's test examples whose whole path lies inside."""
    return bands.covered(predicted, np.asarray(recorded, np.float64)).mean(axis=-1)


def mean_width(bands: Bands, predicted: np.ndarray) -> np.ndarray:
    """float [runs]: the mean over predicted steps of the whole width of each run's bands, in the metric's unit."""
    low, high = bands.around(predicted)
    return (high - low)[..., bands.observed :, :].mean(axis=(-2, -1))


def calibration_names(names: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """Training runs to fit on, and the last `count` of them, left out to calibrate on.

    Raises ConfigurationError unless two at least are left to fit on and `count` is 1 or more.
    """
    if not 1 <= count <= len(names) - 2:
        raise ConfigurationError(
            f"bands: {count} of {len(names)} training runs cannot be left out to calibrate on; choose 1 to {len(names) - 2}"
        )
    return list(names[:-count]), list(names[-count:])
