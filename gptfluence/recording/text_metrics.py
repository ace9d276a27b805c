"""BLEU and ROUGE-L of generated texts (paper, section 4.1), through sacrebleu and rouge_score."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache

import numpy as np

from gptfluence.common.errors import DataError
from gptfluence.tasks.base import TaskPool

TEXT_METRICS = ("bleu", "rouge_l")


def score(metric: str, text: str, references: Sequence[str]) -> float:
    """BLEU (sentence BLEU, 0-100, sacrebleu's tokens and smoothing, orders that the text has) or ROUGE-L (F1, 0-1, the
    best over the references, no stemming) of one text."""
    if metric == "bleu":
        return float(_bleu().sentence_score(text, list(references)).score)
    return float(_rouge().score_multi(list(references), text)["rougeL"].fmeasure)


@cache
def _bleu():
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


@cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


class TextScorer:
    """Scores the texts of a run, step after step. A text that was scored for its example before is not scored again.

    workers: processes that score while the GPT goes on training; 0 scores here. The numbers are the same.
    """

    def __init__(self, examples: TaskPool, metrics: Sequence[str], *, workers: int = 0) -> None:
        """Raises DataError that names the example whose reference is empty."""
        self.metrics = tuple(metrics)
        self._references = [example.references or (example.target,) for example in examples]
        for example, references in zip(examples, self._references, strict=True):
            if not all(reference.strip() for reference in references):
                raise DataError(
                    f"{examples.name}: example {example.id!r} has an empty reference; nothing can be compared with it. "
                    "Give it a text or leave the example out"
                )
        self._known: dict[tuple[int, str], Future | list[float]] = {}
        self._pool = None
        if workers:
            self._pool = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),)
            )

    def submit(self, texts: Sequence[str]) -> list[tuple[int, str]]:
        """Have the text of each example scored; returns what `values` asks for."""
        keys = list(enumerate(texts))
        for key in keys:
            if key not in self._known:
                arguments = self.metrics, key[1], self._references[key[0]]
                self._known[key] = self._pool.submit(_score_all, *arguments) if self._pool else _score_all(*arguments)
        return keys

    def values(self, keys: Sequence[tuple[int, str]]) -> np.ndarray:
        """float32 [metrics, examples]: the scores of texts submitted before."""
        found = [self._known[key] for key in keys]
        scores = [value.result() if isinstance(value, Future) else value for value in found]
        return np.array(scores, dtype=np.float32).reshape(len(keys), len(self.metrics)).T

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _score_all(metrics: Sequence[str], text: str, references: Sequence[str]) -> list[float]:
    return [score(metric, text, references) for metric in metrics]


def _end_with(parent: int) -> None:
    """End this process when its parent is gone; the executor's own queue would keep it waiting for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
