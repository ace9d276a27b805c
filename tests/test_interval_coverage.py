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

TRIALS = 800
TOLERANCE = 0.05  # of coverage; 0.01 is the standard error of so many trials


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), runs=st.integers(5, 12))
def test_the_interval_of_a_mean_is_students_with_one_degree_of_freedom_less(seed: int, runs: int):
    values = np.random.default_rng(seed).normal(size=runs)
    found = deviations.mean_over_runs(values, intervals.ANY)
    expected = stats.t(runs - 2, loc=values.mean(), scale=stats.sem(values)).interval(0.9)
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
    ratio, t = np.log(mse.sum() / reference.sum()), stats.t(6).ppf(0.95)
    error = np.sqrt(7 / 8 * sum((one - ratio) ** 2 for one in logs))
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


def coverage(trial: Callable[[np.random.Generator], tuple[Interval, float]], trials: int = TRIALS) -> float:
    """The share of trials whose interval holds the true value."""
    rng = np.random.default_rng(0)
    drawn = [trial(rng) for _ in range(trials)]
    return float(np.mean([interval.low <= truth <= interval.high for interval, truth in drawn]))


@pytest.mark.parametrize("runs", [5, 10])
@pytest.mark.parametrize(("of_method", "of_mean", "together"), [(0.5, 0.5, 0.5), (0.3, 0.8, 0.3), (0.6, 0.6, 0.9)])
def test_nine_of_ten_intervals_of_r2_dev_cover_it_if_errors_are_log_normal_and_paired(
    runs: int, of_method: float, of_mean: float, together: float
):
    """of_method, of_mean: standard deviations over runs of the logs of errors, as figures/mini/ext02_horizon.csv has them."""

    def trial(rng: np.random.Generator) -> tuple[Interval, float]:
        return deviations.explained_deviation(*log_normal(rng, runs, of_method, of_mean, together)), 0.7

    assert coverage(trial) == pytest.approx(0.9, abs=TOLERANCE)


def log_normal(
    rng: np.random.Generator, runs: int, of_method: float, of_mean: float, together: float
) -> list[np.ndarray]:
    """Errors of a method and of the mean trajectory, [runs] each, with means of 0.3 and 1."""
    reference, own = rng.normal(size=(2, runs))
    both = together * reference + np.sqrt(1 - together**2) * own
    spreads = ((both, of_method, 0.3), (reference, of_mean, 1.0))
    return [mean * np.exp(spread * values - spread**2 / 2) for values, spread, mean in spreads]


def test_percentile_bootstraps_of_five_runs_cover_too_little():
    """Why there is none in the package."""

    def trial(rng: np.random.Generator) -> tuple[Interval, float]:
        mse, reference = log_normal(rng, 5, 0.5, 0.5, 0.5)
        again = rng.integers(0, 5, size=(400, 5))
        r2 = 1 - mse[again].sum(axis=1) / reference[again].sum(axis=1)
        return Interval(float("nan"), *np.quantile(r2, [0.05, 0.95])), 0.7

    assert coverage(trial) < 0.82


@pytest.mark.parametrize("runs", [5, 10])
def test_nine_of_ten_intervals_cover_r2_within_and_differences_of_r2_dev(runs: int):
    """Deviations of runs are normal with spectrum 1 / k^1.5; two methods predict 0.9 and 0.5 of them, and add noise."""
    spectrum = np.arange(1, 41) ** -1.5 / (np.arange(1, 41) ** -1.5).sum()

    def errors(rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray], list[float]]:
        off = rng.normal(size=(runs, 40)) * np.sqrt(40 * spectrum)  # with a mean square of 1
        kept = ((0.9, 0.1, 0.3), (0.5, 0.2, 0.0))  # the share that is predicted, noise, an error in the level
        found = [(1 - share) * off + noise * rng.normal(size=off.shape) + level for share, noise, level in kept]
        truths = [(1 - share) ** 2 + noise**2 + level**2 for share, noise, level in kept]
        return off, [np.square(error).mean(axis=1) for error in found], truths

    def within(rng: np.random.Generator) -> tuple[Interval, float]:
        off, (mse, _), (truth, _) = errors(rng)
        return deviations.explained_within(mse, off[:, None]), 1 - truth

    def difference(rng: np.random.Generator) -> tuple[Interval, float]:
        off, mse, truths = errors(rng)
        return deviations.difference_of_explained(*mse, np.square(off).mean(axis=1)), truths[1] - truths[0]

    assert coverage(within) == pytest.approx(0.9, abs=TOLERANCE)
    assert coverage(difference) == pytest.approx(0.9, abs=TOLERANCE)


@pytest.mark.parametrize("noise", [1.0, 10.0])
def test_nine_of_ten_intervals_cover_a_datamodelling_score_over_eight_sets(noise: float):
    # of three properties of a set, on twenty test examples; and of three that have to do with the prediction alone
    effects, wrong = np.random.default_rng(1).normal(size=(2, 3, 20))
    variance = np.square(effects).sum(axis=0)
    correlation = np.sqrt(variance / (variance + noise * np.square(wrong).sum(axis=0)))
    truth = float((6 / np.pi * np.arcsin(correlation / 2)).mean())  # Spearman's, of normal variables

    def trial(rng: np.random.Generator) -> tuple[Interval, float]:
        recorded = rng.normal(size=(8, 3)) @ effects
        predicted = recorded + np.sqrt(noise) * rng.normal(size=(8, 3)) @ wrong
        return deviations.linear_datamodelling_score(predicted, recorded), truth

    assert coverage(trial, 400) == pytest.approx(0.9, abs=TOLERANCE)


@pytest.mark.parametrize("runs", [5, 10])
def test_nine_of_ten_intervals_cover_means_of_shares_and_of_errors(runs: int):
    def share(rng: np.random.Generator) -> tuple[Interval, float]:
        return deviations.mean_over_runs(rng.binomial(64, rng.beta(8, 2, runs)) / 64, intervals.SHARE), 0.8

    def error(rng: np.random.Generator) -> tuple[Interval, float]:
        return deviations.mean_over_runs(np.exp(0.5 * rng.normal(size=runs) - 0.125), intervals.ERROR), 1.0

    assert coverage(share) == pytest.approx(0.9, abs=TOLERANCE)
    assert coverage(error) == pytest.approx(0.9, abs=TOLERANCE)
