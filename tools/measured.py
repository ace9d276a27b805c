"""Writes the tables in README.md and docs/ that are made from measured numbers; the prose around them stays as it is.

    python tools/measured.py                 in the repository itself
    python tools/measured.py --into FOLDER   the pages into another folder, for comparison

A page says where a table goes by a pair of comments, and everything between the two is written anew:

    <!-- table mini/ext03_runs_needed -->    from figures/mini/ext03_runs_needed.csv
    <!-- end -->

The other names are those of `WRITERS`. Run this after figures/ or benchmarks/results/ have been made again.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from gptfluence.common.settings import ROOT
from gptfluence.drawing import names

PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"<!-- (?P<name>\w+)(?: (?P<what>[\w/-]+))? -->\n(?P<content>.*?)<!-- end -->", re.DOTALL)
COLUMNS = {  # notebook -> the column of its CSV that the columns of its table are made from
    "ext01_explained_deviation": "kind",
    "ext01_other_metrics": "metric",
    "ext03_runs_needed": "fitted_on",
    "ext04_leave_out": "left_out",
    "ext05_bands": "kind",
    "ext07_ablation": "kind",
}
STATISTICS = ("r2_dev", "lds")
BESIDE = {  # notebook -> statistics with a table of their own below that of R²dev, where its CSV has them
    "ext01_explained_deviation": {"r2_within": "R² within the kind", "final_step_spearman": "final-step Spearman ρ"},
    "ext07_ablation": {"r2_within": "R² within the kind"},
}
TANGENT = {  # folder of figures/ -> what it holds, and how many runs simulators are fitted on there
    "mini": ("nano GPT of 0.49M parameters, five generated tasks (`mini`)", "25 + 2"),
    "mini-sizes": ("nano GPTs of 0.08M and 1.8M parameters, two generated tasks (`mini-sizes`)", "25 + 2"),
    "laptop": ("SmolLM2-135M, real SST-2, high learning rate (`laptop`)", "4 + 1"),
    "laptop-slow": ("SmolLM2-135M, real SST-2, the paper's slow pace (`laptop-slow`)", "4 + 1"),
    "laptop-webnlg": ("SmolLM2-135M, real WebNLG (`laptop-webnlg`)", "4 + 1"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Writes the tables of README.md and docs/ from committed results.")
    parser.add_argument("--into", type=Path, default=ROOT, help="the folder that the pages go into")
    into = parser.parse_args(arguments).into
    for page in PAGES:
        path = into / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(filled((ROOT / page).read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """A page with every table written anew. Raises ValueError for a comment that names no table."""

    def write(block: re.Match[str]) -> str:
        if block["name"] not in WRITERS:
            raise ValueError(f"<!-- {block['name']} -->: no such table; known: {', '.join(WRITERS)}")
        arguments = [block["what"]] if block["what"] else []
        content = WRITERS[block["name"]](*arguments)
        opening = block[0].partition("\n")[0]
        return f"{opening}\n{block['content'] if content is None else content}<!-- end -->"

    return BLOCK.sub(write, text)


def read(name: str) -> pd.DataFrame:
    """figures/NAME.csv, with another column `printed`: what the page calls the method, or the variant of it."""
    frame = pd.read_csv(ROOT / "figures" / f"{name}.csv", dtype={"left_out": str, "variant": str})
    if "method" not in frame:
        return frame
    frame["variant"] = frame["variant"].fillna("") if "variant" in frame else ""
    return frame.assign(printed=[names.method(*pair) for pair in zip(frame["method"], frame["variant"], strict=True)])


def tables(name: str) -> str:
    """Of one CSV, a table for each GPT and task: methods down, `COLUMNS` across."""
    profile, _, notebook = name.partition("/")
    column = COLUMNS[notebook]
    whole = read(name)
    if column != "metric":
        whole = whole[whole["metric"] == "loss"]
    found = []
    for (model, task), part in whole.groupby(["model", "task"], sort=False):
        scores = part[part["statistic"].isin(STATISTICS)] if "statistic" in part else part
        table = _pivot(scores, column)
        rows = [table.loc[[method]] for method in table.index]
        if notebook == "ext01_explained_deviation":
            mean = part[part["statistic"] == "mse_mean_trajectory"].groupby(column)["value"].first()
            rows.insert(0, mean[table.columns].to_frame("*MSE of the mean trajectory*").T)
        title = names.task(str(task))
        if profile != "mini":
            title += f", {model}" if profile == "mini-sizes" else f", `{profile}`"
        if notebook == "ext07_ablation":
            title += ", ablation"
        found.append(_markdown(title, rows))
        for statistic, printed in BESIDE.get(notebook, {}).items():
            scores = part[part["statistic"] == statistic]
            if len(scores):
                found.append(_markdown(f"{title}, {printed}", [_pivot(scores, column)]))
    return "\n".join(found)


def coverage(name: str) -> str:
    """Which share of recorded paths lies inside the tangent simulator's bands, by task and kind of curriculum."""
    frame = read(name)
    frame = frame[(frame["method"] == "tangent") & (frame["statistic"] == "coverage") & (frame["unit"] == "path")]
    table = frame.pivot(index="task", columns="kind", values="value")
    table = table.loc[list(dict.fromkeys(frame["task"])), list(dict.fromkeys(frame["kind"]))]
    return _markdown("share inside 90% bands", [table.rename(index=names.task)])


def tangent() -> str:
    """The tangent simulator's R²dev in one line for each folder of figures/, from the lowest to the highest."""
    lines = [
        "| GPT and tasks | training + validation runs | kinds of curricula | unseen tests | that run's own losses |",
        "|---|---|---|---|---|",
    ]
    for folder, (what, fitted_on) in TANGENT.items():
        frame = read(f"{folder}/ext01_explained_deviation")
        frame = frame[(frame["metric"] == "loss") & (frame["statistic"] == "r2_dev")]
        own = frame[frame["method"] == "tangent"]
        unseen = own["kind"] == "unseen_tests"
        seen = own[~own["kind"].str.startswith("unseen")]
        count = seen["kind"].nunique()
        cells = (
            f"{_between(seen['value'])} ({count} kinds)",
            _between(own[unseen]["value"]),
            _between(frame[frame["method"] == "one_run"]["value"]),
        )
        lines.append(f"| {what} | {fitted_on} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def times() -> str | None:
    """How long run_all.sh takes. None, so that the table stays as it is, if benchmarks/results/ does not say.

    benchmarks/results/run_all.json holds {"times": [{"what": ..., "command": ..., "seconds": ...}, ...]}.
    """
    path = ROOT / "benchmarks" / "results" / "run_all.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))["times"]
    lines = ["| what | command | time |", "|---|---|---|"]
    lines += [f"| {row['what']} | `{row['command']}` | {_duration(row['seconds'])} |" for row in found]
    return "\n".join(lines) + "\n"


def outputs() -> str:
    """Every table and figure with its notebook, from the catalogue."""
    from gptfluence.workflow import catalogue

    return catalogue.markdown().rstrip() + "\n"


WRITERS: dict[str, Callable[..., str | None]] = {
    "table": tables,
    "coverage": coverage,
    "tangent": tangent,
    "times": times,
    "outputs": outputs,
}


def _pivot(scores: pd.DataFrame, column: str) -> pd.DataFrame:
    """Printed names of methods down, `column` across, both in the order of the frame."""
    table = scores.pivot(index="printed", columns=column, values="value")
    return table.loc[list(dict.fromkeys(scores["printed"])), list(dict.fromkeys(scores[column]))]


def _markdown(title: str, rows: Sequence[pd.DataFrame]) -> str:
    """A Markdown table of frames with the same columns; a row without any value is left out."""
    columns = [str(label).replace("unseen_", "unseen ") for label in rows[0].columns]
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for frame in rows:
        for label, values in frame.iterrows():
            digits = ".2g" if "MSE" in str(label) else ".2f"
            if not values.isna().all():
                lines.append(f"| {label} | " + " | ".join(_number(value, digits) for value in values) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float, digits: str = ".2f") -> str:
    if pd.isna(value):
        return "-"
    return format(value, digits).replace("-0.00", "0.00")


def _between(values: pd.Series) -> str:
    low, high = _number(values.min()), _number(values.max())
    return low if low == high else f"{low} to {high}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    main()
