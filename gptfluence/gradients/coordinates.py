"""Which coordinates of a GPT's parameters are kept, and what is taken at them: arrays, and files of them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np

from gptfluence.tasks.base import fingerprint

SAME_WAY = 0.01  # reference runs this close, relative to how far they went, are the same but for rounding
CHUNK = 2**22  # coordinates that are looked at together
UNIFORM_SHARE = 0.05  # of the sample is drawn from all coordinates alike, for what unseen examples depend on


@dataclass(frozen=True)
class Coordinates:
    """The sampled coordinates of the trainable parameters, and the checkpoints at which gradients are taken.

    index: int64 [n], positions in the concatenated parameters; parameter: int32 [n], which parameter each belongs to
    weight: float32 [n], 1 / (n p_c) times how often it was drawn; 1 if all coordinates are kept
    initial: float32 [n], value before training; decayed: bool [n], whether weight decay acts on it
    steps: int64 [checkpoints], 0 first; displacement: float32 [checkpoints, n], parameters there less the initial ones
    """

    index: np.ndarray
    parameter: np.ndarray
    weight: np.ndarray
    initial: np.ndarray
    decayed: np.ndarray
    steps: np.ndarray
    displacement: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def agrees(self, other: Coordinates) -> bool:
        """Whether these are the same coordinates, and the reference run went the same way, to rounding."""
        if not np.array_equal(self.index, other.index) or self.displacement.shape != other.displacement.shape:
            return False
        apart, size = (np.linalg.norm(d, axis=1) for d in (self.displacement - other.displacement, self.displacement))
        return bool((apart <= SAME_WAY * size).all())

    @cached_property
    def digest(self) -> str:
        """Which coordinates these are, and where the reference run went; equal settings need not draw the same everywhere."""
        return digest_of(self.index, self.displacement)


@dataclass(frozen=True)
class Tangents:
    """Outputs and gradients of a set of examples, in order: outputs of a token and tokens of an example are adjacent.

    outputs: float32 [checkpoints, outputs], logits
    gradients: float16 [checkpoints, outputs, n] at the sampled coordinates; to be multiplied by scale: float32
        [checkpoints, outputs]
    token: int64 [outputs], the scored token each belongs to; target: bool [outputs], whether it is that token's target
    word: int64 [outputs], the vocabulary's token whose logit it is
    example: int64 [tokens], the example each scored token belongs to
    """

    outputs: np.ndarray = field(repr=False)
    gradients: np.ndarray = field(repr=False)
    scale: np.ndarray = field(repr=False)
    token: np.ndarray = field(repr=False)
    target: np.ndarray = field(repr=False)
    word: np.ndarray = field(repr=False)
    example: np.ndarray = field(repr=False)

    @property
    def examples(self) -> int:
        return int(self.example[-1]) + 1


def sample(importance: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Systematic sampling: coordinate c is drawn n p_c times, rounded up or down, with that expectation.

    importance: float64 [parameters' coordinates], not negative, its sum above 0; size: n.
    Returns the coordinates that were drawn, int64, and their weights: how often each was drawn / (n p_c).
    """
    total, first = importance.sum(), np.random.default_rng([seed, 1]).random()
    end, before = 0.0, np.floor(first)
    index, weight = [], []
    # a part at a time: arrays of hundreds of millions would fill a small machine's memory
    for start in range(0, len(importance), CHUNK):
        p = (1 - UNIFORM_SHARE) * importance[start : start + CHUNK] / total + UNIFORM_SHARE / len(importance)
        ends = np.cumsum(np.concatenate([[end], p * size]))
        floors = np.floor(ends[1:] + first)
        drawn = np.diff(floors, prepend=before).astype(int)
        end, before = ends[-1], floors[-1]
        chosen = np.flatnonzero(drawn)
        index.append(start + chosen)
        weight.append(drawn[chosen] / (size * p[chosen]))
    return np.concatenate(index), np.concatenate(weight)


def digest_of(*arrays: np.ndarray) -> str:
    """Of what the rows and columns of other arrays mean."""
    return fingerprint([array.tolist() for array in arrays])


def to_arrays(prefix: str, value: Coordinates | Tangents) -> dict[str, np.ndarray]:
    """The arrays of `value`, by name, for a safetensors file."""
    return {f"{prefix}.{item.name}": getattr(value, item.name) for item in fields(value)}


def from_arrays(prefix: str, kind: type, arrays: dict[str, np.ndarray]) -> Coordinates | Tangents:
    """The opposite of `to_arrays`. Raises KeyError if an array is missing."""
    return kind(**{item.name: arrays[f"{prefix}.{item.name}"] for item in fields(kind)})
