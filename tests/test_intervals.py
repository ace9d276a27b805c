"""Points with intervals and paths in bands: everything is drawn that should be, nothing else, and bad frames are named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing.points import plot_intervals
from gptfluence.drawing.readings import best_points
from gptfluence.drawing.trajectories import plot_bands

NAN = float("nan")


@pytest.fixture
def points() -> pd.DataFrame:
    rows = [
        ("SST-2", "persistence", "alike", -5.0, -6.0, -4.0),
        ("SST-2", "gptfluence", "alike", 0.1, -0.2, 0.3),
        ("SST-2", "tangent", "alike", 0.9, 0.8, 0.95),
        ("SST-2", "tangent", "sorted", NAN, NAN, NAN),
        ("SST-2", "gptfluence", "sorted", 0.4, NAN, NAN),
        ("RTE", "tangent", "alike", 0.5, 0.4, 0.6),
    ]
    return pd.DataFrame(rows, columns=["panel", "series", "x", "value", "low", "high"])


def test_a_point_below_the_floor_is_a_triangle_on_it_and_one_undefined_is_not_drawn(points):
    figure = plot_intervals(points, xlabel="curricula", ylabel="R²dev", floor=-1.0)
    axis = figure.axes[0]
    markers = {line.get_marker(): line.get_ydata()[0] for line in axis.lines if line.get_marker() not in ("None", "")}
    assert markers["v"] == -1.0
    assert sorted(line.get_ydata()[0] for line in axis.lines if line.get_marker() == "P") == [0.9]
    assert axis.get_ylim()[0] == -1.0
    assert axis.get_ylim()[1] >= 0.95  # nothing else is cut off
    assert [label.get_text() for label in axis.get_xticklabels()] == ["alike", "sorted"]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["Persistence", "GPTfluence", "Tangent simulator", "below -1"]


def test_intervals_are_drawn_where_there_are_any(points):
    figure = plot_intervals(points, xlabel="", ylabel="", line=None)
    bars = [
        tuple(line.get_ydata())
        for line in figure.axes[0].lines
        if len(line.get_ydata()) == 2 and line.get_linestyle() == "-"
    ]
    assert (0.8, 0.95) in bars
    assert (-6.0, -4.0) in bars
    assert not any(np.isnan(bar).any() for bar in bars)


def test_the_best_is_named_for_each_panel_and_place(points):
    text = best_points(points)
    assert "SST-2, best at alike: Tangent simulator 0.90; sorted: GPTfluence 0.40." in text
    assert "RTE, best at alike: Tangent simulator 0.50." in text
    assert "alike: Persistence" in best_points(points, higher=False)


def test_bands_are_filled_where_they_are_finite():
    steps = np.arange(4)
    nothing = np.full(4, NAN)
    frames = [
        pd.DataFrame(
            {"panel": "a", "series": "recorded", "step": steps, "value": 1.0, "low": nothing, "high": nothing}
        ),
        pd.DataFrame({"panel": "a", "series": "tangent", "step": steps, "value": 1.1, "low": 0.9, "high": 1.3}),
        pd.DataFrame({"panel": "b", "series": "tangent", "step": steps, "value": 1.1, "low": -np.inf, "high": np.inf}),
    ]
    figure = plot_bands(pd.concat(frames), ylabel="loss", labels={"recorded": "trained"})
    assert [len(axis.collections) for axis in figure.axes] == [1, 1]
    assert (
        figure.axes[1].collections[0].get_paths() in ([],)
        or not np.isfinite(figure.axes[1].collections[0].get_datalim(figure.axes[1].transData).height)
        or figure.axes[1].collections[0].get_datalim(figure.axes[1].transData).height <= 0
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["trained", "Tangent simulator", "band"]


@pytest.mark.parametrize(
    "draw", [lambda f: plot_intervals(f, xlabel="", ylabel=""), lambda f: plot_bands(f, ylabel="")]
)
def test_frames_that_cannot_be_drawn_are_errors(draw, points):
    with pytest.raises(ConfigurationError, match="the frame has no column panel"):
        draw(points.drop(columns="panel"))
    with pytest.raises(ConfigurationError, match="the frame is empty"):
        draw(points.assign(step=0).iloc[:0])
