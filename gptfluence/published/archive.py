"""The files of a published archive, by name: a folder, a tar, or a folder with tars in it. Nothing is unpacked.

A tar's members are read where they lie, so no member can write anywhere. All the same, a tar with a member that could
leave its folder (absolute, `..`) or is no plain file (link, device) is refused whole: it is not what was published.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import posixpath
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PureWindowsPath
from typing import IO

from gptfluence.common.errors import DataError
from gptfluence.common.files import write_errors

TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
TEXT_FOLDERS = ("sft_tasks", "it_tasks")  # lie beside the tar of runs
MAX_FILE_BYTES = 2**30  # the largest that the format gives is about 10 MB
BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


class Archive:
    """Files by name (posix, relative). A member of a tar in a folder is `<tar's name>/<member's name>`."""

    def __init__(self, place: Path, read: dict[str, Callable[[], bytes]], broken: list[str]):
        """broken: links in the folder that lead nowhere"""
        self.place, self._read, self.broken = place, read, broken

    @property
    def names(self) -> list[str]:
        return sorted(self._read)

    def read(self, name: str) -> bytes:
        """The whole content. Raises DataError that names archive and file if it cannot be read."""
        try:
            return self._read[name]()
        except (OSError, tarfile.TarError, EOFError) as error:
            raise DataError(f"{self.place}: {name} cannot be read: {error}") from error


@contextmanager
def open_archive(path: Path, scratch: Path) -> Iterator[Archive]:
    """The files of a folder (tars in it are looked into) or of a tar (with the texts that lie beside it).

    scratch: folder for the plain form of a compressed tar, which exists while the archive is open.
    Raises DataError that names the path, or tar and member.
    """
    with ExitStack() as opened:
        read: dict[str, Callable[[], bytes]] = {}
        broken: list[str] = []
        if path.is_dir():
            broken = _add_folder(read, path, "")
            for name in [name for name in sorted(read) if name.lower().endswith(TAR)]:
                del read[name]
                _add_tar(read, path / name, f"{name}/", scratch, opened)
        elif path.is_file():
            _add_tar(read, path, "", scratch, opened)
            for folder in TEXT_FOLDERS:
                if (path.parent / folder).is_dir():
                    _add_folder(read, path.parent / folder, f"{folder}/")
        else:
            raise DataError(f"{path} does not exist; give the folder or the tar of the published GPTDynamics data")
        yield Archive(path, read, broken)


def _add_folder(read: dict[str, Callable[[], bytes]], folder: Path, prefix: str) -> list[str]:
    """Add the files of a folder, and of folders that links in it lead to: each folder once. Returns links that lead nowhere."""
    broken: list[str] = []
    seen: set[Path] = set()
    to_walk = [folder]
    while to_walk:
        top = to_walk.pop(0)
        if top != folder and folder.resolve().is_relative_to(top.resolve()):  # a link back up
            continue
        for parent, folders, names in os.walk(top, onerror=_refuse):
            place = Path(parent)
            if place.resolve() in seen:  # a cycle, or a second way to the same files
                folders.clear()
                continue
            seen.add(place.resolve())
            # a download keeps its own records in hidden folders
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            to_walk += [place / name for name in folders if (place / name).is_symlink()]  # after what is really here
            for name in sorted(names):
                file = place / name
                if file.exists():
                    _add(read, prefix + file.relative_to(folder).as_posix(), file.read_bytes, folder)
                else:
                    broken.append(file.relative_to(folder).as_posix())
    return broken


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _add(read: dict[str, Callable[[], bytes]], name: str, content: Callable[[], bytes], place: Path) -> None:
    if name in read:
        raise DataError(f"{place}: {name!r} is there twice; keep one of the two")
    read[name] = content


def _add_tar(read: dict[str, Callable[[], bytes]], path: Path, prefix: str, scratch: Path, opened: ExitStack) -> None:
    file = opened.enter_context(path.open("rb"))
    magic = file.read(6)
    file.seek(0)
    for start, opener in _COMPRESSED.items():
        if magic.startswith(start):
            file = opened.enter_context(_plain(path, opener, scratch))
    try:
        tar = opened.enter_context(tarfile.TarFile(fileobj=file))
        for member in tar:
            name = _checked_name(member, path)
            if member.isreg():
                _add(read, prefix + name, lambda member=member: tar.extractfile(member).read(), path)  # type: ignore[union-attr]
        # tarfile stops without a word at a header it cannot read; a whole archive stops at a block of zeros
        file.seek(tar.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise DataError(f"{path}: damaged or cut short at byte {tar.offset}; get the archive again")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is not a whole tar archive: {error}; get it again") from error


def _checked_name(member: tarfile.TarInfo, path: Path) -> str:
    """The member's name without empty parts and dots. Raises DataError that names a member not to be trusted."""
    name, kind = member.name, None
    if not hasattr(tarfile, "data_filter"):
        raise DataError(
            f"{path}: to read archives safely takes Python 3.11.4 or newer; update Python, or unpack it yourself"
        )
    try:
        tarfile.data_filter(member, str(path))
    except tarfile.SpecialFileError:
        kind = "a device or a pipe"
    except tarfile.FilterError:
        kind = "a path that leaves the archive"
    # what the filter lets pass, but is not what was published either
    if member.issym() or member.islnk():
        kind = "a symbolic link" if member.issym() else "a hard link"
    elif member.issparse():
        kind = "a sparse file"
    elif name.startswith("/") or PureWindowsPath(name).anchor or "\\" in name:
        kind = "an absolute path or a path of another system"
    elif kind is None and ".." in name.split("/"):
        kind = "a path with '..' in it"
    elif member.size > MAX_FILE_BYTES:
        kind = f"{member.size} bytes large, more than any file of the published data"
    if kind is not None:
        raise DataError(
            f"{path}: member {name!r} is {kind}; nothing was imported. If you trust the archive, unpack it yourself and "
            "give the folder"
        )
    return posixpath.normpath(name)


@contextmanager
def _plain(path: Path, opener: Callable[..., IO[bytes]], scratch: Path) -> Iterator[IO[bytes]]:
    """A compressed tar, decompressed into a file without a name: its members are then read in any order."""
    with write_errors(scratch, f"decompressing {path.name}"):
        scratch.mkdir(parents=True, exist_ok=True)
        plain = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 (closed below)
    with plain, opener(path) as compressed:
        while chunk := _next_chunk(compressed, path):
            with write_errors(scratch, f"decompressing {path.name}"):
                plain.write(chunk)
        with write_errors(scratch, f"decompressing {path.name}"):
            plain.seek(0)
        yield plain


def _next_chunk(compressed: IO[bytes], path: Path) -> bytes:
    try:
        return compressed.read(2**20)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} cannot be decompressed: {error}; get the archive again") from error
