"""How far predicted trajectories are from recorded ones (paper, section 4.1).

Observed steps are not predicted, so they do not count, and neither do steps at which a score was not measured. An error
is a mean over the steps of one test example in one run that count. "mean(std)" in the paper's tables is over all runs and
tests, with the population standard deviation.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.dynamics import GPTDynamics

COLUMNS = ["run", "statistic", "value"]


def spearman(predicted: np.ndarray, recorded: np.ndarray, *, axis: int = -1) -> np.ndarray:
    """Spearman's rank correlation along an axis of two float arrays of equal shape; nan where one is constant or not finite."""
    from scipy.stats import rankdata  # imported here, because it takes most of a second

    predicted, recorded = (np.asarray(values, np.float64) for values in (predicted, recorded))
    finite = (np.isfinite(predicted) & np.isfinite(recorded)).all(axis=axis)
    ranks = [rankdata(values, axis=axis) for values in (predicted, recorded)]
    left, right = (rank - rank.mean(axis=axis, keepdims=True) for rank in ranks)
    size = np.sqrt(np.square(left).sum(axis=axis) * np.square(right).sum(axis=axis))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(finite & (size > 0), (left * right).sum(axis=axis) / size, np.nan)


def evaluate(
    predicted: np.ndarray,
    recorded: GPTDynamics,
    *,
    metric: str = "loss",
    observed: int = 1,
    reference: GPTDynamics | np.ndarray,
) -> pd.DataFrame:
    """A tidy frame with columns run, statistic and value: one row for each run of `recorded` and each statistic.

    predicted: float [runs, steps + 1, tests], in the metric's unit; the first `observed` rows are left out, and those of
        steps at which the metric was not measured (`GPTDynamics.measured`)
    reference: the trajectory that R2_dev compares with. Give the *training* runs as GPTDynamics, whose mean trajectory is
        taken, or a mean trajectory as float [steps + 1, tests], or one for each run, [runs, steps + 1, tests]

    Statistics of a run (unit u of the metric):
        trajectories                their number, which is the number of tests
        all_steps_mse, _std         mean and population standard deviation over tests of the MSE over steps; u^2
        all_steps_mae, _std         the same of the mean absolute error; u
        final_step_spearman         rank correlation over tests of the last values; nan if undefined
        mse_mean_trajectory         mean over tests of the MSE of the reference; u^2
        diverged                    predicted trajectories that diverged (see `simulators.base.diverged`)
        all_steps_mse_not_diverged  mean over the other trajectories; nan if there are none; u^2

    Raises ConfigurationError if shapes disagree, recorded values are nan or nothing is left to evaluate.
    """
    from gptfluence.simulators.base import diverged  # imported here, because it imports torch, which takes seconds

    truth = recorded.trajectories(metric).astype(np.float64)
    predicted = np.asarray(predicted, np.float64)
    if predicted.shape != truth.shape:
        raise ConfigurationError(
            f"evaluate: predicted has shape {list(predicted.shape)}, the recorded runs [runs, steps + 1, tests] = "
            f"{list(truth.shape)}; simulate these runs' curricula, all of them, in order"
        )
    if not 1 <= observed < truth.shape[1]:
        raise ConfigurationError(f"evaluate: observed must be 1 to {truth.shape[1] - 1} rows, not {observed}")
    if (missing := np.isnan(truth).any(axis=(1, 2))).any():
        raise ConfigurationError(
            f"evaluate: run {recorded.names[int(np.argmax(missing))]} was not measured at every step, or some test has no "
            f"{metric}; take the tests that have it (`for_metric`), and record without `ends_only`"
        )
    mean, scale = _mean_trajectory(reference, metric, truth)
    counted = recorded.measured(metric)
    counted = counted[counted >= observed]
    with np.errstate(over="ignore", invalid="ignore"):
        error = predicted[:, counted] - truth[:, counted]
        mse, mae = np.square(error).mean(axis=1), np.abs(error).mean(axis=1)
        mse_reference = np.square(mean[:, counted] - truth[:, counted]).mean(axis=1)
        lost = diverged(predicted, scale)
        kept = (~lost).sum(axis=1)
        values = {
            "trajectories": np.full(len(truth), truth.shape[2]),
            "all_steps_mse": mse.mean(axis=1),
            "all_steps_mse_std": mse.std(axis=1),
            "all_steps_mae": mae.mean(axis=1),
            "all_steps_mae_std": mae.std(axis=1),
            "final_step_spearman": spearman(predicted[:, -1], truth[:, -1]),
            "mse_mean_trajectory": mse_reference.mean(axis=1),
            "diverged": lost.sum(axis=1),
            "all_steps_mse_not_diverged": np.where(
                kept > 0, np.where(lost, 0.0, mse).sum(axis=1) / np.maximum(kept, 1), np.nan
            ),
        }
    return pd.DataFrame(
        [
            (run, statistic, float(value))
            for statistic, column in values.items()
            for run, value in zip(recorded.names, column, strict=True)
        ],
        columns=COLUMNS,
    )


def _mean_trajectory(reference: GPTDynamics | np.ndarray, metric: str, truth: np.ndarray) -> tuple[np.ndarray, float]:
    """The reference, float64 in a shape that broadcasts over `truth` [runs, steps + 1, tests], and its largest magnitude."""
    if isinstance(reference, GPTDynamics):
        values = reference.trajectories(metric).astype(np.float64)
        mean, scale = values.mean(axis=0), float(np.abs(values).max())
    else:
        mean = np.asarray(reference, np.float64)
        scale = float(np.abs(mean).max())
    if mean.shape not in (truth.shape, truth.shape[1:]):
        raise ConfigurationError(
            f"evaluate: the reference has shape {list(mean.shape)}, not [steps + 1, tests] = {list(truth.shape[1:])}; "
            "for unseen tests or another length, simulate with MeanTrajectory and pass its predictions"
        )
    return (mean if mean.ndim == 3 else mean[None]), scale


def explained_share(mse: np.ndarray, mse_mean_trajectory: np.ndarray) -> float:
    """R2_dev = 1 - sum(mse) / sum(mse_mean_trajectory): 1 for a perfect simulator, 0 for the mean training trajectory.

    Both: float, over the same trajectories. nan if the mean trajectory is exact, because nothing is left to explain.
    """
    total = float(np.sum(mse_mean_trajectory))
    return 1 - float(np.sum(mse)) / total if total > 0 else float("nan")


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Rows of `evaluate` averaged over runs: columns statistic, value, std, std_over_runs and undefined.

    Other columns of `results` (task, method, model, ...) tell groups apart and are kept.

        all_steps_mse, all_steps_mae    mean and population std over all runs x tests; std_over_runs: of the runs' means
        final_step_spearman             mean and population std over runs that have one; `undefined` counts the others
        r2_dev                          1 - sum / sum over all runs; std_over_runs: of the runs' own R2_dev
        mse_mean_trajectory, all_steps_mse_not_diverged    mean over the trajectories
        diverged, trajectories, runs    counts

    Raises ConfigurationError if a run occurs twice in a group: another column must tell the two apart.
    """
    missing = [column for column in COLUMNS if column not in results]
    if missing:
        raise ConfigurationError(f"summarize: column {missing[0]!r} is missing; pass rows of evaluate()")
    groups = [column for column in results.columns if column not in COLUMNS]
    twice = results.duplicated([*groups, "run", "statistic"])
    if twice.any():
        raise ConfigurationError(
            f"summarize: run {results.loc[twice, 'run'].iloc[0]!r} occurs twice; add a column (task, method, ...) "
            "that tells the results apart"
        )
    if not groups:
        return _summarize_group(results)
    frames = []
    for key, group in results.groupby(groups, sort=False, dropna=False, observed=True):
        frame = _summarize_group(group)
        for position, (column, value) in enumerate(zip(groups, key, strict=True)):
            frame.insert(position, column, value)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _summarize_group(results: pd.DataFrame) -> pd.DataFrame:
    table = results.pivot(index="run", columns="statistic", values="value")
    count, lost = table["trajectories"].to_numpy(), table["diverged"].to_numpy()
    rows: list[tuple[str, float, float, float, int]] = []
    nan = float("nan")
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for statistic in ("all_steps_mse", "all_steps_mae"):
            means, spread = table[statistic].to_numpy(), table[f"{statistic}_std"].to_numpy()
            value = np.average(means, weights=count)
            std = np.sqrt(np.average(spread**2 + (means - value) ** 2, weights=count))
            rows.append((statistic, value, std, means.std(), 0))
        ranks = table["final_step_spearman"].to_numpy()
        defined = ranks[~np.isnan(ranks)]
        value, std = (defined.mean(), defined.std()) if len(defined) else (nan, nan)
        rows.append(("final_step_spearman", value, std, std, len(ranks) - len(defined)))
        mse, reference = table["all_steps_mse"].to_numpy(), table["mse_mean_trajectory"].to_numpy()
        each = np.array([explained_share(*pair) for pair in zip(mse, reference, strict=True)])
        rows.append(
            ("r2_dev", explained_share(mse * count, reference * count), nan, each.std(), int(np.isnan(each).sum()))
        )
        rows.append(("mse_mean_trajectory", np.average(reference, weights=count), nan, reference.std(), 0))
        kept = count - lost
        partial = np.where(kept > 0, table["all_steps_mse_not_diverged"].to_numpy(), 0.0)
        value = (partial * kept).sum() / kept.sum() if kept.sum() else nan
        rows.append(("all_steps_mse_not_diverged", value, nan, nan, int((kept == 0).sum())))
        rows += [("diverged", lost.sum(), nan, lost.std(), 0), ("trajectories", count.sum(), nan, nan, 0)]
        rows.append(("runs", len(table), nan, nan, 0))
    return pd.DataFrame(rows, columns=["statistic", "value", "std", "std_over_runs", "undefined"])
