"""Rollouts of simulators: equal to slow loops, blind to the future, and of unseen examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence.common.errors import ConfigurationError, OutOfReachError
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import Simulator
from gptfluence.tasks.base import TaskPool
from toy_dynamics import (  # noqa: F401
    BATCH,
    POOL,
    STEPS,
    TESTS,
    Hashed,
    every_simulator,
    every_table,
    fitted,
    make_pool,
    train,
    validation,
)


def slow_rollout(tables: np.ndarray, batches: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Equations 4 to 9 as a loop over curricula, steps and tests; steps of other sizes than the fitted count as theirs."""
    order, (curricula, steps, _), tests = len(tables) - 1, batches.shape, observed.shape[2]
    predicted = np.zeros((curricula, steps + 1, tests))
    for k in range(curricula):
        for m in range(tests):
            values = [float(value) for value in observed[k, :, m]]
            for t in range(len(values), steps + 1):
                places = [i for i in batches[k, t - 1] if i != -1]
                there = [i for i in places if i >= 0]
                share = BATCH / len(places) if places else 0.0
                total = share * sum(float(tables[-1, i, m]) for i in there)
                for lag in range(1, order + 1):
                    alpha = share * sum(float(tables[lag - 1, i, m]) for i in there)
                    if lag == 1:  # who is masked changes nothing
                        alpha += 1 - len(there) / len(places) if places else 1.0
                    total += alpha * (values[t - lag] if t >= lag else 0.0)
                values.append(total)
            predicted[k, :, m] = values
    return predicted


# --- rollouts ---------------------------------------------------------------------------------------------------------


@every_table
@pytest.mark.parametrize("known", [1, 2, 4])
def test_a_rollout_equals_the_loop_over_transitions(
    fitted: dict[str, Simulator], train: GPTDynamics, validation: GPTDynamics, name: str, known: int
) -> None:
    """Of deviations, if these are predicted: then the mean trajectory is added."""
    simulator = fitted[name]
    observed = validation.trajectories()[:, :known]
    predicted = simulator.simulate(validation.curricula, observed)
    assert predicted.dtype == np.float32
    np.testing.assert_array_equal(predicted[:, :known], observed)
    mean = train.trajectories().mean(axis=0) if "deviation" in name else np.zeros((STEPS + 1, TESTS))
    expected = mean + slow_rollout(simulator.tables(), validation.batches, observed - mean[:known])
    np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-4)


@every_simulator
@pytest.mark.parametrize("changed", [4, STEPS - 1])
def test_a_prediction_does_not_depend_on_the_batches_after_it(
    fitted: dict[str, Simulator], validation: GPTDynamics, name: str, changed: int
) -> None:
    observed, batches = validation.trajectories()[:, :1], validation.batches.copy()
    before = fitted[name].simulate(batches, observed)
    batches[:, changed:] = (batches[:, changed:] + 1) % POOL
    after = fitted[name].simulate(batches, observed)
    np.testing.assert_array_equal(before[:, : changed + 1], after[:, : changed + 1])
    if "fluence" in name:
        assert (before[:, changed + 1] != after[:, changed + 1]).all()


@every_simulator
def test_the_order_within_a_batch_and_of_the_curricula_does_not_matter(
    fitted: dict[str, Simulator], validation: GPTDynamics, name: str
) -> None:
    observed, batches = validation.trajectories()[:, :1], validation.batches
    expected = fitted[name].simulate(batches, observed)
    np.testing.assert_allclose(fitted[name].simulate(batches[:, :, ::-1].copy(), observed), expected, rtol=1e-5)
    np.testing.assert_allclose(fitted[name].simulate(batches[::-1], observed[::-1])[::-1], expected, rtol=1e-5)


@every_simulator
def test_streaming_equals_simulate(fitted: dict[str, Simulator], train: GPTDynamics, name: str) -> None:
    simulator, observed = fitted[name], train.trajectories()[:, 0] + np.arange(4, dtype=np.float32)[:, None]
    expected = simulator.simulate(train.curricula, observed[:, None])
    for curricula in (train.batches, train.curricula, (part for part in np.split(train.batches, [3]))):
        pieces = list(simulator.simulate_stream(curricula, observed, chunk=2))
        assert max(map(len, pieces)) == 2
        np.testing.assert_array_equal(np.concatenate(pieces), expected)
    for start in (observed[0], observed[:1]):
        pieces = list(simulator.simulate_stream(train.batches, start, chunk=3))
        np.testing.assert_array_equal(np.concatenate(pieces), simulator.simulate(train.batches, observed[:1, None]))


def test_streaming_checks_its_arguments_at_the_call(fitted: dict[str, Simulator], train: GPTDynamics) -> None:
    simulator, start = fitted["simfluence"], train.trajectories()[0, 0]
    with pytest.raises(ConfigurationError, match="observed must be"):
        simulator.simulate_stream(train.batches, start[1:])
    with pytest.raises(ConfigurationError, match="chunk"):
        simulator.simulate_stream(train.batches, start, chunk=0)
    with pytest.raises(ConfigurationError, match="observed must be"):  # fewer starts than curricula in the iterable
        list(simulator.simulate_stream(iter([train.batches]), train.trajectories()[:3, 0]))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_curriculum_is_simulated_as_the_loop_would(fitted: dict[str, Simulator], data: st.DataObject) -> None:
    curricula, steps, batch = (data.draw(st.integers(1, 5)) for _ in range(3))
    known = data.draw(st.integers(1, steps))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    batches = rng.integers(POOL, size=(curricula, steps, batch))
    empty, masked = (rng.random(batches.shape) < data.draw(st.sampled_from([0, 0.3, 0.7])) for _ in range(2))
    batches = np.where(empty, -1, np.where(masked, -2 - batches, batches))
    observed = rng.normal(size=(curricula, known, TESTS)).astype(np.float32)
    simulator = fitted[data.draw(st.sampled_from(["gptfluence", "gptfluence, order 2", "simfluence"]))]
    np.testing.assert_allclose(
        simulator.simulate(batches, observed),
        slow_rollout(simulator.tables(), batches, observed),
        rtol=1e-3,
        atol=1e-3,
    )


# --- unseen examples --------------------------------------------------------------------------------------------------


def test_gptfluence_predicts_for_unseen_pool_and_tests_from_their_features(fitted: dict[str, Simulator]) -> None:
    simulator, rng = fitted["gptfluence"], np.random.default_rng(0)
    pool, tests = make_pool("other", 13), make_pool("more", 5)
    batches, observed = rng.integers(13, size=(2, 8, BATCH)), rng.uniform(1, 2, (2, 1, 5))
    encoder, heads = Hashed(), simulator._model.heads
    with torch.no_grad():
        tables = heads(torch.tensor(encoder.encode(pool)), torch.tensor(encoder.encode(tests))).numpy()
    tables[-1] *= simulator._unit
    predicted = simulator.simulate(batches, observed, pool=pool, tests=tests)
    np.testing.assert_allclose(predicted, slow_rollout(tables, batches, observed), rtol=1e-4)
    with pytest.raises(ConfigurationError, match="pass pool="):
        simulator.simulate(batches, observed, tests=tests)


def test_deviations_of_unseen_tests_are_added_to_the_mean_change_of_the_fitted_ones(
    fitted: dict[str, Simulator], train: GPTDynamics
) -> None:
    simulator, tests = fitted["gptfluence, deviation"], make_pool("more", 5)
    observed = np.random.default_rng(0).uniform(1, 2, (4, 2, 5)).astype(np.float32)
    mean = train.trajectories().mean(axis=0)
    level = observed[:, :1] + (mean - mean[0]).mean(axis=1)[None, :, None]
    deviations = slow_rollout(simulator.tables(tests=tests), train.batches, observed - level[:, :2])
    predicted = simulator.simulate(train.curricula, observed, tests=tests)
    np.testing.assert_allclose(predicted, level + deviations, rtol=1e-4, atol=1e-4)
    with pytest.raises(OutOfReachError, match="gptfluence: a curriculum has 10 steps, but the fitted runs have 9"):
        simulator.simulate(np.zeros((1, STEPS + 1, BATCH), int), observed[:1], tests=tests)


@pytest.mark.parametrize("name", ["gptfluence", "gptfluence, concat", "persistence"])
def test_permuting_pool_and_tests_permutes_predictions(
    fitted: dict[str, Simulator], validation: GPTDynamics, name: str
) -> None:
    simulator, rng = fitted[name], np.random.default_rng(1)
    of_pool, of_tests = rng.permutation(POOL), rng.permutation(TESTS)
    pool = TaskPool("pool", tuple(validation.pool[int(i)] for i in of_pool))
    tests = TaskPool("tests", tuple(validation.tests[int(i)] for i in of_tests))
    observed = validation.trajectories()[:, :1]
    renamed = np.argsort(of_pool)[validation.batches]
    predicted = simulator.simulate(renamed, observed[:, :, of_tests], pool=pool, tests=tests)
    expected = simulator.simulate(validation.curricula, observed)[:, :, of_tests]
    np.testing.assert_allclose(predicted, expected, rtol=1e-5)


def test_the_factor_of_an_example_on_itself_needs_no_encoder(fitted: dict[str, Simulator], train: GPTDynamics) -> None:
    tables = fitted["gptfluence"].tables(tests=train.pool)
    assert tables.shape == (2, POOL, POOL)
    features = torch.tensor(Hashed().encode(train.pool))
    with torch.no_grad():
        np.testing.assert_allclose(tables[0], fitted["gptfluence"]._model.heads(features, features)[0], rtol=1e-5)


def test_simfluence_refuses_examples_it_does_not_know(fitted: dict[str, Simulator], train: GPTDynamics) -> None:
    simulator, start = fitted["simfluence"], train.trajectories()[:, :1]
    same_content = make_pool("pool", POOL)
    simulator.simulate(train.curricula, start, pool=same_content)
    with pytest.raises(ConfigurationError, match="other holds training examples"):
        simulator.simulate(train.curricula, start, pool=make_pool("other", POOL))
    with pytest.raises(ConfigurationError, match="other holds test examples"):
        simulator.simulate(train.curricula, start, tests=make_pool("other", TESTS))
    np.testing.assert_array_equal(simulator.tables(pool=same_content), simulator.tables())
    with pytest.raises(ConfigurationError, match="other holds test examples"):
        simulator.tables(tests=make_pool("other", TESTS))


def test_mean_trajectory(train: GPTDynamics, fitted: dict[str, Simulator]) -> None:
    mean, simulator = train.trajectories().mean(axis=0), fitted["mean_trajectory"]
    shorter, start = train.batches[:, :5], train.trajectories()[:, :2] + 1
    predicted = simulator.simulate(shorter, start)
    np.testing.assert_array_equal(predicted[:, :2], start)
    np.testing.assert_allclose(predicted[:, 2:], np.broadcast_to(mean[2:6], (4, 4, TESTS)), rtol=1e-6)
    unseen = simulator.simulate(shorter, start[:, :1, :2], tests=make_pool("other", 2))
    change = (mean - mean[0]).mean(axis=1)[:6]
    np.testing.assert_allclose(unseen, start[:, :1, :2] + change[None, :, None], rtol=1e-5)
    with pytest.raises(ConfigurationError, match="has 10 steps, but the fitted runs have 9"):
        simulator.simulate(np.zeros((1, 10, BATCH), int), start[:1, :1])
