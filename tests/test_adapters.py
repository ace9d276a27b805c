"""All weights or adapters alone, trained by a Trainer: the runs are those of our own recorder, wherever they are recorded."""

from __future__ import annotations

import json
import random
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest

import gptfluence as gf
from gptfluence.common.errors import ArtifactError, ConfigurationError
from gptfluence.experiments import adapters
from gptfluence.recording.recorder import Recorder, single_thread
from gptfluence.recording.settings import AdamW
from gptfluence.workflow import catalogue
from gptfluence.workflow.notebook import NOTEBOOKS
from gptfluence.workflow.parameters import declared_parameters
from gptfluence.workflow.row import NotInProfileError, resolve

FEW = {"train": 1, "validation": 1, "held_out": 1, "sets": 3}


@pytest.fixture
def campaign(smoke_store):
    clipped = (
        "settings.fine_tuning.recording.optimizer={learning_rate: 3.0e-3, max_gradient_norm: 0.5, warmup_steps: 2}"
    )
    study = gf.Study.load("smoke", [clipped], artifacts=smoke_store)
    return study.campaign("fine_tuning", "sst2", model="nano-smoke")


@pytest.fixture
def tuned(campaign, tmp_path):
    """Both ways, recorded in a folder of the test's own."""
    return {
        way: replace(one, trainings=tmp_path / "trainings") for way, one in adapters.ways(campaign, times=10).items()
    }


@pytest.mark.parametrize("way", adapters.WAYS)
def test_a_trainer_and_our_own_recorder_train_alike(campaign, tuned, way):
    """Warm-up, clipping, weight decay; the curriculum is the one that was asked for."""
    one, drawn = tuned[way], adapters.Drawn.of(campaign, **FEW)
    [run] = one.record(drawn.train).runs
    assert run.curriculum == drawn.train[0]
    recording = one.recording.model_copy(update={"record_pool": False})
    with (
        single_thread(),
        Recorder(one.source.load(), campaign.texts.pool, campaign.texts.tests, recording) as recorder,
    ):
        own = recorder.record(run.name, run.curriculum)
    assert np.abs(np.diff(own.trajectories["loss"], axis=0)).max() > 1e-3, "nothing was learned, nothing is tested"
    np.testing.assert_allclose(run.trajectories["loss"], own.trajectories["loss"], atol=1e-5)
    np.testing.assert_allclose(run.learning_rate, own.learning_rate, rtol=1e-5)
    trained = [p for p in one.source.load().model.parameters() if p.requires_grad]
    every = sum(p.numel() for p in tuned[adapters.FULL].source.load().model.parameters())
    assert (sum(p.numel() for p in trained) == every) == (way == adapters.FULL)


def test_curricula_that_leave_examples_out_differ_in_these_alone(campaign):
    drawn = adapters.Drawn.of(campaign, **FEW)
    base = drawn.held_out["alike"][0]
    for one in drawn.without:
        assert len(one.used) == len(base.used) - len(base.used) // 4
        kept = one.batches == base.batches
        assert set(base.batches[~kept]).isdisjoint(one.used)
    assert [ends_only for _, ends_only in drawn.parts()] == [False, False, False, True]
    more = adapters.Drawn.of(campaign, **{**FEW, "held_out": 2})
    assert more.held_out["few"][:1] == drawn.held_out["few"], "what is there already must stay what it is"


def test_runs_recorded_elsewhere_are_found_here(load, campaign, tuned, tmp_path, monkeypatch):
    lora_runs = load("lora_runs")
    monkeypatch.setattr(adapters, "COUNTS", FEW)
    monkeypatch.setattr(lora_runs, "campaign_of", lambda *_: campaign)
    lora_runs.main(["prepare", str(tmp_path / "carry")])
    path, there = tmp_path / "carry" / lora_runs.JOB, tmp_path / "carry" / "artifacts"
    there.mkdir()
    (there / "models").symlink_to(campaign.study.artifacts / "models")
    runs = json.loads(path.read_text())["runs"]
    assert len(runs) == 2 * (1 + 1 + 2 + 3)
    assert [run["way"] for run in runs[:4]] == ["full", "full", "lora", "lora"]
    for number in (2, 3):
        assert lora_runs.one(path, there, number, "cpu") > 0
        assert lora_runs.one(path, there, number, "cpu") == 0  # it is there
    lora_runs.carried.archive(there, "trainings", tmp_path / "trainings.tar.gz")
    with tarfile.open(tmp_path / "trainings.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.rmtree(there / "trainings")
    one = adapters.ways(campaign)[adapters.ADAPTERS]
    one, drawn = replace(one, trainings=tmp_path / "trainings"), adapters.Drawn.of(campaign, **FEW)
    assert one.missing([*drawn.train, *drawn.validation, *drawn.without]) == drawn.without
    dynamics = one.record([*drawn.train, *drawn.validation])
    assert len(dynamics) == 2
    assert dynamics.source.gpt.load() is not None  # which of the two machines' folders has it is no matter
    shutil.rmtree(one.folder / "start")
    spec = json.loads((one.folder / "spec.json").read_text())
    spec["model"]["identity"]["weights"] = "0" * 12
    (one.folder / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(ArtifactError, match="began with other weights"):
        one.record(drawn.train)


def test_the_row_is_of_a_pretrained_gpt(campaign):
    row = catalogue.by_name()["ext08_adapters"]
    with pytest.raises(NotInProfileError, match="is of a pretrained GPT, and there is none"):
        resolve(row, campaign.study)
    assert resolve(row, campaign.study, models=["nano-smoke"]).tasks == ["rte"]
    assert resolve(row, gf.Study.load("laptop")).models == ("smollm2-135m",)
    declared = declared_parameters(NOTEBOOKS / "ext08_adapters.py")
    assert {name: declared[name][1] for name in ("train", "held_out", "sets")} == {
        name: adapters.COUNTS[name] for name in ("train", "held_out", "sets")
    }, "lora_runs.py would prepare other runs than the notebook asks for"


def test_a_schedule_that_no_trainer_has_is_refused_before_training(tuned):
    one = tuned[adapters.FULL]
    rates = one.recording.model_copy(update={"optimizer": AdamW(schedule="recorded", rates=(1e-3, 1e-4))})
    with pytest.raises(ConfigurationError, match="no Trainer has the schedule 'recorded'"):
        replace(one, recording=rates).record([gf.Curriculum([[0, 1], [2, 3]])])


def test_a_run_measured_at_its_ends_is_recorded_again_when_all_of_it_is_wanted(campaign, tuned):
    one, drawn = tuned[adapters.FULL], adapters.Drawn.of(campaign, **FEW)
    ends = one.record(drawn.train, ends_only=True).trajectories("loss")
    assert np.isnan(ends[:, 1:-1]).all()
    with pytest.warns(UserWarning, match="was measured at its ends only; set aside"):
        whole = one.record(drawn.train).trajectories("loss")
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(whole[:, [0, -1]], ends[:, [0, -1]])


def test_a_trainer_follows_whole_batches_and_leaves_the_callers_random_numbers_alone(campaign, tuned):
    one, [curriculum] = tuned[adapters.FULL], adapters.Drawn.of(campaign, **FEW).train
    with pytest.raises(ConfigurationError, match="whole batches"):
        one.record([curriculum.masked(curriculum.used[:1])])
    state = random.getstate()
    one.record([curriculum], ends_only=True)
    assert random.getstate() == state
