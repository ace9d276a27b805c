"""How much of the curriculum's effect, beyond the mean trajectory, a simulator predicts.

Most of a trajectory is the same for all curricula drawn alike. So the mean trajectory alone already has small errors
and high rank correlations of final losses. This module measures the rest: what the curriculum changes.

Intervals are percentile bootstrap intervals. Whole runs are drawn again, because the test examples of one run share its
curriculum. For two or three runs an interval says little more than their range, and for one run it is nan.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from gptfluence.common.errors import ConfigurationError
from gptfluence.scoring.evaluation import spearman

LEVEL = 0.9
RESAMPLES = 2000


class Interval(NamedTuple):
    """A statistic with its interval. undefined: how many of the averaged runs or test examples had no value."""

    value: float
    low: float
    high: float
    undefined: int = 0


def explained_deviation(mse: np.ndarray, mse_mean_trajectory: np.ndarray, *, seed: int = 0) -> Interval:
    """R2_dev = 1 - sum(mse) / sum(mse_mean_trajectory) over runs, with its interval. Both: float [runs]."""
    mse, reference = _one_each("explained_deviation", mse, mse_mean_trajectory, dimensions=1)

    def statistic(error: np.ndarray, of_mean: np.ndarray, axis: int = -1) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return 1 - error.sum(axis=axis) / of_mean.sum(axis=axis)

    return _interval((mse, reference), statistic, seed)


def mean_over_runs(values: np.ndarray, *, seed: int = 0) -> Interval:
    """The mean over the runs that have a value, with its interval; nan if none has. values: float [runs]."""
    values = np.asarray(values, np.float64)
    defined = values[~np.isnan(values)]
    if not len(defined):
        return Interval(float("nan"), float("nan"), float("nan"), len(values))
    return _interval((defined,), np.mean, seed)._replace(undefined=len(values) - len(defined))


def change_spearman(predicted: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """The rank correlation over test examples of predicted and recorded changes, the last value minus the first: float [runs].

    Both: float [runs, steps + 1, tests]. Unlike the final-step Spearman it does not reward the known first value.
    """
    predicted, recorded = _one_each("change_spearman", predicted, recorded, dimensions=3)
    return spearman(predicted[:, -1] - predicted[:, 0], recorded[:, -1] - recorded[:, 0])


def deviation_spearman(predicted: np.ndarray, recorded: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The same for deviations at the last step, the value minus that of the mean training trajectory: float [runs].

    mean: float [tests], the last value of the mean trajectory. The mean trajectory has no deviations, so its score is nan.
    """
    predicted, recorded = _one_each("deviation_spearman", predicted, recorded, dimensions=3)
    mean = np.asarray(mean, np.float64)
    if mean.shape != predicted.shape[2:]:
        raise ConfigurationError(
            f"deviation_spearman: mean has shape {list(mean.shape)}, not [tests] = [{predicted.shape[2]}]; give the last "
            "row of the mean trajectory"
        )
    # the mean trajectory's own deviations are rounding errors of float32; they are not to be ranked
    deviations = predicted[:, -1] - mean
    deviations[np.abs(deviations) < 1e-5 * np.maximum(np.abs(mean), 1)] = 0
    return spearman(deviations, recorded[:, -1] - mean)


def linear_datamodelling_score(predicted: np.ndarray, recorded: np.ndarray, *, seed: int = 0) -> Interval:
    """The rank correlation over curricula of the predicted and true metric of a test example, averaged over test examples.

    Both: float [curricula, tests]. After Park et al., 2023 (arXiv:2303.14186), where curricula are random subsets. A test
    example for which a method predicts the same value on every curriculum has no score; it is left out and counted. For
    the interval, curricula are drawn again.
    """
    predicted, recorded = _one_each("linear_datamodelling_score", predicted, recorded, dimensions=2)
    each = spearman(predicted, recorded, axis=0)
    undefined = int(np.isnan(each).sum())
    if undefined == len(each):
        return Interval(float("nan"), float("nan"), float("nan"), undefined)

    def statistic(rows: np.ndarray) -> float:
        again = spearman(predicted[rows], recorded[rows], axis=0)
        return float(np.nanmean(again)) if not np.isnan(again).all() else float("nan")

    positions = np.arange(len(predicted))
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.choice(positions, len(positions))) for _ in range(RESAMPLES // 5)]
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.nanmean(each)), float(low), float(high), undefined)


def by_horizon(predicted: np.ndarray, recorded: np.ndarray, mean: np.ndarray, *, observed: int = 1) -> pd.DataFrame:
    """The error at each predicted step: columns run (position), step, mse, mse_mean_trajectory.

    predicted, recorded: float [runs, steps + 1, tests]; mean: the mean training trajectory, float [steps + 1, tests].
    Errors are means over test examples, in the metric's unit squared.
    """
    predicted, recorded = _one_each("by_horizon", predicted, recorded, dimensions=3)
    if not 1 <= observed < predicted.shape[1]:
        raise ConfigurationError(f"by_horizon: observed must be 1 to {predicted.shape[1] - 1} rows, not {observed}")
    with np.errstate(over="ignore", invalid="ignore"):
        errors = [np.square(values - recorded).mean(axis=2)[:, observed:] for values in (predicted, mean[None])]
    runs, steps = errors[0].shape
    return pd.DataFrame(
        {
            "run": np.repeat(np.arange(runs), steps),
            "step": np.tile(np.arange(observed, observed + steps), runs),
            "mse": errors[0].ravel(),
            "mse_mean_trajectory": errors[1].ravel(),
        }
    )


def _interval(samples: tuple[np.ndarray, ...], statistic: Callable, seed: int) -> Interval:
    value, nan = float(statistic(*samples)), float("nan")
    if len(samples[0]) < 2 or not np.isfinite(value):
        return Interval(value, nan, nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of constant samples; their interval is a point
        found = bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=True,
            method="percentile",
            confidence_level=LEVEL,
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return Interval(value, float(found.low), float(found.high))


def _one_each(where: str, predicted: np.ndarray, recorded: np.ndarray, *, dimensions: int) -> list[np.ndarray]:
    left, right = (np.asarray(values, np.float64) for values in (predicted, recorded))
    if left.shape != right.shape or left.ndim != dimensions or not left.size:
        raise ConfigurationError(
            f"{where}: shapes {list(left.shape)} and {list(right.shape)} do not pair; give two arrays of {dimensions} "
            "dimensions and equal shape, of the same runs in the same order"
        )
    return [left, right]
