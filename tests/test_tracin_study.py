"""TracIn-CP and Grad-Dot in a study: scaled, predicted, cached, and clear about what they cannot do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gptfluence as gf
from gptfluence.common.errors import ArtifactError, ConfigurationError, ModelError
from gptfluence.simulators import applicable, replay
from gptfluence.simulators.options import Variant, read_options
from gptfluence.simulators.tracin import GradDot, TracIn, TracIn10, TracInAll

# --- scale and prediction ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seed=st.integers(0, 999), runs=st.integers(1, 3), steps=st.integers(1, 5), tests=st.integers(1, 4))
def test_the_scale_is_the_least_squares_one_and_predictions_follow_the_recursion(seed, runs, steps, tests):
    rng = np.random.default_rng(seed)
    influence, losses = rng.normal(size=(runs, steps, tests)), rng.normal(size=(runs, steps + 1, tests))
    scale = replay.fit_scale(influence, losses)
    design = np.cumsum(influence, axis=1).reshape(-1, 1)
    expected = np.linalg.lstsq(design, (losses[:, :1] - losses[:, 1:]).reshape(-1), rcond=None)[0]
    assert scale == pytest.approx(float(expected[0]), rel=1e-6, abs=1e-9)
    known = rng.integers(1, steps + 1)
    predicted = replay.predict(influence, losses[:, :known], scale)
    for run in range(runs):
        value = losses[run, known - 1]
        np.testing.assert_allclose(predicted[run, :known], losses[run, :known], rtol=1e-5, atol=1e-5)
        for step in range(known, steps + 1):
            value = value - scale * influence[run, step - 1]
            np.testing.assert_allclose(predicted[run, step], value, rtol=1e-4, atol=1e-4)
    fitted, still = replay.predict(influence, losses[:, :1], scale), np.broadcast_to(losses[:, :1], losses.shape)
    assert np.square(fitted - losses).sum() <= np.square(still - losses).sum() * (1 + 1e-5) + 1e-9


def test_without_influence_nothing_moves():
    assert replay.fit_scale(np.zeros((1, 2, 3)), np.ones((1, 3, 3))) == 0


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tracin_cp_all", {"parameters": "last"}, "'last' is not known; known: last_layer, all"),
        ("tracin_cp_all", {"checkpoints": 0}, "checkpoints must be all, final or a number of 1 or more, not 0"),
        ("tracin_cp_all", {"checkpoints": "first"}, "checkpoints must be all, final or a number"),
        ("tracin_cp_all", {"scale": "test"}, "scale 'test' is not known; known: none, validation, oracle"),
        ("tracin_cp_all", {"parameter": "all"}, "option 'parameter' is not known.*did you mean 'parameters'"),
        ("tracin_cp_update", {"checkpoints": 10}, "direction update .* checkpoints must be all, not 10"),
        ("tracin_cp_all", {"scale": "oracle"}, "must say oracle.*call it e.g. 'tracin_cp_all_oracle'"),
        ("tracin_cp_oracle", {"kind": "tracin_cp_all"}, "must not say oracle"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(name, options, said):
    with pytest.raises(ConfigurationError, match=said):
        read_options(name, options)


def test_the_usual_names_and_their_print():
    assert read_options("tracin_cp_10", {}).create() == TracIn10()
    assert TracIn10().influence_options == TracIn(checkpoints=10).influence_options
    assert read_options("grad_dot", {}).create() == GradDot()
    assert GradDot().influence_options == TracIn(checkpoints="final").influence_options
    assert read_options("grad_dot_oracle", {"kind": "grad_dot", "scale": "oracle"}).create().scale == "oracle"
    assert gf.names.method("tracin_cp_update") == "TracIn-CP (update)"
    assert gf.names.method("grad_dot_oracle") == "Grad-Dot (oracle)"


# --- in a study -----------------------------------------------------------------------------------------------------------

ROWS = (
    "simulators.tracin_cp_all={}",
    "simulators.tracin_cp_10={}",
    "simulators.grad_dot={}",
    "simulators.tracin_cp_update={}",
    "simulators.tracin_cp_oracle={kind: tracin_cp_all, scale: oracle}",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    small = ("settings.fine_tuning.runs.train=1", "settings.fine_tuning.curriculum.epochs=1")
    small = (*small, "settings.fine_tuning.runs.validation=2")
    return gf.Study.load("smoke", [*ROWS, *small], artifacts=tmp_path_factory.mktemp("artifacts"), jobs=1)


METHODS = ["tracin_cp_all", "tracin_cp_10", "grad_dot", "tracin_cp_update", "tracin_cp_oracle"]


def predictions(study, methods):
    """The held-out runs, and by the name of each method what it predicts."""
    found = study.campaign("fine_tuning", "sst2").predict(methods)
    return found.recorded, {variant.method: values for variant, values in found.values.items()}


def test_a_study_predicts_with_them_and_replays_once(study, monkeypatch):
    test, predicted = predictions(study, ["persistence", *METHODS])
    assert list(predicted) == ["persistence", *METHODS]
    losses = test.trajectories()
    dynamics = study.campaign("fine_tuning", "sst2").dynamics()
    along = TracInAll().bind(dynamics)._along
    for name in METHODS:
        assert predicted[name].shape == losses.shape
        np.testing.assert_array_equal(predicted[name][:, 0], losses[:, 0])
    validation, second = (replace(dynamics, runs=(run,)) for run in dynamics.split()[1].runs)
    with pytest.raises(ArtifactError):  # one run is enough for a scale, and a replay is dear
        along.load(TracInAll(), second)
    scale = replay.fit_scale(along.load(TracInAll(), validation), validation.trajectories())
    influence = along.load(TracInAll(), test)
    np.testing.assert_allclose(predicted["tracin_cp_all"], replay.predict(influence, losses[:, :1], scale))
    np.testing.assert_allclose(predicted["tracin_cp_10"], predicted["tracin_cp_all"])  # 4 steps: every state is kept
    errors = {name: np.square(values - losses).mean(axis=(1, 2)) for name, values in predicted.items()}
    assert (errors["tracin_cp_oracle"] <= errors["tracin_cp_all"] + 1e-9).all()
    assert (errors["tracin_cp_oracle"] <= errors["persistence"] + 1e-9).all()

    def fail(*_, **__):
        raise AssertionError("replayed twice")

    monkeypatch.setattr(replay, "influences", fail)
    _, again = predictions(study, METHODS)
    for name in METHODS:
        np.testing.assert_array_equal(again[name], predicted[name])


def test_a_damaged_influence_is_set_aside_and_made_again(study):
    _, predicted = predictions(study, ["tracin_cp_all"])
    folder = next((study.artifacts / "influence").glob("gradient-all-last_layer-sst2-*"))
    (folder / "influence.parquet").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"set aside as .*made again"):
        _, again = predictions(study, ["tracin_cp_all"])
    np.testing.assert_array_equal(again["tracin_cp_all"], predicted["tracin_cp_all"])


def test_a_gpt_that_cannot_be_replayed_is_refused_before_it_is_recorded(tmp_path):
    adapters = "models.nano-smoke.lora={rank: 2, target_modules: [embed_in]}"
    campaign = gf.Study.load("smoke", [*ROWS, adapters], artifacts=tmp_path).campaign("fine_tuning", "sst2")
    for ask in (campaign.check_gpt, campaign.predict):
        with pytest.raises(ModelError, match=r"no parameter of its last transformer block .*parameters: all"):
            ask(["tracin_cp_all"])
    assert not (tmp_path / "dynamics").exists()
    campaign.check_gpt(["gptfluence"])


def test_what_these_methods_cannot_do_is_said(study):
    with pytest.raises(ConfigurationError, match="'tracin_cp_all' is no simulator"):
        study.campaign("fine_tuning", "sst2").simulator("tracin_cp_all")
    none = study.with_overrides("settings.fine_tuning.runs.validation=0")
    with pytest.raises(
        ConfigurationError, match=r"'tracin_cp_all': its scale is fitted on a validation run.*scale: none"
    ):
        predictions(none, ["tracin_cp_all"])
    assert set(predictions(none, ["tracin_cp_update"])[1]) == {"tracin_cp_update"}


def test_metrics_other_than_the_loss_are_left_to_others(study):
    tracin_cp, grad_dot, gptfluence = (Variant.of(name) for name in ("tracin_cp_all", "grad_dot", "gptfluence"))
    assert applicable([tracin_cp, gptfluence], "bleu") == [gptfluence]
    assert applicable([tracin_cp, gptfluence], "loss") == [tracin_cp, gptfluence]
    assert applicable([tracin_cp, gptfluence], "loss", known=False) == [gptfluence]
    with pytest.raises(ConfigurationError, match="'tracin_cp_all' predicts loss, not 'bleu'"):
        applicable([tracin_cp, grad_dot], "bleu")
    with pytest.raises(ConfigurationError, match="'tracin_cp_all' predicts the held-out runs on known examples only"):
        applicable([tracin_cp, grad_dot], "loss", known=False)
    bound = TracInAll().bind(study.campaign("fine_tuning", "sst2").dynamics())
    with pytest.raises(ConfigurationError, match="'tracin_cp_all' predicts loss, not 'bleu'"):
        bound.predict(study.campaign("fine_tuning", "sst2").dynamics(), metric="bleu")
