"""The severe part of the evaluation: equal to loops over the definitions, honest where nothing is defined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gptfluence.common.errors import ConfigurationError
from gptfluence.scoring import deviations
from gptfluence.scoring.evaluation import spearman
from gptfluence.scoring.intervals import CORRELATION

RUNS, STEPS, TESTS = 5, 7, 6


@pytest.fixture
def trajectories() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted and recorded [runs, steps + 1, tests], and a mean trajectory."""
    rng = np.random.default_rng(0)
    recorded = rng.normal(2, 1, (RUNS, STEPS + 1, TESTS))
    return recorded + rng.normal(0, 0.5, recorded.shape), recorded, rng.normal(2, 0.2, (STEPS + 1, TESTS))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), ties=st.booleans())
def test_rank_correlations_are_scipys_one_by_one(seed: int, ties: bool):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(2, 8, 5))
    if ties:
        left, right = left.round(), right.round()
    left[:, 0] = 1.0  # constant: undefined
    right[2, 1] = np.inf
    found = spearman(left, right, axis=0)
    assert np.isnan(found[:2]).all()
    for column in range(2, 5):
        if len(np.unique(left[:, column])) > 1 and len(np.unique(right[:, column])) > 1:
            expected = stats.spearmanr(left[:, column], right[:, column]).statistic
            assert found[column] == pytest.approx(expected)


def test_changes_and_deviations_are_ranked_within_each_run(trajectories):
    predicted, recorded, mean = trajectories
    change, deviation = deviations.change_spearman(predicted, recorded), None
    deviation = deviations.deviation_spearman(predicted, recorded, mean[-1])
    for run in range(RUNS):
        moved = [[values[run, -1, z] - values[run, 0, z] for z in range(TESTS)] for values in (predicted, recorded)]
        assert change[run] == pytest.approx(stats.spearmanr(*moved).statistic)
        off = [[values[run, -1, z] - mean[-1, z] for z in range(TESTS)] for values in (predicted, recorded)]
        assert deviation[run] == pytest.approx(stats.spearmanr(*off).statistic)


def test_knowing_the_start_or_the_mean_alone_earns_nothing(trajectories):
    _, recorded, mean = trajectories
    persistence = np.broadcast_to(recorded[:, :1], recorded.shape)
    assert np.isnan(deviations.change_spearman(persistence, recorded)).all()
    simulated = np.broadcast_to(mean, recorded.shape).astype(np.float32)  # as simulators return it
    assert np.isnan(deviations.deviation_spearman(simulated, recorded, mean[-1])).all()
    interval = deviations.mean_over_runs(deviations.change_spearman(persistence, recorded), CORRELATION)
    assert np.isnan(interval.value)
    assert interval.undefined == RUNS


def test_the_datamodelling_score_is_a_mean_of_rank_correlations_over_curricula():
    rng = np.random.default_rng(2)
    recorded = rng.normal(size=(9, TESTS))
    predicted = recorded + rng.normal(0, 1, recorded.shape)
    predicted[:, 0] = 3.0  # the same for every curriculum
    found = deviations.linear_datamodelling_score(predicted, recorded)
    each = [stats.spearmanr(predicted[:, z], recorded[:, z]).statistic for z in range(1, TESTS)]
    assert found.value == pytest.approx(np.mean(each))
    assert found.undefined == 1
    assert found.low < found.value < found.high
    scores = []
    for left_out in range(9):
        rows = [row for row in range(9) if row != left_out]
        each = [stats.spearmanr(predicted[rows, z], recorded[rows, z]).statistic for z in range(1, TESTS)]
        scores.append(np.mean(each))
    half = stats.t(7).ppf(0.95) * np.sqrt(8 / 9 * np.square(np.array(scores) - found.value).sum())
    assert (found.low, found.high) == pytest.approx((found.value - half, min(found.value + half, 1)))
    perfect = deviations.linear_datamodelling_score(recorded * 3 + 1, recorded)
    assert perfect[:2] == pytest.approx((1, 1))
    constant = deviations.linear_datamodelling_score(np.ones((9, TESTS)), recorded)
    assert np.isnan(constant.value)
    assert constant.undefined == TESTS


@pytest.mark.parametrize("observed", [1, 3])
def test_the_error_of_a_step_is_the_mean_over_test_examples(trajectories, observed: int):
    predicted, recorded, mean = trajectories
    frame = deviations.by_horizon(predicted, recorded, mean, observed=observed).set_index(["run", "step"])
    assert len(frame) == RUNS * (STEPS + 1 - observed)
    for run in range(RUNS):
        for step in range(observed, STEPS + 1):
            expected = np.mean([(predicted[run, step, z] - recorded[run, step, z]) ** 2 for z in range(TESTS)])
            assert frame.loc[(run, step), "mse"] == pytest.approx(expected)
            expected = np.mean([(mean[step, z] - recorded[run, step, z]) ** 2 for z in range(TESTS)])
            assert frame.loc[(run, step), "mse_mean_trajectory"] == pytest.approx(expected)


def test_shapes_that_do_not_pair_are_errors(trajectories):
    predicted, recorded, mean = trajectories
    with pytest.raises(ConfigurationError, match=r"change_spearman: shapes \[4, 8, 6\] and \[5, 8, 6\] do not pair"):
        deviations.change_spearman(predicted[:4], recorded)
    with pytest.raises(ConfigurationError, match=r"mean has shape \[8, 6\], not \[tests\]"):
        deviations.deviation_spearman(predicted, recorded, mean)
    with pytest.raises(ConfigurationError, match="observed must be 1 to 7 rows, not 8"):
        deviations.by_horizon(predicted, recorded, mean, observed=8)
