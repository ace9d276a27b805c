"""What a value of a row may be, and how it becomes text and a class: the one rule for every source of rows.

A value is a string, a whole number, true or false, or a list of these. A whole number may be written as 1.0, as Parquet, CSV
and pandas do where a column has gaps. Everything else is an error that says what to write instead: null and NaN (which pandas
writes for a missing value), infinities, fractions (0.1 has more than one spelling), mappings, lists in lists, dates, and
strings with half of a surrogate pair, as a program leaves them that cuts an emoji.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from gptfluence.common.errors import DataError

ALLOWED = "a value is a string, a whole number, true, false, or a list of these"
_EXACT = 2**53  # from here on not every whole number is a float
_MISSING = "give it a value or leave the row out"
_TRUTH = {"true": "1", "True": "1", "TRUE": "1", "false": "0", "False": "0", "FALSE": "0"}
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")
# Cyrillic and Greek small letters that look like Latin ones
_TWINS = str.maketrans("аеорсухіјѕԁһαορυνικ", "aeopcyxijsdhaopuvik")


def text_of(value: Any, what: str) -> str:
    """A value as text: whole numbers in digits, truth values as JSON writes them, lists joined by "; ".

    what: the value in words, with its place, e.g. "reviews.jsonl:5: field 'text'"; it opens every message
    Raises DataError for a value that is not allowed.
    """
    return "; ".join(texts_of(value, what))


def texts_of(value: Any, what: str) -> tuple[str, ...]:
    """The same of every item of a list; of another value, its text alone."""
    if isinstance(value, list | tuple):
        return tuple(_scalar(part, f"{what}, item {number}") for number, part in enumerate(value))
    return (_scalar(value, what),)


def class_of(value: Any, what: str) -> str:
    """What tells classes apart: 1, 1.0, "1", "1.0" and true are one class. Raises DataError as `text_of`, and for lists."""
    if isinstance(value, list | tuple):
        raise DataError(f"{what} is a list, and the class of a row is one value; name an item of it, e.g. label[0]")
    text = _scalar(value, what)
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else _TRUTH.get(text, text)


def checked(text: Any, what: str) -> str:
    """The text itself. Raises DataError if it is not a string, or not valid Unicode."""
    if not isinstance(text, str):
        raise DataError(f"{what} must be a string, not {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{what} is not valid Unicode, a cut emoji? (character {error.start + 1} is half of a pair: "
                f"{text[error.start]!a}); mend the text or leave it out"
            ) from None
    return text


def classes(values: Iterable[tuple[Any, Any]], field: str, where: Callable[[Any], str]) -> dict[str, str]:
    """Every class among the values of a field -> its word, which is the value itself, as text; in the order of the words.

    values: pairs of a value and its position; where: position -> the place in words. Values that are missing or not allowed are
    passed over: whoever uses such a row says so.

    Raises DataError if two classes look alike: they differ in case, blanks, accents' encoding or characters that nobody sees.
    """
    spellings: dict[str, set[str]] = {}
    rows: dict[str, list[Any]] = {}
    for value, position in values:
        try:
            key, text = class_of(value, ""), text_of(value, "")
        except DataError:
            continue
        spellings.setdefault(key, set()).add(text)
        rows.setdefault(key, []).append(position)
    words = {key: min(texts) for key, texts in spellings.items()}
    seen: dict[str, str] = {}
    for key, word in words.items():
        other = seen.setdefault(_looks(word), key)
        if other != key:
            both = " and ".join(
                f"{words[one]!a} ({len(rows[one])} rows, the first: {where(rows[one][0])})" for one in (other, key)
            )
            raise DataError(
                f"label: field {field!r} has values that look alike: {both}; write them alike, or give both a word under "
                "`labels`: the same word makes them one class"
            )
    return dict(sorted(words.items(), key=lambda item: item[1]))


def words_of(labels: Any) -> dict[str, str]:
    """Class -> word, from what a user gives as `labels`: a mapping of values to words, or the words of 0, 1, 2, ...

    Classes may share a word. Raises DataError for labels that are neither, or name a class twice with different words.
    """
    if not isinstance(labels, Mapping | list | tuple):
        raise DataError(
            f"labels: a mapping of values to words is needed, or a list of words, not {type(labels).__name__}"
        )
    words: dict[str, str] = {}
    for value, word in labels.items() if isinstance(labels, Mapping) else enumerate(labels):
        key = class_of(value, f"labels: the value {value!r}")
        if isinstance(word, list | tuple):
            raise DataError(f"labels: the word of {key} is a list; give one word")
        text = text_of(word, f"labels: the word of {key}")
        if words.setdefault(key, text) != text:
            raise DataError(f"labels: {value!r} is the class {key}, which has the word {words[key]!r} already")
    return words


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object as a dictionary. Raises ValueError for a field that is there twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!a} is there twice")
    return fields


def _scalar(value: Any, what: str) -> str:
    if isinstance(value, str):
        return checked(value, what)
    if value is None:
        raise DataError(f"{what} is null; {_MISSING}")
    if isinstance(value, bool) or type(value).__name__ == "bool":  # numpy's, too
        return "true" if value else "false"
    if isinstance(value, Integral):
        try:
            return str(int(value))
        except ValueError:  # Python writes no more than 4300 digits
            raise DataError(f"{what} is a number of thousands of digits; write it as a string") from None
    if isinstance(value, Real):
        return _whole(float(value), what)
    if isinstance(value, Mapping):
        keys = json.dumps([str(key) for key in value])[:80]
        raise DataError(f"{what} is a mapping (its keys: {keys}); {ALLOWED}: name one of its keys in brackets")
    if isinstance(value, list | tuple):
        raise DataError(f"{what} is a list; {ALLOWED}: name an item of it in brackets")
    raise DataError(f"{what} is a {type(value).__name__}; {ALLOWED}: write it as a string")


def _whole(value: float, what: str) -> str:
    if math.isnan(value):
        raise DataError(f"{what} is NaN, which stands for a missing value; {_MISSING}")
    if math.isinf(value):
        raise DataError(f"{what} is {'-' if value < 0 else ''}Infinity; {ALLOWED}: {_MISSING}")
    if not value.is_integer():
        raise DataError(f"{what} is {value!r}; {ALLOWED}: write a number with a fraction as a string")
    if abs(value) >= _EXACT:
        raise DataError(f"{what} is {value!r}, which has lost its last digits; write it as a string or a whole number")
    return str(int(value))


def _looks(word: str) -> str:
    """What is left of a word for the eye: no case, no blanks around, no invisible characters."""
    seen = unicodedata.normalize("NFKC", word)
    seen = "".join(c for c in seen if unicodedata.category(c) != "Cf" and c not in "\ufe0e\ufe0f")
    return unicodedata.normalize("NFKC", " ".join(seen.split()).casefold()).translate(_TWINS)
