"""The tokens of a recorded training, kept beside its texts, so that it can be trained again from its store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gptfluence.common.errors import ArtifactError
from gptfluence.models.gpt import GPT
from gptfluence.recording import store
from gptfluence.recording.dynamics import TrainingRun
from gptfluence.recording.recorder import Recorder, single_thread
from gptfluence.recording.tokens import TokenizedExample
from gptfluence.trainers.texts import Fed

SIDES = ("pool", "tests")


def write(folder: Path, pool: Sequence[Fed], tests: Sequence[TokenizedExample | Fed]) -> None:
    """Write `pool_tokens.parquet` and `tests_tokens.parquet`: of each example input_ids, and scored, which of them count."""
    for side, examples in zip(SIDES, (pool, tests), strict=True):
        columns = {
            "input_ids": [each.ids.astype(np.int32) for each in examples],
            "scored": [each.scored("target").astype(np.int32) for each in examples],
        }
        store.write_table(folder / f"{side}_tokens.parquet", columns)


def read(folder: Path) -> tuple[list[Fed], list[Fed]]:
    """The tokens of pool and tests. Raises ArtifactError for a folder that no `TrainerRecorder` wrote."""
    found = []
    for side in SIDES:
        path = folder / f"{side}_tokens.parquet"
        try:
            table = pq.read_table(path).to_pydict()
        except (OSError, pa.ArrowInvalid):
            raise ArtifactError(f"{path} is missing or damaged; it is written by TrainerRecorder") from None
        rows = zip(table["input_ids"], table["scored"], strict=True)
        found.append([Fed(*(np.array(part, np.int64) for part in row)) for row in rows])
    return found[0], found[1]


def train_again(folder: str | Path, gpt: GPT, run: str = "train-000", **options: Any) -> TrainingRun:
    """Train `gpt`, which must be as it was before, on a recorded training's curriculum, tokens and learning rates.

    options: of `Recorder`. Dropout has other random numbers than in the Trainer. Raises ArtifactError if the training was
    of a kind that this package has not (another optimizer than AdamW, half precision with skipped steps, smoothed labels).
    """
    dynamics = store.load(folder, [run])
    recorded = dynamics.runs[0]
    if dynamics.spec is None or recorded.skipped is not None:
        raise ArtifactError(
            f"{folder}: run {run} was not trained by AdamW in float32 or bfloat16 with plain labels, or has skipped steps; only "
            "such trainings can be repeated here"
        )
    texts = dynamics.pool, dynamics.tests
    with (
        single_thread(),
        Recorder(gpt, *texts, dynamics.spec.recording, tokens=read(Path(folder)), **options) as recorder,
    ):
        return recorder.record(run, recorded.curriculum, rates=recorded.learning_rate)
