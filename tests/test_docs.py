"""What docs/method.md says was measured is what the committed outputs hold."""

from __future__ import annotations

import pandas as pd
import pytest

from gptfluence import names
from gptfluence.config import ROOT

FIGURES = ROOT / "figures" / "mini"
TABLES = {  # csv file -> rows, columns
    "ext01_explained_deviation": ("simulator", "curricula"),
    "ext01_other_metrics": ("simulator", "metric"),
    "ext03_runs_needed": ("simulator", "runs"),
    "ext04_leave_out": ("method", "left_out"),
}


def tables(name: str) -> list[str]:
    """One Markdown table for each task, of R2_dev or the linear datamodelling score, as docs/method.md prints it."""
    row, column = TABLES[name]
    frame = pd.read_csv(FIGURES / f"{name}.csv", dtype={"left_out": str})
    if "metric" in frame and column != "metric":
        frame = frame[frame["metric"] == "loss"]
    if "statistic" in frame:
        frame = frame[frame["statistic"].isin(["r2_dev", "lds"])]
    found = []
    for task, part in frame.groupby("task", sort=False):
        table = part.pivot(index=row, columns=column, values="value")
        table = table.loc[list(dict.fromkeys(part[row])), list(dict.fromkeys(part[column]))]
        shown = [
            f"| {names.method(method)} | " + " | ".join("-" if pd.isna(v) else f"{v + 0:.2f}" for v in values) + " |"
            for method, values in zip(table.index, table.to_numpy(), strict=True)
            if not table.loc[method].isna().all()
        ]
        head = [
            f"| {names.task(task)} | " + " | ".join(map(str, table.columns)) + " |",
            "|---" * (1 + table.shape[1]) + "|",
        ]
        found.append("\n".join([*head, *shown]).replace("-0.00", "0.00") + "\n")
    return found


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_of_the_method_are_those_of_the_outputs(name: str):
    text = (ROOT / "docs" / "method.md").read_text()
    for table in tables(name):
        assert table in text, f"docs/method.md lacks this table, which {name}.csv has:\n{table}"
