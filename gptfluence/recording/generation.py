"""What a GPT writes after a prompt: batched, the same text whatever the batch mates.

Every example draws from random numbers of its own, seeded by run, example and step. Tokens are decoded with the model's
cache where it gives what the whole text gives, else (a cache that is ignored, or none) by a whole forward pass for each.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from gptfluence.common.errors import DataError
from gptfluence.recording.logits import ScoredLogits
from gptfluence.recording.settings import Generation
from gptfluence.tasks.base import fingerprint

log = logging.getLogger(__name__)

ROOM = 4  # a decoding step handles one token a row, so its batches may hold more than a measuring batch


COMPARED_STEPS = 3
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)  # of a model with another kind of cache
AGREEMENT = 1e-3  # of the largest logit, in float32; decoding with a cache agrees to 1e-5 where it is right


class Generator:
    """Continues prompts with the model that `scored` belongs to."""

    def __init__(
        self,
        scored: ScoredLogits,
        prompts: Sequence[np.ndarray],
        settings: Generation,
        *,
        ids: Sequence[str],
        end: int | None,
        token_budget: int,
        device: str,
    ) -> None:
        """prompts: int64 [tokens] each; ids: of the examples; end: the token that ends a text; it is not part of it."""
        self._scored, self._prompts, self._settings = scored, prompts, settings
        self._keys = [int(fingerprint(name), 16) for name in ids]
        self._end, self._device = end, device
        self._batches: list[list[int]] = []
        for row in sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row)):
            size = len(prompts[row]) + settings.max_new_tokens
            if self._batches and (len(self._batches[-1]) + 1) * size <= ROOM * token_budget:
                self._batches[-1].append(row)
            else:
                self._batches.append([row])

    @cached_property
    def _decoding(self) -> type[_Cached | _Whole]:
        steps = min(COMPARED_STEPS, self._settings.max_new_tokens)  # more might not fit the model
        return _Cached if _cache_agrees(self._scored, self._prompts, self._device, steps) else _Whole

    @torch.inference_mode()
    def generate(self, seed: int, step: int) -> list[list[int]]:
        """The tokens that follow each prompt, without the end token."""
        texts: list[list[int]] = [[] for _ in self._prompts]
        for rows in self._batches:
            for row, tokens in zip(rows, self._continue(rows, seed, step), strict=True):
                texts[row] = tokens
        return texts

    def _continue(self, rows: list[int], seed: int, step: int) -> list[list[int]]:
        length = self._settings.max_new_tokens
        draws = np.stack(
            [np.random.default_rng([seed, self._keys[row], step]).random(length, np.float32) for row in rows]
        )
        uniforms = torch.from_numpy(draws).to(self._device)
        alive = torch.arange(len(rows), device=self._device)
        text = self._decoding(self._scored, [self._prompts[row] for row in rows], self._device)
        written: list[list[int]] = [[] for _ in rows]
        for place in range(length):
            logits = text.next_logits().float()
            tokens = choose(logits, uniforms[alive, place], self._settings.temperature, self._settings.top_p)
            goes_on = tokens != self._end if self._end is not None else torch.ones_like(tokens, dtype=torch.bool)
            if not bool(goes_on.all()):  # finished rows leave the batch
                kept = goes_on.nonzero().squeeze(1)
                alive, tokens = alive[kept], tokens[kept]
                if not len(kept):
                    break
                text.keep(kept)
            for row, token in zip(alive.tolist(), tokens.tolist(), strict=True):
                written[row].append(token)
            text.append(tokens)
        return written


class _Cached:
    """Texts of different lengths, padded on the left; a step sees the last token, and the model's cache the others."""

    def __init__(self, scored: ScoredLogits, prompts: Sequence[np.ndarray], device: str) -> None:
        longest = max(len(prompt) for prompt in prompts)
        ids, seen = np.zeros((2, len(prompts), longest), dtype=np.int64)
        for place, prompt in enumerate(prompts):
            ids[place, longest - len(prompt) :] = prompt
            seen[place, longest - len(prompt) :] = 1
        self._scored, self._cache = scored, scored.new_cache()
        self._ids, self._mask = (torch.from_numpy(array).to(device) for array in (ids, seen))
        self._positions = (self._mask.cumsum(dim=1) - 1).clamp_min(0)

    def next_logits(self) -> torch.Tensor:
        """float [texts, vocabulary]"""
        return self._scored.next_logits(self._ids, self._mask, self._positions, self._cache)

    def keep(self, texts: torch.Tensor) -> None:
        """Only these, int64 [kept], go on."""
        self._mask, self._positions = self._mask[texts], self._positions[texts]
        self._cache.batch_select_indices(texts)

    def append(self, tokens: torch.Tensor) -> None:
        """int64 [texts]: what follows each."""
        self._ids, self._positions = tokens[:, None], self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)


class _Whole:
    """The same by a forward pass over whole texts at every step, padded on the right, where no token looks."""

    def __init__(self, scored: ScoredLogits, prompts: Sequence[np.ndarray], device: str) -> None:
        self._scored = scored
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        ids = np.zeros((len(prompts), int(self._lengths.max())), dtype=np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        self._ids = torch.from_numpy(ids).to(device)

    def next_logits(self) -> torch.Tensor:
        return self._scored.last_logits(self._ids, self._lengths)

    def keep(self, texts: torch.Tensor) -> None:
        self._lengths, self._ids = self._lengths[texts], self._ids[texts]

    def append(self, tokens: torch.Tensor) -> None:
        if int(self._lengths.max()) == self._ids.shape[1]:
            self._ids = torch.cat([self._ids, self._ids.new_zeros(len(self._ids), 1)], dim=1)
        self._ids = self._ids.scatter(1, self._lengths[:, None], tokens[:, None])
        self._lengths = self._lengths + 1


@torch.inference_mode()
def _cache_agrees(scored: ScoredLogits, prompts: Sequence[np.ndarray], device: str, steps: int) -> bool:
    """Whether decoding with the cache gives the logits of whole texts, for prompts of two lengths, one of which then ends."""
    longest, shortest = max(prompts, key=len), min(prompts, key=len)
    probes = [longest, longest[: (len(longest) + 1) // 2], shortest]
    try:
        ways = [kind(scored, probes, device) for kind in (_Cached, _Whole)]
        for step in range(steps):
            with torch.autocast(device.split(":")[0], enabled=False):
                cached, whole = (way.next_logits().float() for way in ways)
            if not bool((cached - whole).abs().max() <= AGREEMENT * whole.abs().max()):
                log.info("a cache does not give the logits of whole texts; they are decoded without it")
                return False
            tokens = whole.argmax(dim=1)
            for way in ways:
                if step == 0:
                    way.keep(torch.tensor([0, 2], device=device))
                way.append(tokens if step else tokens[[0, 2]])
    except FAILURES as error:
        log.info("decoding with a cache fails (%s); texts are decoded without it", error)
        return False
    return True


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
    prompt: np.ndarray, where: str, max_length: int, settings: Generation, truncation: str, *, kept: int = 0
) -> np.ndarray:
    """The prompt, or its end (`truncation="prompt"`), such that the text still fits the model. Raises DataError.

    kept: how many tokens at the beginning are special ones, which stay there
    """
    excess = len(prompt) + settings.max_new_tokens - max_length
    if excess <= 0:
        return prompt
    if truncation == "error" or excess >= len(prompt) - kept:
        raise DataError(
            f"{where}: a prompt of {len(prompt)} tokens and {settings.max_new_tokens} generated ones are more than the "
            f"model's {max_length}; lower generation.max_new_tokens, or set `truncation: prompt` to cut long prompts"
        )
    return np.concatenate([prompt[:kept], prompt[kept + excess :]])
