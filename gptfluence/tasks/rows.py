"""From rows of a data set (mappings of field names to values) to examples: templates, labels, references, ids.

The three sources share it: generated rows, JSON Lines and Hugging Face data sets all become examples here. What a value may be
stands in `values`.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from string import Formatter
from typing import Any

from gptfluence.common.errors import ConfigurationError, DataError
from gptfluence.tasks import values
from gptfluence.tasks.base import Example, fingerprint

Row = Mapping[str, Any]
Where = Callable[[int], str]  # position of a row -> where the user finds it, e.g. "reviews.jsonl:17"

_PATH = re.compile(r"(?P<field>[^\[\].!:{}]+)(?P<keys>(\[[^\[\]]+\])*)")


@dataclass(frozen=True)
class RowMapping:
    """How the fields of a row make an example.

    A template holds fields in braces, possibly indexed: "{text}", "{references[0]}", "{translation[de]}"; a list is
    joined by "; ". Values that share a word in `labels` are one class. Raises ConfigurationError if a template cannot be read,
    or labels and target do not fit.
    """

    prompt: str
    target: str
    id: str | None = "id"  # None: rows are numbered; so they are if it is "id" and no row has such a field
    label: str | None = None  # the field with the class of a row; its word is {label} in templates, or {that field}
    labels: Mapping[Any, Any] | Sequence[Any] | None = None  # its values and their words; None: the values as they are
    references: str | None = None  # path of a field, without braces: what generations are compared with
    words: Mapping[str, str] = field(init=False, repr=False, compare=False)  # class of a value -> word, in order

    def __post_init__(self) -> None:
        try:
            for name in ("prompt", "target"):
                _pieces(values.checked(getattr(self, name), f"{name}: the template"), name)
            words = {} if self.labels is None else values.words_of(self.labels)
        except DataError as error:
            raise ConfigurationError(str(error)) from None
        object.__setattr__(self, "words", words)
        if self.references is not None:
            _split(self.references, "references")
        if self.labels is not None and self.label is None:
            raise ConfigurationError("labels are given, but `label` does not say which field holds the class of a row")
        if self.label is not None and not {self.label, "label"} & {path for _, path in _pieces(self.target, "target")}:
            raise ConfigurationError(
                f"label: the target template {self.target!r} does not use the label (field {self.label!r}); "
                "a classification target does, e.g. ' {label}'"
            )
        if self.labels is not None and len(set(words.values())) < 2:
            raise ConfigurationError(f"labels: {self.labels!r} names fewer than two classes")

    @property
    def makes_prompts(self) -> bool:
        """Whether prompts differ from row to row at all."""
        return any(path is not None for _, path in _pieces(self.prompt, "prompt"))

    @property
    def label_field(self) -> str:
        """The field that `label` names, without an index."""
        return _split(str(self.label), "label")[0]

    def chosen(self, word: str) -> dict[str, str]:
        """What a template reads for the label when the class is called `word`."""
        return {"label": word, str(self.label): word}

    def with_labels_of(self, rows: Sequence[Row], where: Where) -> RowMapping:
        """The same mapping; if it has a label field but no labels, the values in `rows` are the labels.

        Raises DataError if there is only one class, or if two look alike (`values.classes`).
        """
        if self.label is None or self.labels is not None:
            return self
        found = []
        for position, row in enumerate(rows):
            try:
                found.append((_value(self.label, row, "", "label"), position))
            except DataError:  # the row says so when it is used, with its place
                continue
        words = values.classes(found, self.label, where)
        if not words:
            return self  # no row has the field: the first of them says so, with its place
        if len(words) < 2:
            raise DataError(
                f"label: field {self.label!r} has the values {list(words.values())}; two classes are needed at least"
            )
        return replace(self, labels=words)


def examples_from_rows(rows: Sequence[Row], mapping: RowMapping, where: Where, *, task: str = "") -> list[Example]:
    """One example per row, in order.

    `where` says where a row is found; it opens every message. Raises DataError for a missing field, a value that is not
    allowed (`values`), an unknown label, an empty target or an id that occurs twice.
    """
    mapping = mapping.with_labels_of(rows, where)
    numbered = mapping.id is None or (mapping.id == "id" and not any("id" in row for row in rows))
    words, seen, examples = list(dict.fromkeys(mapping.words.values())), {}, []
    for position, row in enumerate(rows):
        at = where(position)
        identity = str(position) if numbered else _text(mapping.id, row, at, "id")
        if identity in seen:
            raise DataError(f"{at}: id {identity!r} was used before, in {where(seen[identity])}; ids must be unique")
        seen[identity] = position
        label, chosen, choices = None, {}, ()
        if mapping.label is not None:
            word = _word(mapping, row, at)
            label, chosen = words.index(word), mapping.chosen(word)
            choices = tuple(_render(mapping.target, row, mapping.chosen(w), at, "target") for w in words)
        targets = choices or (_render(mapping.target, row, {}, at, "target"),)
        if not all(target.strip() for target in targets):
            raise DataError(
                f"{at}: the target {mapping.target!r} comes out empty; a GPT needs something to learn there"
            )
        references = () if mapping.references is None else _references(mapping.references, row, at)
        prompt = _render(mapping.prompt, row, chosen, at, "prompt")
        examples.append(Example(identity, prompt, targets[label or 0], task, label, choices, references))
    return examples


def draw(count: int, seed: int, salt: str) -> Iterator[int]:
    """The positions 0..count-1 in a random order, lazily: a smaller draw is the beginning of a larger one.

    Only `random()` is used, whose values Python guarantees not to change.
    """
    random_numbers = random.Random(int(fingerprint([salt, seed]), 16))
    taken: set[int] = set()
    while len(taken) < count:
        position = int(random_numbers.random() * count)
        if position not in taken:
            taken.add(position)
            yield position


def check_size(name: str, asked: int | None, there: int, where: str) -> None:
    """Raises ConfigurationError if `asked` is no positive whole number, DataError if there are fewer examples than that."""
    if asked is None:
        return
    if isinstance(asked, bool) or not isinstance(asked, Integral):
        raise ConfigurationError(f"{name}: {asked!r} is not a size; a whole number is needed")
    if asked < 1:
        raise ConfigurationError(f"{name}: {asked} is not a size; at least 1 is needed")
    if asked > there:
        raise DataError(f"{where}: {name} asks for {asked} examples, but there are only {there}; lower it or add rows")


@functools.lru_cache(maxsize=256)  # every row of a task has the same few templates and fields
def _pieces(template: str, name: str) -> tuple[tuple[str, str | None], ...]:
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(
            f"{name}: the template {template!r} cannot be read: {error}; write {{{{ and }}}} for literal braces"
        ) from None
    for _, path, format_spec, conversion in parsed:
        if path is not None:
            if format_spec or conversion:
                raise ConfigurationError(f"{name}: {template!r}: format codes after '!' or ':' are not supported")
            _split(path, name)
    return tuple((literal, path) for literal, path, _, _ in parsed)


@functools.lru_cache(maxsize=256)
def _split(path: str, name: str) -> tuple[str, tuple[str, ...]]:
    match = _PATH.fullmatch(path)
    if match is None:
        raise ConfigurationError(
            f"{name}: {path!r} is not a field; write a field's name, possibly with an index: references[0]"
        )
    return match["field"], tuple(re.findall(r"\[([^\[\]]+)\]", match["keys"]))


def _value(path: str, row: Row, at: str, name: str) -> Any:
    first, keys = _split(path, name)
    if first not in row:
        there = ", ".join(_printable(str(other)) for other in row)
        raise DataError(f"{at}: {name} needs the field {first!r}; the fields there are {there or 'none'}")
    value = row[first]
    for key in keys:
        try:
            value = value[key] if isinstance(value, Mapping) else _items(value)[int(key)]
        except (KeyError, IndexError, ValueError, TypeError):
            raise DataError(
                f"{at}: {name}: there is no {path!r}; field {first!r} is {_printable(str(row[first])[:80])!r}"
            ) from None
    return value


def _items(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):  # a string would give a character
        raise TypeError
    return value


def _text(path: str, row: Row, at: str, name: str) -> str:
    return values.text_of(_value(path, row, at, name), f"{at}: {name}: field {path!r}")


def _word(mapping: RowMapping, row: Row, at: str) -> str:
    """The word of a row's class."""
    value = _value(str(mapping.label), row, at, "label" if mapping.words else "target")
    what = f"{at}: label: field {mapping.label!r}"
    found = mapping.words.get(values.class_of(value, what))
    if found is None:
        raise DataError(
            f"{at}: field {mapping.label!r}: {values.text_of(value, what)!r} is not among the labels; known: "
            f"{', '.join(mapping.words)} (add it to `labels`, or mend the row)"
        )
    return found


def _render(template: str, row: Row, chosen: Mapping[str, str], at: str, name: str) -> str:
    parts = []
    for literal, path in _pieces(template, name):
        parts.append(literal)
        if path is not None:
            parts.append(chosen[path] if path in chosen else _text(path, row, at, name))
    return "".join(parts)


def _references(path: str, row: Row, at: str) -> tuple[str, ...]:
    return values.texts_of(_value(path, row, at, "references"), f"{at}: references: field {path!r}")


def _printable(text: str) -> str:
    """Half a surrogate pair in a message could not be printed."""
    return text.encode("utf-8", "backslashreplace").decode()
