"""Instructions: around the prompt only, the same wording for the same example and seed, several wordings in use."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence.common.errors import ConfigurationError
from gptfluence.tasks import TASKS, Example, TaskPool, instructions, mini

texts = st.text(max_size=30)


@given(prompt=texts, target=texts, identity=texts, task=st.sampled_from([*TASKS, "reviews"]), seed=st.integers())
@settings(max_examples=100, deadline=None)
def test_prompt_is_wrapped_and_all_else_kept(prompt, target, identity, task, seed):
    example = Example(identity, prompt, target, task, 1, (" a", target), ("reference",))
    wrapped = instructions.apply(example, seed)
    assert prompt in wrapped.prompt
    assert len(wrapped.prompt) > len(prompt) + 10
    assert replace(wrapped, prompt=prompt) == example
    assert instructions.apply(example, seed) == wrapped


@pytest.mark.parametrize("name", TASKS)
def test_all_wordings_are_used_about_equally(name):
    task = mini.generate(name, pool_size=200, test_size=200)
    wrapped = instructions.apply(task, seed=1)
    counts = Counter(
        after.prompt.replace(before.prompt, "{prompt}") for before, after in zip(task.pool, wrapped.pool, strict=True)
    )
    assert set(counts) == set(instructions.WORDINGS[name])
    assert min(counts.values()) > 25  # 50 expected of 200; standard deviation 6


def test_wording_depends_on_the_example_and_the_seed_not_on_its_neighbours():
    pool = mini.generate("sst2").pool
    whole = instructions.apply(pool, seed=2)
    part = instructions.apply(TaskPool("part", pool.examples[50:60]), seed=2)
    assert part.examples == whole.examples[50:60]
    assert instructions.apply(pool, seed=3).fingerprint != whole.fingerprint


def test_wordings_of_ones_own():
    example = Example("0", "text", " target", "reviews")
    own = {"reviews": ["Say {braces} what you think: {prompt}"]}
    with_own = instructions.apply(example, 0, wordings=own)
    assert with_own.prompt == "Say {braces} what you think: text"
    assert instructions.apply(example, 0).prompt.startswith(tuple(w.split("{")[0] for w in instructions.GENERAL))


@pytest.mark.parametrize("wrong", [["no slot"], ["{prompt} twice {prompt}"], [], "{prompt}"])
def test_wordings_without_the_slot_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="wordings for task 'reviews'"):
        instructions.apply(Example("0", "a", "b", "reviews"), 0, wordings={"reviews": wrong})


@pytest.mark.parametrize(("task", "answers"), [("sst2", ("negative", "positive")), ("boolq", (" no", " yes"))])
def test_a_wording_names_both_answers_or_none(task, answers):
    assert all(len({answer in wording for answer in answers}) == 1 for wording in instructions.WORDINGS[task])


def test_every_wording_stands_before_the_prompt():
    """What follows a prompt moves its end, after which the target comes, away from what the GPT has seen: it starts at 8 nats."""
    for wordings in (*instructions.WORDINGS.values(), instructions.GENERAL):
        assert all(wording.endswith("\n{prompt}") for wording in wordings)
