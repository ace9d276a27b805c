"""The parameters of a notebook: what its parameters cell declares, what a user gave, and the command that gives it again."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gptfluence.common.errors import ConfigurationError, unknown

_IPYTHON = {"In", "Out", "exit", "quit", "get_ipython", "open"}
_TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list[str]": list[str],
    "list[int]": list[int],
    "list[float]": list[float],
}


def declared_parameters(path: Path) -> dict[str, tuple[str, Any]]:
    """The parameters cell of a notebook's script: name -> (annotation, default value), in order.

    Raises ConfigurationError if there is no such notebook or its parameters are not annotated literals.
    """
    if not path.is_file():
        names = sorted(script.stem for script in path.parent.glob("*.py"))
        raise ConfigurationError(unknown("notebook", path.stem, names))
    source = path.read_text(encoding="utf-8")
    cells = [cell for cell in source.split("\n# %%") if cell.startswith(' tags=["parameters"]')]
    if len(cells) != 1:
        raise ConfigurationError(f"{path}: one cell tagged `parameters` is needed, {len(cells)} found")
    declared: dict[str, tuple[str, Any]] = {}
    for statement in ast.parse("#" + cells[0]).body:
        if (
            not isinstance(statement, ast.AnnAssign)
            or not isinstance(statement.target, ast.Name)
            or not statement.value
        ):
            raise ConfigurationError(
                f"{path}: the parameters cell holds annotated literals only, such as `runs: int = 3`"
            )
        annotation = ast.unparse(statement.annotation)
        if annotation not in _TYPES:
            raise ConfigurationError(unknown("type", annotation, _TYPES, where=f"{path}: {statement.target.id}: "))
        declared[statement.target.id] = (annotation, ast.literal_eval(statement.value))
    return declared


def check_parameters(
    notebook: str, declared: Mapping[str, tuple[str, Any]], namespace: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of the declared parameters, checked; nothing else that looks like a parameter may have been given.

    Raises ConfigurationError that names the parameter and what is allowed.
    """
    for name in _given(declared, namespace):
        value = namespace.get(name)
        plain = not isinstance(value, (ModuleType, FunctionType, type)) and not callable(value)
        if name in namespace and plain and not name.startswith("_") and name not in _IPYTHON and name not in declared:
            raise ConfigurationError(unknown("parameter", name, declared, where=f"{notebook}: "))
    values = {}
    for name, (annotation, _) in declared.items():
        if name not in namespace:
            raise ConfigurationError(f"{notebook}: parameter {name!r} has no value; run the parameters cell as it was")
        try:
            values[name] = TypeAdapter(_TYPES[annotation]).validate_python(namespace[name], strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            place = "".join(f"[{part}]" for part in problem["loc"])
            lone = annotation.startswith("list") and isinstance(namespace[name], str)
            remedy = f"; papermill takes a list as -y '{name}: [{namespace[name]}]'" if lone else ""
            raise ConfigurationError(
                f"{notebook}: parameter {name!r} must be of type {annotation}; {name}{place} is "
                f"{problem['input']!r} ({type(problem['input']).__name__}){remedy}"
            ) from None
    return values


def _given(declared: Mapping[str, tuple[str, Any]], namespace: Mapping[str, Any]) -> list[str]:
    """The names that may be meant as parameters: in a script all that there are.

    A kernel also holds what the user's IPython starts with, what was tried in other cells, and, when a notebook runs again,
    all that it made. There they are the names of the last cell of parameters and of the cells after it, up to the one that
    opens the notebook; papermill puts what it is given into a cell there.
    """
    history = namespace.get("In")
    if not isinstance(history, list):
        return list(namespace)
    cells = [assigned(source) for source in history[:-1]]  # without the cell that runs now
    start = max(
        (at for at, names in enumerate(cells) if 2 * len(names & declared.keys()) > len(declared)), default=None
    )
    given: dict[str, None] = {}
    for source, names in [] if start is None else zip(history[start:], cells[start:], strict=False):
        if "Notebook(" in source:
            break
        given |= dict.fromkeys(sorted(names))
    return list(given)


def assigned(source: str) -> set[str]:
    """The names that a cell assigns to; none if it is no Python."""
    try:
        nodes = ast.walk(ast.parse(source))
    except (SyntaxError, ValueError):
        return set()
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def command(notebook: str, values: Mapping[str, Any]) -> str:
    """The command of papermill that runs a notebook with these parameters, to be pasted into a shell."""
    lists = {name: value for name, value in values.items() if isinstance(value, list)}
    words = ["papermill", f"notebooks/{notebook}.ipynb", "out.ipynb"]
    for name, value in values.items():
        if name not in lists:
            words += _option(name, value)
    for name, value in lists.items():
        words += ["-y", f"{name}: {_yaml(value)}"]
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    """A single value: papermill takes "2024" for a number behind -p, and for text behind -r."""
    if isinstance(value, str) and not value.isprintable():
        return ["-y", f"{name}: {_yaml(value)}"]
    return ["-r" if isinstance(value, str) and _looks_like_another_type(value) else "-p", name, str(value)]


def _looks_like_another_type(text: str) -> bool:
    for kind in (int, float):
        try:
            kind(text)
        except ValueError:
            continue
        return True
    return text in ("True", "False", "None")


def _yaml(value: str | int | float | Sequence[Any]) -> str:
    """A value in YAML 1.1, on one line and in characters that can be printed."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, float):
        text = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}.get(repr(value), repr(value))
        return text if "." in text else text.replace("e", ".0e")  # without the dot it would be text
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else re.sub(r"[^ -~]", lambda one: _escaped(one[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
