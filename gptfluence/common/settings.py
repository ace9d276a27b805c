"""What every part of a profile is made of, and where the repository and its artifacts lie."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from gptfluence.common.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]  # the repository; profiles, figures and artifacts are found below it
LONGEST_NAME = 80  # characters
JOINERS = "\u200c\u200d"  # no letters, but words of Persian, Hindi and other languages are written with them


class Settings(BaseModel):
    """Base of every part of a profile: unknown fields are errors, values are not changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, given: Any) -> Any:
        """pydantic takes true for 1."""
        for name, field in cls.model_fields.items() if isinstance(given, dict) else ():
            kinds = {field.annotation, *get_args(field.annotation)}
            if isinstance(given.get(name), bool) and kinds & {int, float} and bool not in kinds:
                raise ValueError(f"{name}: a number is needed, not {str(given[name]).lower()}")
        return given


def checked_name(name: str) -> str:
    """A name that a profile gives to a task, a model or a method: any script, blanks, quotes and signs.

    It stands in the commands of the workflow, in captions, and (as `files.slug`) in the names of files.
    Raises ValueError for a name that could not be told from another one on a screen, or not be a part of a file's name.
    """
    hidden = [one for one in name if not one.isprintable() and one not in JOINERS]
    if not name.strip() or name != name.strip():
        raise ValueError(f"{name!r} is empty, or begins or ends with a blank; give it another name")
    if hidden:
        raise ValueError(f"{name!r} holds {hidden[0]!r}, which cannot be printed; give it another name")
    if len(name) > LONGEST_NAME:
        raise ValueError(
            f"{name[:20]!r}... has {len(name)} characters, {LONGEST_NAME} are allowed; give it a shorter name"
        )
    return name


Name = Annotated[str, AfterValidator(checked_name)]


def canonical(settings: BaseModel) -> dict[str, Any]:
    """Plain JSON values, for hashes and for files."""
    return json.loads(settings.model_dump_json())


def artifacts_dir() -> Path:
    """Where recorded runs, models and caches live: $GPTFLUENCE_ARTIFACTS, else `artifacts/` of the repository.

    A relative path starts at the repository, so that notebooks, which run in folders of their own, find the same place.
    """
    return (ROOT / expanded(os.environ.get("GPTFLUENCE_ARTIFACTS") or "artifacts")).resolve()


def expanded(path: str | Path) -> Path:
    """A path with the home folder in place of `~`. Raises ConfigurationError if nobody knows that folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a user who does not exist, or HOME is not set
        raise ConfigurationError(f"{path}: no home folder is known for its '~'; give the whole path") from None


def located(path: str | Path, *places: Path) -> Path:
    """Where a path is that a profile or a parameter names: the same from the shell, in a notebook and in the workflow.

    A relative path is looked for in the working directory, in `places`, and in the repository. If it is in none of them, the
    first of `places` (else the repository) is where it is said to be missing.

    Raises ConfigurationError if different places have it.
    """
    path = expanded(path)
    if path.is_absolute():
        return path
    tried = [Path(), *places, ROOT]
    found = {(place / path).resolve(): place / path for place in reversed(tried) if os.path.exists(place / path)}
    if len(found) > 1:
        several = " and ".join(str(one) for one in reversed(found))
        raise ConfigurationError(f"{path} means {several}; give the whole path")
    return next(iter(found.values()), tried[1] / path)
