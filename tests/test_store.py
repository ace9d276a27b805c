"""The store of recorded runs: what is read is what was written, and kills, damage and company change no byte of it."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptfluence.common import files
from gptfluence.common.errors import ArtifactError, RecordingError
from gptfluence.recording import store, workers
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import TrainingRun
from gptfluence.recording.settings import AdamW, ModelIdentity, Recording, RunSpec
from gptfluence.recording.workers import Job, curriculum_of, record_runs
from gptfluence.study.study import Study

RUNS = "settings.fine_tuning.runs.train=8"
NAMES = [*(f"train-{k:03d}" for k in range(8)), "validation-000", "test-000", "test-001"]

# records, prints the name of every run it wrote itself
RECORD = """
import sys
from gptfluence.recording import store
from gptfluence.study.study import Study

write = store.write_run

def report(folder, run, facts):
    write(folder, run, facts)
    print(run.name, flush=True)

store.write_run = report
Study.load("smoke", sys.argv[3], artifacts=sys.argv[1], jobs=int(sys.argv[2])).campaign("fine_tuning", "webnlg").dynamics()
"""


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("gptfluence.recording.record.devices", lambda: ["cpu"])


def study(root, jobs=1, *overrides):
    return Study.load("smoke", [RUNS, *overrides], artifacts=root, jobs=jobs)


def process(root, jobs):
    return subprocess.Popen(
        [sys.executable, "-c", RECORD, str(root), str(jobs), RUNS],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def content(root):
    """Checksum of every file under `root` but locks and what was set aside."""
    return {
        path.relative_to(root).as_posix(): files.sha256(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and ".damaged-" not in str(path)
    }


def dynamics_folder(root) -> Path:
    (folder,) = (root / "dynamics").iterdir()
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A store recorded by one process in one go."""
    root = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptfluence.recording.record.devices", lambda: ["cpu"])
        study(root).campaign("fine_tuning", "webnlg").dynamics()
    return root


@pytest.fixture
def copy(recorded, tmp_path):
    """A copy of that store, to be damaged."""
    return Path(shutil.copytree(recorded, tmp_path / "copy"))


@pytest.fixture
def empty(recorded, tmp_path):
    """A store with the model and no runs."""
    shutil.copytree(recorded / "models", tmp_path / "empty" / "models")
    return tmp_path / "empty"


# --- what is written is what is read ---------------------------------------------------------------------------------


def a_run(name="train-000", *, pool=True):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    return TrainingRun(
        name=name,
        curriculum=Curriculum(rng.integers(0, 9, (5, 3))),
        trajectories={"loss": draw(6, 4)},
        pool_trajectories={"loss": draw(6, 9)} if pool else {},
        learning_rate=draw(5),
        batch_loss=draw(5),
        gradient_norm=draw(5),
    )


@pytest.mark.parametrize("pool", [True, False])
def test_a_run_is_read_as_it_was_written(tmp_path, pool):
    run = a_run(pool=pool)
    store.write_run(tmp_path, run, {"seed": 1, "device": "cpu"})
    again = store.read_run(tmp_path, "train-000")
    assert (again.name, again.split, again.curriculum) == (run.name, "train", run.curriculum)
    for part in ("trajectories", "pool_trajectories"):
        assert list(getattr(again, part)) == list(getattr(run, part))
        for metric, values in getattr(run, part).items():
            np.testing.assert_array_equal(getattr(again, part)[metric], values, strict=True)
    for part in ("learning_rate", "batch_loss", "gradient_norm"):
        np.testing.assert_array_equal(getattr(again, part), getattr(run, part), strict=True)


def test_a_curriculum_of_any_shape_is_read_as_it_was_written(tmp_path):
    steps = [[3, 1], [], [2], [1, 0, 2]]
    for curriculum in (Curriculum([*steps, []]), Curriculum([*steps, [4]]).masked([1, 4])):
        written = replace(a_run(f"train-{curriculum.fingerprint}"), curriculum=curriculum)
        store.write_run(tmp_path, written, {})
        assert store.read_run(tmp_path, written.name).curriculum == written.curriculum


def test_full_batches_have_the_file_that_they_always_had(tmp_path):
    run = a_run()
    store.write_run(tmp_path, run, {})
    steps, batch = run.curriculum.batches.shape
    step = np.repeat(np.arange(1, steps + 1, dtype=np.int32), batch)
    expected = pa.table({"step": step, "example": run.curriculum.batches.ravel()})
    pq.write_table(expected, tmp_path / "expected.parquet", compression="zstd")
    assert (tmp_path / run.name / "curriculum.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()


def test_equal_runs_give_equal_bytes(tmp_path):
    for part in ("a", "b"):
        store.write_run(tmp_path / part, a_run(), {"seed": 1})
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_study_is_read_with_its_texts_and_its_runs_in_order(recorded):
    dynamics = study(recorded).campaign("fine_tuning", "webnlg").dynamics()
    assert dynamics.names == NAMES
    assert [len(part) for part in dynamics.split()] == [8, 1, 2]
    task = study(recorded).campaign("fine_tuning", "webnlg").texts
    assert (dynamics.pool.fingerprint, dynamics.tests.fingerprint) == (task.pool.fingerprint, task.tests.fingerprint)
    assert sorted(store.load(dynamics_folder(recorded)).names) == sorted(NAMES)


def test_what_is_there_is_not_recorded_again(recorded, monkeypatch):
    monkeypatch.setattr(store, "write_run", lambda *_: pytest.fail("recorded again"))
    assert study(recorded).campaign("fine_tuning", "webnlg").dynamics().names == NAMES


def test_more_runs_leave_the_others_as_they_are(recorded, empty):
    Study.load("smoke", artifacts=empty, jobs=1).campaign("fine_tuning", "webnlg").dynamics()  # fewer
    fewer, more = content(empty), content(recorded)
    assert fewer.items() < more.items()


def test_a_run_that_is_not_there_is_named(recorded):
    with pytest.raises(ArtifactError, match=r"run 'train-999' is not known"):
        store.load(dynamics_folder(recorded), ["train-999"])


def test_a_spec_of_another_version_is_named_in_one_line(tmp_path):
    spec = RunSpec(
        format=1,
        setting="fine_tuning",
        task="sst2",
        pool_fingerprint="a",
        tests_fingerprint="b",
        model=ModelIdentity(name="nano", identity={"source": "c"}),
        recording=Recording(optimizer=AdamW(learning_rate=1e-3)),
        seed=0,
    )
    files.write_json(tmp_path / "spec.json", spec.to_json())
    assert store.read_spec(tmp_path) == spec
    files.write_json(tmp_path / "spec.json", {**spec.to_json(), "colour": "red"})
    with pytest.raises(ArtifactError, match=r"spec\.json: recorded by another version: colour") as caught:
        store.read_spec(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecordingError, match="run train-000: its curriculum is not given and the folder draws none"):
        curriculum_of(spec, "train-000", 10)


def test_a_worker_that_does_not_know_the_gpt_says_what_to_do(copy):
    (folder,) = (copy / "dynamics").iterdir()
    (folder / store.SOURCE).unlink()
    with pytest.raises(
        RecordingError, match=r"model\.json is missing; record through gf\.record or a Study.*no run is lost"
    ):
        record_runs(Job(folder, ("train-000",)), lambda run, step: None)


def test_a_folder_that_is_no_dynamics_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"no readable spec\.json"):
        store.load(tmp_path)


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path):
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {"flipped": flip, "truncated": lambda path: os.truncate(path, 20), "deleted": Path.unlink}
each_damage = pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE)


@each_damage
@pytest.mark.parametrize("name", ["tests.parquet", "run.json", "checksums.json"])
def test_a_damaged_file_is_named_and_its_run_recorded_again(recorded, copy, harm, name):
    path = dynamics_folder(copy) / "train-003" / name
    harm(path)
    if name != "checksums.json" or path.exists():  # without its checksums a folder is no run, and is not read
        with pytest.raises(ArtifactError, match=re.escape(str(path.parent))):
            store.load(dynamics_folder(copy))
    with pytest.warns(UserWarning, match=r"set aside as train-003\.damaged-1, made again"):
        study(copy).campaign("fine_tuning", "webnlg").dynamics()
    assert content(copy) == content(recorded)
    assert (dynamics_folder(copy) / "train-003.damaged-1").is_dir()


@each_damage
def test_damaged_texts_are_named_with_the_remedy(copy, harm):
    path = dynamics_folder(copy) / "pool.parquet"
    harm(path)
    with pytest.raises(ArtifactError, match=re.escape(str(path)) + " .*delete .* to have it made again"):
        store.load(dynamics_folder(copy))


@each_damage
def test_a_damaged_model_is_made_again(recorded, copy, harm):
    harm(next((copy / "models").glob("*/model.safetensors")))
    shutil.rmtree(copy / "dynamics")
    with pytest.warns(UserWarning, match="model 'nano-smoke': .*set aside"):
        study(copy).campaign("fine_tuning", "webnlg").dynamics()
    assert content(copy) == content(recorded)


def test_a_half_written_run_is_never_read(recorded, copy):
    folder = dynamics_folder(copy)
    half = folder / ".train-000.writing-abc"
    shutil.copytree(folder / "train-000", half)
    shutil.rmtree(folder / "train-000")
    (folder / "train-001" / "checksums.json").unlink()
    assert store.run_names(folder) == sorted(set(NAMES) - {"train-000", "train-001"})
    with pytest.warns(UserWarning, match="train-001"):
        study(copy).campaign("fine_tuning", "webnlg").dynamics()
    assert content(copy) == content(recorded)
    assert not half.exists()


# --- several processes, kills ----------------------------------------------------------------------------------------


def test_several_jobs_give_the_same_bytes_as_one_whatever_lies_in_the_working_directory(
    recorded, empty, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    for name in ("random", "profile", "numpy", "typing"):
        Path(f"{name}.py").write_text("raise SystemExit('this is not the module that was meant')")
    monkeypatch.syspath_prepend("")  # as in a notebook
    study(empty, 2).campaign("fine_tuning", "webnlg").dynamics()
    assert content(empty) == content(recorded)


def test_two_studies_on_one_store_share_the_work(recorded, tmp_path):
    root = tmp_path / "shared"  # with no model either: one makes it, the other waits
    both = [process(root, jobs=1) for _ in range(2)]
    written = [name for each in both for name in each.communicate(timeout=100)[0].split()]
    assert [each.returncode for each in both] == [0, 0]
    assert sorted(written) == sorted(NAMES)  # each once
    assert content(root) == content(recorded)


def test_kills_lose_no_more_than_the_runs_under_way(recorded, empty):
    random.seed(0)
    places = [empty / "dynamics" / dynamics_folder(recorded).name / name for name in NAMES]
    for jobs in (1, 2, 1, 1):
        before = {place for place in places if place.is_dir()}
        recorder = process(empty, jobs)
        while recorder.poll() is None and {place for place in places if place.is_dir()} == before:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.1))
        os.killpg(recorder.pid, signal.SIGKILL)
        recorder.wait()
        recorder.stdout.close()
        assert all(files.damage(place) is None for place in places if place.is_dir())
    study(empty, 1).campaign("fine_tuning", "webnlg").dynamics()
    assert content(empty) == content(recorded)


def test_an_error_of_a_worker_is_the_error_of_the_study(empty):
    harsh = study(empty, 2, "settings.fine_tuning.recording.optimizer.learning_rate=1e30")
    with pytest.raises(RecordingError, match=r"run \w+-00\d, step 1: .*lower the learning rate"):
        harsh.campaign("fine_tuning", "webnlg").dynamics()


# --- places that cannot be written -----------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*: File name too long: choose .*GPTFLUENCE_ARTIFACTS"):
        files.write_text(tmp_path / ("x" * 300) / "file", "text")


def test_what_is_no_text_in_the_import_path_does_not_reach_the_workers(monkeypatch):
    monkeypatch.setattr(sys, "path", ["", Path("here"), "/there"])
    assert json.loads(json.dumps(workers._import_path()))[0] == "/there"


def test_a_file_in_the_way_of_the_store_is_an_error_with_the_remedy(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ArtifactError, match=r"a file is in the way of a folder.*GPTFLUENCE_ARTIFACTS"):
        study(tmp_path / "taken").campaign("fine_tuning", "webnlg").dynamics()


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("function", ["gptfluence.common.files._sync", "os.rename", "pathlib.Path.write_bytes"])
def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path, monkeypatch, function):
    monkeypatch.setattr(function, full)
    with pytest.raises(ArtifactError, match=r"saving run train-000: cannot write .*the disk is full"):
        store.write_run(tmp_path, a_run(), {"seed": 1})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_content_of_a_file(tmp_path, monkeypatch):
    path = tmp_path / "spec.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        files.write_json(path, {"a": 2})
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]
