"""Kinds of curricula that simulators were not fitted on: repeated, sorted and biased ones, and small counterfactuals.

Simulators are fitted on curricula drawn alike. Whoever asks what would have been learned from *other* data asks for
curricula that are not, so they are evaluated on these, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.recording.curriculum import Curriculum, draw_curriculum
from gptfluence.tasks.base import TaskPool

FEW = 16  # examples that a curriculum of kind "few" repeats
BIAS = 0.75  # share of a biased curriculum's examples that are of one class
KINDS = {
    "alike": "drawn as those that simulators are fitted on",
    "few": f"{FEW} examples repeated (an eighth of the subset where that is less)",
    "sorted": "drawn alike, then sorted by label, or by target length where there are no labels",
    "biased": "three quarters of the examples of one class, or with long targets where there are no labels",
    "dropped": "drawn alike, then one example left out everywhere",
    "added": "drawn alike, then one example from outside spread in between, the end cut off",
}


def draw_kind(
    kind: str, pool: TaskPool, *, subset: int, batch: int, epochs: int, rng: np.random.Generator
) -> Curriculum:
    """A random curriculum of one of `KINDS`, with as many steps as one drawn alike (`dropped`: fewer).

    subset, batch, epochs: as in `draw_curriculum`, whose errors this raises. Raises ConfigurationError for an unknown
    kind, one class only (`biased`), or a subset that leaves no example outside (`added`).
    """
    if kind not in KINDS:
        raise ConfigurationError(unknown("kind of curriculum", kind, KINDS))
    alike = draw_curriculum(len(pool), subset=subset, batch=batch, epochs=epochs, rng=rng)
    if kind == "few":
        return _repeated(rng.permutation(len(pool))[: max(1, min(FEW, subset // 8))], alike, rng)
    if kind == "sorted":
        sequence = alike.batches.ravel()
        return Curriculum(sequence[np.argsort(_keys(pool)[sequence], kind="stable")].reshape(alike.batches.shape))
    if kind == "biased":
        return _repeated(_biased(pool, subset, rng), alike, rng)
    if kind == "dropped":
        return alike.without([int(rng.choice(np.unique(alike.batches)))])
    if kind == "added":
        outside = np.setdiff1d(np.arange(len(pool)), alike.batches)
        if not len(outside):
            raise ConfigurationError(
                f"curriculum: a subset of {subset} leaves no example of the pool outside that could be added; lower the "
                "subset size"
            )
        longer = alike.repeated(int(rng.choice(outside)), times=batch * epochs)
        return Curriculum(longer.batches[: alike.steps])
    return alike


def replaced(curriculum: Curriculum, dropped: Sequence[int], rng: np.random.Generator) -> Curriculum:
    """The same curriculum with `dropped` left out and their places taken by others of it, drawn as evenly as can be.

    Every other example keeps its place, so that what changes is the doing of those left out and of who stands in for
    them, not of batches that moved up. Raises ConfigurationError if one does not occur or none would be left.
    """
    left_out = np.fromiter(dropped, dtype=np.int64)
    kept = np.setdiff1d(curriculum.used, left_out)
    absent = np.setdiff1d(left_out, curriculum.used)
    if len(absent):
        raise ConfigurationError(f"curriculum: example {int(absent[0])} is not in this curriculum")
    if not len(kept):
        raise ConfigurationError("curriculum: every example is left out; keep one at least")
    new = curriculum.batches.copy()
    places = np.isin(new, left_out)
    new[places] = _cycled(kept, int(places.sum()), rng)
    return Curriculum(new)


def _keys(pool: TaskPool) -> np.ndarray:
    """int [pool]: the class of each example, or the length of its target in characters where there are no classes."""
    labelled = all(example.label is not None for example in pool)
    return np.array([example.label if labelled else len(example.target) for example in pool])


def _biased(pool: TaskPool, subset: int, rng: np.random.Generator) -> np.ndarray:
    """`subset` positions, three quarters of them of a class drawn by lot, or of the longer half of the targets."""
    keys = _keys(pool)
    if all(example.label is not None for example in pool):
        classes = np.unique(keys)
        if len(classes) < 2:
            raise ConfigurationError(
                f"{pool.name}: all examples are of one class, so no curriculum can be biased towards it; leave the kind "
                "'biased' out"
            )
        favoured = keys == rng.choice(classes)
    else:
        favoured = np.zeros(len(pool), bool)
        favoured[np.argsort(keys, kind="stable")[len(pool) // 2 :]] = True
    many = round(BIAS * subset)
    parts = (np.flatnonzero(favoured), many), (np.flatnonzero(~favoured), subset - many)
    return np.concatenate([_cycled(examples, count, rng) for examples, count in parts if count])


def _cycled(examples: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of `examples` in random order, each again only when all were taken."""
    rounds = -(-count // len(examples))
    return np.concatenate([rng.permutation(examples) for _ in range(rounds)])[:count]


def _repeated(examples: np.ndarray, like: Curriculum, rng: np.random.Generator) -> Curriculum:
    """As long as `like`, of `examples` alone, shuffled anew whenever all were shown."""
    return Curriculum(_cycled(examples, like.batches.size, rng).reshape(like.batches.shape))
