"""Speed of fitting and rolling out GPTfluence, next to the obvious form that applies the heads per transition.

    python benchmarks/simulators.py            # about 25 minutes
    python benchmarks/simulators.py --quick    # about a minute: shorter measurements, extrapolated
    python benchmarks/simulators.py --only streaming

One thread. Seconds are processor seconds, which other work on the machine disturbs little. Dynamics are synthetic, of
the paper's fine-tuning size: 25 training runs x 96 steps x 200 tests, a pool of 200 of which 128 are drawn, batch 4,
features of 384 dimensions.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from gptfluence.recording.curriculum import draw_curricula
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.simulators.fitting import make_transitions
from gptfluence.simulators.gptfluence import GPTfluence
from gptfluence.tasks.base import Example, TaskPool

POOL, TESTS, DIMENSION, SUBSET, BATCH, EPOCHS = 200, 200, 384, 128, 4, 3
RUNS = {"train": 25, "validation": 2}
PUBLISHED_BATCH = 128
T = TypeVar("T")


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


def seconds(call: Callable[[], object], repeat: int) -> float:
    """Median time of a call, after one to warm up."""
    call()
    return float(np.median([timed(call)[0] for _ in range(repeat)]))


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Processor seconds of a call and its result: with one thread, wall time on a machine that does nothing else."""
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def show(what: str, value: str, obvious: str = "", ratio: float | None = None) -> None:
    print(f"{what:<44}{value:>14}{obvious:>16}{f'{ratio:,.0f}x' if ratio else '':>10}", flush=True)


def measure_epoch(train: GPTDynamics, features: Features, quick: bool) -> None:
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

    slow = seconds(update, 10 if quick else 50) * -(-count // PUBLISHED_BATCH)

    def fit(epochs: int, **settings: object) -> float:
        simulator = GPTfluence(encoder=features, max_epochs=epochs, **settings)  # type: ignore[arg-type]
        return timed(lambda: simulator.fit(train))[0] / epochs

    fast = fit(3 if quick else 10)
    show("one epoch (every transition once)", f"{fast:.2f} s", f"{slow:.0f} s", slow / fast)
    if not quick:
        same = fit(1, batch_size=PUBLISHED_BATCH)
        show(f"  the same with batches of {PUBLISHED_BATCH}", f"{same:.1f} s", f"{slow:.0f} s", slow / same)


@torch.no_grad()
def measure_validation(train: GPTDynamics, validation: GPTDynamics, features: Features, quick: bool) -> None:
    simulator = GPTfluence(encoder=features, max_epochs=1).fit(train)
    recorded = validation.trajectories()
    fast = seconds(lambda: simulator.simulate(validation.curricula, recorded[:, :1]), 20)
    obvious, batches = PerTransition(features.vectors), torch.tensor(validation.batches[0].astype(np.int64))

    def trajectory() -> None:
        value, test = torch.tensor([1.0]), torch.tensor([0])
        for batch in batches:
            value = obvious(batch[None], test, value)

    trajectories = recorded.shape[0] * recorded.shape[2]
    slow = seconds(trajectory, 3 if quick else 10) * trajectories
    show(f"validation rollouts ({trajectories} trajectories)", f"{fast * 1e3:.1f} ms", f"{slow:.0f} s", slow / fast)


def measure_fit(train: GPTDynamics, validation: GPTDynamics, features: Features, quick: bool) -> None:
    epochs = 5 if quick else 300
    simulator = GPTfluence(encoder=features, max_epochs=epochs, patience=None)
    took, simulator = timed(lambda: simulator.fit(train, validation))
    best = simulator.report.validation_mse.min()
    note = " (extrapolated)" if quick else f" (validation MSE {best:.2e})"
    show("300-epoch fit" + note, f"{took / epochs * 300:.0f} s")


def measure_streaming(train: GPTDynamics, features: Features, quick: bool) -> None:
    simulator = GPTfluence(encoder=features, max_epochs=1).fit(train)
    total, piece = 100_000, 2_000
    measured = 10_000 if quick else total
    rng = np.random.default_rng(0)
    drawn = rng.integers(POOL, size=(piece, 96, BATCH), dtype=np.int32)
    start = train.trajectories()[0, 0]

    def stream() -> int:
        return sum(len(part) for part in simulator.simulate_stream((drawn for _ in range(measured // piece)), start))

    took, done = timed(stream)
    took *= total / done
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    show("100,000 curricula, streamed" + (" (extrapolated)" if quick else ""), f"{took:.1f} s")
    show("  peak resident memory", f"{peak:.2f} GiB")


def measure_batch_sizes(
    train: GPTDynamics,
    validation: GPTDynamics,
    features: Features,
    budgets: list[float],
    rates: list[float],
    sizes: list[int | None],
) -> None:
    """Best validation all-steps MSE in a given time; the schedule decays to zero within that time.

    At least one epoch is run: with batches of 128 that alone may take longer, as the column of seconds then says.
    """
    naive = np.square(train.trajectories().mean(axis=0) - validation.trajectories())[:, 1:].mean()
    print(f"\nbest validation all-steps MSE (the mean trajectory's is {naive:.2e})")
    columns = "".join(f"{f'lr {rate:g}':>12}" for rate in rates)
    print(f"{'budget':>8}{'batch':>8}{columns}{'epochs':>9}{'seconds':>9}", flush=True)
    for budget in budgets:
        for batch_size in sizes:
            first = GPTfluence(encoder=features, max_epochs=1 if batch_size else 10, batch_size=batch_size)
            each = timed(lambda one=first: one.fit(train, validation))[0] / first.max_epochs  # type: ignore[misc]
            epochs = max(1, round(budget / each))
            found, took = [], []
            for rate in rates:
                simulator = GPTfluence(
                    encoder=features, max_epochs=epochs, batch_size=batch_size, learning_rate=rate, patience=None
                )
                spent, simulator = timed(lambda one=simulator: one.fit(train, validation))  # type: ignore[misc]
                found.append(float(simulator.report.validation_mse.min()))
                took.append(spent)
            row = "".join(f"{value:>12.2e}" for value in found)
            print(f"{budget:>6.0f} s{batch_size or 'all':>8}{row}{epochs:>9}{np.mean(took):>9.0f}", flush=True)


PARTS = ("epoch", "validation", "fit", "streaming", "batch-sizes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short measurements, extrapolated")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    parser.add_argument("--budgets", type=json.loads, help="seconds for the comparison of batch sizes, e.g. '[30, 90]'")
    parser.add_argument("--sizes", type=json.loads, help="batch sizes for it, null for all, e.g. '[8192, null]'")
    parser.add_argument("--rates", type=json.loads, default=[3e-4, 1e-3], help="learning rates for it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    features = Features()
    train, validation = synthetic_dynamics(features)
    if options.only is None:
        print(f"{'':<44}{'gptfluence':>14}{'per transition':>16}{'ratio':>10}")
    for part in [options.only] if options.only else PARTS:
        if part == "epoch":
            measure_epoch(train, features, options.quick)
        elif part == "validation":
            measure_validation(train, validation, features, options.quick)
        elif part == "fit":
            measure_fit(train, validation, features, options.quick)
        elif part == "streaming" and options.only is None:  # its own process, so that the peak is its own
            command = [sys.executable, __file__, "--only", "streaming", *(["--quick"] if options.quick else [])]
            subprocess.run(command, check=True)
        elif part == "streaming":
            measure_streaming(train, features, options.quick)
        else:
            budgets = options.budgets or ([3.0] if options.quick else [30.0, 90.0])
            sizes = options.sizes or ([8192, 32768, None] if options.quick else [128, 1024, 8192, 32768, None])
            measure_batch_sizes(train, validation, features, budgets, options.rates, sizes)


if __name__ == "__main__":
    main()
