"""JSON Lines: what comes out of a file, how it is split, and what is said of a file that cannot be used."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence.common.errors import ConfigurationError, DataError
from gptfluence.tasks import Task, read_jsonl
from gptfluence.tasks.rows import RowMapping, draw, examples_from_rows

SHARED = Path(os.environ.get("GPTFLUENCE_SHARED", Path(__file__).parents[2] / "shared"))
REVIEW = {"prompt": "Review: {text}\nSentiment:", "target": " {label}"}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def reviews(tmp_path):
    rows = [{"id": 100 + i, "text": f"text {i}", "label": i % 2} for i in range(20)]
    return write(tmp_path / "reviews.jsonl", rows)


def test_one_file_is_split_and_unpacks(reviews):
    pool, tests = read_jsonl(reviews, **REVIEW, label="label", labels=["bad", "good"], test_size=6, seed=0)
    assert (len(pool), len(tests)) == (14, 6)
    assert {example.id for example in (*pool, *tests)} == {str(100 + i) for i in range(20)}
    for example in (*pool, *tests):
        number = int(example.id) - 100
        assert example.text == f"Review: text {number}\nSentiment: {('bad', 'good')[number % 2]}"
        assert (example.label, example.choices) == (number % 2, (" bad", " good"))


def test_the_seed_makes_the_split_and_pool_size_leaves_the_tests_alone(reviews):
    def split(**options):
        return read_jsonl(reviews, **REVIEW, test_size=6, **options)

    assert split(seed=1).fingerprint == split(seed=1).fingerprint != split(seed=2).fingerprint
    assert split(seed=1, pool_size=5).tests.examples == split(seed=1).tests.examples
    assert split(seed=1, pool_size=5).pool.examples == split(seed=1).pool.examples[:5]


def test_two_files_are_used_whole_and_in_order(reviews, tmp_path):
    tests = write(tmp_path / "tests.jsonl", [{"id": i, "text": f"other {i}", "label": 1} for i in range(3)])
    task = read_jsonl(reviews, tests, **REVIEW, name="reviews", label="label", labels={1: "good", 0: "bad"})
    assert isinstance(task, Task)
    assert [example.id for example in task.pool] == [str(100 + i) for i in range(20)]
    assert [example.text.splitlines()[0] for example in task.tests] == [f"Review: other {i}" for i in range(3)]
    assert task.tests[0].choices == (" good", " bad")
    assert task.tests[0].label == 0  # the order of `labels` counts
    smaller = read_jsonl(reviews, tests, **REVIEW, pool_size=4, test_size=2, seed=3)
    assert (len(smaller.pool), len(smaller.tests)) == (4, 2)


def test_classes_of_two_files_are_the_same_even_if_one_file_lacks_a_class(reviews, tmp_path):
    tests = write(tmp_path / "tests.jsonl", [{"id": 0, "text": "other", "label": 1}])
    task = read_jsonl(reviews, tests, **REVIEW, label="label")
    assert task.tests[0].choices == task.pool[0].choices == (" 0", " 1")
    assert task.tests[0].label == 1


@given(count=st.integers(1, 200), seed=st.integers(0, 2**40), salt=st.text(max_size=5), size=st.integers(0, 200))
@settings(max_examples=50, deadline=None)
def test_a_draw_is_a_permutation_and_smaller_draws_begin_larger_ones(count, seed, salt, size):
    order = list(draw(count, seed, salt))
    assert sorted(order) == list(range(count))
    lazily = draw(count, seed, salt)
    assert [next(lazily) for _ in range(min(size, count))] == order[:size]


values = st.text(st.characters(codec="utf-8"), max_size=20)


@given(rows=st.lists(st.fixed_dictionaries({"text": values, "parts": st.lists(values, min_size=1)}), min_size=1))
@settings(max_examples=60, deadline=None)
def test_any_text_survives_file_and_templates_unchanged(rows, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("any") / "rows.jsonl", rows)
    tests = write(path.with_name("tests.jsonl"), [{"text": "test", "parts": ["test"]}])
    task = read_jsonl(path, tests, prompt="{{{text}}}|", target="={parts}", references="parts")
    assert [example.prompt for example in task.pool] == [f"{{{row['text']}}}|" for row in rows]
    assert [example.target for example in task.pool] == ["=" + "; ".join(row["parts"]) for row in rows]
    assert [example.references for example in task.pool] == [tuple(row["parts"]) for row in rows]
    assert [example.id for example in task.pool] == [str(i) for i in range(len(rows))]


def test_indexed_fields_and_lists():
    rows = [{"triples": ["a | b | c", "d | e | f"], "lex": {"text": ["First.", "Second."]}}]
    mapping = RowMapping("{triples} ->", " {lex[text][1]}", references="lex[text]")
    example = examples_from_rows(rows, mapping, str)[0]
    assert example.text == "a | b | c; d | e | f -> Second."
    assert example.references == ("First.", "Second.")


@pytest.mark.parametrize("raw", [True, 1, "1"])
@pytest.mark.parametrize("key", [True, 1, "1"])
def test_a_class_may_be_written_as_true_or_one(raw, key):
    mapping = RowMapping("?", " {label}", label="answer", labels={0: "no", key: "yes"})
    assert examples_from_rows([{"answer": raw}], mapping, str)[0].target == " yes"


def good(i: int) -> str:
    return json.dumps({"id": i, "text": f"text {i}", "label": i % 2}) + "\n"


FOUR = "".join(good(i) for i in range(4))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, r"reviews\.jsonl: is empty"),
        ("\n \n", {}, r"reviews\.jsonl: is empty"),
        (FOUR + '\n{"id": 4,\n', {}, r"reviews\.jsonl:6: is not JSON .*one JSON object"),
        (FOUR + "[1, 2]\n", {}, r"reviews\.jsonl:5: holds a list; every line"),
        (FOUR + '{"id": 9, "txt": "x", "label": 1}\n', {},
         r"reviews\.jsonl:5: prompt needs the field 'text'; the fields there are id, txt, label"),
        (FOUR + '{"id": 9, "text": null, "label": 1}\n', {}, r"reviews\.jsonl:5: prompt: field 'text' is null"),
        (FOUR + good(2), {}, r"reviews\.jsonl:5: id '2' was used before, in .*reviews\.jsonl:3"),
        (FOUR + '{"text": "x", "label": 1}\n', {}, r"reviews\.jsonl:5: id needs the field 'id'"),
        (FOUR, {"id": "key"}, r"reviews\.jsonl:1: id needs the field 'key'"),
        (FOUR + '{"id": 9, "text": "x", "label": 7}\n', {"label": "label", "labels": ["bad", "good"]},
         r"reviews\.jsonl:5: field 'label': '7' is not among the labels; known: 0, 1"),
        (FOUR, {"target": " {label[0]}"}, r"reviews\.jsonl:1: target: there is no 'label\[0\]'"),
        (FOUR, {"target": " {sentiment}", "label": "sentiment"},
         r"reviews\.jsonl:1: target needs the field 'sentiment'"),
        (FOUR + '{"id": 9, "text": "", "label": 1}\n', {"target": " {text}"}, r"reviews\.jsonl:5: the target .* empty"),
        (FOUR, {"test_size": 4}, r"reviews\.jsonl: test_size asks for 4 examples, but there are only 3; lower it"),
        (FOUR, {"pool_size": 4}, r"reviews\.jsonl \(after 1 rows for testing\): pool_size asks for 4"),
    ],
)  # fmt: skip
def test_what_is_said_of_unusable_files(tmp_path, content, options, message):
    path = tmp_path / "reviews.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_jsonl(path, **{**REVIEW, "test_size": 1, **options})


def test_a_text_of_the_pool_may_not_be_a_test_text(tmp_path):
    pool, tests = tmp_path / "pool.jsonl", tmp_path / "tests.jsonl"
    pool.write_text(FOUR)
    tests.write_text(good(8) + good(2))
    with pytest.raises(DataError, match=r"test example '2' has the same text as pool example '2'; .*remove one"):
        read_jsonl(pool, tests, **REVIEW)


def test_missing_file_and_wrong_encoding(tmp_path):
    with pytest.raises(DataError, match=rf"no\.jsonl: there is no such file \(looked in {re.escape(str(tmp_path))}\)"):
        read_jsonl(tmp_path / "no.jsonl", **REVIEW, test_size=1)
    (tmp_path / "latin.jsonl").write_bytes(FOUR.encode() + '{"text": "schön"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl:5: is not UTF-8"):
        read_jsonl(tmp_path / "latin.jsonl", **REVIEW, test_size=1)
    with pytest.raises(DataError, match="cannot be read"):
        read_jsonl(tmp_path, **REVIEW, test_size=1)


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + FOUR.replace("\n", "\r\n").encode())
    assert len(read_jsonl(path, **REVIEW, test_size=1).pool) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "test_size: with one file"),
        ({"test_size": 0}, "test_size: 0 is not a size"),
        ({"prompt": "{text", "test_size": 1}, r"prompt: the template '{text' cannot be read"),
        ({"prompt": "{}", "test_size": 1}, r"prompt: '' is not a field"),
        ({"prompt": "{text:>9}", "test_size": 1}, r"prompt: .*format codes"),
        ({"prompt": "{text.__class__}", "test_size": 1}, r"prompt: 'text.__class__' is not a field"),
        ({"labels": ["a", "b"], "test_size": 1}, "labels are given, but `label`"),
        ({"label": "kind", "target": " {text}", "test_size": 1}, r"label: the target template ' {text}' does not use"),
        ({"label": "label", "labels": ["a"], "test_size": 1}, "fewer than two classes"),
    ],
)
def test_what_is_said_of_unusable_arguments(reviews, options, message):
    with pytest.raises(ConfigurationError, match=message):
        read_jsonl(reviews, **{**REVIEW, **options})


REAL = {
    "rte": {"prompt": "{premise}\nClaim: {hypothesis}\n", "target": "{label}", "labels": {0: "true", 1: "false"}},
    "sst2": {"prompt": "Review: {sentence}\nSentiment:", "target": " {label}", "labels": ["negative", "positive"]},
    "boolq": {"prompt": "{passage}\n{question}?", "target": " {label}", "labels": {1: "yes", 0: "no"}},
    "webnlg": {"prompt": "Facts: {triples}\nText:", "target": " {references[0]}", "references": "references"},
    "wmt16_de_en": {"prompt": "German: {de}\nEnglish:", "target": " {en}"},
    "cnn_dm": {"prompt": "{article}\nSummary:", "target": " {highlights}"},
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_of_the_six_tasks(name):
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"samples of real data are not at {folder}; GPTFLUENCE_SHARED says where they are")
    options = {**REAL[name], **({"label": "label"} if "labels" in REAL[name] else {})}
    task = read_jsonl(folder / "train.jsonl", folder / "test.jsonl", name=name, **options)
    assert (len(task.pool), len(task.tests)) == (400, 300)
    assert all("{" not in example.target or name == "cnn_dm" for example in task.pool)
    first = json.loads((folder / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert task.pool[0].id == str(first["id"])
    if "labels" in options:
        assert {example.label for example in task.pool} == {0, 1}
        assert all(example.target == example.choices[example.label] for example in task.tests)
    if name == "webnlg":
        assert task.pool[0].references == tuple(first["references"])
        assert "; ".join(first["triples"]) in task.pool[0].prompt
