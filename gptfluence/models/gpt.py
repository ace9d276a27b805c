"""The GPT to train: nano models made here, or any Hugging Face causal LM by Hub name, local folder or GGUF file.

Remote code is never run and weights are never unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gptfluence.common import files
from gptfluence.common.errors import HubUnreachableError, ModelError
from gptfluence.common.hub import hub_reachable
from gptfluence.common.settings import canonical
from gptfluence.models import gguf
from gptfluence.models.settings import GGUFModel, HubModel, LoRA, ModelConfig, NanoModel, PublishedModel
from gptfluence.tasks import mini
from gptfluence.tasks.base import fingerprint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PRETRAINING_LENGTH = 64  # tokens of a pre-training sequence
PROMPT_WEIGHT = 0.3  # of a prompt in the pre-training loss, beside 1 for its target


@dataclass(frozen=True)
class GPT:
    """A causal language model, its tokenizer, and what identifies both."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int  # tokens


class ModelSource:
    """Where a model comes from. Cheap to make: loads nothing until asked."""

    def __init__(self, name: str, config: ModelConfig, cache: Path, corpus: dict | None = None):
        """
        Args:
            name: the profile's name for it.
            cache: folder for models that are made here (nano).
            corpus: arguments of `tasks.mini.corpus`, the texts that a nano model is trained on; for others not used.
        """
        self.name, self.config, self.cache = name, config, cache
        self.corpus = corpus if isinstance(config, NanoModel) else None

    def identity(self) -> dict:
        """What the recorded numbers depend on: the configuration and, where weights are files, their content."""
        identity = {"config": canonical(self.config)}
        if isinstance(self.config, NanoModel):
            identity["corpus"] = fingerprint(self._texts())
        elif isinstance(self.config, HubModel):
            identity["commit"] = _hub_commit(self.config)
        elif isinstance(self.config, GGUFModel):
            identity["weights"] = [gguf.sha256_of(self.name, self.config)]
            for field in ("path", "parts", "sha256"):  # the same file elsewhere is the same model
                identity["config"].pop(field)
        else:
            path = self._path()
            parts = [path]
            if path.is_dir():  # the tokenizer decides as much as the weights do
                parts = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".txt", ".model"))
            identity["weights"] = [files.sha256(part) for part in parts]
            identity["config"].pop("path")  # the same file elsewhere is the same model
        return identity

    def load(self) -> GPT:
        """Load (a nano model: make it first, once) on the CPU in float32, in evaluation mode.

        Raises ModelError or HubUnreachableError that say what was looked for and what to do.
        """
        config = self.config
        if isinstance(config, NanoModel):
            model, tokenizer = _load_folder(self.name, self._nano_folder())
        elif isinstance(config, HubModel):
            model, tokenizer = _load_hub(self.name, config)
        else:
            model, tokenizer = _load_folder(self.name, self._path())
        positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        length = int(min(config.max_length or positions, positions))
        if config.lora is not None:
            model = _with_lora(model, config.lora)
        return GPT(self.name, model.eval(), tokenizer, length)

    def location(self) -> str:
        """The folder that holds the model (a nano model is made first), or its name on the Hub."""
        if isinstance(self.config, NanoModel):
            return str(self._nano_folder())
        return self.config.path if isinstance(self.config, HubModel) else str(self._path())

    def _texts(self) -> list[tuple[str, str]]:
        if self.corpus is None:
            raise ModelError(f"model {self.name!r}: a nano model needs a corpus to be pre-trained on")
        return _corpus(tuple(self.corpus["names"]), self.corpus["seed"], self.corpus["examples_per_task"])

    def _nano_folder(self) -> Path:
        # adapters and a limit on lengths come after pre-training
        base = self.config.model_copy(update={"lora": None, "max_length": None})
        plain = ModelSource(self.name, base, self.cache, self.corpus)
        key = fingerprint([plain.identity(), "pretraining-2"])[:8]
        folder = self.cache / f"{self.name}-{key}"
        return files.made(folder, lambda new: _pretrain(self.config, self._texts(), new), what=f"model {self.name!r}")

    def _path(self) -> Path:
        config = self.config
        if isinstance(config, PublishedModel):
            raise ModelError(
                f"model {self.name!r}: only its published runs are here, not the GPT, so it cannot be trained or asked; "
                "for that choose a model with another `source`"
            )
        if isinstance(config, GGUFModel):
            return gguf.converted(self.name, config, self.cache, _load_gguf)
        path = Path(config.path).expanduser()  # type: ignore[union-attr]
        if not path.exists():
            raise ModelError(f"model {self.name!r}: {path} does not exist; correct models.{self.name}.path")
        if not (path / "config.json").is_file():
            raise ModelError(f"model {self.name!r}: {path} is not a model folder: it has no config.json")
        return path


@cache
def _corpus(names: tuple[str, ...], seed: int, examples_per_task: int) -> list[tuple[str, str]]:
    """Prompts and targets: seconds of work, asked for by every look at a nano model's identity."""
    return mini.corpus(names, seed=seed, examples_per_task=examples_per_task)


# --- loading ---------------------------------------------------------------------------------------------------------


def _load_folder(name: str, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model {name!r}: {folder} holds no .safetensors file; pickled weights are not loaded, convert them with "
            "model.save_pretrained(folder)"
        )
    return _from_pretrained(name, str(folder), local_files_only=True)


def _load_gguf(name: str, path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return _from_pretrained(name, str(path.parent), gguf_file=path.name, local_files_only=True)


def _load_hub(name: str, config: HubModel) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    offline = not hub_reachable()
    try:
        return _from_pretrained(name, config.path, revision=config.revision, local_files_only=offline)
    except ModelError as error:
        if offline:
            raise HubUnreachableError(_no_hub(config)) from error
        raise


def _from_pretrained(name: str, path: str, **options: object) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it floods executed notebooks
    try:
        weights = gguf.dequantized() if "gguf_file" in options else {"use_safetensors": True}
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
            **weights,
            **options,
        )
    except Exception as error:  # transformers, tokenizers, gguf and safetensors each raise their own
        raise ModelError(
            f"model {name!r}: {path} cannot be loaded as a causal language model: {_first_line(error)}"
        ) from error
    finally:
        if bar:
            logging.enable_progress_bar()
    # transformers fills both gaps without an error: weights with random numbers, the vocabulary with nothing
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"model {name!r}: {path} lacks {len(missing)} of the weights of a {type(model).__name__}, among them "
            f"{missing[0]}; save the whole model again"
        )
    if not tokenizer("a b", add_special_tokens=False)["input_ids"]:
        raise ModelError(
            f"model {name!r}: {path} has no tokenizer with a vocabulary; put it there with "
            "tokenizer.save_pretrained(folder)"
        )
    return model, tokenizer


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def _with_lora(model: PreTrainedModel, lora: LoRA) -> torch.nn.Module:
    import torch
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # every run of a study starts from the same adapters
            return get_peft_model(model, adapters)
    except ValueError as error:
        raise ModelError(f"lora.target_modules: {_first_line(error)}") from error


# --- the hub ---------------------------------------------------------------------------------------------------------


def _hub_commit(config: HubModel) -> str:
    """The commit that a revision stands for: asked from the Hub, or read from the local cache."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if hub_reachable():
        try:
            return str(HfApi().model_info(config.path, revision=config.revision).sha)
        except Exception as error:
            raise ModelError(f"model {config.path!r}, revision {config.revision!r}: {_first_line(error)}") from error
    cached = try_to_load_from_cache(config.path, "config.json", revision=config.revision)
    if not isinstance(cached, str):
        raise HubUnreachableError(_no_hub(config))
    return Path(cached).parent.name


def _no_hub(config: HubModel) -> str:
    return (
        f"model {config.path!r} (revision {config.revision!r}) lives on the Hugging Face Hub; no hub is reachable and it is "
        "not in the local cache. Connect, or download it elsewhere and use a model with `source: local`, or a profile that "
        "works offline (mini, smoke)"
    )


# --- nano models -----------------------------------------------------------------------------------------------------


def _pretrain(config: NanoModel, texts: list[tuple[str, str]], folder: Path) -> None:
    """Train tokenizer and weights on prompts and targets, deterministically in one thread, and save both in `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    end = "<|endoftext|>"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        (prompt + target for prompt, target in texts),
        trainers.BpeTrainer(
            vocab_size=config.vocabulary, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=end, eos_token=end, pad_token=end, model_max_length=config.positions
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of additions, and so the weights, must not depend on the machine's cores
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = GPTNeoXForCausalLM(
                GPTNeoXConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=config.width,
                    num_hidden_layers=config.layers,
                    num_attention_heads=config.heads,
                    intermediate_size=4 * config.width,
                    max_position_embeddings=config.positions,
                    rotary_pct=0.5,  # of 16 to 32 dimensions a head; Pythia's 0.25 is of 64 and more
                    bos_token_id=0,
                    eos_token_id=0,
                    attn_implementation="sdpa",
                )
            )
            _train_language_model(model, tokenizer, texts, config)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[tuple[str, str]], config: NanoModel
) -> None:
    """Train all weights on prompts and targets, one text after another.

    Each text counts the same, however long it is: its target 1 and its prompt `PROMPT_WEIGHT`, in equal parts for each token.
    """
    import torch

    stream: list[int] = []
    counts: list[float] = []
    for prompt, target in zip(*(tokenizer(list(part))["input_ids"] for part in zip(*texts, strict=True)), strict=True):
        stream += [*prompt, *target, tokenizer.eos_token_id]
        counts += [*[PROMPT_WEIGHT / len(prompt)] * len(prompt), *[1 / (len(target) + 1)] * (len(target) + 1)]
    rows = len(stream) // PRETRAINING_LENGTH
    if rows == 0:
        raise ModelError(
            f"the corpus of a nano model has {len(stream)} tokens, fewer than the {PRETRAINING_LENGTH} of one sequence; "
            "take more examples for each task"
        )
    tokens, weights = (
        torch.tensor(part[: rows * PRETRAINING_LENGTH]).view(rows, PRETRAINING_LENGTH) for part in (stream, counts)
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.pretraining_learning_rate, weight_decay=0.01, fused=True
    )
    warmup = max(1, config.pretraining_steps // 20)
    model.train()
    for step in range(config.pretraining_steps):
        remaining = 1 - step / config.pretraining_steps
        for group in optimizer.param_groups:
            group["lr"] = config.pretraining_learning_rate * min((step + 1) / warmup, remaining)
        drawn = torch.randint(rows, (config.pretraining_batch,))
        batch, weight = tokens[drawn], weights[drawn, 1:]
        logits = model(batch).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        loss = (losses.view_as(weight) * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
