"""Finding mislabelled training data (paper, section 4.6 and figure 7).

Some labels of a classification pool are flipped. A method scores every training example, the examples are inspected from
the highest score down, and what was flipped among them is corrected. Two questions: how many of the flips are found, and how
well does a GPT do on the tests that is trained on what was corrected?

Scores, all higher where an example is more suspect:

    tracin_cp   self-influence, sum over checkpoints k of lr_k <g_i, g_i>, g_i the gradient of example i's own loss (Pruthi
                et al., 2020); (nats per token)^2 per unit of weight, times the learning rate
    gptfluence  the example's factor on its own loss, A_ii, with its training features on both sides; no unit
    random      nothing
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gptfluence.common import files
from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.common.settings import canonical
from gptfluence.gradients.products import PARAMETERS, Replayer
from gptfluence.models.gpt import GPT
from gptfluence.recording.curriculum import Curriculum, draw_curriculum
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.record import devices
from gptfluence.recording.recorder import Recorder, single_thread
from gptfluence.simulators.fitting import TableSimulator
from gptfluence.study.study import Study
from gptfluence.tasks.base import Task, TaskPool, fingerprint

METHODS = ("tracin_cp", "gptfluence", "random")
FORMAT = 1
FILE = "table.parquet"


# --- flipping and correcting ----------------------------------------------------------------------------------------------


def flip_labels(pool: TaskPool, fraction: float, rng: np.random.Generator) -> tuple[TaskPool, np.ndarray]:
    """The pool with that fraction of its labels, rounded, replaced by another of the example's choices.

    Returns the new pool (same ids, same order) and which examples were flipped, bool [pool].
    Raises ConfigurationError if the pool is no classification, all its labels are one, or none or all would be flipped.
    """
    _check_labels(pool)
    if len({example.label for example in pool}) == 1:
        raise ConfigurationError(
            f"{pool.name}: all {len(pool)} examples have the label {pool[0].target.strip()!r}; flipping shows nothing where "
            "there is one class; use a pool with two at least"
        )
    count = round(fraction * len(pool)) if 0 <= fraction <= 1 else -1
    if not 0 < count < len(pool):
        raise ConfigurationError(
            f"{pool.name}: a fraction of {fraction} of {len(pool)} examples flips {'none' if count == 0 else 'too many'}; "
            "choose one between 0 and 1 that flips some and leaves some"
        )
    flipped = np.zeros(len(pool), bool)
    flipped[rng.choice(len(pool), count, replace=False)] = True
    examples = []
    for example, wrong in zip(pool, flipped, strict=True):
        others = [label for label in range(len(example.choices)) if label != example.label]
        examples.append(example.with_label(int(rng.choice(others))) if wrong else example)
    return TaskPool(pool.name, tuple(examples)), flipped


def corrected(pool: TaskPool, right: TaskPool, inspected: Sequence[int]) -> TaskPool:
    """`pool` with the examples at these positions as they are in `right`."""
    examples = list(pool)
    for row in inspected:
        examples[row] = right[row]
    return TaskPool(pool.name, tuple(examples))


def _check_labels(pool: TaskPool) -> None:
    for example in pool:
        if example.label is None or len(example.choices) < 2:
            raise ConfigurationError(
                f"{pool.name}: example {example.id!r} has no label to choose from; mislabelled data are looked for in "
                "classification tasks (rte, sst2, boolq)"
            )


# --- scores and what comes of them -----------------------------------------------------------------------------------------


def inspection_order(scores: np.ndarray) -> np.ndarray:
    """int [pool]: positions from the highest score to the lowest; of equal ones the earlier example first."""
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")


def fraction_found(order: np.ndarray, flipped: np.ndarray, inspected: Sequence[int]) -> np.ndarray:
    """float [len(inspected)]: the share of all flipped examples among the first so many of `order`.

    order: int [pool]; flipped: bool [pool]. Raises ConfigurationError if nothing was flipped.
    """
    if not flipped.any():
        raise ConfigurationError("mislabelled: no example is flipped, so there is none to be found; flip some")
    return np.concatenate([[0], np.cumsum(flipped[order])])[list(inspected)] / flipped.sum()


def self_factors(simulator: TableSimulator, pool: TaskPool) -> np.ndarray:
    """float32 [pool]: A_ii, what each example multiplies its own loss by, as its share of a batch (lag 1)."""
    return np.diagonal(simulator.tables(pool=pool, tests=pool)[0]).copy()


def self_influence(
    recorder: Replayer, curriculum: Curriculum, *, parameters: str, checkpoints: int, seed: int
) -> np.ndarray:
    """float64 [pool]: sum over checkpoints of lr_k <g_i, g_i>, while training on `curriculum`.

    checkpoints: how many, evenly spaced over the states before each update; parameters: see `gradients.products.chosen_parameters`
    """
    gradients = recorder.gradients(parameters)
    states = set(np.linspace(0, curriculum.steps - 1, checkpoints).round().astype(int).tolist())
    rates = recorder.recording.optimizer.learning_rates(curriculum.steps)
    total = np.zeros(len(recorder.pool))

    def score(state: int) -> None:
        nonlocal total
        if state in states:
            total += rates[state] * recorder.squared_norms(gradients).double().numpy()

    recorder.record("self-influence", curriculum, seed=seed, on_step=score)
    return total


# --- the experiment --------------------------------------------------------------------------------------------------------


class Experiment:
    """One seed: which labels are flipped, and the order of training. Everything made is kept and found again.

    Pool and tests are the study's; the pool is cut to `curriculum.subset_size`, and every training shows all of it in the
    setting's batches and epochs. GPTfluence is fitted on `runs` (and one to validate) recorded on the flipped pool, each on
    three quarters of it.
    """

    def __init__(
        self,
        study: Study,
        task: str = "sst2",
        *,
        seed: int = 0,
        flipped_fraction: float = 0.4,
        runs: int = 8,
        checkpoints: int = 10,
        parameters: str = "last_layer",
        learning_rate_factor: float = 1.0,
    ) -> None:
        """learning_rate_factor: of every training here, times the setting's rate (in the paper 1e-6 instead of 5e-7).

        Raises ConfigurationError: see `flip_labels`, and for numbers that are out of range."""
        for name, value in (("runs", runs), ("checkpoints", checkpoints)):
            if value < 1:
                raise ConfigurationError(f"mislabelled: {name} must be 1 or more, not {value}")
        if not learning_rate_factor > 0:
            raise ConfigurationError(f"mislabelled: learning_rate_factor must be positive, not {learning_rate_factor}")
        if parameters not in PARAMETERS:
            raise ConfigurationError(unknown("value", parameters, PARAMETERS, where="mislabelled: parameters: "))
        chosen = study.campaign("fine_tuning", task)
        curriculum, recording = chosen.setting.curriculum, chosen.setting.recording
        size, batch = curriculum.subset_size, curriculum.batch_size
        pool, tests = study.texts.known(task)
        _check_labels(tests)
        rng = np.random.default_rng([study.profile.seed, seed])
        self.right = TaskPool(pool.name, pool[:size])
        flipped_pool, self.flipped = flip_labels(self.right, flipped_fraction, rng)
        self.task = Task(task, flipped_pool, tests)
        self.curriculum = draw_curriculum(
            len(flipped_pool),
            subset=len(flipped_pool) // batch * batch,
            batch=batch,
            epochs=curriculum.epochs,
            rng=rng,
        )
        self.seed, self.checkpoints, self.parameters = seed, checkpoints, parameters
        rate = recording.optimizer.learning_rate * learning_rate_factor
        self.campaign = chosen.with_(
            learning_rate=rate,
            subset_size=max(batch, size * 3 // 4 // batch * batch),
            runs={"train": runs, "validation": 1, "test": 0},
            texts=self.task,
        )
        self._study = study
        self._recording = self.campaign.setting.recording.model_copy(update={"record_pool": False})
        self._model = study.model(chosen.model)

    def scores(self) -> dict[str, np.ndarray]:
        """Of each method, float [pool]; higher where an example is more suspect."""
        rng = np.random.default_rng([self._study.profile.seed, self.seed, 1])
        return {
            "tracin_cp": self._self_influence(),
            "gptfluence": self_factors(self._simulator(), self.task.pool),
            "random": rng.random(len(self.task.pool)),
        }

    def found(self) -> pd.DataFrame:
        """How many of the flips are found: columns seed, method, inspected (fraction of the pool), value (fraction)."""
        counts = np.arange(len(self.task.pool) + 1)
        frames = [
            pd.DataFrame(
                {
                    "seed": self.seed,
                    "method": method,
                    "inspected": counts / len(self.task.pool),
                    "value": fraction_found(inspection_order(scores), self.flipped, counts),
                }
            )
            for method, scores in self.scores().items()
        ]
        return pd.concat(frames, ignore_index=True)

    def accuracy(self, inspected: Sequence[float] = (0, 0.2, 0.4, 0.6, 0.8, 1)) -> pd.DataFrame:
        """Test accuracy after correcting and retraining: columns seed, method, inspected, value (0-1).

        Every retraining starts from the same weights and shows the same batches; only labels differ.
        """
        if not all(0 <= fraction <= 1 for fraction in inspected):
            raise ConfigurationError(f"mislabelled: inspected must be fractions from 0 to 1, not {list(inspected)}")
        orders = {method: inspection_order(scores) for method, scores in self.scores().items()}
        counts = [round(fraction * len(self.task.pool)) for fraction in inspected]
        pools = {
            (method, fraction): corrected(self.task.pool, self.right, order[:count].tolist())
            for method, order in orders.items()
            for fraction, count in zip(inspected, counts, strict=True)
        }
        distinct = {pool.fingerprint: pool for pool in pools.values()}

        def retrain() -> dict[str, list]:
            return {"pool": list(distinct), "accuracy": [self._retrained(pool) for pool in distinct.values()]}

        table = self._kept("accuracy", [sorted(distinct)], retrain)
        values = dict(zip(table["pool"], table["accuracy"], strict=True))
        rows = [
            (self.seed, method, float(fraction), values[pool.fingerprint]) for (method, fraction), pool in pools.items()
        ]
        return pd.DataFrame(rows, columns=["seed", "method", "inspected", "value"])

    @property
    def dynamics(self) -> GPTDynamics:
        """The runs on the flipped pool that GPTfluence is fitted on."""
        return self.campaign.dynamics()

    def _simulator(self) -> TableSimulator:
        return self.campaign.simulator("gptfluence")  # type: ignore[return-value]

    def _self_influence(self) -> np.ndarray:
        one = TaskPool(self.task.tests.name, self.task.tests[:1])  # tests are not asked about, and take time to measure

        def compute() -> dict[str, np.ndarray]:
            with (
                single_thread(),
                Replayer(self._gpt, self.task.pool, one, self._recording, device=devices()[0]) as recorder,
            ):
                scores = self_influence(
                    recorder,
                    self.curriculum,
                    parameters=self.parameters,
                    checkpoints=self.checkpoints,
                    seed=self.seed,
                )
            return {"self_influence": scores}

        table = self._kept("self_influence", [self.parameters, self.checkpoints], compute)
        return table["self_influence"].to_numpy()

    def _retrained(self, pool: TaskPool) -> float:
        """Test accuracy, 0-1, after a training that shows this pool."""
        options = {"metrics": ("loss", "accuracy"), "device": devices()[0]}
        with (
            single_thread(),
            Recorder(self._gpt, pool, self.task.tests, self._recording, **options) as recorder,
        ):
            run = recorder.record(f"retrained-{pool.fingerprint}", self.curriculum, seed=self.seed, ends_only=True)
        return float(run.trajectories["accuracy"][-1].mean(dtype=np.float64))

    @cached_property
    def _gpt(self) -> GPT:
        return self._model.load()

    def _kept(self, what: str, depends_on: list, make: Callable[[], dict]) -> pd.DataFrame:
        """The table that `make` returns, from the artifacts if it was made before."""
        identity = {
            "model": self._model.identity(),
            "recording": canonical(self._recording),
            "task": self.task.fingerprint,
            "curriculum": self.curriculum.fingerprint,
            "seed": self.seed,
            "depends_on": depends_on,
            "format": FORMAT,
        }
        name = f"{what}-{self.task.name}-{self._model.name}-{self.seed}-{fingerprint(identity)[:8]}"
        folder: Path = self._study.artifacts / "mislabelled" / name

        def save(new: Path) -> None:
            pq.write_table(pa.table(make()), new / FILE, compression="zstd")
            files.write_json(new / "identity.json", identity)

        files.made(folder, save, what=f"mislabelled {what}")
        return pq.read_table(folder / FILE).to_pandas()
