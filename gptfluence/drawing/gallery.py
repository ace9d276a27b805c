"""Galleries of trajectories: panels of several tasks and metrics in one figure, and how typical those drawn are.

Panels show a handful of trajectories. What is said of them is therefore followed by what all trajectories of the same
runs say, and by the paper's order of methods where the paper has a table of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_lowercase

import numpy as np
import pandas as pd

from gptfluence import paper
from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import comparisons, figures, names, tables
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.scoring import evaluation

Simulated = tuple[GPTDynamics, Mapping[str, np.ndarray]]  # what `Study.simulate` returns
TABLES = {  # the paper's table of each setting and metric
    ("instruction_tuning", "loss"): 1,
    ("fine_tuning", "loss"): 2,
    ("instruction_tuning", "bleu"): 3,
    ("instruction_tuning", "rouge_l"): 3,
    ("fine_tuning", "bleu"): 4,
    ("fine_tuning", "rouge_l"): 4,
}
UNSEEN = {"training": "unseen_train", "test": "unseen_test", "both": "unseen_train_and_test"}  # as table 11 has it


def panel_frame(parts: Mapping[tuple[str, str], Simulated], *, examples: int = 1, observed: int = 1) -> pd.DataFrame:
    """The frame of lettered panels for `figures.plot_trajectories`, with the metric of each panel in a column.

    parts: (metric, task) -> recorded runs and predictions, in the order of the letters; see `figures.trajectory_frame`,
        which chooses the examples. The panels of a part share its letter.
    Raises ConfigurationError if there is no part.
    """
    if not parts:
        raise ConfigurationError("panel_frame: nothing to draw; give one (metric, task) at least")
    frames = []
    for letter, ((metric, task), simulated) in zip(ascii_lowercase, parts.items(), strict=False):
        part = figures.trajectory_frame({task: simulated}, metric=metric, examples=examples, observed=observed)
        part["panel"] = f"({letter}) " + part["panel"]
        part.insert(2, "metric", metric)
        frames.append(part)
    return pd.concat(frames, ignore_index=True)


def results_of(parts: Mapping[tuple[str, str], Simulated], *, observed: int = 1) -> pd.DataFrame:
    """Every method on all trajectories that panels were chosen from: metric, task, method, run, statistic, value.

    R2_dev compares with the predictions of `mean_trajectory`. Raises ConfigurationError if a part lacks them.
    """
    frames = []
    for (metric, task), (recorded, predicted) in parts.items():
        if "mean_trajectory" not in predicted:
            raise ConfigurationError(
                f"results_of: {task}, {metric}: the predictions hold no 'mean_trajectory', which R2_dev compares with"
            )
        for method, values in predicted.items():
            frame = evaluation.evaluate(
                values, recorded, metric=metric, observed=observed, reference=predicted["mean_trajectory"]
            )
            frames.append(frame.assign(metric=metric, task=task, method=method))
    return pd.concat(frames, ignore_index=True)[["metric", "task", "method", "run", "statistic", "value"]]


def reported(setting: str, metric: str, model: str) -> pd.DataFrame | None:
    """The paper's rows (`comparisons.reported`) for the model that `model` is or stands for; None where it has none."""
    number = TABLES.get((setting, metric))
    if number is None:
        return None
    rows = comparisons.reported(number)
    rows = rows[(rows["metric"] == metric) & (rows["model"] == names.paper_model(model))]
    return rows if len(rows) else None


def beside_paper(results: pd.DataFrame, task: str, metric: str, unseen: str, model: str) -> str:
    """The error of GPTfluence on unseen examples beside the paper's, in a sentence; "" where either has none.

    results: of `results_of`; unseen: "training", "test" or "both"; model: the one whose paper's counterpart is meant
    """
    rows = paper.table(11, statistic="all_steps_mse", method=f"gptfluence {UNSEEN[unseen]}")
    chosen = (rows["task"] == task) & (rows["metric"] == metric) & (rows["model"] == names.paper_model(model))
    rows = rows[chosen]
    mine = results[(results["task"] == task) & (results["metric"] == metric) & (results["method"] == "gptfluence")]
    if rows.empty or mine.empty:
        return ""
    summary = evaluation.summarize(mine.drop(columns=["metric", "task", "method"])).set_index("statistic")["value"]
    return (
        f"All-steps MSE of GPTfluence on {names.task(task)}, {names.metric(metric)}: {summary['all_steps_mse']:.3g} here, "
        f"{rows['value'].iloc[0]:.3g} in the paper's table 11 (another GPT on other texts, so that sizes do not compare)."
    )


def reading(frame: pd.DataFrame, results: pd.DataFrame, paper_rows: Mapping[str, pd.DataFrame | None]) -> str:
    """What the drawn panels show, then what all trajectories show that they were chosen from, each metric by itself.

    frame: of `panel_frame` or `figures.trajectory_frame`; results: of `results_of`; paper_rows: metric -> `reported`
    """
    sentences = []
    metrics = list(results["metric"].unique())
    for metric in metrics:
        drawn = frame[frame["metric"] == metric] if "metric" in frame else frame
        rows = results[results["metric"] == metric].drop(columns="metric")
        summary = evaluation.summarize(rows)
        several = f"By {names.metric(metric)}: " if len(metrics) > 1 else ""
        sentences += [
            f"{several}{figures.reading(drawn)}",
            f"Over all {_trajectories(rows)} held-out trajectories: {tables.reading(summary, paper_rows.get(metric))}",
            _undefined(summary),
        ]
    return " ".join(sentence for sentence in sentences if sentence)


def _trajectories(rows: pd.DataFrame) -> int:
    """How many trajectories each method predicted."""
    first = rows[(rows["statistic"] == "trajectories") & (rows["method"] == rows["method"].iloc[0])]
    return int(first["value"].sum())


def _undefined(summary: pd.DataFrame) -> str:
    """Diverged trajectories, and runs whose rank correlation is undefined, where there are any."""
    parts = []
    for method, rows in summary.groupby("method", sort=False):
        lost = int(rows.loc[rows["statistic"] == "diverged", "value"].sum())
        undefined = int(rows.loc[rows["statistic"] == "final_step_spearman", "undefined"].sum())
        parts += [f"{names.method(method)} diverged in {lost}"] if lost else []
        parts += (
            [f"no rank correlation for {names.method(method)} in {undefined} run{'s' if undefined > 1 else ''}"]
            if undefined
            else []
        )
    return f"Not defined: {'; '.join(parts)}." if parts else ""


def panel_names(panels: Sequence[tuple[str, str]]) -> str:
    """Panels in words, with their letters: "(a) loss on RTE, (b) BLEU on WebNLG"."""
    return ", ".join(
        f"({letter}) {names.metric(metric)} on {names.task(task)}"
        for letter, (metric, task) in zip(ascii_lowercase, panels, strict=False)
    )
