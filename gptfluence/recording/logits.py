"""Only those logits of a causal LM that are asked for."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from gptfluence.common.errors import ModelError
from gptfluence.recording.tokens import Batch

if TYPE_CHECKING:
    from transformers import Cache

PROBED = torch.tensor([2, 7])  # of the eight positions of a probe


class ScoredLogits:
    """Makes a causal LM compute at chosen positions only what no other position needs, whatever its architecture.

    A hook before the output embedding picks the rows it is to see; what the model does to logits afterwards (scaling,
    soft caps) acts on them alone. The last layer's MLP sees the same rows, where a probe shows that no logit depends on
    the others; in a model of three layers that is a quarter of the work.
    """

    def __init__(self, model: torch.nn.Module):
        self._model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft wraps the model
        head = base.get_output_embeddings()
        if head is None:
            raise ModelError(f"{type(base).__name__} has no output embedding; it is not a causal language model")
        self._known = inspect.signature(base.forward).parameters  # no model knows every argument of a decoding step
        self._config = base.config.get_text_config(decoder=True)
        self._positions: torch.Tensor | None = None
        self._hooks = [head.register_forward_pre_hook(self._select)]
        probe = torch.arange(8, device=head.weight.device).view(2, 4) % len(base.get_input_embeddings().weight)
        expected = self._probed(probe)
        if expected is None:
            self.close()
            raise ModelError(
                f"{type(base).__name__} does not make its logits token by token with its output embedding, so its losses "
                "cannot be measured; take a model of another architecture"
            )
        mlp = _last_mlp(base)
        if mlp is not None:
            hooks = [mlp.register_forward_pre_hook(self._select), mlp.register_forward_hook(self._spread)]
            found = self._probed(probe)
            if found is not None and torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
                self._hooks += hooks
            else:
                for hook in hooks:
                    hook.remove()

    def _select(self, _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = inputs[0]
        if self._positions is None:
            return inputs
        self._shape = hidden.shape
        return (hidden.reshape(-1, hidden.shape[-1])[self._positions], *inputs[1:])

    def _spread(self, _module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        """The rows back in their places; the residual stream has zeros added elsewhere, where nobody looks any more."""
        if self._positions is None:
            return output
        whole = output.new_zeros(self._shape[:-1].numel(), self._shape[-1])
        return whole.index_put((self._positions,), output).view(self._shape)

    @torch.inference_mode()
    def _probed(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """The logits at `PROBED` [2, vocabulary], with the model in evaluation mode; None if there are none of this shape."""
        self._positions = PROBED.to(input_ids.device)
        training = self._model.training
        self._model.eval()
        try:
            logits = self._model(input_ids=input_ids, use_cache=False).logits
        except (RuntimeError, TypeError, AttributeError, ValueError, IndexError):  # something that is no map of rows
            return None
        finally:
            self._model.train(training)
            self.rest()
        return logits if logits.dim() == 2 and len(logits) == len(PROBED) else None

    def token_losses(self, batch: Batch) -> torch.Tensor:
        """float32 [scored tokens]: cross-entropy of each scored token, nats."""
        return F.cross_entropy(self.logits(batch), batch.labels, reduction="none")

    def logits(self, batch: Batch) -> torch.Tensor:
        """float32 [scored tokens, vocabulary]: what each scored token is predicted from."""
        self._positions = batch.scored
        return self._model(input_ids=batch.input_ids, use_cache=False).logits.float()

    def next_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """float [rows, vocabulary]: logits after the last token of each row; `cache` (`new_cache`) knows those before.

        input_ids, position_ids: int64 [rows, tokens]; attention_mask: int64 [rows, tokens in the cache and here], 0 for
        padding, which is on the left
        """
        rows, width = input_ids.shape
        self._positions = torch.arange(rows, device=input_ids.device) * width + width - 1
        inputs = {"attention_mask": attention_mask, "use_cache": True}
        if "position_ids" in self._known:
            inputs["position_ids"] = position_ids
        name = "cache_params" if "cache_params" in self._known else "past_key_values"
        return self._model(input_ids=input_ids, **inputs, **{name: cache}).logits

    def new_cache(self) -> Cache:
        """An empty cache of the kind that the model's layers want."""
        from transformers import DynamicCache  # a second that whoever generates nothing need not wait

        return DynamicCache(config=self._config)

    def last_logits(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """float [rows, vocabulary]: logits after the first `lengths` tokens of each row, computed without a cache.

        input_ids: int64 [rows, tokens], padded on the right; lengths: int64 [rows]
        """
        self._positions = torch.arange(len(lengths), device=lengths.device) * input_ids.shape[1] + lengths - 1
        return self._model(input_ids=input_ids, use_cache=False).logits

    def rest(self) -> None:
        """Until logits are asked for again, the model computes all of them: others may train it."""
        self._positions = None

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _last_mlp(model: torch.nn.Module) -> torch.nn.Module | None:
    """The MLP of the last of the model's layers, by the names that Hugging Face models have for them."""
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module)]
    layers = [stack[-1] for stack in stacks if isinstance(getattr(stack[-1], "mlp", None), torch.nn.Module)]
    return layers[0].mlp if len(layers) == 1 else None


def example_losses(token_losses: torch.Tensor, batch: Batch) -> torch.Tensor:
    """float32 [examples]: mean over each example's scored tokens, nats per token."""
    sums = token_losses.new_zeros(len(batch.counts))
    if token_losses.is_cuda:  # index_add_ adds there in an order that changes from call to call
        return sums.index_put_((batch.owner,), token_losses, accumulate=True) / batch.counts
    return sums.index_add_(0, batch.owner, token_losses) / batch.counts
