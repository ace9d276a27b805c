"""How well scores find what is wrong in a set of training examples that is inspected from the highest score down.

Chance is known exactly here, so nothing is drawn to estimate it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from gptfluence.common.errors import ConfigurationError
from gptfluence.scoring.deviations import mean_over_runs
from gptfluence.scoring.intervals import ANY, LEVEL


def inspection_order(scores: np.ndarray) -> np.ndarray:
    """int [pool]: positions from the highest score to the lowest; of equal ones the earlier example first."""
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")


def fraction_found(order: np.ndarray, flipped: np.ndarray, inspected: Sequence[int]) -> np.ndarray:
    """float [len(inspected)]: the share of all flipped examples among the first so many of `order`.

    order: int [pool]; flipped: bool [pool]. Raises ConfigurationError if nothing was flipped.
    """
    if not flipped.any():
        raise ConfigurationError("inspection: no example is flipped, so there is none to be found; flip some")
    return np.concatenate([[0], np.cumsum(flipped[order])])[list(inspected)] / flipped.sum()


def area_under_roc(scores: np.ndarray, flipped: np.ndarray) -> float:
    """The share of pairs, a flipped example and one that is not, in which the flipped one has the higher score.

    Of equal scores half a pair counts. 0.5 is chance and 1 perfect, whatever share was flipped.
    """
    wrong, right = int(flipped.sum()), int((~flipped).sum())
    above = stats.rankdata(scores)[flipped].sum() - wrong * (wrong + 1) / 2  # the Mann-Whitney statistic
    return float(above / (wrong * right))


def random_found(pool: int, flipped: int) -> pd.DataFrame:
    """What random inspection finds: columns x, value, low, high (0-1), a row for each number inspected, 0 to `pool`.

    value: the expectation over all orders, which is x; low, high: between them lies the share that a single order finds, with
    a probability of `LEVEL` at least (hypergeometric)
    """
    counts = np.arange(pool + 1)
    low, high = stats.hypergeom.interval(LEVEL, pool, flipped, counts)
    # scipy takes the lower end of a distribution on one point for the number before it
    low, high = np.maximum(low, np.maximum(0, counts - (pool - flipped))), np.minimum(high, counts)
    return pd.DataFrame({"x": counts / pool, "value": counts / pool, "low": low / flipped, "high": high / flipped})


def random_area(pool: int, flipped: int) -> tuple[float, float, float]:
    """The expected area under the ROC curve of a random order, and between which ends a single order's lies by `LEVEL`.

    The distribution is that of the Mann-Whitney statistic in its normal approximation.
    """
    deviation = np.sqrt((pool + 1) / (12 * flipped * (pool - flipped)))
    low, high = stats.norm.interval(LEVEL, 0.5, deviation)
    return 0.5, float(low), float(high)


def mean_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean over seeds and its interval (see `intervals`), whose ends are nan for fewer than `intervals.FEWEST` seeds."""
    value, low, high, _ = mean_over_runs(np.asarray(values), ANY)
    return value, low, high
