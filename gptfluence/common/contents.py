"""What a file really is, by its first bytes, where it is not what its name says."""

from __future__ import annotations

import re
from pathlib import Path

HEAD = 512  # bytes that are looked at
_LFS = b"version https://git-lfs"
POINTER = "is a Git LFS (or git-annex) pointer, not the file itself; run git lfs pull in its folder"
_ANNEX = re.compile(rb"\s*(\.\./)*(\.git)?/annex/objects/")
_ARRAY = re.compile(rb"\s*\[\s*(\{|\Z)")
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # an empty one
    b"\x1f\x9d": "compress",
    b"LZIP": "lzip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}
_OTHERS = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"SQLite format 3": "SQLite",
    b"\x89HDF\r\n": "HDF5",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"\x93NUMPY": "NumPy",
    b"%PDF-": "PDF",
}


def is_pointer(head: bytes) -> bool:
    """Whether a file is a pointer that Git LFS, or git-annex, left in place of the file itself."""
    return head.startswith(_LFS) or _ANNEX.match(head) is not None


def not_text(head: bytes) -> str | None:
    """What a file of JSON Lines is instead, with the remedy: "is compressed (gzip); unpack it". None: perhaps it is one.

    head: its beginning, `HEAD` bytes at least; all of it if it is shorter
    """
    head = head[:HEAD].removeprefix(b"\xef\xbb\xbf")
    if head.startswith(_LFS):
        return "is a Git LFS pointer, not the file; run git lfs pull where it was cloned"
    if _ANNEX.match(head):
        return "is a git-annex pointer, not the file; run git annex get where it was cloned"
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return f"is compressed ({name}); unpack it"
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it"
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            return f"is a file of {name}, not JSON Lines; write one JSON object per line"
    if b"\0" in head:  # JSON writes it as \u0000
        return "is not UTF-8 text: it holds zero bytes, as UTF-16, binary files and files that were not written to their end do"
    if _ARRAY.match(head):
        return "is a JSON array; write one JSON object per line, without brackets and commas around them (jq -c '.[]')"
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not the file; download the file itself (its raw content)"
    return None


def first_bytes(path: Path) -> bytes:
    """The beginning of a file; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""
