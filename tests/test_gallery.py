"""Galleries: what is drawn is what was recorded and simulated, and what is said of it is computed from all of it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gptfluence import paper
from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import gallery, overview, readings, style, trajectories
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.simulators.base import FitReport
from gptfluence.tasks.base import Example, TaskPool


def dynamics(
    task: str = "rte", names: tuple[str, ...] = ("test-000", "test-001"), steps: int = 6, tests: int = 5, seed=0
):
    """Runs of 3 examples a batch on a pool of 7, with random walks for loss and BLEU."""
    random = np.random.default_rng(seed)
    pool = TaskPool("pool", tuple(Example(f"p{i}", f"text {i}", " yes", task) for i in range(7)))
    held = TaskPool("tests", tuple(Example(f"t{i}", f"question {i}", " no", task) for i in range(tests)))
    runs = [
        TrainingRun(
            name,
            Curriculum(random.integers(0, 7, (steps, 3)).astype(np.int32)),
            {
                metric: (3 + random.normal(0, 0.1, (steps + 1, tests)).cumsum(axis=0)).astype(np.float32)
                for metric in ("loss", "bleu")
            },
        )
        for name in names
    ]
    return GPTDynamics(task, "nano-410m", pool, held, tuple(runs))


def predictions(recorded: GPTDynamics, metric: str = "loss", seed: int = 1) -> dict[str, np.ndarray]:
    truth, random = recorded.trajectories(metric), np.random.default_rng(seed)
    found = {}
    for method in ("mean_trajectory", "gptfluence"):
        found[method] = truth + random.normal(0, 0.2, truth.shape).astype(np.float32)
        found[method][:, 0] = truth[:, 0]
    return found


def parts(**options) -> dict:
    return {
        ("loss", "rte"): (dynamics("rte", **options), predictions(dynamics("rte", **options))),
        ("bleu", "webnlg"): (dynamics("webnlg", **options), predictions(dynamics("webnlg", **options), "bleu")),
    }


def test_panels_are_lettered_in_order_and_hold_what_was_recorded_and_simulated():
    given_parts = parts()
    frame = trajectories.lettered_frame(given_parts, examples=2)
    assert [panel[:3] for panel in frame["panel"].unique()] == ["(a)", "(a)", "(b)", "(b)"]
    assert frame.groupby("panel")["metric"].nunique().eq(1).all()
    for (metric, task), (recorded, predicted) in given_parts.items():
        for (example, series), line in frame[frame["task"] == task].groupby(["example", "series"]):
            column = [test.id for test in recorded.tests].index(example)
            values = recorded.trajectories(metric) if series == "recorded" else predicted[series]
            np.testing.assert_allclose(line["value"], values[0, :, column], rtol=1e-6)


def test_results_are_those_of_a_loop_over_all_trajectories():
    given_parts = parts()
    results = gallery.results_of(given_parts).set_index(["task", "method", "run", "statistic"])["value"]
    for (metric, task), (recorded, predicted) in given_parts.items():
        truth = recorded.trajectories(metric).astype(float)
        for method, values in predicted.items():
            for number, run in enumerate(recorded.names):
                errors = [
                    (float(values[number, step, test]) - truth[number, step, test]) ** 2
                    for step in range(1, truth.shape[1])
                    for test in range(truth.shape[2])
                ]
                assert results[task, method, run, "all_steps_mse"] == pytest.approx(sum(errors) / len(errors))
    with pytest.raises(ConfigurationError, match="rte, loss: the predictions hold no 'mean_trajectory'"):
        gallery.results_of({("loss", "rte"): (dynamics(), {"gptfluence": predictions(dynamics())["gptfluence"]})})
    with pytest.raises(ConfigurationError, match="nothing to draw"):
        trajectories.lettered_frame({})


def test_a_reading_never_mixes_metrics_and_counts_all_trajectories():
    given_parts = parts()
    frame, results = trajectories.lettered_frame(given_parts), gallery.results_of(given_parts)
    text = readings.of_gallery(frame, results, {})
    assert text.count("Over all 10 held-out trajectories") == 2  # 2 runs x 5 tests, each metric by itself
    assert text.count("of 1 panels") == 2
    loss = results[results["metric"] == "loss"]
    alone = readings.of_gallery(frame[frame["metric"] == "loss"], loss, {})
    assert alone in text.replace("By loss: ", "")


def test_diverged_and_undefined_cases_are_counted():
    recorded = dynamics()
    predicted = predictions(recorded)
    predicted["gptfluence"][0, 3:, 1] = np.inf
    predicted["mean_trajectory"][1, -1] = 2.5  # constant over tests: no ranks
    given_parts = {("loss", "rte"): (recorded, predicted)}
    text = readings.of_gallery(trajectories.lettered_frame(given_parts), gallery.results_of(given_parts), {})
    assert "Predicted trajectories that diverged: GPTfluence 1." in text
    assert "The rank correlation is undefined for Mean trajectory in 1 run" in text


@pytest.mark.parametrize(
    ("setting", "metric", "model", "table"),
    [
        ("fine_tuning", "loss", "nano-410m", 2),
        ("fine_tuning", "bleu", "nano-410m", 4),
        ("instruction_tuning", "loss", "nano-2.8b", 1),
        ("instruction_tuning", "rouge_l", "pythia-1b", 3),
    ],
)
def test_the_papers_rows_are_of_the_model_that_is_stood_for(setting, metric, model, table):
    rows = gallery.reported(setting, metric, model)
    assert len(rows) == len(paper.table(table, metric=metric, model=f"pythia-{model.split('-')[1]}"))
    assert set(rows["model"]) == {f"pythia-{model.split('-')[1]}"}
    assert set(rows["metric"]) == {metric}
    assert not rows.duplicated(["task", "method", "statistic"]).any()
    assert gallery.reported(setting, metric, "smollm2-135m") is None
    assert gallery.reported(setting, "accuracy", model) is None


def test_unseen_results_stand_beside_the_papers_number():
    results = gallery.results_of(parts())
    text = readings.beside_paper(results, ("loss", "rte"), "both", "nano-410m")
    reported = paper.table(
        11, task="rte", metric="loss", method="gptfluence unseen_train_and_test", statistic="all_steps_mse"
    )
    assert f"{reported['value'].item():.3g} in the paper" in text
    assert readings.beside_paper(results, ("loss", "rte"), "both", "smollm2-135m") == ""
    assert readings.beside_paper(results[results["method"] != "gptfluence"], ("loss", "rte"), "both", "nano-410m") == ""


def test_titles_of_panels_with_several_metrics_stay_on_the_page():
    given_parts = {(metric, "wmt16_de_en"): one for (metric, _), one in parts().items()}
    figure = trajectories.plot_trajectories(trajectories.lettered_frame(given_parts, examples=2))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [axis.get_tightbbox(canvas.get_renderer()) for axis in figure.axes]
    assert all(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)
    for left, right in pairwise(boxes):
        assert left.x1 <= right.x0 + 2


# --- figure 1 --------------------------------------------------------------------------------------------------------

RUNS = ("train-000", "train-001", "train-002", "validation-000", "test-000")


def report(epochs: int = 8, best: int = 5) -> FitReport:
    errors = np.linspace(1, 0.01, epochs)
    return FitReport(epochs=epochs, best_epoch=best, training_loss=errors / 10, validation_mse=errors)


def overview_of(runs: GPTDynamics, **options) -> pd.DataFrame:
    held_out = runs.split()[2]
    return overview.overview_frame(runs, report(), predictions(held_out)["gptfluence"], **options)


@settings(max_examples=15, deadline=None)
@given(steps=st.integers(2, 9), tests=st.integers(2, 6), seed=st.integers(0, 99))
def test_the_overview_shows_one_training_run_and_one_held_out_run_as_recorded(steps, tests, seed):
    runs = dynamics(names=RUNS, steps=steps, tests=tests, seed=seed)
    frame = overview_of(runs)
    for panel, run in (("curriculum", runs.runs[0]), ("new curriculum", runs.runs[-1])):
        drawn = frame[frame["panel"] == panel].groupby("x")["y"].apply(list)
        assert [sorted(batch) for batch in drawn] == [sorted(batch) for batch in run.curriculum.batches.tolist()]
    drawn = frame[frame["panel"] == "trajectories"].pivot(index="x", columns="example", values="y")
    np.testing.assert_allclose(drawn.to_numpy(), runs.runs[0].trajectories["loss"], rtol=1e-6)
    simulation = frame[(frame["panel"] == "simulation") & (frame["x"] == 0)]
    assert simulation.groupby("example")["y"].nunique().eq(1).all()  # a simulation starts at the recorded value
    assert frame.loc[(frame["panel"] == "validation error") & frame["shown"], "x"].tolist() == [5]


def test_the_mean_trajectory_of_the_overview_is_that_of_the_training_runs():
    runs = dynamics(names=RUNS)
    frame = overview_of(runs)
    train, validation, _ = runs.split()
    error = [
        (validation.runs[0].trajectories["loss"][step, test] - np.mean([r.trajectories["loss"][step, test] for r in train.runs])) ** 2
        for step in range(1, 7)
        for test in range(5)
    ]  # fmt: skip
    line = frame[(frame["panel"] == "validation error") & (frame["series"] == "mean_trajectory")]["y"]
    assert line.to_numpy() == pytest.approx(np.mean(error), rel=1e-5)
    assert f"{np.mean(error):.3g}" in readings.of_overview(frame, runs=3)


def test_the_overview_can_be_drawn_without_validation_and_with_a_diverged_simulation():
    runs = dynamics(names=tuple(name for name in RUNS if not name.startswith("validation")))
    predicted = predictions(runs.split()[2])["gptfluence"]
    predicted[:, 4:] = np.inf
    fitted = FitReport(epochs=3, best_epoch=3, training_loss=np.array([1.0, 0.5, 0.2]), validation_mse=np.empty(0))
    frame = overview.overview_frame(runs, fitted, predicted)
    figure = overview.plot_overview(frame)
    FigureCanvasAgg(figure).draw()
    assert "3 epochs" in readings.of_overview(frame, runs=3)


def test_an_overview_that_cannot_be_drawn_is_refused():
    runs = dynamics(names=RUNS)
    with pytest.raises(ConfigurationError, match="persistence is not fitted in epochs"):
        overview.overview_frame(runs, FitReport(), predictions(runs.split()[2])["gptfluence"], method="persistence")
    with pytest.raises(ConfigurationError, match="examples must be 1 to 3, not 4"):
        overview_of(runs, examples=4)
    with pytest.raises(ConfigurationError, match="no column shown, x"):
        overview.plot_overview(overview_of(runs).drop(columns=["x", "shown"]))


def test_nothing_of_the_overview_overlaps_or_is_cut():
    figure = overview.plot_overview(overview_of(dynamics(names=RUNS)))
    canvas = FigureCanvasAgg(figure)
    with style.style():
        canvas.draw()
    renderer, page = canvas.get_renderer(), figure.bbox
    boxes = [figure.legends[0].get_window_extent(renderer), *(axis.get_tightbbox(renderer) for axis in figure.axes)]
    for number, box in enumerate(boxes):
        assert min(box.x0 - page.x0, box.y0 - page.y0, page.x1 - box.x1, page.y1 - box.y1) >= -1
        for other in boxes[number + 1 :]:
            overlap = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(overlap) < 2
