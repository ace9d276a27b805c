"""run_all.sh: what it understands, what it refuses, what it hands over; and that the package it installs is whole.

The script runs in a small tree of its own, with an environment whose Python writes down what Snakemake, ruff and pytest
would have been called with.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from gptfluence.common.machine import cores

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300  # seconds until what should come about is given up

RECORDING_PYTHON = """\
#!/usr/bin/env bash
case "$*" in
    "-m snakemake"*) printf '%s\\n' "$@" > "$RECORD"; env > "$RECORD.env"; {duration}; exit ${{STATUS:-0}} ;;
    "-m ruff"* | "-m pytest"*) printf '%s ' "$@" >> "$RECORD"; [ "$2" != "${{FAILING:-}}" ] ;;
    *) exec {python} "$@" ;;
esac
"""


class Tree:
    """A repository in small: the real script, two profiles, one notebook, and an environment that records."""

    def __init__(self, root: Path):
        self.root = root
        self.record = root / "record"
        for folder in ("profiles", "notebooks", "tools", "environment/bin", "gptfluence/common"):
            (root / folder).mkdir(parents=True)
        shutil.copy(ROOT / "gptfluence/common/machine.py", root / "gptfluence/common")
        shutil.copy(ROOT / "run_all.sh", root)
        shutil.copy(ROOT / "tools" / "run_group.py", root / "tools")
        for name in ("mini", "smoke"):
            shutil.copy(ROOT / "profiles" / f"{name}.yaml", root / "profiles")
        (root / "notebooks" / "tab02_fine_tuning_loss.py").touch()
        self.write_python("true")
        lint = root / "environment" / "bin" / "lint-imports"
        lint.write_text('#!/bin/sh\nprintf "lint-imports " >> "$RECORD"\n')
        lint.chmod(0o755)

    def write_python(self, duration: str) -> None:
        """duration: a shell command that the recorded Snakemake spends its time with."""
        python = self.root / "environment" / "bin" / "python"
        python.write_text(RECORDING_PYTHON.format(python=sys.executable, duration=duration))
        python.chmod(0o755)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONDA_", "GPTFLUENCE_"))}
        own = {"VIRTUAL_ENV": str(self.root / "environment"), "RECORD": str(self.record)}
        return kept | own | {"GPTFLUENCE_SKIP_SETUP": "1"} | more

    def __call__(self, *arguments: str, script: Path | None = None, cwd: Path | None = None, **more: str):
        return subprocess.run(
            [script or self.root / "run_all.sh", *arguments],
            cwd=cwd or self.root,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def handed_over(self) -> list[str]:
        """The arguments that Snakemake was called with."""
        return self.record.read_text().splitlines()

    def config(self) -> dict[str, object]:
        """`--config`, read as Snakemake reads it."""
        words = self.handed_over()
        start = words.index("--config") + 1
        given = {name: json.loads(value) for name, value in (word.split("=", 1) for word in words[start : start + 3])}
        return {name: value if name == "overrides" else value[0] for name, value in given.items()}


@pytest.fixture
def run_all(tmp_path) -> Tree:
    return Tree(tmp_path / "a tree")  # a space in the path must not matter


def test_help_names_every_option(run_all):
    answer = run_all("--help")
    assert answer.returncode == 0
    for option in ("--profile", "--jobs", "--only", "--set", "--dry-run", "--test", "GPTFLUENCE_SKIP_SETUP"):
        assert option in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profil", "mini"], "'--profil' is not an option; known: --profile"),
        (["mini"], "'mini' is not an option"),
        (["--profile"], "--profile needs a value"),
        (["--profile", "huge"], "--profile huge: no such profile; known: mini, smoke"),
        (["--profile", "huge.yaml"], "--profile huge.yaml: there is no such file"),
        (["--jobs", "0"], "--jobs 0: a whole number"),
        (["--jobs", "two"], "--jobs two: a whole number"),
        (["--set", "epochs"], "--set epochs: KEY=VALUE is wanted"),
    ],
)
def test_a_mistake_is_named_and_nothing_runs(run_all, arguments, said):
    answer = run_all(*arguments)
    assert answer.returncode == 2
    assert said in answer.stderr
    assert not run_all.record.exists()


def test_defaults(run_all):
    answer = run_all()
    assert answer.returncode == 0, answer.stderr
    assert run_all.config() == {"profile": "mini", "only": "", "overrides": []}
    assert str(run_all.root / "figures/mini/") in answer.stdout
    assert str(run_all.root / "build/mini/notebooks/") in answer.stdout


def test_options_reach_the_workflow_as_they_are(run_all):
    override = """caption="it's *here*", \\ and there"""
    answer = run_all("--profile=smoke", "--jobs", "3", "--only", "*02*", "--set", override, "--", "--executor", "slurm")
    assert answer.returncode == 2  # no profile has such a field, and that is said before anything starts
    assert "caption" in answer.stderr

    answer = run_all("--dry-run", "--profile=smoke", "--only", "*02*", "--set", override, "--", "--executor", "slurm")
    assert answer.returncode == 0, answer.stderr
    assert run_all.config() == {"profile": "smoke", "only": "*02*", "overrides": [override]}
    assert run_all.handed_over()[-5:] == ["--executor", "slurm", "--dry-run", "--quiet", "rules"]


def test_number_of_jobs(run_all):
    run_all("--dry-run", "--jobs", "3")
    words = run_all.handed_over()
    assert words[words.index("--cores") + 1] == "3"
    run_all("--dry-run", OMP_NUM_THREADS="17")  # which `nproc` would take for a number of cores
    words = run_all.handed_over()
    assert words[words.index("--cores") + 1] == str(cores())


def test_modules_of_the_working_directory_are_not_taken_for_pythons_own(run_all, tmp_path):
    for name in ("random", "profile", "numpy", "typing", "fcntl"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is not the module that was meant')")
    answer = run_all("--only", "tab02*", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "this is not" not in answer.stderr


@pytest.mark.parametrize("home", [{"HOME": "/proc/nohome"}, {"HOME": ""}, {"XDG_CACHE_HOME": "/dev/null/cache"}])
def test_a_home_that_cannot_be_written_to_is_not_needed(run_all, home):
    unset = dict.fromkeys(("XDG_CACHE_HOME", "MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"), "")
    answer = run_all("--dry-run", **{**unset, **home})
    assert answer.returncode == 0, answer.stderr
    assert "cannot be written to" in answer.stdout
    seen = dict(line.split("=", 1) for line in Path(f"{run_all.record}.env").read_text().splitlines() if "=" in line)
    for variable in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        assert seen[variable].startswith(str(run_all.root / "build/cache"))
        assert Path(seen[variable]).is_dir()


def test_places_that_the_user_has_named_are_kept(run_all, tmp_path):
    own = {"MPLCONFIGDIR": str(tmp_path / "own"), "IPYTHONDIR": "/proc/nothing"}
    answer = run_all("--dry-run", HOME="/proc/nohome", XDG_CACHE_HOME="", **own)
    assert answer.returncode == 0, answer.stderr
    seen = Path(f"{run_all.record}.env").read_text().splitlines()
    assert {f"{name}={value}" for name, value in own.items()} <= set(seen)


def test_a_profile_that_means_two_files_is_refused(run_all, tmp_path):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "smoke.yaml").write_text("name: other\n")
    answer = run_all("--dry-run", "--profile", "profiles/smoke.yaml", cwd=tmp_path)
    assert answer.returncode == 2
    assert "give the whole path" in answer.stderr
    answer = run_all("--dry-run", "--profile", "profiles/smoke.yaml")
    assert answer.returncode == 0, answer.stderr


def test_downloads_in_a_home_that_is_read_only_are_still_found(run_all, tmp_path):
    (tmp_path / "home" / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / "home" / ".cache").chmod(0o555)
    fake = run_all.root / "environment/bin/mktemp"  # root may write everywhere
    fake.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    fake.chmod(0o755)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    assert run_all("--dry-run", HOME=str(tmp_path / "home"), XDG_CACHE_HOME="", PATH=path).returncode == 0
    assert f"HF_HOME={tmp_path}/home/.cache/huggingface\n" in Path(f"{run_all.record}.env").read_text()


def test_line_breaks_are_refused_and_any_script_is_not(run_all):
    answer = run_all("--set", "title=two\nlines")
    assert answer.returncode == 2
    assert "line breaks and the like cannot be given" in answer.stderr
    for locale in ("C", "en_US.ISO-8859-1", "C.UTF-8"):
        answer = run_all("--dry-run", "--set", "title=评论 $HOME `ls` {x} 'and' more", LC_ALL=locale)
        assert answer.returncode == 0, answer.stderr
        assert run_all.config()["overrides"] == ["title=评论 $HOME `ls` {x} 'and' more"]


def test_folders_of_any_name_work_and_cdpath_leads_nowhere(tmp_path):
    tree = Tree(tmp_path / 'it\'s {x} & "y"; $HOME 评论')
    (tmp_path / "other" / "sub").mkdir(parents=True)
    (tree.root / "sub").mkdir()
    own = (ROOT / "profiles" / "smoke.yaml").read_text(encoding="utf-8").replace("name: smoke", "name: own")
    (tree.root / "sub" / "-my {p} 2024.yaml").write_text(own, encoding="utf-8")
    answer = tree("--dry-run", "--profile", "sub/-my {p} 2024.yaml", CDPATH=str(tmp_path / "other"))
    assert answer.returncode == 0, answer.stderr
    assert tree.config()["profile"] == str(tree.root / "sub" / "-my {p} 2024.yaml")
    words = tree.handed_over()
    assert words[words.index("--directory") + 1] == str(tree.root)


def test_a_profile_of_ones_own_is_found_and_its_results_are_announced_where_they_are(run_all, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text((ROOT / "profiles" / "smoke.yaml").read_text().replace("name: smoke", "name: own"))
    answer = run_all("--profile", "mine.yaml", "--set", "settings.fine_tuning.runs.train=3", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert run_all.config()["profile"] == str(mine)
    assert str(run_all.root / "figures/own-") in answer.stdout  # a changed profile's results bear a mark


def test_dry_run_prints_the_command_and_asks_the_workflow_only(run_all):
    answer = run_all("--dry-run")
    assert answer.returncode == 0, answer.stderr
    assert "-m snakemake --snakefile" in answer.stdout
    assert "--dry-run" in run_all.handed_over()
    assert not (run_all.root / "build").exists()


def test_dry_run_sets_nothing_up(run_all):
    answer = run_all("--dry-run", GPTFLUENCE_SKIP_SETUP="")
    assert answer.returncode == 0, answer.stderr
    assert "-m snakemake" in answer.stdout
    assert "not set up yet" in answer.stdout
    assert not run_all.record.exists()


@pytest.mark.parametrize("absolute", [True, False])
def test_works_from_anywhere_and_through_a_symbolic_link(run_all, tmp_path, absolute):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = elsewhere / "reproduce"
    target = run_all.root / "run_all.sh"
    link.symlink_to(target if absolute else os.path.relpath(target, elsewhere))
    answer = run_all(script=link, cwd=elsewhere)
    assert answer.returncode == 0, answer.stderr
    words = run_all.handed_over()
    assert words[words.index("--directory") + 1] == str(run_all.root)


def test_jobs_are_single_threaded_and_pictures_stay_in_notebooks(run_all):
    run_all(MPLBACKEND="", OMP_NUM_THREADS="8")
    seen = dict(line.split("=", 1) for line in Path(f"{run_all.record}.env").read_text().splitlines() if "=" in line)
    assert (seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"]) == ("1", "1")
    assert (seen["TOKENIZERS_PARALLELISM"], seen["PYTHONHASHSEED"]) == ("false", "0")
    assert not seen.get("MPLBACKEND")
    assert seen["PATH"].startswith(str(run_all.root / "environment/bin"))


def test_a_failed_workflow_fails_the_script(run_all):
    answer = run_all(STATUS="3")
    assert answer.returncode == 3
    assert "the next run goes on from here" in answer.stdout


def test_checks_all_run_and_the_worst_decides(run_all):
    answer = run_all("--test", "--", "-k", "curriculum", FAILING="ruff")
    assert answer.returncode == 1
    called = run_all.record.read_text()
    for check in ("-m ruff check", "-m ruff format --check", "lint-imports", "-m pytest --numprocesses"):
        assert check in called
    assert "--dist loadfile --cov=gptfluence" in " ".join(called.split())
    assert called.rstrip().endswith("-k curriculum")
    assert run_all("--test").returncode == 0


def started(run_all: Tree) -> subprocess.Popen:
    """A run whose workflow takes longer than anybody waits for it, once it is at it."""
    run_all.write_python(f"sleep {2 * PATIENCE}")
    process = subprocess.Popen(
        [run_all.root / "run_all.sh"],
        env=run_all.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(Path(f"{run_all.record}.env").exists, "the workflow did not start")
    assert not is_over(process)
    run_all.write_python("true")
    return process


def wait_until(state: Callable[[], bool], otherwise: str) -> None:
    """Wait for a state, for minutes if need be: how long it takes says nothing, a machine may be busy."""
    deadline = time.monotonic() + PATIENCE
    while not state():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def gets_through(run_all: Tree) -> bool:
    """Whether another run finds nothing in its way."""
    return run_all().returncode == 0


def is_over(process: subprocess.Popen) -> bool:
    """Whether no process is left of the session that was started with this one, in whatever group it is."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True, check=True).stdout
    alive = [int(pid) for pid, state in map(str.split, listed.splitlines()) if not state.startswith("Z")]
    return process.pid not in map(session_of, alive)


def session_of(pid: int) -> int | None:
    """The session that a process belongs to; None if it has ended, or is not ours to ask about."""
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def test_two_runs_of_a_study_exclude_each_other_and_a_stop_stops_the_jobs(run_all):
    process = started(run_all)
    answer = run_all()
    assert answer.returncode == 1
    assert "another run_all.sh is computing study mini" in answer.stderr
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=PATIENCE)
    wait_until(lambda: gets_through(run_all), "the stopped run still holds its lock")
    wait_until(lambda: is_over(process), "processes of the stopped run are left")


def test_a_killed_run_takes_its_jobs_with_it(run_all):
    process = started(run_all)
    process.kill()
    process.wait()
    wait_until(lambda: gets_through(run_all), "the killed run still holds its lock")
    wait_until(lambda: is_over(process), "processes of the killed run are left")


def test_the_lock_holds_every_direct_dependency_and_nothing_local():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    locked = {line.split("==")[0] for line in lines}
    names = {entry.split(">")[0].split("=")[0].replace("_", "-") for entry in direct}
    assert names <= locked
    assert all("==" in line and "+" not in line and "://" not in line for line in lines)
