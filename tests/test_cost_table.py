"""Table 13 in print: units that people read, and each of the paper's numbers beside the work that it is of."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from gptfluence import paper
from gptfluence.drawing import costs as printed

ROWS = [
    ("tracin_cp", "parameters=last_layer", "", "nothing", 1.2e8, 0.01),
    ("tracin_cp", "parameters=all", "", "nothing", 2.9e8, 0.02),
    ("tracin_cp", "parameters=all", "", "tests", 6.0e7, 0.002),
    ("recorded", "", "", "tests", 2.3e7, 0.0007),
    ("simfluence", "", "", "nothing", 32, 0.0002),
    ("gptfluence", "", "excluded", "nothing", 10_630_000, 0.0005),
    ("gptfluence", "", "excluded", "tables", 53_890, 1.2345e-6),
    ("gptfluence", "", "included", "nothing", 5.234e9, 0.08),
]
COLUMNS = ["method", "variant", "encoder", "reuse", "flops", "seconds"]


def costs(batches=(4, 8)) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(ROWS, columns=COLUMNS).assign(batch=size) for size in batches])


def test_the_papers_numbers_stand_beside_the_work_that_they_are_of():
    frame = printed.beside_paper(costs(), paper.table(13))
    flops, seconds = (frame.dropna(subset=column) for column in ("paper_flops", "paper_seconds"))
    assert set(flops["batch"]) == set(seconds["batch"]) == {8}
    keys = ["method", "variant", "encoder", "reuse"]
    assert flops[keys].to_numpy().tolist() == [
        ["tracin_cp", "parameters=all", "", "nothing"],
        ["simfluence", "", "", "nothing"],
        ["gptfluence", "", "excluded", "nothing"],
    ]
    assert flops["paper_flops"].tolist() == [1.1e13, 16, 5.3e6]
    assert seconds["paper_seconds"].tolist() == [153, 0.1, 0.2]
    assert seconds["encoder"].tolist() == ["", "", "included"]
    without = printed.beside_paper(costs()[costs()["encoder"] != "included"], paper.table(13))
    assert without["paper_seconds"].dropna().tolist() == [153, 0.1, 0.2]
    assert printed.beside_paper(costs([4]), paper.table(13))[["paper_flops", "paper_seconds"]].isna().all(axis=None)


def test_headings_have_units_and_cells_words():
    table = printed.table(printed.beside_paper(costs(), paper.table(13)))
    frame = table.to_frame()
    assert list(frame) == [
        *("Batch size", "Method", "Text encoder", "Shared by"),
        *("FLOPs, measured", "FLOPs, paper (multiply-adds)", "Time, measured (ms)", "Time, paper (s per sample)"),
    ]
    row = frame[(frame["Batch size"] == "8") & (frame["Method"] == "GPTfluence")].iloc[0]
    assert row.tolist() == ["8", "GPTfluence", "left out", "nothing", "10.63 M", "5.3 M", "0.5", ""]
    assert frame["Time, measured (ms)"].tolist()[6] == "0.001234"
    assert not frame.isin(["recorded", "excluded", "tables"]).any(axis=None)
    assert table.numbers["seconds"].tolist() == [row[-1] for row in ROWS] * 2  # unrounded


@pytest.mark.parametrize(
    ("count", "said"),
    [(16, "16"), (999, "999"), (1000, "1 k"), (2.9081e9, "2.908 G"), (1.1e13, "11 T"), (math.nan, "")],
)
def test_numbers_have_prefixes(count, said):
    assert printed.with_prefix(count) == said
