"""Which examples a Trainer really feeds to the model, noted where they arrive.

Callbacks are given no batch, samplers draw ahead, and a resumed training skips: so each row carries its position from the data
set through the collator to the model's forward pass, where a hook takes it off again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from gptfluence.common.errors import ConfigurationError

ROWS = "gptfluence_rows"  # the argument of the model's forward pass that the hook takes off


class Seen(NamedTuple):
    """rows: positions of the examples; total: the sum of their token losses, nan if not known; tokens: how many these are;
    divisor: what the Trainer had the model divide by, the same in all processes, None if it did not say."""

    rows: list[int]
    total: float
    tokens: int
    divisor: int | None


class _Numbered(Dataset):
    """A data set whose rows come with their positions."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getattr__(self, name: str) -> Any:
        """What else is asked of it, as `set_epoch` by accelerate, is asked of the data set."""
        if name == "_dataset":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self._dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[int, Any]]:
        together = getattr(self._dataset, "__getitems__", None)
        rows = together(indices) if together else [self._dataset[index] for index in indices]
        return list(zip(indices, rows, strict=True))


class _Collator:
    """A collator that passes the positions on; a class, so that processes that load data can be sent it."""

    def __init__(self, collate: Callable[[list], Any]) -> None:
        self._collate = collate

    def __call__(self, rows: list[tuple[int, Any]]) -> Any:
        batch = self._collate([row for _, row in rows])
        with suppress(TypeError):  # no batch by names: the training goes on, and the recording will miss its rows
            batch[ROWS] = torch.tensor([int(index) for index, _ in rows])
        return batch


class Feeding:
    """Notes what a model is trained on between two calls of `take`. The batches themselves are as they were.

    dataset, collate: the Trainer's own, for reading single rows as it would
    packed: whether a row holds several examples
    """

    def __init__(self, loader: Any, model: torch.nn.Module, *, packed: bool = False) -> None:
        """loader: the Trainer's `train_dataloader`; packed: whether its arguments say that rows are packed.

        Raises ConfigurationError for data without positions.
        """
        # accelerate wraps the loader of torch, and makes another one from its data set where a resumed training skips batches
        self._loader: DataLoader = getattr(loader, "base_dataloader", loader)
        self.dataset, self.collate = self._loader.dataset, self._loader.collate_fn
        if isinstance(self.dataset, _Numbered):
            raise ConfigurationError(
                "TrainerRecorder: another one records this training already; give all tests to one TrainerRecorder"
            )
        if isinstance(self.dataset, IterableDataset) or not hasattr(self.dataset, "__len__"):
            raise ConfigurationError(
                "TrainerRecorder: the training data is a stream, whose examples have no positions that a curriculum could "
                "name; load it as a data set with a length (streaming=False)"
            )
        known = "seq_lengths" in (getattr(self.dataset, "column_names", None) or ())
        if packed and not known:
            raise ConfigurationError(
                "TrainerRecorder: the rows of the training data are packed without regard to where examples begin, so which "
                "example is in a batch cannot be told; train with packing_strategy='bfd' or packing=False"
            )
        self.packed = known
        self._set(_Numbered(self.dataset), _Collator(self.collate))
        self._rows: list[torch.Tensor] = []
        self._losses: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._divisor: Any = None
        self._hooks = [
            model.register_forward_pre_hook(self._note, with_kwargs=True, prepend=True),
            model.register_forward_hook(self._note_loss, with_kwargs=True),
        ]
        self._training = False

    def _set(self, dataset: Any, collate: Callable[[list], Any]) -> None:
        # a DataLoader guards its data set against being exchanged, since its sampler may not fit: this one has the same rows
        self._loader.__dict__["dataset"] = dataset
        self._loader.collate_fn = collate

    def _note(self, _model: torch.nn.Module, inputs: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        rows = named.pop(ROWS, None)
        self._training = rows is not None and torch.is_grad_enabled()  # SFTTrainer may ask once more, for its metrics
        if self._training:
            self._rows.append(rows)
        return inputs, named

    def _note_loss(self, _model: torch.nn.Module, _inputs: tuple, named: dict[str, Any], output: Any) -> None:
        """The sum over tokens, and how many they are."""
        loss, labels = getattr(output, "loss", None), named.get("labels")
        if not self._training or loss is None or labels is None:
            return
        tokens = (labels[..., 1:] != -100).sum()
        self._divisor = named.get("num_items_in_batch")
        self._losses.append((loss.detach() * (tokens if self._divisor is None else self._divisor), tokens))

    @property
    def waiting(self) -> bool:
        """Whether there are parts of an update that has not come."""
        return bool(self._rows)

    def take(self) -> Seen:
        """What was seen since the last call."""
        rows = [int(row) for part in self._rows for row in part.tolist()]
        known = len(self._losses) == len(self._rows) and bool(rows)
        total = math.fsum(float(loss) for loss, _ in self._losses) if known else math.nan
        tokens = sum(int(count) for _, count in self._losses)
        divisor = int(self._divisor) if known and self._divisor is not None else None
        self._rows, self._losses, self._divisor = [], [], None
        return Seen(rows, total, tokens, divisor)

    def close(self) -> None:
        """Give model and loader back as they came."""
        for hook in self._hooks:
            hook.remove()
        self._set(self.dataset, self.collate)
