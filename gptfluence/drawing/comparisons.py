"""Tables of several blocks (models, metrics, kinds of unseen examples), and what they say beside the paper's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from gptfluence import paper
from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names, tables
from gptfluence.drawing.typeset import Table

HEADINGS = {"model": "Model", "metric": "Metric", "unseen": "Unseen", "setting": "Setting"}
FEW = 3  # blocks that are still told one by one
UNSEEN = {"unseen_train": "training", "unseen_test": "test", "unseen_train_and_test": "both"}  # the paper's words


def reported(number: int) -> pd.DataFrame:
    """The paper's table in the words of this project: columns setting, task, model, metric, unseen, method, statistic,
    value, std.

    `setting` is fine_tuning or instruction_tuning, TracIn-CP and Grad-Dot are "..._oracle" (their scale was fitted on the test run), and what is unseen ("training",
    "test", "both"; "" in tables without it) is a column, not a part of the method's name.
    """
    rows = paper.table(number)
    method = rows["method"].replace({name: f"{name}_oracle" for name in ("tracin_cp_10", "tracin_cp_all", "grad_dot")})
    kind = method.str.partition(" ")[2]
    known = kind.isin(list(UNSEEN))
    columns = ["setting", "task", "model", "metric", "unseen", "method", "statistic", "value", "std"]
    return rows.assign(
        setting=rows["setting"].str.replace("-", "_"),
        unseen=kind.map(UNSEEN).where(known, ""),
        method=method.where(~known, method.str.partition(" ")[0]),
    )[columns]


def in_blocks(
    summary: pd.DataFrame, paper: pd.DataFrame | None = None, *, by: Sequence[str], average: bool = True
) -> Table:
    """`tables.methods_by_task` for each block of rows with the same `by`, one below the other.

    summary: rows of `evaluation.summarize` with columns task, method and those of `by`
    by: columns that tell blocks apart, such as model and metric; blocks come in order of appearance
    paper: rows of `reported` (a block "model" is compared with the Pythia that it is or stands for), or None
    average: whether to add rows with the average over the tasks of a block

    `numbers` has the columns of `by` in front. Raises ConfigurationError for columns that are missing.
    """
    missing = [column for column in by if column not in summary]
    if missing or not by:
        raise ConfigurationError(f"in_blocks: the frame has no column {', '.join(missing) or '(by is empty)'}")
    parts: list[tuple[str, Table]] = []
    numbers = []
    for key, rows in summary.groupby(list(by), sort=False):
        block = dict(zip(by, key, strict=True))
        chosen = _of_block(paper, block) if paper is not None else None
        part = tables.methods_by_task(rows, chosen, average=average)
        parts.append((block_name(block), part))
        numbers.append(part.numbers.assign(**block)[[*by, *part.numbers.columns]])
    columns = _joined([part.columns for _, part in parts])
    rows, bold = [], []
    for name, part in parts:
        place = [_place(columns, column) for column in part.columns]
        for row, marks in zip(part.rows, part.bold, strict=True):
            cells, stress = [""] * len(columns), [False] * len(columns)
            for position, cell, mark in zip(place, row, marks, strict=True):
                cells[position], stress[position] = cell, mark
            rows.append([name, *cells])
            bold.append([False, *stress])
    notes = tuple(dict.fromkeys(note for _, part in parts for note in part.notes))
    heading = (", ".join(HEADINGS.get(column, column) for column in by), "")
    return Table([heading, *columns], rows, pd.concat(numbers, ignore_index=True), np.array(bold), 3, notes)


def block_name(block: Mapping[str, str]) -> str:
    """A block in print.

    >>> block_name({"model": "nano-1b", "metric": "rouge_l"}), block_name({"unseen": "both", "metric": "loss"})
    ('nano-1b, ROUGE-L', 'both, loss')
    """
    return ", ".join(names.metric(value) if column == "metric" else str(value) for column, value in block.items())


def spread(summary: pd.DataFrame, statistic: str = "all_steps_mse") -> pd.DataFrame:
    """The spread over runs and test examples (as in the paper) beside that over runs: one row per task and method.

    summary: as for `in_blocks`. Returns its other columns and value, std, std_over_runs, diverged (of how many
    trajectories), undefined (runs without a rank correlation).
    """
    keys = [c for c in summary if c not in ("statistic", "value", "std", "std_over_runs", "undefined")]
    rows = summary[summary["statistic"] == statistic].drop(columns=["statistic", "undefined"])
    for name, column in (("diverged", "value"), ("trajectories", "value"), ("final_step_spearman", "undefined")):
        found = summary.loc[summary["statistic"] == name, [*keys, column]]
        title = "undefined" if column == "undefined" else name
        rows = rows.merge(found.rename(columns={column: title}).astype({title: int}), on=keys, how="left")
    return rows


# --- sentences -------------------------------------------------------------------------------------------------------


def reading(table: Table, by: Sequence[str]) -> str:
    """What a table of `in_blocks` says: who wins in each block, who beats the mean trajectory where, the paper's order.

    Trivial baselines compete like every other method. Where methods come in another order than in the paper, it says by
    how much curves differ from run to run at all, compared with how far they drift: only the first can be explained.
    """
    numbers = table.numbers[~table.numbers["method"].map(names.knows_the_answer)]
    single = numbers[numbers["task"] != "average"]
    cases = [rows for _, rows in single.groupby([*by, "task"], sort=False)]
    blocks = list(numbers.groupby(list(by), sort=False))
    sentences = [_winner(block_name(dict(zip(by, key, strict=True))), rows) for key, rows in blocks]
    sentences = [_winners(cases), *(sentences if len(blocks) <= FEW else [])]
    sentences += [_explains(cases), _diverged(single), *_order(cases)]
    return " ".join(sentence for sentence in sentences if sentence)


def best_variants(table: Table, by: Sequence[str], family: str, what: Callable[[str], str] = names.method) -> str:
    """Which variant of a method has the lowest MSE for each block and task, beside the paper's choice.

    what: a method in print
    """
    numbers = table.numbers[table.numbers["method"].map(names.family) == family]
    parts = []
    for key, rows in numbers.groupby([*by, "task"], sort=False):
        *block, task = key
        name = f"{block_name(dict(zip(by, block, strict=True)))} of {names.task(task)}"
        ranking = tables.ranking(rows, "all_steps_mse")
        if ranking.empty:
            continue
        text = f"{name}: {what(ranking.index[0])} (MSE {ranking.iloc[0]:.3g}, worst {ranking.iloc[-1]:.3g}"
        theirs = tables.ranking(rows, "all_steps_mse", "paper")
        if len(theirs):
            text += f"; in the paper {what(theirs.index[0])}"
        parts.append(f"{text})")
    return f"Lowest all-steps MSE, {'; '.join(parts)}." if parts else ""


def _winner(name: str, rows: pd.DataFrame) -> str:
    overall = rows[rows["task"] == "average"]
    several = "" if overall.empty else " averaged over tasks"
    if overall.empty and rows["task"].nunique() > 1:
        return ""
    ranking = tables.ranking(rows if overall.empty else overall, "all_steps_mse")
    if len(ranking) < 2:
        return ""
    (best, second), (value, next_value) = ranking.index[:2], ranking.iloc[:2]
    kind = ", a trivial baseline," if best in names.TRIVIAL else ""
    return (
        f"{name}: {names.method(best)}{kind} has the lowest all-steps MSE{several} ({value:.3g}; "
        f"{names.method(second)} {next_value:.3g})."
    )


def _winners(cases: Sequence[pd.DataFrame]) -> str:
    """How often each method has the lowest MSE, where there are several cases."""
    best = [tables.ranking(rows, "all_steps_mse").index[:1].tolist() for rows in cases]
    won = pd.Series([method for methods in best for method in methods], dtype=object).value_counts()
    if len(cases) < 2 or won.empty:
        return ""
    kinds = dict.fromkeys(names.TRIVIAL, " (a trivial baseline)")
    parts = [f"{names.method(method)}{kinds.get(method, '')} in {count}" for method, count in won.items()]
    return f"The lowest all-steps MSE, of {len(cases)} cases: {', '.join(parts)}."


def _explains(cases: Sequence[pd.DataFrame]) -> str:
    won: dict[str, list[bool]] = {}
    for rows in cases:
        for method, value in tables.ranking(rows, "r2_dev").items():
            if method not in names.TRIVIAL:
                won.setdefault(str(method), []).append(value > 0)
    if not won:
        return ""
    parts = [f"{names.method(method)} in {sum(above)} of {len(above)}" for method, above in won.items()]
    return f"Better than the mean trajectory of the training runs (R²dev > 0): {', '.join(parts)} cases."


def _diverged(numbers: pd.DataFrame) -> str:
    rows = numbers[numbers["statistic"] == "diverged"]
    lost = rows.groupby("method", sort=False)["value"].sum()
    parts = [f"{names.method(str(method))} {count:.0f}" for method, count in lost.items() if count > 0]
    return f"Predicted trajectories that diverged: {', '.join(parts)}." if parts else ""


def _order(cases: Sequence[pd.DataFrame]) -> list[str]:
    """How often methods come in the paper's order by MSE; if not always, what there is to tell them apart by."""
    same = compared = 0
    shares = []
    for rows in cases:
        theirs = tables.ranking(rows, "all_steps_mse", "paper")
        measured = [method for method in tables.ranking(rows, "all_steps_mse").index if method in theirs.index]
        if len(theirs) < 2 or len(measured) < len(theirs):
            continue
        compared += 1
        same += measured == list(theirs.index)
        mse = tables.ranking(rows, "all_steps_mse")
        if measured != list(theirs.index) and {"persistence", "mean_trajectory"} <= set(mse.index):
            shares.append(mse["mean_trajectory"] / mse["persistence"] if mse["persistence"] > 0 else np.nan)
    if not compared:
        return []
    sentences = [f"By MSE the methods that the paper reports, too, come in its order in {same} of {compared} cases."]
    shares = [share for share in shares if np.isfinite(share)]
    if shares:
        sentences.append(
            f"In the others what differs from run to run is {100 * np.median(shares):.0f}% (median) of how far curves move "
            "from their start (MSE of the mean trajectory, of persistence): only that part is the curriculum's doing."
        )
    return sentences


def _of_block(rows: pd.DataFrame, block: Mapping[str, str]) -> pd.DataFrame | None:
    for column, value in block.items():
        rows = rows[rows[column] == (names.paper_model(value) if column == "model" else value)]
    return None if rows.empty else rows


def _joined(parts: Sequence[list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """The columns of all blocks; a statistic that one of them compares with the paper has two columns in all."""
    order = {"Task": 0, "Method": 1}
    known = [tables.heading(statistic) for statistic in tables.PRINTED]
    order |= {heading: 2 + position for position, heading in enumerate(known)}
    found = {column for columns in parts for column in columns}
    compared = {heading for heading, second in found if second}
    found = {column for column in found if column[1] or column[0] not in compared}
    return sorted(found, key=lambda column: (order.get(column[0], len(order)), column[1] == "paper"))


def _place(columns: Sequence[tuple[str, str]], column: tuple[str, str]) -> int:
    return columns.index(column) if column in columns else columns.index((column[0], "measured"))
