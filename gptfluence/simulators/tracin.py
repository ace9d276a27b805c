"""TracIn-CP and Grad-Dot (Pruthi et al., 2020): first-order estimates along the checkpoints of the run they explain.

The influence of step t on a test example z' is the decrease of its loss that the step is held to cause,

    I_t(z') = lr_t sum_{i in c_t} <grad L(z_i), grad L(z')>,    y_t = y_{t-1} - scale I_t

with all gradients taken at one checkpoint: that before the step (TracIn-CP, all steps), the nearest of some (TracIn-CP, 10
steps) or the final one (Grad-Dot). L is the mean loss over an example's tokens, in nats per token: trained tokens of z_i,
recorded ones of z'. A sum over a batch is one gradient, so a step needs one direction and one number for each test example.

Unlike a simulator these methods need the run itself: its checkpoints come from really training on its curriculum. No
checkpoint is stored; the run is recorded again, and scored on the way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from gptfluence.common.errors import ConfigurationError, RecordingError, unknown
from gptfluence.gradients.products import PARAMETERS, Direction, ExampleGradients, Replayer
from gptfluence.recording.dynamics import TrainingRun

DIRECTIONS = ("gradient", "update")
SCALES = ("none", "validation", "oracle")
CHECKPOINTS = ("all", "final")
DIRECTION_ELEMENTS = 2**26  # numbers that directions may hold at once (256 MiB)
REPLAY_TOLERANCE = 1e-4  # nats per token; on the machine that recorded a run, replays are equal to the last bit


@dataclass(frozen=True, kw_only=True)
class TracIn:
    """What is multiplied with what, where, and how the sum is scaled.

    parameters: "last_layer", the last transformer block (see `gradients.chosen_parameters` for why), or "all"
    checkpoints: "all": before every step; a number K: the nearest of K, evenly spaced from the initial to the final weights;
        "final": the final weights for every step (Grad-Dot)
    direction: "gradient", or "update": what AdamW really did, I_t = <theta_{t-1} - theta_t, grad L(z')> at theta_{t-1},
        already in nats per token, with no learning rate and nothing to fit
    scale: "none": 1; "validation": one number for each task, fitted on the validation runs; "oracle": one for each task
        and run, fitted on that very run, as the published numbers are. A row with it is no prediction: since scale 0 is
        allowed, its sum of squared errors cannot be larger than persistence's

    Raises ConfigurationError for anything else.
    """

    parameters: str = "last_layer"
    checkpoints: str | int = "all"
    direction: str = "gradient"
    scale: str = "validation"

    def __post_init__(self) -> None:
        for key, known in (("parameters", PARAMETERS), ("direction", DIRECTIONS), ("scale", SCALES)):
            if getattr(self, key) not in known:
                raise ConfigurationError(unknown(key, getattr(self, key), known, where="tracin: "))
        count = self.checkpoints
        if count not in CHECKPOINTS and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ConfigurationError(f"tracin: checkpoints must be all, final or a number of 1 or more, not {count!r}")
        if self.direction == "update" and count != "all":
            raise ConfigurationError(
                f"tracin: direction update is the step that was made from its own checkpoint, so checkpoints must be all, "
                f"not {count!r}"
            )

    @property
    def influence_options(self) -> dict[str, Any]:
        """What the influences depend on (the scale comes later)."""
        return {key: value for key, value in asdict(self).items() if key != "scale"}

    def states(self, steps: int) -> np.ndarray:
        """int [steps]: after how many updates the weights were those at which step t (in row t-1) is scored."""
        before = np.arange(steps)
        if self.checkpoints == "all":
            return before
        if self.checkpoints == "final":
            return np.full(steps, steps)
        kept = np.unique(np.linspace(0, steps, int(self.checkpoints)).round().astype(int))
        return kept[np.abs(kept[None] - before[:, None]).argmin(axis=1)]  # of two as near, the earlier


METHODS: dict[str, dict[str, Any]] = {
    "tracin_cp_all": {},
    "tracin_cp_10": {"checkpoints": 10},
    "tracin_cp_update": {"direction": "update", "scale": "none", "parameters": "all"},
    "grad_dot": {"checkpoints": "final"},
}


def create(name: str, options: Mapping[str, Any]) -> TracIn:
    """The method that a profile calls `name`; `options`: fields of `TracIn`, and `kind`, a key of `METHODS` (`name` if none).

    Raises ConfigurationError for options that are not known, and for a fit on the test run that the name hides.
    """
    options = dict(options)
    kind = options.pop("kind", name)
    known = [*inspect.signature(TracIn).parameters, "kind"]
    for option in options:
        if option not in known:
            raise ConfigurationError(unknown("option", option, known, where=f"method {name!r}: "))
    method = TracIn(**{**METHODS[kind], **options})
    if (method.scale == "oracle") != ("oracle" in name):
        raise ConfigurationError(
            f"method {name!r}: with scale: {method.scale} its name must {'' if method.scale == 'oracle' else 'not '}say "
            f"oracle, so that tables tell what was fitted on the test run; call it e.g. '{kind}_oracle' with kind: {kind}"
        )
    return method


# --- influences along a run ---------------------------------------------------------------------------------------------


def influences(
    recorder: Replayer,
    run: TrainingRun,
    methods: Mapping[str, TracIn],
    *,
    seed: int,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """The influence of every step on every test example, for all of `methods` in one replay of `run`.

    recorder: of the run's pool, tests and recording; seed: of the run, as `Recorder.record` was given it
    on_step: called with each step's number once it is scored

    Returns for each method float32 [steps, tests], in nats per token, positive where a step is held to lower the loss.
    Raises RecordingError if the replay does not meet the recorded losses; ModelError as `gradients.chosen_parameters`.
    """
    replay = _Replay(recorder, run, methods)

    def score(state: int) -> None:
        replay.score(state)
        if on_step is not None:
            on_step(state)

    again = recorder.record(run.name, run.curriculum, seed=seed, on_step=score)
    difference = np.abs(again.trajectories["loss"] - run.trajectories["loss"]).max(axis=1)
    if not difference.max() <= REPLAY_TOLERANCE:
        step = int(np.argmax(~(difference <= REPLAY_TOLERANCE)))
        raise RecordingError(
            f"run {run.name}, step {step}: replayed losses differ from the recorded ones by {difference[step]:.2g} nats "
            f"per token (allowed: {REPLAY_TOLERANCE:g}), so its checkpoints cannot be had again; the run was recorded by "
            "another machine or version: delete its folder to have it recorded here"
        )
    return replay.influence


class _Replay:
    def __init__(self, recorder: Replayer, run: TrainingRun, methods: Mapping[str, TracIn]) -> None:
        self.recorder, self.batches = recorder, run.curriculum.batches
        self.rates = recorder.recording.optimizer.learning_rates(run.curriculum.steps)
        self.influence = {name: np.zeros((len(self.batches), len(recorder.tests)), np.float32) for name in methods}
        self.of_update = {name: method for name, method in methods.items() if method.direction == "update"}
        self.of_gradient = {name: method for name, method in methods.items() if method.direction == "gradient"}
        self.states = {name: method.states(len(self.batches)) for name, method in self.of_gradient.items()}
        self.gradients = {
            which: recorder.gradients(which) for which in {method.parameters for method in methods.values()}
        }
        self.before: Direction | None = None  # the weights before the last update

    def score(self, state: int) -> None:
        """Everything that is to be scored at the weights after `state` updates, which the recorder holds now."""
        for which, gradients in self.gradients.items():
            chosen = [name for name, method in self.of_gradient.items() if method.parameters == which]
            steps = sorted({int(row) for name in chosen for row in np.flatnonzero(self.states[name] == state)})
            room = max(1, DIRECTION_ELEMENTS // sum(p.numel() for p in gradients.parameters.values()))
            for start in range(0, len(steps), room):
                part = steps[start : start + room]
                directions = [self._batch_gradient(gradients, row) for row in part]
                for row, products in zip(part, self._products(gradients, directions), strict=True):
                    for name in chosen:
                        if self.states[name][row] == state:
                            self.influence[name][row] = self.rates[row] * products
        if self.of_update:
            now = self.recorder.weights()
            if self.before is not None:
                step = {name: self.before[name] - values for name, values in now.items()}
                with self.recorder.at(self.before):
                    for which in {method.parameters for method in self.of_update.values()}:
                        products = self._products(self.gradients[which], [step])[0]
                        for name, method in self.of_update.items():
                            if method.parameters == which:
                                self.influence[name][state - 1] = products
            self.before = now

    def _batch_gradient(self, gradients: ExampleGradients, row: int) -> Direction:
        return gradients.gradient(self.recorder.pool_batch(self.batches[row].tolist()))

    def _products(self, gradients: ExampleGradients, directions: list[Direction]) -> np.ndarray:
        """float32 [directions, tests]"""
        found = torch.empty(len(directions), len(self.recorder.tests))
        for batch in self.recorder.test_batches:
            rows = batch.rows.cpu()
            for place, products in enumerate(gradients.products(batch, directions)):
                found[place, rows] = products.cpu()
        return found.numpy()


# --- from influences to trajectories -----------------------------------------------------------------------------------


def fit_scale(influence: np.ndarray, recorded: np.ndarray) -> float:
    """The scale that makes predictions from the first value closest to what was recorded, by least squares.

    c = sum C_t (y_0 - y_t) / sum C_t^2 with C_t = I_1 + ... + I_t, over all runs, steps and tests; 0 if no influence is.
    influence: float [runs, steps, tests]; recorded: float [runs, steps + 1, tests]. Negative if the sign was wrong.
    """
    cumulative = np.cumsum(influence, axis=1, dtype=np.float64)
    decrease = recorded[:, :1].astype(np.float64) - recorded[:, 1:]
    square = float(np.square(cumulative).sum())
    return float((cumulative * decrease).sum() / square) if square > 0 else 0.0


def predict(influence: np.ndarray, observed: np.ndarray, scale: float | np.ndarray = 1.0) -> np.ndarray:
    """y_t = y_{t-1} - scale I_t from the last observed value on: float32 [runs, steps + 1, tests].

    influence: float [runs, steps, tests]; observed: float [runs, k, tests], kept in front; scale: one number, or float
        [runs, tests] or what broadcasts to it
    """
    known = observed.shape[1]
    change = np.cumsum(influence[:, known - 1 :], axis=1, dtype=np.float64)
    later = observed[:, -1:] - np.atleast_2d(scale)[:, None] * change
    return np.concatenate([observed, later], axis=1).astype(np.float32)
