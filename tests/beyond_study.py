"""The very small study on which the tests of what goes beyond the paper are run."""

from __future__ import annotations

import pytest

from gptfluence.study.study import Study

FEW = (
    "settings.fine_tuning.runs={train: 4, validation: 1, test: 2}",
    "settings.fine_tuning.metrics=[loss]",
    "settings.fine_tuning.recording.record_pool=false",
    "simulators.simfluence.max_epochs=3",
    "simulators.low_rank.rank=4",
)


@pytest.fixture(scope="module", name="study")
def small_study(tmp_path_factory) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptfluence.recording.record.devices", lambda: ["cpu"])
        yield Study.load("smoke", FEW, artifacts=tmp_path_factory.mktemp("artifacts"), jobs=1)
