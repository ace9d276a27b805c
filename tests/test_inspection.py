"""Inspection for wrong labels: what is found, chance against simulation, intervals over seeds, and figure 7's picture."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing.inspection import ACCURACY, AUC, FOUND, of_inspection, plot_inspection
from gptfluence.scoring.inspection import (
    area_under_roc,
    fraction_found,
    inspection_order,
    mean_with_interval,
    random_area,
    random_found,
)


@settings(deadline=None)
@given(seed=st.integers(0, 99), size=st.integers(2, 20))
def test_found_is_the_share_of_flips_among_the_first_inspected(seed, size):
    rng = np.random.default_rng(seed)
    scores, flipped = rng.integers(0, 4, size), rng.random(size) < 0.5
    flipped[0], flipped[1] = True, False
    order = inspection_order(scores)
    assert (np.diff(scores[order]) <= 0).all()
    found = fraction_found(order, flipped, range(size + 1))
    for count in range(size + 1):
        assert found[count] == pytest.approx(len(set(order[:count]) & set(np.flatnonzero(flipped))) / flipped.sum())
    assert fraction_found(inspection_order(flipped), flipped, [flipped.sum()]) == 1  # a perfect score
    assert area_under_roc(scores, flipped) == pytest.approx(roc_auc_score(flipped, scores))


def test_without_flips_there_is_nothing_to_find():
    with pytest.raises(ConfigurationError, match="no example is flipped"):
        fraction_found(np.arange(3), np.zeros(3, bool), [1])


@pytest.mark.parametrize(("pool", "flips"), [(128, 51), (20, 4)])
def test_chance_is_what_many_random_orders_find(pool, flips):
    rng = np.random.default_rng(0)
    flipped = np.arange(pool) < flips
    orders = [rng.permutation(pool) for _ in range(2000)]
    drawn = np.stack([fraction_found(order, flipped, range(pool + 1)) for order in orders])
    expected = random_found(pool, flips)
    np.testing.assert_allclose(expected["value"], drawn.mean(axis=0), atol=0.02)
    inside = (drawn >= expected["low"].to_numpy() - 1e-9) & (drawn <= expected["high"].to_numpy() + 1e-9)
    assert (inside.mean(axis=0) > 0.88).all()
    assert expected[["low", "high"]].iloc[[0, -1]].to_numpy().tolist() == [[0, 0], [1, 1]]
    middle = expected.iloc[pool // 2]
    assert 0 < middle["low"] < middle["value"] < middle["high"] < 1
    areas = np.array([area_under_roc(-np.argsort(order), flipped) for order in orders])
    value, low, high = random_area(pool, flips)
    assert value == pytest.approx(areas.mean(), abs=0.01)
    assert np.mean((areas >= low) & (areas <= high)) == pytest.approx(0.9, abs=0.03)


def test_intervals_over_seeds_hold_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    intervals = np.array([mean_with_interval(rng.normal(2.0, 1.0, 5)) for _ in range(2000)])
    assert np.mean((intervals[:, 1] <= 2) & (intervals[:, 2] >= 2)) == pytest.approx(0.91, abs=0.03)
    assert mean_with_interval([0.5] * 5) == (0.5, 0.5, 0.5)
    value, low, high = mean_with_interval([0.2, 0.3])
    assert value == 0.25
    assert np.isnan([low, high]).all()


def drawn(untrained: float = 0.5) -> pd.DataFrame:
    """A figure of two shares of flips and two contenders: rows of the means, then of five seeds."""
    areas = {
        ("gptfluence", ""): [0.7, 0.75, 0.8, 0.85, 0.9],
        ("gptfluence", "untrained"): [*[untrained] * 4, untrained + 0.1],
    }
    rows = []
    for share in (0.4, 0.2):
        rows += [(share, FOUND, "random", "", None, x, x, x, x) for x in (0.0, 0.5, 1.0)]
        rows += [(share, AUC, "random", "", None, np.nan, 0.5, 0.42, 0.58)]
        rows += [(share, ACCURACY, "random", "", None, x, 0.6 + 0.1 * x, np.nan, np.nan) for x in (0.0, 0.2, 1.0)]
        for key, values in areas.items():
            rows += [(share, FOUND, *key, None, x, x**0.5, x**0.5, 1.0) for x in (0.0, 0.5, 1.0)]
            rows += [(share, ACCURACY, *key, None, x, 0.6 + 0.1 * x**0.5, 0.5, 0.8) for x in (0.0, 0.2, 1.0)]
            rows += [(share, AUC, *key, None, np.nan, *mean_with_interval(values))]
            rows += [(share, AUC, *key, seed, np.nan, value, np.nan, np.nan) for seed, value in enumerate(values)]
    rows.append((0.4, ACCURACY, "paper", "", None, 0.0, 0.53, np.nan, np.nan))
    columns = ["flipped", "panel", "series", "variant", "repeat", "x", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns).astype({"repeat": "Int64"})


def test_the_picture_has_a_row_for_each_share_and_shows_means_bands_and_seeds():
    figure = plot_inspection(drawn())
    assert len(figure.axes) == 6
    found, accuracy, areas = figure.axes[:3]
    assert found.get_title() == "(a) 40% flipped: flipped labels found"
    assert len(found.lines) == len(found.collections) == 3  # two contenders and chance, each with its band
    curve = next(line for line in found.lines if line.get_linestyle() == "-")
    np.testing.assert_allclose(curve.get_ydata(), [0, 0.5**0.5, 1])
    starts = [line for line in accuracy.lines if line.get_marker() == "*"]
    assert [list(line.get_ydata()) for line in starts] == [[0.53]]
    assert not [line for line in figure.axes[4].lines if line.get_marker() == "*"]
    dots = [sorted(line.get_ydata()) for line in areas.lines if line.get_marker() == "."]
    assert dots == [[0.7, 0.75, 0.8, 0.85, 0.9], [0.5, 0.5, 0.5, 0.5, 0.6]]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["GPTfluence", "GPTfluence (untrained)", "Random", "Paper, nothing corrected"]


def test_the_reading_says_whether_fitting_taught_anything():
    said = of_inspection(drawn())
    assert said.startswith("40% of the labels flipped: AUC GPTfluence 0.80 (0.72 to 0.88), GPTfluence (untrained) 0.52")
    assert "by chance 0.50, and most single random orders within 0.42 to 0.58" in said
    assert "Fitted GPTfluence finds more than its untrained weights (difference in AUC 0.28 (0.22 to 0.34))" in said
    assert "Accuracy 0.60 with nothing corrected, 0.70 with everything; with 20% inspected: GPTfluence 0.64" in said
    assert "GPTfluence cannot be told from its untrained weights" in of_inspection(drawn(untrained=0.8))
    assert "GPTfluence finds less than its untrained weights" in of_inspection(drawn(untrained=1.5))


@pytest.mark.parametrize(
    ("frame", "said"),
    [(drawn().drop(columns="repeat"), "no column repeat"), (drawn().iloc[:0], "the frame is empty")],
)
def test_frames_that_cannot_be_drawn_are_refused(frame, said):
    with pytest.raises(ConfigurationError, match=said):
        plot_inspection(frame)
