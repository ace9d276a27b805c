"""What the paper reports, as data: complete, unambiguous, and clear about what is not in it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence import paper
from gptfluence.common.errors import ArtifactError, ConfigurationError
from gptfluence.workflow.citation import cite

ROWS = [row for number in (1, 2, 3, 4, 10, 11, 12, 13) for row in paper.table(number).to_dict("records")]


def test_every_reported_number_is_there_and_has_one_place():
    assert len(ROWS) == 588
    keys = [tuple(row[key] for key in paper.KEYS) for row in ROWS]
    assert len(set(keys)) == len(keys)


@settings(deadline=None)  # a busy machine is no failure
@given(st.sampled_from(ROWS))
def test_a_selection_finds_the_number_that_the_table_holds(row):
    found = paper.table(row["table"], **{key: row[key] for key in paper.KEYS if key != "table"})
    assert len(found) == 1
    assert found["value"].item() == row["value"]
    np.testing.assert_equal(found["std"].item(), row["std"])


def test_a_number_of_the_paper():
    # table 2, fine-tuning, RTE, as printed: 0.036(0.029)
    found = paper.table(2, task="rte", method="gptfluence", statistic="all_steps_mse")
    assert found[["value", "std"]].values.tolist() == [[0.036, 0.029]]


def test_unknown_keys_are_named_with_what_is_known():
    with pytest.raises(ConfigurationError, match=r"task 'sst3' is not known; known: .*sst2.*did you mean 'sst2'"):
        paper.table(2, task="sst3", method="gptfluence", statistic="all_steps_mse")
    with pytest.raises(ConfigurationError, match="table '5' is not known; known: 1, 2, 3, 4"):
        paper.table(5)
    with pytest.raises(ConfigurationError, match="column 'modell' is not known"):
        paper.table(1, modell="pythia-1b")


def test_what_fits_several_numbers_gives_them_all():
    found = paper.table(1, task="rte", method="gptfluence", statistic="all_steps_mse")
    assert found["model"].tolist() == ["pythia-410m", "pythia-1b", "pythia-2.8b"]


def test_hyperparameters_are_numbers_and_a_change_to_a_copy_changes_nothing():
    first = paper.hyperparameters()
    assert first["fine_tuning_gpt"]["learning_rate"]["sst2"] == 5e-7
    assert isinstance(first["gptfluence_instruction_tuning"]["reported_trainable_parameters"], float)
    runs = first["fine_tuning_gpt"]
    assert runs["steps"] == runs["subset_size"] // runs["batch_size"] * runs["epochs"]
    first["fine_tuning_gpt"].clear()
    assert paper.hyperparameters()["fine_tuning_gpt"]


# --- citing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def outputs(tmp_path):
    facts = {
        "caption": "Recorded & simulated loss. Nano models on generated tasks.",
        "command": "papermill notebooks/fig16_gallery.ipynb out.ipynb -p profile mini",
        "profile": "mini",
        "versions": {"gptfluence": "0.1.0"},
        "run": {"commit": "0123456789abcdef", "clean": True, "date": "2026-03-01T00:00:00+00:00"},
    }
    (tmp_path / "fig16_loss.json").write_text(json.dumps(facts))
    return tmp_path


def test_a_citation_holds_the_figure_the_paper_and_where_the_figure_comes_from(outputs):
    text = cite("fig16", outputs)
    assert text == cite("fig16_loss", outputs)
    assert "@misc{gptfluence-mini-fig16-loss," in text
    assert "@inproceedings{chai-etal-2024-training," in text
    assert r"Recorded \& simulated loss}" in text
    assert "commit 0123456789ab" in text
    assert "papermill notebooks/fig16_gallery.ipynb" in text
    assert text.count("{") == text.count("}")


def test_an_unknown_figure_is_an_error_that_lists_the_known_ones(outputs, tmp_path_factory):
    with pytest.raises(ConfigurationError, match="'fig17' is not known; known: fig16_loss"):
        cite("fig17", outputs)
    with pytest.raises(ConfigurationError, match="holds no figure or table yet; make some"):
        cite("fig17", tmp_path_factory.mktemp("empty"))


def test_an_abbreviation_of_two_figures_and_damaged_provenance_are_refused(outputs):
    (outputs / "fig16_bleu.json").write_text("{")
    with pytest.raises(ConfigurationError, match="fig16_bleu, fig16_loss"):
        cite("fig16", outputs)
    with pytest.raises(ArtifactError, match="run its notebook again"):
        cite("fig16_bleu", outputs)
