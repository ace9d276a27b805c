"""Other people's machines: quotas of cores, file systems without locks, locales, homes that cannot be written to."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptfluence.common import files, machine
from gptfluence.common.errors import ConfigurationError, RecordingError
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import NanoModel
from gptfluence.recording import store, workers
from gptfluence.recording.dynamics import Source
from gptfluence.workflow.cli import app


def control_groups(root: Path, membership: str, files: dict[str, str]) -> Path:
    """A machine's /proc and /sys with these files, for `machine.cores`."""
    for name, content in {"proc/self/cgroup": membership, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


V1, V2 = "4:memory:/a\n3:cpu,cpuacct:/a/b\n", "0::/a/b\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        (V1, {"sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000"}, 8),
        (V1, {"sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000"}, 1),
        (V1, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
        (V1, {"sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "4", "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "2"}, 2),
        (V1, {"sys/fs/cgroup/memory/a/cpu.cfs_quota_us": "1", "sys/fs/cgroup/memory/a/cpu.cfs_period_us": "2"}, 8),
        (V2, {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n"}, 2),
        (V2, {"sys/fs/cgroup/cpu.max": "1600000 100000\n"}, 8),  # more than there are
        (f"what is this\n\n{V2}", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        (V2, {"sys/fs/cgroup/unified/cpu.max": "150000 100000\n"}, 2),
        (V2, {"sys/fs/cgroup/a/cpu.max": "nonsense"}, 8),
        ("", {}, 8),
    ],
)  # fmt: skip
def test_a_quota_of_cores_counts_and_those_around_it(tmp_path, eight_cores, membership, files, expected):
    assert machine.cores(control_groups(tmp_path, membership, files)) == expected


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        (V1, {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "3000000\n"}, 3_000_000),
        (V1, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, None),  # how version 1 says no limit
        (V2, {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "5000000\n"}, 5_000_000),
        ("", {}, None),
    ],
)  # fmt: skip
def test_a_limit_of_memory_counts_and_those_around_it(tmp_path, membership, files, expected):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.memory(control_groups(tmp_path, membership, files)) == (expected or whole)


def test_a_machine_without_control_groups_counts_its_cores(tmp_path, eight_cores):
    assert machine.cores(tmp_path / "nothing here") == 8


# --- file systems ------------------------------------------------------------------------------------------------------


def failing(number: int):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_of_the_file_system_files_mark_what_is_held(tmp_path, monkeypatch, number):
    monkeypatch.setattr("fcntl.flock", failing(number))
    path = tmp_path / "locks" / "run.lock"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with files.locked(path) as mine:
            assert mine
            with files.locked(path, wait=False) as second:
                assert not second
        with files.locked(path, wait=False) as again:
            assert again
    if number != errno.ENOSYS:  # which the library itself knows
        assert "this file system has no locks" in str(said[0].message)
        assert "GPTFLUENCE_ARTIFACTS" in str(said[0].message)


def test_a_lock_that_cannot_be_had_for_another_reason_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"), files.locked(tmp_path / "run.lock"):
        pass


@pytest.mark.parametrize("function", ["os.fsync", "os.chmod"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_what_a_file_system_lacks_stops_no_writing(tmp_path, monkeypatch, function, number):
    monkeypatch.setattr(function, failing(number))
    files.write_json(tmp_path / "facts.json", {"a": 1})
    files.made(tmp_path / "artifact", lambda folder: files.write_text(folder / "text", "评论"), what="a test")
    assert files.damage(tmp_path / "artifact") is None


def test_paths_that_are_no_text_are_written_and_read_back(tmp_path):
    name = os.fsdecode(b"caf\xe9")  # a folder's name from an old disk
    files.write_json(tmp_path / "facts.json", {"path": name, "task": "评论"})
    assert json.loads((tmp_path / "facts.json").read_text(encoding="utf-8")) == {"path": name, "task": "评论"}


def test_a_place_that_cannot_be_written_to_is_said_before_the_work(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for place in ("/dev/null/x/figure.png", "/proc/nowhere/figure.png", str(tmp_path / "folder.png")):
        done = CliRunner().invoke(app, ["what-if", "--profile", "smoke", "--figure", place])
        assert isinstance(done.exception, ConfigurationError)
        assert f"--figure {place}: cannot be written" in str(done.exception)
    for command in (["record"], ["fit"], ["import-published", "nothing"]):
        done = CliRunner().invoke(app, [*command, "--index", "/dev/null/x/index.json"])
        assert "--index /dev/null/x/index.json: cannot be written" in str(done.exception)


def test_a_store_may_be_a_link_and_so_may_its_folders(tmp_path):
    for name in ("store/models", "disk/dynamics/one"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "store/dynamics").symlink_to(tmp_path / "disk/dynamics")
    gpt = ModelSource(
        "m", NanoModel(source="nano", width=16, layers=1, heads=2), tmp_path / "store/models", {"names": []}
    )
    folder = tmp_path / "store/dynamics/one"
    files.write_json(folder / store.SOURCE, store._source_to_json(Source(gpt, tmp_path / "store")))
    assert json.loads((folder / store.SOURCE).read_text())["models"] == "models"
    assert store.read_source(folder).gpt.cache == tmp_path / "store/models"
    (tmp_path / "shortcut").symlink_to(folder)
    (tmp_path / "disk/dynamics/one").rename(tmp_path / "store/one")  # the usual place again
    (tmp_path / "store/dynamics").unlink()
    (tmp_path / "store/dynamics").mkdir()
    (tmp_path / "store/one").rename(folder)
    assert store.read_source(tmp_path / "shortcut").gpt.cache == tmp_path / "store/models"


# --- locales -----------------------------------------------------------------------------------------------------------

OLD = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


def test_names_of_any_script_are_read_in_an_old_locale(tmp_path):
    files.write_json(tmp_path / "spec.json", {"task": "评论"})
    code = (
        "import sys; from gptfluence.recording import store; print(ascii(store.spec_values(store.Path(sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, env={**os.environ, **OLD})
    assert done.stdout.decode().strip() == ascii({"task": "评论"})


def test_the_command_speaks_utf8_in_an_old_locale():
    code = "from gptfluence.workflow import cli; cli.main()"
    command = [sys.executable, "-c", code, "run-notebook", "评论", "--output", "x.ipynb"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **OLD})
    assert done.returncode == 1
    assert done.stderr.decode("utf-8").startswith("error: notebook '评论' is not known")


def test_a_recording_process_that_is_killed_says_what_it_may_have_lacked(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "START", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(
        RecordingError, match=r"ended with code -9: .* where memory runs out: record fewer runs at once"
    ):
        workers._run_workers([workers.Job(tmp_path, ("run",))], lambda *_: None)
