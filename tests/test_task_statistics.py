"""The numbers of ext00 on a very small study, their table, figure and reading."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from beyond_study import small_study  # noqa: F401
from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import task_panels
from gptfluence.drawing.readings_beyond import of_tasks
from gptfluence.experiments import task_statistics
from gptfluence.experiments.leave_out import retrained
from gptfluence.scoring import variation

ALWAYS = {"loss_before", "loss_after", "first_component_share", "counts_share", "counts_r2_dev", "persistence_ratio"}
ACCURACY = {"accuracy_before", "accuracy_after"}
LEFT_OUT = {"pool_examples_that_matter", "move_ratio"}


@pytest.fixture(scope="module")
def measured(study) -> task_statistics.Measured:
    campaigns = study.campaigns("fine_tuning", ["sst2", "webnlg"])
    return task_statistics.of_tasks(campaigns, slow_drift=0.1, train=3, held_out=1, left_out=3)


def test_every_task_has_its_statistics_in_both_regimes(measured):
    frame = measured.frame
    assert list(frame.columns) == ["model", "task", "regime", "statistic", "value"]
    found = frame.groupby(["task", "regime"])["statistic"].agg(set)
    assert found["sst2", "learning"] == ALWAYS | ACCURACY | LEFT_OUT
    assert found["sst2", "slow drift"] == ALWAYS | ACCURACY
    assert found["webnlg", "learning"] == ALWAYS | LEFT_OUT  # free text has no accuracy
    assert found["webnlg", "slow drift"] == ALWAYS
    assert not frame.duplicated(["task", "regime", "statistic"]).any()
    wide = frame.pivot(index=["task", "regime"], columns="statistic", values="value")
    assert wide[["first_component_share", "counts_share"]].stack().between(0, 1).all()
    assert wide.loc["sst2", list(ACCURACY)].stack().between(0, 1).all()


def test_a_profile_of_slow_drift_has_no_other_regime(study):
    campaign = study.with_overrides("regime=slow drift").campaign("fine_tuning", "webnlg")
    frame = task_statistics.of_tasks([campaign], slow_drift=0.1, train=3, held_out=1, left_out=3).frame
    assert set(frame["regime"]) == {"slow drift"}
    assert set(frame["statistic"]) == ALWAYS | LEFT_OUT
    figure = task_panels.plot_tasks(frame, training_runs=3)
    assert figure.legends[0].get_texts()[0].get_text() == "slow drift"


def test_both_regimes_are_described_by_as_many_runs(study, measured):
    campaign = study.campaign("fine_tuning", "sst2")
    train, _, test = campaign.dynamics().split()
    assert len(train) > 3  # of which the first three count
    chosen = replace(train, runs=(*train.runs[:3], *test.runs[:1]))
    values = measured.frame.query("task == 'sst2' and regime == 'learning'").set_index("statistic")["value"]
    assert values["first_component_share"] == pytest.approx(variation.first_component_share(chosen))
    assert values["counts_r2_dev"] == pytest.approx(variation.counts_r2_dev(chosen))
    with pytest.raises(
        ConfigurationError, match=r"9 train runs of sst2 are asked for, and \d are recorded; ask for fewer"
    ):
        task_statistics.of_tasks([campaign], slow_drift=0.1, train=9, held_out=1, left_out=0)


def test_the_caption_says_how_many_examples_matter_by_chance(study):
    said = task_statistics.chance(study.campaign("fine_tuning", "sst2"), 12)
    size = study.setting().curriculum.subset_size
    expected = [size * variation.moved_by_chance(12, freedom) for freedom in (None, 4)]
    assert f"of the {size} of a curriculum" in said
    assert f"{expected[0]:.1f} would be expected by chance where noise is normal, and {expected[1]:.1f} where" in said


def test_slow_drift_starts_alike_and_moves_less(measured):
    wide = measured.frame.pivot(index=["task", "regime"], columns="statistic", values="value")
    for task in ("sst2", "webnlg"):
        learning, slow = wide.loc[task, "learning"], wide.loc[task, "slow drift"]
        assert slow["loss_before"] == pytest.approx(learning["loss_before"], abs=1e-5)
        fall = learning["loss_before"] - learning["loss_after"], slow["loss_before"] - slow["loss_after"]
        assert abs(fall[1]) < abs(fall[0])
    rates = {source.spec.recording.optimizer.learning_rate for source in measured.sources}
    assert sorted(rates) == pytest.approx([3e-4, 3e-3])


def test_losses_and_moves_are_those_of_the_runs(study, measured):
    campaign = study.campaign("fine_tuning", "sst2")
    values = measured.frame.query("task == 'sst2' and regime == 'learning'").set_index("statistic")["value"]
    held_out = campaign.held_out().trajectories()[:1]
    assert values["loss_after"] == pytest.approx(held_out[:, -1].mean(), rel=1e-6)
    base, chosen, recorded, order = retrained(campaign, [1], 3)
    moves = recorded.trajectories()[order, -1] - base.runs[0].trajectories["loss"][-1]
    distinct = len(np.unique(base.runs[0].curriculum.batches))
    assert values["pool_examples_that_matter"] == pytest.approx(variation.moved(moves).mean() * distinct)
    for one, position in zip(chosen, order, strict=True):
        assert one.dropped[0] not in recorded.curricula[position].batches
        assert one.dropped[0] in base.runs[0].curriculum.batches


# --- table, figure, reading --------------------------------------------------------------------------------------------


def frame_of(accuracy: float = 0.9, fall: float = 0.5, share: float = 0.3, r2: float = 0.1) -> pd.DataFrame:
    rows = []
    for regime in ("learning", "slow drift"):
        for task in ("sst2", "webnlg"):
            values = {"loss_before": 2.0, "loss_after": 2 * (1 - fall)}
            values |= {"accuracy_before": 0.5, "accuracy_after": accuracy} if task == "sst2" else {}
            values |= {"first_component_share": share, "counts_share": share / 2}
            values |= {"counts_r2_dev": r2, "persistence_ratio": 3.0}
            rows += [("nano", task, regime, *pair) for pair in values.items()]
    return pd.DataFrame(rows, columns=task_statistics.COLUMNS)


def test_a_reading_says_that_goals_are_reached():
    learning, slow = of_tasks(frame_of()).split("\n")
    assert learning == (
        "Learning: Accuracy reaches 0.8 on every task. The loss of free text falls by a third on every task. The first component "
        "holds under half of the deviations on every task. Labels or formats hold under half of the deviations on every task. "
        "Counts alone have an R²dev of 0.10 to 0.10. The MSE of persistence is 3 times that of the mean trajectory (median over "
        "tasks)."
    )
    assert slow.startswith("Slow drift: The first component holds under half")  # nothing need be learned there


def test_a_reading_names_the_tasks_that_miss_a_goal():
    text = of_tasks(frame_of(accuracy=0.61, fall=0.12, share=0.94)).split("\n")[0]
    assert "Accuracy reaches 0.8 on 0 of 1 tasks, not on SST-2 (0.61)." in text
    assert "falls by a third on 0 of 1 tasks, not on WebNLG (0.12)." in text
    assert "half of the deviations on 0 of 2 tasks, not on SST-2 (0.94) and WebNLG (0.94)." in text
    free = frame_of()
    assert "Accuracy" not in of_tasks(free[free["task"] == "webnlg"])


def test_the_table_has_a_row_for_each_task_and_regime():
    frame = frame_of()
    cells = task_panels.table(frame).to_frame()
    assert len(cells) == 4
    assert list(cells["Accuracy, after"]) == ["0.900", "–", "0.900", "–"]
    assert task_panels.table(frame).numbers is frame
    both = pd.concat([frame, frame.assign(model="other")])
    assert list(task_panels.table(both).to_frame()["Model"]) == ["nano"] * 4 + ["other"] * 4


def test_the_figure_has_a_panel_for_what_there_is():
    frame = frame_of(r2=-3.0)
    figure = task_panels.plot_tasks(frame)
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert titles == ["Loss", "Accuracy", "Share of the deviations", "Label and format counts alone"]
    loss, accuracy, _, counts = figure.axes
    drawn = {tuple(line.get_ydata()) for line in loss.lines if line.get_marker() == "s"}
    assert drawn == {(2.0, 2.0)}
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["SST-2"]
    assert {0.5, 0.8} <= {line.get_ydata()[0] for line in accuracy.lines}
    assert sum(line.get_marker() == "v" for line in counts.lines) == 4  # two tasks, two regimes, all far below
    assert counts.get_ylim()[0] == task_panels.FLOOR
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "below -0.5"
    marked = task_panels.plot_tasks(frame, training_runs=24).axes
    assert [[text.get_text() for text in axis.texts] for axis in marked] == [[], [], [], ["1/(K+1)"]]
    free = task_panels.plot_tasks(frame[frame["task"] == "webnlg"])
    assert "Accuracy" not in [axis.get_title() for axis in free.axes if axis.get_visible()]
