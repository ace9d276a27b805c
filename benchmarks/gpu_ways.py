"""Other ways to compute the largest part of a step, the losses of all tests: what `gpu.py` finds that a card would gain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial

import torch

from gptfluence.models.gpt import GPT
from gptfluence.recording.logits import ScoredLogits
from gptfluence.recording.tokens import Batch


class Pass:
    """One pass over all tests, as the recorder makes it, with a copy of the model."""

    def __init__(self, gpt: GPT, batches: Sequence[Batch], *, autocast: bool = False, weights: torch.dtype) -> None:
        self._model, self._batches, self._autocast = deepcopy(gpt.model).to(weights), batches, autocast
        self._scored = ScoredLogits(self._model)

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        """float32 [scored tokens]: their losses, nats"""
        kind = self._batches[0].input_ids.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self._autocast):
            return torch.cat([self._scored.token_losses(batch) for batch in self._batches])

    def captured(self) -> Callable[[], torch.Tensor]:
        """The same work as a CUDA graph: batches do not change in a run, and weights change in their places."""
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):  # claims memory and chooses kernels, which a graph cannot
            self()
            self()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses = self()

        def replay() -> torch.Tensor:
            graph.replay()
            return losses

        return replay

    def compiled(self) -> Pass:
        """By torch.compile, at the first calls, which take a minute or more for 24 layers."""
        self._model.compile(dynamic=False)
        return self


def ways(
    gpt: GPT, batches: Sequence[Batch], *, compiled: bool
) -> Iterator[tuple[str, Callable[[], Callable[[], torch.Tensor]]]]:
    """Name, and what makes the pass; the first gives the losses that others are compared with.

    Weights in bfloat16 spare autocast's conversions and the float32 between layers. They would be copied anew after each update,
    which is not counted.
    """
    recorders = partial(Pass, gpt, batches, autocast=True, weights=torch.float32)
    light = partial(Pass, gpt, batches, weights=torch.bfloat16)
    yield "fp32", partial(Pass, gpt, batches, weights=torch.float32)
    yield "bf16 by autocast, as the recorder", recorders
    if compiled:
        yield "bf16 by autocast, compiled", lambda: recorders().compiled()
        return
    yield "bf16 weights", light
    if batches[0].input_ids.is_cuda:
        yield "bf16 by autocast, CUDA graph", lambda: recorders().captured()
        yield "bf16 weights, CUDA graph", lambda: light().captured()
