"""Mislabelled data: what is flipped, found and corrected; what nothing can be found in; scores against their definition."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gptfluence as gf
from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing.points import plot_curves
from gptfluence.drawing.readings import mean_and_range
from gptfluence.experiments.mislabelled import (
    Experiment,
    corrected,
    flip_labels,
    fraction_found,
    inspection_order,
    self_factors,
    self_influence,
)
from gptfluence.gradients.products import Replayer, chosen_parameters
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.recorder import Recorder
from gptfluence.recording.settings import AdamW, Recording
from gptfluence.recording.tokens import tokenize
from gptfluence.tasks import Example, TaskPool

CURRICULUM = Curriculum(np.array([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 5, 9, 2]]))
FAST = Recording(optimizer=AdamW(learning_rate=1e-2))


def labelled(labels, choices=(" no", " maybe", " yes")):
    examples = [Example(f"e{i}", f"text {i} :", choices[k], "t", k, choices) for i, k in enumerate(labels)]
    return TaskPool("t/pool", tuple(examples))


# --- flipping and correcting ----------------------------------------------------------------------------------------------


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
    assert corrected(wrong, pool, np.flatnonzero(flipped).tolist()) == pool
    assert corrected(wrong, pool, []) == wrong
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


@given(seed=st.integers(0, 99), size=st.integers(2, 20))
def test_found_is_the_share_of_flips_among_the_first_inspected(seed, size):
    rng = np.random.default_rng(seed)
    scores, flipped = rng.integers(0, 4, size), rng.random(size) < 0.5
    flipped[0] = True
    order = inspection_order(scores)
    assert (np.diff(scores[order]) <= 0).all()
    found = fraction_found(order, flipped, range(size + 1))
    for count in range(size + 1):
        assert found[count] == pytest.approx(len(set(order[:count]) & set(np.flatnonzero(flipped))) / flipped.sum())
    assert fraction_found(inspection_order(flipped), flipped, [flipped.sum()]) == 1  # a perfect score


def test_without_flips_there_is_nothing_to_find():
    with pytest.raises(ConfigurationError, match="no example is flipped"):
        fraction_found(np.arange(3), np.zeros(3, bool), [1])


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
        found = self_influence(recorder, CURRICULUM, parameters=which, checkpoints=2, seed=0)
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


# --- the experiment -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    quick = ("settings.fine_tuning.curriculum.epochs=1", "simulators.gptfluence={encoder: index, max_epochs: 2}")
    return gf.Study.load("smoke", quick, artifacts=tmp_path_factory.mktemp("artifacts"), jobs=1)


@pytest.fixture(scope="module")
def experiment(study):
    return Experiment(study, "sst2", seed=1, runs=1, checkpoints=2, learning_rate_factor=2)


def test_an_experiment_is_what_it_says(experiment, study, monkeypatch):
    assert len(experiment.task.pool) == study.setting().curriculum.subset_size
    assert experiment.flipped.sum() == round(0.4 * 16)
    assert set(experiment.curriculum.batches.ravel()) == set(range(16))
    assert experiment.dynamics.pool == experiment.task.pool
    assert experiment.dynamics.spec.recording.optimizer.learning_rate == pytest.approx(6e-3)
    scores = experiment.scores()
    np.testing.assert_array_equal(scores["gptfluence"], self_factors(experiment._simulator(), experiment.task.pool))
    assert (scores["tracin_cp"] > 0).all()
    found = experiment.found()
    for _, curve in found.groupby("method"):
        assert curve["value"].iloc[0] == 0
        assert curve["value"].iloc[-1] == 1
        assert curve["value"].is_monotonic_increasing
    accuracy = experiment.accuracy([0, 0.5, 1]).set_index(["inspected", "method"])["value"].unstack()
    assert accuracy.loc[0].nunique() == 1  # nothing inspected, or all: the same training, whatever the order
    assert accuracy.loc[1].nunique() == 1
    assert accuracy.stack().between(0, 1).all()
    clean = experiment._retrained(TaskPool("again", experiment.right.examples))
    assert accuracy.loc[1].iloc[0] == clean

    def fail(*_, **__):
        raise AssertionError("trained twice")

    monkeypatch.setattr(Experiment, "_retrained", fail)
    monkeypatch.setattr("gptfluence.experiments.mislabelled.self_influence", fail)
    again = Experiment(study, "sst2", seed=1, runs=1, checkpoints=2, learning_rate_factor=2)
    pd.testing.assert_frame_equal(again.accuracy([0, 0.5, 1]), experiment.accuracy([0, 0.5, 1]))


def test_seeds_flip_other_labels(study, experiment):
    other = Experiment(study, "sst2", seed=2, runs=1)
    assert not np.array_equal(other.flipped, experiment.flipped)
    assert other.curriculum != experiment.curriculum


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "webnlg"}, "webnlg/tests: example .* has no label"),
        ({"flipped_fraction": 0.0}, "flips none"),
        ({"runs": 0}, "runs must be 1 or more, not 0"),
        ({"checkpoints": 0}, "checkpoints must be 1 or more"),
        ({"parameters": "last"}, "'last' is not known; known: last_layer, all"),
        ({"learning_rate_factor": 0.0}, "learning_rate_factor must be positive"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused(study, options, said):
    with pytest.raises(ConfigurationError, match=said):
        Experiment(study, **options)


def test_inspected_fractions_are_fractions(experiment):
    with pytest.raises(ConfigurationError, match=r"inspected must be fractions from 0 to 1, not \[0, 20\]"):
        experiment.accuracy([0, 20])


# --- curves ---------------------------------------------------------------------------------------------------------------


def curves():
    rows = [("a", s, r, x, x + r) for s in ("gptfluence", "random") for r in (0, 1) for x in (0.0, 0.5, 1.0)]
    return pd.DataFrame(rows, columns=["panel", "series", "repeat", "x", "value"])


def test_lines_are_means_and_bands_reach_from_least_to_most():
    figure = plot_curves(curves(), xlabel="inspected", ylabels={"a": "found"})
    axis = figure.axes[0]
    for line in axis.lines:
        np.testing.assert_allclose(line.get_ydata(), [0.5, 1.0, 1.5])
    assert len(axis.lines) == len(axis.patches) == 2
    for band in axis.patches:
        heights = band.get_xy()[:, 1]
        assert (heights.min(), heights.max()) == (0, 2)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("inspected", "found")
    said = mean_and_range(curves(), 0.6)
    assert said == "at 0.50: GPTfluence 1.00 (0.50 to 1.50), Random 1.00 (0.50 to 1.50)"


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (curves().drop(columns="repeat"), "no column repeat"),
        (curves().iloc[:0], "the frame is empty"),
        (curves().assign(panel="b"), "panel 'b' has no label"),
    ],
)
def test_frames_that_cannot_be_drawn_are_refused(frame, said):
    with pytest.raises(ConfigurationError, match=said):
        plot_curves(frame, xlabel="x", ylabels={"a": "y"})
