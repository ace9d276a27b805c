"""A study with instruction tuning and unseen examples: what is trained on what, and what notebooks need of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.dynamics import join_tests
from gptfluence.scoring import conformal
from gptfluence.scoring.evaluation import evaluate
from gptfluence.study.study import Study
from gptfluence.tasks import TaskPool

FEW = (
    "settings.fine_tuning.runs={train: 2, validation: 1, test: 1}",
    "settings.instruction_tuning.runs={train: 2, validation: 1, test: 1}",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptfluence.recording.record.devices", lambda: ["cpu"])
        yield Study.load("smoke", FEW, artifacts=tmp_path_factory.mktemp("artifacts"), jobs=1)


def test_a_mixture_trains_on_equally_many_examples_of_every_task_and_tests_on_some(study):
    dynamics = study.dynamics("instruction_tuning")
    assert [e.task for e in dynamics.pool] == [task for task in ("rte", "sst2", "webnlg", "cnn_dm") for _ in range(16)]
    assert [e.task for e in dynamics.tests] == [task for task in ("rte", "sst2", "webnlg") for _ in range(4)]
    for curriculum in dynamics.curricula:
        used = np.unique(curriculum.batches)
        assert [dynamics.pool[int(row)].task for row in used] == [
            task for task in ("rte", "sst2", "webnlg", "cnn_dm") for _ in range(8)
        ]
    prompts = {study.task("sst2").tests[row].prompt for row in range(4)}
    instructed = [example for example in dynamics.tests if example.task == "sst2"]
    assert all(any(prompt in example.prompt for prompt in prompts) for example in instructed)
    assert not any(example.prompt in prompts for example in instructed)


def test_the_environment_may_say_how_many_runs_are_recorded_at_once(monkeypatch):
    monkeypatch.setenv("GPTFLUENCE_JOBS", "3")
    assert Study.load("smoke").jobs == 3
    assert Study.load("smoke", jobs=2).jobs == 2
    for wrong in ("0", "two", "-1"):
        monkeypatch.setenv("GPTFLUENCE_JOBS", wrong)
        with pytest.raises(ConfigurationError, match=rf"GPTFLUENCE_JOBS: a whole number of at least 1.*'{wrong}'"):
            Study.load("smoke")


def test_runs_measured_at_their_ends_only_are_kept_apart(study):
    [curriculum] = study.dynamics("fine_tuning", "rte").curricula[:1]
    whole, ends = (study.record(curriculum, "fine_tuning", "rte", ends_only=only) for only in (False, True))
    assert whole.provenance["folder"] != ends.provenance["folder"]
    for metric in whole.metrics:
        expected, found = whole.trajectories(metric), ends.trajectories(metric)
        np.testing.assert_array_equal(found[:, [0, -1]], expected[:, [0, -1]])
        assert np.isnan(found[:, 1:-1]).all()
        assert np.isfinite(expected).all()
    with pytest.raises(ConfigurationError, match=r"evaluate: run .* was not measured at every step"):
        evaluate(expected, ends, reference=study.dynamics("fine_tuning", "rte"))
    with pytest.raises(ConfigurationError, match="give runs that were measured at every step"):
        conformal.Bands(conformal.Typical.of(expected, expected + 1), 1.0, 0.9, "path", 1).covered(found, found)


def test_features_of_texts_are_kept_for_a_simulator_whose_encoder_the_profile_does_not_name(study):
    assert "encoder" not in study.profile.simulators["low_rank"]
    fitted = study.simulator("low_rank", "fine_tuning", "rte")
    assert fitted.encoder.cache == study.artifacts / "features"
    assert list(fitted.encoder.cache.glob("minilm-cls-*.safetensors"))


def test_a_model_may_have_its_own_epochs_and_learning_rate(study):
    first, second = (study.dynamics("instruction_tuning", model=model) for model in ("nano-smoke", "nano-smoke-1b"))
    assert (first.batches.shape[1], second.batches.shape[1]) == (8, 4)
    assert (first.runs[0].learning_rate[0], second.runs[0].learning_rate[0]) == pytest.approx((3e-3, 2e-3))


def test_runs_stored_task_by_task_are_joined_as_if_recorded_together(study):
    whole = study.dynamics("instruction_tuning")
    parts = [
        replace(study.dynamics("instruction_tuning", task), task=task, tests=named(study, task))
        for task in ("rte", "sst2", "webnlg")
    ]
    joined = join_tests("mixture", parts)
    assert [(e.id, e.task) for e in joined.tests] == [(e.id, e.task) for e in whole.tests]
    for metric in whole.metrics:
        np.testing.assert_array_equal(joined.trajectories(metric), whole.trajectories(metric))
    with pytest.raises(ConfigurationError, match=r"runs on sst2 are not those on rte"):
        join_tests("mixture", [parts[0], replace(parts[1], runs=parts[1].runs[:2])])


def named(study, task):
    """Tests of a task as they are stored alone: ids without the task's name."""
    tests = study.dynamics("instruction_tuning", task).tests
    return TaskPool(task, tuple(replace(e, id=e.id.removeprefix(f"{task}/"), task="") for e in tests))


def test_a_metric_leaves_the_tests_that_have_it(study):
    tasks = lambda metric: [e.task for e in study.dynamics("instruction_tuning", metric=metric).tests]  # noqa: E731
    assert set(tasks("accuracy")) == {"rte", "sst2"}
    assert set(tasks("bleu")) == {"webnlg"}
    assert study.tested("instruction_tuning", "bleu") == study.tested("fine_tuning", "rouge_l") == ["webnlg"]
    with pytest.raises(
        ConfigurationError, match=r"settings.fine_tuning: metric 'accuracy' is not known; known: loss, bleu"
    ):
        study.tested("fine_tuning", "accuracy")


def test_one_simulator_is_fitted_on_all_tasks_and_looked_at_task_by_task(study):
    test, predicted = study.simulate("instruction_tuning", "sst2", methods=["gptfluence"])
    whole, all_predicted = study.simulate("instruction_tuning", methods=["gptfluence"])
    rows = [row for row, example in enumerate(whole.tests) if example.task == "sst2"]
    assert test.tests.examples == tuple(whole.tests[row] for row in rows)
    np.testing.assert_array_equal(predicted["gptfluence"], all_predicted["gptfluence"][:, :, rows])
    with pytest.raises(ConfigurationError, match="task 'boolq' is not known"):
        study.simulate("instruction_tuning", "boolq", methods=["persistence"])


def test_a_method_may_change_options_of_the_profiles(study):
    changed = study.simulator("gptfluence markov_order=2 max_epochs=3", "fine_tuning", "rte")
    assert (changed.markov_order, changed.report.epochs) == (2, 3)
    assert study.simulator("gptfluence", "fine_tuning", "rte").markov_order == 1
    with pytest.raises(ConfigurationError, match="hyperparameter 'order' is not known"):
        study.simulator("gptfluence order=2", "fine_tuning", "rte")


@pytest.mark.parametrize("setting", ["fine_tuning", "instruction_tuning"])
@pytest.mark.parametrize("unseen", ["training", "test", "both"])
def test_unseen_examples_are_in_no_run_that_a_simulator_was_fitted_on(study, setting, unseen):
    known = study.dynamics(setting, None if setting == "instruction_tuning" else "webnlg")
    other = study.unseen_dynamics(setting, "webnlg", unseen=unseen)
    # of tasks that keep no examples apart a mixture goes on training on the known ones
    texts = lambda pool: {e.text for e in pool if e.task == "webnlg"}  # noqa: E731
    answers = lambda pool: {(e.prompt.splitlines()[-2:][0], e.target) for e in pool if e.task == "webnlg"}  # noqa: E731
    assert (other.pool.fingerprint == known.pool.fingerprint) == (unseen == "test")
    assert [e.task for e in other.pool] == [e.task for e in known.pool]
    assert other.batches.shape[1:] == known.batches.shape[1:]
    if unseen != "test":
        assert not texts(other.pool) & (texts(known.pool) | texts(known.tests))
        assert not answers(other.pool) & answers(known.pool)
    if unseen == "training":
        assert texts(other.tests) <= texts(known.tests)
    else:
        assert not texts(other.tests) & (texts(known.tests) | texts(known.pool))
    assert not texts(other.tests) & texts(other.pool)
    test, predicted = study.simulate(setting, "webnlg", methods=["gptfluence", "mean_trajectory"], unseen=unseen)
    assert predicted["gptfluence"].shape == test.trajectories().shape
    assert np.isfinite(predicted["gptfluence"]).all()
    scores = study.evaluate(setting, tasks=["webnlg"], methods=["mean_trajectory"], unseen=unseen)
    values = scores.set_index("statistic")["value"]
    assert values["all_steps_mse"] == pytest.approx(
        values["mse_mean_trajectory"]
    )  # R2_dev of the reference itself is 0


def test_a_method_that_knows_only_its_own_examples_says_so(study):
    with pytest.raises(ConfigurationError, match="Use GPTfluence for unseen examples"):
        study.simulate("fine_tuning", "webnlg", methods=["simfluence"], unseen="both")
    with pytest.raises(ConfigurationError, match="unseen: value 'tests' is not known; known: training, test, both"):
        study.unseen_dynamics("fine_tuning", "webnlg", unseen="tests")
    with pytest.raises(
        ConfigurationError, match=r"tasks.sst2: no unseen examples are kept apart; set unseen_pool_size"
    ):
        study.unseen_dynamics("fine_tuning", "sst2", unseen="test")
