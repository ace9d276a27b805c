"""Simulators of trainings that a Trainer ran: above all the tangent simulator, from one run and the GPT as it was before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerState, TrainingArguments

import gptfluence as gf
from gptfluence.common.errors import ArtifactError, ConfigurationError, DataError
from gptfluence.experiments import trained_again
from gptfluence.models import start
from gptfluence.recording.recorder import build_optimizer
from gptfluence.recording.settings import AdamW
from gptfluence.simulators.tracin import TracInAll
from gptfluence.tasks import TaskPool
from gptfluence.trainers.arguments import recording_of
from toy_dynamics import Hashed
from trainings import model_of, rows, trained

OPTIONS = {"learning_rate": 1e-3, "weight_decay": 0.1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
LORA = LoraConfig(r=2, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.0)


@pytest.fixture(scope="module")
def data(gpt, sst2) -> Dataset:
    return rows(sst2.pool, gpt).select(range(11))


@pytest.fixture(scope="module")
def tests(gpt, sst2) -> Dataset:
    return rows(sst2.tests, gpt)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A GPT in a folder, as the Trainer's users have theirs."""
    folder = tmp_path_factory.mktemp("base")
    model_of("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(data, tests, tmp_path_factory) -> Path:
    """One training of a GPT that was made in memory."""
    folder = tmp_path_factory.mktemp("run")
    trained(model_of("gpt_neox"), data, folder, gf.TrainerRecorder(tests, folder / "runs"), **OPTIONS)
    return folder / "runs"


def explained(simulator, folder: Path, masked: list[int]) -> float:
    """1 - squared error of the simulated change / squared change, where some examples are masked and it is trained again."""
    dynamics = gf.load_dynamics(folder)
    [curriculum], recorded = dynamics.curricula, dynamics.trajectories()
    changed = curriculum.masked(masked)
    simulated = simulator.simulate([changed, curriculum], recorded[:, :1])
    change = gf.train_again(folder, curriculum=changed).trajectories["loss"] - recorded[0]
    assert np.abs(change).max() > 1e-3, "nothing was changed, nothing is tested"
    return 1 - np.square(simulated[0] - simulated[1] - change).sum() / np.square(change).sum()


def test_one_recorded_run_is_enough_to_ask_what_if(run):
    dynamics = gf.load_dynamics(run)
    simulator = gf.TangentSimulator(coordinates=4000, checkpoints=(6,)).fit(dynamics)
    fitted = simulator.predict(dynamics)
    went = np.square(dynamics.trajectories()[:, :1] - dynamics.trajectories()).sum()
    assert np.square(fitted - dynamics.trajectories()).sum() < 0.05 * went
    assert explained(simulator, run, [int(example) for example in dynamics.curricula[0].used[:3]]) > 0.9


def test_adapters_are_simulated_from_the_run_and_the_base_model(base, data, tests, tmp_path):
    """Only what is trained has tangents. Gradients of A are 0 before training, so checkpoints are needed."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LORA)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained(model, data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), **{**OPTIONS, "learning_rate": 2e-3})
    facts = json.loads((tmp_path / "runs" / "start" / "start.json").read_text())
    assert facts["path"] == str(base)
    assert all(".lora_" in name for name in facts["trainable"])
    assert (tmp_path / "runs" / "start" / "kept.safetensors").stat().st_size < 40_000, "the base model is kept, too"
    dynamics = gf.load_dynamics(tmp_path / "runs")
    loaded = dynamics.source.gpt.load().model
    for name, value in loaded.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name].numpy(), err_msg=name)
    simulator = gf.TangentSimulator(coordinates=10**6, checkpoints=(2, 4, 6)).fit(dynamics)
    assert len(simulator.tangents.coordinates) == sum(p.numel() for p in loaded.parameters() if p.requires_grad)
    assert explained(simulator, tmp_path / "runs", [int(e) for e in dynamics.curricula[0].used[:3]]) > 0.8


def test_a_gpt_that_is_not_as_it_was_is_an_error(base, data, tests, tmp_path):
    folder = tmp_path / "moved"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder)
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    trained(AutoModelForCausalLM.from_pretrained(folder), data, tmp_path, recorder, max_steps=1)
    assert gf.load_dynamics(tmp_path / "runs").source.gpt.load().model is not None
    other = model_of("llama")
    other.lm_head.weight.data += 1
    other.save_pretrained(folder)
    with pytest.raises(ArtifactError, match="has other weights now"):
        gf.train_again(tmp_path / "runs")


def test_a_gpt_that_cannot_be_kept_can_be_recorded(data, tests, tmp_path, monkeypatch):
    def broken(*_):
        raise TypeError("no such adapters")

    monkeypatch.setattr(start, "_named", broken)
    with pytest.warns(UserWarning, match="is not kept .TypeError: no such adapters"):
        trained(model_of("gpt_neox"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), max_steps=1)
    assert len(gf.load_dynamics(tmp_path / "runs")) == 1


def test_a_gpt_in_lower_precision_than_its_files_is_kept(base, data, tests, tmp_path):
    """The files would give it other weights. Its training in bfloat16 is recorded, and not followed."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    trained(model, data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), max_steps=1)
    dynamics = gf.load_dynamics(tmp_path / "runs")
    assert dynamics.source.gpt.load().model.dtype == torch.float32
    with pytest.raises(ConfigurationError, match="trained weights are not float32"):
        gf.TangentSimulator().fit(dynamics)


def test_a_gpt_that_was_not_kept_is_an_error_that_says_what_to_do(data, tests, tmp_path):
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs", keep_start=False)
    trained(model_of("gpt_neox"), data, tmp_path, recorder, max_steps=2)
    dynamics = gf.load_dynamics(tmp_path / "runs")
    with pytest.raises(ArtifactError, match="was not kept; record with TrainerRecorder"):
        gf.TangentSimulator().fit(dynamics)


@pytest.mark.parametrize(
    ("scheduler", "schedule"),
    [
        ({"lr_scheduler_type": "linear"}, "linear_decay"),
        ({"lr_scheduler_type": "cosine"}, "cosine"),
        ({"lr_scheduler_type": "constant"}, "constant"),
        ({"lr_scheduler_type": "constant_with_warmup"}, "constant"),
        ({"lr_scheduler_type": "inverse_sqrt"}, "recorded"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}}, "recorded"),
    ],
    ids=["linear", "cosine", "constant", "constant with warm-up", "inverse_sqrt", "other arguments"],
)
def test_the_rates_are_those_that_the_trainer_used(data, tests, tmp_path, scheduler, schedule):
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    trained(model_of("gpt_neox"), data, tmp_path, recorder, warmup_steps=2, max_steps=6, **scheduler)
    dynamics = gf.load_dynamics(tmp_path / "runs")
    optimizer, [run] = dynamics.spec.recording.optimizer, dynamics.runs
    assert optimizer.schedule == schedule
    np.testing.assert_allclose(optimizer.learning_rates(6), run.learning_rate, rtol=1e-5)
    again = gf.train_again(tmp_path / "runs")
    np.testing.assert_allclose(again.trajectories["loss"], run.trajectories["loss"], atol=1e-5)
    if schedule == "recorded":
        simulator = gf.TangentSimulator(coordinates=500).fit(dynamics)
        shorter = gf.Curriculum(run.curriculum.batches[:5])
        with pytest.raises(ConfigurationError, match="known for the 6 steps of the recorded run, not for 5 steps"):
            simulator.simulate([shorter], run.trajectories["loss"][None, :1])
        constant = simulator.trained_with(AdamW(learning_rate=1e-3, schedule="constant"))
        assert constant.simulate([shorter], run.trajectories["loss"][None, :1]).shape[1] == 6


def test_rates_that_differ_from_the_arguments_are_the_truth() -> None:
    said, used = AdamW(learning_rate=1e-3), np.array([1e-3, 1e-3, 5e-4], np.float32)
    assert said.with_rates_of([np.array(said.learning_rates(3), np.float32)]) == said
    assert said.with_rates_of([used, used]).learning_rates(3) == used.tolist()
    assert said.with_rates_of([used, used[::-1]]) == said, "several rates are no rates"
    assert "rates" not in said.model_dump_json(), "names of recorded runs would change"
    with pytest.raises(ConfigurationError, match="these runs do not share theirs"):
        AdamW(schedule="recorded").with_rates_of([used, used[::-1]]).learning_rates(3)


def test_an_optimizer_of_ones_own_is_read_and_not_the_arguments() -> None:
    """Groups with rates of their own, and decay of other parameters, are nothing that this package does."""
    model, args = model_of("gpt_neox"), TrainingArguments(weight_decay=0.1, use_cpu=True, report_to="none")
    given = build_optimizer(model, AdamW(weight_decay=0.3, betas=(0.8, 0.9)), fused=False)
    recording, _ = recording_of(args, TrainerState(max_steps=3), model, given)
    assert (recording.optimizer.weight_decay, recording.optimizer.betas) == (0.3, (0.8, 0.9))
    for changed, message in (
        ({"initial_lr": 0.1}, "rates of their own"),
        ({"weight_decay": 0.3}, "on other parameters"),
    ):
        given = build_optimizer(model, AdamW(weight_decay=0.3), fused=False)
        given.param_groups[1] |= changed
        assert message in recording_of(args, TrainerState(max_steps=3), model, given)[1]


def test_float16_is_refused_before_a_step_is_skipped() -> None:
    args = TrainingArguments(use_cpu=True, report_to="none")
    args.fp16 = True  # a Trainer on a CPU would refuse it itself
    recording, why = recording_of(args, TrainerState(max_steps=3), model_of("gpt_neox"), None)
    assert recording is None
    assert why == "float16 scales losses and skips steps"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"optim": "sgd"}, "SGD .sgd., not AdamW"), ({"label_smoothing_factor": 0.1}, "labels are smoothed")],
)
def test_trainings_that_cannot_be_followed_say_why(data, tests, tmp_path, options, message):
    trained(model_of("gpt_neox"), data, tmp_path, gf.TrainerRecorder(tests, tmp_path / "runs"), max_steps=2, **options)
    dynamics = gf.load_dynamics(tmp_path / "runs")
    for work in (gf.TangentSimulator().fit, TracInAll().bind):
        with pytest.raises(ConfigurationError, match=f"in a way that this package cannot follow: .*{message}"):
            work(dynamics)
    with pytest.raises(ArtifactError, match=message):
        gf.train_again(tmp_path / "runs")


def test_dropout_is_a_limit_that_is_said(data, tests, tmp_path):
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs")
    trained(model_of("gpt2", dropout=0.1), data, tmp_path, recorder, max_steps=2)
    with pytest.warns(UserWarning, match=r"trained with dropout \(0.1\), which is not simulated"):
        gf.TangentSimulator(coordinates=500).fit(gf.load_dynamics(tmp_path / "runs"))


def test_examples_that_the_trainer_did_not_have_have_no_tokens(run, sst2):
    simulator = gf.TangentSimulator(coordinates=500).fit(gf.load_dynamics(run))
    curriculum = gf.load_dynamics(run).curricula[0]
    with pytest.raises(DataError, match="is none of the tests of the training that was recorded"):
        simulator.simulate([curriculum], np.ones((1, 1, 2)), tests=TaskPool("new/tests", sst2.tests[:2]))


def test_a_run_that_was_measured_now_and_then_is_enough(run, data, tests, tmp_path):
    """The losses between are interpolated; what the simulator says hardly depends on them."""
    recorder = gf.TrainerRecorder(tests, tmp_path / "runs", every=4)
    trained(model_of("gpt_neox"), data, tmp_path, recorder, **OPTIONS)
    seldom, always = gf.load_dynamics(tmp_path / "runs"), gf.load_dynamics(run)
    with pytest.raises(DataError, match=r"give dynamics.interpolated\(\)"):
        gf.TangentSimulator().fit(seldom)
    filled = seldom.interpolated().trajectories()[0]
    losses = always.trajectories()[0]
    np.testing.assert_array_equal(filled[[0, 4, 6]], losses[[0, 4, 6]])
    np.testing.assert_allclose(filled[1], 0.75 * losses[0] + 0.25 * losses[4], rtol=1e-6)
    one, other = (
        gf.TangentSimulator(coordinates=500).fit(each).predict(always) for each in (seldom.interpolated(), always)
    )
    np.testing.assert_array_equal(one, other)


def test_an_answer_stands_beside_what_costs_nothing(run):
    dynamics = gf.load_dynamics(run)
    [curriculum], recorded = dynamics.curricula, dynamics.trajectories()[0]
    simulator = gf.TangentSimulator(coordinates=500).fit(dynamics)
    np.testing.assert_allclose(trained_again.predicted(simulator, dynamics, curriculum), recorded, atol=1e-6)
    longer = curriculum.repeated(int(curriculum.used[0]), times=4)
    assert longer.steps > curriculum.steps
    assert trained_again.predicted(simulator, dynamics, longer).shape == (longer.steps + 1, len(dynamics.tests))
    truth = recorded + np.linspace(0, 1, len(recorded), dtype=np.float32)[:, None]
    row = trained_again.row("masked", recorded, truth - 0.5, truth)
    assert row["error of no change"] == pytest.approx(1)
    assert row["share explained"] == pytest.approx(0.75)
    assert row["error of persistence"] == pytest.approx(np.sqrt(np.square(truth[0] - truth[-1]).mean()))
    frame = trained_again.frame(recorded, truth - 0.5, truth, 2)
    assert frame["panel"].nunique() == 3
    assert set(frame["series"]) == {"before", "recorded", "tangent"}


def test_other_simulators_and_replayed_methods_take_such_runs(data, tests, tmp_path):
    for k in range(3):
        recorder = gf.TrainerRecorder(tests, tmp_path / "runs", run=f"train-00{k}")
        trained(model_of("gpt_neox"), data, tmp_path, recorder, **OPTIONS, seed=k)
    dynamics = gf.load_dynamics(tmp_path / "runs")
    train, _, test = dynamics.split(test=1)
    for simulator in (gf.GPTfluence(encoder=Hashed(), max_epochs=2), gf.LowRank(encoder=Hashed())):
        assert np.isfinite(simulator.fit(train).predict(test)).all()
    tangent = gf.TangentSimulator(coordinates=2000).fit(train).predict(test)
    spread = np.square(dynamics.trajectories().mean(axis=0) - test.trajectories()).sum()
    assert np.square(tangent - test.trajectories()).sum() < 0.5 * spread
    tracin = TracInAll(parameters="all", scale="none").bind(dynamics)
    assert np.isfinite(tracin.predict(test)).all()
