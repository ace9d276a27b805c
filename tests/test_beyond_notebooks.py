"""The notebooks beyond the paper, run in little: what they save holds what it should."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

FITTED = ["mean_trajectory", "simfluence", "low_rank", "tangent"]
NAMED = f"methods: [{', '.join(FITTED)}]"


def saved(result: tuple[subprocess.CompletedProcess, Path], name: str) -> pd.DataFrame:
    done, outputs = result
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads((outputs / f"{name}.json").read_text())
    assert "generated tasks" in facts["caption"]
    assert facts["artifacts"]
    assert (outputs / f"{name}.png").is_file()
    frame = pd.read_csv(outputs / f"{name}.csv", dtype={"left_out": str})
    return frame.assign(variant=frame["variant"].fillna("")) if "variant" in frame else frame


@pytest.mark.slow
def test_tasks(papermill):
    arguments = ("tasks: [sst2, webnlg]", "left_out: 3", "train: 2", "held_out: 1")
    result = papermill("ext00_tasks", *arguments)
    frame = saved(result, "ext00_tasks")
    assert list(frame.columns) == ["model", "task", "regime", "statistic", "value"]
    assert set(frame["regime"]) == {"learning", "slow drift"}
    required = {
        "loss_before",
        "loss_after",
        "first_component_share",
        "counts_share",
        "counts_r2_dev",
        "persistence_ratio",
    }
    accuracy = {"accuracy_before", "accuracy_after"}
    for (task, _), rows in frame.groupby(["task", "regime"]):
        assert required | (accuracy if task == "sst2" else set()) <= set(rows["statistic"])
    facts = json.loads((result[1] / "ext00_statistics.json").read_text())
    assert "Each regime: the first 2 training and 1 held-out runs" in facts["caption"]
    assert "Slow drift: 0.1 times the learning rate" in facts["caption"]
    assert re.search(r"of the 16 of a curriculum, .* If none mattered, \d+\.\d would be expected", facts["caption"])
    assert facts["reading"].startswith("Learning: Accuracy reaches 0.8 on ")
    assert (result[1] / "ext00_statistics.tex").is_file()
    done, _ = papermill("ext00_tasks", "left_out: 2")
    assert done.returncode != 0
    assert (
        "parameter 'left_out': value '2' is not known; known: 0, 3, 4, 5, 6, 7, 8, 9, 10, 11, ..., 1000" in done.stderr
    )


@pytest.mark.slow
def test_explained_deviation(papermill):
    name = "ext01_explained_deviation"
    frame = saved(
        papermill(name, "tasks: [sst2]", "kinds: [alike, biased, longer, unseen_tests]", "runs: 2", NAMED), name
    )
    expected = [
        "setting",
        "model",
        "task",
        "metric",
        "kind",
        "method",
        "variant",
        "runs",
        "statistic",
        "value",
        "low",
        "high",
    ]
    assert list(frame.columns)[:12] == expected
    assert set(frame.loc[frame["statistic"] == "r2_dev_of_run", "run"].dropna()) >= {"test-000", "test-001"}
    r2 = frame[frame["statistic"] == "r2_dev"].set_index(["kind", "method"])["value"]
    assert len(r2) == 4 * len(FITTED) + 1  # and one recorded run of the unseen tests
    assert np.isfinite(r2["unseen_tests", "one_run"])
    assert r2[[("alike", "mean_trajectory"), ("biased", "mean_trajectory")]].abs().max() < 1e-3
    assert np.isnan(r2["longer", "mean_trajectory"])
    assert np.isnan(r2["unseen_tests", "simfluence"])
    assert np.isfinite(r2["longer", "tangent"])
    recorded = "overrides: ['settings.fine_tuning.metrics=[bleu, accuracy]']"
    more = papermill(name, "tasks: [sst2, webnlg]", "kinds: [alike]", NAMED, recorded)
    others = saved(more, "ext01_other_metrics")
    # the command that is kept gives papermill the same lists again
    words = shlex.split(json.loads((more[1] / f"{name}.json").read_text())["command"])
    given = [yaml.safe_load(words[at + 1]) for at, word in enumerate(words) if word == "-y"]
    assert {"overrides": ["settings.fine_tuning.metrics=[bleu, accuracy]"]} in given
    assert set(others["metric"]) == {"loss", "accuracy", "bleu"}
    assert "ceiling" in set(others["method"])
    assert set(saved(more, name)["metric"]) == {"loss", "accuracy", "bleu"}
    done, _ = papermill(name, "kinds: [sortet]")
    assert done.returncode != 0
    assert "did you mean 'sorted'" in done.stderr


@pytest.mark.slow
def test_horizon_and_runs_needed(papermill):
    frame = saved(papermill("ext02_horizon", "tasks: [sst2, webnlg]", NAMED), "ext02_horizon")
    assert frame.groupby(["task", "method"]).size().eq(2 * 8).all()
    assert np.isfinite(frame["mse"]).all()
    frame = saved(papermill("ext03_runs_needed", "tasks: [sst2]", "counts: [1, 4, 25]", NAMED), "ext03_runs_needed")
    assert set(frame["fitted_on"]) == {1, 4}  # the profile has no 25
    assert set(frame["method"]) == set(FITTED)


@pytest.mark.slow
def test_ablation(papermill):
    followed = "overrides: ['simulators.tangent={coordinates: 400, checkpoints: [2]}']"
    name, arguments = "ext07_ablation", ("kinds: [alike, sorted, unseen_tests]", "runs: 1")
    frame = saved(papermill(name, *arguments, followed), name)
    assert set(frame["method"]) == {"tangent"}
    frame["variant"] = frame["variant"].fillna("")
    r2 = frame[frame["statistic"] == "r2_dev"].pivot(index="variant", columns="kind", values="value")
    unfollowed, both = "follow_reference=False", "checkpoints=[] use_corrections=False"
    (quarter,) = [variant for variant in r2.index if variant.startswith("coordinates=")]
    assert set(r2.index) == {"", quarter, "checkpoints=[]", "use_corrections=False", both, unfollowed}
    assert r2.notna().all(axis=None)
    refitted = r2.drop(index=unfollowed)
    assert refitted["alike"].nunique() == len(refitted)  # each part makes a difference
    # only unseen tests are followed, and without corrections it does not matter which tests were fitted on
    known = ["alike", "sorted"]
    assert (r2.loc[unfollowed, known] == r2.loc["", known]).all()
    assert r2.loc[unfollowed, "unseen_tests"] != r2.loc["", "unseen_tests"]
    less = frame[frame["statistic"] == "r2_dev_difference"]
    less = less.pivot(index="variant", columns="kind", values="value").loc[r2.index.drop("")]
    np.testing.assert_allclose(less, r2.loc[less.index] - r2.loc[""], atol=1e-6)
    alone = r2.loc[both]
    assert alone["alike"] == pytest.approx(alone["unseen_tests"], abs=1e-5)
    # this profile has no reference run to do without, and keeps no pool of this task apart
    frame = saved(papermill(name, "kinds: [alike, unseen_pool]"), name)
    assert set(frame["variant"].fillna("").str.partition("=")[0]) == {"", "coordinates", "use_corrections"}


@pytest.mark.slow
def test_leaving_out(papermill):
    unchosen = (
        "overrides: ['settings.fine_tuning.runs.validation=0']"  # validation would choose the mean trajectory here
    )
    arguments = ("tasks: [sst2]", "sizes: [2, 4]", "draws: 3", NAMED, unchosen)
    frame = saved(papermill("ext04_leave_out", *arguments), "ext04_leave_out")
    table = frame.pivot(index="left_out", columns="method", values="value")
    assert set(table.index) == {"2", "4", "all"}
    assert table["mean_trajectory"].isna().all()
    assert table[["tangent", "tracin_cp_10", "grad_dot"]].abs().le(1).all(axis=None)


@pytest.mark.slow
def test_bands(papermill):
    arguments = ("tasks: [sst2]", "kinds: [alike, sorted]", "runs: 1", "calibration: 2", "level: 0.7", NAMED)
    frame = saved(papermill("ext05_bands", *arguments), "ext05_bands")
    share = frame[frame["statistic"] == "coverage"]
    assert share["value"].between(0, 1).all()
    assert set(share["unit"]) == {"path", "run"}
    wide = frame.pivot_table(index=["kind", "method", "statistic"], columns="unit", values="value")
    assert (wide["run"] >= wide["path"] - 1e-9).all()  # safer and wider


@pytest.mark.slow
def test_adapters(papermill):
    arguments = ("models: [nano-smoke]", "tasks: [sst2]", "train: 2", "held_out: 2", "sets: 3", "times: 10")
    frame = saved(papermill("ext08_adapters", *arguments), "ext08_adapters")
    assert set(frame["way"]) == {"full", "lora"}
    wide = frame.pivot(index=["way", "method"], columns="kind", values="value")
    assert wide.xs("mean_trajectory", level="method")["left out"].isna().all()
    assert wide.xs("mean_trajectory", level="method")[["alike", "few"]].abs().lt(1e-5).all(axis=None)
    assert wide.loc[("full", "tangent")].notna().all()
    # two runs of so few steps teach adapters next to nothing: validation may choose the mean, which ranks nothing
    assert wide.loc[("lora", "tangent"), ["alike", "few"]].notna().all()
    assert set(frame.loc[frame["kind"] == "left out", "runs"]) == {3}


@pytest.mark.slow
def test_search_and_what_if(papermill):
    arguments = ("candidates: 12", "best: 2", "methods: [low_rank, tangent]", "tests: [0, 3]")
    frame = saved(papermill("ext06_curriculum_search", *arguments), "ext06_curriculum_search")
    assert set(frame["choice"]) == {"best", "hardest", "easiest", "random"}
    assert np.isfinite(frame[["simulated", "recorded"]]).all(axis=None)
    frame = saved(papermill("explore_what_if", "examples: 2"), "explore_what_if")
    assert frame["panel"].nunique() == 3
    start = frame[frame["step"] == 0].groupby("panel")["value"]
    assert (start.max() - start.min() < 1e-6).all()  # what was, what would be and what was trained start alike


@pytest.mark.slow
def test_what_if_from_the_shell(tmp_path: Path):
    command = [
        sys.executable,
        "-c",
        "from gptfluence.workflow.cli import main; main()",
        "what-if",
        "--profile",
        "smoke",
    ]
    command += ["--task", "sst2", "--set", "settings.fine_tuning.metrics=[loss]", "--jobs", "1"]
    options = {"capture_output": True, "text": True, "env": {**os.environ, "GPTFLUENCE_ARTIFACTS": str(tmp_path)}}
    picture = tmp_path / "answer.png"
    arguments = ["--repeat", "3", "--times", "4", "--method", "mean_trajectory", "--figure", str(picture)]
    done = subprocess.run([*command, *arguments, "--drop", "99"], **options)
    assert done.returncode == 1
    assert "drop: there is no training example 99; choose 0 to" in done.stderr
    done = subprocess.run([*command, "--last", "3", *arguments[4:], "--check"], **options)
    if "is not in this curriculum" in done.stderr:  # the run may not have drawn example 3
        arguments = arguments[4:]
        done = subprocess.run([*command, *arguments, "--check"], **options)
    assert done.returncode == 0, done.stderr[-1000:]
    assert "change, trained" in done.stdout
    assert picture.stat().st_size > 1000
