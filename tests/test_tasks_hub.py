"""Hugging Face data sets: folders in the six data sets' schemas, and what is said, and how soon, without a hub."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptfluence.common.errors import DataError, HubUnreachableError
from gptfluence.tasks import TASKS, hub, mini
from gptfluence.tasks.records import RECORDS, HubSource
from gptfluence.tasks.rows import RowMapping


def rows(name: str, count: int, seed: int) -> list[dict]:
    """Rows in the schema of the data set on the Hub, with the types that Parquet files give its fields."""
    from gptfluence.tasks.mini.words import Dice, World

    dice, world, made = Dice("hub", name, seed), World(seed, known=False), []
    for number in range(count):
        row = RECORDS[name].row(dice, number % 2, world)
        extra = {"rte": {"idx": number}, "sst2": {"idx": number}, "webnlg": {"gem_id": f"web_nlg_en-{number}"}}
        made.append({**row, **extra.get(name, {}), **({"id": f"{number:040x}"} if name == "cnn_dm" else {})})
    return made


def write(folder: Path, name: str, file_format: str, sizes: tuple[int, int] = (30, 20)) -> Path:
    source = RECORDS[name].hub
    splits = (source.pool_split, source.test_split)
    folder = folder / (source.config or "")
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, size) in enumerate(zip(splits, sizes, strict=True)):
        made = rows(name, size, seed)
        if file_format == "parquet":
            pq.write_table(pa.Table.from_pylist(made), folder / f"{split}-00000-of-00001.parquet")
        else:
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder


def load(name: str, folder: Path, cache: Path, **options):
    """The task from a folder, with changes to the source, the layout or the sizes that its record says."""

    def part(kind) -> dict:
        return {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}

    source = replace(RECORDS[name].hub, path=str(folder), **part(HubSource))
    layout = replace(RECORDS[name].layout, **part(RowMapping))
    return hub.HubData(name, source, layout, cache_dir=cache).task(**options)


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", TASKS)
def test_folders_in_the_data_sets_schemas(name, file_format, tmp_path):
    write(tmp_path / "data", name, file_format)
    task = load(name, tmp_path / "data", tmp_path / "cache", pool_size=12, test_size=8, seed=1)
    assert (task.name, len(task.pool), len(task.tests)) == (name, 12, 8)
    generated = mini.generate(name, pool_size=1, test_size=1).pool[0]
    for example in (*task.pool, *task.tests):
        assert example.task == name
        assert example.choices == generated.choices  # both sources lay a task out alike
        assert example.target.startswith(" ")
        assert example.label is None or example.target == example.choices[example.label]
    assert len({example.prompt for example in (*task.pool, *task.tests)}) == 20


def test_every_paper_task_names_its_data():
    assert TASKS[:6] == mini.CORPUS_TASKS
    for name in mini.CORPUS_TASKS:
        source = RECORDS[name].hub
        assert source.path.count("/") == 1, name
        assert len(source.revision) == 40 or source.revision == hub.CONVERTED


def test_draws_depend_on_the_seed_and_are_nested(tmp_path):
    write(tmp_path / "data", "sst2", "jsonl")

    def drawn(**options):
        return load("sst2", tmp_path / "data", tmp_path / "cache", test_size=8, **options)

    assert drawn(pool_size=5).pool.examples == drawn(pool_size=15).pool.examples[:5]
    assert drawn(pool_size=5).tests.fingerprint == drawn(pool_size=15).tests.fingerprint
    assert drawn(pool_size=5, seed=1).fingerprint != drawn(pool_size=5).fingerprint


def test_a_whole_split_comes_in_order_and_repeated_prompts_are_passed_over_and_counted(tmp_path, caplog):
    folder = write(tmp_path / "data", "rte", "jsonl")
    lines = (folder / "train.jsonl").read_text().splitlines()
    repeated = [json.dumps({**json.loads(line), "idx": 100 + i}) for i, line in enumerate(lines[:3])]
    in_tests = (folder / "validation.jsonl").read_text().splitlines()[0]
    (folder / "train.jsonl").write_text("\n".join([*lines, *repeated, in_tests]) + "\n")
    with caplog.at_level("INFO", logger="gptfluence"):
        task = load("rte", tmp_path / "data", tmp_path / "cache")
    assert [example.id for example in task.pool] == [str(i) for i in range(30)]
    assert "4 rows repeat a prompt and were passed over" in caplog.text
    with pytest.raises(DataError, match=r"pool_size asks for 34 examples, but there are only 30"):
        load("rte", tmp_path / "data", tmp_path / "cache", pool_size=34)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_split": "trian"}, r"task 'rte': data set .* split 'trian': cannot be loaded: .*train.*validation"),
        ({"config": "rtx"}, r"configuration 'rtx'.*cannot be loaded"),
        ({"prompt": "{premis}"}, r"validation, row \d+: prompt needs the field 'premis'; the fields there are"),
        ({"labels": {0: "a", 2: "b"}}, r"row \d+: field 'label': '1' is not among the labels; known: 0, 2"),
        ({"pool_size": 31}, r"task 'rte': .*train: pool_size asks for 31 examples, but there are only 30"),
        (
            {"label": "answer", "labels": None, "target": " {answer}"},
            r"label: there is no field 'answer', only premise, ",
        ),
        ({"id": "label"}, r"row \d+: id '\d' was used before, in row \d+"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, options, message):
    write(tmp_path / "data", "rte", "jsonl")
    with pytest.raises(DataError, match=message):
        load("rte", tmp_path / "data", tmp_path / "cache", **options)


def test_classes_are_those_of_the_column_if_no_labels_are_given(tmp_path):
    write(tmp_path / "data", "sst2", "jsonl")
    task = load("sst2", tmp_path / "data", tmp_path / "cache", labels=None)
    assert task.pool[0].choices == (" 0", " 1")


def test_a_folder_that_is_not_there_is_not_sought_on_the_hub(tmp_path):
    with pytest.raises(DataError, match=r"task 'rte': path: there is no folder '.*nowhere'"):
        load("rte", tmp_path / "nowhere", tmp_path / "cache")


def test_offline_is_said_at_once_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    started = time.monotonic()
    with pytest.raises(HubUnreachableError, match=r"'rte': data set 'nyu-mll/glue'.*`source: local`.*`source: mini`"):
        hub.HubData("rte", RECORDS["rte"].hub, RECORDS["rte"].layout, cache_dir=tmp_path)
    assert time.monotonic() - started < 5


def test_a_hub_that_does_not_answer_is_given_up_within_seconds(monkeypatch):
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never says a word
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        started = time.monotonic()
        assert not hub.hub_reachable(timeout=0.5)
        assert time.monotonic() - started < 2


def test_no_code_of_a_data_set_is_run(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text("raise SystemExit('this ran')\n")
    with pytest.raises(DataError, match="cannot be loaded"):
        load("boolq", folder, tmp_path / "cache")


# --- folders that are named after a format, and files that are not what they should be -----------------------------------


def jsonl(path: Path, texts: list[str], **more) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"sentence": text, "label": number % 2, **more}) for number, text in enumerate(texts)]
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize("name", ["json", "./json", "csv", "text", "arrow"])
def test_a_folder_named_after_a_format_is_that_folder(name, tmp_path, monkeypatch):
    folder = tmp_path / Path(name).name
    jsonl(folder / "train.jsonl", ["a", "b", "c"])
    jsonl(folder / "test.jsonl", ["d"])
    jsonl(tmp_path / "backup" / "train.jsonl", ["OLD 1", "OLD 2"])
    monkeypatch.chdir(tmp_path)
    task = load("sst2", name, tmp_path / "cache", config=None, test_split="test", labels=None, id=None)
    assert [example.prompt for example in task.pool] == [f"Review: {text}\nSentiment:" for text in "abc"]


def test_a_format_without_a_folder_does_not_read_what_lies_around(tmp_path, monkeypatch):
    jsonl(tmp_path / "backup" / "train.jsonl", ["OLD 1", "OLD 2"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"path: 'json' is a file format, and there is no folder of this name"):
        load("sst2", "json", tmp_path / "cache", config=None, test_split="train")


def test_the_cause_of_a_failure_is_told(tmp_path):
    folder = tmp_path / "data"
    jsonl(folder / "train.jsonl", ["a", "b"])
    jsonl(folder / "test.jsonl", ["d"], stars=3)
    with pytest.raises(DataError, match=r"cannot be loaded: .*stars: int64.* column names don't match"):
        load("sst2", folder, tmp_path / "cache", config=None, test_split="test")


@pytest.mark.parametrize("name", ["train.jsonl", "train-00000-of-00001.parquet"])
def test_a_pointer_of_git_lfs_is_told(tmp_path, name):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    with pytest.raises(DataError, match=rf"{name} is a Git LFS .* pointer, not the file itself; run git lfs pull"):
        load("sst2", folder, tmp_path / "cache", config=None, test_split="train")


def test_folders_that_would_be_patterns_files_and_nothing_are_refused(tmp_path):
    folder = tmp_path / "data[1]"
    folder.mkdir()
    jsonl(folder / "train.jsonl", ["a", "b"])
    for path, said in (
        (folder, r"takes for patterns; rename the folder"),
        (folder / "train.jsonl", r"is a file; give its folder"),
        ("", r"path: it is empty"),
    ):
        with pytest.raises(DataError, match=said):
            load("sst2", path, tmp_path / "cache", config=None, test_split="train")


def test_text_that_is_no_utf_8_is_an_error_with_its_row(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    texts = pa.array([b"good", b"sch\xf6n"], pa.binary()).cast(pa.string(), safe=False)
    table = pa.table({"sentence": texts, "label": [0, 1]})
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"train, row 1: cannot be read: .*utf-8"):
        load("sst2", folder, tmp_path / "cache", config=None, test_split="train", id=None)
