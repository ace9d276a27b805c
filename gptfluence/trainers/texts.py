"""Examples as a Trainer feeds them: its own tokens, its own labels."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gptfluence.common.errors import DataError
from gptfluence.recording.fed import Fed
from gptfluence.tasks.base import Example, TaskPool

REREAD = 4  # rows


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Inside the block random numbers may be drawn; afterwards all generators are as they were."""
    # those of numpy, too, that new code has no use for: the Trainer seeds them, and a collator may draw from them
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def fed(
    rows: Sequence[Any], collate: Callable[[list], Any], where: str, *, needs_loss: bool, packed: bool = False
) -> list[list[Fed]]:
    """The examples of each row, by itself through the Trainer's collator, without padding: one, of packed rows several.

    needs_loss: whether an example must have a token that counts; packed: whether a row says in seq_lengths how long its examples
    are. Raises DataError that names the row.
    """
    found = []
    with same_random_numbers():
        for number in range(len(rows)):
            try:
                batch = collate([rows[number]])
                ids, labels = (np.asarray(batch[name][0], np.int64) for name in ("input_ids", "labels"))
                kept = (
                    np.asarray(batch["attention_mask"][0], bool)
                    if "attention_mask" in batch
                    else np.ones(len(ids), bool)
                )
            except Exception as error:
                row = rows[number]
                lacking = [
                    f"no {name}" for name in ("input_ids", "labels") if isinstance(row, Mapping) and name not in row
                ]
                why = f"{error!r}{'; it has ' if lacking else ''}{' and '.join(lacking)}"
                raise DataError(
                    f"{where}: row {number} cannot be collated as the Trainer does with its training data: {why}; give "
                    "rows with input_ids and labels, made as those of the training data, or examples of gptfluence"
                ) from None
            if packed and "position_ids" not in batch:
                raise DataError(
                    f"{where}: row {number} is packed, but the collator does not say by position_ids where its examples begin; "
                    "train with packing=False"
                )
            ids, labels = ids[kept], labels[kept]
            ends = np.cumsum(rows[number]["seq_lengths"] if packed else [len(ids)])  # behind them a collator may pad
            parts = [np.split(each[: ends[-1]], ends[:-1]) for each in (ids, labels)]
            name = f"{where}: row {number}"
            found.append([_example(*part, name, needs_loss=needs_loss) for part in zip(*parts, strict=True)])
    return found


def check_constant(
    dataset: Any, collate: Callable[[list], Any], rows: Sequence[Sequence[Fed]], *, packed: bool
) -> None:
    """See that the last rows are the same when they are read again, with other random numbers than before.

    rows: what `fed` gave of the data set. Raises DataError.
    """

    def plain(rows: Sequence[Sequence[Fed]]) -> list[list[int]]:
        return [part.tolist() for examples in rows for each in examples for part in (each.ids, each.positions)]

    last = [dataset[row] for row in range(max(0, len(dataset) - REREAD), len(dataset))]
    if plain(fed(last, collate, "training data", needs_loss=False, packed=packed)) != plain(rows[-len(last) :]):
        raise DataError(
            "the rows of the training data change from one reading to the next (set_transform, say), so a record of them would be "
            "wrong; make them once, for example by map()"
        )


def _example(ids: np.ndarray, labels: np.ndarray, where: str, *, needs_loss: bool) -> Fed:
    positions = np.flatnonzero(labels[1:] != -100) + 1
    if (ids[positions] != labels[positions]).any():
        raise DataError(f"{where} has labels that are not its own tokens; only causal language models can be recorded")
    if needs_loss and not len(positions):
        raise DataError(
            f"{where} has no loss, because all its labels are masked (-100); leave it out or unmask its target"
        )
    return Fed(ids, positions)


def by_sft_trainer(rows: Sequence[Any], args: Any, tokenizer: Any) -> Any:
    """Rows that have no tokens yet, made ready as TRL's SFTTrainer makes its training data.

    Raises DataError if another Trainer trains, or if a row would be left out.
    """
    if not hasattr(args, "completion_only_loss") or tokenizer is None:
        raise DataError("tests: rows have no input_ids; give them tokenized, as the Trainer takes its training data")
    from datasets import Dataset
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import get_training_chat_template, has_generation_markers

    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list([dict(row) for row in rows])
    only = args.completion_only_loss
    if only is None:
        only = {"prompt", "completion"} <= set(dataset.column_names)
    marked = not args.assistant_only_loss or has_generation_markers(tokenizer.chat_template)
    template = None if marked else get_training_chat_template(tokenizer)
    alike = SimpleNamespace(_tokenizer=tokenizer, chat_template=template, completion_only_loss=only)
    in_order = copy(args)
    in_order.shuffle_dataset = False
    try:
        ready = SFTTrainer._prepare_dataset(alike, dataset, tokenizer, in_order, False, None, "tests")
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"tests: SFTTrainer cannot prepare rows with the columns {', '.join(dataset.column_names)} ({error!r}); give rows with "
            "the columns of its training data"
        ) from error
    if len(ready) != len(dataset):
        raise DataError(
            f"tests: SFTTrainer leaves out {len(dataset) - len(ready)} of {len(dataset)} rows, whose targets are cut off; raise "
            "max_length or leave them out"
        )
    return ready


def pool_of(name: str, examples: Sequence[Fed], tokenizer: Any) -> TaskPool:
    """What the store says of examples that have tokens: their texts, the target from the first token that counts on.

    tokenizer: None: token ids stand for texts
    """

    def text(ids: np.ndarray) -> str:
        if tokenizer is None:
            return "".join(f" {token}" for token in ids.tolist())
        return tokenizer.decode(ids.tolist(), skip_special_tokens=True)

    return TaskPool(
        name,
        tuple(
            Example(str(row), text(each.ids[: each.target_start]), text(each.ids[each.target_start :]))
            for row, each in enumerate(examples)
        ),
    )
