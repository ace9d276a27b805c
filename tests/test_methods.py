"""Methods as profiles name them: typed options, variants, what a fit is named after, and how a method is added."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from gptfluence.common.errors import ConfigurationError
from gptfluence.common.settings import ROOT
from gptfluence.profile.load import load_profile
from gptfluence.recording.dynamics import GPTDynamics, Source
from gptfluence.recording.record import Wanted, record_missing
from gptfluence.recording.settings import AdamW, DrawnCurricula, Recording
from gptfluence.simulators import METHODS
from gptfluence.simulators.base import Predictor, Simulator, fit_key
from gptfluence.simulators.options import Variant, options_of, read_options
from gptfluence.tasks.base import fingerprint

every_kind = pytest.mark.parametrize("kind", METHODS)


@every_kind
def test_a_row_says_where_the_class_is_and_the_class_how_it_is_called(kind):
    found = METHODS[kind].load()
    assert issubclass(found, Predictor)
    assert found.name == kind
    assert METHODS[kind].printed


@every_kind
def test_options_have_the_fields_and_the_defaults_of_the_class(kind):
    made, options = METHODS[kind].load()(), options_of(kind)()
    assert options.kind == kind
    names = [item.name for item in fields(made) if item.init]
    assert list(options.arguments()) != ["kind"]
    assert sorted(options.arguments()) == sorted(names)
    assert options.arguments() == {name: getattr(made, name) for name in names}


def complaint(override: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_profile("smoke", [override])
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "place", "allowed"),
    [
        ("gptfluence.markov_ordr=2", "gptfluence.markov_ordr", "did you mean 'markov_order'?"),
        ("gptfluence.markov_order=0", "gptfluence.markov_order", "must be 1 or more, not 0"),
        ("gptfluence.markov_order=two", "gptfluence.markov_order", "valid integer (got 'two')"),
        ("gptfluence.encoder=3", "gptfluence.encoder", "valid string (got 3)"),
        ("simfluence.ridge=a", "simfluence.ridge", "valid number (got 'a')"),
        ("simfluence.standardize=1", "simfluence.standardize", "valid boolean (got 1)"),
        ("simfluence.method=closed", "simfluence.method", "known: gradient_descent, closed_form"),
        ("tangent.checkpoints=[a]", "tangent.checkpoints", "valid integer (got 'a')"),
        ("tangent.mass=2", "tangent.mass", "at most 1, not 2"),
        ("tracin_cp_10.checkpoints=true", "tracin_cp_10.checkpoints", "a number is needed, not true"),
        ("tangent={tangents: {coordinates: 3}}", "tangent.tangents", "one level higher now"),
        ("gptfluence=3", "gptfluence", "must be a mapping of options"),
        ("mine={}", "mine", "mine: {kind: ...}"),
        ("mine={kind: simfluenc}", "mine", "did you mean 'simfluence'?"),
        ("tracin_cp_all.scale=oracle", "tracin_cp_all", "call it e.g. 'tracin_cp_all_oracle'"),
    ],
)
def test_what_is_wrong_in_a_profile_is_said_with_its_place_and_what_is_allowed(override, place, allowed):
    message = complaint(f"simulators.{override}")
    assert f"profile 'smoke': simulators.{place}: " in message
    assert allowed in message


def test_all_that_is_wrong_is_said_at_once():
    message = complaint("simulators.simfluence={max_epoch: 1, seed: a}")
    assert "simulators.simfluence.max_epoch: " in message
    assert "simulators.simfluence.seed: " in message


def test_a_variant_differs_from_its_method_in_the_options_it_names():
    plain = Variant("mine", "", read_options("mine", {"kind": "gptfluence", "max_epochs": 3}))
    second = plain.with_(markov_order=2)
    assert (second.method, second.variant, second.kind) == ("mine", "markov_order=2", "gptfluence")
    assert str(second) == "mine markov_order=2"
    made = second.create()
    assert (made.markov_order, made.max_epochs) == (2, 3)
    assert plain.create().markov_order == 1
    assert len({plain, second, plain.with_(markov_order=2), plain.with_()}) == 2
    with pytest.raises(ConfigurationError, match=r"simulators\.mine\.markov_order: .* must be 1 or more"):
        plain.with_(markov_order=0)


def test_an_option_that_is_set_again_is_named_once():
    """Also where its value is that of the entry: figures and tables of a series of values name each."""
    plain = Variant.of("gptfluence", max_epochs=3)
    assert plain.with_(markov_order=1).variant == "markov_order=1"
    again = plain.with_(markov_order=2).with_(max_epochs=4).with_(markov_order=3)
    assert again.variant == "markov_order=3 max_epochs=4"
    assert (again.create().markov_order, again.create().max_epochs) == (3, 4)
    assert again == plain.with_(markov_order=3, max_epochs=4)
    read = Variant("gptfluence", "markov_order=2", plain.with_(markov_order=2).options)  # as from a file
    assert read.with_(max_epochs=4).variant == "markov_order=2 max_epochs=4"


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("mine", {"kind": "tracin_cp_all", "direction": "update"}, "call it e.g. 'tracin_cp_all_update'"),
        ("grad_dot_oracle", {"kind": "grad_dot"}, "must not say oracle"),
        ("tracin_cp_update", {"direction": "gradient"}, "must not say update"),
        ("my_update", {"kind": "simfluence"}, "are told the answer"),
        ("mine", {"kind": ["simfluence"]}, "is not known; known: gptfluence, simfluence"),
    ],
)
def test_a_name_tells_who_is_told_the_answer(name, options, problem):
    with pytest.raises(ConfigurationError, match=problem):
        read_options(name, options)


def test_a_kind_that_is_not_known_is_answered_with_all_that_are():
    assert set(METHODS) == {
        *("gptfluence", "simfluence", "tangent", "low_rank", "counts", "persistence", "mean_trajectory"),
        *("tracin_cp_all", "tracin_cp_10", "tracin_cp_update", "grad_dot"),
    }
    known = "known: gptfluence, simfluence, tangent, low_rank, counts, persistence, mean_trajectory, tracin_cp_all, "
    with pytest.raises(ConfigurationError, match=known + "tracin_cp_10, tracin_cp_update, grad_dot"):
        Variant.of("gpt")
    with pytest.raises(ConfigurationError, match="did you mean 'markov_order'"):
        Variant.of("gptfluence", markov_ordr=2)


def test_methods_say_what_they_can_do():
    kinds = {name: method.load() for name, method in METHODS.items()}
    assert [name for name, kind in kinds.items() if kind.trivial] == ["counts", "persistence", "mean_trajectory"]
    assert {name for name, kind in kinds.items() if kind.trivial != METHODS[name].trivial} == set()
    replayed = {"tracin_cp_all", "tracin_cp_10", "tracin_cp_update", "grad_dot"}
    assert {name for name, kind in kinds.items() if kind.replays} == replayed
    assert {name for name, kind in kinds.items() if kind.metrics == ("loss",)} == replayed
    assert {name for name, kind in kinds.items() if "encoder" in kind.needs} == {"gptfluence", "low_rank"}
    assert {name for name, kind in kinds.items() if "tangents" in kind.needs} == {"tangent"}
    assert {name for name, kind in kinds.items() if kind.refuses_unseen} == {"simfluence"}
    told = {name for name, kind in kinds.items() if kind().told_the_answer}
    assert told == {"tracin_cp_update"}
    assert Variant.of("grad_dot").create().told_the_answer is False
    assert read_options("grad_dot_oracle", {"kind": "grad_dot", "scale": "oracle"}).create().told_the_answer


# --- what recorded runs and fits are named after ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dynamics(nano, sst2, tmp_path_factory) -> GPTDynamics:
    return record_missing(wanted(nano, sst2, tmp_path_factory.mktemp("artifacts")), jobs=1)


def wanted(gpt, texts, artifacts: Path, **options) -> Wanted:
    return Wanted(
        setting="fine_tuning",
        texts=texts,
        source=Source(gpt, artifacts),
        recording=Recording(optimizer=AdamW(learning_rate=2e-3)),
        drawn=DrawnCurricula(subset_size=8, batch_size=2, epochs=1),
        seed=0,
        names=["train-000", "train-001", "validation-000", "test-000"],
        **options,
    )


def test_a_folders_name_is_the_hash_of_exactly_these_values(nano, sst2, tmp_path):
    """Names stay as they were, so that what was recorded by earlier versions is found."""
    plain = {
        "format": 1,
        "setting": "fine_tuning",
        "task": "sst2",
        "pool_fingerprint": sst2.pool.fingerprint,
        "tests_fingerprint": sst2.tests.fingerprint,
        "model": {"name": nano.name, "identity": nano.identity()},
        "recording": {
            "optimizer": {
                "learning_rate": 0.002,
                "betas": [0.9, 0.999],
                "eps": 1e-06,
                "weight_decay": 0.001,
                "schedule": "linear_decay",
                "warmup_steps": 0,
                "max_gradient_norm": None,
            },
            "loss_tokens": "target",
            "train_tokens": "target",
            "precision": "fp32",
            "truncation": "error",
            "record_pool": False,
            "token_budget": 1024,
        },
        "curriculum": {"subset_size": 8, "batch_size": 2, "epochs": 1},
        "seed": 0,
    }
    assert wanted(nano, sst2, tmp_path).spec.to_json() == plain
    more = wanted(nano, sst2, tmp_path, metrics=["loss", "bleu", "accuracy"], ends_only=True).spec
    generation = {"max_new_tokens": 64, "temperature": 0.2, "top_p": 0.95, "every": 1}
    expected = {**plain, "metrics": ["accuracy", "bleu", "loss"], "ends_only": True, "generation": generation}
    assert more.to_json() == expected
    assert "generation" not in wanted(nano, sst2, tmp_path, metrics=["loss", "accuracy"]).spec.to_json()


@pytest.mark.parametrize("kind", ["persistence", "mean_trajectory", "counts", "simfluence", "gptfluence", "low_rank"])
def test_a_fit_is_named_after_exactly_these_values(dynamics, kind):
    class Encoder:
        name, fingerprint = "made-up", "abc"

        def encode(self, pool):
            return np.eye(len(pool), 3, dtype=np.float32)

    simulator = METHODS[kind].load()().bind(dynamics, load_encoder=lambda _: Encoder())
    assert isinstance(simulator, Simulator)
    encodes = "encoder" in simulator.needs
    sums = dynamics.provenance["runs"]
    expected = {
        "simulator": [kind, {**simulator.hyperparameters(), "encoder": "abc" if encodes else None}],
        "coordinates": None,
        "metric": "loss",
        "dynamics": dynamics.provenance["folder"],
        "tests": dynamics.tests.fingerprint,
        "runs": [[sums["train-000"], sums["train-001"]], [sums["validation-000"]]],
        "format": {"low_rank": 4, "simfluence": 4, "gptfluence": 4}.get(kind, 2),
    }
    assert fit_key(simulator, dynamics, "loss") == fingerprint(expected)
    if encodes:
        assert simulator.hyperparameters()["encoder"] == "made-up"


def test_a_simulator_predicts_what_it_was_fitted_for(dynamics):
    train, validation, test = dynamics.split()
    fitted = METHODS["mean_trajectory"].load()().fit(train, validation)
    expected = fitted.simulate(test.curricula, test.trajectories()[:, :2])
    np.testing.assert_array_equal(fitted.predict(test, 2), expected)
    with pytest.raises(ConfigurationError, match="fitted on the loss, not 'bleu'"):
        fitted.predict(test, metric="bleu")


# --- to add a method ---------------------------------------------------------------------------------------------------------

FADING = '''
"""Losses that fall by the same share at every step."""

from dataclasses import dataclass

import numpy as np

from gptfluence.common.errors import ConfigurationError
from gptfluence.simulators.base import FitReport, Simulator


@dataclass(kw_only=True, eq=False)
class Fading(Simulator):
    """share: what is left of a loss after a run"""

    name = "fading"

    share: float = 0.5

    def __post_init__(self):
        if self.share <= 0:
            raise ConfigurationError(f"fading: share must be positive, not {self.share}")

    def _fit(self, train, validation, metric):
        self._steps = train.batches.shape[1]
        return FitReport()

    def _prepare(self, pool, tests):
        return None

    def _rollout(self, prepared, batches, observed):
        kept = self.share ** (np.arange(batches.shape[1] + 1) / self._steps)
        return (observed[:, :1] * kept[None, :, None]).astype(np.float32)

    def _arrays(self):
        return {"steps": np.array([self._steps])}

    def _restore(self, arrays):
        self._steps = int(arrays["steps"][0])
'''
ROW = '        Method("fading", "simulators.fading:Fading", "Fading", Line("#000000", ":", "")),\n'
USE = """
import sys
import gptfluence as gf

study = gf.Study.load("smoke", ["simulators.slowly={kind: fading, share: 0.9}"], artifacts=sys.argv[1], jobs=1)
campaign = study.campaign("fine_tuning", "sst2")
variant = study.variant("slowly")
found = campaign.predict([variant, variant.with_(share=0.5)])
first, second = found.values.values()
print(gf.__file__, (first[:, -1] / first[:, 0]).mean(), (second[:, -1] / second[:, 0]).mean())
"""


def test_a_method_is_a_class_and_a_row(tmp_path):
    """What CONTRIBUTING says, done to a copy of the package: nothing else is to be changed."""
    package = tmp_path / "gptfluence"
    shutil.copytree(ROOT / "gptfluence", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (package / "simulators" / "fading.py").write_text(FADING)
    table = package / "simulators" / "methods.py"
    before, last, after = table.read_text().rpartition('        Method("grad_dot"')
    assert last
    table.write_text(before + ROW + last + after)
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path / "artifacts")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    where, first, second = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path)
    assert (float(first), float(second)) == (pytest.approx(0.9, abs=1e-3), pytest.approx(0.5, abs=1e-3))
