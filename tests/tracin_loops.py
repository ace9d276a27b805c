"""Gradients of one example at a time, for tests of TracIn-CP and Grad-Dot."""

from __future__ import annotations

import numpy as np
import torch

from gptfluence.gradients.products import Replayer
from gptfluence.recording.settings import AdamW, Recording

FAST = AdamW(learning_rate=1e-2)


def replayer(gpt, task, **options):
    return Replayer(gpt, task.pool, task.tests, Recording(optimizer=FAST, **options))


def plain_gradient(model, example, parameters, which="target"):
    """The gradient of an example's loss as `model(input_ids, labels)` has it, with no padding: one flat vector."""
    ids = torch.from_numpy(example.ids)[None]
    labels = torch.full_like(ids, -100)
    start = {"target": example.target_start, "all": 0, "last": ids.shape[1] - 1}[which]
    labels[0, start:] = ids[0, start:]
    own = dict(model.named_parameters())
    loss = model(ids, labels=labels).loss
    found = torch.autograd.grad(loss, [own[name] for name in parameters], allow_unused=True)
    return torch.cat([(g if g is not None else torch.zeros_like(own[n])).flatten() for n, g in zip(parameters, found)])  # noqa: B905


def plain_gradients(model, examples, parameters, which="target"):
    return torch.stack([plain_gradient(model, example, parameters, which) for example in examples])


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()), rtol=1e-4)
