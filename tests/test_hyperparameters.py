"""The paper's hyperparameters beside a profile's: what is the same and what differs, whatever the profile."""

from __future__ import annotations

import pytest
import torch

from gptfluence import paper
from gptfluence.drawing import hyperparameters, readings
from gptfluence.profile.load import load_profile, profile_names
from gptfluence.profile.schema import ProfileSetting
from gptfluence.recording.settings import AdamW
from gptfluence.simulators import fitting


def rows_of(profile, table):
    return hyperparameters.compared(profile)[table].set_index("parameter")


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_can_be_compared_with_all_five_tables(name):
    found = hyperparameters.compared(load_profile(name))
    assert list(found) == [5, 6, 7, 8, 9]
    for number, frame in found.items():
        assert set(frame["table"]) == {number}
        assert not frame.duplicated("parameter").any()
        assert (frame["paper"] != "").all()
        assert not frame.loc[frame["profile"] == hyperparameters.NOT_USED, "differs"].any()
        table = hyperparameters.table(frame)
        assert [row[3] == "≠" for row in table.rows] == frame["differs"].tolist()
        text = readings.of_hyperparameters(frame, hyperparameters.NOT_USED)
        used = (frame["profile"] != hyperparameters.NOT_USED).sum()
        assert text.startswith(f"{int(frame['differs'].sum())} of {used} " if used else "This profile does not use it.")


def test_the_profile_of_the_paper_trains_gpts_as_the_paper_does():
    profile = load_profile("paper")
    for table in (5, 7, 8, 9):
        assert not rows_of(profile, table)["differs"].any(), table


@pytest.mark.parametrize(
    ("override", "table", "parameter", "shown"),
    [
        ("settings.fine_tuning.curriculum.epochs=6", 7, "epochs", "6"),
        ("settings.fine_tuning.curriculum.epochs=6", 7, "steps", "192"),
        ("settings.fine_tuning.recording.optimizer.weight_decay=0.5", 7, "weight decay", "0.5"),
        ("settings.fine_tuning.recording.optimizer.schedule=constant", 7, "schedule", "constant"),
        ("settings.fine_tuning.recording.precision=bf16", 7, "precision", "bf16"),
        ("settings.instruction_tuning.recording.precision=bf16", 5, "precision", "bf16"),
        ("settings.fine_tuning.generation.temperature=0", 7, "generation: temperature", "0"),
        ("settings.instruction_tuning.curriculum.batch_size=4", 5, "batch size", "4"),
        ("simulators.gptfluence.markov_order=3", 8, "Markov order", "3"),
        ("simulators.gptfluence.encoder=index", 6, "encoder", "index"),
        ("simulators.simfluence.seed=1", 9, "seed", "1"),
    ],
)
def test_a_change_of_the_profile_is_seen(override, table, parameter, shown):
    row = rows_of(load_profile("paper", [override]), table).loc[parameter]
    assert (row["profile"], row["differs"]) == (shown, True)


def test_values_for_each_model_are_those_of_the_profiles_sizes():
    given = paper.hyperparameters()["instruction_tuning_gpt"]["learning_rate"]
    only = load_profile("paper", ["settings.instruction_tuning.models=[pythia-1b]"])
    row = rows_of(only, 5).loc["learning rate"]
    assert float(row["paper"]) == given["pythia-1b"] == float(row["profile"])
    assert not row["differs"]
    assert rows_of(only, 5).loc["LoRA of pythia-2.8b", "profile"] == hyperparameters.NOT_USED


def test_a_simulator_that_is_fitted_in_closed_form_has_no_optimizer():
    profile = load_profile("paper", ["simulators.simfluence={method: closed_form}"])
    assert rows_of(profile, 9).loc["optimizer", "profile"] == hyperparameters.NOT_USED


def test_what_is_no_option_is_read_from_the_code(monkeypatch):
    class SGD(AdamW):
        pass

    profile = load_profile("paper")
    one = profile.settings["fine_tuning"].resolved(task="rte", model="pythia-410m")
    other = one.model_copy(update={"recording": one.recording.model_copy(update={"optimizer": SGD()})})
    assert rows_of(profile, 7).loc["optimizer", "profile"] == "AdamW"
    with monkeypatch.context() as patched:
        patched.setattr(ProfileSetting, "resolved", lambda *_, **__: other)
        assert rows_of(profile, 7).loc["optimizer", "profile"] == "SGD"
    assert rows_of(profile, 8).loc["schedule", "profile"] == "linear_decay"
    monkeypatch.setattr(fitting, "schedule", lambda update, total, warmup: 1.0)
    assert rows_of(profile, 8).loc["schedule", "profile"] == "another"
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.bfloat16)
    assert rows_of(profile, 9).loc["precision", "profile"] == "bf16"
