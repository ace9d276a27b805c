"""Results as a table people would print, beside the paper's. What such a table says is in `readings.of_table`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from gptfluence import paper
from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names
from gptfluence.drawing.typeset import Table

KEY = ["task", "method", "variant", "statistic"]
SUMMARY = ["task", "method", "statistic", "value", "std", "std_over_runs", "undefined"]
REPORTED = ["all_steps_mse", "all_steps_mae", "final_step_spearman"]  # by the paper
PRINTED = [*REPORTED, "r2_dev"]
HEADINGS = {"final_step_spearman": "Spearman ρ ↑", "all_steps_mse": "MSE ↓", "all_steps_mae": "MAE ↓"}
BLOCKS = {"model": "Model", "metric": "Metric", "unseen": "Unseen", "setting": "Setting"}
UNSEEN = {"unseen_train": "training", "unseen_test": "test", "unseen_train_and_test": "both"}  # the paper's words
UNDEFINED = "† undefined in some runs (a constant trajectory end has no rank correlation); those are left out."


class _Block(NamedTuple):
    """The rows of one model, metric, ...: its name in print, its numbers, and how each statistic is printed."""

    name: str
    numbers: pd.DataFrame
    formats: Mapping[str, Callable[[float, float], str]]


def methods_by_task(
    summary: pd.DataFrame, reported: pd.DataFrame | None = None, *, by: Sequence[str] = (), average: bool = True
) -> Table:
    """Rows task x method (and their average over tasks), columns "mean (std)" of each statistic beside the paper's.

    summary: rows of `evaluation.summarize` with columns task, method, statistic, value, std, std_over_runs, undefined,
        those of `by`, and variant where there are variants
    reported: rows of `reported` (a block "model" is compared with the Pythia that it is or stands for), or None
    by: columns that tell blocks apart, such as model and metric; blocks stand one below the other in order of appearance
    average: whether to add rows with the average over the tasks of a block: of the tasks' means, and only for methods
        with a value in every task

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
        formats = {s: _format(found[found["statistic"] == s]) for s in PRINTED if (found["statistic"] == s).any()}
        blocks.append(_Block(block_name(block), found, formats))
        numbers.append(found.assign(**block)[[*by, *found.columns]])
    whole = pd.concat(numbers, ignore_index=True)
    return _table(blocks, whole if whole["variant"].any() else whole.drop(columns="variant"), by)


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
    """The rows of a block, their average over tasks, and the paper's numbers in columns paper and paper_std."""
    rows = with_variants(summary)
    twice = rows.duplicated(KEY)
    if twice.any():
        first = rows[twice].iloc[0]
        raise ConfigurationError(
            f"methods_by_task: {first['statistic']} of {first['method']} on {first['task']} occurs twice; "
            "select one model and one metric"
        )
    rows = rows[[*KEY, *SUMMARY[3:]]].reset_index(drop=True)
    tasks = [task for task in rows["task"].unique() if task != "average"]
    if average and len(tasks) > 1 and "average" not in set(rows["task"]):
        rows = pd.concat([rows, _averages(rows, len(tasks))], ignore_index=True)
    return _beside(rows, reported, tasks)


def _averages(rows: pd.DataFrame, tasks: int) -> pd.DataFrame:
    each = rows[rows["statistic"].isin(PRINTED)].groupby(["method", "variant", "statistic"], sort=False)["value"]
    mean = each.agg(["mean", "count", "size"]).reset_index()
    whole = mean[(mean["count"] == tasks) & (mean["size"] == tasks)]
    found = whole.assign(task="average", value=whole["mean"], std=np.nan, std_over_runs=np.nan, undefined=0)
    return found[[*KEY, *SUMMARY[3:]]]


def _beside(rows: pd.DataFrame, reported: pd.DataFrame | None, tasks: Sequence[str]) -> pd.DataFrame:
    if reported is None:
        return rows.assign(paper=np.nan, paper_std=np.nan)
    theirs = with_variants(reported)
    if theirs.duplicated(KEY).any():
        raise ConfigurationError("methods_by_task: the paper's rows hold several models or metrics; select one of each")
    theirs = theirs[[*KEY, "value", "std"]].rename(columns={"value": "paper", "std": "paper_std"})
    if set(tasks) != set(theirs["task"]) - {"average"}:  # the paper's average is over other tasks: not comparable
        theirs = theirs[theirs["task"] != "average"]
    return rows.merge(theirs, on=KEY, how="left")


# --- cells -----------------------------------------------------------------------------------------------------------


def _table(blocks: Sequence[_Block], numbers: pd.DataFrame, by: Sequence[str]) -> Table:
    shown = [s for s in PRINTED if (numbers["statistic"] == s).any()]
    compared = [s for s in shown if numbers.loc[numbers["statistic"] == s, "paper"].notna().any()]
    lost = ((numbers["statistic"] == "diverged") & (numbers["value"] > 0)).any()
    columns = [(", ".join(BLOCKS.get(column, column) for column in by), "")] if by else []
    columns += [("Task", ""), ("Method", "")]
    for statistic in shown:
        title = heading(statistic)
        columns += [(title, "measured"), (title, "paper")] if statistic in compared else [(title, "")]
    columns += [("diverged", "")] if lost else []
    rows, bold = [], []
    for block in blocks:
        for cells, marks in _rows(block, shown, compared, bool(lost)):
            rows.append([*([block.name] if by else []), *cells])
            bold.append([*([False] if by else []), *marks])
    notes = (UNDEFINED,) if any("†" in cell for row in rows for cell in row) else ()
    return Table(columns, rows, numbers, np.array(bold), stubs=3 if by else 2, notes=notes)


def _rows(
    block: _Block, shown: Sequence[str], compared: Sequence[str], lost: bool
) -> list[tuple[list[str], list[bool]]]:
    """(cells, whether each is bold) of each task and method of a block."""
    numbers = block.numbers
    keys = numbers[KEY].itertuples(index=False, name=None)
    cells = dict(zip(keys, numbers.itertuples(index=False), strict=True))
    diverged = numbers[(numbers["statistic"] == "diverged") & (numbers["value"] > 0)]
    found = []
    for task in numbers["task"].unique():
        of_task = numbers[numbers["task"] == task]
        best = {s: _best(of_task[of_task["statistic"] == s], block.formats[s]) for s in block.formats}
        for method in sorted(dict.fromkeys(zip(of_task["method"], of_task["variant"], strict=True)), key=_place):
            if not any((task, *method, s) in cells for s in shown):
                continue
            row, marks = [names.task(task), names.method(*method)], [False, False]
            for statistic in shown:
                cell = cells.get((task, *method, statistic))
                row.append(_measured(cell, block.formats.get(statistic)))
                marks.append(method in best.get(statistic, ()))
                if statistic in compared:
                    row.append(_paper(cell))
                    marks.append(False)
            if lost:
                cell = cells.get((task, *method, "diverged")) if len(diverged) else None
                row.append("" if cell is None else f"{cell.value:.0f}")
                marks.append(False)
            found.append((row, marks))
    return found


def _place(method: tuple[str, str]) -> tuple[bool, int, str, str]:
    """Trivial baselines first, then as methods are listed in `names`, the last one first, variants by their numbers."""
    listed, *rest = names.place(*method)
    return (method[0] not in names.TRIVIAL, -listed if names.family(method[0]) else 1, *rest)


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


def _measured(cell: Any, printed: Callable[[float, float], str] | None) -> str:
    if cell is None or printed is None:
        return "–" if printed is not None else ""
    return printed(cell.value, cell.std) + ("†" if cell.undefined > 0 else "")


def _paper(cell: Any) -> str:
    if cell is None or not np.isfinite(cell.paper):
        return ""
    text = f"{cell.paper:.3f}" if np.isnan(cell.paper_std) else f"{cell.paper:.3f} ({cell.paper_std:.3f})"
    return text.replace("-", "−")


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
