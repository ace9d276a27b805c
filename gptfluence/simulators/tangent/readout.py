"""Accuracy, BLEU and ROUGE-L as far as they follow from simulated outputs of the target's tokens.

Accuracy is whether the right label word's output is the largest, and where label words are the candidates that is one of the
four features of a test example here. BLEU and ROUGE-L score texts that the GPT writes by itself, token after token: how likely
the target is says something of them, and no more. Each metric is read out linearly from the features, with weights that all
examples share, and is predicted as the mean of what may come: between 0 and 1 where a simulated margin is small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptfluence.simulators.tangent.linearised import Side

RANGES = {"accuracy": (0.0, 1.0), "bleu": (0.0, 100.0), "rouge_l": (0.0, 1.0)}
SHARPNESS = 4.0  # of the soft share: sigmoid(SHARPNESS x margin in nats)
RIDGE = 1e-3  # relative to each feature's mean square


def _token_losses(tests: Side, outputs: Tensor) -> Tensor:
    """float32 [rows, tokens]: the loss of each scored token, nats; outputs: float32 [rows, outputs]."""
    total = torch.ones(len(outputs), len(tests.example)).index_add_(1, tests.token, outputs.exp())
    return total.log() - outputs[:, tests.target]


def losses(tests: Side, outputs: Tensor) -> Tensor:
    """float32 [rows, tests]: mean loss over each test example's scored tokens, nats; outputs: float32 [rows, outputs]."""
    return tests.mean(_token_losses(tests, outputs))


def features(tests: Side, outputs: Tensor) -> Tensor:
    """float32 [features, rows, tests]: means over each test example's scored tokens; outputs: float32 [rows, outputs].

    They are the loss, the probability, and the share of tokens won, softly and as such: a token is won if its target is
    likelier than every other candidate, or than all other tokens together where it is the only one.
    """
    lost = _token_losses(tests, outputs)
    others = outputs.masked_fill(tests.target, -torch.inf)
    best = torch.full_like(lost, -torch.inf).scatter_reduce_(1, tests.token.expand_as(others), others, "amax")
    margin = outputs[:, tests.target] - best.masked_fill(best == -torch.inf, 0.0)
    each = lost, (-lost).exp(), (SHARPNESS * margin).sigmoid(), (margin > 0).float()
    return torch.stack([tests.mean(values) for values in each])


@dataclass(frozen=True)
class Readout:
    """metric = weights . features + what is the same for all curricula (see `correction.Correction`)."""

    weights: np.ndarray  # float64 [features]

    @classmethod
    def fit(cls, simulated: np.ndarray, recorded: np.ndarray) -> Readout:
        """Ridge regression of the deviations from the mean over runs; of one run, of the changes since step 0.

        simulated: float [runs, features, rows, tests]; recorded: float [runs, rows, tests]; rows: the steps that were
            measured, step 0 first
        """
        simulated, recorded = simulated.astype(np.float64), recorded.astype(np.float64)
        alone = len(recorded) == 1
        x = simulated - (simulated[:, :, :1] if alone else simulated.mean(axis=0))
        y = recorded - (recorded[:, :1] if alone else recorded.mean(axis=0))
        x, y = x[:, :, 1:], y[:, 1:]
        gram = np.einsum("rfsz,rgsz->fg", x, x)
        size = np.diag(gram)
        gram = gram + np.diag(RIDGE * size + 1e-12 * max(size.max(), 1e-30))
        return cls(np.linalg.solve(gram, np.einsum("rfsz,rsz->f", x, y)))

    def measure(self, tests: Side, outputs: Tensor) -> Tensor:
        """float32 [rows, tests] from outputs float32 [rows, outputs]."""
        return torch.tensordot(torch.from_numpy(self.weights).float(), features(tests, outputs), dims=1)

    def apply(self, simulated: np.ndarray) -> np.ndarray:
        """float32 [..., steps + 1, tests] from float [..., features, steps + 1, tests]."""
        return np.einsum("f,...fsz->...sz", self.weights, simulated).astype(np.float32)
