"""The learned part of GPTfluence: from feature vectors of examples to tables of factors (paper, equations 5-9).

Each kind of heads starts near the identity (alpha near 1, beta near 0) inside its own family of functions. With torch's
default initialisation alpha is near 10 on MiniLM features, and rollouts reach 1e10 in the first epochs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CONCAT_HIDDEN = 100
START_SPREAD = 0.02  # of alpha over pairs at the start, and of beta in units of the metric's standard deviation
CONCAT_BLOCK = 16384  # pairs that a concat head works on at once: bounds memory, changes no number


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """torch's default for linear layers: uniform within +-1/sqrt(fan_in)."""
    return nn.Parameter(torch.empty(*shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))


class MLPHeads(nn.Module):
    """A_ij = <f_j(h_i), f_j(h')> with f_j = W2 relu(W1 h + b1) + b2, the same f_j for training and test features.

    weight1, weight2: [order + 1, dimension, dimension], rows are outputs; bias1, bias2: [order + 1, dimension]. Head
    j-1 is lag j's, the last is beta's. This is what the published code does.
    """

    def __init__(self, dimension: int, order: int) -> None:
        super().__init__()
        heads, square = order + 1, (order + 1, dimension, dimension)
        self.weight1, self.weight2 = _uniform(*square, fan_in=dimension), _uniform(*square, fan_in=dimension)
        self.bias1, self.bias2 = (_uniform(heads, dimension, fan_in=dimension) for _ in range(2))

    def forward(self, pool: Tensor, tests: Tensor) -> Tensor:
        outputs = self._outputs(torch.cat([pool, tests]))
        return outputs[:, : len(pool)] @ outputs[:, len(pool) :].transpose(1, 2)

    def _outputs(self, examples: Tensor) -> Tensor:
        """f_j(h): float32 [order + 1, examples, dimension]; the first layers of all heads are one product."""
        heads, dimension = self.bias1.shape
        hidden = torch.addmm(self.bias1.flatten(), examples, self.weight1.flatten(0, 1).T).relu()
        hidden = hidden.view(len(examples), heads, dimension).transpose(0, 1)
        return torch.baddbmm(self.bias2[:, None], hidden, self.weight2.transpose(1, 2))

    @torch.no_grad()
    def start_near_identity(self, pool: Tensor, tests: Tensor, batch_size: int) -> None:
        """Lag 1 starts from a constant output v with <v, v> = 1/batch, plus a little of the random network.

        v is orthogonal to the random network's mean output, or their product would move alpha for all pairs alike.
        """
        self.bias2.zero_()
        _shrink(self, [self.weight2], pool, tests, batch_size, degree=2)
        mean = nn.functional.normalize(self._outputs(torch.cat([pool, tests]))[0].mean(0), dim=0)
        constant = torch.ones_like(mean) - mean.sum() * mean
        self.bias2[0] = constant / (constant.norm() * batch_size**0.5)


class LinearHeads(nn.Module):
    """A_ij = <W_j h_i, U_j h'>, without biases: the paper's equations as printed.

    pool_weight (W), test_weight (U): [order + 1, dimension, dimension], rows are outputs
    """

    def __init__(self, dimension: int, order: int) -> None:
        super().__init__()
        square = (order + 1, dimension, dimension)
        self.pool_weight, self.test_weight = (_uniform(*square, fan_in=dimension) for _ in range(2))

    def forward(self, pool: Tensor, tests: Tensor) -> Tensor:
        return (pool @ self.pool_weight.transpose(1, 2)) @ (tests @ self.test_weight.transpose(1, 2)).transpose(1, 2)

    @torch.no_grad()
    def start_near_identity(self, pool: Tensor, tests: Tensor, batch_size: int) -> None:
        """Lag 1 gets, along one output, the direction on which all features come nearest to 1, plus a little noise."""
        _shrink(self, [self.pool_weight, self.test_weight], pool, tests, batch_size, degree=1)
        self.pool_weight[0, 0] = _direction_to_one(pool) / batch_size
        self.test_weight[0, 0] = _direction_to_one(tests)


class ConcatHeads(nn.Module):
    """u = relu(fc [h_i; h']), A_ij = <a_j, u> + bias: in the published code, not in the paper.

    Orders above 1 have one more layer of twice the dimension in front. The cost grows with pairs, not with examples.
    """

    def __init__(self, dimension: int, order: int) -> None:
        super().__init__()
        self.wide = nn.Linear(2 * dimension, 2 * dimension) if order > 1 else None
        self.narrow = nn.Linear(2 * dimension, CONCAT_HIDDEN)
        self.out = nn.Linear(CONCAT_HIDDEN, order + 1)

    def forward(self, pool: Tensor, tests: Tensor) -> Tensor:
        first = self.wide or self.narrow
        of_pool, of_tests = (
            nn.functional.linear(side, weight)
            for side, weight in zip((pool, tests), first.weight.chunk(2, dim=1), strict=True)
        )
        blocks = (of_tests + first.bias).split(max(1, CONCAT_BLOCK // len(pool)))
        if len(blocks) > 1 and torch.is_grad_enabled():  # recompute a block on the way back rather than keep all pairs
            parts = [checkpoint(self._pairs, of_pool, block, use_reentrant=False) for block in blocks]
        else:
            parts = [self._pairs(of_pool, block) for block in blocks]
        return torch.cat(parts, dim=1).permute(2, 0, 1)

    def _pairs(self, of_pool: Tensor, of_tests: Tensor) -> Tensor:
        hidden = (of_pool[:, None] + of_tests[None]).relu()
        return self.out(self.narrow(hidden).relu() if self.wide is not None else hidden)

    @torch.no_grad()
    def start_near_identity(self, pool: Tensor, tests: Tensor, batch_size: int) -> None:
        """The bias of lag 1 is 1/batch, the others 0; the output weights are small."""
        self.out.bias.zero_()
        self.out.weight.mul_(START_SPREAD / (batch_size * self(pool, tests).square().mean().sqrt()))
        self.out.bias[0] = 1 / batch_size


HEADS: dict[str, type[MLPHeads] | type[LinearHeads] | type[ConcatHeads]] = {
    "mlp": MLPHeads,
    "linear": LinearHeads,
    "concat": ConcatHeads,
}


def _shrink(
    heads: MLPHeads | LinearHeads, weights: list[nn.Parameter], pool: Tensor, tests: Tensor, batch: int, *, degree: int
) -> None:
    """Scale each head's `weights` so that its table, summed over a batch, has size START_SPREAD.

    degree: the power to which each of the weights enters the table
    """
    size = heads(pool, tests).square().mean(dim=(1, 2)).sqrt().clamp_min(1e-12)
    factor = (START_SPREAD / batch / size) ** (1 / (degree * len(weights)))
    for weight in weights:
        weight.mul_(factor[:, None, None])


def _direction_to_one(features: Tensor, ridge: float = 1e-2) -> Tensor:
    """The w, float32 [dimension], that minimises sum_i (<w, h_i> - 1)^2 + (ridge x sum_i |h_i|^2 / examples) |w|^2."""
    wide = features.double()
    gram = wide @ wide.T
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    return (wide.T @ torch.linalg.solve(gram, torch.ones(len(wide), dtype=wide.dtype, device=wide.device))).float()
