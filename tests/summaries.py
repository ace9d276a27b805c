"""A summary of made-up errors, and the provenance that is saved with what is drawn of it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gptfluence.common import provenance
from gptfluence.drawing import tables


def facts(**changed) -> dict:
    return provenance.collect(**{"command": "make it", "profile": "mini", "parameters": {"seed": 0}, **changed})


def summary(**mse: tuple[float, ...]) -> pd.DataFrame:
    """A summary frame: method -> all-steps MSE on rte and sst2; the mean trajectory's is 0.02 on both."""
    mse = {"gptfluence": (0.01, 0.03), "simfluence": (0.04, 0.05), **mse, "mean_trajectory": (0.02, 0.02)}
    rows = []
    for method, values in mse.items():
        for task, value in zip(("rte", "sst2"), values, strict=False):
            rows += [
                (task, method, "all_steps_mse", value, value / 2, 0.001, 0),
                (task, method, "all_steps_mae", value**0.5, 0.01, 0.001, 0),
                (task, method, "final_step_spearman", 0.9 - value, 0.02, 0.02, 0),
                (task, method, "r2_dev", 1 - value / 0.02, np.nan, 0.1, 0),
                (task, method, "diverged", 0.0, np.nan, 0.0, 0),
            ]
    return pd.DataFrame(rows, columns=tables.SUMMARY)
