"""Inner products of gradients with chosen directions, for many examples at once and without a gradient each.

Every module that owns a parameter is seen by a hook. With its input a and the gradient b of the example's loss with respect
to its output, the product of the example's gradient with a direction D is

    sum over modules of <b, J D>,   J D: how the module's output moves with its own parameters (for a linear one, D a)

so one forward and one backward pass, which stops below the first chosen module, give b for all examples, and each further
direction costs one forward through the chosen modules. This is exact and needs no rule for each kind of layer. What modules
cannot give (outputs that are no tensor or belong to no example, parameters used outside their module) is asked of autograd
example by example. Which parameters these are is found out by comparing the two ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
AGREEMENT = 1e-3  # of a parameter's largest gradient; in float32 the two ways agree to 1e-6
ROUNDING = 1e-6  # of the largest gradient of all parameters
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)  # of modules that are called by themselves
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
    stack = _blocks(model)
    if stack is None:
        raise ModelError(
            f"{type(model).__name__}: which of its modules is the last transformer block cannot be told (it has no list of "
            "modules); use parameters: all"
        )
    name = next(name for name, part in model.named_modules() if part is stack[-1])
    last = {key: p for key, p in trainable.items() if key.startswith(f"{name}.")}
    if not last:
        raise ModelError(
            f"{type(model).__name__}: no parameter of its last transformer block ({name}) is trained; use parameters: all"
        )
    return last


def _blocks(model: nn.Module) -> nn.ModuleList | None:
    """The transformer blocks: of the lists of modules that read text, inside no other, the one as long as the configuration
    says, or the largest."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft wraps the model
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    lists = (_lists(decoder) if decoder is not None else []) or _lists(base)  # ModernBERT calls its output the decoder
    inner = {id(part) for one in lists for part in one.modules() if part is not one}
    stacks = [one for one in lists if id(one) not in inner]
    config = getattr(base, "config", None)
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None) if config else None
    stacks = [one for one in stacks if len(one) == layers] or stacks
    return max(stacks, key=lambda one: sum(p.numel() for p in one.parameters()), default=None)


def _lists(model: nn.Module) -> list[nn.ModuleList]:
    return [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part)]


@dataclass(frozen=True)
class _Call:
    """One call of a module: its input and the gradient of the summed example losses with respect to its output.

    Both are [examples, ...]; or [rows, ...], and `positions`, int64 [rows], are those of the rows among all tokens of the
    batch.
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

    def weighted(self, weights: Tensor, batch: Batch) -> Tensor:
        """The gradient if each example's loss had a weight, float32 [examples]."""
        if self.positions is not None:
            weights = weights[self.positions // batch.input_ids.shape[1]]
        return self.gradient * weights.view(-1, *[1] * (self.gradient.dim() - 1))

    def by_example(self, batch: Batch) -> _Call:
        """The rows in their places, [examples, tokens, ...], zeros elsewhere."""
        if self.positions is None:
            return self

        def whole(values: object) -> object:
            if not isinstance(values, Tensor):
                return values
            filled = values.new_zeros(batch.input_ids.numel(), *values.shape[1:])
            return filled.index_copy_(0, self.positions, values).view(*batch.input_ids.shape, *values.shape[1:])

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
        for module in model.modules():
            own = {own: names[id(p)] for own, p in module.named_parameters(recurse=False) if id(p) in names}
            if own:
                self._owners[module] = own
        self._direct: set[str] = set()  # asked of autograd example by example
        # not compared yet, by `products` or `per_example`, on batches of one example or of several
        self._uncompared = {(way, size): set(self.parameters) for way in ("products", "each") for size in (1, 2)}
        self._unused: set[str] = set()  # neither called when compared nor known to autograd

    def gradient(self, batch: Batch) -> Direction:
        """The gradient of the *sum* of the batch's example losses."""
        found = self._gradient(batch, torch.ones_like(batch.counts))
        return {name: torch.zeros_like(self.parameters[name]) if g is None else g for name, g in found.items()}

    def _gradient(self, batch: Batch, weights: Tensor) -> dict[str, Tensor | None]:
        """Of the example losses, weighted with float32 [examples]; None for what is not used."""
        with self._frozen(self.parameters), torch.enable_grad():
            losses = example_losses(self._scored.token_losses(batch), batch)
            found = torch.autograd.grad((losses * weights).sum(), list(self.parameters.values()), allow_unused=True)
        return dict(zip(self.parameters, found, strict=True))

    def products(self, batch: Batch, directions: Sequence[Direction]) -> list[Tensor]:
        """For each direction, float32 [examples]: the product of each example's gradient with it.

        Directions must have been made before, at whatever weights; the examples' gradients are those of the weights now.
        """
        while True:
            known = len(self._direct)
            calls = self._calls(batch)
            self._compare("products", batch, calls, lambda weights, calls=calls: self._summed(calls, batch, weights))
            totals = self._by_modules(calls, batch, directions) if len(self._direct) == known else None
            if totals is not None:
                break
        if self._direct:
            for k, gradient in enumerate(self._one_by_one(batch)):
                for total, direction in zip(totals, directions, strict=True):
                    total[k] += sum((values * direction[name]).sum() for name, values in gradient.items())
        return totals

    @torch.no_grad()
    def _by_modules(self, calls: list[_Call], batch: Batch, directions: Sequence[Direction]) -> list[Tensor] | None:
        """`products` but for what is asked of autograd; None if a module cannot be called by itself."""
        totals = [batch.counts.new_zeros(len(batch.counts)) for _ in directions]
        for call in calls:
            try:
                for total, direction in zip(totals, directions, strict=True):
                    share = (self._tangent(call, direction) * call.gradient).flatten(1).sum(1)
                    if call.positions is None:
                        total += share
                    else:
                        total.index_add_(0, call.positions // batch.input_ids.shape[1], share)
            except FAILURES as error:
                self._give_up(call, error)
                return None
        if all(bool(torch.isfinite(total).all()) for total in totals):
            return totals
        # at padding a layer, or what follows it, may have no derivative, and nothing times that is no number
        for call in calls:
            shares = (self._tangent(call, direction) * call.gradient for direction in directions)
            if not all(bool(torch.isfinite(share).all()) for share in shares):
                self._direct |= set(call.parameters.values())
        return None if self._direct & {name for call in calls for name in call.parameters.values()} else totals

    def _summed(self, calls: list[_Call], batch: Batch, weights: Tensor) -> Direction:
        """The gradient of the example losses, weighted with float32 [examples], by modules."""
        found: Direction = {}
        for call in calls:
            own = {own: self.parameters[name].detach() for own, name in call.parameters.items()}
            try:
                gradients = torch.func.vjp(call.output, own)[1](call.weighted(weights, batch))[0]
            except FAILURES as error:
                self._give_up(call, error)
                continue
            for own_name, gradient in gradients.items():
                name = call.parameters[own_name]
                found[name] = found[name] + gradient if name in found else gradient
        return found

    def _give_up(self, call: _Call, error: Exception) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise error
        self._direct |= set(call.parameters.values())

    def _compare(self, way: str, batch: Batch, calls: list[_Call], by_modules: Callable[[Tensor], Direction]) -> None:
        """Ask of autograd from now on what modules give wrongly.

        A parameter is compared until its gradient was not 0 in a batch of several examples. Their losses are weighted, or
        it would not be seen which of them a number belongs to.
        """
        called = {name for call in calls for name in call.parameters.values()}
        several = min(len(batch.counts), 2)
        uncompared = self._uncompared[way, several] - self._direct - (self._unused - called)
        if not uncompared:
            return
        weights = torch.linspace(0.5, 1.5, len(batch.counts), device=batch.counts.device)
        whole, found = self._gradient(batch, weights), by_modules(weights)
        zero = batch.counts.new_zeros(1)
        largest = max((float(g.abs().max()) for g in whole.values() if g is not None), default=0.0)
        for name in sorted(uncompared - self._direct):
            expected, ours = (zero if g is None else g for g in (whole[name], found.get(name)))
            size = max(float(expected.abs().max()), float(ours.abs().max()))
            if not float((ours - expected).abs().max()) <= AGREEMENT * size + ROUNDING * largest:
                self._direct.add(name)
            elif size > 0:
                for known in range(1, several + 1):
                    self._uncompared[way, known].discard(name)
            elif name not in called and whole[name] is None:
                self._unused.add(name)

    def _one_by_one(self, batch: Batch) -> Iterator[Direction]:
        """For each example its own gradient of what modules cannot give."""
        asked = {name: self.parameters[name] for name in sorted(self._direct)}
        with self._frozen(asked), torch.enable_grad():
            losses = example_losses(self._scored.token_losses(batch), batch)
            for loss in losses:
                if loss.requires_grad:
                    found = torch.autograd.grad(loss, list(asked.values()), retain_graph=True, materialize_grads=True)
                else:  # none of them is used in a way that has a gradient
                    found = [torch.zeros_like(parameter) for parameter in asked.values()]
                yield dict(zip(asked, found, strict=True))

    def per_example(self, batch: Batch) -> Direction:
        """Each example's own gradient: name -> float32 [examples, *shape]. For few examples, or small models."""
        total: Direction = {}

        def summed(weights: Tensor) -> Direction:
            return {name: torch.tensordot(weights, each, dims=1) for name, each in total.items()}

        while True:
            known, total = len(self._direct), {}
            calls = self._calls(batch)
            for call in calls:
                try:
                    found = self._each(call.by_example(batch))
                except FAILURES as error:
                    self._give_up(call, error)
                    break
                if not all(bool(torch.isfinite(gradient).all()) for gradient in found.values()):  # as in `_by_modules`
                    self._direct |= set(found)
                    break
                for name, gradient in found.items():
                    total[name] = total[name] + gradient if name in total else gradient
            else:
                self._compare("each", batch, calls, summed)
            if len(self._direct) == known:
                break
        if self._direct:
            rows = list(self._one_by_one(batch))
            total |= {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return total

    def _each(self, call: _Call) -> Direction:
        own = {own: self.parameters[name].detach() for own, name in call.parameters.items()}

        def one(inputs: tuple, gradient: Tensor) -> Direction:
            def output(parameters: Direction) -> Tensor:
                # a batch of one: what a module does with the first dimension must not change under vmap
                single = tuple(x[None] if isinstance(x, Tensor) else x for x in inputs)
                return replace(call, inputs=single).output(parameters)[0]

            return torch.func.vjp(output, own)[1](gradient)[0]

        axes = tuple(0 if isinstance(x, Tensor) else None for x in call.inputs)
        found = torch.func.vmap(one, in_dims=(axes, 0))(call.inputs, call.gradient)
        return {call.parameters[own]: gradient for own, gradient in found.items()}

    def squared_norms(self, batch: Batch) -> Tensor:
        """float32 [examples]: the product of each example's gradient with itself."""
        return sum(gradient.flatten(1).square().sum(1) for gradient in self.per_example(batch).values())

    # --- the two passes -----------------------------------------------------------------------------------------------

    @contextmanager
    def _frozen(self, but: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Evaluation mode and no gradient for other parameters, so that a backward pass ends where it may."""
        training = self._model.training
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        for parameter in but.values():
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
            self._model.train(training)

    def _calls(self, batch: Batch) -> list[_Call]:
        seen: list[_Call] = []
        examples = len(batch.counts)

        def look(module: nn.Module, inputs: tuple, options: dict, output: object) -> object:
            own = {key: name for key, name in self._owners[module].items() if name not in self._direct}
            if not own:
                return output
            if isinstance(output, Tensor) and output.dim() > 2 and output.shape[0] == 1 < examples:
                # positions: the same for all, and then added
                output = output.expand(examples, *output.shape[1:])
                inputs = tuple(x.expand(examples, *x.shape[1:]) if isinstance(x, Tensor) else x for x in inputs)
            if not _told_apart(output, batch):
                self._direct.update(own.values())
                return output
            probe = torch.zeros_like(output).requires_grad_(True)
            inputs = tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs)
            seen.append(_Call(module, _positions(output, batch), own, inputs, options, probe))
            return output + probe

        hooks = [module.register_forward_hook(look, with_kwargs=True) for module in self._owners]
        try:
            with self._frozen({}), torch.enable_grad():
                losses = example_losses(self._scored.token_losses(batch), batch)
                found = torch.autograd.grad(losses.sum(), [call.gradient for call in seen], allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        calls = []
        for call, gradient in zip(seen, found, strict=True):
            own = {key: name for key, name in call.parameters.items() if name not in self._direct}
            if gradient is not None and own:
                calls.append(replace(call, parameters=own, gradient=gradient))
        return calls

    def _tangent(self, call: _Call, direction: Direction) -> Tensor:
        moved = {own: direction[name] for own, name in call.parameters.items()}
        if type(call.module) in _LINEAR and len(moved) == sum(1 for _ in call.module.parameters(recurse=False)):
            return call.output(moved)
        at = {own: self.parameters[name].detach() for own, name in call.parameters.items()}
        return torch.func.jvp(call.output, (at,), (moved,))[1]


def _told_apart(output: object, batch: Batch) -> bool:
    """Whether a module's output is [examples, ...], or [rows, ...] of all tokens of the batch or of the scored ones."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 2:
        return False
    return len(output) in (len(batch.counts), batch.input_ids.numel(), len(batch.scored))


def _positions(output: Tensor, batch: Batch) -> Tensor | None:
    """int64 [rows]: which tokens of the batch the rows of an output belong to; None if it is [examples, ...]."""
    tokens = batch.input_ids.numel()
    if output.dim() > 2 and len(output) == len(batch.counts):
        return None
    if len(output) == tokens:
        return torch.arange(tokens, device=output.device)
    return batch.scored if len(output) == len(batch.scored) else None


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
