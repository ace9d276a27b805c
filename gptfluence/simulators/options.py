"""Options of methods, typed: for each kind a pydantic model made from the fields of its class.

Types and defaults stand in the class and nowhere else. A profile's `simulators:` section is read by `read_options`.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model, model_validator

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.common.settings import Settings
from gptfluence.simulators.base import Predictor
from gptfluence.simulators.methods import METHODS, method_of

_FREE_OF_OBJECTS = (int, float, str, bool, type(None))


class MethodOptions(Settings):
    """Options of one method; `options_of` makes a class for each kind. Types are strict: "3" is no number."""

    model_config = ConfigDict(strict=True)

    kind: str

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, values: Any) -> Any:
        """YAML has lists; options are tuples, so that they cannot change."""
        if not isinstance(values, dict):
            return values
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    def arguments(self) -> dict[str, Any]:
        """The options by name, without the kind."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}

    def create(self) -> Predictor:
        """The method with these options, not fitted yet. Raises ConfigurationError for a value that is not allowed."""
        return method_of(self.kind).load()(**self.arguments())


@cache
def options_of(kind: str) -> type[MethodOptions]:
    """The options of a kind of method. Raises ConfigurationError for a kind that is not known."""
    found = method_of(kind).load()
    hints = get_type_hints(found)
    options: dict[str, Any] = {}
    for item in fields(found):  # type: ignore[arg-type]
        if item.init:
            default = item.default if item.default_factory is MISSING else Field(default_factory=item.default_factory)
            options[item.name] = (_plain(hints[item.name]), default)
    return create_model(
        f"{found.__name__}Options",
        __base__=MethodOptions,
        __doc__=f"Options of {kind}.",
        kind=(Literal[kind], kind),  # type: ignore[valid-type]
        **options,
    )


def _plain(hint: Any) -> Any:
    """The part of a type that a file can hold: `str` of `str | TextEncoder`."""
    if get_origin(hint) in (Union, types.UnionType):
        kept = [part for part in get_args(hint) if part in _FREE_OF_OBJECTS or get_origin(part) is not None]
        return Union[tuple(kept)]  # noqa: UP007  the parts are known at run time only
    return hint


def read_options(name: str, given: Any) -> MethodOptions:
    """Options of the entry `name` of a profile's `simulators:`; `kind` is the name itself if it is not given.

    Raises ConfigurationError that names `simulators.NAME.FIELD` and what is allowed there.
    """
    if isinstance(given, MethodOptions):
        return given
    where = f"simulators.{name}"
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{where}: must be a mapping of options, e.g. {{}}, not {given!r}")
    kind = given.get("kind", name)
    if not isinstance(kind, str) or kind not in METHODS:
        problem = unknown("kind of method", kind, METHODS)
        hint = "" if "kind" in given else f"; an entry with a name of its own says what it is: {name}: {{kind: ...}}"
        raise ConfigurationError(f"{where}: {problem}{hint}")
    try:
        options = options_of(kind).model_validate({**given, "kind": kind})
    except ValidationError as error:
        raise ConfigurationError(_explain(error, where, kind)) from None
    try:
        problem = options.create().problem_with_name(name)
    except ConfigurationError as error:
        raise ConfigurationError(_located(str(error), where, kind)) from None
    if problem:
        raise ConfigurationError(f"{where}: {problem}")
    return options


def _explain(error: ValidationError, where: str, kind: str) -> str:
    known = [name for name in options_of(kind).model_fields if name != "kind"]
    moved = METHODS[kind].load().moved
    said: dict[str, list[str]] = {}  # by field: of a union each part complains
    for problem in error.errors():
        option = str((problem["loc"] or ("",))[0])
        if not option:  # of the options as a whole; the message begins with the name of one
            option, _, text = problem["msg"].removeprefix("Value error, ").partition(": ")
        elif problem["type"] == "extra_forbidden":
            text = moved.get(option) or unknown("option", option, known)
        else:
            text = f"{problem['msg']} (got {problem['input']!r})"
        said.setdefault(option, []).append(text)
    return "; ".join(f"{where}.{option}: {', or '.join(dict.fromkeys(texts))}" for option, texts in said.items())


def _located(message: str, where: str, kind: str) -> str:
    """An error of the class itself, "gptfluence: heads 'x' is not known", with the option's place in the profile."""
    message = message.removeprefix(f"{kind}: ")
    first = message.split(" ", 1)[0].rstrip(":")
    return f"{where}.{first}: {message}" if first in options_of(kind).model_fields else f"{where}: {message}"


@dataclass(frozen=True)
class Variant:
    """A method of a profile, with options that may differ from the profile's.

    method: its name in the profile; variant: what was set beside the profile's entry, in words such as "markov_order=2", also
    where the value is the entry's own; "" if nothing was. The words only name the variant: `options` says what it is.
    """

    method: str
    variant: str
    options: MethodOptions
    _said: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # option -> its value, in words

    @classmethod
    def of(cls, kind: str, **options: Any) -> Variant:
        """A kind of method by itself, with these options. Raises ConfigurationError as `read_options`."""
        return cls(kind, "", read_options(kind, options))

    @property
    def kind(self) -> str:
        return self.options.kind

    def __str__(self) -> str:
        return f"{self.method} {self.variant}".strip()

    def with_(self, **changes: Any) -> Variant:
        """The same with some options set, e.g. `with_(markov_order=2)`; an option that was set before is set anew.

        Raises ConfigurationError as `read_options`.
        """
        if not changes:
            return self
        options = read_options(self.method, {"kind": self.kind, **self.options.arguments(), **changes})
        said = {**self._said, **{name: str(value) for name, value in changes.items()}}
        words = [self.variant] * (not self._said) + [f"{name}={value}" for name, value in said.items()]
        return Variant(self.method, " ".join(filter(None, words)), options, said)

    def create(self) -> Predictor:
        """The method with these options, not fitted yet."""
        return self.options.create()
