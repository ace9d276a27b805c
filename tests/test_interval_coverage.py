"""Intervals over runs: the t interval of a mean, a loop over its definition, and simulations of how often they cover."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gptfluence.common.errors import ConfigurationError
from gptfluence.scoring import deviations, intervals
from gptfluence.scoring.intervals import Interval

TRIALS = 1500
TOLERANCE = 0.05  # of coverage: what a simulation of so many trials misses it by (0.008) is the smaller part of it


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), runs=st.integers(5, 12))
def test_the_interval_of_a_mean_is_students(seed: int, runs: int):
    values = np.random.default_rng(seed).normal(size=runs)
    found = deviations.mean_over_runs(values, intervals.ANY)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_the_interval_of_r2_dev_is_that_of_the_definition():
    rng = np.random.default_rng(1)
    mse, reference = rng.uniform(0.5, 1, 8), rng.uniform(1, 2, 8)
    found = deviations.explained_deviation(mse, reference)
    assert found.value == pytest.approx(1 - mse.sum() / reference.sum())
    logs = []
    for run in range(8):
        others = [other for other in range(8) if other != run]
        logs.append(np.log(sum(mse[o] for o in others) / sum(reference[o] for o in others)))
    error = np.sqrt(7 / 8 * sum((one - np.mean(logs)) ** 2 for one in logs))
    ratio, t = np.log(mse.sum() / reference.sum()), stats.t(7).ppf(0.95)
    assert found.low == pytest.approx(1 - np.exp(ratio + t * error))
    assert found.high == pytest.approx(1 - np.exp(ratio - t * error))


def test_intervals_say_when_there_is_none():
    few = deviations.explained_deviation([0.5] * 4, [1.0, 2.0, 1.0, 2.0])
    assert few.value == pytest.approx(1 - 2 / 6)
    assert np.isnan(few.low)
    assert np.isnan(few.high)
    same = deviations.explained_deviation([1.0] * 5, [2.0] * 5)
    assert same[:3] == (0.5, 0.5, 0.5)
    perfect = deviations.mean_over_runs(np.ones(5), intervals.CORRELATION)
    assert perfect[:3] == (1, 1, 1)
    lost = deviations.explained_deviation([np.inf, 1.0, 1.0, 1.0, 1.0], [2.0] * 5)  # diverged
    assert lost.value == -np.inf
    assert np.isnan(lost.low)
    one = deviations.explained_deviation([1.0, 0.0, 0.0, 0.0, 0.0], [2.0] * 5)  # without the first nothing is wrong
    assert one.value == pytest.approx(0.9)
    assert np.isnan(one.low)
    some = deviations.mean_over_runs(np.array([np.nan, 1, 2, 3, 4, 5]), intervals.ERROR)
    assert some.value == pytest.approx(3)
    assert some.undefined == 1
    assert 0 < some.low < 3 < some.high
    shares = deviations.mean_over_runs(np.array([1, 1, 1, 1, 0.5]), intervals.SHARE)
    assert shares.high == 1


# --- R2 within the kind ------------------------------------------------------------------------------------------------


def test_r2_within_compares_with_the_mean_of_the_other_runs():
    rng = np.random.default_rng(2)
    recorded = rng.normal(size=(6, 4, 3))
    mse = rng.uniform(0.1, 0.5, 6)
    of_others = []
    for run in range(6):
        others = [recorded[other] for other in range(6) if other != run]
        of_others.append(np.mean((recorded[run] - sum(others) / 5) ** 2))
    found = deviations.explained_within(mse, recorded)
    assert found.value == pytest.approx(1 - mse.mean() / (5 / 6 * np.mean(of_others)))
    assert found.low < found.value < found.high
    itself = deviations.explained_within(np.array(of_others), recorded)
    assert itself.value == pytest.approx(-1 / 5)  # the mean of five runs pays for being an estimate
    with pytest.raises(ConfigurationError, match="5 runs at least"):
        deviations.explained_within(mse[:4], recorded[:4])


@pytest.mark.parametrize("runs", [5, 10])
def test_the_true_mean_of_a_kind_explains_nothing_within_it_whatever_its_level(runs: int):
    rng = np.random.default_rng(3)
    within, dev = [], []
    for _ in range(400):
        recorded = 7 + rng.normal(size=(runs, 1, 30))
        mse = np.square(recorded - 7).mean(axis=(1, 2))  # of the true mean, 7
        within.append(1 - deviations.explained_within(mse, recorded).value)
        dev.append(deviations.explained_deviation(mse, np.square(recorded).mean(axis=(1, 2))).value)
    assert np.mean(within) == pytest.approx(1, abs=0.02)
    assert min(dev) > 0.95  # beside a mean of runs drawn alike, which is 0


def test_the_true_mean_has_an_r2_dev_of_one_in_k_plus_one():
    rng, training_runs = np.random.default_rng(4), 7
    training = rng.normal(size=(4000, training_runs)).mean(axis=1)
    new = rng.normal(size=4000)
    found = deviations.explained_deviation(new**2, (new - training) ** 2)
    assert found.value == pytest.approx(1 / (training_runs + 1), abs=0.02)


# --- coverage ----------------------------------------------------------------------------------------------------------


def covered(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def coverage(trial: Callable[[np.random.Generator], bool]) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([trial(rng) for _ in range(TRIALS)]))
