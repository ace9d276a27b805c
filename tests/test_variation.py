"""What curricula change at all: shares, errors and moves of made-up runs, against what they were made from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.scoring import variation
from gptfluence.tasks.base import Example, TaskPool
from test_counts import audited

CHOICES = (" bad", " good")
STEPS, TESTS = 5, 8
SIGN = np.array([1, -1, 1, 1, -1, -1, 1, -1])


def made_tests(labels: bool) -> TaskPool:
    made = []
    for k, sign in enumerate(SIGN):
        label = int(sign > 0)
        free = Example(str(k), f"text {k}", " long" * (3 * label + 1))
        made.append(Example(str(k), f"text {k}", CHOICES[label], "", label, CHOICES) if labels else free)
    return TaskPool("tests", tuple(made))


def runs_of(deviations: np.ndarray, *, labels: bool = True, drift: float = 0.0) -> GPTDynamics:
    """deviations: float [runs, steps, tests]; the last two runs are held out."""
    pool = TaskPool("pool", (Example("p0", "a", " x"), Example("p1", "b", " y")))
    count = len(deviations)
    names = [f"train-{k:03d}" for k in range(count - 2)] + ["test-000", "test-001"]
    values = np.concatenate([np.zeros((count, 1, TESTS)), deviations], axis=1) + 3.0
    values -= drift * np.arange(STEPS + 1)[None, :, None]
    curriculum = Curriculum(np.zeros((STEPS, 1), int))
    made = [
        TrainingRun(name, curriculum, {"loss": v.astype(np.float32)}) for name, v in zip(names, values, strict=True)
    ]
    return GPTDynamics("made-up", "made-up", pool, made_tests(labels), tuple(made))


def walks(runs: int = 6, seed: int = 0) -> np.ndarray:
    """float [runs, steps, 1]: one number for each run and step, 0 on average."""
    found = np.random.default_rng(seed).normal(size=(runs, STEPS, 1))
    return found - found.mean(axis=0)


def test_one_number_times_the_labels_sign_is_all():
    dynamics = runs_of(walks() * SIGN)
    assert variation.first_component_share(dynamics) == pytest.approx(1)
    assert variation.counts_share(dynamics) == pytest.approx(1)


def test_one_number_that_is_not_along_the_labels_is_the_first_component_alone():
    across = np.array([1, 1, -1, 1, -1, 1, -1, -1])  # as often with the sign as against it
    assert across @ SIGN == 0
    dynamics = runs_of(walks() * across)
    assert variation.first_component_share(dynamics) == pytest.approx(1)
    assert variation.counts_share(dynamics) == pytest.approx(0, abs=1e-6)
    both = runs_of(walks() * SIGN + 0.5 * walks(seed=1) * across)
    sizes = np.square(walks()).sum(), np.square(0.5 * walks(seed=1)).sum()
    assert variation.counts_share(both) == pytest.approx(sizes[0] / sum(sizes), abs=1e-5)
    assert variation.counts_share(both) < variation.first_component_share(both) < 1


def test_what_all_tests_have_in_common_is_not_along_the_labels():
    assert variation.counts_share(runs_of(walks() * np.ones(TESTS))) == pytest.approx(0, abs=1e-6)


def test_of_free_text_one_number_for_each_group_of_formats_counts():
    grouped = walks() * (SIGN > 0) + walks(seed=1)  # the long texts, and all
    assert variation.counts_share(runs_of(grouped, labels=False)) == pytest.approx(1, abs=1e-6)
    own = np.random.default_rng(2).normal(size=(6, STEPS, TESTS))
    own -= own.mean(axis=0)
    means = np.stack([own[:, :, s == SIGN].mean(axis=2) for s in (1, -1)])
    expected = 4 * np.square(means).sum() / np.square(own).sum()  # four tests of each
    assert variation.counts_share(runs_of(own, labels=False)) == pytest.approx(expected, abs=1e-5)


def test_runs_that_do_not_differ_have_no_shares():
    alike = runs_of(np.zeros((4, STEPS, TESTS)))
    assert math.isnan(variation.first_component_share(alike))
    assert math.isnan(variation.counts_share(alike))
    assert math.isnan(variation.mean_errors(alike).ratio)
    with pytest.raises(ConfigurationError, match="1 run has no deviation"):
        variation.first_component_share(alike.select(["train-000"]))


def test_errors_of_persistence_and_of_the_mean():
    deviations = np.random.default_rng(3).normal(size=(6, STEPS, TESTS))
    dynamics = runs_of(deviations, drift=0.5)
    train, _, test = dynamics.split()
    truth, mean = test.trajectories()[:, 1:].astype(float), train.trajectories()[:, 1:].astype(float).mean(axis=0)
    found = variation.mean_errors(dynamics)
    assert found.persistence == pytest.approx(np.square(truth - 3).mean(), rel=1e-5)
    assert found.mean_trajectory == pytest.approx(np.square(truth - mean).mean(), rel=1e-5)
    assert found.ratio == pytest.approx(found.persistence / found.mean_trajectory)
    with pytest.raises(ConfigurationError, match="no run is held out"):
        variation.mean_errors(train)


def test_counts_explain_runs_that_were_made_of_counts():
    made = audited(noise=0.001)
    names = [f"train-{k:03d}" for k in range(20)] + [f"test-{k:03d}" for k in range(4)]
    dynamics = replace(made, runs=tuple(replace(run, name=name) for run, name in zip(made.runs, names, strict=True)))
    assert variation.counts_r2_dev(dynamics) > 0.99
    noise = audited(strength=0.0, noise=0.1)
    noise = replace(noise, runs=tuple(replace(run, name=name) for run, name in zip(noise.runs, names, strict=True)))
    assert variation.counts_r2_dev(noise) < 0.1


def test_before_and_after_are_means_over_the_tests_that_have_the_metric():
    dynamics = runs_of(np.zeros((3, STEPS, TESTS)), drift=0.5)
    assert variation.before_and_after(dynamics) == pytest.approx((3.0, 0.5))
    accuracy = np.full((STEPS + 1, TESTS), np.nan, np.float32)
    accuracy[0, :2], accuracy[-1, :2] = (0, 1), 1  # two tests have it, before and after alone
    runs = tuple(replace(run, trajectories={**run.trajectories, "accuracy": accuracy}) for run in dynamics.runs)
    assert variation.before_and_after(replace(dynamics, runs=runs), "accuracy") == (0.5, 1.0)


def test_a_test_is_moved_by_what_moves_it_further_than_noise():
    moves = np.random.default_rng(4).normal(0, 0.01, (12, 300))
    moves[3, :5] = 0.2
    moves[7, 0] = -0.2
    found = variation.moved(moves)
    assert found[3, :5].all()
    assert found[7, 0]
    assert found.mean() < 0.05


def test_noise_counts_as_often_as_is_said():
    rng = np.random.default_rng(5)
    assert variation.moved(rng.normal(size=(300, 4000))).mean() == pytest.approx(0.003, abs=0.001)
    normal = variation.moved(rng.normal(size=(12, 20000))).mean()
    assert normal == pytest.approx(0.013, abs=0.002)
    assert variation.moved_by_chance(12) == pytest.approx(normal, abs=0.001)
    heavy = variation.moved(rng.standard_t(4, size=(12, 20000))).mean()
    assert variation.moved_by_chance(12, 4) == pytest.approx(heavy, abs=0.002)
    assert 0.03 < heavy < 0.04


def test_examples_and_tests_share_rare_words_only():
    pool = [Example(str(k), f"the word{k} is", " good.") for k in range(20)]
    tests = [Example("a", "Is Word3 the one?", " good."), Example("b", "the other is", " good.")]
    shared = variation.shared_words(pool[2:5], tests, pool)
    np.testing.assert_array_equal(shared, [[False, False], [True, False], [False, False]])


def test_the_ratio_of_moves_tells_shared_words_from_others():
    shared = np.zeros((3, 4), bool)
    shared[0, 1] = shared[2, 3] = True
    moves = np.where(shared, -0.6, 0.2)
    assert variation.move_ratio(moves, shared) == pytest.approx(3)
    assert math.isnan(variation.move_ratio(moves, np.zeros_like(shared)))
