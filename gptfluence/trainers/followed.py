"""Whether a training stays one that this package can follow: what a Trainer's arguments do not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

LOSSES_AGREE = 1e-4  # relative: the Trainer adds up the same numbers


class Followed:
    """Compares the losses that a Trainer logs with the model's own, and what is trained with what was at the start."""

    def __init__(self, model: torch.nn.Module, *, done: int, processes: int) -> None:
        """done: updates so far; processes: of the training"""
        self._model, self._done, self._alone = model, done, processes == 1
        self._trained, self._changed = self._trainable(), False
        self._logged = done  # updates up to the last logged loss

    def _trainable(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self._model.parameters()]

    def before_update(self) -> None:
        """Look at what the optimizer is about to change."""
        self._changed = self._changed or self._trainable() != self._trained

    def after_update(self, step: int, tokens: int, divisor: int | None) -> str:
        """Why it can be followed no longer, in words; empty if it can.

        tokens: that the losses were of; divisor: what the Trainer told the model to divide their sum by
        """
        if self._changed:
            return f"parameters were frozen or unfrozen after the training had begun (before update {step})"
        if divisor is not None and divisor != tokens:
            return (
                f"the Trainer divides a loss of {tokens} tokens by {divisor} labels: it counts those that this model never "
                "predicts, as the first of each row; give those the label -100"
            )
        return ""

    def after_log(self, logs: dict[str, Any], steps: Sequence[dict[str, Any]]) -> str:
        """As `after_update`. steps: `Journal.steps`, whose `batch_loss` is the model's own, nats per token"""
        found, updates = "", len(steps) - 1
        if "loss" in logs and "learning_rate" in logs:  # else it is no log of the Trainer's own
            found = _another(logs["loss"], steps[self._logged + 1 :])
            self._logged = updates
        elif "train_loss" in logs and self._alone:  # of several processes, its end is of the first one alone
            new = steps[self._done + 1 :]
            # earlier versions of transformers divide the sum over the new updates by the number of all
            if _another(logs["train_loss"] * updates / max(1, len(new)), new):
                found = _another(logs["train_loss"], new)
        return found


def _another(trained: float, steps: Sequence[dict[str, Any]]) -> str:
    """What is wrong with a logged mean over these updates, in words; empty if nothing is."""
    own = sum(step["batch_loss"] for step in steps) / len(steps) if steps else trained
    if not abs(own - trained) > LOSSES_AGREE * (1 + abs(own)):  # nan: a batch without labels says nothing
        return ""
    return (
        "the Trainer trained on another loss than the model's own (a compute_loss of yours, say): on average "
        f"{trained:.4f}, where the model's was {own:.4f}"
    )
