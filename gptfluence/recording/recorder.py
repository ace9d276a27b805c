"""Train one GPT on one curriculum and measure every test example before the first and after every update.

The recorder knows nothing of files, studies or processes: a model, texts and a curriculum in, a `TrainingRun` out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from gptfluence.common.errors import ConfigurationError, RecordingError
from gptfluence.models.gpt import GPT
from gptfluence.recording.curriculum import NOBODY, Curriculum, named
from gptfluence.recording.dynamics import TrainingRun
from gptfluence.recording.logits import ScoredLogits, example_losses
from gptfluence.recording.measures import Accuracy, GeneratedTexts
from gptfluence.recording.settings import AdamW, Generation, Recording
from gptfluence.recording.text_metrics import TEXT_METRICS
from gptfluence.recording.tokens import Batch, TokenizedExample, bucketed, collate, tokenize
from gptfluence.tasks.base import TaskPool

NOT_DECAYED = re.compile(
    r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)"
)  # Trainer.get_decay_parameter_names


class Recorder:
    """Records runs of one GPT on one pool and one set of tests, each from the same initial weights.

    Everything that does not change between runs (tokens, batches to measure, initial weights) is made once here. Use it as
    a context manager, or call `close()`.
    """

    def __init__(
        self,
        gpt: GPT,
        pool: TaskPool,
        tests: TaskPool,
        recording: Recording,
        *,
        metrics: Sequence[str] = ("loss",),
        generation: Generation | None = None,
        device: str = "cpu",
        scoring_processes: int = 0,
        tokens: tuple[Sequence[TokenizedExample], Sequence[TokenizedExample]] | None = None,
    ) -> None:
        """
        Args:
            metrics: what is recorded of the tests; the loss always is. See `Setting.metrics` in `profile.schema`.
            generation: how texts are generated for BLEU and ROUGE-L; None: the defaults.
            scoring_processes: see `text_metrics.TextScorer`.
            tokens: of pool and tests, where they are not what the GPT's tokenizer makes of the texts.

        Raises DataError (texts and model do not fit, an empty reference), ConfigurationError, ModelError.
        """
        if device == "cpu" and recording.precision == "bf16":
            raise ConfigurationError("recording.precision: bf16 needs a GPU; use fp32 on a CPU")
        self.gpt, self.pool, self.tests, self.recording, self.device = gpt, pool, tests, recording, device
        made = tokens or [tokenize(texts, gpt, truncation=recording.truncation) for texts in (pool, tests)]
        self._pool_tokens, test_tokens = made
        self._test_batches = self._measuring_batches(test_tokens)
        self._pool_batches = self._measuring_batches(self._pool_tokens) if recording.record_pool else []
        self._model = gpt.model.to(device)
        self._trainable = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        self._initial = {name: p.detach().clone() for name, p in self._trainable.items()}
        self._scored = ScoredLogits(self._model)
        self._accuracy = self._texts = None
        try:
            if "accuracy" in metrics:
                self._accuracy = Accuracy(gpt, tests, recording, self._scored, self._test_batches)
            if text_metrics := [metric for metric in metrics if metric in TEXT_METRICS]:
                self._texts = GeneratedTexts(
                    gpt,
                    tests,
                    [tokens.ids[: tokens.target_start] for tokens in test_tokens],
                    recording,
                    generation or Generation(),
                    self._scored,
                    text_metrics,
                    device,
                    scoring_processes,
                )
        except BaseException:  # the caller keeps its model as it was
            self._scored.close()
            raise

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the model back as it came: initial weights, no hook."""
        self._reset()
        self._scored.close()
        if self._texts is not None:
            self._texts.close()

    def record(
        self,
        name: str,
        curriculum: Curriculum,
        *,
        seed: int = 0,
        ends_only: bool = False,
        rates: Sequence[float] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> TrainingRun:
        """Train on `curriculum` and measure after every update. On a CPU, equal arguments give equal bytes.

        A step without any example is an update with a gradient of zero, and has a batch loss of 0; see `update_loss`.

        Args:
            name: the run's name, for errors and for the result.
            seed: of what is random in training besides the curriculum (dropout).
            ends_only: measure before the first and after the last update only; values between are nan. The training is
                the same, and measuring takes most of the time where there are many tests.
            rates: the learning rate of each update, if not that of the optimizer's schedule.
            on_step: called after each of the steps with its number, 0 (the first measurement) to `curriculum.steps`.

        Raises RecordingError that names run, step and example where a loss is not finite.
        """
        if curriculum.highest >= len(self.pool):
            raise ConfigurationError(
                f"run {name}: its curriculum names example {curriculum.highest}, but the pool has "
                f"{len(self.pool)} examples"
            )
        self._reset()
        optimizer = build_optimizer(self._model, self.recording.optimizer, fused=True)
        rates = self.recording.optimizer.learning_rates(curriculum.steps) if rates is None else list(map(float, rates))
        tests = np.empty((curriculum.steps + 1, len(self.tests)), dtype=np.float32)
        accuracy = np.empty((curriculum.steps + 1 if self._accuracy else 0, len(self.tests)), dtype=np.float32)
        texts = []
        pool = np.empty((curriculum.steps + 1, len(self.pool) if self._pool_batches else 0), dtype=np.float32)
        batch_loss = np.empty(curriculum.steps, dtype=np.float32)
        gradient_norm = np.empty(curriculum.steps, dtype=np.float32)
        with _seeded(seed, self.device):
            for step in range(curriculum.steps + 1):
                if step:
                    loss, norm = self._update(optimizer, curriculum.batches[step - 1], rates[step - 1])
                    batch_loss[step - 1], gradient_norm[step - 1] = loss, norm
                    if not math.isfinite(loss) or not math.isfinite(norm):
                        ids = [self.pool[row].id for row in curriculum.examples(step - 1)]
                        raise RecordingError(
                            f"run {name}, step {step}: the training loss is {loss} and its gradient's norm {norm} "
                            f"(examples {', '.join(map(repr, ids))}); lower the learning rate or look at these texts"
                        )
                measured = not ends_only or step in (0, curriculum.steps)
                if measured:
                    tests[step] = self._measure(self._test_batches, self.tests, name, step, self._accuracy)
                if measured and self._pool_batches:
                    pool[step] = self._measure(self._pool_batches, self.pool, name, step)
                if measured and self._accuracy is not None:
                    with self._autocast():
                        accuracy[step] = self._accuracy.measure()
                if self._texts is not None:
                    with self._autocast():
                        texts.append(self._texts.submit(seed, step, last=curriculum.steps) if measured else None)
                if on_step is not None:
                    on_step(step)
        trajectories = {"loss": tests}
        if self._accuracy is not None:
            trajectories["accuracy"] = accuracy
        if self._texts is not None:
            trajectories |= self._texts.trajectories(texts)
        if ends_only:
            for values in (*trajectories.values(), pool):
                values[1:-1] = np.nan
        return TrainingRun(
            name=name,
            curriculum=curriculum,
            trajectories=trajectories,
            pool_trajectories={"loss": pool} if self._pool_batches else {},
            learning_rate=np.array(rates, dtype=np.float32),
            batch_loss=batch_loss,
            gradient_norm=gradient_norm,
        )

    def _measuring_batches(self, tokens: list[TokenizedExample]) -> list[Batch]:
        return bucketed(tokens, self.recording.token_budget, self.recording.loss_tokens, self.device)

    @torch.no_grad()
    def _reset(self) -> None:
        for name, parameter in self._trainable.items():
            parameter.copy_(self._initial[name])
            parameter.grad = None

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.recording.precision == "bf16")

    def _update(self, optimizer: torch.optim.Optimizer, batch: np.ndarray, rate: float) -> tuple[float, float]:
        self._model.train()
        with self._autocast():
            loss = update_loss(self._scored, self._pool_tokens, batch, self.recording.train_tokens, self.device)
        norm = update(self._trainable, optimizer, loss, rate, self.recording.optimizer.max_gradient_norm)
        return 0.0 if loss is None else float(loss.detach()), float(norm)

    @torch.inference_mode()
    def _measure(
        self, batches: list[Batch], examples: TaskPool, run: str, step: int, accuracy: Accuracy | None = None
    ) -> np.ndarray:
        self._model.eval()
        losses = torch.empty(len(examples), device=self.device)
        for number, batch in enumerate(batches):
            with self._autocast():
                logits = self._scored.logits(batch)
            losses[batch.rows] = example_losses(F.cross_entropy(logits, batch.labels, reduction="none"), batch)
            if accuracy is not None:
                accuracy.see(number, logits)
        values = losses.cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            remedy = (
                "lower the learning rate or look at its text"
                if step
                else "the model's own weights give it before the first update; look at them and at this text"
            )
            raise RecordingError(
                f"run {run}, step {step}: the loss of example {examples[int(bad[0])].id!r} of {examples.name} is "
                f"{values[bad[0]]}; {remedy}"
            )
        return values


def decayed_names(model: torch.nn.Module) -> set[str]:
    """The parameters that weight decay acts on, as the Trainer of transformers chooses them: not those of a LayerNorm, nor
    those with `bias`, or a norm, in their names."""
    spared = {id(p) for part in model.modules() if isinstance(part, torch.nn.LayerNorm) for p in part.parameters()}
    return {
        name for name, p in model.named_parameters() if id(p) not in spared and not NOT_DECAYED.search(name.lower())
    }


def build_optimizer(model: torch.nn.Module, settings: AdamW, *, fused: bool) -> torch.optim.AdamW:
    """AdamW for what is trained of a model, as the HF Trainer sets it up: biases and norm weights are not decayed.

    fused: all parameters in one kernel, which is faster and differs by rounding. Recorded runs are made with it. Reference
        runs of tangents are made without: there are few of them, and tangents that were taken before stay those of their run.
    """
    names = decayed_names(model)
    trained = [(name in names, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for decayed, p in trained if decayed], "weight_decay": settings.weight_decay},
        {"params": [p for decayed, p in trained if not decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=0.0, betas=settings.betas, eps=settings.eps, fused=fused
    )


def update_loss(
    scored: ScoredLogits, tokens: Sequence[TokenizedExample], batch: np.ndarray, which: str, device: str
) -> torch.Tensor | None:
    """What an update lowers: the mean loss over a step's tokens, nats per token, as `model(input_ids, labels)` has it.

    batch: int [places], a row of `Curriculum.batches`. Tokens of masked examples count with a loss of 0, so that the others
    have the weight that they had. None if there is no example.
    """
    there = batch[batch >= 0].tolist()
    if not there:
        return None
    losses = scored.token_losses(collate(tokens, there, which, device))
    every = named(batch[batch != NOBODY]).tolist()
    if len(there) == len(every):
        return losses.mean()
    return losses.sum() / sum(len(tokens[example].scored(which)) for example in every)


def update(
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor | None,
    rate: float,
    max_gradient_norm: float | None,
) -> torch.Tensor:
    """One step of `parameters` down the gradient of `loss` at this learning rate; None: a gradient of zero.

    Returns the norm of the gradient before it was clipped; its last digits depend on the order of the parameters.
    """
    if loss is not None:
        loss.backward()
    else:  # moments and weight decay go on
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values() if p.grad is not None])
    if max_gradient_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters.values(), max_gradient_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return norm


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread for torch: tiny models gain nothing from more, and the order of additions stays the same everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
