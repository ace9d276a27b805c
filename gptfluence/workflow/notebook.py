"""What every notebook does the same way: check its parameters, open the study, save outputs with their provenance."""

from __future__ import annotations

import ast
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from gptfluence.common import provenance
from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.common.settings import ROOT
from gptfluence.drawing import figures
from gptfluence.study.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTEBOOKS = ROOT / "notebooks"
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


class Notebook:
    """The run of one notebook: its checked parameters, its study, and where its outputs go.

        nb = gf.Notebook("tab02_fine_tuning_loss", globals())
        results = nb.study.evaluate("fine_tuning", tasks=nb.tasks, methods=nb.methods)

    Parameters are attributes. A parameter that the parameters cell does not have, or that is of another type than it is
    annotated with there, is an error (papermill itself would only warn, or pass it on).

    With the default parameters outputs go to `figures/<profile>/`; with others to `build/<profile>/figures/`, so that a
    try never overwrites what is cited; `output_dir` says otherwise.
    """

    def __init__(self, name: str, namespace: Mapping[str, Any], setting: str | None = "fine_tuning"):
        """setting: the one that `tasks`, `task`, `models` and `model` are of; None for a notebook without these.

        Raises ConfigurationError that names the parameter and what is allowed.
        """
        self.name = name
        self._started = time.monotonic()
        declared = declared_parameters(NOTEBOOKS / f"{name}.py")
        self.parameters = check_parameters(name, declared, namespace)
        for parameter, value in self.parameters.items():
            if not hasattr(self, parameter):
                setattr(self, parameter, value)
        self.study = Study.load(self.parameters["profile"], self.parameters.get("overrides", ()))
        if setting is not None:
            self._choose_of(setting)
        changed = {
            parameter: value
            for parameter, value in self.parameters.items()
            if parameter not in ("profile", "overrides", "output_dir", "figure", "setting")
            and value != declared[parameter][1]
        }
        label = self.study.label
        default = ROOT / "build" / label / "figures" if changed else ROOT / "figures" / label
        self.folder = Path(self.parameters.get("output_dir") or default).expanduser().resolve()

    def _choose_of(self, setting: str) -> None:
        """Check and resolve the parameters that name parts of a setting."""
        chosen = self.study.setting(setting)
        tested = self.study.tested(setting, "loss")
        simulators = list(self.study.profile.simulators)
        known: dict[str, tuple[Sequence[str], Sequence[str]]] = {  # what is allowed, and what none given means
            "tasks": (tested, tested),
            "methods": (simulators, self.study.methods(setting=setting)),
            "models": (chosen.models, chosen.models),
        }
        for parameter, (allowed, default) in known.items():
            if parameter in self.parameters:
                given = self.parameters[parameter]
                # a method may change options: "gptfluence markov_order=2"
                plain = {value: value.split()[0] if parameter == "methods" else value for value in given}
                self.choose(parameter, list(plain.values()), allowed)
                ordered = sorted(plain, key=lambda value: list(allowed).index(plain[value]))
                setattr(self, parameter, ordered or list(default))
        if "task" in self.parameters:
            self.task = self.parameters["task"] or tested[0]
            self.choose("task", self.task, tested)
        if "model" in self.parameters:
            self.model = self.parameters["model"] or chosen.model
            self.choose("model", self.model, chosen.models)

    def choose(self, parameter: str, value: Any, allowed: Sequence[Any]) -> None:
        """Raise ConfigurationError unless `value` (or each of its items) is among `allowed`."""
        for item in value if isinstance(value, list) else [value]:
            if item not in allowed:
                raise ConfigurationError(
                    unknown("value", item, allowed, where=f"{self.name}: parameter {parameter!r}: ")
                )

    def save_figure(
        self,
        figure: Figure,
        frame: pd.DataFrame,
        name: str,
        *,
        caption: str,
        sources: Sequence[Any],
        reading: str = "",
    ) -> None:
        """Save a figure as PDF and PNG with the CSV of every plotted number.

        sources: the dynamics it is drawn from; reading: what it shows, computed, printed and kept beside the caption
        """
        facts = {**self._provenance(sources), "reading": reading}
        figures.save_figure(figure, frame, self.folder, name, caption=caption, provenance=facts)
        print(f"saved {self._shown(name)}.pdf, .png, .csv, .json\n{reading}".rstrip())

    def save_table(self, table: Any, name: str, *, caption: str, sources: Sequence[Any], reading: str = "") -> None:
        """Save a table as CSV, LaTeX, Markdown and PNG; `sources` and `reading` as for a figure."""
        facts = {**self._provenance(sources), "reading": reading}
        figures.save_table(table, self.folder, name, caption=caption, provenance=facts)
        print(f"saved {self._shown(name)}.csv, .tex, .md, .png, .json\n{reading}".rstrip())

    def _shown(self, name: str) -> str:
        path = self.folder / name
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)

    def _provenance(self, sources: Sequence[Any]) -> dict:
        shown = {name: value for name, value in self.parameters.items() if value not in ("", [])}
        shown.pop("output_dir", None)
        options = "".join(f" -p {name} {value}" for name, value in shown.items() if not isinstance(value, list))
        lists = "".join(
            f" -y {shlex.quote(f'{name}: {json.dumps(value)}')}"
            for name, value in shown.items()
            if isinstance(value, list)
        )
        runs: dict[str, dict[str, str]] = {}
        for source in sources:  # several may be parts of one folder
            runs.setdefault(source.provenance["folder"], {}).update(source.provenance["runs"])
        return provenance.collect(
            command=f"papermill notebooks/{self.name}.ipynb out.ipynb{options}{lists}",
            profile=self.study.profile,
            parameters=shown,
            sources=runs,
            device=sources[0].provenance["device"] if sources else "cpu",
            seconds=time.monotonic() - self._started,
        )


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
    """The values of the declared parameters, checked; nothing else that looks like a parameter may be there.

    Raises ConfigurationError that names the parameter and what is allowed.
    """
    for name, value in namespace.items():
        plain = not isinstance(value, (ModuleType, FunctionType, type)) and not callable(value)
        if plain and not name.startswith("_") and name not in _IPYTHON and name not in declared:
            raise ConfigurationError(unknown("parameter", name, declared, where=f"{notebook}: "))
    values = {}
    for name, (annotation, _) in declared.items():
        try:
            values[name] = TypeAdapter(_TYPES[annotation]).validate_python(namespace[name], strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            place = "".join(f"[{part}]" for part in problem["loc"])
            raise ConfigurationError(
                f"{notebook}: parameter {name!r} must be of type {annotation}; {name}{place} is "
                f"{problem['input']!r} ({type(problem['input']).__name__})"
            ) from None
    return values
