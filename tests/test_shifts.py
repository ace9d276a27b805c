"""Kinds of curricula: of the shape that was asked for, what their name says, and the same for the same seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.curriculum import Curriculum, draw_curriculum
from gptfluence.recording.kinds import KINDS, draw_kind, replaced
from gptfluence.tasks.base import Example, TaskPool

SIZE = 60


def pool_of(labelled: bool, size: int = SIZE) -> TaskPool:
    """Two classes alternating, or targets of all lengths."""
    label = (lambda i: {"label": i % 2, "choices": (" no", " yes")}) if labelled else (lambda i: {})
    return TaskPool(
        "toy/pool", tuple(Example(f"e{i}", f"p{i}", "x" * (1 + i * 7 % size), **label(i)) for i in range(size))
    )


def drawn(kind: str, labelled: bool, seed: int, batch: int = 4, epochs: int = 3, subset: int = 32) -> Curriculum:
    rng = np.random.default_rng(seed)
    return draw_kind(kind, pool_of(labelled), subset=subset, batch=batch, epochs=epochs, rng=rng)


def key(pool: TaskPool) -> np.ndarray:
    return np.array([example.label if example.label is not None else len(example.target) for example in pool])


shapes = {
    "labelled": st.booleans(),
    "seed": st.integers(0, 1000),
    "batch": st.sampled_from([1, 2, 4, 8]),
    "epochs": st.integers(1, 4),
    "subset": st.sampled_from([16, 32, 48]),
}


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), **shapes)
def test_every_kind_is_as_long_as_one_drawn_alike_and_depends_on_the_seed_alone(kind, **shape):
    curriculum = drawn(kind, **shape)
    steps = shape["subset"] * shape["epochs"] // shape["batch"]
    fewer = -(-shape["epochs"] // shape["batch"]) if kind == "dropped" else 0
    assert (curriculum.steps, curriculum.batch_size) == (steps - fewer, shape["batch"])
    assert curriculum == drawn(kind, **shape)
    assert curriculum.batches.max() < SIZE


@settings(max_examples=30, deadline=None)
@given(**shapes)
def test_each_kind_is_what_its_name_says(**shape):
    alike, total = drawn("alike", **shape), shape["subset"] * shape["epochs"]
    keys = key(pool_of(shape["labelled"]))
    few, counts = np.unique(drawn("few", **shape).batches, return_counts=True)
    assert len(few) == shape["subset"] // 8
    assert counts.max() - counts.min() <= 1
    ordered = drawn("sorted", **shape).batches.ravel()
    assert (np.diff(keys[ordered]) >= 0).all()
    assert sorted(ordered) == sorted(alike.batches.ravel())  # the same examples as often
    dropped = drawn("dropped", **shape)
    assert len(np.setdiff1d(alike.batches, dropped.batches)) >= 1
    added = drawn("added", **shape)
    new, times = np.unique(added.batches[~np.isin(added.batches, alike.batches)], return_counts=True)
    assert len(new) == 1
    assert 1 <= times[0] <= shape["batch"] * shape["epochs"]
    rest = added.batches[added.batches != new[0]]
    np.testing.assert_array_equal(rest, alike.batches.ravel()[: total - times[0]])  # in the same order


@pytest.mark.parametrize("labelled", [True, False])
def test_a_biased_curriculum_has_three_quarters_of_one_kind(labelled: bool):
    seen = set()
    for seed in range(12):
        curriculum = drawn("biased", labelled, seed)
        favoured = key(pool_of(labelled))[curriculum.batches.ravel()]
        high = favoured == 1 if labelled else favoured > SIZE // 2
        share = high.mean()
        seen.add(bool(share > 0.5))
        assert max(share, 1 - share) == pytest.approx(0.75)
    assert seen == ({True, False} if labelled else {True})  # either class, but long targets


def test_a_rare_class_is_repeated_as_evenly_as_can_be():
    rare = TaskPool("rare", tuple(replace(e, label=int(i < 5)) for i, e in enumerate(pool_of(True))))
    for seed in range(6):
        rng = np.random.default_rng(seed)
        curriculum = draw_kind("biased", rare, subset=32, batch=4, epochs=1, rng=rng)
        few, counts = np.unique(curriculum.batches[curriculum.batches < 5], return_counts=True)
        assert len(few) == 5
        assert counts.max() - counts.min() <= 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 31))
def test_replacing_keeps_every_other_place_and_takes_stand_ins_evenly(seed: int, k: int):
    rng = np.random.default_rng(seed)
    curriculum = draw_curriculum(SIZE, subset=32, batch=4, epochs=3, rng=rng)
    dropped = rng.permutation(np.unique(curriculum.batches))[:k]
    new = replaced(curriculum, dropped.tolist(), rng)
    gone = np.isin(curriculum.batches, dropped)
    assert new.batches.shape == curriculum.batches.shape
    np.testing.assert_array_equal(new.batches[~gone], curriculum.batches[~gone])
    assert not np.isin(new.batches, dropped).any()
    counts = np.unique(new.batches, return_counts=True)[1]
    assert counts.max() - counts.min() <= 1  # all were shown equally often before


def test_what_cannot_be_drawn_is_said():
    pool = pool_of(True)
    options = {"subset": 32, "batch": 4, "epochs": 1, "rng": np.random.default_rng(0)}
    with pytest.raises(ConfigurationError, match=r"'sortd' is not known; known: alike, few.*did you mean 'sorted'"):
        draw_kind("sortd", pool, **options)
    with pytest.raises(ConfigurationError, match="leaves no example of the pool outside"):
        draw_kind("added", pool, **{**options, "subset": SIZE})
    one = TaskPool("one", tuple(replace(example, label=0) for example in pool))
    with pytest.raises(ConfigurationError, match="all examples are of one class"):
        draw_kind("biased", one, **options)
    curriculum = Curriculum(np.array([[1, 2]]))
    with pytest.raises(ConfigurationError, match="example 3 is not in this curriculum"):
        replaced(curriculum, [3], options["rng"])
    with pytest.raises(ConfigurationError, match="every example is left out"):
        replaced(curriculum, [1, 2], options["rng"])
