"""Evaluation: equal to the definitions written as loops, exact when pooled, honest about what is undefined."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.scoring.evaluation import evaluate, explained_share, spearman, summarize
from gptfluence.simulators.reference import MeanTrajectory
from toy_dynamics import make_pool, toy_spec

RUNS, STEPS, TESTS = 3, 6, 5


def dynamics_of(values: np.ndarray, split: str = "test") -> GPTDynamics:
    """Runs with these trajectories, float [runs, steps + 1, tests], for metrics loss and (ten times as much) bleu."""
    runs = tuple(
        TrainingRun(f"{split}-{k}", Curriculum(np.zeros((len(one) - 1, 2), int)), {"loss": one, "bleu": 10 * one})
        for k, one in enumerate(values.astype(np.float32))
    )
    return GPTDynamics("toy", "toy", make_pool("pool", 4), make_pool("tests", values.shape[2]), runs)


@pytest.fixture
def recorded() -> GPTDynamics:
    return dynamics_of(np.random.default_rng(0).normal(2, 1, (RUNS, STEPS + 1, TESTS)))


@pytest.fixture
def train() -> GPTDynamics:
    return dynamics_of(np.random.default_rng(1).normal(2, 1, (4, STEPS + 1, TESTS)), "train")


@pytest.fixture
def predicted() -> np.ndarray:
    return np.random.default_rng(2).normal(2, 1, (RUNS, STEPS + 1, TESTS)).astype(np.float32)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_index("statistic")


@pytest.mark.parametrize("observed", [1, 2, 5])
def test_steps_at_which_a_score_was_not_measured_do_not_count(predicted: np.ndarray, observed: int) -> None:
    """Every fourth and the last of six steps; the loss is measured at all of them."""
    values = np.random.default_rng(0).normal(2, 1, (RUNS, STEPS + 1, TESTS))
    recorded = replace(dynamics_of(values), spec=toy_spec(4))
    np.testing.assert_array_equal(recorded.measured("bleu"), [0, 4, 6])
    np.testing.assert_array_equal(recorded.measured("loss"), np.arange(STEPS + 1))
    counted = [step for step in (4, 6) if step >= observed]
    few, all_steps = (
        evaluate(predicted, recorded, metric=metric, observed=observed, reference=values[0] * 2).set_index(
            ["statistic", "run"]
        )["value"]
        for metric in ("bleu", "loss")
    )
    for run, (one, truth) in enumerate(zip(predicted, values.astype(np.float32), strict=True)):
        found, expected = few["all_steps_mse", f"test-{run}"], np.square(one - 10 * truth)[counted].mean()
        assert found == pytest.approx(expected, rel=1e-5)
        of_mean = np.square(values[0] * 2 - 10 * truth)[counted].mean()
        assert few["mse_mean_trajectory", f"test-{run}"] == pytest.approx(of_mean, rel=1e-5)
        assert all_steps["all_steps_mse", f"test-{run}"] == pytest.approx(
            np.square(one - truth)[observed:].mean(), rel=1e-5
        )


@pytest.mark.parametrize("metric", ["loss", "bleu"])
@pytest.mark.parametrize("observed", [1, 2, STEPS])
def test_statistics_are_those_of_the_paper(
    recorded: GPTDynamics, train: GPTDynamics, predicted: np.ndarray, metric: str, observed: int
) -> None:
    results = evaluate(predicted, recorded, metric=metric, observed=observed, reference=train)
    assert list(results.columns) == ["run", "statistic", "value"]
    truth, mean = recorded.trajectories(metric).astype(float), train.trajectories(metric).astype(float).mean(axis=0)
    squares, absolutes, of_mean = (np.zeros((RUNS, TESTS)) for _ in range(3))
    for k in range(RUNS):
        for m in range(TESTS):
            steps = range(observed, STEPS + 1)
            errors = [float(predicted[k, t, m]) - truth[k, t, m] for t in steps]
            squares[k, m] = np.mean([error**2 for error in errors])
            absolutes[k, m] = np.mean([abs(error) for error in errors])
            of_mean[k, m] = np.mean([(mean[t, m] - truth[k, t, m]) ** 2 for t in steps])
    ranks = [spearmanr(predicted[k, -1], truth[k, -1]).statistic for k in range(RUNS)]
    per_run = results.pivot(index="run", columns="statistic", values="value").loc[recorded.names]
    np.testing.assert_allclose(per_run["all_steps_mse"], squares.mean(axis=1))
    np.testing.assert_allclose(per_run["final_step_spearman"], ranks)
    np.testing.assert_allclose(per_run["mse_mean_trajectory"], of_mean.mean(axis=1))
    summary = table(summarize(results))
    for statistic, values in (("all_steps_mse", squares), ("all_steps_mae", absolutes)):
        row = summary.loc[statistic]
        np.testing.assert_allclose(
            [row["value"], row["std"], row["std_over_runs"]],
            [values.mean(), values.std(), values.mean(axis=1).std()],
        )
    row = summary.loc["final_step_spearman"]
    np.testing.assert_allclose([row["value"], row["std"], row["undefined"]], [np.mean(ranks), np.std(ranks), 0])
    np.testing.assert_allclose(summary.loc["r2_dev", "value"], 1 - squares.sum() / of_mean.sum())
    assert summary.loc[["runs", "trajectories", "diverged"], "value"].tolist() == [RUNS, RUNS * TESTS, 0]


def test_what_was_observed_does_not_count(recorded: GPTDynamics, train: GPTDynamics, predicted: np.ndarray) -> None:
    before = evaluate(predicted, recorded, observed=3, reference=train)
    predicted[:, :3] += 7
    pd.testing.assert_frame_equal(evaluate(predicted, recorded, observed=3, reference=train), before)


def test_r2_dev_is_one_for_the_truth_and_zero_for_the_mean_trajectory(
    recorded: GPTDynamics, train: GPTDynamics
) -> None:
    truth = recorded.trajectories()
    mean = MeanTrajectory().fit(train).simulate(recorded.curricula, truth[:, :1])
    for predicted, expected in ((truth, 1), (mean, 0)):
        summary = table(summarize(evaluate(predicted, recorded, reference=train)))
        assert summary.loc["r2_dev", "value"] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(explained_share(np.ones(2), np.zeros(2)))


def test_the_reference_may_be_given_as_an_array(
    recorded: GPTDynamics, train: GPTDynamics, predicted: np.ndarray
) -> None:
    expected = evaluate(predicted, recorded, reference=train)
    mean = train.trajectories().astype(float).mean(axis=0)
    for reference in (mean, np.stack([mean] * RUNS)):
        pd.testing.assert_frame_equal(evaluate(predicted, recorded, reference=reference), expected)


def test_the_order_of_runs_and_tests_does_not_matter(
    recorded: GPTDynamics, train: GPTDynamics, predicted: np.ndarray
) -> None:
    expected = summarize(evaluate(predicted, recorded, reference=train))
    turned = replace(recorded, runs=recorded.runs[::-1])
    pd.testing.assert_frame_equal(summarize(evaluate(predicted[::-1], turned, reference=train)), expected)
    shuffled = [dynamics_of(one.trajectories()[:, :, ::-1], one.runs[0].split) for one in (recorded, train)]
    pd.testing.assert_frame_equal(
        summarize(evaluate(predicted[:, :, ::-1], shuffled[0], reference=shuffled[1])), expected
    )


def test_an_undefined_rank_correlation_is_counted(
    recorded: GPTDynamics, train: GPTDynamics, predicted: np.ndarray
) -> None:
    predicted[0, -1] = 1.5
    predicted[1, -1, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = evaluate(predicted, recorded, reference=train)
        row = table(summarize(results)).loc["final_step_spearman"]
    assert row["undefined"] == 2
    assert row["value"] == pytest.approx(spearmanr(predicted[2, -1], recorded.trajectories()[2, -1]).statistic)
    predicted[2, -1] = 1.5
    row = table(summarize(evaluate(predicted, recorded, reference=train))).loc["final_step_spearman"]
    assert row["undefined"] == 3
    assert np.isnan(row["value"])
    assert np.isnan(spearman(np.ones(1), np.ones(1)))


def test_divergence_is_told_apart_from_a_bad_fit(
    recorded: GPTDynamics, train: GPTDynamics, predicted: np.ndarray
) -> None:
    good = np.square(predicted[:, 1:].astype(float) - recorded.trajectories()[:, 1:]).mean(axis=1)
    predicted[0, 3:, 0], predicted[0, 4, 1], predicted[1, 5:, 2] = np.inf, 1e30, np.nan
    predicted[2] = -1e30
    lost = np.zeros((RUNS, TESTS), bool)
    lost[0, :2], lost[1, 2], lost[2] = True, True, True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = evaluate(predicted, recorded, reference=train)
        summary = table(summarize(results))
    assert results.query("statistic == 'diverged'")["value"].tolist() == [2, 1, TESTS]
    assert summary.loc["diverged", "value"] == lost.sum()
    assert summary.loc["all_steps_mse_not_diverged", "value"] == pytest.approx(good[~lost].mean())
    assert summary.loc["all_steps_mse_not_diverged", "undefined"] == 1
    assert not summary.loc["all_steps_mse", "value"] < 1e30


def test_a_bad_but_bounded_prediction_has_not_diverged(recorded: GPTDynamics, train: GPTDynamics) -> None:
    largest = np.abs(train.trajectories()).max()
    for factor, count in ((99, 0), (101, RUNS * TESTS)):
        predicted = np.full((RUNS, STEPS + 1, TESTS), factor * largest)
        summary = table(summarize(evaluate(predicted, recorded, reference=train)))
        assert summary.loc["diverged", "value"] == count


def test_other_columns_are_kept_as_groups(recorded: GPTDynamics, train: GPTDynamics, predicted: np.ndarray) -> None:
    frames, expected = [], {}
    for task in ("sst2", "rte"):
        for method, shift in (("gptfluence", 0.0), ("simfluence", 1.0)):
            results = evaluate(predicted + shift + (task == "rte"), recorded, reference=train)
            expected[task, method] = summarize(results)
            frames.append(results.assign(task=task, method=method))
    summary = summarize(pd.concat(frames))
    assert list(summary.columns) == ["task", "method", "statistic", "value", "std", "std_over_runs", "undefined"]
    assert list(summary["task"].unique()) == ["sst2", "rte"]
    for key, frame in expected.items():
        chosen = (summary["task"] == key[0]) & (summary["method"] == key[1])
        found = summary[chosen].drop(columns=["task", "method"])
        pd.testing.assert_frame_equal(found.reset_index(drop=True), frame)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_pooling_runs_of_different_sizes_is_exact(data: st.DataObject) -> None:
    """Runs over different numbers of tests and steps: the standard deviation is that of all trajectories together."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    frames, squares, of_mean = [], [], []
    for k in range(data.draw(st.integers(1, 4))):
        shape = (1, data.draw(st.integers(2, 5)), data.draw(st.integers(1, 6)))
        truth, predicted, mean = (rng.normal(3, 1, shape).astype(np.float32) for _ in range(3))
        results = evaluate(predicted, dynamics_of(truth), reference=mean[0])
        frames.append(results.assign(run=f"test-{k}"))
        squares.extend(np.square(predicted.astype(float) - truth)[0, 1:].mean(axis=0))
        of_mean.extend(np.square(mean.astype(float) - truth)[0, 1:].mean(axis=0))
    summary = table(summarize(pd.concat(frames)))
    row = summary.loc["all_steps_mse"]
    np.testing.assert_allclose([row["value"], row["std"]], [np.mean(squares), np.std(squares)], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(summary.loc["r2_dev", "value"], 1 - np.sum(squares) / np.sum(of_mean), rtol=1e-6)


def test_bad_input_is_named(recorded: GPTDynamics, train: GPTDynamics, predicted: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match="predicted has shape"):
        evaluate(predicted[:, 1:], recorded, reference=train)
    with pytest.raises(ConfigurationError, match="predicted has shape"):
        evaluate(predicted[:2], recorded, reference=train)
    for observed in (0, STEPS + 1):
        with pytest.raises(ConfigurationError, match="observed must be 1 to 6"):
            evaluate(predicted, recorded, observed=observed, reference=train)
    with pytest.raises(ConfigurationError, match="MeanTrajectory"):
        evaluate(predicted, recorded, reference=dynamics_of(train.trajectories()[:, :, 1:]))
    with pytest.raises(ConfigurationError, match="rouge_l"):
        evaluate(predicted, recorded, metric="rouge_l", reference=train)
    results = evaluate(predicted, recorded, reference=train)
    with pytest.raises(ConfigurationError, match="occurs twice; add a column"):
        summarize(pd.concat([results, results]))
    with pytest.raises(ConfigurationError, match="'value' is missing"):
        summarize(results.drop(columns="value"))
