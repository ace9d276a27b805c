"""How simulators made of tables are fitted and rolled out; shared by GPTfluence and Simfluence.

Both say yhat_t = sum_j alpha_j(c_t) y_{t-j} + beta(c_t), where alpha and beta are sums over the batch c_t of entries of
tables [pool, tests], one table for each lag j and one for beta. They differ only in where the tables come from: heads
on text features, or free entries. So that an update costs little more with all transitions than with 128, tables are
made once per update from the unique examples, and transitions only look entries up.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import FitReport, Simulator, diverged
from gptfluence.tasks.base import TaskPool

OPTIMIZERS = ("adam", "adamw")
COARSENINGS = ("hold", "interpolate")
LOG_EVERY_SECONDS = 10.0

log = logging.getLogger(__name__)


class TableModel(nn.Module):
    """A module that makes the tables. Lag j's table is row j-1, beta's is the last."""

    def tables(self, pool: Tensor | None = None, tests: Tensor | None = None) -> Tensor:
        """float32 [order + 1, pool, tests] for these examples (int64 ids; None: all)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Transitions:
    """Every step of every run as a regression problem; S = runs x steps."""

    batches: Tensor  # int64 [S, batch]
    history: Tensor  # float32 [S, order, tests]; [:, j-1] is y_{t-j}, zero before step 0
    target: Tensor  # float32 [S, tests]

    def __len__(self) -> int:
        return self.target.numel()

    def to(self, device: str) -> Transitions:
        return Transitions(self.batches.to(device), self.history.to(device), self.target.to(device))


def make_transitions(
    values: np.ndarray, batches: np.ndarray, *, order: int = 1, interval: int = 1, coarsening: str = "hold"
) -> Transitions:
    """The transitions of recorded runs.

    values: float32 [runs, steps + 1, tests]; batches: int [runs, steps, batch]

    With a checkpoint interval c > 1 only the values of every c-th step (and of the last) are used. "hold": the
    transition into step t, with m = floor((t-1)/c) c, leads from y_m to y_min(m+c, T), so every step of an interval is
    asked for the interval's whole jump (lag j is then y_{m-(j-1)c}). "interpolate": values between checkpoints are put
    on a straight line.
    """
    runs, rows, tests = values.shape
    steps = np.arange(1, rows)
    start = (steps - 1) // interval * interval
    if coarsening == "interpolate" and interval > 1:
        end = np.minimum(start + interval, rows - 1)
        weight = ((steps - start) / (end - start)).astype(np.float32)[:, None]
        values = np.concatenate([values[:, :1], (1 - weight) * values[:, start] + weight * values[:, end]], axis=1)
        start, target = steps - 1, values[:, 1:]
        interval = 1
    else:
        target = values[:, np.minimum(start + interval, rows - 1)]
    history = np.zeros((runs, rows - 1, order, tests), np.float32)
    for lag in range(order):
        source = start - lag * interval
        known = source >= 0
        history[:, known, lag] = values[:, source[known]]
    return Transitions(
        torch.from_numpy(batches.reshape(runs * (rows - 1), -1).astype(np.int64)),
        torch.from_numpy(history.reshape(-1, order, tests)),
        torch.from_numpy(np.ascontiguousarray(target, np.float32).reshape(-1, tests)),
    )


class _SumEntries(torch.autograd.Function):
    """out[k, s] = sum_b table[k, index[s, b]]; torch's own gradient for this is several times slower on a CPU."""

    @staticmethod
    def forward(ctx, table: Tensor, index: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(index)
        ctx.shape = table.shape
        return table.index_select(1, index.reshape(-1)).view(len(table), *index.shape).sum(-1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (index,) = ctx.saved_tensors
        flat = index.reshape(-1)
        table = gradient.new_zeros(ctx.shape)
        for row, values in zip(table, gradient, strict=True):
            row.scatter_add_(0, flat, values[:, None].expand(index.shape).reshape(-1))
        return table, None


def _used(ids: Tensor, size: int) -> tuple[Tensor | None, Tensor]:
    """The distinct `ids` (None if all of them occur) and `ids` renumbered as positions among the distinct ones."""
    present = torch.zeros(size, dtype=torch.bool, device=ids.device)
    present[ids.reshape(-1)] = True
    if present.all():
        return None, ids
    return present.nonzero()[:, 0], (present.cumsum(0) - 1)[ids]


def predict_step(model: TableModel, sizes: tuple[int, int], batches: Tensor, tests: Tensor, history: Tensor) -> Tensor:
    """The next values, float32 [transitions].

    batches: int64 [transitions, batch]; tests: int64 [transitions]; history: float32 [transitions, order], newest first
    sizes: of pool and tests
    """
    pool_ids, batches = _used(batches, sizes[0])
    test_ids, tests = _used(tests, sizes[1])
    tables = model.tables(pool_ids, test_ids)
    terms = _SumEntries.apply(tables.flatten(1), batches * tables.shape[2] + tests[:, None])
    return (terms[:-1] * history.T).sum(0) + terms[-1]


def training_step(
    model: TableModel,
    optimizer: torch.optim.Optimizer,
    sizes: tuple[int, int],
    batches: Tensor,
    tests: Tensor,
    history: Tensor,
    target: Tensor,
) -> Tensor:
    """One update on the mean squared one-step error, given the true previous values (teacher forcing).

    Returns the error before the update; target: float32 [transitions], the rest as in `predict_step`.
    """
    loss = (predict_step(model, sizes, batches, tests, history) - target).square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def make_optimizer(name: str, model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """adam adds the weight decay to the gradient (the published code), adamw applies it apart (the paper, table 8)."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    return kind(model.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)


def schedule(update: int, total: int, warmup: int) -> float:
    """Factor on the learning rate of update 0, 1, ...: up from 0 over `warmup` updates, then down to 0 at `total`."""
    return update / warmup if update < warmup else (total - update) / max(1, total - warmup)


def rollout(tables: Tensor, batches: Tensor, observed: Tensor) -> Tensor:
    """Free-running prediction: float32 [curricula, steps + 1, tests].

    tables: float32 [pool, (order + 1) x tests], for each training example the rows of all tables side by side
    batches: int [curricula, steps, batch]
    observed: float32 [curricula, k, tests]; values before step 0 are zero, as in the published code
    """
    curricula, steps = batches.shape[:2]
    known, tests = observed.shape[1:]
    order = tables.shape[1] // tests - 1
    predicted = tables.new_empty(curricula, steps + 1, tests)
    predicted[:, :known] = observed
    for step, ids in enumerate(batches[:, known - 1 :].transpose(0, 1).contiguous(), start=known):
        terms = nn.functional.embedding_bag(ids, tables, mode="sum")
        value = terms[:, order * tests :]
        for lag in range(1, min(order, step) + 1):
            value = torch.addcmul(value, terms[:, (lag - 1) * tests : lag * tests], predicted[:, step - lag])
        predicted[:, step] = value
    return predicted


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Treat denormal floats as zero meanwhile: decaying moments of the optimizer end there and slow every step down."""
    already = bool((torch.tensor(1e-39) * 1.0 == 0).item())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)


@dataclass(kw_only=True, eq=False)
class TableSimulator(Simulator):
    """Hyperparameters and the fit loop of simulators whose tables are learned by gradient descent.

    learning_rate: peak of the schedule
    weight_decay: L2 strength
    optimizer: "adamw" as in the paper, or "adam" with the decay added to the gradient as in the published code
    batch_size: transitions per update, drawn over all (run, step, test) without replacement; None for all of them
    max_epochs: an epoch visits every transition once
    warmup_steps: updates of linear warm-up; at most a tenth of all updates, so that a short fit is not all warm-up
    patience: stop after so many epochs without a better validation all-steps MSE; None for never
    standardize: divide the metric by its standard deviation over the training runs while fitting (alpha is unchanged
        and beta is scaled back, so the family of functions is the same)
    seed: of the initial weights and of the order of transitions
    checkpoint_interval, coarsening: fit on values of every c-th step only; see `make_transitions`
    device: where torch computes. On a CPU with one thread a fit is reproducible to the last bit
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    optimizer: str = "adamw"
    batch_size: int | None = 32768
    max_epochs: int = 300
    warmup_steps: int = 200
    patience: int | None = 30
    standardize: bool = True
    seed: int = 42
    checkpoint_interval: int = 1
    coarsening: str = "hold"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for key, known in (("optimizer", OPTIMIZERS), ("coarsening", COARSENINGS)):
            if getattr(self, key) not in known:
                raise ConfigurationError(unknown(key, getattr(self, key), known, where=f"{self.name}: "))
        for key, least in (("batch_size", 1), ("max_epochs", 1), ("warmup_steps", 0), ("patience", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigurationError(f"{self.name}: {key} must be {least} or more, not {value}")
        if self.checkpoint_interval < 1:
            raise ConfigurationError(
                f"{self.name}: checkpoint_interval must be 1 or more, not {self.checkpoint_interval}"
            )
        if not (self.learning_rate > 0 and self.weight_decay >= 0):
            raise ConfigurationError(f"{self.name}: learning_rate must be positive and weight_decay not negative")

    order = 1  # number of previous values; GPTfluence sets it

    # --- for subclasses -------------------------------------------------------------------------------------------

    @abstractmethod
    def _build(self, train: GPTDynamics) -> TableModel:
        """The model with its initial weights; torch's generator is seeded."""

    @abstractmethod
    def _raw_tables(self, pool: TaskPool | None, tests: TaskPool | None) -> Tensor:
        """The model's tables [order + 1, pool, tests], in standardized units, for any pool and tests it can serve."""

    # --- for users ------------------------------------------------------------------------------------------------

    def tables(self, *, pool: TaskPool | None = None, tests: TaskPool | None = None) -> np.ndarray:
        """What each training example does to each test example: float32 [order + 1, pool, tests].

        Row j-1 holds A_ij, the example's share of the factor on y_{t-j} (a batch adds them up: below 1/batch lowers the
        metric); the last row holds B_i, its additive share in the metric's unit (negative lowers the metric). Equations
        5-9 of the paper. With `tests` the fitted pool, the diagonal of row 0 is an example's factor on itself.
        """
        return self._scaled_tables(*self._recognised(pool, tests)).cpu().numpy()

    # --- the loop ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _scaled_tables(self, pool: TaskPool | None, tests: TaskPool | None) -> Tensor:
        tables = self._raw_tables(pool, tests).clone()
        tables[-1] *= self._unit
        return tables

    def _prepare(self, pool: TaskPool | None, tests: TaskPool | None) -> Tensor:
        return self._scaled_tables(pool, tests).transpose(0, 1).flatten(1).contiguous()

    @torch.no_grad()
    def _rollout(self, prepared: Tensor, batches: np.ndarray, observed: np.ndarray) -> np.ndarray:
        ids = torch.tensor(np.ascontiguousarray(batches, np.int32), device=prepared.device)
        start = torch.tensor(np.ascontiguousarray(observed), device=prepared.device)
        with flushed_denormals():
            return rollout(prepared, ids, start).cpu().numpy()

    def _fit(self, train: GPTDynamics, validation: GPTDynamics | None, metric: str) -> FitReport:
        values = train.trajectories(metric)
        self._unit = (float(values.std()) or 1.0) if self.standardize else 1.0
        transitions = make_transitions(
            values / np.float32(self._unit),
            train.batches,
            order=self.order,
            interval=self.checkpoint_interval,
            coarsening=self.coarsening,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._model = self._build(train).to(self.device)
        validate = self._validator(validation, metric) if validation is not None else None
        with flushed_denormals(), torch.enable_grad():
            return self._descend(transitions.to(self.device), validate)

    def _validator(self, validation: GPTDynamics, metric: str) -> Callable[[], tuple[float, int]]:
        """Rollouts over the validation runs: all-steps MSE (infinite if undefined), number of diverged trajectories."""
        recorded, batches = validation.trajectories(metric), validation.batches
        known = min(self.order, recorded.shape[1] - 1)

        def validate() -> tuple[float, int]:
            predicted = self._rollout(self._prepare(None, None), batches, recorded[:, :known])
            with np.errstate(over="ignore", invalid="ignore"):
                mse = float(np.square(predicted[:, known:].astype(np.float64) - recorded[:, known:]).mean())
            assert self.fitted is not None
            lost = int(diverged(predicted, self.fitted.scale).sum())
            return (mse if np.isfinite(mse) else float("inf")), lost

        return validate

    def _descend(self, transitions: Transitions, validate: Callable[[], tuple[float, int]] | None) -> FitReport:
        assert self.fitted is not None
        started = last_logged = time.perf_counter()
        model, sizes = self._model, (self.fitted.pool_size, self.fitted.tests_size)
        optimizer = make_optimizer(
            self.optimizer, model, learning_rate=self.learning_rate, weight_decay=self.weight_decay
        )
        batch_size = min(self.batch_size or len(transitions), len(transitions))
        total = self.max_epochs * -(-len(transitions) // batch_size)
        warmup = min(self.warmup_steps, total // 10)
        shuffle = torch.Generator().manual_seed(self.seed)
        losses: list[float] = []
        errors: list[float] = []
        report = FitReport(selected_by="last epoch: no validation runs were given")
        best, best_mse, update = deepcopy(model.state_dict()), float("inf"), 0
        if validate is not None:  # the start competes, too: near the identity it predicts that nothing changes
            best_mse, report.diverged_trajectories = validate()
        for epoch in range(1, self.max_epochs + 1):
            loss = torch.zeros((), dtype=torch.float64, device=transitions.target.device)
            drawn = torch.randperm(len(transitions), generator=shuffle).to(transitions.target.device)
            for chosen in drawn.split(batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * schedule(update, total, warmup)
                step, test = chosen // sizes[1], chosen % sizes[1]
                loss += len(chosen) * training_step(
                    model,
                    optimizer,
                    sizes,
                    transitions.batches[step],
                    test,
                    transitions.history[step, :, test],
                    transitions.target.view(-1)[chosen],
                )
                update += 1
            losses.append(loss.item() / len(transitions) * self._unit**2)
            if validate is not None:
                mse, lost = validate()
                errors.append(mse)
                report.diverged_epochs += lost > 0
                if mse < best_mse:
                    best, best_mse = deepcopy(model.state_dict()), mse
                    report.best_epoch, report.diverged_trajectories = epoch, lost
                if self.patience and epoch - report.best_epoch >= self.patience and np.isfinite(best_mse):
                    break
            if not np.isfinite(losses[-1]):
                break  # the weights are lost: no later epoch can be finite
            if time.perf_counter() - last_logged > LOG_EVERY_SECONDS:
                last_logged = time.perf_counter()
                shown = f", validation all-steps MSE {errors[-1]:.4g}" if errors else ""
                log.info(
                    "%s: epoch %d of %d, one-step MSE %.4g%s", self.name, epoch, self.max_epochs, losses[-1], shown
                )
        optimizer.zero_grad(set_to_none=True)  # a fitted simulator has no use for its last gradient
        if validate is not None:
            model.load_state_dict(best)
            report.selected_by = "best validation all-steps MSE"
            if not report.best_epoch:
                report.selected_by = "the start, near the identity: no epoch had a lower validation all-steps MSE"
        else:
            report.best_epoch = len(losses)
        report.epochs, report.seconds = len(losses), time.perf_counter() - started
        report.training_loss, report.validation_mse = np.array(losses), np.array(errors)
        report.diverged = report.diverged_trajectories > 0 or not np.isfinite(losses[-1])
        return report
