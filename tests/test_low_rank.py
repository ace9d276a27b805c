"""Low-rank deviations: the equation, what they recover, and the mean trajectory where there is nothing to learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.curriculum import draw_curricula
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import Simulator
from gptfluence.simulators.linear import exposures, solutions
from gptfluence.simulators.low_rank import LowRank
from gptfluence.tasks import Example, TaskPool
from toy_dynamics import assert_no_look_ahead, of_curricula, start

POOL, TESTS, STEPS = 20, 30, 6


class Features:
    """Features of four numbers, which depend on the text alone."""

    name = "made-up"

    def encode(self, pool: TaskPool) -> np.ndarray:
        seeds = [int(example.id) for example in pool]
        return np.stack([np.random.default_rng(seed).normal(size=4) for seed in seeds]).astype(np.float32)


def examples(name: str, first: int, count: int) -> TaskPool:
    return TaskPool(name, [Example(str(first + k), f"{name} {k}", " yes") for k in range(count)])


def planted(runs: int, strength: float, seed: int = 0) -> GPTDynamics:
    """Runs whose deviations follow the model's own equation, plus noise."""
    rng = np.random.default_rng(seed)
    pool, tests = examples("pool", 0, POOL), examples("tests", 100, TESTS)
    curricula = draw_curricula(POOL, runs=runs, subset=12, batch=4, epochs=2, seed=seed)
    batches = np.stack([curriculum.batches for curriculum in curricula])
    effect = Features().encode(pool) @ rng.normal(size=(4, 4)) @ Features().encode(tests).T
    mean = np.linspace(3, 1, STEPS + 1)[:, None] + rng.normal(size=TESTS)
    values = mean + strength * exposures(batches, np.ones(STEPS), 1.0, np.eye(POOL)) @ effect
    values[:, 1:] += 0.05 * rng.normal(size=values[:, 1:].shape)
    return of_curricula(pool, tests, values, curricula, np.ones(STEPS))


@pytest.fixture(scope="module")
def dynamics() -> GPTDynamics:
    return planted(24, 0.3)


@pytest.fixture(scope="module")
def fitted(dynamics) -> LowRank:
    train, validation, _ = dynamics.split(validation=2, test=4)
    return LowRank(encoder=Features(), rank=4).fit(train, validation)


@settings(max_examples=20, deadline=None)
@given(keep=st.sampled_from([1.0, 0.9, 0.5]), seed=st.integers(0, 99))
def test_exposures_are_the_sum_in_the_docstring(keep, seed):
    rng = np.random.default_rng(seed)
    batches, rates, coordinates = rng.integers(0, 5, (2, 4, 3)), rng.random(4), rng.normal(size=(5, 2))
    expected = np.zeros((2, 5, 2))
    for run in range(2):
        for step in range(1, 5):
            for earlier in range(1, step + 1):
                for example in batches[run, earlier - 1]:
                    share = keep ** (step - earlier) * rates[earlier - 1] / 3
                    expected[run, step] += share * coordinates[example]
    np.testing.assert_allclose(exposures(batches, rates, keep, coordinates), expected)


@pytest.mark.parametrize(
    ("runs", "rank"), [(4, 3), (1, 3), (2, 9)]
)  # one run: nothing to learn; more unknowns than data
def test_solutions_minimise_what_the_docstring_says(runs, rank):
    rng = np.random.default_rng(runs + rank)
    exposed, values, tests = rng.normal(size=(runs, 3, rank)), rng.normal(size=(runs, 3, 5)), rng.normal(size=(5, 4))
    tests[:, 3] = tests[:, 2]  # of lower rank than it looks
    x = (exposed - exposed.mean(axis=0)).reshape(-1, rank)
    y = (values - values.mean(axis=0)).reshape(-1, 5)
    equations = np.kron(x, tests)  # of vec(X W T'), row by row
    penalty = np.linalg.norm(x, 2) ** 2 * np.linalg.norm(tests, 2) ** 2
    for ridge, (weights, middle, mean) in solutions(exposed, values, tests):
        expected = np.zeros(rank * 4)
        if np.isfinite(ridge) and runs > 1:
            expected = np.linalg.solve(
                equations.T @ equations + ridge * penalty * np.eye(rank * 4), equations.T @ y.ravel()
            )
        np.testing.assert_allclose(weights.ravel(), expected, atol=1e-8)
        np.testing.assert_array_equal(middle, exposed.mean(axis=0))
        np.testing.assert_array_equal(mean, values.mean(axis=0))


def test_recovers_what_was_planted_also_for_unseen_examples(dynamics, fitted):
    held_out = dynamics.split(validation=2, test=4)[2]
    train = dynamics.split(validation=2, test=4)[0]
    truth, mean = held_out.trajectories(), train.trajectories().mean(axis=0)
    predicted = fitted.simulate(held_out.curricula, truth[:, :1])
    assert np.square(predicted - truth).mean() < 0.1 * np.square(mean - truth).mean()
    # fitted without the last four tests, it predicts how they deviate
    seen, unseen = examples("tests", 100, TESTS - 8), TaskPool("unseen", dynamics.tests.examples[-8:])
    cut = [replace(run, trajectories={"loss": run.trajectories["loss"][:, :-8]}) for run in train.runs]
    simulator = LowRank(encoder=Features(), rank=4).fit(replace(train, tests=seen, runs=cut))
    predicted = simulator.simulate(held_out.curricula, truth[:, :1, -8:], tests=unseen)
    deviation, expected = predicted - predicted.mean(axis=0), truth[..., -8:] - truth[..., -8:].mean(axis=0)
    assert np.corrcoef(deviation[:, -1].ravel(), expected[:, -1].ravel())[0, 1] > 0.8


def test_noise_leaves_the_mean_trajectory():
    dynamics = planted(12, 0.0)
    simulator = LowRank(encoder=Features()).fit(dynamics)
    found = simulator.simulate(dynamics.curricula, start(dynamics))
    mean = np.broadcast_to(dynamics.trajectories().mean(axis=0), found.shape)
    assert np.abs(found - mean).max() < 0.05
    alone = replace(dynamics, runs=dynamics.runs[:1])
    single = LowRank(encoder=Features()).fit(alone)
    np.testing.assert_allclose(single.simulate(dynamics.curricula[1:2], start(alone)), alone.trajectories(), atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(step=st.integers(1, STEPS - 1), seed=st.integers(0, 99))
def test_a_prediction_does_not_depend_on_what_comes_after(step, seed, dynamics, fitted):
    assert_no_look_ahead(fitted, dynamics, step, seed)


def test_saved_and_loaded_it_predicts_the_same(dynamics, fitted, tmp_path):
    loaded = Simulator.from_pretrained(fitted.save_pretrained(tmp_path))
    expected = fitted.simulate(dynamics.curricula, start(dynamics))
    np.testing.assert_array_equal(loaded.simulate(dynamics.curricula, start(dynamics)), expected)


def test_bad_input_is_explained(dynamics, fitted):
    with pytest.raises(ConfigurationError, match="rank must be 1 or more, not 0"):
        LowRank(rank=0)
    with pytest.raises(ConfigurationError, match="encoder must be a name"):
        LowRank(encoder=3)
    longer = np.zeros((1, STEPS + 1, 4), int)
    with pytest.raises(ConfigurationError, match="a curriculum has 7 steps, but the fitted runs have 6"):
        fitted.simulate(longer, start(dynamics)[:1])


def test_what_an_observation_is_off_by_luck_is_not_carried_on(dynamics):
    """A score with noise of its own at every step; what a loss is off stays."""
    rng = np.random.default_rng(1)
    train, validation, test = dynamics.split(validation=2, test=4)
    noisy = [
        replace(
            part,
            runs=[replace(run, trajectories={"bleu": add_noise(run.trajectories["loss"], rng)}) for run in part.runs],
        )
        for part in (train, validation)
    ]
    score = LowRank(encoder=Features(), rank=4).fit(*noisy, metric="bleu")
    loss = LowRank(encoder=Features(), rank=4).fit(train, validation)
    low = test.trajectories()[:, :1]
    for simulator, tests, share in ((loss, None, 1.0), (score, None, 0.0), (loss, test.tests, 1.0)):
        change = [simulator.simulate(test.curricula, start, tests=tests)[:, 1:] for start in (low, low + 1)]
        np.testing.assert_allclose(change[1] - change[0], share, atol=0.1)
    others = TaskPool("others", test.tests[::-1])  # of which nothing but the first score is known
    change = [score.simulate(test.curricula, start, tests=others)[:, 1:] for start in (low, low + 1)]
    assert 0.2 < (change[1] - change[0]).mean() < 1


def add_noise(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (values + rng.normal(size=values.shape)).astype(np.float32)
