"""The texts of a study: each task once, cut to what a setting uses, alone or as a mixture; known and unseen examples."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.common.settings import expanded, located
from gptfluence.drawing import names
from gptfluence.profile.schema import Profile, Setting
from gptfluence.tasks import sources
from gptfluence.tasks.base import Task, TaskPool
from gptfluence.tasks.instructions import mixture
from gptfluence.tasks.settings import HubTask, LocalTask, TaskConfig, unknown_task


@dataclass(frozen=True)
class Texts:
    """What runs train on and are tested on. groups: sizes of a mixture's parts of the pool; empty for one task."""

    task: Task
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class StudyTexts:
    """Loads the texts of a profile's tasks, each once."""

    profile: Profile
    places: tuple[Path, ...] = ()  # where relative paths of files may start, see `settings.located`
    _loaded: dict[str, tuple[Task, Task | None]] = field(default_factory=dict, repr=False)

    def known(self, name: str) -> Task:
        """The texts of a task. Raises ConfigurationError (unknown), DataError (unusable), HubUnreachableError."""
        return self._parts(name)[0]

    def unseen(self, name: str) -> Task:
        """Further texts of a task, none of them in its pool or tests (`unseen_pool_size` and `unseen_test_size`).

        Raises ConfigurationError if the profile keeps none apart.
        """
        unseen = self._parts(name)[1]
        if unseen is None:
            raise ConfigurationError(
                f"profile {self.profile.name!r}: tasks.{name}: no unseen examples are kept apart; set unseen_pool_size and "
                "unseen_test_size, both above 0"
            )
        return unseen

    def of_task(self, setting: Setting, name: str, unseen: str | None = None) -> Texts:
        """One task as a setting uses it.

        unseen: None; "training": the unseen pool, and known and unseen tests; "test": the known pool, and unseen tests
        """
        known = self.known(name).first(setting.pool_size, setting.test_size)
        if unseen is None:
            return Texts(known)
        other = self.unseen(name).first(setting.pool_size, setting.test_size)
        if unseen == "test":
            return Texts(Task(name, known.pool, other.tests))
        return Texts(Task(name, other.pool, TaskPool(known.tests.name, (*known.tests, *other.tests))))

    def of_mixture(self, setting: Setting, unseen: str | None = None) -> Texts:
        """All tasks of a setting with instructions, as one; `unseen` as in `of_task`.

        Only some tasks may keep examples apart. The others then train on their known examples and are not tested.
        """
        kept = [name for name in setting.tasks if unseen is None or self._parts(name)[1] is not None]
        if not kept:
            self.unseen(setting.tasks[0])  # says what to set
        texts = {name: self.of_task(setting, name, unseen if name in kept else None).task for name in setting.tasks}
        tested = [name for name in setting.tested_tasks if name in kept]
        task, sizes = mixture(texts, tested, self.profile.seed)
        return Texts(task, tuple(sizes))

    def _parts(self, name: str) -> tuple[Task, Task | None]:
        """The task, and its unseen part if the profile keeps one."""
        if name not in self.profile.tasks:
            raise ConfigurationError(f"profile {self.profile.name!r}: {unknown_task(name, self.profile.tasks)}")
        if name not in self._loaded:
            given = self._with_files_found(self.profile.tasks[name])
            self._loaded[name] = sources.load_parts(name, given, seed=self.profile.seed, data_dir=self.profile.data_dir)
        return self._loaded[name]

    def _with_files_found(self, given: TaskConfig) -> TaskConfig:
        if isinstance(given, HubTask) and given.path:
            place = located(given.path, *self.places)
            return given.model_copy(update={"path": str(place.absolute())}) if os.path.isdir(place) else given
        if not isinstance(given, LocalTask):
            return given
        folder, files = expanded(self.profile.data_dir), {"pool": given.pool, "tests": given.tests}
        found = {
            part: located(folder / expanded(file), *self.places).absolute() for part, file in files.items() if file
        }
        return given.model_copy(update=found)


def checked_unseen(unseen: str) -> str:
    """`unseen`, if it is one of `names.UNSEEN`. Raises ConfigurationError."""
    if unseen not in names.UNSEEN:
        raise ConfigurationError(unknown("value", unseen, names.UNSEEN, where="unseen: "))
    return unseen
