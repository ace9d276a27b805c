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
from gptfluence.recording.curriculum import NOBODY
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import FitReport, Simulator, diverged
from gptfluence.simulators.reference import mean_prediction
from gptfluence.simulators.transitions import COARSENINGS, Transitions, make_transitions, shares
from gptfluence.tasks.base import TaskPool

TARGETS = ("value", "deviation")
OPTIMIZERS = ("adam", "adamw")
LOG_EVERY_SECONDS = 10.0

log = logging.getLogger(__name__)


class TableModel(nn.Module):
    """A module that makes the tables. Lag j's table is row j-1, beta's is the last."""

    def tables(self, pool: Tensor | None = None, tests: Tensor | None = None) -> Tensor:
        """float32 [order + 1, pool, tests] for these examples (int64 ids; None: all)."""
        raise NotImplementedError


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

    batches: int64 [transitions, batch], or [transitions, updates, batch] for the values after several updates, between which
        the model's own predictions take the place of measured values; -1: no update. Steps of fewer examples: see `shares`
    tests: int64 [transitions]; history: float32 [transitions, order], newest first; sizes: of pool and tests
    """
    if batches.ndim == 2:
        batches = batches[:, None]
    there, made = batches >= 0, (batches != NOBODY).any(2)
    weight, rest = (None, None) if (there.all(2) | ~made).all() else shares(batches, batches.shape[2])
    pool_ids, batches = _used(batches.clamp_min(0), sizes[0])
    test_ids, tests = _used(tests, sizes[1])
    tables = model.tables(pool_ids, test_ids)
    entries, tables = batches * tables.shape[2] + tests[:, None, None], tables.flatten(1)
    if weight is not None:  # who is not there has an entry of 0
        entries, tables = torch.where(there, entries, tables.shape[1]), nn.functional.pad(tables, (0, 1))
    terms = _SumEntries.apply(tables, entries.flatten(0, 1)).unflatten(1, made.shape)
    if weight is not None:
        identity = torch.eye(len(terms), 1, device=terms.device)[:, :, None]
        terms = terms * weight.amax(2).float() + identity * rest.float()
    value = (terms[:-1, :, 0] * history.T).sum(0) + terms[-1, :, 0]
    for update in range(1, made.shape[1]):
        history = torch.cat([value[:, None], history[:, :-1]], dim=1)
        following = (terms[:-1, :, update] * history.T).sum(0) + terms[-1, :, update]
        value = torch.where(made[:, update], following, value)
    return value


def training_step(
    model: TableModel,
    optimizer: torch.optim.Optimizer,
    sizes: tuple[int, int],
    batches: Tensor,
    tests: Tensor,
    history: Tensor,
    target: Tensor,
) -> Tensor:
    """One update on the mean squared error of transitions, given the true values before each (teacher forcing).

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


def rollout(tables: Tensor, batches: Tensor, observed: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Free-running prediction: float32 [curricula, steps + 1, tests].

    tables: float32 [pool, (order + 1) x tests], for each training example the rows of all tables side by side
    batches: int [curricula, steps, batch], as in `Curriculum`; batch_size: that of the fit, if steps have another (see `shares`)
    observed: float32 [curricula, k, tests]; values before step 0 are zero, as in the published code
    """
    curricula, steps = batches.shape[:2]
    known, tests = observed.shape[1:]
    order = tables.shape[1] // tests - 1
    predicted = tables.new_empty(curricula, steps + 1, tests)
    predicted[:, :known] = observed
    weight = rest = None
    if batches.shape[2] != (batch_size or batches.shape[2]) or bool((batches < 0).any()):
        weight, rest = (part.float() for part in shares(batches, batch_size or batches.shape[2]))
        batches = batches.clamp_min(0)
    for step, ids in enumerate(batches[:, known - 1 :].transpose(0, 1).contiguous(), start=known):
        weighed = None if weight is None else weight[:, step - 1].contiguous()
        terms = nn.functional.embedding_bag(ids, tables, mode="sum", per_sample_weights=weighed)
        if rest is not None:
            terms[:, :tests] += rest[:, step - 1, None]
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

    target: what the recursion predicts, "value" (the paper) or "deviation": y_t less the mean trajectory of the training
        runs, which is added again. Unseen tests then get the mean change of the fitted ones, added to their first value, and
        curricula cannot be longer than the fitted ones. A fit starts near persistence, or near the mean trajectory
    learning_rate: peak of the schedule
    weight_decay: L2 strength
    optimizer: "adamw" as in the paper, or "adam" with the decay added to the gradient as in the published code
    batch_size: transitions per update, drawn over all (run, step, test) without replacement; None for all of them
    max_epochs: an epoch visits every transition once
    warmup_steps: updates of linear warm-up; at most a tenth of all updates, so that a short fit is not all warm-up
    patience: stop after so many epochs without a better validation all-steps MSE, counted from the end of the warm-up;
        None for never
    standardize: divide the target by its standard deviation over the training runs while fitting (alpha is unchanged
        and beta is scaled back, so the family of functions is the same)
    seed: of the initial weights and of the order of transitions
    checkpoint_interval, coarsening: fit on values of every c-th step only; see `make_transitions`
    device: where torch computes. On a CPU with one thread a fit is reproducible to the last bit
    """

    target: str = "value"
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
        for key, known in (("target", TARGETS), ("optimizer", OPTIMIZERS), ("coarsening", COARSENINGS)):
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

    format = 4
    order = 1  # number of previous values; GPTfluence sets it
    _mean = None  # float32 [steps + 1, tests], if deviations from it are predicted

    # --- for subclasses -------------------------------------------------------------------------------------------

    @abstractmethod
    def _build(self, train: GPTDynamics) -> TableModel:
        """The model with its initial weights; torch's generator is seeded."""

    @abstractmethod
    def _empty(self, state: dict[str, Tensor]) -> TableModel:
        """A model that the weights `state` fit into. Raises ValueError if they are not of the fitted pool and tests."""

    @abstractmethod
    def _raw_tables(self, pool: TaskPool | None, tests: TaskPool | None) -> Tensor:
        """The model's tables [order + 1, pool, tests], in standardized units, for any pool and tests it can serve."""

    # --- for users ------------------------------------------------------------------------------------------------

    def tables(self, *, pool: TaskPool | None = None, tests: TaskPool | None = None) -> np.ndarray:
        """What each training example does to each test example: float32 [order + 1, pool, tests].

        Row j-1 holds A_ij, the example's share of the factor on y_{t-j} (a batch adds them up: below 1/batch lowers the
        metric); the last row holds B_i, its additive share in the metric's unit (negative lowers the metric). Equations
        5-9 of the paper; with target "deviation" y is the deviation from the mean trajectory. With `tests` the fitted pool, the
        diagonal of row 0 is an example's factor on itself.
        """
        return self._scaled_tables(*self._recognised(pool, tests)).cpu().numpy()

    # --- the loop ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _scaled_tables(self, pool: TaskPool | None, tests: TaskPool | None) -> Tensor:
        tables = self._raw_tables(pool, tests).clone()
        tables[-1] *= self._unit
        return tables

    def _prepare(self, pool: TaskPool | None, tests: TaskPool | None) -> tuple[Tensor, bool]:
        return self._scaled_tables(pool, tests).transpose(0, 1).flatten(1).contiguous(), tests is not None

    @torch.no_grad()
    def _rollout(self, prepared: tuple[Tensor, bool], batches: np.ndarray, observed: np.ndarray) -> np.ndarray:
        assert self.fitted is not None
        tables, unseen = prepared
        ids = torch.tensor(np.ascontiguousarray(batches, np.int32), device=tables.device)
        start, mean = observed, None
        if self._mean is not None:
            mean = mean_prediction(self._mean, observed, batches.shape[1], unseen=unseen, name=self.name)
            start = observed - mean[:, : observed.shape[1]]
        with flushed_denormals():
            started = torch.tensor(np.ascontiguousarray(start), device=tables.device)
            predicted = rollout(tables, ids, started, batch_size=self.fitted.batch_size).cpu().numpy()
        if mean is not None:
            predicted += mean
            predicted[:, : observed.shape[1]] = observed
        return predicted

    def _transitions(self, train: GPTDynamics, metric: str) -> Transitions:
        """Those of the training runs, standardized; sets what is needed to undo that."""
        values, measured = train.trajectories(metric), train.measured(metric)
        steps, interval = values.shape[1] - 1, self.checkpoint_interval
        if interval > 1 and len(measured) <= steps:
            raise ConfigurationError(
                f"{self.name}: checkpoint_interval {interval}: {metric} was not measured at every step; leave it at 1"
            )
        known = measured[(measured % interval == 0) | (measured == steps)]  # of the others no value is looked at
        self._mean = None
        if self.target == "deviation":
            from scipy.interpolate import make_interp_spline  # half a second, which predicting does not need

            mean = values[:, known].mean(axis=0, dtype=np.float64)
            self._mean = make_interp_spline(known, mean, k=1)(np.arange(steps + 1)).astype(np.float32)
            values = values - self._mean
        self._unit = (float(values[:, known].std()) or 1.0) if self.standardize else 1.0
        return make_transitions(
            values / np.float32(self._unit),
            train.batches,
            order=self.order,
            interval=interval,
            coarsening=self.coarsening,
            measured=measured,
        )

    def _fit(self, train: GPTDynamics, validation: GPTDynamics | None, metric: str) -> FitReport:
        transitions = self._transitions(train, metric)
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
        counted = validation.measured(metric)
        counted = counted[counted >= known]

        def validate() -> tuple[float, int]:
            predicted = self._rollout(self._prepare(None, None), batches, recorded[:, :known])
            with np.errstate(over="ignore", invalid="ignore"):
                mse = float(np.square(predicted[:, counted].astype(np.float64) - recorded[:, counted]).mean())
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
        updates_per_epoch = -(-len(transitions) // batch_size)
        total = self.max_epochs * updates_per_epoch
        warmup = min(self.warmup_steps, total // 10)
        warm = -(-warmup // updates_per_epoch)  # the epoch in which the warm-up ends
        shuffle = torch.Generator().manual_seed(self.seed)
        losses: list[float] = []
        errors: list[float] = []
        report = FitReport(selected_by="last epoch: no validation runs were given", ended="max_epochs")
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
                waited = epoch - max(report.best_epoch, warm)
                if self.patience and waited >= self.patience and np.isfinite(best_mse):
                    report.ended = "patience"
                    break
            if not np.isfinite(losses[-1]):
                report.ended = "divergence"  # the weights are lost: no later epoch can be finite
                break
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

    # --- files ------------------------------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {key: value.detach().cpu().numpy() for key, value in self._model.state_dict().items()}
        return arrays | {"unit": np.array([self._unit])} | ({} if self._mean is None else {"mean": self._mean})

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        assert self.fitted is not None
        self._unit = float(arrays["unit"][0])
        self._mean = arrays["mean"] if self.target == "deviation" else None
        if self._mean is not None and self._mean.shape != (self.fitted.steps + 1, self.fitted.tests_size):
            raise ValueError(f"mean has shape {list(self._mean.shape)}")
        state = {key: torch.tensor(value) for key, value in arrays.items() if key not in ("unit", "mean")}
        self._model = self._empty(state)
        self._model.load_state_dict(state)
        self._model.to(self.device)
