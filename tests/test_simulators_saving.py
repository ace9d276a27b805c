"""Simulators are exact after a save and clear about bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptfluence.common.errors import ArtifactError, ConfigurationError, DataError
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators import METHODS
from gptfluence.simulators.base import Simulator
from gptfluence.simulators.gptfluence import GPTfluence
from gptfluence.simulators.options import Variant
from gptfluence.simulators.simfluence import Simfluence
from gptfluence.tasks.base import TaskPool
from toy_dynamics import MAKERS, POOL, Hashed, every_simulator, fitted, make_dynamics, make_pool, train, validation  # noqa: F401

# --- saving -----------------------------------------------------------------------------------------------------------


@every_simulator
def test_a_saved_simulator_predicts_the_same_bits(
    fitted: dict[str, Simulator], validation: GPTDynamics, tmp_path: Path, name: str
) -> None:
    simulator, observed = fitted[name], validation.trajectories()[:, :1]
    loaded = Simulator.from_pretrained(simulator.save_pretrained(tmp_path / "deep" / "folder"))
    assert type(loaded) is type(simulator)
    assert loaded.fitted == simulator.fitted
    assert loaded.hyperparameters() == simulator.hyperparameters()
    for curve in ("training_loss", "validation_mse"):
        np.testing.assert_array_equal(getattr(loaded.report, curve), getattr(simulator.report, curve))
    np.testing.assert_array_equal(
        loaded.simulate(validation.curricula, observed), simulator.simulate(validation.curricula, observed)
    )
    assert sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_damaged_and_wrong_files_are_named(fitted: dict[str, Simulator], tmp_path: Path) -> None:
    folder = fitted["gptfluence"].save_pretrained(tmp_path)
    config, weights = folder / "config.json", folder / "model.safetensors"
    good = config.read_text(), weights.read_bytes()

    def refused(match: str, cls: type[Simulator] = Simulator) -> None:
        with pytest.raises(ArtifactError, match=match):
            cls.from_pretrained(folder)
        config.write_text(good[0])
        weights.write_bytes(good[1])

    refused("holds a 'gptfluence', not a 'simfluence'", Simfluence)
    config.write_text(good[0][:100])
    refused("config.json")
    config.write_text("[]")
    refused("config.json")
    for key, value in (("simulator", "gptfluense"), ("format", 99), ("hyperparameters", {"heads": "mpl"})):
        config.write_text(json.dumps(json.loads(good[0]) | {key: value}))
        refused("config.json")
    weights.write_bytes(good[1][:-50])
    refused("model.safetensors")
    save_file({"unit": np.ones(1)}, weights)
    refused("model.safetensors")
    arrays = load_file(folder / "model.safetensors")
    save_file(arrays | {"pool": arrays["pool"][1:]}, weights)
    refused("model.safetensors")
    weights.unlink()
    refused("model.safetensors")
    assert GPTfluence.from_pretrained(folder).markov_order == 1
    with pytest.raises(ArtifactError, match="nowhere"):
        Simulator.from_pretrained(tmp_path / "nowhere")


# --- errors -----------------------------------------------------------------------------------------------------------


def test_variants_know_names_and_options() -> None:
    made = Variant.of("gptfluence", markov_order=2).create()
    assert isinstance(made, GPTfluence)
    assert made.markov_order == 2
    simulators = {name for name, method in METHODS.items() if issubclass(method.load(), Simulator)}
    assert simulators == {"gptfluence", "simfluence", "persistence", "mean_trajectory", "counts", "low_rank", "tangent"}
    with pytest.raises(
        ConfigurationError,
        match="known: gptfluence, simfluence, tangent, low_rank, counts, persistence, mean_trajectory",
    ):
        Variant.of("gpt")
    with pytest.raises(ConfigurationError, match="did you mean 'markov_order'"):
        Variant.of("gptfluence", markov_ordr=2)


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("gptfluence", {"heads": "mpl"}, "mlp, linear, concat"),
        ("gptfluence", {"markov_order": 0}, "markov_order"),
        ("gptfluence", {"encoder": 3}, "encoder"),
        ("gptfluence", {"optimizer": "sgd"}, "adam, adamw"),
        ("gptfluence", {"batch_size": 0}, "batch_size"),
        ("gptfluence", {"checkpoint_interval": 0}, "checkpoint_interval"),
        ("gptfluence", {"coarsening": "none"}, "hold, interpolate"),
        ("simfluence", {"learning_rate": 0.0}, "learning_rate"),
        ("simfluence", {"method": "closed"}, "gradient_descent, closed_form"),
        ("simfluence", {"ridge": 0.0}, "ridge"),
    ],
)
def test_bad_hyperparameters_are_named(name: str, arguments: dict, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Variant.of(name, **arguments)


def test_bad_input_to_fit_is_named(train: GPTDynamics, validation: GPTDynamics) -> None:
    with pytest.raises(ConfigurationError, match="no train runs"):
        Simfluence().fit(replace(train, runs=()))
    with pytest.raises(ConfigurationError, match="'bleu' is not known"):
        Simfluence().fit(train, metric="bleu")
    with pytest.raises(ConfigurationError, match="other pool"):
        Simfluence().fit(train, replace(validation, pool=make_pool("other", POOL)))
    with pytest.raises(ConfigurationError, match="different shapes"):
        Simfluence().fit(replace(train, runs=(*train.runs, *make_dynamics(1, steps=5).runs)))
    values = train.runs[1].trajectories["loss"].copy()
    values[3, 2] = np.nan
    runs = (train.runs[0], replace(train.runs[1], trajectories={"loss": values}))
    with pytest.raises(DataError, match="run train-1 holds values of loss"):
        Simfluence().fit(replace(train, runs=runs))


@every_simulator
def test_bad_input_to_simulate_is_named(fitted: dict[str, Simulator], train: GPTDynamics, name: str) -> None:
    simulator, batches, start = fitted[name], train.batches, train.trajectories()
    for wrong, observed, match in [
        (batches, start[:, 0], "observed must be"),
        (batches, start[:3, :1], "observed must be"),
        (batches, start[:, :1, 1:], "pass tests="),
        (batches, start[:, :0], "needs 1 to 9"),
        (batches, start, "needs 1 to 9"),
        (batches, start[:, :1] * np.nan, "not finite"),
        (batches + POOL, start[:, :1], "but the pool has 11"),
        (-2 - (batches + POOL), start[:, :1], "but the pool has 11"),  # masked
        (batches * 1.0, start[:, :1], "whole numbers"),
        (batches[0], start[:, :1], "whole numbers"),
        ([], start[:, :1], "none given"),
    ]:
        with pytest.raises(ConfigurationError, match=match):
            simulator.simulate(wrong, observed)
    with pytest.raises(ConfigurationError, match="not fitted yet"):
        MAKERS[name]().simulate(batches, start[:, :1])


def test_an_encoder_that_gives_the_wrong_shape_is_named(train: GPTDynamics) -> None:
    class Wrong(Hashed):
        name = "wrong"

        def encode(self, pool: TaskPool) -> np.ndarray:
            return super().encode(pool)[1:]

    with pytest.raises(ConfigurationError, match="encoder 'wrong' gave features"):
        GPTfluence(encoder=Wrong()).fit(train)
