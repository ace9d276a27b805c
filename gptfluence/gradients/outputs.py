"""Gradients of many outputs of one forward pass, at chosen coordinates of the parameters alone.

A linear layer's weight has the gradient sum_t b_t x_t^T, x_t being its input at position t and b_t the output's gradient
with respect to what the layer makes of it; an embedding's has b_t at the row of the token that it looked up. So one backward
pass, which takes the b of all layers and no parameter's gradient, is enough for any coordinates, at a cost that no longer
grows with the parameters' number. What is not a linear layer or an embedding (norms, biases added by hand) is asked of
autograd directly.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

BUDGET = 2**26  # floats that one batched backward pass may return: 256 MiB; on a GPU an eighth of what is free
LARGEST_BATCH = 64  # of outputs in one backward pass
DENSE_SHARE = (
    4  # a layer with more than one in so many coordinates chosen has its whole gradient computed, then picked from
)
AGREEMENT = 1e-3  # of the largest entry; in float32 the two ways agree to 1e-6


@functools.cache
def _kinds() -> tuple[type[nn.Module], ...]:
    """The layers whose gradients are known products; not what is derived from them, which may do something else."""
    from transformers.pytorch_utils import Conv1D  # its import takes a second, and who draws recorded runs needs no GPT

    return nn.Linear, Conv1D, nn.Embedding


@dataclass(frozen=True)
class _Use:
    """The chosen coordinates of a parameter that a module owns.

    place: slice of the chosen coordinates; pick: int64 [m], flat positions in the parameter
    """

    own: str
    name: str
    place: slice
    pick: Tensor


class OutputGradients:
    """Takes gradients of a model's outputs at the same coordinates again and again.

    A parameter that a module of another kind owns, too, is asked of autograd. That the others follow from their module's
    input and output is not taken on trust: until a parameter has had a gradient that is not 0, it is compared with
    autograd's, and what differs (a parameter used by other code than its module) is asked of autograd ever after.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], index: np.ndarray) -> None:
        """index: int64 [n], sorted: positions in the concatenated `parameters`."""
        self._parameters = dict(parameters)
        ends = np.cumsum([0, *(p.numel() for p in self._parameters.values())])
        cuts = np.searchsorted(index, ends)
        self._size = len(index)
        self._picks: dict[str, tuple[slice, Tensor]] = {}
        for k, (name, parameter) in enumerate(self._parameters.items()):
            place = slice(int(cuts[k]), int(cuts[k + 1]))
            self._picks[name] = place, torch.from_numpy(index[place] - ends[k]).to(parameter.device)
        shared = {
            id(p) for part in model.modules() if type(part) not in _kinds() for p in part.parameters(recurse=False)
        }
        names = {id(p): name for name, p in self._parameters.items() if id(p) not in shared}
        self._uses: dict[nn.Module, list[_Use]] = {}
        for module in model.modules():
            if type(module) in _kinds():
                owned = [(own, names[id(p)]) for own, p in module.named_parameters(recurse=False) if id(p) in names]
                uses = [_Use(own, name, *self._picks[name]) for own, name in owned if len(self._picks[name][1])]
                if uses:
                    self._uses[module] = uses
        self._unverified = {use.name for uses in self._uses.values() for use in uses}
        self._calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    @property
    def _on_gpu(self) -> bool:
        return any(parameter.is_cuda for parameter in self._parameters.values())

    @property
    def _direct(self) -> list[str]:
        seen = {use.name for uses in self._uses.values() for use in uses}
        return [name for name, (_, pick) in self._picks.items() if len(pick) and name not in seen]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside the block take one forward pass and what is wanted of its outputs (`of`)."""
        calls = self._calls

        def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not inputs:  # called by keyword: left to autograd, which the comparison shows to differ
                return output
            probe = torch.zeros_like(output).requires_grad_(True)
            calls.append((module, inputs[0].detach(), probe))
            return output + probe

        hooks = [module.register_forward_hook(look) for module in self._uses]
        # the fused attention of a GPU has no batched backward pass and would be looped over
        attention = sdpa_kernel(SDPBackend.MATH) if self._on_gpu else nullcontext()
        try:
            with attention:
                yield
        finally:
            calls.clear()
            for hook in hooks:
                hook.remove()

    def of(self, values: Tensor) -> Tensor:
        """float32 [outputs, n]: the gradients of `values` [outputs] at the chosen coordinates."""
        found = self._gradients(values)
        if self._unverified:
            mix = torch.randn(len(values), generator=torch.Generator().manual_seed(0)).to(values)
            if self._compare(mix @ values, mix @ found):
                found = self._gradients(values)
        return found

    def _gradients(self, values: Tensor) -> Tensor:
        direct = self._direct
        wanted = [*(probe for *_, probe in self._calls), *(self._parameters[name] for name in direct)]
        budget = torch.cuda.mem_get_info(values.device)[0] // 32 if self._on_gpu else BUDGET
        batch = max(1, min(LARGEST_BATCH, budget // max(1, sum(one.numel() for one in wanted))))
        unit = torch.eye(len(values), device=values.device)
        total = values.new_zeros(len(values), self._size)
        for start in range(0, len(values), batch):
            rows = unit[start : start + batch]
            with warnings.catch_warnings():  # an attention without a batched backward pass is looped over
                warnings.simplefilter("ignore", UserWarning)
                found = torch.autograd.grad(
                    values, wanted, grad_outputs=rows, is_grads_batched=True, retain_graph=True, allow_unused=True
                )
            with torch.no_grad():
                part = total[start : start + batch]
                for (module, inputs, _), gradient in zip(self._calls, found, strict=False):
                    if gradient is not None:
                        for use in self._uses.get(module, []):
                            part[:, use.place] += _at_coordinates(module, use, inputs, gradient)
                for name, gradient in zip(direct, found[len(self._calls) :], strict=True):
                    if gradient is not None:
                        place, pick = self._picks[name]
                        part[:, place] += gradient.flatten(1)[:, pick]
        return total

    def _compare(self, value: Tensor, found: Tensor) -> bool:
        """Whether a parameter's gradient differs from autograd's, which is asked directly from now on."""
        names = sorted(self._unverified)
        whole = torch.autograd.grad(
            value, [self._parameters[name] for name in names], retain_graph=True, allow_unused=True
        )
        differs = set()
        for name, gradient in zip(names, whole, strict=True):
            place, pick = self._picks[name]
            expected = found.new_zeros(len(pick)) if gradient is None else gradient.flatten()[pick]
            scale = max(float(expected.abs().max()), float(found[place].abs().max()))
            if float((found[place] - expected).abs().max()) > AGREEMENT * scale:
                differs.add(name)
            if scale > 0:
                self._unverified.discard(name)
        if differs:
            kept = {module: [use for use in uses if use.name not in differs] for module, uses in self._uses.items()}
            self._uses = {module: uses for module, uses in kept.items() if uses}
        return bool(differs)


def _at_coordinates(module: nn.Module, use: _Use, inputs: Tensor, gradient: Tensor) -> Tensor:
    """float32 [outputs, m]: of a module's parameter, from its input and the gradients [outputs, ..., features] after it."""
    gradient = gradient.flatten(1, -2)  # [outputs, positions, features]
    if use.own == "bias":
        return gradient.sum(1)[:, use.pick]
    if isinstance(module, nn.Embedding):
        row, column = use.pick // module.embedding_dim, use.pick % module.embedding_dim
        at, chosen = (inputs.reshape(-1, 1) == row).nonzero(as_tuple=True)  # few of the tokens were looked up
        if module.padding_idx is not None:
            kept = row[chosen] != module.padding_idx
            at, chosen = at[kept], chosen[kept]
        found = gradient.new_zeros(len(gradient), len(row))
        return found.index_add_(1, chosen, gradient[:, at, column[chosen]])
    inputs = inputs.flatten(0, -2).to(gradient)  # [positions, features]
    weight = module.weight
    left, right = (gradient, inputs) if isinstance(module, nn.Linear) else (inputs, gradient)  # or a Conv1D
    if len(use.pick) * DENSE_SHARE >= weight.numel():
        return (left.mT @ right).flatten(1)[:, use.pick]
    rows, columns = use.pick // weight.shape[1], use.pick % weight.shape[1]
    return (left[..., rows] * right[..., columns]).sum(1)
