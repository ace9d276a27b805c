"""Bands around simulated trajectories that hold the recorded ones with a chosen probability: split conformal prediction.

A band is as wide at step t as the simulator's typical error there, times one number q, so that a whole path is inside or is
not. The score of a path is how many typical errors it is off at its worst step,

    S = max_t |y_t - yhat_t| / scale_t,        band: yhat_t +- q scale_t,

and q is a quantile of the scores of calibration runs, which the simulator was not fitted on (Vovk et al., 2005; Lei et al.,
2018, arXiv:1604.04173).

What is promised: if calibration runs and the new run are exchangeable (curricula drawn alike, the same GPT and settings),
a path is inside with at least the chosen probability, averaged over calibration sets, curricula and test examples; not for
each curriculum, nor for each test example. Paths of one run share its curriculum and are not independent. `unit="run"` takes
this into account as two-layer exchangeability does (Lee, Barber, Willett, 2023, arXiv:2306.06342): the guarantee holds
whatever the dependence within a run, at the price of wider bands, and of at least level / (1 - level) calibration runs.
`unit="path"` takes paths for exchangeable; with few calibration runs its coverage varies from one calibration set to the
next. For a curriculum unlike the calibration ones (repeated, sorted, biased, another learning rate) nothing is promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptfluence.errors import ConfigurationError, unknown

UNITS = ("path", "run")
FLOOR = 1e-3  # of the largest typical error: where a simulator is as good as exact, a band has still some width


@dataclass(frozen=True)
class Bands:
    """scale: float64 [steps + 1], 0 where observed; quantile: typical errors on either side, inf if nothing can be promised."""

    scale: np.ndarray
    quantile: float
    level: float
    unit: str
    runs: int  # calibration runs
    observed: int = 1

    def around(self, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper edge, float64, of float [..., steps + 1, tests]; of fewer steps than fitted: the first of them.

        Raises ConfigurationError for more steps than the bands were made for.
        """
        predicted = np.asarray(predicted, np.float64)
        if predicted.shape[-2] > len(self.scale):
            raise ConfigurationError(
                f"bands: made for {len(self.scale) - 1} steps, asked for {predicted.shape[-2] - 1}; calibrate them on runs "
                "of that length"
            )
        half = np.zeros((predicted.shape[-2], 1))
        half[self.observed :] = self.quantile * self.scale[self.observed : len(half), None]
        return predicted - half, predicted + half

    def covered(self, predicted: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        """bool [..., tests]: whether the whole recorded path after what was observed lies inside."""
        low, high = self.around(predicted)
        inside = (recorded >= low) & (recorded <= high)
        return inside[..., self.observed :, :].all(axis=-2)


def typical_errors(predicted: np.ndarray, recorded: np.ndarray, *, observed: int = 1) -> np.ndarray:
    """float64 [steps + 1]: root mean squared error at each step, 0 where observed; both float [runs, steps + 1, tests].

    Of runs that are not used to calibrate (those that the simulator was fitted on will do: only the shape matters).
    """
    error = np.asarray(predicted, np.float64) - recorded
    if error.ndim != 3 or not error.size:
        raise ConfigurationError(f"bands: errors must be [runs, steps + 1, tests], not {list(error.shape)}")
    scale = np.sqrt(np.square(error).mean(axis=(0, 2)))
    if not (np.isfinite(scale).all() and scale.max() > 0):
        raise ConfigurationError(
            "bands: the simulator's errors are not finite, or 0 at every step; bands need one that does not diverge"
        )
    scale = np.maximum(scale, FLOOR * scale.max())
    scale[:observed] = 0
    return scale


def scores(predicted: np.ndarray, recorded: np.ndarray, scale: np.ndarray, *, observed: int = 1) -> np.ndarray:
    """float64 [runs, tests]: max over predicted steps of |error| / scale; inf for a path that is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(np.asarray(predicted, np.float64) - recorded)[:, observed:]
        return np.nan_to_num(error / scale[observed : error.shape[1] + observed, None], nan=np.inf).max(axis=1)


def calibrate(
    predicted: np.ndarray,
    recorded: np.ndarray,
    scale: np.ndarray,
    *,
    level: float = 0.9,
    unit: str = "path",
    observed: int = 1,
) -> Bands:
    """Bands from calibration runs, float [runs, steps + 1, tests], and the `typical_errors` of others.

    The quantile is the smallest score with at least the share `level` of all scores at or below it, where one more path
    (unit "path") or one more run (unit "run") counts as infinitely bad; inf if there are too few for the level.

    Raises ConfigurationError for a level outside (0, 1), an unknown unit, or shapes that disagree.
    """
    if not 0 < level < 1:
        raise ConfigurationError(f"bands: level must be above 0 and below 1, not {level}")
    if unit not in UNITS:
        raise ConfigurationError(unknown("unit", unit, UNITS, where="bands: "))
    if np.shape(predicted) != np.shape(recorded) or np.ndim(predicted) != 3 or np.shape(predicted)[1] != len(scale):
        raise ConfigurationError(
            f"bands: predicted {list(np.shape(predicted))}, recorded {list(np.shape(recorded))} and scale [{len(scale)}] "
            "disagree; give [runs, steps + 1, tests] of the same calibration runs"
        )
    found = scores(predicted, recorded, scale, observed=observed)
    count = found.size if unit == "path" else len(found)
    # the share of the scores that is needed, with one more unit at infinity; rounded before it is rounded up, since
    # 0.9 * 10 / 9 * 9 is not 9 in binary
    needed = int(np.ceil(np.round(level * (count + 1) / count * found.size, 9)))
    ordered = np.sort(found, axis=None)
    quantile = float(ordered[needed - 1]) if needed <= found.size else float("inf")
    return Bands(np.asarray(scale, np.float64), quantile, level, unit, len(found), observed)


def coverage(bands: Bands, predicted: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """float [runs]: the share of each run's test examples whose whole path lies inside."""
    return bands.covered(predicted, np.asarray(recorded, np.float64)).mean(axis=-1)


def mean_width(bands: Bands, steps: int) -> float:
    """The mean over `steps` predicted steps of the whole width of a band, in the metric's unit."""
    return float(2 * bands.quantile * bands.scale[bands.observed : steps + 1].mean())


def calibration_names(names: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """Training runs to fit on, and the last `count` of them, left out to calibrate on.

    Raises ConfigurationError unless two at least are left to fit on and `count` is 1 or more.
    """
    if not 1 <= count <= len(names) - 2:
        raise ConfigurationError(
            f"bands: {count} of {len(names)} training runs cannot be left out to calibrate on; choose 1 to {len(names) - 2}"
        )
    return list(names[:-count]), list(names[-count:])
