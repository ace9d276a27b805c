"""Features of texts on disk: one safetensors file for each encoder and set of texts, which says what it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from gptfluence.common import files


def cached(
    path: Path, compute: Callable[[], np.ndarray], *, shape: tuple[int, int], facts: Mapping[str, str]
) -> np.ndarray:
    """The features in `path`, float32 of this shape; computed and written if they are not there.

    facts: what the features depend on, which a file must name. A file that is damaged, or was made from something else, is
    set aside with a warning. Raises ArtifactError if nothing can be written.
    """
    features = read(path, shape, facts)
    if isinstance(features, np.ndarray):
        return features
    with files.locked(path.with_name(f".{path.name}.lock")):
        features = read(path, shape, facts)  # another process may have been faster
        if isinstance(features, str):
            files.put_aside(path, features, what="cached features")
        if not isinstance(features, np.ndarray):
            features = compute()
            _write(path, features, facts)
    return features


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
    if features.shape == shape and features.dtype == np.float32 and found == wanted:
        return features
    return f"{path} has changed since it was written"


def _write(path: Path, features: np.ndarray, facts: Mapping[str, str]) -> None:
    from safetensors.numpy import save

    files.write_bytes(path, save({"features": features}, metadata={**facts, "sha256": _sha256(features)}))


def _sha256(features: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()
