"""The texts of the published GPTDynamics data: which file holds what, and how its lines become examples.

Files are JSON Lines in spite of their suffix: {"id": 3, "input": prompt and answer, "context": prompt}; ids are 0..n-1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from gptfluence.common.errors import DataError
from gptfluence.published.archive import Archive
from gptfluence.tasks.base import Example, TaskPool
from gptfluence.tasks.values import checked


@dataclass(frozen=True)
class Texts:
    """Where the texts of runs of one kind lie.

    seen: training texts before this id are the pool that most runs draw from; later ones are for unseen data only.
    tests: task -> (first, last) id in the file of tests, both included. Raw runs count ids from 0 in each task.
    """

    setting: str  # what the store calls it
    task: str
    train: str
    test: str
    expected: tuple[int, int]  # training and test texts, by the files' names
    seen: int
    tests: dict[str, tuple[int, int]]


def _fine_tuning(task: str, train: str, test: str, expected: tuple[int, int]) -> Texts:
    return Texts("fine_tuning", task, train, test, expected, 200, {task: (0, expected[1] - 1)})


FLAN_TESTS = {
    "sst2": (0, 199),
    "rte": (200, 476),
    "boolq": (477, 676),
    "webnlg": (677, 854),
    "wmt16_de_en": (855, 1054),
}
_DEBUG = "sst2_flan-prompt_dataset-debug"
TEXTS = {
    "rte": _fine_tuning("rte", "rte_0_399_train.json", "rte_0_276_eval.json", (400, 277)),
    "boolq": _fine_tuning("boolq", "boolq_train_0-199.json", "boolq_validation_0-199.json", (200, 200)),
    "sst2": _fine_tuning("sst2", "sst2_train_0-199.json", "sst2_validation_0-199.json", (200, 200)),
    "webnlg": _fine_tuning("webnlg", "webnlg_train_0-399.json", "webnlg_dev_0-177.json", (400, 178)),
    "wmt16_de_en": _fine_tuning(
        "wmt16_de_en", "wmt16_de_en_train_0-199.json", "wmt16_de_en_test_0-199.json", (200, 200)
    ),
    "flan": Texts(
        "instruction_tuning", "flan", "flan_train_0_1599.json", "flan_eval_0_1054.json", (1600, 1055), 1200, FLAN_TESTS
    ),
    "mislabelled": Texts(
        "mislabelled",
        "sst2",
        f"{_DEBUG}_mislabelled-0.4_train_0-127.json",
        f"{_DEBUG}_eval_0-127.json",
        (128, 128),
        128,
        {"sst2": (0, 127)},
    ),
}


class TextReader:
    """The texts of one kind of runs, read from an archive when first asked for.

    say: called with what deserves to be known about a file (fewer texts than its name says, ...)
    """

    def __init__(self, archive: Archive, kind: str, say: Callable[[str], None]):
        self._archive, self._say = archive, say
        self.kind, self.texts = kind, TEXTS[kind]

    @cached_property
    def pool(self) -> list[Example]:
        return self._examples(self.texts.train, self.texts.expected[0], lambda _: self.texts.task)

    @cached_property
    def tests(self) -> list[Example]:
        return self._examples(self.texts.test, self.texts.expected[1], self.task_of)

    def task_of(self, test: int) -> str:
        """The task that the test example of this id belongs to."""
        for task, (first, last) in self.texts.tests.items():
            if first <= test <= last:
                return task
        return self.texts.task

    def pool_of(self, part: str) -> TaskPool:
        """part: "seen" (the pool most runs draw from) or "unseen" (with the texts behind it, so that ids stay)."""
        chosen = self.pool[: self.texts.seen] if part == "seen" else self.pool
        return TaskPool(f"{self.texts.task}/pool", tuple(chosen))

    def _examples(self, name: str, expected: int, task_of: Callable[[int], str]) -> list[Example]:
        places = [place for place in self._archive.names if place.rsplit("/", 1)[-1] == name]
        if not places:
            raise DataError(f"its texts are missing: no {name} in {self._archive.place}")
        contents = {self._archive.read(place) for place in places}
        if len(contents) > 1:
            raise DataError(f"{name} is in {self._archive.place} {len(places)} times with different content: {places}")
        rows = read_lines(contents.pop(), places[0])
        by_id: dict[int, Example] = {}
        whole = 0
        for number, row in enumerate(rows, start=1):
            where = f"{places[0]}, text {number}"
            text, prompt, position = row.get("input"), row.get("context"), row.get("id")
            if type(position) is not int or not isinstance(text, str) or not isinstance(prompt, str) or not text:
                raise DataError(f'{where}: must be {{"id": whole number, "input": text, "context": text}}')
            checked(text, f"{where}: input")
            if position in by_id:
                raise DataError(f"{where}: id {position} occurs twice")
            if not (text.startswith(prompt) and len(text) > len(prompt)):
                whole += 1  # what the answer is cannot be told; the text as a whole is what simulators read
                prompt = ""
            by_id[position] = Example(str(position), prompt, text[len(prompt) :], task_of(position))
        if sorted(by_id) != list(range(len(by_id))):
            absent = min(set(range(len(by_id))) - set(by_id))
            raise DataError(f"{places[0]}: ids must be 0 to {len(by_id) - 1}; {absent} is missing")
        if len(by_id) != expected:
            self._say(f"{places[0]}: {len(by_id)} texts; its name says {expected}")
        if whole:
            self._say(f"{places[0]}: {whole} texts do not begin with their context and are taken whole, as answers")
        return [by_id[position] for position in range(len(by_id))]


def read_lines(content: bytes, where: str) -> list[dict]:
    """JSON Lines to objects. Raises DataError that names file and line."""
    try:
        # json knows \n only as the end of a line; other separators may stand inside a text
        lines = [line for line in content.decode("utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}; the file is damaged") from None
    if not lines:
        raise DataError(f"{where}: is empty")
    try:
        rows = json.loads(f"[{','.join(lines)}]")  # at once: several times faster than line by line
    except (ValueError, RecursionError):
        rows = []
    if len(rows) == len(lines) and all(type(row) is dict for row in rows):
        return rows
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if type(row) is not dict:
            raise DataError(
                f"{where}, line {number}: not a JSON object: {line[:60]!r}; the file is damaged or cut short"
            )
    raise DataError(f"{where}: not JSON Lines")
