"""Intervals around statistics of a few runs: Student's t with the standard error of the jackknife.

Runs are what is independent: the test examples of one run share its curriculum. So whole runs are left out, one at a
time, on a scale g on which the statistic of few runs is nearly normal:

    theta = g(statistic of all n runs),    theta_k = g(statistic without run k)
    se^2 = (n - 1) / n * sum_k (theta_k - theta)^2
    interval: g^-1(theta -+ t se),    t: quantile of Student's distribution with n - 2 degrees of freedom

(Tukey, 1958; Miller, 1974.) Errors are skewed, and those of a method and of the mean trajectory go together from run to
run. So R2 is taken on the scale of the log of a ratio of errors. Errors are not normal on any scale, so one degree of
freedom less than for a mean is taken.

The choices were made by simulation, and tests/test_interval_coverage.py repeats it in small: intervals over five and ten
runs, and of the datamodelling score over eight curricula, cover 0.85 to 0.95 of the true values, where percentile
bootstraps of five runs cover less than 0.82.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.9
FEWEST = 5  # runs that an interval needs; of fewer, figures show each run by itself
OF_RUN = "_of_run"  # ends the name of a statistic of a single run


class Interval(NamedTuple):
    """A statistic with its interval, nan where there is none. undefined: how many runs or test examples had no value."""

    value: float
    low: float
    high: float
    undefined: int = 0


class Scale(NamedTuple):
    """A scale that an interval is symmetric on: a monotonic function of the statistic, and its inverse."""

    to: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


ANY = Scale(np.asarray, np.asarray)  # a difference
ERROR = Scale(np.log, np.exp)  # above 0
EXPLAINED = Scale(lambda r2: np.log(1 - r2), lambda log_ratio: 1 - np.exp(log_ratio))  # R2: 1 - a ratio of errors
CORRELATION = Scale(np.asarray, lambda correlation: np.clip(correlation, -1, 1))
SHARE = Scale(np.asarray, lambda share: np.clip(share, 0, 1))


def over_runs(statistic: Callable[[np.ndarray], float], runs: int, scale: Scale) -> Interval:
    """A statistic of `runs` runs with its 90% interval.

    statistic: of the runs at these positions, int64 [at most runs], without repetition
    The ends are nan for fewer than `FEWEST` runs, and where a value, or one without a run, is infinite on the scale.
    """
    everything = np.arange(runs)
    value = float(statistic(everything))
    return jackknife(value, [statistic(np.delete(everything, run)) for run in everything], scale)


def jackknife(value: float, without: Sequence[float], scale: Scale) -> Interval:
    """The interval of `over_runs`, from the statistic of all runs and, float [runs], the statistic without each of them."""
    without = np.asarray(without, np.float64)
    runs = len(without)
    if runs < FEWEST or not np.isfinite(value):
        return Interval(value, float("nan"), float("nan"))
    if (without == value).all():  # runs that do not differ; their scale may be infinite here
        return Interval(value, value, value)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = scale.to(np.float64(value))
        half = stdtrit(runs - 2, (1 + LEVEL) / 2) * np.sqrt((runs - 1) * np.square(scale.to(without) - centre).mean())
    if not np.isfinite(half):
        return Interval(value, float("nan"), float("nan"))
    low, high = sorted(scale.back(np.array([centre - half, centre + half])).tolist())
    return Interval(value, low, high)
