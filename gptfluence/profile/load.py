"""Read a profile, a YAML file (see `profiles/`), and replace some of its fields.

Errors name the profile and the dotted path of the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode

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

    overrides: {"settings.fine_tuning.runs.train": 3}, or the same as ["settings.fine_tuning.runs.train=3"] with values
        in YAML.

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


class _PlainKeys(SafeConstructor):
    """YAML also allows lists and mappings as keys; here they are errors."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> Any:
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(problem="a key must be a plain value", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def _yaml(text: str) -> Any:
    """The value of a YAML 1.2 text. Raises YAMLError, also for a key that occurs twice."""
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _PlainKeys
    return reader.load(text)


def _place(error: MarkedYAMLError) -> str:
    mark = error.problem_mark
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def parse_overrides(overrides: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        return dict(overrides)
    if isinstance(overrides, str):
        overrides = [overrides]
    parsed: dict[str, Any] = {}
    for text in overrides:
        field, equals, value = str(text).partition("=")
        if not equals or not field.strip():
            raise ConfigurationError(f"override {text!r}: expected field=value, e.g. settings.fine_tuning.runs.train=3")
        try:
            parsed[field.strip()] = _yaml(value)
        except YAMLError:
            raise ConfigurationError(f"override {text!r}: {value!r} is not a YAML value") from None
    return parsed


def _replace(values: dict[str, Any], field: str, value: Any, where: str) -> None:
    *parents, last = field.split(".")
    place: Any = values
    for index, part in enumerate(parents):
        if part == "models" and index == 0:
            place = place.setdefault("models", {})
        elif isinstance(place, dict) and index and parents[0] == "models" and part in BUILTIN_MODELS:
            place = place.setdefault(part, dict(BUILTIN_MODELS[part]))
        elif isinstance(place, dict) and isinstance(place.get(part, {}), dict):
            place = place.setdefault(part, {})
        else:
            raise ConfigurationError(f"{where}: override {field!r}: {'.'.join(parents[: index + 1])} has no fields")
    place[last] = value


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
