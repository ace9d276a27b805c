"""Speed of TracIn-CP along a run, next to captum's and dattri-llm's TracIn.

    python benchmarks/tracin.py                  # a minute or two
    python benchmarks/tracin.py --steps 2        # shorter, to see that it works

CPU, float32, one thread, nano-410m of the profile mini. Every row does the same work: at the checkpoint before each of
`--steps` steps, the influence of the step's batch of 4 on each of the profile's 64 tests. No table is printed unless the numbers
agree. Training and measuring are not in the figures: each row is given the weights. The rows:

- captum: `TracInCP` with a loss for each example, which is what it has for any kind of layer; the scores of the batch's
  examples are then added. Padded batches; all positions go through the output embedding.
- dattri-llm: `TracInAttributor`, gradients of single examples captured by hooks and multiplied pair by pair. Parameters are
  those that it knows how to hook.
- gptfluence: what `Study.simulate` does: one gradient for the batch, one pass for all tests.
- central difference: two passes over the tests, at the weights plus and minus a little of the direction; an approximation.
- gptfluence, Grad-Dot: as many directions at one checkpoint, where all steps share the pass over the tests.

captum and dattri-llm are left out where they are not installed (`pip install captum dattri-llm dattri accelerate`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch import nn

import gptfluence as gf
from gptfluence.gradients.products import Direction, ExampleGradients, Replayer
from gptfluence.recording.curriculum import draw_curricula
from gptfluence.recording.recorder import single_thread
from gptfluence.recording.tokens import TokenizedExample, tokenize
from gptfluence.study.study import Study

PROFILE, MODEL = "mini", "nano-410m"
TOLERANCE = 1e-4  # of the largest influence
DIFFERENCE_TOLERANCE = 2e-2  # of the central difference, which is an approximation
IGNORED = -100


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

    def __init__(self, study: Study, task: str, steps: int, which: str) -> None:
        setting, texts = study.setting(), study.task(task)
        recording = setting.recording.model_copy(update={"optimizer": setting.recording.optimizer.for_one(task)})
        self.gpt = study.model(MODEL).load()
        self.recorder = Replayer(self.gpt, texts.pool, texts.tests, recording)
        self.curriculum = draw_curricula(texts.pool, runs=1, subset=4 * steps, batch=4, epochs=1)[0]
        self.rates = recording.optimizer.learning_rates(steps)
        self.weights: list[Direction] = []
        self.recorder.record("run", self.curriculum, on_step=lambda _: self.weights.append(self.recorder.weights()))
        self.which, self.gradients = which, self.recorder.gradients(which)
        self.pool, self.tests = tokenize(texts.pool, self.gpt), tokenize(texts.tests, self.gpt)
        # captum and dattri-llm call the model as it is, without the recorder's hooks
        self.plain = study.model(MODEL).load().model
        if which == "last_layer":
            for name, parameter in self.plain.named_parameters():
                parameter.requires_grad_(name in self.gradients.parameters)

    def load(self, model: nn.Module, step: int) -> None:
        model.load_state_dict(self.weights[step], strict=False)

    def batch(self, step: int) -> list[TokenizedExample]:
        return [self.pool[row] for row in self.curriculum.batches[step]]


def by_captum(work: Work) -> np.ndarray:
    from captum.influence import TracInCP

    layers = None
    if work.which == "last_layer":
        layers = ["model." + ".".join(next(iter(work.gradients.parameters)).split(".")[:3])]
    tests, found = as_tensors(work.tests), []

    def load(model: Logits, step: int) -> float:
        work.load(model.model, step)
        return work.rates[step]

    for step in range(work.curriculum.steps):
        data = torch.utils.data.TensorDataset(*as_tensors(work.batch(step)))
        scorer = TracInCP(Logits(work.plain), data, [step], load, layers=layers, loss_fn=mean_losses, batch_size=4)
        found.append(scorer.influence(tests).sum(1).numpy())
    return np.array(found)


def by_products(work: Work) -> np.ndarray:
    found = np.empty((work.curriculum.steps, len(work.tests)), np.float32)
    for step in range(work.curriculum.steps):
        work.recorder._load(work.weights[step])
        direction = work.gradients.gradient(work.recorder.pool_batch(work.curriculum.batches[step].tolist()))
        for batch in work.recorder.test_batches:
            found[step, batch.rows] = work.rates[step] * next(work.gradients.products(batch, [direction])).numpy()
    return found


def by_difference(work: Work) -> np.ndarray:
    found = np.empty((work.curriculum.steps, len(work.tests)), np.float32)
    for step in range(work.curriculum.steps):
        at = work.weights[step]
        work.recorder._load(at)
        direction = work.gradients.gradient(work.recorder.pool_batch(work.curriculum.batches[step].tolist()))
        length = float(sum(part.square().sum() for part in direction.values())) ** 0.5
        small = 1e-2 / length
        losses = []
        for sign in (small, -small):
            moved = {name: p + sign * direction[name] if name in direction else p for name, p in at.items()}
            work.recorder._load(moved)
            losses.append(work.recorder._measure(work.recorder.test_batches, work.recorder.tests, "run", step))
        found[step] = work.rates[step] * (losses[0] - losses[1]) / (2 * small)
    return found


def by_dattri(work: Work) -> np.ndarray:
    from dattri_llm import AttributionArguments, AttributionTask, TracInAttributor

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return mean_losses(model(batch["input_ids"], use_cache=False).logits, batch["labels"]).sum()

    def dataset(examples: list[TokenizedExample]) -> list[dict[str, torch.Tensor]]:
        return [{"input_ids": a, "labels": b} for a, b in zip(*as_tensors(examples), strict=True)]

    tests, found = dataset(work.tests), []
    for step in range(work.curriculum.steps):
        work.load(work.plain, step)
        task = AttributionTask(loss_func=loss, model=work.plain)
        with tempfile.TemporaryDirectory() as folder:
            scorer = TracInAttributor(
                AttributionArguments(folder, per_device_train_batch_size=64, per_device_eval_batch_size=64), task=task
            )
            _, matrix = scorer.attribute(dataset(work.batch(step)), tests).agnostic_matrix()
        found.append(work.rates[step] * matrix.sum(0).numpy())
    return np.array(found)


def per_checkpoint(work: Work, gradients: ExampleGradients) -> Callable[[], None]:
    """Grad-Dot: all steps' directions at one checkpoint, one pass over the tests."""

    def run() -> None:
        batches = [work.recorder.pool_batch(rows.tolist()) for rows in work.curriculum.batches]
        directions = [gradients.gradient(batch) for batch in batches]
        for batch in work.recorder.test_batches:
            list(gradients.products(batch, directions))

    return run


def measure(work: Work) -> None:
    rows: dict[str, Callable[[Work], np.ndarray]] = {"gptfluence": by_products, "central difference": by_difference}
    if find_spec("captum"):
        rows = {"captum": by_captum, **rows}
    if find_spec("dattri_llm"):
        rows["dattri-llm"] = by_dattri
    steps, seconds, found = work.curriculum.steps, {}, {}
    for row, influence in rows.items():
        started = time.perf_counter()
        found[row] = influence(work)
        seconds[row] = (time.perf_counter() - started) / steps
    reference = found[next(iter(found))]
    print(f"\nparameters: {work.which}, {len(work.tests)} tests, {steps} steps of 4")
    print(f"{'':<24}{'s per step':>12}{'first row / it':>16}{'difference':>14}")
    for row, value in seconds.items():
        error = float(np.abs(found[row] - reference).max() / np.abs(reference).max())
        print(f"{row:<24}{value:>12.4f}{seconds[next(iter(seconds))] / value:>15.1f}x{error:>14.1e}", flush=True)
        allowed = DIFFERENCE_TOLERANCE if row == "central difference" else TOLERANCE
        if not error <= allowed:
            raise SystemExit(f"{row!r} differs from the first row by {error:.1e} of the largest influence")
    started = time.perf_counter()
    per_checkpoint(work, work.gradients)()
    print(f"{'gptfluence, Grad-Dot':<24}{(time.perf_counter() - started) / steps:>12.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--parameters", nargs="+", default=["last_layer", "all"])
    options = parser.parse_args()
    study = gf.Study.load(PROFILE)
    with single_thread():
        for which in options.parameters:
            measure(Work(study, options.task, options.steps, which))


if __name__ == "__main__":
    main()
