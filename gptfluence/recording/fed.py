"""Examples as a Trainer fed them, its own tokens and its own labels, and where the store keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptfluence.common.errors import ArtifactError, DataError
from gptfluence.tasks.base import Example, Task, TaskPool

SIDES = ("pool", "tests")


class Tokens(Protocol):
    """Of an example; see `TokenizedExample`, and `Fed`."""

    ids: np.ndarray

    def scored(self, which: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Fed:
    """`ids`: int64 [tokens]; `positions`: int64 [scored], of the tokens whose loss counts. Read as a `TokenizedExample`."""

    ids: np.ndarray
    positions: np.ndarray

    @property
    def target_start(self) -> int:
        """The first token that counts; the number of tokens if none does."""
        return int(self.positions[0]) if len(self.positions) else len(self.ids)

    def scored(self, which: str) -> np.ndarray:
        """int64: `positions`, whatever is asked for: the labels have said it."""
        return self.positions


def columns(examples: Sequence[Tokens]) -> dict[str, list[np.ndarray]]:
    """A table of examples: input_ids, and scored, which of them count."""
    return {
        "input_ids": [each.ids.astype(np.int32) for each in examples],
        "scored": [each.scored("target").astype(np.int32) for each in examples],
    }


def path_of(folder: Path, side: str) -> Path:
    """side: one of `SIDES`"""
    return folder / f"{side}_tokens.parquet"


class FedTokens:
    """The tokens of a recorded training's pool and tests, read from its folder when first asked for."""

    def __init__(self, folder: Path, texts: Task) -> None:
        self._folder, self._texts = folder, texts

    def read(self, side: str) -> list[Fed]:
        """Of all of the pool, or of all tests. Raises ArtifactError if they are not there."""
        path = path_of(self._folder, side)
        try:
            table = pq.read_table(path).to_pydict()
        except (OSError, pa.ArrowInvalid):
            raise ArtifactError(f"{path} is missing or damaged; it is written by TrainerRecorder") from None
        rows = zip(table["input_ids"], table["scored"], strict=True)
        return [Fed(*(np.array(part, np.int64) for part in row)) for row in rows]

    @property
    def both(self) -> tuple[list[Fed], list[Fed]]:
        """Of the whole pool, and of all tests."""
        return self.read(SIDES[0]), self.read(SIDES[1])

    @cached_property
    def _known(self) -> tuple[dict[Example, Fed], dict[Example, Fed]]:
        texts = self._texts.pool, self._texts.tests
        pool, tests = (
            dict(zip(examples, self.read(side), strict=True)) for side, examples in zip(SIDES, texts, strict=True)
        )
        return pool, tests

    def of(self, examples: TaskPool, *, trained: bool) -> list[Fed]:
        """Those of `examples`, which are of the training's pool (`trained`), or of its tests.

        Raises DataError for one that the training did not have: nobody knows what its Trainer would have fed for it.
        """
        known = self._known[0 if trained else 1]
        for example in examples:
            if example not in known:
                raise DataError(
                    f"{examples.name}: example {example.id!r} is none of the {'training data' if trained else 'tests'} of the "
                    "training that was recorded, so its tokens are not known; give it to TrainerRecorder and record again"
                )
        return [known[example] for example in examples]
