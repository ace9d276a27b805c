"""Tasks by name: one record says everything, and a new one changes nothing for the others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import NanoModel
from gptfluence.study.study import Study
from gptfluence.tasks import TASKS, instructions, mini, sources
from gptfluence.tasks.records import RECORDS, TaskRecord
from gptfluence.tasks.rows import RowMapping
from gptfluence.tasks.settings import HubTask, LocalTask, MiniTask

ROOT = Path(__file__).resolve().parent.parent

# what CONTRIBUTING.md says a new task takes: a record, and a module with `row` for generated text
RECORD = """
    TaskRecord(
        name="sums",
        printed="Sums of two",
        layout=RowMapping(prompt="{left} + {right} =", target=" {sum}", id=None),
        generator="mini.sums",
        wordings=("Add.\\n{prompt}",),
    ),
"""
GENERATOR = """
def row(dice, label, world):
    left, right = dice.pick(range(900)), dice.pick(range(900))
    return {"left": left, "right": right, "sum": left + right}
"""
USE = """
import json
from gptfluence.drawing import names
from gptfluence.study.study import Study
from gptfluence.tasks import TASKS, hub, instructions, mini, sources

study = Study.load("smoke", {"tasks.sums": {"source": "mini", "pool_size": 8, "test_size": 4}})
pool, tests = study.texts.known("sums")
print(json.dumps({
    "tasks": TASKS,
    "texts": pool.texts,
    "sizes": [len(pool), len(tests)],
    "instructed": instructions.apply(pool[0]).prompt,
    "printed": names.task("sums"),
    "labelled": study.is_labelled("sums"),
    "nano": study.model("nano-smoke").identity(),
    "sst2": mini.generate("sst2", pool_size=8, test_size=4).fingerprint,
}))
"""


def test_a_new_task_is_one_record_and_its_generator_and_changes_no_other(tmp_path):
    copied = shutil.ignore_patterns("__pycache__", "templates")
    shutil.copytree(ROOT / "gptfluence", tmp_path / "gptfluence", ignore=copied)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    records = tmp_path / "gptfluence" / "tasks" / "records.py"
    before, end, after = records.read_text().partition("\n)\n\nRECORDS")
    assert end
    records.write_text(before + RECORD.rstrip() + end + after)
    (tmp_path / "gptfluence" / "tasks" / "mini" / "sums.py").write_text(GENERATOR)

    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", USE], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["tasks"] == [*TASKS, "sums"]
    assert said["sizes"] == [8, 4]
    for text in said["texts"]:
        left, right, total = (int(word) for word in text.replace("+", "").replace("=", "").split())
        assert left + right == total
    assert said["instructed"].startswith("Add.\n")
    assert said["printed"] == "Sums of two"
    assert said["labelled"] is False
    # nano models, which are pre-trained on generated text, and other tasks stay what they are
    assert said["nano"] == Study.load("smoke").model("nano-smoke").identity()
    assert said["sst2"] == mini.generate("sst2", pool_size=8, test_size=4).fingerprint


def test_every_record_can_be_generated_drawn_and_instructed():
    for name, record in RECORDS.items():
        if record.generator:
            assert mini.generate(name, pool_size=2, test_size=2).name == name
        assert names.task(name) == record.printed
        assert instructions.WORDINGS[name] == record.wordings
        assert sources.is_labelled(name, MiniTask(source="mini")) == (record.layout.label is not None)


def test_a_task_without_a_generator_says_what_to_do():
    record = TaskRecord("reviews", RowMapping("{text}", " {answer}"))
    with pytest.raises(ConfigurationError, match="'reviews': no text is generated for it; use another `source`"):
        _ = record.row


def test_a_pretraining_corpus_is_fixed():
    config = NanoModel(source="nano", width=16, layers=1, heads=2)
    corpus = {"names": list(mini.CORPUS_TASKS), "seed": 0, "examples_per_task": 1000}
    # in the name of every recording with a nano model of seed 0
    assert ModelSource("nano", config, Path(), corpus).identity()["corpus"] == "06a25498bf67"


def test_what_a_profile_leaves_out_of_a_data_set_comes_from_the_record():
    source, layout = sources._of_hub("rte", HubTask(source="hub", path="mine/rte", label="gold", prompt="{a}"))
    assert (source.path, source.config, source.pool_split) == ("mine/rte", "rte", "train")
    assert (layout.prompt, layout.label, layout.target, layout.id) == ("{a}", "gold", " {label}", "idx")


@pytest.mark.parametrize("missing", ["path", "pool_split", "test_split", "prompt", "target"])
def test_a_data_set_without_a_record_says_which_field_is_missing(missing):
    whole = {"path": "a/b", "pool_split": "train", "test_split": "test", "prompt": "{a}", "target": " {b}"}
    given = {field: value for field, value in whole.items() if field != missing}
    with pytest.raises(ConfigurationError, match=rf"tasks\.reviews\.{missing}: is missing; a data set other than"):
        sources.load_parts("reviews", HubTask(source="hub", **given))


def test_texts_of_ones_own_are_labelled_if_the_profile_says_so():
    own = {"source": "local", "prompt": "{a}", "target": " {b}", "pool": "a.jsonl"}
    assert not sources.is_labelled("sst2", LocalTask(**own))  # not the paper's layout
    assert sources.is_labelled("reviews", LocalTask(**{**own, "target": " {label}"}, label="b"))


def test_files_are_read_once_also_where_examples_are_kept_unseen(tmp_path, monkeypatch):
    for part, count in (("pool", 20), ("tests", 10)):
        rows = [json.dumps({"a": f"{part} {number}", "b": "x"}) for number in range(count)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows))
    given = {"source": "local", "prompt": "{a}", "target": " {b}", "pool": "pool.jsonl", "tests": "tests.jsonl"}
    plain = LocalTask(**given, pool_size=6, test_size=3)
    apart = LocalTask(**given, pool_size=6, test_size=3, unseen_pool_size=4, unseen_test_size=2)
    read, files = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda path: (files.append(path.name), read(path))[1])
    task, unseen = sources.load_parts("mine", apart, data_dir=tmp_path)
    assert sorted(files) == ["pool.jsonl", "tests.jsonl"]
    assert task.fingerprint == sources.load_parts("mine", plain, data_dir=tmp_path)[0].fingerprint
    larger, _ = sources.load_parts(
        "mine", plain.model_copy(update={"pool_size": 10, "test_size": 5}), data_dir=tmp_path
    )
    assert unseen.pool.examples == larger.pool[6:]
    assert unseen.tests.examples == larger.tests[3:]
