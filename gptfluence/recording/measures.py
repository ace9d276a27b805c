"""What is measured of the tests at a step besides their losses: accuracy, and BLEU and ROUGE-L of generated texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from gptfluence.common.errors import ConfigurationError
from gptfluence.models.gpt import GPT
from gptfluence.recording.generation import Generator, fitting_prompt
from gptfluence.recording.logits import ScoredLogits
from gptfluence.recording.settings import Generation, Recording
from gptfluence.recording.text_metrics import TextScorer
from gptfluence.recording.tokens import Batch, SpecialTokens, bucketed, label_words, tokenize
from gptfluence.tasks.base import TaskPool


class Accuracy:
    """1 where the likeliest of an example's choices is the right one, else 0: float32 [tests], nan without choices.

    Likelihoods are of a choice's tokens after the prompt, not divided by their number; the first of equals is taken. Where
    each choice is one token, they are among the logits that the loss is measured from (`see`) and cost nothing.
    """

    def __init__(
        self, gpt: GPT, tests: TaskPool, recording: Recording, scored: ScoredLogits, batches: Sequence[Batch]
    ) -> None:
        """`batches`: those that the losses of the tests are measured in. Raises ConfigurationError, DataError."""
        rows = _rows(tests, "accuracy", having_choices=True)
        self._scored = scored
        words = {row: ids for row in rows if recording.loss_tokens != "all" and (ids := label_words(tests[row], gpt))}
        self._seen = [_Seen.of(batch, words, tests) for batch in batches]
        self._rows = [row for row in rows if row not in words]
        asked = [
            replace(tests[row], id=f"{tests[row].id}#{number}", target=choice)
            for row in self._rows
            for number, choice in enumerate(tests[row].choices)
        ]
        tokens = tokenize(TaskPool(tests.name, tuple(asked)), gpt, truncation=recording.truncation) if asked else []
        device = str(batches[0].input_ids.device)
        self._batches = bucketed(tokens, recording.token_budget, "target", device)
        self._of = np.repeat(np.arange(len(self._rows)), [len(tests[row].choices) for row in self._rows])
        self._labels = [tests[row].label for row in self._rows]
        self._values = np.full(len(tests), np.nan, dtype=np.float32)

    def see(self, number: int, logits: torch.Tensor) -> None:
        """float [scored tokens, vocabulary]: the logits of the batch of this number, with the model as it is."""
        seen = self._seen[number]
        likelihoods = logits[seen.places[:, None], seen.words].cpu().numpy()
        self._values[seen.rows] = likelihoods.argmax(axis=1) == seen.labels

    @torch.inference_mode()
    def measure(self) -> np.ndarray:
        """float32 [tests], with the model as it is (in evaluation mode), after it was asked to `see` every batch."""
        likelihoods = np.empty(len(self._of), dtype=np.float32)
        for batch in self._batches:
            losses = self._scored.token_losses(batch)
            sums = losses.new_zeros(len(batch.counts)).index_add_(0, batch.owner, losses)
            likelihoods[batch.rows.cpu().numpy()] = -sums.cpu().numpy()
        for place, (row, label) in enumerate(zip(self._rows, self._labels, strict=True)):
            self._values[row] = float(np.argmax(likelihoods[self._of == place]) == label)
        return self._values.copy()


@dataclass(frozen=True)
class _Seen:
    """The examples of a batch whose choices are one token each.

    places: int64 [n], their scored token; words: int64 [n, choices], rows padded with their first; labels, rows: int [n],
    the right choice and the position in the tests
    """

    places: torch.Tensor
    words: torch.Tensor
    labels: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, batch: Batch, words: dict[int, list[int]], tests: TaskPool) -> _Seen:
        owners, rows = batch.owner.tolist(), batch.rows.tolist()
        found = [(owners.index(place), row) for place, row in enumerate(rows) if row in words]
        width = max((len(words[row]) for _, row in found), default=1)
        padded = [[*words[row], *words[row][:1] * (width - len(words[row]))] for _, row in found]
        device = batch.owner.device
        return cls(
            torch.tensor([place for place, _ in found], dtype=torch.int64, device=device),
            torch.tensor(padded, dtype=torch.int64, device=device).view(len(found), width),
            np.array([tests[row].label for _, row in found], dtype=np.int64),
            np.array([row for _, row in found], dtype=np.int64),
        )


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
        self._tests, self._settings, self._tokenizer = len(tests), settings, gpt.tokenizer
        examples = TaskPool(tests.name, tuple(tests[row] for row in self._rows))
        special = SpecialTokens.of(gpt)
        fitting = [
            fitting_prompt(
                prompts[row],
                f"{tests.name}: example {tests[row].id!r}",
                gpt.max_length,
                settings,
                recording.truncation,
                kept=len(special.before),
            )
            for row in self._rows
        ]
        self._generator = Generator(
            scored,
            fitting,
            settings,
            ids=[example.id for example in examples],
            end=special.end[0] if special.end else None,
            token_budget=recording.token_budget,
            device=device,
        )
        self._scorer = TextScorer(examples, metrics, settings.tokenization, workers=scoring_processes)

    def submit(self, seed: int, step: int, *, last: int) -> list[tuple[int, str]] | None:
        """Generate and have the texts scored; None between the steps that texts are generated at, of which `last` is one."""
        if not self._settings.due(step, last):
            return None
        tokens = self._generator.generate(seed, step)
        # blanks as they were written, which are those of the references (`tokens.encode`)
        texts = self._tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
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
