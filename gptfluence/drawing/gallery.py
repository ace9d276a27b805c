"""How typical the trajectories of a gallery are: results on all that its panels were chosen from, and the paper's."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names, tables
from gptfluence.drawing.trajectories import Simulated
from gptfluence.scoring import evaluation

TABLES = {  # the paper's table of each setting and metric
    ("instruction_tuning", "loss"): 1,
    ("fine_tuning", "loss"): 2,
    ("instruction_tuning", "bleu"): 3,
    ("instruction_tuning", "rouge_l"): 3,
    ("fine_tuning", "bleu"): 4,
    ("fine_tuning", "rouge_l"): 4,
}
UNSEEN = tuple(names.UNSEEN)


def results_of(parts: Mapping[tuple[str, str], Simulated], *, observed: int = 1) -> pd.DataFrame:
    """Every method on all trajectories that panels were chosen from: metric, task, method, run, statistic, value.

    A column `variant` stands beside `method` where there are variants. R2_dev compares with the predictions of
    `mean_trajectory`. Raises ConfigurationError if a part lacks them.
    """
    frames = []
    for (metric, task), (recorded, predicted) in parts.items():
        values = {names.name_and_variant(key): found for key, found in predicted.items()}
        if ("mean_trajectory", "") not in values:
            raise ConfigurationError(
                f"results_of: {task}, {metric}: the predictions hold no 'mean_trajectory', which R2_dev compares with"
            )
        reference = values["mean_trajectory", ""]
        for (method, variant), found in values.items():
            frame = evaluation.evaluate(found, recorded, metric=metric, observed=observed, reference=reference)
            frames.append(frame.assign(metric=metric, task=task, method=method, variant=variant))
    columns = ["metric", "task", "method", "variant", "run", "statistic", "value"]
    frame = pd.concat(frames, ignore_index=True)[columns]
    return frame if frame["variant"].any() else frame.drop(columns="variant")


def reported(setting: str, metric: str, model: str) -> pd.DataFrame | None:
    """The paper's rows (`tables.reported`) for the model that `model` is or stands for; None where it has none."""
    number = TABLES.get((setting, metric))
    if number is None:
        return None
    rows = tables.reported(number)
    rows = rows[(rows["metric"] == metric) & (rows["model"] == names.paper_model(model))]
    return rows if len(rows) else None
