"""Readings beyond the paper: their sentences say what the numbers of small frames say."""

from __future__ import annotations

import math

import pandas as pd

from gptfluence.drawing import readings_beyond as readings


def test_the_horizon_names_who_is_better_at_the_last_step():
    rows = [
        (task, method, step, mse, 1.0)
        for task, method, mses in (
            ("sst2", "mean_trajectory", (1.0, 1.0)),
            ("sst2", "gptfluence", (2.0, 0.5)),
            ("sst2", "tangent", (2.0, 0.25)),
            ("rte", "gptfluence", (0.5, 2.0)),
        )
        for step, mse in enumerate(mses, 1)
    ]
    results = pd.DataFrame(rows, columns=["task", "method", "step", "mse", "mse_mean_trajectory"])
    assert readings.of_horizon(results) == (
        "SST-2: better than the mean trajectory at the last step: Tangent simulator, GPTfluence. "
        "RTE: better than the mean trajectory at the last step: none."
    )


def test_methods_without_a_score_are_named():
    results = pd.DataFrame({"method": ["tangent", "tangent", "mean_trajectory"], "value": [0.5, math.nan, math.nan]})
    assert readings.without_score(results) == "No score, because the same is predicted for every set: Mean trajectory."
    assert readings.without_score(results[:1]) == ""


def test_coverage_is_told_alike_and_at_its_lowest_elsewhere():
    columns = ["task", "method", "kind", "value"]
    coverage = pd.DataFrame(
        [("sst2", "tangent", "alike", 0.9), ("sst2", "tangent", "few", 0.7), ("sst2", "tangent", "sorted", 0.8)],
        columns=columns,
    )
    text = "SST-2, Tangent simulator: 0.90 of the paths are inside for curricula drawn alike"
    assert readings.of_coverage(coverage) == f"{text}, 0.70 or more for other kinds."
    assert readings.of_coverage(coverage[:1]) == f"{text}."


def test_a_search_is_told_with_what_was_trained_and_random_choice():
    results = pd.DataFrame(
        [
            ("best", "tangent", 0.5, 0.75),
            ("random", "tangent", 0.9, 0.7),
            ("random", "tangent", 0.9, 0.9),
            ("random", "gptfluence", 0.9, 9.0),
        ],
        columns=["choice", "method", "simulated", "recorded"],
    )
    assert readings.of_search(results, 50) == (
        "Tangent simulator: the best of 50 has a loss of 0.5000 simulated and 0.7500 trained. The mean of random choice is "
        "0.8000, and 50% of its runs are worse."
    )


def test_differences_have_a_sign_and_an_interval_where_there_is_one():
    differences = pd.DataFrame(
        [
            ("sst2", "tangent", "candidates=1", "few", -0.1, -0.2, 0.05),
            ("sst2", "tangent", "candidates=1", "unseen_tests", 0.25, math.nan, math.nan),
            ("sst2", "tangent", "candidates=1", "alike", 0.001, 0.0, 0.01),
            ("rte", "tangent", "candidates=1", "alike", 0.001, 0.0, 0.01),
        ],
        columns=["task", "method", "variant", "kind", "value", "low", "high"],
    )
    assert readings.signed(differences)[:2] == ["-0.10 (-0.20 to +0.05)", "+0.25"]
    first, second = readings.of_differences(differences).split("\n")
    assert first.endswith(": few -0.10 (-0.20 to +0.05), unseen tests +0.25.")
    assert second.endswith(": no change of 0.01.")


def test_costs_are_told_beside_those_of_simfluence():
    rows = [
        (method, "", batch, "nothing", encoder, flops)
        for method, encoder, pair in (
            ("simfluence", "", (10.0, 20.0)),
            ("gptfluence", "left out", (100.0, 400.0)),
            ("gptfluence", "included", (1e6, 1e6)),
        )
        for batch, flops in zip((4, 8), pair, strict=True)
    ]
    costs = pd.DataFrame(rows, columns=["method", "variant", "batch", "reuse", "encoder", "flops"])
    assert "GPTfluence: 400 FLOPs for a batch of 8, 20 times Simfluence's, and 4 times those of a batch of 4." in (
        readings.of_costs(costs)
    )
    alone = readings.of_costs(costs[costs["batch"] == 8])
    assert "GPTfluence: 400 FLOPs for a batch of 8, 20 times Simfluence's." in alone


def test_what_if_tells_both_changes_and_the_coverage():
    row = pd.Series({"change, simulated": 0.02, "change, trained": -0.01, "paths inside the band": 0.75})
    assert readings.of_what_if(row) == (
        "The mean final loss changes by +0.0200 simulated and by -0.0100 trained. 75% of the test examples' paths lie inside "
        "their bands."
    )


def test_explained_deviation_is_told_with_the_kind_s_own_mean_and_with_ranks():
    columns = ["model", "task", "kind", "method", "variant", "statistic", "value"]
    rows = [
        ("gpt", "sst2", kind, method, "", statistic, value)
        for kind, method, statistic, value in (
            ("alike", "tangent", "r2_within", 0.5),
            ("sorted", "tangent", "r2_within", 0.1),
            ("alike", "simfluence", "r2_within", -3.0),
            ("alike", "tangent", "final_step_spearman", 0.9),
            ("sorted", "tangent", "final_step_spearman", 0.2),  # no other method has one here
            ("alike", "mean_trajectory", "final_step_spearman", 0.8),
            ("sorted", "mean_trajectory", "final_step_spearman", math.nan),
        )
    ]
    results = pd.DataFrame(rows, columns=columns)
    assert readings.of_explained(results) == (
        "Cases with R² within the kind above 0: Tangent simulator 2 of 2, Simfluence 0 of 1. Rank correlation of final "
        "losses, mean over all cases where every method has one (1): Tangent simulator 0.90, Mean trajectory 0.80."
    )
    assert readings.of_explained(results[:0]) == ""
