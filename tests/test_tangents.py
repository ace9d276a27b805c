"""Tangents: equal to gradients taken one by one, unbiased when sampled, cached, and harmless to the GPT."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfluence.common.errors import ConfigurationError
from gptfluence.gradients.coordinates import Coordinates, Tangents, sample
from gptfluence.gradients.tangents import TangentFeatures
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import LoRA
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.recorder import Recorder
from gptfluence.recording.settings import Recording
from gptfluence.recording.tokens import tokenize
from gptfluence.tasks import TaskPool

ALL = 10**9  # more coordinates than any model here has


def few(pool: TaskPool, count: int) -> TaskPool:
    return TaskPool(pool.name, pool.examples[:count])


def losses(tangents) -> np.ndarray:
    """float64 [examples]: what the outputs say the loss is, one token at a time."""
    outputs = tangents.outputs[0].astype(np.float64)
    tokens = []
    for token in range(len(tangents.example)):
        mine = tangents.token == token
        tokens.append(np.log1p(np.exp(outputs[mine]).sum()) - outputs[mine & tangents.target].item())
    return np.array(
        [
            np.mean([t for t, e in zip(tokens, tangents.example, strict=True) if e == i])
            for i in range(tangents.examples)
        ]
    )


def loop_gradients(gpt, pool: TaskPool, words) -> list[torch.Tensor]:
    """The gradient of each output of single-token targets, by one backward pass each."""
    parameters = list(gpt.model.parameters())
    rows = []
    for tokens in tokenize(pool, gpt):
        for a in words:
            logits = gpt.model(input_ids=torch.tensor(tokens.ids)[None, :-1]).logits[0, -1]
            rest = [b for b in range(len(logits)) if b not in words]
            output = logits[a] - torch.logsumexp(logits[rest], 0)
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(output, parameters)]))
    return rows


@pytest.fixture(scope="module")
def words(gpt, sst2):
    return sorted(gpt.tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in sst2.pool[0].choices)


def test_outputs_and_gradients_are_those_of_a_loop_of_backward_passes(gpt, sst2, words):
    features = TangentFeatures(gpt, sst2.pool, Recording(), coordinates=ALL)
    tangents = features.of(few(sst2.tests, 3), trained=False)
    expected = torch.stack(loop_gradients(gpt, few(sst2.tests, 3), words)).numpy()
    found = tangents.gradients[0].astype(np.float32) * tangents.scale[0][:, None]
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("task", ["sst2", "webnlg"])
def test_outputs_give_back_the_recorded_loss_exactly(task, gpt, request):
    data = request.getfixturevalue(task)
    features = TangentFeatures(gpt, data.pool, Recording(), coordinates=50, candidates=3)
    with Recorder(gpt, data.pool, data.tests, Recording()) as recorder:
        run = recorder.record("run-000", Curriculum(np.zeros((1, 1), int)))
    np.testing.assert_allclose(losses(features.of(data.tests, trained=False)), run.trajectories["loss"][0], atol=2e-5)


def kernel(of: Tangents, on: Tangents, coordinates: Coordinates, *, parameter: int | None = None) -> np.ndarray:
    """Empirical tangent kernel at the base model, float32 [outputs of `of`, outputs of `on`]: <grad f_a, grad f_b>.

    An unbiased estimate from the sampled coordinates, exact if all are kept. parameter: of this parameter alone.
    """
    kept = slice(None) if parameter is None else coordinates.parameter == parameter
    left, right = (t.gradients[0][:, kept].astype(np.float32) * t.scale[0][:, None] for t in (of, on))
    return (left * coordinates.weight[kept]) @ right.T


def test_kernel_is_the_product_of_gradients_and_the_sum_of_its_parameters(gpt, webnlg):
    features = TangentFeatures(gpt, webnlg.pool, Recording(), coordinates=ALL, candidates=2)
    tests, pool = features.of(few(webnlg.tests, 1), trained=False), features.of(few(webnlg.pool, 2), trained=True)
    left, right = (t.gradients[0].astype(np.float64) * t.scale[0][:, None] for t in (tests, pool))
    expected = np.array([[a @ b for b in right] for a in left])
    found = kernel(tests, pool, features.coordinates)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    parameters = range(len(list(gpt.model.parameters())))
    parts = sum(kernel(tests, pool, features.coordinates, parameter=k) for k in parameters)
    np.testing.assert_allclose(parts, found, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_sample_of_coordinates_estimates_the_kernel_without_bias(gpt, sst2):
    exact = TangentFeatures(gpt, sst2.pool, Recording(), coordinates=ALL)
    truth = kernel(exact.of(sst2.tests, trained=False), exact.of(sst2.pool, trained=True), exact.coordinates)
    estimates = []
    for seed in range(6):
        sampled = TangentFeatures(gpt, sst2.pool, Recording(), coordinates=600, seed=seed)
        estimates.append(
            kernel(sampled.of(sst2.tests, trained=False), sampled.of(sst2.pool, trained=True), sampled.coordinates)
        )
    noise = np.std(estimates, axis=0, ddof=1) / np.sqrt(len(estimates))
    assert np.abs(np.mean(estimates, axis=0) - truth).mean() < 2 * noise.mean()
    assert np.abs(estimates[0] - truth).mean() < 0.2 * np.abs(truth).mean()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=40).filter(lambda v: sum(v) > 0.1), st.integers(1, 30))
def test_each_coordinate_is_drawn_as_often_as_its_probability_says(importance, size):
    importance = np.array(importance)
    total = np.zeros(len(importance))
    for seed in range(200):
        index, weight = sample(importance, size, seed)
        total[index] += weight
        assert len(index) <= size + 1
    p = 0.95 * importance / importance.sum() + 0.05 / len(importance)
    tolerance = 5 / np.sqrt(200 * np.minimum(size * p, 1))
    assert (np.abs(total / 200 - 1) < tolerance).all()


def test_coordinates_are_drawn_alike_however_many_are_looked_at_together(monkeypatch):
    importance = np.random.default_rng(0).exponential(size=1000) ** 4
    whole = sample(importance, 100, 0)
    monkeypatch.setattr("gptfluence.gradients.coordinates.CHUNK", 7)
    for found, expected in zip(sample(importance, 100, 0), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_gpt_is_given_back_as_it_came(nano, sst2):
    gpt = nano.load()
    gpt.model.train()
    before = {name: p.detach().clone() for name, p in gpt.model.named_parameters()}
    reference = Curriculum(np.arange(8).reshape(4, 2))
    features = TangentFeatures(gpt, sst2.pool, Recording(), coordinates=50, reference=reference, checkpoints=[2, 4])
    assert features.of(few(sst2.tests, 2), trained=False).outputs.shape[0] == 3
    assert gpt.model.training
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in gpt.model.named_parameters())


def test_checkpoints_are_those_of_the_recorder(nano, sst2):
    recording = Recording.model_validate({"optimizer": {"learning_rate": 1e-3}})
    reference = Curriculum(np.arange(8).reshape(4, 2))
    with Recorder(nano.load(), sst2.pool, sst2.tests, recording) as recorder:
        run = recorder.record("run-000", reference)
    features = TangentFeatures(nano.load(), sst2.pool, recording, coordinates=50, reference=reference, checkpoints=[3])
    tangents = features.of(sst2.tests, trained=False)
    outputs = torch.from_numpy(tangents.outputs[1]).view(len(sst2.tests), -1)
    target = torch.from_numpy(tangents.target).view(len(sst2.tests), -1).int().argmax(1)
    found = F.cross_entropy(torch.cat([outputs, torch.zeros(len(outputs), 1)], 1), target, reduction="none")
    np.testing.assert_allclose(found, run.trajectories["loss"][3], atol=1e-4)
    np.testing.assert_allclose(features.along_reference(sst2.tests), run.trajectories["loss"], atol=1e-4)
    with pytest.raises(ConfigurationError, match="no reference run to follow"):
        TangentFeatures(nano.load(), sst2.pool, recording, coordinates=50).along_reference(sst2.tests)


def test_what_is_taken_is_cached_and_a_damaged_cache_is_taken_again(nano, sst2, tmp_path, monkeypatch):
    make = lambda: TangentFeatures(nano, sst2.pool, Recording(), coordinates=50, cache=tmp_path)  # noqa: E731
    first = make().of(sst2.tests, trained=False)
    monkeypatch.setattr(TangentFeatures, "_take", None)  # a second look must not need it
    again = make().of(sst2.tests, trained=False)
    assert np.array_equal(first.gradients, again.gradients)
    monkeypatch.undo()
    file = next(tmp_path.glob("*/target-*/*.safetensors"))
    assert len(list(file.parents[1].glob("*/*.safetensors"))) == 1 + len(sst2.tests)  # coordinates and examples
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"tangents: .*; set aside as .*, made again"):
        mended = make().of(sst2.tests, trained=False)
    assert np.array_equal(first.gradients, mended.gradients)


def test_what_is_taken_before_training_serves_every_reference_run(nano, webnlg, tmp_path, monkeypatch):
    reference = Curriculum(np.arange(8).reshape(4, 2))
    make = lambda pool=webnlg.pool, **options: TangentFeatures(  # noqa: E731
        nano, pool, Recording(), coordinates=50, candidates=3, cache=tmp_path, **options
    )
    base = make().of(webnlg.tests, trained=False)
    alone = make(reference=reference, checkpoints=[2, 4])
    brought, taken = TangentFeatures._brought_to, []
    monkeypatch.setattr(TangentFeatures, "_brought_to", lambda self, at: taken.append(at) or brought(self, at))
    both = alone.of(webnlg.tests, trained=False)
    assert taken == [1, 2]
    for key in ("outputs", "gradients", "scale"):
        assert np.array_equal(getattr(both, key)[:1], getattr(base, key))
    taken.clear()
    one = make(reference=reference, checkpoints=[4]).of(webnlg.tests, trained=False)
    assert not taken
    assert np.array_equal(one.gradients, both.gradients[[0, 2]])
    assert np.array_equal(one.token, both.token)
    assert one.outputs.shape[1] == len(one.token) == len(one.word) == len(one.target)
    fresh = TangentFeatures(
        nano.load(), webnlg.pool, Recording(), coordinates=50, candidates=3, reference=reference, checkpoints=[2, 4]
    ).of(webnlg.tests, trained=False)
    np.testing.assert_allclose(fresh.outputs, both.outputs, atol=1e-4)


def test_a_set_of_examples_is_its_examples_joined(gpt, webnlg):
    features = TangentFeatures(gpt, webnlg.pool, Recording(), coordinates=50, candidates=2)
    whole = features.of(few(webnlg.pool, 3), trained=True)
    last = features.of(TaskPool("last", webnlg.pool[2:3]), trained=True)
    assert whole.examples == 3
    mine = whole.example[whole.token] == 2
    assert np.array_equal(whole.outputs[:, mine], last.outputs)
    assert np.array_equal(whole.token[mine] - whole.token[mine][0], last.token)
    np.testing.assert_allclose(losses(whole)[2:], losses(last), rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ({"optimizer": {"learning_rate": 2e-3}}, {}),
        ({"optimizer": {"learning_rate": 1e-3, "schedule": "constant"}}, {}),
        ({}, {"reference": Curriculum(np.arange(8)[::-1].reshape(4, 2))}),
        ({}, {"checkpoints": [2]}),
        ({"train_tokens": "all"}, {}),
        ({"truncation": "prompt"}, {}),
        ({}, {"coordinates": 51}),
        ({}, {"seed": 1}),
        ({"loss_tokens": "last"}, {}),
    ],
)
def test_what_was_taken_otherwise_is_not_used(changed, options, nano, sst2, tmp_path, monkeypatch):
    given = {
        "coordinates": 50,
        "reference": Curriculum(np.arange(8).reshape(4, 2)),
        "checkpoints": [3],
        "cache": tmp_path,
    }
    tests = few(sst2.tests, 1)

    def make(changed, options):
        recording = Recording.model_validate({"optimizer": {"learning_rate": 1e-3}} | changed)
        return TangentFeatures(nano, sst2.pool, recording, **given | options)

    make({}, {}).of(tests, trained=False)
    make({}, {}).along_reference(tests)

    def refuse(*_given):
        raise RuntimeError("taken again")

    monkeypatch.setattr(TangentFeatures, "_take", refuse)
    monkeypatch.setattr(TangentFeatures, "_measured", refuse)
    make({}, {}).of(tests, trained=False)
    make({}, {}).along_reference(tests)
    with pytest.raises(RuntimeError, match="taken again"):
        make(changed, options).of(tests, trained=False)
    if not options.keys() & {"checkpoints", "coordinates", "seed"}:  # on these no loss depends
        with pytest.raises(RuntimeError, match="taken again"):
            make(changed, options).along_reference(tests)


def test_entries_of_other_coordinates_or_outputs_are_not_mixed(nano, webnlg, tmp_path, monkeypatch):
    """A cache that is made again in part, on another machine, may have another rounding: what hangs on it is made again, too."""
    reference = Curriculum(np.arange(8).reshape(4, 2))
    tests = few(webnlg.tests, 1)

    def taken(**options) -> TangentFeatures:
        features = TangentFeatures(
            nano, webnlg.pool, Recording(), coordinates=50, cache=tmp_path, reference=reference, checkpoints=[2]
        )
        features.candidates = options.get("candidates", 3)
        return features

    first = taken().of(tests, trained=False)
    (place,) = (p for p in tmp_path.glob("*/target-*") if p.parent.name.count("-") == 2)
    shutil.rmtree(place)
    again = taken(candidates=2).of(tests, trained=False)
    assert again.gradients.shape[0] == 2
    assert again.gradients.shape[1] < first.gradients.shape[1]


def test_a_kill_loses_one_example(nano, webnlg, tmp_path, monkeypatch):
    make = lambda: TangentFeatures(nano, webnlg.pool, Recording(), coordinates=50, candidates=2, cache=tmp_path)  # noqa: E731
    take, taken = TangentFeatures._take, []

    def killed(self, scored, batch, example, known):
        taken.append(example.id)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return take(self, scored, batch, example, known)

    monkeypatch.setattr(TangentFeatures, "_take", killed)
    with pytest.raises(KeyboardInterrupt):
        make().of(webnlg.tests, trained=False)
    ids = [example.id for example in webnlg.tests]
    assert taken == ids[:3]
    make().of(webnlg.tests, trained=False)
    assert taken[3:] == ids[2:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinates": 0}, "coordinates"),
        ({"mass": 1.5}, "mass"),
        ({"checkpoints": [3]}, "reference"),
        ({"checkpoints": [9], "reference": Curriculum(np.zeros((4, 2), int))}, "steps 1 to 4"),
    ],
)
def test_bad_arguments_are_named(options, message, gpt, sst2):
    with pytest.raises(ConfigurationError, match=message):
        TangentFeatures(gpt, sst2.pool, Recording(), **options)


def test_a_cache_asks_for_what_tells_gpts_apart(gpt, sst2, tmp_path):
    with pytest.raises(ConfigurationError, match="ModelSource"):
        TangentFeatures(gpt, sst2.pool, Recording(), cache=tmp_path)


def test_adapters_are_the_coordinates_of_lora_and_only_b_moves_at_first(nano, sst2):
    config = nano.config.model_copy(update={"lora": LoRA(rank=2, dropout=0.0)})
    gpt = ModelSource("nano-lora", config, nano.cache, nano.corpus).load()
    features = TangentFeatures(gpt, sst2.pool, Recording(), coordinates=ALL)
    names = [name for name, p in gpt.model.named_parameters() if p.requires_grad]
    gradients = features.of(few(sst2.tests, 2), trained=False).gradients[0]
    assert names
    for k, name in enumerate(names):
        moves = gradients[:, features.coordinates.parameter == k].any()
        assert moves == ("lora_B" in name), name
