"""The search for options: reproducible draws, scores on validation runs alone, a choice over tasks, and no work done twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from gptfluence.common.errors import ConfigurationError
from gptfluence.experiments import tuning
from gptfluence.simulators.low_rank import LowRank
from gptfluence.simulators.options import Variant
from gptfluence.study.study import Study
from gptfluence.workflow.cli import app

TASKS = ["rte", "sst2"]
SPACES = {
    "low_rank": [{"rank": (1, 3)}],
    "simfluence": [
        {"method": ("closed_form",), "target": ("value", "deviation")},
        {"max_epochs": (1, 40), "patience": (2,), "learning_rate": (0.1,)},
    ],
}


@pytest.mark.parametrize("kind", ["gptfluence", "simfluence", "low_rank", "tangent"])
def test_a_search_begins_with_the_profiles_entry_and_goes_on_with_settings_that_exist(kind: str) -> None:
    few, many = (tuning.drawn(kind, 96, count) for count in (5, 30))
    assert few[0] == {}
    assert len({json.dumps(one) for one in many}) == len(many)
    assert [json.dumps(one) for one in few if one in many] == [
        json.dumps(one) for one in few
    ]  # more add, and change none
    for options in many:
        Variant.of(kind, **options)


def test_fits_to_the_end_of_their_schedule_are_tried_too() -> None:
    for kind in ("gptfluence", "simfluence"):
        in_epochs = [one for one in tuning.drawn(kind, 96, 24) if "max_epochs" in one]
        assert {one["patience"] for one in in_epochs} == {30, None}
        assert {one["max_epochs"] for one in in_epochs} == {30, 100, 300}


def test_a_setting_far_behind_on_the_same_tasks_is_tried_on_no_more() -> None:
    def request(task: str, *options: tuple, method: str = "simfluence") -> tuning.Request:
        return tuning.Request(("smoke", (), Path()), "fine_tuning", task, "nano", "loss", method, options)

    def of(task: str, error: float) -> dict:
        return {"errors": {task: {"it": error, "mean_trajectory": 2.0, "persistence": 9.0}}}

    good, near, bad = ((("ridge", value),) for value in (1.0, 2.0, 3.0))
    scored = {request("rte"): of("rte", 9.0), request("rte", *good): of("rte", 1.0)}
    scored |= {request("rte", *near): of("rte", 1.1), request("rte", *bad): of("rte", 1.4)}
    scored |= {request("rte", *bad, method="low_rank"): of("rte", 1.4)}
    found = {options: tuning._hopeless(request("sst2", *options), scored) for options in (good, near, bad, ())}
    assert found == {good: False, near: False, bad: True, (): False}  # the profile's entry is scored in any case
    assert not tuning._hopeless(request("sst2", *bad, method="low_rank"), scored)
    assert not tuning._hopeless(request("rte", ("ridge", 4.0)), scored)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return Study.load(
        "smoke", ["settings.fine_tuning.tasks=[rte, sst2]"], artifacts=tmp_path_factory.mktemp("a"), jobs=2
    )


@pytest.fixture(scope="module")
def tuned(study: Study) -> tuning.Tuned:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "SPACES", SPACES)
        return tuning.tune(study, seconds=600)


@pytest.mark.slow
def test_every_setting_is_scored_on_the_validation_runs_of_every_task(study: Study, tuned: tuning.Tuned) -> None:
    assert set(tuned.by_task.groupby("method")["variant"].nunique()) == {3, 5}
    assert set(tuned.by_task["task"]) == set(TASKS)
    dynamics = tuning.with_validation(study.campaign("fine_tuning", "sst2")).dynamics("loss")
    train, validation, test = dynamics.split()
    assert (len(train), len(validation), len(test)) == (4, 5, 0)
    assert not list((study.artifacts / "dynamics").glob("*/test-*"))  # held-out runs are not even recorded
    simulator = LowRank().bind(dynamics, load_encoder=study.encoder).fit(train, validation)
    truth = validation.trajectories()
    error, of_mean, of_start = (
        np.square(one - truth)[:, 1:].mean()
        for one in (simulator.predict(validation), train.trajectories().mean(axis=0), truth[:, :1])
    )
    row = tuned.by_task.query("method == 'low_rank' and variant == '' and task == 'sst2'").iloc[0]
    assert row["relative_to_mean"] == pytest.approx(error / of_mean, rel=1e-4)
    assert row["relative_to_persistence"] == pytest.approx(error / of_start, rel=1e-4)


@pytest.mark.slow
def test_the_setting_is_chosen_over_all_tasks_together(tuned: tuning.Tuned) -> None:
    for method, part in tuned.settings.groupby("method"):
        each = tuned.by_task[tuned.by_task["method"] == method]
        errors = each.pivot(index="variant", columns="task", values="relative_to_mean").dropna()
        means = np.log(errors).mean(axis=1)
        assert set(part["variant"]) == set(means.index)
        assert part.loc[part["chosen"], "variant"].tolist() == [means.idxmin()]
        assert each.loc[each["chosen"], "variant"].tolist() == [means.idxmin()] * len(TASKS)
    ended = tuned.by_task.set_index(["method", "variant", "task"])["ended"].fillna("")
    assert ended["low_rank", "rank=3", "rte"] == ended["simfluence", "method=closed_form target=value", "rte"] == ""
    assert ended["simfluence", "max_epochs=1 patience=2 learning_rate=0.1", "rte"] == "max_epochs"
    assert ended["simfluence", "max_epochs=40 patience=2 learning_rate=0.1", "rte"] == "patience"
    assert set(tuned.settings["ended"]) <= {"", "0 of 2 by patience", "1 of 2 by patience", "2 of 2 by patience"}


@pytest.mark.slow
def test_what_was_scored_is_not_fitted_again(
    study: Study, tuned: tuning.Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = study.artifacts / "tuning"
    before = {path: path.stat().st_mtime_ns for path in scores.iterdir()}
    assert len(before) == len(tuned.by_task)  # one fit, one score
    lost = min(before)
    lost.unlink()
    monkeypatch.setattr(tuning, "SPACES", SPACES)
    again = tuning.tune(study, seconds=600)
    after = {path: path.stat().st_mtime_ns for path in scores.iterdir()}
    assert {path for path in before if after[path] != before[path]} == {lost}
    assert again.settings.query("chosen")["variant"].tolist() == tuned.settings.query("chosen")["variant"].tolist()
    with pytest.raises(ConfigurationError, match="no setting of simfluence was scored on all tasks in time"):
        tuning.tune(study, methods=["simfluence"], seconds=0)
    with pytest.raises(ConfigurationError, match="method 'persistence' is not known; known: simfluence, low_rank"):
        tuning.tune(study, methods=["persistence"])


@pytest.mark.slow
def test_the_outcome_can_be_put_into_the_profile(study: Study, tuned: tuning.Tuned, tmp_path) -> None:
    *_, facts = tuning.save(tuned, study, "fine_tuning", tmp_path, command="gptfluence tune", parameters={})
    assert json.loads(facts.read_text())["command"] == "gptfluence tune"
    text = (tmp_path / "tuning_fine_tuning.yaml").read_text()
    assert text.startswith("# Made by: gptfluence tune\n# at commit ")
    chosen = YAML(typ="safe").load(text)["settings"]["fine_tuning"]["simulators"]
    assert set(chosen) == {"low_rank", "simfluence"}
    with_them = study.with_overrides(f"settings.fine_tuning.simulators={json.dumps(chosen)}")
    for row in tuned.settings[tuned.settings["chosen"]].itertuples():
        expected = study.variant(row.method).with_(**tuned.options[row.method, row.variant]).options
        assert with_them.variant(row.method, "fine_tuning").options == expected
        assert with_them.campaign("fine_tuning").variant(row.method).options == expected
        assert with_them.variant(row.method, "instruction_tuning") == study.variant(row.method)


@pytest.mark.slow
def test_the_command_writes_what_it_found(study: Study, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTFLUENCE_ARTIFACTS", str(study.artifacts))
    monkeypatch.setattr(tuning, "SPACES", SPACES)
    options = ["--profile", "smoke", "--task", "sst2", "--jobs", "1", "--output-dir", str(tmp_path)]
    result = CliRunner().invoke(app, ["tune", "low_rank", *options])
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {
        f"tuning_fine_tuning{suffix}" for suffix in (".csv", "_by_task.csv", ".yaml", ".json")
    }
