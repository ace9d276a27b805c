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


def both_ways(gpt, task, which="last_layer"):
    """Products and norms by modules, and by a gradient for each example."""
    with replayer(gpt, task, token_budget=100) as recorder:
        gradients = recorder.gradients(which)
        direction = gradients.gradient(recorder.pool_batch([0, 3]))
        found, norms = products(recorder, gradients, [direction])[0], recorder.squared_norms(gradients).numpy()
    of_pool = plain_gradients(gpt.model, tokenize(task.pool, gpt), gradients.parameters)
    of_tests = plain_gradients(gpt.model, tokenize(task.tests, gpt), gradients.parameters)
    assert_close(found, (of_tests @ of_pool[[0, 3]].sum(0)).numpy())
    assert_close(norms, of_pool.square().sum(1).numpy())
    return gradients


def test_a_parameter_used_outside_its_module_is_asked_of_autograd(nano, webnlg):
    gpt = nano.load()
    layer = gpt.model.gpt_neox.layers[0].mlp
    linear = layer.dense_4h_to_h
    layer.forward = lambda x: torch.nn.functional.linear(layer.act(layer.dense_h_to_4h(x)), linear.weight, linear.bias)
    gradients = both_ways(gpt, webnlg)
    assert gradients._direct == {
        "gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
        "gpt_neox.layers.0.mlp.dense_4h_to_h.bias",
    }


def test_a_parameter_used_inside_and_outside_its_module_is_asked_of_autograd(nano, webnlg):
    gpt = nano.load()
    layer = gpt.model.gpt_neox.layers[0].mlp
    linear, inner = layer.dense_4h_to_h, layer.forward
    layer.forward = lambda x: inner(x) + torch.nn.functional.linear(layer.act(layer.dense_h_to_4h(x)), linear.weight)
    assert both_ways(gpt, webnlg)._direct == {"gpt_neox.layers.0.mlp.dense_4h_to_h.weight"}


class Shuffled(nn.Module):
    """A layer whose rows are in another order than the tokens of the batch, which sums over a batch do not show."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x.flatten(0, 1).flip(0)).flip(0).view(*x.shape[:2], -1)


class Paired(nn.Module):
    """A layer that returns a tuple, as routers do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight, self.bias), None


class First(nn.Module):
    def __init__(self, paired: nn.Module) -> None:
        super().__init__()
        self.paired = paired

    def forward(self, x):
        return self.paired(x)[0]


@pytest.mark.parametrize("kind", [Shuffled, lambda linear: First(Paired(linear))], ids=["shuffled", "tuple"])
def test_rows_that_belong_to_no_example_are_asked_of_autograd(nano, webnlg, kind):
    gpt = nano.load()
    gpt.model.gpt_neox.layers[0].mlp.dense_4h_to_h = kind(gpt.model.gpt_neox.layers[0].mlp.dense_4h_to_h)
    assert len(both_ways(gpt, webnlg)._direct) == 2


class Shrunk(nn.Module):
    """Without a derivative at 0, as what follows the embeddings of Gemma 3n."""

    def forward(self, x):
        return x / (1 + x.square().sum(-1, keepdim=True).sqrt())


def test_what_has_no_derivative_at_padding_is_asked_of_autograd(nano, webnlg):
    gpt = nano.load()
    embeddings, gpt.model.gpt_neox.emb_dropout = gpt.model.gpt_neox.embed_in, Shrunk()
    embeddings.padding_idx = 0
    with torch.no_grad():
        embeddings.weight[0] = 0
    assert both_ways(gpt, webnlg, "all")._direct == {"gpt_neox.embed_in.weight"}


def test_a_layer_called_with_heads_of_each_example_needs_no_autograd(gpt, webnlg):
    """Norms of queries and keys see [examples, heads, tokens, features]."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(gpt.tokenizer), **sizes, **heads)).eval()
    assert not both_ways(GPT("qwen3", model, gpt.tokenizer, 128), webnlg, "all")._direct


def test_the_last_layer_of_a_model_that_also_sees_pictures_is_that_of_its_text(gpt):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 400, "head_dim": 8, "num_key_value_heads": 1}
    config = Gemma3Config(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8})
    with torch.device("meta"):
        last = chosen_parameters(Gemma3ForConditionalGeneration(config), "last_layer")
    assert {name.rsplit(".layers.")[0] for name in last} == {"model.language_model"}
    assert {name.rsplit(".layers.")[1][0] for name in last} == {"1"}
