"""Features of texts on disk: one safetensors file for each encoder and set of texts, which says what it was made from.

What features do not say of their texts (`Losses`) stands in the file, too, so that a reader of the file is warned of it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from gptfluence.common import files
from gptfluence.tasks.base import TaskPool

LOSSES = "losses"  # an entry of a file's metadata


@dataclass
class Losses:
    """What an encoder did not read of texts; numbers are positions of examples."""

    cut: list[int] = field(default_factory=list)  # prompts without their middle
    cut_targets: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)  # texts with tokens that it does not know
    unknown_tokens: int = 0
    tokens: int = 0  # of all texts
    same: list[tuple[int, int]] = field(default_factory=list)  # of other text, but of the tokens of an earlier example

    def warn(self, pool: TaskPool, name: str, max_tokens: int) -> None:
        """Warnings with numbers, for examples that are the same texts in this order. name: the encoder's"""
        encoder, all_of_them = f"encoder {name!r}", len(pool)
        first = lambda found: f"{len(found)} examples (first: {pool[found[0]].id!r})"  # noqa: E731
        said = []
        if self.cut:
            said.append(
                f"{first(self.cut)} are longer than the {max_tokens} tokens that {encoder} reads, of {all_of_them} in "
                "all; it sees them without the middle of their prompt"
            )
        if self.cut_targets:
            said.append(
                f"{first(self.cut_targets)} have targets longer than the {max_tokens} tokens that {encoder} reads, "
                f"of {all_of_them} in all; it sees only how those targets begin"
            )
        if self.unknown:
            said.append(
                f"{first(self.unknown)} of {all_of_them} have tokens that {encoder} does not know, {self.unknown_tokens} of "
                f"{self.tokens}; it reads all of them as one and the same. Choose an encoder for this language"
            )
        if self.same:
            said.append(
                f"{len(self.same)} of {all_of_them} examples have the features of another one though their texts differ "
                f"(first: {pool[self.same[0][0]].id!r} and {pool[self.same[0][1]].id!r}): {encoder} reads the same tokens"
            )
        for text in said:
            warnings.warn(f"{pool.name}: {text}", stacklevel=4)


def cached(
    path: Path, compute: Callable[[], tuple[np.ndarray, Losses]], *, shape: tuple[int, int], facts: Mapping[str, str]
) -> tuple[np.ndarray, Losses]:
    """The features in `path`, float32 of this shape, and what they do not say; computed and written if they are not there.

    facts: what the features depend on, which a file must name. A file that is damaged, or was made from something else, is
    set aside with a warning. Raises ArtifactError if nothing can be written.
    """
    features = read(path, shape, facts)
    if isinstance(features, np.ndarray):
        return features, _losses(path)
    with files.locked(path.with_name(f".{path.name}.lock")):
        features = read(path, shape, facts)  # another process may have been faster
        if isinstance(features, str):
            files.put_aside(path, features, what="cached features")
        if isinstance(features, np.ndarray):
            return features, _losses(path)
        features, losses = compute()
        _write(path, features, losses, facts)
    return features, losses


def read(path: Path, shape: tuple[int, int], facts: Mapping[str, str]) -> np.ndarray | str | None:
    """The features of a file; what is wrong with it, in words; or None if there is no file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            found, features = file.metadata() or {}, file.get_tensor("features")
    except (SafetensorError, OSError, ValueError) as problem:
        return f"{path} is damaged ({problem})"
    wanted = {**facts, "sha256": _sha256(features)}
    found.pop(LOSSES, None)
    if features.shape == shape and features.dtype == np.float32 and found == wanted:
        return features
    return f"{path} has changed since it was written"


def _losses(path: Path) -> Losses:
    """Those of a file that can be read; none in one that an earlier version wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return Losses(**json.loads(file.metadata().get(LOSSES, "{}")))


def _write(path: Path, features: np.ndarray, losses: Losses, facts: Mapping[str, str]) -> None:
    from safetensors.numpy import save

    any_lost = losses.cut or losses.cut_targets or losses.unknown or losses.same
    more = {LOSSES: json.dumps(asdict(losses))} if any_lost else {}
    files.write_bytes(path, save({"features": features}, metadata={**facts, "sha256": _sha256(features), **more}))


def _sha256(features: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()
