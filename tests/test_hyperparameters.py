"""The paper's hyperparameters beside a profile's: what is the same and what differs, whatever the profile."""

from __future__ import annotations

import pytest

from gptfluence import paper
from gptfluence.drawing import hyperparameters
from gptfluence.profile.load import load_profile, profile_names


def rows_of(profile, table):
    frame = hyperparameters.compared(profile)
    return frame[frame["table"] == table].set_index("parameter")


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_can_be_compared_with_all_five_tables(name):
    frame = hyperparameters.compared(load_profile(name))
    assert set(frame["table"]) == {5, 6, 7, 8, 9}
    assert not frame.duplicated(["table", "parameter"]).any()
    assert (frame["paper"] != "").all()
    assert not frame.loc[frame["profile"] == hyperparameters.NOT_USED, "differs"].any()
    table = hyperparameters.table(frame)
    assert [row[4] == "≠" for row in table.rows] == frame["differs"].tolist()
    assert f"{int(frame.loc[frame['table'] == 7, 'differs'].sum())} of" in hyperparameters.reading(frame)


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
