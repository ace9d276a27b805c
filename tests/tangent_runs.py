"""Recorded runs of the small GPT, and tangent simulators fitted on them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptfluence.gradients.tangents import TangentFeatures
from gptfluence.recording.curriculum import Curriculum, draw_curricula
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.recorder import Recorder
from gptfluence.recording.settings import Recording
from gptfluence.simulators.tangent import TangentSimulator

RECORDING = Recording.model_validate({"optimizer": {"learning_rate": 2e-3, "weight_decay": 0.1}})


def record(gpt, task, recording: Recording, curricula: list[Curriculum], *metrics: str) -> GPTDynamics:
    with Recorder(gpt, task.pool, task.tests, recording, metrics=["loss", *metrics]) as recorder:
        runs = [recorder.record(f"train-{k:03d}", curriculum) for k, curriculum in enumerate(curricula)]
    return GPTDynamics("sst2", gpt.name, task.pool, task.tests, runs)


@pytest.fixture(scope="module")
def dynamics(gpt, sst2) -> GPTDynamics:
    return record(gpt, sst2, RECORDING, draw_curricula(sst2.pool, runs=5, subset=12, batch=3, epochs=2))


@pytest.fixture(scope="module")
def features(gpt, sst2) -> TangentFeatures:
    return TangentFeatures(gpt, sst2.pool, RECORDING, coordinates=1500)


@pytest.fixture(scope="module")
def fitted(dynamics, features) -> TangentSimulator:
    train, validation, _ = dynamics.split(validation=1, test=1)
    return TangentSimulator().bind_features(features).fit(train, validation)


@pytest.fixture(scope="module")
def uncorrected(dynamics, features) -> TangentSimulator:
    return TangentSimulator().bind_features(features).fit(replace(dynamics, runs=dynamics.runs[:1]))
