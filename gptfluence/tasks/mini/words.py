"""Words and dice that the generators share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from gptfluence.tasks.base import fingerprint

T = TypeVar("T")

PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Lena", "Martin",
          "Nora", "Oscar", "Paula", "Simon")  # fmt: skip
TOWNS = ("Bern", "Cork", "Graz", "Kiel", "Lima", "Oslo", "Porto", "Rome", "Turin", "Vienna")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
JOBS = ("baker", "doctor", "farmer", "nurse", "painter", "pilot", "singer", "teacher")


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
