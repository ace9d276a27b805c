"""Wheels and source distributions made in a test, which pip finds in a folder and nowhere else."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gptfluence.common import files
from gptfluence.common.packages import Package

SETUP = 'from setuptools import setup\nsetup(name="{name}", version="{version}")\n'


def wheel(folder: Path, name: str, contents: Mapping[str, bytes], version: str = "1.0") -> dict[str, Any]:
    """The pins of a wheel that is written into `folder`."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in {**contents, **metadata}.items():
            archive.writestr(inside, content)
    return _pins(path)


def sdist(folder: Path, name: str, contents: Mapping[str, bytes], version: str = "1.0") -> dict[str, Any]:
    """The pins of a source distribution that is written into `folder`."""
    path = folder / f"{name}-{version}.tar.gz"
    top, setup = f"{name}-{version}", SETUP.format(name=name, version=version).encode()
    info = f"Metadata-Version: 1.0\nName: {name}\nVersion: {version}\n".encode()
    with tarfile.open(path, "w:gz") as archive:
        for inside, content in {**contents, "setup.py": setup, "PKG-INFO": info}.items():
            member = tarfile.TarInfo(f"{top}/{inside}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return _pins(path)


def _pins(path: Path) -> dict[str, Any]:
    return {"archive": path.name, "sha256": files.sha256(path), "size": path.stat().st_size, "licence": "MIT"}


def put(folder: Path, pins: Mapping[str, Any]) -> Package:
    """The package of these pins, copied from `folder` to where it is looked for."""
    package = Package(**{name: value for name, value in pins.items() if name != "file"})
    package.place.parent.mkdir(parents=True, exist_ok=True)
    package.place.write_bytes((folder / package.archive).read_bytes())
    return package


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """The folder in which pip looks for packages; artifacts, and so fetched packages, lie beside it."""
    monkeypatch.setenv("GPTFLUENCE_ARTIFACTS", str(tmp_path / "artifacts"))
    for name, value in {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "index")}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    (tmp_path / "index").mkdir()
    return tmp_path / "index"
