"""The main job, with what `import gptfluence` gives alone: record a GPT on texts of one's own, fit, simulate, evaluate."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import gptfluence as gf
from gptfluence.common.errors import ArtifactError, ConfigurationError


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def dynamics(nano, tmp_path_factory, artifacts):
    file = tmp_path_factory.mktemp("own") / "reviews.jsonl"
    words = ["a joy", "a bore", "so good", "so bad", "fine work", "poor work"]
    rows = [{"text": f"{word} {k}", "label": "no" if k % 2 else "yes"} for k in range(4) for word in words]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool, tests = gf.tasks.read_jsonl(file, prompt="Review: {text}", target=" {label}", label="label", test_size=6)
    return gf.record(
        nano.location(),
        pool,
        tests,
        curricula=gf.draw_curricula(pool, runs=5, subset=12, batch=3, epochs=2, seed=0),
        optimizer=gf.AdamW(learning_rate=1e-3),
        artifacts=artifacts,
        jobs=1,
    )


@pytest.fixture(scope="module")
def fitted(dynamics):
    train, validation, _ = dynamics.split(validation=1, test=1)
    return gf.TangentSimulator(checkpoints=[4], coordinates=500).fit(train, validation)


def test_the_tangent_simulator_needs_the_runs_alone(dynamics, fitted, artifacts):
    train, _, test = dynamics.split(validation=1, test=1)
    assert list(artifacts.glob("tangents/*/*"))  # beside the runs
    predicted = fitted.predict(test)
    start = test.trajectories()[:, :1]
    np.testing.assert_array_equal(predicted, fitted.simulate(test.curricula, start))
    results = gf.evaluate(predicted, test, reference=train)
    summary = gf.summarize(results).set_index("statistic")["value"]
    unchanged = gf.evaluate(np.broadcast_to(start, predicted.shape), test, reference=train)
    still = gf.summarize(unchanged).set_index("statistic")["value"]
    assert summary["all_steps_mse"] < still["all_steps_mse"]
    assert fitted.tangents.reference == train.curricula[0]
    what_if = test.curricula[0].without(examples=[int(test.curricula[0].batches[0, 0])])
    assert fitted.simulate([what_if], start[:1]).shape == (1, what_if.steps + 1, len(test.tests))


def test_loaded_runs_know_their_gpt_and_how_it_was_trained(dynamics, fitted, artifacts):
    (folder,) = (artifacts / "dynamics").iterdir()
    loaded = gf.load_dynamics(folder, dynamics.names)
    assert loaded.spec == dynamics.spec
    assert loaded.spec.recording.optimizer == gf.AdamW(learning_rate=1e-3)
    assert loaded.source.artifacts == dynamics.source.artifacts
    assert loaded.source.gpt.identity() == dynamics.source.gpt.identity()
    train, validation, test = loaded.split(validation=1, test=1)
    again = gf.TangentSimulator(checkpoints=[4], coordinates=500).fit(train, validation)
    np.testing.assert_array_equal(again.predict(test), fitted.predict(test))


def test_a_saved_simulator_is_bound_to_the_runs_again(dynamics, fitted, tmp_path):
    train, _, test = dynamics.split(validation=1, test=1)
    light = gf.TangentSimulator.from_pretrained(fitted.save_pretrained(tmp_path, gradients=False)).bind(train)
    np.testing.assert_array_equal(light.predict(test), fitted.predict(test))
    with pytest.raises(ConfigurationError, match="are not those it was fitted on"):
        light.bind(dynamics.of_tests([0, 1]))


def test_a_loaded_simulator_keeps_the_reference_run_of_its_fit(dynamics, fitted, tmp_path):
    """Runs in another order would name another one, along which gradients are not those of the fit."""
    other = replace(dynamics, runs=dynamics.runs[::-1])
    loaded = gf.TangentSimulator.from_pretrained(fitted.save_pretrained(tmp_path)).bind(other)
    assert loaded.tangents.reference == dynamics.curricula[0]
    unseen = gf.tasks.TaskPool("unseen", dynamics.tests.examples[::2])
    start = dynamics.trajectories()[:, :1, ::2]
    expected = fitted.simulate(dynamics.curricula, start, tests=unseen)
    np.testing.assert_array_equal(loaded.simulate(dynamics.curricula, start, tests=unseen), expected)


def test_a_second_fit_takes_gradients_of_its_own_runs(dynamics, artifacts):
    decayed = gf.record(
        dynamics.source.gpt.location(),
        dynamics.pool,
        dynamics.tests,
        curricula=dynamics.curricula,
        optimizer=gf.AdamW(learning_rate=1e-3, weight_decay=0.5),
        artifacts=artifacts.parent / "decayed",
        jobs=1,
    )
    make = lambda: gf.TangentSimulator(checkpoints=[4], coordinates=200)  # noqa: E731
    twice, once = make().fit(dynamics).fit(decayed), make().fit(decayed)
    assert twice.tangents.recording.optimizer.weight_decay == 0.5
    assert twice.tangents.fingerprint == once.tangents.fingerprint
    np.testing.assert_array_equal(twice.predict(decayed), once.predict(decayed))


def test_runs_that_do_not_know_their_gpt_say_what_to_do(dynamics, artifacts, tmp_path):
    (folder,) = (artifacts / "dynamics").iterdir()
    told = folder / "model.json"
    text = told.read_text()
    try:
        told.unlink()  # as in a folder of an earlier version
        old = gf.load_dynamics(folder)
        assert old.source is None
        with pytest.raises(ConfigurationError, match=r"do not say which GPT.*record them again where they are"):
            gf.TangentSimulator().fit(old)
        told.write_text("{")
        with pytest.raises(ArtifactError, match=r"model\.json is damaged.*delete it and record again"):
            gf.load_dynamics(folder)
        told.unlink()
        again = gf.record(  # no run is lost
            dynamics.source.gpt.location(),
            dynamics.pool,
            dynamics.tests,
            curricula=dynamics.curricula,
            optimizer=gf.AdamW(learning_rate=1e-3),
            artifacts=artifacts,
            jobs=1,
        )
        assert again.provenance["runs"] == dynamics.provenance["runs"]
        assert told.read_text() == text
    finally:
        told.write_text(text)
    with pytest.raises(ConfigurationError, match="do not say which GPT"):
        gf.TangentSimulator().fit(replace(dynamics, spec=None))


def test_adapters_can_be_trained(dynamics, tmp_path):
    location = dynamics.source.gpt.location()
    curricula = dynamics.curricula[:2]
    adapted = gf.record(
        location,
        dynamics.pool,
        dynamics.tests,
        curricula=curricula,
        optimizer=gf.AdamW(learning_rate=1e-2),
        lora=gf.LoRA(rank=2, target_modules="all-linear"),
        artifacts=tmp_path,
        jobs=1,
    )
    np.testing.assert_allclose(adapted.trajectories()[:, 0], dynamics.trajectories()[:2, 0], atol=1e-5)
    assert np.ptp(adapted.trajectories(), axis=1).max() > 1e-3
    assert gf.load_dynamics(next((tmp_path / "dynamics").iterdir())).source.gpt.config.lora.rank == 2


def test_equal_curricula_are_an_error(dynamics, tmp_path):
    first, second = dynamics.curricula[:2]
    with pytest.raises(ConfigurationError, match=r"curricula: 0 and 2 \(counted from 0\) are equal"):
        gf.record(
            dynamics.source.gpt.location(),
            dynamics.pool,
            dynamics.tests,
            curricula=[first, second, first],
            artifacts=tmp_path,
        )
