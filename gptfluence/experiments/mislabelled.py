"""Finding mislabelled training data (paper, section 4.6 and figure 7).

Some labels of a classification pool are flipped. A method scores every training example, the examples are inspected from
the highest score down, and what was flipped among them is corrected. Two questions: how many of the flips are found, and how
well does a GPT do on the tests that is trained on what was corrected?

Scores, all higher where an example is more suspect. None is told which label of the pool is right:

    tracin_cp   self-influence, sum over checkpoints k of lr_k <g_i, g_i>, g_i the gradient of example i's own loss (Pruthi
                et al., 2020); (nats per token)^2 per unit of weight, times the learning rate
    gptfluence  the example's factor on its own loss, A_ii, with its training features on both sides; no unit. With the
                option target: deviation, where A_ii says how a deviation from the mean trajectory lasts and nothing of what
                the example does to it, its additive share B_ii; nats per token
                variant "untrained": the same with the weights that its fit began with, which have learned nothing
    tangent     what the example does to its own final loss in a simulated run: its loss when its places in the curriculum
                are taken by others, minus its loss with it; nats per token
    own_loss    the example's own loss, mean over the steps of the run; nats per token
    random      nothing; its share of flips found is the exact expectation, and only its accuracies are of orders that were drawn
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gptfluence import paper
from gptfluence.common import files
from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.common.settings import canonical
from gptfluence.drawing.inspection import ACCURACY, AUC, COLUMNS, FOUND
from gptfluence.gradients.products import PARAMETERS, Replayer
from gptfluence.recording.curriculum import Curriculum, draw_curriculum
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.recording.kinds import replaced
from gptfluence.recording.record import devices
from gptfluence.recording.recorder import single_thread
from gptfluence.scoring.inspection import (
    area_under_roc,
    fraction_found,
    inspection_order,
    mean_with_interval,
    random_area,
    random_found,
)
from gptfluence.simulators.base import Simulator
from gptfluence.simulators.fitting import TableSimulator
from gptfluence.simulators.gptfluence import GPTfluence
from gptfluence.simulators.options import Variant
from gptfluence.simulators.tangent import TangentSimulator
from gptfluence.study.study import Study
from gptfluence.tasks.base import Task, TaskPool, fingerprint

FORMAT = 2
FILE = "table.parquet"
INSPECTED = (0.0, 0.2, 0.4, 1.0)

Contender = tuple[str, str]  # method, variant


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


def both_versions(wrong: TaskPool, right: TaskPool) -> TaskPool:
    """A pool with every example twice: as it is in `wrong`, and behind all of them as it is in `right`."""
    return TaskPool(wrong.name, (*wrong, *(replace(example, id=f"{example.id}/right") for example in right)))


def corrected(curriculum: Curriculum, flipped: np.ndarray, inspected: Sequence[int]) -> Curriculum:
    """The curriculum over `both_versions` with the right version of every flipped example that was inspected.

    curriculum: over the flipped pool; flipped: bool [pool]; inspected: positions in the pool
    """
    known = np.zeros(len(flipped), bool)
    known[list(inspected)] = True
    return Curriculum(curriculum.batches + len(flipped) * (known & flipped)[curriculum.batches])


def _check_labels(pool: TaskPool) -> None:
    for example in pool:
        if example.label is None or len(example.choices) < 2:
            raise ConfigurationError(
                f"{pool.name}: example {example.id!r} has no label to choose from; mislabelled data are looked for in "
                "classification tasks (rte, sst2, boolq)"
            )


# --- scores ----------------------------------------------------------------------------------------------------------------


def self_shares(simulator: TableSimulator, pool: TaskPool) -> np.ndarray:
    """float32 [pool]: what each example does to its own loss, as its share of a batch.

    A_ii, the factor on the loss before (lag 1). Of a simulator of deviations B_ii, what it adds to the deviation from the mean
    trajectory: there the deviation before is 0 on average, so that a factor on it moves nothing.
    """
    row = -1 if simulator.target == "deviation" else 0
    return np.diagonal(simulator.tables(pool=pool, tests=pool)[row]).copy()


def self_influence(
    recorder: Replayer, curriculum: Curriculum, *, parameters: str, checkpoints: int, seed: int
) -> tuple[np.ndarray, TrainingRun]:
    """float64 [pool]: sum over checkpoints of lr_k <g_i, g_i>, while training on `curriculum`; and the run itself.

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

    run = recorder.record("self-influence", curriculum, seed=seed, on_step=score)
    return total, run


def self_effects(
    simulator: Simulator, curriculum: Curriculum, pool: TaskPool, start: np.ndarray, *, seed: Sequence[int]
) -> np.ndarray:
    """float64 [pool]: how much higher each example's own final loss is without it, in simulated runs; nats per token.

    start: float [pool], the losses before training. An example's places are taken by others of the curriculum
    (`recording.kinds.replaced`), which are drawn by `seed` and the example's position alone.
    """
    without = [replaced(curriculum, [row], np.random.default_rng([*seed, row])) for row in range(len(pool))]
    simulated = simulator.simulate([curriculum, *without], start[None, None], pool=pool, tests=pool)[:, -1]
    return np.diagonal(simulated[1:]).astype(np.float64) - simulated[0]


# --- the experiment --------------------------------------------------------------------------------------------------------


class Experiment:
    """One seed: which labels are flipped, and the order of training. Everything made is kept and found again.

    Trained at the campaign's own rates, in its batches and epochs. Pool and tests are the study's; the pool is cut to
    `curriculum.subset_size`, and every training that is inspected or tested shows all of it. Simulators are fitted on `runs`
    (and one to validate) recorded on the flipped pool, each on three quarters of it.
    """

    def __init__(
        self,
        study: Study,
        task: str = "sst2",
        *,
        seed: int = 0,
        flipped_fraction: float = 0.4,
        runs: int = 6,
        tests: int = 200,
        checkpoints: int = 10,
        parameters: str = "last_layer",
    ) -> None:
        """tests: how many examples accuracies are measured on; simulators are fitted on the profile's own, the first of them.

        Raises ConfigurationError as `flip_labels`, and for numbers that are out of range.
        """
        for name, value in (("runs", runs), ("tests", tests), ("checkpoints", checkpoints)):
            if value < 1:
                raise ConfigurationError(f"mislabelled: {name} must be 1 or more, not {value}")
        if parameters not in PARAMETERS:
            raise ConfigurationError(unknown("value", parameters, PARAMETERS, where="mislabelled: parameters: "))
        chosen = study.campaign("fine_tuning", task)
        curriculum = chosen.setting.curriculum
        size, batch = curriculum.subset_size, curriculum.batch_size
        pool, fitted_on = study.texts.known(task)
        _check_labels(fitted_on)
        rng = np.random.default_rng([study.profile.seed, seed])
        self.right = TaskPool(pool.name, pool[:size])
        flipped_pool, self.flipped = flip_labels(self.right, flipped_fraction, rng)
        self.flipped_fraction = flipped_fraction
        self.task = Task(task, flipped_pool, fitted_on)
        self.curriculum = draw_curriculum(size, subset=size, batch=batch, epochs=curriculum.epochs, rng=rng)
        self.seed, self.checkpoints, self.parameters = seed, checkpoints, parameters
        self.campaign = chosen.with_(
            metrics=["loss"],
            record_pool=False,
            subset_size=max(batch, size * 3 // 4 // batch * batch),
            runs={"train": runs, "validation": 1, "test": 0},
            texts=self.task,
        )
        # of a larger draw of tests the profile's are the first
        tested = study.with_overrides(f"tasks.{task}.test_size={tests}").texts.known(task).tests
        versions = Task(task, both_versions(flipped_pool, self.right), tested)
        self.retraining = chosen.with_(metrics=["loss", "accuracy"], record_pool=False, texts=versions)
        self._study, self._model = study, study.model(chosen.model)

    @cached_property
    def scores(self) -> dict[Contender, np.ndarray]:
        """Of each contender but random, float [pool]; higher where an example is more suspect."""
        pool, run = self.task.pool, self._along_training
        fitted = self._gptfluence
        found: dict[Contender, np.ndarray] = {
            ("tracin_cp", ""): run["self_influence"].to_numpy(),
            ("gptfluence", ""): self_shares(fitted, pool),
            ("gptfluence", "untrained"): self_shares(fitted.untrained(), pool),
        }
        if "tangent" in self._study.profile.simulators:
            found["tangent", ""] = self._self_effects
        found["own_loss", ""] = run["own_loss"].to_numpy()
        return found

    def found(self) -> pd.DataFrame:
        """The share of flips found by each contender but random: columns series, variant, x (share inspected), value."""
        counts = np.arange(len(self.task.pool) + 1)
        frames = []
        for (method, variant), scores in self.scores.items():
            values = fraction_found(inspection_order(scores), self.flipped, counts)
            frames.append(
                pd.DataFrame({"series": method, "variant": variant, "x": counts / counts[-1], "value": values})
            )
        return pd.concat(frames, ignore_index=True)

    def area(self) -> pd.DataFrame:
        """The area under the ROC curve of each contender but random: columns series, variant, value."""
        rows = [(*contender, area_under_roc(scores, self.flipped)) for contender, scores in self.scores.items()]
        return pd.DataFrame(rows, columns=["series", "variant", "value"])

    def accuracy(self, inspected: Sequence[float] = INSPECTED) -> pd.DataFrame:
        """Test accuracy after correcting and retraining: columns series, variant, x (share inspected), value (0-1).

        Every retraining starts from the same weights and shows the same examples in the same batches; only labels differ.
        """
        if not all(0 <= fraction <= 1 for fraction in inspected):
            raise ConfigurationError(f"mislabelled: inspected must be fractions from 0 to 1, not {list(inspected)}")
        rng = np.random.default_rng([self._study.profile.seed, self.seed, 1])
        scores = {**self.scores, ("random", ""): rng.random(len(self.flipped))}
        curricula = {
            (*contender, float(fraction)): corrected(
                self.curriculum, self.flipped, inspection_order(values)[: round(fraction * len(values))].tolist()
            )
            for contender, values in scores.items()
            for fraction in inspected
        }
        ends = self._ends(list(curricula.values()))
        rows = [(*key, ends[curriculum][1]) for key, curriculum in curricula.items()]
        return pd.DataFrame(rows, columns=["series", "variant", "x", "value"])

    def accuracies(self) -> dict[str, float]:
        """Test accuracy, 0-1: before training, after training with the flipped labels, and with all of them right."""
        flipped, right = (corrected(self.curriculum, self.flipped, rows) for rows in ([], range(len(self.flipped))))
        ends = self._ends([flipped, right])
        return {"before": ends[flipped][0], "flipped": ends[flipped][1], "right": ends[right][1]}

    @property
    def dynamics(self) -> GPTDynamics:
        """The runs on the flipped pool that simulators are fitted on."""
        return self.campaign.dynamics()

    def _ends(self, curricula: Sequence[Curriculum]) -> dict[Curriculum, tuple[float, float]]:
        """Test accuracy, 0-1, before and after training on each of these curricula over both versions of the pool."""
        recorded = self.retraining.record(curricula, ends_only=True)  # equal ones once
        means = [run.trajectories["accuracy"].mean(axis=1, dtype=np.float64) for run in recorded.runs]
        return {
            run.curriculum: (float(mean[0]), float(mean[-1])) for run, mean in zip(recorded.runs, means, strict=True)
        }

    @property
    def score_of_gptfluence(self) -> str:
        """What GPTfluence's score is, for a caption."""
        if self._gptfluence.target == "deviation":
            return "what an example adds to its own loss's deviation from the mean trajectory (B_ii)"
        return "an example's factor on its own loss (A_ii)"

    @property
    def _gptfluence(self) -> GPTfluence:
        return self.campaign.simulator("gptfluence")  # type: ignore[return-value]

    @cached_property
    def _along_training(self) -> pd.DataFrame:
        """Of each example of the pool, in a run on it: self_influence, own_loss, and before (its loss before training)."""
        one = TaskPool(self.task.tests.name, self.task.tests[:1])  # tests are not asked about, and take time to measure
        recording = self.campaign.setting.recording.model_copy(update={"record_pool": True})

        def compute() -> dict[str, np.ndarray]:
            with (
                single_thread(),
                Replayer(self._model.load(), self.task.pool, one, recording, device=devices()[0]) as recorder,
            ):
                influence, run = self_influence(
                    recorder,
                    self.curriculum,
                    parameters=self.parameters,
                    checkpoints=self.checkpoints,
                    seed=self.seed,
                )
            losses = run.pool_trajectories["loss"]
            own = losses[1:].mean(axis=0, dtype=np.float64)
            return {"self_influence": influence, "own_loss": own, "before": losses[0]}

        return self._kept("along-training", [canonical(recording), self.parameters, self.checkpoints], compute)

    @property
    def _linearisation(self) -> Variant:
        """The tangent simulator with its options in this setting, without corrections."""
        return self.campaign.variant("tangent").with_(use_corrections=False)

    @property
    def _self_effects(self) -> np.ndarray:
        """float64 [pool]: `self_effects` by the linearisation alone; corrections learned from runs would move all runs alike."""
        variant = self._linearisation

        def compute() -> dict[str, np.ndarray]:
            start = self._along_training["before"].to_numpy()
            seed = [self._study.profile.seed, self.seed, 2]
            with single_thread():
                effects = self_effects(
                    self.campaign.simulator(variant), self.curriculum, self.task.pool, start, seed=seed
                )
            return {"self_effect": effects}

        options = [variant.options.model_dump(mode="json"), TangentSimulator.format]
        table = self._kept("self-effects", [*options, self.dynamics.provenance["runs"]], compute)
        return table["self_effect"].to_numpy()

    def _kept(self, what: str, depends_on: list, make: Callable[[], dict]) -> pd.DataFrame:
        """The table that `make` returns, from the artifacts if it was made before."""
        identity = {
            "model": self._model.identity(),
            "recording": canonical(self.campaign.setting.recording),
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


# --- all seeds -------------------------------------------------------------------------------------------------------------


def results(experiments: Sequence[Experiment], inspected: Sequence[float] = INSPECTED) -> pd.DataFrame:
    """All that figure 7 shows, with the columns that `drawing.inspection` draws from.

    A row with a `repeat` is of that seed (of the flips found, whose curves are long, there are none). A row without one is
    the mean over seeds with its interval (for five seeds at least). Of series "random" it is the exact expectation with the
    range of single orders, but for accuracies, which are measured. Of series "paper" it is what the paper reports.
    """
    frames = []
    for one in experiments:
        parts = {FOUND: one.found(), ACCURACY: one.accuracy(inspected), AUC: one.area().assign(x=np.nan)}
        for panel, part in parts.items():
            frames.append(part.assign(flipped=one.flipped_fraction, panel=panel, repeat=one.seed))
    seeds = pd.concat(frames, ignore_index=True)
    by = ["flipped", "panel", "series", "variant", "x"]
    means = [(*key, *mean_with_interval(rows["value"])) for key, rows in seeds.groupby(by, sort=False, dropna=False)]
    summary = pd.DataFrame(means, columns=[*by, "value", "low", "high"])
    frame = pd.concat([summary, *map(_known, _one_of_each(experiments)), seeds[seeds["panel"] != FOUND]])
    return frame.astype({"repeat": "Int64"})[list(COLUMNS)].reset_index(drop=True)


def _one_of_each(experiments: Sequence[Experiment]) -> list[Experiment]:
    return list({one.flipped_fraction: one for one in experiments}.values())


def _known(one: Experiment) -> pd.DataFrame:
    """What needs no seed: random inspection, and the accuracy that the paper reports, where it flips as many labels."""
    pool, flipped = len(one.flipped), int(one.flipped.sum())
    area = dict(zip(("value", "low", "high"), random_area(pool, flipped), strict=True))
    parts = [
        random_found(pool, flipped).assign(panel=FOUND, series="random"),
        pd.DataFrame([area]).assign(panel=AUC, series="random"),
    ]
    theirs = paper.hyperparameters()["mislabelled"]
    if (one.task.name, one.flipped_fraction) == (theirs["dataset"], theirs["flipped_fraction"]):
        row = {"panel": ACCURACY, "series": "paper", "x": 0.0, "value": theirs["initial_accuracy"]}
        parts.append(pd.DataFrame([row]))
    return pd.concat(parts).assign(flipped=one.flipped_fraction, variant="")


def accuracies(experiments: Sequence[Experiment]) -> pd.DataFrame:
    """Mean test accuracy (0-1) over seeds: rows by the share of labels flipped, columns before, flipped, right."""
    rows = [{"share": one.flipped_fraction, **one.accuracies()} for one in experiments]
    return pd.DataFrame(rows).groupby("share", sort=False).mean()
