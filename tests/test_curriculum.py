"""Curricula: drawn as in section 3.1, reproducible, changed by leaving out and repeating as the docstrings say."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.curriculum import Curriculum, draw_curricula
from gptfluence.recording.dynamics import stack_curricula


@st.composite
def draws(draw) -> dict:
    """Arguments of `draw_curricula` that are allowed."""
    batch, batches = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    subset = batch * batches
    return {
        "pool": subset + draw(st.integers(0, 20)),
        "subset": subset,
        "batch": batch,
        "epochs": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 2**31)),
    }


curricula = draws().map(lambda options: draw_curricula(runs=1, **options)[0])


def sequence(curriculum: Curriculum) -> list[int]:
    return curriculum.batches.ravel().tolist()


@given(draws())
def test_every_epoch_holds_the_same_distinct_examples_of_the_pool(options):
    for curriculum in draw_curricula(runs=2, **options):
        assert curriculum.batches.shape == (options["epochs"] * options["subset"] // options["batch"], options["batch"])
        epochs = curriculum.batches.reshape(options["epochs"], options["subset"])
        chosen = set(epochs[0].tolist())
        assert len(chosen) == options["subset"]
        assert chosen <= set(range(options["pool"]))
        assert all(sorted(epoch.tolist()) == sorted(chosen) for epoch in epochs)


@given(draws(), st.integers(1, 4), st.integers(0, 3))
def test_more_runs_change_none_of_the_earlier_ones(options, runs, more):
    assert draw_curricula(runs=runs + more, **options)[:runs] == draw_curricula(runs=runs, **options)


def test_runs_epochs_and_seeds_differ():
    drawn = [
        curriculum
        for seed in range(3)
        for curriculum in draw_curricula(100, runs=3, subset=32, batch=4, epochs=2, seed=seed)
    ]
    assert len(set(drawn)) == 9
    first, second = drawn[0].batches.reshape(2, 32)
    assert not np.array_equal(first, second)


def test_every_example_of_the_pool_is_drawn_as_often_as_any_other():
    drawn = draw_curricula(20, runs=2000, subset=8, batch=4, epochs=1)
    counts = Counter(example for curriculum in drawn for example in sequence(curriculum))
    assert len(counts) == 20
    assert max(abs(count - 800) for count in counts.values()) < 5 * np.sqrt(2000 * 0.4 * 0.6)


@given(curricula, st.data())
def test_without_leaves_out_the_examples_and_keeps_the_order(curriculum, data):
    present = sorted(set(sequence(curriculum)))
    dropped = data.draw(st.sets(st.sampled_from(present)))
    kept = [example for example in sequence(curriculum) if example not in dropped]
    if len(kept) < curriculum.batch_size:
        with pytest.raises(ConfigurationError, match="less than one batch"):
            curriculum.without(dropped)
        return
    shorter = curriculum.without(dropped)
    assert sequence(shorter) == kept[: len(kept) // curriculum.batch_size * curriculum.batch_size]
    assert shorter.batch_size == curriculum.batch_size


@given(curricula)
def test_without_nothing_is_the_same_curriculum(curriculum):
    assert curriculum.without([]) == curriculum


@given(curricula)
def test_without_an_example_that_does_not_occur_is_an_error(curriculum):
    absent = max(sequence(curriculum)) + 1
    with pytest.raises(ConfigurationError, match=f"example {absent} is not in this curriculum"):
        curriculum.without([absent])


@given(curricula, st.integers(0, 50), st.integers(1, 9))
def test_repeated_adds_occurrences_of_one_example_and_moves_no_other(curriculum, example, times):
    longer = sequence(curriculum.repeated(example, times))
    before, total = sequence(curriculum), len(sequence(curriculum)) + times
    assert len(longer) == total // curriculum.batch_size * curriculum.batch_size
    others = [item for item in before if item != example]
    assert [item for item in longer if item != example] == others[: len(longer) - longer.count(example)]
    cut = total - len(longer)
    assert before.count(example) + times - cut <= longer.count(example) <= before.count(example) + times


def test_repetitions_are_spread_evenly():
    curriculum = Curriculum(np.zeros((30, 4), dtype=int)).repeated(7, 4)
    places = np.flatnonzero(curriculum.batches.ravel() == 7)
    np.testing.assert_array_equal(np.diff(places), 25)  # 24 examples between any two


@pytest.mark.parametrize("times", [0, -1])
def test_repeating_less_than_once_is_an_error(times):
    with pytest.raises(ConfigurationError, match="times must be 1 or more"):
        Curriculum(np.array([[0, 1]])).repeated(0, times)


@given(curricula)
def test_equal_batches_make_equal_curricula(curriculum):
    copy = Curriculum(curriculum.batches.astype(np.int64))
    assert copy == curriculum
    assert hash(copy) == hash(curriculum)
    assert copy.fingerprint == curriculum.fingerprint


def test_the_same_order_in_other_batches_is_another_curriculum():
    order = np.arange(12)
    by_four, by_three = Curriculum(order.reshape(3, 4)), Curriculum(order.reshape(4, 3))
    assert by_four != by_three
    assert by_four.fingerprint != by_three.fingerprint


def test_a_curriculum_cannot_be_changed():
    batches = np.array([[0, 1], [2, 3]])
    curriculum = Curriculum(batches)
    with pytest.raises(ValueError, match="read-only"):
        curriculum.batches[0, 0] = 5
    batches[0, 0] = 5  # the caller's own array stays writable, and its own
    assert curriculum.batches[0, 0] == 0


def test_a_curriculum_is_no_other_array_of_the_caller():
    batches = np.zeros((2, 2), dtype=np.int32)
    curriculum = Curriculum(batches)
    batches[0, 0] = 5
    assert curriculum.batches[0, 0] == 0


@pytest.mark.parametrize(
    "batches",
    [np.array([0, 1]), np.array([[]]), [[0.5, 1.0], [2]], []],
    ids=["one axis", "empty", "fractions", "no step"],
)
def test_what_is_no_curriculum_is_refused(batches):
    with pytest.raises(ConfigurationError, match="curriculum: "):
        Curriculum(batches)


# --- steps of any size, and places left empty --------------------------------------------------------------------------

ragged = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6).filter(any)


@given(ragged, st.integers(0, 3))
def test_a_step_may_have_any_number_of_examples(steps, more):
    """However the rows are filled up."""
    curriculum = Curriculum(steps)
    assert [curriculum.examples(row) for row in range(curriculum.steps)] == steps
    assert curriculum.used.tolist() == sorted({example for step in steps for example in step})
    array = np.full((len(steps), 4 + more), -1)
    for row, step in zip(array, steps, strict=True):
        row[len(row) - len(step) :] = step
    assert Curriculum(array) == curriculum
    assert Curriculum(array).fingerprint == curriculum.fingerprint


@given(curricula)
def test_a_curriculum_of_full_batches_has_the_hash_that_it_always_had(curriculum):
    text = f"{curriculum.steps}x{curriculum.batch_size}:".encode() + curriculum.batches.astype("<i4").tobytes()
    assert curriculum.fingerprint == hashlib.sha256(text).hexdigest()[:12]


@given(ragged, st.data())
def test_masking_leaves_every_other_example_where_it_is(steps, data):
    curriculum = Curriculum(steps)
    hidden = data.draw(st.sets(st.sampled_from(curriculum.used.tolist())))
    masked = curriculum.masked(hidden)
    shown = [[example for example in step if example not in hidden] for step in steps]
    assert [masked.examples(row) for row in range(masked.steps)] == shown
    assert masked.batches.shape == curriculum.batches.shape
    assert (masked == curriculum) == (not hidden)
    assert masked.highest == curriculum.highest, "who was masked must be known: the others keep their weight by it"
    assert not hidden & set(masked.used.tolist())
    if hidden:
        with pytest.raises(ConfigurationError, match="is not in this curriculum"):
            masked.masked(hidden)


@given(ragged, st.data())
def test_steps_keep_their_sizes_when_examples_move(steps, data):
    curriculum = Curriculum(steps)
    example = data.draw(st.sampled_from(curriculum.used.tolist()))
    sizes, flat = [len(step) for step in steps], [each for step in steps for each in step]
    front = curriculum.moved([example], front=True)
    expected = [each for each in flat if each == example] + [each for each in flat if each != example]
    assert [len(front.examples(row)) for row in range(front.steps)] == sizes
    assert [each for row in range(front.steps) for each in front.examples(row)] == expected
    longer = curriculum.repeated(example, len(flat))  # so long as twice, in which the sizes come once more
    assert [len(longer.examples(row)) for row in range(longer.steps)] == 2 * sizes


def test_curricula_with_equally_many_steps_are_stacked():
    curricula = [Curriculum([[1, 2, 3], []]), Curriculum([[4], [5]]).masked([4])]
    np.testing.assert_array_equal(stack_curricula(curricula), [[[1, 2, 3], [-1, -1, -1]], [[-6, -1, -1], [5, -1, -1]]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": 12}, "a subset of 12 cannot be drawn from a pool of 10"),
        ({"subset": 7}, r"a batch of 4 does not divide a subset of 7.*a subset of 4 would do"),
        ({"batch": 0}, "batch must be 1 or more, not 0"),
        ({"epochs": 0}, "epochs must be 1 or more, not 0"),
    ],
)
def test_impossible_draws_say_what_is_wrong(options, message):
    with pytest.raises(ConfigurationError, match=message):
        draw_curricula(10, **{"runs": 1, "subset": 8, "batch": 4, "epochs": 1, **options})
