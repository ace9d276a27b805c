"""Results as a table people would print, and what it says, in sentences computed from its numbers."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names
from gptfluence.drawing.typeset import Table

SUMMARY = ["task", "method", "statistic", "value", "std", "std_over_runs", "undefined"]
REPORTED = ["all_steps_mse", "all_steps_mae", "final_step_spearman"]  # by the paper
PRINTED = [*REPORTED, "r2_dev"]
HEADINGS = {"final_step_spearman": "Spearman ρ ↑", "all_steps_mse": "MSE ↓", "all_steps_mae": "MAE ↓"}


def methods_by_task(summary: pd.DataFrame, paper: pd.DataFrame | None = None, *, average: bool = True) -> Table:
    """Rows task x method (and their average over tasks), columns "mean (std)" of each statistic beside the paper's.

    summary: rows of `evaluation.summarize` with columns task, method, statistic, value, std, std_over_runs, undefined
    paper: rows of `paper.table(...)` of one model and metric, or None
    The best measured value of a task is bold; rows that know the test run (`names.knows_the_answer`) do not compete. The average
    over tasks (not with `average` false) is of their means, and only for methods with a value in every task. `numbers`
    holds the unrounded values.
    Raises ConfigurationError for missing columns, or if a (task, method, statistic) occurs twice.
    """
    numbers = _with_average(_checked(summary), paper, average)
    tasks, methods = list(numbers["task"].unique()), _in_order(numbers["method"].unique())
    cells = dict(zip(_keys(numbers), numbers.itertuples(index=False), strict=True))
    shown = [s for s in PRINTED if (numbers["statistic"] == s).any()]
    compared = [s for s in shown if numbers.loc[numbers["statistic"] == s, "paper"].notna().any()]
    lost = numbers[(numbers["statistic"] == "diverged") & (numbers["value"] > 0)]
    columns = [("Task", ""), ("Method", "")]
    for statistic in shown:
        title = heading(statistic)
        columns += [(title, "measured"), (title, "paper")] if statistic in compared else [(title, "")]
    if len(lost):
        columns.append(("diverged", ""))
    formats = {s: _format(numbers[numbers["statistic"] == s]) for s in shown}
    rows, bold, undefined = [], [], False
    for task in tasks:
        best = {s: _best(numbers[(numbers["task"] == task) & (numbers["statistic"] == s)], formats[s]) for s in shown}
        for method in methods:
            if not any((task, method, s) in cells for s in shown):
                continue
            row, marks = [names.task(task), names.method(method)], [False, False]
            for statistic in shown:
                cell = cells.get((task, method, statistic))
                text = "–" if cell is None else formats[statistic](cell.value, cell.std)
                if cell is not None and cell.undefined > 0:
                    text, undefined = f"{text}†", True
                row.append(text)
                marks.append(method in best[statistic])
                if statistic in compared:
                    reported = cell is not None and np.isfinite(cell.paper)
                    row.append(_paper(cell.paper, cell.paper_std) if reported else "")
                    marks.append(False)
            if len(lost):
                cell = cells.get((task, method, "diverged"))
                row.append("" if cell is None else f"{cell.value:.0f}")
                marks.append(False)
            rows.append(row)
            bold.append(marks)
    notes = ["† undefined in some runs (a constant trajectory end has no rank correlation); those are left out."]
    return Table(columns, rows, numbers, np.array(bold), stubs=2, notes=tuple(notes if undefined else ()))


def reading(results: pd.DataFrame | Table, paper: pd.DataFrame | None = None) -> str:
    """What the numbers say, in two to four sentences: who wins, by how much, what beats nothing, and the paper's order.

    results: the table of `methods_by_task`, or its summary (then `paper` as there). Trivial baselines (persistence and
    the mean trajectory, which know nothing of the curriculum) compete like every other method.
    """
    numbers = results.numbers if isinstance(results, Table) else _with_average(_checked(results), paper)
    numbers = numbers[~numbers["method"].map(names.knows_the_answer)]
    single = numbers["task"].nunique() == 1
    overall = numbers if single else numbers[numbers["task"] == "average"]
    tasks = numbers if single else numbers[numbers["task"] != "average"]
    sentences = [_winner(overall, tasks), _others(overall), _explains(tasks), _agreement(tasks)]
    return " ".join(sentence for sentence in sentences if sentence)


def heading(statistic: str) -> str:
    """What the columns of a statistic are headed with."""
    return HEADINGS.get(statistic, names.statistic(statistic, arrow=True))


def _checked(summary: pd.DataFrame) -> pd.DataFrame:
    missing = [column for column in SUMMARY if column not in summary.columns]
    if missing:
        raise ConfigurationError(
            f"tables: the frame has no column {', '.join(missing)}; pass rows of evaluation.summarize() "
            "with columns task and method"
        )
    twice = summary.duplicated(["task", "method", "statistic"])
    if twice.any():
        first = summary[twice].iloc[0]
        raise ConfigurationError(
            f"tables: {first['statistic']} of {first['method']} on {first['task']} occurs twice; "
            "select one model and one metric"
        )
    return summary[SUMMARY].reset_index(drop=True)


def _with_average(summary: pd.DataFrame, paper: pd.DataFrame | None, average: bool = True) -> pd.DataFrame:
    tasks = [task for task in summary["task"].unique() if task != "average"]
    parts = [summary]
    if average and len(tasks) > 1 and "average" not in set(summary["task"]):
        each = summary[summary["statistic"].isin(PRINTED)]
        mean = each.groupby(["method", "statistic"], sort=False)["value"].agg(["mean", "count", "size"]).reset_index()
        whole = mean[(mean["count"] == len(tasks)) & (mean["size"] == len(tasks))]
        means = whole[["method", "statistic"]].assign(
            task="average", value=whole["mean"], std=np.nan, std_over_runs=np.nan, undefined=0
        )
        parts.append(means[SUMMARY])
    numbers = pd.concat(parts, ignore_index=True)
    if paper is None:
        return numbers.assign(paper=np.nan, paper_std=np.nan)
    if paper.duplicated(["task", "method", "statistic"]).any():
        raise ConfigurationError("tables: the paper's rows hold several models or metrics; select one of each")
    reported = paper[["task", "method", "statistic", "value", "std"]]
    if set(tasks) != set(reported["task"]) - {"average"}:  # the paper's average is over other tasks: not comparable
        reported = reported[reported["task"] != "average"]
    reported = reported.rename(columns={"value": "paper", "std": "paper_std"})
    return numbers.merge(reported, on=["task", "method", "statistic"], how="left")


def _keys(numbers: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(numbers[["task", "method", "statistic"]].itertuples(index=False, name=None))


def _in_order(methods: object) -> list[str]:
    """Trivial baselines first, then as the methods are listed in `names`, variants beside their family."""

    def rank(method: str) -> tuple[bool, int, str]:
        family = names.family(method)
        known = list(names.METHODS)
        numbered = re.sub(r"\d+", lambda number: number[0].zfill(9), method)  # order 2 before order 10
        return (method not in names.TRIVIAL, -known.index(family) if family else 1, numbered)

    return sorted(methods, key=rank)


def _format(rows: pd.DataFrame) -> Callable[[float, float], str]:
    """A printer of "mean (std)" for one statistic: three decimals as in the paper, more where values are that small."""
    finite = rows["value"][np.isfinite(rows["value"]) & (rows["value"] != 0)].abs()
    # the median, so that one tiny or one diverged value does not decide over the rest
    decimals = 3 if finite.empty else int(np.clip(2 - np.floor(np.log10(finite.median())), 3, 6))

    def number(value: float) -> str:
        if np.isnan(value):
            return "–"
        if np.isinf(value):
            return "∞" if value > 0 else "−∞"
        if abs(value) >= 1000:
            mantissa, exponent = f"{value:.1e}".split("e")
            return f"{mantissa}e{int(exponent)}".replace("-", "−")
        text = f"{value:.{decimals}f}"
        return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")

    return lambda value, std: number(value) if np.isnan(std) or np.isnan(value) else f"{number(value)} ({number(std)})"


def _paper(value: float, std: float) -> str:
    text = f"{value:.3f}" if np.isnan(std) else f"{value:.3f} ({std:.3f})"
    return text.replace("-", "−")


def _best(rows: pd.DataFrame, printed: Callable[[float, float], str]) -> set[str]:
    """The methods whose value is the best, as far as is printed."""
    rows = rows[np.isfinite(rows["value"]) & ~rows["method"].map(names.knows_the_answer)]
    if len(rows) < 2:
        return set()
    ascending = names.SMALLER_IS_BETTER[rows["statistic"].iloc[0]]
    best = rows["value"].min() if ascending else rows["value"].max()
    nan = float("nan")
    return {m for m, v in zip(rows["method"], rows["value"], strict=True) if printed(v, nan) == printed(best, nan)}


# --- sentences -------------------------------------------------------------------------------------------------------


def ranking(rows: pd.DataFrame, statistic: str, column: str = "value") -> pd.Series:
    """method -> value of one statistic, the best first; what is not finite is left out."""
    values = rows[rows["statistic"] == statistic].set_index("method")[column]
    return values[np.isfinite(values)].sort_values(ascending=names.SMALLER_IS_BETTER[statistic], kind="stable")


def _winner(overall: pd.DataFrame, tasks: pd.DataFrame) -> str:
    """Who has the lowest MSE, by how much, on how many tasks; and plainly if that is a trivial baseline."""
    order = ranking(overall, "all_steps_mse")
    if len(order) < 2:
        return ""
    (best, second), (value, next_value) = order.index[:2], order.iloc[:2]
    margin = f"{100 * (1 - value / next_value):.0f}% below" if next_value > 0 else "as low as"
    kind = ", a trivial baseline," if best in names.TRIVIAL else ""
    count = tasks["task"].nunique()
    text = f"{names.method(best)}{kind} has the lowest all-steps MSE"
    compared = f"{value:.3g}, {margin} {names.method(second)} ({next_value:.3g})"
    if count == 1:
        return f"{text}: {compared}."
    firsts = [ranking(rows, "all_steps_mse").index[:1].tolist() for _, rows in tasks.groupby("task")]
    return f"{text} averaged over {count} tasks: {compared}; it is the lowest on {firsts.count([best])} of the {count}."


def _others(overall: pd.DataFrame) -> str:
    """Who is the best by the paper's two other statistics."""
    parts = []
    for statistic in ("all_steps_mae", "final_step_spearman"):
        order = ranking(overall, statistic)
        if len(order) < 2:
            continue
        (best, second), (value, next_value) = order.index[:2], order.iloc[:2]
        kind = " (a trivial baseline)" if best in names.TRIVIAL else ""
        parts.append(
            f"by {names.statistic(statistic)} the best is {names.method(best)}{kind}, {value:.3g} against "
            f"{next_value:.3g} of {names.method(second)}"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _explains(tasks: pd.DataFrame) -> str:
    """Which methods are better than the mean trajectory of the training runs, and on how many tasks."""
    rows = tasks[(tasks["statistic"] == "r2_dev") & ~tasks["method"].isin(names.TRIVIAL)]
    if rows.empty:
        return ""
    count = tasks["task"].nunique()
    above, below = [], []
    for method, values in rows.groupby("method", sort=False)["value"]:
        won = int((values > 0).sum())
        if not won:
            below.append(names.method(method))
        else:
            share = f"R²dev {values.iloc[0]:.2g}" if count == 1 else f"on {won} of {count} tasks"
            above.append(f"{names.method(method)} ({share})")
    if not above:
        return f"No better than the mean trajectory of the training runs (R²dev ≤ 0): {_listed(below)}."
    text = f"Better than the mean trajectory of the training runs (R²dev > 0): {_listed(above)}"
    nowhere = "not" if count == 1 else "on no task"
    return f"{text}; {nowhere}: {_listed(below)}." if below else f"{text}."


def _agreement(tasks: pd.DataFrame) -> str:
    """Whether the methods that the paper reports come in the paper's order by MSE."""
    same = compared = 0
    for _, rows in tasks.groupby("task"):
        paper = ranking(rows, "all_steps_mse", "paper")
        measured = [method for method in ranking(rows, "all_steps_mse").index if method in paper.index]
        if len(paper) >= 2 and len(measured) == len(paper):
            compared += 1
            same += measured == list(paper.index)
    if not compared:
        return ""
    who = "By MSE the methods that the paper reports, too, come"
    if tasks["task"].nunique() == 1:
        return f"{who} in {'the same' if same else 'another'} order as there."
    return f"{who} in its order on {same} of {compared} tasks."


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
