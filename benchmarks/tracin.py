"""Speed of TracIn-CP along a run, next to captum's and dattri-llm's TracIn.

    python benchmarks/tracin.py            # some minutes
    python benchmarks/tracin.py --quick    # one step only

CPU, float32, one thread, nano-410m of the profile mini. Every row does the same work: at the checkpoint before each of
`--steps` steps, the influence of the step's batch of 4 on each of the profile's 64 tests. The rows take turns, step by step. No
table is printed unless the numbers agree. Training and measuring are not in the figures: each row is given the weights. The rows:

- captum: `TracInCP` with a loss for each example, which is what it has for any kind of layer; the scores of the batch's
  examples are then added. Padded batches; all positions go through the output embedding.
- dattri-llm: `TracInAttributor`, gradients of single examples captured by hooks and multiplied pair by pair. Parameters are
  those that it knows how to hook.
- gptfluence: what TracIn-CP does in this package: one gradient for the batch, one pass for all tests.
- central difference: two passes over the tests, at the weights plus and minus a little of the direction; an approximation.
- gptfluence, Grad-Dot: as many directions at one checkpoint, where all steps share the pass over the tests.

captum and dattri-llm are left out where they are not installed (`pip install captum dattri-llm dattri accelerate`).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import numpy as np
import torch
from common import Benchmark, Comparison, Side, timed
from torch import nn

import gptfluence as gf
from gptfluence.gradients.products import Direction, Replayer
from gptfluence.recording.curriculum import draw_curricula
from gptfluence.recording.recorder import single_thread
from gptfluence.recording.tokens import TokenizedExample, tokenize
from gptfluence.study.campaign import Campaign

PROFILE, MODEL = "mini", "nano-410m"
TOLERANCE = 1e-4  # of the largest influence
DIFFERENCE_TOLERANCE = 2e-2  # of the central difference, which is an approximation
IGNORED = -100
BATCH = 4
DIFFERENCE = "central difference"


class Logits(nn.Module):
    """Token ids in, logits out, as captum wants a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids, use_cache=False).logits


def mean_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """float32 [examples]: mean over each example's labelled tokens."""
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    return losses.sum(1) / (labels[:, 1:] != IGNORED).sum(1)


mean_losses.reduction = "none"  # captum asks


def as_tensors(examples: list[TokenizedExample]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full((len(examples), width), IGNORED)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.from_numpy(example.ids)
        labels[row, example.target_start : len(example.ids)] = ids[row, example.target_start : len(example.ids)]
    return ids, labels


class Work:
    """Batches, tests and the weights before every step, for all rows alike."""

    def __init__(self, campaign: Campaign, steps: int, which: str) -> None:
        texts, recording, source = campaign.texts, campaign.setting.recording, campaign.study.model(campaign.model)
        self.gpt = source.load()
        self.recorder = Replayer(self.gpt, texts.pool, texts.tests, recording)
        self.curriculum = draw_curricula(texts.pool, runs=1, subset=BATCH * steps, batch=BATCH, epochs=1)[0]
        self.rates = recording.optimizer.learning_rates(steps)
        self.weights: list[Direction] = []
        self.recorder.record("run", self.curriculum, on_step=lambda _: self.weights.append(self.recorder.weights()))
        self.which, self.gradients = which, self.recorder.gradients(which)
        self.pool, self.tests = tokenize(texts.pool, self.gpt), tokenize(texts.tests, self.gpt)
        # captum and dattri-llm call the model as it is, without the recorder's hooks
        self.plain = source.load().model
        if which == "last_layer":
            for name, parameter in self.plain.named_parameters():
                parameter.requires_grad_(name in self.gradients.parameters)

    def load(self, model: nn.Module, step: int) -> None:
        model.load_state_dict(self.weights[step], strict=False)

    def batch(self, step: int) -> list[TokenizedExample]:
        return [self.pool[row] for row in self.curriculum.batches[step]]


def by_captum(work: Work, step: int) -> np.ndarray:
    from captum.influence import TracInCP

    layers = None
    if work.which == "last_layer":
        layers = ["model." + ".".join(next(iter(work.gradients.parameters)).split(".")[:3])]

    def load(model: Logits, step: int) -> float:
        work.load(model.model, step)
        return work.rates[step]

    data = torch.utils.data.TensorDataset(*as_tensors(work.batch(step)))
    scorer = TracInCP(Logits(work.plain), data, [step], load, layers=layers, loss_fn=mean_losses, batch_size=BATCH)
    return scorer.influence(as_tensors(work.tests)).sum(1).numpy()


def by_products(work: Work, step: int) -> np.ndarray:
    found = np.empty(len(work.tests), np.float32)
    with work.recorder.at(work.weights[step]):
        direction = work.gradients.gradient(work.recorder.pool_batch(work.curriculum.batches[step].tolist()))
        for batch in work.recorder.test_batches:
            found[batch.rows] = work.rates[step] * next(work.gradients.products(batch, [direction])).numpy()
    return found


def by_difference(work: Work, step: int) -> np.ndarray:
    at = work.weights[step]
    with work.recorder.at(at):
        direction = work.gradients.gradient(work.recorder.pool_batch(work.curriculum.batches[step].tolist()))
    small = 1e-2 / float(sum(part.square().sum() for part in direction.values())) ** 0.5
    losses = []
    for sign in (small, -small):
        moved = {name: p + sign * direction[name] if name in direction else p for name, p in at.items()}
        with work.recorder.at(moved):
            losses.append(work.recorder._measure(work.recorder.test_batches, work.recorder.tests, "run", step))
    return work.rates[step] * (losses[0] - losses[1]) / (2 * small)


def by_dattri(work: Work, step: int) -> np.ndarray:
    from dattri_llm import AttributionArguments, AttributionTask, TracInAttributor

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return mean_losses(model(batch["input_ids"], use_cache=False).logits, batch["labels"]).sum()

    def dataset(examples: list[TokenizedExample]) -> list[dict[str, torch.Tensor]]:
        return [{"input_ids": a, "labels": b} for a, b in zip(*as_tensors(examples), strict=True)]

    work.load(work.plain, step)
    task = AttributionTask(loss_func=loss, model=work.plain)
    with tempfile.TemporaryDirectory() as folder:
        scorer = TracInAttributor(
            AttributionArguments(folder, per_device_train_batch_size=64, per_device_eval_batch_size=64), task=task
        )
        _, matrix = scorer.attribute(dataset(work.batch(step)), dataset(work.tests)).agnostic_matrix()
    return work.rates[step] * matrix.sum(0).numpy()


def all_at_one_checkpoint(work: Work) -> None:
    """Grad-Dot: the directions of all steps at one checkpoint, with one pass over the tests."""
    batches = [work.recorder.pool_batch(rows.tolist()) for rows in work.curriculum.batches]
    directions = [work.gradients.gradient(batch) for batch in batches]
    for batch in work.recorder.test_batches:
        list(work.gradients.products(batch, directions))


def compare(work: Work) -> Comparison:
    ways: dict[str, Callable[[Work, int], np.ndarray]] = {"gptfluence": by_products, DIFFERENCE: by_difference}
    if find_spec("dattri_llm"):
        ways = {"dattri-llm": by_dattri, **ways}
    if find_spec("captum"):
        ways = {"captum": by_captum, **ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    at_once, steps = [], work.curriculum.steps
    for step in range(steps):
        for name, influence in ways.items():
            took, values = timed(lambda influence=influence, step=step: influence(work, step))  # type: ignore[misc]
            seconds[name].append(took)
            found[name].append(values)
        at_once.append(timed(lambda: all_at_one_checkpoint(work))[0] / steps)
    reference = next(iter(ways))
    truth, sides = np.array(found[reference]), []
    for name in ways:
        error = float(np.abs(np.array(found[name]) - truth).max() / np.abs(truth).max())
        if not error <= (DIFFERENCE_TOLERANCE if name == DIFFERENCE else TOLERANCE):
            raise SystemExit(f"{name!r} differs from {reference!r} by {error:.1e} of the largest influence")
        sides.append(Side(name, seconds[name], {"difference, of the largest influence": error}))
    sides.append(Side("gptfluence, Grad-Dot", at_once))
    return Comparison(
        f"parameters: {work.which}, {len(work.tests)} tests, {steps} steps of {BATCH}",
        "seconds a step",
        sides,
        reference=reference,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--parameters", nargs="+", default=["last_layer", "all"])


def measure(options: argparse.Namespace) -> Iterator[Comparison]:
    campaign = gf.Study.load(PROFILE).campaign("fine_tuning", options.task, model=MODEL)
    with single_thread():
        for which in options.parameters:
            yield compare(Work(campaign, options.steps, which))


BENCHMARK = Benchmark("tracin", __doc__, add_options, {"steps": 1}, measure)

if __name__ == "__main__":
    BENCHMARK.main()
