"""Counts of labels and formats: the equation, what it recovers, and that it knows nothing of what texts say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence.common.errors import OutOfReachError
from gptfluence.recording.curriculum import draw_curricula
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import Simulator
from gptfluence.simulators.counts import WINDOWS, Counts, Groups
from gptfluence.tasks.base import Example, TaskPool
from toy_dynamics import assert_no_look_ahead, labelled, of_curricula, start

POOL, TESTS, STEPS, RUNS = 20, 14, 9, 24


def thirds(name: str, count: int, task: str = "") -> TaskPool:
    """Every third example has label 1."""
    return labelled([int(k % 3 == 0) for k in range(count)], (" bad", " good"), name, task)


def labels_of(examples: TaskPool) -> np.ndarray:
    return np.array([example.label for example in examples])


def audited(strength: float = 1.0, noise: float = 0.0) -> GPTDynamics:
    """Runs with seven coefficients: filtered counts of label 1 less those of label 0, times the test's sign."""
    rng = np.random.default_rng(0)
    pool, tests = thirds("pool", POOL), thirds("tests", TESTS)
    curricula = draw_curricula(POOL, runs=RUNS, subset=12, batch=4, epochs=3, seed=0)
    rates = np.linspace(2, 0.5, STEPS).astype(np.float32)
    sign, coefficients = 2 * labels_of(tests) - 1, rng.normal(size=len(WINDOWS))
    mean = np.linspace(3, 1, STEPS + 1)[:, None] + rng.normal(size=TESTS)
    values = []
    for curriculum in curricula:
        filtered, found = np.zeros(len(WINDOWS)), [np.zeros(TESTS)]
        for step, batch in enumerate(curriculum.batches):
            count = rates[step] * (2 * labels_of(pool)[batch] - 1).sum()
            filtered = np.array([(1 - 1 / w) * old + count for w, old in zip(WINDOWS, filtered, strict=True)])
            found.append(strength * 0.05 * filtered @ coefficients * sign)
        values.append(mean + np.array(found) + np.vstack([np.zeros(TESTS), noise * rng.normal(size=(STEPS, TESTS))]))
    return of_curricula(pool, tests, np.array(values), curricula, rates)


@pytest.fixture(scope="module")
def dynamics() -> GPTDynamics:
    return audited(noise=0.001)


@pytest.fixture(scope="module")
def fitted(dynamics) -> Counts:
    return Counts().fit(*dynamics.split(validation=2, test=4)[:2])


def test_the_seven_coefficients_of_labels_are_recovered(dynamics, fitted):
    train, _, test = dynamics.split(validation=2, test=4)
    truth, mean = test.trajectories(), train.trajectories().mean(axis=0)
    error = np.square(fitted.predict(test) - truth).mean() / np.square(mean - truth).mean()
    assert error < 0.01
    assert "ridge" in fitted.report.selected_by


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_exposures_are_the_sum_in_the_docstring(seed, dynamics, fitted):
    rng = np.random.default_rng(seed)
    batches = rng.integers(0, POOL, (2, STEPS, 4))
    found = fitted._exposed(batches, None).reshape(2, STEPS + 1, len(WINDOWS), 3)  # the task, and two labels
    rates = fitted._rates
    for w, window in enumerate(WINDOWS):
        keep = 1 - 1 / window
        size = np.sqrt(sum(keep ** (2 * k) for k in range(STEPS)))
        for label in (0, 1):
            expected = sum(
                keep ** (STEPS - 1 - s) * rates[s] * (labels_of(dynamics.pool)[batches[:, s]] == label).mean(axis=1)
                for s in range(STEPS)
            )
            np.testing.assert_allclose(found[:, -1, w, 1 + label], expected / size)


def test_what_the_texts_say_does_not_matter(dynamics, fitted):
    pool = TaskPool("other", tuple(replace(e, prompt=f"no word of {k}") for k, e in enumerate(dynamics.pool)))
    tests = TaskPool("other", tuple(replace(e, prompt=f"nor of {k}") for k, e in enumerate(dynamics.tests)))
    other = Counts().fit(*replace(dynamics, pool=pool, tests=tests).split(validation=2, test=4)[:2])
    expected = fitted.simulate(dynamics.curricula, start(dynamics))
    np.testing.assert_array_equal(other.simulate(dynamics.curricula, start(dynamics)), expected)
    # as an unseen pool, too: only the labels are looked at
    np.testing.assert_array_equal(fitted.simulate(dynamics.curricula, start(dynamics), pool=pool), expected)
    flipped = TaskPool("flipped", tuple(e.with_label(1 - e.label) for e in dynamics.pool))
    assert np.abs(fitted.simulate(dynamics.curricula, start(dynamics), pool=flipped) - expected).max() > 0.1


def test_noise_leaves_the_mean_trajectory():
    dynamics = audited(strength=0.0, noise=0.05)
    found = Counts().fit(dynamics).simulate(dynamics.curricula, start(dynamics))
    assert np.abs(found - dynamics.trajectories().mean(axis=0)).max() < 0.05
    alone = replace(dynamics, runs=dynamics.runs[:1])
    single = Counts().fit(alone)
    np.testing.assert_allclose(single.simulate(dynamics.curricula[1:2], start(alone)), alone.trajectories(), atol=1e-5)


def test_an_unseen_test_moves_from_its_start_as_those_of_its_label_do(dynamics, fitted):
    unseen = TaskPool("unseen", thirds("unseen", 5).examples)
    observed = np.full((1, 1, 5), 7.0)
    found = fitted.simulate(dynamics.curricula, observed, tests=unseen)
    train = dynamics.split(validation=2, test=4)[0]
    mean = train.trajectories().astype(np.float64).mean(axis=0)
    known = fitted.simulate(dynamics.curricula, start(dynamics))
    for column, example in enumerate(unseen):
        alike = labels_of(dynamics.tests) == example.label
        change = (mean - mean[0])[:, alike].mean(axis=1)
        deviation = (known - mean)[:, :, alike].mean(axis=2)
        np.testing.assert_allclose(found[:, :, column], 7 + change + deviation, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(step=st.integers(1, STEPS - 1), seed=st.integers(0, 99))
def test_a_prediction_does_not_depend_on_what_comes_after(step, seed, dynamics, fitted):
    assert_no_look_ahead(fitted, dynamics, step, seed)


def test_saved_and_loaded_it_predicts_the_same(dynamics, fitted, tmp_path):
    loaded = Simulator.from_pretrained(fitted.save_pretrained(tmp_path))
    assert isinstance(loaded, Counts)
    unseen = thirds("unseen", 3)
    for tests, observed in ((None, start(dynamics)), (unseen, np.ones((1, 1, 3)))):
        expected = fitted.simulate(dynamics.curricula, observed, tests=tests)
        np.testing.assert_array_equal(loaded.simulate(dynamics.curricula, observed, tests=tests), expected)


def test_longer_curricula_are_refused(dynamics, fitted):
    with pytest.raises(OutOfReachError, match="counts: a curriculum has 10 steps, but the fitted runs have 9"):
        fitted.simulate(np.zeros((1, STEPS + 1, 4), int), start(dynamics)[:1])


# --- groups ------------------------------------------------------------------------------------------------------------


def free(targets: list[str], task: str = "text") -> list[Example]:
    return [Example(f"{task}{k}", "say", target, task) for k, target in enumerate(targets)]


def members(groups: Groups, example: Example) -> set[str]:
    return {name for name, member in zip(groups.names, groups([example])[0], strict=True) if member}


def test_free_text_is_of_groups_by_length_end_and_sentences():
    texts = free([" a", " a bc", " a bc def.", " One. Two!", " at 3.14 it is", " rather a long text is this"])
    groups = Groups.of(texts)
    found = [{name.removeprefix("text: ") for name in members(groups, text)} - {"text"} for text in texts]
    assert found == [
        {"short"},
        {"short"},
        {"middling", "ends a sentence"},
        {"middling", "ends a sentence", "several sentences"},
        {"long"},
        {"long"},
    ]
    assert members(groups, free([" another text that is long"])[0]) == {"text", "text: long"}
    assert members(groups, free([" of a task not known."], "other")[0]) == set()
    assert Groups.from_array(groups.to_array()) == groups


def test_labels_of_a_mixture_are_counted_within_their_task():
    texts = [*thirds("a", 6, "sst2"), *thirds("b", 6, "rte"), *free([" x", " xy"])]
    groups = Groups.of(texts)
    assert members(groups, texts[0]) == {"sst2", "sst2: label 1"}
    assert members(groups, texts[7]) == {"rte", "rte: label 0"}
    assert members(groups, texts[-1]) == {"text", "text: long"}


def test_a_mixture_knows_how_much_of_each_task_was_seen():
    """What a task does to its own tests, whatever the label, is found."""
    pool = TaskPool("pool", (*thirds("a", 10, "sst2"), *free([" x" * (1 + k % 5) for k in range(10)])))
    tests = TaskPool("tests", (*thirds("c", 5, "sst2"), *free([" y" * (1 + k % 3) for k in range(6)])))
    curricula = draw_curricula(20, runs=RUNS, subset=12, batch=4, epochs=3, seed=1)
    values = []
    for curriculum in curricula:
        seen = (curriculum.batches < 10).mean(axis=1).cumsum()
        of_task = np.concatenate([[0], seen])[:, None] * (np.arange(11) < 5)
        values.append(2 - 0.1 * of_task)
    dynamics = of_curricula(pool, tests, np.array(values), curricula, np.ones(STEPS, np.float32))
    train, _, test = dynamics.split(test=6)
    truth, mean = test.trajectories(), train.trajectories().mean(axis=0)
    predicted = Counts().fit(train).predict(test)
    assert np.square(predicted - truth).mean() < 0.01 * np.square(mean - truth).mean()
