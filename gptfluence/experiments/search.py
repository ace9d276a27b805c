"""Search among many curricula with a simulator: those with the lowest simulated final loss, and the best one retrained.

Candidates are drawn alike, one by one from seeds of their own, simulated in pieces and forgotten; only the best are kept. So
any number of them needs the memory of one piece. What a simulator likes best is where its errors are most flattering (the
winner's curse), so the simulated loss of the best is to be expected too low; retraining says by how much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gptfluence.common.errors import ConfigurationError
from gptfluence.experiments.shifted import seed_of
from gptfluence.recording.curriculum import Curriculum, draw_curriculum
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.settings import CurriculumConfig
from gptfluence.simulators.base import Simulator
from gptfluence.study.campaign import Campaign

CHUNK = 64
HEURISTICS = ("hardest", "easiest")
COLUMNS = ["choice", "method", "candidate", "simulated", "recorded"]


def candidate(pool_size: int, numbers: CurriculumConfig, seed: Sequence[int], index: int) -> Curriculum:
    """Candidate `index`: it depends on seed and index alone."""
    rng = np.random.default_rng([*seed, index])
    shape = {"subset": numbers.subset_size, "batch": numbers.batch_size, "epochs": numbers.epochs}
    return draw_curriculum(pool_size, **shape, rng=rng)


@dataclass(frozen=True)
class Found:
    """The best candidates, best first: index int64 [best], value float64 [best]; and the values of all, float64 [count]."""

    index: np.ndarray
    value: np.ndarray
    all_values: np.ndarray


def search(
    simulator: Simulator,
    pool_size: int,
    numbers: CurriculumConfig,
    start: np.ndarray,
    tests: Sequence[int],
    *,
    count: int,
    best: int,
    seed: Sequence[int],
) -> Found:
    """The `best` of `count` candidates by their simulated final loss, the mean over `tests` (positions).

    start: float [tests of the simulator], the losses before training. Ties go to the earlier candidate; candidates whose
    simulated loss is not finite are never among the best. Raises ConfigurationError for numbers that make no sense.
    """
    if not 1 <= best <= count:
        raise ConfigurationError(f"search: the best {best} of {count} candidates cannot be had; choose 1 to {count}")
    chosen = check_tests(tests, len(start))
    values = np.empty(count)

    def pieces() -> Iterator[np.ndarray]:
        for first in range(0, count, CHUNK):
            rows = range(first, min(first + CHUNK, count))
            yield np.stack([candidate(pool_size, numbers, seed, index).batches for index in rows])

    done = 0
    for part in simulator.simulate_stream(pieces(), start, chunk=CHUNK):
        values[done : done + len(part)] = part[:, -1, chosen].mean(axis=1, dtype=np.float64)
        done += len(part)
    order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")[:best]
    return Found(order, values[order], values)


def check_tests(tests: Sequence[int], size: int) -> np.ndarray:
    """Positions of test examples, all of them if none are given. Raises ConfigurationError for one that is not there."""
    chosen = np.array(list(tests) or range(size), dtype=np.int64)
    outside = chosen[(chosen < 0) | (chosen >= size)]
    if len(outside):
        raise ConfigurationError(f"tests: there is no test example {int(outside[0])}; choose 0 to {size - 1}")
    return chosen


def by_loss(losses: np.ndarray, numbers: CurriculumConfig, *, hardest: bool, seed: Sequence[int]) -> Curriculum:
    """The heuristic: the examples that the base model is worst (or best) at, shuffled in each epoch.

    losses: float [pool], nats per target token, of the base model; seed: of the shuffling. Returns a curriculum over the
    first `subset_size` examples of that order, with the epochs and batches of `numbers`. Raises ConfigurationError as
    `Curriculum`.
    """
    order = np.argsort(-losses if hardest else losses, kind="stable")[: numbers.subset_size]
    rng = np.random.default_rng([*seed, int(hardest)])
    shuffled = [rng.permutation(order) for _ in range(numbers.epochs)]
    return Curriculum(np.concatenate(shuffled).reshape(-1, numbers.batch_size))


def pool_losses(campaign: Campaign) -> np.ndarray:
    """float32 [pool]: the base model's loss of every example of the pool, nats per target token."""
    # One step of training with the pool's losses recorded: the row before the step is wanted.
    other = campaign.losses_only.with_(record_pool=True)
    first = Curriculum(np.arange(campaign.setting.curriculum.batch_size)[None] % len(campaign.texts.pool))
    return other.record(first).trajectories("loss", of="pool")[0, 0]


def compare(
    campaign: Campaign, methods: Sequence[str], *, tests: Sequence[int], count: int, best: int
) -> tuple[pd.DataFrame, dict[str, Found], list[GPTDynamics]]:
    """The best candidate of each simulator, the two loss-based heuristics and random choice, all really trained.

    Returns a frame with `COLUMNS` (choice: best, hardest, easiest or random; recorded and simulated: final loss, the mean
    over `tests`; random: the held-out runs, one row each), what each simulator found, and the runs.
    """
    dynamics, held = campaign.dynamics("loss"), campaign.held_out()
    numbers = campaign.setting.curriculum
    start = held.trajectories("loss")[0, 0]
    chosen = check_tests(tests, len(start))
    seed = [campaign.study.profile.seed, seed_of("search", campaign.task)]
    losses = pool_losses(campaign)
    heuristics = {name: by_loss(losses, numbers, hardest=name == "hardest", seed=seed) for name in HEURISTICS}
    fitted = {name: campaign.simulator(name) for name in methods}
    found = {
        name: search(one, len(dynamics.pool), numbers, start, chosen, count=count, best=best, seed=seed)
        for name, one in fitted.items()
    }
    best_ones = {name: candidate(len(dynamics.pool), numbers, seed, int(one.index[0])) for name, one in found.items()}
    wanted = [*best_ones.values(), *heuristics.values()]
    recorded = campaign.losses_only.record(wanted, ends_only=True)
    final = {run.curriculum: float(run.trajectories["loss"][-1, chosen].mean()) for run in recorded.runs}
    rows = []
    for name, one in found.items():
        rows.append(("best", name, int(one.index[0]), float(one.value[0]), final[best_ones[name]]))
        for choice, curriculum in heuristics.items():
            value = fitted[name].simulate([curriculum], start[None, None])[0, -1, chosen].mean()
            rows.append((choice, name, -1, float(value), final[curriculum]))
        ends = fitted[name].simulate(held.curricula, held.trajectories("loss")[:, :1])[:, -1, chosen].mean(axis=1)
        for run, value in zip(held.runs, ends.tolist(), strict=True):
            rows.append(("random", name, -1, value, float(run.trajectories["loss"][-1, chosen].mean())))
    return pd.DataFrame(rows, columns=COLUMNS), found, [dynamics, recorded]
