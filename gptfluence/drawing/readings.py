"""What figures and tables show, in sentences computed from their numbers: the same words for the same thing everywhere.

Trivial baselines (persistence, the mean trajectory, and counts of labels and formats, which know nothing of what texts say)
compete like every other method. Methods that are told the answer do not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np
import pandas as pd

from gptfluence.drawing import names, tables
from gptfluence.drawing.tables import block_name, told_the_answer, with_variants
from gptfluence.drawing.typeset import Table
from gptfluence.scoring import evaluation
from gptfluence.scoring.across_tasks import RELATIVE
from gptfluence.simulators.base import FitReport

FEW = 3  # blocks of a table that are still told one by one
MEAN = "the mean trajectory of the training runs"
COUNTS = ("counts", "")


# --- tables ----------------------------------------------------------------------------------------------------------


def of_table(table: Table) -> str:
    """What a table of `tables.methods_by_task` says: who wins, by how much, who beats the mean and counts, whose order.

    Where methods come in another order than in the paper, it says by how much curves differ from run to run at all,
    compared with how far they drift: only the first can be explained.
    """
    by = list(table.numbers.columns[: list(table.numbers.columns).index("task")])
    numbers = with_variants(table.numbers)[lambda rows: ~told_the_answer(rows)]
    single = numbers[~numbers["task"].isin([tables.OVER_TASKS, tables.PAPERS_MEAN])]
    cases = [rows for _, rows in single.groupby([*by, "task"], sort=False)]
    groups = list(numbers.groupby(by, sort=False)) if by else [((), numbers)]
    blocks = {block_name(dict(zip(by, key, strict=True))): rows for key, rows in groups}
    unit = "cases" if by else "tasks"
    sentences = [_winner(name, rows) for name, rows in blocks.items()] if len(blocks) <= FEW else []
    sentences += [_others(rows) for rows in blocks.values()] if len(blocks) == 1 else []
    sentences += [_winners(cases, unit), _explains(cases, unit), _beats_counts(cases, unit)]
    sentences += [_diverged(single), *_order(cases, unit)]
    return " ".join(sentence for sentence in sentences if sentence)


def ranked(rows: pd.DataFrame, statistic: str, column: str = "value") -> pd.Series:
    """(method, variant) -> value of one statistic, the best first; what is not finite is left out."""
    values = with_variants(rows[rows["statistic"] == statistic]).set_index(["method", "variant"])[column]
    return values[np.isfinite(values)].sort_values(ascending=names.SMALLER_IS_BETTER[statistic], kind="stable")


def best_variants(table: Table, method: str) -> str:
    """Which variant of a method has the lowest MSE for each block and task of a table, beside the paper's choice."""
    numbers = with_variants(table.numbers)
    by = list(numbers.columns[: list(numbers.columns).index("task")])
    parts = []
    for key, rows in numbers[numbers["method"] == method].groupby([*by, "task"], sort=False):
        *block, task = key
        order, theirs = ranked(rows, "all_steps_mse"), ranked(rows, "all_steps_mse", "paper")
        if order.empty:
            continue
        name = f"{block_name(dict(zip(by, block, strict=True)))} of {names.task(task)}"
        text = f"{name}: {names.method(*order.index[0])} (MSE {order.iloc[0]:.3g}, worst {order.iloc[-1]:.3g}"
        parts.append(f"{text}; in the paper {names.method(*theirs.index[0])})" if len(theirs) else f"{text})")
    return f"Lowest all-steps MSE, {'; '.join(parts)}." if parts else ""


def of_hyperparameters(frame: pd.DataFrame, not_used: str) -> str:
    """How many of the hyperparameters of one of the paper's tables differ; frame: of `hyperparameters.compared`."""
    known = frame[frame["profile"] != not_used]
    if known.empty:
        return "This profile does not use it."
    return f"{int(frame['differs'].sum())} of {len(known)} hyperparameters differ from the paper's."


def _marked(key: tuple[str, str]) -> str:
    """A method in print, and whether it is a trivial baseline."""
    return f"{names.method(*key)}{' (a trivial baseline)' if key[0] in names.TRIVIAL else ''}"


def _winner(name: str, rows: pd.DataFrame) -> str:
    """Who has the lowest MSE of a block, and by how much; plainly if that is a trivial baseline."""
    order, tasks = _ranked_over_tasks(rows, "all_steps_mse")
    if len(order) < 2:
        return ""
    (best, second), (value, next_value) = order.index[:2], order.iloc[:2]
    margin = f"{100 * (1 - value / next_value):.0f}% below" if next_value > 0 else "as low as"
    kind = ", a trivial baseline," if best[0] in names.TRIVIAL else ""
    several = f" relative to persistence's (geometric mean over {tasks} tasks)" if tasks > 1 else ""
    return (
        f"{f'{name}: ' if name else ''}{names.method(*best)}{kind} has the lowest all-steps MSE{several}: {value:.3g}, "
        f"{margin} {names.method(*second)} ({next_value:.3g})."
    )


def _others(rows: pd.DataFrame) -> str:
    """Who is the best by the paper's two other statistics."""
    parts = []
    for statistic in ("all_steps_mae", "final_step_spearman"):
        order, tasks = _ranked_over_tasks(rows, statistic)
        if len(order) < 2:
            continue
        (best, second), (value, next_value) = order.index[:2], order.iloc[:2]
        several = " relative to persistence's" if tasks > 1 and statistic in RELATIVE else ""
        parts.append(
            f"by {names.statistic(statistic)}{several} the best is {_marked(best)}, {value:.3g} against {next_value:.3g} of "
            f"{names.method(*second)}"
        )
    return _sentence("; ".join(parts))


def _ranked_over_tasks(rows: pd.DataFrame, statistic: str) -> tuple[pd.Series, int]:
    """`ranked` of a block's only task, or of all its tasks together where there are several; and their number."""
    tasks = rows.loc[~rows["task"].isin([tables.OVER_TASKS, tables.PAPERS_MEAN]), "task"].nunique()
    if tasks == 1:
        return ranked(rows, statistic), tasks
    return ranked(rows[rows["task"] == tables.OVER_TASKS], RELATIVE.get(statistic, statistic)), tasks


def _winners(cases: Sequence[pd.DataFrame], unit: str) -> str:
    """How often each method has the lowest MSE, where there are several cases."""
    best = [key for rows in cases for key in ranked(rows, "all_steps_mse").index[:1]]
    won = pd.Series(best, dtype=object).value_counts()
    if len(cases) < 2 or won.empty:
        return ""
    parts = [f"{_marked(key)} in {count}" for key, count in won.items()]
    return f"The lowest all-steps MSE, of {len(cases)} {unit}: {', '.join(parts)}."


def _explains(cases: Sequence[pd.DataFrame], unit: str) -> str:
    """Which methods are better than the mean trajectory of the training runs, and in how many cases."""
    values: dict[tuple[str, str], list[float]] = {}
    for rows in cases:
        for key, value in ranked(rows, "r2_dev").items():
            if key[0] not in names.BLIND:
                values.setdefault(key, []).append(value)
    if not values:
        return ""
    above, never = [], []
    for key, found in values.items():
        won = sum(value > 0 for value in found)
        share = f"R²dev {found[0]:.2g}" if len(cases) == 1 else f"in {won} of {len(found)} {unit}"
        (above if won else never).append(f"{names.method(*key)} ({share})" if won else names.method(*key))
    if not above:
        return f"No better than {MEAN} (R²dev ≤ 0): {_listed(never)}."
    return _better(f"{MEAN} (R²dev > 0)", above, never, len(cases))


def _beats_counts(cases: Sequence[pd.DataFrame], unit: str) -> str:
    """Which methods have a lower MSE than counts of labels and formats, and in how many cases; "" without counts."""
    counted = [mse for rows in cases if COUNTS in (mse := ranked(rows, "all_steps_mse"))]
    found: dict[tuple[str, str], list[bool]] = {}
    for mse in counted:
        for key, value in mse.items():
            if key[0] not in names.TRIVIAL:
                found.setdefault(key, []).append(value < mse[COUNTS])
    above, never = [], []
    for key, won in found.items():
        share = "" if len(counted) == 1 else f" (in {sum(won)} of {len(won)} {unit})"
        (above if any(won) else never).append(f"{names.method(*key)}{share if any(won) else ''}")
    what = names.method(*COUNTS).lower()
    if not above:
        return f"No better than {what}: {_listed(never)}." if never else ""
    return _better(what, above, never, len(counted))


def _better(than: str, above: Sequence[str], never: Sequence[str], cases: int) -> str:
    text = f"Better than {than}: {_listed(above)}"
    nowhere = "not" if cases == 1 else "never"
    return f"{text}; {nowhere}: {_listed(never)}." if never else f"{text}."


def _diverged(numbers: pd.DataFrame) -> str:
    rows = numbers[numbers["statistic"] == "diverged"]
    lost = rows.groupby(["method", "variant"], sort=False)["value"].sum()
    parts = [f"{names.method(*key)} {count:.0f}" for key, count in lost.items() if count > 0]
    return f"Predicted trajectories that diverged: {', '.join(parts)}." if parts else ""


def _order(cases: Sequence[pd.DataFrame], unit: str) -> list[str]:
    """How often methods come in the paper's order by MSE; if not always, what there is to tell them apart by."""
    same = compared = 0
    shares = []
    for rows in cases:
        theirs, mse = ranked(rows, "all_steps_mse", "paper"), ranked(rows, "all_steps_mse")
        measured = [key for key in mse.index if key in theirs.index]
        if len(theirs) < 2 or len(measured) < len(theirs):
            continue
        compared += 1
        same += measured == list(theirs.index)
        drift, mean = (mse.get((name, ""), math.nan) for name in ("persistence", "mean_trajectory"))
        if measured != list(theirs.index) and drift > 0:
            shares.append(mean / drift)
    if not compared:
        return []
    who = "By MSE the methods that the paper reports, too, come in"
    if len(cases) == 1:
        sentences = [f"{who} {'the same' if same else 'another'} order as there."]
    else:
        sentences = [f"{who} its order in {same} of {compared} {unit}."]
    shares = [share for share in shares if np.isfinite(share)]
    if shares:
        sentences.append(
            f"Where the order is another, curves differ from run to run by {100 * np.median(shares):.0f}% (median) of how far "
            "they move from their start (MSE of the mean trajectory, of persistence). Only that part is the curriculum's doing."
        )
    return sentences


# --- trajectories ----------------------------------------------------------------------------------------------------


def of_trajectories(frame: pd.DataFrame) -> str:
    """In how many panels of `trajectories.plot_trajectories` each method comes closest, and how far off it is in the median."""
    drawn = with_variants(frame)[~frame["observed"]]
    wide = drawn.pivot(index=["panel", "step"], columns=["series", "variant"], values="value")
    recorded = ("recorded", "")
    with np.errstate(over="ignore", invalid="ignore"):
        mse = (wide.drop(columns=recorded).sub(wide[recorded], axis=0) ** 2).groupby(level="panel").mean()
    mse = mse.fillna(np.inf)
    won = mse.idxmin(axis=1).value_counts()
    parts = [
        f"{names.method(*key)} in {int(won.get(key, 0))} (median MSE {mse[key].median():.3g})"
        for key in sorted(mse.columns, key=lambda key: (-won.get(key, 0), mse[key].median()))
    ]
    return f"Closest to what was recorded, of {len(mse)} panels: {', '.join(parts)}."


def of_gallery(frame: pd.DataFrame, results: pd.DataFrame, reported: Mapping[str, pd.DataFrame | None]) -> str:
    """What the drawn panels show, then what all trajectories show that they were chosen from, each metric by itself.

    frame: of `trajectories`; results: of `gallery.results_of`; reported: metric -> the paper's rows (`gallery.reported`)
    """
    sentences = []
    metrics = list(results["metric"].unique())
    for metric in metrics:
        drawn = frame[frame["metric"] == metric] if "metric" in frame else frame
        rows = results[results["metric"] == metric].drop(columns="metric")
        summary = evaluation.summarize(rows)
        table = tables.methods_by_task(summary, reported.get(metric))
        counts = with_variants(rows[rows["statistic"] == "trajectories"]).groupby(["method", "variant"], sort=False)
        several = f"By {names.metric(metric)}: " if len(metrics) > 1 else ""
        sentences += [
            f"{several}{of_trajectories(drawn)}",
            f"Over all {int(counts['value'].sum().iloc[0])} held-out trajectories: {of_table(table)}",
            _undefined(summary),
        ]
    return " ".join(sentence for sentence in sentences if sentence)


def beside_paper(results: pd.DataFrame, panel: tuple[str, str], unseen: str, model: str) -> str:
    """The error of GPTfluence on unseen examples beside the paper's, in a sentence; "" where either has none.

    results: of `gallery.results_of`; panel: metric and task; unseen: "training", "test" or "both"; model: the one whose counterpart is meant
    """
    metric, task = panel
    rows = tables.reported(11)
    rows = rows[(rows["statistic"] == "all_steps_mse") & (rows["method"] == "gptfluence") & (rows["unseen"] == unseen)]
    chosen = (rows["task"] == task) & (rows["metric"] == metric) & (rows["model"] == names.paper_model(model))
    rows = rows[chosen]
    mine = results[(results["task"] == task) & (results["metric"] == metric) & (results["method"] == "gptfluence")]
    if rows.empty or mine.empty:
        return ""
    summary = evaluation.summarize(mine[["run", "statistic", "value"]]).set_index("statistic")["value"]
    return (
        f"All-steps MSE of GPTfluence on {names.task(task)}, {names.metric(metric)}: {summary['all_steps_mse']:.3g} here, "
        f"{rows['value'].iloc[0]:.3g} in the paper's table 11 (another GPT on other texts, so that sizes do not compare)."
    )


def panel_names(panels: Sequence[tuple[str, str]]) -> str:
    """Panels (metric, task) in words, with their letters: "(a) loss on RTE, (b) BLEU on WebNLG"."""
    return ", ".join(
        f"({letter}) {names.metric(metric)} on {names.task(task)}"
        for letter, (metric, task) in zip(ascii_lowercase, panels, strict=False)
    )


def _undefined(summary: pd.DataFrame) -> str:
    """Runs without a rank correlation, where there are any."""
    parts = []
    ranks = with_variants(summary[summary["statistic"] == "final_step_spearman"])
    for key, rows in ranks.groupby(["method", "variant"], sort=False):
        runs = int(rows["undefined"].sum())
        parts += [f"for {names.method(*key)} in {runs} run{'s' if runs > 1 else ''}"] if runs else []
    return f"The rank correlation is undefined {', '.join(parts)}." if parts else ""


# --- points and curves -----------------------------------------------------------------------------------------------


def best_points(frame: pd.DataFrame, *, higher: bool = True) -> str:
    """Who is best in each panel of `points.plot_intervals` and at each x, and with which value: one sentence a panel."""
    sentences = []
    for panel, part in with_variants(frame).groupby("panel", sort=False):
        wide = part.pivot_table(index="x", columns=["series", "variant"], values="value", sort=False)
        wide = wide.replace([np.inf, -np.inf], np.nan).dropna(how="all")
        best = wide.idxmax(axis=1) if higher else wide.idxmin(axis=1)
        parts = [f"{x}: {_marked(key)} {wide.loc[x, key]:.2f}" for x, key in best.items()]
        sentences.append(f"{panel}, best at {'; '.join(parts)}." if parts else f"{panel}: no value is defined.")
    return "\n".join(sentences)


def known_mean(training_runs: int, *, rest: bool = False) -> str:
    """What the line of `panels.mark_known_mean` means, for captions; rest: the axis shows 1 - R2_dev."""
    level, what = ("K/(K+1)", "1 - R2_dev") if rest else ("1/(K+1)", "R2_dev")
    return (
        f"Thin line: {level}, the {what} that the true mean of curricula drawn alike would have, which the "
        f"K = {training_runs} training runs estimate."
    )


def of_sweep(frame: pd.DataFrame, x: str, what: str) -> str:
    """What a sweep shows: the best and the worst value of each method, and where it beats the mean trajectory.

    frame: of `sweeps.sweep`; what: the word for what is varied, in the singular
    """
    sentences = []
    numbers = ("statistic", "value", "low", "high", "undefined", "diverged", "run")
    panels = [column for column in frame if column not in (x, "method", "variant", *numbers)]
    varied = with_variants(frame[frame[x].notna()])
    for (*panel, method, variant), rows in varied.groupby([*panels, "method", "variant"], sort=False):
        name = " ".join([*map(str, panel), names.method(method, variant)])
        error = next(one for one in (RELATIVE["all_steps_mse"], "all_steps_mse") if (rows["statistic"] == one).any())
        mse = rows[rows["statistic"] == error].set_index(x)["value"]
        finite = mse[np.isfinite(mse)]
        if method in names.TRIVIAL or finite.empty:
            continue
        ratio = finite.max() / finite.min() if finite.min() > 0 else math.inf
        r2 = rows[rows["statistic"] == "r2_dev"].set_index(x)["value"]
        lost = rows.drop_duplicates([x])["diverged"].sum()
        sentences.append(
            f"{name}: {names.statistic(error)} is lowest at {what} {_plain(finite.idxmin())} ({finite.min():.3g}) and highest at "
            f"{_plain(finite.idxmax())} ({ratio:.3g} times that). R²dev is above 0 at {int((r2 > 0).sum())} of {len(r2)} values."
            + (f" {lost} trajectories diverged." if lost else "")
        )
    return " ".join(sentences)


def of_convergence(frame: pd.DataFrame) -> str:
    """Which epochs were kept, and how far validation errors are from training losses; frame: of `sweeps.convergence`."""
    parts = []
    for method, rows in frame.groupby("method", sort=False):
        kept, last = rows[rows["best"]], rows.groupby("task")["epoch"].max()
        wide = kept.pivot(index="task", columns="curve", values="value")
        text = f"{names.method(str(method))} stopped after {last.min()} to {last.max()} epochs"
        best = kept.groupby("task")["epoch"].first()
        parts.append(f"{text} and kept epochs {best.min()} to {best.max()}." if len(best) else f"{text}.")
        if {"training_loss", "validation_mse"} <= set(wide):
            ratio = float((wide["validation_mse"] / wide["training_loss"]).median())
            parts.append(
                f"At these the all-steps error of rollouts is {ratio:.3g} times (median over tasks) the one-step error that is "
                "minimised."
            )
    best = frame[frame["best"] & (frame["curve"] == "validation_mse")]
    lowest = best.loc[best.groupby("task")["value"].idxmin(), "method"].value_counts() if len(best) else {}
    shares = [f"{names.method(str(method))} on {count}" for method, count in lowest.items()]
    if shares:
        parts.append(f"Lowest validation error: {', '.join(shares)} of {best['task'].nunique()} tasks.")
    return " ".join(parts)


def of_ends(reports: Mapping[Any, FitReport]) -> str:
    """How many fits ended by themselves, and how many were cut off, for a caption; reports: of fits, by any keys."""
    ends = Counter(report.ended for report in reports.values() if report.ended)
    if not ends:
        return "No fit was made in epochs."
    text = f"{ends['patience']} of {ends.total()} fits ended by themselves, when validation errors no longer fell"
    if ends["max_epochs"]:
        text += f"; {ends['max_epochs']} ended at the largest number of epochs"
    if ends["divergence"]:
        text += f"; {ends['divergence']} diverged"
    return f"{text}."


def of_overview(frame: pd.DataFrame, *, runs: int) -> str:
    """What the three columns of figure 1 show, in numbers. runs: how many the simulator was fitted on."""
    parts = {str(panel): part for panel, part in frame.groupby("panel", sort=False)}
    curriculum, fit = parts["curriculum"], parts["training loss"]
    method = fit["series"].iloc[0]
    validation = parts.get("validation error", frame.iloc[:0])
    best = validation[(validation["series"] == method) & validation["shown"]]
    mean = validation.loc[validation["series"] == "mean_trajectory", "y"]
    wide = parts["simulation"].pivot(index=["example", "x"], columns="series", values="y").query("x > 0")
    recorded, simulated = wide["recorded"].unstack(0), wide[method].unstack(0)
    errors = np.sqrt(np.square(simulated - recorded).mean())
    text = (
        f"One of {runs} training runs: {curriculum['x'].nunique()} updates, {curriculum['y'].nunique()} of the pool's "
        f"examples seen. {names.method(method)} was fitted for {len(fit)} epochs"
    )
    if len(best):
        text += (
            f". Epoch {int(best['x'].iloc[0])} is kept, with an all-steps MSE of {best['y'].iloc[0]:.3g} on validation"
        )
        if len(mean) and np.isfinite(mean.iloc[0]):
            relation = "below" if best["y"].iloc[0] < mean.iloc[0] else "not below"
            text += f", {relation} that of the mean training trajectory ({mean.iloc[0]:.3g})"
    return (
        f"{text}. On the new curriculum the {len(errors)} trajectories drawn are off by "
        f"{', '.join(f'{error:.3g}' for error in errors)} (root mean square over steps), while the recorded ones move "
        f"over {', '.join(f'{span:.3g}' for span in recorded.max() - recorded.min())}."
    )


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
