"""Trainings of transformers' Trainer, recorded: the training is the same, and the record is what happened."""

from __future__ import annotations

import gc
import os
import shutil
import warnings
import weakref
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import DistributedType, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import CallbackHandler

import gptfluence as gf
from gptfluence.common.errors import ArtifactError, ConfigurationError
from gptfluence.models.gpt import GPT
from gptfluence.recording.settings import Generation
from gptfluence.recording.tokens import tokenize
from gptfluence.tasks import TaskPool
from gptfluence.trainers.arguments import check_supported
from gptfluence.trainers.journal import Journal
from trainings import CONFIGS, Seen, collate, content, model_of, rows, trained, weights


@pytest.fixture(scope="module")
def data(gpt, webnlg) -> Dataset:
    return rows(webnlg.pool, gpt).select(range(11))


@pytest.fixture(scope="module")
def tests(gpt, webnlg) -> Dataset:
    return rows(webnlg.tests, gpt)


@pytest.fixture(autouse=True)
def no_warning_of_ours():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="TrainerRecorder")
        yield


OPTIONS = {"gradient_accumulation_steps": 2, "weight_decay": 0.1, "warmup_steps": 2, "max_grad_norm": 0.5}


def test_the_training_is_the_same_to_the_last_bit(data, tests, tmp_path):
    """With dropout, whose random numbers measuring must leave alone, and with evaluation meanwhile."""
    ended = []
    for recorder in ([], [gf.TrainerRecorder(tests, tmp_path / "runs")]):
        model = model_of("gpt2", dropout=0.1)
        model.transformer.drop.eval()  # a module whose mode is its own
        trained(model, data, tmp_path, *recorder, **OPTIONS, eval_strategy="steps", eval_steps=2)
        ended.append((weights(model), torch.get_rng_state(), [module.training for module in model.modules()]))
    for name, value in ended[0][0].items():
        np.testing.assert_array_equal(ended[1][0][name], value, err_msg=name)
    assert torch.equal(ended[0][1], ended[1][1])
    assert ended[0][2] == ended[1][2]
    assert not [*model._forward_hooks, *model._forward_pre_hooks]
    curriculum = gf.load_dynamics(tmp_path / "runs").curricula[0]
    assert curriculum.steps == 6
    assert sorted(curriculum.batches[curriculum.batches >= 0]) == sorted([*range(len(data))] * 2), "evaluation counts"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential"},
        {"gradient_accumulation_steps": 3, "train_sampling_strategy": "group_by_length", "max_steps": 5},
        {"dataloader_num_workers": 1, "dataloader_drop_last": True, "num_train_epochs": 1},
    ],
    ids=["plain", "sequential", "by length", "workers"],
)
def test_the_curriculum_is_what_the_model_has_seen(data, tests, tmp_path, options):
    seen = Seen(data)
    trained(model_of("llama"), data, tmp_path, seen, gf.TrainerRecorder(tests, tmp_path / "runs"), **options)
    curriculum = gf.load_dynamics(tmp_path / "runs").curricula[0]
    assert [curriculum.examples(row) for row in range(curriculum.steps)] == seen.steps
    if not options:
        assert [len(step) for step in seen.steps] == [2, 2, 2, 2, 2, 1] * 2


@pytest.mark.parametrize(
    ("name", "accumulated", "lora"), [*((name, k, False) for name in CONFIGS for k in (1, 2)), ("llama", 2, True)]
)
def test_the_numbers_are_those_of_our_own_recorder(gpt, data, tests, tmp_path, name, accumulated, lora):
    """The same tokens, order, optimizer and seed."""
    model = model_of(name)
    if lora:
        settings = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", init_lora_weights="gaussian")
        model = get_peft_model(model, settings)
    before = GPT(name, deepcopy(model), gpt.tokenizer, 128)
    options = {**OPTIONS, "gradient_accumulation_steps": accumulated, "per_device_train_batch_size": 4 // accumulated}
    logged = trained(
        model,
        data,
        tmp_path,
        gf.TrainerRecorder(tests, tmp_path / "runs"),
        **options,
        logging_strategy="steps",
        logging_steps=1,
    ).state.log_history[:-1]
    [run] = gf.load_dynamics(tmp_path / "runs").runs
    again = gf.train_again(tmp_path / "runs", before)
    assert np.abs(np.diff(run.trajectories["loss"], axis=0)).max() > 0.01, "nothing was learned, nothing is tested"
    np.testing.assert_allclose(again.trajectories["loss"], run.trajectories["loss"], atol=1e-5)
    np.testing.assert_allclose(again.learning_rate, run.learning_rate)
    for ours, theirs in (("batch_loss", "loss"), ("gradient_norm", "grad_norm"), ("learning_rate", "learning_rate")):
        np.testing.assert_allclose(getattr(again, ours), getattr(run, ours), rtol=1e-4)
        np.testing.assert_allclose(getattr(run, ours), [entry[theirs] for entry in logged], rtol=1e-4)


def test_examples_of_gptfluence_are_measured_as_its_recorder_does(gpt, sst2, data, tmp_path):
    model = model_of("gpt_neox")
    before = GPT("gpt_neox", deepcopy(model), gpt.tokenizer, 128)
    recorder = gf.TrainerRecorder(sst2.tests, tmp_path / "runs", every=4)
    trained(model, data, tmp_path, recorder, tokenizer=gpt.tokenizer)
    dynamics = gf.load_dynamics(tmp_path / "runs")
    assert dynamics.tests == sst2.tests
    recorded = dynamics.trajectories("loss")[0]
    assert (~np.isnan(recorded).all(axis=1)).nonzero()[0].tolist() == [0, 4, 8, 12]
    tokens = tokenize(sst2.tests, gpt)[0]
    with torch.no_grad():
        logits = before.model(torch.from_numpy(tokens.ids)[None]).logits[0].log_softmax(1)
    target = range(tokens.target_start, len(tokens.ids))
    assert recorded[0, 0] == pytest.approx(-np.mean([float(logits[t - 1, tokens.ids[t]]) for t in target]), abs=1e-5)


def test_a_step_that_the_optimizer_left_out_is_told(gpt, data, tests, tmp_path, monkeypatch):
    """As in half precision where gradients overflow."""
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", True)
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    trained(model_of("gpt_neox"), data, tmp_path, recorder, max_steps=2)
    [run] = gf.load_dynamics(tmp_path / "runs").runs
    assert run.skipped.tolist() == [True, True]
    with pytest.raises(ArtifactError, match="steps that the optimizer skipped"):
        gf.train_again(tmp_path / "runs", gpt)


def test_other_metrics_are_those_of_our_own_recorder(gpt, sst2, webnlg, data, tmp_path):
    """Texts are sampled with the same seed; the training is the same."""
    for task, metric in ((sst2, "accuracy"), (webnlg, "bleu")):
        model, generation = model_of("gpt_neox"), Generation(max_new_tokens=4)
        before = GPT("gpt_neox", deepcopy(model), gpt.tokenizer, 128)
        examples = TaskPool("short/tests", task.tests[:3])
        recorder = gf.TrainerRecorder(examples, tmp_path / metric, metrics=[metric], generation=generation)
        trained(model, data, tmp_path, recorder, tokenizer=gpt.tokenizer, max_steps=3)
        [run] = gf.load_dynamics(tmp_path / metric).runs
        again = gf.train_again(tmp_path / metric, before, metrics=["loss", metric], generation=generation)
        assert list(run.trajectories) == ["loss", metric]
        np.testing.assert_allclose(again.trajectories[metric], run.trajectories[metric], atol=1e-5)


class Tracker(TrainerCallback):
    """In the place of what a Trainer reports to: before all callbacks that a user gives."""

    logs: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args, state, control, *, logs, **given) -> None:
        self.logs.append((state.global_step, dict(logs)))


def test_what_the_trainer_reports_to_gets_mean_and_quantiles(data, tests, tmp_path, monkeypatch):
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tracker", Tracker)
    monkeypatch.setattr(Tracker, "logs", [])
    on_log = CallbackHandler.on_log
    options = {"logging_strategy": "steps", "logging_steps": 1, "report_to": "tracker", "max_steps": 5}
    trained(model_of("gpt_neox"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs", every=2), **options)
    losses = gf.load_dynamics(tmp_path / "runs").trajectories("loss")[0]
    *steps, (_, summary) = Tracker.logs
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5]
    for step, logs in steps:
        found = {name: value for name, value in logs.items() if name.startswith("test_")}
        expected = {"test_loss_mean": losses[step].mean()} if step in (2, 4, 5) else {}
        for quantile in (0.1, 0.5, 0.9) if expected else ():
            expected[f"test_loss_quantile_{quantile}"] = np.quantile(losses[step], quantile)
        assert found == pytest.approx(expected)
    assert not [name for name in summary if name.startswith("test_")]
    Tracker.logs.clear()
    assert CallbackHandler.on_log is on_log
    trained(model_of("gpt_neox"), data, tmp_path, **options)
    assert not [name for _, logs in Tracker.logs for name in logs if name.startswith("test_")]


class Interrupted(TrainerCallback):
    def on_step_end(self, args, state, control, **given) -> None:
        raise KeyboardInterrupt


def test_a_training_that_is_interrupted_keeps_no_recorder_alive(data, tests, tmp_path):
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        trained(model_of("gpt_neox"), data, tmp_path, recorder, Interrupted())
    kept = weakref.ref(recorder)
    del recorder
    gc.collect()
    assert kept() is None


def test_files_of_the_users_own_in_the_folder_stay(data, tests, tmp_path):
    (tmp_path / "runs").mkdir()
    for name in (".env", ".start.lock", ".spec.json.abc"):
        (tmp_path / "runs" / name).write_text("mine")
    trained(model_of("gpt_neox"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"))
    assert (tmp_path / "runs" / ".env").read_text() == (tmp_path / "runs" / ".start.lock").read_text() == "mine"
    assert not (tmp_path / "runs" / ".spec.json.abc").exists()


def test_several_trainings_lie_in_one_folder_and_fit_a_simulator(data, tests, tmp_path):
    for k in range(3):
        recorder = gf.TrainerRecorder(tests, tmp_path / "runs", run=f"train-00{k}")
        trained(model_of("gpt_neox"), data, tmp_path, recorder, seed=k)
    dynamics = gf.load_dynamics(tmp_path / "runs")
    assert dynamics.names == ["train-000", "train-001", "train-002"]
    assert len(set(dynamics.curricula)) == 3
    simulator = gf.Simfluence(max_epochs=2).fit(dynamics)
    assert np.isfinite(simulator.predict(dynamics)).all()


# --- unusual input: it is recorded ------------------------------------------------------------------------------------


def test_rows_that_repeat_and_carry_no_ids_are_told_apart_by_their_positions(data, tests, tmp_path):
    twice = Dataset.from_dict({name: [*data[name][:2], *data[name][:2]] for name in ("input_ids", "labels")})
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    trained(model_of("llama"), twice, tmp_path, recorder, train_sampling_strategy="sequential", max_steps=3)
    dynamics = gf.load_dynamics(tmp_path / "runs")
    curriculum = dynamics.curricula[0]
    assert [curriculum.examples(step) for step in range(3)] == [[0, 1], [2, 3], [0, 1]]
    assert [example.id for example in dynamics.pool] == ["0", "1", "2", "3"]
    assert dynamics.pool[0].target == dynamics.pool[2].target
    without = gf.train_again(tmp_path / "runs", curriculum=curriculum.masked([0]))
    assert without.curriculum.examples(0) == [1]
    assert without.curriculum.examples(1) == [2, 3]


@pytest.mark.parametrize("removed", [True, False])
def test_columns_that_the_model_does_not_use_change_nothing(data, tests, tmp_path, removed):
    """The Trainer takes them away, or its collator gets them; tests have the same, or some more."""
    recorded = []
    for name, columns in (("a", []), ("b", ["note", "origin"])):
        pool, asked = data, tests
        for column in columns:
            pool, asked = (part.add_column(column, [column] * len(part)) for part in (pool, asked))
        recorder = gf.TrainerRecorder(asked.add_column("only tests", [1] * len(asked)), tmp_path / name)
        trained(model_of("llama"), pool, tmp_path, recorder, remove_unused_columns=removed, max_steps=2)
        recorded.append(gf.load_dynamics(tmp_path / name).trajectories("loss"))
    np.testing.assert_array_equal(*recorded)


def test_a_tokenizer_without_a_pad_token_will_do(gpt, sst2, webnlg, data, tmp_path):
    recorded = []
    for padded in (True, False):
        tokenizer = deepcopy(gpt.tokenizer)
        if not padded:
            tokenizer.pad_token = None
        for task, metric in ((sst2, "accuracy"), (webnlg, "rouge_l")):
            examples, folder = TaskPool("short/tests", task.tests[:3]), tmp_path / f"{metric} {padded}"
            recorder = gf.TrainerRecorder(
                examples, folder, metrics=[metric], generation=Generation(max_new_tokens=4), every=2
            )
            trained(model_of("gpt_neox"), data, tmp_path, recorder, tokenizer=tokenizer, max_steps=2)
            recorded.append(gf.load_dynamics(folder).trajectories(metric))
    np.testing.assert_array_equal(recorded[:2], recorded[2:])


# --- bad input: the training is unharmed ------------------------------------------------------------------------------


UNRECORDED: dict[str, dict[str, np.ndarray]] = {}  # weights by what they were trained on


def spoilt(data, tests, folder, message, **options):
    """A training whose recording cannot be ends as one without."""
    recorder, model = gf.TrainerRecorder(tests, folder / "runs"), model_of("gpt_neox")
    options = {"max_steps": 2, **options}
    key = f"{type(data).__name__} {getattr(data, 'num_rows', 0)} {options}"
    if key not in UNRECORDED:
        expected = model_of("gpt_neox")
        trained(expected, data, folder, **options)
        UNRECORDED[key] = weights(expected)
    with pytest.warns(UserWarning, match=f"recording has stopped, the training goes on: .*{message}"):
        trained(model, data, folder, recorder, **options)
    assert recorder.stopped
    for name, value in weights(model).items():
        np.testing.assert_array_equal(value, UNRECORDED[key][name])


def test_what_cannot_be_recorded_is_said(data, tests, tmp_path):
    stream = IterableDataset.from_generator(lambda: iter(data))
    spoilt(stream, tests, tmp_path, "is a stream")
    masked = Dataset.from_list([{"input_ids": [1, 2], "labels": [-100, -100]}])
    spoilt(data, masked, tmp_path, "row 0 has no loss, because all its labels are masked")
    spoilt(data, Dataset.from_list([{"text": "a"}]), tmp_path, "rows have no input_ids")
    (tmp_path / "runs").write_text("a file in the way")
    spoilt(data, tests, tmp_path, "a file is in the way of a folder")


def test_packed_rows_of_a_collator_that_says_nothing_of_them_are_refused(data, tests, tmp_path):
    packed = data.add_column("seq_lengths", [[1, 2]] * len(data))
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    with pytest.warns(UserWarning, match="row 0 is packed, but the collator does not say"):
        trained(model_of("gpt_neox"), packed, tmp_path, recorder, max_steps=1, remove_unused_columns=False)


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [("n_gpu", 2, "DataParallel"), ("fsdp", ["full_shard"], "FSDP"), ("torch_compile", True, "torch.compile")],
)
def test_ways_of_training_that_are_not_supported_are_named(option, value, name):
    arguments = SimpleNamespace(**{"n_gpu": 1, "fsdp": [], "deepspeed": None, "torch_compile": False, option: value})
    with pytest.raises(ConfigurationError, match=f"a training with {name}.* cannot be recorded"):
        check_supported(arguments)


@pytest.mark.parametrize(("launched", "name"), [("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed")])
def test_what_accelerate_launch_was_told_is_named_too(launched, name, data, tests, tmp_path, monkeypatch):
    trained(model_of("gpt_neox"), data, tmp_path, max_steps=1)  # so that there is a state
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType[launched])
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    args = SimpleNamespace(n_gpu=1, world_size=1)
    with pytest.warns(UserWarning, match=f"a training with {name} cannot be recorded; train without it"):
        recorder.on_train_begin(args, None, None, model=model_of("gpt_neox"), train_dataloader=None)
    assert recorder.stopped


def test_a_folder_of_another_training_is_left_alone(data, tests, tmp_path):
    trained(model_of("gpt_neox"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), max_steps=2)
    before = content(tmp_path / "runs")
    spoilt(data.select(range(8)), tests, tmp_path, "belongs to another training, with other training data; give")
    spoilt(data, tests, tmp_path, "train-000 is there already", seed=7)
    spoilt(
        data,
        tests,
        tmp_path,
        "with other training arguments .optimizer, schedule or precision.; give",
        learning_rate=1e-3,
    )
    masked = tests.map(lambda row: {"labels": [*row["labels"][:-1], -100]})  # the same texts
    spoilt(data, masked, tmp_path, "with other tests_tokens.parquet; give")
    assert content(tmp_path / "runs") == before
    trained(model_of("gpt_neox"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), max_steps=2)
    assert content(tmp_path / "runs") == before, "the same training once more gives the same bytes"


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(os, "replace", 1), (os, "replace", 3), (Journal, "_write", 1), (Journal, "_write", 4), (os, "rename", 2)],
    ids=["texts", "tokens", "the first line", "a later line", "the run"],
)
def test_a_disk_that_is_full_stops_the_recording_only(data, tests, tmp_path, monkeypatch, owner, name, call):
    """Whatever is being written to the folder when it fills."""
    write, calls = getattr(owner, name), []

    def full(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        return write(*arguments, **options)

    monkeypatch.setattr(owner, name, full)
    spoilt(data, tests, tmp_path, "the disk is full: free some space", max_steps=4)
    assert len(calls) >= call
    monkeypatch.undo()
    if name != "replace":
        return
    trained(model_of("gpt_neox"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), max_steps=4)
    assert len(gf.load_dynamics(tmp_path / "runs")) == 1, "once there is space, the folder is as good as a new one"


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no folder here that nobody may write to")
def test_a_folder_that_nobody_may_write_to_stops_the_recording_only(data, tests, tmp_path):
    recorder = gf.TrainerRecorder(tests, "/sys/kernel/runs")
    with pytest.warns(UserWarning, match="recording has stopped.*cannot write /sys/kernel/runs.*choose another folder"):
        trained(model_of("gpt_neox"), data, tmp_path, recorder, max_steps=1)


def test_a_model_that_is_not_given_the_batch_stops_the_recording(data, tests, tmp_path):
    class Own(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss

    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "max_steps": 1}
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    arguments = TrainingArguments(output_dir=str(tmp_path), **quiet)
    with pytest.warns(UserWarning, match="must pass all of `inputs` on to the model"):
        Own(model_of("gpt_neox"), arguments, collate, train_dataset=data, callbacks=[recorder]).train()


def test_a_store_that_lacks_steps_is_not_gone_on_with(data, tests, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trained(model_of("gpt_neox"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), **options)
    shutil.rmtree(tmp_path / "runs" / "journal")
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    with pytest.warns(UserWarning, match="does not hold the 2 steps"):
        trained(model_of("gpt_neox"), data, tmp_path, recorder, resume=True, **{**options, "max_steps": 4})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run": "first"}, "no run's name"),
        ({"every": 0}, "every"),
        ({"tests": []}, "tests"),
        ({"tests": None}, "tests"),
        ({"metrics": ["acuracy"]}, "did you mean 'accuracy'"),
        ({"metrics": "bleu"}, r"give a list, \['bleu'\]"),
        ({"metrics": ["accuracy"]}, "examples of gptfluence"),
    ],
)
def test_a_recorder_that_cannot_work_is_refused_at_once(tests, tmp_path, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        gf.TrainerRecorder(**{"tests": tests, "folder": tmp_path, **arguments})


def test_a_folder_without_tokens_cannot_be_trained_again(gpt, tmp_path):
    with pytest.raises(ArtifactError, match="not a folder of recorded dynamics"):
        gf.train_again(tmp_path, gpt)


class Stopping(TrainerCallback):
    """At step 4, as a callback does that looks at steps or (EarlyStoppingCallback) at evaluations."""

    def __init__(self, event: str) -> None:
        setattr(self, event, self._stop)

    def _stop(self, args, state, control, **given) -> None:
        control.should_training_stop |= state.global_step == 4


BEST = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


@pytest.mark.parametrize(
    ("event", "options"), [("on_step_end", {}), ("on_evaluate", {**BEST, "load_best_model_at_end": True})]
)
def test_a_training_that_stops_early_has_its_last_step_measured(data, tests, tmp_path, event, options):
    ends = []
    for name, every in (("all", 1), ("some", 3)):
        recorder = gf.TrainerRecorder(tests, tmp_path / name, every=every)
        trained(model_of("gpt2"), data, tmp_path, recorder, Stopping(event), **options)
        ends.append(gf.load_dynamics(tmp_path / name).trajectories("loss")[0])
    assert np.flatnonzero(~np.isnan(ends[1]).any(axis=1)).tolist() == [0, 3, 4]
    np.testing.assert_array_equal(ends[1][-1], ends[0][-1])


def test_a_second_recorder_leaves_the_first_alone(data, tests, tmp_path):
    first, second = (gf.TrainerRecorder(tests, tmp_path / name) for name in ("first", "second"))
    with pytest.warns(UserWarning, match="give all tests to one"):
        trained(model_of("gpt2"), data, tmp_path, first, second, max_steps=2)
    assert not first.stopped
    assert gf.load_dynamics(tmp_path / "first").curricula[0].steps == 2


@pytest.mark.parametrize(("how", "reason"), [("amsgrad", "amsgrad"), ("cycle", "betas")])
def test_adamw_of_another_kind_is_recorded_and_not_repeated(data, tests, tmp_path, how, reason):
    model = model_of("gpt2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=how == "amsgrad", weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    if how == "cycle":
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=2)
    arguments = TrainingArguments(str(tmp_path / "out"), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True)
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    given = {"train_dataset": data, "callbacks": [recorder], "optimizers": (optimizer, rate)}
    with pytest.warns(UserWarning, match=f"{reason}.*cannot follow it"):
        Trainer(model, arguments, collate, **given).train()
    assert not recorder.stopped
    with pytest.raises(ArtifactError, match=reason):
        gf.train_again(tmp_path / "runs")
