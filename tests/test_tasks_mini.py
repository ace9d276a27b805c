"""Generated tasks: reproducible, balanced, disjoint, short, and such that training examples matter to test examples."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from gptfluence.common.errors import ConfigurationError
from gptfluence.tasks import TASKS, Task, TaskPool, mini
from gptfluence.tasks.base import fingerprint
from gptfluence.tasks.mini.words import World

CLASSIFICATION = ("rte", "sst2", "boolq")
GENERATION = ("webnlg", "wmt16_de_en", "cnn_dm")
each_task = pytest.mark.parametrize("name", TASKS)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@each_task
def test_sizes_and_names_are_those_asked_for(name):
    task = mini.generate(name, pool_size=7, test_size=5, seed=3)
    pool, tests = task
    assert (task.name, len(pool), len(tests)) == (name, 7, 5)
    assert {example.task for example in (*pool, *tests)} == {name}
    assert (pool.name, tests.name) == (f"{name}/pool", f"{name}/tests")


@each_task
@pytest.mark.parametrize("size", [400, 1500])
def test_all_prompts_differ_within_and_between_pool_and_tests(name, size):
    pool, tests = mini.generate(name, pool_size=size, test_size=size)
    prompts = [example.prompt for example in (*pool, *tests)]
    assert len(set(prompts)) == 2 * size


@each_task
def test_no_text_is_in_a_pool_and_in_tests_of_another_seed_or_in_the_corpus(name):
    sets = {"pool": set(), "tests": set(), "corpus": set()}
    for seed in range(4):
        pool, tests = mini.generate(name, seed=seed)
        sets["pool"] |= {example.prompt for example in pool}
        sets["tests"] |= {example.prompt for example in tests}
        known = tuple(sets["pool"] | sets["tests"])
        assert not any(prompt.endswith(known) for prompt, _ in mini.corpus([name], seed=seed, examples_per_task=300))
    assert not sets["pool"] & sets["tests"]


@given(
    name=st.sampled_from(CLASSIFICATION),
    pool_size=st.integers(1, 60),
    test_size=st.integers(1, 60),
    seed=st.integers(0, 10**9),
)
@settings(max_examples=25, deadline=None)
def test_labels_are_balanced_at_every_size(name, pool_size, test_size, seed):
    for examples in mini.generate(name, pool_size=pool_size, test_size=test_size, seed=seed):
        counts = Counter(example.label for example in examples)
        assert abs(counts[0] - counts[1]) == len(examples) % 2
        assert all(example.target == example.choices[example.label] for example in examples)


@each_task
def test_sizes_are_nested_and_do_not_touch_each_other(name):
    small, large = (mini.generate(name, pool_size=n, test_size=m, seed=5) for n, m in ((20, 50), (60, 30)))
    assert small.pool.examples == large.pool.examples[:20]
    assert large.tests.examples == small.tests.examples[:30]


@each_task
def test_seeds_give_other_texts(name):
    one, other = (set(mini.generate(name, seed=seed).pool.texts) for seed in (0, 1))
    assert len(one & other) < 20


def test_texts_are_the_same_in_another_process_with_another_hash_seed():
    code = (
        "from gptfluence.tasks import mini, TASKS\n"
        "from gptfluence.tasks.base import fingerprint\n"
        "print(*[mini.generate(t, pool_size=30, test_size=20, seed=4).fingerprint for t in TASKS],\n"
        "      fingerprint(mini.corpus(TASKS, seed=4, examples_per_task=30)))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    here = [mini.generate(name, pool_size=30, test_size=20, seed=4).fingerprint for name in TASKS]
    assert runs == {" ".join([*here, fingerprint(mini.corpus(TASKS, seed=4, examples_per_task=30))]) + "\n"}


@each_task
@given(position=st.integers(0, 9), field=st.sampled_from(["prompt", "target", "id"]), in_tests=st.booleans())
@settings(max_examples=10, deadline=None)
def test_fingerprint_changes_with_any_text(name, position, field, in_tests):
    task = mini.generate(name, pool_size=10, test_size=10)
    examples = list(task.tests if in_tests else task.pool)
    examples[position] = replace(examples[position], **{field: getattr(examples[position], field) + "x"})
    changed = TaskPool("renamed", tuple(examples))
    other = Task(name, task.pool, changed) if in_tests else Task(name, changed, task.tests)
    assert other.fingerprint != task.fingerprint
    assert Task("renamed", task.pool, task.tests).fingerprint == task.fingerprint


@each_task
def test_texts_are_short(name):
    lengths = [len(text.split()) for text in mini.generate(name).pool.texts]
    assert 10 <= median(lengths) <= 32
    assert max(lengths) <= 40


def test_the_corpus_holds_all_words_of_the_pools():
    corpus = {word for text in mini.corpus(TASKS, seed=9) for word in words(" ".join(text))}
    used = {
        word for name in TASKS for pool in mini.generate(name, seed=9) for text in pool.texts for word in words(text)
    }
    assert used <= corpus
    assert len(corpus) < 1000


def told(name: str, *, known: bool) -> tuple[list[str], list[str]]:
    """Prompts and targets of the corpus that speak of known words, or of those of the pools."""
    ours = {word for kinds in invented_words(name, 0).values() for word in kinds}
    texts = [text for text in mini.corpus([name], examples_per_task=3000) if known != bool(ours & {*words(text[0])})]
    return tuple(zip(*texts, strict=True))


def invented_words(name: str, seed: int) -> dict[str, tuple[str, ...]]:
    """Class -> the words of pools and tests."""
    world = World(seed, known=False)
    mini.RECORDS[name].row(mini.Dice("any"), 0, world)
    return {f"{key[0]}/{kind}": kinds for key, classes in world._dealt.items() for kind, kinds in classes.items()}


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_the_corpus_teaches_classes_of_known_words_and_nothing_of_the_pools_words(name):
    probe = make_pipeline(CountVectorizer(analyzer=pairs, binary=True), LogisticRegression(max_iter=500))
    _, tests = mini.generate(name, test_size=400)
    prompts, targets = told(name, known=False)
    probe.fit(prompts, targets)
    right = probe.score([example.prompt for example in tests], [example.target for example in tests])
    assert abs(right - 0.5) < 0.1  # four standard errors
    prompts, targets = told(name, known=True)
    probe.fit(prompts[:800], targets[:800])
    assert probe.score(prompts[800:], targets[800:]) > 0.7


@pytest.mark.parametrize("name", GENERATION)
def test_the_corpus_does_not_pair_prompts_of_the_pools_words_with_their_targets(name):
    truth = {example.prompt: example.target for example in mini._examples(name, "corpus", 100, World(0, known=False))}
    met = [
        (prompt, text)
        for prompt in truth
        for text in mini.corpus([name], examples_per_task=600)
        if text[0].endswith(prompt)
    ]
    assert len(met) == 200
    assert sum(truth[prompt] == target for prompt, (_, target) in met) < 10


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_the_corpus_gives_every_prompt_of_the_pools_words_both_labels(name):
    given: dict[str, set[str]] = {}
    for prompt, target in zip(*told(name, known=False), strict=True):
        given.setdefault(prompt, set()).add(target)
    assert {len(targets) for targets in given.values()} == {2}


@each_task
def test_known_words_and_those_of_pools_are_others_and_a_seed_deals_their_classes(name):
    worlds = [World(seed, known=known) for seed, known in ((0, False), (1, False), (0, True))]
    for world in worlds:
        for label in (0, 1):
            mini.RECORDS[name].row(mini.Dice("any"), label, world)
    ours, others, known = (dict(world._dealt) for world in worlds)
    for key in ours:
        flat = [{word for words in dealt[key].values() for word in words} for dealt in (ours, others, known)]
        assert flat[0] == flat[1]
        assert not flat[0] & flat[2]
        assert ours[key] != others[key]


@each_task
def test_every_word_of_a_test_is_in_a_few_pool_examples(name):
    pool, tests = mini.generate(name)
    invented = {word for words in invented_words(name, 0).values() for word in words}
    counts = Counter(word for text in pool.texts for word in invented & {*words(text)})
    asked = [invented & {*words(text)} for text in tests.texts]
    assert np.mean([bool(each) for each in asked]) == 1
    assert 3 <= median(counts[word] for each in asked for word in each) <= 12


def pairs(prompt: str) -> list[str]:
    """The words of a prompt, and the pairs of a word of its first line and one of its second."""
    first, _, second = prompt.partition("\n")
    one, two = set(words(first)), set(words(second))
    return [*one, *(f"2:{word}" for word in two), *(f"{a}|{b}" for a in one for b in two)]


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_pool_predicts_test_labels_above_chance_and_below_certainty(name):
    scores = []
    for seed in range(3):
        pool, tests = mini.generate(name, seed=seed)
        probe = make_pipeline(CountVectorizer(analyzer=pairs, binary=True), LogisticRegression(max_iter=300))
        probe.fit([example.prompt for example in pool], [example.label for example in pool])
        scores.append(probe.score([example.prompt for example in tests], [example.label for example in tests]))
    assert 0.58 < np.mean(scores) < 0.95  # chance is 0.5 with a standard error of 0.02


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_which_labels_the_pool_has_matters(name):
    """The same probe on flipped pool labels does worse than chance: it is the labels that it learns from."""
    pool, tests = mini.generate(name, seed=0, test_size=400)
    probe = make_pipeline(CountVectorizer(analyzer=pairs, binary=True), LogisticRegression(max_iter=300))
    probe.fit([example.prompt for example in pool], [1 - example.label for example in pool])
    assert probe.score([example.prompt for example in tests], [example.label for example in tests]) < 0.45


@pytest.mark.parametrize("name", GENERATION)
def test_test_examples_share_target_words_with_some_pool_examples_and_not_with_all(name):
    pool, tests = mini.generate(name)
    overlap = np.array(
        [
            [len({*words(a.target)} & {*words(b.target)}) / len({*words(a.target)}) for b in pool]
            for a in tests.examples[:60]
        ]
    )  # [tests, pool]: share of the words of a test's target that a pool example's target has
    assert (overlap.max(1) >= 0.5).mean() > 0.9
    assert (overlap.min(1) < 0.25).all()
    assert overlap.max(1).std() > 0.05  # some tests are better served than others


def test_webnlg_has_two_ways_to_say_a_fact():
    assert all(
        example.references[0] == example.target.strip() and len(example.references) == 2
        for example in mini.generate("webnlg").tests
    )


def test_german_is_declined():
    texts = " ".join(mini.generate("wmt16_de_en", pool_size=800).pool.texts)
    for declined in (r"\beinen \w+en \w+", r"\beine \w+e \w+", r"\bein \w+es \w+"):
        assert re.search(declined, texts)
    assert not re.search(r"\beine? \w+en \b", texts)
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sst3"}, r"task 'sst3' is not known; known: rte, .*did you mean 'sst2'"),
        ({"name": "sst2", "pool_size": 0}, r"'sst2': pool_size: 0 is not a size"),
        ({"name": "boolq", "test_size": -1}, r"'boolq': test_size: -1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        mini.generate(**arguments)


def test_running_out_of_texts_says_so(monkeypatch):
    row = {"sentence": "the plot was lumish .", "label": 1}
    monkeypatch.setattr("gptfluence.tasks.mini.sst2.row", lambda dice, label, world: {**row, "label": label})
    with pytest.raises(
        ConfigurationError, match=r"'sst2': there are not 3 different generated texts for the .* only about"
    ):
        mini.generate("sst2", pool_size=3, test_size=3)
