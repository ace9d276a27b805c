"""Simulators: equal to slow loops, blind to the future, exact after a save, clear about bad input."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gptfluence.common.errors import ArtifactError, ConfigurationError, DataError
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.simulators import METHODS, fitting
from gptfluence.simulators.base import Simulator, diverged
from gptfluence.simulators.gptfluence import GPTfluence
from gptfluence.simulators.heads import HEADS
from gptfluence.simulators.options import Variant
from gptfluence.simulators.reference import MeanTrajectory, Persistence
from gptfluence.simulators.simfluence import Simfluence, solve_closed_form
from gptfluence.tasks.base import Example, TaskPool

# All different, so that a transpose fails.
POOL, TESTS, STEPS, BATCH, DIMENSION = 11, 7, 9, 3, 6


class Hashed:
    """An encoder without a network: features are drawn from a generator seeded with the text."""

    name = "hashed"
    dimension = DIMENSION

    def encode(self, pool: TaskPool) -> np.ndarray:
        rows = [np.random.default_rng(list(text.encode())).normal(1, 0.5, DIMENSION) for text in pool.texts]
        return np.array(rows, np.float32)


def make_pool(name: str, count: int) -> TaskPool:
    return TaskPool(name, tuple(Example(f"{name}{i}", f"{name} text {i}", " yes") for i in range(count)))


def make_dynamics(runs: int = 4, split: str = "train", seed: int = 0, steps: int = STEPS) -> GPTDynamics:
    """Runs that really follow y_t = (sum A) y_{t-1} + sum B, plus a little noise."""
    truth, rng = np.random.default_rng(99), np.random.default_rng([seed, len(split)])
    a, b = 1 / BATCH + truth.normal(-0.01, 0.02, (POOL, TESTS)), truth.normal(0, 0.02, (POOL, TESTS))
    start = truth.uniform(1, 3, TESTS)
    recorded = []
    for k in range(runs):
        batches, values = rng.integers(POOL, size=(steps, BATCH)), [start]
        for ids in batches:
            values.append(a[ids].sum(0) * values[-1] + b[ids].sum(0))
        noisy = np.array(values) + rng.normal(0, 1e-3, (steps + 1, TESTS))
        recorded.append(TrainingRun(f"{split}-{k}", Curriculum(batches), {"loss": noisy.astype(np.float32)}))
    return GPTDynamics("toy", "toy", make_pool("pool", POOL), make_pool("tests", TESTS), tuple(recorded))


QUICK = {"max_epochs": 3, "batch_size": 50}
MAKERS = {
    "gptfluence": lambda: GPTfluence(encoder=Hashed(), **QUICK),
    "gptfluence, linear": lambda: GPTfluence(encoder=Hashed(), heads="linear", **QUICK),
    "gptfluence, concat": lambda: GPTfluence(encoder=Hashed(), heads="concat", **QUICK),
    "gptfluence, order 2": lambda: GPTfluence(encoder=Hashed(), markov_order=2, **QUICK),
    "gptfluence, order 3, concat": lambda: GPTfluence(encoder=Hashed(), heads="concat", markov_order=3, **QUICK),
    "simfluence": lambda: Simfluence(**QUICK),
    "simfluence, closed form": lambda: Simfluence(method="closed_form"),
    "persistence": Persistence,
    "mean_trajectory": MeanTrajectory,
}


@pytest.fixture(scope="module")
def train() -> GPTDynamics:
    torch.set_num_threads(1)
    return make_dynamics()


@pytest.fixture(scope="module")
def validation() -> GPTDynamics:
    return make_dynamics(2, "validation")


@pytest.fixture(scope="module")
def fitted(train: GPTDynamics, validation: GPTDynamics) -> dict[str, Simulator]:
    return {name: make().fit(train, validation) for name, make in MAKERS.items()}


every_simulator = pytest.mark.parametrize("name", MAKERS)
every_table = pytest.mark.parametrize("name", [name for name in MAKERS if "fluence" in name])


def slow_rollout(tables: np.ndarray, batches: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Equations 4 to 9 as a loop over curricula, steps and tests."""
    order, (curricula, steps, _), tests = len(tables) - 1, batches.shape, observed.shape[2]
    predicted = np.zeros((curricula, steps + 1, tests))
    for k in range(curricula):
        for m in range(tests):
            values = [float(value) for value in observed[k, :, m]]
            for t in range(len(values), steps + 1):
                total = sum(float(tables[-1, i, m]) for i in batches[k, t - 1])
                for lag in range(1, order + 1):
                    alpha = sum(float(tables[lag - 1, i, m]) for i in batches[k, t - 1])
                    total += alpha * (values[t - lag] if t >= lag else 0.0)
                values.append(total)
            predicted[k, :, m] = values
    return predicted


# --- rollouts ---------------------------------------------------------------------------------------------------------


@every_table
@pytest.mark.parametrize("known", [1, 2, 4])
def test_a_rollout_equals_the_loop_over_transitions(
    fitted: dict[str, Simulator], validation: GPTDynamics, name: str, known: int
) -> None:
    simulator = fitted[name]
    observed = validation.trajectories()[:, :known]
    predicted = simulator.simulate(validation.curricula, observed)
    assert predicted.dtype == np.float32
    np.testing.assert_array_equal(predicted[:, :known], observed)
    np.testing.assert_allclose(
        predicted, slow_rollout(simulator.tables(), validation.batches, observed), rtol=1e-4, atol=1e-4
    )


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
    observed = rng.normal(size=(curricula, known, TESTS)).astype(np.float32)
    simulator = fitted[data.draw(st.sampled_from(["gptfluence", "gptfluence, order 2", "simfluence"]))]
    np.testing.assert_allclose(
        simulator.simulate(batches, observed),
        slow_rollout(simulator.tables(), batches, observed),
        rtol=1e-3,
        atol=1e-3,
    )


# --- fitting ----------------------------------------------------------------------------------------------------------


def slow_update(model: GPTfluence, dynamics: GPTDynamics, chosen: list[tuple[int, int, int]]) -> torch.Tensor:
    """Mean squared one-step error of (run, step, test) triples, applying the heads to each transition by itself."""
    features, values, losses = model._model, dynamics.trajectories() / model._unit, []
    for run, step, test in chosen:
        ids = torch.tensor(dynamics.batches[run, step - 1].astype(np.int64))
        terms = model._model.heads(features.pool[ids], features.tests[[test]]).sum(dim=(1, 2))
        predicted = terms[-1]
        for lag in range(1, len(terms)):
            predicted = predicted + terms[lag - 1] * float(values[run, step - lag, test] if step >= lag else 0)
        losses.append((predicted - float(values[run, step, test])).square())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 60])
def test_the_gradient_of_a_minibatch_equals_that_of_the_loop(
    train: GPTDynamics, heads: str, order: int, size: int
) -> None:
    """Also with few transitions, where most examples are not looked at."""
    simulator = GPTfluence(encoder=Hashed(), heads=heads, markov_order=order, max_epochs=1).fit(train)
    rng = np.random.default_rng(0)
    chosen = [tuple(int(rng.integers(low, high)) for low, high in ((0, 4), (1, 10), (0, TESTS))) for _ in range(size)]
    slow_update(simulator, train, chosen).backward()
    expected = {name: value.grad.clone() for name, value in simulator._model.named_parameters()}
    transitions = fitting.make_transitions(train.trajectories() / simulator._unit, train.batches, order=order)
    rows = torch.tensor([run * STEPS + step - 1 for run, step, _ in chosen])
    tests = torch.tensor([test for _, _, test in chosen])
    optimizer = torch.optim.SGD(simulator._model.parameters(), lr=0.0)
    fitting.training_step(
        simulator._model,
        optimizer,
        (POOL, TESTS),
        transitions.batches[rows],
        tests,
        transitions.history[rows, :, tests],
        transitions.target[rows, tests],
    )
    for name, parameter in simulator._model.named_parameters():
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("order", [1, 2])
def test_the_start_is_near_the_identity(train: GPTDynamics, heads: str, order: int) -> None:
    fresh = GPTfluence(encoder=Hashed(), heads=heads, markov_order=order, max_epochs=1, learning_rate=1e-12).fit(train)
    tables = BATCH * fresh.tables()
    assert np.abs(tables[0] - 1).mean() < 0.15
    assert np.abs(tables[1:]).mean() < 0.1
    predicted = fresh.simulate(train.curricula, train.trajectories()[:, :order])
    assert not diverged(predicted, fresh.fitted.scale).any()


def test_concat_heads_in_blocks_equal_those_in_one(monkeypatch: pytest.MonkeyPatch, train: GPTDynamics) -> None:
    heads = HEADS["concat"](DIMENSION, 2)
    pool, tests = (torch.tensor(Hashed().encode(examples)) for examples in (train.pool, train.tests))
    results = []
    for block in (10**6, 2 * POOL):
        monkeypatch.setattr("gptfluence.simulators.heads.CONCAT_BLOCK", block)
        heads.zero_grad()
        tables = heads(pool, tests)
        tables.square().sum().backward()
        results.append([tables.detach(), *(parameter.grad.clone() for parameter in heads.parameters())])
    torch.testing.assert_close(*results)


@every_table
def test_a_seed_fixes_a_fit_to_the_last_bit(
    fitted: dict[str, Simulator], train: GPTDynamics, validation: GPTDynamics, name: str
) -> None:
    state = torch.random.get_rng_state()
    again = MAKERS[name]().fit(train, validation)
    np.testing.assert_array_equal(again.tables(), fitted[name].tables())
    assert torch.equal(state, torch.random.get_rng_state())
    if "closed" not in name and name != "simfluence":
        other = replace(MAKERS[name](), seed=1).fit(train, validation)
        assert (other.tables() != again.tables()).any()


@pytest.mark.parametrize("simulator", [GPTfluence(encoder=Hashed(), max_epochs=150), Simfluence(max_epochs=150)])
def test_fitting_beats_persistence_on_held_out_runs(
    train: GPTDynamics, validation: GPTDynamics, simulator: Simulator
) -> None:
    test = make_dynamics(3, "held-out")
    truth = test.trajectories()
    error = [
        np.square(one.simulate(test.curricula, truth[:, :1]) - truth).mean()
        for one in (simulator.fit(train, validation), Persistence().fit(train))
    ]
    assert error[0] < 0.5 * error[1]


def test_the_best_epoch_is_kept_and_patience_ends_the_fit(train: GPTDynamics, validation: GPTDynamics) -> None:
    simulator = GPTfluence(encoder=Hashed(), max_epochs=400, learning_rate=0.01, patience=3).fit(train, validation)
    report = simulator.report
    assert report.epochs == report.best_epoch + 3 < 400
    assert len(report.training_loss) == len(report.validation_mse) == report.epochs
    assert report.best_epoch == 1 + int(np.argmin(report.validation_mse))
    truth = validation.trajectories()
    error = simulator.simulate(validation.curricula, truth[:, :1])[:, 1:] - truth[:, 1:]
    assert np.square(error.astype(np.float64)).mean() == pytest.approx(report.validation_mse.min(), rel=1e-5)


def test_without_validation_runs_the_last_epoch_is_kept_and_the_report_says_so(train: GPTDynamics) -> None:
    for none in (None, replace(train, runs=())):
        report = GPTfluence(encoder=Hashed(), **QUICK).fit(train, none).report
        assert report.best_epoch == report.epochs == 3
        assert "no validation" in report.selected_by
        assert len(report.validation_mse) == 0


def test_standardizing_does_not_change_what_can_be_said(train: GPTDynamics, validation: GPTDynamics) -> None:
    """Ten times the metric gives ten times the prediction; the closed form, being exact, to rounding."""
    larger = [
        replace(one, runs=tuple(replace(run, trajectories={"loss": run.trajectories["loss"] * 10}) for run in one.runs))
        for one in (train, validation)
    ]
    start = train.trajectories()[:, :1]
    for make in (MAKERS["gptfluence"], MAKERS["simfluence, closed form"]):
        small, large = make().fit(train, validation), make().fit(*larger)
        np.testing.assert_allclose(
            large.simulate(train.batches, start * 10), 10 * small.simulate(train.batches, start), rtol=1e-3
        )


def test_the_schedule_warms_up_then_decays_to_zero() -> None:
    factors = [fitting.schedule(update, 10, 4) for update in range(11)]
    np.testing.assert_allclose(factors, [0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 12),
    order=st.integers(1, 3),
    interval=st.integers(1, 5),
    how=st.sampled_from(fitting.COARSENINGS),
)
def test_transitions_are_those_of_the_definition(steps: int, order: int, interval: int, how: str) -> None:
    rng = np.random.default_rng(steps)
    values = rng.normal(size=(2, steps + 1, TESTS)).astype(np.float32)
    batches = rng.integers(POOL, size=(2, steps, BATCH))
    found = fitting.make_transitions(values, batches, order=order, interval=interval, coarsening=how)
    assert torch.equal(found.batches, torch.tensor(batches.reshape(-1, BATCH)))
    between = values.copy()
    for t in range(steps + 1):
        low = t // interval * interval
        high = min(low + interval, steps)
        share = (t - low) / (high - low) if high > low else 0
        between[:, t] = (1 - share) * values[:, low] + share * values[:, high]
    for run in range(2):
        for t in range(1, steps + 1):
            row = run * steps + t - 1
            m = (t - 1) // interval * interval
            for lag in range(1, order + 1):
                if how == "hold":
                    past, source = m - (lag - 1) * interval, values
                else:
                    past, source = t - lag, between
                expected = source[run, past] if past >= 0 else np.zeros(TESTS)
                np.testing.assert_allclose(found.history[row, lag - 1], expected, rtol=1e-5, atol=1e-6)
            expected = values[run, min(m + interval, steps)] if how == "hold" else between[run, t]
            np.testing.assert_allclose(found.target[row], expected, rtol=1e-5, atol=1e-6)


# --- Simfluence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.01, 3.0])
def test_the_closed_form_equals_least_squares(train: GPTDynamics, ridge: float) -> None:
    """With sqrt(ridge) times the distance from the identity as further equations."""
    transitions = fitting.make_transitions(train.trajectories(), train.batches)
    (found,) = solve_closed_form(transitions, POOL, (ridge,))
    for test in range(TESTS):
        rows, right = [], []
        for values, batches in zip(train.trajectories(), train.batches, strict=True):
            for t, ids in enumerate(batches, start=1):
                counts = np.bincount(ids, minlength=POOL)
                rows.append(np.concatenate([counts * values[t - 1, test], counts]))
                right.append(values[t, test])
        rows.extend(ridge**0.5 * np.eye(2 * POOL))
        right.extend(ridge**0.5 * np.repeat([1 / BATCH, 0], POOL))
        expected = np.linalg.lstsq(np.array(rows, np.float64), np.array(right, np.float64), rcond=None)[0]
        np.testing.assert_allclose(found[:, :, test].flatten(), expected, atol=1e-5)


def test_the_ridge_is_chosen_on_validation_runs(train: GPTDynamics, validation: GPTDynamics) -> None:
    chosen = Simfluence(method="closed_form").fit(train, validation)
    errors = [
        Simfluence(method="closed_form", ridge=ridge).fit(train, validation).report.validation_mse[0]
        for ridge in chosen.ridge_grid
    ]
    assert chosen.report.validation_mse[0] == min(errors)
    assert f"{chosen.ridge_grid[int(np.argmin(errors))]:g}" in chosen.report.selected_by
    with pytest.raises(ConfigurationError, match="give some, or ridge="):
        Simfluence(method="closed_form").fit(train)


def test_index_features_and_linear_heads_span_the_tables_of_simfluence(train: GPTDynamics) -> None:
    """Any A and B are W^T U for one-hot ids; and the fit starts where Simfluence's does, up to the small noise."""
    simulator = GPTfluence(encoder="index", heads="linear", max_epochs=1, learning_rate=1e-12).fit(train)
    np.testing.assert_allclose(BATCH * simulator.tables()[0], 1, atol=0.15)
    wanted = Simfluence(method="closed_form", ridge=0.1).fit(train)
    tables = torch.tensor(wanted.tables())
    tables[-1] /= simulator._unit
    heads = simulator._model.heads
    with torch.no_grad():
        heads.pool_weight.zero_()
        heads.test_weight.zero_()
        heads.pool_weight[:, :POOL, :POOL] = torch.eye(POOL)
        heads.test_weight[:, :POOL, POOL:] = tables
    start = train.trajectories()[:, :1]
    np.testing.assert_allclose(
        simulator.simulate(train.curricula, start), wanted.simulate(train.curricula, start), rtol=1e-4
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


# --- divergence -------------------------------------------------------------------------------------------------------


def test_diverged_means_not_finite_or_out_of_range_at_any_step() -> None:
    predicted = np.ones((2, 4, 5))
    predicted[0, 1, 0], predicted[0, 2, 1], predicted[1, 3, 2], predicted[1, 0, 3] = np.nan, np.inf, -201, 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = diverged(predicted, 2.0)
    np.testing.assert_array_equal(np.argwhere(found), [[0, 0], [0, 1], [1, 2]])


def test_divergence_is_reported_and_never_selected(train: GPTDynamics, validation: GPTDynamics, tmp_path: Path) -> None:
    """A learning rate that ruins the weights: no warning, no exception, and the initial weights are kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulator = GPTfluence(encoder=Hashed(), learning_rate=1e12, max_epochs=4).fit(train, validation)
        report = simulator.report
        assert report.diverged
        assert report.diverged_epochs > 0
        assert not np.isfinite(report.validation_mse).any() or report.validation_mse[report.best_epoch - 1] < np.inf
        predicted = simulator.simulate(validation.curricula, validation.trajectories()[:, :1])
        assert np.isfinite(predicted).all()
        assert diverged(predicted, simulator.fitted.scale).sum() == report.diverged_trajectories
        simulator.save_pretrained(tmp_path)
        assert Simulator.from_pretrained(tmp_path).report.diverged


# --- saving -----------------------------------------------------------------------------------------------------------


@every_simulator
def test_a_saved_simulator_predicts_the_same_bits(
    fitted: dict[str, Simulator], validation: GPTDynamics, tmp_path: Path, name: str
) -> None:
    simulator, observed = fitted[name], validation.trajectories()[:, :1]
    loaded = Simulator.from_pretrained(simulator.save_pretrained(tmp_path / "deep" / "folder"))
    assert type(loaded) is type(simulator)
    assert loaded.fitted == simulator.fitted
    assert loaded.hyperparameters() == simulator.hyperparameters()
    for curve in ("training_loss", "validation_mse"):
        np.testing.assert_array_equal(getattr(loaded.report, curve), getattr(simulator.report, curve))
    np.testing.assert_array_equal(
        loaded.simulate(validation.curricula, observed), simulator.simulate(validation.curricula, observed)
    )
    assert sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_damaged_and_wrong_files_are_named(fitted: dict[str, Simulator], tmp_path: Path) -> None:
    folder = fitted["gptfluence"].save_pretrained(tmp_path)
    config, weights = folder / "config.json", folder / "model.safetensors"
    good = config.read_text(), weights.read_bytes()

    def refused(match: str, cls: type[Simulator] = Simulator) -> None:
        with pytest.raises(ArtifactError, match=match):
            cls.from_pretrained(folder)
        config.write_text(good[0])
        weights.write_bytes(good[1])

    refused("holds a 'gptfluence', not a 'simfluence'", Simfluence)
    config.write_text(good[0][:100])
    refused("config.json")
    config.write_text("[]")
    refused("config.json")
    for key, value in (("simulator", "gptfluense"), ("format", 99), ("hyperparameters", {"heads": "mpl"})):
        config.write_text(json.dumps(json.loads(good[0]) | {key: value}))
        refused("config.json")
    weights.write_bytes(good[1][:-50])
    refused("model.safetensors")
    save_file({"unit": np.ones(1)}, weights)
    refused("model.safetensors")
    arrays = load_file(folder / "model.safetensors")
    save_file(arrays | {"pool": arrays["pool"][1:]}, weights)
    refused("model.safetensors")
    weights.unlink()
    refused("model.safetensors")
    assert GPTfluence.from_pretrained(folder).markov_order == 1
    with pytest.raises(ArtifactError, match="nowhere"):
        Simulator.from_pretrained(tmp_path / "nowhere")


# --- errors -----------------------------------------------------------------------------------------------------------


def test_variants_know_names_and_options() -> None:
    made = Variant.of("gptfluence", markov_order=2).create()
    assert isinstance(made, GPTfluence)
    assert made.markov_order == 2
    simulators = {name for name, method in METHODS.items() if issubclass(method.load(), Simulator)}
    assert simulators == {"gptfluence", "simfluence", "persistence", "mean_trajectory", "low_rank", "tangent"}
    with pytest.raises(
        ConfigurationError, match="known: gptfluence, simfluence, tangent, low_rank, persistence, mean_trajectory"
    ):
        Variant.of("gpt")
    with pytest.raises(ConfigurationError, match="did you mean 'markov_order'"):
        Variant.of("gptfluence", markov_ordr=2)


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("gptfluence", {"heads": "mpl"}, "mlp, linear, concat"),
        ("gptfluence", {"markov_order": 0}, "markov_order"),
        ("gptfluence", {"encoder": 3}, "encoder"),
        ("gptfluence", {"optimizer": "sgd"}, "adam, adamw"),
        ("gptfluence", {"batch_size": 0}, "batch_size"),
        ("gptfluence", {"checkpoint_interval": 0}, "checkpoint_interval"),
        ("gptfluence", {"coarsening": "none"}, "hold, interpolate"),
        ("simfluence", {"learning_rate": 0.0}, "learning_rate"),
        ("simfluence", {"method": "closed"}, "gradient_descent, closed_form"),
        ("simfluence", {"ridge": 0.0}, "ridge"),
    ],
)
def test_bad_hyperparameters_are_named(name: str, arguments: dict, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Variant.of(name, **arguments)


def test_bad_input_to_fit_is_named(train: GPTDynamics, validation: GPTDynamics) -> None:
    with pytest.raises(ConfigurationError, match="no train runs"):
        Simfluence().fit(replace(train, runs=()))
    with pytest.raises(ConfigurationError, match="'bleu' is not known"):
        Simfluence().fit(train, metric="bleu")
    with pytest.raises(ConfigurationError, match="other pool"):
        Simfluence().fit(train, replace(validation, pool=make_pool("other", POOL)))
    with pytest.raises(ConfigurationError, match="different shapes"):
        Simfluence().fit(replace(train, runs=(*train.runs, *make_dynamics(1, steps=5).runs)))
    values = train.runs[1].trajectories["loss"].copy()
    values[3, 2] = np.nan
    runs = (train.runs[0], replace(train.runs[1], trajectories={"loss": values}))
    with pytest.raises(DataError, match="run train-1 holds values of loss"):
        Simfluence().fit(replace(train, runs=runs))


@every_simulator
def test_bad_input_to_simulate_is_named(fitted: dict[str, Simulator], train: GPTDynamics, name: str) -> None:
    simulator, batches, start = fitted[name], train.batches, train.trajectories()
    for wrong, observed, match in [
        (batches, start[:, 0], "observed must be"),
        (batches, start[:3, :1], "observed must be"),
        (batches, start[:, :1, 1:], "pass tests="),
        (batches, start[:, :0], "needs 1 to 9"),
        (batches, start, "needs 1 to 9"),
        (batches, start[:, :1] * np.nan, "not finite"),
        (batches + POOL, start[:, :1], "but the pool has 11"),
        (batches - POOL, start[:, :1], "but the pool has 11"),
        (batches * 1.0, start[:, :1], "whole numbers"),
        (batches[0], start[:, :1], "whole numbers"),
        ([], start[:, :1], "none given"),
    ]:
        with pytest.raises(ConfigurationError, match=match):
            simulator.simulate(wrong, observed)
    with pytest.raises(ConfigurationError, match="not fitted yet"):
        MAKERS[name]().simulate(batches, start[:, :1])


def test_an_encoder_that_gives_the_wrong_shape_is_named(train: GPTDynamics) -> None:
    class Wrong(Hashed):
        name = "wrong"

        def encode(self, pool: TaskPool) -> np.ndarray:
            return super().encode(pool)[1:]

    with pytest.raises(ConfigurationError, match="encoder 'wrong' gave features"):
        GPTfluence(encoder=Wrong()).fit(train)
