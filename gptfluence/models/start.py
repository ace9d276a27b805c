"""The GPT as it was before a training that somebody else ran: named where it can be loaded from, else kept.

A folder `start/` beside the recorded runs holds

    start.json          the base model's name or path, if its weights were those when training began; what is trained
    config.json         the base model's configuration
    adapters.json       of peft's adapters, if there are any
    kept.safetensors    the weights that are not to be found at that name: of adapters always, of a model made in memory all
    tokenizer/          the Trainer's

What is loaded is compared with the weights that the training began with.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptfluence.common import files
from gptfluence.common.errors import ArtifactError
from gptfluence.models.gpt import GPT, ModelSource
from gptfluence.models.loading import longest, no_progress_bar

if TYPE_CHECKING:
    import torch

FOLDER = "start"
KEPT = "kept.safetensors"


def weights_of(model: torch.nn.Module) -> str:
    """Twelve hexadecimal digits of the SHA-256 of all parameters, as float32 where they are numbers of another precision."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        digest.update(name.encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


class StartingModel(ModelSource):
    """The GPT that the runs of a folder began with."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """folder: of the runs; identity: name and identity of the GPT in its `spec.json`"""
        self.name, self._identity = identity["name"], identity["identity"]
        self.folder, self.cache, self.corpus = folder / FOLDER, folder, None

    def identity(self) -> dict:
        return self._identity

    def location(self) -> str:
        return str(self.folder)

    def load(self) -> GPT:
        """On the CPU in float32, in evaluation mode, with the adapters that it had.

        Raises ArtifactError if it was not kept, or is not as it was.
        """
        try:
            facts = json.loads((self.folder / "start.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ArtifactError(
                f"{self.folder.parent}: the GPT as it was before training was not kept; record with "
                "TrainerRecorder(..., keep_start=True), or give the GPT yourself (train_again(folder, gpt), "
                "TangentFeatures(gpt, dynamics.pool, dynamics.spec.recording, tokens=dynamics.source.tokens))"
            ) from None
        try:
            model, tokenizer = _loaded(self.folder, facts)
        except Exception as error:  # transformers, peft and safetensors each raise their own
            raise ArtifactError(
                f"{self.folder}: the GPT as it was before training cannot be loaded from {facts['path'] or KEPT}: "
                f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
            ) from error
        if (found := weights_of(model)) != self._identity["weights"]:
            raise ArtifactError(
                f"{self.folder}: {facts['path'] or KEPT} has other weights now ({found}) than the training began with "
                f"({self._identity['weights']}); put the earlier ones back, or give the GPT yourself"
            )
        return GPT(self.name, model.eval(), tokenizer, longest(model, tokenizer))


def keep(folder: Path, model: torch.nn.Module, tokenizer: Any) -> None:
    """Write `start/` into the folder of the runs, if it is not there; `model` is left as it is."""
    from safetensors.torch import save_file

    if (folder / FOLDER / files.CHECKSUMS).is_file():
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapted = base is not model
    named = _named(base)
    seen = set(named)
    kept = {}
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen:  # tied weights are one
            kept[name] = value.detach().cpu().contiguous()
        seen.add(value.data_ptr())
    path = base.config.name_or_path if named else ""
    facts = {
        "path": str(Path(path).resolve()) if path and Path(path).is_dir() else path,
        "revision": getattr(base.config, "_commit_hash", None) if named else None,
        "class": type(base).__name__,
        "trainable": [name for name, p in model.named_parameters() if p.requires_grad],
    }

    def write(new: Path) -> None:
        (new / "config.json").write_text(base.config.to_json_string(use_diff=False), encoding="utf-8")
        if adapted:
            (new / "adapters.json").write_text(_adapters(model), encoding="utf-8")
        save_file(kept, new / KEPT)
        if tokenizer is not None:
            tokenizer.save_pretrained(new / "tokenizer")
        files.write_json(new / "start.json", facts)

    files.made(folder / FOLDER, write, what="the GPT before training")


def _adapters(model: torch.nn.Module) -> str:
    """peft's configuration as JSON: sets have no order of their own."""
    config = model.peft_config[model.active_adapter].to_dict()
    plain = lambda value: sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))  # noqa: E731
    return json.dumps(config, default=plain, sort_keys=True)


def _named(base: torch.nn.Module) -> set[int]:
    """Where the base model's weights lie in memory, if all of them are those of the files at its path; else nothing.

    Files may call a weight otherwise than the model does, which transformers knows when it loads them: so one that is not there
    by its name may be any of the same shape.
    """
    from safetensors import safe_open

    where: dict[str, Path] = {}
    for path in _files_of(base.config.name_or_path or "", getattr(base.config, "_commit_hash", None)):
        with safe_open(path, "pt") as content:
            where |= dict.fromkeys(content.keys(), path)
    named: set[int] = set()
    for name, value in base.named_parameters():
        if _of_adapter(name):
            continue
        plain = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        key = next((k for k in (plain, plain.removeprefix(f"{base.base_model_prefix}.")) if k in where), None)
        if not any(_holds(where[k], k, value) for k in ([key] if key else where)):
            return set()
        named.add(value.data_ptr())
    return named


def _holds(path: Path, key: str, value: torch.Tensor) -> bool:
    """Whether a weight in a file is this one; the file may have it in a lower precision, but not in a higher one."""
    from safetensors import safe_open

    with safe_open(path, "pt") as content:
        if tuple(content.get_slice(key).get_shape()) != tuple(value.shape):
            return False
        return bool((content.get_tensor(key).float() == value.detach().cpu().float()).all())


def _of_adapter(name: str) -> bool:
    return any(part in name for part in (".lora_", ".modules_to_save.", ".ia3_", ".vera_"))


def _files_of(path: str, commit: str | None) -> list[Path]:
    """The safetensors files of a folder, or of a model of the Hub in the local cache."""
    folder = Path(path)
    if path and not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            config = try_to_load_from_cache(path, "config.json", revision=commit)
        except HFValidationError:
            return []
        folder = Path(config).parent if isinstance(config, str) else Path()
    return sorted(folder.glob("*.safetensors")) if path and folder != Path() else []


def _loaded(folder: Path, facts: dict[str, Any]) -> tuple[torch.nn.Module, Any]:
    import torch
    import transformers
    from safetensors.torch import load_file

    kind = getattr(transformers, facts["class"], transformers.AutoModelForCausalLM)
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]), no_progress_bar():
        if facts["path"]:
            options = {"revision": facts["revision"]} if facts["revision"] else {}
            model = kind.from_pretrained(
                facts["path"], dtype=torch.float32, trust_remote_code=False, use_safetensors=True, **options
            )
        else:
            made = kind.from_config if kind is transformers.AutoModelForCausalLM else kind
            model = made(config).float()
        if (folder / "adapters.json").is_file():
            from peft import PeftConfig, get_peft_model

            adapters = json.loads((folder / "adapters.json").read_text(encoding="utf-8"))
            adapters["base_model_name_or_path"] = model.config.name_or_path
            model = get_peft_model(model, PeftConfig.from_peft_type(**adapters))
    model.load_state_dict(load_file(folder / KEPT), strict=False)
    trainable = set(facts["trainable"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    tokenizer = folder / "tokenizer"
    return model, transformers.AutoTokenizer.from_pretrained(tokenizer) if tokenizer.is_dir() else None
