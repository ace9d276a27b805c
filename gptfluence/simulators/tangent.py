"""A simulator that trains the GPT's linearisation: its tangents at a sample of coordinates, under the true optimizer.

To first order, the outputs f of an example (`dynamics/tangents.py`) follow the parameters' displacement d = theta -
theta_0, and the loss follows f exactly:

    f_i(t) = f_i(0) + J_i d_t,    g_t = sum_{i in c_t} J_i^T (p_i(t) - y_i) / tokens,    d_{t+1} = AdamW(d_t, g_t)

with nothing to learn: AdamW acts on each coordinate by itself, so a sample of coordinates runs it as it is, first and
second moments, learning rates and weight decay included. Recorded runs then say what is left: a mean correction for
each test example and step, and how far deviations are to be trusted. Other metrics are read out of the simulated outputs
(`readout.py`), with weights learned from recorded runs. `docs/method.md` derives this.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gptfluence.config import AdamW
from gptfluence.dynamics.gptdynamics import GPTDynamics
from gptfluence.dynamics.tangents import Coordinates, TangentFeatures, Tangents, from_arrays, to_arrays
from gptfluence.errors import ConfigurationError
from gptfluence.simulators.base import FitReport, Simulator, carried
from gptfluence.simulators.readout import RANGES, Readout, features, losses
from gptfluence.tasks.base import TaskPool

KNOTS = np.array(
    [0.0, 0.05, 0.15, 0.4, 1.0]
)  # of the corrections, as fractions of a run; denser where losses move fast
RIDGE = 1e-3  # on the corrections' coefficients, relative to the mean square of what they multiply
LARGEST_LOGIT = 80.0  # exp of more does not fit float32

Measure = Callable[["Side", Tensor], Tensor]  # tests, outputs float32 [rows, outputs] -> float32 [..., rows, tests]


class Side:
    """Tangents as torch tensors, with the rows of each example at hand.

    widened: gradients as float32, in twice the memory: of tests, all of which every rollout multiplies.
    """

    def __init__(self, tangents: Tangents, *, widened: bool = False) -> None:
        self.outputs = torch.from_numpy(tangents.outputs)
        self.gradients = torch.from_numpy(tangents.gradients)
        self.scale = torch.from_numpy(tangents.scale)
        if widened:
            self.gradients = self.gradients.float().mul_(self.scale[..., None])
        self.token = torch.from_numpy(tangents.token)
        self.target = torch.from_numpy(tangents.target)
        self.example = torch.from_numpy(tangents.example)
        owner = self.example[self.token]
        ends = torch.searchsorted(owner, torch.arange(tangents.examples + 1))
        self.rows = [slice(a, b) for a, b in pairwise(ends.tolist())]
        counts = torch.bincount(self.example, minlength=tangents.examples)
        self.tokens = counts.tolist()  # of each example
        self._counts = counts.float()

    def batch(self, examples: list[int]) -> tuple[Tensor, Tensor]:
        """int64: the rows of a batch's outputs, and the token of the batch that each belongs to."""
        rows = [torch.arange(self.rows[i].start, self.rows[i].stop) for i in examples]
        before = np.cumsum([0, *(self.tokens[i] for i in examples)])
        owner = [self.token[part] - self.token[part[0]] + int(b) for part, b in zip(rows, before[:-1], strict=True)]
        return torch.cat(rows), torch.cat(owner)

    def mean(self, values: Tensor) -> Tensor:
        """float32 [rows, examples]: the mean over each example's tokens of float32 [rows, tokens]."""
        return torch.zeros(len(values), len(self.rows)).index_add_(1, self.example, values) / self._counts


@dataclass(frozen=True)
class Linearised:
    """Rollouts of the linearised GPT.

    optimizer: of the runs that are simulated; recorded, steps: the optimizer and the length of the runs it was fitted on
    """

    coordinates: Coordinates
    optimizer: AdamW
    recorded: AdamW
    steps: int

    def times(self, steps: int) -> np.ndarray:
        """float64 [steps + 1]: for each step of a simulated run the step of a recorded one at which it was as far.

        As far: as much learning rate spent. Runs trained alike are at t after step t, those at twice the rate at 2 t; at
        most at the last recorded step.
        """
        spent, recorded = (
            np.cumsum([0.0, *optimizer.learning_rates(count)])
            for optimizer, count in ((self.optimizer, steps), (self.recorded, self.steps))
        )
        if np.array_equal(spent, recorded):
            return np.arange(steps + 1.0)
        return np.interp(spent, recorded, np.arange(self.steps + 1.0))

    def _mixture(self, step: float) -> list[tuple[int, float]]:
        """The checkpoints that the tangents of this recorded step are interpolated between, and their shares."""
        steps = self.coordinates.steps
        after = int(np.searchsorted(steps, step))
        if after == len(steps):
            return [(after - 1, 1.0)]
        if steps[after] == step:
            return [(after, 1.0)]
        share = (step - steps[after - 1]) / (steps[after] - steps[after - 1])
        return [(after - 1, 1 - share), (after, share)]

    def displacements(self, pool: Side, batches: np.ndarray) -> Tensor:
        """float32 [steps + 1, n]: the sampled coordinates less their initial values, along one curriculum.

        batches: int [steps, batch]
        """
        settings, c = self.optimizer, self.coordinates
        weight, initial = torch.from_numpy(c.weight), torch.from_numpy(c.initial)
        reference = torch.from_numpy(c.displacement)
        decay = torch.from_numpy(c.decayed).float() * settings.weight_decay
        moved, first, second = (torch.zeros(len(c)) for _ in range(3))
        path = [moved]
        times = self.times(len(batches))
        for step, rate in enumerate(settings.learning_rates(len(batches))):
            rows, owner = pool.batch(batches[step].tolist())
            parts = [
                (share, pool.gradients[k][rows].float().mul_(pool.scale[k][rows, None]), k)
                for k, share in self._mixture(times[step])
            ]
            outputs = sum(
                share * (pool.outputs[k][rows] + slope @ (weight * (moved - reference[k]))) for share, slope, k in parts
            )
            residual = self._residuals(outputs, owner, pool.target[rows])
            gradient = sum(share * (residual @ slope) for share, slope, _ in parts)
            if settings.max_gradient_norm is not None:
                norm = (weight * gradient.square()).sum().sqrt()
                gradient = gradient * torch.clamp(settings.max_gradient_norm / (norm + 1e-6), max=1.0)
            first = torch.lerp(gradient, first, settings.betas[0])
            second = torch.lerp(gradient.square(), second, settings.betas[1])
            scale = (second / (1 - settings.betas[1] ** (step + 1))).sqrt_().add_(settings.eps)
            moved = moved - rate * (first / (1 - settings.betas[0] ** (step + 1)) / scale + decay * (initial + moved))
            path.append(moved)
        return torch.stack(path)

    @staticmethod
    def _residuals(outputs: Tensor, owner: Tensor, target: Tensor) -> Tensor:
        """float32 [outputs]: gradient of the mean token loss; owner: int64 [outputs], the token each belongs to."""
        exponential = outputs.clamp(max=LARGEST_LOGIT).exp()
        total = torch.ones(int(owner[-1]) + 1).index_add_(0, owner, exponential)
        return (exponential / total[owner] - target.float()) / len(total)

    def outputs(self, tests: Side, path: Tensor) -> Tensor:
        """float32 [steps + 1, outputs]: the outputs of every test example along displacements [steps + 1, n]."""
        weight = torch.from_numpy(self.coordinates.weight)
        outputs = torch.zeros(len(path), tests.outputs.shape[1])
        shares = torch.zeros(len(self.coordinates.steps), len(path))
        for step, at in enumerate(self.times(len(path) - 1)):
            for k, share in self._mixture(at):
                shares[k, step] = share
        for k, reference in enumerate(torch.from_numpy(self.coordinates.displacement)):
            at = shares[k].nonzero()[:, 0]
            change = (weight * (path[at] - reference)) @ tests.gradients[k].T
            outputs[at] += shares[k][at, None] * (tests.outputs[k] + change)
        return outputs.clamp_(max=LARGEST_LOGIT)


@dataclass(frozen=True)
class Correction:
    """What runs say beyond the linearisation: y = p + s_t c_t + k_t (p - mean p), s and k piecewise linear in t.

    With s = 1 and k = -1 this is the mean training trajectory, with s = k = 0 the linearisation itself; the coefficients
    minimise the squared error of each training run when the others give c and mean p. c: of each test example, or
    (`shared`) its mean over test examples, for those that were not fitted on.
    """

    coefficients: np.ndarray  # float64 [2, knots]: s and k

    @staticmethod
    def hats(fractions: np.ndarray) -> np.ndarray:
        """float64 [knots, steps + 1]: piecewise linear functions of the fraction of a run, each 1 at one knot, else 0."""
        return np.stack([np.interp(fractions, KNOTS, unit) for unit in np.eye(len(KNOTS))])

    @classmethod
    def fit(cls, predicted: np.ndarray, recorded: np.ndarray, *, shared: bool) -> Correction:
        """Both: float [runs, steps + 1, tests], runs >= 2."""
        runs, rows, _ = predicted.shape
        residual = recorded.astype(np.float64) - predicted
        others = (residual.sum(axis=0) - residual) / (runs - 1)
        deviation = (predicted - predicted.mean(axis=0, dtype=np.float64)) * (runs / (runs - 1))
        if shared:
            others = np.broadcast_to(others.mean(axis=2, keepdims=True), others.shape)
        terms, hats = (others, deviation), cls.hats(np.arange(rows) / (rows - 1))
        products = [[(left * right).sum(axis=(0, 2)) for right in (*terms, residual)] for left in terms]
        gram = np.block([[(hats * products[a][b]) @ hats.T for b in (0, 1)] for a in (0, 1)])
        moment = np.concatenate([hats @ products[a][2] for a in (0, 1)])
        size = np.diag(gram).reshape(2, -1).mean(axis=1).repeat(len(KNOTS))
        ridge = RIDGE * np.diag(size)
        solution = np.linalg.lstsq(gram + ridge, moment, rcond=None)[0]
        return cls(solution.reshape(2, len(KNOTS)))

    def apply(self, predicted: np.ndarray, residual: np.ndarray, mean: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Corrected predictions, float [curricula, steps + 1, tests].

        residual, mean: float [recorded steps + 1, tests or 1], [.., tests]; times: float [steps + 1], recorded steps
        """
        trust, deviation = self.coefficients @ self.hats(times / (len(residual) - 1))
        residual, mean = (_at(times, array) for array in (residual, mean))
        return predicted + trust[:, None] * residual + deviation[:, None] * (predicted - mean)


def _rollouts(linearised: Linearised, pool: Side, tests: Side, batches: np.ndarray, measure: Measure) -> np.ndarray:
    """float32 [curricula, ..., steps + 1, tests]: what `measure` makes of the linearisation's outputs."""
    with torch.inference_mode():
        return np.stack(
            [
                measure(tests, linearised.outputs(tests, linearised.displacements(pool, curriculum))).numpy()
                for curriculum in batches
            ]
        )


def _at(times: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Rows of `array` [recorded steps + 1, tests] at `times`, between steps on a straight line."""
    low = np.minimum(times.astype(int), len(array) - 2)
    share = (times - low)[:, None]
    return (1 - share) * array[low] + share * array[low + 1]


NOTHING = Correction(np.zeros((2, len(KNOTS))))
FLOOR = Correction(np.outer([1.0, -1.0], np.ones(len(KNOTS))))  # the mean training trajectory


@dataclass(kw_only=True, eq=False)
class TangentSimulator(Simulator):
    """Simulates any curriculum from the base model's gradients, without a recorded run; runs only correct it.

    tangents: what takes gradients of examples (`TangentFeatures`). It is needed to fit and for unseen examples; those of
        the fitted pool and tests are stored with what is learned, so a loaded simulator simulates without it.

    A curriculum may have any length and batch size; its learning rates are those that the recorder would use, or those of
    another optimizer (`trained_with`). Metrics other than the loss are read out of the simulated outputs (`readout.py`).
    Unseen pool and test examples cost their gradients and nothing else.
    """

    name = "tangent"
    format = 4

    tangents: TangentFeatures | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.tangents, (TangentFeatures, str, type(None))):
            raise ConfigurationError(
                f"tangent: tangents must be a TangentFeatures, not a {type(self.tangents).__name__}"
            )

    def _source(self, purpose: str) -> TangentFeatures:
        if not isinstance(self.tangents, TangentFeatures):
            raise ConfigurationError(
                f"tangent: {purpose} needs the GPT's gradients: set tangents=TangentFeatures(gpt, pool, recording)"
                + (f" with fingerprint {self.tangents}" if self.tangents else "")
            )
        return self.tangents

    # --- fitting ---

    def _fit(self, train: GPTDynamics, validation: GPTDynamics | None, metric: str) -> FitReport:
        begin = time.perf_counter()
        source = self._source("fitting")
        optimizer = source.recording.optimizer
        if isinstance(optimizer.learning_rate, dict):
            optimizer = optimizer.for_one(train.task)
        self._checked_rates(train, optimizer)
        self._of_pool = source.of(train.pool, trained=True)
        self._of_tests = source.of(train.tests, trained=False)
        self._linearised = Linearised(source.coordinates, optimizer, optimizer, train.batches.shape[1])
        self._sides = Side(self._of_pool), Side(self._of_tests, widened=True)
        self._batches = train.batches
        recorded = train.trajectories(metric)
        if metric == "loss":
            self._readout = None
            predicted = of_loss = self._rolled(*self._sides, self._batches)
        else:
            simulated = _rollouts(self._linearised, *self._sides, self._batches, features)
            self._readout = Readout.fit(simulated, recorded)
            predicted, of_loss = self._readout.apply(simulated), simulated[:, 0]
        before = train.runs[0].trajectories["loss"][0]  # the loss is always recorded
        start = float(np.abs(of_loss[0, 0] - before).max())
        if start > 0.05 * max(1.0, float(np.abs(before).max())):
            raise ConfigurationError(
                f"tangent: the losses of the tangents' GPT before training are up to {start:.3g} off the recorded ones; "
                "give the GPT and the recording settings that the runs were recorded with"
            )
        # tangents of a reference run are of that very run: it says little of the others
        apart = [k for k, run in enumerate(train.runs) if run.curriculum != source.reference]
        if 1 < len(apart) < len(train):
            predicted, recorded, self._batches = predicted[apart], recorded[apart], self._batches[apart]
        self._residual = (recorded - predicted).mean(axis=0, dtype=np.float64).astype(np.float32)
        self._mean = predicted.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._seen = self._unseen = NOTHING
        rule = "one training run: no correction"
        if len(recorded) > 1:
            self._seen, self._unseen = (Correction.fit(predicted, recorded, shared=shared) for shared in (False, True))
            rule = "corrections from training runs, each left out in turn"
            if validation is not None:
                rule = self._select(validation, metric, predicted, recorded)
        self._carried = np.stack(
            [self._carries(*pair, predicted, recorded) for pair in self._kinds(self._seen, self._unseen)]
        )
        return FitReport(seconds=time.perf_counter() - begin, selected_by=rule)

    def _kinds(self, seen: Correction, unseen: Correction) -> list[tuple[Correction, np.ndarray]]:
        """Corrections of fitted tests and of others, each with its mean residual."""
        return [(seen, self._residual), (unseen, self._residual.mean(axis=1, keepdims=True))]

    def _carries(
        self, correction: Correction, residual: np.ndarray, predicted: np.ndarray, recorded: np.ndarray
    ) -> np.ndarray:
        """`base.carried` after this correction; a loss is what it is, and what it is off is taken to stay."""
        if self._readout is None:
            return np.ones(len(residual) - 1)
        times = np.arange(len(residual), dtype=float)
        return carried(recorded - correction.apply(predicted, residual, self._mean, times))

    def _select(self, validation: GPTDynamics, metric: str, predicted: np.ndarray, recorded: np.ndarray) -> str:
        """Of no correction, the fitted one and the mean trajectory keep what predicts the validation runs best; say so."""
        truth = validation.trajectories(metric)
        plain = self._rolled(*self._sides, validation.batches)
        times = self._linearised.times(plain.shape[1] - 1)
        kept = []
        for label, (fitted, residual) in zip(("seen", "unseen"), self._kinds(self._seen, self._unseen), strict=True):
            candidates = {"tangents": NOTHING, "corrected": fitted, "mean trajectory": FLOOR}
            errors = {}
            for name, candidate in candidates.items():
                share = self._carries(candidate, residual, predicted, recorded)[0]
                simulated = candidate.apply(plain, residual, self._mean, times)
                simulated += share * (truth[:, :1] - simulated[:, :1])
                errors[name] = float(np.square(simulated - truth)[:, 1:].mean())
            best = min(errors, key=errors.__getitem__)
            setattr(self, f"_{label}", candidates[best])
            listed = ", ".join(f"{name} {error:.3g}" for name, error in errors.items())
            kept.append(f"{label} tests: {best} of {listed}")
        return f"validation all-steps MSE; {'; '.join(kept)}"

    def _rolled(self, pool: Side, tests: Side, batches: np.ndarray, linearised: Linearised | None = None) -> np.ndarray:
        """float32 [curricula, steps + 1, tests]: the metric, by the linearisation alone."""
        measure = losses if self._readout is None else self._readout.measure
        return _rollouts(linearised or self._linearised, pool, tests, batches, measure)

    @staticmethod
    def _checked_rates(train: GPTDynamics, optimizer: AdamW) -> None:
        for run in train.runs:
            expected = np.array(optimizer.learning_rates(run.curriculum.steps))
            if run.learning_rate is not None and not np.allclose(run.learning_rate, expected, rtol=1e-3):
                raise ConfigurationError(
                    f"tangent: run {run.name} was recorded with learning rates from {run.learning_rate[0]:.3g} on, the "
                    f"tangents' recording settings say {expected[0]:.3g}; give TangentFeatures the run's own settings"
                )

    # --- rollouts ---

    def trained_with(self, optimizer: AdamW) -> Self:
        """A simulator of runs that are trained with `optimizer`: another learning rate, schedule, decay, other moments.

        It shares what this one has learned. Corrections are those of the recorded step at which as much learning rate was
        spent. Raises ConfigurationError for an optimizer that names a rate for each task: choose one with `for_one`.
        """
        self._require_fitted()
        if isinstance(optimizer.learning_rate, dict):
            raise ConfigurationError(
                "tangent: optimizer.learning_rate has one rate a task; choose one: optimizer.for_one"
            )
        other = copy(self)
        other._linearised = replace(self._linearised, optimizer=optimizer)
        return other

    @property
    def forwards(self) -> int:
        """What the fitted pool's and tests' tangents cost, in forwards of the GPT over one text.

        At each checkpoint one forward a text and for each output a backward pass, which forms no parameter's gradient and so
        takes as many products as a forward; before, to draw coordinates, a whole backward for each text of the pool, and the
        reference run's training.
        """
        fitted, steps = self._require_fitted(), self._linearised.coordinates.steps
        taken = sum(side.examples + side.outputs.shape[1] for side in (self._of_pool, self._of_tests))
        return len(steps) * taken + 3 * (self._of_pool.examples + int(steps[-1]) * fitted.batch_size)

    def _prepare(self, pool: TaskPool | None, tests: TaskPool | None) -> Any:
        of_pool, of_tests = self._sides
        if pool is not None:
            of_pool = Side(self._source(f"the unseen pool {pool.name}").of(pool, trained=True))
        residual, mean, correction, shares = self._residual, self._mean, self._seen, self._carried[0]
        if tests is not None:
            of_tests = Side(self._source(f"the unseen tests {tests.name}").of(tests, trained=False), widened=True)
            correction, residual = self._unseen, residual.mean(axis=1, keepdims=True)
            shares = self._carried[1]
            if correction.coefficients.any():
                recorded = replace(self._linearised, optimizer=self._linearised.recorded)
                mean = self._rolled(self._sides[0], of_tests, self._batches, recorded).mean(axis=0)
            else:
                mean = np.zeros((len(residual), len(of_tests.rows)), np.float32)
        return of_pool, of_tests, correction, residual, mean, shares

    def _rollout(self, prepared: Any, batches: np.ndarray, observed: np.ndarray) -> np.ndarray:
        of_pool, of_tests, correction, residual, mean, shares = prepared
        predicted = self._rolled(of_pool, of_tests, batches)
        predicted = correction.apply(predicted, residual, mean, self._linearised.times(batches.shape[1]))
        seen = observed.shape[1]
        predicted += shares[min(seen, len(shares)) - 1] * (observed[:, -1:] - predicted[:, seen - 1 : seen])
        if self._readout is not None:
            predicted = predicted.clip(*RANGES[self._require_fitted().metric])
        predicted[:, :seen] = observed
        return predicted.astype(np.float32)

    # --- files ---

    def hyperparameters(self) -> dict[str, Any]:
        tangents = self.tangents
        return {"tangents": tangents.fingerprint if isinstance(tangents, TangentFeatures) else tangents}

    def _arrays(self) -> dict[str, np.ndarray]:
        optimizers = {"optimizer": self._linearised.recorded}
        if self._linearised.optimizer != self._linearised.recorded:
            optimizers["trained_with"] = self._linearised.optimizer
        return {
            **{key: np.frombuffer(one.model_dump_json().encode(), np.uint8) for key, one in optimizers.items()},
            **to_arrays("pool", self._of_pool),
            **to_arrays("tests", self._of_tests),
            **to_arrays("coordinates", self._linearised.coordinates),
            "batches": self._batches,
            "residual": self._residual,
            "mean": self._mean,
            "correction": np.stack([self._seen.coefficients, self._unseen.coefficients]),
            "carried": self._carried,
            **({"readout": self._readout.weights} if self._readout else {}),
        }

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        assert self.fitted is not None
        self._of_pool = from_arrays("pool", Tangents, arrays)
        self._of_tests = from_arrays("tests", Tangents, arrays)
        if (self._of_pool.examples, self._of_tests.examples) != (self.fitted.pool_size, self.fitted.tests_size):
            raise ValueError("tangents are not those of the pool and tests that config.json describes")
        stored = arrays["optimizer"], arrays.get("trained_with", arrays["optimizer"])
        recorded, trained_with = (AdamW.model_validate_json(array.tobytes()) for array in stored)
        coordinates = from_arrays("coordinates", Coordinates, arrays)
        self._linearised = Linearised(coordinates, trained_with, recorded, arrays["batches"].shape[1])
        self._sides = Side(self._of_pool), Side(self._of_tests, widened=True)
        self._batches, self._residual, self._mean = (arrays[key] for key in ("batches", "residual", "mean"))
        self._seen, self._unseen = (Correction(values) for values in arrays["correction"])
        self._carried = arrays["carried"]
        self._readout = Readout(arrays["readout"]) if "readout" in arrays else None
