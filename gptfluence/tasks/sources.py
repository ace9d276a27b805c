"""From a profile's description of a task to its texts."""

from __future__ import annotations

from pathlib import Path

from gptfluence.common.errors import ConfigurationError, DataError
from gptfluence.tasks import hub, local, mini
from gptfluence.tasks.base import Task, TaskPool
from gptfluence.tasks.settings import LocalTask, MiniTask, PublishedTask, TaskConfig


def load_parts(name: str, config: TaskConfig, *, seed: int = 0, data_dir: Path = Path()) -> tuple[Task, Task | None]:
    """`load`, and beside it the examples that the profile keeps unseen, as a task of its own; None if it keeps none.

    Pools and tests are drawn such that a smaller one is the beginning of a larger one, so the unseen part is what a
    larger draw has more. Raises what `load` does, and ConfigurationError if only one of pool and tests has a part unseen.
    """
    task = load(name, config, seed=seed, data_dir=data_dir)
    more = (config.unseen_pool_size, config.unseen_test_size)
    if not any(more):
        return task, None
    if not all(more):
        raise ConfigurationError(f"tasks.{name}: unseen_pool_size and unseen_test_size must both be above 0, or both 0")
    sizes = {"pool_size": config.pool_size + more[0], "test_size": config.test_size + more[1]}
    larger = load(name, config.model_copy(update=sizes), seed=seed, data_dir=data_dir)
    parts = []
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
    return task, Task(name, *parts)


def load(name: str, config: TaskConfig, *, seed: int = 0, data_dir: Path = Path()) -> Task:
    """The task that a profile defines under `tasks.<name>`; relative paths of local files start at `data_dir`.

    Raises ConfigurationError, DataError or HubUnreachableError that name the task, or file and line.
    """
    if isinstance(config, PublishedTask):
        raise ConfigurationError(
            f"tasks.{name}: its texts come with the published runs: Study.dynamics(...) has them as `pool` and `tests`"
        )
    given = config.model_dump(exclude={"source", "id", "unseen_pool_size", "unseen_test_size"}, exclude_none=True)
    if isinstance(config, MiniTask):
        return mini.generate(name, pool_size=config.pool_size, test_size=config.test_size, seed=seed)
    if isinstance(config, LocalTask):
        for part in ("pool", "tests"):
            if part in given:
                given[part] = data_dir.expanduser() / given[part].expanduser()
        return local.read_jsonl(**given, id=config.id, name=name, seed=seed)
    defaults = hub.PAPER_TASKS.get(name, {})
    for needed in ("path", "pool_split", "test_split", "prompt", "target"):
        if needed not in {**defaults, **given}:
            raise ConfigurationError(f"tasks.{name}.{needed}: is missing; a data set other than the paper's needs it")
    return hub.load(name, **{**defaults, **given}, seed=seed)
