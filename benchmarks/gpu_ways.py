"""Other ways to compute the largest part of a step, the losses of all tests: what `gpu.py` finds that a card would gain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch
from common import Comparison, Side
from gpu_work import TEXTS, Work, made

from gptfluence.models.gpt import GPT
from gptfluence.recording.logits import ScoredLogits
from gptfluence.recording.tokens import Batch, bucketed

if TYPE_CHECKING:
    from gpu import Bench


def _not_packed(*_: object, **__: object) -> None:
    """Always the same function: torch.compile would compile again for another one."""


class Pass:
    """One pass over all tests, as the recorder makes it, with a copy of the model."""

    def __init__(self, gpt: GPT, batches: Sequence[Batch], *, autocast: bool = False, weights: torch.dtype) -> None:
        self._model, self._batches, self._autocast = deepcopy(gpt.model), batches, autocast
        # and not buffers: frequencies of positions stay as exact as autocast has them
        for parameter in self._model.parameters():
            parameter.data = parameter.data.to(weights)
        self._scored = ScoredLogits(self._model)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._losses: torch.Tensor | None = None

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        """float32 [scored tokens]: their losses, nats"""
        kind = self._batches[0].input_ids.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self._autocast):
            return torch.cat([self._scored.token_losses(batch) for batch in self._batches])

    def captured(self) -> Callable[[], torch.Tensor]:
        """The same work as a CUDA graph: batches do not change in a run, and weights change in their places.

        What is called afterwards is a method of this object, which owns the weights that the graph reads by their addresses.
        """
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):  # claims memory and chooses kernels, which a graph cannot
            self.traced()
            self.traced()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._losses = self.traced()
        return self.replay

    def replay(self) -> torch.Tensor:
        self._graph.replay()
        return self._losses

    def traced(self) -> torch.Tensor:
        """As `__call__`, of texts that are known not to be packed.

        transformers looks whether they are, which waits for the GPU; where it is traced it cannot look, and gives the attention a
        mask, with which it is another, slower one.
        """
        with patch("transformers.masking_utils.find_packed_sequence_indices", _not_packed):
            return self()

    def compiled(self) -> Callable[[], torch.Tensor]:
        """By torch.compile, at the first calls, which take minutes for 24 layers and batches of two shapes."""
        self._model.compile(dynamic=False)
        return self.traced


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
    yield "bf16 weights, not asking for packed rows", lambda: light().traced
    if batches[0].input_ids.is_cuda:
        yield "bf16 by autocast, CUDA graph", lambda: recorders().captured()
        yield "bf16 weights, CUDA graph", lambda: light().captured()


def section(bench: Bench, *, compiled: bool = False) -> Iterator[Comparison]:
    """Time each way for a large GPT and a small one. compiled: as in `ways`"""
    texts: tuple = (8, 12, (12, 24)) if bench.quick else TEXTS
    for shape in ("tiny",) if bench.quick else ("410M", "14M"):
        work, gpt = Work.of(shape, *texts), made(shape, bench.device)
        flops, sides, truth = work.flops(shape)[1], [], None
        batches = bucketed(work.tokens[1], 16384, "target", bench.device)
        for name, make in ways(gpt, batches, compiled=compiled):
            try:
                way = make()
                seconds = bench.seconds(way)
                losses = way().float()
            except RuntimeError as error:
                if truth is None:
                    raise
                bench.facts.setdefault("failed", []).append(f"ways, {shape}, {name}: {error}")
                continue
            truth = losses.clone() if truth is None else truth
            share = None if bench.peak is None else 1e-12 * flops / float(np.median(seconds)) / bench.peak
            also = {"share of the bf16 peak": share, "losses, nats": float((losses - truth).abs().max())}
            sides.append(Side(name, [1000 * s for s in seconds], also))
        yield Comparison(
            f"The losses of {texts[1]} tests, Pythia {shape} shape, {'compiled' if compiled else 'in other ways'}",
            "ms",
            sides,
            reference=sides[0].label,
            notes=["losses: largest difference of a token's from fp32's"],
        )
