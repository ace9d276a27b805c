"""Tasks from JSON Lines files: one JSON object per line, any fields; templates say how they become text."""

from __future__ import annotations

import json
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from gptfluence.common.contents import not_text
from gptfluence.common.errors import ConfigurationError, DataError
from gptfluence.common.settings import expanded
from gptfluence.tasks import values
from gptfluence.tasks.base import Example, Task, TaskPool
from gptfluence.tasks.leaks import refuse_shared_texts, warn_of_shared_prompts
from gptfluence.tasks.rows import Row, RowMapping, check_size, draw, examples_from_rows

File = str | PathLike[str]
Drawn = list[tuple[Example, str]]  # with the place of each, e.g. "reviews.jsonl:3"


def read_jsonl(
    pool: File,
    tests: File | None = None,
    *,
    name: str = "local",
    pool_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    **layout: Any,
) -> Task:
    """A task from one file, split by `seed`, or from a file for the pool and one for the tests.

    layout: the fields of `RowMapping`. `prompt` and `target` are templates over the fields of a row, e.g.
        "Review: {text}\\nSentiment:" and " {label}"; `id`, `label`, `labels` and `references` may be left out.

    With one file, `test_size` rows drawn at random are the tests and the rest, or `pool_size` of it, is the pool. The tests
    do not depend on `pool_size`, and a smaller pool is the beginning of a larger one. With two files each is used whole and
    in order unless a size is given.

    Raises DataError (file, line, what is wrong) for rows that cannot be used, and if a text of the pool is also a test
    text; ConfigurationError for templates, labels or sizes that make no sense. Warns of prompts that pool and tests share, and of
    rows that contradict each other (`leaks`).
    """
    data = JsonLines(name, RowMapping(**layout), pool, tests)
    return data.task(pool_size=pool_size, test_size=test_size, seed=seed)


class JsonLines:
    """The rows of one or two files, read once; `task` draws examples from them."""

    def __init__(self, name: str, layout: RowMapping, pool: File, tests: File | None = None) -> None:
        """Raises DataError that names file and line if a file cannot be read."""
        self.name = name
        self._pool = _Rows(pool)
        self._tests = None if tests is None else _Rows(tests)
        self._layout = layout

    def task(self, *, pool_size: int | None = None, test_size: int | None = None, seed: int = 0) -> Task:
        """Sizes, seed and errors as in `read_jsonl`."""
        if self._tests is None:
            parts = self._split(self._pool, pool_size, test_size, seed)
        else:
            parts = self._drawn(self._pool, self._tests, pool_size, test_size, seed)
        pool, tests = (
            TaskPool(f"{self.name}/{part}", tuple(example for example, _ in drawn))
            for part, drawn in zip(("pool", "tests"), parts, strict=True)
        )
        task = Task(self.name, pool, tests, may_overlap=True)  # refused here, with the places of the two rows
        places = tuple([place for _, place in drawn] for drawn in parts)
        refuse_shared_texts(task, places)
        warn_of_shared_prompts(task, places)
        return Task(self.name, pool, tests)

    def _split(self, rows: _Rows, pool_size: int | None, test_size: int | None, seed: int) -> tuple[Drawn, Drawn]:
        if test_size is None:
            raise ConfigurationError(
                "test_size: with one file it must say how many rows are for testing; none was given"
            )
        check_size("test_size", test_size, len(rows) - 1, str(rows.file))  # the pool needs one at least
        check_size("pool_size", pool_size, len(rows) - test_size, f"{rows.file} (after {test_size} rows for testing)")
        order = list(draw(len(rows), seed, "split"))
        examples = rows.examples(self._layout, self.name)
        tests, rest = order[:test_size], order[test_size:]
        return [examples[row] for row in rest[:pool_size]], [examples[row] for row in tests]

    def _drawn(
        self, pool: _Rows, tests: _Rows, pool_size: int | None, test_size: int | None, seed: int
    ) -> tuple[Drawn, Drawn]:
        check_size("pool_size", pool_size, len(pool), str(pool.file))
        check_size("test_size", test_size, len(tests), str(tests.file))
        places = [rows.place(row) for rows in (pool, tests) for row in range(len(rows))]
        layout = self._layout.with_labels_of([*pool.rows, *tests.rows], places.__getitem__)  # classes of both files
        parts = []
        for rows, size, salt in ((pool, pool_size, "pool"), (tests, test_size, "tests")):
            examples = rows.examples(layout, self.name)
            order = range(len(rows)) if size is None else islice(draw(len(rows), seed, salt), size)
            parts.append([examples[row] for row in order])
        return parts[0], parts[1]


class _Rows:
    """The rows of a file, and the number of the line of each, counted from 1."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.rows, self._lines = _read(expanded(file))

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, row: int) -> str:
        return f"{self.file}:{self._lines[row]}"

    def examples(self, layout: RowMapping, task: str) -> Drawn:
        """The examples with their places."""
        examples = examples_from_rows(self.rows, layout, self.place, task=task)
        return [(example, self.place(row)) for row, example in enumerate(examples)]


def _read(path: Path) -> tuple[list[Row], list[int]]:
    """The rows of a file and the number of the line of each, counted from 1. Blank lines are passed over."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file (looked in {path.parent.absolute()})") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DataError(f"{str(path)!r}: cannot be read: {getattr(error, 'strerror', error)}") from None
    if problem := not_text(content):
        raise DataError(f"{path}: {problem}")
    rows: list[Row] = []
    lines: list[int] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        row = _object(line, f"{path}:{number}")
        rows.append(row)
        lines.append(number)
    if not rows:
        raise DataError(f"{path}: is empty; it needs one JSON object per line")
    if len(rows) == 1 and _is_table(rows[0]):
        raise DataError(
            f"{path}: is one JSON object that holds whole columns; write one JSON object per row "
            "(pandas: frame.to_json(path, orient='records', lines=True))"
        )
    return rows, lines


def _is_table(row: Row) -> bool:
    """Whether an object holds the columns of a table, each a mapping of numbers of rows to values, as pandas writes them."""
    numbers = {tuple(value) if isinstance(value, dict) else () for value in row.values()}
    return len(numbers) == 1 and any(numbers) and all(number.isdecimal() for number in next(iter(numbers)))


def _object(line: bytes, at: str) -> Row:
    """The JSON object of a line. at: its place, for messages."""
    try:
        row = json.loads(line.decode(), object_pairs_hook=values.unique_fields)
    except UnicodeDecodeError:
        raise DataError(f"{at}: is not UTF-8 text; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{at}: is not JSON ({error.msg}, column {error.colno}); every line must be one JSON object"
        ) from None
    except (ValueError, RecursionError) as error:  # a field twice, a number of thousands of digits, a thousand brackets
        raise DataError(f"{at}: cannot be read: {error}; every line must be one JSON object") from None
    if not isinstance(row, dict):
        raise DataError(f"{at}: holds a {type(row).__name__}; every line must be one JSON object")
    return row
