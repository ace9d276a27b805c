"""Runs on the Hub: what is pushed comes back. A folder stands in for the Hub."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import load_dataset

import gptfluence as gf
from gptfluence.common.errors import ArtifactError, HubUnreachableError
from gptfluence.recording import sharing
from toy_dynamics import make_dynamics


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """huggingface_hub, with a folder in place of the network."""

    class Api:
        def create_repo(self, name, *, repo_type, private, exist_ok):
            assert (repo_type, exist_ok) == ("dataset", True)
            (tmp_path / name).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, *, repo_id, repo_type, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
            return f"https://hub/datasets/{repo_id}"

    def snapshot_download(name, *, repo_type, allow_patterns, local_files_only):
        if not (tmp_path / name).is_dir():
            raise FileNotFoundError(f"404: {name}")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(sharing, "hub_reachable", lambda: True)
    return tmp_path


@pytest.fixture
def dynamics():
    """Runs with steps of any size, masked examples, and a step that was skipped."""
    made = make_dynamics(3)
    first, *others = made.runs
    curriculum = first.curriculum.masked([int(first.curriculum.used[0])])
    batches = curriculum.batches.copy()
    batches[1] = -1
    steps = np.arange(curriculum.steps, dtype=np.float32)
    first = replace(
        first,
        curriculum=gf.Curriculum(batches),
        learning_rate=steps,
        batch_loss=steps,
        gradient_norm=steps,
        skipped=steps == 2,
    )
    return replace(made, runs=(first, *others))


def test_what_is_pushed_comes_back(hub, dynamics):
    assert dynamics.push_to_hub("somebody/runs") == "https://hub/datasets/somebody/runs"
    back = gf.load_dynamics("somebody/runs")
    for part in ("pool", "tests"):
        assert getattr(back, part).fingerprint == getattr(dynamics, part).fingerprint
    assert (back.names, back.curricula) == (dynamics.names, dynamics.curricula)
    np.testing.assert_array_equal(back.trajectories(), dynamics.trajectories())
    for name in ("learning_rate", "batch_loss", "gradient_norm", "skipped"):
        np.testing.assert_array_equal(getattr(back.runs[0], name), getattr(dynamics.runs[0], name))
    assert back.runs[1].skipped is None
    assert gf.load_dynamics("somebody/runs", dynamics.names[1:2]).names == dynamics.names[1:2]


def test_the_card_names_tables_that_any_reader_can_open(hub, dynamics):
    dynamics.push_to_hub("somebody/runs")
    _, front, text = (hub / "somebody" / "runs" / "README.md").read_text(encoding="utf-8").split("---\n")
    configurations = {each["config_name"]: each["data_files"] for each in yaml.safe_load(front)["configs"]}
    assert set(configurations) == {"runs", "curricula", "trajectories", "examples"}
    assert 'gf.load_dynamics("somebody/runs")' in text
    table = load_dataset(
        "parquet",
        data_files=str(hub / "somebody" / "runs" / configurations["trajectories"]),
        split="train",
        cache_dir=str(hub / "cache"),
    )
    assert {"run", "step", "example", "loss"} <= set(table.column_names)


def test_without_a_network_it_is_said(hub, dynamics, monkeypatch):
    monkeypatch.setattr(sharing, "hub_reachable", lambda: False)
    with pytest.raises(HubUnreachableError, match="no hub is reachable, and runs cannot be shared"):
        dynamics.push_to_hub("somebody/runs")
    with pytest.raises(HubUnreachableError, match="neither a folder here nor in the local cache"):
        gf.load_dynamics("somebody/nothing")


def test_what_is_no_such_data_set_is_said(hub):
    with pytest.raises(ArtifactError, match="is no folder here, and cannot be read as a data set"):
        gf.load_dynamics("somebody/nothing")
    (hub / "somebody" / "other").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="holds no runs that gptfluence has shared"):
        gf.load_dynamics("somebody/other")
