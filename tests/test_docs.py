"""What docs/measured.md says was measured is what the committed outputs hold."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from gptfluence.common.settings import ROOT
from gptfluence.drawing import names

FIGURES = ROOT / "figures"
TABLES = {  # csv file below figures/ -> rows, columns
    "mini/ext01_explained_deviation": ("simulator", "curricula"),
    "mini-sizes/ext01_explained_deviation": ("simulator", "curricula"),
    "mini/ext01_other_metrics": ("simulator", "metric"),
    "mini/ext03_runs_needed": ("simulator", "runs"),
    "mini/ext04_leave_out": ("method", "left_out"),
    "laptop/ext01_explained_deviation": ("simulator", "curricula"),
    "laptop/ext03_runs_needed": ("simulator", "runs"),
    "laptop-slow/ext01_explained_deviation": ("simulator", "curricula"),
    "laptop-slow/ext03_runs_needed": ("simulator", "runs"),
    "laptop-webnlg/ext01_explained_deviation": ("simulator", "curricula"),
    "laptop-webnlg/ext03_runs_needed": ("simulator", "runs"),
    **{
        f"{profile}/ext07_ablation": ("simulator", "curricula")
        for profile in ("mini", "mini-webnlg", "laptop", "laptop-slow", "laptop-webnlg")
    },
}


def tables(name: str) -> list[str]:
    """One Markdown table for each task, of R2_dev or the linear datamodelling score, as docs/measured.md prints it."""
    row, column = TABLES[name]
    frame = pd.read_csv(FIGURES / f"{name}.csv", dtype={"left_out": str})
    if "metric" in frame and column != "metric":
        frame = frame[frame["metric"] == "loss"]
    profile, whole = name.partition("/")[0], frame
    if "statistic" in frame:
        frame = frame[frame["statistic"].isin(["r2_dev", "lds"])]
    found = []
    for (model, task), part in frame.groupby(["model", "task"], sort=False):
        table = part.pivot(index=row, columns=column, values="value")
        table = table.loc[list(dict.fromkeys(part[row])), list(dict.fromkeys(part[column]))]
        columns = [str(label).replace("unseen_", "unseen ") for label in table.columns]
        title = names.task(task)
        if profile != "mini":
            title += f", {model}" if profile == "mini-sizes" else f", `{profile}`"
        if "ablation" in name:
            title += ", ablation"
        lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
        if column == "curricula" and "ablation" not in name:
            mine = whole[
                (whole["task"] == task) & (whole["model"] == model) & (whole["statistic"] == "mse_mean_trajectory")
            ]
            errors = mine.groupby("curricula")["value"].first()[table.columns]
            lines.append("| *MSE of the mean trajectory* | " + " | ".join(f"{v:.2g}" for v in errors) + " |")
        lines += [
            f"| {names.method(method)} | " + " | ".join("-" if pd.isna(v) else f"{v + 0:.2f}" for v in values) + " |"
            for method, values in zip(table.index, table.to_numpy(), strict=True)
            if not table.loc[method].isna().all()
        ]
        found.append("\n".join(lines).replace("-0.00", "0.00") + "\n")
    return found


def test_the_page_has_no_table_that_no_output_has():
    text = (ROOT / "docs" / "measured.md").read_text()
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    expected = [table for name in TABLES for table in tables(name)]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_those_of_the_outputs(name: str):
    text = (ROOT / "docs" / "measured.md").read_text()
    for table in tables(name):
        assert table in text, f"docs/measured.md lacks this table, which {name}.csv has:\n{table}"
