"""Conformal bands: the quantile by a loop, coverage as promised where runs are exchangeable, honest where it cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence.common.errors import ConfigurationError
from gptfluence.scoring.conformal import Typical, calibrate, calibration_names, coverage, mean_width, scores

STEPS, TESTS = 6, 5


def runs(rng: np.random.Generator, count: int, shared: float = 0.0, size: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and recorded [count, steps + 1, tests]; `shared`: how much of the error all paths of a run have in common."""
    predicted = rng.normal(2, 1, (count, STEPS + 1, TESTS))
    own, common = rng.standard_t(3, predicted.shape), rng.standard_t(3, (count, 1, 1))
    error = size * ((1 - shared) * own + shared * common) * np.linspace(0, 1, STEPS + 1)[:, None]
    return predicted, predicted + error


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 12),
    level=st.sampled_from([0.5, 0.8, 0.9]),
    unit=st.sampled_from(["path", "run"]),
    observed=st.integers(1, 3),
)
def test_the_quantile_is_the_smallest_score_with_enough_at_or_below_it(seed, count, level, unit, observed):
    rng = np.random.default_rng(seed)
    typical = Typical.of(*runs(rng, 4), observed=observed)
    predicted, recorded = runs(rng, count)
    bands = calibrate(predicted, recorded, typical, level=level, unit=unit, observed=observed)
    found = []
    for run in range(count):
        for test in range(TESTS):
            steps = range(observed, STEPS + 1)
            off = max(abs(predicted[run, t, test] - recorded[run, t, test]) / typical.error[t] for t in steps)
            distance = np.sqrt(np.mean((predicted[run] - typical.centre) ** 2))
            found.append(off / max(1, distance / typical.distance))
    np.testing.assert_allclose(scores(predicted, recorded, typical, observed=observed).ravel(), found)
    # every score weighs the same; the new path, or the new run as a whole, weighs as much as one of its kind and is infinite
    weight = 1 / (count * TESTS + 1) if unit == "path" else 1 / (count + 1) / TESTS
    enough = [score for score in sorted(found) if sum(other <= score for other in found) * weight >= level - 1e-9]
    assert bands.quantile == pytest.approx(enough[0] if enough else np.inf)
    inside = bands.covered(predicted, recorded)
    for run in range(count):
        for test in range(TESTS):
            assert inside[run, test] == (found[run * TESTS + test] <= bands.quantile * (1 + 1e-12)) or np.isclose(
                found[run * TESTS + test], bands.quantile
            )


@pytest.mark.parametrize(("unit", "shared", "count"), [("path", 0.0, 6), ("run", 0.0, 12), ("run", 0.95, 12)])
def test_new_runs_are_covered_as_often_as_promised(unit: str, shared: float, count: int):
    rng = np.random.default_rng(0)
    typical = Typical.of(*runs(rng, 10, shared))
    found = []
    for _ in range(400):
        bands = calibrate(*runs(rng, count, shared), typical, level=0.8, unit=unit)
        found.append(coverage(bands, *runs(rng, 1, shared)))
    assert np.mean(found) >= 0.8 - 2 * np.std(found) / np.sqrt(len(found))
    assert np.mean(found) <= 0.9  # and not by being endless


def test_nothing_is_promised_for_runs_that_are_not_exchangeable():
    rng = np.random.default_rng(0)
    typical = Typical.of(*runs(rng, 10))
    bands = calibrate(*runs(rng, 40), typical, level=0.9)
    assert coverage(bands, *runs(rng, 200)).mean() == pytest.approx(0.9, abs=0.05)
    assert coverage(bands, *runs(rng, 200, size=4.0)).mean() < 0.5


def test_bands_widen_with_the_distance_of_a_run_as_a_whole():
    rng = np.random.default_rng(0)
    predicted, recorded = runs(rng, 30)
    typical = Typical.of(predicted, recorded)
    bands = calibrate(*runs(rng, 10), typical)
    centre = predicted.mean(axis=0)
    width = mean_width(bands, np.stack([centre, centre + typical.distance, centre - 3 * typical.distance]))
    np.testing.assert_allclose(width / width[0], [1, 1, 3])
    # so errors in proportion to the distance are covered nearly as often as elsewhere (runs nearer than the furthest have w = 1)
    further, truth = (centre + 4 * (values - centre) for values in runs(rng, 200))
    assert coverage(bands, further, truth).mean() > 0.65
    flat = replace(bands, typical=replace(typical, distance=np.inf))
    assert coverage(flat, further, truth).mean() < 0.5
    # a simulator that says the same of every curriculum has no distance, and rounding is none
    constant = np.full((4, STEPS + 1, TESTS), 2.0)
    same = Typical.of(constant, constant + rng.normal(size=constant.shape))
    assert same.widening(constant[0] * (1 + 1e-7)) == 1


def test_too_few_runs_give_endless_bands_and_not_narrow_ones():
    rng = np.random.default_rng(0)
    typical = Typical.of(*runs(rng, 4))
    assert calibrate(*runs(rng, 8), typical, level=0.9, unit="run").quantile == np.inf
    assert calibrate(*runs(rng, 9), typical, level=0.9, unit="run").quantile < np.inf
    low, high = calibrate(*runs(rng, 8), typical, level=0.9, unit="run").around(np.zeros((1, STEPS + 1, TESTS)))
    assert (low[:, 0] == 0).all()  # what was observed is known
    assert (high[:, 1:] == np.inf).all()


def test_bands_widen_as_errors_do_and_follow_shorter_curricula():
    rng = np.random.default_rng(0)
    typical = Typical.of(*runs(rng, 30))
    bands = calibrate(*runs(rng, 10), typical)
    predicted = rng.normal(size=(2, 4, TESTS))
    low, high = bands.around(predicted)
    widening = typical.widening(predicted)[:, 0, 0]
    np.testing.assert_allclose((high - low)[:, :, 0], 2 * bands.quantile * np.outer(widening, typical.error[:4]))
    np.testing.assert_allclose(mean_width(bands, predicted), (high - low)[:, 1:].mean(axis=(1, 2)))
    longer = typical.extended(STEPS + 2)
    assert (longer.error[-3:] == typical.error[-1]).all()
    assert (longer.centre[-3:] == typical.centre[-1]).all()
    with pytest.raises(ConfigurationError, match="made for 6 steps, asked for 7"):
        bands.around(np.zeros((1, STEPS + 2, TESTS)))


def test_a_diverged_path_scores_infinity():
    rng = np.random.default_rng(0)
    predicted, recorded = runs(rng, 2)
    predicted[0, 3, 1] = np.nan
    typical = Typical.of(*runs(rng, 4))
    found = scores(predicted, recorded, typical)
    assert found[0, 1] == np.inf
    assert np.isfinite(np.delete(found.ravel(), 1)).all()


def test_wrong_arguments_are_named():
    rng = np.random.default_rng(0)
    predicted, recorded = runs(rng, 3)
    typical = Typical.of(predicted, recorded)
    with pytest.raises(ConfigurationError, match="level must be above 0 and below 1, not 90"):
        calibrate(predicted, recorded, typical, level=90)
    with pytest.raises(ConfigurationError, match=r"unit 'paths' is not known.*did you mean 'path'"):
        calibrate(predicted, recorded, typical, unit="paths")
    with pytest.raises(ConfigurationError, match="disagree"):
        calibrate(predicted[:2], recorded, typical)
    with pytest.raises(ConfigurationError, match="0 at every step"):
        Typical.of(recorded, recorded)
    assert calibration_names(["a", "b", "c", "d"], 2) == (["a", "b"], ["c", "d"])
    with pytest.raises(ConfigurationError, match="choose 1 to 2"):
        calibration_names(["a", "b", "c", "d"], 3)
