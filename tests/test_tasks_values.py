"""What a value of a row may be: one rule for JSON Lines, data sets in folders, and examples in Python."""

from __future__ import annotations

import gzip
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest

import gptfluence as gf
from gptfluence.common.errors import ConfigurationError, DataError
from gptfluence.profile.load import load_profile
from gptfluence.recording.record import record
from gptfluence.tasks import Example, Task, TaskPool, hub, read_jsonl
from gptfluence.tasks.records import HubSource
from gptfluence.tasks.rows import RowMapping, examples_from_rows
from gptfluence.tasks.values import class_of, text_of

REVIEW = {"prompt": "Review: {text}", "target": " {label}"}


def write(path: Path, rows: list) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def rows(labels, start=0) -> list[dict]:
    return [{"text": f"text {start + k}", "label": label} for k, label in enumerate(labels)]


@pytest.fixture(params=["JSON Lines", "data set"])
def load(request, tmp_path):
    """A function of pool rows, test rows and a layout that makes a task: from two files, or from the folder they lie in."""

    def task(pool, tests, **layout):
        layout = RowMapping(**{**REVIEW, **layout})
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        files = write(folder / "train.jsonl", pool), write(folder / "test.jsonl", tests)
        if request.param == "JSON Lines":
            return gf.tasks.local.JsonLines("reviews", layout, *files).task()
        source = HubSource(path=str(folder), test_split="test")
        return hub.HubData("reviews", source, layout, cache_dir=tmp_path / "cache").task()

    return task


def ascii_ids(value: object) -> str:
    """pytest would write out a number of thousands of digits."""
    return value.split(";")[0] if isinstance(value, str) and value.isascii() else type(value).__name__


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (3, "3"), (3.0, "3"), (-0.0, "0"), (True, "true"), (np.int64(3), "3"), (np.float32(3), "3"),
     (np.bool_(False), "false"), (["a", 1, True], "a; 1; true"), ((), ""), (2**70, str(2**70)), ("\U0001f600", "\U0001f600")],
)  # fmt: skip
def test_texts_of_values(value, text):
    assert text_of(value, "it") == text


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is null"),
        (math.nan, "is NaN, which stands for a missing value"),
        (np.float32("nan"), "is NaN"),
        (math.inf, "is Infinity"),
        (-math.inf, "is -Infinity"),
        (0.5, "is 0.5; .* write a number with a fraction as a string"),
        (1.2345678901234568e18, "has lost its last digits"),
        ({"a": 1}, r'is a mapping \(its keys: \["a"\]\)'),
        ([["a"]], "item 0 is a list"),
        (["a", None], "item 1 is null"),
        (["a", math.nan], "item 1 is NaN"),
        (b"a", "is a bytes"),
        (10**5000, "thousands of digits"),
        ("cut \ud83d", r"is not valid Unicode, a cut emoji\? \(character 5"),
        (["\udc80"], "item 0 is not valid Unicode"),
    ],
    ids=ascii_ids,
)
def test_values_that_are_no_text(value, problem):
    with pytest.raises(DataError, match=f"it,? .*{problem}"):
        text_of(value, "it")


def test_numbers_truth_values_and_their_spellings_are_one_class():
    assert {class_of(value, "it") for value in (1, 1.0, "1", "1.0", True, "true", "True", np.int8(1))} == {"1"}
    assert {class_of(value, "it") for value in (0, 0.0, "0", False, "false")} == {"0"}
    assert len({class_of(value, "it") for value in ("1", "01", "one", "1.5", "yes")}) == 5
    with pytest.raises(DataError, match="is a list, and the class of a row is one value"):
        class_of(["pos"], "it")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "cut \\ud83d", "label": "pos"}', "prompt: field 'text' is not valid Unicode"),
        ('{"text": "x", "label": "\\ude00"}', "label: field 'label' is not valid Unicode"),
        ('{"text": NaN, "label": "pos"}', "prompt: field 'text' is NaN"),
        ('{"text": "x", "label": NaN}', "label: field 'label' is NaN"),
        ('{"text": 1e999, "label": "pos"}', "prompt: field 'text' is Infinity"),
        ('{"text": -Infinity, "label": "pos"}', "prompt: field 'text' is -Infinity"),
        ('{"text": {"a": 1}, "label": "pos"}', "prompt: field 'text' is a mapping"),
        ('{"text": ["a", null], "label": "pos"}', "prompt: field 'text', item 1 is null"),
        ('{"text": "x", "label": ["pos"]}', "label: field 'label' is a list"),
        ('{"text": "x", "label": {"a": 1}}', "label: field 'label' is a mapping"),
        ('{"text": "x", "text": "y", "label": "pos"}', "field 'text' is there twice"),
        (f'{{"text": {"9" * 5000}, "label": "pos"}}', "cannot be read"),
        ("[" * 20000, "cannot be read"),
        ('{"text": "x", "label": "maybe"}', "'maybe' is not among the labels; known: neg, pos"),
    ],
)
@pytest.mark.parametrize("labels", [None, {"neg": "no", "pos": "yes"}])
def test_a_row_that_cannot_be_used_is_named_with_file_and_line(tmp_path, line, problem, labels):
    if labels is None and "maybe" in line:
        pytest.skip("a third class")
    path = write(tmp_path / "rows.jsonl", [*rows(["neg", "pos"]), line])
    with pytest.raises(DataError, match=rf"rows\.jsonl:3: .*{problem}") as caught:
        read_jsonl(path, **REVIEW, label="label", labels=labels, test_size=1)
    str(caught.value).encode()


def test_fields_that_no_template_names_may_hold_anything(tmp_path):
    odd = '{"text": "x", "label": "pos", "score": NaN, "cut": "\\ud83d", "nested": {"a": [null]}, "rating": 4.5}'
    task = read_jsonl(write(tmp_path / "rows.jsonl", [*rows(["neg", "pos"]), odd]), **REVIEW, test_size=1)
    task.pool.fingerprint.encode()


# --- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels", [None, {0: "neg", 1: "pos"}, {0.0: "neg", True: "pos"}, ["neg", "pos"], {"0": "neg", "1.0": "pos"}]
)
def test_a_class_written_as_1_and_as_1_0_is_one(load, labels):
    task = load(rows([0, 1, 0, 1]), rows([0.0, 1.0, None][:2], start=9), label="label", labels=labels)
    assert task.pool[0].choices == task.tests[0].choices == ((" 0", " 1") if labels is None else (" neg", " pos"))
    assert [example.label for example in (*task.pool, *task.tests)] == [0, 1, 0, 1, 0, 1]


def test_a_profile_takes_the_same_labels(tmp_path):
    def labels(text):
        task = f"{{source: local, prompt: '{{a}}', target: ' {{label}}', label: a, pool: p.jsonl, labels: {text}}}"
        return load_profile("smoke", [f"tasks.sst2={task}"]).tasks["sst2"].labels

    for text in ("{0: neg, 1: pos}", "{0.0: neg, 1.0: pos}", "{false: neg, true: pos}", "[neg, pos]"):
        assert labels(text) == {"0": "neg", "1": "pos"}, text
    assert labels("{0: neg, '0.0': neg, 1: pos}") == {"0": "neg", "1": "pos"}
    for text, problem in {
        "{0: neg, '0.0': pos}": "'0.0' is the class 0, which has the word 'neg' already",
        "{.nan: neg, 1: pos}": "the value nan is NaN",
        "{0: , 1: pos}": "the word of 0 is null",
        "{0: [a], 1: pos}": "the word of 0 is a list",
        "positive": "a mapping of values to words is needed",
    }.items():
        with pytest.raises(ConfigurationError, match=rf"tasks\.sst2\.labels: {problem}"):
            labels(text)


def test_truth_values_are_written_as_in_json_wherever_they_stand(load):
    task = load(rows([True, False]), rows([True, False], start=9), label="label", prompt="{text}")
    assert task.pool[0].choices == (" false", " true")
    task = load(rows([True, False]), rows([True], start=9), prompt="{text} is it {label}?", target=" {label}")
    assert task.pool[0].text == "text 0 is it true? true"


@pytest.mark.parametrize("other", ["Pos", "pos ", "pos\u200b", "\uff50os", "p\u043es"])
def test_classes_that_look_alike_are_an_error_until_they_are_named(load, other):
    pool, tests = rows(["pos", "neg", "pos"]), rows([other], start=9)
    with pytest.raises(
        DataError, match=r"label: field 'label' has values that look alike: .*first: .*train.*first: .*test"
    ):
        load(pool, tests, label="label")
    task = load(pool, tests, label="label", labels={"neg": "bad", "pos": "good", other: "good"})
    assert task.pool[0].choices == (" bad", " good")
    assert task.tests[0].label == 1


@pytest.mark.parametrize(
    "values",
    [
        ("e-mail", "e\u2011mail"),
        ("-1", "\u22121"),
        ("don't", "don\u2019t"),
        ("HET", "\u041d\u0415\u0422"),
        ("\u0392", "B"),
    ],
)
def test_signs_that_look_alike_are_told_in_any_script(values):
    where = RowMapping(**REVIEW, label="label").with_labels_of
    with pytest.raises(DataError, match="look alike"):
        where([{"label": value} for value in (*values, "neg")], str)


def test_words_of_one_script_are_not_taken_for_one_another():
    words = ["\u0434\u0430", "\u043d\u0435\u0442", "\u0441\u043a\u043e\u0440\u043e", "C", "C#", "C++"]
    mapping = RowMapping(**REVIEW, label="label").with_labels_of([{"label": word} for word in words], str)
    assert sorted(mapping.words.values()) == sorted(words)


@pytest.mark.parametrize("other", ["pos ", " pos", "po\u200bs", "pos\ufeff"])
def test_words_that_a_user_gives_differ_in_what_is_seen(other):
    with pytest.raises(
        ConfigurationError, match=r"labels: the words .* differ only in blanks or characters that nobody"
    ):
        RowMapping(**REVIEW, label="label", labels={0: "pos", 1: other})
    assert set(RowMapping(**REVIEW, label="label", labels={0: "m2", 1: "m\u00b2"}).words.values()) == {"m2", "m\u00b2"}


def test_a_list_in_the_label_field_is_an_error_in_a_data_set(load):
    with pytest.raises(DataError, match="label: field 'label' is a list"):
        load(rows([["pos"], ["neg"]]), rows([["pos"]], start=9), label="label")
    task = load(rows([["pos"], ["neg"]]), rows([["pos"]], start=9), label="label[0]", target=" {label[0]}")
    assert task.pool[0].choices == (" neg", " pos")


def test_no_choice_may_be_empty():
    mapping = RowMapping("?", " {label}", label="a", labels={0: " ", 1: "yes"})
    with pytest.raises(DataError, match=r"here: the target .* comes out empty"):
        examples_from_rows([{"a": 1}], mapping, lambda _: "here")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (gzip.compress(b"{}", mtime=0), r"is compressed \(gzip\); unpack it"),
        (b"BZh91AY", r"is compressed \(bzip2\)"),
        (b"\x28\xb5\x2f\xfd..", r"is compressed \(zstd\)"),
        (b"PK\x03\x04..", r"is compressed \(zip\)"),
        (b"PAR1....", "is a file of Parquet"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n",
            "is a Git LFS pointer, .*git lfs pull",
        ),
        (b"/annex/objects/SHA256E-s12--ab.jsonl\n", "is a git-annex pointer"),
        (b'[{"text": "x"},\n {"text": "y"}]', "is a JSON array; write one JSON object per line"),
        (b'[\n {"text": "x"}\n]', "is a JSON array"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b' [\t{"text": "x"}]', "is a JSON array"),
        ('{"text": "x"}'.encode("utf-16"), "is not UTF-8 text: it holds zero bytes"),
        ('{"text": "x"}'.encode("utf-16-le"), "is not UTF-8 text: it holds zero bytes"),
        (bytes(99), "is not UTF-8 text: it holds zero bytes"),
        (b"PK\x05\x06..", r"is compressed \(zip\)"),
        (b"%PDF-1.4", "is a file of PDF"),
        (b'{"text": {"0": "x", "1": "y"}, "label": {"0": 0, "1": 1}}', "is one JSON object that holds whole columns"),
    ],
)
def test_a_file_that_is_something_else_is_told(tmp_path, content, problem):
    path = tmp_path / "pool.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"pool\.jsonl\.gz: {problem}"):
        read_jsonl(path, **REVIEW, test_size=1)


def test_one_row_of_lists_is_a_row(tmp_path):
    pool = write(tmp_path / "pool.jsonl", [{"facts": ["a", "b"], "texts": ["x", "y"]}])
    tests = write(tmp_path / "tests.jsonl", [{"facts": ["c", "d"], "texts": ["z", "w"]}])
    assert len(read_jsonl(pool, tests, prompt="{facts}", target=" {texts[0]}", references="texts").tests) == 1


@pytest.mark.parametrize("size", [True, 2.0, "2"])
def test_a_size_is_a_whole_number(tmp_path, size):
    path = write(tmp_path / "pool.jsonl", rows([0, 1, 0, 1]))
    with pytest.raises(ConfigurationError, match=r"test_size: .* is not a size; a whole number is needed"):
        read_jsonl(path, **REVIEW, test_size=size)
    assert len(read_jsonl(path, **REVIEW, test_size=np.int64(2)).tests) == 2


def test_paths_may_begin_at_home_and_odd_ones_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "pool.jsonl", rows([0, 1, 0, 1]))
    assert len(read_jsonl("~/pool.jsonl", **REVIEW, test_size=2).tests) == 2
    with pytest.raises(DataError, match=r"cannot be read: .*null"):
        read_jsonl("a\0b", **REVIEW, test_size=1)


# --- prompts that pool and tests share -------------------------------------------------------------------------------


def test_shared_prompts_and_contradicting_rows_are_counted(tmp_path):
    pool = write(tmp_path / "pool.jsonl", [*rows(["a", "b", "a"]), {"text": "text 1", "label": "a"}])
    tests = write(tmp_path / "tests.jsonl", [*rows(["a"], start=7), *rows(["b"])])
    with pytest.warns(UserWarning, match="task 'local'") as caught:
        read_jsonl(pool, tests, **REVIEW, label="label")
    shared, several = (str(warning.message) for warning in caught)
    assert "1 of 2 tests have a prompt that is in the pool with another target" in shared
    assert f"(the first: {tests}:2 and {pool}:1)" in shared
    assert f"1 rows give a prompt another class than a row before (the first: {pool}:4, after {pool}:2)" in several


def test_the_same_text_in_both_is_an_error_with_both_lines(tmp_path):
    pool = write(tmp_path / "pool.jsonl", rows(["a", "b"]))
    tests = write(tmp_path / "tests.jsonl", rows(["a"]))
    with pytest.raises(DataError, match=r"has the same text as pool example .*tests\.jsonl:1 and .*pool\.jsonl:1"):
        read_jsonl(pool, tests, **REVIEW)


def test_free_texts_may_have_one_prompt_and_answers_may_differ(tmp_path):
    pool = write(tmp_path / "pool.jsonl", rows(["a", "b"]))
    tests = write(tmp_path / "tests.jsonl", rows(["c"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_jsonl(pool, tests, prompt="", target="{label}").tests[0].prompt == ""


def test_a_data_set_with_one_prompt_for_all_keeps_its_rows(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", rows(["a", "b", "c", "a"]))
    write(tmp_path / "data" / "test.jsonl", rows(["d"]))
    source = HubSource(path=str(tmp_path / "data"), test_split="test")
    task = hub.HubData("free", source, RowMapping("Say something.", " {label}"), cache_dir=tmp_path / "cache").task()
    assert [example.target for example in task.pool] == [" a", " b", " c"]


# --- examples in Python ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt": "cut \ud83d"}, "prompt is not valid Unicode"),
        ({"target": math.nan}, "target must be a string, not float"),
        ({"references": ("a", None)}, "references must be a string, not NoneType"),
        ({"references": "a"}, "references must be a tuple of strings"),
        ({"choices": (" a", " b"), "label": 2}, "label 2 is no position of its 2 choices"),
        ({"label": 1.0, "choices": (" a", " b")}, "label 1.0 is no position"),
        ({"label": True, "choices": (" a", " b")}, "label True is no position"),
        (
            {"label": np.int64(1), "choices": (" a", " b")},
            r"label np.int64\(1\) is no position of its 2 choices \(an int\)",
        ),
        ({"choices": (" a", " b", " a")}, r"choices .* are not all different"),
    ],
)
def test_examples_in_python_follow_the_same_rule(changes, problem):
    with pytest.raises(DataError, match=f"pool: example 0: {problem}"):
        TaskPool("pool", [Example(**{"id": "0", "prompt": "a", "target": " b", **changes})])


def test_recording_counts_shared_prompts_of_examples_in_python(tmp_path):
    pool = TaskPool("own/pool", [Example("a", "one", " b"), Example("b", "two", " c")])
    tests = TaskPool("own/tests", [Example("c", "one", " d")])
    Task("own", pool, tests)
    with (
        pytest.warns(UserWarning, match=r"1 of 1 tests .*\(the first: own/tests 'c' and own/pool 'a'\)"),
        pytest.raises(ConfigurationError, match="curricula: none given"),
    ):
        record(tmp_path, pool, tests, curricula=[])
