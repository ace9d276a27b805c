"""Tasks from Hugging Face data sets, on the Hub or in a local folder; data files only, never a data set's own code."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptfluence.common.contents import POINTER, first_bytes, is_pointer
from gptfluence.common.errors import DataError, HubUnreachableError
from gptfluence.common.hub import hub_reachable
from gptfluence.common.settings import expanded
from gptfluence.tasks.base import Example, Task, TaskPool
from gptfluence.tasks.records import CONVERTED, HubSource
from gptfluence.tasks.rows import RowMapping, check_size, draw, examples_from_rows

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

Folder = str | os.PathLike[str]
SHOWN = 400  # characters of another library's message


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
        splits = dict.fromkeys((source.pool_split, source.test_split))
        self._tables = {split: _read(name, source, split, cache_dir) for split in splits}
        self._layout = self._with_classes(layout)

    def _with_classes(self, layout: RowMapping) -> RowMapping:
        """If the layout does not name the classes, they are those of both splits."""
        if layout.label is None or layout.labels is not None:
            return layout
        field = layout.label_field
        for split, table in self._tables.items():
            if field not in table.column_names:
                raise DataError(
                    f"task {self.name!r}: {self.source.path}, {split}: label: there is no field {field!r}, only "
                    f"{', '.join(table.column_names)}"
                )
        try:
            return layout.with_labels_of([{field: value} for _, value in self._column(field, distinct=True)], str)
        except DataError:  # once more with all rows, to say which and how many
            places, rows = zip(*self._column(field), strict=True)
            return layout.with_labels_of([{field: value} for value in rows], places.__getitem__)

    def _column(self, field: str, *, distinct: bool = False) -> Iterator[tuple[str, Any]]:
        """The values of a field in both splits, with their places; `distinct`: each once, where that is told quickly."""
        for split, table in self._tables.items():
            plain = type(table.features[field]).__name__ in ("Value", "ClassLabel")
            values = table.unique(field) if distinct and plain else table[field]
            for position, value in enumerate(values):
                yield f"{self.source.path}, {split}, row {position}", value

    def task(self, *, pool_size: int | None = None, test_size: int | None = None, seed: int = 0) -> Task:
        """Draw rows by `seed`: a smaller draw is the beginning of a larger one. None takes a whole split, in order.

        A row that repeats the prompt of a row drawn before (tests are drawn first) is passed over, and how many there were
        is logged: nobody can mend them on the Hub. (If the prompt is the same for every row, one that repeats the text.) Raises
        DataError for rows that cannot be used.
        """
        seen: set[str] = set()
        tests = self._draw("test_size", self.source.test_split, test_size, seed, seen)
        pool = self._draw("pool_size", self.source.pool_split, pool_size, seed, seen)
        return Task(self.name, TaskPool(f"{self.name}/pool", tuple(pool)), TaskPool(f"{self.name}/tests", tuple(tests)))

    def _draw(self, size_name: str, split: str, size: int | None, seed: int, seen: set[str]) -> list[Example]:
        """seen: the prompts (or texts) drawn so far; those of this draw are added."""
        table, where = self._tables[split], f"{self.source.path}, {split}"
        check_size(size_name, size, len(table), f"task {self.name!r}: {where}")
        chosen: list[Example] = []
        ids: dict[str, int] = {}
        repeated = 0
        for position in range(len(table)) if size is None else draw(len(table), seed, size_name):
            example = _example(self.name, table, position, self._layout, where)
            told = example.prompt if self._layout.makes_prompts else example.text
            if told in seen:
                repeated += 1
                continue
            if example.id in ids:
                raise DataError(
                    f"{where}, row {position}: id {example.id!r} was used before, in row {ids[example.id]}; "
                    "ids must be unique (`id: null` numbers the rows)"
                )
            seen.add(told)
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
    folder = expanded(path)
    local, given = folder.is_dir(), config
    files: dict[str, str] | None = None
    if not path.strip():
        raise DataError(f"task {name!r}: path: it is empty; give a data set's name on the Hub, or a folder")
    if local and set("*?[") & set(str(folder.absolute())):  # `datasets` would look for files of other folders, too
        raise DataError(
            f"task {name!r}: path: {folder.absolute()} holds one of * ? [, which `datasets` takes for patterns; rename the folder, "
            "or read JSON Lines with `source: local`"
        )
    if folder.is_file():
        raise DataError(
            f"task {name!r}: path: {path!r} is a file; give its folder, or read JSON Lines with `source: local`"
        )
    if not local and (path.startswith((".", "~", "/")) or path.count("/") > 1):
        raise DataError(f"task {name!r}: path: there is no folder {path!r} (looked from {Path.cwd()})")
    if not local and path.isidentifier() and find_spec(f"datasets.packaged_modules.{path}"):
        # `datasets` would read whatever files of this format lie in the working directory
        raise DataError(
            f"task {name!r}: path: {path!r} is a file format, and there is no folder of this name in {Path.cwd()}; give the "
            "folder with the files"
        )
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
                str(folder.absolute()) if local else path,  # "./json" would be the format JSON
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
            pointer = _pointer(folder) if local else None
            if pointer:
                raise DataError(f"{where}: {pointer} {POINTER}") from error
            raise DataError(
                f"{where}, split {split!r}: cannot be loaded: {_said(error)} "
                "(look up path, config, revision and the splits' names on the data set's page)"
            ) from error


def _said(error: BaseException) -> str:
    """What an error and those that it came from say, in one line: the outermost often says only that there was one."""
    said: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split()) or type(cause).__name__
        if text not in " ".join(said):
            said.append(text if len(text) < SHOWN else f"{text[:SHOWN]} ...")
        cause = cause.__cause__
    return ": ".join(said)


def _pointer(folder: Path) -> Path | None:
    """A file of the folder that Git LFS has not fetched."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and is_pointer(first_bytes(path)))
    return next(found, None)


def _example(name: str, table: Dataset, position: int, mapping: RowMapping, where: str) -> Example:
    at: Callable[[int], str] = lambda _: f"{where}, row {position}"  # noqa: E731
    try:
        row = table[position]
    except Exception as error:  # text that is no UTF-8, a picture that cannot be decoded, ...
        raise DataError(f"{at(0)}: cannot be read: {_said(error)}; leave the row out") from error
    numbered = mapping.id is None or (mapping.id == "id" and "id" not in row)
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
