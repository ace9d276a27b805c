"""Files that are whole or absent: atomic writes, checksums, and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from gptfluence.common.errors import ArtifactError

CHECKSUMS = "checksums.json"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def write_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what a full disk or an unwritable folder raises into an ArtifactError that says so."""
    try:
        yield
    except OSError as error:
        remedy = {
            errno.ENOSPC: "the disk is full: free some space and run again; what is recorded so far is kept",
            errno.EDQUOT: "the disk quota is used up: free some space and run again; what is recorded so far is kept",
            errno.EACCES: "no permission to write there: choose another folder with GPTFLUENCE_ARTIFACTS",
            errno.EPERM: "no permission to write there: choose another folder with GPTFLUENCE_ARTIFACTS",
            errno.EROFS: "the file system is read-only: choose another folder with GPTFLUENCE_ARTIFACTS",
            errno.EEXIST: "a file is in the way of a folder: choose another folder with GPTFLUENCE_ARTIFACTS",
            errno.ENOTDIR: "a file is in the way of a folder: choose another folder with GPTFLUENCE_ARTIFACTS",
        }.get(error.errno or 0)
        if remedy is None and "No space left" not in str(error):
            raise
        raise ArtifactError(f"{doing}: cannot write {path}: {remedy or 'the disk is full'}") from error


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path`; the kernel frees it when the holder dies. With `wait=False` yields False if it is taken."""
    with write_errors(path, "locking"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except TimeoutError:
            yield False
            return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def new_folder(place: Path, doing: str) -> Iterator[Path]:
    """Fill a folder beside `place`; when the block ends well, its checksums are written and it is renamed to `place`.

    A kill at any moment leaves either no `place` or a whole one. The caller holds the lock that makes it the only writer,
    and so may remove what an earlier writer left half done.
    """
    prefix = f".{place.name}.writing-"
    with write_errors(place, doing):
        place.parent.mkdir(parents=True, exist_ok=True)
        for leftover in place.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place.parent))
        try:
            yield folder
            os.chmod(folder, 0o777 & ~_umask())  # mkdtemp makes it private; artifacts are shared like other files
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            sums = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
            for path in files:
                _sync(path)
            write_json(folder / CHECKSUMS, sums)
            os.rename(folder, place)
            _sync(place.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """What is wrong with an artifact's folder: None if every file is there with the checksum it was written with."""
    marker = folder / CHECKSUMS
    try:
        sums = json.loads(marker.read_text())
        for name, expected in sums.items():
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if sha256(path) != expected:
                return f"{path} has changed since it was written (checksum)"
    except (OSError, ValueError, AttributeError):
        return f"{marker} is missing or unreadable"
    return None


def verify(folder: Path) -> None:
    """Raise ArtifactError that names the damaged file."""
    problem = damage(folder)
    if problem:
        raise ArtifactError(f"{problem}; delete {folder} to have it made again")


def set_aside(folder: Path) -> Path:
    """Rename a damaged artifact, a folder or a file, so that it can be made again and still be looked at."""
    number = 1
    while (place := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
        number += 1
    with write_errors(folder, "setting a damaged artifact aside"):
        os.rename(folder, place)
    return place


def put_aside(place: Path, problem: str, *, what: str) -> None:
    """Set a damaged artifact aside with a warning: one wording for everything that is made again.

    what: the artifact in words, e.g. "simulator gptfluence"; problem: what is wrong with it
    """
    warnings.warn(f"{what}: {problem}; set aside as {set_aside(place).name}, made again", stacklevel=3)


def made(folder: Path, make: Callable[[Path], object], *, what: str) -> Path:
    """An artifact's folder, made if it is not there: the one protocol for everything that is cached.

    Under the folder's lock a damaged folder is set aside with a warning, and a missing one is filled by `make`, which is
    given a folder to write into. what: the artifact in words, for messages, e.g. "simulator gptfluence".
    """
    if folder.is_dir() and damage(folder) is None:
        return folder
    with locked(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir() and (problem := damage(folder)):
            put_aside(folder, problem, what=what)
        if not folder.is_dir():
            with new_folder(folder, f"saving {what}") as new:
                make(new)
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing; leaves the file alone if it already says this."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing; leaves the file alone if it already holds this."""
    with write_errors(path, "writing"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.read_bytes() == content:
            return
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


def write_json(path: Path, value: object) -> None:
    """Write `value` with sorted keys, so that equal values make equal files. Raises ArtifactError as `write_text`."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
