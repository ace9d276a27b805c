"""Readings of what is beyond the paper, and of the costs of table 13: sentences computed from numbers (see `readings`)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from gptfluence.drawing import names
from gptfluence.drawing.task_panels import ACCURACY, LOSS_FALL, SHARE
from gptfluence.profile.schema import LEARNING
from gptfluence.scoring.intervals import FEWEST, LEVEL

KINDS = (
    "For kinds other than alike, too, the 0 of R2_dev is the mean of runs drawn alike, so that R2_dev is near 1 for any method "
    "that gets the level of the kind right. Dashes: the same with R2 within the kind, whose 0 is the mean of the other runs of "
    f"the same kind, corrected for their number; it is there for {FEWEST} runs at least."
)
INTERVALS = (
    f"Bars: {LEVEL:.0%} intervals over runs (Student's t, standard error of the jackknife). Fewer than {FEWEST} runs are "
    "drawn one by one instead (small dots), as far as they are on the axis."
)
INTERVALS_OF_SETS = (
    f"Bars: {LEVEL:.0%} intervals over curricula (Student's t, standard error of the jackknife), for {FEWEST} at least."
)


def of_tasks(frame: pd.DataFrame) -> str:
    """Which tasks are learned and which are more than counts, naming those that are not; frame: of `task_statistics.of_tasks`.

    A line for each model and regime. Goals are those of `task_panels`; in slow drift nothing need be learned.
    """
    lines = []
    several = frame["model"].nunique() > 1
    for (model, regime), rows in frame.groupby(["model", "regime"], sort=False):
        wide = rows.pivot(index="task", columns="statistic", values="value").loc[rows["task"].unique()]
        sentences = []
        if regime == LEARNING and "accuracy_after" in wide:
            after = wide["accuracy_after"].dropna()
            sentences.append(_goal(f"Accuracy reaches {ACCURACY:g}", after, after >= ACCURACY))
        free = wide[wide["accuracy_after"].isna()] if "accuracy_after" in wide else wide
        fall = 1 - free["loss_after"] / free["loss_before"]
        if regime == LEARNING and len(fall):
            sentences.append(_goal("The loss of free text falls by a third", fall, fall >= LOSS_FALL))
        for statistic, what in (
            ("first_component_share", "The first component holds"),
            ("counts_share", "Labels or formats hold"),
        ):
            share = wide[statistic].dropna()
            sentences.append(_goal(f"{what} under half of the deviations", share, share < SHARE))
        r2, ratio = wide["counts_r2_dev"], wide["persistence_ratio"].median()
        sentences.append(f"Counts alone have an R²dev of {r2.min():.2f} to {r2.max():.2f}.")
        sentences.append(
            f"The MSE of persistence is {ratio:.3g} times that of the mean trajectory (median over tasks)."
        )
        of = f"{model}, {regime}" if several else f"{regime[0].upper()}{regime[1:]}"
        lines.append(f"{of}: {' '.join(sentences)}")
    return "\n".join(lines)


def _goal(what: str, values: pd.Series, reached: pd.Series) -> str:
    """Whether a goal is reached on every task, or on which it is not, with their values."""
    missed = [f"{names.task(str(task))} ({value:.2f})" for task, value in values[~reached].items()]
    if not missed:
        return f"{what} on every task."
    return f"{what} on {int(reached.sum())} of {len(reached)} tasks, not on {_and(missed)}."


def _and(parts: Iterable[str]) -> str:
    *rest, last = parts
    return f"{', '.join(rest)} and {last}" if rest else last


def of_horizon(results: pd.DataFrame) -> str:
    """Which methods beat the mean trajectory at the last step of each task; results: of `shifted.by_step`."""
    sentences = []
    for task, rows in results.groupby("task", sort=False):
        last = rows[rows["step"] == rows["step"].max()]
        sums = last.groupby("method", sort=False)[["mse", "mse_mean_trajectory"]].sum()
        relative = (sums["mse"] / sums["mse_mean_trajectory"]).drop("mean_trajectory", errors="ignore").sort_values()
        better = [names.method(str(name)) for name in relative.index[relative < 1]]
        sentences.append(
            f"{names.task(str(task))}: better than the mean trajectory at the last step: {', '.join(better) or 'none'}."
        )
    return " ".join(sentences)


def of_explained(results: pd.DataFrame) -> str:
    """Beside R2_dev: where methods beat the mean of the runs of the same kind, and how well they rank final losses.

    results: of `shifted.explained`; a case is a kind of curriculum of a task and GPT
    """
    sentences = []
    printed = [names.method(*pair) for pair in results[["method", "variant"]].to_numpy()]
    results = results.assign(printed=printed, case=list(results[["model", "task", "kind"]].itertuples(index=False)))
    within = results[results["statistic"] == "r2_within"]
    won = (within["value"] > 0).groupby(within["printed"], sort=False).agg(["sum", "size"])
    if len(won):
        parts = [f"{name} {row['sum']} of {row['size']}" for name, row in won.iterrows()]
        sentences.append(f"Cases with R² within the kind above 0: {', '.join(parts)}.")
    ranks = results[results["statistic"] == "final_step_spearman"]
    wide = ranks.pivot(index="case", columns="printed", values="value")[list(dict.fromkeys(ranks["printed"]))].dropna()
    if len(wide):
        parts = [f"{name} {value:.2f}" for name, value in wide.mean().items()]
        sentences.append(
            f"Rank correlation of final losses, mean over all cases where every method has one ({len(wide)}): {', '.join(parts)}."
        )
    return " ".join(sentences)


def without_score(results: pd.DataFrame) -> str:
    """Which methods have no score at all, as they predict the same for every set left out; results: of `leave_out`."""
    defined = results.groupby("method")["value"].transform(lambda values: values.notna().any())
    constant = sorted({names.method(name) for name in results.loc[~defined, "method"]})
    return f"No score, because the same is predicted for every set: {', '.join(constant)}." if constant else ""


def of_coverage(coverage: pd.DataFrame) -> str:
    """The share of paths inside the bands, drawn alike and otherwise; coverage: columns task, method, kind, value."""
    sentences = []
    for (task, name), rows in coverage.groupby(["task", "method"], sort=False):
        alike, others = rows[rows["kind"] == "alike"]["value"].mean(), rows[rows["kind"] != "alike"]["value"]
        lowest = f", {others.min():.2f} or more for other kinds" if len(others) else ""
        sentences.append(
            f"{names.task(task)}, {names.method(name)}: {alike:.2f} of the paths are inside for curricula drawn "
            f"alike{lowest}."
        )
    return " ".join(sentences)


def of_search(results: pd.DataFrame, candidates: int) -> str:
    """What the best of many simulated curricula was worth when it was trained; results: of `search.compare`."""
    sentences = []
    random = results[results["choice"] == "random"]
    for name, rows in results[results["choice"] == "best"].groupby("method", sort=False):
        runs = random.loc[random["method"] == name, "recorded"]
        simulated, recorded = rows["simulated"].mean(), rows["recorded"].mean()
        sentences.append(
            f"{names.method(str(name))}: the best of {candidates} has a loss of {simulated:.4f} simulated and "
            f"{recorded:.4f} trained. The mean of random choice is {runs.mean():.4f}, and {(runs > recorded).mean():.0%} of its "
            "runs are worse."
        )
    return " ".join(sentences)


def signed(rows: pd.DataFrame) -> list[str]:
    """Differences in print, "+0.12 (+0.03 to +0.20)"; rows: columns value, low, high (NaN without an interval)."""
    return [
        f"{row.value:+.2f}" + ("" if math.isnan(row.low) else f" ({row.low:+.2f} to {row.high:+.2f})")
        for row in rows[["value", "low", "high"]].itertuples()
    ]


def of_differences(differences: pd.DataFrame) -> str:
    """Where each variant differs by 0.01 at least, a line each; columns task, method, variant, kind, value, low, high."""
    lines = []
    for (task, method, variant), rows in differences.groupby(["task", "method", "variant"], sort=False):
        changed = rows[rows["value"].round(2) != 0]
        parts = [
            f"{kind.replace('_', ' ')} {text}" for kind, text in zip(changed["kind"], signed(changed), strict=True)
        ]
        lines.append(f"{names.task(task)}, {names.method(method, variant)}: {', '.join(parts) or 'no change of 0.01'}.")
    return "\n".join(lines)


def of_costs(costs: pd.DataFrame) -> str:
    """FLOPs of each method beside Simfluence's, and their growth with the batch; costs: of `cost.cost`, and `batch`."""
    single = costs[(costs["reuse"] == "nothing") & (costs["encoder"] != "included")]
    least, most = costs["batch"].min(), costs["batch"].max()
    wide = single.pivot(index=["method", "variant"], columns="batch", values="flops")
    sentences = []
    for name, row in wide.iterrows():
        ratio = row[most] / wide.loc[("simfluence", ""), most]
        growth = f", and {row[most] / row[least]:.3g} times those of a batch of {least}" if most > least else ""
        sentences.append(
            f"{names.method(*name)}: {row[most]:.3g} FLOPs for a batch of {most}, {ratio:.3g} times Simfluence's{growth}."
        )
    return " ".join(sentences)


def of_what_if(row: pd.Series) -> str:
    """The change of the mean final loss, simulated and trained, and the bands; row: of `what_if.Answer.table`."""
    return (
        f"The mean final loss changes by {row['change, simulated']:+.4f} simulated and by {row['change, trained']:+.4f} "
        f"trained. {row['paths inside the band']:.0%} of the test examples' paths lie inside their bands."
    )


def of_trained_again(table: pd.DataFrame) -> str:
    """What one recorded run says of its what-ifs, beside what costs nothing; table: rows of `trained_again.row`."""
    first = table.iloc[0]
    shares = ", ".join(f"{row['share explained']:.2f} ({row['what if']})" for _, row in table.iterrows())
    return (
        f"{first['what if'].capitalize()}, the mean final loss changes by {first['change, simulated']:+.4f} simulated and by "
        f"{first['change, trained']:+.4f} trained again. Of the changes of single tests the tangent simulator, fitted on the one "
        f"recorded run, explains these shares, where no change is 0: {shares}."
    )
