"""Points with intervals and paths in bands: everything is drawn that should be, nothing else, and bad frames are named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names, panels
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


def dots(axis, method: str) -> list[tuple[float, float]]:
    """Where points of a method are drawn."""
    color = to_rgba(names.LINES[method].color)
    found = []
    for drawn in axis.collections:
        if isinstance(drawn, PathCollection):
            colors = drawn.get_edgecolors()
            places = zip(drawn.get_offsets().tolist(), np.resize(colors, (len(drawn.get_offsets()), 4)), strict=True)
            found += [tuple(place) for place, drawn_in in places if np.allclose(drawn_in, color)]
    return sorted(found)


def bars_of(axis) -> list[LineCollection]:
    return [drawn for drawn in axis.collections if isinstance(drawn, LineCollection)]


def test_a_point_below_the_floor_is_a_triangle_on_it_and_one_undefined_is_not_drawn(points):
    figure = plot_intervals(points, xlabel="curricula", ylabel="R²dev", floor=-1.0)
    axis = figure.axes[0]
    (triangle,) = [line for line in axis.lines if line.get_marker() == "v"]
    assert triangle.get_color() == names.LINES["persistence"].color
    assert list(triangle.get_ydata()) == [0.0]  # the lower edge
    assert axis.get_ylim()[0] == -1.0
    assert dots(axis, "persistence") == []
    assert [y for _, y in dots(axis, "tangent")] == [0.9]
    assert [y for _, y in dots(axis, "gptfluence")] == [0.1, 0.4]
    assert axis.get_ylim()[1] >= 0.95  # nothing else is cut off
    places = [*triangle.get_xdata(), dots(axis, "gptfluence")[0][0], dots(axis, "tangent")[0][0]]
    np.testing.assert_allclose(places, [-0.8 / 3, 0, 0.8 / 3], atol=1e-9)  # each series has a place of its own
    assert [label.get_text() for label in axis.get_xticklabels()] == ["alike", "sorted"]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["Persistence", "GPTfluence", "Tangent simulator", "below -1"]


def test_a_place_where_nothing_was_measured_says_so(points):
    figure = plot_intervals(points, xlabel="", ylabel="")
    said = [[(text.get_position()[0], text.get_text()) for text in axis.texts] for axis in figure.axes]
    assert said == [[], [(1, "not\nmeasured")]]


def test_intervals_are_drawn_where_there_are_any(points):
    figure = plot_intervals(points, xlabel="", ylabel="", line=None)
    bars = [tuple(path[:, 1]) for each in bars_of(figure.axes[0]) for path in each.get_segments()]
    assert len(bars) == 3
    assert (0.8, 0.95) in bars
    assert (-6.0, -4.0) in bars
    assert not any(np.isnan(bar).any() for bar in bars)


def test_a_logarithmic_axis_holds_every_point_interval_and_the_level(points):
    left = panels.error_left(points.replace({"value": {-5.0: 0.99999}}))
    figure = plot_intervals(left, xlabel="curricula", ylabel="1 − R²dev", floor=1e-4, line=1.0, log=True)
    first, second = figure.axes
    assert {axis.get_yscale() for axis in figure.axes} == {"log"}
    assert first.get_ylim()[0] == 1e-4
    (triangle,) = [line for line in first.lines if line.get_marker() == "v"]  # nearer to 1 than can be drawn
    assert triangle.get_color() == names.LINES["persistence"].color
    assert [y for _, y in dots(first, "tangent")] == pytest.approx([0.1])
    assert [y for _, y in dots(first, "gptfluence")] == pytest.approx([0.9, 0.6])
    for axis in figure.axes:
        low, high = axis.get_ylim()
        assert low < 1.0 < high
        ends = [y for each in bars_of(axis) for path in each.get_segments() for y in path[:, 1]]
        assert ends
        assert all(low <= end <= high for end in ends)
        ticks = [float(label.get_text()) for label in axis.get_yticklabels()]
        assert 2 <= len(ticks) <= 6
        assert all(low <= tick <= high for tick in ticks)
    assert sorted(y for each in bars_of(second) for y in each.get_segments()[0][:, 1]) == pytest.approx([0.4, 0.6])


def test_what_was_recorded_has_a_point_as_methods_have(points):
    frame = points.replace({"series": {"gptfluence": "recorded"}})
    axis = plot_intervals(frame, xlabel="", ylabel="").axes[0]
    assert [y for _, y in dots(axis, "recorded")] == [0.1, 0.4]


def test_single_runs_are_small_dots_and_values_within_the_kind_are_dashes(points):
    singles = points.iloc[[2, 2]].assign(value=[0.85, 0.93], low=NAN, high=NAN)
    within = points.iloc[[1, 2]].assign(value=[-3.0, 0.6], low=[-4.0, 0.5], high=[-2.0, 0.7])
    figure = plot_intervals(points, xlabel="", ylabel="", floor=-1.0, singles=singles, within=within)
    axis = figure.axes[0]
    assert [y for _, y in dots(axis, "tangent")] == [0.85, 0.9, 0.93]
    assert len({x for x, _ in dots(axis, "tangent")}) == 1
    ranges = [path.round(6).tolist() for each in bars_of(axis) for path in each.get_segments() if len(path)]
    ((left, _), (right, _)) = next(path for path in ranges if path[0][1] == path[1][1] == 0.6)
    assert (left + right) / 2 == pytest.approx(dots(axis, "tangent")[0][0], abs=1e-5)
    assert not any(path[0][1] == 0.5 for path in ranges)  # the interval of a dash is in the CSV alone
    triangles = [line for line in axis.lines if line.get_marker() == "v"]
    assert [line.get_markerfacecolor() for line in triangles] == [names.LINES["persistence"].color, "none"]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[3:] == ["a single run", "R² within the kind", "below -1", "R² within the kind below -1"]
    few = plot_intervals(points, xlabel="", ylabel="", floor=-1.0, singles=singles.assign(value=-2.0))
    assert len([line for line in few.axes[0].lines if line.get_marker() == "v"]) == 1


@pytest.mark.parametrize("rest", [False, True])
def test_the_r2_dev_of_the_true_mean_is_a_labelled_line_where_the_axis_reaches_it(points, rest):
    figure = plot_intervals(points, xlabel="", ylabel="R²dev", floor=-1.0, training_runs=24)
    assert {line.get_ydata()[0] for line in figure.axes[0].lines} >= {0.0, 0.04}
    assert [text.get_text() for text in figure.axes[0].texts] == ["1/(K+1)"]
    axis = Figure().subplots()
    axis.set_ylim(0.01, 1)
    panels.mark_known_mean(axis, 24, rest=rest)
    axis.set_ylim(0.05, 0.9)
    panels.mark_known_mean(axis, 24, rest=rest)  # outside
    assert [line.get_ydata()[0] for line in axis.lines] == [0.96 if rest else 0.04]
    assert [text.get_text() for text in axis.texts] == ["K/(K+1)" if rest else "1/(K+1)"]


def test_the_best_is_named_for_each_panel_and_place(points):
    text = best_points(points)
    assert "SST-2, best at alike: Tangent simulator 0.90; sorted: GPTfluence 0.40." in text
    assert "RTE, best at alike: Tangent simulator 0.50." in text
    assert "alike: Persistence" in best_points(points, higher=False)


def test_bands_are_filled_where_they_are_finite():
    steps, value = np.arange(4), np.array([1.1, 1.2, 1.3, 1.4])
    low, high, nothing = np.array([-np.inf, 0.9, 0.8, 0.7]), np.array([1.3, 1.4, np.inf, 1.6]), np.full(4, NAN)
    columns = ["panel", "series", "step", "value", "low", "high"]
    frames = [
        pd.DataFrame(dict(zip(columns, values, strict=True)))
        for values in (
            ("a", "recorded", steps, value, nothing, nothing),
            ("a", "tangent", steps, value, low, high),
            ("b", "recorded", steps, value, nothing, nothing),
            ("b", "tangent", steps, value, -np.inf, np.inf),
        )
    ]
    figure = plot_bands(pd.concat(frames), ylabel="loss", labels={"recorded": "trained"})
    (band,) = figure.axes[0].patches
    assert {tuple(vertex) for vertex in band.get_xy()} == {(1, 0.9), (1, 1.4), (3, 0.7), (3, 1.6)}
    assert not figure.axes[1].patches
    without = plot_bands(pd.concat(frames).assign(low=NAN, high=NAN), ylabel="loss")
    assert not any(axis.patches for axis in without.axes)
    assert [text.get_text() for text in without.legends[0].get_texts()] == ["recorded", "Tangent simulator"]
    for axis in [*figure.axes, *without.axes]:  # lines are drawn where there is no band, too
        assert [list(line.get_ydata()) for line in axis.lines] == [list(value)] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["trained", "Tangent simulator", "band"]


@pytest.mark.parametrize(
    "draw", [lambda f: plot_intervals(f, xlabel="", ylabel=""), lambda f: plot_bands(f, ylabel="")]
)
def test_frames_that_cannot_be_drawn_are_errors(draw, points):
    with pytest.raises(ConfigurationError, match="the frame has no column panel"):
        draw(points.drop(columns="panel"))
    with pytest.raises(ConfigurationError, match="the frame is empty"):
        draw(points.assign(step=0).iloc[:0])
