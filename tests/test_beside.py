"""Outputs beside the committed ones: numbers are matched by what they are of, and the page says what was made where."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from gptfluence.common import frames, provenance
from gptfluence.common.settings import ROOT
from gptfluence.study.study import Study
from gptfluence.workflow.beside import Differences, beside_committed, compared_readings, differing, overall
from gptfluence.workflow.page import write

NAME = "tab02_fine_tuning_loss"


def frame(*values: float) -> pd.DataFrame:
    """A tidy frame; the statistic of the last row is another one."""
    rows = [("sst2", f"run-{run}", "r2_dev", value, 0.5) for run, value in enumerate(values[:-1])]
    rows.append(("sst2", "run-0", "lds", values[-1], 0.5))
    return pd.DataFrame(rows, columns=["task", "run", "statistic", "value", "low"])


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository with one output in its only commit; returns the folder of figures."""
    git(tmp_path, "init")
    folder = tmp_path / "figures"
    save(folder, frame(0.1, 0.2, 0.3, 0.4), reading="A wins in 2 of 3 tasks (0.123, 99% below).", commit="0" * 40)
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--message", "all")
    return folder


def save(folder: Path, table: pd.DataFrame, *, reading: str, commit: str, name: str = NAME) -> Path:
    facts = {"command": "c", "profile": "smoke", "artifacts": {}, "versions": {}, "reading": reading}
    facts["run"] = {"commit": commit, "clean": True, "platform": "Elsewhere-1.0"}
    contents = {".csv": table.to_csv(index=False).encode()}
    return provenance.save(folder, name, contents, caption="A table.", provenance=facts)[-1]


# ------------------------------------------------------------------------------------------------------------ numbers


def test_numbers_are_matched_by_what_they_are_of_and_not_by_their_place():
    before = frame(0.1, 0.2, 0.3, 0.4)
    now = frame(0.1, 0.2, 0.3, 0.4)
    now.loc[3, "value"] += 0.25
    now.loc[1, "value"] -= 0.01
    found = differing(before, now.sample(frac=1, random_state=0))
    assert (found.cells, found.where, found.apart, found.lost) == (8, "lds", 0, 0)
    assert found.largest == pytest.approx(0.25)
    assert found.median == 0
    assert str(differing(before, before.iloc[::-1])) == "the same numbers"


def test_the_median_is_that_of_all_cells():
    before, now = frame(0.0, 0.0, 0.0, 0.0), frame(0.1, 0.2, 0.3, 0.4)
    now["low"] = [1.5, 2.5, 3.5, 4.5]
    distances = sorted([0.1, 0.2, 0.3, 0.4, 1.0, 2.0, 3.0, 4.0])
    assert differing(before, now).median == pytest.approx((distances[3] + distances[4]) / 2)
    assert differing(before, now).where == "low"


def test_rows_and_numbers_that_only_one_has_are_counted():
    before, now = frame(0.1, math.nan, math.inf, 0.4), frame(0.1, 0.2, math.inf, 0.4)
    found = differing(before, now)
    assert (found.apart, found.lost, found.largest) == (0, 1, 0)  # the same infinity is no difference
    assert differing(now, before) == found
    found = differing(now.iloc[:2], now.iloc[1:])
    assert (found.apart, found.largest) == (3, 0)
    assert str(found) == "largest difference 0 (r2_dev), median 0, 3 rows that only one of the two has"


def test_rows_that_say_the_same_are_matched_in_their_order():
    before = pd.DataFrame({"panel": ["a", "a", "b"], "x": [1, 1, 1], "y": [1.0, 2.0, 3.0]})
    assert differing(before, before.assign(y=[1.0, 2.5, 3.0])).largest == 0.5


def test_a_table_of_words_is_compared_row_by_row():
    before = pd.DataFrame({"parameter": ["a", "b"], "profile": ["1", "2"]})
    assert differing(before, before) == Differences(
        0, pytest.approx(math.nan, nan_ok=True), pytest.approx(math.nan, nan_ok=True)
    )
    assert differing(before, before.assign(profile=["1", "3"])).apart == 2


def test_every_committed_table_can_be_compared():
    assert set(frames.COLUMNS) >= frames.MEASURED
    compared = 0
    for path in (ROOT / "figures").glob("*/*.csv"):
        found = pd.read_csv(path)
        moved = {name: found[name] + 1.0 for name in ("value", "y", "mse") if name in found}
        differences = differing(found.sample(frac=1, random_state=0), found.assign(**moved))
        assert differences.apart == 0, path
        if moved and not any(found.drop(columns=[*frames.MEASURED & set(found)]).duplicated()):
            assert differences.largest == pytest.approx(1), path
            compared += 1
    assert compared > 40


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ("A 0.12, 99% below B (1e-05).", "A 0.12, 99% below B (1e-05).", "unchanged"),
        ("A 0.12, 99% below B (1e-05).", "A -0.13, 98% below B (2.5e-05).", "same words, other numbers"),
        ("A wins in 2 of 3 (0.12).", "A wins in 1 of 3 (0.12).", "changed"),
        ("A is best, 0.12.", "B is best, 0.12.", "changed"),
    ],
)
def test_a_reading_changes_when_its_words_or_counts_do(before, now, said):
    assert compared_readings(before, now) == said


# ------------------------------------------------------------------------------------------------------------- outputs


def test_a_committed_output_is_not_taken_for_one_made_here(repository):
    found = beside_committed(repository / f"{NAME}.json", made=False, head="1" * 40)
    assert found.came_with_the_repository
    assert str(found) == "Committed, not made here (at commit 0000000 on Elsewhere-1.0)."


def test_an_output_made_here_is_compared_with_the_committed_one(repository):
    path = repository / f"{NAME}.json"
    same = beside_committed(path, made=True, head="1" * 40)  # made again, so that nothing was written
    assert str(same) == "Made here; beside the committed one: the same numbers; reading unchanged."
    reading = "A wins in 2 of 3 tasks (0.124, 98% below)."
    save(repository, frame(0.1, 0.2, 0.3, 0.401), reading=reading, commit="1" * 40)
    other = beside_committed(path, made=True, head="1" * 40)
    assert str(other) == (
        "Made here; beside the committed one: largest difference 0.001 (lds), median 0; reading same words, other numbers."
    )
    older = beside_committed(path, made=True, head="2" * 40)
    assert str(older).startswith("Made here, at commit 1111111 and not at the present 2222222; beside")
    by_hand = beside_committed(path, made=False, head="1" * 40)
    assert str(by_hand).startswith("Not made by this study (at commit 1111111 on Elsewhere-1.0); beside")
    assert overall({"tab02": other, "tab03": same}) == (
        "Made here: 2 of 2. Made here with the numbers and the reading of the committed one: 1 of 2. "
        "Largest difference: 0.001 (tab02, lds). Readings in other words: none."
    )


def test_an_output_that_is_not_committed_says_so(repository, tmp_path):
    path = save(repository, frame(0.1, 0.2), reading="", commit="1" * 40, name="mine")
    assert str(beside_committed(path, made=True, head="1" * 40)) == "Made here; none is committed."
    outside = save(tmp_path.parent / f"{tmp_path.name}-apart", frame(0.1, 0.2), reading="", commit="")
    assert str(beside_committed(outside, made=False, head="")).startswith(
        "Not made by this study (on Elsewhere-1.0); none is"
    )


def test_numbers_that_are_gone_are_not_the_same(repository):
    (repository / f"{NAME}.csv").unlink()
    found = beside_committed(repository / f"{NAME}.json", made=False, head="")
    assert not found.came_with_the_repository
    assert found.differences.apart == 4


def test_the_page_tells_what_was_made_here_from_what_was_committed(repository, tmp_path):
    save(repository, frame(0.5, 0.2), reading="", commit="1" * 40, name="tab04_fine_tuning_generation")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--message", "another")
    save(repository, frame(0.7, 0.2), reading="", commit="2" * 40, name="tab04_fine_tuning_generation")
    for name in (NAME, "tab04_fine_tuning_generation"):
        (repository / f"{name}.md").write_text("| a |\n|---|\n| 1 |\n")
    build = tmp_path / "build" / "smoke"
    (build / "notebooks").mkdir(parents=True)
    (build / "notebooks" / "tab04_fine_tuning_generation.ipynb").write_text("{}")
    path, said = write(Study.load("smoke"), build, figures=repository)
    page = path.read_text(encoding="utf-8")
    first = "Made here: 1 of 2. Committed and not made here: 1."
    assert first in said
    assert first in page
    assert (
        page.count("Committed, not made here (at commit 0000000 on Elsewhere-1.0).") == 2
    )  # in the list, and at the table
    assert page.count("beside the committed one: largest difference 0.2 (r2_dev), median 0; reading unchanged.") == 2
    assert page.count('class="came"') == 1
    rows = pd.read_csv(path.parent / "beside_committed.csv").set_index("output")
    assert list(rows["made"]) == [False, True]
    assert rows.loc["tab04_fine_tuning_generation", "largest"] == pytest.approx(0.2)
    assert json.loads((repository / f"{NAME}.json").read_text())["run"]["commit"] == "0" * 40
