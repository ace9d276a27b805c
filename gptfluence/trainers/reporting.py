"""Recorded losses among what a Trainer reports to W&B, trackio, TensorBoard or others: mean and quantiles."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

QUANTILES = (0.1, 0.5, 0.9)
_on_log = CallbackHandler.on_log
_watching: weakref.WeakSet[Reporting] = weakref.WeakSet()  # a training that failed closes nothing


class Reporting:
    """Adds what was measured last to the logs of a Trainer.

    The Trainer's list of callbacks has those that report before those that a user gives, so what our callback wrote into the
    logs would come too late. They are completed before the list gets them.
    """

    def __init__(self, callback: TrainerCallback) -> None:
        """callback: ours; only the logs of its own Trainer are completed"""
        self._callback = weakref.ref(callback)
        self._latest: dict[str, float] = {}
        _watching.add(self)
        CallbackHandler.on_log = _completed  # type: ignore[method-assign]

    def update(self, losses: np.ndarray) -> None:
        """losses: float [tests]; never reported one by one"""
        values = {"mean": losses.mean(), **{f"quantile_{q}": np.quantile(losses, q) for q in QUANTILES}}
        self._latest = {f"test_loss_{name}": float(value) for name, value in values.items()}

    def complete(self, handler: CallbackHandler, logs: dict[str, Any]) -> None:
        """Once for each measurement: logs of a later step have none."""
        if any(each is self._callback() for each in handler.callbacks):
            logs |= self._latest
            self._latest = {}

    def close(self) -> None:
        """Logs are again as the Trainer makes them."""
        _watching.discard(self)
        if not _watching:
            CallbackHandler.on_log = _on_log  # type: ignore[method-assign]


def _completed(handler: CallbackHandler, args: Any, state: Any, control: Any, logs: dict, **given: Any) -> Any:
    for each in list(_watching):
        each.complete(handler, logs)
    return _on_log(handler, args, state, control, logs, **given)
