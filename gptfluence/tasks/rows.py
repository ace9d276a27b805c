"""From rows of a data set (mappings of field names to values) to examples: templates, labels, references, ids.

The three sources share it: generated rows, JSON Lines and Hugging Face data sets all become examples here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any

from gptfluence.common.errors import ConfigurationError, DataError
from gptfluence.tasks.base import Example, fingerprint

Row = Mapping[str, Any]
Where = Callable[[int], str]  # position of a row -> where the user finds it, e.g. "reviews.jsonl:17"

_PATH = re.compile(r"(?P<field>[^\[\].!:{}]+)(?P<keys>(\[[^\[\]]+\])*)")


@dataclass(frozen=True)
class RowMapping:
    """How the fields of a row make an example.

    A template holds fields in braces, possibly indexed: "{text}", "{references[0]}", "{translation[de]}"; a list is
    joined by "; ". Raises ConfigurationError if a template cannot be read, or labels and target do not fit.
    """

    prompt: str
    target: str
    id: str | None = "id"  # None: rows are numbered; so they are if it is "id" and no row has such a field
    label: str | None = None  # the field with the class of a row; its word is {label} in templates, or {that field}
    labels: Mapping[Any, str] | Sequence[str] | None = None  # its values and their words; None: the values as they are
    references: str | None = None  # path of a field, without braces: what generations are compared with

    def __post_init__(self) -> None:
        for name in ("prompt", "target"):
            list(_pieces(getattr(self, name), name))
        if self.references is not None:
            _split(self.references, "references")
        if self.labels is not None and self.label is None:
            raise ConfigurationError("labels are given, but `label` does not say which field holds the class of a row")
        if self.label is not None and not {self.label, "label"} & {path for _, path in _pieces(self.target, "target")}:
            raise ConfigurationError(
                f"label: the target template {self.target!r} does not use the label (field {self.label!r}); "
                "a classification target does, e.g. ' {label}'"
            )
        if self.labels is not None and len(self.labels) < 2:
            raise ConfigurationError(f"labels: {self.labels!r} names fewer than two classes")

    @property
    def words(self) -> dict[str, str]:
        """Raw value (as text) -> word, in the order of the classes."""
        if self.labels is None:
            return {}
        pairs = self.labels.items() if isinstance(self.labels, Mapping) else enumerate(self.labels)
        return {_key(value): str(word) for value, word in pairs}

    def chosen(self, word: str) -> dict[str, str]:
        """What a template reads for the label when the class is called `word`."""
        return {"label": word, str(self.label): word}

    def with_labels_of(self, rows: Sequence[Row]) -> RowMapping:
        """The same mapping; if it has a label field but no labels, the sorted values in `rows` are the labels."""
        if self.label is None or self.labels is not None:
            return self
        values = sorted({_key(row[self.label]) for row in rows if row.get(self.label) is not None})
        if not values:
            return self  # no row has the field: the first of them says so, with its place
        if len(values) < 2:
            raise DataError(f"label: field {self.label!r} has the values {values}; two classes are needed at least")
        return replace(self, labels={value: value for value in values})


def examples_from_rows(rows: Sequence[Row], mapping: RowMapping, where: Where, *, task: str = "") -> list[Example]:
    """One example per row, in order.

    `where` says where a row is found; it opens every message. Raises DataError for a missing or null field, an
    unknown label, an empty target or an id that occurs twice.
    """
    mapping = mapping.with_labels_of(rows)
    numbered = mapping.id is None or (mapping.id == "id" and not any("id" in row for row in rows))
    words, seen, examples = mapping.words, {}, []
    for position, row in enumerate(rows):
        at = where(position)
        identity = str(position) if numbered else _text(_value(mapping.id, row, at, "id"))
        if identity in seen:
            raise DataError(f"{at}: id {identity!r} was used before, in {where(seen[identity])}; ids must be unique")
        seen[identity] = position
        label, chosen, choices = None, {}, ()
        if words:
            raw = _key(_value(mapping.label, row, at, "label"))
            if raw not in words:
                raise DataError(
                    f"{at}: field {mapping.label!r}: {raw!r} is not among the labels; known: {', '.join(words)} "
                    "(add it to `labels`, or mend the row)"
                )
            label, chosen = list(words).index(raw), mapping.chosen(words[raw])
            choices = tuple(_render(mapping.target, row, mapping.chosen(w), at, "target") for w in words.values())
        target = choices[label] if choices else _render(mapping.target, row, {}, at, "target")
        if not target.strip():
            raise DataError(
                f"{at}: the target {mapping.target!r} comes out empty; a GPT needs something to learn there"
            )
        references = () if mapping.references is None else _references(mapping.references, row, at)
        prompt = _render(mapping.prompt, row, chosen, at, "prompt")
        examples.append(Example(identity, prompt, target, task, label, choices, references))
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
    """Raises ConfigurationError if `asked` is not positive, DataError if there are fewer examples than that."""
    if asked is None:
        return
    if asked < 1:
        raise ConfigurationError(f"{name}: {asked} is not a size; at least 1 is needed")
    if asked > there:
        raise DataError(f"{where}: {name} asks for {asked} examples, but there are only {there}; lower it or add rows")


def _pieces(template: str, name: str) -> Iterator[tuple[str, str | None]]:
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(
            f"{name}: the template {template!r} cannot be read: {error}; write {{{{ and }}}} for literal braces"
        ) from None
    for literal, path, format_spec, conversion in parsed:
        if path is not None:
            if format_spec or conversion:
                raise ConfigurationError(f"{name}: {template!r}: format codes after '!' or ':' are not supported")
            _split(path, name)
        yield literal, path


def _split(path: str, name: str) -> tuple[str, list[str]]:
    match = _PATH.fullmatch(path)
    if match is None:
        raise ConfigurationError(
            f"{name}: {path!r} is not a field; write a field's name, possibly with an index: references[0]"
        )
    return match["field"], re.findall(r"\[([^\[\]]+)\]", match["keys"])


def _value(path: str, row: Row, at: str, name: str) -> Any:
    field, keys = _split(path, name)
    if field not in row:
        raise DataError(f"{at}: {name} needs the field {field!r}; the fields there are {', '.join(map(str, row))}")
    value = row[field]
    for key in keys:
        try:
            value = value[key] if isinstance(value, Mapping) else value[int(key)]
        except (KeyError, IndexError, ValueError, TypeError):
            raise DataError(
                f"{at}: {name}: there is no {path!r}; field {field!r} is {str(row[field])[:80]!r}"
            ) from None
    if value is None:
        raise DataError(f"{at}: {name}: field {path!r} is null; give it a value or leave the row out")
    return value


def _render(template: str, row: Row, chosen: Mapping[str, str], at: str, name: str) -> str:
    parts = []
    for literal, path in _pieces(template, name):
        parts.append(literal)
        if path is not None:
            parts.append(chosen[path] if path in chosen else _text(_value(path, row, at, name)))
    return "".join(parts)


def _references(path: str, row: Row, at: str) -> tuple[str, ...]:
    value = _value(path, row, at, "references")
    return (value,) if isinstance(value, str) else tuple(_text(reference) for reference in value)


def _text(value: Any) -> str:
    return "; ".join(_text(part) for part in value) if isinstance(value, list | tuple) else str(value)


def _key(value: Any) -> str:
    # JSON, YAML and Parquet write one and the same class as true, 1 or "1"
    return str(int(value)) if isinstance(value, bool) else str(value)
