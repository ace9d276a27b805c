"""Speed of fitting and rolling out GPTfluence, next to the obvious form that applies the heads per transition.

    python benchmarks/simulators.py            # half an hour
    python benchmarks/simulators.py --quick    # half a minute: shorter measurements, extrapolated
    python benchmarks/simulators.py --parts streaming

One thread. Seconds are processor seconds, which other work on the machine disturbs little. Dynamics are synthetic, of
the paper's fine-tuning size: 25 training runs x 96 steps x 200 tests, a pool of 200 of which 128 are drawn, batch 4,
features of 384 dimensions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from common import Benchmark, Comparison, Side, alternate, measured_apart, timed
from torch import nn

from gptfluence.recording.curriculum import draw_curricula
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.simulators.gptfluence import GPTfluence
from gptfluence.simulators.transitions import make_transitions
from gptfluence.tasks.base import Example, TaskPool

POOL, TESTS, DIMENSION, SUBSET, BATCH, EPOCHS = 200, 200, 384, 128, 4, 3
RUNS = {"train": 25, "validation": 2}
PUBLISHED_BATCH = 128
OBVIOUS = f"heads per transition, batches of {PUBLISHED_BATCH}"
SECONDS = "processor seconds"
PARTS = ("epoch", "validation", "fit", "streaming", "batch-sizes")


class Features:
    """Stands in for a text encoder: like MiniLM's, vectors of norm 8 with a large common part, topics and a label."""

    name = "synthetic"
    dimension = DIMENSION

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        topics, label, common = rng.normal(size=(16, DIMENSION)), rng.normal(size=DIMENSION), rng.normal(size=DIMENSION)
        count = POOL + TESTS
        self.sign = rng.choice([-1.0, 1.0], count)
        self.topic = rng.integers(16, size=count)
        vectors = (
            0.30 * common
            + 0.22 * topics[self.topic]
            + 0.10 * self.sign[:, None] * label
            + 0.14 * rng.normal(size=(count, DIMENSION))
        )
        self.vectors = vectors.astype(np.float32)

    def encode(self, pool: TaskPool) -> np.ndarray:
        return self.vectors[[int(example.id) for example in pool]]


def synthetic_dynamics(features: Features, seed: int = 0) -> tuple[GPTDynamics, GPTDynamics]:
    """Logits of pool and tests drift along a kernel of label, topic and an unexplained part; the loss is logistic.

    An example pushes less the better it is learned already, so the truth is outside GPTfluence's family of functions.
    """
    rng = np.random.default_rng(seed)
    signs, topic = features.sign, features.topic
    kernel = np.outer(signs, signs) * (0.3 + 0.5 * (topic[:, None] == topic)) + 0.35
    unexplained = rng.normal(size=(len(signs), 20)) / 20**0.5
    kernel = kernel + 0.4 * unexplained @ unexplained.T
    start = rng.normal(-0.5, 1.0, len(signs))
    pool = TaskPool("pool", tuple(Example(str(i), f"text {i}", " yes") for i in range(POOL)))
    tests = TaskPool("tests", tuple(Example(str(POOL + i), f"text {POOL + i}", " yes") for i in range(TESTS)))
    curricula = draw_curricula(POOL, runs=sum(RUNS.values()), subset=SUBSET, batch=BATCH, epochs=EPOCHS, seed=seed)
    steps = curricula[0].steps
    rates = 0.06 * (1 - np.arange(steps) / steps)
    runs = []
    for k, curriculum in enumerate(curricula):
        logits, trajectory = start.copy(), []
        for step in range(steps + 1):
            trajectory.append(np.logaddexp(0, -logits[POOL:]))
            if step < steps:
                ids = curriculum.batches[step]
                logits = logits + rates[step] * kernel[:, ids] @ (1 / (1 + np.exp(logits[ids])))
        split, number = ("train", k) if k < RUNS["train"] else ("validation", k - RUNS["train"])
        runs.append(TrainingRun(f"{split}-{number:03d}", curriculum, {"loss": np.array(trajectory, np.float32)}))
    train, validation, _ = GPTDynamics("synthetic", "synthetic", pool, tests, tuple(runs)).split()
    return train, validation


class PerTransition(nn.Module):
    """The equations as one would first write them: every transition encodes its own batch and test example."""

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__()
        self.pool, self.tests = torch.tensor(vectors[:POOL]), torch.tensor(vectors[POOL:])
        self.multiplicative, self.additive = (
            nn.Sequential(nn.Linear(DIMENSION, DIMENSION), nn.ReLU(), nn.Linear(DIMENSION, DIMENSION)) for _ in range(2)
        )

    def forward(self, batches: torch.Tensor, tests: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        of_batch, of_test = self.pool[batches], self.tests[tests]
        alpha, beta = (
            (head(of_batch) * head(of_test)[:, None]).sum(dim=(1, 2)) for head in (self.multiplicative, self.additive)
        )
        return alpha * previous + beta


def measure_epoch(train: GPTDynamics, features: Features, quick: bool) -> Comparison:
    """One visit to every transition. The obvious way is extrapolated from a few updates."""
    transitions = make_transitions(train.trajectories(), train.batches)
    count = len(transitions)
    obvious = PerTransition(features.vectors)
    optimizer = torch.optim.AdamW(obvious.parameters(), lr=1e-4, weight_decay=1e-5)
    chosen = torch.randperm(count)[:PUBLISHED_BATCH]
    step, test = chosen // TESTS, chosen % TESTS

    def update() -> None:
        predicted = obvious(transitions.batches[step], test, transitions.history[step, 0, test])
        loss = (predicted - transitions.target[step, test]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def fit(epochs: int, **settings: object) -> Callable[[], object]:
        simulator = GPTfluence(encoder=features, max_epochs=epochs, **settings)  # type: ignore[arg-type]
        return lambda: simulator.fit(train)

    epochs, updates = (2, 2) if quick else (5, 10)
    ways = {OBVIOUS: lambda: [update() for _ in range(updates)], "gptfluence": fit(epochs)}
    parts = {OBVIOUS: updates / -(-count // PUBLISHED_BATCH), "gptfluence": epochs}  # of an epoch, in one call
    seconds = alternate(ways, 2 if quick else 5, warm_up=not quick, clock=time.process_time)
    sides = [Side(name, [value / parts[name] for value in values]) for name, values in seconds.items()]
    if not quick:  # a minute: once is enough
        took = timed(fit(1, batch_size=PUBLISHED_BATCH), time.process_time)[0]
        sides.append(Side(f"gptfluence, batches of {PUBLISHED_BATCH}", [took]))
    return Comparison(
        f"one epoch, {count:,} transitions",
        SECONDS,
        sides,
        reference=OBVIOUS,
        notes=[f"the obvious way from {updates} of {-(-count // PUBLISHED_BATCH):,} updates"],
    )


@torch.no_grad()
def measure_validation(train: GPTDynamics, validation: GPTDynamics, features: Features, quick: bool) -> Comparison:
    """Rollouts over the validation runs. The obvious way is extrapolated from a few trajectories."""
    simulator = GPTfluence(encoder=features, max_epochs=1).fit(train)
    recorded = validation.trajectories()
    obvious, batches = PerTransition(features.vectors), torch.tensor(validation.batches[0].astype(np.int64))

    def trajectory() -> None:
        value, test = torch.tensor([1.0]), torch.tensor([0])
        for batch in batches:
            value = obvious(batch[None], test, value)

    trajectories = recorded.shape[0] * recorded.shape[2]
    ways = {OBVIOUS: trajectory, "gptfluence": lambda: simulator.simulate(validation.curricula, recorded[:, :1])}
    seconds = alternate(ways, 3 if quick else 20, clock=time.process_time)
    seconds[OBVIOUS] = [trajectories * value for value in seconds[OBVIOUS]]
    return Comparison(
        f"validation rollouts, {trajectories} trajectories",
        SECONDS,
        [Side(name, values) for name, values in seconds.items()],
        reference=OBVIOUS,
        notes=["the obvious way from single trajectories"],
    )


def measure_fit(train: GPTDynamics, validation: GPTDynamics, features: Features, quick: bool) -> Comparison:
    """A whole fit, with validation after every epoch."""
    epochs = 2 if quick else 300
    simulator = GPTfluence(encoder=features, max_epochs=epochs, patience=None)
    took, simulator = timed(lambda: simulator.fit(train, validation), time.process_time)
    also = {"validation all-steps MSE": float(simulator.report.validation_mse.min())}
    notes = [f"from {epochs} epochs"] if quick else []
    return Comparison("a fit of 300 epochs", SECONDS, [Side("gptfluence", [took / epochs * 300], also)], notes=notes)


def measure_streaming(quick: bool) -> Comparison:
    """100,000 curricula in pieces, in a process of its own, so that the peak of memory is theirs."""
    total = 100_000
    measured = 4_000 if quick else total
    apart = measured_apart(stream, measured)
    return Comparison(
        f"{total:,} curricula x 96 steps x {TESTS} tests, streamed",
        SECONDS,
        [Side("gptfluence", [apart.result * total / measured], {"peak GiB": apart.peak})],
        notes=[f"from {measured:,} curricula"] if quick else [],
    )


def stream(curricula: int) -> float:
    """Processor seconds of predicting so many random curricula, 2,000 at a time."""
    torch.set_num_threads(1)
    features = Features()
    train, _ = synthetic_dynamics(features)
    simulator = GPTfluence(encoder=features, max_epochs=1).fit(train)
    drawn = np.random.default_rng(0).integers(POOL, size=(2_000, 96, BATCH), dtype=np.int32)
    pieces, start = (drawn for _ in range(curricula // len(drawn))), train.trajectories()[0, 0]
    took, done = timed(lambda: sum(map(len, simulator.simulate_stream(pieces, start))), time.process_time)
    assert done == curricula
    return took


def measure_batch_sizes(
    train: GPTDynamics, validation: GPTDynamics, features: Features, options: argparse.Namespace
) -> Comparison:
    """Best validation all-steps MSE in a given time; the schedule decays to zero within that time.

    At least one epoch is run: with batches of 128 that alone may take longer, as the column of seconds then says.
    """
    naive = np.square(train.trajectories().mean(axis=0) - validation.trajectories())[:, 1:].mean()
    sides = []
    for budget in options.budgets:
        for batch_size in options.sizes:
            first = GPTfluence(encoder=features, max_epochs=1 if batch_size else 10, batch_size=batch_size)
            each = timed(lambda one=first: one.fit(train, validation), time.process_time)[0] / first.max_epochs  # type: ignore[misc]
            epochs = max(1, round(budget / each))
            took, also = [], {"epochs": float(epochs)}
            for rate in options.rates:
                simulator = GPTfluence(
                    encoder=features, max_epochs=epochs, batch_size=batch_size, learning_rate=rate, patience=None
                )
                spent, simulator = timed(lambda one=simulator: one.fit(train, validation), time.process_time)  # type: ignore[misc]
                also[f"MSE, learning rate {rate:g}"] = float(simulator.report.validation_mse.min())
                took.append(spent)
            sides.append(Side(f"{budget:g} s, batches of {batch_size or 'all'}", took, also))
    return Comparison(
        "best validation all-steps MSE in a given time",
        SECONDS,
        sides,
        notes=[f"the mean trajectory's is {naive:.2e}"],
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[30.0, 90.0], help="seconds, for batch-sizes")
    parser.add_argument(
        "--sizes", nargs="+", type=size, default=[128, 1024, 8192, 32768, None], help="of batches; 'all' for all"
    )
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-4, 1e-3], help="learning rates, for batch-sizes")


def size(text: str) -> int | None:
    """A batch size of the command line: a number, or "all"."""
    return None if text == "all" else int(text)


def measure(options: argparse.Namespace) -> Iterator[Comparison]:
    torch.set_num_threads(1)
    features = Features()
    train, validation = synthetic_dynamics(features)
    parts = {
        "epoch": lambda: measure_epoch(train, features, options.quick),
        "validation": lambda: measure_validation(train, validation, features, options.quick),
        "fit": lambda: measure_fit(train, validation, features, options.quick),
        "streaming": lambda: measure_streaming(options.quick),
        "batch-sizes": lambda: measure_batch_sizes(train, validation, features, options),
    }
    for part in options.parts:
        yield parts[part]()


QUICK = {"budgets": [1.0], "sizes": [8192, 32768], "rates": [1e-3]}
BENCHMARK = Benchmark("simulators", __doc__, add_options, QUICK, measure)

if __name__ == "__main__":
    BENCHMARK.main()
