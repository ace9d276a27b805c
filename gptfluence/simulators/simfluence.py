"""Simfluence-linear (Guu et al., 2023): free tables instead of features, so it knows the ids seen in training only.

    yhat_t = (sum_{i in c_t} A_i(z')) y_{t-1} + sum_{i in c_t} B_i(z')

with tables A, B [pool, tests], L2-regularised.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import FitReport
from gptfluence.simulators.fitting import TableModel, TableSimulator, predict_step
from gptfluence.simulators.transitions import Transitions, shares
from gptfluence.tasks.base import TaskPool

METHODS = ("gradient_descent", "closed_form")
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


class FreeTables(TableModel):
    """table: [2, pool, tests], A and B; starts at the identity, A = 1/batch and B = 0."""

    def __init__(self, pool: int, tests: int, batch_size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2, pool, tests))
        self.table.data[0] = 1 / batch_size

    def tables(self, pool: Tensor | None = None, tests: Tensor | None = None) -> Tensor:
        table = self.table if pool is None else self.table[:, pool]
        return table if tests is None else table[:, :, tests]


@dataclass(kw_only=True, eq=False)
class Simfluence(TableSimulator):
    """A multiplicative and an additive number for each pair of a training and a test example.

    method: "gradient_descent" (as published: AdamW, learning rate 1e-3, the loop of GPTfluence) or "closed_form", for
        each test example the minimum over a, b [pool] of
        sum_t (<a, n_t> y_{t-1} + <b, n_t> - y_t)^2 + ridge (|a - 1/batch|^2 + |b|^2),
        n_t counting the examples of batch t (weighted by `transitions.shares` where steps differ in size): a ridge regression with 2 x pool unknowns, shrunk towards the identity. Where
        several updates lie between two measured steps, n_t counts their batches together, which is right to first order
    ridge: strength in the closed form; None: the one of `RIDGES` whose rollouts have the lowest validation MSE

    The other hyperparameters are those of `TableSimulator`; the closed form uses target, standardize, checkpoint_interval
    and coarsening only (ridge is in units of the standardized target).
    """

    name = "simfluence"
    refuses_unseen = "it knows only the ids of its own runs. Use GPTfluence for unseen examples"

    method: str = "gradient_descent"
    ridge: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ConfigurationError(unknown("method", self.method, METHODS, where="simfluence: "))
        if self.ridge is not None and not self.ridge > 0:
            raise ConfigurationError(f"simfluence: ridge must be positive, not {self.ridge}")

    def _build(self, train: GPTDynamics) -> FreeTables:
        assert self.fitted is not None
        return FreeTables(self.fitted.pool_size, self.fitted.tests_size, self.fitted.batch_size)

    def _raw_tables(self, pool: TaskPool | None, tests: TaskPool | None) -> Tensor:
        return self._model.tables()

    def _fit(self, train: GPTDynamics, validation: GPTDynamics | None, metric: str) -> FitReport:
        if self.method == "gradient_descent":
            return super()._fit(train, validation, metric)
        if self.ridge is None and validation is None:
            raise ConfigurationError("simfluence: closed_form chooses ridge on validation runs; give some, or ridge=")
        started = time.perf_counter()
        transitions = self._transitions(train, metric)
        self._model = self._build(train)
        solutions = solve_closed_form(transitions, len(train.pool), self.ridge_grid)
        report = FitReport(epochs=1, best_epoch=1, selected_by=f"ridge {self.ridge_grid[0]:g} as given")
        best, errors = 0, []
        if validation is not None:
            validate = self._validator(validation, metric)
            lost = []
            for tables in solutions:
                self._model.table.data.copy_(tables)
                mse, count = validate()
                errors.append(mse)
                lost.append(count)
            best = int(np.argmin(errors))
            report.diverged_trajectories, report.diverged = lost[best], lost[best] > 0
            if self.ridge is None:
                report.selected_by = f"ridge {self.ridge_grid[best]:g} by validation all-steps MSE"
        self._model.table.data.copy_(solutions[best])
        self._model.to(self.device)
        report.training_loss = np.array([self._one_step_mse(transitions)])
        report.validation_mse = np.array([errors[best]] if errors else [])
        report.seconds = time.perf_counter() - started
        return report

    @property
    def ridge_grid(self) -> tuple[float, ...]:
        return RIDGES if self.ridge is None else (self.ridge,)

    @torch.no_grad()
    def _one_step_mse(self, transitions: Transitions) -> float:
        transitions, sizes = transitions.to(self.device), tuple(self._model.table.shape[1:])
        squares = torch.zeros((), dtype=torch.float64)
        for test, target in enumerate(transitions.target.T):
            tests = torch.full((len(target),), test, device=self.device)
            predicted = predict_step(self._model, sizes, transitions.batches, tests, transitions.history[:, :, test])
            squares += (predicted - target).double().square().sum().cpu()
        return float(squares) / len(transitions) * self._unit**2

    def _empty(self, state: dict[str, Tensor]) -> FreeTables:
        assert self.fitted is not None
        return FreeTables(self.fitted.pool_size, self.fitted.tests_size, self.fitted.batch_size)


def solve_closed_form(transitions: Transitions, pool: int, ridges: tuple[float, ...]) -> list[Tensor]:
    """The tables [2, pool, tests], float32, that minimise the ridge objective (see `Simfluence`), for each strength.

    Normal equations are set up in float64 from the few pairs of examples that share a batch, one test example at a
    time: memory stays at (2 x pool)^2 numbers.
    """
    batch, seen = transitions.batches.shape[-1], transitions.batches.flatten(1)  # [S, examples]
    made = shares(transitions.batches, batch)[0].flatten(1)
    seen = seen.clamp_min(0)
    pairs = (seen[:, :, None] * pool + seen[:, None, :]).flatten()
    both = made[:, :, None] * made[:, None, :]
    counts = torch.zeros(len(seen), pool, dtype=torch.float64).scatter_add_(1, seen, made)
    previous, target = transitions.history[:, 0].double(), transitions.target.double()

    def gram(weights: Tensor) -> Tensor:
        spread = (weights[:, None, None] * both).flatten()
        return torch.bincount(pairs, weights=spread, minlength=pool * pool).view(pool, pool)

    plain = gram(torch.ones(len(seen), dtype=torch.float64))
    solutions = [torch.empty(2, pool, target.shape[1]) for _ in ridges]
    identity = torch.eye(2 * pool, dtype=torch.float64)
    for test in range(target.shape[1]):
        y = previous[:, test]
        cross = gram(y)
        normal = torch.cat([torch.cat([gram(y * y), cross], 1), torch.cat([cross, plain], 1)])
        # Unknown is the deviation from the identity, which predicts y_t = y_{t-1}: the right side is the change.
        change = target[:, test] - y
        right = torch.cat([counts.T @ (y * change), counts.T @ change])[:, None]
        for solution, ridge in zip(solutions, ridges, strict=True):
            deviation = torch.cholesky_solve(right, torch.linalg.cholesky(normal + ridge * identity))
            solution[:, :, test] = deviation.view(2, pool).float()
    for solution in solutions:
        solution[0] += 1 / batch
    return solutions
