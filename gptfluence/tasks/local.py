"""Tasks from JSON Lines files: one JSON object per line, any fields; templates say how they become text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path

from gptfluence.common.errors import ConfigurationError, DataError
from gptfluence.tasks.base import Task, TaskPool
from gptfluence.tasks.rows import Row, RowMapping, check_size, draw, examples_from_rows


def read_jsonl(
    pool: str | PathLike[str],
    tests: str | PathLike[str] | None = None,
    *,
    name: str = "local",
    prompt: str,
    target: str,
    id: str | None = "id",
    label: str | None = None,
    labels: Mapping[int | str, str] | Sequence[str] | None = None,
    references: str | None = None,
    pool_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
) -> Task:
    """A task from one file, split by `seed`, or from a file for the pool and one for the tests.

    `prompt` and `target` are templates over the fields of a row, e.g. "Review: {text}\\nSentiment:" and " {label}";
    `label`, `labels` and `references` as in `RowMapping`. With one file, `test_size` rows drawn at random are the
    tests and the rest, or `pool_size` of it, is the pool: the tests do not depend on `pool_size`, and a smaller pool
    is the beginning of a larger one. With two files each is used whole and in order unless a size is given.

    Raises DataError (file, line, what is wrong) for rows that cannot be used, and if a text of the pool is also a test
    text; ConfigurationError for templates, labels or sizes that make no sense.
    """
    mapping = RowMapping(prompt, target, id, label, labels, references)
    rows, lines = _read(Path(pool))
    if tests is None:
        if test_size is None:
            raise ConfigurationError(
                "test_size: with one file it must say how many rows are for testing; none was given"
            )
        check_size("test_size", test_size, len(rows) - 1, str(pool))  # the pool needs one at least
        check_size("pool_size", pool_size, len(rows) - test_size, f"{pool} (after {test_size} rows for testing)")
        order = list(draw(len(rows), seed, "split"))
        examples = examples_from_rows(rows, mapping, _at(pool, lines), task=name)
        test_examples = [examples[position] for position in order[:test_size]]
        pool_examples = [examples[position] for position in order[test_size:][:pool_size]]
    else:
        test_rows, test_lines = _read(Path(tests))
        check_size("pool_size", pool_size, len(rows), str(pool))
        check_size("test_size", test_size, len(test_rows), str(tests))
        mapping = mapping.with_labels_of([*rows, *test_rows])  # the classes are those of both files
        pool_examples = examples_from_rows(rows, mapping, _at(pool, lines), task=name)
        test_examples = examples_from_rows(test_rows, mapping, _at(tests, test_lines), task=name)
        if pool_size is not None:
            pool_examples = [pool_examples[i] for i in islice(draw(len(rows), seed, "pool"), pool_size)]
        if test_size is not None:
            test_examples = [test_examples[i] for i in islice(draw(len(test_rows), seed, "tests"), test_size)]
    return Task(name, TaskPool(f"{name}/pool", tuple(pool_examples)), TaskPool(f"{name}/tests", tuple(test_examples)))


def _read(path: Path) -> tuple[list[Row], list[int]]:
    """The rows of a file and the number of the line of each, counted from 1. Blank lines are passed over."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file (looked in {path.parent.absolute()})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    rows: list[Row] = []
    lines: list[int] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError:
            raise DataError(f"{path}:{number}: is not UTF-8 text; save the file as UTF-8") from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: is not JSON ({error.msg}, column {error.colno}); every line must be one JSON object"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: holds a {type(row).__name__}; every line must be one JSON object")
        rows.append(row)
        lines.append(number)
    if not rows:
        raise DataError(f"{path}: is empty; it needs one JSON object per line")
    return rows, lines


def _at(path: str | PathLike[str], lines: list[int]) -> Callable[[int], str]:
    return lambda position: f"{path}:{lines[position]}"
