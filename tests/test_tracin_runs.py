"""TracIn-CP and Grad-Dot along a run: equal to a gradient for each example and checkpoint, and to captum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gptfluence.common.errors import RecordingError
from gptfluence.gradients.products import Replayer, chosen_parameters
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import LoRA
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.recorder import Recorder
from gptfluence.recording.settings import AdamW, Recording
from gptfluence.recording.tokens import tokenize
from gptfluence.simulators import replay
from gptfluence.simulators.tracin import TracIn
from tracin_loops import FAST, assert_close, plain_gradients, replayer

CURRICULUM = Curriculum(np.array([[0, 1, 2, 3], [4, 5, 6, 7], [3, 8, 9, 0], [3, 3, 10, 11], [1, 2, 6, 8]]))


# --- along a run ----------------------------------------------------------------------------------------------------------


def slow_influences(nano, task, method, curriculum=CURRICULUM):
    """Every checkpoint kept, a gradient for each example: the definition as a loop. float32 [steps, tests]."""
    gpt, checkpoints = nano.load(), []

    def keep(_):
        checkpoints.append(nano.load().model)
        checkpoints[-1].load_state_dict(gpt.model.state_dict())

    with Recorder(gpt, task.pool, task.tests, Recording(optimizer=FAST)) as recorder:
        recorder.record("train-000", curriculum, on_step=keep)
    rates = FAST.learning_rates(curriculum.steps)
    pool, tests = tokenize(task.pool, gpt), tokenize(task.tests, gpt)
    names = list(chosen_parameters(gpt.model, method.parameters))
    result = []
    for step in range(1, curriculum.steps + 1):
        at = method.states(curriculum.steps)[step - 1]
        of_tests = plain_gradients(checkpoints[at], tests, names)
        if method.direction == "update":
            before, after = (dict(checkpoints[k].named_parameters()) for k in (step - 1, step))
            made = torch.cat([(before[name] - after[name]).flatten() for name in names])
            result.append(of_tests @ made)
        else:
            batch = [pool[row] for row in curriculum.batches[step - 1]]
            result.append(rates[step - 1] * of_tests @ plain_gradients(checkpoints[at], batch, names).sum(0))
    return torch.stack(result).detach().numpy()


VARIANTS = {
    "all steps": TracIn(),
    "three": TracIn(checkpoints=3),
    "all parameters": TracIn(parameters="all"),
    "final": TracIn(checkpoints="final"),
    "update": TracIn(direction="update", scale="none"),
    "update, all parameters": TracIn(direction="update", parameters="all"),
}


@pytest.fixture(scope="module")
def recorded(nano, sst2):
    with Recorder(nano.load(), sst2.pool, sst2.tests, Recording(optimizer=FAST)) as recorder:
        return recorder.record("train-000", CURRICULUM, seed=3)


def test_influences_are_those_of_stored_checkpoints_and_single_gradients(nano, sst2, recorded, monkeypatch):
    monkeypatch.setattr(replay, "DIRECTION_ELEMENTS", 1)  # directions one at a time, too
    with replayer(nano.load(), sst2, token_budget=100) as recorder:
        one_by_one = replay.influences(recorder, recorded, VARIANTS, seed=3)
        monkeypatch.undo()
        found = replay.influences(recorder, recorded, VARIANTS, seed=3)
    for name, method in VARIANTS.items():
        assert_close(found[name], slow_influences(nano, sst2, method))
        assert_close(one_by_one[name], found[name])


def test_scoring_does_not_change_the_run(nano, sst2):
    source = ModelSource(
        "nano-lora", nano.config.model_copy(update={"lora": LoRA(rank=2, dropout=0.3)}), nano.cache, nano.corpus
    )
    gpt = source.load()
    with Recorder(gpt, sst2.pool, sst2.tests, Recording(optimizer=FAST)) as recorder:
        run = recorder.record("train-000", CURRICULUM, seed=5)
    with replayer(gpt, sst2) as recorder:
        scoring = replay._Replay(recorder, run, VARIANTS)
        again = recorder.record("train-000", CURRICULUM, seed=5, on_step=scoring.score)
        assert again.trajectories["loss"].tobytes() == run.trajectories["loss"].tobytes()
        with pytest.raises(RecordingError, match=r"run train-000, step \d: replayed losses differ .* by .*delete"):
            replay.influences(recorder, run, {"a": TracIn()}, seed=6)  # other dropout


def test_the_update_predicts_a_small_step_and_gradients_its_direction(nano, sst2):
    slow = Recording(optimizer=AdamW(learning_rate=1e-4, weight_decay=0.0))
    with Replayer(nano.load(), sst2.pool, sst2.tests, slow) as recorder:
        run = recorder.record("train-000", CURRICULUM)
        method = TracIn(direction="update", parameters="all")
        influence = replay.influences(recorder, run, {"update": method}, seed=0)["update"]
    decrease = -np.diff(run.trajectories["loss"], axis=0)
    np.testing.assert_allclose(influence, decrease, atol=0.03 * np.abs(decrease).max())


@given(steps=st.integers(1, 40), count=st.integers(1, 60))
def test_each_step_is_scored_at_the_nearest_of_the_checkpoints(steps, count):
    states = TracIn(checkpoints=count).states(steps)
    kept = {round(x) for x in np.linspace(0, steps, count)}
    assert len(set(states)) <= count
    for before, state in enumerate(states):
        assert state in kept
        assert abs(state - before) == min(abs(other - before) for other in kept)
    if count > steps:
        np.testing.assert_array_equal(states, TracIn().states(steps))
    np.testing.assert_array_equal(TracIn(checkpoints="final").states(steps), steps)


def test_a_run_from_elsewhere_is_refused(nano, sst2, recorded):
    foreign = replace(recorded, trajectories={"loss": recorded.trajectories["loss"] + np.float32(0.01)})
    with (
        replayer(nano.load(), sst2) as recorder,
        pytest.raises(RecordingError, match=r"step 0: replayed losses differ"),
    ):
        replay.influences(recorder, foreign, {"tracin_cp_all": TracIn()}, seed=3)


# --- next to captum -------------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    """Ids in, logits out, as captum wants a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids, use_cache=False).logits


def mean_loss(logits, labels):
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    return losses.sum(1) / (labels[:, 1:] != -100).sum(1)


def as_tensors(examples):
    width = max(len(example.ids) for example in examples)
    ids, labels = torch.zeros(len(examples), width, dtype=torch.long), torch.full((len(examples), width), -100)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.from_numpy(example.ids)
        labels[row, example.target_start : len(example.ids)] = ids[row, example.target_start : len(example.ids)]
    return ids, labels


def test_all_steps_are_what_captum_computes_example_by_example(nano, sst2, recorded):
    influence = pytest.importorskip("captum.influence")
    gpt, checkpoints = nano.load(), []
    with replayer(gpt, sst2) as recorder:
        found = replay.influences(recorder, recorded, {"all": TracIn()}, seed=3)["all"]
        recorder.record("train-000", CURRICULUM, on_step=lambda _: checkpoints.append(recorder.weights()))
    pool, tests = tokenize(sst2.pool, gpt), tokenize(sst2.tests, gpt)
    rates = FAST.learning_rates(CURRICULUM.steps)

    def load(model, step):
        model.model.load_state_dict(checkpoints[step], strict=False)
        return rates[step]

    for step, batch in enumerate(CURRICULUM.batches):
        data = torch.utils.data.TensorDataset(*as_tensors([pool[row] for row in batch]))
        scorer = influence.TracInCP(
            Logits(gpt.model), data, [step], load, layers=["model.gpt_neox.layers.0"], loss_fn=mean_loss, batch_size=4
        )
        assert_close(found[step], scorer.influence(as_tensors(tests)).sum(1).numpy())
