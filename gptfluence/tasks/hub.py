"""Tasks from Hugging Face data sets, on the Hub or in a local folder; data files only, never a data set's own code."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gptfluence.common.errors import DataError, HubUnreachableError
from gptfluence.common.hub import hub_reachable
from gptfluence.tasks.base import Example, Task, TaskPool
from gptfluence.tasks.records import CONVERTED, HubSource
from gptfluence.tasks.rows import RowMapping, check_size, draw, examples_from_rows

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

Folder = str | os.PathLike[str]


class HubData:
    """The two splits of a data set, read once; `task` draws examples from them."""

    def __init__(self, name: str, source: HubSource, layout: RowMapping, *, cache_dir: Folder | None = None) -> None:
        """
        Args:
            name: the task's.
            layout: how a row becomes an example. Rows are numbered where its `id` is None.
            cache_dir: where `datasets` keeps what it downloads; None: where it always does.

        Raises HubUnreachableError, within seconds, if the data set is neither cached nor reachable; DataError for a data
        set, configuration or split that does not exist.
        """
        self.name, self.source = name, source
        splits = {source.pool_split, source.test_split}
        self._tables = {split: _read(name, source, split, cache_dir) for split in splits}
        self._layout = self._with_classes(layout)

    def _with_classes(self, layout: RowMapping) -> RowMapping:
        """If the layout does not name the classes, they are those of both splits."""
        label = layout.label
        if label is None or layout.labels is not None:
            return layout
        for split, table in self._tables.items():
            if label not in table.column_names:
                raise DataError(
                    f"task {self.name!r}: {self.source.path}, {split}: label: there is no field {label!r}, only "
                    f"{', '.join(table.column_names)}"
                )
        values = [{label: value} for table in self._tables.values() for value in table.unique(label)]
        return layout.with_labels_of(values)

    def task(self, *, pool_size: int | None = None, test_size: int | None = None, seed: int = 0) -> Task:
        """Draw rows by `seed`: a smaller draw is the beginning of a larger one. None takes a whole split, in order.

        A row that repeats the prompt of a row drawn before (tests are drawn first) is passed over, and how many there were
        is logged: nobody can mend them on the Hub. Raises DataError for rows that cannot be used.
        """
        seen: set[str] = set()
        tests = self._draw("test_size", self.source.test_split, test_size, seed, seen)
        pool = self._draw("pool_size", self.source.pool_split, pool_size, seed, seen)
        return Task(self.name, TaskPool(f"{self.name}/pool", tuple(pool)), TaskPool(f"{self.name}/tests", tuple(tests)))

    def _draw(self, size_name: str, split: str, size: int | None, seed: int, seen: set[str]) -> list[Example]:
        """seen: the prompts drawn so far; those of this draw are added."""
        table, where = self._tables[split], f"{self.source.path}, {split}"
        check_size(size_name, size, len(table), f"task {self.name!r}: {where}")
        chosen: list[Example] = []
        ids: dict[str, int] = {}
        repeated = 0
        for position in range(len(table)) if size is None else draw(len(table), seed, size_name):
            example = _example(self.name, table, position, self._layout, where)
            if example.prompt in seen:
                repeated += 1
                continue
            if example.id in ids:
                raise DataError(
                    f"{where}, row {position}: id {example.id!r} was used before, in row {ids[example.id]}; "
                    "ids must be unique (`id: null` numbers the rows)"
                )
            seen.add(example.prompt)
            ids[example.id] = position
            chosen.append(example)
            if len(chosen) == size:
                break
        if repeated:
            log.info("task %r: %s: %d rows repeat a prompt and were passed over", self.name, where, repeated)
        check_size(size_name, size, len(chosen), f"task {self.name!r}: {where} (rows with prompts of their own)")
        return chosen


def _read(name: str, source: HubSource, split: str, cache_dir: Folder | None) -> Dataset:
    import datasets

    path, config, revision = source.path, source.config, source.revision
    folder = Path(path).expanduser()
    local, given = folder.is_dir(), config
    files: dict[str, str] | None = None
    if not local and (path.startswith((".", "~", "/")) or path.count("/") > 1):
        raise DataError(f"task {name!r}: path: there is no folder {path!r} (looked from {Path.cwd()})")
    if local and config and (folder / config).is_dir():
        folder, given = folder / config, None  # a copy of one configuration, without the data set's card
    elif revision == CONVERTED and not local:
        # named file by file: the loader would count "challenge_train_sample" and other languages as "train"
        files, given = {split: f"{config or 'default'}/{split}/*.parquet"}, None
    where = f"task {name!r}: data set {path!r}" + (f", configuration {config!r}" if config else "")
    offline = not local and not hub_reachable()
    with _quiet(), _offline(offline):
        try:
            return datasets.load_dataset(
                str(folder) if local else path,
                given,
                data_files=files,
                split=split,
                revision=None if local else revision,
                cache_dir=None if cache_dir is None else str(cache_dir),
            )
        except Exception as error:  # datasets, huggingface_hub, pyarrow and httpx each raise their own
            if offline:
                raise HubUnreachableError(
                    f"{where}: it lives on the Hugging Face Hub; no hub is reachable and it is not in the local cache. "
                    "Connect, or give the task a source that works offline: `source: local` (your own JSON Lines) or "
                    "`source: mini` (generated), or a local copy of the data set's folder as `path`"
                ) from error
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"{where}, split {split!r}: cannot be loaded: {said} "
                "(look up path, config, revision and the splits' names on the data set's page)"
            ) from error


def _example(name: str, table: Dataset, position: int, mapping: RowMapping, where: str) -> Example:
    row = table[position]
    numbered = mapping.id is None or (mapping.id == "id" and "id" not in row)
    at: Callable[[int], str] = lambda _: f"{where}, row {position}"  # noqa: E731
    if numbered:
        row = {**row, "_row": position}
        mapping = replace(mapping, id="_row")
    return examples_from_rows([row], mapping, at, task=name)[0]


@contextmanager
def _offline(on: bool) -> Iterator[None]:
    """What HF_HUB_OFFLINE does, for a while: cached data sets load at once instead of after many vain attempts."""
    if not on:
        yield
        return
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of `datasets`: they flood executed notebooks."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
