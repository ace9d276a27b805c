"""What is measured of the tests while somebody else trains the model, and nothing of it is to be noticed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gptfluence.common.errors import ConfigurationError, DataError
from gptfluence.models.gpt import GPT
from gptfluence.recording.fed import Fed
from gptfluence.recording.logits import ScoredLogits, example_losses
from gptfluence.recording.measures import Accuracy, GeneratedTexts
from gptfluence.recording.settings import Generation, Metric, Recording
from gptfluence.recording.text_metrics import TEXT_METRICS
from gptfluence.recording.tokens import TokenizedExample, bucketed
from gptfluence.tasks.base import TaskPool
from gptfluence.trainers.texts import same_random_numbers


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module's mode and all random numbers are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    with same_random_numbers(), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def learns_next_tokens(model: torch.nn.Module, example: Fed) -> bool:
    """Whether the model's own loss of an example is the mean cross-entropy of its next tokens; True if it shows no logits.

    Decoders of BART and its kin want labels that are shifted already.
    """
    device = next(model.parameters()).device
    ids, positions = (torch.from_numpy(part).to(device) for part in (example.ids, example.positions))
    labels = torch.full_like(ids, -100)
    labels[positions] = ids[positions]
    with undisturbed(model):
        output = model(input_ids=ids[None], labels=labels[None], use_cache=False)
        if output.logits is None:
            return True
        expected = F.cross_entropy(output.logits[0, positions - 1].float(), ids[positions])
    return output.loss is not None and bool(torch.isclose(output.loss.float(), expected, rtol=0.02))


def keeps_apart(model: torch.nn.Module, batch: dict[str, Any]) -> bool:
    """Whether what the last example of a packed row predicts does not depend on its first.

    batch: of one row, as the Trainer's collator makes it
    """
    device, tokens = next(model.parameters()).device, len(model.get_input_embeddings().weight)
    given = {
        name: each.to(device) if torch.is_tensor(each) else each for name, each in batch.items() if name != "labels"
    }
    begins = (given["position_ids"][0] == 0).nonzero().flatten().tolist()
    changed = given["input_ids"].clone()
    changed[0, : begins[1]] = (changed[0, : begins[1]] + 1) % tokens
    with undisturbed(model):
        one, other = (
            model(**{**given, "input_ids": ids}).logits[0, begins[-1] :] for ids in (given["input_ids"], changed)
        )
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


class Measuring:
    """Measures the tests of a training, with the model as it is."""

    def __init__(
        self,
        gpt: GPT,
        tests: TaskPool,
        tokens: Sequence[TokenizedExample | Fed],
        *,
        metrics: Sequence[Metric],
        generation: Generation,
        token_budget: int,
    ) -> None:
        """Raises ConfigurationError (a metric that the tests do not have), DataError, ModelError."""
        if gpt.tokenizer is None and set(metrics) != {"loss"}:
            raise ConfigurationError(f"metrics: {metrics[-1]} needs a tokenizer; give the Trainer its processing_class")
        device = str(next(gpt.model.parameters()).device)
        self._model, self._tests = gpt.model, len(tests)
        self._batches = bucketed(tokens, token_budget, "target", device)
        self._accuracy = self._texts = None
        with undisturbed(gpt.model):
            self._scored = ScoredLogits(gpt.model)
        common = Recording(token_budget=token_budget)
        if "accuracy" in metrics:
            self._accuracy = Accuracy(gpt, tests, common, self._scored, self._batches)
        if scored := [metric for metric in metrics if metric in TEXT_METRICS]:
            prompts = [each.ids[: each.target_start] for each in tokens]
            self._texts = GeneratedTexts(gpt, tests, prompts, common, generation, self._scored, scored, device, 0)

    def measure(self, step: int) -> dict[str, np.ndarray]:
        """Metric -> float32 [tests]; step: the updates so far, which texts are drawn with.

        Raises DataError if the model cannot take a test's length.
        """
        with undisturbed(self._model):
            try:
                values = self._read()
                if self._texts is not None:
                    written = self._texts.trajectories([self._texts.submit(0, step, last=step)])
                    values |= {metric: rows[0] for metric, rows in written.items()}
            finally:
                self._scored.rest()
        return values

    def _read(self) -> dict[str, np.ndarray]:
        """What the tests' own texts say: metric -> float32 [tests]."""
        losses = torch.empty(self._tests, dtype=torch.float32, device=self._batches[0].input_ids.device)
        try:
            for number, batch in enumerate(self._batches):
                logits = self._scored.logits(batch)
                losses[batch.rows] = example_losses(F.cross_entropy(logits, batch.labels, reduction="none"), batch)
                if self._accuracy is not None:
                    self._accuracy.see(number, logits)
        except IndexError as error:  # learned positions end somewhere
            longest = max(len(batch.input_ids[0]) for batch in self._batches) + 1
            raise DataError(f"tests: the model cannot take the longest row, of {longest} tokens; shorten it") from error
        accuracy = {} if self._accuracy is None else {"accuracy": self._accuracy.measure()}
        return {"loss": losses.cpu().numpy(), **accuracy}

    def close(self) -> None:
        """Give the model back as it came."""
        self._scored.close()
        if self._texts is not None:
            self._texts.close()
