"""Runs unlike those that simulators are fitted on, really recorded, and what every simulator says of them.

Kinds of curricula are those of `dynamics.shifts`, and two changes of the training itself: `faster` (learning rate doubled)
and `longer` (twice the epochs; the schedule stretches with it). Simulators that know of the optimizer are told of both.
Unseen are test examples (simulators are fitted on every other one and asked about the rest, then the other way round) or
the whole pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from gptfluence.common.errors import ConfigurationError, OutOfReachError, unknown
from gptfluence.recording import kinds
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.settings import Recording
from gptfluence.recording.text_metrics import TEXT_METRICS
from gptfluence.scoring import deviations, evaluation
from gptfluence.simulators import METHODS
from gptfluence.study.study import Study
from gptfluence.tasks.base import fingerprint

SETTING = "fine_tuning"
TRAINING = {"faster": "drawn alike, learning rate doubled", "longer": "drawn alike, twice as many epochs"}
KINDS = {**kinds.KINDS, **TRAINING}
UNSEEN = {
    "unseen_tests": "drawn alike; simulators are fitted on every other test example and asked about the rest, both ways",
    "unseen_pool": "drawn alike from training examples that no simulator was fitted on",
}
SIMULATORS = ("persistence", "mean_trajectory", "simfluence", "gptfluence", "low_rank", "tangent")
CEILING = "ceiling"
ONE_RUN = "one_run"  # of unseen tests: what the first training run recorded of them, as a prediction
COLUMNS = ["setting", "model", "task", "metric", "curricula", "simulator", "runs", "statistic", "value", "low", "high"]


def chosen_tasks(study: Study, tasks: Sequence[str] = ()) -> list[str]:
    """These tasks; of none given SST-2 and WebNLG (labels, and free text), as far as the setting has them, else its first."""
    tested = study.tested(SETTING, "loss")
    return list(tasks) or [task for task in ("sst2", "webnlg") if task in tested] or tested[:1]


def losses_only(study: Study) -> Study:
    """The study with nothing recorded but losses: its further runs need no generated texts."""
    return study.with_overrides(f"settings.{SETTING}.metrics=[loss]")


def draw(study: Study, task: str, kind: str, runs: int, *, model: str | None = None) -> list[Curriculum]:
    """`runs` curricula of a kind over a task's pool, with the profile's numbers; each has a seed of its own.

    Raises ConfigurationError for an unknown kind, or one that cannot be drawn from this pool.
    """
    if kind not in KINDS:
        raise ConfigurationError(unknown("kind of curriculum", kind, KINDS))
    setting = study.setting(SETTING)
    numbers = setting.curriculum.for_model(model or setting.model)
    pool = study.dynamics(SETTING, task, model=model).pool
    epochs = numbers.epochs * (2 if kind == "longer" else 1)
    shape = {"subset": numbers.subset_size, "batch": numbers.batch_size, "epochs": epochs}
    drawn = "alike" if kind in TRAINING else kind
    seeds = [[study.profile.seed, seed_of(task, kind, k)] for k in range(runs)]
    return [kinds.draw_kind(drawn, pool, **shape, rng=np.random.default_rng(seed)) for seed in seeds]


def seed_of(*parts: object) -> int:
    """A seed of its own for each thing drawn, from what it is called."""
    return int(fingerprint(list(parts)), 16) % 2**32


def record(study: Study, task: str, kind: str, runs: int, *, model: str | None = None) -> GPTDynamics:
    """Recorded runs of a kind, with their losses.

    Of `KINDS`, or `UNSEEN`. `alike` and `unseen_tests`: the study's held-out runs, all of them; `unseen_pool`: the profile's
    runs on a pool kept apart.

    Raises ConfigurationError as `draw`, for a number of runs below 1, and where no pool is kept apart.
    """
    if runs < 1:
        raise ConfigurationError(f"shifted: runs must be 1 or more, not {runs}")
    if kind in ("alike", "unseen_tests"):
        return held_out(study, task, model=model)
    if kind == "unseen_pool":
        return study.unseen_dynamics(SETTING, task, unseen="training", model=model).for_metric("loss")
    curricula = draw(study, task, kind, runs, model=model)
    other = losses_only(study)
    if kind == "faster":
        rate = float(study.setting(SETTING).recording.optimizer.for_one(task).learning_rate)  # type: ignore[arg-type]
        other = other.with_overrides(f"settings.{SETTING}.recording.optimizer.learning_rate={2 * rate!r}")
    return other.record(curricula, SETTING, task, model=model)


def held_out(study: Study, task: str, *, metric: str = "loss", model: str | None = None) -> GPTDynamics:
    """The study's held-out runs. Raises ConfigurationError if there are none."""
    test = study.dynamics(SETTING, task, model=model, metric=metric).split()[2]
    if not len(test):
        raise ConfigurationError(
            f"profile {study.profile.name!r}: settings.{SETTING}.runs.test is 0; one held-out run at least is needed"
        )
    return test


class Answers(NamedTuple):
    """predicted: simulator -> float32 [runs, steps + 1, tests]; refused: simulator -> why it cannot say."""

    predicted: dict[str, np.ndarray]
    refused: dict[str, str]


def simulate(
    study: Study,
    task: str,
    asked: Sequence[GPTDynamics],
    simulators: Sequence[str],
    *,
    metric: str = "loss",
    model: str | None = None,
    fitted_on: Sequence[int] | None = None,
) -> list[Answers]:
    """What simulators fitted on the study's training runs predict for each of `asked`, sets of runs, from their first values.

    Each simulator is loaded once, and none while another is (some hold gigabytes). They refuse runs longer than the fitted
    ones, or with examples that they were not fitted on, if these are out of their reach.

    fitted_on: positions of the test examples that simulators are fitted on, if not on all
    """
    answers = [Answers({}, {}) for _ in asked]
    recordings = [Recording.model_validate(recorded.provenance["spec"]["recording"]) for recorded in asked]
    optimizers = [recording.optimizer.for_one(task) for recording in recordings]
    starts = [recorded.trajectories(metric)[:, :1] for recorded in asked]
    for name in simulators if asked else ():
        fitted = study.simulator(name, SETTING, task, metric=metric, model=model, tests=fitted_on)
        for recorded, optimizer, start, answer in zip(asked, optimizers, starts, answers, strict=True):
            try:
                answer.predicted[name] = fitted.trained_with(optimizer).simulate(
                    recorded.curricula, start, pool=recorded.pool, tests=recorded.tests
                )
            except OutOfReachError as error:
                answer.refused[name] = str(error)
        del fitted  # before the next is loaded
    return answers


def simulate_unseen(
    study: Study, task: str, recorded: GPTDynamics, simulators: Sequence[str], *, model: str | None = None
) -> Answers:
    """As `simulate`, for one set of runs, but every test example by simulators that were fitted on every other one, without it.

    Raises ConfigurationError if there is one test example only.
    """
    count = len(recorded.tests)
    if count < 2:
        raise ConfigurationError(f"{task}: one test example; unseen_tests needs two, to be fitted on one of them")
    predicted: dict[str, np.ndarray] = {}
    reasons = {name: METHODS[study.variant(name).kind].load().refuses_unseen for name in simulators}
    refused = {name: reason for name, reason in reasons.items() if reason}  # no need to fit those
    fitting = [name for name in simulators if name not in refused]
    halves = range(0, count, 2), range(1, count, 2)
    for fitted_on, others in (halves, halves[::-1]):
        [found] = simulate(study, task, [recorded.of_tests(others)], fitting, model=model, fitted_on=fitted_on)
        refused |= found.refused
        for name, values in found.predicted.items():
            whole = predicted.setdefault(name, np.full((*values.shape[:2], count), np.nan, np.float32))
            whole[:, :, others] = values
    return Answers({name: values for name, values in predicted.items() if name not in refused}, refused)


def mean_trajectory(train: GPTDynamics, steps: int, metric: str = "loss") -> np.ndarray:
    """The mean training trajectory, float64 [steps + 1, tests]; beyond its end its last value stands."""
    mean = train.trajectories(metric).mean(axis=0, dtype=np.float64)
    return mean[np.minimum(np.arange(steps + 1), len(mean) - 1)]


def statistics(
    predicted: np.ndarray, recorded: GPTDynamics, mean: np.ndarray, *, metric: str = "loss"
) -> dict[str, deviations.Interval]:
    """What is reported of predictions for some runs, each with its interval over runs.

    all_steps_mse and mse_mean_trajectory (metric's unit squared), r2_dev, final_step_spearman, change_spearman,
    deviation_spearman (see `deviations`); diverged counts trajectories.
    """
    truth = recorded.trajectories(metric)
    frame = evaluation.evaluate(predicted, recorded, metric=metric, reference=mean)
    each = frame.pivot(index="run", columns="statistic", values="value").loc[recorded.names]
    mse, of_mean = each["all_steps_mse"].to_numpy(), each["mse_mean_trajectory"].to_numpy()
    diverged = float(each["diverged"].sum())
    return {
        "r2_dev": deviations.explained_deviation(mse, of_mean),
        "all_steps_mse": deviations.mean_over_runs(mse),
        "mse_mean_trajectory": deviations.mean_over_runs(of_mean),
        "final_step_spearman": deviations.mean_over_runs(each["final_step_spearman"].to_numpy()),
        "change_spearman": deviations.mean_over_runs(deviations.change_spearman(predicted, truth)),
        "deviation_spearman": deviations.mean_over_runs(deviations.deviation_spearman(predicted, truth, mean[-1])),
        "diverged": deviations.Interval(diverged, diverged, diverged),
    }


def difference(
    predicted: np.ndarray, other: np.ndarray, recorded: GPTDynamics, mean: np.ndarray
) -> deviations.Interval:
    """R2_dev of `predicted` less that of `other`; the same runs are drawn again for both, so that what they share cancels.

    predicted, other: float [runs, steps + 1, tests]; mean: float [steps + 1, tests]
    """
    truth = recorded.trajectories("loss").astype(np.float64)
    left, right, of_mean = (np.square(v - truth)[:, 1:].mean(axis=(1, 2)) for v in (predicted, other, mean))
    return deviations.explained_deviation(of_mean + left - right, of_mean)


def explained(
    study: Study,
    tasks: Sequence[str],
    kinds: Sequence[str],
    simulators: Sequence[str],
    *,
    runs: int,
    models: Sequence[str | None] = (None,),
    against: str | None = None,
) -> tuple[pd.DataFrame, list[GPTDynamics]]:
    """Every simulator on every kind of curriculum of every task and model; no `unseen_pool` of tasks that keep none apart.

    Returns a tidy frame with `COLUMNS` and `undefined` (runs without a value; all of them where a simulator refuses runs
    of this length, or unseen examples), and the recorded runs it is computed from. `runs`: of each kind but `alike` and the
    unseen ones, whose runs are the profile's. models: the setting's first, if none is given. against: one of `simulators`, with
    which all others are compared (statistic r2_dev_difference, see `difference`). On unseen tests the rows "one_run"
    say what the first training run is worth, to judge those by that train it again to measure these tests.
    """
    rows, sources = [], []
    for model, task in product(models or (None,), tasks):
        dynamics = study.dynamics(SETTING, task, model=model, metric="loss")
        sources.append(dynamics)
        runs_of = {
            kind: record(study, task, kind, runs, model=model)
            for kind in kinds
            if kind != "unseen_pool" or study.keeps_unseen(task)
        }
        # runs of the others are of `dynamics`
        sources += [recorded for kind, recorded in runs_of.items() if kind not in ("alike", "unseen_tests")]
        seen = [kind for kind in runs_of if kind != "unseen_tests"]
        answers = dict(
            zip(seen, simulate(study, task, [runs_of[kind] for kind in seen], simulators, model=model), strict=True)
        )
        for kind, recorded in runs_of.items():
            methods = list(simulators)
            # of unseen tests, too, 0 is their own mean
            mean = mean_trajectory(dynamics.split()[0], recorded.curricula[0].steps)
            if kind == "unseen_tests":
                predicted, refused = simulate_unseen(study, task, recorded, simulators, model=model)
                first = dynamics.split()[0].trajectories("loss")[:1]
                predicted[ONE_RUN] = np.broadcast_to(first, (len(recorded), *first.shape[1:]))
                methods.append(ONE_RUN)
            else:
                predicted, refused = answers[kind]
            for name in methods:
                common = (SETTING, dynamics.model, task, "loss", kind, name, len(recorded))
                if name in refused:
                    rows.append((*common, "r2_dev", *[float("nan")] * 3, len(recorded)))
                    continue
                found = statistics(predicted[name], recorded, mean)
                if against in predicted and name != against:
                    found["r2_dev_difference"] = difference(predicted[name], predicted[against], recorded, mean)
                rows += [(*common, key, *interval) for key, interval in found.items()]
    return pd.DataFrame(rows, columns=[*COLUMNS, "undefined"]), sources


def other_metrics(
    study: Study,
    tasks: Sequence[str],
    metrics: Sequence[str],
    simulators: Sequence[str],
    *,
    models: Sequence[str | None] = (None,),
) -> tuple[pd.DataFrame, list[GPTDynamics]]:
    """Every simulator on the held-out runs, for those of `metrics` that the study records of each task.

    Of a score of sampled texts part is luck (of sampling, and of dropout where there is some), which nobody can predict: the
    rows "ceiling" say what is left, from the held-out runs recorded once more with other random numbers, whose scores differ
    by that luck twice. Returns a frame with
    `COLUMNS` and `undefined`, and the recorded runs.
    """
    rows, sources = [], []
    for model, task in product(models or (None,), tasks):
        for metric in metrics:
            if metric not in study.setting(SETTING).metrics or task not in study.tested(SETTING, metric):
                continue
            dynamics = study.dynamics(SETTING, task, model=model, metric=metric)
            test = held_out(study, task, metric=metric, model=model)
            sources.append(dynamics)
            mean = mean_trajectory(dynamics.split()[0], test.curricula[0].steps, metric)
            [(predicted, _)] = simulate(study, task, [test], simulators, metric=metric, model=model)
            for name in simulators:
                common = (SETTING, dynamics.model, task, metric, "alike", name, len(test))
                found = statistics(predicted[name], test, mean, metric=metric)
                rows += [(*common, key, *interval) for key, interval in found.items()]
            if metric in TEXT_METRICS and study.setting(SETTING).generation.temperature > 0:
                again = study.record(test.curricula, SETTING, task, model=model).for_metric(metric)
                sources.append(again)
                common = (SETTING, dynamics.model, task, metric, "alike", CEILING, len(test), "r2_dev")
                first = study.setting(SETTING).generation.every
                rows.append((*common, *_ceiling(again, test, mean, metric, first=first)))
    return pd.DataFrame(rows, columns=[*COLUMNS, "undefined"]), sources


def _ceiling(
    again: GPTDynamics, test: GPTDynamics, mean: np.ndarray, metric: str, *, first: int
) -> deviations.Interval:
    """R2_dev of the expected score: two samples of it differ by twice its variance.

    first: the first step whose score is new; before it the observed one of step 0 stands, and no luck is left
    """
    truth = test.trajectories(metric).astype(np.float64)
    luck = np.square(again.trajectories(metric) - truth) / 2
    luck[:, :first] = 0
    reference = np.square(truth - mean)
    return deviations.explained_deviation(*(values[:, 1:].mean(axis=(1, 2)) for values in (luck, reference)))


def runs_needed(
    study: Study, tasks: Sequence[str], simulators: Sequence[str], counts: Sequence[int]
) -> tuple[pd.DataFrame, list[GPTDynamics]]:
    """How good simulators are that were fitted on the first so many training runs, on the held-out runs.

    Returns a frame with `COLUMNS` and `undefined`; `runs` counts the training runs. R2_dev compares with the mean of *all*
    training runs throughout, so that values of different counts can be compared. Raises ConfigurationError for a count
    that is not 1 to the profile's number of training runs.
    """
    available = study.setting(SETTING).runs.train
    for count in counts:
        if not 1 <= count <= available:
            raise ConfigurationError(f"runs: {count} is not 1 to {available}, the training runs of the profile")
    rows, sources = [], []
    for task in tasks:
        dynamics = study.dynamics(SETTING, task, metric="loss")
        sources.append(dynamics)
        train, _, test = dynamics.split()
        mean = mean_trajectory(train, test.curricula[0].steps)
        for count in counts:
            fewer = study.with_overrides(f"settings.{SETTING}.runs.train={count}")
            [(predicted, _)] = simulate(fewer, task, [test], simulators)
            for name in simulators:
                common = (SETTING, dynamics.model, task, "loss", "alike", name, count)
                rows += [(*common, key, *found) for key, found in statistics(predicted[name], test, mean).items()]
    return pd.DataFrame(rows, columns=[*COLUMNS, "undefined"]), sources


def by_step(study: Study, tasks: Sequence[str], simulators: Sequence[str]) -> tuple[pd.DataFrame, list[GPTDynamics]]:
    """Squared errors of every simulator at every step of the held-out runs (see `deviations.by_horizon`).

    Returns a tidy frame with columns setting, model, task, metric, simulator, run, step, mse, mse_mean_trajectory, and the
    recorded runs.
    """
    frames, sources = [], []
    for task in tasks:
        dynamics = study.dynamics(SETTING, task, metric="loss")
        sources.append(dynamics)
        test = held_out(study, task)
        mean = mean_trajectory(dynamics.split()[0], test.curricula[0].steps)
        [(predicted, _)] = simulate(study, task, [test], simulators)
        for name, values in predicted.items():
            frame = deviations.by_horizon(values, test.trajectories("loss"), mean)
            frame["run"] = [test.names[run] for run in frame["run"]]
            columns = {"setting": SETTING, "model": dynamics.model, "task": task, "metric": "loss", "simulator": name}
            frames.append(frame.assign(**columns)[[*columns, *frame.columns]])
    return pd.concat(frames, ignore_index=True), sources
