"""What the paper reports, as data: the numbers of tables 1-4 and 10-13, and its hyperparameters (tables 5-9).

"On Training Data Influence of GPT Models" (EMNLP 2024). Loss is in nats per target token, BLEU 0-100, ROUGE-L 0-1;
`std` is the population standard deviation over runs and test examples where the paper gives one.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from io import StringIO
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from gptfluence.common.errors import ConfigurationError, unknown

KEYS = ("table", "setting", "task", "model", "metric", "method", "statistic")


def table(number: int, **only: str) -> pd.DataFrame:
    """The rows of one table, tidy: table, setting, task, model, metric, method, statistic, value, std, note.

    only: further columns to select by, e.g. `model="pythia-1b"`; what is selected by stays in the frame.
    Raises ConfigurationError for a table without reported results, a column or a value that does not occur.
    """
    return _select({"table": number, **only}).reset_index(drop=True)


def hyperparameters() -> dict[str, Any]:
    """Tables 5-9 of the paper and what its text says beyond them; a new copy at every call."""
    return YAML(typ="safe", pure=True).load(_text("hyperparameters.yaml"))


def _select(chosen: dict[str, Any]) -> pd.DataFrame:
    rows, said = _reported(), []
    for key, value in chosen.items():
        if key not in KEYS:
            raise ConfigurationError(unknown("column", key, KEYS, where="the paper's results: "))
        found = rows[rows[key] == value]
        if found.empty:
            where = f"the paper's results{' with ' + ', '.join(said) if said else ''}: "
            raise ConfigurationError(unknown(key, value, rows[key].unique(), where=where))
        rows = found
        said.append(f"{key} {value}")
    return rows.copy()


@cache
def _reported() -> pd.DataFrame:
    frame = pd.read_csv(StringIO(_text("reported_results.csv")), keep_default_na=False, dtype=str)
    numbers = {key: pd.to_numeric(frame[key].where(frame[key] != "")) for key in ("value", "std")}
    return frame.assign(table=frame["table"].astype(int), **numbers)


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
