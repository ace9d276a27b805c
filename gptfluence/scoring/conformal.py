"""Bands around simulated trajectories that hold the recorded ones with a chosen probability: split conformal prediction.

The score S of a path compares its error at each step with the typical error of the simulator there. The worst step
counts:

    S = max_t |y_t - yhat_t| / (error_t w),        band: yhat_t +- q error_t w.

q is a quantile of the scores of calibration runs, on which the simulator was not fitted (Vovk et al., 2005). Bands of
this form are the locally weighted ones of Lei et al., 2018 (arXiv:1604.04173). They hold the whole path or they do not.

w is one number for each run. It is 1 if the simulated run lies no further from the mean simulated run than the furthest
fitted run does, and k if it lies k times as far; distances are root mean squares over steps and test examples. So the
band of a run that moves further is wider in proportion. This is an assumption that no calibration run can test.

The guarantee: if the new run is drawn like the calibration runs (curricula, GPT and settings), a path is inside with at
least the chosen probability. This is an average over calibration sets, curricula and test examples. It does not hold
for each curriculum or each test example by itself. Paths of one run share its curriculum and are not independent:

- unit="run" allows for this by two-layer exchangeability (Lee, Barber, Willett, 2023, arXiv:2306.06342). The guarantee
  holds however the paths of a run depend on each other. The bands are wider, and at least level / (1 - level)
  calibration runs are needed.
- unit="path" takes paths as exchangeable. With few calibration runs the coverage varies from one calibration set to the
  next.

w depends only on the curriculum and first values of a run and on the fitted runs, so it leaves the guarantee as it is.
For a curriculum unlike the calibration ones (repeated, sorted, biased, another learning rate) there is no guarantee.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptfluence.common.errors import ConfigurationError, unknown

UNITS = ("path", "run")
FLOOR = 1e-3  # of the largest typical error; it gives a band some width at steps where a simulator is almost exact


@dataclass(frozen=True)
class Typical:
    """The typical error and spread of a simulator, from runs that do not calibrate, such as those it was fitted on.

    error: float64 [steps + 1], root mean squared error at each step; 0 at observed steps
    centre: float64 [steps + 1, tests], the mean of the simulated runs
    distance: from the centre to the furthest simulated run, root mean squared over steps and test examples
    """

    error: np.ndarray
    centre: np.ndarray
    distance: float

    @classmethod
    def of(cls, predicted: np.ndarray, recorded: np.ndarray, *, observed: int = 1) -> Typical:
        """From float [runs, steps + 1, tests] each. Raises ConfigurationError if errors are not finite or all are 0."""
        predicted = np.asarray(predicted, np.float64)
        error = predicted - recorded
        if error.ndim != 3 or not error.size:
            raise ConfigurationError(f"bands: errors must be [runs, steps + 1, tests], not {list(error.shape)}")
        typical = np.sqrt(np.square(error).mean(axis=(0, 2)))
        if not (np.isfinite(typical).all() and typical.max() > 0):
            raise ConfigurationError(
                "bands: the simulator's errors are not finite, or are 0 at every step; choose a simulator that does not "
                "diverge"
            )
        floor = FLOOR * typical.max()
        typical = np.maximum(typical, floor)
        typical[:observed] = 0
        centre = predicted.mean(axis=0)
        distance = float(np.sqrt(np.square(predicted - centre).mean(axis=(1, 2)).max()))
        return cls(typical, centre, max(distance, floor))  # a distance below the floor is rounding

    def widening(self, predicted: np.ndarray) -> np.ndarray:
        """w of simulated runs, float [..., steps + 1, tests]: float64 [..., 1, 1], 1 or more; only finite values count."""
        squares = np.square(predicted - self.centre[: predicted.shape[-2]])
        finite = np.isfinite(squares)
        total, count = (part.sum(axis=(-2, -1), keepdims=True) for part in (np.where(finite, squares, 0), finite))
        return np.maximum(1.0, np.sqrt(total / np.maximum(count, 1)) / self.distance)

    def extended(self, steps: int) -> Typical:
        """The same for runs of `steps` steps. Beyond the fitted steps the last typical error and the last mean are kept."""
        at = np.minimum(np.arange(steps + 1), len(self.error) - 1)
        return Typical(self.error[at], self.centre[at], self.distance)


@dataclass(frozen=True)
class Bands:
    """Calibrated bands.

    quantile: half the width, in typical errors; inf if there are too few calibration runs for the level
    level: the promised probability; unit: "path" or "run"; runs: how many runs calibrated
    """

    typical: Typical
    quantile: float
    level: float
    unit: str
    runs: int
    observed: int = 1

    def around(self, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lower and the upper edge, float64, around float [..., steps + 1, tests].

        Shorter runs take the first of the typical errors. Raises ConfigurationError for more steps than the bands have.
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
        """bool [..., tests]: whether the whole recorded path after the observed steps lies inside.

        Raises ConfigurationError if `recorded` was not measured at every step.
        """
        if np.isnan(recorded).any():
            raise ConfigurationError("bands: recorded values are nan; give runs that were measured at every step")
        low, high = self.around(predicted)
        inside = (recorded >= low) & (recorded <= high)
        return inside[..., self.observed :, :].all(axis=-2)


def scores(predicted: np.ndarray, recorded: np.ndarray, typical: Typical, *, observed: int = 1) -> np.ndarray:
    """S of each path, float64 [runs, tests]; inf if a path is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        predicted = np.asarray(predicted, np.float64)
        error = np.abs(predicted - recorded) / typical.widening(predicted)
        error = error[:, observed:] / typical.error[observed : error.shape[1], None]
        return np.nan_to_num(error, nan=np.inf).max(axis=1)


def check_level(level: float) -> None:
    """Raises ConfigurationError for a level outside (0, 1)."""
    if not 0 < level < 1:
        raise ConfigurationError(f"bands: level must be above 0 and below 1, not {level}")


def calibrate(
    predicted: np.ndarray,
    recorded: np.ndarray,
    typical: Typical,
    *,
    level: float = 0.9,
    unit: str = "path",
    observed: int = 1,
) -> Bands:
    """Bands from calibration runs, float [runs, steps + 1, tests], and the `Typical` of other runs.

    The scores count as if there were one more path (unit "path") or one more run (unit "run") with infinite scores. The
    quantile is the smallest score that at least the share `level` of all scores do not exceed; inf if there is none.

    Raises ConfigurationError for a level outside (0, 1), an unknown unit, or shapes that disagree.
    """
    check_level(level)
    if unit not in UNITS:
        raise ConfigurationError(unknown("unit", unit, UNITS, where="bands: "))
    if (
        np.shape(predicted) != np.shape(recorded)
        or np.ndim(predicted) != 3
        or np.shape(predicted)[1:] != typical.centre.shape
    ):
        raise ConfigurationError(
            f"bands: the shapes of predicted {list(np.shape(predicted))}, recorded {list(np.shape(recorded))} and typical "
            f"{list(typical.centre.shape)} disagree; give [runs, steps + 1, tests] of the same tests and as many steps"
        )
    found = scores(predicted, recorded, typical, observed=observed)
    count = found.size if unit == "path" else len(found)
    # how many scores the quantile must reach; rounded first, because 0.9 * 10 / 9 * 9 is not exactly 9 in binary
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
    """The names of training runs to fit on, and of the last `count`, which are left out to calibrate on.

    Raises ConfigurationError if `count` is below 1 or leaves fewer than two runs to fit on.
    """
    if not 1 <= count <= len(names) - 2:
        raise ConfigurationError(
            f"bands: {count} of {len(names)} training runs cannot be left out to calibrate on; choose 1 to {len(names) - 2}"
        )
    return list(names[:-count]), list(names[-count:])
