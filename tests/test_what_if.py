"""What if, on a very small study: changes of a curriculum, answered by simulating and by training."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from typer.testing import CliRunner

from beyond_study import small_study  # noqa: F401
from gptfluence.common.errors import ConfigurationError
from gptfluence.experiments.what_if import Changes, ask
from gptfluence.recording.curriculum import Curriculum
from gptfluence.tasks.base import Example, TaskPool
from gptfluence.workflow.cli import app

BASE = Curriculum(np.arange(12).reshape(6, 2) % 8)


def test_changes_are_made_in_their_order():
    assert Changes().curriculum(BASE) == BASE
    assert str(Changes()) == "unchanged"
    assert str(Changes(drop=(0, 3), repeat=(1,), times=2)) == "without 0, 3; 1 2 times more"
    many = Changes(drop=tuple(range(11)), repeat=tuple(range(12)), last=tuple(range(13)))
    assert str(many) == "without 11 examples; 12 examples 8 times more; 13 examples last"
    changed = Changes(drop=(0,), repeat=(1,), times=2, first=(5,), last=(2, 3)).curriculum(BASE)
    sequence = changed.batches.ravel().tolist()
    assert 0 not in sequence
    assert sequence.count(1) == 4
    assert sequence[0] == 5
    assert set(sequence[-4:]) == {2, 3}
    with pytest.raises(ConfigurationError, match="example 9 is not in this curriculum"):
        BASE.moved([9], front=True)


def test_rewriting_changes_one_target_and_says_what_is_wrong():
    choices = (" no", " yes")
    pool = TaskPool("p", (Example("a", "A", " no", label=0, choices=choices), Example("b", "B", " free text")))
    assert Changes().pool(pool) is pool
    new = Changes(rewrite=("0= yes", "1= other = words")).pool(pool)
    assert (new[0].target, new[0].label, new[1].target) == (" yes", 1, " other = words")
    for entry, said in (("0= maybe", "is no label"), ("7= yes", "examples 0 to 1"), ("yes", "expected POSITION=")):
        with pytest.raises(ConfigurationError, match=said):
            Changes(rewrite=(entry,)).pool(pool)


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        (Changes(rewrite=("yes",)), {}, "expected POSITION="),
        (Changes(drop=(999,)), {}, "drop: there is no training example 999"),
        (Changes(), {"level": 2}, "level must be above 0"),
        (Changes(), {"method": "nothing"}, "'nothing' is not known"),
    ],
)
def test_what_is_wrong_with_a_question_is_said_before_runs_are_recorded(study, monkeypatch, changes, options, said):
    campaign = study.campaign("fine_tuning", "sst2")
    monkeypatch.setattr(type(campaign), "dynamics", lambda *_: pytest.fail("recorded"))
    with pytest.raises(ConfigurationError, match=said):
        ask(campaign, changes, **options)


def test_a_question_is_answered_by_simulating_and_by_training(study):
    campaign = study.campaign("fine_tuning", "sst2")
    base = study.campaign("fine_tuning", "sst2").held_out().runs[0]
    inside = int(base.curriculum.batches[0, 0])
    example = study.texts.known("sst2").pool[inside]
    other = next(choice for choice in example.choices if choice != example.target)
    changes = Changes(repeat=(inside,), times=8, rewrite=(f"{inside}={other}",))
    answer = ask(campaign, changes, level=0.8)
    assert answer.curriculum.steps == base.curriculum.steps + 2
    assert answer.truth.pool[inside].target == other
    truth = answer.truth.trajectories()[0]
    np.testing.assert_array_equal(answer.predicted[0], truth[0])
    # a simulator that knows gradients sees what a flipped label does; without validation none chooses the mean trajectory
    tangent = campaign.with_(runs={"validation": 0}).simulator("tangent")
    errors = [
        np.square(tangent.simulate([answer.curriculum], truth[None, :1], pool=pool)[0] - truth).mean()
        for pool in (answer.pool, None)
    ]
    assert errors[0] < errors[1]
    row = answer.table().iloc[0]
    assert row["change, trained"] == pytest.approx((truth[-1] - base.trajectories["loss"][-1]).mean())
    frame = answer.frame(2)
    assert frame["panel"].nunique() == 3
    assert set(frame["series"]) == {"before", "recorded", "tangent"}
    quick = ask(campaign, Changes(drop=(inside,)), train=False)
    assert quick.truth is None
    assert "change, trained" not in quick.table()
    with pytest.raises(ConfigurationError, match="no training example 999"):
        ask(campaign, Changes(repeat=(999,)), train=False)
    with pytest.raises(ConfigurationError, match="no held-out run 2; choose 0 to 1"):
        ask(campaign, Changes(), run=2)


def test_the_shell_asks_what_python_asks(monkeypatch, tmp_path):
    asked = []

    def answer(*given, **options):
        asked.append(inspect.signature(ask).bind(*given, **options).arguments)
        raise ConfigurationError("asked")

    monkeypatch.setattr("gptfluence.experiments.what_if.ask", answer)
    shell = ["what-if", "--profile", "smoke", "--task", "rte", "--drop", "3", "--repeat", "1", "--check"]
    result = CliRunner().invoke(app, [*shell, "--figure", str(tmp_path / "a.png")])
    assert str(result.exception) == "asked"
    assert asked[0]["campaign"].task == "rte"
    assert asked[0]["changes"] == Changes(drop=(3,), repeat=(1,))
    assert (asked[0]["run"], asked[0]["train"]) == (0, True)
