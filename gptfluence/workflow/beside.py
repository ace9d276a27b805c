"""An output beside the committed one of the same name: whether it was made here, and how far its numbers are apart.

Another processor or version of torch rounds otherwise, and a recorded loss then differs in its later digits. So two
machines make the same figure, but not the same bytes. The last commit is what is compared with, as git has it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gptfluence.common.frames import MEASURED
from gptfluence.common.provenance import committed

# A number that rounding may move: one with a point, an exponent or a percent sign. Counts are read as words.
_ROUNDED = re.compile(r"[-+−]?\d+(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+|(?=%))")


@dataclass(frozen=True)
class Differences:
    """How far two tables are apart, in the cells that both have.

    cells: how many measured numbers were compared; largest, median: of their absolute differences, nan without cells
    where: the statistic, or else the column, that has the largest
    apart: how many rows only one of the two has; lost: how many cells have a number in only one of the two
    """

    cells: int
    largest: float
    median: float
    where: str = ""
    apart: int = 0
    lost: int = 0

    def __str__(self) -> str:
        if self.apart == self.lost == 0 and not self.largest > 0:
            return "the same numbers"
        parts = (
            [f"largest difference {self.largest:.2g} ({self.where}), median {self.median:.2g}"] if self.cells else []
        )
        parts += [f"{self.apart} rows that only one of the two has"] if self.apart else []
        parts += [f"{self.lost} cells with a number in only one of the two"] if self.lost else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Beside:
    """What the page says of where one output comes from.

    made: whether the workflow made it here; commit, platform: those that its provenance names, "" where it names none
    head: the present commit; known: whether the last commit has an output of this name
    same: whether every number and the reading are those of the last commit; differences: None without anything to compare
    reading: "unchanged", "same words, other numbers" or "changed"; "" without anything to compare
    """

    made: bool
    commit: str = ""
    platform: str = ""
    head: str = ""
    known: bool = False
    same: bool = False
    differences: Differences | None = None
    reading: str = ""

    @property
    def came_with_the_repository(self) -> bool:
        """Whether what is shown is the committed output, and nothing was made here."""
        return not self.made and self.same

    def origin(self) -> str:
        """Who made it: "Made here", "Committed, not made here (at commit 0dea400 on Linux)", ..."""
        there = [f"at commit {self.commit[:7]}" if self.commit else "", f"on {self.platform}" if self.platform else ""]
        where = f" ({' '.join(filter(None, there))})" if any(there) else ""
        if self.came_with_the_repository:
            return f"Committed, not made here{where}"
        if not self.made:
            return f"Not made by this study{where}"
        older = self.commit and self.head and self.commit != self.head and not self.same
        return (
            f"Made here, at commit {self.commit[:7]} and not at the present {self.head[:7]}" if older else "Made here"
        )

    def compared(self) -> str:
        """How far it is from the committed one; "" for the committed one itself."""
        if self.came_with_the_repository:
            return ""
        if not self.known:
            return "none is committed"
        return f"{self.differences}; reading {self.reading}"

    def __str__(self) -> str:
        compared = self.compared()
        beside = "; beside the committed one: " if self.known else "; "
        return f"{self.origin()}{beside}{compared}." if compared else f"{self.origin()}."


def beside_committed(path: Path, *, made: bool, head: str) -> Beside:
    """Compare the output whose provenance is `path` (NAME.json, with NAME.csv beside it) with the last commit's.

    made: whether the workflow made it here; head: the present commit, "" if unknown

    Raises OSError, ValueError or KeyError if the output itself is damaged.
    """
    facts = json.loads(path.read_text(encoding="utf-8"))
    run = facts.get("run", {})
    origin = {"commit": str(run.get("commit") or ""), "platform": str(run.get("platform") or ""), "head": head}
    old_facts, old_table = committed(path), committed(path.with_suffix(".csv"))
    if old_facts is None or old_table is None:
        return Beside(made, **origin)
    before = _read(old_table)
    text = path.with_suffix(".csv").read_text(encoding="utf-8") if path.with_suffix(".csv").is_file() else ""
    now = _read(text) if text else before.iloc[:0]
    reading = compared_readings(str(json.loads(old_facts).get("reading", "")), str(facts.get("reading", "")))
    same = text.strip() == old_table and reading == "unchanged"
    return Beside(made, known=True, same=same, differences=differing(before, now), reading=reading, **origin)


def overall(found: Mapping[str, Beside]) -> str:
    """All outputs of a study in a few sentences; found: by the name of the output."""
    made = {name: one for name, one in found.items() if one.made}
    came = sum(one.came_with_the_repository for one in found.values())
    sentences = [f"Made here: {len(made)} of {len(found)}.", f"Committed and not made here: {came}." if came else ""]
    compared = {name: one for name, one in made.items() if one.known}
    if compared:
        same = sum(one.same for one in compared.values())
        changed = [name for name, one in compared.items() if one.reading == "changed"]
        sentences.append(f"Made here with the numbers and the reading of the committed one: {same} of {len(compared)}.")
        largest = {name: one.differences.largest for name, one in compared.items() if one.differences}
        name = max(largest, key=lambda name: np.nan_to_num(largest[name]))
        if largest[name] > 0:
            where = f"{name}, {compared[name].differences.where}"  # type: ignore[union-attr]
            sentences.append(f"Largest difference: {largest[name]:.2g} ({where}).")
            sentences.append(f"Readings in other words: {', '.join(changed) or 'none'}.")
    return " ".join(filter(None, sentences))


def table(found: Mapping[str, Beside]) -> pd.DataFrame:
    """The comparison as a frame, a row for each output; columns output, made, committed, largest, median, where, ..."""
    rows = []
    for name, one in found.items():
        differences = one.differences or Differences(0, np.nan, np.nan)
        numbers = {
            field: getattr(differences, field) for field in ("cells", "largest", "median", "where", "apart", "lost")
        }
        rows.append({"output": name, "made": one.made, "committed": one.known, **numbers, "reading": one.reading})
    return pd.DataFrame(rows)


def compared_readings(before: str, now: str) -> str:
    """Whether two readings say the same: "unchanged", "same words, other numbers" or "changed"."""
    if before == now:
        return "unchanged"
    return "same words, other numbers" if _ROUNDED.sub("#", before) == _ROUNDED.sub("#", now) else "changed"


def differing(before: pd.DataFrame, now: pd.DataFrame) -> Differences:
    """How far the numbers of two tables are apart. Rows are matched by the columns that say what they are of.

    Rows that say the same are matched in their order. A table without a measured column (one of hyperparameters) has its
    rows matched alone.
    """
    keys = [name for name in now.columns if name in before.columns and name not in MEASURED]
    measured = [name for name in now.columns if name in before.columns and name in MEASURED]
    old, new = (_by_key(frame, keys, measured) for frame in (before, now))
    both = new.index.intersection(old.index)
    apart = len(old) + len(new) - 2 * len(both)
    first, second = old.loc[both].to_numpy(float), new.loc[both].to_numpy(float)
    with np.errstate(invalid="ignore"):
        distance = np.where(first == second, 0.0, np.abs(second - first))
    unlike = np.isfinite(first) != np.isfinite(second)
    distance = np.where(unlike | ~np.isfinite(distance), np.nan, distance)
    found = distance[np.isfinite(distance)]
    if not len(found):
        return Differences(0, np.nan, np.nan, apart=apart, lost=int(unlike.sum()))
    row, column = np.unravel_index(np.nanargmax(distance), distance.shape)
    where = measured[column]
    if where == "value" and "statistic" in keys:
        where = str(both[row][keys.index("statistic")])
    return Differences(len(found), float(found.max()), float(np.median(found)), where, apart, int(unlike.sum()))


def _read(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), dtype={"left_out": str, "variant": str})


def _by_key(frame: pd.DataFrame, keys: list[str], measured: list[str]) -> pd.DataFrame:
    """The measured columns of a frame by what their rows are of; the last level counts rows that say the same."""
    said = frame[keys].astype("string").fillna("")
    count = said.groupby(keys).cumcount() if keys else pd.Series(range(len(frame)), frame.index)
    index = pd.MultiIndex.from_frame(said.assign(**{"": count}))
    return frame[measured].astype(float).set_axis(index, axis=0)
