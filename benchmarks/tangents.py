"""Speed of the gradients that the tangent simulator starts from, next to autograd's.

    python benchmarks/tangents.py             # a minute
    python benchmarks/tangents.py --large     # and a Llama of 135M parameters, with random weights: some minutes more

CPU, float32, one thread. Every row takes the gradients of the same outputs (logits of eight candidates a scored token, less the
logsumexp of the others) at the same sampled coordinates. No table is printed unless they agree. The rows:

- autograd: one backward pass for each output, all parameters' gradients, of which the coordinates are picked.
- autograd, by so many: the same for as many outputs at once as fit the memory that ours may take; one where a model's
  gradient fills it.
- gptfluence: what `TangentFeatures` does; the first call, which is compared with autograd, is not in the figure.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
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


def timed(take: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        found = take()
        best = min(best, time.perf_counter() - begin)
    return best, found


def compare(kind: str, options: dict, coordinates: int, tokens: int, repeats: int) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).eval()
    size = sum(p.numel() for p in model.parameters())
    index = np.sort(np.random.default_rng(0).choice(size, coordinates, replace=False))
    ours = OutputGradients(model, dict(model.named_parameters()), index)

    def watched() -> Tensor:
        with ours.watching():
            return ours.of(outputs(model, tokens))

    watched()
    batch = max(1, min(64, BUDGET // size))
    picked = torch.from_numpy(index)
    rows = {
        "autograd": lambda: by_autograd(model, picked, outputs(model, tokens), 1),
        f"autograd, by {batch}": lambda: by_autograd(model, picked, outputs(model, tokens), batch),
        "gptfluence": watched,
    }
    found = {name: timed(take, repeats) for name, take in rows.items()}
    truth = found["autograd"][1]
    for name, (_, gradients) in found.items():
        off = float((gradients - truth).abs().max() / truth.abs().max())
        if off > TOLERANCE:
            raise SystemExit(f"{name} is off by {off:.2g} of the largest gradient; no times are printed")
    print(f"\n{kind} of {size / 1e6:.1f}M parameters, {coordinates} coordinates, {len(truth)} outputs")
    for name, (seconds, _) in found.items():
        each = 1000 * seconds / len(truth)
        print(f"  {name:18} {each:9.2f} ms an output   {seconds / found['gptfluence'][0]:6.1f} times ours")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--large", action="store_true", help="a Llama of 135M parameters, too")
    parser.add_argument("--repeats", type=int, default=3, help="of each row; the best time counts")
    arguments = parser.parse_args()
    with single_thread():
        compare("gpt_neox", SMALL, 6144, 12, arguments.repeats)
        if arguments.large:
            compare("llama", LARGE, 16384, 2, 1)


if __name__ == "__main__":
    main()
