"""Inner products of TracIn-CP and Grad-Dot: equal to a gradient for each example, whatever the architecture."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from gptfluence.common.errors import ConfigurationError, ModelError
from gptfluence.gradients.products import chosen_parameters
from gptfluence.models.gpt import GPT, ModelSource
from gptfluence.models.settings import LoRA
from gptfluence.recording.tokens import tokenize
from tracin_loops import assert_close, plain_gradients, replayer


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
