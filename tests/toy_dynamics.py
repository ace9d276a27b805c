"""Small made-up dynamics, an encoder without a network, and every simulator fitted on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.recording.settings import Generation, ModelIdentity, Recording, RunSpec
from gptfluence.simulators.base import Simulator
from gptfluence.simulators.gptfluence import GPTfluence
from gptfluence.simulators.reference import MeanTrajectory, Persistence
from gptfluence.simulators.simfluence import Simfluence
from gptfluence.tasks.base import Example, TaskPool

# All different, so that a transpose fails.
POOL, TESTS, STEPS, BATCH, DIMENSION = 11, 7, 9, 3, 6


class Hashed:
    """An encoder without a network: features are drawn from a generator seeded with the text."""

    name = "hashed"
    dimension = DIMENSION

    def encode(self, pool: TaskPool) -> np.ndarray:
        rows = [np.random.default_rng(list(text.encode())).normal(1, 0.5, DIMENSION) for text in pool.texts]
        return np.array(rows, np.float32)


def make_pool(name: str, count: int) -> TaskPool:
    return TaskPool(name, tuple(Example(f"{name}{i}", f"{name} text {i}", " yes") for i in range(count)))


def labelled(
    labels: Sequence[int], choices: Sequence[str] = (" no", " maybe", " yes"), name: str = "e", task: str = "t"
) -> TaskPool:
    """Examples of these labels, positions in `choices`."""
    made = [Example(f"{name}{k}", f"{name} {k} :", choices[y], task, y, tuple(choices)) for k, y in enumerate(labels)]
    return TaskPool(name, tuple(made))


def toy_spec(every: int) -> RunSpec:
    """Of runs whose texts are measured at every so many steps."""
    return RunSpec(
        format=1,
        setting="toy",
        task="toy",
        pool_fingerprint="",
        tests_fingerprint="",
        model=ModelIdentity(name="toy", identity={}),
        recording=Recording(),
        seed=0,
        generation=Generation(every=every),
    )


def of_curricula(
    pool: TaskPool, tests: TaskPool, values: np.ndarray, curricula: Sequence[Curriculum], rates: np.ndarray
) -> GPTDynamics:
    """Training runs with these losses, float [runs, steps + 1, tests], and learning rates, float32 [steps]."""
    runs = [
        TrainingRun(f"train-{k:03d}", curriculum, {"loss": value.astype(np.float32)}, learning_rate=rates)
        for k, (curriculum, value) in enumerate(zip(curricula, values, strict=True))
    ]
    return GPTDynamics("made-up", "made-up", pool, tests, tuple(runs))


def start(dynamics: GPTDynamics) -> np.ndarray:
    """The losses before training, float32 [runs, 1, tests]."""
    return dynamics.trajectories()[:, :1]


def assert_no_look_ahead(simulator: Simulator, dynamics: GPTDynamics, step: int, seed: int) -> None:
    """What is predicted up to a step does not change with the batches after it."""
    batches = dynamics.batches[:1].copy()
    other = batches.copy()
    other[:, step:] = np.random.default_rng(seed).integers(0, len(dynamics.pool), other[:, step:].shape)
    before, after = (simulator.simulate(b, start(dynamics)[:1]) for b in (batches, other))
    np.testing.assert_array_equal(before[:, : step + 1], after[:, : step + 1])


def make_dynamics(runs: int = 4, split: str = "train", seed: int = 0, steps: int = STEPS) -> GPTDynamics:
    """Runs that really follow y_t = (sum A) y_{t-1} + sum B, plus a little noise."""
    truth, rng = np.random.default_rng(99), np.random.default_rng([seed, len(split)])
    a, b = 1 / BATCH + truth.normal(-0.01, 0.02, (POOL, TESTS)), truth.normal(0, 0.02, (POOL, TESTS))
    start = truth.uniform(1, 3, TESTS)
    recorded = []
    for k in range(runs):
        batches, values = rng.integers(POOL, size=(steps, BATCH)), [start]
        for ids in batches:
            values.append(a[ids].sum(0) * values[-1] + b[ids].sum(0))
        noisy = np.array(values) + rng.normal(0, 1e-3, (steps + 1, TESTS))
        recorded.append(TrainingRun(f"{split}-{k}", Curriculum(batches), {"loss": noisy.astype(np.float32)}))
    return GPTDynamics("toy", "toy", make_pool("pool", POOL), make_pool("tests", TESTS), tuple(recorded))


def make_scores(every: int, runs: int = 4, split: str = "train", *, between: float = 0.0) -> GPTDynamics:
    """The same as BLEU that is measured at every so many steps; between: the size of the noise that stands at other steps."""
    dynamics, rng = make_dynamics(runs, split), np.random.default_rng(5)
    measured = np.array([step % every == 0 or step == STEPS for step in range(STEPS + 1)])[:, None]
    scored = []
    for run in dynamics.runs:
        noise = between * rng.normal(size=(STEPS + 1, TESTS))
        values = np.where(measured, run.trajectories["loss"], run.trajectories["loss"] + noise)
        scored.append(replace(run, trajectories={"bleu": values.astype(np.float32)}))
    return replace(dynamics, runs=tuple(scored), spec=toy_spec(every))


QUICK = {"max_epochs": 3, "batch_size": 50}


MAKERS = {
    "gptfluence": lambda: GPTfluence(encoder=Hashed(), **QUICK),
    "gptfluence, linear": lambda: GPTfluence(encoder=Hashed(), heads="linear", **QUICK),
    "gptfluence, concat": lambda: GPTfluence(encoder=Hashed(), heads="concat", **QUICK),
    "gptfluence, order 2": lambda: GPTfluence(encoder=Hashed(), markov_order=2, **QUICK),
    "gptfluence, order 3, concat": lambda: GPTfluence(encoder=Hashed(), heads="concat", markov_order=3, **QUICK),
    "gptfluence, deviation": lambda: GPTfluence(encoder=Hashed(), target="deviation", **QUICK),
    "simfluence": lambda: Simfluence(**QUICK),
    "simfluence, closed form": lambda: Simfluence(method="closed_form"),
    "simfluence, deviation, closed form": lambda: Simfluence(target="deviation", method="closed_form"),
    "persistence": Persistence,
    "mean_trajectory": MeanTrajectory,
}


@pytest.fixture(scope="module")
def train() -> GPTDynamics:
    torch.set_num_threads(1)
    return make_dynamics()


@pytest.fixture(scope="module")
def validation() -> GPTDynamics:
    return make_dynamics(2, "validation")


@pytest.fixture(scope="module")
def fitted(train: GPTDynamics, validation: GPTDynamics) -> dict[str, Simulator]:
    return {name: make().fit(train, validation) for name, make in MAKERS.items()}


every_simulator = pytest.mark.parametrize("name", MAKERS)


every_table = pytest.mark.parametrize("name", [name for name in MAKERS if "fluence" in name])
