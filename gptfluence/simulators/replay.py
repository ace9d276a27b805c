"""A recorded run once more, scored on the way: what TracIn-CP and Grad-Dot need of it.

No checkpoint is stored. The run is recorded again, step by step as before, and gradients are multiplied at the weights that
each method asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from gptfluence.common.errors import RecordingError
from gptfluence.gradients.products import GRADIENT_ELEMENTS, Direction, ExampleGradients, Replayer
from gptfluence.recording.curriculum import Curriculum, places
from gptfluence.recording.dynamics import TrainingRun

DIRECTION_ELEMENTS = 2**26  # numbers that directions may hold at once (256 MiB)
REPLAY_TOLERANCE = 1e-4  # nats per token; on the machine that recorded a run, replays are equal to the last bit


class Scoring(Protocol):
    """What a replay asks of a method; see `simulators.tracin.TracIn`."""

    parameters: str
    direction: str

    @property
    def influence_options(self) -> dict[str, Any]: ...

    def states(self, steps: int) -> np.ndarray: ...


def influences(
    recorder: Replayer,
    run: TrainingRun,
    methods: Mapping[str, Scoring],
    *,
    seed: int,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """The influence of every step on every test example, for all of `methods` in one replay of `run`.

    recorder: of the run's pool, tests and recording; seed: of the run, as `Recorder.record` was given it
    on_step: called with each step's number once it is scored

    Returns for each method float32 [steps, tests], in nats per token, positive where a step is held to lower the loss.
    Raises RecordingError if the replay does not meet the recorded losses; ModelError as `gradients.products.chosen_parameters`.
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
            f"per token (allowed: {REPLAY_TOLERANCE:g}), so its checkpoints cannot be made again; the run was recorded by "
            "another machine or version: delete its folder to have it recorded here"
        )
    return replay.influence


class _Replay:
    def __init__(self, recorder: Replayer, run: TrainingRun, methods: Mapping[str, Scoring]) -> None:
        self.recorder, self.curriculum, self.batches = recorder, run.curriculum, run.curriculum.batches
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
        """The sum over the examples of a step, times B / places: steps of another size than the largest, B, count as theirs."""
        examples = self.curriculum.examples(row)
        if not examples:
            return {name: torch.zeros_like(parameter) for name, parameter in gradients.parameters.items()}
        gradient = gradients.gradient(self.recorder.pool_batch(examples))
        share = self.curriculum.batch_size / int(places(self.batches[row]))
        return gradient if share == 1 else {name: share * values for name, values in gradient.items()}

    def _products(self, gradients: ExampleGradients, directions: list[Direction]) -> np.ndarray:
        """float32 [directions, tests]"""
        found = torch.empty(len(directions), len(self.recorder.tests))
        for batch in self.recorder.test_batches:
            rows = batch.rows.cpu()
            for place, products in enumerate(gradients.products(batch, directions)):
                found[place, rows] = products.cpu()
        return found.numpy()


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


# --- scores of single examples --------------------------------------------------------------------------------------------


def example_products(
    recorder: Replayer, run: TrainingRun, methods: Mapping[str, Scoring], examples: Sequence[int], *, seed: int
) -> dict[str, dict[int, np.ndarray]]:
    """Gradient products at the checkpoints that each method needs: method -> state -> float32 [examples, tests].

    recorder: of the run's pool, tests and recording; examples: positions in the pool; seed: as the run was recorded with.
    Products are in (nats per token)^2 per unit of weight; a positive one means that training on the example lowers the loss.
    """
    wanted = {name: sorted(set(method.states(run.curriculum.steps).tolist())) for name, method in methods.items()}
    found: dict[str, dict[int, np.ndarray]] = {name: {} for name in methods}
    gradients = {which: recorder.gradients(which) for which in {method.parameters for method in methods.values()}}

    def score(state: int) -> None:
        for which, of in gradients.items():
            names = [name for name in methods if methods[name].parameters == which and state in wanted[name]]
            if not names:
                continue
            room = max(1, GRADIENT_ELEMENTS // sum(p.numel() for p in of.parameters.values()))
            products = np.empty((len(examples), len(recorder.tests)), np.float32)
            for start in range(0, len(examples), room):
                rows = list(examples[start : start + room])
                each = of.per_example(recorder.pool_batch(rows))
                directions = [{name: values[k] for name, values in each.items()} for k in range(len(rows))]
                for batch in recorder.test_batches:
                    columns = batch.rows.cpu().numpy()
                    for k, values in enumerate(of.products(batch, directions)):
                        products[start + k, columns] = values.cpu().numpy()
            for name in names:
                found[name][state] = products

    recorder.record(run.name, run.curriculum, seed=seed, ends_only=True, on_step=score)
    return found


def scored_losses(
    products: dict[int, np.ndarray],
    method: Scoring,
    rates: Sequence[float],
    examples: Sequence[int],
    curricula: Sequence[Curriculum],
    start: np.ndarray,
) -> np.ndarray:
    """float64 [curricula, tests]: final losses by gradient scores, from `start`, float [tests]. Scale without meaning."""
    row = {example: k for k, example in enumerate(examples)}
    out = []
    for curriculum in curricula:
        value = np.asarray(start, np.float64).copy()
        for step, state in enumerate(method.states(curriculum.steps).tolist()):
            rows = [row[example] for example in curriculum.examples(step)]
            share = curriculum.batch_size / max(1, int(places(curriculum.batches[step])))
            value -= share * rates[step] * products[state][rows].sum(axis=0, dtype=np.float64)
        out.append(value)
    return np.stack(out)
