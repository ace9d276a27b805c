"""Steps of any size and masked examples, in everything that reads a curriculum: equal to the slow loop over places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gptfluence.experiments.what_if import Changes
from gptfluence.gradients.products import Replayer
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.settings import AdamW, Recording
from gptfluence.simulators import fitting, replay
from gptfluence.simulators.counts import Counts
from gptfluence.simulators.gptfluence import GPTfluence
from gptfluence.simulators.linear import exposures
from gptfluence.simulators.low_rank import LowRank
from gptfluence.simulators.simfluence import Simfluence
from gptfluence.simulators.tracin import TracInAll
from gptfluence.simulators.transitions import make_transitions
from toy_dynamics import POOL, TESTS, Hashed, make_dynamics

STEPS = [[0, 1, 2], [3, 4], [], [5], [6, 7, 8], [9, 10, 3], [1, 1], [2], [4, 0, 5]]
ANY = Curriculum(STEPS).masked([5, 1])


@pytest.fixture(scope="module")
def runs() -> GPTDynamics:
    """Runs of one length, each with other places empty."""
    dynamics, rng = make_dynamics(4), np.random.default_rng(0)
    curricula = []
    for run in dynamics.runs:
        empty = rng.random(run.curriculum.batches.shape) < 0.2
        curricula.append(Curriculum(np.where(empty, -1, run.curriculum.batches)).masked([int(run.curriculum.used[0])]))
    return replace(dynamics, runs=[replace(run, curriculum=c) for run, c in zip(dynamics.runs, curricula, strict=True)])


@pytest.mark.parametrize(
    "simulator",
    [
        GPTfluence(encoder=Hashed(), max_epochs=2),
        GPTfluence(encoder=Hashed(), max_epochs=2, markov_order=2, target="deviation"),
        Simfluence(max_epochs=2),
        Simfluence(method="closed_form", ridge=0.1),
        LowRank(encoder=Hashed()),
        Counts(),
    ],
    ids=lambda one: f"{one.name} {getattr(one, 'method', '')}",
)
def test_a_simulator_is_fitted_on_such_runs_and_simulates_them(runs: GPTDynamics, simulator) -> None:
    simulator.fit(runs, runs)
    predicted = simulator.simulate(runs.curricula, runs.trajectories()[:, :1])
    assert np.isfinite(predicted).all()
    np.testing.assert_allclose(predicted[0], simulator.predict(runs.select(runs.names[:1]))[0], rtol=1e-5)


def test_one_step_of_a_fit_reads_tables_as_a_rollout_does(runs: GPTDynamics) -> None:
    simulator = Simfluence(max_epochs=3, standardize=False).fit(runs)
    found = make_transitions(runs.trajectories(), runs.batches)
    rows, tests = (grid.flatten() for grid in torch.meshgrid(torch.arange(36), torch.arange(TESTS), indexing="ij"))
    with torch.no_grad():
        history = found.history[rows, :, tests]
        predicted = fitting.predict_step(simulator._model, (POOL, TESTS), found.batches[rows], tests, history)
    expected = [
        simulator.simulate(runs.batches[:, t : t + 1], runs.trajectories()[:, t : t + 1])[:, 1] for t in range(9)
    ]
    np.testing.assert_allclose(predicted.numpy().reshape(4, 9, TESTS), np.stack(expected, axis=1), rtol=1e-5)


def test_a_step_that_nobody_is_in_changes_nothing_that_tables_say(runs: GPTDynamics) -> None:
    simulator, start = Simfluence(max_epochs=3).fit(runs), runs.trajectories()[:1, :1]
    for steps in (Curriculum([[], []]), Curriculum([[3, 4], [3]]).masked([3, 4])):
        np.testing.assert_allclose(simulator.simulate([steps], start)[0, 2], start[0, 0], rtol=1e-6)


def test_exposures_are_those_of_a_loop_over_places() -> None:
    coordinates, rates = np.random.default_rng(0).normal(size=(POOL, 2)), np.linspace(2, 0.5, len(STEPS))
    seen = [np.zeros(2)]
    for row, (step, rate) in enumerate(zip(STEPS, rates, strict=True)):
        share = sum((coordinates[example] for example in ANY.examples(row)), np.zeros(2)) / max(1, len(step))
        seen.append(0.9 * seen[-1] + rate * share)
    np.testing.assert_allclose(exposures(ANY.batches[None], rates, 0.9, coordinates)[0], seen)


def test_tracin_scores_the_examples_that_are_there(gpt, sst2) -> None:
    """Each step is a direction: the sum over who is there, as much as if the step were as large as the largest."""
    curriculum = Curriculum([[0, 1], [2], [], [3, 0]]).masked([0])
    recording = Recording(optimizer=AdamW(learning_rate=1e-2))
    method = TracInAll(parameters="all", scale="none")
    with Replayer(gpt, sst2.pool, sst2.tests, recording) as recorder:
        run = recorder.record("train-000", curriculum)
        found = replay.influences(recorder, run, {"a": method}, seed=0)["a"]
        products = replay.example_products(recorder, run, {"a": method}, list(range(4)), seed=0)["a"]
    rates = recording.optimizer.learning_rates(4)
    weights = [{1: 1.0}, {2: 2.0}, {}, {3: 1.0}]
    for step, shares in enumerate(weights):
        expected = sum((w * rates[step] * products[step][i] for i, w in shares.items()), np.zeros(len(sst2.tests)))
        np.testing.assert_allclose(found[step], expected, rtol=1e-3, atol=1e-6)
    start = run.trajectories["loss"][0]
    losses = replay.scored_losses(products, method, rates, list(range(4)), [curriculum], start)
    np.testing.assert_allclose(losses[0], start - found.sum(axis=0), rtol=1e-4)


def test_what_if_an_example_were_masked() -> None:
    changes = Changes(mask=(3,), last=(9,))
    assert str(changes) == "3 masked; 9 last"
    assert changes.curriculum(Curriculum(STEPS)) == Curriculum(STEPS).masked([3]).moved([9], front=False)
