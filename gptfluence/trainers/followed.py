"""Whether a training stays one that this package can follow: what a Trainer's arguments do not say."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

LOSSES_AGREE = 1e-4  # relative: the Trainer adds up the same numbers


class Followed:
    """Compares the losses that a Trainer logs with the model's own, and what is trained with what was at the start."""

    def __init__(self, model: torch.nn.Module, *, done: int, processes: int) -> None:
        """done: updates so far; processes: of the training"""
        self._model = model
        self._trained = self._trainable()
        # the updates that a logged mean leaves out; the last one of several processes is of the first process alone
        self._before = {"loss": done} | ({"train_loss": done} if processes == 1 else {})

    def _trainable(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self._model.parameters()]

    def after_update(self, step: int) -> str:
        """Why it can be followed no longer, in words; empty if it can."""
        if self._trainable() == self._trained:
            return ""
        return f"parameters were frozen or unfrozen in the middle of the training (at step {step})"

    def after_log(self, logs: dict[str, Any], losses: np.ndarray) -> str:
        """As `after_update`. losses: float64 [updates], the model's own, nats per token"""
        for name, before in self._before.items():
            if name not in logs or len(losses) <= before:
                continue
            own, trained = losses[before:].mean(), logs[name]
            if abs(own - trained) > LOSSES_AGREE * (1 + abs(own)):
                return (
                    "the Trainer trained on another loss than the model's own (a compute_loss of yours, say): on average "
                    f"{trained:.4f}, where the model's was {own:.4f}"
                )
        if "loss" in logs:
            self._before["loss"] = len(losses)
        return ""
