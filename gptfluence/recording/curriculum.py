"""A curriculum: which training examples a GPT sees, in which batch, in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gptfluence.common.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class Curriculum:
    """`batches`: int32 [steps, batch], positions in a pool. The batch of row t-1 makes update t (c_t in the paper).

    Two curricula are equal if their batches are.
    """

    batches: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        batches = np.ascontiguousarray(self.batches)
        if batches.ndim != 2 or batches.size == 0 or not np.issubdtype(batches.dtype, np.integer):
            raise ConfigurationError(
                f"curriculum: batches must be whole numbers of shape [steps, batch], not {batches.dtype} "
                f"{list(batches.shape)}"
            )
        if batches.min() < 0:
            raise ConfigurationError("curriculum: example positions must not be negative")
        object.__setattr__(self, "batches", batches.astype(np.int32))
        self.batches.flags.writeable = False

    @property
    def steps(self) -> int:
        return self.batches.shape[0]

    @property
    def batch_size(self) -> int:
        return self.batches.shape[1]

    @property
    def fingerprint(self) -> str:
        shape = f"{self.steps}x{self.batch_size}:".encode()
        return hashlib.sha256(shape + self.batches.astype("<i4").tobytes()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Curriculum) and np.array_equal(self.batches, other.batches)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Curriculum({self.steps} steps x {self.batch_size} examples, {self.fingerprint})"

    def _check_present(self, examples: Iterable[int]) -> np.ndarray:
        """Each of `examples` once, int64. Raises ConfigurationError if one does not occur."""
        asked = np.unique(np.fromiter(examples, dtype=np.int64))
        absent = asked[~np.isin(asked, self.batches)]
        if absent.size:
            some = ", ".join(map(str, np.unique(self.batches)[:8]))
            raise ConfigurationError(
                f"curriculum: example {int(absent[0])} is not in this curriculum; choose one that is: {some}, ..."
            )
        return asked

    def _from_sequence(self, sequence: np.ndarray) -> Curriculum:
        steps = len(sequence) // self.batch_size
        if steps == 0:
            raise ConfigurationError(
                f"curriculum: only {len(sequence)} examples are left, less than one batch of {self.batch_size}"
            )
        return Curriculum(sequence[: steps * self.batch_size].reshape(steps, self.batch_size))

    def without(self, examples: Iterable[int]) -> Curriculum:
        """The same order with `examples` left out: those behind move up, and a last batch that is not full is dropped.

        Raises ConfigurationError if one of `examples` does not occur.
        """
        dropped = self._check_present(examples)
        sequence = self.batches.ravel()
        return self._from_sequence(sequence[~np.isin(sequence, dropped)])

    def repeated(self, example: int, times: int) -> Curriculum:
        """The same order with `times` more occurrences of `example`, spread evenly; a last batch not full is dropped."""
        if times < 1:
            raise ConfigurationError(f"curriculum: times must be 1 or more, not {times}")
        sequence = self.batches.ravel()
        places = np.linspace(0, len(sequence), times + 2)[1:-1].astype(int)
        return self._from_sequence(np.insert(sequence, places, example))

    def moved(self, examples: Sequence[int], *, front: bool) -> Curriculum:
        """All occurrences of `examples` at the beginning (else at the end), everything else in its order.

        Raises ConfigurationError if one of `examples` does not occur.
        """
        sequence = self.batches.ravel()
        chosen = np.isin(sequence, self._check_present(examples))
        parts = [sequence[chosen], sequence[~chosen]]
        return Curriculum(np.concatenate(parts if front else parts[::-1]).reshape(self.batches.shape))


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
