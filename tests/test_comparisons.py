"""Tables of several blocks: every number in its place beside the paper's, and sentences that follow from them."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence import paper
from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names, readings, tables
from gptfluence.drawing.typeset import PAGE_ROWS, Table

METHODS = ("persistence", "mean_trajectory", "simfluence", "gptfluence")


def summary(blocks: list[dict], tasks=("rte", "sst2"), methods=METHODS, mse=lambda row: 0.1 * (row + 1), **changed):
    """Rows of `summarize`, every number different; changed: statistic -> value for all."""
    rows, row = [], 0
    for block in blocks:
        for task in tasks:
            for method in methods:
                values = {
                    "all_steps_mse": mse(row),
                    "all_steps_mae": 0.2 * (row + 1),
                    "final_step_spearman": 1 / (row + 2),
                    "r2_dev": 0.5 - 0.1 * row,
                    "diverged": 0,
                    "trajectories": 8,
                    "runs": 2,
                } | changed
                for statistic, value in values.items():
                    rows.append({**block, "task": task, "method": method, "statistic": statistic, "value": value})
                row += 1
    return pd.DataFrame(rows).assign(std=0.01, std_over_runs=0.002, undefined=0)


def test_the_papers_rows_are_in_this_projects_words():
    one, ten, eleven = (tables.reported(number) for number in (1, 10, 11))
    assert set(one["setting"]) == {"instruction_tuning"}
    assert {"tracin_cp_all_oracle", "tracin_cp_10_oracle", "grad_dot_oracle"} < set(one["method"])
    assert set(one["unseen"]) == {""}
    assert set(ten["method"]) == {"gptfluence"}
    assert set(ten["variant"]) == {f"markov_order={order}" for order in (1, 2, 3, 5, 10)}
    assert set(one["variant"]) == set(eleven["variant"]) == {""}
    assert set(eleven["unseen"]) == {"training", "test", "both"}
    assert set(eleven["method"]) == {"gptfluence"}
    for number, rows in ((1, one), (10, ten), (11, eleven)):
        np.testing.assert_array_equal(rows["value"], paper.table(number)["value"])


@settings(max_examples=12, deadline=None)
@given(
    models=st.lists(st.sampled_from(["nano-410m", "nano-1b", "own"]), min_size=1, unique=True),
    tasks=st.lists(st.sampled_from(["rte", "sst2", "boolq"]), min_size=1, unique=True),
    methods=st.lists(st.sampled_from(METHODS), min_size=1, unique=True),
)
def test_every_number_stands_in_its_block_beside_the_papers(models, tasks, methods):
    given_rows = summary([{"model": model} for model in models], tasks, methods)
    table = tables.methods_by_task(given_rows, tables.reported(1), by=["model"], average=False)
    assert len(table.rows) == len(models) * len(tasks) * len(methods)
    assert all(len(row) == len(table.columns) for row in table.rows)
    frame = table.to_frame()
    for row in given_rows[given_rows["statistic"] == "all_steps_mse"].itertuples():
        found = frame[
            (frame["Model"] == row.model)
            & (frame["Task"] == names.task(row.task))
            & (frame["Method"] == names.method(row.method))
        ]
        assert len(found) == 1
        cells = found.iloc[0]
        compared = "MSE ↓, measured" in frame
        assert cells["MSE ↓, measured" if compared else "MSE ↓"].startswith(f"{row.value:.3f}")
        known = {"pythia-410m", "pythia-1b"} & {names.paper_model(row.model)}
        if known and row.method in ("simfluence", "gptfluence"):
            theirs = paper.table(1, statistic="all_steps_mse", method=row.method, task=row.task, model=known.pop())
            assert cells["MSE ↓, paper"].startswith(f"{theirs['value'].item():.3f}")
        elif compared:
            assert cells["MSE ↓, paper"] == ""


def test_blocks_come_in_order_of_appearance_and_a_column_that_one_of_them_has_is_there():
    blocks = [{"model": "nano-1b", "metric": "bleu"}, {"model": "nano-1b", "metric": "rouge_l"}]
    rows = summary(blocks, tasks=["webnlg"])
    rows.loc[(rows["metric"] == "rouge_l") & (rows["statistic"] == "diverged"), "value"] = 3
    table = tables.methods_by_task(rows, tables.reported(3), by=["model", "metric"])
    assert [row[0] for row in table.rows] == ["nano-1b, BLEU"] * 4 + ["nano-1b, ROUGE-L"] * 4
    assert ("diverged", "") in table.columns
    assert [row[-1] for row in table.rows] == [""] * 4 + ["3"] * 4
    assert list(table.numbers.columns[:2]) == ["model", "metric"]
    assert "diverged" in readings.of_table(table)


def test_tasks_side_by_side_have_every_number_in_its_place():
    rows = summary([{"model": "nano-410m"}], ["rte", "sst2", "boolq", "webnlg", "wmt16_de_en"])
    theirs = tables.reported(1)
    table = tables.methods_by_task(rows, theirs, by=["model"], tasks_across=True)
    assert [first for first, _ in table.columns] == [
        *("Model", "Statistic", "Method", "RTE", "SST-2", "BoolQ", "WebNLG", "WMT16 DE/EN"),
        *("Over tasks‡", "Mean in the paper"),
    ]
    assert table.notes == (tables.OVER_TASKS_NOTE,)
    cells = table.to_frame().set_index(["Statistic", "Method"])
    assert not cells.index.duplicated().any()
    numbers = table.numbers.set_index(["task", "method", "statistic"])
    for method in METHODS:
        for statistic in tables.PRINTED:
            row = cells.loc[(tables.heading(statistic), names.method(method))]
            for task in ("rte", "boolq"):
                value = numbers.loc[(task, method, statistic), "value"]
                assert float(row[names.task(task)].replace("−", "-")) == pytest.approx(value, rel=0.01, abs=0.001)
            assert row["Mean in the paper"] == ""
        relative = cells.loc[("MSE ↓", names.method(method)), "Over tasks‡"]
        assert float(relative) == pytest.approx(
            numbers.loc[("over_tasks", method, "all_steps_mse_relative"), "value"], 0.01
        )
    paper_rows = cells[cells.index.get_level_values("Method").str.endswith(": paper")]
    assert len(paper_rows) == 2 * 3  # methods, statistics
    found = cells.loc[("MAE ↓", "Simfluence: paper")]
    mae = paper.table(1, model="pythia-410m", method="simfluence", statistic="all_steps_mae").set_index("task")["value"]
    assert found["RTE"] == f"{mae['rte']:.3f}"
    assert found["Mean in the paper"] == f"{mae['average']:.3f}"  # the plain mean, as it prints it
    assert found["Over tasks‡"] == ""


def test_a_table_has_four_digits_at_most_and_the_papers_mean_apart():
    rows = summary(
        [{}], ["rte", "sst2", "boolq", "webnlg", "wmt16_de_en"], mse=lambda row: 10.0 ** (row % 7 - 4) * 1.23456
    )
    table = tables.methods_by_task(rows, tables.reported(2))
    frame = table.to_frame()
    for cell in frame["MSE ↓, measured"]:
        digits = re.sub(r" \(.*\)|[†−–]|e.*|^0\.0*|\.", "", cell)
        assert len(digits) <= 4, cell
    ours, theirs = (frame[frame["Task"] == task] for task in ("Over tasks‡", "Mean in the paper"))
    assert list(ours["MSE ↓, paper"]) == [""] * 4
    assert list(theirs["Method"]) == ["Simfluence", "GPTfluence"]
    assert list(theirs["MSE ↓, measured"]) == ["", ""]
    assert list(theirs["MSE ↓, paper"]) == ["0.026", "0.015"]


def test_a_table_without_its_columns_is_refused():
    rows = summary([{"model": "nano-1b"}])
    with pytest.raises(ConfigurationError, match="no column metric"):
        tables.methods_by_task(rows, by=["model", "metric"])
    twice = pd.concat([rows, rows])
    with pytest.raises(ConfigurationError, match="occurs twice"):
        tables.methods_by_task(twice, by=["model"])


def test_orders_are_sorted_as_numbers():
    methods = [f"gptfluence markov_order={order}" for order in (10, 2, 1)]
    rows = summary([{"metric": "loss"}], ["rte"], methods)
    parts = rows["method"].str.partition(" ")
    table = tables.methods_by_task(rows.assign(method=parts[0], variant=parts[2]), tables.reported(10), by=["metric"])
    assert [row[2] for row in table.rows] == [f"GPTfluence (order {order})" for order in (1, 2, 10)]
    text = readings.best_variants(table, "gptfluence")
    assert "loss of RTE: GPTfluence (order 10) (MSE 0.1, worst 0.3" in text  # it came first, with the lowest number
    theirs = paper.table(10, task="rte", metric="loss", statistic="all_steps_mse").set_index("method")["value"]
    best = theirs.loc[[f"gptfluence order={order}" for order in (10, 2, 1)]].idxmin().partition("=")[2]
    assert f"in the paper GPTfluence (order {best})" in text
    cells = table.to_frame().set_index("Method")["MSE ↓, paper"]
    assert cells["GPTfluence (order 2)"].startswith(f"{theirs['gptfluence order=2']:.3f}")
    assert table.numbers["variant"].unique().tolist() == ["markov_order=10", "markov_order=2", "markov_order=1"]


@pytest.mark.parametrize("reverse", [False, True])
def test_the_reading_tells_the_papers_order_from_another(reverse):
    count = len(METHODS)
    theirs = tables.reported(1)
    rows = summary([{"model": "nano-410m"}], ["sst2"], mse=lambda row: row + 1 if reverse else count - row)
    table = tables.methods_by_task(rows, theirs, by=["model"])
    one = theirs[(theirs["model"] == "pythia-410m") & (theirs["task"] == "sst2") & theirs["method"].isin(METHODS)]
    order = readings.ranked(one, "all_steps_mse")
    rows = table.numbers[table.numbers["method"].isin(order.index.get_level_values("method"))]
    same = list(readings.ranked(rows, "all_steps_mse").index) == list(order.index)
    text = readings.of_table(table)
    # five methods of the paper's, two of them here: orders can only be compared if all were measured
    assert ("order as there" in text) == (len(rows["method"].unique()) == len(order))
    if "order as there" in text:
        assert f"come in {'the same' if same else 'another'} order as there" in text
        assert ("differ from run to run" in text) != same


def test_spread_has_both_and_counts():
    rows = summary([{"model": "nano-1b"}], diverged=2)
    rows.loc[(rows["statistic"] == "final_step_spearman"), "undefined"] = 1
    spread = tables.spread(rows)
    assert len(spread) == 8
    assert {"std", "std_over_runs"} < set(spread)
    assert set(spread["diverged"]) == {2}
    assert set(spread["trajectories"]) == {8}
    assert set(spread["undefined"]) == {1}


def test_a_table_longer_than_a_page_breaks_between_pages():
    blocks = [{"model": name} for name in ("nano-14m", "nano-70m", "nano-160m")]
    long = tables.methods_by_task(summary(blocks, tasks=["rte", "sst2", "boolq", "webnlg"]), by=["model"])
    assert len(long.rows) > PAGE_ROWS
    tex = long.to_tex("A caption", "tab:long")
    parts = tex.split(r"\begin{table*}")[1:]
    assert len(parts) == tex.count(r"\end{tabular}") == tex.count(r"\end{adjustbox}") == 2
    assert r"\caption{A caption}" in parts[0]
    assert r"\label{tab:long}" in parts[0]
    assert "\\addtocounter{table}{-1}\n\\caption[]{(continued)}" in parts[1]
    assert "label" not in parts[1]
    bodies = [part.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines() for part in parts]
    cells = [[line for line in body if line != "\\addlinespace"] for body in bodies]
    assert [len(rows) <= PAGE_ROWS for rows in cells] == [True, True]
    assert sum(map(len, cells)) == len(long.rows)
    assert {line.count("&") for rows in cells for line in rows} == {len(long.columns) - 1}
    assert all(
        rows[0].split(" & ")[0].strip() and rows[0].split(" & ")[1].strip() for rows in cells
    )  # groups are named
    assert all(f"\n{block['model']} & " in tex for block in blocks)
    named = [name for rows in cells for line in rows if (name := line.split(" & ")[0].strip())]
    assert list(dict.fromkeys(named)) == [block["model"] for block in blocks]
    assert len(named) <= len(blocks) + len(parts) - 1  # once, and once more where a page begins
    layouts = re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", tex)
    assert [len(layout) for layout in layouts] == [len(long.columns)] * len(parts)
    heads = [part.split("\\midrule\n")[0].split("\\toprule\n")[1] for part in parts]
    assert heads[0] == heads[1]
    assert heads[0].startswith(("model & ", "Model & "))
    groups = 3 * 5  # tasks and averages of each block
    assert sum(body.count("\\addlinespace") for body in bodies) == groups - len(parts)
    short = tables.methods_by_task(summary(blocks[:2]), by=["model"]).to_tex()
    assert short.count(r"\begin{tabular}") == short.count(r"\begin{table*}") == 1
    assert "longtable" not in short
    assert "longtable" not in tex


def test_a_row_that_begins_with_a_bracket_is_no_option_of_the_rule_above():
    tex = Table([("x", ""), ("y", "")], [["[1]", "2"], ["*", "3"], ["a", "[4]"]], pd.DataFrame()).to_tex()
    lines = tex.split("\\midrule\n")[1].splitlines()
    assert [line.split(" &")[0] for line in lines[:3]] == ["{}[1]", "{}*", "a"]


def test_a_long_table_without_a_caption_has_no_number_to_go_on_with():
    rows = [[str(k), "2"] for k in range(PAGE_ROWS + 1)]
    tex = Table([("x", ""), ("y", "")], rows, pd.DataFrame()).to_tex()
    assert tex.count(r"\begin{table*}") == 2
    assert "continued" not in tex
    assert "addtocounter" not in tex
    assert r"\begin{table*}" in Table([("x", ""), ("y", "")], [], pd.DataFrame()).to_tex()


def test_a_group_longer_than_a_page_is_cut():
    rows = [["a", str(k)] for k in range(2 * PAGE_ROWS + 1)]
    tex = Table([("x", ""), ("y", "")], rows, pd.DataFrame(), stubs=2, notes=("a note",)).to_tex("A caption", "tab:x")
    assert [part.count("\\\\\n") - 1 for part in tex.split(r"\begin{table*}")[1:]] == [PAGE_ROWS, PAGE_ROWS, 1]
    assert tex.count("a note") == 1


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(*[st.sampled_from("ab")] * 3), min_size=1, max_size=12))
def test_what_is_set_once_can_be_read_back(rows):
    table = Table([("x", ""), ("y", ""), ("z", "")], [list(row) for row in rows], pd.DataFrame(), stubs=3)
    read = []
    for row in table._merged():
        known = [cell or read[-1][position] for position, cell in enumerate(row)]
        read.append(tuple(known))
    assert read == rows
