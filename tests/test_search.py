"""Search for curricula, on a very small study: the best are found, and what is chosen is trained."""

from __future__ import annotations

import numpy as np
import pytest

from beyond_study import small_study  # noqa: F401
from gptfluence.common.errors import ConfigurationError
from gptfluence.experiments import shifted
from gptfluence.experiments.search import candidate, check_tests, compare, search


def test_the_best_candidates_are_the_best_however_they_are_streamed(study, monkeypatch):
    dynamics = study.campaign("fine_tuning", "sst2").dynamics()
    numbers = study.setting().curriculum
    fitted, start = study.campaign("fine_tuning", "sst2").simulator("simfluence"), dynamics.trajectories()[0, 0]
    options = {"count": 23, "best": 4, "seed": [7]}
    found = search(fitted, len(dynamics.pool), numbers, start, [0, 2], **options)
    every = [candidate(len(dynamics.pool), numbers, [7], index) for index in range(23)]
    values = fitted.simulate(every, start[None, None])[:, -1, [0, 2]].mean(axis=1)
    np.testing.assert_allclose(found.all_values, values, rtol=1e-6)
    assert found.index.tolist() == np.argsort(values, kind="stable")[:4].tolist()
    monkeypatch.setattr("gptfluence.experiments.search.CHUNK", 5)
    again = search(fitted, len(dynamics.pool), numbers, start, [0, 2], **options)
    np.testing.assert_allclose(again.all_values, found.all_values, rtol=1e-6)
    with pytest.raises(ConfigurationError, match="the best 4 of 3"):
        search(fitted, len(dynamics.pool), numbers, start, [], count=3, best=4, seed=[7])
    with pytest.raises(ConfigurationError, match="no test example 6; choose 0 to 5"):
        check_tests([6], 6)


def test_what_is_chosen_is_really_trained(study):
    frame, found, (dynamics, recorded) = compare(
        study.campaign("fine_tuning", "sst2"), ["tangent"], tests=[1, 3], count=6, best=2
    )
    assert frame["choice"].tolist() == ["best", "hardest", "easiest", "random", "random"]
    best = candidate(
        len(dynamics.pool),
        study.setting().curriculum,
        [0, shifted.seed_of("search", "sst2")],
        int(found["tangent"].index[0]),
    )
    run = next(run for run in recorded.runs if run.curriculum == best)
    assert frame.loc[0, "recorded"] == pytest.approx(run.trajectories["loss"][-1, [1, 3]].mean())
    assert frame.loc[0, "simulated"] == pytest.approx(found["tangent"].value.min())
