"""Runs unlike those that simulators are fitted on: really recorded, and what every simulator predicts for them.

Kinds of curricula are those of `recording/kinds.py`, and two changes of the training itself: `faster` (learning rate doubled)
and `longer` (twice the epochs; the schedule stretches with it). Simulators that know of the optimizer are told of both.
Unseen are test examples (simulators are fitted on every other one and asked about the rest, then the other way round) or
the whole pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.recording import kinds as curricula
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.text_metrics import TEXT_METRICS
from gptfluence.scoring import deviations, intervals
from gptfluence.scoring.evaluation import evaluate, explained_share
from gptfluence.scoring.intervals import Interval
from gptfluence.simulators.options import Variant
from gptfluence.study.campaign import Campaign, Method
from gptfluence.study.predictions import Predictions
from gptfluence.tasks.base import fingerprint

TRAINING = {"faster": "drawn alike, learning rate doubled", "longer": "drawn alike, twice as many epochs"}
KINDS = {**curricula.KINDS, **TRAINING}
UNSEEN_KINDS = {
    "unseen_tests": "drawn alike; simulators are fitted on every other test example and asked about the rest, both ways",
    "unseen_pool": "drawn alike from training examples that no simulator was fitted on",
}
CEILING = "ceiling"
ONE_RUN = "one_run"  # of unseen tests: what the first training run recorded of them, as a prediction
COLUMNS = [
    "setting",
    "model",
    "task",
    "metric",
    "kind",
    "method",
    "variant",
    "runs",
    "statistic",
    "value",
    "low",
    "high",
]
MORE = ["undefined", "run"]  # further columns; run: of rows about a single run


class Measured(NamedTuple):
    """A tidy frame, and the recorded runs that it was computed from."""

    frame: pd.DataFrame
    sources: list[GPTDynamics]


def draw(campaign: Campaign, kind: str, runs: int) -> list[Curriculum]:
    """`runs` curricula of a kind over the campaign's pool, with its numbers; each has a seed of its own.

    Raises ConfigurationError for an unknown kind, or one that cannot be drawn from this pool.
    """
    if kind not in KINDS:
        raise ConfigurationError(unknown("kind of curriculum", kind, KINDS))
    numbers = campaign.setting.curriculum
    epochs = numbers.epochs * (2 if kind == "longer" else 1)
    shape = {"subset": numbers.subset_size, "batch": numbers.batch_size, "epochs": epochs}
    drawn = "alike" if kind in TRAINING else kind
    seeds = [[campaign.study.profile.seed, seed_of(campaign.task, kind, k)] for k in range(runs)]
    return [curricula.draw_kind(drawn, campaign.texts.pool, **shape, rng=np.random.default_rng(seed)) for seed in seeds]


def seed_of(*parts: object) -> int:
    """A seed of its own for each thing drawn, from what it is called."""
    return int(fingerprint(list(parts)), 16) % 2**32


def record(campaign: Campaign, kind: str, runs: int) -> GPTDynamics:
    """Recorded runs of a kind (of `KINDS` or `UNSEEN_KINDS`), with their losses.

    `alike` and `unseen_tests`: the campaign's held-out runs, all of them; `unseen_pool`: the profile's runs on a pool kept
    apart.

    Raises ConfigurationError as `draw`, for a number of runs below 1, and where no pool is kept apart.
    """
    if runs < 1:
        raise ConfigurationError(f"shifted: runs must be 1 or more, not {runs}")
    if kind in ("alike", "unseen_tests"):
        return campaign.held_out()
    if kind == "unseen_pool":
        return campaign.unseen("training", "loss")
    drawn, other = draw(campaign, kind, runs), campaign.losses_only
    if kind == "faster":
        other = other.with_(learning_rate=2 * campaign.setting.recording.optimizer.learning_rate)
    return other.record(drawn)


def predict_unseen_tests(campaign: Campaign, recorded: GPTDynamics, methods: Sequence[Method]) -> Predictions:
    """`Campaign.predict`, but every test example by simulators that were fitted on every other one, without it.

    Raises ConfigurationError if there is one test example only.
    """
    count = len(recorded.tests)
    if count < 2:
        raise ConfigurationError(
            f"{campaign.task}: one test example; unseen_tests needs two, to be fitted on one of them"
        )
    whole = campaign.predictions(recorded)
    variants = campaign.variants(methods)
    reasons = {variant: variant.create().refuses_unseen for variant in variants}
    whole.refused.update({variant: reason for variant, reason in reasons.items() if reason})
    fitting = [variant for variant in variants if variant not in whole.refused]  # no need to fit the others
    halves = range(0, count, 2), range(1, count, 2)
    for fitted_on, others in (halves, halves[::-1]):
        [found] = campaign.predict_each(fitting, [recorded.of_tests(others)], tests=fitted_on)
        whole.refused.update(found.refused)
        for variant, values in found.values.items():
            missing = np.full((*values.shape[:2], count), np.nan, np.float32)
            whole.values.setdefault(variant, missing)[:, :, others] = values
    for variant in whole.refused:
        whole.values.pop(variant, None)
    return whole


def mean_trajectory(train: GPTDynamics, steps: int, metric: str = "loss") -> np.ndarray:
    """The mean training trajectory, float64 [steps + 1, tests]; beyond its end its last value stands."""
    mean = train.trajectories(metric).mean(axis=0, dtype=np.float64)
    return mean[np.minimum(np.arange(steps + 1), len(mean) - 1)]


def statistics(
    predicted: np.ndarray, recorded: GPTDynamics, mean: np.ndarray, *, metric: str = "loss"
) -> dict[str, Interval]:
    """What is reported of predictions for some runs, each with its interval over runs.

    all_steps_mse and mse_mean_trajectory (metric's unit squared), r2_dev, r2_within (for `intervals.FEWEST` runs at least),
    final_step_spearman, change_spearman, deviation_spearman (see `deviations`); diverged counts trajectories.
    """
    truth = recorded.trajectories(metric)
    frame = evaluate(predicted, recorded, metric=metric, reference=mean)
    each = frame.pivot(index="run", columns="statistic", values="value").loc[recorded.names]
    mse, of_mean = each["all_steps_mse"].to_numpy(), each["mse_mean_trajectory"].to_numpy()
    ranks = {
        "final_step_spearman": each["final_step_spearman"].to_numpy(),
        "change_spearman": deviations.change_spearman(predicted, truth),
        "deviation_spearman": deviations.deviation_spearman(predicted, truth, mean[-1]),
    }
    diverged = float(each["diverged"].sum())
    found = {"r2_dev": deviations.explained_deviation(mse, of_mean)}
    if len(recorded) >= intervals.FEWEST:
        found["r2_within"] = deviations.explained_within(mse, truth[:, recorded.measured(metric)[1:]])
    return {
        **found,
        "all_steps_mse": deviations.mean_over_runs(mse, intervals.ERROR),
        "mse_mean_trajectory": deviations.mean_over_runs(of_mean, intervals.ERROR),
        **{name: deviations.mean_over_runs(values, intervals.CORRELATION) for name, values in ranks.items()},
        "diverged": Interval(diverged, diverged, diverged),
    }


def difference(predicted: np.ndarray, other: np.ndarray, recorded: GPTDynamics, mean: np.ndarray) -> Interval:
    """R2_dev of `predicted` less that of `other`, with its interval (see `deviations.difference_of_explained`).

    predicted, other: float [runs, steps + 1, tests]; mean: float [steps + 1, tests]; all losses in nats per target token.
    Returns a number without a unit, above 0 where `predicted` is the better one.
    """
    truth, counted = recorded.trajectories("loss"), recorded.measured("loss")[1:]
    return deviations.difference_of_explained(*(_errors(values, truth, counted) for values in (predicted, other, mean)))


def of_single_runs(statistic: str, values: Sequence[float], runs: Sequence[str]) -> list[tuple]:
    """Rows (statistic, value, low, high, undefined, run) of so few runs that they have no interval; else none.

    values: one for each of `runs`, which are names. The statistic's name gets `intervals.OF_RUN` at its end.
    """
    if len(runs) >= intervals.FEWEST:
        return []
    nan = float("nan")
    return [
        (f"{statistic}{intervals.OF_RUN}", float(value), nan, nan, 0, run)
        for value, run in zip(values, runs, strict=True)
    ]


def _reported(values: np.ndarray, recorded: GPTDynamics, mean: np.ndarray, *, metric: str = "loss") -> list[tuple]:
    """Rows (statistic, value, low, high, undefined, run): `statistics`, and R2_dev of single runs where they are few."""
    truth = recorded.trajectories(metric)
    counted = recorded.measured(metric)[1:]
    pairs = zip(*(_errors(array, truth, counted) for array in (values, mean)), strict=True)
    each = [explained_share(*pair) for pair in pairs]
    found = statistics(values, recorded, mean, metric=metric)
    rows = [(statistic, *interval, "") for statistic, interval in found.items()]
    return rows + of_single_runs("r2_dev", each, recorded.names)


def _errors(predicted: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean squared errors at counted steps, float64 [runs]; float [runs, steps + 1, tests] each, or they broadcast."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.square(predicted - truth.astype(np.float64))[:, counted].mean(axis=(1, 2))


def explained(
    campaigns: Sequence[Campaign],
    kinds: Sequence[str],
    methods: Sequence[Method],
    *,
    runs: int,
    against: Method | None = None,
) -> Measured:
    """Every method on every kind of curriculum of every campaign; no `unseen_pool` where none is kept apart.

    Returns a tidy frame with `COLUMNS` and `MORE` (undefined: runs without a value; all of them where a simulator refuses
    runs of this length, or unseen examples). runs: of each kind but `alike` and the unseen ones, whose runs are the profile's.
    against: one of `methods`, with which all others are compared (statistic r2_dev_difference, see `difference`). On unseen
    tests the rows "one_run" say how good the first training run is as a prediction: a simulator that trains it again to
    measure these tests must be judged by that.
    """
    rows, sources = [], []
    for campaign in campaigns:
        dynamics = campaign.dynamics("loss")
        sources.append(dynamics)
        runs_of = {
            kind: record(campaign, kind, runs)
            for kind in kinds
            if kind != "unseen_pool" or campaign.study.keeps_unseen(campaign.task)
        }
        # The runs of the other two are the campaign's.
        sources += [recorded for kind, recorded in runs_of.items() if kind not in ("alike", "unseen_tests")]
        seen = [kind for kind in runs_of if kind != "unseen_tests"]
        answers = dict(zip(seen, campaign.predict_each(methods, [runs_of[kind] for kind in seen]), strict=True))
        if "unseen_tests" in runs_of:
            answers["unseen_tests"] = predict_unseen_tests(campaign, runs_of["unseen_tests"], methods)
        for kind in runs_of:
            rows += _explained(campaign, kind, answers[kind], methods, against)
    return Measured(pd.DataFrame(rows, columns=[*COLUMNS, *MORE]), sources)


def _explained(
    campaign: Campaign, kind: str, found: Predictions, methods: Sequence[Method], against: Method | None
) -> list[tuple]:
    """Rows of `explained` for one kind of curriculum of one campaign."""
    recorded, rows = found.recorded, []
    # The 0 of unseen tests, too, is their own mean.
    mean = mean_trajectory(campaign.dynamics("loss").split()[0], recorded.curricula[0].steps)
    values: dict[tuple[str, str], np.ndarray] = {_key(variant): array for variant, array in found.values.items()}
    series = [_key(variant) for variant in campaign.variants(methods)]
    if kind == "unseen_tests":
        first = campaign.dynamics("loss").split()[0].trajectories("loss")[:1]
        series.append((ONE_RUN, ""))
        values[ONE_RUN, ""] = np.broadcast_to(first, (len(recorded), *first.shape[1:]))
    refused = {_key(variant) for variant in found.refused}
    other = None if against is None else _key(campaign.variant(against))
    for name in series:
        common = (campaign.setting_name, recorded.model, campaign.task, "loss", kind, *name, len(recorded))
        if name in refused:
            rows.append((*common, "r2_dev", *[float("nan")] * 3, len(recorded), ""))
            continue
        rows += [(*common, *row) for row in _reported(values[name], recorded, mean)]
        if other in values and name != other:
            less = difference(values[name], values[other], recorded, mean)
            rows.append((*common, "r2_dev_difference", *less, ""))
    return rows


def _key(variant: Variant) -> tuple[str, str]:
    return variant.method, variant.variant


def other_metrics(campaigns: Sequence[Campaign], metrics: Sequence[str], methods: Sequence[Method]) -> Measured:
    """Every method on the held-out runs, for those of `metrics` that the campaigns record.

    Sampling noise makes part of a text score unpredictable. The rows "ceiling" give the best possible R²dev, that of a
    simulator which knows the expected score of every text. It is estimated by recording the held-out runs once more with
    other random numbers, whose scores differ by that noise twice. Returns a frame with `COLUMNS` and `MORE`.
    """
    rows, sources = [], []
    for campaign in campaigns:
        setting = campaign.setting
        for metric in metrics:
            if metric not in setting.metrics or not campaign.tested(metric):
                continue
            dynamics = campaign.dynamics(metric)
            found = campaign.predict_each(methods, [None], metric=metric)[0]
            test = found.recorded
            sources.append(dynamics)
            mean = mean_trajectory(dynamics.split()[0], test.curricula[0].steps, metric)
            common = (campaign.setting_name, dynamics.model, campaign.task, metric, "alike")
            for variant, values in found.values.items():
                reported = _reported(values, test, mean, metric=metric)
                rows += [(*common, *_key(variant), len(test), *row) for row in reported]
            if metric in TEXT_METRICS and setting.generation.temperature > 0:
                again = campaign.record(test.curricula).for_metric(metric)
                sources.append(again)
                best = _ceiling(again, test, mean, metric)
                rows.append((*common, CEILING, "", len(test), "r2_dev", *best, ""))
    return Measured(pd.DataFrame(rows, columns=[*COLUMNS, *MORE]), sources)


def _ceiling(again: GPTDynamics, test: GPTDynamics, mean: np.ndarray, metric: str) -> Interval:
    """R2_dev of the expected score: two samples of it differ by twice its variance, at every step that was measured."""
    truth = test.trajectories(metric).astype(np.float64)
    noise = np.square(again.trajectories(metric) - truth) / 2
    counted, reference = test.measured(metric)[1:], np.square(truth - mean)
    return deviations.explained_deviation(*(values[:, counted].mean(axis=(1, 2)) for values in (noise, reference)))


def runs_needed(campaigns: Sequence[Campaign], methods: Sequence[Method], counts: Sequence[int]) -> Measured:
    """How good simulators are that were fitted on the first so many training runs, on the held-out runs.

    Returns a frame with `COLUMNS`, `MORE` and `fitted_on` (training runs). R2_dev compares with the mean of *all*
    training runs throughout, so that values of different counts can be compared. Raises ConfigurationError for a count
    that is not 1 to the profile's number of training runs.
    """
    rows, sources = [], []
    for campaign in campaigns:
        available = campaign.setting.runs.train
        for count in counts:
            if not 1 <= count <= available:
                raise ConfigurationError(f"runs: {count} is not 1 to {available}, the training runs of the profile")
        dynamics = campaign.dynamics("loss")
        sources.append(dynamics)
        train, _, test = dynamics.split()
        mean = mean_trajectory(train, test.curricula[0].steps)
        for count in counts:
            [found] = campaign.with_(runs={"train": count}).predict_each(methods, [None])
            for variant, values in found.values.items():
                common = (
                    campaign.setting_name,
                    dynamics.model,
                    campaign.task,
                    "loss",
                    "alike",
                    *_key(variant),
                    len(test),
                )
                rows += [(*common, *row, count) for row in _reported(values, test, mean)]
    return Measured(pd.DataFrame(rows, columns=[*COLUMNS, *MORE, "fitted_on"]), sources)


def by_step(campaigns: Sequence[Campaign], methods: Sequence[Method]) -> Measured:
    """Squared errors of every method at every step of the held-out runs (see `deviations.by_horizon`).

    Returns a tidy frame with columns setting, model, task, metric, method, variant, run, step, mse, mse_mean_trajectory.
    """
    frames, sources = [], []
    for campaign in campaigns:
        dynamics, found = campaign.dynamics("loss"), campaign.predict_each(methods, [None])[0]
        sources.append(dynamics)
        test = found.recorded
        mean = mean_trajectory(dynamics.split()[0], test.curricula[0].steps)
        for variant, values in found.values.items():
            frame = deviations.by_horizon(values, test.trajectories("loss"), mean)
            frame["run"] = [test.names[run] for run in frame["run"]]
            columns = {
                "setting": campaign.setting_name,
                "model": dynamics.model,
                "task": campaign.task,
                "metric": "loss",
            }
            columns |= {"method": variant.method, "variant": variant.variant}
            frames.append(frame.assign(**columns)[[*columns, *frame.columns]])
    return Measured(pd.concat(frames, ignore_index=True), sources)
