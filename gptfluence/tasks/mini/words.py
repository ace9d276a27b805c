"""What the generators share: words, dice, and worlds, which say what invented words mean."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from gptfluence.tasks.base import fingerprint

T = TypeVar("T")

PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Lena", "Martin",
          "Nora", "Oscar", "Paula", "Simon")  # fmt: skip
TOWNS = ("Bern", "Cork", "Graz", "Kiel", "Lima", "Oslo", "Porto", "Rome", "Turin", "Vienna")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
JOBS = ("baker", "doctor", "farmer", "nurse", "painter", "pilot", "singer", "teacher")

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "bl", "dr", "gl", "kr", "sk", "tr")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("b", "ck", "ff", "g", "lm", "mp", "nd", "nt", "p", "rk", "rv", "sk", "x", "zz")


class Dice:
    """Random choices that are the same in every Python version and process: all from `random()` of a hashed seed."""

    def __init__(self, *seed: object) -> None:
        self._random = random.Random(int(fingerprint(seed), 16))

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._random.random() * len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different ones, in random order."""
        return self.shuffled(options)[:count]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        order = list(options)
        for last in range(len(order) - 1, 0, -1):
            other = int(self._random.random() * (last + 1))
            order[last], order[other] = order[other], order[last]
        return order


@cache
def invented(ending: str, count: int) -> tuple[str, ...]:
    """`count` different words that no language has, e.g. "blompish"; a smaller count is the beginning of a larger one."""
    dice, words = Dice("invented", ending), dict[str, None]()
    while len(words) < count:
        words[dice.pick(_ONSETS) + dice.pick(_VOWELS) + dice.pick(_CODAS) + ending] = None
    return tuple(words)


class World:
    """What is so in a generated world: which class each invented word belongs to. Another seed is another world.

    known: the words that GPTs are pre-trained on, which teach what a class means; else the words of pools and tests,
        whose classes only the pool's examples tell
    """

    def __init__(self, seed: int, *, known: bool):
        self.seed, self.known = seed, known
        self._dealt: dict[tuple, dict[str, tuple[str, ...]]] = {}

    def words(self, ending: str, classes: Sequence[str], size: int) -> dict[str, tuple[str, ...]]:
        """class -> `size` words of this ending, dealt by the seed.

        Of known words there are a third as many, which is enough to learn from.
        """
        key = (ending, tuple(classes), size)
        if key not in self._dealt:
            total = size * len(classes)
            words = invented(ending, 2 * total)
            dealt = Dice("world", self.seed, ending).shuffled(words[total:] if self.known else words[:total])
            each = -(-size // 3) if self.known else size
            self._dealt[key] = {name: tuple(dealt[each * k : each * (k + 1)]) for k, name in enumerate(classes)}
        return self._dealt[key]
