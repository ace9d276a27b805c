"""Sentences of reviews with the mean sentiment that 20 people and more gave them (Hutto and Gilbert, ICWSM 2014)."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any

from gptfluence.common.packages import Contents, Package

PACKAGE = Package(
    archive="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    size=2_466_783,
    licence="MIT",
)
_INSIDE = "additional_resources/hutto_ICWSM_2014.tar.gz"
_WORDS = range(6, 31)
_CLEAR = 1.0  # of the ratings, which go from -4 to 4: nearer to 0 people disagree about the sign


def movies(contents: Contents) -> Iterator[dict[str, Any]]:
    """Sentences of film reviews."""
    return _rows(contents, "movieReviewSnippets_GroundTruth.txt")


def products(contents: Contents) -> Iterator[dict[str, Any]]:
    """Sentences of customers' reviews of cameras, phones and players."""
    return _rows(contents, "amazonReviewSnippets_GroundTruth.txt")


def _rows(contents: Contents, name: str) -> Iterator[dict[str, Any]]:
    """id, sentence, and label (0 negative, 1 positive) of each sentence of middle length with a clear rating."""
    with contents.open(_INSIDE) as packed, tarfile.open(fileobj=packed, mode="r:gz") as inside:
        text = inside.extractfile(f"hutto_ICWSM_2014/{name}").read().decode()  # type: ignore[union-attr]
    for line in text.splitlines():
        identity, rating, sentence = line.split("\t")
        if len(sentence.split()) in _WORDS and abs(float(rating)) >= _CLEAR:
            yield {"id": identity, "sentence": sentence.strip(), "label": int(float(rating) > 0)}
