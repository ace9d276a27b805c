"""Corrections of the tangent simulator: what runs say of its errors, for known tests and unseen ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gptfluence.gradients.tangents import TangentFeatures
from gptfluence.recording.curriculum import draw_curricula
from gptfluence.recording.settings import Recording
from gptfluence.simulators.base import Simulator
from gptfluence.simulators.tangent import TangentSimulator
from gptfluence.simulators.tangent.correction import Correction, of_others
from tangent_runs import RECORDING, dynamics, features, record  # noqa: F401
from toy_dynamics import start


def test_not_much_worse_than_the_mean_trajectory_where_tangents_do_not_hold(gpt, sst2):
    """Five times faster and twice as long the linearisation is far off; corrected, it falls back to what the mean trajectory knows."""
    faster = Recording.model_validate({"optimizer": {"learning_rate": 1e-2, "weight_decay": 0.1}})
    curricula = draw_curricula(sst2.pool, runs=5, subset=12, batch=3, epochs=4)
    dynamics, features = record(gpt, sst2, faster, curricula), TangentFeatures(gpt, sst2.pool, faster, coordinates=1500)
    train, _, held_out = dynamics.split(test=1)
    corrected, uncorrected = (
        TangentSimulator().bind_features(features).fit(runs)
        for runs in (train, replace(dynamics, runs=dynamics.runs[:1]))
    )
    truth = held_out.trajectories()
    error = [np.square(s.simulate(held_out.curricula, truth[:, :1]) - truth).mean() for s in (corrected, uncorrected)]
    mean = np.square(train.trajectories().mean(axis=0) - truth).mean()
    assert error[1] > 100 * mean
    assert error[0] < 2 * mean


def test_two_runs_do_not_learn_from_the_reference_run_what_it_is_worth(dynamics, nano, sst2):
    """One of two runs is the reference: its own error explains itself, so that coefficients of it would mean nothing."""
    features = TangentFeatures(
        nano.load(), sst2.pool, RECORDING, coordinates=500, reference=dynamics.curricula[0], checkpoints=[3]
    )
    train, validation, _ = dynamics.split(validation=2, test=0)
    two = TangentSimulator().bind_features(features).fit(replace(train, runs=train.runs[:2]), validation)
    seen, unseen = two.report.selected_by.split("; ")[1:]
    assert "corrected" in seen
    assert "corrected" not in unseen
    three = TangentSimulator().bind_features(features).fit(train, validation)
    assert three.report.selected_by.count("corrected") >= 2
    assert not two.fit(replace(train, runs=train.runs[:2]))._chosen["unseen"].correction.coefficients.any()


def test_what_is_off_for_each_test_and_for_all_is_told_apart():
    rng = np.random.default_rng(1)
    predicted, own, shared = rng.normal(size=(5, 9, 30)), rng.normal(size=(9, 30)), rng.normal(size=(9, 1))
    recorded = predicted + own + 0.5 * shared
    off = [own, np.broadcast_to(shared, predicted.shape)]
    correction = Correction.fit(predicted, recorded, off, np.linspace(0, 1, 9))
    np.testing.assert_allclose(correction.coefficients[:, 2:], np.repeat([[1], [0.5], [0]], 3, axis=1), atol=0.05)
    corrected = correction.apply(predicted, [own, shared], predicted.mean(axis=0), np.arange(9.0))
    np.testing.assert_allclose(corrected, recorded, atol=0.02)


def test_unseen_tests_follow_the_reference_run(dynamics, nano, sst2, tmp_path, monkeypatch):
    """Losses that drift by an amount of each test's own: of unseen ones the reference run, measured again, tells it."""
    reference, count = dynamics.curricula[0], len(dynamics.tests)
    drift = np.outer(np.linspace(0, 3, 9), np.random.default_rng(0).normal(size=count)).astype(np.float32)
    runs = [replace(run, trajectories={"loss": run.trajectories["loss"] + drift}) for run in dynamics.runs]
    halves = range(0, count, 2), range(1, count, 2)
    known, other = (replace(dynamics, runs=runs).of_tests(half) for half in halves)
    (train, _, _), (_, _, test) = (part.split(validation=0, test=2) for part in (known, other))
    features = TangentFeatures(
        nano.load(), sst2.pool, RECORDING, coordinates=1500, reference=reference, checkpoints=[3]
    )
    along = features.along_reference(test.tests) + drift[:, halves[1]]
    monkeypatch.setattr(features, "along_reference", lambda tests: along)
    simulator = TangentSimulator().bind_features(features).fit(train)
    begin = start(test)
    followed = simulator.simulate(test.curricula, begin, tests=test.tests)
    loaded = Simulator.from_pretrained(simulator.save_pretrained(tmp_path / "saved"))
    loaded.bind_features(features)
    np.testing.assert_array_equal(loaded.simulate(test.curricula, begin, tests=test.tests), followed)
    # not fitted on the reference run: what all fitted tests share is all that is known
    without = TangentSimulator().bind_features(features).fit(replace(train, runs=train.runs[1:]))
    plain = without.simulate(test.curricula, begin, tests=test.tests)
    unfollowed = TangentSimulator(follow_reference=False).bind_features(features).fit(train)
    np.testing.assert_array_equal(unfollowed.simulate(test.curricula, begin, tests=test.tests), plain)
    truth = test.trajectories()
    assert np.square(followed - truth).mean() < 0.05 * np.square(plain - truth).mean()


def test_a_correction_spans_the_mean_trajectory_and_recovers_a_constant_error():
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(6, 9, 4))
    offset = rng.normal(size=(9, 4))
    recorded = predicted + offset + 1e-3 * rng.normal(size=predicted.shape)
    of_runs = [(recorded - predicted).mean(axis=0)], predicted.mean(axis=0), np.arange(9.0)
    mean = Correction.constant(1, 1, -1).apply(predicted, *of_runs)
    np.testing.assert_allclose(mean, np.broadcast_to(recorded.mean(0), (6, 9, 4)))
    others = of_others(recorded - predicted)
    np.testing.assert_allclose(others[2], (recorded - predicted)[[0, 1, 3, 4, 5]].mean(axis=0))
    correction = Correction.fit(predicted, recorded, [others], np.linspace(0, 1, 9))
    np.testing.assert_allclose(correction.apply(predicted, *of_runs), recorded, atol=0.02)
    # predictions of noise: what is left is the mean trajectory, not noise
    noise = rng.normal(size=(40, 9, 50))
    truth = np.broadcast_to(rng.normal(size=(9, 50)), noise.shape)
    useless = Correction.fit(noise, truth, [of_others(truth - noise)], np.linspace(0, 1, 9))
    np.testing.assert_allclose(useless.coefficients[1], -1, atol=0.1)


def test_corrections_are_dropped_if_they_do_not_help_on_validation_runs(dynamics, features):
    train, validation, _ = dynamics.split(validation=1, test=0)
    bent = replace(
        validation,
        runs=[
            replace(run, trajectories={"loss": run.trajectories["loss"] + np.float32(np.linspace(0, -s, 9))[:, None]})
            for run, s in zip(validation.runs, (3.0,), strict=True)
        ],
    )
    lifted = replace(
        train,
        runs=[
            replace(run, trajectories={"loss": run.trajectories["loss"] + np.float32(np.linspace(0, 3, 9))[:, None]})
            for run in train.runs
        ],
    )
    dropped = TangentSimulator().bind_features(features).fit(lifted, bent)
    assert not dropped._chosen["seen"].correction.coefficients.any()
    assert "seen tests: tangents of tangents" in dropped.report.selected_by
    assert TangentSimulator().bind_features(features).fit(lifted)._chosen["seen"].correction.coefficients.any()
    # nor if they are not asked for, whatever they would help
    plain = TangentSimulator(use_corrections=False).bind_features(features).fit(lifted, lifted)
    assert plain.report.selected_by == "no correction, as asked for"
    predicted = [each.simulate(train.curricula, start(train)) for each in (plain, dropped)]
    np.testing.assert_array_equal(*predicted)
