"""Errors that a user can mend: each says what was wrong, where, and what to do.

The command line and the notebooks print them without a traceback; everything else is a defect of this package.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class GPTfluenceError(Exception):
    """A wrong request, or a machine that cannot fulfil it. The message names the field and the remedy."""


class ConfigurationError(GPTfluenceError):
    """A profile, a parameter or an argument holds a value that is not allowed."""


class OutOfReachError(ConfigurationError):
    """A simulator is asked about examples, or a length, that its kind cannot predict."""


class DataError(GPTfluenceError):
    """Task data cannot be used: malformed line, duplicate id, empty file, text that does not fit the model."""


class ModelError(GPTfluenceError):
    """A model cannot be found or is not what its name says."""


class PackageError(GPTfluenceError):
    """A package that texts or weights are read from is not here, cannot be fetched, or holds something else."""


class HubUnreachableError(GPTfluenceError):
    """Something lives on the Hugging Face Hub and no hub (nor a cached copy) is reachable."""


class ArtifactError(GPTfluenceError):
    """An artifact (recorded run, fitted simulator, cache) is damaged, or cannot be written."""


class RecordingError(GPTfluenceError):
    """Training or measuring went wrong; the message names run, step or example."""


SHOWN = 60  # known names in a message; of more, the first and the last


def unknown(kind: str, name: object, known: Iterable[object], *, where: str = "") -> str:
    """A message for a name that is not among the known ones, with the nearest known one if there is one.

    >>> unknown("task", "sst3", ["rte", "sst2"])
    "task 'sst3' is not known; known: rte, sst2 (did you mean 'sst2'?)"
    """
    choices = [str(choice) for choice in known]
    near = get_close_matches(str(name), choices, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    if len(choices) > SHOWN:
        choices, hint = [*choices[:10], "...", choices[-1]], ""
    return f"{where}{kind} {str(name)!r} is not known; known: {', '.join(choices) or 'none'}{hint}"
