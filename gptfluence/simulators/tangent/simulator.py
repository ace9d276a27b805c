"""A simulator that trains the GPT's linearisation: its tangents at a sample of coordinates, under the true optimizer.

To first order, the outputs f of an example (`gradients/tangents.py`) follow the parameters' displacement d = theta -
theta_0, and the loss follows f exactly:

    f_i(t) = f_i(0) + J_i d_t,    g_t = sum_{i in c_t} J_i^T (p_i(t) - y_i) / tokens,    d_{t+1} = AdamW(d_t, g_t)

with nothing to learn: AdamW acts on each coordinate by itself, so a sample of coordinates runs it as it is, first and
second moments, learning rates and weight decay included. Recorded runs then say what is left: a mean correction for
each test example and step, and how far deviations are to be trusted. Other metrics are read out of the simulated outputs
(`readout.py`), with weights learned from recorded runs. `docs/method.md` derives this.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any, Self

import numpy as np

from gptfluence.common.errors import ConfigurationError
from gptfluence.gradients.coordinates import Coordinates, Tangents, from_arrays, to_arrays
from gptfluence.gradients.tangents import TangentFeatures
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.record import devices
from gptfluence.recording.settings import AdamW
from gptfluence.recording.store import not_repeatable
from gptfluence.simulators.base import FitReport, Predictor, Simulator
from gptfluence.simulators.tangent.choice import KINDS, Choice, Chosen, Compared
from gptfluence.simulators.tangent.correction import Correction
from gptfluence.simulators.tangent.linearised import Linearised, Side, rollouts
from gptfluence.simulators.tangent.readout import RANGES, Readout, features, losses
from gptfluence.tasks.base import TaskPool

POOL, TESTS = 0, 1  # of what was fitted
# the defaults of `TangentFeatures`, which says what they mean
SAMPLE = {name: each.default for name, each in signature(TangentFeatures).parameters.items()}


@dataclass
class Held:
    """Gradients of the fitted `POOL` and `TESTS`: each loaded when it is needed, once for a simulator and its copies.

    examples: pool and tests, where `tangents` are to be taken from a cache
    """

    tangents: dict[int, Tangents] = field(default_factory=dict)
    sides: dict[int, Side] = field(default_factory=dict)
    examples: tuple[TaskPool, TaskPool] | None = None


@dataclass(kw_only=True, eq=False)
class TangentSimulator(Simulator):
    """Simulates any curriculum from the GPT's gradients; recorded runs correct it.

    coordinates, candidates, mass, seed: of the sample of the GPT's gradients; see `TangentFeatures`
    checkpoints: steps of the first training run, the reference run, after which gradients are taken again. It is trained once
        more up to the last of them. None: gradients of the GPT before training alone.
    use_corrections: let recorded runs correct what is simulated; if not, it is the linearisation's (other metrics than the loss
        still have readout weights from recorded runs).
    follow_reference: measure unseen tests along the reference run, where there is one; if not, their error is estimated by
        the mean error at the fitted tests.

    A curriculum may have any length and batch size; its learning rates are those that the recorder would use, or those of
    another optimizer (`trained_with`). Metrics other than the loss are read out of the simulated outputs (`readout.py`).
    Unseen pool and test examples cost their gradients, and unseen tests, where the tangents have a reference run and the metric
    is the loss, one training of it.

    The GPT is that of the runs it is fitted on (`bind`), or a given one (`bind_features`). It is needed to fit and for unseen
    examples. Gradients of the fitted pool and tests are saved with what is learned, if not left out (`save_pretrained`), so
    that a loaded simulator simulates without the GPT.
    """

    name = "tangent"
    format = 10
    needs = frozenset({"tangents"})
    moved = {"tangents": "its options stand one level higher now, e.g. tangent: {coordinates: 6144, checkpoints: [40]}"}

    coordinates: int = SAMPLE["coordinates"]
    candidates: int = SAMPLE["candidates"]
    mass: float = SAMPLE["mass"]
    checkpoints: tuple[int, ...] = ()
    seed: int = SAMPLE["seed"]
    use_corrections: bool = True
    follow_reference: bool = True

    tangents: TangentFeatures | None = field(default=None, init=False, repr=False)  # once bound
    _given: bool = field(default=False, init=False, repr=False)  # by `bind_features`, not taken from the runs

    def __post_init__(self) -> None:
        self.checkpoints = tuple(sorted(set(self.checkpoints)))
        for option, least in (("coordinates", 1), ("candidates", 1), ("seed", 0)):
            if getattr(self, option) < least:
                raise ConfigurationError(f"tangent: {option} must be {least} or more, not {getattr(self, option)}")
        if not 0 < self.mass <= 1:
            raise ConfigurationError(f"tangent: mass must be above 0 and at most 1, not {self.mass}")
        if self.checkpoints and self.checkpoints[0] < 1:
            raise ConfigurationError(f"tangent: checkpoints must be steps from 1 on, not {self.checkpoints[0]}")

    def bind(
        self,
        dynamics: GPTDynamics,
        *,
        load_encoder: Callable[[str], Any] | None = None,
        together: Sequence[Predictor] = (),
    ) -> Self:
        """Take gradients of the GPT that `dynamics` was recorded from, and keep them beside the runs.

        The reference run is the first training run; once fitted, that of the fit. Raises ConfigurationError if the GPT is not
        known, or if the simulator was fitted on other examples.
        """
        if self.report is None:
            self._take_from(dynamics, self._first_run(dynamics))
            return self
        self._take_from(dynamics, self._reference)
        return self.load_gradients(dynamics.pool, dynamics.tests)

    def _first_run(self, dynamics: GPTDynamics) -> Curriculum | None:
        """The reference run that is chosen for these runs, if one is needed."""
        if not self.checkpoints:
            return None
        return next((run for run in dynamics.runs if run.split == "train"), dynamics.runs[0]).curriculum

    def _take_from(self, dynamics: GPTDynamics, reference: Curriculum | None) -> None:
        """Let `tangents` be of the GPT and the settings of these runs."""
        source, spec = dynamics.source, dynamics.spec
        if problem := not_repeatable(dynamics):
            raise ConfigurationError(
                f"tangent: it needs the GPT's gradients, but {problem}; or call bind_features with "
                "TangentFeatures(gpt, pool, recording)"
            )
        assert source is not None
        assert spec is not None
        if spec.dropout:
            warnings.warn(
                f"tangent: the runs of {dynamics.task} were trained with dropout ({spec.dropout:g}), which is not simulated: "
                "predictions are those of a training without it",
                stacklevel=2,
            )
        tangents = TangentFeatures(
            source.gpt,
            dynamics.pool,
            spec.recording,
            coordinates=self.coordinates,
            candidates=self.candidates,
            mass=self.mass,
            seed=self.seed,
            reference=reference,
            checkpoints=self.checkpoints,
            cache=source.artifacts / "tangents",
            device=devices()[0],
            tokens=source.tokens,
        )
        if self.tangents is None or self._given or self.tangents.fingerprint != tangents.fingerprint:
            self.tangents = tangents  # else they are the same, and those there are may hold a loaded GPT
        self._given = False

    def bind_features(self, tangents: TangentFeatures) -> Self:
        """Take gradients by `tangents`, whose settings become this simulator's options."""
        self.tangents, self._given = tangents, True
        self.coordinates, self.candidates, self.mass = tangents.size, tangents.candidates, tangents.mass
        self.checkpoints, self.seed = tuple(tangents.checkpoints), tangents.seed
        return self

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"tangents": self._source("naming a fit").fingerprint}

    def _coordinates_digest(self) -> str:
        # equal settings need not draw the same coordinates everywhere, and a fit is of those that it was made with
        return self._source("naming a fit").coordinates.digest

    def _source(self, purpose: str) -> TangentFeatures:
        if self.tangents is None:
            which = f" with fingerprint {self._taken_by}" if self.fitted is not None else ""
            raise ConfigurationError(
                f"tangent: {purpose} needs the GPT's gradients: call bind(dynamics) with the runs it was fitted on, or "
                f"bind_features(TangentFeatures(gpt, pool, recording)){which}"
            )
        return self.tangents

    def _same_source(self, purpose: str) -> TangentFeatures:
        source = self._source(purpose)
        if source.fingerprint != self._taken_by:
            raise ConfigurationError(
                f"tangent: it was fitted with the tangents {self._taken_by}, not {source.fingerprint}; give those of the "
                "same model, pool, recording settings, sample and reference"
            )
        if not source.coordinates.agrees(self._linearised.coordinates):
            raise ConfigurationError(
                "tangent: the tangents have drawn other coordinates than it was fitted with, as another device or version may, or "
                "their reference run went otherwise; give those of the fit, with their cache, or fit again"
            )
        return source

    def load_gradients(self, pool: TaskPool, tests: TaskPool) -> Self:
        """Let `tangents` give the fitted pool's and tests' gradients, once they are needed, to a simulator saved without them.

        What their cache lacks is taken anew. Raises ConfigurationError for other examples.
        """
        fitted = self._require_fitted()
        for given, expected in ((pool, fitted.pool_fingerprint), (tests, fitted.tests_fingerprint)):
            if given.fingerprint != expected:
                raise ConfigurationError(
                    f"tangent: the examples of {given.name} are not those it was fitted on; give the pool and the tests of "
                    "the runs it was fitted on"
                )
        self._held.examples = pool, tests
        return self

    def _gradients(self, which: int) -> Tangents:
        """Tangents of the fitted `POOL` or `TESTS`."""
        held = self._held
        if which not in held.tangents:
            if held.examples is None:
                raise ConfigurationError(
                    "tangent: it was saved without gradients; call bind(dynamics) with the runs it was fitted on, or "
                    "bind_features(tangents) and load_gradients(pool, tests)"
                )
            source = self._same_source("loading gradients")
            held.tangents[which] = source.of(held.examples[which], trained=which == POOL)
        return held.tangents[which]

    def _side(self, which: int) -> Side:
        if which not in self._held.sides:
            self._held.sides[which] = Side(self._gradients(which), widened=which == TESTS)
        return self._held.sides[which]

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self._side(POOL), self._side(TESTS)

    # --- fitting ---

    def _fit(self, train: GPTDynamics, validation: GPTDynamics | None, metric: str) -> FitReport:
        begin = time.perf_counter()
        if not self._given:
            self._take_from(train, self._first_run(train))
        source = self._source("fitting")
        optimizer = source.recording.optimizer
        self._checked_rates(train, optimizer)
        if source.reference is not None and source.pool.fingerprint != train.pool.fingerprint:
            raise ConfigurationError(
                f"tangent: the tangents' reference run is over {source.pool.name}, whose examples are not those of "
                f"{train.pool.name}; give TangentFeatures the pool that the runs were trained on"
            )
        self._taken_by, self._reference = source.fingerprint, source.reference
        self._linearised = Linearised(source.coordinates, optimizer, optimizer, train.batches.shape[1])
        self._held = Held(examples=(train.pool, train.tests))
        self._batches = train.batches
        recorded = train.trajectories(metric)
        if metric == "loss":
            self._readout = None
            predicted = of_loss = self._rolled(*self._sides, self._batches)
        else:
            simulated = rollouts(self._linearised, *self._sides, self._batches, features)
            measured = train.measured(metric)
            self._readout = Readout.fit(simulated[:, :, measured], recorded[:, measured])
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
        followed = [(recorded - predicted)[k] for k in range(len(train)) if k not in apart]
        left_out = 1 < len(apart) < len(train)
        if left_out:
            predicted, recorded, self._batches = predicted[apart], recorded[apart], self._batches[apart]
        compared = Compared(predicted, recorded, np.arange(recorded.shape[1], dtype=float), train.measured(metric))
        self._mean, self._residual = compared.mean, compared.residual
        # other tests, too, can be followed along the reference run; what is theirs alone is told from what all tests share
        follows = self.follow_reference and bool(followed) and metric == "loss"
        self._of_reference = followed[0].mean(axis=1, keepdims=True) if follows else None
        own = [] if self._of_reference is None else [followed[0] - self._of_reference]
        choice = Choice(
            compared,
            self._compared(validation, metric) if validation is not None and self.use_corrections else None,
            own,
            learns=self.use_corrections,
            learns_unseen=left_out or not own,  # what is the reference run's own cannot be learned from that run
            stays=self._readout is None,
        )
        self._chosen, rule = choice.chosen()
        return FitReport(seconds=time.perf_counter() - begin, selected_by=rule)

    def _compared(self, runs: GPTDynamics, metric: str) -> Compared:
        recorded = runs.trajectories(metric)
        times = self._linearised.times(recorded.shape[1] - 1)
        return Compared(self._rolled(*self._sides, runs.batches), recorded, times, runs.measured(metric))

    @property
    def _shared(self) -> np.ndarray:
        """float32 [steps + 1, 1]: what the linearisation was off on average over tests."""
        return self._residual.mean(axis=1, keepdims=True)

    def _rolled(self, pool: Side, tests: Side, batches: np.ndarray, linearised: Linearised | None = None) -> np.ndarray:
        """float32 [curricula, steps + 1, tests]: the metric, by the linearisation alone."""
        measure = losses if self._readout is None else self._readout.measure
        return rollouts(linearised or self._linearised, pool, tests, batches, measure)

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
        spent.
        """
        self._require_fitted()
        if optimizer == self._linearised.optimizer:
            return self
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
        sides = [self._gradients(which) for which in (POOL, TESTS)]
        taken = sum(side.examples + side.outputs.shape[1] for side in sides)
        return len(steps) * taken + 3 * (fitted.pool_size + int(steps[-1]) * fitted.batch_size)

    def _prepare(self, pool: TaskPool | None, tests: TaskPool | None) -> Any:
        if pool is None:
            of_pool = self._side(POOL)
        else:
            of_pool = Side(self._same_source(f"the unseen pool {pool.name}").of(pool, trained=True))
        if tests is None:
            return of_pool, self._side(TESTS), [self._residual], self._mean, "seen"
        source = self._same_source(f"the unseen tests {tests.name}")
        of_tests = Side(source.of(tests, trained=False), widened=True)
        return of_pool, of_tests, *self._off_unseen(tests, of_tests, source), "unseen"

    def _off_unseen(
        self, tests: TaskPool, of_tests: Side, source: TangentFeatures
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """What `Correction.apply` needs to know of other tests: every c, and the mean of the fitted runs."""
        correction = self._chosen["unseen"].correction.coefficients
        if not correction.any():
            nothing = np.zeros((len(self._mean), 1), np.float32)
            return [nothing] * (len(correction) - 1), nothing
        linearised, pool = replace(self._linearised, optimizer=self._linearised.recorded), self._side(POOL)
        mean = self._rolled(pool, of_tests, self._batches, linearised).mean(axis=0)
        if self._of_reference is None:
            return [self._shared], mean
        measured, reference = source.along_reference(tests), source.reference
        assert reference is not None  # or the line above had raised
        own = measured - self._rolled(pool, of_tests, reference.batches[None], linearised)[0] - self._of_reference
        return [own, self._shared], mean

    def _rollout(self, prepared: Any, batches: np.ndarray, observed: np.ndarray) -> np.ndarray:
        of_pool, of_tests, off, mean, label = prepared
        predicted = self._rolled(of_pool, of_tests, batches)
        times = self._linearised.times(batches.shape[1])
        predicted = self._chosen[label].correction.apply(predicted, off, mean, times)
        shares, seen = self._chosen[label].carried, observed.shape[1]
        predicted += shares[min(seen, len(shares)) - 1] * (observed[:, -1:] - predicted[:, seen - 1 : seen])
        if self._readout is not None:
            predicted = predicted.clip(*RANGES[self._require_fitted().metric])
        predicted[:, :seen] = observed
        return predicted.astype(np.float32)

    # --- files ---

    def save_pretrained(self, folder: str | Path, *, gradients: bool = True, **by_push_to_hub: Any) -> Path:
        """Write `config.json`, `model.safetensors` and a card into `folder`; return it.

        gradients: also those of the fitted pool and tests, which are nearly all there is to store. A simulator that is loaded
            without them must be told where they are (`load_gradients`).
        """
        self._require_fitted()
        light = copy(self)
        light._held = Held({which: self._gradients(which) for which in (POOL, TESTS)} if gradients else {})
        return super(TangentSimulator, light).save_pretrained(folder, **by_push_to_hub)

    def hyperparameters(self) -> dict[str, Any]:
        return super().hyperparameters() | {"checkpoints": list(self.checkpoints)}

    def _arrays(self) -> dict[str, np.ndarray]:
        optimizers, stored = {"optimizer": self._linearised.recorded}, self._held.tangents
        if self._linearised.optimizer != self._linearised.recorded:
            optimizers["trained_with"] = self._linearised.optimizer
        return {
            **{key: np.frombuffer(one.model_dump_json().encode(), np.uint8) for key, one in optimizers.items()},
            **(to_arrays("pool", stored[POOL]) | to_arrays("tests", stored[TESTS]) if stored else {}),
            **to_arrays("coordinates", self._linearised.coordinates),
            "batches": self._batches,
            "taken_by": np.frombuffer(self._taken_by.encode(), np.uint8),
            "residual": self._residual,
            "mean": self._mean,
            **{f"correction.{label}": each.correction.coefficients for label, each in self._chosen.items()},
            **{f"carried.{label}": each.carried for label, each in self._chosen.items()},
            **({} if self._of_reference is None else {"of_reference": self._of_reference}),
            **({"readout": self._readout.weights} if self._readout else {}),
            **({} if self._reference is None else {"reference": self._reference.batches}),
        }

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        assert self.fitted is not None
        self._held = Held()
        if "pool.outputs" in arrays:
            pool, tests = (from_arrays(name, Tangents, arrays) for name in ("pool", "tests"))
            if (pool.examples, tests.examples) != (self.fitted.pool_size, self.fitted.tests_size):
                raise ValueError("tangents are not those of the pool and tests that config.json describes")
            self._held = Held({POOL: pool, TESTS: tests})
        stored = arrays["optimizer"], arrays.get("trained_with", arrays["optimizer"])
        recorded, trained_with = (AdamW.model_validate_json(array.tobytes()) for array in stored)
        coordinates = from_arrays("coordinates", Coordinates, arrays)
        self._linearised = Linearised(coordinates, trained_with, recorded, arrays["batches"].shape[1])
        self._batches, self._residual, self._mean = (arrays[key] for key in ("batches", "residual", "mean"))
        self._taken_by = arrays["taken_by"].tobytes().decode()
        self._of_reference = arrays.get("of_reference")
        self._reference = Curriculum(arrays["reference"]) if "reference" in arrays else None
        self._chosen = {
            label: Chosen(Correction(arrays[f"correction.{label}"]), arrays[f"carried.{label}"]) for label in KINDS
        }
        self._readout = Readout(arrays["readout"]) if "readout" in arrays else None
