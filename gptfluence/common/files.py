"""Files that are whole or absent: their names, atomic writes, checksums, and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

from gptfluence.common.errors import ArtifactError, ConfigurationError

CHECKSUMS = "checksums.json"
ELSEWHERE = "choose another folder; GPTFLUENCE_ARTIFACTS sets that of a study"
# what file systems answer that lack something: some network and FUSE file systems have no locks, modes or fsync
_LACKING = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def slug(name: str) -> str:
    """A name as a part of the name of a file, in letters that every file system and shell takes as they are.

    Different names may have the same slug: a hash belongs beside it, see `slug_of_its_own`.
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:150]


def slug_of_its_own(*parts: str) -> str:
    """Names joined by "--" as the name of a file: other names have another one, also where case does not count.

    >>> slug_of_its_own("nano", "sst2"), slug_of_its_own("nano", "r&d")
    ('nano--sst2', 'nano--r_d-b30af8')
    """
    whole = "--".join(parts)
    if slug(whole).lower() == whole and not any("--" in part for part in parts):
        return whole
    return f"{slug(whole)}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:6]}"


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
            errno.EACCES: f"no permission to write there: {ELSEWHERE}",
            errno.EPERM: f"no permission to write there: {ELSEWHERE}",
            errno.EROFS: f"the file system is read-only: {ELSEWHERE}",
            errno.EEXIST: f"a file is in the way of a folder: {ELSEWHERE}",
            errno.ENOTDIR: f"a file is in the way of a folder: {ELSEWHERE}",
        }.get(error.errno or 0)
        if remedy is None and isinstance(error.filename, str | Path) and Path(error.filename) in (path, *path.parents):
            remedy = f"{error.strerror}: {ELSEWHERE}"
        if remedy is None and "No space left" not in str(error):
            raise
        raise ArtifactError(f"{doing}: cannot write {path}: {remedy or 'the disk is full'}") from error


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path`; the kernel frees it when the holder dies. With `wait=False` yields False if it is taken."""
    with write_errors(path, "locking"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquired(path, timeout=-1 if wait else 0)
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _acquired(path: Path, timeout: float) -> BaseFileLock | None:
    """The held lock; None if it is taken. Where the file system has no locks, a file beside `path` marks that it is held."""
    try:
        lock: BaseFileLock = FileLock(path, timeout=timeout)
        try:
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            if isinstance(error, TimeoutError) or getattr(error, "errno", errno.ENOSYS) not in _LACKING:
                raise
            warnings.warn(
                f"this file system has no locks ({error}); files *.held mark what a process is making. If one was killed on "
                "another machine, delete them, or choose a folder on another file system with GPTFLUENCE_ARTIFACTS",
                stacklevel=4,
            )
            lock = SoftFileLock(path.with_name(f"{path.name}.held"), timeout=timeout)
            lock.acquire()
    except TimeoutError:
        return None
    return lock


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
            _share(folder, 0o777)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            sums = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
            for path in files:
                _sync(path)
            write_json(folder / CHECKSUMS, sums)
            os.rename(folder, place)
            _sync(place.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _share(path: Path, mode: int) -> None:
    """What tempfile makes is private; artifacts are shared like other files, where the file system has modes."""
    umask = os.umask(0)
    os.umask(umask)
    with suppress(PermissionError), _where_possible():
        os.chmod(path, mode & ~umask)


@contextmanager
def _where_possible() -> Iterator[None]:
    """Pass over what the file system lacks."""
    try:
        yield
    except OSError as error:
        if error.errno not in _LACKING:
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _where_possible():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """What is wrong with an artifact's folder: None if every file is there with the checksum it was written with."""
    marker = folder / CHECKSUMS
    try:
        sums = json.loads(marker.read_text(encoding="utf-8"))
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


def check_writable(path: Path, option: str) -> None:
    """Make the folder of a file that will be written after long work, and see that it takes files.

    Raises ConfigurationError that names the option which asked for it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder; a file is wanted")
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ConfigurationError(f"{option} {path}: cannot be written: {error.strerror}; name another place") from None


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
                with _where_possible():
                    os.fsync(file.fileno())
            _share(Path(name), 0o666)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


def write_json(path: Path, value: object) -> None:
    """Write `value` with sorted keys, so that equal values make equal files. Raises ArtifactError as `write_text`.

    Paths may hold bytes that are no text (as lone surrogates); they are read back as they were.
    """
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    write_bytes(path, f"{text}\n".encode(errors="backslashreplace"))
