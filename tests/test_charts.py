"""Sweeps and convergence: averages equal to a loop's, every method in every panel, nothing cut at print size."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names, readings, style, sweeps
from gptfluence.drawing.points import plot_curves
from gptfluence.simulators.base import FitReport

STATISTICS = ("all_steps_mse", "all_steps_mae", "final_step_spearman", "mse_mean_trajectory")


def results(seed: int, methods: dict[str, list], tasks=("rte", "sst2"), runs: int = 3) -> pd.DataFrame:
    """Rows of `Study.evaluate` with random values; methods: name -> values of c (None: it has none)."""
    generator, rows = np.random.default_rng(seed), []
    for method, values in methods.items():
        for c in values:
            for task in tasks:
                for run in range(runs):
                    found = {name: generator.uniform(0.1, 1) for name in STATISTICS}
                    found |= {"all_steps_mse_std": 0.1, "all_steps_mae_std": 0.1, "all_steps_mse_not_diverged": 0.1}
                    found |= {"diverged": generator.integers(3), "trajectories": 4}
                    for statistic, value in found.items():
                        rows.append((task, method, c, f"test-{run}", statistic, float(value)))
    return pd.DataFrame(rows, columns=["task", "method", "c", "run", "statistic", "value"])


def rendered(figure):
    canvas = FigureCanvasAgg(figure)
    with style.style():
        canvas.draw()
    return canvas.get_renderer()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), tasks=st.sampled_from([("rte",), ("rte", "sst2"), ("rte", "sst2", "boolq")]))
def test_a_sweep_is_relative_to_persistence_with_intervals_over_runs(seed, tasks):
    rows = results(seed, {"gptfluence": [1.0, 2.0], "persistence": [np.nan]}, tasks, runs=5)
    frame = sweeps.sweep(rows, "c")
    assert len(frame) == 3 * 4
    still = rows[rows["method"] == "persistence"].pivot(index=["run", "task"], columns="statistic", values="value")
    for c in (1.0, 2.0):
        chosen = rows[(rows["method"] == "gptfluence") & (rows["c"] == c)]
        wide = chosen.pivot(index=["run", "task"], columns="statistic", values="value")
        found = frame[(frame["method"] == "gptfluence") & (frame["c"] == c)].set_index("statistic")
        ratios = wide["all_steps_mse"].groupby("task").mean() / still["all_steps_mse"].groupby("task").mean()
        assert found.loc["all_steps_mse_relative", "value"] == pytest.approx(np.exp(np.log(ratios).mean()))
        without = []
        for run in wide.index.unique("run"):
            means = [part["all_steps_mse"].drop(run, level="run").groupby("task").mean() for part in (wide, still)]
            without.append(np.log(means[0] / means[1]).mean())
        half = stats.t.ppf(0.95, 3) * np.sqrt(4 * np.square(without - np.log(ratios).mean()).mean())
        ends = np.exp(np.log(ratios).mean() + half * np.array([-1, 1]))
        assert found.loc["all_steps_mse_relative", ["low", "high"]].tolist() == pytest.approx(ends.tolist())
        sums = wide.groupby("task")[["all_steps_mse", "mse_mean_trajectory"]].sum()
        explained = 1 - sums["all_steps_mse"] / sums["mse_mean_trajectory"]
        assert found.loc["r2_dev", "value"] == pytest.approx(explained.median())
        assert (found["diverged"] == wide["diverged"].sum()).all()


def test_few_runs_of_a_sweep_are_shown_one_by_one():
    rows = results(0, {"gptfluence": [1.0, 2.0], "mean_trajectory": [np.nan], "persistence": [np.nan]}, runs=3)
    frame = sweeps.sweep(rows, "c")
    assert frame[["low", "high"]].isna().all(axis=None)
    each = frame[frame["statistic"] == "all_steps_mse_relative_of_run"].set_index(["method", "c", "run"])["value"]
    wide = rows[rows["statistic"] == "all_steps_mse"].pivot(
        index=["method", "c", "run"], columns="task", values="value"
    )
    for run in ("test-0", "test-1", "test-2"):
        ratios = wide.loc[("gptfluence", 2.0, run)] / wide.loc[("persistence", np.nan, run)]
        assert each.loc[("gptfluence", 2.0, run)] == pytest.approx(np.sqrt(ratios.prod()))
    figure = sweeps.plot_sweep(frame, "c", xlabel="c", training_runs=4)
    for axis in figure.axes:
        (low, high), dots = axis.get_ylim(), [line for line in axis.lines if line.get_marker() == "."]
        shown = np.concatenate([line.get_ydata() for line in dots])
        assert len(shown) == 2 * 3  # horizontal lines have none
        assert ((shown >= low) & (shown <= high)).all()
    assert [text.get_text() for text in figure.axes[3].texts] == ["K/(K+1)"]
    assert not any(axis.texts for axis in figure.axes[:3])
    assert figure.legends[0].get_texts()[-1].get_text() == "a single run"


def test_a_sweep_marks_the_true_mean_once_as_the_error_that_is_left(monkeypatch):
    marked = []
    monkeypatch.setattr(sweeps.panels, "mark_known_mean", lambda _, runs, rest=False: marked.append((runs, rest)))
    rows = results(0, {"gptfluence": [1.0, 2.0], "mean_trajectory": [np.nan], "persistence": [np.nan]}, runs=3)
    sweeps.plot_sweep(sweeps.sweep(rows, "c"), "c", xlabel="c", training_runs=4)
    assert marked == [(4, True)]


def test_a_statistic_that_one_task_lacks_is_not_averaged_over_the_others():
    rows = results(0, {"gptfluence": [1.0], "persistence": [np.nan]})
    lacking = (rows["statistic"] == "final_step_spearman") & (rows["task"] == "rte")
    rows.loc[lacking, "value"] = np.nan
    frame = sweeps.sweep(rows, "c")
    wide = frame[frame["method"] == "gptfluence"].set_index("statistic")
    assert np.isnan(wide.loc["final_step_spearman", "value"])
    assert wide.loc["final_step_spearman", "undefined"] == 3
    assert np.isfinite(wide.loc["all_steps_mse_relative", "value"])
    figure = sweeps.plot_sweep(frame, "c", xlabel="c")
    assert "undefined" in [text.get_text() for axis in figure.axes for text in axis.texts]


def drawn_by(axis, method: str, marker: str = "") -> list[tuple[float, float]]:
    """The points of a method's lines that lie inside an axis; marker: its own by default."""
    look, (low, high) = names.LINES[method], axis.get_ylim()
    lines = [
        line for line in axis.lines if line.get_color() == look.color and line.get_marker() == (marker or look.marker)
    ]
    points = [point for line in lines for point in zip(*map(np.atleast_1d, line.get_data()), strict=True)]
    return [(float(x), float(y)) for x, y in points if marker or low <= y <= high]


def test_what_is_off_the_axes_is_marked_and_does_not_hide_the_rest():
    values = [1.0, 2.0, 4.0]
    rows = results(
        1, {"gptfluence": values, "simfluence": values, "mean_trajectory": [np.nan], "persistence": [np.nan]}
    )
    lost = (rows["method"] == "simfluence") & (rows["c"] == 4.0) & (rows["statistic"] == "all_steps_mse")
    rows.loc[lost, "value"] = np.inf
    frame = sweeps.sweep(rows, "c")
    figure = sweeps.plot_sweep(frame, "c", xlabel="c")
    for axis in (figure.axes[0], figure.axes[3]):  # MSE, and what R2_dev leaves
        assert axis.get_ylim()[1] < 100
        assert [x for x, _ in drawn_by(axis, "simfluence", "^")] == [4.0]
        assert len(drawn_by(axis, "simfluence")) == 2
    assert "leaves the axes" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "Simfluence" in readings.of_sweep(frame, "c", "interval")


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), worse=st.sampled_from([1.0, 1e3, 1e7]), words=st.booleans())
def test_every_panel_has_a_point_of_every_method_and_holds_its_bars(seed, worse, words):
    """However much worse one method is than the others, and whatever R2_dev does to its size."""
    values = ["minilm-cls", "index"] if words else [1.0, 4.0]
    methods = ("gptfluence", "simfluence", "low_rank", "persistence", "mean_trajectory")
    rows = results(seed, {name: values if name in methods[:3] else [None] for name in methods})
    size = rows["value"].where(~rows["statistic"].str.contains("mse|mae"), rows["value"] * worse)
    rows["value"] = rows["value"].where(rows["method"] != "persistence", size)
    rows["value"] = rows["value"].where(rows["method"] != "low_rank", size)
    frame = sweeps.sweep(rows, "c")
    figure = sweeps.plot_sweep(frame, "c", xlabel="c", join=not words)
    assert len(figure.axes) == 4
    for axis in figure.axes:
        low, high = axis.get_ylim()
        for method in methods:
            assert drawn_by(axis, method), (axis.get_title(), method)
        bars = [bar for drawn in axis.collections for bar in drawn.get_segments()]
        assert len(bars) == 3 * 2
        assert all(low <= end <= high for bar in bars for _, end in bar)


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("width", [style.PAGE, style.COLUMN])
def test_nothing_overlaps_and_nothing_is_cut_at_print_size(words, width):
    values = ["minilm-cls", "minilm-mean", "nano-2.8b", "index"] if words else [1.0, 2.0, 5.0, 10.0]
    rows = results(2, {"gptfluence": values, "simfluence": values, "persistence": [None], "mean_trajectory": [None]})
    frame = sweeps.sweep(rows, "c")
    reports = {
        (task, method): FitReport(9, 4, np.geomspace(1, 1e-3, 9), np.geomspace(1e9, 1e-2, 9))
        for task in ("rte", "wmt16_de_en")
        for method in ("simfluence", "gptfluence")
    }
    curves = sweeps.convergence(reports)
    for figure in (
        sweeps.plot_sweep(frame, "c", xlabel="checkpoint interval (steps)", join=not words, width=width),
        sweeps.plot_convergence(curves, width=width),
    ):
        renderer, page = rendered(figure), figure.bbox
        assert figure.get_size_inches()[0] == width
        boxes = [figure.legends[0].get_window_extent(renderer), *(axis.get_tightbbox(renderer) for axis in figure.axes)]
        for number, box in enumerate(boxes):
            assert box.x0 >= page.x0 - 1
            assert box.x1 <= page.x1 + 1
            assert box.y0 >= page.y0 - 1
            assert box.y1 <= page.y1 + 1
            for other in boxes[number + 1 :]:
                overlap = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
                assert min(overlap) < 2


def test_methods_look_as_everywhere():
    rows = results(3, {"simfluence": [1.0, 2.0], "gptfluence": [1.0, 2.0], "persistence": [np.nan]})
    frame = sweeps.sweep(rows, "c")
    for axis in sweeps.plot_sweep(frame, "c", xlabel="c").axes:
        drawn = {(line.get_color(), line.get_marker()) for line in axis.lines}
        for method in ("simfluence", "gptfluence"):
            assert (names.LINES[method].color, names.LINES[method].marker) in drawn


def test_convergence_holds_every_epoch_and_marks_the_one_that_was_kept():
    reports = {
        ("rte", "gptfluence"): FitReport(5, 3, np.arange(5, 0, -1.0), np.array([np.inf, 2, 1, 2, 3])),
        ("rte", "simfluence"): FitReport(2, 2, np.array([4.0, 3.0]), np.array([9.0, 8.0])),
    }
    frame = sweeps.convergence(reports)
    assert len(frame) == 2 * (5 + 2)
    kept = frame[frame["best"]].set_index(["method", "curve"])["epoch"]
    assert kept["gptfluence", "validation_mse"] == 3
    assert kept["simfluence", "training_loss"] == 2
    figure = sweeps.plot_convergence(frame)
    assert "leaves the axes" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "Lowest validation error: GPTfluence on 1 of 1 tasks." in readings.of_convergence(frame)


def test_a_caption_says_how_many_fits_ended_by_themselves():
    ends = ["patience", "patience", "max_epochs", "divergence", ""]
    reports = {str(number): FitReport(ended=ended) for number, ended in enumerate(ends)}
    assert readings.of_ends(reports) == (
        "2 of 4 fits ended by themselves, when validation errors no longer fell; 1 ended at the largest number of epochs; "
        "1 diverged."
    )
    assert readings.of_ends({"closed form": FitReport()}) == "No fit was made in epochs."


def test_frames_that_cannot_be_drawn_are_refused():
    with pytest.raises(ConfigurationError, match="no column interval"):
        sweeps.sweep(results(0, {"gptfluence": [1.0]}), "interval")
    frame = sweeps.sweep(results(0, {"gptfluence": [1.0], "persistence": [np.nan]}), "c")
    with pytest.raises(ConfigurationError, match="no column interval"):
        sweeps.plot_sweep(frame, "interval", xlabel="interval")
    with pytest.raises(ConfigurationError, match="is empty"):
        sweeps.plot_sweep(frame.iloc[:0], "c", xlabel="c")
    with pytest.raises(ConfigurationError, match="empty"):
        sweeps.plot_convergence(sweeps.convergence({}))


def curves():
    rows = [("a", s, r, x, x + r) for s in ("gptfluence", "simfluence") for r in (0, 1) for x in (0.0, 0.5, 1.0)]
    return pd.DataFrame(rows, columns=["panel", "series", "repeat", "x", "value"])


def test_lines_are_means_and_bands_reach_from_least_to_most():
    figure = plot_curves(curves(), xlabel="step", ylabels={"a": "error"})
    axis = figure.axes[0]
    for line in axis.lines:
        np.testing.assert_allclose(line.get_ydata(), [0.5, 1.0, 1.5])
    assert len(axis.lines) == len(axis.patches) == 2
    for band in axis.patches:
        heights = band.get_xy()[:, 1]
        assert (heights.min(), heights.max()) == (0, 2)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("step", "error")


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (curves().drop(columns="repeat"), "no column repeat"),
        (curves().iloc[:0], "the frame is empty"),
        (curves().assign(panel="b"), "panel 'b' has no label"),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(frame, said):
    with pytest.raises(ConfigurationError, match=said):
        plot_curves(frame, xlabel="x", ylabels={"a": "y"})
