"""BLEU and ROUGE-L of generated texts (paper, section 4.1), through sacrebleu and rouge_score.

Both compare tokens, and how a text is divided into tokens depends on its script. There are two ways:

- "english": the libraries' own. ROUGE-L sees runs of a-z and 0-9 alone, so that it is 0 for every Russian text, and takes
  "größere" for "gr" and "ere".
- "unicode": words are runs of letters, marks and digits of any script, and each character of a script that is written without
  blanks (Han, kana, Thai, ...) is a word. BLEU keeps sacrebleu's rules (13a) for all else, so that it is sacrebleu's "zh" on
  Chinese text and its default on Russian. Both metrics are what "english" gives on texts of ASCII.

The references of a set decide (`tokenization_of`), unless the profile does (`generation.tokenization`).
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache

import numpy as np
import regex

from gptfluence.common.errors import DataError
from gptfluence.recording.settings import Generation, Tokenization
from gptfluence.tasks.base import Example, TaskPool

TEXT_METRICS = ("bleu", "rouge_l")
LARGEST = {"bleu": 100.0, "rouge_l": 1.0}
# letters beyond ASCII among all: in English texts with names of other languages 0.1%, in German ones 1.7%
FOREIGN = 0.005

_UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\u3000-\u303f\u30fc\uff00-\uffef]"
    r"|[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}]\p{M}*"
)
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")


def tokenization_of(tests: Iterable[Example]) -> Tokenization:
    """How the references of these examples are divided into tokens: "english" if nearly all of their letters are ASCII."""
    texts = [text for example in tests for text in references_of(example)]
    return "unicode" if _share(texts, lambda char: not char.isascii()) > FOREIGN else "english"


def references_of(example: Example) -> tuple[str, ...]:
    """What the texts for an example are compared with; nothing for one with choices, for which no text is written."""
    return () if example.choices else example.references or (example.target,)


def with_tokenization(generation: Generation, tests: Iterable[Example]) -> Generation:
    """The settings with the tokenization that these tests are scored with, if it is not the one that is meant by none."""
    asked = tokenization_of(tests)
    chosen = generation.tokenization or asked
    return generation.model_copy(update={"tokenization": None if chosen == asked == "english" else chosen})


def warn_of_meaningless(tests: TaskPool, metrics: Sequence[str], tokenization: Tokenization) -> None:
    """Warn with numbers of tests whose scores mean little: their references have no word for the tokenization, or other letters."""
    texts = {example.id: references_of(example) for example in tests if references_of(example)}
    wordless = [name for name, told in texts.items() if not any(words(text, tokenization) for text in told)]
    english = {} if tokenization == "unicode" else texts
    other = [name for name, told in english.items() if name not in wordless and _share(told, str.isascii) < 0.5]
    unspaced = [name for name, told in english.items() if _share(told, lambda char: bool(_UNSPACED.match(char))) > 0.5]
    remedy = "set generation.tokenization: unicode"
    for metric, found, problem in (
        ("rouge_l", wordless, "have no word in any reference: ROUGE-L tells it from other texts, and no more"),
        ("rouge_l", other, f"have references with mostly other letters than a-z, which ROUGE-L does not see; {remedy}"),
        ("bleu", unspaced, f"have references without blanks, whose sentences BLEU takes for words; {remedy}"),
    ):
        if found and metric in metrics:
            warnings.warn(
                f"{tests.name}: {len(found)} of {len(texts)} tests with free text (the first: {found[0]!r}) {problem}",
                stacklevel=3,
            )


def _share(texts: Sequence[str], kind: Callable[[str], bool]) -> float:
    """The share of letters that are of a kind; 0 without letters."""
    letters = [char for text in texts for char in text if char.isalpha()]
    return sum(map(kind, letters)) / max(1, len(letters))


def words(text: str, tokenization: Tokenization) -> list[str]:
    """What ROUGE-L compares."""
    return _tokenizer(tokenization).tokenize(text)


def score(metric: str, text: str, references: Sequence[str], tokenization: Tokenization | None = None) -> float:
    """BLEU (sentence BLEU, 0-100, sacrebleu's smoothing, orders that the text has) or ROUGE-L (F1, 0-1, the best over the
    references, no stemming) of one text. A text that is one of the references has the largest value.

    tokenization: see the module; None: as the references ask for
    """
    if tokenization is None:
        tokenization = tokenization_of([Example("", "", "", references=tuple(references))])
    if tokenization == "unicode":
        text, *references = (unicodedata.normalize("NFC", one) for one in (text, *references))
    if metric == "bleu":
        compared = [_apart(one) if tokenization == "unicode" else one for one in (text, *references)]
        found = float(_bleu().sentence_score(compared[0], compared[1:]).score)
    else:
        found = float(_rouge(tokenization).score_multi(list(references), text)["rougeL"].fmeasure)
    equal = text.strip() in [reference.strip() for reference in references]
    return max(found, LARGEST[metric]) if equal else found


def _apart(text: str) -> str:
    """The text with blanks around characters of scripts that have none between words."""
    return _UNSPACED.sub(r" \g<0> ", text)


class _AnyScript:
    """A tokenizer for rouge_score."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(_apart(unicodedata.normalize("NFKC", text).lower()))


@cache
def _bleu():
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


@cache
def _rouge(tokenization: Tokenization):
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_tokenizer(tokenization))


def _tokenizer(tokenization: Tokenization):
    from rouge_score.tokenizers import DefaultTokenizer

    return _AnyScript() if tokenization == "unicode" else DefaultTokenizer()


class TextScorer:
    """Scores the texts of a run, step after step. A text that was scored for its example before is not scored again.

    workers: processes that score while the GPT goes on training; 0 scores here. The numbers are the same.
    """

    def __init__(
        self,
        examples: TaskPool,
        metrics: Sequence[str],
        tokenization: Tokenization | None = None,
        *,
        workers: int = 0,
    ) -> None:
        """tokenization: of all texts; None: as the references ask for. Raises DataError that names an empty reference."""
        self.metrics = tuple(metrics)
        self._tokenization = tokenization or tokenization_of(examples)
        self._references = [references_of(example) for example in examples]
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
                arguments = self.metrics, key[1], self._references[key[0]], self._tokenization
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


def _score_all(metrics: Sequence[str], text: str, references: Sequence[str], tokenization: Tokenization) -> list[float]:
    return [score(metric, text, references, tokenization) for metric in metrics]


def _end_with(parent: int) -> None:
    """End this process when its parent is gone; the executor's own queue would keep it waiting for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
