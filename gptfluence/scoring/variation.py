"""What curricula change at all, and how little may be needed to say it: statistics of recorded runs.

Runs of one GPT on one task differ by their curricula alone. If all that differs is one number for each run and step, or
follows from counts of labels, then a simulator that predicts it well says little of how content matters. These functions take
`GPTDynamics` and no profile.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.counts import Counts, Groups
from gptfluence.tasks.base import Example, TaskPool

MATTERS = 3.0  # standard deviations of the noise: a test example that moves further is moved by the example left out
RARE = 0.05  # share of the pool's examples: a word that is in no more of them can tell which examples belong together
CHANCE_DRAWS = 50_000
_NORMAL_QUARTILE = 0.6745  # median size of a normal variable in standard deviations


def deviations(dynamics: GPTDynamics, metric: str = "loss") -> np.ndarray:
    """Deviations from the mean trajectory of these runs, float64 [runs * steps, tests], in the metric's unit.

    Raises ConfigurationError for fewer than two runs, which have no deviations.
    """
    if len(dynamics) < 2:
        raise ConfigurationError(
            f"variation: {len(dynamics)} run has no deviation from the mean; give two runs at least"
        )
    values = dynamics.trajectories(metric).astype(np.float64)[:, 1:]  # before training all runs are the same
    return (values - values.mean(axis=0)).reshape(-1, values.shape[2])


def first_component_share(dynamics: GPTDynamics, metric: str = "loss") -> float:
    """The share of the first principal component in the sum of squares of the deviations: 0 to 1, nan if there are none.

    1 means that one number for each run and step says all that curricula change, up to how strongly each test responds.
    """
    sizes = np.square(np.linalg.svd(deviations(dynamics, metric), compute_uv=False))
    return float(sizes[0] / sizes.sum()) if sizes.sum() > 0 else float("nan")


def counts_share(dynamics: GPTDynamics, metric: str = "loss") -> float:
    """The share of the deviations that labels or formats of the test examples say: 0 to 1, nan if there are no deviations.

    With labels: the part along the label's sign, one number for each run and step times +1 or -1 (of several labels: what is
    left of one number for each when their mean is taken off). With free text: the part that is one number for each run, step
    and group of formats (`simulators.counts.Groups`), of which one is the mean over all tests.
    """
    found = deviations(dynamics, metric)
    total = np.square(found).sum()
    axes = _axes(dynamics.tests)
    return float(np.square(found @ axes).sum() / total) if total > 0 else float("nan")


def _axes(tests: TaskPool) -> np.ndarray:
    """float64 [tests, rank]: orthonormal, spanning the labels' signs, or the groups of formats."""
    labels = [example.label for example in tests]
    if None in labels:
        columns = Groups.of(tests)(tests)
    else:
        kinds = sorted(set(labels))
        columns = np.array([[float(label == kind) - 1 / len(kinds) for kind in kinds] for label in labels])
    axes, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return axes[:, sizes > 1e-9 * max(float(sizes[0]), 1e-300)]


def counts_r2_dev(dynamics: GPTDynamics, metric: str = "loss") -> float:
    """R²dev of counts of labels and formats on the held-out runs, fitted on the others. Raises as `mean_errors`."""
    train, validation, test = dynamics.split()
    predicted = Counts().fit(train, validation, metric=metric).predict(test, metric=metric)
    error, of_mean = _error(predicted, test, metric), mean_errors(dynamics, metric).mean_trajectory
    return 1 - error / of_mean if of_mean > 0 else float("nan")


class MeanErrors(NamedTuple):
    """All-steps MSE of two predictions over the held-out runs, the metric's unit squared."""

    persistence: float
    mean_trajectory: float

    @property
    def ratio(self) -> float:
        """How many times larger the error of persistence is; large where curves drift far and nearly coincide."""
        return self.persistence / self.mean_trajectory if self.mean_trajectory > 0 else float("nan")


def mean_errors(dynamics: GPTDynamics, metric: str = "loss") -> MeanErrors:
    """The errors of persistence and of the mean trajectory. Raises ConfigurationError if no run is held out."""
    train, _, test = dynamics.split()
    if not len(test):
        raise ConfigurationError("variation: no run is held out; name one test-000, or split the runs")
    truth = test.trajectories(metric)
    persistence = np.broadcast_to(truth[:, :1], truth.shape)
    mean = np.broadcast_to(train.trajectories(metric).mean(axis=0, dtype=np.float64), truth.shape)
    return MeanErrors(_error(persistence, test, metric), _error(mean, test, metric))


def _error(predicted: np.ndarray, recorded: GPTDynamics, metric: str) -> float:
    truth = recorded.trajectories(metric).astype(np.float64)
    return float(np.square(predicted.astype(np.float64) - truth)[:, 1:].mean())


def before_and_after(dynamics: GPTDynamics, metric: str = "loss") -> tuple[float, float]:
    """The metric before the first and after the last step, each the mean over runs and over the tests that have it."""
    values = dynamics.for_metric(metric).trajectories(metric).astype(np.float64)
    return float(values[:, 0].mean()), float(values[:, -1].mean())


# --- single examples of the pool --------------------------------------------------------------------------------------


def moved(moves: np.ndarray) -> np.ndarray:
    """Which tests are moved by an example more than noise moves them: bool [examples, tests].

    moves: float [examples, tests]; the change of a test's final metric when an example of the pool is left out. Most examples
    do not concern most tests, so the median size of a test's moves says how large its noise is.

    By chance, normal noise counts in 0.3% of all cases if many examples are left out, and in 1.3% if 12 are, from which its
    size is known less well; noise with heavy tails (Student's t with 4 degrees of freedom) counts in 3 to 4% (see
    `moved_by_chance`).
    """
    noise = np.median(np.abs(moves), axis=0) / _NORMAL_QUARTILE
    return np.abs(moves) > MATTERS * noise


def moved_by_chance(examples: int, freedom: float | None = None) -> float:
    """The share of cases in which `moved` counts noise alone, 0 to 1, simulated.

    examples: how many are left out; freedom: degrees of freedom of Student's t, whose draws the noise is; None: normal
    """
    rng, size = np.random.default_rng(0), (examples, CHANCE_DRAWS)
    noise = rng.normal(size=size) if freedom is None else rng.standard_t(freedom, size=size)
    return float(moved(noise).mean())


def shared_words(examples: Sequence[Example], tests: Sequence[Example], pool: Sequence[Example]) -> np.ndarray:
    """Whether an example and a test have a rare word in common: bool [examples, tests].

    A word is rare if it is in `RARE` of the pool's examples at most, or in two.
    """
    occurs = Counter(word for example in pool for word in _words(example))
    rare = {word for word, count in occurs.items() if count <= max(2, RARE * len(pool))}
    left, right = ([rare & _words(example) for example in part] for part in (examples, tests))
    return np.array([[bool(one & other) for other in right] for one in left])


def _words(example: Example) -> set[str]:
    return set(re.findall(r"\w+", example.text.casefold()))


def move_ratio(moves: np.ndarray, shared: np.ndarray) -> float:
    """How many times further an example left out moves tests that share a rare word with it than others; nan if none does.

    moves: float [examples, tests]; shared: bool [examples, tests]. Near 1 means that what an example says does not matter.
    """
    sizes = np.abs(moves)
    if not shared.any() or shared.all() or not sizes[~shared].mean() > 0:
        return float("nan")
    return float(sizes[shared].mean() / sizes[~shared].mean())
