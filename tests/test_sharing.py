"""Runs and simulators on the Hub: what is pushed comes back. A server on this machine stands in for the Hub."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError

import gptfluence as gf
from gptfluence.common.errors import ArtifactError, ConfigurationError, HubUnreachableError
from gptfluence.simulators.base import Simulator
from local_hub import TOKEN, LocalHub, local_hub
from toy_dynamics import every_simulator, fitted, make_dynamics, train, validation  # noqa: F401


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[LocalHub]:
    with local_hub(tmp_path, monkeypatch) as made:
        yield made


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
    assert dynamics.push_to_hub("somebody/runs").startswith(f"{hub.address}/somebody/runs/commit/")
    back = gf.load_dynamics("somebody/runs")
    for part in ("pool", "tests"):
        assert getattr(back, part).fingerprint == getattr(dynamics, part).fingerprint
    assert (back.names, back.curricula) == (dynamics.names, dynamics.curricula)
    np.testing.assert_array_equal(back.trajectories(), dynamics.trajectories())
    for name in ("learning_rate", "batch_loss", "gradient_norm", "skipped"):
        np.testing.assert_array_equal(getattr(back.runs[0], name), getattr(dynamics.runs[0], name))
    assert back.runs[1].skipped is None
    assert gf.load_dynamics("somebody/runs", dynamics.names[1:2]).names == dynamics.names[1:2]


def test_the_card_names_tables_that_any_reader_can_open(hub, dynamics, tmp_path):
    dynamics.push_to_hub("somebody/runs")
    _, front, text = (
        (hub.folder / "dataset" / "somebody" / "runs" / "README.md").read_text(encoding="utf-8").split("---\n")
    )
    configurations = {each["config_name"]: each["data_files"] for each in yaml.safe_load(front)["configs"]}
    assert set(configurations) == {"runs", "curricula", "trajectories", "examples"}
    assert 'gf.load_dynamics("somebody/runs")' in text
    table = load_dataset(
        "parquet",
        data_files=str(hub.folder / "dataset" / "somebody" / "runs" / configurations["trajectories"]),
        split="train",
        cache_dir=str(tmp_path / "datasets"),
    )
    assert {"run", "step", "example", "loss"} <= set(table.column_names)


@every_simulator
def test_a_simulator_that_is_pushed_comes_back(hub, fitted, validation, name):  # noqa: F811
    simulator, observed = fitted[name], validation.trajectories()[:, :1]
    simulator.push_to_hub("somebody/simulator")
    back = Simulator.from_pretrained("somebody/simulator")
    assert type(back) is type(simulator)
    expected = simulator.simulate(validation.curricula, observed)
    np.testing.assert_array_equal(back.simulate(validation.curricula, observed), expected)
    hub.offline()  # it is in the cache now
    asked = len(hub.asked)
    again = type(simulator).from_pretrained("somebody/simulator")
    np.testing.assert_array_equal(again.simulate(validation.curricula, observed), expected)
    assert len(hub.asked) == asked
    card = ModelCard.load(hub.folder / "model" / "somebody" / "simulator" / "README.md")
    assert card.data.library_name == "gptfluence"
    assert "model_hub_mixin" in card.data.tags
    assert 'gf.Simulator.from_pretrained("somebody/simulator")' in card.text
    assert f"| tests | {simulator.fitted.tests_fingerprint} |" in card.text


def test_a_token_is_used_and_never_shown(hub, dynamics, fitted, caplog, capfd, monkeypatch):  # noqa: F811
    """The Hub of these tests refuses whoever does not have it."""
    with caplog.at_level(logging.DEBUG):
        dynamics.push_to_hub("somebody/runs")
        fitted["simfluence"].push_to_hub("somebody/simulator")
        monkeypatch.setenv("HF_TOKEN", f"{TOKEN}-of-somebody-else")
        for what, place in ((dynamics, "runs"), (fitted["simfluence"], "simulator")):
            with pytest.raises(HfHubHTTPError, match="401") as refused:
                what.push_to_hub(f"somebody/{place}")
            assert TOKEN not in str(refused.value)
    assert TOKEN not in caplog.text + "".join(capfd.readouterr())
    for path in hub.folder.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()


def test_without_a_network_it_is_said_at_once(hub, dynamics, fitted):  # noqa: F811
    hub.offline()
    started = time.monotonic()
    for what, message in (
        (dynamics, "runs cannot be shared"),
        (fitted["simfluence"], "the simulator cannot be shared"),
    ):
        with pytest.raises(HubUnreachableError, match=f"{message}, and no hub is reachable"):
            what.push_to_hub("somebody/something")
    for load in (gf.load_dynamics, Simulator.from_pretrained):
        with pytest.raises(HubUnreachableError, match="neither a folder here nor in the local cache"):
            load("somebody/nothing")
    assert time.monotonic() - started < 2
    assert hub.asked == []


def test_what_is_no_such_repository_is_said(hub, fitted):  # noqa: F811
    with pytest.raises(ArtifactError, match="is no folder here, and cannot be read as a data set"):
        gf.load_dynamics("somebody/nothing")
    with pytest.raises(ArtifactError, match="is no folder here, and cannot be read as a model"):
        Simulator.from_pretrained("somebody/nothing")
    for kind, file in (("dataset", "spec.json"), ("model", "config.json")):
        (hub.folder / kind / "somebody" / "other").mkdir(parents=True)
        (hub.folder / kind / "somebody" / "other" / file).write_text("{}")
    with pytest.raises(ArtifactError, match="holds no runs that gptfluence has shared"):
        gf.load_dynamics("somebody/other")
    with pytest.raises(ArtifactError, match="cannot be read as a simulator's description"):
        Simulator.from_pretrained("somebody/other")
    with pytest.raises(ConfigurationError, match="not fitted yet"):
        gf.Simfluence().push_to_hub("somebody/simulator")
