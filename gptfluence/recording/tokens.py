"""Texts as tokens: made once, cut with care, batched so that little is padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gptfluence.common.errors import DataError
from gptfluence.tasks.base import Example, TaskPool

if TYPE_CHECKING:
    import torch

    from gptfluence.models.gpt import GPT


@dataclass(frozen=True)
class TokenizedExample:
    """`ids`: int64 [tokens]. Tokens from `target_start` on are the target; one token at least lies before it."""

    ids: np.ndarray
    target_start: int

    def scored(self, which: str) -> np.ndarray:
        """int64: positions of the tokens whose loss counts. `which`: target | all | last (of the target)."""
        start = {"target": self.target_start, "all": 1, "last": len(self.ids) - 1}[which]
        return np.arange(start, len(self.ids))


def tokenize(pool: TaskPool, gpt: GPT, *, truncation: str = "error") -> list[TokenizedExample]:
    """Tokenise prompt and target of every example.

    Free-text targets end with the end-of-text token, so that the GPT learns to stop; label words do not. An example with
    an empty prompt is preceded by the model's first token. Texts longer than the model are refused, or (`truncation=
    "prompt"`) lose the beginning of their prompt; the target is never cut.

    Raises DataError naming the example: text too long, or no target token.
    """
    tokenizer = gpt.tokenizer
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    # the fast tokenizers warn about long texts; what is too long is an error or is cut here
    encode = lambda texts: tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]  # noqa: E731
    prompts = encode([example.prompt for example in pool])
    targets = encode([example.target for example in pool])
    tokenized = []
    for example, prompt, target in zip(pool, prompts, targets, strict=True):
        where = f"{pool.name}: example {example.id!r}"
        if not target:
            raise DataError(f"{where}: its target {example.target!r} has no token; give it a target or leave it out")
        if not example.choices and tokenizer.eos_token_id is not None:
            target = [*target, tokenizer.eos_token_id]
        prompt = prompt or [first]
        excess = len(prompt) + len(target) - gpt.max_length
        if excess > 0 and truncation == "error":
            raise DataError(
                f"{where}: {len(prompt) + len(target)} tokens are too long for {gpt.name} ({gpt.max_length}); set "
                "`truncation: prompt` to cut the beginning of long prompts, or leave the example out"
            )
        if excess >= len(prompt):
            raise DataError(
                f"{where}: its target of {len(target)} tokens would be empty or cut in {gpt.name} ({gpt.max_length} "
                "tokens); leave the example out"
            )
        prompt = prompt[max(0, excess) :]
        tokenized.append(TokenizedExample(np.array([*prompt, *target], dtype=np.int64), len(prompt)))
    return tokenized


def label_words(example: Example, gpt: GPT) -> list[int]:
    """The example's choices as tokens, if each is one token and no two are the same; else none."""
    words = [gpt.tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in example.choices]
    single = all(len(word) == 1 for word in words) and len({word[0] for word in words}) == len(words)
    return [word[0] for word in words] if single else []


@dataclass(frozen=True)
class Batch:
    """Right-padded examples, ready for a causal LM, which never looks to the right: no attention mask is needed.

    input_ids: int64 [examples, tokens]; scored: int64 [k], flat positions in it whose next token counts; labels: int64
    [k], those next tokens; owner: int64 [k], the row each belongs to; counts: float32 [examples], tokens scored in a row;
    rows: int64 [examples], positions of the examples in the list they came from.
    """

    input_ids: torch.Tensor
    scored: torch.Tensor
    labels: torch.Tensor
    owner: torch.Tensor
    counts: torch.Tensor
    rows: torch.Tensor


def collate(examples: Sequence[TokenizedExample], rows: Sequence[int], which: str, device: str = "cpu") -> Batch:
    """The examples at `rows` as one batch."""
    import torch

    width = max(len(examples[row].ids) for row in rows) - 1  # the last token predicts nothing
    input_ids = np.zeros((len(rows), width), dtype=np.int64)
    scored, labels, owner = [], [], []
    for place, row in enumerate(rows):
        ids = examples[row].ids
        input_ids[place, : len(ids) - 1] = ids[:-1]
        positions = examples[row].scored(which)
        scored.append(place * width + positions - 1)
        labels.append(ids[positions])
        owner.append(np.full(len(positions), place))
    counts = np.array([len(part) for part in labels], dtype=np.float32)
    arrays = (input_ids, np.concatenate(scored), np.concatenate(labels), np.concatenate(owner), counts, np.array(rows))
    return Batch(*(torch.from_numpy(array).to(device) for array in arrays))


def bucketed(examples: Sequence[TokenizedExample], token_budget: int, which: str, device: str = "cpu") -> list[Batch]:
    """All the examples, in batches of like lengths (see `length_buckets`, `collate`)."""
    return [collate(examples, rows, which, device) for rows in length_buckets(examples, token_budget)]


def length_buckets(examples: Sequence[TokenizedExample], token_budget: int) -> list[list[int]]:
    """Rows sorted by length and cut into batches of at most `token_budget` padded tokens (one example at least)."""
    order = sorted(range(len(examples)), key=lambda row: (len(examples[row].ids), row))
    buckets: list[list[int]] = []
    for row in order:
        if buckets and (len(buckets[-1]) + 1) * (len(examples[row].ids) - 1) <= token_budget:
            buckets[-1].append(row)
        else:
            buckets.append([row])
    return buckets
