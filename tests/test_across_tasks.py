"""Numbers over several tasks: equal to a loop's, and moved by no task's size."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import sweeps, tables
from gptfluence.scoring.across_tasks import over_tasks
from gptfluence.scoring.evaluation import summarize

METHODS = ("persistence", "simfluence", "gptfluence")
TASKS = ("rte", "sst2", "boolq")
POWERS = {
    "all_steps_mse": 2,
    "all_steps_mae": 1,
    "all_steps_mse_std": 2,
    "all_steps_mae_std": 1,
    "mse_mean_trajectory": 2,
}


def by_task(seed: int, tasks=TASKS, methods=METHODS) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    rows = [
        (method, task, statistic, random.uniform(0.1, 1))
        for method in methods
        for task in tasks
        for statistic in ("all_steps_mse", "all_steps_mae", "final_step_spearman", "r2_dev", "trajectories")
    ]
    return pd.DataFrame(rows, columns=["method", "task", "statistic", "value"])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 3))
def test_errors_are_geometric_means_of_ratios_and_the_rest_are_medians(seed, count):
    frame = by_task(seed, TASKS[:count])
    value = frame.set_index(["method", "task", "statistic"])["value"]
    found = over_tasks(frame).set_index(["method", "statistic"])["value"]
    assert len(found) == len(METHODS) * 4
    for method in METHODS:
        for error in ("all_steps_mse", "all_steps_mae"):
            product = math.prod(value[method, t, error] / value["persistence", t, error] for t in TASKS[:count])
            assert found[method, f"{error}_relative"] == pytest.approx(product ** (1 / count))
        assert found["persistence", "all_steps_mse_relative"] == pytest.approx(1)
        for other in ("final_step_spearman", "r2_dev"):
            assert found[method, other] == np.median([value[method, task, other] for task in TASKS[:count]])


def test_rows_are_divided_by_persistence_where_they_agree_with_it():
    models = [by_task(seed).assign(model=name) for seed, name in enumerate("ab")]
    both = over_tasks(pd.concat(models), ["model"]).set_index(["model", "method", "statistic"])["value"]
    for frame, name in zip(models, "ab", strict=True):
        alone = over_tasks(frame.drop(columns="model")).set_index(["method", "statistic"])["value"]
        pd.testing.assert_series_equal(both[name], alone, check_index=False)


def test_what_a_task_lacks_is_not_made_up():
    frame = by_task(0)
    lacking = frame[~((frame["method"] == "gptfluence") & (frame["task"] == "rte"))]
    found = over_tasks(lacking).set_index(["method", "statistic"])["value"]
    assert found["gptfluence"].isna().all()
    assert found["simfluence"].notna().all()
    exact = frame.assign(value=frame["value"].where((frame["method"] != "persistence") | (frame["task"] != "rte"), 0))
    found = over_tasks(exact).set_index(["method", "statistic"])["value"]
    assert np.isnan(found["gptfluence", "all_steps_mse_relative"])
    without = over_tasks(frame[frame["method"] != "persistence"])
    assert set(without["statistic"]) == {"final_step_spearman", "r2_dev"}


def results(seed: int) -> pd.DataFrame:
    """Rows of `Campaign.evaluate` of every method on three tasks and two runs, with an option c of 1 or 2."""
    random, rows = np.random.default_rng(seed), []
    for method in METHODS:
        for c in (1.0, 2.0):
            for task in TASKS:
                for run in ("test-000", "test-001"):
                    values = {statistic: random.uniform(0.1, 1) for statistic in POWERS}
                    values |= {"final_step_spearman": random.uniform(-1, 1), "all_steps_mse_not_diverged": 0.1}
                    values |= {"diverged": 0.0, "trajectories": 4.0}
                    rows += [(task, method, c, run, statistic, value) for statistic, value in values.items()]
    return pd.DataFrame(rows, columns=["task", "method", "c", "run", "statistic", "value"])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3), task=st.sampled_from(TASKS))
def test_a_task_with_larger_losses_decides_nothing(seed, scale, task):
    """Losses of one task times a number: rows of single tasks change, those over all tasks do not."""
    frame = results(seed)
    power = frame["statistic"].map(POWERS).fillna(0).where(frame["task"] == task, 0)
    scaled = frame.assign(value=frame["value"] * scale**power)
    before, after = sweeps.sweep(frame, "c"), sweeps.sweep(scaled, "c")
    pd.testing.assert_frame_equal(before, after, rtol=1e-9, atol=1e-9)
    rows = []
    for one in (frame, scaled):
        table = tables.methods_by_task(summarize(one[one["c"] == 1.0].drop(columns="c"))).numbers
        rows.append(table[table["task"] == tables.OVER_TASKS].reset_index(drop=True))
    pd.testing.assert_frame_equal(*rows, rtol=1e-9, atol=1e-9)
    assert len(rows[0]) == len(METHODS) * 4


def test_a_sweep_says_what_it_cannot_average():
    frame = results(0)
    with pytest.raises(ConfigurationError, match="divided by those of 'persistence'; add it"):
        sweeps.sweep(frame[frame["method"] != "persistence"], "c")
    with pytest.raises(ConfigurationError, match="have no common size; choose relative=True"):
        sweeps.sweep(frame, "c", relative=False)
    plain = sweeps.sweep(frame, "c", panel=["task"], relative=False)
    one = frame.query("task == 'rte' and method == 'gptfluence' and c == 2.0 and statistic == 'all_steps_mse'")["value"]
    rows = plain.query("task == 'rte' and method == 'gptfluence' and c == 2.0").set_index("statistic")["value"]
    assert rows["all_steps_mse"] == pytest.approx(one.mean())
    assert rows["all_steps_mse_of_run"].tolist() == pytest.approx(one.tolist())
