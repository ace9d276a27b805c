"""Inner products of gradients with chosen directions, for many examples at once and without a gradient each.

Every module that owns a parameter is seen by a hook. With its input a and the gradient b of the example's loss with respect
to its output, the product of the example's gradient with a direction D is

    sum over modules of <b, J D>,   J D: how the module's output moves with its own parameters (for a linear one, D a)

so one forward and one backward pass, which stops below the first chosen module, give b for all examples, and each further
direction costs one forward through the chosen modules. This is exact and needs no rule for each kind of layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gptfluence.common.errors import ConfigurationError, ModelError, unknown
from gptfluence.recording.logits import ScoredLogits, example_losses
from gptfluence.recording.recorder import Recorder
from gptfluence.recording.tokens import Batch, collate, length_buckets

PARAMETERS = ("last_layer", "all")
_LINEAR = (nn.Linear, nn.Embedding, nn.LayerNorm)  # linear in their parameters: J D is the module with D in their place
COMPARED_TO = 1e-3  # of the sum of absolute values; in float32 the two ways agree to 1e-6
GRADIENT_ELEMENTS = 2**25  # numbers that per-example gradients may hold at once (128 MiB)

Direction = dict[str, Tensor]  # parameter's name -> tensor of its shape


def chosen_parameters(model: nn.Module, which: str) -> dict[str, nn.Parameter]:
    """The trainable parameters that products are taken over, by name.

    which: "all", or "last_layer": the last transformer block. Not the output embedding: its gradient sees of an example
        little more than which tokens it shares with another one, and effects of different tokens cancel in it (Yeh et
        al., 2022, "First is better than last for language data influence"); with LoRA it is not trained at all.

    Raises ConfigurationError for another word; ModelError if the model has no blocks that can be told, or none of the
    last one's parameters is trained.
    """
    if which not in PARAMETERS:
        raise ConfigurationError(unknown("value", which, PARAMETERS, where="parameters: "))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if which == "all":
        return trainable
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    stacks = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == layers]
    if len(stacks) != 1:
        found = f"{len(stacks)} lists of {layers} modules" if layers else "no num_hidden_layers in its configuration"
        raise ModelError(
            f"{type(model).__name__}: which of its modules is the last transformer block cannot be told ({found}); use "
            "parameters: all"
        )
    prefix = f"{stacks[0]}.{layers - 1}."
    last = {name: p for name, p in trainable.items() if name.startswith(prefix)}
    if not last:
        raise ModelError(
            f"{type(model).__name__}: no parameter of its last transformer block ({prefix[:-1]}) is trained; use "
            "parameters: all"
        )
    return last


@dataclass(frozen=True)
class _Call:
    """One call of a module: its input and the gradient of the summed example losses with respect to its output.

    Both are [examples, tokens, features]; or [rows, features], and `positions`, int64 [rows], are those of the rows among
    all tokens of the batch.
    """

    module: nn.Module
    positions: Tensor | None
    parameters: dict[str, str]  # the module's own name for a parameter -> the model's
    inputs: tuple
    options: dict
    gradient: Tensor

    def output(self, parameters: Direction) -> Tensor:
        """What the module makes of the input with these parameters; its hooks, which stand outside, do not run."""
        return functional_call(
            _Bare(self.module), {f"module.{k}": v for k, v in parameters.items()}, self.inputs, self.options
        )

    def by_example(self, batch: Batch) -> _Call:
        """The rows in their places, [examples, tokens, features], zeros elsewhere."""
        if self.positions is None:
            return self

        def whole(values: object) -> object:
            if not isinstance(values, Tensor):
                return values
            filled = values.new_zeros(batch.input_ids.numel(), values.shape[-1])
            return filled.index_copy_(0, self.positions, values).view(*batch.input_ids.shape, -1)

        inputs = tuple(whole(values) for values in self.inputs)
        return replace(self, positions=None, inputs=inputs, gradient=whole(self.gradient))


class _Bare(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: object, **options: object) -> Tensor:
        return self.module.forward(*inputs, **options)


class ExampleGradients:
    """Products of the gradients of example losses (mean over scored tokens, nats per token) for one model.

    The model is used in evaluation mode (no dropout), with the weights that it has at the time of the call.
    """

    def __init__(self, model: nn.Module, scored: ScoredLogits, which: str) -> None:
        """`scored`: the hooks of `model`. Raises as `chosen_parameters` does."""
        self._model, self._scored = model, scored
        self.parameters = chosen_parameters(model, which)
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        self._owners: dict[nn.Module, dict[str, str]] = {}
        self._compared = False
        for module in model.modules():
            own = {own: names[id(p)] for own, p in module.named_parameters(recurse=False) if id(p) in names}
            if own:
                self._owners[module] = own

    def gradient(self, batch: Batch) -> Direction:
        """The gradient of the *sum* of the batch's example losses."""
        with self._frozen(), torch.enable_grad():
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)
            losses = example_losses(self._scored.token_losses(batch), batch)
            found = torch.autograd.grad(losses.sum(), list(self.parameters.values()), allow_unused=True)
        return {
            name: torch.zeros_like(parameter) if gradient is None else gradient
            for (name, parameter), gradient in zip(self.parameters.items(), found, strict=True)
        }

    def products(self, batch: Batch, directions: Iterable[Direction]) -> Iterator[Tensor]:
        """For each direction, float32 [examples]: the product of each example's gradient with it.

        Directions must have been made before, at whatever weights; the examples' gradients are those of the weights now.
        Raises ModelError if the model uses a parameter where hooks do not see it; the first product is compared with one by
        autograd.
        """
        calls = self._calls(batch)
        for direction in directions:
            total = self._product(calls, batch, direction)
            if not self._compared:
                self._compare(total, batch, direction)
            yield total

    @torch.no_grad()
    def _product(self, calls: list[_Call], batch: Batch, direction: Direction) -> Tensor:
        total = batch.counts.new_zeros(len(batch.counts))
        for call in calls:
            share = (self._tangent(call, direction) * call.gradient).flatten(1).sum(1)
            if call.positions is None:
                total += share
            else:
                total.index_add_(0, call.positions // batch.input_ids.shape[1], share)
        return total

    def _compare(self, products: Tensor, batch: Batch, direction: Direction) -> None:
        whole = self.gradient(batch)
        parts = torch.stack([(whole[name] * direction[name]).sum() for name in whole])
        size = float(products.abs().sum() + parts.abs().sum())
        if not abs(float(products.sum() - parts.sum())) <= COMPARED_TO * size:
            raise ModelError(
                f"{type(self._model).__name__}: products of gradients are {float(products.sum()):.4g} by its modules and "
                f"{float(parts.sum()):.4g} by autograd, so it uses a parameter where it cannot be seen, or mixes examples; use "
                "parameters: last_layer, or another model"
            )
        self._compared = True

    def per_example(self, batch: Batch) -> Direction:
        """Each example's own gradient: name -> float32 [examples, *shape]. For few examples, or small models."""
        total: Direction = {}
        for call in self._calls(batch):
            call = call.by_example(batch)
            own = {name: self.parameters[whole].detach() for name, whole in call.parameters.items()}

            def one(inputs: tuple, gradient: Tensor, call: _Call = call, own: Direction = own) -> Direction:
                def output(parameters: Direction) -> Tensor:
                    # a batch of one: what a module does with the first dimension must not change under vmap
                    single = tuple(x[None] if isinstance(x, Tensor) else x for x in inputs)
                    return replace(call, inputs=single).output(parameters)[0]

                return torch.func.vjp(output, own)[1](gradient)[0]

            axes = tuple(0 if isinstance(x, Tensor) else None for x in call.inputs)
            found = torch.func.vmap(one, in_dims=(axes, 0))(call.inputs, call.gradient)
            for name, gradient in found.items():
                whole = call.parameters[name]
                total[whole] = total[whole] + gradient if whole in total else gradient
        if not self._compared:
            direction = self.gradient(batch)
            products = [(gradient * direction[name]).flatten(1).sum(1) for name, gradient in total.items()]
            self._compare(torch.stack(products).sum(0), batch, direction)
        return total

    def squared_norms(self, batch: Batch) -> Tensor:
        """float32 [examples]: the product of each example's gradient with itself."""
        return sum(gradient.flatten(1).square().sum(1) for gradient in self.per_example(batch).values())

    # --- the two passes -----------------------------------------------------------------------------------------------

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Evaluation mode and no gradient for any parameter, so that a backward pass ends where it may."""
        training = self._model.training
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
            self._model.train(training)

    def _calls(self, batch: Batch) -> list[_Call]:
        seen: list[tuple[nn.Module, tuple, dict, Tensor]] = []
        examples = len(batch.counts)

        def look(module: nn.Module, inputs: tuple, options: dict, output: Tensor) -> Tensor:
            if not isinstance(output, Tensor):
                raise ModelError(
                    f"{type(module).__name__}: a module with parameters that returns {type(output).__name__} cannot be "
                    "taken apart by example; use parameters: last_layer, or another model"
                )
            if output.shape[0] == 1 < examples and output.dim() > 2:  # positions: the same for all, and then added
                output = output.expand(examples, *output.shape[1:])
                inputs = tuple(x.expand(examples, *x.shape[1:]) if isinstance(x, Tensor) else x for x in inputs)
            probe = torch.zeros_like(output).requires_grad_(True)
            seen.append((module, tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs), options, probe))
            return output + probe

        hooks = [module.register_forward_hook(look, with_kwargs=True) for module in self._owners]
        try:
            with self._frozen(), torch.enable_grad():
                losses = example_losses(self._scored.token_losses(batch), batch)
                found = torch.autograd.grad(losses.sum(), [probe for *_, probe in seen], allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        self._check_all_seen({id(module) for module, *_ in seen})
        calls = []
        for (module, inputs, options, _), gradient in zip(seen, found, strict=True):
            if gradient is not None:
                calls.append(
                    _Call(module, _positions(module, gradient, batch), self._owners[module], inputs, options, gradient)
                )
        return calls

    def _check_all_seen(self, called: set[int]) -> None:
        """A module whose parameters are used by another one is passed by its hook, and its share would be lost."""
        seen = {name for module, own in self._owners.items() if id(module) in called for name in own.values()}
        unseen = sorted(set(self.parameters) - seen)
        if unseen:
            raise ModelError(
                f"{type(self._model).__name__}: parameter {unseen[0]} is used outside the module it belongs to, so its "
                "share in a product cannot be seen; use parameters: last_layer, or another model"
            )

    def _tangent(self, call: _Call, direction: Direction) -> Tensor:
        moved = {own: direction[name] for own, name in call.parameters.items()}
        if type(call.module) in _LINEAR and len(moved) == sum(1 for _ in call.module.parameters(recurse=False)):
            return call.output(moved)
        at = {own: self.parameters[name].detach() for own, name in call.parameters.items()}
        return torch.func.jvp(call.output, (at,), (moved,))[1]


def _positions(module: nn.Module, gradient: Tensor, batch: Batch) -> Tensor | None:
    """Which tokens of the batch a module saw, if it saw rows of features: all of them, or the scored ones alone."""
    tokens = batch.input_ids.numel()
    if gradient.dim() > 2 and gradient.shape[:2] == batch.input_ids.shape:
        return None
    if gradient.dim() == 2 and len(gradient) == tokens:
        return torch.arange(tokens, device=gradient.device)
    if gradient.dim() == 2 and len(gradient) == len(batch.scored):
        return batch.scored
    raise ModelError(
        f"{type(module).__name__}: its output of shape {list(gradient.shape)} cannot be told apart by example; use "
        "parameters: last_layer, or another model"
    )


class Replayer(Recorder):
    """A recorder that can also take gradients at the weights a run has reached: call its methods from `on_step`."""

    def gradients(self, which: str) -> ExampleGradients:
        """`which`: last_layer | all; see `chosen_parameters`, whose errors this raises."""
        return ExampleGradients(self._model, self._scored, which)

    @property
    def test_batches(self) -> list[Batch]:
        """The tests as they are measured: their losses are those that are recorded (`loss_tokens`)."""
        return self._test_batches

    def pool_batch(self, rows: list[int]) -> Batch:
        """These examples of the pool as they are trained on (`train_tokens`)."""
        return collate(self._pool_tokens, rows, self.recording.train_tokens, self.device)

    def squared_norms(self, gradients: ExampleGradients) -> Tensor:
        """float32 [pool], on the CPU: <g_i, g_i> for every example of the pool at the weights now; (nats per token)^2."""
        room = max(1, GRADIENT_ELEMENTS // sum(p.numel() for p in gradients.parameters.values()))
        norms = torch.empty(len(self.pool))
        for rows in length_buckets(self._pool_tokens, self.recording.token_budget):
            for start in range(0, len(rows), room):
                batch = self.pool_batch(rows[start : start + room])
                norms[batch.rows.cpu()] = gradients.squared_norms(batch).cpu()
        return norms

    @contextmanager
    def at(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block the trainable parameters have these values, by name; afterwards again their own."""
        own = self.weights()
        self._load(weights)
        try:
            yield
        finally:
            self._load(own)

    def weights(self) -> Direction:
        """A copy of the trainable parameters as they are now."""
        return {name: parameter.detach().clone() for name, parameter in self._trainable.items()}

    @torch.no_grad()
    def _load(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._trainable.items():
            parameter.copy_(weights[name])
