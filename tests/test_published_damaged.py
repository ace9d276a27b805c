"""Published runs that are damaged, hostile or cut off: an error or a skip, and never anything else in their place."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence.common.errors import DataError
from gptfluence.published.importing import import_published
from published_archive import (
    CHECKPOINT,
    LAYOUTS,
    PACKED,
    STEPS,
    TESTS,
    TEXTS,
    archive,
    edit,
    in_folder,
    in_tar,
    lines,
    load,
    processed,
    reasons,
    stored,
    texts,
)

# --- runs that are not whole ------------------------------------------------------------------------------------------


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
