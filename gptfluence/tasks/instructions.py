"""Instruction tuning: a task's instruction in one of several wordings, put around the prompt of an example.

Which wording an example gets depends on its task, its id and a seed only, so it is the same in every run, whatever
else is in the mixture. The target, its choices and references stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import overload

from gptfluence.common.errors import ConfigurationError
from gptfluence.tasks.base import Example, Task, TaskPool, fingerprint
from gptfluence.tasks.records import RECORDS

WORDINGS = {record.name: record.wordings for record in RECORDS.values() if record.wordings}
GENERAL = (
    "Complete the following.\n{prompt}",
    "Go on from here.\n{prompt}",
    "Give the answer that fits.\n{prompt}",
    "Read this and respond.\n{prompt}",
)  # for tasks with no wordings of their own


@overload
def apply(given: Example, seed: int = 0, *, wordings: Mapping[str, Sequence[str]] | None = None) -> Example: ...
@overload
def apply(given: TaskPool, seed: int = 0, *, wordings: Mapping[str, Sequence[str]] | None = None) -> TaskPool: ...
@overload
def apply(given: Task, seed: int = 0, *, wordings: Mapping[str, Sequence[str]] | None = None) -> Task: ...
def apply(
    given: Example | TaskPool | Task, seed: int = 0, *, wordings: Mapping[str, Sequence[str]] | None = None
) -> Example | TaskPool | Task:
    """The same example, pool or task with instructions in its prompts.

    `wordings` adds to or replaces the built-in ones: task name -> templates with one slot, "{prompt}". Raises
    ConfigurationError for a template without the slot.
    """
    known = {**WORDINGS, **(wordings or {})}
    for task, templates in (wordings or {}).items():
        for template in [templates] if isinstance(templates, str) else templates or [""]:
            if isinstance(templates, str) or template.count("{prompt}") != 1:
                raise ConfigurationError(
                    f"wordings for task {task!r}: {templates!r}: a list of templates is needed, each with "
                    "{prompt} once, where the text goes"
                )
    if isinstance(given, Task):
        return Task(given.name, _pool(given.pool, seed, known), _pool(given.tests, seed, known))
    return _pool(given, seed, known) if isinstance(given, TaskPool) else _example(given, seed, known)


def mixture(
    tasks: Mapping[str, Task], test_tasks: Sequence[str] = (), seed: int = 0, *, name: str = "mixture"
) -> tuple[Task, list[int]]:
    """All tasks as one, with instructions: the pools one after another, and the tests of `test_tasks` (none named: all).

    Ids become "<task>/<id>". Returns the mixture and the size of each task's part of the pool, in order.
    """
    pool: list[Example] = []
    tests: list[Example] = []
    for task, given in tasks.items():
        instructed = apply(given, seed)
        pool += [replace(example, id=f"{task}/{example.id}", task=task) for example in instructed.pool]
        if not test_tasks or task in test_tasks:
            tests += [replace(example, id=f"{task}/{example.id}", task=task) for example in instructed.tests]
    sizes = [len(given.pool) for given in tasks.values()]
    return Task(name, TaskPool(f"{name}/pool", tuple(pool)), TaskPool(f"{name}/tests", tuple(tests))), sizes


def _pool(pool: TaskPool, seed: int, known: Mapping[str, Sequence[str]]) -> TaskPool:
    return TaskPool(pool.name, tuple(_example(example, seed, known) for example in pool))


def _example(example: Example, seed: int, known: Mapping[str, Sequence[str]]) -> Example:
    templates = known.get(example.task, GENERAL)
    number = int(fingerprint([seed, example.task, example.id]), 16) % len(templates)
    before, after = templates[number].split("{prompt}")
    return replace(example, prompt=before + example.prompt + after)
