"""Fitting simulators: gradients and closed forms equal slow loops, the best epoch is kept, divergence is reported."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators import fitting
from gptfluence.simulators.base import Simulator, diverged
from gptfluence.simulators.counts import Counts
from gptfluence.simulators.gptfluence import GPTfluence
from gptfluence.simulators.heads import HEADS
from gptfluence.simulators.low_rank import LowRank
from gptfluence.simulators.reference import Persistence
from gptfluence.simulators.simfluence import Simfluence, solve_closed_form
from gptfluence.simulators.transitions import COARSENINGS, make_transitions
from toy_dynamics import (  # noqa: F401
    BATCH,
    DIMENSION,
    MAKERS,
    POOL,
    QUICK,
    STEPS,
    TESTS,
    Hashed,
    every_table,
    fitted,
    make_dynamics,
    make_scores,
    train,
    validation,
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
    transitions = make_transitions(train.trajectories() / simulator._unit, train.batches, order=order)
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
    simulator = GPTfluence(encoder=Hashed(), max_epochs=400, learning_rate=0.01, warmup_steps=0, patience=3).fit(
        train, validation
    )
    report = simulator.report
    assert report.epochs == report.best_epoch + 3 < 400
    assert report.ended == "patience"
    assert len(report.training_loss) == len(report.validation_mse) == report.epochs
    assert report.best_epoch == 1 + int(np.argmin(report.validation_mse))
    truth = validation.trajectories()
    error = simulator.simulate(validation.curricula, truth[:, :1])[:, 1:] - truth[:, 1:]
    assert np.square(error.astype(np.float64)).mean() == pytest.approx(report.validation_mse.min(), rel=1e-5)


def test_patience_is_counted_from_the_end_of_the_warm_up(train: GPTDynamics, validation: GPTDynamics) -> None:
    options = {"encoder": Hashed(), "max_epochs": 100, "learning_rate": 10.0, "batch_size": None, "patience": 2}
    at_once = GPTfluence(warmup_steps=0, **options).fit(train, validation).report  # no epoch is better than the start
    later = GPTfluence(warmup_steps=8, **options).fit(train, validation).report
    assert (at_once.best_epoch, at_once.epochs) == (0, 2)
    assert later.epochs == max(later.best_epoch, 8) + 2


def test_without_validation_runs_the_last_epoch_is_kept_and_the_report_says_so(train: GPTDynamics) -> None:
    for none in (None, replace(train, runs=())):
        report = GPTfluence(encoder=Hashed(), **QUICK).fit(train, none).report
        assert report.best_epoch == report.epochs == 3
        assert report.ended == "max_epochs"
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
    how=st.sampled_from(COARSENINGS),
)
def test_transitions_are_those_of_the_definition(steps: int, order: int, interval: int, how: str) -> None:
    rng = np.random.default_rng(steps)
    values = rng.normal(size=(2, steps + 1, TESTS)).astype(np.float32)
    batches = rng.integers(POOL, size=(2, steps, BATCH))
    found = make_transitions(values, batches, order=order, interval=interval, coarsening=how)
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


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_prediction_through_several_updates_is_a_rollout(order: int) -> None:
    """From each measured step to the next, with the recorded values before the measured one."""
    scores, measured = make_scores(4), np.array([0, 4, 8, 9])
    np.testing.assert_array_equal(scores.measured("bleu"), measured)
    found = make_transitions(scores.trajectories("bleu"), scores.batches, order=order, measured=measured)
    simulator = GPTfluence(encoder=Hashed(), markov_order=order, max_epochs=3).fit(scores, metric="bleu")
    simulator._unit = 1.0  # as the transitions here
    rows, tests = (grid.flatten() for grid in torch.meshgrid(torch.arange(12), torch.arange(TESTS), indexing="ij"))
    with torch.no_grad():
        history = found.history[rows, :, tests]
        predicted = fitting.predict_step(simulator._model, (POOL, TESTS), found.batches[rows], tests, history)
    predicted, target = (values.numpy().reshape(4, 3, TESTS) for values in (predicted, found.target))
    for stretch, (start, end) in enumerate([(0, 4), (4, 8), (8, 9)]):
        past = scores.trajectories("bleu")[:, max(0, start + 1 - order) : start + 1]
        batches = scores.batches[:, start + 1 - past.shape[1] : end]
        expected = simulator.simulate(batches, past)[:, -1]
        np.testing.assert_allclose(predicted[:, stretch], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(target[:, stretch], scores.trajectories("bleu")[:, end])


SCORING = {
    "gptfluence": lambda: GPTfluence(encoder=Hashed(), **QUICK),
    "gptfluence, deviation": lambda: GPTfluence(encoder=Hashed(), target="deviation", **QUICK),
    "simfluence": lambda: Simfluence(**QUICK),
    "closed form": lambda: Simfluence(method="closed_form"),
    "closed form, deviation": lambda: Simfluence(method="closed_form", target="deviation"),
    "low_rank": lambda: LowRank(encoder=Hashed()),
    "counts": Counts,
}


@pytest.mark.parametrize("name", SCORING)
def test_what_stands_between_measured_steps_is_not_learned(name: str) -> None:
    predicted = []
    for between in (0.0, 1.0):
        simulator = SCORING[name]()
        simulator.fit(make_scores(4, between=between), make_scores(4, 2, "validation", between=between), metric="bleu")
        test = make_scores(4, 2, "held-out")
        predicted.append(simulator.predict(test, metric="bleu")[:, [0, 4, 8, 9]])
    np.testing.assert_allclose(predicted[0], predicted[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"max_epochs": 400, "learning_rate": 0.01}, {"method": "closed_form"}])
@pytest.mark.parametrize("target", fitting.TARGETS)
def test_few_measured_steps_are_enough_to_learn_what_one_update_does(options: dict, target: str) -> None:
    """Values between them are far off, and held-out runs are predicted at all steps."""
    train, validation = make_scores(2, 40, between=0.5), make_scores(2, 4, "validation", between=0.5)
    test = make_scores(1, 4, "held-out")
    simulator = Simfluence(target=target, **options).fit(train, validation, metric="bleu")
    truth, mean = test.trajectories("bleu"), make_scores(1, 40).trajectories("bleu").mean(axis=0)
    counted = np.arange(1, STEPS + 1) if target == "value" else train.measured("bleu")[1:]
    squares = [np.square(one - truth)[:, counted].mean() for one in (simulator.predict(test, metric="bleu"), mean)]
    assert squares[0] < 0.2 * squares[1]


def test_deviations_are_fitted_as_values_that_the_mean_was_subtracted_from(train: GPTDynamics) -> None:
    mean = train.trajectories().mean(axis=0)
    runs = [replace(run, trajectories={"loss": run.trajectories["loss"] - mean}) for run in train.runs]
    plain = GPTfluence(encoder=Hashed(), **QUICK).fit(replace(train, runs=tuple(runs)))
    simulator = GPTfluence(encoder=Hashed(), target="deviation", **QUICK).fit(train)
    np.testing.assert_allclose(simulator.tables(), plain.tables(), rtol=1e-3, atol=1e-5)
    start = train.trajectories()[:, :1]
    np.testing.assert_allclose(
        simulator.simulate(train.curricula, start), mean + plain.simulate(train.curricula, start - mean[0]), rtol=1e-4
    )


def test_the_mean_that_deviations_are_from_is_made_of_the_steps_that_are_fitted_on(train: GPTDynamics) -> None:
    rng = np.random.default_rng(0)
    predicted = []
    for noise in (0.0, 1.0):
        off = noise * rng.normal(size=(STEPS + 1, TESTS))
        off[[0, 4, 8, 9]] = 0
        runs = [
            replace(run, trajectories={"loss": (run.trajectories["loss"] + off).astype(np.float32)})
            for run in train.runs
        ]
        simulator = GPTfluence(encoder=Hashed(), target="deviation", checkpoint_interval=4, **QUICK)
        predicted.append(
            simulator.fit(replace(train, runs=tuple(runs))).simulate(train.curricula, train.trajectories()[:, :1])
        )
    np.testing.assert_allclose(predicted[0], predicted[1], rtol=1e-5)
    with pytest.raises(ConfigurationError, match="checkpoint_interval 2: bleu was not measured at every step"):
        Simfluence(checkpoint_interval=2).fit(make_scores(4), metric="bleu")


# --- Simfluence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.01, 3.0])
def test_the_closed_form_equals_least_squares(train: GPTDynamics, ridge: float) -> None:
    """With sqrt(ridge) times the distance from the identity as further equations."""
    transitions = make_transitions(train.trajectories(), train.batches)
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
        assert report.ended == "divergence"
        assert report.diverged_epochs > 0
        assert not np.isfinite(report.validation_mse).any() or report.validation_mse[report.best_epoch - 1] < np.inf
        predicted = simulator.simulate(validation.curricula, validation.trajectories()[:, :1])
        assert np.isfinite(predicted).all()
        assert diverged(predicted, simulator.fitted.scale).sum() == report.diverged_trajectories
        simulator.save_pretrained(tmp_path)
        assert Simulator.from_pretrained(tmp_path).report.diverged
