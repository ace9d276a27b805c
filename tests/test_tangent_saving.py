"""The tangent simulator after a save, next to other tangents and in a study; clear about bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open

from gptfluence.common.errors import ConfigurationError
from gptfluence.gradients.tangents import TangentFeatures
from gptfluence.recording.curriculum import draw_curricula
from gptfluence.simulators.base import Simulator
from gptfluence.simulators.tangent import TangentSimulator
from gptfluence.study.study import Study
from gptfluence.tasks import TaskPool
from tangent_runs import RECORDING, dynamics, features, fitted  # noqa: F401
from toy_dynamics import start


def test_saved_and_loaded_it_predicts_the_same_without_a_gpt(dynamics, fitted, tmp_path):
    loaded = Simulator.from_pretrained(fitted.save_pretrained(tmp_path))
    assert loaded.tangents is None
    assert loaded._taken_by == fitted.tangents.fingerprint
    for curricula in (dynamics.curricula, draw_curricula(12, runs=2, subset=4, batch=2, epochs=1)):
        begin = start(dynamics)[:1]
        np.testing.assert_array_equal(loaded.simulate(curricula, begin), fitted.simulate(curricula, begin))
    unseen = TaskPool("other", dynamics.tests.examples[:3])
    with pytest.raises(ConfigurationError, match=r"unseen tests other needs the GPT's gradients"):
        loaded.simulate(dynamics.curricula, start(dynamics)[:1, :, :3], tests=unseen)


def test_saved_without_gradients_it_loads_them_from_where_they_are(dynamics, fitted, features, gpt, sst2, tmp_path):
    whole, light = (fitted.save_pretrained(tmp_path / name, gradients=name == "whole") for name in ("whole", "light"))
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in (whole, light)]
    assert sizes[1] < 0.5 * sizes[0]
    loaded = Simulator.from_pretrained(light)
    assert isinstance(loaded, TangentSimulator)
    with pytest.raises(ConfigurationError, match=r"saved without gradients; call bind\(dynamics\) .*load_gradients"):
        loaded.simulate(dynamics.curricula, start(dynamics))
    with pytest.raises(ConfigurationError, match=f"examples of {sst2.pool.name} are not those it was fitted on; give"):
        loaded.load_gradients(sst2.pool, sst2.pool)
    loaded.load_gradients(sst2.pool, sst2.tests)
    with pytest.raises(ConfigurationError, match="loading gradients needs the GPT's gradients"):
        loaded.simulate(dynamics.curricula, start(dynamics))
    redrawn = TangentFeatures(gpt, sst2.pool, RECORDING, coordinates=1500)
    moved = np.roll(features.coordinates.index, 1)
    redrawn._coordinates = replace(features.coordinates, index=moved)
    loaded.bind_features(redrawn)
    with pytest.raises(ConfigurationError, match="drawn other coordinates than it was fitted with"):
        loaded.simulate(dynamics.curricula, start(dynamics))
    loaded.bind_features(features)
    again = loaded.simulate(dynamics.curricula, start(dynamics))
    np.testing.assert_array_equal(again, fitted.simulate(dynamics.curricula, start(dynamics)))
    assert loaded.forwards == fitted.forwards
    copied = Simulator.from_pretrained(loaded.save_pretrained(tmp_path / "again"))  # whole once more
    np.testing.assert_array_equal(copied.simulate(dynamics.curricula, start(dynamics)), again)


def test_tangents_that_are_not_those_of_the_fit_are_refused(dynamics, nano, sst2, webnlg, tmp_path):
    make = lambda **options: TangentFeatures(nano.load(), sst2.pool, RECORDING, coordinates=100, **options)  # noqa: E731
    fitted = TangentSimulator().bind_features(make()).fit(dynamics)
    loaded = Simulator.from_pretrained(fitted.save_pretrained(tmp_path))
    begin, tests = start(dynamics)[..., :2], TaskPool("other", dynamics.tests.examples[:2])
    expected = fitted.simulate(dynamics.curricula, begin, tests=tests)
    loaded.bind_features(make())
    np.testing.assert_array_equal(loaded.simulate(dynamics.curricula, begin, tests=tests), expected)
    loaded.bind_features(make(seed=1))
    with pytest.raises(ConfigurationError, match="it was fitted with the tangents"):
        loaded.simulate(dynamics.curricula, begin, tests=tests)
    elsewhere = TangentFeatures(
        nano.load(), webnlg.pool, RECORDING, coordinates=100, reference=dynamics.curricula[0], checkpoints=[3]
    )
    with pytest.raises(ConfigurationError, match="whose examples are not those of sst2/pool"):
        TangentSimulator().bind_features(elsewhere).fit(dynamics)


def test_bad_input_is_explained(dynamics, features, gpt, sst2, webnlg):
    with pytest.raises(
        ConfigurationError, match=r"needs the GPT's gradients, but the runs of sst2 do not say which .*record"
    ):
        TangentSimulator().fit(dynamics)
    with pytest.raises(TypeError, match="tangents"):
        TangentSimulator(tangents=3)
    for option, value, said in (
        ("coordinates", 0, "coordinates must be 1 or more, not 0"),
        ("candidates", 0, "candidates must be 1 or more"),
        ("mass", 1.5, "mass must be above 0 and at most 1, not 1.5"),
        ("checkpoints", [0, 2], "checkpoints must be steps from 1 on, not 0"),
        ("seed", -1, "seed must be 0 or more"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            TangentSimulator(**{option: value})
    faster = RECORDING.model_copy(update={"optimizer": RECORDING.optimizer.model_copy(update={"learning_rate": 1.0})})
    with pytest.raises(ConfigurationError, match=r"run train-000 was recorded with learning rates from 0\.002 on"):
        TangentSimulator().bind_features(TangentFeatures(gpt, sst2.pool, faster, coordinates=50)).fit(dynamics)
    other = [replace(run, trajectories={"loss": run.trajectories["loss"] + 1}) for run in dynamics.runs]
    with pytest.raises(ConfigurationError, match=r"before training are up to 1 off the recorded ones"):
        TangentSimulator().bind_features(features).fit(replace(dynamics, runs=other))


def test_a_study_makes_caches_and_reloads_it(tmp_path):
    overrides = {
        "simulators.tangent": {"coordinates": 200, "checkpoints": [2]},
        "settings.fine_tuning.tasks": ["sst2"],
    }
    study = Study.load("smoke", overrides, artifacts=tmp_path, jobs=1)
    campaign = study.campaign("fine_tuning", "sst2")
    first = campaign.simulator("tangent")
    pool, tests = campaign.dynamics().pool, campaign.dynamics().tests
    taken = list(tmp_path.glob("tangents/*/*/tangents.safetensors"))
    assert len(taken) == 2 * (1 + len(pool) + len(tests))  # coordinates and examples, at two checkpoints
    (stored,) = tmp_path.glob("simulators/tangent-*/model.safetensors")
    with safe_open(stored, "numpy") as arrays:
        assert not [key for key in arrays.keys() if key.startswith(("pool.", "tests."))]  # the cache has them  # noqa: SIM118
    again = campaign.simulator("tangent")
    test, (predicted,) = campaign.held_out(), campaign.predict(["tangent"]).values.values()
    np.testing.assert_array_equal(again.simulate(test.curricula, start(test)), predicted)
    np.testing.assert_array_equal(first.simulate(test.curricula, start(test)), predicted)
    unseen = TaskPool("other", test.tests.examples[:2])  # a study's simulator finds its GPT by itself; it follows a run
    assert not list(tmp_path.glob("tangents/*-losses/*"))
    assert again.simulate(test.curricula, start(test)[..., :2], tests=unseen).shape[2] == 2
    assert again._chosen["unseen"].correction.coefficients.any() == bool(list(tmp_path.glob("tangents/*-losses/*")))
    with pytest.raises(
        ConfigurationError,
        match=r"simulators\.tangent\.coordinate: .*'coordinate' is not known; known: coordinates, candidates, mass, checkp",
    ):
        study.with_overrides("simulators.tangent.coordinate=3")
    with pytest.raises(
        ConfigurationError, match=r"simulators\.tangent\.tangents: its options stand one level higher now"
    ):
        study.with_overrides("simulators.tangent.tangents={coordinates: 3}")
