"""Published runs in a study: split, evaluated and tabulated as recorded ones are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gptfluence import paper
from gptfluence.common.errors import ArtifactError, ConfigurationError, ModelError
from gptfluence.common.settings import ROOT
from gptfluence.profile.load import load_profile
from gptfluence.published import importing
from gptfluence.published.importing import import_published
from gptfluence.recording.settings import Runs
from gptfluence.study.study import Study
from published_archive import archive, in_folder, load


@given(st.sets(st.integers(0, 99), min_size=1, max_size=40), st.data())
def test_by_default_the_highest_seeds_are_held_out_and_no_run_is_in_two_parts(present, data):
    present = sorted(present)
    train = data.draw(st.integers(1, len(present)))
    validation = data.draw(st.integers(0, len(present) - train))
    test = data.draw(st.integers(0, len(present) - train - validation))
    parts = importing._default_seeds(Path("x"), present, Runs(train=train, validation=validation, test=test))
    assert [len(parts[part]) for part in ("train", "validation", "test")] == [train, validation, test]
    listed = [seed for part in parts.values() for seed in part]
    assert listed == sorted(set(listed))
    assert list(parts["test"]) == present[len(present) - test :]


def test_with_32_seeds_the_default_split_is_the_papers():
    parts = importing._default_seeds(Path("x"), list(range(1, 33)), Runs())
    assert sorted([*parts["train"], *parts["validation"]]) == list(range(1, 28))
    assert list(parts["test"]) == [28, 29, 30, 31, 32]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    root = tmp_path_factory.mktemp("imported")
    import_published(in_folder(archive("raw", seeds=range(1, 9)), root / "given"), root)
    return root


SMALL = [
    "settings.fine_tuning.runs={train: 5, validation: 1, test: 2}",
    "simulators.gptfluence={encoder: index, max_epochs: 3}",
    "simulators.simfluence.max_epochs=3",
    "settings.fine_tuning.tasks=[rte]",
]


def study(root, *overrides):
    return Study.load("released", [*SMALL, *overrides], artifacts=root)


def test_a_study_splits_imported_runs_as_it_splits_recorded_ones(imported):
    dynamics = study(imported).campaign(task="rte").dynamics()
    train, validation, test = dynamics.split()
    assert train.names == [f"train-00{seed}" for seed in range(1, 6)]
    assert (validation.names, test.names) == (["validation-006"], ["test-007", "test-008"])
    stored_run = load(imported).select(["seed-007"]).runs[0]
    np.testing.assert_array_equal(test.runs[0].trajectories["loss"], stored_run.trajectories["loss"])
    assert set(dynamics.provenance["runs"]) == set(dynamics.names)


def test_a_profile_may_say_which_seeds(imported):
    seeds = "models.published-410m.seeds={{rte: {{train: [3, 8], validation: [{}], test: [1]}}}}"
    dynamics = study(imported, seeds.format(2)).campaign(task="rte").dynamics()
    assert dynamics.names == ["train-003", "train-008", "validation-002", "test-001"]
    with pytest.raises(ConfigurationError, match="8 is listed twice"):
        study(imported, seeds.format(8)).campaign(task="rte").dynamics()
    with pytest.raises(ConfigurationError, match=r"no run with seed 50 .*there are 1-8"):
        study(imported, seeds.format(50)).campaign(task="rte").dynamics()


def test_every_method_is_evaluated_on_the_held_out_runs(imported):
    results = study(imported).campaign(task="rte").evaluate()
    assert set(results["method"]) == {"persistence", "mean_trajectory", "counts", "simfluence", "gptfluence"}
    assert set(results["run"]) == {"test-007", "test-008"}
    test = study(imported).campaign(task="rte").dynamics().split()[2].trajectories().astype(np.float64)
    mse = np.square(test[:, 1:] - test[:, :1]).mean(axis=(1, 2))  # persistence, by hand
    found = results[(results["method"] == "persistence") & (results["statistic"] == "all_steps_mse")]["value"]
    np.testing.assert_allclose(found, mse)


def test_what_is_not_imported_is_said_with_the_remedy(imported, tmp_path):
    with pytest.raises(
        ArtifactError, match=r"no published runs of pythia-410m on rte .*gptfluence import-published PATH"
    ):
        study(tmp_path).campaign(task="rte").dynamics()
    with pytest.raises(ArtifactError, match=r"on sst2 .*imported so far: fine_tuning rte pythia-410m \(seen pool\)"):
        study(imported, "settings.fine_tuning.tasks=[sst2]").campaign(task="sst2").dynamics()
    with pytest.raises(ConfigurationError, match=r"asks for 25 \+ 2 \+ 5 runs, but .* has 8 \(seeds 1-8\)"):
        Study.load("released", artifacts=imported).campaign(task="rte").dynamics()
    with pytest.raises(ConfigurationError, match="task 'sst3' is not known"):
        study(imported).campaign(task="sst3").dynamics()


def test_several_series_are_told_apart_by_a_pattern(tmp_path):
    content = archive("raw", seeds=(1, 2))
    content |= {name.replace("lr-5e-7", "lr-1e-6"): text for name, text in content.items() if name.startswith("raw")}
    import_published(in_folder(content, tmp_path / "given"), tmp_path)
    small = "settings.fine_tuning.runs={train: 1, validation: 0, test: 1}"
    with pytest.raises(ConfigurationError, match=r"2 series fit: .*`series`"):
        study(tmp_path, small).campaign(task="rte").dynamics()
    dynamics = study(tmp_path, small, "models.published-410m.series='*lr-1e-6'").campaign(task="rte").dynamics()
    assert dynamics.provenance["spec"]["published"]["series"].endswith("lr-1e-6")


def test_nothing_is_ever_trained_for_published_runs(imported):
    with pytest.raises(ConfigurationError, match=r"'published-410m' has published runs only and cannot be trained"):
        study(imported).campaign(task="rte").record(study(imported).campaign(task="rte").dynamics().curricula[0])
    with pytest.raises(ModelError, match="only its published runs are here"):
        study(imported).model("published-410m").load()
    with pytest.raises(ConfigurationError, match=r"tasks\.rte: its texts come with the published runs"):
        study(imported).texts.known("rte")


def test_the_profile_has_the_papers_hyperparameters():
    profile, tables = load_profile("released"), paper.hyperparameters()
    for name, reported in (("gptfluence", "gptfluence_fine_tuning"), ("simfluence", "simfluence")):
        options, theirs = profile.simulators[name].arguments(), tables[reported]
        assert options["weight_decay"] == theirs["l2_lambda"]
        assert options["optimizer"] == theirs["optimizer"]["name"].lower()
        assert options["warmup_steps"] == theirs["schedule"]["warmup_steps"]
        assert (options["max_epochs"], options["seed"]) == (theirs["max_epochs"], theirs["seed"])
    assert profile.simulators["simfluence"].arguments()["learning_rate"] == tables["simfluence"]["learning_rate"]
    runs = profile.settings["fine_tuning"].runs
    assert runs.model_dump() == tables["fine_tuning_gpt"]["runs"]


@pytest.mark.slow
def test_table_2_is_made_from_imported_runs(imported, tmp_path):
    command = [
        sys.executable,
        "-m",
        "papermill",
        ROOT / "notebooks" / "tab02_fine_tuning_loss.ipynb",
        tmp_path / "out.ipynb",
    ]
    parameters = yaml.safe_dump({"tasks": ["rte"], "overrides": SMALL, "methods": ["persistence", "simfluence"]})
    options = ["-k", "python3", "-p", "profile", "released", "-p", "output_dir", tmp_path, "-y", parameters]
    environment = {**os.environ, "GPTFLUENCE_ARTIFACTS": str(imported)}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / "tab02_fine_tuning_loss.csv").read_text()
    assert "persistence" in table
    assert "simfluence" in table
    provenance = json.loads((tmp_path / "tab02_fine_tuning_loss.json").read_text())
    assert load(imported).provenance["folder"] in json.dumps(provenance)
