"""TracIn-CP and Grad-Dot: equal to a gradient for each example and checkpoint, on the run that was recorded, and cached."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gptfluence as gf
from gptfluence.common.errors import ConfigurationError, ModelError, RecordingError
from gptfluence.gradients.products import Replayer, chosen_parameters
from gptfluence.models.gpt import GPT, ModelSource
from gptfluence.models.settings import LoRA
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.recorder import Recorder
from gptfluence.recording.settings import AdamW, Recording
from gptfluence.recording.tokens import tokenize
from gptfluence.simulators import applicable, replay
from gptfluence.simulators.options import Variant, read_options
from gptfluence.simulators.tracin import GradDot, TracIn, TracIn10, TracInAll

CURRICULUM = Curriculum(np.array([[0, 1, 2, 3], [4, 5, 6, 7], [3, 8, 9, 0], [3, 3, 10, 11], [1, 2, 6, 8]]))
FAST = AdamW(learning_rate=1e-2)


def replayer(gpt, task, **options):
    return Replayer(gpt, task.pool, task.tests, Recording(optimizer=FAST, **options))


def plain_gradient(model, example, parameters, which="target"):
    """The gradient of an example's loss as `model(input_ids, labels)` has it, with no padding: one flat vector."""
    ids = torch.from_numpy(example.ids)[None]
    labels = torch.full_like(ids, -100)
    start = {"target": example.target_start, "all": 0, "last": ids.shape[1] - 1}[which]
    labels[0, start:] = ids[0, start:]
    own = dict(model.named_parameters())
    loss = model(ids, labels=labels).loss
    found = torch.autograd.grad(loss, [own[name] for name in parameters], allow_unused=True)
    return torch.cat([(g if g is not None else torch.zeros_like(own[n])).flatten() for n, g in zip(parameters, found)])  # noqa: B905


def plain_gradients(model, examples, parameters, which="target"):
    return torch.stack([plain_gradient(model, example, parameters, which) for example in examples])


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()), rtol=1e-4)


def products(recorder, gradients, directions):
    found = torch.empty(len(directions), len(recorder.tests))
    for batch in recorder.test_batches:
        for row, values in enumerate(gradients.products(batch, directions)):
            found[row, batch.rows] = values
    return found.numpy()


def tiny(kind: str, vocabulary: int) -> nn.Module:
    """Architectures that differ in what a layer is: learned positions, transposed and tied weights, norms of their own."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=128)
        ).eval()
    if kind == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **sizes)).eval()
    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return OPTForCausalLM(
        OPTConfig(vocab_size=vocabulary, word_embed_proj_dim=16, max_position_embeddings=128, **sizes)
    ).eval()


# --- inner products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["last_layer", "all"])
@pytest.mark.parametrize("name", ["sst2", "webnlg"])
def test_products_are_those_of_a_gradient_for_each_example(nano, request, name, which):
    task = request.getfixturevalue(name)
    gpt = nano.load()
    with replayer(gpt, task, token_budget=100) as recorder:
        gradients = recorder.gradients(which)
        directions = [gradients.gradient(recorder.pool_batch(rows)) for rows in ([0, 1, 2, 3], [5, 5, 7, 8])]
        found = products(recorder, gradients, directions)
        norms = recorder.squared_norms(gradients).numpy()
    model = nano.load().model
    of_pool = plain_gradients(model, tokenize(task.pool, gpt), gradients.parameters)
    of_tests = plain_gradients(model, tokenize(task.tests, gpt), gradients.parameters)
    for row, batch in enumerate(([0, 1, 2, 3], [5, 5, 7, 8])):
        assert_close(found[row], (of_tests @ of_pool[batch].sum(0)).numpy())
    assert_close(norms, of_pool.square().sum(1).numpy())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("which", ["last_layer", "all"])
def test_other_architectures(gpt, webnlg, kind, which):
    model = tiny(kind, len(gpt.tokenizer))
    other = GPT(kind, model, gpt.tokenizer, 128)
    with replayer(other, webnlg, loss_tokens="all") as recorder:
        gradients = recorder.gradients(which)
        directions = [gradients.gradient(recorder.pool_batch([0, 4, 5]))]
        found, norms = products(recorder, gradients, directions), recorder.squared_norms(gradients).numpy()
    of_pool = plain_gradients(model, tokenize(webnlg.pool, other), gradients.parameters)
    of_tests = plain_gradients(model, tokenize(webnlg.tests, other), gradients.parameters, "all")
    assert_close(found[0], (of_tests @ of_pool[[0, 4, 5]].sum(0)).numpy())
    assert_close(norms, of_pool.square().sum(1).numpy())


def test_adapters_are_all_that_counts_with_lora(nano, sst2):
    source = ModelSource("nano-lora", nano.config.model_copy(update={"lora": LoRA(rank=2)}), nano.cache, nano.corpus)
    with replayer(source.load(), sst2) as recorder:
        for which in ("last_layer", "all"):
            gradients = recorder.gradients(which)
            assert all("lora_" in name for name in gradients.parameters)
            direction = gradients.gradient(recorder.pool_batch([0, 1]))
            found = products(recorder, gradients, [direction])[0]
            moved = {name: p + 1e-3 * direction.get(name, 0) for name, p in recorder.weights().items()}
            back = {name: p - 1e-3 * direction.get(name, 0) for name, p in recorder.weights().items()}
            losses = []
            for weights in (moved, back):
                with recorder.at(weights):
                    losses.append(recorder._measure(recorder.test_batches, sst2.tests, "run", 0))
            np.testing.assert_allclose(found, (losses[0] - losses[1]) / 2e-3, rtol=0.05, atol=2e-2)


def test_the_last_layer_is_the_last_block(gpt):
    last = chosen_parameters(gpt.model, "last_layer")
    assert last
    assert all(name.startswith("gpt_neox.layers.0.") for name in last)
    assert set(last) < set(chosen_parameters(gpt.model, "all"))


def test_a_model_without_blocks_that_can_be_told_is_refused(gpt):
    bare = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    with pytest.raises(ModelError, match=r"last transformer block cannot be told .*parameters: all"):
        chosen_parameters(bare, "last_layer")
    frozen = copy.deepcopy(gpt.model)
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_("layers" not in name)
    with pytest.raises(
        ModelError, match=r"no parameter of its last transformer block \(gpt_neox.layers.0\) is trained"
    ):
        chosen_parameters(frozen, "last_layer")
    with pytest.raises(ConfigurationError, match="'last' is not known; known: last_layer, all"):
        chosen_parameters(gpt.model, "last")


def test_a_parameter_used_outside_its_module_is_no_silent_zero(nano, sst2):
    gpt = nano.load()
    layer = gpt.model.gpt_neox.layers[0].mlp
    linear = layer.dense_4h_to_h
    layer.forward = lambda x: torch.nn.functional.linear(layer.act(layer.dense_h_to_4h(x)), linear.weight, linear.bias)
    with replayer(gpt, sst2) as recorder:
        gradients = recorder.gradients("last_layer")
        direction = gradients.gradient(recorder.pool_batch([0]))
        with pytest.raises(ModelError, match=r"mlp.dense_4h_to_h.* is used outside the module"):
            products(recorder, gradients, [direction])


def test_a_parameter_used_inside_and_outside_its_module_is_no_silent_error(nano, sst2):
    gpt = nano.load()
    layer = gpt.model.gpt_neox.layers[0].mlp
    linear, inner = layer.dense_4h_to_h, layer.forward
    layer.forward = lambda x: inner(x) + torch.nn.functional.linear(layer.act(layer.dense_h_to_4h(x)), linear.weight)
    with replayer(gpt, sst2) as recorder:
        gradients = recorder.gradients("last_layer")
        direction = gradients.gradient(recorder.pool_batch([0]))
        with pytest.raises(ModelError, match=r"by its modules and .* by autograd"):
            products(recorder, gradients, [direction])
        with pytest.raises(ModelError, match=r"by its modules and .* by autograd"):
            recorder.squared_norms(gradients)


# --- along a run ----------------------------------------------------------------------------------------------------------


def slow_influences(nano, task, method, curriculum=CURRICULUM):
    """Every checkpoint kept, a gradient for each example: the definition as a loop. float32 [steps, tests]."""
    gpt, checkpoints = nano.load(), []

    def keep(_):
        checkpoints.append(nano.load().model)
        checkpoints[-1].load_state_dict(gpt.model.state_dict())

    with Recorder(gpt, task.pool, task.tests, Recording(optimizer=FAST)) as recorder:
        recorder.record("train-000", curriculum, on_step=keep)
    rates = FAST.learning_rates(curriculum.steps)
    pool, tests = tokenize(task.pool, gpt), tokenize(task.tests, gpt)
    names = list(chosen_parameters(gpt.model, method.parameters))
    result = []
    for step in range(1, curriculum.steps + 1):
        at = method.states(curriculum.steps)[step - 1]
        of_tests = plain_gradients(checkpoints[at], tests, names)
        if method.direction == "update":
            before, after = (dict(checkpoints[k].named_parameters()) for k in (step - 1, step))
            made = torch.cat([(before[name] - after[name]).flatten() for name in names])
            result.append(of_tests @ made)
        else:
            batch = [pool[row] for row in curriculum.batches[step - 1]]
            result.append(rates[step - 1] * of_tests @ plain_gradients(checkpoints[at], batch, names).sum(0))
    return torch.stack(result).detach().numpy()


VARIANTS = {
    "all steps": TracIn(),
    "three": TracIn(checkpoints=3),
    "all parameters": TracIn(parameters="all"),
    "final": TracIn(checkpoints="final"),
    "update": TracIn(direction="update", scale="none"),
    "update, all parameters": TracIn(direction="update", parameters="all"),
}


@pytest.fixture(scope="module")
def recorded(nano, sst2):
    with Recorder(nano.load(), sst2.pool, sst2.tests, Recording(optimizer=FAST)) as recorder:
        return recorder.record("train-000", CURRICULUM, seed=3)


def test_influences_are_those_of_stored_checkpoints_and_single_gradients(nano, sst2, recorded, monkeypatch):
    monkeypatch.setattr(replay, "DIRECTION_ELEMENTS", 1)  # directions one at a time, too
    with replayer(nano.load(), sst2, token_budget=100) as recorder:
        one_by_one = replay.influences(recorder, recorded, VARIANTS, seed=3)
        monkeypatch.undo()
        found = replay.influences(recorder, recorded, VARIANTS, seed=3)
    for name, method in VARIANTS.items():
        assert_close(found[name], slow_influences(nano, sst2, method))
        assert_close(one_by_one[name], found[name])


def test_scoring_does_not_change_the_run(nano, sst2):
    source = ModelSource(
        "nano-lora", nano.config.model_copy(update={"lora": LoRA(rank=2, dropout=0.3)}), nano.cache, nano.corpus
    )
    gpt = source.load()
    with Recorder(gpt, sst2.pool, sst2.tests, Recording(optimizer=FAST)) as recorder:
        run = recorder.record("train-000", CURRICULUM, seed=5)
    with replayer(gpt, sst2) as recorder:
        scoring = replay._Replay(recorder, run, VARIANTS)
        again = recorder.record("train-000", CURRICULUM, seed=5, on_step=scoring.score)
        assert again.trajectories["loss"].tobytes() == run.trajectories["loss"].tobytes()
        with pytest.raises(RecordingError, match=r"run train-000, step \d: replayed losses differ .* by .*delete"):
            replay.influences(recorder, run, {"a": TracIn()}, seed=6)  # other dropout


def test_the_update_predicts_a_small_step_and_gradients_its_direction(nano, sst2):
    slow = Recording(optimizer=AdamW(learning_rate=1e-4, weight_decay=0.0))
    with Replayer(nano.load(), sst2.pool, sst2.tests, slow) as recorder:
        run = recorder.record("train-000", CURRICULUM)
        method = TracIn(direction="update", parameters="all")
        influence = replay.influences(recorder, run, {"update": method}, seed=0)["update"]
    decrease = -np.diff(run.trajectories["loss"], axis=0)
    np.testing.assert_allclose(influence, decrease, atol=0.03 * np.abs(decrease).max())


@given(steps=st.integers(1, 40), count=st.integers(1, 60))
def test_each_step_is_scored_at_the_nearest_of_the_checkpoints(steps, count):
    states = TracIn(checkpoints=count).states(steps)
    kept = {round(x) for x in np.linspace(0, steps, count)}
    assert len(set(states)) <= count
    for before, state in enumerate(states):
        assert state in kept
        assert abs(state - before) == min(abs(other - before) for other in kept)
    if count > steps:
        np.testing.assert_array_equal(states, TracIn().states(steps))
    np.testing.assert_array_equal(TracIn(checkpoints="final").states(steps), steps)


# --- scale and prediction ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seed=st.integers(0, 999), runs=st.integers(1, 3), steps=st.integers(1, 5), tests=st.integers(1, 4))
def test_the_scale_is_the_least_squares_one_and_predictions_follow_the_recursion(seed, runs, steps, tests):
    rng = np.random.default_rng(seed)
    influence, losses = rng.normal(size=(runs, steps, tests)), rng.normal(size=(runs, steps + 1, tests))
    scale = replay.fit_scale(influence, losses)
    design = np.cumsum(influence, axis=1).reshape(-1, 1)
    expected = np.linalg.lstsq(design, (losses[:, :1] - losses[:, 1:]).reshape(-1), rcond=None)[0]
    assert scale == pytest.approx(float(expected[0]), rel=1e-6, abs=1e-9)
    known = rng.integers(1, steps + 1)
    predicted = replay.predict(influence, losses[:, :known], scale)
    for run in range(runs):
        value = losses[run, known - 1]
        np.testing.assert_allclose(predicted[run, :known], losses[run, :known], rtol=1e-5, atol=1e-5)
        for step in range(known, steps + 1):
            value = value - scale * influence[run, step - 1]
            np.testing.assert_allclose(predicted[run, step], value, rtol=1e-4, atol=1e-4)
    fitted, still = replay.predict(influence, losses[:, :1], scale), np.broadcast_to(losses[:, :1], losses.shape)
    assert np.square(fitted - losses).sum() <= np.square(still - losses).sum() * (1 + 1e-5) + 1e-9


def test_without_influence_nothing_moves():
    assert replay.fit_scale(np.zeros((1, 2, 3)), np.ones((1, 3, 3))) == 0


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tracin_cp_all", {"parameters": "last"}, "'last' is not known; known: last_layer, all"),
        ("tracin_cp_all", {"checkpoints": 0}, "checkpoints must be all, final or a number of 1 or more, not 0"),
        ("tracin_cp_all", {"checkpoints": "first"}, "checkpoints must be all, final or a number"),
        ("tracin_cp_all", {"scale": "test"}, "scale 'test' is not known; known: none, validation, oracle"),
        ("tracin_cp_all", {"parameter": "all"}, "option 'parameter' is not known.*did you mean 'parameters'"),
        ("tracin_cp_update", {"checkpoints": 10}, "direction update .* checkpoints must be all, not 10"),
        ("tracin_cp_all", {"scale": "oracle"}, "must say oracle.*call it e.g. 'tracin_cp_all_oracle'"),
        ("tracin_cp_oracle", {"kind": "tracin_cp_all"}, "must not say oracle"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(name, options, said):
    with pytest.raises(ConfigurationError, match=said):
        read_options(name, options)


def test_the_usual_names_and_their_print():
    assert read_options("tracin_cp_10", {}).create() == TracIn10()
    assert TracIn10().influence_options == TracIn(checkpoints=10).influence_options
    assert read_options("grad_dot", {}).create() == GradDot()
    assert GradDot().influence_options == TracIn(checkpoints="final").influence_options
    assert read_options("grad_dot_oracle", {"kind": "grad_dot", "scale": "oracle"}).create().scale == "oracle"
    assert gf.names.method("tracin_cp_update") == "TracIn-CP (update)"
    assert gf.names.method("grad_dot_oracle") == "Grad-Dot (oracle)"


# --- in a study -----------------------------------------------------------------------------------------------------------

ROWS = (
    "simulators.tracin_cp_all={}",
    "simulators.tracin_cp_10={}",
    "simulators.grad_dot={}",
    "simulators.tracin_cp_update={}",
    "simulators.tracin_cp_oracle={kind: tracin_cp_all, scale: oracle}",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    small = ("settings.fine_tuning.runs.train=1", "settings.fine_tuning.curriculum.epochs=1")
    return gf.Study.load("smoke", [*ROWS, *small], artifacts=tmp_path_factory.mktemp("artifacts"), jobs=1)


METHODS = ["tracin_cp_all", "tracin_cp_10", "grad_dot", "tracin_cp_update", "tracin_cp_oracle"]


def predictions(study, methods):
    """The held-out runs, and by the name of each method what it predicts."""
    found = study.campaign("fine_tuning", "sst2").predict(methods)
    return found.recorded, {variant.method: values for variant, values in found.values.items()}


def test_a_study_predicts_with_them_and_replays_once(study, monkeypatch):
    test, predicted = predictions(study, ["persistence", *METHODS])
    assert list(predicted) == ["persistence", *METHODS]
    losses = test.trajectories()
    dynamics = study.campaign("fine_tuning", "sst2").dynamics()
    along = TracInAll().bind(dynamics)._along
    for name in METHODS:
        assert predicted[name].shape == losses.shape
        np.testing.assert_array_equal(predicted[name][:, 0], losses[:, 0])
    validation = dynamics.split()[1]
    scale = replay.fit_scale(along.load(TracInAll(), validation), validation.trajectories())
    influence = along.load(TracInAll(), test)
    np.testing.assert_allclose(predicted["tracin_cp_all"], replay.predict(influence, losses[:, :1], scale))
    np.testing.assert_allclose(predicted["tracin_cp_10"], predicted["tracin_cp_all"])  # 4 steps: every state is kept
    errors = {name: np.square(values - losses).mean(axis=(1, 2)) for name, values in predicted.items()}
    assert (errors["tracin_cp_oracle"] <= errors["tracin_cp_all"] + 1e-9).all()
    assert (errors["tracin_cp_oracle"] <= errors["persistence"] + 1e-9).all()

    def fail(*_, **__):
        raise AssertionError("replayed twice")

    monkeypatch.setattr(replay, "influences", fail)
    _, again = predictions(study, METHODS)
    for name in METHODS:
        np.testing.assert_array_equal(again[name], predicted[name])


def test_a_damaged_influence_is_set_aside_and_made_again(study):
    _, predicted = predictions(study, ["tracin_cp_all"])
    folder = next((study.artifacts / "influence").glob("gradient-all-last_layer-sst2-*"))
    (folder / "influence.parquet").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"set aside as .*made again"):
        _, again = predictions(study, ["tracin_cp_all"])
    np.testing.assert_array_equal(again["tracin_cp_all"], predicted["tracin_cp_all"])


def test_what_these_methods_cannot_do_is_said(study):
    with pytest.raises(ConfigurationError, match="'tracin_cp_all' is no simulator"):
        study.campaign("fine_tuning", "sst2").simulator("tracin_cp_all")
    none = study.with_overrides("settings.fine_tuning.runs.validation=0")
    with pytest.raises(
        ConfigurationError, match=r"'tracin_cp_all': its scale is fitted on validation runs.*scale: none"
    ):
        predictions(none, ["tracin_cp_all"])
    assert set(predictions(none, ["tracin_cp_update"])[1]) == {"tracin_cp_update"}


def test_metrics_other_than_the_loss_are_left_to_others(study):
    tracin_cp, grad_dot, gptfluence = (Variant.of(name) for name in ("tracin_cp_all", "grad_dot", "gptfluence"))
    assert applicable([tracin_cp, gptfluence], "bleu") == [gptfluence]
    assert applicable([tracin_cp, gptfluence], "loss") == [tracin_cp, gptfluence]
    assert applicable([tracin_cp, gptfluence], "loss", known=False) == [gptfluence]
    with pytest.raises(ConfigurationError, match="'tracin_cp_all' predicts loss, not 'bleu'"):
        applicable([tracin_cp, grad_dot], "bleu")
    with pytest.raises(ConfigurationError, match="'tracin_cp_all' predicts the held-out runs on known examples only"):
        applicable([tracin_cp, grad_dot], "loss", known=False)
    bound = TracInAll().bind(study.campaign("fine_tuning", "sst2").dynamics())
    with pytest.raises(ConfigurationError, match="'tracin_cp_all' predicts loss, not 'bleu'"):
        bound.predict(study.campaign("fine_tuning", "sst2").dynamics(), metric="bleu")


def test_a_run_from_elsewhere_is_refused(nano, sst2, recorded):
    foreign = replace(recorded, trajectories={"loss": recorded.trajectories["loss"] + np.float32(0.01)})
    with (
        replayer(nano.load(), sst2) as recorder,
        pytest.raises(RecordingError, match=r"step 0: replayed losses differ"),
    ):
        replay.influences(recorder, foreign, {"tracin_cp_all": TracIn()}, seed=3)


# --- next to captum -------------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    """Ids in, logits out, as captum wants a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids, use_cache=False).logits


def mean_loss(logits, labels):
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    return losses.sum(1) / (labels[:, 1:] != -100).sum(1)


def as_tensors(examples):
    width = max(len(example.ids) for example in examples)
    ids, labels = torch.zeros(len(examples), width, dtype=torch.long), torch.full((len(examples), width), -100)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.from_numpy(example.ids)
        labels[row, example.target_start : len(example.ids)] = ids[row, example.target_start : len(example.ids)]
    return ids, labels


def test_all_steps_are_what_captum_computes_example_by_example(nano, sst2, recorded):
    influence = pytest.importorskip("captum.influence")
    gpt, checkpoints = nano.load(), []
    with replayer(gpt, sst2) as recorder:
        found = replay.influences(recorder, recorded, {"all": TracIn()}, seed=3)["all"]
        recorder.record("train-000", CURRICULUM, on_step=lambda _: checkpoints.append(recorder.weights()))
    pool, tests = tokenize(sst2.pool, gpt), tokenize(sst2.tests, gpt)
    rates = FAST.learning_rates(CURRICULUM.steps)

    def load(model, step):
        model.model.load_state_dict(checkpoints[step], strict=False)
        return rates[step]

    for step, batch in enumerate(CURRICULUM.batches):
        data = torch.utils.data.TensorDataset(*as_tensors([pool[row] for row in batch]))
        scorer = influence.TracInCP(
            Logits(gpt.model), data, [step], load, layers=["model.gpt_neox.layers.0"], loss_fn=mean_loss, batch_size=4
        )
        assert_close(found[step], scorer.influence(as_tensors(tests)).sum(1).numpy())
