"""Results as a table people would print, beside the paper's. What such a table says is in `readings.of_table`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from gptfluence import paper
from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names
from gptfluence.drawing.typeset import Table
from gptfluence.scoring.across_tasks import RELATIVE, over_tasks

KEY = ["task", "method", "variant", "statistic"]
SUMMARY = ["task", "method", "statistic", "value", "std", "std_over_runs", "undefined"]
REPORTED = ["all_steps_mse", "all_steps_mae", "final_step_spearman"]  # by the paper
PRINTED = [*REPORTED, "r2_dev"]
HEADINGS = {"final_step_spearman": "Spearman ρ ↑", "all_steps_mse": "MSE ↓", "all_steps_mae": "MAE ↓"}
BLOCKS = {"model": "Model", "metric": "Metric", "unseen": "Unseen", "setting": "Setting"}
UNSEEN = {"unseen_train": "training", "unseen_test": "test", "unseen_train_and_test": "both"}  # the paper's words
UNDEFINED = "† undefined in some runs (a constant trajectory end has no rank correlation); those are left out."
OVER_TASKS, PAPERS_MEAN = "over_tasks", "average"  # tasks: all together (`across_tasks`), and the paper's plain mean
OVER_TASKS_NOTE = (
    "‡ Errors: the geometric mean over tasks of the error divided by persistence's (1: as good as persistence, 0: perfect). "
    "Other statistics: the median over tasks. The paper prints plain means over tasks."
)


@dataclass(frozen=True)
class _Block:
    """The rows of one model, metric, ...: its name in print, its numbers, and how each statistic is printed."""

    name: str
    numbers: pd.DataFrame
    formats: Mapping[str, Callable[[float, float], str]]

    @cached_property
    def rows(self) -> dict[tuple, Any]:
        """(task, method, variant, statistic) -> its row of `numbers`."""
        keys = self.numbers[KEY].itertuples(index=False, name=None)
        return dict(zip(keys, self.numbers.itertuples(index=False), strict=True))

    @cached_property
    def best(self) -> dict[tuple, set[tuple[str, str]]]:
        """(task, statistic) -> the (method, variant) to print bold."""
        groups = self.numbers.groupby(["task", "statistic"], sort=False)
        return {key: _best(rows, self.formats[key[1]]) for key, rows in groups if key[1] in self.formats}


def methods_by_task(
    summary: pd.DataFrame,
    reported: pd.DataFrame | None = None,
    *,
    by: Sequence[str] = (),
    average: bool = True,
    tasks_across: bool = False,
) -> Table:
    """Rows task x method (and one for all tasks), columns "mean (std)" of each statistic beside the paper's.

    summary: rows of `evaluation.summarize` with columns task, method, statistic, value, std, std_over_runs, undefined,
        those of `by`, and variant where there are variants
    reported: rows of `reported` (a block "model" is compared with the Pythia that it is or stands for), or None
    by: columns that tell blocks apart, such as model and metric; blocks stand one below the other in order of appearance
    average: whether to add, for the methods with a value in every task of a block, rows "over_tasks" (of
        `across_tasks.over_tasks`) and rows "average", the means that the paper prints for the same tasks
    tasks_across: tasks side by side instead, with rows for each statistic and method, the paper's below the measured ones, and
        without standard deviations

    The best measured value of a task is bold; methods that are told the answer do not compete. `numbers` holds the
    unrounded values, the columns of `by` in front.
    Raises ConfigurationError for missing columns, or if a method has a statistic of a task twice in a block.
    """
    missing = [column for column in (*by, *SUMMARY) if column not in summary]
    if missing:
        raise ConfigurationError(
            f"methods_by_task: the frame has no column {', '.join(missing)}; pass rows of evaluation.summarize() "
            f"with columns {', '.join([*by, 'task and method'])}"
        )
    groups = summary.groupby(list(by), sort=False) if by else [((), summary)]
    blocks, numbers = [], []
    for key, rows in groups:
        block = dict(zip(by, key, strict=True))
        found = _numbers(rows, _of_block(reported, block) if reported is not None else None, average)
        statistics = [s for s in (*PRINTED, *RELATIVE.values()) if (found["statistic"] == s).any()]
        formats = {s: _format(found[found["statistic"] == s]) for s in statistics}
        blocks.append(_Block(block_name(block), found, formats))
        numbers.append(found.assign(**block)[[*by, *found.columns]])
    whole = pd.concat(numbers, ignore_index=True)
    whole = whole if whole["variant"].any() else whole.drop(columns="variant")
    shown = [statistic for statistic in PRINTED if (whole["statistic"] == statistic).any()]
    return (_tasks_across if tasks_across else _tasks_down)(blocks, whole, by, shown)


def block_name(block: Mapping[str, str]) -> str:
    """A block in print.

    >>> block_name({"model": "nano-1b", "metric": "rouge_l"}), block_name({"unseen": "both", "metric": "loss"})
    ('nano-1b, ROUGE-L', 'both, loss')
    """
    return ", ".join(names.metric(value) if column == "metric" else str(value) for column, value in block.items())


def heading(statistic: str) -> str:
    """What the columns of a statistic are headed with."""
    return HEADINGS.get(statistic, names.statistic(statistic, arrow=True))


def reported(number: int) -> pd.DataFrame:
    """The paper's table in the words of this project.

    Returns columns setting, task, model, metric, unseen, method, variant, statistic, value, std. `setting` is fine_tuning
    or instruction_tuning. TracIn-CP and Grad-Dot are "..._oracle": their scale was fitted on the test run. What is unseen
    ("training", "test", "both"; "" in tables without it) and the Markov order are columns, not parts of a method's name.
    """
    rows = paper.table(number)
    name = rows["method"].replace({name: f"{name}_oracle" for name in ("tracin_cp_10", "tracin_cp_all", "grad_dot")})
    parts = name.str.partition(" ")
    columns = ["setting", "task", "model", "metric", "unseen", "method", "variant", "statistic", "value", "std"]
    return rows.assign(
        setting=rows["setting"].str.replace("-", "_"),
        unseen=parts[2].map(UNSEEN).fillna(""),
        method=parts[0],
        variant=parts[2].where(~parts[2].isin(list(UNSEEN)), "").str.replace("order=", "markov_order="),
    )[columns]


def spread(summary: pd.DataFrame, statistic: str = "all_steps_mse") -> pd.DataFrame:
    """The spread over runs and test examples (as in the paper) beside that over runs: one row per task and method.

    summary: as for `methods_by_task`. Returns its other columns and value, std, std_over_runs, diverged (of how many
    trajectories), undefined (runs without a rank correlation).
    """
    keys = [c for c in summary if c not in ("statistic", "value", "std", "std_over_runs", "undefined")]
    rows = summary[summary["statistic"] == statistic].drop(columns=["statistic", "undefined"])
    for name, column in (("diverged", "value"), ("trajectories", "value"), ("final_step_spearman", "undefined")):
        found = summary.loc[summary["statistic"] == name, [*keys, column]]
        title = "undefined" if column == "undefined" else name
        rows = rows.merge(found.rename(columns={column: title}).astype({title: int}), on=keys, how="left")
    return rows


def told_the_answer(rows: pd.DataFrame) -> pd.Series:
    """bool for each row: whether its method is given what it is to predict, so that it competes with no other."""
    return rows["method"].map(names.knows_the_answer)


def with_variants(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column `variant`, empty where there was none."""
    return rows.assign(variant=rows["variant"].fillna("") if "variant" in rows else "")


# --- numbers ---------------------------------------------------------------------------------------------------------


def _of_block(rows: pd.DataFrame, block: Mapping[str, str]) -> pd.DataFrame | None:
    for column, value in block.items():
        rows = rows[rows[column] == (names.paper_model(value) if column == "model" else value)]
    return None if rows.empty else rows


def _numbers(summary: pd.DataFrame, reported: pd.DataFrame | None, average: bool) -> pd.DataFrame:
    """The rows of a block, those over its tasks, and the paper's numbers in columns paper and paper_std."""
    rows = with_variants(summary)
    twice = rows.duplicated(KEY)
    if twice.any():
        first = rows[twice].iloc[0]
        raise ConfigurationError(
            f"methods_by_task: {first['statistic']} of {first['method']} on {first['task']} occurs twice; "
            "select one model and one metric"
        )
    rows = rows[[*KEY, *SUMMARY[3:]]].reset_index(drop=True)
    tasks = list(rows["task"].unique())
    average = average and len(tasks) > 1
    if average:
        found = over_tasks(rows[[*KEY, "value"]]).dropna(subset="value")
        found = found.assign(task=OVER_TASKS, std=np.nan, std_over_runs=np.nan, undefined=0)
        rows = pd.concat([rows, found[rows.columns]], ignore_index=True)
    return _beside(rows, reported, tasks, average)


def _beside(rows: pd.DataFrame, reported: pd.DataFrame | None, tasks: Sequence[str], average: bool) -> pd.DataFrame:
    if reported is None:
        return rows.assign(paper=np.nan, paper_std=np.nan)
    theirs = with_variants(reported)
    if theirs.duplicated(KEY).any():
        raise ConfigurationError("methods_by_task: the paper's rows hold several models or metrics; select one of each")
    theirs = theirs[[*KEY, "value", "std"]].rename(columns={"value": "paper", "std": "paper_std"})
    means = theirs["task"] == PAPERS_MEAN
    found = rows.merge(theirs[~means], on=KEY, how="left")
    means = theirs[means & theirs["method"].isin(rows["method"])]
    # the paper's mean over other tasks is not comparable
    if not average or means.empty or set(tasks) != set(theirs["task"]) - {PAPERS_MEAN}:
        return found
    means = means.assign(value=np.nan, std=np.nan, std_over_runs=np.nan, undefined=0)
    return pd.concat([found, means[found.columns]], ignore_index=True)


# --- cells -----------------------------------------------------------------------------------------------------------


def _tasks_down(blocks: Sequence[_Block], numbers: pd.DataFrame, by: Sequence[str], shown: Sequence[str]) -> Table:
    compared = [s for s in shown if numbers.loc[numbers["statistic"] == s, "paper"].notna().any()]
    lost = ((numbers["statistic"] == "diverged") & (numbers["value"] > 0)).any()
    columns = [*_named_by(by), ("Task", ""), ("Method", "")]
    for statistic in shown:
        title = heading(statistic)
        columns += [(title, "measured"), (title, "paper")] if statistic in compared else [(title, "")]
    columns += [("diverged", "")] if lost else []
    rows, bold = [], []
    for block in blocks:
        for task in block.numbers["task"].unique():
            for method in _methods(block.numbers[block.numbers["task"] == task], shown):
                row, marks = [_task(task), names.method(*method)], [False, False]
                for statistic in shown:
                    text, best = _cell(block, task, method, statistic, spread=True)
                    row += [text, _paper(block, task, method, statistic)] if statistic in compared else [text]
                    marks += [best, False] if statistic in compared else [best]
                row += [_diverged(block, task, method)] if lost else []
                marks += [False] if lost else []
                rows.append([*([block.name] if by else []), *row])
                bold.append([*([False] if by else []), *marks])
    return Table(columns, rows, numbers, np.array(bold), stubs=3 if by else 2, notes=_notes(rows))


def _tasks_across(blocks: Sequence[_Block], numbers: pd.DataFrame, by: Sequence[str], shown: Sequence[str]) -> Table:
    tasks = [task for task in numbers["task"].unique() if task != PAPERS_MEAN]
    tasks += [PAPERS_MEAN] * bool((numbers["task"] == PAPERS_MEAN).any())
    columns = [*_named_by(by), ("Statistic", ""), ("Method", ""), *((_task(task), "") for task in tasks)]
    lost = ((numbers["statistic"] == "diverged") & (numbers["value"] > 0)).any()
    rows, bold = [], []
    for block in blocks:
        named = [block.name] if by else []
        for statistic in shown:
            for method in _methods(block.numbers, [statistic]):
                cells = [_cell(block, task, method, statistic, spread=False) for task in tasks]
                start = [*named, heading(statistic), names.method(*method)]
                rows.append([*start, *(text for text, _ in cells)])
                bold.append([*(False for _ in start), *(best for _, best in cells)])
                theirs = [_paper(block, task, method, statistic, spread=False) for task in tasks]
                if any(theirs):
                    rows.append([*named, heading(statistic), f"{names.method(*method)}: paper", *theirs])
                    bold.append([False] * len(columns))
        for method in _methods(block.numbers, shown) if lost else ():
            counts = [_diverged(block, task, method) for task in tasks]
            if any(count not in ("", "0") for count in counts):
                rows.append([*named, "diverged", names.method(*method), *counts])
                bold.append([False] * len(columns))
    return Table(columns, rows, numbers, np.array(bold), stubs=3 if by else 2, notes=_notes(rows, columns))


def _named_by(by: Sequence[str]) -> list[tuple[str, str]]:
    return [(", ".join(BLOCKS.get(column, column) for column in by), "")] if by else []


def _task(task: str) -> str:
    return f"{names.task(task)}{'‡' if task == OVER_TASKS else ''}"


def _notes(rows: Sequence[Sequence[str]], columns: Sequence[tuple[str, str]] = ()) -> tuple[str, ...]:
    texts = [*(cell for row in rows for cell in row), *(heading for heading, _ in columns)]
    marks = {"†": UNDEFINED, "‡": OVER_TASKS_NOTE}
    return tuple(note for mark, note in marks.items() if any(mark in text for text in texts))


def _methods(numbers: pd.DataFrame, shown: Sequence[str]) -> list[tuple[str, str]]:
    """The (method, variant) that have one of these statistics, in the order of rows."""
    wanted = [*shown, *(RELATIVE[statistic] for statistic in shown if statistic in RELATIVE)]
    rows = numbers[numbers["statistic"].isin(wanted)]
    return sorted(dict.fromkeys(zip(rows["method"], rows["variant"], strict=True)), key=_place)


def _cell(block: _Block, task: str, method: tuple[str, str], statistic: str, *, spread: bool) -> tuple[str, bool]:
    """What was measured, in print, and whether it is the best of its task; spread: with the standard deviation."""
    measured = RELATIVE.get(statistic, statistic) if task == OVER_TASKS else statistic
    printed = block.formats.get(measured)
    if printed is None or task == PAPERS_MEAN:
        return "", False
    found = block.rows.get((task, *method, measured))
    if found is None:
        return "–", False
    text = printed(found.value, found.std if spread else np.nan) + ("†" if found.undefined > 0 else "")
    return text, method in block.best[task, measured]


def _paper(block: _Block, task: str, method: tuple[str, str], statistic: str, *, spread: bool = True) -> str:
    found = block.rows.get((task, *method, statistic))
    if found is None or not np.isfinite(found.paper):
        return ""
    std = f" ({found.paper_std:.3f})" if spread and np.isfinite(found.paper_std) else ""
    return f"{found.paper:.3f}{std}".replace("-", "−")


def _diverged(block: _Block, task: str, method: tuple[str, str]) -> str:
    """How many trajectories diverged, where some of the block did."""
    counts = block.numbers.loc[block.numbers["statistic"] == "diverged", "value"]
    found = block.rows.get((task, *method, "diverged")) if (counts > 0).any() else None
    return "" if found is None else f"{found.value:.0f}"


def _place(method: tuple[str, str]) -> tuple[bool, int, str, str]:
    """Trivial baselines first, then as methods are listed in `names`, the last one first, variants by their numbers."""
    listed, *rest = names.place(*method)
    return (method[0] not in names.TRIVIAL, -listed if names.family(method[0]) else 1, *rest)


def _format(rows: pd.DataFrame) -> Callable[[float, float], str]:
    """A printer of "mean (std)" for one statistic: at most four digits, and three decimals unless values are that small."""
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
        digits = 3 - int(np.floor(np.log10(abs(value)))) if value else decimals
        text = f"{value:.{min(decimals, digits)}f}"
        return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")

    return lambda value, std: number(value) if np.isnan(std) or np.isnan(value) else f"{number(value)} ({number(std)})"


def _best(rows: pd.DataFrame, printed: Callable[[float, float], str]) -> set[tuple[str, str]]:
    """The (method, variant) whose value is the best, as far as is printed."""
    rows = rows[np.isfinite(rows["value"]) & ~told_the_answer(rows)]
    if len(rows) < 2:
        return set()
    ascending = names.SMALLER_IS_BETTER[rows["statistic"].iloc[0]]
    best = rows["value"].min() if ascending else rows["value"].max()
    nan = float("nan")
    keys = zip(rows["method"], rows["variant"], strict=True)
    return {key for key, v in zip(keys, rows["value"], strict=True) if printed(v, nan) == printed(best, nan)}
