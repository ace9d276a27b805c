"""Simulators: fitted on recorded runs, they predict trajectories for curricula that nobody trained on."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.simulators.base import Simulator
from gptfluence.simulators.gptfluence import GPTfluence
from gptfluence.simulators.low_rank import LowRank
from gptfluence.simulators.reference import MeanTrajectory, Persistence
from gptfluence.simulators.simfluence import Simfluence
from gptfluence.simulators.tangent import TangentSimulator

_ANY_TYPE = ConfigDict(arbitrary_types_allowed=True)
SIMULATORS: dict[str, type[Simulator]] = {
    simulator.name: simulator
    for simulator in (GPTfluence, Simfluence, TangentSimulator, LowRank, Persistence, MeanTrajectory)
}


def create(name: str, **hyperparameters: Any) -> Simulator:
    """The simulator of this name, not fitted yet.

    Raises ConfigurationError for a name or an argument that is not known, and lists those that are.
    """
    if name not in SIMULATORS:
        raise ConfigurationError(unknown("simulator", name, SIMULATORS))
    known = inspect.signature(SIMULATORS[name]).parameters
    for argument in hyperparameters:
        if argument not in known:
            raise ConfigurationError(unknown("hyperparameter", argument, known, where=f"simulator {name!r}: "))
    hints = get_type_hints(SIMULATORS[name])
    for argument, value in hyperparameters.items():
        try:
            TypeAdapter(hints[argument], config=_ANY_TYPE).validate_python(value, strict=True)
        except ValidationError:
            kind = known[argument].annotation
            raise ConfigurationError(
                f"simulator {name!r}: {argument} must be of type {kind}, not {value!r} ({type(value).__name__})"
            ) from None
    return SIMULATORS[name](**hyperparameters)


def refuses_unseen(name: str) -> str:
    """Why the simulator of this name has nothing to say of examples that it was not fitted on; empty if it has."""
    return SIMULATORS[name].refuses_unseen if name in SIMULATORS else ""


def takes(name: str, argument: str) -> bool:
    """Whether the simulator of this name has such an argument: "encoder" of texts, "tangents" (gradients of the GPT)."""
    return name in SIMULATORS and argument in inspect.signature(SIMULATORS[name]).parameters
