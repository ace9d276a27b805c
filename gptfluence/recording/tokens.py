"""Texts as tokens: made once, cut with care, batched so that little is padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np

from gptfluence.common.errors import DataError, ModelError
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


@dataclass(frozen=True)
class SpecialTokens:
    """What stands around a text. before: what a GPT's own tokenizer puts there, e.g. Llama's <s>; end: what its tokenizer puts
    after a text, else the end-of-text token, else nothing."""

    before: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, gpt: GPT) -> SpecialTokens:
        """Raises ModelError if the tokenizer changes a text's tokens when it adds those of its own."""
        with_them, bare = (list(gpt.tokenizer("a b", add_special_tokens=added)["input_ids"]) for added in (True, False))
        for start in range(len(with_them) - len(bare) + 1):
            if with_them[start : start + len(bare)] == bare:
                end = gpt.tokenizer.eos_token_id
                after = with_them[start + len(bare) :] or ([] if end is None else [end])
                return cls(tuple(with_them[:start]), tuple(after))
        raise ModelError(
            f"model {gpt.name!r}: with special tokens its tokenizer makes {with_them} of 'a b', without them {bare}; it must put "
            "them before or after the text"
        )


def tokenize(pool: TaskPool, gpt: GPT, *, truncation: str = "error") -> list[TokenizedExample]:
    """Tokenise prompt and target of every example.

    Texts begin with what the model's own tokenizer puts before them (Llama, Mistral, Gemma: a token; Pythia: nothing). Free-
    text targets end with what it puts after them, or with the end-of-text token, so that the GPT learns to stop; label words
    do not. An example without a single token before its target is preceded by the beginning-of-text or end-of-text token.
    Texts longer than the model are refused, or (`truncation="prompt"`) lose the beginning of their prompt; the target and
    the special tokens are never cut.

    Raises DataError naming the example: text too long, no target token, or tokens that decode to another text; ModelError if
    the model has no embedding for a token.
    """
    tokenizer = gpt.tokenizer
    special = SpecialTokens.of(gpt)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    parts = encode([(example.prompt, example.target) for example in pool], gpt, [_where(pool, e) for e in pool])
    embeddings = len(gpt.model.get_input_embeddings().weight)
    tokenized = []
    for example, (prompt, target) in zip(pool, parts, strict=True):
        where = _where(pool, example)
        if not target:
            raise DataError(f"{where}: its target {example.target!r} has no token; give it a target or leave it out")
        if not example.choices:
            target = [*target, *special.end]
        before = list(special.before) or ([first] if not prompt and first is not None else [])
        if not before and not prompt:
            raise DataError(
                f"{where}: its prompt is empty, and {gpt.name} has no token that begins a text; give it a prompt"
            )
        largest = max(*before, *prompt, *target, 0)
        if largest >= embeddings:
            raise ModelError(
                f"{where}: token {tokenizer.convert_ids_to_tokens(largest)!r} has the number {largest}, but model "
                f"{gpt.name!r} has embeddings for {embeddings} tokens; resize them "
                "(model.resize_token_embeddings(len(tokenizer))) and save the model, or take the tokenizer it was trained with"
            )
        length = len(before) + len(prompt) + len(target)
        excess = length - gpt.max_length
        if excess > 0 and truncation == "error":
            raise DataError(
                f"{where}: {length} tokens are too long for {gpt.name} ({gpt.max_length}); set "
                "`truncation: prompt` to cut the beginning of long prompts, or leave the example out"
            )
        if excess >= max(1, len(prompt)):
            raise DataError(
                f"{where}: its target of {len(target)} tokens would be empty or cut in {gpt.name} ({gpt.max_length} "
                "tokens); leave the example out"
            )
        prompt = [*before, *prompt[max(0, excess) :]]
        tokenized.append(TokenizedExample(np.array([*prompt, *target], dtype=np.int64), len(prompt)))
    return tokenized


def _where(pool: TaskPool, example: Example) -> str:
    return f"{pool.name}: example {example.id!r}"


def encode(
    parts: Sequence[tuple[str, str]], gpt: GPT, where: Sequence[str] | None = None
) -> list[tuple[list[int], list[int]]]:
    """The tokens of prompts and targets, without special ones, such that together they decode to the text of both.

    Prompt and target are encoded each by itself; where that does not give the text back (tokenizers that put a blank before
    every text, such as Llama 2's), the whole text is, and is cut where the target begins.

    where: of each pair, for the DataError that is raised if neither way gives the text back. Canonically equivalent
    characters (Unicode NFC) count as the same.
    """
    tokenizer = gpt.tokenizer
    # the fast tokenizers warn about long texts; what is too long is an error or is cut elsewhere
    ids = lambda texts: tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]  # noqa: E731
    apart = list(zip(*(ids(side) for side in zip(*parts, strict=True)), strict=True))
    found, wrong = list(apart), _changed(parts, apart, gpt)
    if wrong:
        for row, tokens in zip(wrong, ids("".join(parts[row]) for row in wrong), strict=True):
            found[row] = _cut_where_target_begins(parts[row], apart[row][0], tokens, gpt)
        for row in _changed(parts, found, gpt):
            text = "".join(parts[row])
            raise DataError(
                f"{where[row] if where else repr(text)}: {_difference(text, _decoded(found[row], gpt))}: the tokenizer of "
                f"{gpt.name} does not give this text back; change the text (for example lower case, blanks in place of line breaks, or Unicode NFKC), or take "
                "a model whose tokenizer does"
            )
    return found


def _changed(parts: Sequence[tuple[str, str]], tokens: Sequence[tuple[list[int], list[int]]], gpt: GPT) -> list[int]:
    """The rows whose tokens decode to another text."""
    texts = gpt.tokenizer.batch_decode([[*a, *b] for a, b in tokens], clean_up_tokenization_spaces=False)
    return [
        row
        for row, (pair, text) in enumerate(zip(parts, texts, strict=True))
        if text != "".join(pair) and normalize("NFC", text) != normalize("NFC", "".join(pair))
    ]


def _decoded(tokens: tuple[list[int], list[int]], gpt: GPT) -> str:
    return gpt.tokenizer.decode([*tokens[0], *tokens[1]], clean_up_tokenization_spaces=False)


def _cut_where_target_begins(
    pair: tuple[str, str], prompt: list[int], whole: list[int], gpt: GPT
) -> tuple[list[int], list[int]]:
    """The whole text's tokens, those that reach into the target being the target's."""
    if whole[: len(prompt)] == prompt:
        return prompt, whole[len(prompt) :]
    if not gpt.tokenizer.is_fast:
        return prompt, []
    encoded = gpt.tokenizer("".join(pair), add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    start = sum(end <= len(pair[0]) for _, end in encoded["offset_mapping"])
    return whole[:start], whole[start:]


def _difference(text: str, decoded: str) -> str:
    """Where two texts part, with what stands around it."""
    at = next((k for k, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), min(len(text), len(decoded)))
    around = slice(max(0, at - 10), at + 20)
    return f"{text[around]!r} is read as {decoded[around]!r}"


def label_words(example: Example, gpt: GPT) -> list[int]:
    """The example's choices as tokens, as they stand after its prompt, if each is one token and no two are the same; else
    none."""
    if not example.choices:
        return []
    words = [target for _, target in encode([(example.prompt, choice) for choice in example.choices], gpt)]
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
