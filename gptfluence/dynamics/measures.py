"""What is measured of the tests at a step besides their losses: accuracy, and BLEU and ROUGE-L of generated texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from gptfluence.config import Generation, Recording
from gptfluence.dynamics.generation import Generator, fitting_prompt
from gptfluence.dynamics.logits import ScoredLogits
from gptfluence.dynamics.text_metrics import TextScorer
from gptfluence.dynamics.tokens import collate, length_buckets, tokenize
from gptfluence.errors import ConfigurationError
from gptfluence.models import GPT
from gptfluence.tasks.base import TaskPool


class Accuracy:
    """1 where the likeliest of an example's choices is the right one, else 0: float32 [tests], nan without choices.

    Likelihoods are of a choice's tokens after the prompt, not divided by their number; the first of equals is taken.
    """

    def __init__(self, gpt: GPT, tests: TaskPool, recording: Recording, scored: ScoredLogits, device: str) -> None:
        self._rows = _rows(tests, "accuracy", having_choices=True)
        self._scored, self._tests = scored, len(tests)
        asked = [
            replace(tests[row], id=f"{tests[row].id}#{number}", target=choice)
            for row in self._rows
            for number, choice in enumerate(tests[row].choices)
        ]
        tokens = tokenize(TaskPool(tests.name, tuple(asked)), gpt, truncation=recording.truncation)
        buckets = length_buckets(tokens, recording.token_budget)
        self._batches = [collate(tokens, rows, "target", device) for rows in buckets]
        self._of = np.repeat(np.arange(len(self._rows)), [len(tests[row].choices) for row in self._rows])
        self._labels = [tests[row].label for row in self._rows]

    @torch.inference_mode()
    def measure(self) -> np.ndarray:
        """float32 [tests], with the model as it is (in evaluation mode)."""
        likelihoods = np.empty(len(self._of), dtype=np.float32)
        for batch in self._batches:
            losses = self._scored.token_losses(batch)
            sums = losses.new_zeros(len(batch.counts)).index_add_(0, batch.owner, losses)
            likelihoods[batch.rows.cpu().numpy()] = -sums.cpu().numpy()
        values = np.full(self._tests, np.nan, dtype=np.float32)
        for place, (row, label) in enumerate(zip(self._rows, self._labels, strict=True)):
            values[row] = float(np.argmax(likelihoods[self._of == place]) == label)
        return values


class GeneratedTexts:
    """BLEU and ROUGE-L of what the GPT writes after the prompt of each test that has free text for a target."""

    def __init__(
        self,
        gpt: GPT,
        tests: TaskPool,
        prompts: Sequence[np.ndarray],
        recording: Recording,
        settings: Generation,
        scored: ScoredLogits,
        metrics: Sequence[str],
        device: str,
        scoring_processes: int,
    ) -> None:
        """prompts: int64 [tokens] of every test. Raises DataError, ConfigurationError."""
        self._rows = _rows(tests, metrics[0], having_choices=False)
        self._tests, self._every, self._tokenizer = len(tests), settings.every, gpt.tokenizer
        examples = TaskPool(tests.name, tuple(tests[row] for row in self._rows))
        fitting = [
            fitting_prompt(
                prompts[row], f"{tests.name}: example {tests[row].id!r}", gpt.max_length, settings, recording.truncation
            )
            for row in self._rows
        ]
        self._generator = Generator(
            scored.next_logits,
            fitting,
            settings,
            ids=[example.id for example in examples],
            end=gpt.tokenizer.eos_token_id,
            token_budget=recording.token_budget,
            device=device,
        )
        self._scorer = TextScorer(examples, metrics, workers=scoring_processes)

    def submit(self, seed: int, step: int, *, last: bool) -> list[tuple[int, str]] | None:
        """Generate and have the texts scored; None between the steps that texts are generated at."""
        if step % self._every and not last:
            return None
        tokens = self._generator.generate(seed, step)
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return self._scorer.submit([text.strip() for text in texts])

    def trajectories(self, submitted: Sequence[list[tuple[int, str]] | None]) -> dict[str, np.ndarray]:
        """Metric -> float32 [steps + 1, tests] from what `submit` returned at each step; nan for tests with choices."""
        values = np.full((len(self._scorer.metrics), len(submitted), self._tests), np.nan, dtype=np.float32)
        latest: np.ndarray | None = None
        for step, keys in enumerate(submitted):
            latest = self._scorer.values(keys) if keys is not None else latest
            values[:, step, self._rows] = latest
        return dict(zip(self._scorer.metrics, values, strict=True))

    def close(self) -> None:
        self._scorer.close()


def _rows(tests: TaskPool, metric: str, *, having_choices: bool) -> list[int]:
    rows = [row for row, example in enumerate(tests) if bool(example.choices) == having_choices]
    if not rows:
        wanted = "labels to choose from" if having_choices else "free text for a target"
        raise ConfigurationError(
            f"metrics: {metric} is not defined for any test of {tests.name}: none has {wanted}; leave it out"
        )
    return rows
