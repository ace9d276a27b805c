"""The tangent simulator: exact where the GPT is linear, and a function of the past alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gptfluence.gradients.coordinates import Tangents
from gptfluence.gradients.tangents import TangentFeatures
from gptfluence.recording.curriculum import Curriculum, draw_curricula
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.settings import AdamW, Recording
from gptfluence.simulators.base import Simulator
from gptfluence.simulators.tangent import TangentSimulator
from gptfluence.simulators.tangent.linearised import Side
from gptfluence.simulators.tangent.readout import features as features_of
from gptfluence.tasks import Example, TaskPool
from tangent_runs import RECORDING, dynamics, features, fitted, record, uncorrected  # noqa: F401
from toy_dynamics import start

FASTER = Recording.model_validate({"optimizer": {"learning_rate": 1e-2, "weight_decay": 0.1}})


def words(pool: str, *texts: str) -> TaskPool:
    return TaskPool(pool, [Example(str(k), text[:-1], text[-1:]) for k, text in enumerate(texts)])


@pytest.mark.parametrize("checkpoints", [[], [3]])
def test_the_cost_counts_what_is_run(sst2, nano, dynamics, monkeypatch, checkpoints):
    """Forwards by counting the texts the model sees; backward passes by the rows that autograd is asked for."""
    gpt, counted = nano.load(), {"forwards": 0, "backwards": 0}

    def seen(_module, _inputs, options: dict, _outputs) -> None:
        counted["forwards"] += len(options["input_ids"])

    gpt.model.register_forward_hook(seen, with_kwargs=True)
    take, back = torch.autograd.grad, torch.Tensor.backward

    def grad(outputs, inputs, grad_outputs=None, **options):
        batched = options.get("is_grads_batched", False)
        counted["backwards"] += len(grad_outputs) if batched else 2  # a whole one forms parameters' gradients, too
        return take(outputs, inputs, grad_outputs, **options)

    def backward(loss: torch.Tensor) -> None:
        counted["backwards"] += 2 * dynamics.batches.shape[2]
        back(loss)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    reference = dynamics.curricula[0] if checkpoints else None
    options = {"reference": reference, "checkpoints": checkpoints}
    features = TangentFeatures(gpt, sst2.pool, RECORDING, coordinates=50, **options)
    fitted = TangentSimulator().bind_features(features).fit(dynamics)
    # besides, for coordinates, reference, pool and tests: probes of the last layer (two texts, twice), a few comparisons
    probes = 2 + 2 * (1 + len(checkpoints))
    assert fitted.forwards <= sum(counted.values()) <= fitted.forwards + 4 * probes + 2 * 2


@pytest.mark.parametrize("clip", [None, 0.5])
def test_exact_where_the_gpt_is_linear_in_its_trained_parameters(nano, clip):
    """Only the output embedding is trained, and all tokens but one are candidates: nothing is approximated."""
    gpt = nano.load()
    gpt.model.requires_grad_(False)
    gpt.model.get_output_embeddings().weight.requires_grad_(True)
    task = type("Texts", (), {"pool": words("pool", "abc", "bca", "acd"), "tests": words("tests", "abd", "cab")})
    recording = Recording.model_validate(
        {"optimizer": {"learning_rate": 1e-2, "weight_decay": 0.1, "max_gradient_norm": clip}}
    )
    curricula = [Curriculum(np.array([[0, 1], [2, 2], [1, 0], [2, 0]]))]
    dynamics = record(gpt, task, recording, curricula)
    features = TangentFeatures(gpt, task.pool, recording, coordinates=10**9, candidates=10**6, mass=1.0)
    simulator = TangentSimulator().bind_features(features).fit(dynamics)
    recorded = dynamics.trajectories()
    assert np.abs(recorded[0, -1] - recorded[0, 0]).max() > 0.2, "nothing was learned, nothing is tested"
    np.testing.assert_allclose(simulator.simulate(curricula, recorded[:, :1]), recorded, atol=2e-3)


@pytest.mark.parametrize("shape", ["full", "any"])
def test_equal_to_a_loop_with_torchs_own_optimizer(dynamics, features, uncorrected, shape):
    """The rollout, example by example, with torch.optim.AdamW on the sampled coordinates; a target is one token here."""
    curriculum, coordinates = dynamics.curricula[1], features.coordinates
    if shape == "any":
        curriculum = Curriculum([[0, 1, 2, 3], [4], [], [1, 5], [1, 1]]).masked([1])
    pool, tests = features.of(dynamics.pool, trained=True), features.of(dynamics.tests, trained=False)
    slopes = [torch.tensor(t.gradients[0].astype(np.float32) * t.scale[0][:, None]) for t in (pool, tests)]
    weight, initial = torch.tensor(coordinates.weight), torch.tensor(coordinates.initial)
    decayed = torch.tensor(coordinates.decayed)
    parts = [torch.nn.Parameter(initial[decayed].clone()), torch.nn.Parameter(initial[~decayed].clone())]
    groups = [{"params": [parts[0]], "weight_decay": 0.1}, {"params": [parts[1]], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-6)

    def moved() -> torch.Tensor:
        whole = initial.clone()
        whole[decayed], whole[~decayed] = parts[0].detach(), parts[1].detach()
        return whole - initial

    def outputs(side, slope, example):
        mine = torch.tensor(side.example[side.token] == example)
        values = torch.tensor(side.outputs[0])[mine] + slope[mine] @ (weight * moved())
        return values, torch.tensor(side.target)[mine], slope[mine]

    expected = []
    for step in range(curriculum.steps + 1):
        row = []
        for test in range(len(dynamics.tests)):
            values, target, _ = outputs(tests, slopes[1], test)
            row.append(float(torch.log1p(values.exp().sum()) - values[target]))
        expected.append(row)
        if step == curriculum.steps:
            break
        gradient = torch.zeros(len(coordinates))
        for example in curriculum.examples(step):
            values, target, slope = outputs(pool, slopes[0], example)
            probability = values.exp() / (1 + values.exp().sum())
            gradient += (probability - target.float()) @ slope / (curriculum.batches[step] != -1).sum()
        parts[0].grad, parts[1].grad = gradient[decayed], gradient[~decayed]
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (curriculum.steps - step) / curriculum.steps
        optimizer.step()
    found = uncorrected.simulate([curriculum], np.array(expected)[None, :1])
    np.testing.assert_allclose(found[0], expected, atol=2e-4)


def test_close_to_real_training_while_the_gpt_moves_little(gpt, sst2):
    """Without a correction: the change of every loss, at a learning rate at which tangents hold."""
    recording = Recording.model_validate({"optimizer": {"learning_rate": 2e-5}})
    dynamics = record(gpt, sst2, recording, draw_curricula(sst2.pool, runs=3, subset=12, batch=3, epochs=2))
    features = TangentFeatures(gpt, sst2.pool, recording, coordinates=10**9)
    simulator = TangentSimulator().bind_features(features).fit(replace(dynamics, runs=dynamics.runs[:1]))
    truth, begin = dynamics.trajectories(), start(dynamics)
    predicted = simulator.simulate(dynamics.curricula, begin)
    assert np.abs(predicted - truth).max() < 0.05 * np.abs(truth - begin).max()


def test_a_reference_run_is_followed_more_closely(dynamics, gpt, sst2, uncorrected):
    reference = dynamics.curricula[0]
    features = TangentFeatures(
        gpt, sst2.pool, RECORDING, coordinates=1500, reference=reference, checkpoints=[2, 4, reference.steps]
    )
    simulator = TangentSimulator().bind_features(features).fit(replace(dynamics, runs=dynamics.runs[:1]))
    truth, begin = dynamics.trajectories()[:1], start(dynamics)[:1]
    error = [np.square(s.simulate([reference], begin) - truth).mean() for s in (simulator, uncorrected)]
    assert error[0] < 0.5 * error[1]


@settings(max_examples=10, deadline=None)
@given(step=st.integers(1, 7), seed=st.integers(0, 99))
def test_a_prediction_does_not_depend_on_what_comes_after(step, seed, dynamics, fitted):
    rng = np.random.default_rng(seed)
    batches = dynamics.batches[:1].copy()
    other = batches.copy()
    other[:, step:] = rng.integers(0, len(dynamics.pool), other[:, step:].shape)
    before, after = (fitted.simulate(b, start(dynamics)[:1]) for b in (batches, other))
    np.testing.assert_array_equal(before[:, : step + 1], after[:, : step + 1])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_the_order_within_a_batch_does_not_matter(seed, dynamics, fitted):
    shuffled = np.random.default_rng(seed).permuted(dynamics.batches[:1], axis=2)
    expected = fitted.simulate(dynamics.batches[:1], start(dynamics)[:1])
    np.testing.assert_allclose(fitted.simulate(shuffled, start(dynamics)[:1]), expected, atol=1e-4)


def test_an_example_twice_in_a_batch_of_four_is_the_same_as_once_in_a_batch_of_two(dynamics, uncorrected):
    once = np.array([[[0, 1], [2, 3], [4, 5]]])
    twice = np.concatenate([once, once], axis=2)
    twice_sorted = np.sort(twice, axis=2)  # copies side by side
    expected = uncorrected.simulate(once, start(dynamics)[:1])
    np.testing.assert_allclose(uncorrected.simulate(twice, start(dynamics)[:1]), expected, atol=1e-4)
    np.testing.assert_allclose(uncorrected.simulate(twice_sorted, start(dynamics)[:1]), expected, atol=1e-4)


def test_observed_rows_are_kept_and_what_they_say_is_carried_on(dynamics, uncorrected):
    truth = dynamics.trajectories()[1:2]
    alone = uncorrected.simulate(dynamics.curricula[1:2], truth[:, :1])
    more = uncorrected.simulate(dynamics.curricula[1:2], truth[:, :4])
    np.testing.assert_array_equal(more[:, :4], truth[:, :4])
    np.testing.assert_allclose(more[:, 4:] - alone[:, 4:], np.repeat(truth[:, 3:4] - alone[:, 3:4], 5, 1), atol=1e-5)


def test_unseen_tests_and_a_renumbered_pool_are_simulated_like_the_known_ones(dynamics, uncorrected):
    expected = uncorrected.simulate(dynamics.curricula[:1], start(dynamics)[:1])
    order = np.random.default_rng(0).permutation(len(dynamics.pool))
    pool = TaskPool("renumbered", [dynamics.pool[int(k)] for k in order])
    tests = TaskPool("some", dynamics.tests.examples[2:5])
    batches = np.argsort(order)[dynamics.batches[:1]]
    found = uncorrected.simulate(batches, start(dynamics)[:1, :, 2:5], pool=pool, tests=tests)
    np.testing.assert_allclose(found, expected[:, :, 2:5], atol=1e-4)


def test_a_token_is_won_against_the_likeliest_other_candidate_or_all_others_together():
    tangents = Tangents(
        outputs=np.zeros((1, 3), np.float32),
        gradients=np.zeros((1, 3, 1), np.float16),
        scale=np.ones((1, 3), np.float32),
        token=np.array([0, 0, 1]),
        target=np.array([True, False, True]),
        word=np.array([5, 6, 7]),
        example=np.array([0, 1]),
    )
    outputs = torch.tensor([[1.0, 2.0, -0.5], [2.0, 1.0, 0.5]])
    _, probability, softly, won = features_of(Side(tangents), outputs)
    np.testing.assert_array_equal(won, [[0, 0], [1, 1]])
    np.testing.assert_allclose(softly, torch.sigmoid(4 * torch.tensor([[-1.0, -0.5], [1.0, 0.5]])))
    np.testing.assert_allclose(probability[:, 1], torch.sigmoid(outputs[:, 2]), rtol=1e-6)


@settings(deadline=None)
@given(rate=st.floats(0.1, 4), length=st.integers(1, 20), decay=st.sampled_from(["linear_decay", "constant"]))
def test_a_run_is_as_far_as_a_recorded_one_that_has_spent_as_much_learning_rate(rate, length, decay, uncorrected):
    recorded = uncorrected._linearised.recorded
    optimizer = recorded.model_copy(update={"learning_rate": rate * recorded.learning_rate, "schedule": decay})
    times = uncorrected.trained_with(optimizer)._linearised.times(length)
    spent = np.cumsum([0, *recorded.learning_rates(8)])
    expected = np.minimum(np.cumsum([0, *optimizer.learning_rates(length)]), spent[-1])
    np.testing.assert_allclose(np.interp(times, np.arange(9), spent), expected, rtol=1e-9)
    np.testing.assert_array_equal(uncorrected._linearised.times(8), np.arange(9))


def test_told_of_another_learning_rate_it_follows_runs_that_were_trained_with_it(dynamics, fitted, gpt, sst2, tmp_path):
    curricula, optimizer = dynamics.curricula[4:], RECORDING.optimizer.model_copy(update={"learning_rate": 5e-4})
    truth = record(gpt, sst2, RECORDING.model_copy(update={"optimizer": optimizer}), curricula).trajectories()
    slower = fitted.trained_with(optimizer)
    errors = [np.square(one.simulate(curricula, truth[:, :1]) - truth).mean() for one in (slower, fitted)]
    assert errors[0] < 0.3 * errors[1]
    loaded = Simulator.from_pretrained(slower.save_pretrained(tmp_path))
    for one in (loaded, slower):  # what was learned is shared, and the way back is open
        same = one.trained_with(RECORDING.optimizer).simulate(curricula, truth[:, :1])
        np.testing.assert_array_equal(same, fitted.simulate(curricula, truth[:, :1]))
    np.testing.assert_array_equal(loaded.simulate(curricula, truth[:, :1]), slower.simulate(curricula, truth[:, :1]))
    with pytest.raises(ValidationError, match="learning_rate"):  # an optimizer has one rate
        AdamW(learning_rate={"sst2": 1e-3})


@pytest.fixture(scope="module")
def measured(gpt, sst2) -> GPTDynamics:
    """Runs with accuracies; most batches of a run are of one label, which decides them."""
    rng, labels = np.random.default_rng(0), np.array([example.label for example in sst2.pool])
    curricula = [
        Curriculum(
            rng.permutation(np.concatenate([np.flatnonzero(labels == k % 2), rng.permutation(12)[:6]])).reshape(4, 3)
        )
        for k in range(10)
    ]
    return record(gpt, sst2, FASTER, curricula, "accuracy")


def test_accuracy_follows_from_the_simulated_outputs_of_label_words(measured, gpt, sst2, tmp_path):
    features = TangentFeatures(gpt, sst2.pool, FASTER, coordinates=1500)
    train, _, test = measured.split(test=2)
    truth, mean = test.trajectories("accuracy"), train.trajectories("accuracy").mean(axis=0)
    assert np.square(truth - mean).mean() > 0.02, "the curriculum changes nothing, nothing is tested"
    simulator = TangentSimulator().bind_features(features).fit(train, metric="accuracy")
    predicted = simulator.simulate(test.curricula, truth[:, :1])
    assert np.square(predicted - truth).mean() < 0.6 * np.square(mean - truth).mean()
    loaded = Simulator.from_pretrained(simulator.save_pretrained(tmp_path))
    np.testing.assert_array_equal(loaded.simulate(test.curricula, truth[:, :1]), predicted)


def test_what_a_noisy_first_score_is_off_does_not_stay_off(measured, gpt, sst2):
    rng = np.random.default_rng(0)
    noisy = [
        replace(
            run,
            trajectories=run.trajectories
            | {"bleu": 50 - run.trajectories["loss"] + rng.normal(0, 5, run.trajectories["loss"].shape).astype("f4")},
        )
        for run in measured.runs
    ]
    features = TangentFeatures(gpt, sst2.pool, FASTER, coordinates=1500)
    simulator = TangentSimulator().bind_features(features).fit(replace(measured, runs=noisy), metric="bleu")
    low, high = (
        simulator.simulate(measured.curricula[:1], np.full((1, 1, len(measured.tests)), value)) for value in (50, 70)
    )
    assert np.abs(high - low)[:, 1:].max() < 5
