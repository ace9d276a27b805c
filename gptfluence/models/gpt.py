"""The GPT to train: nano models made here, or any Hugging Face causal LM by Hub name, local folder or GGUF file.

Remote code is never run and weights are never unpickled.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gptfluence.common import files
from gptfluence.common.errors import ArtifactError, ModelError
from gptfluence.common.settings import canonical, expanded
from gptfluence.models import gguf, loading
from gptfluence.models.settings import GGUFModel, HubModel, LocalModel, LoRA, ModelConfig, NanoModel, PublishedModel
from gptfluence.tasks import mini
from gptfluence.tasks.base import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CORPUS_FILE = "fingerprint.txt"
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
            identity["corpus"] = self._corpus_fingerprint()
        elif isinstance(self.config, HubModel):
            identity["commit"] = loading.hub_commit(self.name, self.config)
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
        if isinstance(config, HubModel):
            model, tokenizer = loading.from_hub(self.name, config)
        else:
            folder = Path(self.location())
            loading.check_memory(self.name, folder, adapters=config.lora is not None)
            model, tokenizer = loading.from_folder(self.name, folder)
        positions = loading.longest(model, tokenizer)
        length = min(config.max_length or positions, positions)
        if config.lora is not None:
            model = loading.with_lora(self.name, model, config.lora)
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

    def _corpus_fingerprint(self) -> str:
        """The fingerprint of `_texts`, kept beside the models: to generate them takes a second, and every process asks."""
        if self.corpus is None:
            return fingerprint(self._texts())

        def write(folder: Path) -> None:
            files.write_text(folder / CORPUS_FILE, fingerprint(self._texts()))

        folder = self.cache / f"corpus-{fingerprint([self.corpus, _generators()])[:12]}"
        try:
            return (files.made(folder, write, what="fingerprint of a corpus") / CORPUS_FILE).read_text(encoding="utf-8")
        except ArtifactError:  # models that were copied to where nothing can be written
            return fingerprint(self._texts())

    def _nano_folder(self) -> Path:
        # adapters and a limit on lengths come after pre-training
        base = self.config.model_copy(update={"lora": None, "max_length": None})
        plain = ModelSource(self.name, base, self.cache, self.corpus)
        key = fingerprint([plain.identity(), "pretraining-2"])[:8]
        folder = self.cache / f"{files.slug(self.name)}-{key}"

        def make(new: Path) -> None:
            steps = self.config.pretraining_steps
            print(f"model {self.name!r}: pre-training it once, {steps} steps; minutes", file=sys.stderr, flush=True)
            _pretrain(self.config, self._texts(), new)

        return files.made(folder, make, what=f"model {self.name!r}")

    def _path(self) -> Path:
        config = self.config
        if isinstance(config, PublishedModel):
            raise ModelError(
                f"model {self.name!r}: only its published runs are here, not the GPT, so it cannot be trained or asked; "
                "for that choose a model with another `source`"
            )
        if isinstance(config, GGUFModel):
            return gguf.converted(self.name, config, self.cache, loading.from_gguf)
        path = expanded(config.path)  # type: ignore[union-attr]
        if not path.exists():
            raise ModelError(f"model {self.name!r}: {path} does not exist; correct models.{self.name}.path")
        loading.check_folder(self.name, path)
        return path


def source_of(model: str | Path, cache: Path, *, lora: LoRA | None = None) -> ModelSource:
    """The source that a folder, a GGUF file or a name on the Hub stands for. Raises ModelError if it can be none of these."""
    try:
        path = Path(model).expanduser()
        exists, whole = bool(str(model)) and path.exists(), path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a home that is not known, a name too long, a null character
        raise ModelError(f"there is no folder {str(model)!r}: {error}") from None
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        if not exists:
            raise ModelError(f"there is no file {str(model)!r}; give the path of a GGUF file")
        return ModelSource(path.stem, GGUFModel(source="gguf", path=whole, lora=lora), cache)
    if path.is_file():
        raise ModelError(f"{str(model)!r} is a file; give the folder that holds the whole model, or a GGUF file")
    if exists:
        return ModelSource(
            whole.name if path.name in ("", "..") else path.name,
            LocalModel(source="local", path=whole, lora=lora),
            cache,
        )
    loading.check_hub_name(str(model))
    return ModelSource(path.name, HubModel(source="hub", path=str(model), lora=lora), cache)


@cache
def _generators() -> str:
    """A hash of the code that generates texts."""
    folder = Path(mini.__file__).parent.parent
    return fingerprint([[path.name, path.read_text(encoding="utf-8")] for path in sorted(folder.rglob("*.py"))])


@cache
def _corpus(names: tuple[str, ...], seed: int, examples_per_task: int) -> list[tuple[str, str]]:
    """Prompts and targets: seconds of work, asked for by every look at a nano model's identity."""
    return mini.corpus(names, seed=seed, examples_per_task=examples_per_task)


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
