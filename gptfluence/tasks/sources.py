"""From a profile's description of a task to its texts."""

from __future__ import annotations

from pathlib import Path

from gptfluence.config import LocalTask, MiniTask, PublishedTask, TaskConfig
from gptfluence.errors import ConfigurationError
from gptfluence.tasks import hub, local, mini
from gptfluence.tasks.base import Task


def load(name: str, config: TaskConfig, *, seed: int = 0, data_dir: Path = Path()) -> Task:
    """The task that a profile defines under `tasks.<name>`; relative paths of local files start at `data_dir`.

    Raises ConfigurationError, DataError or HubUnreachableError that name the task, or file and line.
    """
    if isinstance(config, PublishedTask):
        raise ConfigurationError(
            f"tasks.{name}: its texts come with the published runs: Study.dynamics(...) has them as `pool` and `tests`"
        )
    if isinstance(config, MiniTask):
        return mini.generate(name, pool_size=config.pool_size, test_size=config.test_size, seed=seed)
    given = config.model_dump(exclude={"source", "id"}, exclude_none=True)
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
