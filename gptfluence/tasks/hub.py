"""Tasks from Hugging Face data sets, on the Hub or in a local folder; data files only, never a data set's own code."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptfluence.common.errors import DataError, HubUnreachableError
from gptfluence.common.hub import hub_reachable
from gptfluence.tasks.base import Example, Task, TaskPool
from gptfluence.tasks.layouts import LAYOUTS
from gptfluence.tasks.rows import RowMapping, check_size, draw, examples_from_rows

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

CONVERTED = "refs/convert/parquet"  # the branch of Parquet files that the Hub makes of a data set

# Where the paper's six data sets live. Revisions are commits, but for WebNLG: its main branch holds a loading script,
# which `datasets` no longer runs. GLUE and BoolQ publish no labels of their test data; validation data serve instead.
_SOURCES: dict[str, dict[str, str | None]] = {
    "rte": {
        "path": "nyu-mll/glue", "config": "rte", "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        "pool_split": "train", "test_split": "validation",
    },
    "sst2": {
        "path": "nyu-mll/glue", "config": "sst2", "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        "pool_split": "train", "test_split": "validation",
    },
    "boolq": {
        "path": "google/boolq", "config": None, "revision": "35b264d03638db9f4ce671b711558bf7ff0f80d5",
        "pool_split": "train", "test_split": "validation",
    },
    "webnlg": {
        "path": "GEM/web_nlg", "config": "en", "revision": CONVERTED,
        "pool_split": "train", "test_split": "validation",
    },
    "wmt16_de_en": {
        "path": "wmt/wmt16", "config": "de-en", "revision": "41d8a4013aa1489f28fea60ec0932af246086482",
        "pool_split": "train", "test_split": "test",
    },
    "cnn_dm": {
        "path": "abisee/cnn_dailymail", "config": "3.0.0", "revision": "96df5e686bee6baa90b8bee7c28b81fa3fa6223d",
        "pool_split": "train", "test_split": "validation",
    },
}  # fmt: skip

PAPER_TASKS: dict[str, dict[str, Any]] = {name: {**_SOURCES[name], **asdict(LAYOUTS[name])} for name in LAYOUTS}
"""Task name -> keyword arguments of `load` for the paper's data; `load("rte", **PAPER_TASKS["rte"])`."""


def load(
    name: str,
    *,
    path: str,
    pool_split: str,
    test_split: str,
    prompt: str,
    target: str,
    config: str | None = None,
    revision: str | None = None,
    id: str | None = "id",
    label: str | None = None,
    labels: Mapping[Any, str] | Sequence[str] | None = None,
    references: str | None = None,
    pool_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Task:
    """A task from two splits of the data set `path`: a name on the Hub, or a folder of Parquet, JSON or CSV files.

    Templates and labels as in `RowMapping`; ids are row numbers where `id` is None. Sizes draw rows by `seed`, smaller
    draws being the beginning of larger ones; None takes a whole split, in order. Rows that repeat a prompt drawn before
    (tests are drawn first) are passed over, and how many is logged: nobody can mend them on the Hub.

    Raises HubUnreachableError, within seconds, if the data set is neither cached nor reachable; DataError for a data
    set, configuration or split that does not exist and for rows that cannot be used.
    """
    mapping = RowMapping(prompt, target, id, label, labels, references)
    tables = {split: _read(name, path, config, revision, split, cache_dir) for split in {pool_split, test_split}}
    if label is not None and labels is None:  # the classes are those of both splits
        for split, table in tables.items():
            if label not in table.column_names:
                there = ", ".join(table.column_names)
                raise DataError(f"task {name!r}: {path}, {split}: label: there is no field {label!r}, only {there}")
        mapping = mapping.with_labels_of([{label: value} for table in tables.values() for value in table.unique(label)])
    seen: set[str] = set()
    tests = _draw(name, "test_size", tables[test_split], mapping, f"{path}, {test_split}", test_size, seed, seen)
    pool = _draw(name, "pool_size", tables[pool_split], mapping, f"{path}, {pool_split}", pool_size, seed, seen)
    return Task(name, TaskPool(f"{name}/pool", tuple(pool)), TaskPool(f"{name}/tests", tuple(tests)))


def _read(
    name: str, path: str, config: str | None, revision: str | None, split: str, cache_dir: str | os.PathLike[str] | None
) -> Dataset:
    import datasets

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


def _draw(
    name: str,
    size_name: str,
    table: Dataset,
    mapping: RowMapping,
    where: str,
    size: int | None,
    seed: int,
    seen: set[str],
) -> list[Example]:
    check_size(size_name, size, len(table), f"task {name!r}: {where}")
    order = range(len(table)) if size is None else draw(len(table), seed, size_name)
    chosen: list[Example] = []
    ids: dict[str, int] = {}
    repeated = 0
    for position in order:
        example = _example(name, table, position, mapping, where)
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
        log.info("task %r: %s: %d rows repeat a prompt and were passed over", name, where, repeated)
    check_size(size_name, size, len(chosen), f"task {name!r}: {where} (rows with prompts of their own)")
    return chosen


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
