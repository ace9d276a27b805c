"""Writes what README.md and docs/ say of measured numbers: tables, sentences and single numbers. The rest of the prose stays.

    python tools/measured.py                 in the repository itself
    python tools/measured.py --into FOLDER   the pages into another folder, for comparison

A page says by a pair of comments what stands between them, and the tool writes that anew. A table or a sentence has lines of
its own, a number stands in a line (but does not begin it, or Markdown would end the paragraph there):

    <!-- table mini/ext03_runs_needed -->    from figures/mini/ext03_runs_needed.csv
    <!-- end -->
    has R²dev <!-- number mini/ext03_runs_needed method=tangent task=sst2 fitted_on=1 -->0.99<!-- end --> from one run

The first word is a name of `WRITERS`, whose function says what the other words mean. Run this after figures/ or
benchmarks/results/ have been made again.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gptfluence.common.settings import ROOT
from gptfluence.drawing import names
from gptfluence.drawing.tables import OVER_TASKS, PAPERS_MEAN, told_the_answer, with_variants
from gptfluence.experiments import adapters, tuning
from gptfluence.profile.load import load_profile
from gptfluence.simulators.fitting import TARGETS
from gptfluence.workflow import catalogue

PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"<!-- (?P<name>\w+)(?: (?P<what>[^>]*?))? -->(?P<content>.*?)<!-- end -->", re.DOTALL)
WIDTH = 120  # of a line of prose
COLUMNS = {  # notebook -> the column of its CSV that the columns of its table are made from
    "ext01_explained_deviation": "kind",
    "ext01_other_metrics": "metric",
    "ext03_runs_needed": "fitted_on",
    "ext04_leave_out": "left_out",
    "ext05_bands": "kind",
    "ext07_ablation": "kind",
    "ext08_adapters": "kind",
}
STATISTICS = ("r2_dev", "lds")
BESIDE = {  # notebook -> statistics with a table of their own below that of R²dev, where its CSV has them
    "ext01_explained_deviation": {"r2_within": "R² within the kind", "final_step_spearman": "final-step Spearman ρ"},
    "ext07_ablation": {"r2_within": "R² within the kind"},
}
TANGENT = {  # folder of figures/ -> what its texts are, and in which regime the GPT is trained
    "mini": "generated text, learning",
    "confirmation": "the same from other seeds",
    "laptop": "public text, learning",
    "laptop-operations": "the same on free text",
    "laptop-seed-1": "both with another seed",
    "laptop-gemma": "another GPT",
}
CLAIMED = "mini-all"  # the profile whose tables say what became of the paper's comparisons
CLAIMS = (  # the tables in which the paper compares methods
    "tab01_instruction_tuning_loss",
    "tab02_fine_tuning_loss",
    "tab03_instruction_tuning_generation",
    "tab04_fine_tuning_generation",
)
NOT_A_TASK = (PAPERS_MEAN, OVER_TASKS)  # in the column "task" of tables
HOW = {"mean": pd.Series.mean, "lowest": pd.Series.min, "highest": pd.Series.max}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Writes committed results into README.md and docs/.")
    parser.add_argument("--into", type=Path, default=ROOT, help="the folder that the pages go into")
    into = parser.parse_args(arguments).into
    for page in PAGES:
        path = into / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(filled((ROOT / page).read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """A page with everything between comments written anew. Raises ValueError for a comment that cannot be obeyed."""

    def write(block: re.Match[str]) -> str:
        if block["name"] not in WRITERS:
            raise ValueError(f"<!-- {block['name']} -->: the tool knows no such name; known: {', '.join(WRITERS)}")
        content = WRITERS[block["name"]](*([block["what"]] if block["what"] else []))
        opening = block[0][: block.start("content") - block.start()]
        if block["content"].startswith("\n"):
            return f"{opening}\n{content.strip()}\n<!-- end -->"
        if not text[: block.start()].rpartition("\n")[2].strip():
            raise ValueError(f"{opening}: a number must not begin a line, or Markdown ends the paragraph before it")
        return f"{opening}{content.strip()}<!-- end -->"

    return BLOCK.sub(write, text)


def read(name: str) -> pd.DataFrame:
    """figures/NAME.csv, with another column `printed`: what the page calls the method, or the variant of it."""
    frame = pd.read_csv(ROOT / "figures" / f"{name}.csv", dtype={"left_out": str, "variant": str})
    if "method" not in frame:
        return frame
    frame = with_variants(frame)
    return frame.assign(printed=[names.method(*pair) for pair in zip(frame["method"], frame["variant"], strict=True)])


def tables(name: str) -> str:
    """Of one CSV, a table for each GPT, task and way of training: methods down, `COLUMNS` across."""
    profile, _, notebook = name.partition("/")
    column = COLUMNS[notebook]
    whole = read(name)
    if "metric" in whole and column != "metric":
        whole = whole[whole["metric"] == "loss"]
    found = []
    ways = [whole["way"]] if "way" in whole else []  # of training
    for (_, task, *way), part in whole.groupby([whole["model"], whole["task"], *ways], sort=False):
        scores = part[part["statistic"].isin(STATISTICS)] if "statistic" in part else part
        table = _pivot(scores, column)
        rows = [table.loc[[method]] for method in table.index]
        if notebook == "ext01_explained_deviation":
            mean = part[part["statistic"] == "mse_mean_trajectory"].groupby(column)["value"].first()
            rows.insert(0, mean[table.columns].to_frame("*MSE of the mean trajectory*").T)
        title = ", ".join([names.task(str(task)), *map(adapters.WAYS.__getitem__, way)])
        if profile != "mini":
            title += f", `{profile}`"
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
    frame = _coverage(name)
    table = frame.pivot(index="task", columns="kind", values="value")
    table = table.loc[list(dict.fromkeys(frame["task"])), list(dict.fromkeys(frame["kind"]))]
    return _markdown("share inside 90% bands", [table.rename(index=names.task)])


def tangent() -> str:
    """The tangent simulator's R²dev in one line for each folder of figures/, from the lowest to the highest."""
    lines = [
        "| GPT and tasks | training + validation runs | drawn alike | other kinds | unseen tests | that run's own losses |",
        "|---|---|---|---|---|---|",
    ]
    for folder, texts in TANGENT.items():
        frame, facts = _explained(folder), _facts(f"{folder}/ext01_explained_deviation")
        own = frame[frame["method"] == "tangent"]
        others = own[~own["kind"].str.startswith("unseen") & (own["kind"] != "alike")]
        runs = facts["study"]["settings"]["fine_tuning"]["runs"]
        cells = (
            f"{', '.join(own['model'].unique())}: {', '.join(map(names.task, own['task'].unique()))}; {texts} (`{folder}`)",
            f"{runs['train']} + {runs['validation']}",
            _between(own.loc[own["kind"] == "alike", "value"]),
            f"{_between(others['value'])} ({others['kind'].nunique()} kinds)",
            _between(own.loc[own["kind"] == "unseen_tests", "value"]),
            _between(frame.loc[frame["method"] == "one_run", "value"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def claims() -> str:
    """What became of the paper's comparisons of methods: a line for each of its tables, profile `CLAIMED`."""
    lines = [
        "| by all-steps MSE | cases | GPTfluence is better than Simfluence: here, in the paper | all methods in the paper's "
        "order | GPTfluence is better than the mean trajectory | persistence / mean trajectory |",
        "|---|---|---|---|---|---|",
    ]
    for name in CLAIMS:
        found = list(map(_case, _cases(name)))
        here, there, order, beats_mean = (sum(case[k] for case in found) for k in range(4))
        row = catalogue.by_name()[name]
        lines.append(
            f"| {row.label}: {row.title} | {len(found)} | {here}, {there} | {order} | {beats_mean} | "
            f"{np.median([case[4] for case in found]):.2g} |"
        )
    return "\n".join(lines)


def found(folder: str) -> str:
    """What was found, in sentences; folder: the one of figures/ whose ext01 is told.

    The paper's comparisons are those of profile `CLAIMED`. The row of one recorded run is no method and does not compete.
    """
    cases = [_case(case) for name in CLAIMS for case in _cases(name)]
    better, in_paper, _, beats_mean = (sum(case[k] for case in cases) for k in range(4))
    comparisons = (
        f"*The paper's comparisons* ({load_profile(CLAIMED).subject}). A case is one task, GPT and metric. GPTfluence has a lower "
        f"all-steps MSE than Simfluence in {better} of {len(cases)} cases (in the paper in {in_paper} of these). It has a lower "
        f"one than the mean trajectory of the training runs, which knows nothing of the curriculum, in {beats_mean} of them."
    )
    frame = _explained(folder)
    frame = frame[(frame["variant"] == "") & (frame["method"] != "one_run")]
    alike = frame[frame["kind"] == "alike"].groupby("method", sort=False)["value"]
    ranges = "; ".join(f"{names.method(method)} {_between(values)}" for method, values in alike)
    explained = (
        f"*What a curriculum changes in the loss* ({load_profile(folder).subject}). R²dev is 1 for a perfect prediction and 0 for "
        f"that mean. For curricula drawn as those of the training runs it is, from the lowest to the highest: {ranges}."
    )
    kinds = frame.pivot_table(index=["model", "task", "kind"], columns="method", values="value", sort=False)
    unit = f"{len(kinds)} combinations of a GPT, a task and a kind of curriculum"
    first = kinds.idxmax(axis=1).value_counts()
    compared = (
        f"Of {unit}, R²dev is highest for {', '.join(f'{names.method(one)} in {n}' for one, n in first.items())}."
    )
    return "\n\n".join(map(_prose, (comparisons, " ".join(filter(None, (explained, compared, _beyond_counts(kinds)))))))


def _beyond_counts(kinds: pd.DataFrame) -> str:
    """In how many rows each method has a higher R²dev than counts; kinds: R²dev, a column for each method."""
    if "counts" not in kinds:
        return ""
    told = kinds.dropna(subset="counts")
    others = [name for name in told if name not in names.TRIVIAL]
    won = [f"{names.method(name)} in {int((told[name] > told['counts']).sum())}" for name in others]
    text = f"Of the {len(told)} that counts, which read no texts, can predict, R²dev is above theirs for "
    return f"{text}{', '.join(won)}."


def below(what: str) -> str:
    """Which values of the tangent simulator lie below a limit, in a sentence; what: "FILE LIMIT", of an ext01 file."""
    name, limit = shlex.split(what)
    frame = read(name)
    frame = frame[(frame["metric"] == "loss") & (frame["statistic"] == "r2_dev") & (frame["method"] == "tangent")]
    low = frame[frame["value"] < float(limit)].sort_values("value")
    listed = "; ".join(
        f"{names.task(row.task)}, *{_kind(row.kind)}*: {_number(row.value, '.3f')}" for row in low.itertuples()
    )
    text = f"Of {frame['value'].notna().sum()} values of the tangent simulator {len(low)} lie below {limit}"
    return _prose(f"{text}{': ' if listed else ''}{listed}.")


def low_coverage(what: str) -> str:
    """Which shares of `coverage` fall short of what is promised by more than a tenth; what: "FILE PROMISED"."""
    name, promised = shlex.split(what)
    frame = _coverage(name)
    short = frame[frame["value"] < float(promised) - 0.1]
    parts = [
        f"{names.task(str(task))} on {', '.join(f'*{_kind(kind)}*' for kind in rows['kind'])}"
        for task, rows in short.groupby("task", sort=False)
    ]
    return _prose(f"Shares that fall short of {promised} by more than 0.1: {'; '.join(parts) or 'none'}.")


def reading(what: str) -> str:
    """The first sentences of the reading of an output; what: "PROFILE/NAME" and how many (default: all)."""
    name, *count = shlex.split(what)
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", _facts(name)["reading"])
    return _prose(" ".join(sentences[: int(count[0])] if count else sentences))


def number(what: str) -> str:
    """One number of one CSV file; what: "PROFILE/NAME [mean|lowest|highest] COLUMN=VALUE COLUMN!=VALUE ...".

    Without one of the three words a single row must fit. What the query does not name is: metric loss, statistic r2_dev,
    no variant. Rows over all tasks count only if they are asked for.
    """
    name, *words = shlex.split(what)
    how = words.pop(0) if words and words[0] in HOW else ""
    frame, asked = read(name), []
    for word in words:
        found = re.fullmatch(r"(\w+?)(!?=)(.*)", word)
        if not found or found[1] not in frame:
            raise ValueError(f"<!-- number {what} -->: {word!r} is not COLUMN=VALUE; columns: {', '.join(frame)}")
        asked.append(found.groups())
    named = {column for column, _, _ in asked}
    for column, value in STANDARD.items():
        asked += [(column, "=", value)] if column in frame and column not in named else []
    asked += [("task", "!=", over) for over in NOT_A_TASK if "task" in frame and "task" not in named]
    for column, relation, value in asked:
        frame = frame[(frame[column].astype(str) == value) == (relation == "=")]
    values = frame["value"]
    if values.empty or (len(values) > 1 and not how):
        raise ValueError(
            f"<!-- number {what} -->: {len(values)} rows fit in figures/{name}.csv; name other values of its columns"
        )
    digits = ".2g" if "mse" in what else ".2f"
    return _number(HOW[how](values) if how else values.iloc[0], digits)


def search(name: str) -> str:
    """What `gptfluence tune` found: a line for each method, over all tasks; name: "PROFILE/tuning_SETTING"."""
    frame = pd.read_csv(ROOT / "figures" / f"{name}.csv", dtype={"variant": str}, keep_default_na=False)
    frame = frame[frame["task"] == tuning.ALL].astype({"relative_to_mean": float})
    lines = [
        "| method | settings | as it comes | best that predicts values, deviations | chosen |",
        "|---|---|---|---|---|",
    ]
    for method, rows in frame.groupby("method", sort=False):
        errors = rows["relative_to_mean"]
        target = rows["variant"].str.extract(r"target=(\w+)")[0]
        best = ", ".join(_number(errors[target == one].min(), ".3f") for one in TARGETS)
        [chosen] = rows[rows["chosen"].astype(str) == "True"].itertuples()
        cells = (
            names.method(str(method)),
            str(len(rows)),
            _number(errors[rows["variant"] == ""].iloc[0], ".3f"),
            best if target.notna().any() else "-",
            f"{chosen.relative_to_mean:.3f}" + (f": {chosen.variant.replace('=', ' ')}" if chosen.variant else ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def another_machine(what: str) -> str:
    """How far an output was from the committed one on other hardware; what: the output's name.

    benchmarks/results/another_machine.csv has rows of the beside_committed.csv that lies beside the page of a study. This
    one was made with the instructions of another processor (then `git checkout figures` brought the figures back):

        ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ./run_all.sh --only explore_quickstart
    """
    rows = pd.read_csv(ROOT / "benchmarks" / "results" / "another_machine.csv").set_index("output")
    return f"{rows.loc[what, 'largest']:.1g}"


def times() -> str:
    """How long run_all.sh takes; benchmarks/results/run_all.json says so, which `benchmarks/run run_all` writes."""
    path = ROOT / "benchmarks" / "results" / "run_all.json"
    if not path.is_file():
        return _prose(
            "Nobody has timed this version yet. `benchmarks/run run_all --seconds everything=SECONDS` notes a time, and "
            "`python tools/measured.py` writes it here."
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    machine = found["machine"]
    lines = [
        f"Measured at commit {(found['commit'] or 'unknown')[:7]} on {machine['cores']} cores ({machine['processor']}):",
        "",
        "| what | command | time |",
        "|---|---|---|",
    ]
    lines += [f"| {row['what']} | `{row['command']}` | {_duration(row['seconds'])} |" for row in found["times"]]
    return "\n".join(lines)


STANDARD = {"metric": "loss", "statistic": "r2_dev", "variant": ""}  # of `number`
WRITERS: dict[str, Callable[..., str]] = {
    "table": tables,
    "coverage": coverage,
    "tangent": tangent,
    "claims": claims,
    "found": found,
    "below": below,
    "low_coverage": low_coverage,
    "reading": reading,
    "number": number,
    "search": search,
    "another_machine": another_machine,
    "times": times,
    "outputs": catalogue.markdown,  # every table and figure with its notebook
}


def _facts(name: str) -> dict[str, Any]:
    """The provenance beside figures/NAME.csv."""
    return json.loads((ROOT / "figures" / f"{name}.json").read_text(encoding="utf-8"))


def _explained(folder: str) -> pd.DataFrame:
    """R²dev of the loss in figures/FOLDER/ext01_explained_deviation.csv."""
    frame = read(f"{folder}/ext01_explained_deviation")
    return frame[(frame["metric"] == "loss") & (frame["statistic"] == "r2_dev")]


def _coverage(name: str) -> pd.DataFrame:
    """Shares of paths inside the tangent simulator's bands."""
    frame = read(name)
    return frame[(frame["method"] == "tangent") & (frame["statistic"] == "coverage") & (frame["unit"] == "path")]


def _cases(name: str) -> Iterator[pd.DataFrame]:
    """The cases of one of the paper's tables in profile `CLAIMED`, with a row for each method; not its averages."""
    frame = read(f"{CLAIMED}/{name}")
    frame = frame[~frame["task"].isin(NOT_A_TASK) & (frame["variant"] == "") & ~told_the_answer(frame)]
    by = [column for column in ("model", "metric", "task") if column in frame]
    for _, rows in frame.groupby(by, sort=False):
        mse = rows[rows["statistic"] == "all_steps_mse"].set_index("method")
        yield mse.assign(r2_dev=rows[rows["statistic"] == "r2_dev"].set_index("method")["value"])


def _case(mse: pd.DataFrame) -> tuple[bool, bool, bool, bool, float]:
    """Of one case: GPTfluence better than Simfluence here, in the paper; the paper's order; better than the mean; a ratio."""
    ours, theirs = mse["value"], mse["paper"].dropna()
    same = list(ours[theirs.index].sort_values().index) == list(theirs.sort_values().index)
    return (
        bool(ours["gptfluence"] < ours["simfluence"]),
        bool(theirs["gptfluence"] < theirs["simfluence"]),
        same,
        bool(mse.loc["gptfluence", "r2_dev"] > 0),
        ours["persistence"] / ours["mean_trajectory"],
    )


def _prose(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _kind(name: str) -> str:
    return name.replace("_", " ")


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
    """From the lowest to the highest."""
    low, high = _number(values.min()), _number(values.max())
    return low if low == high else f"{low} to {high}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    main()
