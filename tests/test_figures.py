"""Figures: drawn to be read, and saved so that a rerun changes nothing."""

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gptfluence.common import provenance
from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names, saving, style, tables
from gptfluence.drawing.trajectories import LINEAR, plot_trajectories
from gptfluence.simulators.methods import METHODS
from summaries import facts, summary

ROOT = Path(__file__).parents[1]


def trajectories(panels: int = 2, observed: int = 1, methods: tuple[str, ...] = ("gptfluence", "simfluence")):
    rows = []
    for panel in range(panels):
        recorded = 2 + np.exp(-np.arange(13) / 5) + 0.1 * panel
        for shift, name in enumerate(["recorded", *methods]):
            for step, value in enumerate(recorded):
                given = step < observed
                rows.append((f"panel {panel}", name, step, value + (0 if given else 0.05 * shift), given))
    return pd.DataFrame(rows, columns=["panel", "series", "step", "value", "observed"])


def lines_of(axis, color: str) -> list:
    return [line for line in axis.lines if line.get_color() == color and len(line.get_xdata()) > 1]


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def rendered(figure: Figure):
    """Draw the figure; returns the renderer, which knows how large everything came out."""
    canvas = FigureCanvasAgg(figure)
    with style.style():
        canvas.draw()
    return canvas.get_renderer()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- trajectories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observed", [1, 4])
def test_a_simulated_line_starts_where_the_observed_part_ends(observed):
    frame = trajectories(observed=observed)
    axis = plot_trajectories(frame).axes[0]
    recorded = frame[(frame["panel"] == "panel 0") & (frame["series"] == "recorded")]
    (drawn,) = lines_of(axis, names.LINES["recorded"].color)
    np.testing.assert_allclose(drawn.get_ydata(), recorded["value"])
    for method in ("gptfluence", "simfluence"):
        (line,) = lines_of(axis, names.LINES[method].color)
        np.testing.assert_array_equal(line.get_xdata(), np.arange(observed - 1, 13))
        assert line.get_ydata()[0] == recorded["value"].iloc[observed - 1]


def test_a_method_without_its_observed_part_starts_at_the_recorded_one():
    frame = trajectories()
    short = frame[~(frame["observed"] & (frame["series"] != "recorded"))]
    for whole, cut in zip(plot_trajectories(frame).axes, plot_trajectories(short).axes, strict=True):
        color = names.LINES["gptfluence"].color
        np.testing.assert_array_equal(lines_of(whole, color)[0].get_ydata(), lines_of(cut, color)[0].get_ydata())


def test_a_diverging_line_does_not_hide_the_others_and_is_marked():
    frame = trajectories()
    lost = (frame["series"] == "simfluence") & (frame["step"] > 6) & (frame["panel"] == "panel 0")
    frame.loc[lost, "value"] = 10.0 ** (2 * frame.loc[lost, "step"])
    frame.loc[lost & (frame["step"] == 12), "value"] = np.inf
    figure = plot_trajectories(frame)
    low, high = figure.axes[0].get_ylim()
    assert high - low < 4
    assert any(line.get_marker() == "^" and list(line.get_xdata()) == [7] for line in figure.axes[0].lines)
    assert "leaves the axes" in legend_of(figure)
    assert "leaves the axes" not in legend_of(plot_trajectories(trajectories()))


@settings(max_examples=20, deadline=None)
@given(
    factors=st.lists(st.floats(-200, 200), min_size=1, max_size=4),
    start=st.floats(0, 100),
    observed=st.integers(1, 4),
)
def test_all_curves_lie_inside_and_the_recorded_one_can_be_read(factors, start, observed):
    """However far they go, and whatever is recorded."""
    frame = trajectories(panels=len(factors), observed=observed)
    for panel, factor in enumerate(factors):
        moved = (frame["panel"] == f"panel {panel}") & (frame["series"] == "simfluence") & ~frame["observed"]
        frame.loc[moved, "value"] += factor * frame.loc[moved, "step"] / 12
    frame["value"] += start
    figure = plot_trajectories(frame)
    assert len(figure.axes) == len(factors)
    for panel, axis in enumerate(figure.axes):
        part = frame[frame["panel"] == f"panel {panel}"]
        low, high = axis.get_ylim()
        assert low < part["value"].min()
        assert part["value"].max() < high
        assert all(low <= y <= high for line in axis.lines if len(line.get_xdata()) > 2 for y in line.get_ydata())
        recorded = part.loc[part["series"] == "recorded", "value"]
        ends = axis.transData.transform([(0, recorded.min()), (0, recorded.max()), (0, low), (0, high)])[:, 1]
        assert (ends[1] - ends[0]) / (ends[3] - ends[2]) > 0.12
        ticks = axis.get_yticks()
        assert len(ticks) >= 2
        assert all(low <= tick <= high for tick in ticks)
    ranges = frame.groupby("panel")["value"].agg(["min", "max"])
    near = frame[frame["series"] == "recorded"].groupby("panel")["value"].agg(["min", "max"])
    span = LINEAR * (near["max"] - near["min"])
    beyond = (ranges["min"] < near["min"] - span) | (ranges["max"] > near["max"] + span)
    assert ("log axis beyond" in legend_of(figure)) == beyond.any()


@settings(max_examples=20, deadline=None)
@given(panels=st.integers(1, 20), width=st.sampled_from([style.PAGE, style.COLUMN]))
def test_there_is_no_panel_without_a_line_and_few_places_are_empty(panels, width):
    figure = plot_trajectories(trajectories(panels), width=width)
    assert len(figure.axes) == panels
    assert all(axis.get_visible() and axis.lines for axis in figure.axes)
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert grid.nrows * grid.ncols - panels in ((0,) if panels in (2, 4, 6, 8, 10, 12, 16, 20) else (0, 1, 2))


def test_a_legend_of_many_series_takes_no_room_from_the_panels():
    few, many = (
        plot_trajectories(trajectories(4, methods=tuple(f"a method with a long name {i}" for i in range(count))))
        for count in (4, 12)  # two rows, and more
    )
    heights = [figure.axes[0].get_window_extent(rendered(figure)).height for figure in (few, many)]
    assert heights[1] > 0.95 * heights[0]
    legend = many.legends[0].get_window_extent(rendered(many))
    assert legend.x0 >= 0
    assert legend.x1 <= many.bbox.x1


@pytest.mark.parametrize(("width", "panels"), [(style.PAGE, 5), (style.PAGE, 8), (style.PAGE, 10), (style.COLUMN, 2)])
def test_nothing_overlaps_and_nothing_is_cut_at_print_size(width, panels):
    frame = trajectories(panels, methods=("gptfluence", "simfluence", "tracin_cp", "grad_dot", "mean_trajectory"))
    frame["panel"] = frame["panel"] + ": WMT16 DE/EN, one example of many"
    figure = plot_trajectories(frame, width=width)
    renderer, page = rendered(figure), figure.bbox
    assert figure.get_size_inches()[0] == width
    axes = [axis for axis in figure.axes if axis.get_visible()]
    assert len(axes) == panels
    boxes = [figure.legends[0].get_window_extent(renderer), *(axis.get_tightbbox(renderer) for axis in axes)]
    for number, box in enumerate(boxes):
        assert box.x0 >= page.x0 - 1 and box.y0 >= page.y0 - 1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1  # noqa: PT018
        for other in boxes[number + 1 :]:
            overlap = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(overlap) < 2  # a pixel of rounding
    assert all(axis.get_window_extent(renderer).width > 0.6 * figure.dpi for axis in axes)


def test_axes_have_names_and_units_and_each_method_its_own_look():
    frame = trajectories(4).assign(metric=lambda rows: np.where(rows["panel"] < "panel 2", "loss", "bleu"))
    labels = [axis.get_ylabel().replace("\n", " ") for axis in plot_trajectories(frame).axes]
    assert labels == ["loss (nats per target token)"] * 2 + ["BLEU (0–100)"] * 2
    together = names.lines((name, "") for name in names.LINES)  # TracIn-CP of all checkpoints and of ten, too
    looks = [(line.dash, line.marker) for line in together.values()]
    assert len(set(looks)) == len(looks)


def lab(color: str, seen: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a colour under D65, as somebody sees it who sees linear RGB through the matrix `seen`."""
    srgb = np.array(mpl.colors.to_rgb(color))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(seen @ linear, 0, 1) / (TO_XYZ @ np.ones(3))
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
DEUTERANOPIA = np.array(  # Machado, Oliveira and Fernandes, 2009
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


@pytest.mark.parametrize(("seen", "least"), [(np.eye(3), 25), (DEUTERANOPIA, 10)])
def test_methods_are_told_apart_by_colour_also_by_the_colour_blind(seen, least):
    colors = {name: method.line.color for name, method in METHODS.items() if not name.startswith("tracin")}
    colors |= {"tracin_cp": names.LINES["tracin_cp"].color, "recorded": names.LINES["recorded"].color}
    for (one, first), (other, second) in combinations(colors.items(), 2):
        distance = np.linalg.norm(lab(first, seen) - lab(second, seen))
        assert distance > (40 if {one, other} == {"gptfluence", "tangent"} else least), (one, other)


def test_variants_of_a_method_are_told_apart_and_one_alone_looks_like_the_method():
    alone = names.lines([("recorded", ""), ("gptfluence", "markov_order=2")])
    assert alone["gptfluence", "markov_order=2"] == names.LINES["gptfluence"]
    variants = [("tangent", ""), *(("tangent", f"candidates={count}") for count in range(6)), ("gptfluence", "")]
    lines = names.lines([*variants, *variants])
    assert list(lines) == variants
    assert lines["tangent", ""] == names.LINES["tangent"]
    assert len({line.color for line in lines.values()}) == len({line.marker for line in lines.values()}) == 8
    frame = trajectories(methods=("gptfluence", "simfluence"))
    both = frame.replace("simfluence", "gptfluence").assign(
        variant=np.where(frame["series"] == "simfluence", "markov_order=2", "")
    )
    figure = plot_trajectories(both)
    assert legend_of(figure) == ["recorded", "GPTfluence", "GPTfluence (order 2)", "last observed"]
    assert len({line.get_color() for line in figure.axes[0].lines if len(line.get_xdata()) > 1}) == 3


def test_the_readers_own_settings_neither_matter_nor_change(tmp_path):
    mine = save(tmp_path / "a")
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9, "savefig.dpi": 30, "axes.grid": False}):
        other = save(tmp_path / "b")
        assert mpl.rcParams["font.size"] == 20
    assert mine["fig.png"] == other["fig.png"]
    assert mine["fig.pdf"] == other["fig.pdf"]


def test_a_frame_that_cannot_be_drawn_is_refused():
    frame = trajectories()
    with pytest.raises(ConfigurationError, match="no column observed, step"):
        plot_trajectories(frame.drop(columns=["step", "observed"]))
    with pytest.raises(ConfigurationError, match="is empty"):
        plot_trajectories(frame.iloc[:0])
    with pytest.raises(ConfigurationError, match="no recorded trajectory in panel panel 1"):
        plot_trajectories(frame[(frame["series"] != "recorded") | (frame["panel"] == "panel 0")])


# --- files -----------------------------------------------------------------------------------------------------------

DRAW = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_figures import save, save_a_table
save(Path(sys.argv[1])), save_a_table(Path(sys.argv[1]))
"""


def test_another_process_writes_the_same_bytes(tmp_path):
    arguments = [sys.executable, "-c", DRAW, str(tmp_path / "other"), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run(arguments, env=environment, check=True)
    save(tmp_path / "mine")
    save_a_table(tmp_path / "mine")
    first, second = contents(tmp_path / "mine"), contents(tmp_path / "other")
    kinds = {"fig": ("csv", "json", "pdf", "png"), "tab": ("csv", "html", "json", "md", "tex")}
    assert sorted(first) == [f"{name}.{suffix}" for name, suffixes in kinds.items() for suffix in suffixes]
    for name in first:
        if name.endswith(".json"):
            mine, other = json.loads(first[name]), json.loads(second[name])
            run = mine.pop("run")
            assert {"commit", "clean", "date", "wall_time_seconds", "device"} <= run.keys() == other.pop("run").keys()
            assert mine == other
        else:
            assert first[name] == second[name], name
    assert b"Matplotlib" not in first["fig.png"]
    assert b"CreationDate" not in first["fig.pdf"]
    assert b"/Type3" not in first["fig.pdf"]  # fonts are embedded as TrueType
    assert b"/FontFile2" in first["fig.pdf"]


def save(folder: Path, **changed) -> dict[str, bytes]:
    frame = trajectories(panels=1)
    options = {"caption": "A caption.", "provenance": facts(), **changed}
    saving.save_figure(plot_trajectories(frame, width=style.COLUMN), frame, folder, "fig", **options)
    return contents(folder)


def save_a_table(folder: Path) -> None:
    table = tables.methods_by_task(summary())
    saving.save_table(table, folder, "tab", caption="100 % of it.", provenance=facts())


def test_a_rerun_leaves_every_file_as_it_is_and_a_change_does_not(tmp_path):
    first = save(tmp_path, provenance=facts(seconds=1.0))
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert save(tmp_path, provenance=facts(seconds=2.0, device="cuda")) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
    later = json.loads(save(tmp_path, provenance=facts(seconds=3.0, parameters={"seed": 1}))["fig.json"])
    assert (later["parameters"], later["run"]["wall_time_seconds"]) == ({"seed": 1}, 3.0)
    assert json.loads(save(tmp_path, caption="Another.")["fig.json"])["caption"] == "Another."
    (tmp_path / "fig.json").write_text("{")
    assert json.loads(save(tmp_path)["fig.json"])["command"] == "make it"


def test_the_csv_holds_every_number_that_was_drawn(tmp_path):
    save(tmp_path)
    frame = trajectories(panels=1)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "fig.csv"), frame, check_dtype=False, rtol=1e-8)


def test_the_state_of_git_is_that_of_this_code_or_nothing(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(tmp_path)]
        return subprocess.run(["git", *names, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    code = tmp_path / "package" / "code.py"
    (tmp_path / "figures").mkdir()
    code.parent.mkdir()
    code.write_text("1")
    (tmp_path / "figures" / "fig.csv").write_text("1")
    assert provenance.git_state(code) == {"commit": None, "clean": None}
    git("init")
    git("add", "figures")
    git("commit", "-m", "figures only")
    assert provenance.git_state(code)["commit"] is None  # a copy inside somebody else's repository
    git("add", "package")
    git("commit", "-m", "code")
    assert provenance.git_state(code) == {"commit": git("rev-parse", "HEAD"), "clean": True}
    (tmp_path / "figures" / "fig.csv").write_text("2")  # an output of the very run that asks
    assert provenance.git_state(code)["clean"] is True
    code.write_text("2")
    assert provenance.git_state(code)["clean"] is False
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(code) == {"commit": None, "clean": None}
