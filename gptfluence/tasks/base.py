"""Examples, ordered sets of them, and a task: a pool to train on and the examples to test on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import overload

from gptfluence.common.errors import DataError
from gptfluence.tasks.leaks import refuse_shared_texts
from gptfluence.tasks.values import checked


@dataclass(frozen=True, slots=True)
class Example:
    """One text: the GPT reads `prompt` and is trained, or measured, on `target`.

    `target` starts with the blank that separates it from the prompt, if there is one; the text of the example is their
    concatenation. A classification example also names its candidate targets and the index of the right one.
    """

    id: str  # unique in its pool; the source's own id where it has one
    prompt: str
    target: str
    task: str = ""
    label: int | None = None  # index into `choices`
    choices: tuple[str, ...] = ()  # the candidate targets, e.g. (" negative", " positive")
    references: tuple[str, ...] = ()  # what a generation is compared with; () means the target alone

    @property
    def text(self) -> str:
        return self.prompt + self.target

    def with_label(self, label: int) -> Example:
        """A classification example with another label, an index into `choices`, and the target that belongs to it."""
        return replace(self, label=label, target=self.choices[label])

    def check(self, what: str) -> None:
        """Raise DataError, which begins with `what`, for a text that is none, choices that are equal, or a label that is no position
        of a choice."""
        for name in ("id", "prompt", "target", "task"):
            checked(getattr(self, name), f"{what}: {name}")
        for name in ("choices", "references"):
            if not isinstance(getattr(self, name), tuple):
                raise DataError(f"{what}: {name} must be a tuple of strings, not {type(getattr(self, name)).__name__}")
            for text in getattr(self, name):
                checked(text, f"{what}: {name}")
        if len(set(self.choices)) < len(self.choices):
            raise DataError(f"{what}: choices {self.choices} are not all different")
        if self.label is not None and (type(self.label) is not int or not 0 <= self.label < len(self.choices)):
            raise DataError(f"{what}: label {self.label!r} is no position of its {len(self.choices)} choices (an int)")

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Example:
        return cls(**{**values, "choices": tuple(values["choices"]), "references": tuple(values["references"])})


def fingerprint(value: object) -> str:
    """Twelve hexadecimal digits of the SHA-256 of `value` as canonical JSON: equal content, equal fingerprint."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class TaskPool(Sequence[Example]):
    """An ordered set of examples. Curricula, trajectories and simulators speak of an example by its position in it.

    Raises DataError if it is empty, an id occurs twice, or an example is not what `Example` says: its texts are strings of valid
    Unicode, its choices differ, and its label is the position of one.
    """

    name: str  # e.g. "sst2/pool"
    examples: tuple[Example, ...] = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        if not self.examples:
            raise DataError(f"{self.name}: there are no examples; a pool needs one at least")
        seen: dict[str, int] = {}
        for position, example in enumerate(self.examples):
            example.check(f"{self.name}: example {position}")
            if example.id in seen:
                raise DataError(
                    f"{self.name}: id {example.id!r} occurs twice (examples {seen[example.id]} and {position}); "
                    "ids must be unique"
                )
            seen[example.id] = position

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @property
    def texts(self) -> list[str]:
        """Prompt and target of every example, joined, in order."""
        return [example.text for example in self.examples]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything the examples say (not of the pool's name)."""
        return fingerprint([example.to_dict() for example in self.examples])


@dataclass(frozen=True)
class Task:
    """A pool of training examples and the test examples whose metrics are recorded; unpacks as `pool, tests = task`.

    Raises DataError if a text of the pool is also a test text, unless it `may_overlap`: what was recorded elsewhere is as
    it is.
    """

    name: str
    pool: TaskPool
    tests: TaskPool
    may_overlap: bool = field(default=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.may_overlap:
            refuse_shared_texts(self)

    def __iter__(self) -> Iterator[TaskPool]:
        return iter((self.pool, self.tests))

    def first(self, pool_size: int | None, test_size: int | None) -> Task:
        """The task with the first examples of pool and tests alone; None keeps all of them."""
        if pool_size is None and test_size is None:
            return self
        pool, tests = self.pool[:pool_size], self.tests[:test_size]
        return Task(self.name, TaskPool(self.pool.name, pool), TaskPool(self.tests.name, tests))

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.pool.fingerprint, self.tests.fingerprint])
