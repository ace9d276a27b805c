"""A training that a Trainer ran, once more by this package's recorder: `train_again`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptfluence.common.errors import ArtifactError
from gptfluence.models.gpt import GPT
from gptfluence.recording import store
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import TrainingRun
from gptfluence.recording.recorder import Recorder, single_thread


def train_again(
    folder: str | Path,
    gpt: GPT | None = None,
    run: str = "train-000",
    *,
    curriculum: Curriculum | None = None,
    **options: Any,
) -> TrainingRun:
    """Train a GPT on a recorded training's curriculum, or on a changed one, with its tokens and learning rates.

    gpt: as it was before the training; None: as the recorder has kept it
    curriculum: to train on in place of the recorded one; its rates are the schedule's, or with equally many steps the
        recorded ones
    options: of `Recorder`. Dropout has other random numbers than in the Trainer: compare with the recorded curriculum, trained
        again, too. A training in bfloat16 is trained again in float32.

    Raises ArtifactError if the training was of a kind that this package has not (another optimizer than AdamW, half precision
    with skipped steps, smoothed labels), or if the GPT was not kept; ConfigurationError for a curriculum with other steps where
    rates follow no schedule.
    """
    dynamics = store.load(folder, [run])
    if problem := store.not_repeatable(dynamics):
        raise ArtifactError(f"{folder}: {problem}")
    recorded, source, spec = dynamics.runs[0], dynamics.source, dynamics.spec
    assert source is not None
    assert source.tokens is not None
    assert spec is not None
    gpt = gpt or source.gpt.load()
    chosen = curriculum or recorded.curriculum
    same = chosen.steps == recorded.curriculum.steps
    with (
        single_thread(),
        Recorder(gpt, dynamics.pool, dynamics.tests, spec.recording, tokens=source.tokens.both, **options) as recorder,
    ):
        return recorder.record(run, chosen, rates=recorded.learning_rate if same else None)
