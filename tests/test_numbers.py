"""The numbers that README.md and docs/ state are those of the committed outputs, and nobody types one."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shlex
from functools import cache

import pandas as pd
import pytest

from gptfluence import paper
from gptfluence.common.settings import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))


@cache
def tool():
    spec = importlib.util.spec_from_file_location("measured", ROOT / "tools" / "measured.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_pages_are_as_the_tool_writes_them(tmp_path):
    tool().main(["--into", str(tmp_path)])
    for page in tool().PAGES:
        assert (tmp_path / page).read_text(encoding="utf-8") == text(page), f"{page}: run python tools/measured.py"


def test_the_tool_writes_every_table_anew_and_leaves_the_prose():
    page = "Prose.\n<!-- tangent -->\nold\n<!-- end -->\nMore.\n"
    written = tool().filled(page)
    assert written.startswith("Prose.\n<!-- tangent -->\n| GPT and tasks |")
    assert written.endswith("\n<!-- end -->\nMore.\n")
    assert "old" not in written
    with pytest.raises(ValueError, match=r"nonsense.*known: table"):
        tool().filled("<!-- nonsense -->\n<!-- end -->\n")


def test_the_page_of_measured_numbers_has_every_table_that_outputs_have_and_no_other():
    page = text("docs/measured.md")
    known = re.findall(r"<!-- table (\S+) -->", page)
    assert len(known) == len(set(known))
    found = {
        str(path.relative_to(ROOT / "figures").with_suffix(""))
        for notebook in tool().COLUMNS
        for path in (ROOT / "figures").glob(f"*/{notebook}.csv")
    }
    assert set(known) == found - {
        "mini/ext05_bands",
        "laptop/ext05_bands",
        "laptop-operations/ext05_bands",
        "confirmation/ext01_explained_deviation",
    }  # told in other ways
    assert not re.search(r"^\|", tool().BLOCK.sub("", page), re.MULTILINE)  # no table that no tool writes


def test_a_table_holds_the_numbers_of_its_csv():
    """Read again from the page, value by value, without the code that wrote it."""
    page = text("docs/measured.md")
    frame = tool().read("mini/ext01_explained_deviation")
    frame = frame[(frame["metric"] == "loss") & (frame["statistic"] == "r2_dev") & (frame["method"] == "tangent")]
    for task, title in {"sst2": "SST-2", "webnlg": "WebNLG"}.items():
        table = next(
            part for part in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE) if part.startswith(f"| {title} |")
        )
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
        shown = dict(zip(rows[0], next(row for row in rows if row[0] == "Tangent simulator"), strict=True))
        for _, row in frame[frame["task"] == task].iterrows():
            if not pd.isna(row["value"]):
                assert float(shown[row["kind"].replace("_", " ")]) == pytest.approx(row["value"], abs=0.00501)


# Numbers in prose that nobody measured: settings, definitions, versions, arithmetic. All others are written by a tool.
TYPED = {
    "README.md": ["3.11"],  # Python
    "benchmarks/README.md": ["1e-4"],  # how far results may be apart at most
    "docs/cluster.md": ["2.8"],  # the name of a GPT
    "docs/glossary.md": ["0.04", "0.12", "90%"],  # 1 / (K + 1); the level of intervals
    "docs/measured.md": ["90%", "0.2", "0.95", "1e-5"],  # of intervals, of sampling, a learning rate
    "docs/method.md": ["99%", "5%", "0.05", "0.82"],  # candidates, coordinates; what test_interval_coverage demands
    "docs/own_text.md": ["12 times"],  # a setting of the example
    "docs/papermill.md": ["2.8"],  # the name of a GPT
    "docs/what_if.md": ["0.90"],  # the level of bands
}
NUMBER = re.compile(
    r"(?<![\w.])\d[\d,]*\.\d+(?:e-?\d+)?"  # 0.93
    r"|(?<![\w.])\d[\d,]*\s?(?:%|(?:m?s|min|minutes?|hours?|[MGK]i?B|times|nats)\b)"  # 5%, 12 min, 3 times
    r"|\b\d+ of \d+\b|\b\d+e-?\d+\b"  # 3 of 15, 1e-5
)


def typed(page: str) -> list[str]:
    """The numbers of a page that look like results and that no tool writes; code, names and links left out."""
    prose = re.sub(r"<!-- \w+.*?-->.*?<!-- end -->", "", text(page), flags=re.DOTALL)
    prose = re.sub(r"(?:^ {4}.*\n)+", "\n", prose, flags=re.MULTILINE)
    return NUMBER.findall(re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv:\S+", "", prose))


@pytest.mark.parametrize("page", PAGES)
def test_every_number_that_was_measured_is_written_by_a_tool(page: str):
    assert typed(page) == TYPED.get(page, []), (
        f"{page}: have tools/measured.py write it, or say in TYPED why it is no result"
    )


@pytest.mark.parametrize(
    "line", ["R²dev is 0.93.", "It takes 12 min.", "in 3 of 15 cases", "5% less", "1e-4 apart", "2.1 GB"]
)
def test_a_number_that_is_typed_is_found(line: str, monkeypatch):
    monkeypatch.setattr(
        f"{__name__}.text", lambda page: f"Prose.\n{line} More.\n    code 0.1\n`0.2` <!-- number x -->0.3<!-- end -->\n"
    )
    assert len(typed("README.md")) == 1


def test_numbers_in_sentences_are_those_of_the_outputs():
    """Read again from the files, row by row, without the code that wrote them."""
    checked = 0
    for page in PAGES:
        for query, shown in re.findall(r"<!-- number (.*?) -->(.*?)<!-- end -->", text(page)):
            if page == "CONTRIBUTING.md":
                continue
            name, *words = shlex.split(query)
            how = {"mean": lambda values: sum(values) / len(values), "lowest": min, "highest": max}.get(words[0])
            asked = [re.split("(!?=)", word, maxsplit=1) for word in words[1 if how else 0 :]]
            values = []
            with (ROOT / "figures" / f"{name}.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    wanted = {"metric": "loss", "statistic": "r2_dev", "variant": ""}
                    fits = all(
                        row.get(key, value) == value
                        for key, value in wanted.items()
                        if key not in [column for column, _, _ in asked]
                    )
                    fits = fits and all((row[key] == value) == (sign == "=") for key, sign, value in asked)
                    if fits and row.get("task") not in ("average", "over_tasks"):
                        values.append(float(row["value"]))
            expected = how(values) if how else values[0]
            assert how or len(values) == 1, (page, query)
            close = {"rel": 0.06} if "mse" in query else {"abs": 0.00501}
            assert float(shown) == pytest.approx(expected, **close), (page, query)
            checked += 1
    assert checked > 10


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("mini/tab02_fine_tuning_loss method=gptfluence", "5 rows fit"),
        ("mini/tab02_fine_tuning_loss method=nobody", "0 rows fit"),
        ("mini/tab02_fine_tuning_loss kind=alike", "'kind=alike' is not COLUMN=VALUE; columns: task, method"),
    ],
)
def test_a_query_that_fits_no_number_is_named(query: str, said: str):
    with pytest.raises(ValueError, match=said):
        tool().filled(f"A <!-- number {query} -->1<!-- end -->\n")


def test_a_number_does_not_begin_a_line():
    query = "<!-- number mini/tab02_fine_tuning_loss mean method=gptfluence -->1<!-- end -->"
    assert tool().filled(f"It is {query}.").startswith("It is <!-- number mini")
    with pytest.raises(ValueError, match="must not begin a line"):
        tool().filled(f"It is\n  {query}.")


def test_claims_of_the_paper_are_counted():
    """Table 2, counted from its CSV and from the paper's numbers."""
    with (ROOT / "figures" / "mini" / "tab02_fine_tuning_loss.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["task"] not in ("average", "over_tasks")]
    value = {(row["task"], row["method"], row["statistic"]): float(row["value"]) for row in rows}
    tasks = list(dict.fromkeys(task for task, _, _ in value))
    better = sum(value[t, "gptfluence", "all_steps_mse"] < value[t, "simfluence", "all_steps_mse"] for t in tasks)
    beats_mean = sum(
        value[t, "gptfluence", "all_steps_mse"] < value[t, "mean_trajectory", "all_steps_mse"] for t in tasks
    )
    reported = paper.table(2, statistic="all_steps_mse", model="pythia-410m").pivot(
        index="task", columns="method", values="value"
    )
    there = (reported["gptfluence"] < reported["simfluence"])[tasks]
    order = sum(
        (value[t, "gptfluence", "all_steps_mse"] < value[t, "simfluence", "all_steps_mse"]) == there[t] for t in tasks
    )
    [line] = [line for line in tool().claims().splitlines() if line.startswith("| Table 2:")]
    assert line.split(" | ")[1:5] == [str(len(tasks)), f"{better}, {sum(there)}", str(order), str(beats_mean)]
    assert line in text("README.md")


def test_what_was_found_compares_methods_alone_and_with_counts(tmp_path, monkeypatch):
    kinds, found = ("alike", "sorted"), {"counts": (0.3, 0.6), "gptfluence": (0.1, 0.7), "tangent": (0.9, 0.5)}
    rows = [(method, *pair) for method, values in found.items() for pair in zip(kinds, values, strict=True)]
    frame = pd.DataFrame([*rows, ("one_run", "sorted", 0.99)], columns=["method", "kind", "value"])
    frame = frame.assign(task="sst2", model="nano", metric="loss", statistic="r2_dev", variant="")
    (tmp_path / "figures" / "mini-slow").mkdir(parents=True)
    frame.to_csv(tmp_path / "figures" / "mini-slow" / "ext01_explained_deviation.csv", index=False)
    monkeypatch.setattr(tool(), "ROOT", tmp_path)
    monkeypatch.setattr(tool(), "_cases", lambda name: [name])
    monkeypatch.setattr(tool(), "_case", lambda name: (name.startswith("tab01"), True, False, False, 1.0))
    text = " ".join(tool().found("mini-slow").split())
    assert "Simfluence in 1 of 4 cases (in the paper in 4 of these)" in text
    assert "in 0 of them." in text
    assert "slow drift" in text
    assert "Label and format counts 0.30; GPTfluence 0.10; Tangent simulator 0.90." in text
    assert "Of 2 combinations" in text
    assert "GPTfluence in 1" in text
    assert (
        "Of the 2 that counts, which read no texts, can predict, R²dev is above theirs for GPTfluence in 1, Tangent simulator in 1."
        in text
    )


def test_sentences_name_what_lies_below_a_limit(tmp_path, monkeypatch):
    rows = [("sst2", "alike", 0.95), ("sst2", "longer_runs", 0.8994), ("webnlg", "alike", 0.5)]
    frame = pd.DataFrame(rows, columns=["task", "kind", "value"])
    frame = frame.assign(metric="loss", method="tangent", statistic="r2_dev", model="nano")
    other = frame.assign(statistic="coverage", unit="path")
    (tmp_path / "figures" / "mini").mkdir(parents=True)
    frame.to_csv(tmp_path / "figures" / "mini" / "ext01.csv", index=False)
    other.to_csv(tmp_path / "figures" / "mini" / "ext05.csv", index=False)
    monkeypatch.setattr(tool(), "ROOT", tmp_path)
    assert tool().below("mini/ext01 0.9") == (
        "Of 3 values of the tangent simulator 2 lie below 0.9: WebNLG, *alike*: 0.500; SST-2, *longer runs*: 0.899."
    )
    assert tool().below("mini/ext01 0.1") == "Of 3 values of the tangent simulator 0 lie below 0.1."
    assert (
        tool().low_coverage("mini/ext05 0.95") == "Shares that fall short of 0.95 by more than 0.1: WebNLG on *alike*."
    )


def test_a_reading_is_quoted_by_its_sentences(tmp_path, monkeypatch):
    (tmp_path / "figures" / "mini").mkdir(parents=True)
    (tmp_path / "figures" / "mini" / "a.json").write_text('{"reading": "A is 0.5 best. B is not.\\nC."}')
    monkeypatch.setattr(tool(), "ROOT", tmp_path)
    assert tool().reading("mini/a 1") == "A is 0.5 best."
    assert tool().reading("mini/a") == "A is 0.5 best. B is not. C."


def test_times_are_those_that_somebody_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(tool(), "ROOT", tmp_path)
    assert "Nobody has timed this version" in tool().times()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    times = [{"what": "everything", "command": "./run_all.sh", "seconds": 2222}]
    found = {"commit": "abcdef0123", "machine": {"cores": 2, "processor": "X"}, "times": times}
    (tmp_path / "benchmarks" / "results" / "run_all.json").write_text(json.dumps(found))
    assert tool().times().splitlines() == [
        "Measured at commit abcdef0 on 2 cores (X):",
        "",
        "| what | command | time |",
        "|---|---|---|",
        "| everything | `./run_all.sh` | 37 min |",
    ]
