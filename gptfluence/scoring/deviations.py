"""How much of the curriculum's effect, beyond the mean trajectory, a simulator predicts.

Most of a trajectory is the same for all curricula drawn alike. So the mean trajectory alone already has small errors
and high rank correlations of final losses. This module measures the rest: what the curriculum changes.

A statistic over several runs comes with an interval (`intervals.over_runs`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from gptfluence.common.errors import ConfigurationError
from gptfluence.scoring import intervals
from gptfluence.scoring.evaluation import explained_share, spearman
from gptfluence.scoring.intervals import Interval, Scale, over_runs


def explained_deviation(mse: np.ndarray, mse_mean_trajectory: np.ndarray) -> Interval:
    """R2_dev = 1 - sum(mse) / sum(mse_mean_trajectory) over runs, with its interval. Both: float [runs]."""
    mse, reference = _one_each("explained_deviation", mse, mse_mean_trajectory, dimensions=1)
    return over_runs(lambda rows: explained_share(mse[rows], reference[rows]), len(mse), intervals.EXPLAINED)


def difference_of_explained(mse: np.ndarray, other_mse: np.ndarray, mse_mean_trajectory: np.ndarray) -> Interval:
    """R2_dev of one method less that of another on the same runs, with its interval. All: float [runs].

    What both methods have in common in a run is not in the interval: each run is left out for both at once.
    """
    mse, other = _one_each("difference_of_explained", mse, other_mse, dimensions=1)
    _, reference = _one_each("difference_of_explained", mse, mse_mean_trajectory, dimensions=1)

    def statistic(rows: np.ndarray) -> float:
        return explained_share(mse[rows], reference[rows]) - explained_share(other[rows], reference[rows])

    return over_runs(statistic, len(mse), intervals.ANY)


def explained_within(mse: np.ndarray, recorded: np.ndarray) -> Interval:
    """R2 within the kind, with its interval: 1 - MSE / MSE of the mean of the *other* runs of the same kind, corrected.

    mse: float [runs], means over predicted steps and test examples; recorded: float [runs, predicted steps, tests]

    The MSE of the mean of n - 1 other runs is n / (n - 1) times that of the true mean of the kind, because it is itself an
    estimate. The correction takes this factor out, so that 0 is the true mean of this kind of curricula:

        r2_within = 1 - mean(mse) / s^2,    s^2 = (n - 1) / n * mean_k (y_k - mean of the others)^2

    s^2 is the unbiased variance between runs, or half the mean squared distance of two different runs. nan if no two runs
    differ. Raises ConfigurationError for fewer than `intervals.FEWEST` runs, of which a variance says little.
    """
    mse, recorded = np.asarray(mse, np.float64), np.asarray(recorded, np.float64)
    if recorded.ndim != 3 or mse.shape != recorded.shape[:1] or len(mse) < intervals.FEWEST:
        raise ConfigurationError(
            f"explained_within: {list(mse.shape)} errors of {list(recorded.shape)} values; give [runs] errors of [runs, "
            f"steps, tests] values, {intervals.FEWEST} runs at least"
        )
    distances = np.stack([np.square(recorded - run).mean(axis=(1, 2)) for run in recorded])

    def statistic(rows: np.ndarray) -> float:
        pairs = len(rows) * (len(rows) - 1)
        return explained_share(mse[rows].mean(), distances[np.ix_(rows, rows)].sum() / pairs / 2)

    return over_runs(statistic, len(mse), intervals.EXPLAINED)


def mean_over_runs(values: np.ndarray, scale: Scale) -> Interval:
    """The mean over the runs that have a value, with its interval on this scale; nan if none has. values: float [runs]."""
    values = np.asarray(values, np.float64)
    defined = values[~np.isnan(values)]
    if not len(defined):
        return Interval(float("nan"), float("nan"), float("nan"), len(values))
    found = over_runs(lambda rows: defined[rows].mean(), len(defined), scale)
    return found._replace(undefined=len(values) - len(defined))


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


def linear_datamodelling_score(predicted: np.ndarray, recorded: np.ndarray) -> Interval:
    """The rank correlation over curricula of the predicted and true metric of a test example, averaged over test examples.

    Both: float [curricula, tests]. After Park et al., 2023 (arXiv:2303.14186), where curricula are random subsets. A test
    example for which a method predicts the same value on every curriculum has no score; it is left out and counted. The
    interval is over curricula.
    """
    predicted, recorded = _one_each("linear_datamodelling_score", predicted, recorded, dimensions=2)
    defined = ~np.isnan(spearman(predicted, recorded, axis=0))
    undefined = int((~defined).sum())
    if not defined.any():
        return Interval(float("nan"), float("nan"), float("nan"), undefined)

    def statistic(rows: np.ndarray) -> float:
        each = spearman(predicted[rows], recorded[rows], axis=0)
        return float(np.nanmean(each)) if not np.isnan(each).all() else float("nan")

    return over_runs(statistic, len(predicted), intervals.CORRELATION)._replace(undefined=undefined)


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


def _one_each(where: str, predicted: np.ndarray, recorded: np.ndarray, *, dimensions: int) -> list[np.ndarray]:
    left, right = (np.asarray(values, np.float64) for values in (predicted, recorded))
    if left.shape != right.shape or left.ndim != dimensions or not left.size:
        raise ConfigurationError(
            f"{where}: shapes {list(left.shape)} and {list(right.shape)} do not pair; give two arrays of {dimensions} "
            "dimensions and equal shape, of the same runs in the same order"
        )
    return [left, right]
