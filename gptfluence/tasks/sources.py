"""From a profile's description of a task to its texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from gptfluence.common.errors import ConfigurationError, DataError
from gptfluence.common.packages import Package
from gptfluence.common.settings import expanded
from gptfluence.tasks import mini, packaged
from gptfluence.tasks.base import Task, TaskPool
from gptfluence.tasks.hub import HubData
from gptfluence.tasks.local import JsonLines
from gptfluence.tasks.records import RECORDS, HubSource
from gptfluence.tasks.rows import RowMapping
from gptfluence.tasks.settings import HubTask, LocalTask, MiniTask, PackageTask, PublishedTask, TaskConfig


def load_parts(name: str, config: TaskConfig, *, seed: int = 0, data_dir: Path = Path()) -> tuple[Task, Task | None]:
    """The task that a profile defines under `tasks.<name>`, and the examples that it keeps unseen, as a task of their own.

    Data are read once. Pools and tests are drawn such that a smaller one is the beginning of a larger one, and the unseen
    examples are those that a larger draw has more; None if the profile keeps none.

    data_dir: where relative paths of local files start

    Raises ConfigurationError, DataError or HubUnreachableError that name the task, or file and line.
    """
    if isinstance(config, PublishedTask):
        raise ConfigurationError(
            f"tasks.{name}: its texts come with the published runs: `Campaign.dynamics()` has them as `pool` and `tests`"
        )
    drawn = _open(name, config, seed, data_dir)
    task = drawn(pool_size=config.pool_size, test_size=config.test_size)
    more = (config.unseen_pool_size, config.unseen_test_size)
    if not any(more):
        return task, None
    if not all(more):
        raise ConfigurationError(f"tasks.{name}: unseen_pool_size and unseen_test_size must both be above 0, or both 0")
    larger = drawn(pool_size=config.pool_size + more[0], test_size=config.test_size + more[1])
    return task, _unseen(task, larger)


def _unseen(task: Task, larger: Task) -> Task:
    """What `larger` has beyond `task`. Raises ConfigurationError or DataError if that is not apart from it."""
    name, parts = task.name, []
    for known, whole in ((task.pool, larger.pool), (task.tests, larger.tests)):
        if whole[: len(known)] != known.examples:
            raise ConfigurationError(
                f"tasks.{name}: more tests would change the pool, so no unseen examples can be kept apart; give the tests "
                "a file of their own"
            )
        parts.append(TaskPool(f"{known.name}-unseen", whole[len(known) :]))
    answers = {example.text for example in (*task.pool, *task.tests)}
    twice = next((example.id for part in parts for example in part if example.text in answers), None)
    if twice is not None:
        raise DataError(f"tasks.{name}: unseen example {twice!r} has the text of an example that is not; remove it")
    return Task(name, *parts)


def is_labelled(name: str, config: TaskConfig) -> bool:
    """Whether a task's targets are labels to choose from, by its description alone: texts may be far away."""
    if getattr(config, "label", None) is not None:
        return True
    known = RECORDS.get(name)
    return known is not None and not isinstance(config, LocalTask) and known.layout.label is not None


def package_of(name: str, config: TaskConfig) -> Package | None:
    """The package that a task's texts are in; None if they come from elsewhere."""
    return packaged.find(name, _packaged(name))[0] if isinstance(config, PackageTask) else None


def _packaged(name: str) -> str | None:
    return RECORDS[name].packaged if name in RECORDS else None


def _open(
    name: str, config: MiniTask | LocalTask | HubTask | PackageTask, seed: int, data_dir: Path
) -> Callable[..., Task]:
    """A function of pool_size and test_size that draws the task from data that are read once."""
    if isinstance(config, MiniTask):
        return partial(mini.generate, name, seed=seed)
    if isinstance(config, LocalTask):
        files = [None if file is None else expanded(data_dir) / expanded(file) for file in (config.pool, config.tests)]
        layout = RowMapping(**_given(config, RowMapping), id=config.id)
        return partial(JsonLines(name, layout, *files).task, seed=seed)
    if isinstance(config, PackageTask):
        package, rows = packaged.find(name, _packaged(name))
        layout = replace(RECORDS[name].layout, **_given(config, RowMapping))
        return partial(packaged.PackagedData(name, layout, package, rows).task, seed=seed)
    source, layout = _of_hub(name, config)
    return partial(HubData(name, source, layout).task, seed=seed)


def _of_hub(name: str, config: HubTask) -> tuple[HubSource, RowMapping]:
    """What the profile says of a data set, and for what it leaves out, what is known of the task by its name."""
    known = RECORDS.get(name)
    source, layout = _given(config, HubSource), _given(config, RowMapping)
    if known is None or known.hub is None:
        needed = ["path", "pool_split", "test_split"] + ([] if known else ["prompt", "target"])
        for field in needed:
            if field not in {**source, **layout}:
                raise ConfigurationError(
                    f"tasks.{name}.{field}: is missing; a data set other than the paper's needs it"
                )
    return (
        replace(known.hub, **source) if known and known.hub else HubSource(**source),
        replace(known.layout, **layout) if known else RowMapping(**layout),
    )


def _given(config: LocalTask | HubTask | PackageTask, kind: type[HubSource] | type[RowMapping]) -> dict[str, Any]:
    """The fields of `kind` that the profile gives; a missing `id` is left to `kind`."""
    values = config.model_dump(exclude={"id"}, exclude_none=True)
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}
