"""The GPT's linearisation: outputs that are linear in the parameters, trained by the true optimizer.

Nothing here is learned from recorded runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gptfluence.gradients.coordinates import Coordinates, Tangents
from gptfluence.recording.curriculum import NOBODY, named
from gptfluence.recording.settings import AdamW

LARGEST_LOGIT = 80.0  # exp of more does not fit float32

Measure = Callable[["Side", Tensor], Tensor]  # tests, outputs float32 [rows, outputs] -> float32 [..., rows, tests]


class Side:
    """Tangents as torch tensors, with the rows of each example at hand.

    widened: gradients as float32, in twice the memory: of tests, all of which every rollout multiplies.
    """

    def __init__(self, tangents: Tangents, *, widened: bool = False) -> None:
        self.outputs = torch.from_numpy(tangents.outputs)
        self.gradients = torch.from_numpy(tangents.gradients)
        self.scale = torch.from_numpy(tangents.scale)
        if widened:
            self.gradients = self.gradients.float().mul_(self.scale[..., None])
        self.token = torch.from_numpy(tangents.token)
        self.target = torch.from_numpy(tangents.target)
        self.example = torch.from_numpy(tangents.example)
        owner = self.example[self.token]
        ends = torch.searchsorted(owner, torch.arange(tangents.examples + 1))
        self.rows = [slice(a, b) for a, b in pairwise(ends.tolist())]
        counts = torch.bincount(self.example, minlength=tangents.examples)
        self.tokens = counts.tolist()  # of each example
        self._counts = counts.float()

    def batch(self, examples: list[int]) -> tuple[Tensor, Tensor]:
        """int64: the rows of a batch's outputs, and the token of the batch that each belongs to."""
        rows = [torch.arange(self.rows[i].start, self.rows[i].stop) for i in examples]
        before = np.cumsum([0, *(self.tokens[i] for i in examples)])
        owner = [self.token[part] - self.token[part[0]] + int(b) for part, b in zip(rows, before[:-1], strict=True)]
        return torch.cat(rows), torch.cat(owner)

    def batch_gradients(self, checkpoint: int, examples: list[int], scratch: Tensor) -> Tensor:
        """float32 [rows, n]: gradients of a batch's outputs, still to be scaled. Written over `scratch`: copies cost most."""
        end = 0
        for rows in (self.rows[i] for i in examples):
            start, end = end, end + rows.stop - rows.start
            scratch[start:end].copy_(self.gradients[checkpoint, rows])
        return scratch[:end]

    def mean(self, values: Tensor) -> Tensor:
        """float32 [rows, examples]: the mean over each example's tokens of float32 [rows, tokens]."""
        return torch.zeros(len(values), len(self.rows)).index_add_(1, self.example, values) / self._counts


@dataclass(frozen=True)
class Linearised:
    """Rollouts of the linearised GPT.

    optimizer: of the runs that are simulated; recorded, steps: the optimizer and the length of the runs it was fitted on
    """

    coordinates: Coordinates
    optimizer: AdamW
    recorded: AdamW
    steps: int

    def times(self, steps: int) -> np.ndarray:
        """float64 [steps + 1]: for each step of a simulated run the step of a recorded one at which it was as far.

        As far: as much learning rate spent. Runs trained alike are at t after step t, those at twice the rate at 2 t; at
        most at the last recorded step.
        """
        spent, recorded = (
            np.cumsum([0.0, *optimizer.learning_rates(count)])
            for optimizer, count in ((self.optimizer, steps), (self.recorded, self.steps))
        )
        if np.array_equal(spent, recorded):
            return np.arange(steps + 1.0)
        return np.interp(spent, recorded, np.arange(self.steps + 1.0))

    def _mixture(self, step: float) -> list[tuple[int, float]]:
        """The checkpoints that the tangents of this recorded step are interpolated between, and their shares."""
        steps = self.coordinates.steps
        after = int(np.searchsorted(steps, step))
        if after == len(steps):
            return [(after - 1, 1.0)]
        if steps[after] == step:
            return [(after, 1.0)]
        share = (step - steps[after - 1]) / (steps[after] - steps[after - 1])
        return [(after - 1, 1 - share), (after, share)]

    def displacements(self, pool: Side, batches: np.ndarray) -> Tensor:
        """float32 [steps + 1, n]: the sampled coordinates less their initial values, along one curriculum.

        batches: int [steps, batch], as in `Curriculum`; tokens of masked examples count with a gradient of zero
        """
        settings, c = self.optimizer, self.coordinates
        weight, initial = torch.from_numpy(c.weight), torch.from_numpy(c.initial)
        reference = torch.from_numpy(c.displacement)
        decay = torch.from_numpy(c.decayed).float() * settings.weight_decay
        moved, first, second = (torch.zeros(len(c)) for _ in range(3))
        path = [moved]
        times = self.times(len(batches))
        curriculum = [batch[batch >= 0].tolist() for batch in batches]
        tokens = [
            sum(pool.tokens[i] for i in batch.tolist()) for batch in (named(row[row != NOBODY]) for row in batches)
        ]
        most = max(sum(pool.rows[i].stop - pool.rows[i].start for i in batch) for batch in curriculum)
        scratch = torch.empty(len(c.steps), most, len(c))
        for step, rate in enumerate(settings.learning_rates(len(batches))):
            gradient = torch.zeros(len(c))
            if curriculum[step]:
                rows, owner = pool.batch(curriculum[step])
                parts = [
                    (share, pool.batch_gradients(k, curriculum[step], scratch[k]), pool.scale[k][rows], k)
                    for k, share in self._mixture(times[step])
                ]
                outputs = sum(
                    share * (pool.outputs[k][rows] + scale * (slope @ (weight * (moved - reference[k]))))
                    for share, slope, scale, k in parts
                )
                residual = self._residuals(outputs, owner, pool.target[rows], tokens[step])
                gradient = sum((share * scale * residual) @ slope for share, slope, scale, _ in parts)
            if settings.max_gradient_norm is not None:
                norm = (weight * gradient.square()).sum().sqrt()
                gradient = gradient * torch.clamp(settings.max_gradient_norm / (norm + 1e-6), max=1.0)
            first = torch.lerp(gradient, first, settings.betas[0])
            second = torch.lerp(gradient.square(), second, settings.betas[1])
            scale = (second / (1 - settings.betas[1] ** (step + 1))).sqrt_().add_(settings.eps)
            moved = moved - rate * (first / (1 - settings.betas[0] ** (step + 1)) / scale + decay * (initial + moved))
            path.append(moved)
        return torch.stack(path)

    @staticmethod
    def _residuals(outputs: Tensor, owner: Tensor, target: Tensor, tokens: int) -> Tensor:
        """float32 [outputs]: gradient of the mean loss over so many tokens; owner: int64 [outputs], the token of each."""
        exponential = outputs.clamp(max=LARGEST_LOGIT).exp()
        total = torch.ones(int(owner[-1]) + 1).index_add_(0, owner, exponential)
        return (exponential / total[owner] - target.float()) / tokens

    def outputs(self, tests: Side, path: Tensor) -> Tensor:
        """float32 [steps + 1, outputs]: the outputs of every test example along displacements [steps + 1, n]."""
        weight = torch.from_numpy(self.coordinates.weight)
        outputs = torch.zeros(len(path), tests.outputs.shape[1])
        shares = torch.zeros(len(self.coordinates.steps), len(path))
        for step, at in enumerate(self.times(len(path) - 1)):
            for k, share in self._mixture(at):
                shares[k, step] = share
        for k, reference in enumerate(torch.from_numpy(self.coordinates.displacement)):
            at = shares[k].nonzero()[:, 0]
            change = (weight * (path[at] - reference)) @ tests.gradients[k].T
            outputs[at] += shares[k][at, None] * (tests.outputs[k] + change)
        return outputs.clamp_(max=LARGEST_LOGIT)


def rollouts(linearised: Linearised, pool: Side, tests: Side, batches: np.ndarray, measure: Measure) -> np.ndarray:
    """float32 [curricula, ..., steps + 1, tests]: what `measure` makes of the linearisation's outputs."""
    with torch.inference_mode():
        return np.stack(
            [
                measure(tests, linearised.outputs(tests, linearised.displacements(pool, curriculum))).numpy()
                for curriculum in batches
            ]
        )
