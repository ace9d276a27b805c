"""One number over several tasks that no single task decides.

Errors of different tasks differ by orders of magnitude, so that their plain mean is the error of the task with the largest.
Here every error is first divided by persistence's on the same task, and the mean over tasks is the geometric one. For
statistics that are not errors the median over tasks is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import gmean

REFERENCE = "persistence"
RELATIVE = {"all_steps_mse": "all_steps_mse_relative", "all_steps_mae": "all_steps_mae_relative"}
MEDIANS = ("final_step_spearman", "r2_dev")


def over_tasks(by_task: pd.DataFrame, within: Sequence[str] = ()) -> pd.DataFrame:
    """The geometric mean over tasks of errors relative to persistence's, and the median over tasks of other statistics.

    by_task: one row for each method, task and statistic: columns method, task, statistic and value. Any other column
        (variant, model, run, ...) tells groups apart and is kept.
    within: those of the other columns in which a row and the row of persistence that it is divided by must agree

    Returns the same columns without `task`. `all_steps_mse_relative` and `all_steps_mae_relative` have no unit: 1 is as good
    as persistence, lower is better. They are left out where there is no row of persistence. A value is nan if a task lacks
    one, and where persistence is exact.
    """
    keys = [column for column in by_task if column not in ("task", "value")]
    same = ["task", *within, "statistic"]
    errors = by_task[by_task["statistic"].isin(list(RELATIVE))]
    reference = errors.loc[errors["method"] == REFERENCE, [*same, "value"]]
    errors = errors.merge(reference, on=same, suffixes=("", "_reference"), validate="many_to_one")
    divisor = errors["value_reference"].where(errors["value_reference"] > 0)
    errors = errors.assign(value=errors["value"] / divisor, statistic=errors["statistic"].map(RELATIVE))
    others = by_task[by_task["statistic"].isin(MEDIANS)]
    tasks = by_task["task"].nunique()
    found = []
    for rows, mean in ((errors, gmean), (others, np.median)):
        groups = rows.groupby(keys, sort=False, dropna=False)["value"]
        complete = groups.agg(lambda values, mean=mean: mean(values) if len(values) == tasks else np.nan)
        found.append(complete.reset_index())
    return pd.concat([frame for frame in found if len(frame)] or found[:1], ignore_index=True)[[*keys, "value"]]
