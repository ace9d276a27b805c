"""What a user of a Trainer may get wrong: each is a warning that says what to do, and the training goes on unharmed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import gptfluence as gf
from gptfluence.common.errors import ArtifactError, ConfigurationError
from gptfluence.recording import store
from gptfluence.trainers.callback import RecordingWarning
from trainings import collate, model_of, rows, trained


@pytest.fixture(scope="module")
def data(gpt, webnlg) -> Dataset:
    return rows(webnlg.pool, gpt).select(range(8))


@pytest.fixture(scope="module")
def tests(gpt, webnlg) -> Dataset:
    return rows(webnlg.tests, gpt)


def test_a_mistake_that_is_made_again_is_told_again(data, tests, tmp_path):
    for _ in range(2):
        recorder = gf.TrainerRecorder(tests.remove_columns("labels"), tmp_path / "runs")
        with pytest.warns(UserWarning, match="tests: row 0 .* it has no labels; give rows with"):
            trained(model_of("gpt2"), data, tmp_path, recorder, max_steps=1)
        assert "no labels" in recorder.stopped


def test_a_recorder_that_comes_too_late_says_so(data, tests, tmp_path):
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")

    class Late(TrainerCallback):
        """Passes on what happens from the second step on, as a callback that is added then would see it."""

        def on_step_begin(self, args, state, control, **given) -> None:
            if state.global_step:
                recorder.on_step_begin(args, state, control, **given)

    with pytest.warns(UserWarning, match="added when the training had begun"):
        trained(model_of("gpt2"), data, tmp_path, Late(), max_steps=3)
    assert recorder.stopped


def test_a_test_that_the_model_cannot_take_is_named(data, tmp_path):
    long = Dataset.from_dict({"input_ids": [[1] * 200], "labels": [[1] * 200]})
    with pytest.warns(UserWarning, match="cannot take the longest row, of 200 tokens"):
        trained(model_of("gpt2"), data, tmp_path, gf.TrainerRecorder(long, tmp_path / "runs"), max_steps=1)


def test_rows_that_change_are_refused(data, tests, tmp_path):
    def cut(batch: dict) -> dict:
        ids = [values[: int(torch.randint(3, 30, ()))] for values in batch["input_ids"]]
        return {"input_ids": ids, "labels": ids}

    changing = data.with_transform(cut)
    with pytest.warns(UserWarning, match="change from one reading to the next"):
        trained(model_of("gpt2"), changing, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), max_steps=1)


class Failing(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **given) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_training_that_was_stopped_is_not_taken_for_none(data, tests, tmp_path):
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        trained(model_of("gpt2"), data, tmp_path, recorder, Failing(1), max_steps=2)
    with pytest.raises(ArtifactError, match=r"no run is finished; train-000 has been begun: resume"):
        gf.load_dynamics(tmp_path / "runs")
    with pytest.raises(ArtifactError, match="there is no folder"):
        gf.load_dynamics(tmp_path / "runns")


def test_a_run_that_cannot_be_written_leaves_the_one_before(data, tests, tmp_path, monkeypatch):
    trained(model_of("gpt2"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), max_steps=1)
    before = gf.load_dynamics(tmp_path / "runs").trajectories("loss")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(store, "write_run", full)
    with pytest.warns(UserWarning, match="no space left"):
        trained(model_of("gpt2"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), max_steps=1)
    assert (gf.load_dynamics(tmp_path / "runs").trajectories("loss") == before).all()


def test_a_training_in_bfloat16_is_trained_again_in_float32(data, tests, tmp_path):
    trained(model_of("gpt2"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), max_steps=2, bf16=True)
    [run] = gf.load_dynamics(tmp_path / "runs").runs
    again = gf.train_again(tmp_path / "runs")
    assert abs(again.trajectories["loss"] - run.trajectories["loss"]).max() < 0.05


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_loss_of_ones_own_is_told_from_the_models(data, tests, tmp_path, share):
    class Weighted(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            output = model(**inputs)
            return share * output.loss + output.logits.pow(2).mean()

    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    arguments = TrainingArguments(str(tmp_path / "out"), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True)
    with pytest.warns(UserWarning, match="another loss than the model's own"):
        Weighted(model_of("gpt2"), arguments, collate, train_dataset=data, callbacks=[recorder]).train()
    assert not recorder.stopped
    assert np.isnan(gf.load_dynamics(tmp_path / "runs").runs[0].batch_loss).all()
    with pytest.raises(ArtifactError, match="not the model's own"):
        gf.train_again(tmp_path / "runs")


def test_a_loss_of_ones_own_is_told_in_a_training_that_goes_on(data, tests, tmp_path, monkeypatch):
    own = Trainer.compute_loss
    monkeypatch.setattr(Trainer, "compute_loss", lambda *given, **named: 1.01 * own(*given, **named))
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        trained(model_of("gpt2"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), Failing(3), **options)
    recorder, checkpoint = gf.TrainerRecorder(tests, tmp_path / "runs"), tmp_path / "checkpoints" / "checkpoint-2"
    with pytest.warns(UserWarning, match="another loss than the model's own"):
        trained(model_of("gpt2"), data, tmp_path, recorder, resume=str(checkpoint), **options)
    assert np.isnan(gf.load_dynamics(tmp_path / "runs").runs[0].batch_loss).all()


class Freezing(TrainerCallback):
    def on_step_end(self, args, state, control, *, model, **given) -> None:
        if state.global_step == 2:
            model.get_input_embeddings().requires_grad_(False)


def test_parameters_that_are_frozen_on_the_way_are_told(data, tests, tmp_path):
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    with pytest.warns(UserWarning, match=r"frozen or unfrozen after the training had begun \(before update 3\)"):
        trained(model_of("gpt2"), data, tmp_path, recorder, Freezing(), max_steps=4)
    assert gf.load_dynamics(tmp_path / "runs").curricula[0].steps == 4
    with pytest.raises(ArtifactError, match="frozen or unfrozen on the way"):
        gf.train_again(tmp_path / "runs")


def test_what_was_said_of_a_training_stays_said_when_it_is_resumed(data, tests, tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    with pytest.warns(UserWarning, match="frozen or unfrozen"), pytest.raises(KeyboardInterrupt):
        trained(model_of("gpt2"), data, tmp_path, recorder, Freezing(), Failing(5), **options)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-4"
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    trained(model_of("gpt2"), data, tmp_path, recorder, resume=str(checkpoint), **options)
    with pytest.raises(ArtifactError, match="frozen or unfrozen on the way"):
        gf.train_again(tmp_path / "runs")
    trained(model_of("gpt2"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), **options)  # from the start
    assert not np.isnan(gf.load_dynamics(tmp_path / "runs").runs[0].batch_loss).any()


def test_labels_that_the_model_never_predicts_are_told(data, tests, tmp_path):
    """GPT-2's Trainer counts the first label of a row, which has no token before it."""
    whole = data.map(lambda row: {"labels": row["input_ids"]})
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    with pytest.warns(UserWarning, match=r"divides a loss of \d+ tokens by \d+ labels.*give those the label -100"):
        trained(model_of("gpt2"), whole, tmp_path, recorder, max_steps=2)
    masked = data.map(lambda row: {"labels": [-100, *row["input_ids"][1:]]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", RecordingWarning)
        trained(model_of("gpt2"), masked, tmp_path, gf.TrainerRecorder(tests, tmp_path / "other"), max_steps=2)
        trained(model_of("llama"), whole, tmp_path, gf.TrainerRecorder(tests, tmp_path / "llama"), max_steps=2)


def test_a_loss_that_a_user_logs_is_not_the_trainers(data, tests, tmp_path, monkeypatch):
    own = Trainer.compute_loss

    def logging(self, *given, **named):
        self.log({"loss": 99.0})
        return own(self, *given, **named)

    monkeypatch.setattr(Trainer, "compute_loss", logging)
    options = {"max_steps": 4, "logging_strategy": "steps", "logging_steps": 1, "gradient_accumulation_steps": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RecordingWarning)
        trained(model_of("gpt2"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), **options)


def test_examples_of_a_curriculum_come_in_a_list():
    curriculum = gf.Curriculum([[0, 1], [2, 3]])
    for change in (curriculum.masked, curriculum.without):
        with pytest.raises(ConfigurationError, match=r"in a list, \[3\]"):
            change(3)
