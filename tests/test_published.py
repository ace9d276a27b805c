"""Published runs: read as they lie in either layout, from a folder or a tar, by Python and by the commands."""

from __future__ import annotations

import ast
import json
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gptfluence.common.errors import DataError, HubUnreachableError
from gptfluence.common.settings import ROOT
from gptfluence.published import download
from gptfluence.published.importing import import_published
from gptfluence.workflow import cli
from published_archive import (
    CHECKPOINT,
    FIRST_OF_FLAN,
    GENERATED,
    LAYOUTS,
    PACKED,
    SIZES,
    STEPS,
    TESTS,
    archive,
    edit,
    in_folder,
    load,
    numbers,
    raw,
    reasons,
)

EXAMPLE = ROOT.parent / "shared" / "parity" / "published_format"


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


# --- folders that are links -------------------------------------------------------------------------------------------


def linked(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target, target_is_directory=True)


def test_runs_in_linked_folders_are_found_once(tmp_path):
    data = in_folder({**archive("processed", "rte"), **archive("processed", "sst2")}, tmp_path / "data")
    (data / "runs" / "sst2").rename(tmp_path / "sst2")
    linked(data / "runs" / "sst2", tmp_path / "sst2")
    linked(data / "again" / "sst2", tmp_path / "sst2")  # a second way to the same files
    linked(data / "runs" / "rte" / "up", data)  # and a cycle
    linked(tmp_path / "sst2" / "up", "..")
    report = import_published(data, tmp_path / "artifacts")
    assert (len(report.runs), report.count("imported")) == (6, 6)
    (data / "runs").rename(tmp_path / "elsewhere")
    linked(data / "runs", tmp_path / "elsewhere")
    linked(tmp_path / "link", data)
    again = import_published(tmp_path / "link", tmp_path / "artifacts")
    assert again.count("there already") == 6


def test_links_that_lead_nowhere_are_told(tmp_path):
    data = in_folder(archive("processed", "rte", seeds=[1]), tmp_path / "data")
    linked(data / "runs" / "sst2", tmp_path / "gone")
    assert "links that lead nowhere: runs/sst2" in import_published(data, tmp_path / "artifacts").notes
    (data / "runs").rename(tmp_path / "elsewhere")
    linked(data / "again", tmp_path / "gone")
    with pytest.raises(DataError, match=r"no runs in it .*links that lead nowhere: again"):
        import_published(data, tmp_path / "artifacts")
