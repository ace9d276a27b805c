"""Published runs: read as they lie in either layout, from a folder or a tar, and never anything else in their place."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gptfluence import paper
from gptfluence.common import files
from gptfluence.common.errors import ArtifactError, ConfigurationError, DataError, HubUnreachableError, ModelError
from gptfluence.common.settings import ROOT
from gptfluence.models.settings import PublishedModel
from gptfluence.profile.load import load_profile
from gptfluence.published import download, importing
from gptfluence.published.importing import import_published
from gptfluence.recording import store
from gptfluence.recording.settings import Runs
from gptfluence.study.study import Study
from gptfluence.workflow import cli

EXAMPLE = ROOT.parent / "shared" / "parity" / "published_format"
STEPS, BATCH, TESTS = 5, 3, 4
SIZES = {  # training texts, test texts
    "rte": (210, TESTS),
    "webnlg": (8, TESTS),
    "sst2": (9, TESTS),
    "flan": (12, 1055),
    "mislabelled": (7, TESTS),
}
TEXTS = {
    "rte": ("sft_tasks/rte/rte_0_399_train.json", "sft_tasks/rte/rte_0_276_eval.json"),
    "webnlg": ("sft_tasks/webnlg/webnlg_train_0-399.json", "sft_tasks/webnlg/webnlg_dev_0-177.json"),
    "sst2": ("sft_tasks/sst2/sst2_train_0-199.json", "sft_tasks/sst2/sst2_validation_0-199.json"),
    "flan": ("it_tasks/flan_train_0_1599.json", "it_tasks/flan_eval_0_1054.json"),
    "mislabelled": (
        "sft_tasks/sst2/sst2_flan-prompt_dataset-debug_mislabelled-0.4_train_0-127.json",
        "sft_tasks/sst2/sst2_flan-prompt_dataset-debug_eval_0-127.json",
    ),
}
FIRST_OF_FLAN = {"sst2": 0, "rte": 200, "boolq": 477, "webnlg": 677, "wmt16_de_en": 855}
GENERATED = ("webnlg", "wmt16_de_en")
LAYOUTS = ("processed", "raw")


# --- archives in the published form, as {name: text} --------------------------------------------------------------------


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(kind):
    return {
        name: lines(
            {"id": k, "input": f"{part} {kind} {k}. Yes.", "context": f"{part} {kind} {k}."} for k in range(count)
        )
        for part, name, count in zip(("train", "test"), TEXTS[kind], SIZES[kind], strict=True)
    }


def series(kind):
    return f"output_{'sst2_mislabelled-0.4' if kind == 'mislabelled' else kind}_bs-3_model-pythia-410m-deduped_lr-5e-7"


def numbers(kind, seed, steps=STEPS, ids=None):
    """What a run measured: batches, and metric -> {published test id: values by step}."""
    rng = np.random.default_rng([seed, len(kind)])
    low, high = ids or (0, min(200, SIZES[kind][0]))
    batches = rng.integers(low, high, (steps, BATCH)).tolist()
    task = "sst2" if kind == "mislabelled" else kind
    firsts = FIRST_OF_FLAN if kind == "flan" else {task: 0}
    measured = {}
    for metric, scale in (("loss", 5), ("bleu", 100), ("rougeL", 1)):
        tests = [
            (name, first + k)
            for name, first in firsts.items()
            if metric == "loss" or name in GENERATED
            for k in range(TESTS)
        ]
        if tests:
            measured[metric] = {test: (scale * rng.random(steps)).tolist() for test in tests}
    return batches, measured


def processed(kind, seed, **options):
    batches, measured = numbers(kind, seed, **options)
    run = {"train_samples_id.json": lines({"step": k, "samples_id": b} for k, b in enumerate(batches, 1))}
    for metric, values in measured.items():
        run[f"all_{metric}_trajectory.out"] = lines(
            {"id": test, "loss_trajectory": [{"step": k, "loss": value} for k, value in enumerate(row, 1)]}
            for (_, test), row in values.items()
        )
    return {f"runs/{kind}/{series(kind)}_seed-{seed}/{name}": content for name, content in run.items()}


def raw(kind, seed, **options):
    batches, measured = numbers(kind, seed, **options)
    log = "loading\n{'train_runtime': 3.2}\n"
    for k, batch in enumerate(batches, 1):
        log += f" 1%|= | {k}/9\r{ {'loss': 2 / k, 'learning_rate': 1e-7 * k, 'samples_id': batch, 'step': k} }\n"
    run = {"log.out": log}
    for step in range(1, len(batches) + 1):
        rows = {}
        for metric, values in measured.items():
            for (task, test), row in values.items():
                local = test - (FIRST_OF_FLAN[task] if kind == "flan" else 0)
                rows.setdefault(task, {}).setdefault(local, {"id": local})[metric] = row[step - 1]
        for task, by_id in rows.items():
            what = "metric" if task in GENERATED else "loss"
            run[f"{what}_{task}/{what}_{task}_checkpoint-{step}.out"] = lines(by_id.values())
    return {f"raw/{kind}/{series(kind)}_seed-{seed}/{name}": content for name, content in run.items()}


WRITE = {"processed": processed, "raw": raw}


def archive(layout, kind="rte", seeds=(1, 2, 3), **options):
    content = texts(kind)
    for seed in seeds:
        content |= WRITE[layout](kind, seed, **options)
    return content


def in_folder(content, folder):
    for name, text in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def in_tar(content, path, mode="w", extra=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, text in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        for member in extra:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def in_tar_beside_texts(content, path):
    """As the data set has it: texts in folders, runs in a tar."""
    in_folder({name: text for name, text in content.items() if "_tasks/" in name}, path)
    in_tar({name: text for name, text in content.items() if "_tasks/" not in name}, path / "GPTDynamics.tar")
    return path


PACKED = {
    "folder": in_folder,
    "tar": lambda content, path: in_tar(content, path / "all.tar"),
    "tar.gz": lambda content, path: in_tar(content, path / "all.tar.gz", "w:gz"),
    "tar.xz in a folder": lambda content, path: in_tar(content, path / "runs.tar.xz", "w:xz").parent,
    "texts and a tar": in_tar_beside_texts,
    "a tar, texts beside it": lambda content, path: in_tar_beside_texts(content, path) / "GPTDynamics.tar",
}


def stored(root):
    """Checksum of every stored file but locks."""
    return {
        path.relative_to(root).as_posix(): files.sha256(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def load(root, kind="rte", task=None, pool="seen"):
    setting = {"flan": "instruction_tuning", "mislabelled": "mislabelled"}.get(kind, "fine_tuning")
    model = PublishedModel(source="published", gpt="pythia-410m", pool=pool)
    return store.load(importing.find(root / "dynamics", model, setting=setting, task=task or kind))


def reasons(report):
    return [run.note for run in report.runs if run.result == "skipped"]


# --- what is stored is what was published -------------------------------------------------------------------------------


def read_slowly(folder, first=0):
    """(batches, metric -> [published steps][tests]) of a run's files, by loops; tests in the order of their ids."""
    values = {}
    if (folder / "log.out").is_file():
        steps = [
            line[line.index("{") :] for line in (folder / "log.out").read_text().splitlines() if "samples_id" in line
        ]
        batches = [ast.literal_eval(step)["samples_id"] for step in steps]
        for file in sorted(folder.glob("*/*.out"), key=lambda path: int(path.stem.split("-")[-1])):
            for metric in ("loss", "bleu", "rougeL"):
                rows = [json.loads(line) for line in file.read_text().splitlines()]
                if metric in rows[0]:
                    values.setdefault(metric, []).append(
                        [row[metric] for row in sorted(rows, key=lambda row: row["id"])]
                    )
        return batches, values
    batches = [json.loads(line)["samples_id"] for line in (folder / "train_samples_id.json").read_text().splitlines()]
    for file in folder.glob("all_*"):
        rows = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda row: row["id"])
        table = [[row["loss_trajectory"][step]["loss"] for row in rows] for step in range(len(batches))]
        values[file.name.split("_")[1]] = table
    return batches, values


@pytest.mark.parametrize("packed", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_runs_are_stored_as_a_slow_reading_of_the_files_finds_them(tmp_path, layout, packed):
    content = archive(layout, "webnlg")
    report = import_published(packed(content, tmp_path / "given"), tmp_path / "store")
    assert [run.result for run in report.runs] == ["imported"] * 3
    dynamics = load(tmp_path / "store", "webnlg")
    assert dynamics.names == ["seed-001", "seed-002", "seed-003"]
    unpacked = in_folder(content, tmp_path / "unpacked")
    for run in dynamics.runs:
        folder = next(unpacked.glob(f"*/webnlg/*_seed-{int(run.name[-3:])}"))
        batches, values = read_slowly(folder)
        assert run.curriculum.batches.tolist() == batches[1:]  # the batch of step 1 is never used
        assert list(run.trajectories) == ["loss", "bleu", "rouge_l"]
        for published_name, name in (("loss", "loss"), ("bleu", "bleu"), ("rougeL", "rouge_l")):
            np.testing.assert_array_equal(run.trajectories[name], np.array(values[published_name], np.float32))


def test_texts_are_the_published_ones_with_the_answer_as_target(tmp_path):
    import_published(in_folder(archive("raw", "webnlg"), tmp_path / "given"), tmp_path)
    dynamics = load(tmp_path, "webnlg")
    assert (len(dynamics.pool), len(dynamics.tests)) == SIZES["webnlg"]
    assert dynamics.pool[3].text == "train webnlg 3. Yes."
    assert (dynamics.tests[2].id, dynamics.tests[2].prompt, dynamics.tests[2].target) == (
        "2",
        "test webnlg 2.",
        " Yes.",
    )


def test_a_raw_run_keeps_its_logged_rates_and_losses_and_a_processed_one_has_none(tmp_path):
    for layout in LAYOUTS:
        import_published(in_folder(archive(layout), tmp_path / layout / "given"), tmp_path / layout)
    raw_run, processed_run = (load(tmp_path / layout).runs[0] for layout in ("raw", "processed"))
    np.testing.assert_allclose(raw_run.learning_rate, [1e-7 * step for step in range(2, STEPS + 1)], rtol=1e-6)
    np.testing.assert_allclose(raw_run.batch_loss, [2 / step for step in range(2, STEPS + 1)], rtol=1e-6)
    assert np.isnan(processed_run.learning_rate).all()


@pytest.mark.parametrize("kind", ["rte", "flan", "webnlg", "mislabelled"])
def test_both_layouts_of_a_run_store_the_same(tmp_path, kind):
    tasks = {"flan": list(FIRST_OF_FLAN), "mislabelled": ["sst2"]}.get(kind, [kind])
    for layout in LAYOUTS:
        import_published(in_folder(archive(layout, kind), tmp_path / layout / "given"), tmp_path / layout)
    for task in tasks:
        one, other = (load(tmp_path / layout, kind, task) for layout in LAYOUTS)
        assert one.metrics == other.metrics == (["loss", "bleu", "rouge_l"] if task in GENERATED else ["loss"])
        np.testing.assert_array_equal(one.batches, other.batches)
        for metric in one.metrics:
            np.testing.assert_array_equal(one.trajectories(metric), other.trajectories(metric))
        assert one.tests.texts == other.tests.texts


def test_instruction_tuned_runs_become_one_run_for_each_task_with_the_ids_of_the_whole_file(tmp_path):
    import_published(in_folder(archive("raw", "flan"), tmp_path / "given"), tmp_path)
    _, measured = numbers("flan", 2)
    for task, first in FIRST_OF_FLAN.items():
        dynamics = load(tmp_path, "flan", task)
        assert [example.id for example in dynamics.tests] == [str(first + k) for k in range(TESTS)]
        assert dynamics.tests[1].prompt == f"test flan {first + 1}."
        expected = np.array([measured["loss"][task, first + k] for k in range(TESTS)], np.float32).T
        np.testing.assert_array_equal(dynamics.select(["seed-002"]).trajectories()[0], expected)


def test_runs_on_unseen_training_texts_have_a_folder_of_their_own(tmp_path):
    content = archive("raw", "rte", seeds=(1, 2)) | raw("rte", 40, ids=(200, 210))
    import_published(in_folder(content, tmp_path / "given"), tmp_path)
    seen, unseen = load(tmp_path), load(tmp_path, pool="unseen")
    assert (seen.names, len(seen.pool)) == (["seed-001", "seed-002"], 200)
    assert (unseen.names, len(unseen.pool)) == (["seed-040"], 210)
    assert unseen.batches.min() >= 200  # ids stay those of the published texts
    assert unseen.pool.texts[:200] == seen.pool.texts


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), layout=st.sampled_from(LAYOUTS))
def test_the_order_of_lines_and_blank_lines_mean_nothing(tmp_path, seed, layout):
    draw = random.Random(seed)
    content = archive(layout, "webnlg", seeds=(1,))
    place = tmp_path / f"{seed}-{layout}"
    shuffled = {}
    for name, text in content.items():
        rows = text.splitlines(keepends=True)
        draw.shuffle(rows)
        shuffled[name] = "\n".join(rows) if draw.random() < 0.5 else "".join(rows)
    for part, given_content in (("plain", content), ("shuffled", shuffled)):
        report = import_published(in_folder(given_content, place / part / "given"), place / part)
        assert not reasons(report)
    plain, other = (load(place / part, "webnlg") for part in ("plain", "shuffled"))
    np.testing.assert_array_equal(plain.batches, other.batches)
    for metric in ("loss", "bleu", "rouge_l"):
        np.testing.assert_array_equal(plain.trajectories(metric), other.trajectories(metric))


def test_the_example_in_the_published_form(tmp_path):
    if not EXAMPLE.is_dir():
        pytest.skip(f"the example of the published form is not there ({EXAMPLE})")
    report = import_published(EXAMPLE, tmp_path)
    assert report.count("imported") == 3
    assert all("the same run is in runs/" in reason for reason in reasons(report))  # raw and processed
    for task, metrics in (("rte", ["loss"]), ("webnlg", ["loss", "bleu", "rouge_l"])):
        dynamics = load(tmp_path, task)
        assert dynamics.metrics == metrics
        np.testing.assert_allclose(dynamics.trajectories()[0], [[2.9, 3.9], [2.8, 3.8], [2.7, 3.7]])
        assert dynamics.batches[0].tolist() == [[2, 3, 4, 5], [0, 1, 2, 3]]
    flan = load(tmp_path, "flan", "wmt16_de_en")
    assert [example.id for example in flan.tests] == ["855", "856"]
    np.testing.assert_allclose(flan.trajectories("bleu")[0], [[2, 2], [4, 4], [6, 6]])
    only_raw = import_published(_with_texts(tmp_path / "raw", EXAMPLE), tmp_path / "store")
    assert only_raw.count("imported") == 3
    again = load(tmp_path / "store", "flan", "wmt16_de_en")
    assert set(again.metrics) == {"loss", "bleu", "rouge_l"}
    np.testing.assert_array_equal(again.trajectories(), flan.trajectories())


def _with_texts(folder, example):
    folder.mkdir()
    for name in ("raw", "gptdynamics"):
        for path in (example / name).rglob("*"):
            if path.is_file():
                place = folder / path.relative_to(example)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(path.read_bytes())
    return folder


# --- runs that are not whole ------------------------------------------------------------------------------------------


def edit(content, end, change):
    """`content` with the file of seed 2 whose name ends so changed (None: taken away)."""
    (name,) = [name for name in content if name.endswith(end) and "_seed-2/" in name]
    text = change(content[name]) if change else None
    return {key: text if key == name else value for key, value in content.items() if key != name or text is not None}


def swap(old, new):
    def change(text):
        assert old in text
        return text.replace(old, new, 1)

    return change


def drop_last_line(text):
    return "".join(text.splitlines(keepends=True)[:-1])


def repeat_last_line(text):
    return text + text.splitlines(keepends=True)[-1]


def set_number(key, value):
    return lambda text: re.sub(rf'"{key}": [0-9.e-]+', f'"{key}": {value}', text, count=1)


SAMPLES, LOSS, BLEU = "train_samples_id.json", "all_loss_trajectory.out", "all_bleu_trajectory.out"
CHECKPOINT = "checkpoint-3.out"
BROKEN = {
    "no curriculum": ("processed", SAMPLES, None, "train_samples_id.json is missing"),
    "a step of the curriculum missing": (
        "processed", SAMPLES, swap('{"step": 2,', '{"step": 9,'), r"step 2 missing \(1 of 5\)"),
    "a step of the curriculum twice": ("processed", SAMPLES, repeat_last_line, "step 5 is there twice"),
    "a step of a trajectory missing": ("processed", LOSS, swap('{"step": 3,', '{"step": 33,'), "example 0: step 3 missing"),
    "a step of a trajectory twice": ("processed", LOSS, swap('{"step": 3,', '{"step": 4,'), "step 4 is there twice"),
    "a test missing": ("processed", LOSS, drop_last_line, "the loss of 1 of 4 tests is missing, test 3 first"),
    "a test twice": ("processed", LOSS, repeat_last_line, "test example 3 is there twice"),
    "a test that has no text": ("processed", LOSS, swap('{"id": 3,', '{"id": 70,'), "out of range"),
    "a negative id": ("processed", LOSS, swap('{"id": 3,', '{"id": -3,'), "'id' must not be negative"),
    "an id that is no number": ("processed", LOSS, swap('{"id": 3,', '{"id": "3",'), "'id' must be a whole number"),
    "an example that has no text": ("processed", SAMPLES, swap("[", "[99, "), "batches of different sizes|out of range"),
    "a file cut short": ("processed", LOSS, lambda text: text[:-30], r"line 4: not a JSON object.*cut short"),
    "an empty file": ("processed", LOSS, lambda _: "", "is empty"),
    "a value that is not finite": ("processed", LOSS, set_number("loss", "NaN"), "loss must be a finite number"),
    "BLEU out of range": ("processed", BLEU, set_number("loss", "101.5"), "bleu must be a finite number from 0 to 100"),
    "a number beyond all floats": ("processed", LOSS, set_number("loss", "1" + "0" * 400), "loss must be a finite number"),
    "a step beyond all counts": ("processed", SAMPLES, swap('{"step": 2,', '{"step": 999999999999,'), "step 2 missing"),
    "a negative loss": ("processed", LOSS, set_number("loss", "-1.0"), "loss must be a finite number from 0"),
    "a checkpoint missing": ("raw", CHECKPOINT, None, r"metric_webnlg: checkpoint 3 missing \(1 of 5\)"),
    "a test of a checkpoint missing": ("raw", CHECKPOINT, drop_last_line, "checkpoint-3.out: test example 3 missing"),
    "a test of a checkpoint twice": ("raw", CHECKPOINT, repeat_last_line, "checkpoint-3.out: test example 3 is there twice"),
    "another test in a checkpoint": ("raw", CHECKPOINT, swap('{"id": 3,', '{"id": 70,'), "test example 3 missing"),
    "a checkpoint cut short": ("raw", CHECKPOINT, lambda text: text[:-20], "checkpoint-3.out, line 4: not a JSON object"),
    "no log": ("raw", "log.out", None, "log.out is missing"),
    "a log without steps": ("raw", "log.out", lambda _: "nothing", "no training step in it"),
    "a log that ends early": ("raw", "log.out", lambda text: text[: text.rindex("{")], "checkpoint 5 is one too many"),
    "a step logged twice": ("raw", "log.out", repeat_last_line, "step 5 is there twice"),
    "a log with a number missing": ("raw", "log.out", swap("'loss'", "'los'"), r"must have 'loss': number"),
}  # fmt: skip


@pytest.mark.parametrize(("layout", "end", "change", "said"), BROKEN.values(), ids=BROKEN)
def test_a_run_that_is_not_whole_is_skipped_with_the_reason_and_the_others_are_imported(
    tmp_path, layout, end, change, said
):
    whole = archive(layout, "webnlg")
    broken = edit(whole, end, change)
    report = import_published(in_folder(broken, tmp_path / "given"), tmp_path / "store")
    (reason,) = reasons(report)
    assert re.search(said, reason), reason
    assert load(tmp_path / "store", "webnlg").names == ["seed-001", "seed-003"]
    # mended, it is imported, and all is as if it had been whole from the start
    again = import_published(in_folder(whole, tmp_path / "mended"), tmp_path / "store")
    assert sorted(run.result for run in again.runs) == ["imported", "there already", "there already"]
    import_published(tmp_path / "mended", tmp_path / "fresh")
    assert stored(tmp_path / "store" / "dynamics") == stored(tmp_path / "fresh" / "dynamics")


def test_a_metric_that_lacks_a_test_is_left_out_and_counted(tmp_path):
    content = edit(archive("processed", "webnlg"), BLEU, drop_last_line)
    report = import_published(in_folder(content, tmp_path / "given"), tmp_path)
    notes = {run.run.seed: (run.metrics, run.note) for run in report.runs}
    assert notes[1] == (["loss", "bleu", "rouge_l"], "")
    assert notes[2] == (["loss", "rouge_l"], "webnlg: bleu left out, as 1 of 4 tests have none")


def test_tests_that_one_run_has_alone_are_left_out_and_counted(tmp_path):
    content = archive("processed")
    more = {"id": 4, "loss_trajectory": [{"step": k, "loss": 1.0} for k in range(1, STEPS + 1)]}
    content[TEXTS["rte"][1]] += lines([{"id": 4, "input": "one more. No.", "context": "one more."}])
    content = edit(content, LOSS, lambda text: text + lines([more]))
    report = import_published(in_folder(content, tmp_path / "given"), tmp_path)
    assert [run.note for run in report.runs] == [
        "",
        "1 tests that other runs of the series do not have are left out",
        "",
    ]
    assert load(tmp_path).trajectories().shape == (3, STEPS, TESTS)


NAMES = {
    "no seed": ("_seed-2/", "/", "does not end in _seed-<number>"),
    "a seed that is no number": ("_seed-2/", "_seed-two/", "does not end in _seed-<number>"),
    "no GPT": ("_model-pythia-410m-deduped", "", r"does not say the GPT"),
    "two tasks": ("runs/rte/", "runs/sst2/", "different tasks"),
    "no task": ("runs/rte/output_rte", "runs/other/output", "no task"),
}


@pytest.mark.parametrize(("old", "new", "said"), NAMES.values(), ids=NAMES)
def test_a_run_with_a_wrong_name_is_skipped_with_what_its_name_must_say(tmp_path, old, new, said):
    content = texts("rte") | processed("rte", 1)
    content |= {name.replace(old, new): text for name, text in processed("rte", 2).items()}
    (reason,) = reasons(import_published(in_folder(content, tmp_path / "given"), tmp_path))
    assert re.search(said, reason), reason


def test_missing_texts_are_named(tmp_path):
    for part, name in enumerate(TEXTS["rte"]):
        content = {key: text for key, text in archive("raw").items() if key != name}
        report = import_published(in_folder(content, tmp_path / f"given-{part}"), tmp_path / f"{part}")
        assert len(reasons(report)) == 3
        assert all(f"its texts are missing: no {Path(name).name}" in reason for reason in reasons(report))


TEXT_DAMAGE = {
    "an id twice": (repeat_last_line, "id 3 occurs twice"),
    "an id missing": (swap('{"id": 2,', '{"id": 7,'), "ids must be 0 to 3; 2 is missing"),
    "no context": (swap('"context"', '"contest"'), r"text 1: must be"),
    "cut short": (lambda text: text[:-9], "line 4: not a JSON object"),
}


@pytest.mark.parametrize(("change", "said"), TEXT_DAMAGE.values(), ids=TEXT_DAMAGE)
def test_damaged_texts_are_named(tmp_path, change, said):
    content = archive("raw")
    content[TEXTS["rte"][1]] = change(content[TEXTS["rte"][1]])
    found = reasons(import_published(in_folder(content, tmp_path / "given"), tmp_path))
    assert len(found) == 3
    assert all(re.search(said, reason) for reason in found), found


def test_a_run_that_is_there_in_both_layouts_is_taken_once(tmp_path):
    content = archive("processed") | archive("raw")
    report = import_published(in_folder(content, tmp_path / "given"), tmp_path)
    assert [run.run.layout for run in report.runs if run.result == "imported"] == ["processed"] * 3
    assert reasons(report) == ["the same run is in runs/rte"] * 3


def test_other_numbers_never_take_the_place_of_a_run_that_is_there(tmp_path):
    import_published(in_folder(archive("raw"), tmp_path / "given"), tmp_path)
    before = stored(tmp_path / "dynamics")
    other = edit(archive("raw"), "checkpoint-4.out", set_number("loss", "1.25"))
    report = import_published(in_folder(other, tmp_path / "other"), tmp_path)
    (reason,) = reasons(report)
    assert "seed-002 was imported from other files; to have these instead, delete that folder" in reason
    assert stored(tmp_path / "dynamics") == before


# --- archives that are not to be trusted ---------------------------------------------------------------------------------


def member(name, kind=tarfile.REGTYPE, **options):
    info = tarfile.TarInfo(name)
    info.type = kind
    for option, value in options.items():
        setattr(info, option, value)
    return info


HOSTILE = {
    "absolute": (member("/etc/passwd", size=3), "an absolute path"),
    "above": (member("runs/../../outside", size=3), "a path that leaves the archive"),
    "up and down": (member("runs/../outside", size=3), "a path with '..' in it"),
    "another system's": (member("C:\\outside", size=3), "a path of another system"),
    "symbolic link": (member("runs/link", tarfile.SYMTYPE, linkname="/etc/passwd"), "a symbolic link"),
    "hard link": (member("runs/link", tarfile.LNKTYPE, linkname="runs/x"), "a hard link"),
    "device": (member("runs/null", tarfile.CHRTYPE), "a device"),
    "pipe": (member("runs/pipe", tarfile.FIFOTYPE), "a device or a pipe"),
}


@pytest.mark.parametrize(("wrong", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_tar_with_a_member_not_to_be_trusted_is_refused_whole(tmp_path, wrong, said):
    tar = in_tar(archive("raw"), tmp_path / "all.tar", extra=[wrong])
    with pytest.raises(DataError, match=f"{re.escape(repr(wrong.name))} is .*{said}"):
        import_published(tar, tmp_path / "store")
    assert not (tmp_path / "store" / "dynamics").exists()


def test_a_python_that_cannot_check_members_is_named(tmp_path, monkeypatch):
    tar = in_tar(archive("raw"), tmp_path / "all.tar")
    monkeypatch.delattr("tarfile.data_filter")
    with pytest.raises(DataError, match=r"takes Python 3\.11\.4 or newer"):
        import_published(tar, tmp_path / "store")


def test_a_member_that_is_there_twice_is_refused(tmp_path):
    content = archive("raw")
    name = next(iter(content))
    tar = in_tar(content, tmp_path / "all.tar", extra=[member(f"./{name}", size=3)])
    with pytest.raises(DataError, match=re.escape(f"{name!r} is there twice")):
        import_published(tar, tmp_path)


@pytest.mark.parametrize("at", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_tar_cut_short_is_refused(tmp_path, at, suffix):
    tar = PACKED[suffix](archive("raw"), tmp_path)
    end = tar.stat().st_size
    if suffix == "tar":  # behind its last member it is filled up with zeros
        end = len(tar.read_bytes().rstrip(b"\0"))
    os.truncate(tar, int(at * end))
    with pytest.raises(DataError, match=re.escape(str(tar))):
        import_published(tar, tmp_path / "store")


def test_a_damaged_header_in_the_middle_is_not_the_end(tmp_path):
    tar = PACKED["tar"](archive("raw"), tmp_path)
    with tarfile.open(tar) as opened:
        middle = opened.getmembers()[8].offset
    data = bytearray(tar.read_bytes())
    data[middle + 3] ^= 255
    tar.write_bytes(data)
    with pytest.raises(DataError, match=f"damaged or cut short at byte {middle}"):
        import_published(tar, tmp_path / "store")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), suffix=st.sampled_from(["tar", "tar.gz", "tar.bz2", "folder"]))
def test_no_damage_is_more_than_an_error_or_a_skip(tmp_path_factory, seed, suffix):
    draw, place = random.Random(seed), tmp_path_factory.mktemp("damaged")
    content = archive(draw.choice(LAYOUTS), "webnlg", seeds=(1,))
    if suffix == "folder":
        in_folder(content, place / "given")
        damaged = place / "given" / draw.choice(sorted(content))
    else:
        damaged = in_tar(content, place / f"given.{suffix}", "w:" + suffix[4:])
    data = bytearray(damaged.read_bytes())
    for _ in range(3):
        at = draw.randrange(len(data))
        change = draw.choice([bytes([draw.randrange(256)]), data[max(0, at - 20) : at], b"", b"[", b"-1"])
        data[at : at + draw.choice([0, 1, 30])] = change
    damaged.write_bytes(data or b" ")
    with contextlib.suppress(DataError):
        import_published(place / "given" if suffix == "folder" else damaged, place / "store")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "page.tar").write_text("<html>not found</html>")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"page\.tar is not a whole tar archive"):
        import_published(tmp_path / "page.tar", tmp_path / "store")
    with pytest.raises(DataError, match="no runs in it"):
        import_published(tmp_path / "empty", tmp_path / "store")
    with pytest.raises(DataError, match="does not exist"):
        import_published(tmp_path / "nowhere", tmp_path / "store")


# --- kills ---------------------------------------------------------------------------------------------------------------

IMPORT_AND_DIE = """
import os, signal, sys
from pathlib import Path
from gptfluence.published.importing import import_published

left, rename = int(sys.argv[3]), os.rename

def dying(*arguments):  # a run's files are written, and it does not have its name yet
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*arguments)

os.rename = dying
import_published(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_an_import_that_is_killed_goes_on_and_ends_with_the_same_bytes(tmp_path):
    given_archive = PACKED["tar.gz"](archive("raw", "flan"), tmp_path)
    import_published(given_archive, tmp_path / "whole")
    for runs in (0, 3, 4):  # runs that each attempt can store
        killed = subprocess.run([sys.executable, "-c", IMPORT_AND_DIE, given_archive, tmp_path / "killed", str(runs)])
        assert killed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "killed" / "dynamics").glob("*/seed-*"))) == 7
    report = import_published(given_archive, tmp_path / "killed")
    assert report.count("imported") + report.count("there already") == 3
    assert stored(tmp_path / "killed") == stored(tmp_path / "whole")
    assert import_published(given_archive, tmp_path / "killed").count("there already") == 3


def test_two_imports_at_once_share_one_store(tmp_path):
    given_archive = in_folder(archive("raw", "flan"), tmp_path / "given")
    import_published(given_archive, tmp_path / "one")
    command = [sys.executable, "-c", IMPORT_AND_DIE, given_archive, tmp_path / "two", "999"]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert stored(tmp_path / "two") == stored(tmp_path / "one")


# --- in a study ----------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 99), min_size=1, max_size=40), st.data())
def test_by_default_the_highest_seeds_are_held_out_and_no_run_is_in_two_parts(present, data):
    present = sorted(present)
    train = data.draw(st.integers(1, len(present)))
    validation = data.draw(st.integers(0, len(present) - train))
    test = data.draw(st.integers(0, len(present) - train - validation))
    parts = importing._default_seeds(Path("x"), present, Runs(train=train, validation=validation, test=test))
    assert [len(parts[part]) for part in ("train", "validation", "test")] == [train, validation, test]
    listed = [seed for part in parts.values() for seed in part]
    assert listed == sorted(set(listed))
    assert list(parts["test"]) == present[len(present) - test :]


def test_with_32_seeds_the_default_split_is_the_papers():
    parts = importing._default_seeds(Path("x"), list(range(1, 33)), Runs())
    assert sorted([*parts["train"], *parts["validation"]]) == list(range(1, 28))
    assert list(parts["test"]) == [28, 29, 30, 31, 32]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    root = tmp_path_factory.mktemp("imported")
    import_published(in_folder(archive("raw", seeds=range(1, 9)), root / "given"), root)
    return root


SMALL = [
    "settings.fine_tuning.runs={train: 5, validation: 1, test: 2}",
    "simulators.gptfluence={encoder: index, max_epochs: 3}",
    "simulators.simfluence.max_epochs=3",
    "settings.fine_tuning.tasks=[rte]",
]


def study(root, *overrides):
    return Study.load("released", [*SMALL, *overrides], artifacts=root)


def test_a_study_splits_imported_runs_as_it_splits_recorded_ones(imported):
    dynamics = study(imported).campaign(task="rte").dynamics()
    train, validation, test = dynamics.split()
    assert train.names == [f"train-00{seed}" for seed in range(1, 6)]
    assert (validation.names, test.names) == (["validation-006"], ["test-007", "test-008"])
    stored_run = load(imported).select(["seed-007"]).runs[0]
    np.testing.assert_array_equal(test.runs[0].trajectories["loss"], stored_run.trajectories["loss"])
    assert set(dynamics.provenance["runs"]) == set(dynamics.names)


def test_a_profile_may_say_which_seeds(imported):
    seeds = "models.published-410m.seeds={{rte: {{train: [3, 8], validation: [{}], test: [1]}}}}"
    dynamics = study(imported, seeds.format(2)).campaign(task="rte").dynamics()
    assert dynamics.names == ["train-003", "train-008", "validation-002", "test-001"]
    with pytest.raises(ConfigurationError, match="8 is listed twice"):
        study(imported, seeds.format(8)).campaign(task="rte").dynamics()
    with pytest.raises(ConfigurationError, match=r"no run with seed 50 .*there are 1-8"):
        study(imported, seeds.format(50)).campaign(task="rte").dynamics()


def test_every_method_is_evaluated_on_the_held_out_runs(imported):
    results = study(imported).campaign(task="rte").evaluate()
    assert set(results["method"]) == {"persistence", "mean_trajectory", "simfluence", "gptfluence"}
    assert set(results["run"]) == {"test-007", "test-008"}
    test = study(imported).campaign(task="rte").dynamics().split()[2].trajectories().astype(np.float64)
    mse = np.square(test[:, 1:] - test[:, :1]).mean(axis=(1, 2))  # persistence, by hand
    found = results[(results["method"] == "persistence") & (results["statistic"] == "all_steps_mse")]["value"]
    np.testing.assert_allclose(found, mse)


def test_what_is_not_imported_is_said_with_the_remedy(imported, tmp_path):
    with pytest.raises(
        ArtifactError, match=r"no published runs of pythia-410m on rte .*gptfluence import-published PATH"
    ):
        study(tmp_path).campaign(task="rte").dynamics()
    with pytest.raises(ArtifactError, match=r"on sst2 .*imported so far: fine_tuning rte pythia-410m \(seen pool\)"):
        study(imported, "settings.fine_tuning.tasks=[sst2]").campaign(task="sst2").dynamics()
    with pytest.raises(ConfigurationError, match=r"asks for 25 \+ 2 \+ 5 runs, but .* has 8 \(seeds 1-8\)"):
        Study.load("released", artifacts=imported).campaign(task="rte").dynamics()
    with pytest.raises(ConfigurationError, match="task 'sst3' is not known"):
        study(imported).campaign(task="sst3").dynamics()


def test_several_series_are_told_apart_by_a_pattern(tmp_path):
    content = archive("raw", seeds=(1, 2))
    content |= {name.replace("lr-5e-7", "lr-1e-6"): text for name, text in content.items() if name.startswith("raw")}
    import_published(in_folder(content, tmp_path / "given"), tmp_path)
    small = "settings.fine_tuning.runs={train: 1, validation: 0, test: 1}"
    with pytest.raises(ConfigurationError, match=r"2 series fit: .*`series`"):
        study(tmp_path, small).campaign(task="rte").dynamics()
    dynamics = study(tmp_path, small, "models.published-410m.series='*lr-1e-6'").campaign(task="rte").dynamics()
    assert dynamics.provenance["spec"]["published"]["series"].endswith("lr-1e-6")


def test_nothing_is_ever_trained_for_published_runs(imported):
    with pytest.raises(ConfigurationError, match=r"'published-410m' has published runs only and cannot be trained"):
        study(imported).campaign(task="rte").record(study(imported).campaign(task="rte").dynamics().curricula[0])
    with pytest.raises(ModelError, match="only its published runs are here"):
        study(imported).model("published-410m").load()
    with pytest.raises(ConfigurationError, match=r"tasks\.rte: its texts come with the published runs"):
        study(imported).texts.known("rte")


def test_the_profile_has_the_papers_hyperparameters():
    profile, tables = load_profile("released"), paper.hyperparameters()
    for name, reported in (("gptfluence", "gptfluence_fine_tuning"), ("simfluence", "simfluence")):
        options, theirs = profile.simulators[name].arguments(), tables[reported]
        assert options["weight_decay"] == theirs["l2_lambda"]
        assert options["optimizer"] == theirs["optimizer"]["name"].lower()
        assert options["warmup_steps"] == theirs["schedule"]["warmup_steps"]
        assert (options["max_epochs"], options["seed"]) == (theirs["max_epochs"], theirs["seed"])
    assert profile.simulators["simfluence"].arguments()["learning_rate"] == tables["simfluence"]["learning_rate"]
    runs = profile.settings["fine_tuning"].runs
    assert runs.model_dump() == tables["fine_tuning_gpt"]["runs"]


@pytest.mark.slow
def test_table_2_is_made_from_imported_runs(imported, tmp_path):
    command = [
        sys.executable,
        "-m",
        "papermill",
        ROOT / "notebooks" / "tab02_fine_tuning_loss.ipynb",
        tmp_path / "out.ipynb",
    ]
    parameters = yaml.safe_dump({"tasks": ["rte"], "overrides": SMALL, "methods": ["persistence", "simfluence"]})
    options = ["-k", "python3", "-p", "profile", "released", "-p", "output_dir", tmp_path, "-y", parameters]
    environment = {**os.environ, "GPTFLUENCE_ARTIFACTS": str(imported)}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / "tab02_fine_tuning_loss.csv").read_text()
    assert "persistence" in table
    assert "simfluence" in table
    provenance = json.loads((tmp_path / "tab02_fine_tuning_loss.json").read_text())
    assert load(imported).provenance["folder"] in json.dumps(provenance)


# --- commands --------------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_became_of_every_run(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFLUENCE_ARTIFACTS", str(tmp_path / "store"))
    given_archive = in_folder(edit(archive("raw"), CHECKPOINT, None), tmp_path / "given")
    result = CliRunner().invoke(
        cli.app, ["import-published", str(given_archive), "--index", str(tmp_path / "index.json")]
    )
    assert result.exit_code == 0, result.output
    assert "3 runs: 2 imported, 0 there already, 1 skipped" in result.output
    assert "checkpoint 3 missing" in result.output
    rows = json.loads((tmp_path / "index.json").read_text())["runs"]
    assert [row["result"] for row in rows] == ["imported", "skipped", "imported"]


def test_the_command_fails_if_nothing_could_be_imported(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFLUENCE_ARTIFACTS", str(tmp_path / "store"))
    in_folder(raw("rte", 1), tmp_path / "given")  # without texts
    result = CliRunner().invoke(cli.app, ["import-published", str(tmp_path / "given")])
    assert result.exit_code != 0
    assert isinstance(result.exception, DataError)
    assert "nothing was imported; the first reason: its texts are missing" in str(result.exception)


def test_without_a_hub_a_download_says_so_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubUnreachableError, match=r"GPTDynamics.* no hub is reachable.*import-published FOLDER"):
        download.download(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_download_fetches_one_commit_and_records_it(tmp_path, monkeypatch):
    asked = []

    class Hub:
        def dataset_info(self, dataset, revision):
            if revision == "nowhere":
                raise ValueError("revision not found")
            return type("Info", (), {"sha": "c0ffee" * 6 + "1234"})

    monkeypatch.setattr(download, "hub_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *given, **options: asked.append((given, options)))
    found = download.download(tmp_path / "data")
    ((dataset,), options) = asked[0]
    assert (dataset, options["repo_type"]) == ("ernie-research/GPTDynamics", "dataset")
    assert options["revision"] == found["commit"] == "c0ffee" * 6 + "1234"
    assert json.loads((tmp_path / "data" / "download.json").read_text()) == found
    with pytest.raises(DataError, match="revision 'nowhere': revision not found"):
        download.download(tmp_path / "data", "nowhere")
