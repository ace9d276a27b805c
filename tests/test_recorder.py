"""Recording: the numbers are those of plain PyTorch, depend on nothing they should not, and errors name their place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gptfluence.common.errors import ConfigurationError, DataError, ModelError, RecordingError
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import LoRA
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.recorder import Recorder, decayed_names
from gptfluence.recording.settings import AdamW, Recording
from gptfluence.recording.tokens import tokenize
from gptfluence.tasks import Example, TaskPool

CURRICULUM = Curriculum(np.array([[0, 1, 2, 3], [4, 5, 6, 7], [3, 8, 9, 0]]))
FAST = AdamW(learning_rate=1e-2)


def record(gpt, task, curriculum=CURRICULUM, *, seed=0, name="train-000", optimizer=FAST, **options):
    with Recorder(gpt, task.pool, task.tests, Recording(optimizer=optimizer, **options)) as recorder:
        return recorder.record(name, curriculum, seed=seed)


def losses(run):
    return run.trajectories["loss"]


def labels_of(example, which):
    """Labels as transformers want them: -100 where a token does not count."""
    labels = torch.full((1, len(example.ids)), -100)
    start = {"target": example.target_start, "all": 0, "last": len(example.ids) - 1}[which]
    labels[0, start:] = torch.from_numpy(example.ids[start:])
    return labels


def plain_losses(model, examples, which="target"):
    """Each example's loss as `model(input_ids, labels)` has it, one at a time, with no padding."""
    with torch.no_grad():
        return [
            float(model(torch.from_numpy(example.ids)[None], labels=labels_of(example, which)).loss)
            for example in examples
        ]


@pytest.fixture(params=["sst2", "webnlg"])
def task(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("which", ["target", "all", "last"])
def test_losses_are_those_of_the_model_one_example_at_a_time(gpt, task, which):
    run = record(gpt, task, loss_tokens=which)
    expected = plain_losses(gpt.model, tokenize(task.tests, gpt), which)
    np.testing.assert_allclose(losses(run)[0], expected, atol=1e-5)


@pytest.mark.parametrize("train_tokens", ["target", "all"])
def test_updates_are_those_of_a_plain_training_loop(nano, gpt, task, train_tokens):
    settings = AdamW(learning_rate=1e-2, weight_decay=0.1, max_gradient_norm=0.5, warmup_steps=1)
    run = record(gpt, task, optimizer=settings, train_tokens=train_tokens)
    model = nano.load().model
    decayed = [p for p in model.parameters() if p.ndim > 1]
    spared = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}],
        betas=(0.9, 0.999),
        eps=1e-6,
    )
    pool, tests = tokenize(task.pool, gpt), tokenize(task.tests, gpt)
    rates = [0.0, 1e-2, 0.5e-2]  # one step of warm-up, then linearly to 0 after the last
    for step, rows in enumerate(CURRICULUM.batches):
        batch = [(torch.from_numpy(pool[row].ids)[None], labels_of(pool[row], train_tokens)) for row in rows]
        counts = [int((labels[:, 1:] != -100).sum()) for _, labels in batch]
        parts = [model(ids, labels=labels).loss * n for (ids, labels), n in zip(batch, counts, strict=True)]
        loss = sum(parts) / sum(counts)  # every token of the batch counts the same
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        optimizer.zero_grad()
        assert run.learning_rate[step] == pytest.approx(rates[step])
        assert run.batch_loss[step] == pytest.approx(loss.item(), abs=1e-4)
        assert run.gradient_norm[step] == pytest.approx(norm.item(), rel=1e-3)
        np.testing.assert_allclose(losses(run)[step + 1], plain_losses(model, tests), atol=1e-4)


def test_updates_of_any_shape_are_those_of_a_plain_training_loop(nano, gpt, webnlg):
    """Nobody's weight changes where another is masked; a step without examples is AdamW's with a gradient of zero."""
    curriculum = Curriculum([[0, 1, 2], [3], [], [4, 5, 1], [1]]).masked([1])
    settings = AdamW(learning_rate=1e-2, weight_decay=0.1, schedule="constant")
    run = record(gpt, webnlg, curriculum, optimizer=settings)
    model = nano.load().model
    groups = [[p for p in model.parameters() if (p.ndim > 1) == decayed] for decayed in (True, False)]
    groups = [{"params": part, "weight_decay": rate} for part, rate in zip(groups, (0.1, 0.0), strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-6)
    pool, tests = tokenize(webnlg.pool, gpt), tokenize(webnlg.tests, gpt)
    for step, batch in enumerate([[0, 1, 2], [3], [], [4, 5, 1], [1]]):
        loss = sum(p.sum() for p in model.parameters()) * 0.0
        count = sum(len(pool[row].scored("target")) for row in batch)
        for row in batch:
            if row != 1:
                whole = model(torch.from_numpy(pool[row].ids)[None], labels=labels_of(pool[row], "target")).loss
                loss = loss + whole * len(pool[row].scored("target")) / count
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert run.batch_loss[step] == pytest.approx(loss.item(), abs=1e-4)
        np.testing.assert_allclose(losses(run)[step + 1], plain_losses(model, tests), atol=1e-4)


def test_there_is_a_measurement_before_the_first_and_after_each_update(gpt, sst2):
    steps = []
    with Recorder(gpt, sst2.pool, sst2.tests, Recording(optimizer=FAST, record_pool=True)) as recorder:
        run = recorder.record("train-000", CURRICULUM, on_step=steps.append)
    assert steps == [0, 1, 2, 3]
    assert losses(run).shape == (4, len(sst2.tests))
    assert run.pool_trajectories["loss"].shape == (4, len(sst2.pool))
    assert run.learning_rate.shape == run.batch_loss.shape == run.gradient_norm.shape == (3,)


def test_a_run_measured_at_its_ends_only_is_the_same_training(gpt, sst2):
    steps, recording = [], Recording(optimizer=FAST, record_pool=True)
    with Recorder(gpt, sst2.pool, sst2.tests, recording, metrics=["loss", "accuracy"]) as recorder:
        whole = recorder.record("train-000", CURRICULUM)
        ends = recorder.record("train-000", CURRICULUM, ends_only=True, on_step=steps.append)
    assert steps == [0, 1, 2, 3]
    for found, expected in ((ends.trajectories, whole.trajectories), (ends.pool_trajectories, whole.pool_trajectories)):
        assert found.keys() == expected.keys()
        for metric in expected:
            np.testing.assert_array_equal(found[metric][[0, -1]], expected[metric][[0, -1]])
            assert np.isnan(found[metric][1:-1]).all()
    np.testing.assert_array_equal(ends.batch_loss, whole.batch_loss)


@pytest.mark.parametrize("budget", [16, 200, 100_000])
def test_losses_do_not_depend_on_the_token_budget(gpt, webnlg, budget):
    np.testing.assert_allclose(losses(record(gpt, webnlg, token_budget=budget)), losses(record(gpt, webnlg)), atol=1e-5)


def test_losses_do_not_depend_on_the_other_tests(gpt, webnlg):
    whole = losses(record(gpt, webnlg))
    for place in (0, 6):
        alone = replace(webnlg, tests=TaskPool("alone", webnlg.tests[place : place + 1]))
        np.testing.assert_allclose(losses(record(gpt, alone))[:, 0], whole[:, place], atol=1e-5)


def test_measuring_the_pool_changes_nothing_else(gpt, sst2):
    np.testing.assert_array_equal(losses(record(gpt, sst2, record_pool=True)), losses(record(gpt, sst2)))


def test_pool_losses_are_those_the_pool_has_as_tests(gpt, webnlg):
    measured = record(gpt, webnlg, record_pool=True).pool_trajectories["loss"]
    with Recorder(gpt, webnlg.pool, webnlg.pool, Recording(optimizer=FAST)) as recorder:
        np.testing.assert_allclose(measured, losses(recorder.record("train-000", CURRICULUM)), atol=1e-5)


def test_equal_arguments_give_equal_bytes(gpt, task):
    first, again = record(gpt, task, record_pool=True), record(gpt, task, record_pool=True)
    assert losses(first).tobytes() == losses(again).tobytes()
    for part in ("batch_loss", "gradient_norm", "learning_rate"):
        assert getattr(first, part).tobytes() == getattr(again, part).tobytes()


def test_a_run_does_not_depend_on_the_runs_before_it(gpt, sst2):
    with Recorder(gpt, sst2.pool, sst2.tests, Recording(optimizer=FAST)) as recorder:
        first = recorder.record("train-000", CURRICULUM)
        recorder.record("train-001", Curriculum(CURRICULUM.batches[::-1]))
        assert losses(recorder.record("train-000", CURRICULUM)).tobytes() == losses(first).tobytes()


def test_the_model_is_given_back_as_it_came(gpt, sst2):
    before = {name: value.clone() for name, value in gpt.model.state_dict().items()}
    ids = torch.arange(8)[None]
    logits = gpt.model(ids).logits
    record(gpt, sst2)
    assert all(torch.equal(value, before[name]) for name, value in gpt.model.state_dict().items())
    assert torch.equal(gpt.model(ids).logits, logits)  # every position again, not the scored ones alone


def test_random_numbers_of_the_caller_are_left_alone(gpt, sst2):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    record(gpt, sst2)
    assert torch.equal(torch.rand(3), expected)


def test_a_loss_that_is_not_finite_names_run_and_step(gpt, sst2):
    with pytest.raises(RecordingError, match=r"run train-042, step 1: .*lower the learning rate"):
        record(gpt, sst2, name="train-042", optimizer=AdamW(learning_rate=1e30))


def test_a_loss_that_is_not_finite_before_the_first_update_is_the_weights_own(nano, sst2):
    gpt = nano.load()
    token = int(tokenize(sst2.tests, gpt)[2].ids[0])
    with torch.no_grad():
        gpt.model.get_input_embeddings().weight[token] = float("nan")
    with pytest.raises(
        RecordingError, match=r"step 0: .* is nan; the model's own weights give it before the first update"
    ):
        record(gpt, sst2)


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "llama", "mamba", "gpt_oss"])
def test_weight_decay_acts_on_what_the_trainer_decays(kind):
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_local_experts": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=40, **sizes))
    expected = set(Trainer.get_decay_parameter_names(None, model))
    assert decayed_names(model) == expected & {name for name, _ in model.named_parameters()}
    if kind == "gpt_neox":  # Pythia: matrices, as ever
        assert decayed_names(model) == {name for name, p in model.named_parameters() if p.ndim > 1}


def test_the_model_is_as_it_came_after_an_error(gpt, sst2):
    before = losses(record(gpt, sst2))
    with pytest.raises(RecordingError):
        record(gpt, sst2, optimizer=AdamW(learning_rate=1e30))
    assert losses(record(gpt, sst2)).tobytes() == before.tobytes()


def test_a_curriculum_outside_the_pool_is_refused(gpt, sst2):
    with pytest.raises(ConfigurationError, match=r"run train-003: .*example 12.*pool has 12"):
        record(gpt, sst2, Curriculum(np.array([[0, 12]])), name="train-003")


def test_bf16_on_a_cpu_is_refused(gpt, sst2):
    with pytest.raises(ConfigurationError, match=r"recording\.precision: bf16 needs a GPU"):
        record(gpt, sst2, precision="bf16")


# --- texts that do not fit -------------------------------------------------------------------------------------------

LONG = Example(id="long", prompt="so good " * 200, target=" positive", choices=(" negative", " positive"))


def test_a_text_too_long_names_the_example_and_the_remedy(gpt):
    with pytest.raises(DataError, match=r"example 'long': \d+ tokens are too long .*truncation: prompt"):
        tokenize(TaskPool("sst2/pool", (LONG,)), gpt)


def test_truncation_cuts_the_beginning_of_the_prompt_and_keeps_the_target(gpt):
    (cut,) = tokenize(TaskPool("sst2/pool", (LONG,)), gpt, truncation="prompt")
    assert len(cut.ids) == gpt.max_length
    text = gpt.tokenizer.decode(cut.ids)
    assert text.endswith("so good  positive")
    assert gpt.tokenizer.decode(cut.ids[cut.target_start :]) == " positive"


def test_a_target_that_fills_the_model_is_refused_even_with_truncation(gpt):
    example = replace(LONG, prompt="good", target=" good" * 500)
    with pytest.raises(DataError, match=r"'long': its target of \d+ tokens"):
        tokenize(TaskPool("sst2/pool", (example,)), gpt, truncation="prompt")


def test_an_empty_target_names_the_example(gpt):
    with pytest.raises(DataError, match="example 'long': its target '' has no token"):
        tokenize(TaskPool("sst2/pool", (replace(LONG, target=""),)), gpt)


def test_an_empty_prompt_works(gpt, sst2):
    tests = TaskPool("tests", (replace(LONG, prompt=""),))
    assert np.isfinite(losses(record(gpt, replace(sst2, tests=tests)))).all()


def test_free_text_ends_with_the_end_of_text_and_labels_do_not(gpt, sst2, webnlg):
    end = gpt.tokenizer.eos_token_id
    assert all(example.ids[-1] == end for example in tokenize(webnlg.pool, gpt))
    assert all(example.ids[-1] != end for example in tokenize(sst2.pool, gpt))


# --- adapters --------------------------------------------------------------------------------------------------------


def with_lora(nano, **options) -> ModelSource:
    config = nano.config.model_copy(update={"lora": LoRA(**options)})
    return ModelSource(nano.name, config, nano.cache, nano.corpus)


def test_lora_trains_the_adapters_alone(nano, gpt, sst2):
    adapted = with_lora(nano, target_modules=["query_key_value"]).load()
    trainable = [name for name, p in adapted.model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    run = record(adapted, sst2)
    np.testing.assert_allclose(losses(run)[0], losses(record(gpt, sst2))[0], atol=1e-5)  # adapters begin as nothing
    assert np.ptp(losses(run), axis=0).min() > 0


def test_lora_runs_are_reproducible_and_depend_on_their_seed(nano, sst2):
    source = with_lora(nano, dropout=0.3)
    first, again = record(source.load(), sst2, seed=1), record(source.load(), sst2, seed=1)
    assert losses(first).tobytes() == losses(again).tobytes()
    assert not np.array_equal(losses(record(source.load(), sst2, seed=2)), losses(first))


def test_adapters_for_layers_the_model_lacks_are_refused(nano):
    with pytest.raises(ModelError, match=r"lora\.target_modules.*no_such_layer"):
        with_lora(nano, target_modules=["no_such_layer"]).load()
