"""A curriculum: which training examples a GPT sees, in which batch, in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gptfluence.common.errors import ConfigurationError

NOBODY = -1  # in an array of batches: no place; the rows of shorter steps end with it


def flipped(examples: np.ndarray) -> np.ndarray:
    """What a place holds whose example is masked, -2 - i for example i; and the other way round."""
    return -2 - examples


def named(batches: np.ndarray) -> np.ndarray:
    """The example of each place, also where it is masked; `NOBODY` stays."""
    return np.where(batches < NOBODY, flipped(batches), batches)


def places(batches: np.ndarray) -> np.ndarray:
    """int [..., steps]: how many places each step has, the masked ones among them; batches: int [..., steps, widest]."""
    return (batches != NOBODY).sum(axis=-1)


@dataclass(frozen=True, eq=False)
class Curriculum:
    """`batches`: int32 [steps, widest], positions in a pool. The batch of row t-1 makes update t (c_t in the paper).

    A step may have any number of examples, also none. It is given as a list for each step, or as an array whose shorter rows
    are filled up with -1. A place whose example i was masked holds -2 - i (see `masked`). Two curricula are equal if their
    batches are.
    """

    batches: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        batches = self.batches
        if not isinstance(batches, np.ndarray):
            batches = _padded([list(batch) for batch in batches])
        if batches.ndim != 2 or batches.size == 0 or not np.issubdtype(batches.dtype, np.integer):
            raise ConfigurationError(
                f"curriculum: batches must be whole numbers of shape [steps, batch], or a list of them for each step, not "
                f"{batches.dtype} {list(batches.shape)}"
            )
        if (batches == NOBODY).any():  # places first, and no column without any: equal curricula have equal arrays
            order = np.argsort(batches == NOBODY, axis=1, kind="stable")
            batches = np.take_along_axis(batches, order, axis=1)[:, : max(1, int(places(batches).max()))]
        object.__setattr__(self, "batches", np.ascontiguousarray(batches.astype(np.int32)))
        self.batches.flags.writeable = False

    @property
    def steps(self) -> int:
        return self.batches.shape[0]

    @property
    def batch_size(self) -> int:
        """Places of the largest step."""
        return self.batches.shape[1]

    @property
    def used(self) -> np.ndarray:
        """int32: every example that is trained on, once, in ascending order."""
        return np.unique(self.batches[self.batches >= 0])

    def examples(self, row: int) -> list[int]:
        """The examples that make the update of this row, from 0: those that are there and not masked."""
        return [example for example in self.batches[row].tolist() if example >= 0]

    @property
    def highest(self) -> int:
        """The highest position that is named, of masked examples too; -1 if none is."""
        return int(named(self.batches).max())

    @property
    def fingerprint(self) -> str:
        shape = f"{self.steps}x{self.batch_size}:".encode()
        return hashlib.sha256(shape + self.batches.astype("<i4").tobytes()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Curriculum) and np.array_equal(self.batches, other.batches)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        sizes = sorted({int(size) for size in places(self.batches)})
        shape = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else sizes[0]
        masked = int((self.batches < NOBODY).sum())
        return f"Curriculum({self.steps} steps x {shape} examples, {f'{masked} masked, ' * bool(masked)}{self.fingerprint})"

    def _check_present(self, examples: Iterable[int]) -> np.ndarray:
        """Each of `examples` once, int64. Raises ConfigurationError if one does not occur."""
        if not isinstance(examples, Iterable):
            raise ConfigurationError(f"curriculum: give examples in a list, [{examples}]")
        asked = np.unique(np.fromiter(examples, dtype=np.int64))
        absent = asked[~np.isin(asked, self.used)]
        if absent.size:
            some = ", ".join(map(str, self.used[:8]))
            raise ConfigurationError(
                f"curriculum: example {int(absent[0])} is not in this curriculum; choose one that is: {some}, ..."
            )
        return asked

    @property
    def _sequence(self) -> np.ndarray:
        """All places in order, masked ones too."""
        return self.batches[self.batches != NOBODY]

    def _from_sequence(self, sequence: np.ndarray) -> Curriculum:
        """Steps of this curriculum's sizes, in turn and then from the beginning, while `sequence` fills them."""
        sizes = places(self.batches)
        total = int(sizes.sum())
        sizes = np.tile(sizes, -(-len(sequence) // max(total, 1)))
        steps = [
            sequence[end - size : end] for size, end in zip(sizes, sizes.cumsum(), strict=True) if end <= len(sequence)
        ]
        if not steps:
            raise ConfigurationError(
                f"curriculum: only {len(sequence)} examples are left, less than one batch of {self.batch_size}"
            )
        return Curriculum(steps)

    def masked(self, examples: Iterable[int]) -> Curriculum:
        """The same steps and learning rates with the places of `examples` left empty: nobody else moves.

        The other examples of a step keep the weight that they had: the loss of its update is divided by the number of tokens
        with those of the masked examples. A step whose examples are all masked is an update of the optimizer with a gradient of
        zero. Raises ConfigurationError if one of `examples` does not occur.
        """
        hidden = np.isin(self.batches, self._check_present(examples))
        return Curriculum(np.where(hidden, flipped(self.batches), self.batches))

    def without(self, examples: Iterable[int]) -> Curriculum:
        """The same order with `examples` left out: those behind move up, and a last batch that is not full is dropped.

        Steps keep their sizes. In a curriculum that is `masked` nobody moves. Raises ConfigurationError if one of `examples` does
        not occur.
        """
        dropped = self._check_present(examples)
        sequence = self._sequence
        return self._from_sequence(sequence[~np.isin(sequence, dropped)])

    def repeated(self, example: int, times: int) -> Curriculum:
        """The same order with `times` more occurrences of `example`, spread evenly; a last batch not full is dropped."""
        if times < 1:
            raise ConfigurationError(f"curriculum: times must be 1 or more, not {times}")
        sequence = self._sequence
        spread = np.linspace(0, len(sequence), times + 2)[1:-1].astype(int)
        return self._from_sequence(np.insert(sequence, spread, example))

    def moved(self, examples: Sequence[int], *, front: bool) -> Curriculum:
        """All occurrences of `examples` at the beginning (else at the end), everything else in its order.

        Raises ConfigurationError if one of `examples` does not occur.
        """
        sequence = self._sequence
        chosen = np.isin(sequence, self._check_present(examples))
        parts = [sequence[chosen], sequence[~chosen]]
        return self._from_sequence(np.concatenate(parts if front else parts[::-1]))


def _padded(rows: list[list[int]]) -> np.ndarray:
    """[rows, longest], one column at least: shorter rows end with `NOBODY`."""
    kind = np.array([value for row in rows for value in row] or [NOBODY]).dtype
    padded = np.full((len(rows), max(map(len, rows), default=0) or 1), NOBODY, dtype=kind)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def draw_curriculum(
    pool_size: int,
    *,
    subset: int,
    batch: int,
    epochs: int,
    rng: np.random.Generator,
    groups: Sequence[int] | None = None,
) -> Curriculum:
    """Draw `subset` of the pool's examples without replacement and shuffle them anew in each epoch (paper, section 3.1).

    groups: sizes of the consecutive parts of the pool (the tasks of a mixture); `subset` is then drawn from each of them

    Raises ConfigurationError if the subset is larger than the pool or is not a whole number of batches.
    """
    for name, value in (("subset", subset), ("batch", batch), ("epochs", epochs)):
        if value < 1:
            raise ConfigurationError(f"curriculum: {name} must be 1 or more, not {value}")
    sizes = list(groups) if groups else [pool_size]
    if subset > min(sizes):
        raise ConfigurationError(
            f"curriculum: a subset of {subset} cannot be drawn from a pool of {min(sizes)}; lower the subset size or "
            "enlarge the pool"
        )
    total = subset * len(sizes)
    if total % batch:
        raise ConfigurationError(
            f"curriculum: a batch of {batch} does not divide a subset of {total}; only full batches are trained on "
            f"(a subset of {total - total % batch or batch} would do)"
        )
    starts = np.cumsum([0, *sizes[:-1]])
    chosen = np.concatenate([start + rng.permutation(size)[:subset] for start, size in zip(starts, sizes, strict=True)])
    order = np.concatenate([rng.permutation(chosen) for _ in range(epochs)])
    return Curriculum(order.reshape(-1, batch))


def draw_curricula(
    pool: Sequence[object] | int, *, runs: int, subset: int, batch: int, epochs: int, seed: int = 0
) -> list[Curriculum]:
    """`runs` independent random curricula over `pool` (or over a pool of that many examples).

    Curriculum k depends on `seed` and k alone, so that asking for more runs changes none of the earlier ones.
    """
    size = pool if isinstance(pool, int) else len(pool)
    return [
        draw_curriculum(size, subset=subset, batch=batch, epochs=epochs, rng=np.random.default_rng([seed, k]))
        for k in range(runs)
    ]
