"""Notebooks: paired with their scripts, strict about parameters, and right in what they save."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jupytext
import nbformat
import pandas as pd
import pytest

from gptfluence.common.errors import ConfigurationError
from gptfluence.common.settings import ROOT
from gptfluence.study.study import Study
from gptfluence.workflow import catalogue
from gptfluence.workflow.notebook import NOTEBOOKS, Notebook
from gptfluence.workflow.parameters import check_parameters, declared_parameters

SCRIPTS = sorted(NOTEBOOKS.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_holds_the_cells_of_its_script_and_no_outputs(script: Path):
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    source = jupytext.read(script)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ]
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_notebook_declares_profile_and_output_dir(script: Path):
    declared = declared_parameters(script)
    assert declared["profile"] == ("str", "mini")
    assert declared["output_dir"] == ("str", "")


DECLARED = {"profile": ("str", "mini"), "rates": ("list[float]", []), "runs": ("int", 3)}


@pytest.mark.parametrize(
    ("namespace", "said"),
    [
        ({"profile": "mini", "rates": ["1e-5"], "runs": 3}, "'rates' must be of type list[float]"),
        ({"profile": "mini", "rates": "1e-5", "runs": 3}, "papermill takes a list as -y 'rates: [1e-5]'"),
        ({"profile": "mini", "rates": [], "runs": "3"}, "'runs' must be of type int"),
        ({"profile": "mini", "rates": [], "runs": True}, "'runs' must be of type int"),
        ({"profile": "mini", "rates": [], "runs": 3, "run": 4}, "parameter 'run' is not known.*did you mean 'runs'"),
    ],
)
def test_wrong_parameters_are_named(namespace: dict, said: str):
    with pytest.raises(ConfigurationError, match=said.replace("[", r"\[").replace("]", r"\]")):
        check_parameters("fig", DECLARED, namespace)


def test_modules_and_functions_of_the_notebook_are_not_taken_for_parameters():
    namespace = {"profile": "mini", "rates": [1e-5], "runs": 3, "json": json, "Path": Path, "_": 1, "f": lambda: 0}
    assert check_parameters("fig", DECLARED, namespace) == {"profile": "mini", "rates": [1e-5], "runs": 3}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"tasks": ["sst3"]}, "parameter 'tasks': value 'sst3' is not known; known: rte, sst2"),
        ({"methods": ["gptfluenze"]}, "did you mean 'gptfluence'"),
        ({"profile": "smokey"}, "profile 'smokey' is not known"),
    ],
)
def test_values_that_the_profile_does_not_have_are_errors_with_what_is_allowed(parameters: dict, said: str):
    defaults = {
        name: value for name, (_, value) in declared_parameters(NOTEBOOKS / "tab02_fine_tuning_loss.py").items()
    }
    with pytest.raises(ConfigurationError, match=said):
        Notebook("tab02_fine_tuning_loss", {**defaults, "profile": "smoke", **parameters})


def test_a_try_with_other_parameters_does_not_overwrite_the_cited_outputs():
    defaults = {
        name: value for name, (_, value) in declared_parameters(NOTEBOOKS / "tab02_fine_tuning_loss.py").items()
    }
    cited = Notebook("tab02_fine_tuning_loss", {**defaults, "profile": "smoke"})
    tried = Notebook("tab02_fine_tuning_loss", {**defaults, "profile": "smoke", "tasks": ["rte"]})
    assert cited.folder == ROOT / "figures" / "smoke"
    assert tried.folder == ROOT / "build" / "smoke" / "figures"


def test_all_runs_that_an_output_comes_from_are_named_also_those_of_one_folder():
    defaults = {
        name: value for name, (_, value) in declared_parameters(NOTEBOOKS / "tab02_fine_tuning_loss.py").items()
    }
    notebook = Notebook("tab02_fine_tuning_loss", {**defaults, "profile": "smoke"})
    parts = (("one", {"a": "1"}), ("two", {"a": "2"}), ("one", {"b": "3"}))
    sources = [SimpleNamespace(provenance={"folder": folder, "runs": runs, "device": "cpu"}) for folder, runs in parts]
    assert notebook._provenance(sources)["artifacts"] == {"one": {"a": "1", "b": "3"}, "two": {"a": "2"}}


@pytest.mark.slow
def test_table_2_by_papermill_alone(papermill):
    done, outputs = papermill("tab02_fine_tuning_loss", "tasks: [sst2]")
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.read_csv(outputs / "tab02_fine_tuning_loss.csv").set_index(["method", "statistic"])["value"]
    assert set(table.index.get_level_values("method")) == {
        *("persistence", "mean_trajectory", "counts", "simfluence", "gptfluence")
    }
    assert table["mean_trajectory", "r2_dev"] == pytest.approx(0, abs=1e-4)  # simulated in float32, compared in float64
    for method in ("persistence", "simfluence", "gptfluence"):
        expected = 1 - table[method, "all_steps_mse"] / table["mean_trajectory", "all_steps_mse"]
        assert table[method, "r2_dev"] == pytest.approx(expected, rel=1e-4)
    facts = json.loads((outputs / "tab02_fine_tuning_loss.json").read_text())
    assert "generated tasks" in facts["caption"]
    # the same again: the same bytes
    before = {path.name: path.read_bytes() for path in outputs.iterdir()}
    done, _ = papermill("tab02_fine_tuning_loss", "tasks: [sst2]")
    assert done.returncode == 0
    assert {path.name: path.read_bytes() for path in outputs.iterdir()} == before


@pytest.mark.slow
def test_figure_16_shows_what_was_recorded_and_starts_there(papermill):
    done, outputs = papermill("fig10_18_qualitative", "tasks: [sst2]", "examples: 1")
    assert done.returncode == 0, done.stderr[-2000:]
    frame = pd.read_csv(outputs / "fig16_fine_tuning_loss.csv")
    start = frame[frame["step"] == 0].groupby("panel")["value"]
    assert (start.max() == start.min()).all()  # every method starts at the recorded value
    done, _ = papermill("fig10_18_qualitative", "figure: 19")
    assert done.returncode != 0
    assert "parameter 'figure': value '19' is not known; known: 10, 11" in done.stderr


def graph(folder: Path, store: Path, *arguments: str, overrides: tuple[str, ...] = (), only: str = "*"):
    """Run the graph of profile smoke in a folder of its own."""
    given = ", ".join(f"'{override}'" for override in overrides)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--cores", "2", "--keep-going", "--config", "profile=smoke", f"only={only}", f"overrides=[{given}]"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where `gptfluence` is installed
    environment = {**os.environ, "GPTFLUENCE_ARTIFACTS": str(store), "PATH": path}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_figure_7_finds_everything_in_the_end_and_nothing_before(papermill):
    options = ("flipped_fractions: [0.4]", "inspected: [0.0, 0.5, 1.0]", "runs: 2", "tests: 12")
    done, outputs = papermill("fig07_mislabelled_data", "seeds: [0, 1]", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    frame = pd.read_csv(
        outputs / "fig07_mislabelled_data.csv", keep_default_na=False, na_values={"repeat": "", "value": ""}
    )
    contenders = {"tracin_cp", "gptfluence", "tangent", "own_loss", "random"}
    assert set(frame["series"]) == {*contenders, "paper"}
    means = frame[frame["repeat"].isna()]
    found = means[means["panel"] == "flipped labels found"].groupby(["series", "variant"])["value"]
    assert (found.first() == 0).all()
    assert (found.last() == 1).all()
    accuracy = means[(means["panel"] == "test accuracy") & (means["series"] != "paper")]
    assert set(accuracy["series"]) == contenders
    for end in (0.0, 1.0):  # nothing inspected, or all: the same training for every method
        assert accuracy.loc[accuracy["x"].astype(float) == end, "value"].round(6).nunique() == 1
    facts = json.loads((outputs / "fig07_mislabelled_data.json").read_text())
    assert "2 seeds (twenty by the command in the notebook" in facts["caption"]
    assert "Accuracy on 12 tests: 0." in facts["caption"]
    assert "GPTfluence (untrained) 0." in facts["reading"]
    done, _ = papermill("fig07_mislabelled_data", "task: webnlg")
    assert done.returncode != 0


@pytest.mark.slow
def test_the_whole_smoke_profile_by_the_graph(tmp_path: Path, smoke_store: Path):
    planned = set(catalogue.chosen(Study.load("smoke"), "paper"))  # what goes beyond it has tests of its own
    figures = ROOT / "figures" / "smoke-test"
    try:
        done = graph(tmp_path, smoke_store, "--show-failed-logs", overrides=("name=smoke-test",), only="paper")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        names = {path.stem for path in figures.glob("*.csv")}
        assert names == {*planned, "fig04_markov_order"}  # the latter with table 10
        for path in figures.glob("*.json"):
            facts = json.loads(path.read_text())
            assert "generated tasks" in facts["caption"], path
            assert facts["reading"], path
        again = graph(tmp_path, smoke_store, "--dry-run", overrides=("name=smoke-test",), only="paper")
        assert "Nothing to be done" in again.stdout + again.stderr
        page = (tmp_path / "build" / "smoke-test" / "report" / "index.html").read_text()
        assert all(f'<article id="{name}"' in page for name in names)
        assert "Not everything could be made" not in page
    finally:
        shutil.rmtree(figures, ignore_errors=True)


@pytest.mark.slow
def test_a_failure_in_the_graph_leaves_the_rest_running_and_is_told_at_the_end(tmp_path: Path, smoke_store: Path):
    figures = ROOT / "figures" / "smoke-failing"
    # the closed form cannot choose its ridge without validation runs: figure 17 waits for it in vain, figure 20 shows GPTfluence alone
    overrides = (
        "name=smoke-failing",
        "simulators.simfluence.method=closed_form",
        "settings.fine_tuning.runs={train: 4, validation: 0, test: 2}",
    )
    try:
        done = graph(tmp_path, smoke_store, overrides=overrides, only="fig[12][70]_[fr]*")
        assert done.returncode != 0
        told = done.stderr[done.stderr.rindex("study smoke-failing") :]
        assert "1 of 2 outputs made" in told
        assert "fig17_fine_tuning_bleu could not be made: notebook fig10_18_qualitative" in told
        assert "fit fine_tuning--nano-smoke--webnlg: error: " in told
        assert (figures / "fig20_rte_loss_unseen_training.png").is_file()
        page = (tmp_path / "build" / "smoke-failing" / "report" / "index.html").read_text()
        assert "fig17_fine_tuning_bleu could not be made" in page
        assert '<article id="fig20_rte_loss_unseen_training"' in page
        again = graph(tmp_path, smoke_store, overrides=overrides, only="fig[12][70]_[fr]*")
        assert again.returncode != 0  # the page is no reason to take the study for done
        assert "1 of 2 outputs made" in again.stderr
    finally:
        shutil.rmtree(figures, ignore_errors=True)
