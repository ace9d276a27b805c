"""BLEU and ROUGE-L of texts in any script: equal texts score most, English ones as ever, and what means nothing is said."""

from __future__ import annotations

import json
import unicodedata
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from gptfluence.recording import store, text_metrics
from gptfluence.recording.dynamics import Source
from gptfluence.recording.record import Wanted
from gptfluence.recording.settings import Generation, Recording
from gptfluence.recording.text_metrics import score
from gptfluence.tasks import Example, Task, TaskPool, mini

EQUAL = [
    "привет мир как дела", "今天天气很好，我们去公园。", "日本語のテキスト", "आज मौसम अच्छा है।", "καλημέρα κόσμε", "안녕하세요 세계",
    "สวัสดีชาวโลก", "مرحبا بالعالم", "größere Häuser", "שלום עולם", "\U0001f600\U0001f600", "...", "<skipped>", "a", "é",
]  # fmt: skip


@pytest.mark.parametrize("text", EQUAL)
@pytest.mark.parametrize("tokenization", [None, "english", "unicode"])
def test_equal_texts_of_any_script_have_the_largest_score(text, tokenization):
    for written in (text, unicodedata.normalize("NFD", text) if tokenization != "english" else text):
        assert score("bleu", written, ["other", f" {text}"], tokenization) == pytest.approx(100)
        assert score("rouge_l", written, ["other", f" {text}"], tokenization) == 1


def test_words_of_any_script_are_compared_whole():
    assert score("rouge_l", "größere Häuser", ["grüne Häfen"]) == 0
    assert score("rouge_l", "привет мир", ["привет всем"]) == pytest.approx(1 / 2)
    assert score("rouge_l", "今天天气好", ["今天天气坏"]) == pytest.approx(4 / 5)
    chinese, other = "今天天气很好，我们去公园散步。", "今天天气不好，我们不去公园。"
    theirs = BLEU(effective_order=True, tokenize="zh").sentence_score(chinese, [other]).score
    assert score("bleu", chinese, [other]) == pytest.approx(theirs)
    german, other = "Er sah größere Häuser als hier.", "Er sah grüne Häfen als hier."
    assert score("bleu", german, [other]) == BLEU(effective_order=True).sentence_score(german, [other]).score


@given(text=st.text(st.characters(max_codepoint=127)), other=st.text(st.characters(max_codepoint=127)))
@settings(max_examples=60, deadline=None)
def test_on_ascii_both_ways_are_the_libraries_own(text, other):
    libraries = RougeScorer(["rougeL"]).score(other, text)["rougeL"].fmeasure
    bleu = BLEU(effective_order=True).sentence_score(text, [other]).score
    for tokenization in (None, "english", "unicode"):
        if text.strip() != other.strip():
            assert score("rouge_l", text, [other], tokenization) == libraries
            assert score("bleu", text, [other], tokenization) == bleu


@pytest.mark.parametrize("name", mini.CORPUS_TASKS)
def test_generated_tasks_are_scored_the_english_way(name):
    assert text_metrics.tokenization_of(mini.generate(name, pool_size=1, test_size=60).tests) == "english"


def of(*targets: str) -> TaskPool:
    return TaskPool("own/tests", tuple(Example(str(k), "?", f" {target}") for k, target in enumerate(targets)))


def test_a_few_foreign_names_do_not_change_how_english_texts_are_scored():
    english = ["She went to the town on the coast and stayed there for a year"] * 5
    assert text_metrics.tokenization_of(of("She came from São Paulo", *english)) == "english"
    assert text_metrics.tokenization_of(of("Er fährt morgen früh in die Stadt und kommt am Abend zurück")) == "unicode"


def test_scores_that_mean_nothing_are_counted(recwarn):
    warn = text_metrics.warn_of_meaningless
    warn(of("one", "привет"), ["loss", "bleu"], "english")
    warn(of("one", "привет", "你好"), ["bleu", "rouge_l"], "unicode")
    assert not recwarn.list
    warn(of("one", "...", "привет мир a", "你好你好"), ["loss", "bleu", "rouge_l"], "english")
    wordless, other, unspaced = (str(warning.message) for warning in recwarn.list)
    assert "own/tests: 2 of 4 tests with free text (the first: '1') have no word in any reference" in wordless
    assert "1 of 4 tests with free text (the first: '2') have references with mostly other letters than a-z" in other
    assert "1 of 4 tests with free text (the first: '3') have references without blanks" in unspaced


def test_the_spec_names_how_texts_are_scored_where_it_is_not_the_english_way():
    settings, russian, english = Generation(), of("привет мир"), of("hello world")
    assert "tokenization" not in text_metrics.with_tokenization(settings, english).model_dump()
    assert text_metrics.with_tokenization(settings, russian).model_dump()["tokenization"] == "unicode"
    forced = Generation(tokenization="english")
    assert text_metrics.with_tokenization(forced, russian).tokenization == "english"
    assert text_metrics.with_tokenization(forced, english) == settings  # the same numbers have the same name
    assert text_metrics.with_tokenization(Generation(tokenization="unicode"), english).tokenization == "unicode"
    assert json.loads(text_metrics.with_tokenization(settings, english).model_dump_json()) == json.loads(
        settings.model_dump_json()
    )


def test_recorded_runs_of_another_script_say_how_they_are_scored(tmp_path):
    """In their spec, and so in the folder's name: zeros that an earlier version recorded are not taken for scores."""
    gpt = SimpleNamespace(name="any", identity=dict)
    found = {}
    for name, text in (("english", "hello world"), ("russian", "привет мир")):
        pool = TaskPool(f"{name}/pool", (Example("p", "?", " a"),))
        task = Task(name, pool, TaskPool(f"{name}/tests", (Example("t", "?", f" {text}"),)))
        common = {"setting": "own", "texts": task, "source": Source(gpt, tmp_path), "recording": Recording(), "seed": 0}
        spec = Wanted(**common, names=["train-000"], metrics=["loss", "rouge_l"]).spec
        assert Wanted(**common, names=["train-000"]).spec.generation is None
        store.write_folder(tmp_path / name, spec, task)
        found[name] = store.load(tmp_path / name).provenance["tokenization"]
        assert spec.to_json()["generation"].get("tokenization", "english") == found[name]
    assert found == {"english": "english", "russian": "unicode"}
