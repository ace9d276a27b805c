"""Where an output comes from: what is written beside every figure and table, and how it is written.

What a rerun leaves as it is (command, parameters, seeds, artifacts, versions, caption) stands beside what it does not
(commit, date, device, duration), and the latter stands under "run". An output whose other facts and files did not
change keeps the "run" it was first made by, so that a rerun does not touch a clean working tree.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from gptfluence.common import files

PACKAGES = (
    "gptfluence",
    "torch",
    "transformers",
    "peft",
    "sentence-transformers",
    "sacrebleu",
    "rouge-score",
    "numpy",
    "pandas",
    "scipy",
    "matplotlib",
    "seaborn",
)
OUTPUTS = ("figures", "benchmarks/results")  # folders whose files are made by what is committed


def collect(
    *,
    command: str,
    profile: Any,
    parameters: Mapping[str, Any],
    sources: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | Mapping[str, int] | None = None,
    device: str = "cpu",
    seconds: float | None = None,
) -> dict[str, Any]:
    """Everything that says how an output was made, for `save`.

    command: remakes it; profile: the study's, or its name alone; parameters: as resolved, not only as given
    sources: name -> the hashes or the provenance of an artifact it was drawn from
    seeds: the profile's unless given; seconds: wall time
    """
    resolved = profile.model_dump(mode="json") if hasattr(profile, "model_dump") else {}
    if seeds is None:
        seeds = {"study": resolved["seed"]} if "seed" in resolved else []
    return {
        "command": command,
        "profile": getattr(profile, "name", profile),
        "study": resolved,
        "parameters": dict(parameters),
        "seeds": dict(seeds) if isinstance(seeds, Mapping) else list(seeds),
        "artifacts": dict(sources or {}),
        "versions": versions(),
        "run": {
            **git_state(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_time_seconds": None if seconds is None else round(seconds, 1),
            "device": device,
            "platform": platform.platform(),
        },
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers and pictures depend on; without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(file: Path = Path(__file__)) -> dict[str, Any]:
    """commit, and whether the tree is clean (`OUTPUTS` aside); both None if `file` is not under git."""
    # A copy installed inside somebody else's repository must not pass for a state of that repository.
    tracked = _git(file.parent, "ls-files", "--error-unmatch", "--", file.name)
    commit = _git(file.parent, "rev-parse", "HEAD") if tracked is not None else None
    if commit is None:
        return {"commit": None, "clean": None}
    but = [f":(top,exclude){name}" for name in OUTPUTS]
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no", "--", ":/", *but)
    return {"commit": commit, "clean": None if changes is None else not changes}


def committed(path: Path) -> str | None:
    """The text that a file has in the last commit; None if it is not in it, or not under git."""
    return _git(path.parent, "show", f"HEAD:./{path.name}")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a file system that hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def save(
    folder: Path, name: str, contents: Mapping[str, bytes], *, caption: str, provenance: Mapping[str, Any]
) -> list[Path]:
    """Write `name` + suffix for every suffix of `contents` and `name`.json last, each whole or not at all.

    Files that already hold this are left alone, and so is the json if nothing in it but "run" would change.
    Returns the paths, the json's last. Raises ArtifactError where nothing can be written.
    """
    folder = Path(folder)
    paths = []
    for suffix, content in contents.items():
        path = folder / f"{name}{suffix}"
        files.write_bytes(path, content)
        paths.append(path)
    hashes = {f"{name}{suffix}": hashlib.sha256(content).hexdigest() for suffix, content in contents.items()}
    facts = _plain({**provenance, "caption": caption, "files": hashes})
    path = folder / f"{name}.json"
    if _without_run(_read(path)) != _without_run(facts):
        files.write_json(path, facts)
    return [*paths, path]


def _plain(value: object) -> Any:
    """As it would be read back: tuples are lists, paths are text, numpy's numbers are Python's."""
    return json.loads(json.dumps(value, default=lambda thing: thing.item() if hasattr(thing, "item") else str(thing)))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _without_run(facts: Any) -> Any:
    return {key: value for key, value in facts.items() if key != "run"} if isinstance(facts, dict) else None
