"""A study with instruction tuning and unseen examples: what is trained on what, and what notebooks need of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.dynamics import join_tests
from gptfluence.scoring import conformal
from gptfluence.scoring.evaluation import evaluate
from gptfluence.study.predictions import rows_of
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
    dynamics = study.campaign("instruction_tuning").dynamics()
    assert [e.task for e in dynamics.pool] == [task for task in ("rte", "sst2", "webnlg", "cnn_dm") for _ in range(16)]
    assert [e.task for e in dynamics.tests] == [task for task in ("rte", "sst2", "webnlg") for _ in range(4)]
    for curriculum in dynamics.curricula:
        used = np.unique(curriculum.batches)
        assert [dynamics.pool[int(row)].task for row in used] == [
            task for task in ("rte", "sst2", "webnlg", "cnn_dm") for _ in range(8)
        ]
    prompts = {study.texts.known("sst2").tests[row].prompt for row in range(4)}
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
    campaign = study.campaign("fine_tuning", "rte")
    [curriculum] = campaign.dynamics().curricula[:1]
    whole, ends = (campaign.record(curriculum, ends_only=only) for only in (False, True))
    assert whole.provenance["folder"] != ends.provenance["folder"]
    for metric in whole.metrics:
        expected, found = whole.trajectories(metric), ends.trajectories(metric)
        np.testing.assert_array_equal(found[:, [0, -1]], expected[:, [0, -1]])
        assert np.isnan(found[:, 1:-1]).all()
        assert np.isfinite(expected).all()
    with pytest.raises(ConfigurationError, match=r"evaluate: run .* was not measured at every step"):
        evaluate(expected, ends, reference=campaign.dynamics())
    with pytest.raises(ConfigurationError, match="give runs that were measured at every step"):
        conformal.Bands(conformal.Typical.of(expected, expected + 1), 1.0, 0.9, "path", 1).covered(found, found)


def test_features_of_texts_are_kept_for_a_simulator_whose_encoder_the_profile_does_not_name(study):
    assert "encoder" not in study.profile.simulators["low_rank"].model_fields_set
    fitted = study.campaign("fine_tuning", "rte").simulator("low_rank")
    assert fitted.encoder.cache == study.artifacts / "features"
    assert list(fitted.encoder.cache.glob("minilm-cls-*.safetensors"))


def test_a_model_may_have_its_own_epochs_and_learning_rate(study):
    first, second = (
        study.campaign("instruction_tuning", model=model).dynamics() for model in ("nano-smoke", "nano-smoke-1b")
    )
    assert (first.batches.shape[1], second.batches.shape[1]) == (8, 4)
    assert (first.runs[0].learning_rate[0], second.runs[0].learning_rate[0]) == pytest.approx((3e-3, 2e-3))


def test_runs_stored_task_by_task_are_joined_as_if_recorded_together(study):
    whole = study.campaign("instruction_tuning").dynamics()
    parts = [replace(of_task(study, task), task=task, tests=named(study, task)) for task in ("rte", "sst2", "webnlg")]
    joined = join_tests("mixture", parts)
    assert [(e.id, e.task) for e in joined.tests] == [(e.id, e.task) for e in whole.tests]
    for metric in whole.metrics:
        np.testing.assert_array_equal(joined.trajectories(metric), whole.trajectories(metric))
    with pytest.raises(ConfigurationError, match=r"runs on sst2 are not those on rte"):
        join_tests("mixture", [parts[0], replace(parts[1], runs=parts[1].runs[:2])])


def of_task(study, task):
    """The runs of the mixture with the tests of one task."""
    dynamics = study.campaign("instruction_tuning").dynamics()
    return dynamics.of_tests(rows_of(dynamics, task))


def named(study, task):
    """Tests of a task as they are stored alone: ids without the task's name."""
    tests = of_task(study, task).tests
    return TaskPool(task, tuple(replace(e, id=e.id.removeprefix(f"{task}/"), task="") for e in tests))


def test_a_metric_leaves_the_tests_that_have_it(study):
    tasks = lambda metric: [e.task for e in study.campaign("instruction_tuning").dynamics(metric).tests]  # noqa: E731
    assert set(tasks("accuracy")) == {"rte", "sst2"}
    assert set(tasks("bleu")) == {"webnlg"}
    assert study.tested("instruction_tuning", "bleu") == study.tested("fine_tuning", "rouge_l") == ["webnlg"]
    with pytest.raises(
        ConfigurationError, match=r"settings.fine_tuning: metric 'accuracy' is not known; known: loss, bleu"
    ):
        study.tested("fine_tuning", "accuracy")


def test_one_simulator_is_fitted_on_all_tasks_and_looked_at_task_by_task(study):
    whole = study.campaign("instruction_tuning").predict(["gptfluence"])
    one = whole.of("sst2")
    rows = [row for row, example in enumerate(whole.recorded.tests) if example.task == "sst2"]
    assert one.recorded.tests.examples == tuple(whole.recorded.tests[row] for row in rows)
    [values], [all_values] = one.values.values(), whole.values.values()
    np.testing.assert_array_equal(values, all_values[:, :, rows])
    with pytest.raises(ConfigurationError, match="task 'boolq' is not known"):
        whole.of("boolq")
    with pytest.raises(ConfigurationError, match="task 'boolq' is not known"):
        study.campaign("instruction_tuning").only(["boolq"])
    with pytest.raises(ConfigurationError, match=r"trains on all tasks at once; leave `task` out"):
        study.campaign("instruction_tuning", "sst2")


def test_options_of_a_method_may_be_changed(study):
    campaign = study.campaign("fine_tuning", "rte")
    changed = campaign.simulator(study.variant("gptfluence", markov_order=2, max_epochs=3))
    assert (changed.markov_order, changed.report.epochs) == (2, 3)
    assert campaign.simulator("gptfluence").markov_order == 1
    with pytest.raises(ConfigurationError, match=r"simulators.gptfluence.order: option 'order' is not known"):
        study.variant("gptfluence", order=2)


def test_a_campaign_with_other_numbers_is_what_a_profile_with_them_gives(study):
    campaign = study.campaign("fine_tuning", "rte")
    other = study.with_overrides(
        "settings.fine_tuning.recording.optimizer.learning_rate=0.01",
        "settings.fine_tuning.recording.record_pool=true",
        "settings.fine_tuning.curriculum.subset_size=4",
        "settings.fine_tuning.metrics=[loss]",
        "settings.fine_tuning.runs.train=1",
    )
    changed = campaign.with_(learning_rate=0.01, record_pool=True, subset_size=4, metrics=[], runs={"train": 1})
    assert changed.setting == other.campaign("fine_tuning", "rte").setting
    assert changed.setting != campaign.setting == campaign.with_().setting


@pytest.mark.parametrize("setting", ["fine_tuning", "instruction_tuning"])
@pytest.mark.parametrize("unseen", ["training", "test", "both"])
def test_unseen_examples_are_in_no_run_that_a_simulator_was_fitted_on(study, setting, unseen):
    campaign = study.campaign(setting, None if setting == "instruction_tuning" else "webnlg").only(["webnlg"])
    known, other = campaign.dynamics(), campaign.unseen(unseen)
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
    predictions = campaign.predict(["gptfluence", "mean_trajectory"], runs=campaign.unseen(unseen)).of("webnlg")
    values = predictions.values[study.variant("gptfluence")]
    assert values.shape == predictions.recorded.trajectories().shape
    assert np.isfinite(values).all()
    scores = campaign.evaluate(["mean_trajectory"], runs=campaign.unseen(unseen))
    values = scores.set_index("statistic")["value"]
    assert values["all_steps_mse"] == pytest.approx(
        values["mse_mean_trajectory"]
    )  # R2_dev of the reference itself is 0


def test_a_method_that_knows_only_its_own_examples_says_so(study):
    campaign = study.campaign("fine_tuning", "webnlg")
    with pytest.raises(ConfigurationError, match="Use GPTfluence for unseen examples"):
        campaign.predict(["simfluence"], runs=campaign.unseen("both"))
    with pytest.raises(ConfigurationError, match="unseen: value 'tests' is not known; known: training, test, both"):
        campaign.unseen("tests")
    with pytest.raises(
        ConfigurationError, match=r"tasks.sst2: no unseen examples are kept apart; set unseen_pool_size"
    ):
        study.campaign("fine_tuning", "sst2").unseen("test")


def test_other_numbers_of_a_campaign_are_checked_as_a_profile_is(study):
    campaign = study.campaign("fine_tuning", "rte")
    with pytest.raises(ConfigurationError, match=r"with_: runs.trian: is not a field here"):
        campaign.with_(runs={"trian": 8})
    with pytest.raises(ConfigurationError, match=r"with_: recording.optimizer.learning_rate: .* \(got -1"):
        campaign.with_(learning_rate=-1.0)
    with pytest.raises(ConfigurationError, match=r"with_: metrics\.\d: .*'blue'"):
        campaign.with_(metrics=["blue"])
    with pytest.raises(ConfigurationError, match="texts of one's own keep no unseen examples apart"):
        campaign.with_(texts=campaign.texts).unseen("training")
    with pytest.raises(ConfigurationError, match="metric 'bleu' is not known; known: loss"):
        campaign.losses_only.tested("bleu")
    with pytest.raises(ConfigurationError, match="the tests of sst2 have no bleu"):
        study.campaign("instruction_tuning").only(["sst2"]).evaluate(["persistence"], metric="bleu")


def test_a_method_that_replays_runs_says_so_where_other_runs_are_asked(study):
    campaign = study.campaign("fine_tuning", "rte")
    methods = ["persistence", "tracin_cp_all"]
    [found] = campaign.predict_each(methods, [campaign.dynamics("loss")])
    assert [variant.method for variant in found.values] == ["persistence"]
    assert "replays the held-out runs" in found.refused[study.variant("tracin_cp_all")]
    with pytest.raises(ConfigurationError, match="the held-out runs on known examples only"):
        campaign.predict(["tracin_cp_all"], runs=campaign.dynamics("loss"))
