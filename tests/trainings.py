"""GPTs of three architectures, small enough for a Trainer to train in a moment."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

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
