"""Mislabelled data: what is flipped, found and corrected; what nothing can be found in; scores against their definition."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gptfluence as gf
from gptfluence.common.errors import ConfigurationError
from gptfluence.experiments import mislabelled
from gptfluence.experiments.mislabelled import (
    Experiment,
    both_versions,
    corrected,
    flip_labels,
    self_effects,
    self_influence,
    self_shares,
)
from gptfluence.gradients.products import Replayer, chosen_parameters
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.kinds import replaced
from gptfluence.recording.recorder import Recorder
from gptfluence.recording.settings import AdamW, Recording
from gptfluence.recording.tokens import tokenize
from toy_dynamics import labelled

CURRICULUM = Curriculum(np.array([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 5, 9, 2]]))
FAST = Recording(optimizer=AdamW(learning_rate=1e-2))


# --- flipping and correcting ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 2), min_size=4, max_size=30).filter(lambda labels: len(set(labels)) > 1),
    fraction=st.floats(0.2, 0.7),
    seed=st.integers(0, 99),
)
def test_the_asked_fraction_is_flipped_and_nothing_else_changes(labels, fraction, seed):
    pool = labelled(labels)
    wrong, flipped = flip_labels(pool, fraction, np.random.default_rng(seed))
    assert flipped.sum() == round(fraction * len(pool))
    for before, after, changed in zip(pool, wrong, flipped, strict=True):
        assert (after.id, after.prompt, after.choices) == (before.id, before.prompt, before.choices)
        assert after.target == after.choices[after.label]
        assert (after.label != before.label) == changed
    again, _ = flip_labels(pool, fraction, np.random.default_rng(seed))
    assert again == wrong


@pytest.mark.parametrize(
    ("labels", "fraction", "said"),
    [
        ([1, 1, 1, 1], 0.5, "all 4 examples have the label 'maybe'.*a pool with two"),
        ([0, 1, 0, 1], 0.0, "a fraction of 0.0 of 4 examples flips none"),
        ([0, 1, 0, 1], 0.1, "a fraction of 0.1 of 4 examples flips none"),
        ([0, 1, 0, 1], 1.0, "flips too many"),
        ([0, 1, 0, 1], -0.5, "flips too many"),
    ],
)
def test_flips_that_show_nothing_are_refused(labels, fraction, said):
    with pytest.raises(ConfigurationError, match=said):
        flip_labels(labelled(labels), fraction, np.random.default_rng(0))


def test_free_text_has_no_labels_to_flip(webnlg):
    with pytest.raises(ConfigurationError, match=r"webnlg/pool: example '.*' has no label"):
        flip_labels(webnlg.pool, 0.4, np.random.default_rng(0))


@settings(deadline=None)
@given(seed=st.integers(0, 99), inspected=st.sets(st.integers(0, 11)))
def test_corrected_curricula_show_the_right_label_of_what_was_inspected_and_nothing_else_new(seed, inspected):
    pool = labelled([0, 1, 2] * 4)
    wrong, flipped = flip_labels(pool, 0.5, np.random.default_rng(seed))
    shown = corrected(CURRICULUM, flipped, sorted(inspected))
    versions = both_versions(wrong, pool)
    for row, new in zip(CURRICULUM.batches.ravel(), shown.batches.ravel(), strict=True):
        example = versions[new]
        expected = pool[row] if row in inspected else wrong[row]
        assert (example.text, example.label) == (expected.text, expected.label)
    # what makes no difference is the same curriculum, so that it is trained once
    assert corrected(CURRICULUM, flipped, [*inspected, *np.flatnonzero(~flipped)]) == shown
    assert corrected(CURRICULUM, flipped, []) == CURRICULUM


# --- scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["last_layer", "all"])
def test_self_influence_is_the_sum_over_checkpoints_of_squared_gradients(nano, sst2, which):
    gpt, kept = nano.load(), []

    def keep(_):
        kept.append(nano.load().model)
        kept[-1].load_state_dict(gpt.model.state_dict())

    with Recorder(gpt, sst2.pool, sst2.tests, FAST) as recorder:
        recorder.record("train-000", CURRICULUM, on_step=keep)
    with Replayer(gpt, sst2.pool, sst2.tests, FAST) as recorder:
        found, run = self_influence(recorder, CURRICULUM, parameters=which, checkpoints=2, seed=0)
    assert run.curriculum == CURRICULUM
    rates, names = FAST.optimizer.learning_rates(4), list(chosen_parameters(gpt.model, which))
    expected = np.zeros(len(sst2.pool))
    for state in (0, 3):  # the first and the last before an update
        own = dict(kept[state].named_parameters())
        for row, example in enumerate(tokenize(sst2.pool, gpt)):
            ids = torch.from_numpy(example.ids)[None]
            labels = ids.clone()
            labels[:, : example.target_start] = -100
            gradient = torch.autograd.grad(kept[state](ids, labels=labels).loss, [own[name] for name in names])
            expected[row] += rates[state] * sum(float(part.square().sum()) for part in gradient)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_accuracy_compares_the_likelihoods_of_whole_labels(nano, sst2):
    gpt = nano.load()
    with Recorder(gpt, sst2.pool, sst2.tests, FAST, metrics=("loss", "accuracy")) as recorder:
        run = recorder.record("train-000", CURRICULUM, ends_only=True)
    found = run.trajectories["accuracy"][0].mean()
    right = []
    for example in sst2.tests:
        scores = []
        for choice in example.choices:
            prompt, target = (gpt.tokenizer(text)["input_ids"] for text in (example.prompt, choice))
            with torch.no_grad():
                logits = gpt.model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
            scores.append(sum(float(logits[len(prompt) + k - 1, token]) for k, token in enumerate(target)))
        right.append(int(np.argmax(scores)) == example.label)
    assert found == pytest.approx(np.mean(right))


def test_an_example_is_charged_with_what_its_own_loss_is_without_it():
    class Told:
        """Simulates, for each curriculum, a loss that counts how often an example was not seen."""

        def simulate(self, curricula, observed, *, pool, tests):
            assert observed.shape == (1, 1, len(pool))
            seen = np.stack([np.bincount(c.batches.ravel(), minlength=len(pool)) for c in curricula])
            return np.repeat((observed[:, 0] - seen)[:, None], curricula[0].steps + 1, axis=1)

    pool = labelled([0, 1] * 6)
    found = self_effects(Told(), CURRICULUM, pool, np.arange(12.0), seed=[3])
    assert found.tolist() == np.bincount(CURRICULUM.batches.ravel()).tolist()
    # others take its places, and each example's stand-ins are drawn for themselves
    one = replaced(CURRICULUM, [4], np.random.default_rng([3, 4]))
    assert 4 not in one.batches
    assert one.batches.shape == CURRICULUM.batches.shape


# --- the experiment -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    quick = (
        "settings.fine_tuning.curriculum.epochs=1",
        "simulators.gptfluence={encoder: index, max_epochs: 2}",
        "simulators.tangent={coordinates: 64}",
    )
    return gf.Study.load("smoke", quick, artifacts=tmp_path_factory.mktemp("artifacts"), jobs=1)


def small(study, seed=1, **options):
    return Experiment(study, "sst2", seed=seed, **{"runs": 1, "tests": 10, "checkpoints": 2, **options})


@pytest.fixture(scope="module")
def experiment(study):
    return small(study)


def test_an_experiment_is_what_it_says(experiment, study):
    assert len(experiment.task.pool) == study.setting().curriculum.subset_size
    assert experiment.flipped.sum() == round(0.4 * 16)
    assert set(experiment.curriculum.batches.ravel()) == set(range(16))
    assert experiment.dynamics.pool == experiment.task.pool
    assert experiment.dynamics.tests == study.texts.known("sst2").tests
    # the campaign's own way of training
    of_campaign = study.campaign("fine_tuning", "sst2").setting
    for ours in (experiment.campaign.setting, experiment.retraining.setting):
        assert ours.recording.optimizer == of_campaign.recording.optimizer
        assert (ours.curriculum.batch_size, ours.curriculum.epochs) == (4, 1)
    # simulators are fitted on the first of the tests that accuracies are measured on
    assert len(experiment.retraining.texts.tests) == 10
    assert experiment.retraining.texts.tests[:6] == experiment.dynamics.tests.examples


def test_scores_are_those_of_each_method(experiment):
    scores, pool = experiment.scores, experiment.task.pool
    assert list(scores) == [
        ("tracin_cp", ""),
        ("gptfluence", ""),
        ("gptfluence", "untrained"),
        ("tangent", ""),
        ("own_loss", ""),
    ]
    fitted = experiment.campaign.simulator("gptfluence")
    np.testing.assert_array_equal(scores["gptfluence", ""], self_shares(fitted, pool))
    np.testing.assert_array_equal(scores["gptfluence", "untrained"], self_shares(fitted.untrained(), pool))
    assert not np.array_equal(scores["gptfluence", ""], scores["gptfluence", "untrained"])
    assert (scores["tracin_cp", ""] > 0).all()
    # a training example's own loss is recorded while it is trained on
    curriculum, recording = experiment.curriculum, experiment.campaign.setting.recording
    gpt = experiment.campaign.study.model(experiment.campaign.model).load()
    options = recording.model_copy(update={"record_pool": True})
    with Recorder(gpt, pool, experiment.task.tests, options) as recorder:
        losses = recorder.record("again", curriculum).pool_trajectories["loss"]
    np.testing.assert_allclose(scores["own_loss", ""], losses[1:].mean(axis=0), rtol=1e-5)
    assert not np.array_equal(scores["tangent", ""], np.zeros(16))


def test_methods_have_the_options_of_the_setting():
    own = ("settings.fine_tuning.simulators={tangent: {coordinates: 32}}",)
    options = small(gf.Study.load("smoke", own, jobs=1))._linearisation.options
    assert (options.coordinates, options.use_corrections) == (32, False)


def test_untrained_is_what_a_fit_begins_with(experiment):
    variant = experiment.campaign.study.variant("gptfluence", max_epochs=1, learning_rate=1e-12, weight_decay=0.0)
    hardly = experiment.campaign.simulator(variant)
    fitted = experiment.campaign.simulator("gptfluence")
    np.testing.assert_allclose(fitted.untrained().tables(), hardly.tables(), atol=1e-6)
    assert not np.allclose(fitted.tables(), hardly.tables(), atol=1e-6)
    with pytest.raises(ConfigurationError, match="not fitted yet"):
        gf.GPTfluence().untrained()


def test_simulators_of_deviations_are_asked_what_an_example_adds(experiment, study):
    deviating = study.with_overrides("simulators.gptfluence.target=deviation")
    other = small(deviating)
    fitted, pool = other.campaign.simulator("gptfluence"), other.task.pool
    tables = fitted.tables(pool=pool, tests=pool)
    np.testing.assert_array_equal(other.scores["gptfluence", ""], [tables[1, k, k] for k in range(len(pool))])
    untrained = fitted.untrained().tables(pool=pool, tests=pool)
    np.testing.assert_array_equal(other.scores["gptfluence", "untrained"], np.diagonal(untrained[1]))
    assert "(B_ii)" in other.score_of_gptfluence
    assert "(A_ii)" in experiment.score_of_gptfluence
    assert np.array_equal(
        experiment.scores["gptfluence", ""],
        np.diagonal(experiment.campaign.simulator("gptfluence").tables(pool=pool, tests=pool)[0]),
    )


def test_what_was_made_is_found_again(experiment, study, monkeypatch):
    found = experiment.found()
    for _, curve in found.groupby(["series", "variant"]):
        assert curve["value"].iloc[0] == 0
        assert curve["value"].iloc[-1] == 1
        assert curve["value"].is_monotonic_increasing
    accuracy = experiment.accuracy([0, 0.5, 1])
    wide = accuracy.set_index(["x", "series", "variant"])["value"].unstack(["series", "variant"])
    assert "random" in wide
    assert wide.loc[0].nunique() == 1  # nothing inspected, or all: the same training, whatever the order
    assert wide.loc[1].nunique() == 1
    assert accuracy["value"].between(0, 1).all()
    # after correcting everything it is a training on the right labels
    chosen = study.campaign("fine_tuning", "sst2").with_(metrics=["loss", "accuracy"], record_pool=False)
    texts = gf.tasks.Task("sst2", experiment.right, experiment.retraining.texts.tests)
    clean = chosen.with_(texts=texts).record(experiment.curriculum, ends_only=True)
    values = clean.trajectories("accuracy")[0].mean(axis=1)
    ends = experiment.accuracies()
    assert wide.loc[1].iloc[0] == pytest.approx(values[-1]) == ends["right"]
    assert wide.loc[0].iloc[0] == ends["flipped"]
    assert ends["before"] == pytest.approx(values[0])

    def fail(*_, **__):
        raise AssertionError("made twice")

    for name in ("self_influence", "self_effects"):
        monkeypatch.setattr(mislabelled, name, fail)
    monkeypatch.setattr("gptfluence.recording.recorder.Recorder.record", fail)
    again = small(study)
    pd.testing.assert_frame_equal(again.accuracy([0, 0.5, 1]), accuracy)
    pd.testing.assert_frame_equal(again.found(), found)


def test_seeds_flip_other_labels(study, experiment):
    other = small(study, seed=2)
    assert not np.array_equal(other.flipped, experiment.flipped)
    assert other.curriculum != experiment.curriculum


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "webnlg"}, "webnlg/tests: example .* has no label"),
        ({"flipped_fraction": 0.0}, "flips none"),
        ({"runs": 0}, "runs must be 1 or more, not 0"),
        ({"tests": 0}, "tests must be 1 or more, not 0"),
        ({"checkpoints": 0}, "checkpoints must be 1 or more"),
        ({"parameters": "last"}, "'last' is not known; known: last_layer, all"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused(study, options, said):
    with pytest.raises(ConfigurationError, match=said):
        Experiment(study, **options)


def test_inspected_fractions_are_fractions(experiment):
    with pytest.raises(ConfigurationError, match=r"inspected must be fractions from 0 to 1, not \[0, 20\]"):
        experiment.accuracy([0, 20])


def test_results_are_means_over_seeds_beside_chance_and_the_paper(study, experiment):
    other = small(study, seed=2)
    frame = mislabelled.results([experiment, other], [0.0, 0.5])
    area = frame[frame["panel"] == gf.inspection.AUC]
    for method, variant in experiment.scores:
        rows = area[(area["series"] == method) & (area["variant"] == variant)]
        both = [one.area().set_index(["series", "variant"])["value"][method, variant] for one in (experiment, other)]
        assert rows.loc[rows["repeat"].notna(), "value"].tolist() == pytest.approx(both)
        assert rows.loc[rows["repeat"].isna(), "value"].tolist() == pytest.approx([np.mean(both)])
    assert area.loc[area["series"] == "random", "value"].tolist() == [0.5]
    found = frame[(frame["panel"] == gf.inspection.FOUND) & (frame["series"] == "random")]
    assert (found["value"] == found["x"]).all()
    [theirs] = frame[frame["series"] == "paper"].to_dict("records")
    assert (theirs["x"], theirs["value"], theirs["flipped"]) == (0.0, 0.53, 0.4)
    fifth = mislabelled.results([small(study, flipped_fraction=0.2)], [0.0])
    assert "paper" not in set(fifth["series"])  # which flips 40%
    assert np.isnan(fifth[fifth["repeat"].isna() & (fifth["series"] == "own_loss")]["low"]).all()
    learned = mislabelled.accuracies([experiment, other])
    expected = np.mean([experiment.accuracies()["flipped"], other.accuracies()["flipped"]])
    assert learned.loc[0.4, "flipped"] == pytest.approx(expected)
