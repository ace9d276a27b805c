"""Trainings of TRL's SFTTrainer, recorded: its own preparation of texts, and its fused head, which builds no logits."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
from datasets import Dataset
from transformers import set_seed

import gptfluence as gf
from gptfluence.models.gpt import GPT
from trainings import model_of, weights

trl = pytest.importorskip("trl")


def trained(model, data, tokenizer, folder, *callbacks, **options):
    quiet = {
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "use_cpu": True,
        "save_strategy": "no",
    }
    defaults = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 5,
        "learning_rate": 1e-2,
    }
    arguments = trl.SFTConfig(output_dir=str(folder / "sft"), bf16=False, **{**quiet, **defaults, **options})
    set_seed(0)
    trl.SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer, callbacks=[*callbacks]).train()


def test_an_sft_trainer_is_recorded_as_it_trains(gpt, webnlg, tmp_path):
    """Rows as SFTTrainer takes them; the same weights; and the numbers of our own recorder on its tokens."""
    data, tests = (
        Dataset.from_list([{"prompt": each.prompt, "completion": each.target} for each in examples])
        for examples in (webnlg.pool, webnlg.tests)
    )
    plain, model = model_of("llama", dropout=0.1), model_of("llama", dropout=0.1)
    trained(plain, data, gpt.tokenizer, tmp_path)
    trained(model, data, gpt.tokenizer, tmp_path, gf.TrainerRecorder(tests, tmp_path / "dropout"))
    for name, value in weights(plain).items():
        np.testing.assert_array_equal(weights(model)[name], value)
    model = model_of("llama")
    before = GPT("llama", deepcopy(model), gpt.tokenizer, 128)
    trained(model, data, gpt.tokenizer, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"))
    dynamics = gf.load_dynamics(tmp_path / "runs")
    [run] = dynamics.runs
    assert [example.prompt for example in dynamics.tests] == [example.prompt for example in webnlg.tests]
    assert dynamics.curricula == gf.load_dynamics(tmp_path / "dropout").curricula
    again = gf.train_again(tmp_path / "runs", before)
    np.testing.assert_allclose(again.trajectories["loss"], run.trajectories["loss"], atol=1e-5)
    np.testing.assert_allclose(again.batch_loss, run.batch_loss, rtol=1e-4)
    np.testing.assert_allclose(again.gradient_norm, run.gradient_norm, rtol=1e-3)


def texts_of(examples) -> Dataset:
    return Dataset.from_list([{"text": each.text} for each in examples])


PACKED = {"packing": True, "max_length": 128, "max_steps": 3, "gradient_accumulation_steps": 1}


def test_packed_rows_are_recorded_as_their_examples(gpt, webnlg, tmp_path):
    data, tests = (texts_of(examples) for examples in (webnlg.pool, webnlg.tests))
    plain, model = model_of("llama"), model_of("llama")
    trained(plain, data, gpt.tokenizer, tmp_path, **PACKED)
    trained(model, data, gpt.tokenizer, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), **PACKED)
    for name, value in weights(plain).items():
        np.testing.assert_array_equal(weights(model)[name], value)
    dynamics = gf.load_dynamics(tmp_path / "runs")
    [run] = dynamics.runs
    assert sorted(example.text.strip() for example in dynamics.pool) == sorted(
        each.text.strip() for each in webnlg.pool
    )
    assert sum(len(run.curriculum.examples(step)) for step in range(3)) > 3 * 2, "nothing was packed"
    again = gf.train_again(tmp_path / "runs")
    np.testing.assert_allclose(again.trajectories["loss"], run.trajectories["loss"], atol=1e-5)
    np.testing.assert_allclose(again.batch_loss, run.batch_loss, rtol=1e-4)


def test_packed_rows_whose_examples_cannot_be_told_apart_are_refused(gpt, webnlg, tmp_path, monkeypatch):
    data = texts_of(webnlg.pool)
    recorder = gf.TrainerRecorder(data, tmp_path / "runs")
    with pytest.warns(UserWarning, match="are packed without regard to where examples begin.*packing_strategy='bfd'"):
        trained(model_of("llama"), data, gpt.tokenizer, tmp_path, recorder, **PACKED, packing_strategy="wrapped")
    model = model_of("llama")
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda *args, position_ids=None, **named: forward(*args, **named))
    with pytest.warns(UserWarning, match="examples of a packed row see each other in this model"):
        trained(model, data, gpt.tokenizer, tmp_path, gf.TrainerRecorder(data, tmp_path / "runs"), **PACKED)
