"""Read a profile, a YAML file (see `profiles/`), and replace some of its fields.

Errors name the profile and the dotted path of the field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.resolver import VersionedResolver

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.common.settings import ROOT, located
from gptfluence.models.settings import BUILTIN_MODELS
from gptfluence.profile.schema import Profile

PROFILES = next(  # of the repository; an installed package carries them beside its modules
    (folder for folder in (ROOT / "profiles", ROOT / "gptfluence" / "profiles") if folder.is_dir()),
    ROOT / "profiles",
)


def profile_names() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def profile_path(name: str | Path, *places: Path) -> Path:
    """The file of a profile: of `profiles/`, or the path of one's own, which is looked for as `settings.located` does."""
    is_path = str(name).endswith((".yaml", ".yml"))
    return located(name, *places) if is_path else PROFILES / f"{name}.yaml"


def load_profile(name: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Profile:
    """Read a profile by name (`profiles/NAME.yaml`) or path, with some fields replaced.

    overrides: {"settings.fine_tuning.runs.train": 3}, with values as they are, or the same as
        ["settings.fine_tuning.runs.train=3"], with values in YAML.

    Raises ConfigurationError that names the profile, the field and what is allowed there.
    """
    path, values = _values(name)
    where = f"profile {values.get('name', path.stem)!r}"
    for field, value in parse_overrides(overrides).items():
        _replace(values, field, value, where)
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(explain(error, where)) from None


def _values(name: str | Path, above: tuple[Path, ...] = ()) -> tuple[Path, dict[str, Any]]:
    """The file of a profile and its fields, with those of its `base` where it says nothing. above: the files read so far"""
    path = profile_path(name, *(file.parent for file in above[-1:]))
    where = f"{above[-1]}: base: " if above else ""
    if not path.is_file():
        if path.parent == PROFILES:
            known = unknown("profile", name, profile_names())
            raise ConfigurationError(f"{where}{known}; a path to a YAML file of your own works, too")
        raise ConfigurationError(f"{where}profile file {path} does not exist")
    if path in above:
        raise ConfigurationError(f"{where}{name} is what this file is a base of; name another profile")
    values = _read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return path, values
    if not isinstance(base, str):
        raise ConfigurationError(
            f"{path}: base: the name of a profile, or the path of its file, is needed, not {base!r}"
        )
    return path, _merged(_values(base, (*above, path))[1], values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Fields of both, those of `values` where both have them; a field that holds fields is merged in the same way."""
    both = {**base, **values}
    for name in base.keys() & values.keys():
        if isinstance(base[name], dict) and isinstance(values[name], dict):
            both[name] = _merged(base[name], values[name])
    return both


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _yaml(path.read_text(encoding="utf-8"))
    except DuplicateKeyError as error:
        # it says: found duplicate key "seed" with value "2" ...
        key = str(error.problem).partition('"')[2].partition('" with value "')[0]
        raise ConfigurationError(f"{path}{_place(error)}: not valid YAML: key {key!r} occurs twice") from None
    except MarkedYAMLError as error:
        raise ConfigurationError(f"{path}{_place(error)}: not valid YAML: {error.problem}") from None
    except YAMLError as error:  # characters that no YAML file may hold
        raise ConfigurationError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: a profile is a mapping of fields, not {type(values).__name__}")
    return values


_TAG = "tag:yaml.org,2002:"
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")


class _PlainData(SafeConstructor):
    """YAML also knows dates, sets and bytes by their tags, and lists and mappings as keys; here they are errors."""

    yaml_constructors = {
        tag: make
        for tag, make in SafeConstructor.yaml_constructors.items()
        if tag is None or str(tag).removeprefix(_TAG) in _PLAIN
    }

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> Any:
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(problem="a key must be a plain value", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


_CORE_SCHEMA = {  # by the first character of a scalar; None: any
    None: [
        (f"{_TAG}null", re.compile(r"(~|null|Null|NULL|)\Z")),
        (f"{_TAG}bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z")),
        (f"{_TAG}int", re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")),
        (f"{_TAG}float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")),
        (f"{_TAG}float", re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")),
    ]
}


class _CoreSchema(VersionedResolver):
    """Which plain scalars are no strings: those of YAML 1.2's core schema. ruamel has dates and 1_000 besides."""

    versioned_resolver = _CORE_SCHEMA


def _yaml(text: str) -> Any:
    """The value of a YAML 1.2 text. Raises YAMLError, also for a key that occurs twice."""
    reader = YAML(typ="safe", pure=True)
    reader.Constructor, reader.Resolver = _PlainData, _CoreSchema
    try:
        value = _unshared(reader.load(text))
        json.dumps(value)  # no number of thousands of digits
        return value
    except YAMLError:
        raise
    except Exception as error:  # `!!int x`, a number of thousands of digits, a thousand brackets: each another kind
        raise YAMLError(f"{type(error).__name__}: {error}") from None


def _unshared(value: Any) -> Any:
    """What an alias repeats is a value of its own, so that an override of one place leaves the other as it is.

    A character that is written as a pair of surrogates, as JSON does ("\\ud83d\\ude00"), is one. Raises UnicodeDecodeError for
    half of a pair, RecursionError for a list that holds itself.
    """
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    if isinstance(value, dict):
        return {_unshared(key): _unshared(one) for key, one in value.items()}
    return [_unshared(one) for one in value] if isinstance(value, list) else value


def _place(error: MarkedYAMLError) -> str:
    mark = error.problem_mark
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def override_texts(overrides: Iterable[str] | Mapping[str, Any]) -> tuple[str, ...]:
    """Overrides as field=value, with values in YAML, as the command line takes them. A mapping has values as they are.

    Raises ConfigurationError for a value that YAML cannot express.
    """
    if isinstance(overrides, Mapping):
        return tuple(f"{field}={_written(str(field), value)}" for field, value in overrides.items())
    return (overrides,) if isinstance(overrides, str) else tuple(str(text) for text in overrides)


def parse_overrides(overrides: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Field -> value. Raises ConfigurationError for what is not field=value, or whose value is no YAML."""
    parsed: dict[str, Any] = {}
    for text in override_texts(overrides):
        field, equals, value = text.partition("=")
        if not equals or not field.strip():
            raise ConfigurationError(f"override {text!r}: expected field=value, e.g. settings.fine_tuning.runs.train=3")
        try:
            text.encode()
            parsed[field.strip()] = _yaml(value)
        except (YAMLError, UnicodeEncodeError):
            raise ConfigurationError(
                f"override {text!r}: {value!r} is not a YAML value; put quotes around a text with such signs"
            ) from None
    return parsed


def _written(field: str, value: Any) -> str:
    """A value as YAML that gives it back: a string as it is, where that does."""
    if "=" in field:
        raise ConfigurationError(f"override {field!r}: the name of a field has no '='")
    try:
        plain = json.loads(json.dumps(value, default=_plain, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"override {field!r}: {value!r} is not a value of a profile: {error}") from None
    tries = [plain] if isinstance(plain, str) else []
    for text in (*tries, json.dumps(plain, ensure_ascii=False), json.dumps(plain)):
        with suppress(YAMLError):
            found = _yaml(text)
            if found == plain and type(found) is type(plain):
                return text
    raise ConfigurationError(f"override {field!r}: {value!r} holds characters that no YAML file may hold")


def _plain(value: Any) -> Any:
    """A path is text, and a number of NumPy a number."""
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is neither text, number, truth value, list nor mapping")


def _replace(values: dict[str, Any], field: str, value: Any, where: str) -> None:
    """Set the field of this dotted name. Names that are there may hold dots themselves, as nano-2.8b does."""
    place, above, rest = values, "", field
    while True:
        builtin = BUILTIN_MODELS if above == "models" else {}
        known = {
            str(key): key for key in (*builtin, *place)
        }  # a profile may have numbers as keys, as those of `labels`
        fitting = [name for name in known if rest == name or rest.startswith(f"{name}.")]
        part = max(fitting, key=len, default=rest.partition(".")[0])
        key = known.get(part, part)
        if rest == part:
            place[key] = value
            return
        place = place.setdefault(key, dict(builtin.get(key, {})))
        above, rest = f"{above}.{part}" if above else part, rest[len(part) + 1 :]
        if not isinstance(place, dict):
            raise ConfigurationError(f"{where}: override {field!r}: {above} has no fields")


def explain(error: ValidationError, where: str) -> str:
    lines = []
    for problem in error.errors():
        names = [str(part) for part in problem["loc"] if part != "[key]"]
        parts = [name if name.isprintable() else repr(name) for name in names]
        if len(parts) > 2 and parts[0] in ("tasks", "models"):
            del parts[2]  # the `source`, which pydantic names and a profile has no level for
        field, given = ".".join(parts), problem.get("input")
        message = {
            "extra_forbidden": "is not a field here; check its spelling and place",
            "missing": "is missing",
        }.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        shown = "" if isinstance(given, dict) or problem["type"] in ("missing", "value_error") else f" (got {given!r})"
        lines.append(f"{field}: {message}{shown}" if field else message)
    return f"{where}: " + "; ".join(lines)
