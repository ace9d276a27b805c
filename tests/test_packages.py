"""Packages on PyPI that are read as data: fetched after they were named, pinned, and never run from."""

from __future__ import annotations

from collections import namedtuple

import pytest
from pydantic import ValidationError

from gptfluence.common import packages
from gptfluence.common.errors import PackageError
from gptfluence.common.packages import Package, opened
from packages_of_ones_own import index, put, sdist, wheel  # noqa: F401

RUINOUS = {"texts/__init__.py": b"raise SystemExit('imported')", "texts/rows.txt": b"one\ntwo\n"}


def read(package: Package, name: str) -> bytes:
    with opened(package) as contents, contents.open(name) as file:
        return file.read()


@pytest.mark.parametrize("make", [wheel, sdist])
def test_a_package_is_named_then_fetched_once_and_read_without_being_imported(index, make):
    package = Package(**make(index, "texts", RUINOUS))
    said: list[str] = []
    packages.fetch([package, package], say=said.append)
    assert len(said) == 2
    assert "texts==1.0 (0.0 MB, MIT)" in said[1]
    assert read(package, "texts/rows.txt") == b"one\ntwo\n"
    with opened(package) as contents:
        assert "texts/rows.txt" in contents.names
    (index / package.archive).unlink()
    packages.fetch([package], say=said.append)  # it is here: nothing is said, and nothing asked of the index
    assert len(said) == 2
    assert sorted(path.name for path in package.place.parent.iterdir()) == [".lock", package.archive]


def test_what_is_fetched_must_have_the_pinned_hash(index):
    package = Package(**{**wheel(index, "texts", RUINOUS), "sha256": "0" * 64})
    with pytest.raises(PackageError, match=r"texts==1\.0: PyPI's texts-1\.0-.* does not have the pinned SHA-256 0000"):
        packages.fetch([package], say=lambda _: None)
    assert not package.place.exists()


def test_a_damaged_package_is_not_read_and_is_fetched_again(index):
    package = put(index, wheel(index, "texts", RUINOUS))
    package.place.write_bytes(package.place.read_bytes()[:-1])
    with pytest.raises(PackageError, match=r"has the SHA-256 .* not the pinned .*gptfluence fetch --profile"):
        read(package, "texts/rows.txt")
    with pytest.warns(UserWarning, match=r"set aside as texts-1\.0-py3-none-any\.whl\.damaged-1"):
        packages.fetch([package], say=lambda _: None)
    assert read(package, "texts/rows.txt") == b"one\ntwo\n"


def test_a_package_that_is_not_here_is_an_error_with_the_command_and_the_place(index):
    package = Package(**wheel(index, "texts", RUINOUS))
    with pytest.raises(
        PackageError, match=r"texts==1\.0 .* is not here; get it with: gptfluence fetch .*, or copy texts"
    ):
        read(package, "texts/rows.txt")


def test_without_a_network_a_package_can_be_brought_by_hand(index, monkeypatch):
    package = Package(**wheel(index, "texts", RUINOUS))
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    with pytest.raises(
        PackageError, match=r"PyPI cannot be reached; on a machine with a network run `pip download .*texts==1\.0"
    ):
        packages.fetch([package], say=lambda _: None)
    put(index, package.model_dump())
    packages.fetch([package], say=lambda _: pytest.fail("it is here"))


def test_a_version_that_the_index_does_not_have_is_an_error_with_pips_reason(index):
    package = Package(**wheel(index, "texts", RUINOUS))
    (index / package.archive).unlink()
    with pytest.raises(PackageError, match=r"texts==1\.0: pip could not fetch it: No matching distribution"):
        packages.fetch([package], say=lambda _: None)


def test_a_full_disk_is_seen_before_anything_is_fetched(index, monkeypatch):
    package = Package(**{**wheel(index, "texts", RUINOUS), "size": 5_000_000_000})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(packages.shutil, "disk_usage", lambda _: usage(0, 0, 10**9))
    with pytest.raises(PackageError, match=r"5\.00 GB are needed in .*, and 1\.00 GB are free; free some space"):
        packages.fetch([package], say=lambda _: None)


def test_a_file_that_the_archive_lacks_is_named(index):
    package = put(index, wheel(index, "texts", RUINOUS))
    with pytest.raises(PackageError, match=r"texts-1\.0-py3-none-any\.whl has no file texts/row\.txt"):
        read(package, "texts/row.txt")


@pytest.mark.parametrize("archive", ["texts.rar", "texts-1.0.zip"])
def test_an_archive_is_a_wheel_or_a_source_distribution(archive):
    with pytest.raises(ValidationError, match=rf"'{archive}' is not the name of a wheel"):
        Package(archive=archive, sha256="0" * 64, size=1, licence="MIT")
