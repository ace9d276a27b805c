"""Gradients at chosen coordinates: those of a backward pass for each output, whatever the architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gptfluence.gradients.outputs as module
from gptfluence.gradients.outputs import OutputGradients

VOCABULARY = 50


def tiny(kind: str) -> nn.Module:
    """Transposed weights and tied embeddings, rotary positions, positions with an offset, a padding token."""
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    options = {
        "gpt2": {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
        "gpt_neox": {**small, "intermediate_size": 24, "max_position_embeddings": 32},
        "llama": {**small, "intermediate_size": 24, "tie_word_embeddings": True, "pad_token_id": 3},
        "opt": {**small, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32},
    }[kind]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).eval()


def outputs(model: nn.Module) -> Tensor:
    logits = model(input_ids=torch.tensor([[5, 3, 7, 5, 9]]), use_cache=False).logits[0, 2:]
    return torch.cat([logits[0, :3], logits[1, 4:6] - logits[1].logsumexp(0)])


def by_autograd(model: nn.Module, values: Tensor) -> Tensor:
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True) for value in values]
    return torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])


def taken(model: nn.Module, index: np.ndarray, values=outputs) -> tuple[Tensor, OutputGradients]:
    gradients = OutputGradients(model, dict(model.named_parameters()), index)
    with gradients.watching():
        return gradients.of(values(model)), gradients


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("share", [1.0, 0.05])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "opt"])
def test_they_are_those_of_a_backward_pass_for_each_output(kind, share):
    model = tiny(kind)
    size = sum(p.numel() for p in model.parameters())
    index = np.sort(np.random.default_rng(0).choice(size, int(share * size), replace=False))
    found, gradients = taken(model, index)
    assert_close(found, by_autograd(model, outputs(model))[:, index])
    # and not by asking autograd for the weights
    assert sum(dict(model.named_parameters())[name].numel() for name in gradients._direct) < 0.2 * size


def test_batches_of_outputs_change_nothing(monkeypatch):
    model = tiny("gpt_neox")
    index = np.arange(sum(p.numel() for p in model.parameters()))
    whole, _ = taken(model, index)
    monkeypatch.setattr(module, "LARGEST_BATCH", 2)
    assert_close(taken(model, index)[0], whole)


class Elsewhere(nn.Module):
    """Uses a layer's weight without calling the layer, another layer twice, and one by keyword."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.passed_by, self.twice, self.by_keyword = (nn.Linear(3, 3) for _ in range(3))

    def forward(self) -> Tensor:
        x = torch.linspace(-1, 1, 6).view(1, 2, 3)
        x = torch.tanh(self.passed_by(x) @ self.passed_by.weight)
        return self.by_keyword(input=self.twice(torch.tanh(self.twice(x)))).flatten()


def test_a_parameter_used_outside_its_module_is_asked_of_autograd():
    model = Elsewhere()
    found, gradients = taken(model, np.arange(36), lambda model: model())
    assert_close(found, by_autograd(model, model()))
    assert gradients._direct == ["passed_by.weight", "by_keyword.weight", "by_keyword.bias"]
    with gradients.watching():  # and ever after
        assert_close(gradients.of(2 * model()), by_autograd(model, 2 * model()))


class Scaled(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return 3 * super().forward(ids)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = Scaled(9, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: list[int]) -> Tensor:
        return self.head(torch.tanh(self.embedding(torch.tensor(ids))))[-1, :3]


def test_a_weight_tied_to_a_module_of_another_kind_is_asked_of_autograd():
    model = Tied()
    gradients = OutputGradients(model, dict(model.named_parameters()), np.array([4, 5, 30]))
    for ids in ([0, 2], [1, 7]):  # the sampled rows are looked up in the second text alone
        with gradients.watching():
            values = model(ids)
            assert_close(gradients.of(values), by_autograd(model, values)[:, [4, 5, 30]])


class Gated(nn.Module):
    """Its first layer has no gradient before the second has weights: LoRA's A and B."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self) -> Tensor:
        x = torch.linspace(-1, 1, 6).view(2, 3)
        return (self.b(x @ self.a.weight.T)).flatten()  # passes its layer by


def test_a_parameter_without_a_gradient_yet_is_compared_when_it_has_one():
    model = Gated()
    gradients = OutputGradients(model, dict(model.named_parameters()), np.arange(12))
    with gradients.watching():
        gradients.of(model())
    assert "a.weight" in gradients._unverified
    nn.init.ones_(model.b.weight)
    with gradients.watching():
        assert_close(gradients.of(model()), by_autograd(model, model()))
    assert not gradients._unverified


def test_hooks_are_gone_afterwards():
    model = tiny("gpt2")
    before = outputs(model)
    _, gradients = taken(model, np.arange(100))
    assert not any(part._forward_hooks for part in model.modules())
    assert torch.equal(outputs(model), before)
    assert not gradients._calls
