"""What pool and tests must not share, and what they share that a reader of the numbers should know.

A text of the pool that is also a test text is an error. A prompt that both have with different targets, and rows that give one
prompt several classes, are counted in a warning: a GPT is then trained on a test's prompt with another answer. Rows of a data
set of the Hub that repeat a prompt are passed over instead (`hub`), because nobody can mend them there.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptfluence.common.errors import DataError

if TYPE_CHECKING:
    from gptfluence.tasks.base import Task

Places = tuple[Sequence[str], Sequence[str]]


def refuse_shared_texts(task: Task, places: Places | None = None) -> None:
    """Raise DataError if a text of the pool is also a test text.

    task: has `name`, `pool` and `tests`; places: where the examples of the pool and of the tests stand, e.g. "tests.jsonl:3"
    """
    first: dict[str, int] = {}
    for position, example in enumerate(task.pool):
        first.setdefault(example.text, position)
    for position, example in enumerate(task.tests):
        if example.text in first:
            there = first[example.text]
            where = f" They are {places[1][position]} and {places[0][there]}." if places else ""
            raise DataError(
                f"task {task.name!r}: test example {example.id!r} has the same text as pool example "
                f"{task.pool[there].id!r}; pool and tests must not overlap, or the GPT is "
                f"measured on what it was trained on; remove one of the two rows from its file.{where}"
            )


def warn_of_shared_prompts(task: Task, places: Places | None = None) -> None:
    """Warn with numbers of tests whose prompt is in the pool, and of prompts that have several classes. Arguments as above."""
    parts = {"pool": task.pool, "tests": task.tests}
    ids = ([f"{examples.name} {example.id!r}" for example in examples] for examples in parts.values())
    told = dict(zip(parts, places or ids, strict=True))
    prompts: dict[str, dict[str, tuple[int, set[str]]]] = {
        part: {} for part in parts
    }  # prompt -> its first position, and its targets
    several: list[tuple[str, str]] = []
    for part, examples in parts.items():
        for position, example in enumerate(examples):
            start, targets = prompts[part].setdefault(example.prompt, (position, set()))
            if example.choices and targets and example.target not in targets:
                several.append((told[part][start], told[part][position]))
            targets.add(example.target)
    if len(prompts["pool"].keys() | prompts["tests"].keys()) == 1:
        return  # texts without prompts, or with one that is the same everywhere
    shared = [position for position, example in enumerate(task.tests) if example.prompt in prompts["pool"]]
    if shared:
        start = prompts["pool"][task.tests[shared[0]].prompt][0]
        warnings.warn(
            f"task {task.name!r}: {len(shared)} of {len(task.tests)} tests have a prompt that is in the pool with another target "
            f"(the first: {told['tests'][shared[0]]} and {told['pool'][start]}): a GPT is trained on the prompts that it is "
            "measured on; remove the rows if that is not meant",
            stacklevel=3,
        )
    if several:
        warnings.warn(
            f"task {task.name!r}: {len(several)} rows give a prompt another class than a row before (the first: "
            f"{several[0][1]}, after {several[0][0]}): they contradict each other; mend or remove them",
            stacklevel=3,
        )
