"""What a prediction costs (paper, table 13): FLOPs counted by torch, and measured latency, per step and test example.

What is counted:

- FLOPs are those of matrix products and attention, two for a multiplication and its addition, as
  `torch.utils.flop_counter.FlopCounterMode` counts them while the method runs. It does not see element-wise work (sums,
  activations, norms, the optimizer). The paper's figures are multiply-adds, half as many: 16 for Simfluence, 5.3e6 for
  GPTfluence with a batch of 8 and d = 384.
- One step for one test example: everything that this needs if nothing was computed before. What steps or tests can share
  is given in rows of its own, `reuse` "tables" or "tests": a simulator's tables are made once for all steps, and the
  batch gradient of TracIn-CP once for all tests. Those rows give the share of one (step, test example).
- Simfluence and GPTfluence are the package's own: what is measured is a call of `simulate`, the same that predicts
  everywhere else. They are fitted for a moment on made-up runs, because the cost does not depend on the numbers in them.
- A step of Simfluence has no product: it looks numbers up and adds them. So its sums, and no other method's, are counted as
  products with ones, as the paper counts them.
- Without the encoder GPTfluence's features are given. With it the texts of the batch and of the test are encoded, too.
- TracIn-CP is counted at one checkpoint: the gradient of the batch and the product with that of the test. Training the GPT
  to get there and measuring the tests, which the simulators do not need, is left out; the row "recorded" says what it is.
- Latency is the median over repeats, in one thread on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from gptfluence.common.errors import ConfigurationError
from gptfluence.gradients.products import ExampleGradients, Replayer
from gptfluence.models.encoders import Encoder
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.recording.recorder import single_thread
from gptfluence.recording.tokens import collate, tokenize
from gptfluence.simulators.base import Simulator
from gptfluence.simulators.gptfluence import GPTfluence
from gptfluence.simulators.simfluence import Simfluence
from gptfluence.tasks.base import TaskPool

RECORDED_STEPS = 32  # and one measurement more, of the initial weights, which is a thirtieth too much
COLUMNS = ["method", "variant", "encoder", "reuse", "flops", "seconds"]


def cost(
    recorder: Replayer,
    *,
    batch_size: int = 8,
    encoder: Encoder | None = None,
    heads: str = "mlp",
    dimension: int = 384,
    parameters: tuple[str, ...] = ("last_layer", "all"),
    steps: int = 96,
    repeats: int = 5,
) -> pd.DataFrame:
    """Cost of one step of `batch_size` examples for one test example, for TracIn-CP, Simfluence and GPTfluence.

    recorder: of the GPT, pool and tests that TracIn-CP is measured on; the first examples of each are taken
    encoder: whose cost is added in the rows with `encoder` "included" (none: those rows are left out); `dimension` is then
        that of its features
    steps: how many share a simulator's tables in the rows that reuse them

    Returns a tidy frame with columns
        method
        variant  which parameters TracIn-CP takes gradients of, e.g. parameters=all; empty for the others
        encoder  "included" or "excluded"; empty where there is none
        reuse    "nothing", "tests" or "tables"
        flops, seconds  of one step for one test example

    Raises ConfigurationError if pool or tests are too small or a number is below 1.
    """
    for name, value in (("batch_size", batch_size), ("steps", steps), ("repeats", repeats), ("dimension", dimension)):
        if value < 1:
            raise ConfigurationError(f"cost: {name} must be 1 or more, not {value}")
    if batch_size > len(recorder.pool):
        raise ConfigurationError(
            f"cost: a batch of {batch_size} cannot be taken from a pool of {len(recorder.pool)}; lower batch_size"
        )
    if getattr(encoder, "cache", None) is not None:
        raise ConfigurationError(
            f"cost: encoder {encoder.name!r} would find its features in a cache; load it with cache=None"
        )
    with single_thread():
        rows = [
            *_tracin(recorder, batch_size, parameters, repeats),
            *_simfluence(recorder, batch_size, repeats),
            *_gptfluence(recorder, batch_size, encoder, heads, dimension, steps, repeats),
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def count_flops(work: Callable[[], object], *, lookups: bool = False) -> int:
    """FLOPs of one call: two for each multiplication and its addition, matrix products and attention only.

    lookups: count the sum of entries that are looked up in a table, too, as the product with ones that it equals
    """
    counter = FlopCounterMode(display=False, custom_mapping=_LOOKUPS if lookups else {})
    with counter, _plain_attention():
        work()
    return counter.get_total_flops()


def _lookup_flops(table: torch.Size, ids: torch.Size, *_: object, **__: object) -> int:
    """table: [entries, columns]; each id adds one row of it."""
    return 2 * ids.numel() * table[1]


_LOOKUPS = {torch.ops.aten._embedding_bag: _lookup_flops, torch.ops.aten._embedding_bag_forward_only: _lookup_flops}


def measure_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


@contextmanager
def _plain_attention() -> Iterator[None]:
    """The counter does not know the CPU's fused attention; the same products one by one it does."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def _row(
    method: str,
    encoder: str,
    reuse: str,
    work: Callable[[], object],
    repeats: int,
    *,
    share: float = 1.0,
    lookups: bool = False,
    variant: str = "",
) -> tuple:
    """One row of the frame. share: how many (step, test example) one call of `work` serves."""
    flops = count_flops(work, lookups=lookups) / share
    return method, variant, encoder, reuse, flops, measure_seconds(work, repeats) / share


def _tracin(recorder: Replayer, batch_size: int, parameters: tuple[str, ...], repeats: int) -> Iterator[tuple]:
    batch = recorder.pool_batch(list(range(batch_size)))
    tokens = tokenize(recorder.tests, recorder.gpt, truncation=recorder.recording.truncation)
    one = collate(tokens, [0], recorder.recording.loss_tokens, recorder.device)
    tests = recorder.test_batches
    for which in parameters:
        gradients = recorder.gradients(which)

        def single(gradients: ExampleGradients = gradients) -> object:
            return list(gradients.products(one, [gradients.gradient(batch)]))

        def whole(gradients: ExampleGradients = gradients) -> object:
            direction = gradients.gradient(batch)
            return [list(gradients.products(part, [direction])) for part in tests]

        variant = f"parameters={which}"
        yield _row("tracin_cp", "", "nothing", single, repeats, variant=variant)
        yield _row("tracin_cp", "", "tests", whole, repeats, share=len(recorder.tests), variant=variant)

    curriculum = Curriculum(np.tile(np.arange(batch_size), (RECORDED_STEPS, 1)))

    def train() -> object:
        return recorder.record("cost", curriculum)

    yield _row("recorded", "", "tests", train, 1, share=RECORDED_STEPS * len(recorder.tests))


def _simfluence(recorder: Replayer, batch_size: int, repeats: int) -> Iterator[tuple]:
    step = _prediction(Simfluence(max_epochs=1), *_one_step(recorder, batch_size), batch_size)
    yield _row("simfluence", "", "nothing", step, repeats, lookups=True)


def _gptfluence(
    recorder: Replayer,
    batch_size: int,
    encoder: Encoder | None,
    heads: str,
    dimension: int,
    steps: int,
    repeats: int,
) -> Iterator[tuple]:
    pool, tests = _one_step(recorder, batch_size)
    texts = TaskPool("cost/texts", (*pool, *tests))
    if encoder is not None:
        dimension = encoder.encode(texts).shape[1]
    simulator = GPTfluence(encoder=_MadeUpFeatures(dimension), heads=heads, max_epochs=1)
    step = _prediction(simulator, pool, tests, batch_size)
    yield _row("gptfluence", "excluded", "nothing", step, repeats)

    simulator = GPTfluence(encoder=_MadeUpFeatures(dimension), heads=heads, max_epochs=1)
    trajectory = _prediction(simulator, recorder.pool, recorder.tests, batch_size, steps=steps)
    yield _row("gptfluence", "excluded", "tables", trajectory, repeats, share=steps * len(recorder.tests))
    if encoder is not None:
        yield _row("gptfluence", "included", "nothing", lambda: (encoder.encode(texts), step()), repeats)


class _MadeUpFeatures:
    """Random numbers in place of features, so that no encoder is part of a measurement."""

    name = "made-up"

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension

    def encode(self, pool: TaskPool) -> np.ndarray:
        """float32 [examples, dimension]"""
        return np.random.default_rng(0).normal(size=(len(pool), self.dimension)).astype(np.float32)


def _one_step(recorder: Replayer, batch_size: int) -> tuple[TaskPool, TaskPool]:
    """A pool of one batch, and one test example."""
    return TaskPool("cost/batch", recorder.pool[:batch_size]), TaskPool("cost/test", recorder.tests[:1])


def _prediction(
    simulator: Simulator, pool: TaskPool, tests: TaskPool, batch_size: int, *, steps: int = 1
) -> Callable[[], np.ndarray]:
    """Fit `simulator` for a moment and return a call that predicts one run: its tables, then `steps` steps for all tests."""
    curriculum = Curriculum(np.tile(np.arange(batch_size), (steps, 1)))
    losses = np.ones((steps + 1, len(tests)), np.float32)
    run = TrainingRun("train-000", curriculum, {"loss": losses})
    simulator.fit(GPTDynamics("cost", "none", pool, tests, (run,)))
    return lambda: simulator.simulate([curriculum], losses[None, :1])
