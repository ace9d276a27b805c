"""Speed of the gradients that the tangent simulator starts from, next to autograd's.

    python benchmarks/tangents.py            # some minutes
    python benchmarks/tangents.py --quick    # some seconds: without the Llama of 135M parameters

CPU, float32, one thread. Every row takes the gradients of the same outputs (logits of eight candidates a scored token, less the
logsumexp of the others) at the same sampled coordinates. No table is printed unless they agree. The rows:

- autograd: one backward pass for each output, all parameters' gradients, of which the coordinates are picked.
- autograd, in batches: the same for as many outputs at once as fit the memory that ours may take. It is left out where that
  is one output.
- gptfluence: what `TangentFeatures` does.

The first call of each row, whose gradients are compared, is not counted.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from common import Benchmark, Comparison, Side, alternate
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from gptfluence.gradients.outputs import BUDGET, OutputGradients
from gptfluence.recording.recorder import single_thread

TOLERANCE = 1e-4  # of the largest gradient
CANDIDATES, POSITIONS = 8, 48
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "vocab_size": 2048,
}
LARGE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
SIZES = ("small", "large")


def outputs(model: nn.Module, tokens: int) -> Tensor:
    """float32 [tokens * CANDIDATES], of the last tokens of a text of `POSITIONS`."""
    ids = torch.arange(POSITIONS)[None] * 7 % model.config.vocab_size
    hidden = model.base_model(input_ids=ids, use_cache=False)[0][0, -tokens:]
    logits = model.get_output_embeddings()(hidden)
    return (logits[:, :CANDIDATES] - logits[:, CANDIDATES:].logsumexp(1)[:, None]).flatten()


def by_autograd(model: nn.Module, index: Tensor, values: Tensor, batch: int) -> Tensor:
    parameters, rows = list(model.parameters()), []
    for unit in torch.eye(len(values)).split(batch):
        with warnings.catch_warnings():  # an attention without a batched backward pass is looped over
            warnings.simplefilter("ignore", UserWarning)
            found = torch.autograd.grad(
                values, parameters, unit, is_grads_batched=True, retain_graph=True, materialize_grads=True
            )
        rows.append(torch.cat([gradient.flatten(1) for gradient in found], 1)[:, index])
    return torch.cat(rows)


def compare(kind: str, options: dict, coordinates: int, tokens: int, repeats: int) -> Comparison:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).eval()
    size = sum(p.numel() for p in model.parameters())
    index = np.sort(np.random.default_rng(0).choice(size, coordinates, replace=False))
    ours = OutputGradients(model, dict(model.named_parameters()), index)

    def watched() -> Tensor:
        with ours.watching():
            return ours.of(outputs(model, tokens))

    batch = max(1, min(64, BUDGET // size))
    picked = torch.from_numpy(index)
    ways = {
        "autograd, one output at a time": lambda: by_autograd(model, picked, outputs(model, tokens), 1),
        f"autograd, in batches of {batch}": lambda: by_autograd(model, picked, outputs(model, tokens), batch),
        "gptfluence": watched,
    }
    if batch == 1:
        del ways["autograd, in batches of 1"]
    found = {name: way() for name, way in ways.items()}  # warms up, too
    reference = next(iter(ways))
    truth = found[reference]
    for name, gradients in found.items():
        off = float((gradients - truth).abs().max() / truth.abs().max())
        if not off <= TOLERANCE:  # nan, too
            raise SystemExit(f"{name} is off by {off:.2g} of the largest gradient; no times are printed")
    seconds = alternate(ways, repeats, warm_up=False)
    each = 1000 / len(truth)
    return Comparison(
        f"{kind} of {size / 1e6:.1f}M parameters, {coordinates:,} coordinates, {len(truth)} outputs",
        "ms an output",
        [Side(name, [each * value for value in values]) for name, values in seconds.items()],
        reference=reference,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of the GPT")
    parser.add_argument("--repeats", type=int, default=5, help="of each row")


def measure(options: argparse.Namespace) -> Iterator[Comparison]:
    with single_thread():
        if "small" in options.sizes:
            yield compare("gpt_neox", SMALL, 6144, 12, options.repeats)
        if "large" in options.sizes:
            yield compare("llama", LARGE, 16384, 2, options.repeats)


BENCHMARK = Benchmark("tangents", __doc__, add_options, {"sizes": ["small"], "repeats": 3}, measure)

if __name__ == "__main__":
    BENCHMARK.main()
