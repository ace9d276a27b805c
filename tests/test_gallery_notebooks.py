"""The notebooks of figures 1, 2, 8 and 10 to 30 with other tasks, models and methods: right in what they save.

Their cells are executed here, in one process; `test_notebooks.py` has kernels do it.
"""

from __future__ import annotations

import json
from pathlib import Path

import jupytext
import numpy as np
import pandas as pd
import pytest

from gptfluence.common.errors import ConfigurationError
from gptfluence.study.study import Study
from gptfluence.workflow import catalogue
from gptfluence.workflow.notebook import NOTEBOOKS

pytestmark = pytest.mark.slow
TRIVIAL = {"persistence", "mean_trajectory", "counts"}


@pytest.fixture
def notebook(tmp_path: Path, smoke_store: Path, monkeypatch: pytest.MonkeyPatch):
    """Execute the cells of a notebook with some parameters replaced; returns the CSV and the provenance of its output."""
    monkeypatch.setenv("GPTFLUENCE_ARTIFACTS", str(smoke_store))

    def run(name: str, **parameters) -> tuple[pd.DataFrame, dict]:
        namespace: dict = {"__name__": "notebook"}
        for cell in jupytext.read(NOTEBOOKS / f"{name}.py").cells:
            if cell.cell_type == "code":
                exec(cell.source, namespace)
                if "parameters" in cell.metadata.get("tags", []):
                    namespace |= {"profile": "smoke", "output_dir": str(tmp_path), **parameters}
        (facts,) = tmp_path.glob("*.json")
        assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".json", ".pdf", ".png"}
        return pd.read_csv(facts.with_suffix(".csv")), {"name": facts.stem, **json.loads(facts.read_text())}

    return run


def check_trajectories(frame: pd.DataFrame, facts: dict, *, panels: int, series: set[str]) -> None:
    """What holds for every gallery: whole lines of every method that start at what was recorded."""
    assert frame["panel"].nunique() == panels
    assert set(frame["series"]) == {"recorded", *series}
    sizes = frame.groupby(["panel", "series"]).size()
    assert sizes.nunique() == 1
    assert len(sizes) == panels * (len(series) + 1)
    recorded = frame[frame["series"] == "recorded"]
    assert np.isfinite(recorded["value"]).all()
    start = frame[frame["observed"]].groupby("panel")["value"]
    assert (start.max() - start.min()).abs().max() < 1e-6
    assert set(frame.loc[frame["observed"], "step"]) == {0}
    assert facts["reading"].count("held-out trajectories") >= 1
    assert "generated tasks" in facts["caption"]


@pytest.mark.parametrize(
    ("parameters", "method"),
    [({"task": "webnlg", "examples": 1}, "gptfluence"), ({"task": "sst2", "method": "simfluence"}, "simfluence")],
)
def test_figure_1(notebook, parameters, method):
    frame, facts = notebook("fig01_overview", **parameters)
    assert set(frame.loc[frame["panel"] == "simulation", "series"]) == {"recorded", method}
    assert frame[frame["panel"] == "training loss"]["y"].notna().all()
    followed = frame[frame["panel"] == "simulation"]["example"].nunique()
    assert followed == parameters.get("examples", 2)
    batches = frame[frame["panel"] == "curriculum"].groupby("x").size()
    assert (batches == 4).all()
    assert facts["name"] == "fig01_overview"
    assert "One of 4 training runs" in facts["reading"]


def test_figure_2_shows_what_the_profile_tests(notebook):
    frame, facts = notebook("fig02_example_trajectories", examples=2, methods=[*TRIVIAL, "simfluence", "gptfluence"])
    check_trajectories(frame, facts, panels=4, series=TRIVIAL | {"simfluence", "gptfluence"})
    assert set(frame["metric"] + " " + frame["task"]) == {"loss rte", "bleu webnlg"}  # smoke has no WMT16
    assert "(a) loss on RTE, (b) BLEU on WebNLG" in facts["caption"]


def test_figure_2_of_another_model_and_method(notebook):
    frame, facts = notebook("fig02_example_trajectories", model="nano-smoke-1b", methods=["gptfluence"])
    check_trajectories(frame, facts, panels=2, series={"mean_trajectory", "gptfluence"})
    assert "nano-smoke-1b" in facts["caption"]
    assert "in its order" in facts["reading"] or "order as there" in facts["reading"] or "R²dev" in facts["reading"]


@pytest.mark.parametrize("unseen", ["training", "both"])
def test_figure_8(notebook, unseen):
    frame, facts = notebook("fig08_unseen_examples", unseen=unseen, examples=1)
    check_trajectories(frame, facts, panels=2, series=TRIVIAL | {"gptfluence"})
    tests = {example.id for task in ("rte", "webnlg") for example in Study.load("smoke").texts.known(task).tests}
    assert frame["example"].isin(tests).all() == (unseen == "training")


@pytest.mark.parametrize(
    ("parameters", "name", "panels", "series"),
    [
        ({"figure": 17}, "fig17_fine_tuning_bleu", 2, TRIVIAL | {"simfluence", "gptfluence"}),
        (
            {"figure": 16, "tasks": ["sst2"], "methods": ["gptfluence"], "examples": 3},
            "fig16_fine_tuning_loss",
            3,
            {"gptfluence", "mean_trajectory"},
        ),
        (
            {"figure": 11, "tasks": ["rte", "webnlg"], "examples": 1},
            "fig11_instruction_tuning_loss_1b",
            2,
            TRIVIAL | {"simfluence", "gptfluence"},
        ),
        (
            {"figure": 14, "model": "nano-smoke", "methods": ["persistence"], "examples": 1},
            "fig14_instruction_tuning_rouge_l_410m",
            1,
            {"persistence", "mean_trajectory"},
        ),
    ],
)
def test_figures_10_to_18(notebook, parameters, name, panels, series):
    frame, facts = notebook("fig10_18_qualitative", **parameters)
    assert facts["name"] == name
    check_trajectories(frame, facts, panels=panels, series=series)


@pytest.mark.parametrize("figure", [19, 27, 30])
def test_figures_19_to_30(notebook, figure):
    frame, facts = notebook("fig19_30_unseen_qualitative", figure=figure, examples=2)
    row = catalogue.row_of("fig19_30_unseen_qualitative", {"figure": figure})
    [(_, task)], [unseen] = row.panels, row.unseen
    assert facts["name"] == row.name
    check_trajectories(frame, facts, panels=2, series=TRIVIAL | {"gptfluence"})
    assert set(frame["task"]) == {task}
    known = {example.id for example in Study.load("smoke").texts.known(task).tests}
    assert frame["example"].isin(known).any() == (unseen == "training")
    (source,) = facts["artifacts"]
    assert "unseen" in source


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("fig10_18_qualitative", {"figure": 17, "tasks": ["sst2"]}, "parameter 'tasks': value 'sst2' is not known; known: webnlg"),
        ("fig10_18_qualitative", {"figure": 9}, "parameter 'figure': value '9' is not known"),
        ("fig10_18_qualitative", {"figure": "16"}, "'figure' must be of type int"),
        ("fig10_18_qualitative", {"figure": 12}, "figure 12 is of a model of size 410m.*by the parameter `model`: nano-smoke"),
        ("fig10_18_qualitative", {"figure": 16, "model": "nano-smoke-1b"}, "parameter 'model': value 'nano-smoke-1b'"),
        ("fig19_30_unseen_qualitative", {"figure": 18}, "parameter 'figure': value '18' is not known"),
        ("fig19_30_unseen_qualitative", {"methods": ["simfluence"]}, "holds training examples that it was not fitted on"),
        ("fig08_unseen_examples", {"unseen": "trainings"}, "did you mean 'training'"),
        ("fig08_unseen_examples", {"examples": 0}, "parameter 'examples': value '0'"),
        ("fig01_overview", {"examples": 4}, "parameter 'examples': value '4'"),
        ("fig01_overview", {"method": "persistence"}, "persistence is not fitted in epochs"),
        ("fig01_overview", {"method": "gptfluenze"}, "did you mean 'gptfluence'"),
        ("fig02_example_trajectories", {"overrides": ["settings.instruction_tuning.test_tasks=[sst2]"]}, "nothing to draw"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_errors_that_say_what_is_allowed(notebook, name, parameters, said):
    with pytest.raises(ConfigurationError, match=said):
        notebook(name, **parameters)
