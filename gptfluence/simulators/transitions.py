"""Recorded runs as a regression problem: the values before some updates, the updates, and the value after them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptfluence.recording.curriculum import NOBODY

COARSENINGS = ("hold", "interpolate")


@dataclass(frozen=True)
class Transitions:
    """Every step of every run as a regression problem, S = runs x steps; or every stretch between measured steps."""

    batches: (
        Tensor  # int64 [S, batch], as in `Curriculum`; of stretches [S, updates, batch], -1 where one has fewer updates
    )
    history: Tensor  # float32 [S, order, tests]; [:, j-1] is y_{t-j}, zero before step 0
    target: Tensor  # float32 [S, tests]

    def __len__(self) -> int:
        return self.target.numel()

    def to(self, device: str) -> Transitions:
        return Transitions(self.batches.to(device), self.history.to(device), self.target.to(device))


def shares(batches: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """How tables are read at steps of any size: float64 [..., batch], the weight of each example; [...], the identity's share.

    batches: int [..., batch], as in `Curriculum`; batch_size: of the runs that the tables are fitted on

    A step is the mean over its places of `batch_size` times the rows of its examples: their plain sum, as the equations have
    it, where it is of that size. A masked place changes nothing, so that it stands for the identity, and so does a whole step
    that has no place.
    """
    there = (batches >= 0).double()
    size = (batches != NOBODY).sum(-1).clamp_min(1).double()
    return there * (batch_size / size)[..., None], 1 - there.sum(-1) / size


def make_transitions(
    values: np.ndarray,
    batches: np.ndarray,
    *,
    order: int = 1,
    interval: int = 1,
    coarsening: str = "hold",
    measured: np.ndarray | None = None,
) -> Transitions:
    """The transitions of recorded runs.

    values: float32 [runs, steps + 1, tests]; batches: int [runs, steps, batch]
    measured: int [rows], the steps that were measured, first and last among them; None: all. If there are others, a
        transition is a stretch: it leads from a measured step through all updates to the next one (see `predict_step`).
        Lags above 1 reach back to steps in between, and find there what `values` holds: the value measured last

    With a checkpoint interval c > 1 only the values of every c-th step (and of the last) are used. "hold": the
    transition into step t, with m = floor((t-1)/c) c, leads from y_m to y_min(m+c, T), so every step of an interval is
    asked for the interval's whole jump (lag j is then y_{m-(j-1)c}). "interpolate": values between checkpoints are put
    on a straight line. Only where every step was measured.
    """
    runs, rows, tests = values.shape
    steps = np.arange(1, rows)
    start = (steps - 1) // interval * interval
    if measured is not None and len(measured) < rows:
        start, end = measured[:-1], measured[1:]
        updates = start[:, None] + np.arange((end - start).max())  # [stretches, updates]; the update after step s is s
        made = (updates < end[:, None])[..., None]
        batches = np.where(made, batches[:, np.minimum(updates, rows - 2)], -1)
        target = values[:, end]
    elif coarsening == "interpolate" and interval > 1:
        end = np.minimum(start + interval, rows - 1)
        weight = ((steps - start) / (end - start)).astype(np.float32)[:, None]
        values = np.concatenate([values[:, :1], (1 - weight) * values[:, start] + weight * values[:, end]], axis=1)
        start, target = steps - 1, values[:, 1:]
        interval = 1
    else:
        target = values[:, np.minimum(start + interval, rows - 1)]
    history = np.zeros((runs, len(start), order, tests), np.float32)
    for lag in range(order):
        source = start - lag * interval
        known = source >= 0
        history[:, known, lag] = values[:, source[known]]
    return Transitions(
        torch.from_numpy(batches.reshape(-1, *batches.shape[2:]).astype(np.int64)),
        torch.from_numpy(history.reshape(-1, order, tests)),
        torch.from_numpy(np.ascontiguousarray(target, np.float32).reshape(-1, tests)),
    )
