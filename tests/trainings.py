"""GPTs of three architectures, small enough for a Trainer to train in a moment, trainings of them, and what they leave."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from gptfluence.recording.tokens import tokenize

SIZES = {"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "gpt_neox": GPTNeoXConfig(**SIZES, intermediate_size=32, max_position_embeddings=128),
    "gpt2": GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_positions=128),
    "llama": LlamaConfig(**SIZES, intermediate_size=32, max_position_embeddings=128),
}


def model_of(name: str, *, dropout: float = 0.0) -> torch.nn.Module:
    config = deepcopy(CONFIGS[name])
    for option in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "attention_dropout"):
        if hasattr(config, option):
            setattr(config, option, dropout)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def weights(model) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def rows(pool, gpt) -> Dataset:
    tokens = tokenize(pool, gpt)
    labels = [np.where(np.arange(len(each.ids)) < each.target_start, -100, each.ids).tolist() for each in tokens]
    return Dataset.from_dict({"input_ids": [each.ids.tolist() for each in tokens], "labels": labels})


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    """Padded on the right, as the collators of transformers do."""
    width = max(len(each["input_ids"]) for each in examples)
    padded = lambda name, by: [each[name] + [by] * (width - len(each[name])) for each in examples]  # noqa: E731
    mask = [[1] * len(each["input_ids"]) + [0] * (width - len(each["input_ids"])) for each in examples]
    columns = {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": mask}
    return {name: torch.tensor(values) for name, values in columns.items()}


def trained(model, data, folder: Path, *callbacks, resume=None, tokenizer=None, **options) -> Trainer:
    defaults = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "learning_rate": 1e-2, "save_strategy": "no"}
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    arguments = TrainingArguments(output_dir=str(folder / "checkpoints"), **{**defaults, **quiet, **options})
    set_seed(arguments.seed)
    trainer = Trainer(
        model,
        arguments,
        collate,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        callbacks=[*callbacks],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Seen(TrainerCallback):
    """What the model was really given, by another way: its input_ids at every training forward, cut at each update."""

    def __init__(self, data: Dataset) -> None:
        self._row = {tuple(ids): row for row, ids in enumerate(data["input_ids"])}
        self.steps: list[list[int]] = []
        self._now: list[int] = []

    def on_train_begin(self, args, state, control, *, model, **given) -> None:
        def note(module, inputs, named):
            if module.training:
                for ids, mask in zip(named["input_ids"].tolist(), named["attention_mask"].tolist(), strict=True):
                    self._now.append(self._row[tuple(ids[: sum(mask)])])

        model.register_forward_pre_hook(note, with_kwargs=True)

    def on_step_end(self, args, state, control, **given) -> None:
        self.steps.append(self._now)
        self._now = []


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }
