"""What a GPT writes after a prompt: batched, with a key-value cache, the same text whatever the batch mates.

Every example draws from random numbers of its own, seeded by run, example and step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from gptfluence.common.errors import DataError
from gptfluence.recording.settings import Generation
from gptfluence.tasks.base import fingerprint

NextLogits = Callable[..., torch.Tensor]
ROOM = 4  # a decoding step handles one token a row, so its batches may hold more than a measuring batch


class Generator:
    """Continues prompts. `next_logits(input_ids=, attention_mask=, position_ids=, past_key_values=)` gives float
    [rows, vocabulary], the logits after the last token of each row."""

    def __init__(
        self,
        next_logits: NextLogits,
        prompts: Sequence[np.ndarray],
        settings: Generation,
        *,
        ids: Sequence[str],
        end: int | None,
        token_budget: int,
        device: str,
    ) -> None:
        """prompts: int64 [tokens] each; ids: of the examples; end: the token that ends a text; it is not part of it."""
        self._next_logits, self._prompts, self._settings = next_logits, prompts, settings
        self._keys = [int(fingerprint(name), 16) for name in ids]
        self._end, self._device = end, device
        self._batches: list[list[int]] = []
        for row in sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row)):
            size = len(prompts[row]) + settings.max_new_tokens
            if self._batches and (len(self._batches[-1]) + 1) * size <= ROOM * token_budget:
                self._batches[-1].append(row)
            else:
                self._batches.append([row])

    @torch.inference_mode()
    def generate(self, seed: int, step: int) -> list[list[int]]:
        """The tokens that follow each prompt, without the end token."""
        texts: list[list[int]] = [[] for _ in self._prompts]
        for rows in self._batches:
            for row, tokens in zip(rows, self._continue(rows, seed, step), strict=True):
                texts[row] = tokens
        return texts

    def _continue(self, rows: list[int], seed: int, step: int) -> list[list[int]]:
        from transformers import DynamicCache  # a second that whoever generates nothing need not wait

        longest = max(len(self._prompts[row]) for row in rows)
        ids, seen = np.zeros((2, len(rows), longest), dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, longest - len(self._prompts[row]) :] = self._prompts[row]
            seen[place, longest - len(self._prompts[row]) :] = 1
        inputs, mask = (torch.from_numpy(array).to(self._device) for array in (ids, seen))
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        length = self._settings.max_new_tokens
        draws = np.stack(
            [np.random.default_rng([seed, self._keys[row], step]).random(length, np.float32) for row in rows]
        )
        uniforms = torch.from_numpy(draws).to(self._device)
        alive, cache = torch.arange(len(rows), device=self._device), DynamicCache()
        written: list[list[int]] = [[] for _ in rows]
        for place in range(length):
            logits = self._next_logits(
                input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache
            )
            tokens = choose(logits.float(), uniforms[alive, place], self._settings.temperature, self._settings.top_p)
            goes_on = tokens != self._end if self._end is not None else torch.ones_like(tokens, dtype=torch.bool)
            if not bool(goes_on.all()):  # finished rows leave the batch
                kept = goes_on.nonzero().squeeze(1)
                alive, tokens, mask, positions = alive[kept], tokens[kept], mask[kept], positions[kept]
                if not len(kept):
                    break
                cache.batch_select_indices(kept)
            for row, token in zip(alive.tolist(), tokens.tolist(), strict=True):
                written[row].append(token)
            inputs, positions = tokens[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return written


def choose(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """int64 [rows]: the next token of each row, greedy (temperature 0) or nucleus-sampled (Holtzman et al., 2020).

    logits: float32 [rows, vocabulary]; uniforms: float32 [rows] in [0, 1), one draw a row, inverted through the
    cumulative probabilities of the smallest set of likeliest tokens that holds `top_p` of the mass
    """
    best = logits.argmax(dim=1)
    if temperature == 0:
        return best
    probabilities = (logits / temperature).softmax(dim=1)
    open_rows = (probabilities.gather(1, best[:, None]).squeeze(1) < top_p).nonzero().squeeze(1)
    if not len(open_rows):  # the nucleus is one token; sorting a vocabulary for that would cost more than the GPT
        return best
    sorted_mass, order = probabilities[open_rows].sort(dim=1, descending=True, stable=True)
    cumulated = sorted_mass.cumsum(dim=1)
    size = ((cumulated - sorted_mass) < top_p).sum(dim=1, keepdim=True)
    mass = cumulated.gather(1, size - 1)
    picked = torch.searchsorted(cumulated, uniforms[open_rows, None] * mass, right=True).minimum(size - 1)
    best[open_rows] = order.gather(1, picked).squeeze(1)
    return best


def fitting_prompt(
    prompt: np.ndarray, where: str, max_length: int, settings: Generation, truncation: str
) -> np.ndarray:
    """The prompt, or its end (`truncation="prompt"`), such that the text still fits the model. Raises DataError."""
    excess = len(prompt) + settings.max_new_tokens - max_length
    if excess <= 0:
        return prompt
    if truncation == "error" or excess >= len(prompt):
        raise DataError(
            f"{where}: a prompt of {len(prompt)} tokens and {settings.max_new_tokens} generated ones are more than the "
            f"model's {max_length}; lower generation.max_new_tokens, or set `truncation: prompt` to cut long prompts"
        )
    return prompt[excess:]
