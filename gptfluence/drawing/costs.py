"""Table 13 in print: costs with their units, beside the paper's numbers for the same work."""

from __future__ import annotations

import math

import pandas as pd

from gptfluence.drawing import names
from gptfluence.drawing.typeset import Table

PAPERS_BATCH = 8
SHARED = {"nothing": "nothing", "tests": "all tests", "tables": "all steps and tests"}
ENCODER = {"": "", "excluded": "left out", "included": "included"}
RECORDING = "Recording a run (training, measuring)"
PREFIXES = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k"}


def beside_paper(costs: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """The costs with columns paper_flops (multiply-adds) and paper_seconds (seconds per "sample"), where the paper has them.

    costs: rows of `experiments.cost.cost` with a column `batch`; theirs: `paper.table(13)`
    The paper's numbers are for a batch of 8. Its TracIn-CP stands beside gradients of all parameters, as many multiply-adds
    as it reports need these. It leaves the text encoder out of GPTfluence's multiply-adds. Of the seconds it does not
    say so, and these multiply-adds alone do not take as long, so they stand beside the row with the encoder, if there is one.
    """
    wide = theirs.pivot(index="method", columns="statistic", values="value")
    alone = (
        (costs["reuse"] == "nothing") & (costs["batch"] == PAPERS_BATCH) & (costs["variant"] != "parameters=last_layer")
    )
    encoded = costs["method"].map(costs[costs["encoder"] == "included"].groupby("method").size()).fillna(0) > 0
    rows = {
        "paper_flops": ("flops", costs["encoder"] != "included"),
        "paper_seconds": ("latency_seconds_per_sample", (costs["encoder"] == "included") | ~encoded),
    }
    return costs.assign(
        **{name: costs["method"].map(wide[statistic]).where(alone & which) for name, (statistic, which) in rows.items()}
    )


def table(costs: pd.DataFrame) -> Table:
    """The rows of `beside_paper` in print, by batch size; `numbers` holds them unrounded."""
    columns = [
        ("Batch size", ""),
        ("Method", ""),
        ("Text encoder", ""),
        ("Shared by", ""),
        ("FLOPs", "measured"),
        ("FLOPs", "paper (multiply-adds)"),
        ("Time", "measured (ms)"),
        ("Time", "paper (s per sample)"),
    ]
    rows = [
        [
            str(row.batch),
            RECORDING if row.method == "recorded" else names.method(row.method, row.variant),
            ENCODER[row.encoder],
            SHARED[row.reuse],
            with_prefix(row.flops),
            with_prefix(row.paper_flops),
            f"{1000 * row.seconds:.4g}",
            "" if math.isnan(row.paper_seconds) else f"{row.paper_seconds:.4g}",
        ]
        for row in costs.itertuples()
    ]
    return Table(columns, rows, costs.reset_index(drop=True), stubs=2)


def with_prefix(count: float) -> str:
    """A number with four digits and a prefix of the metric system; "" for nan.

    >>> with_prefix(129_700_000), with_prefix(16)
    ('129.7 M', '16')
    """
    if math.isnan(count):
        return ""
    factor = next((factor for factor in PREFIXES if count >= factor), 1.0)
    return f"{count / factor:.4g} {PREFIXES.get(factor, '')}".rstrip()
