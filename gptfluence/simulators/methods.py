"""The table of methods: what can predict a trajectory, a row each.

To add a method, write one class (a dataclass whose fields, with their defaults, are its options) and one row here.
Nothing heavy is imported before a method is used, so that the command line and the figures can read the table at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from gptfluence.common.errors import ConfigurationError, unknown

if TYPE_CHECKING:
    from gptfluence.simulators.base import Predictor
    from gptfluence.simulators.options import Variant


class Line(NamedTuple):
    """How a method is drawn: a colour that the colour-blind can tell from the others, and never by colour alone.

    Most are of Okabe and Ito's palette. Its two blues are hard to tell apart on thin lines, so that one of them is not used.
    """

    color: str
    dash: str | tuple
    marker: str


@dataclass(frozen=True)
class Method:
    """One kind of method.

    name: what profiles call it (`kind`); where: "module:Class" below `gptfluence`; printed: its name in figures and tables
    trivial: a baseline that knows nothing of what texts say, as its class says, too
    """

    name: str
    where: str
    printed: str
    line: Line
    trivial: bool = False

    def load(self) -> type[Predictor]:
        """The class. The first call imports its module."""
        module, _, attribute = self.where.partition(":")
        return getattr(import_module(f"gptfluence.{module}"), attribute)


_TRACIN = Line("#009E73", (0, (4, 1.5, 1, 1.5)), "^")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("gptfluence", "simulators.gptfluence:GPTfluence", "GPTfluence", Line("#0072B2", "-", "o")),
        Method("simfluence", "simulators.simfluence:Simfluence", "Simfluence", Line("#D55E00", (0, (4, 1.5)), "s")),
        Method(
            "tangent", "simulators.tangent:TangentSimulator", "Tangent simulator", Line("#8B0000", (0, (9, 3)), "P")
        ),
        Method(
            "low_rank", "simulators.low_rank:LowRank", "Low-rank deviations", Line("#440154", (0, (5, 1, 1, 1)), "<")
        ),
        Method(
            "counts",
            "simulators.counts:Counts",
            "Label and format counts",
            Line("#882255", (0, (2, 1, 2, 1, 1, 1)), "*"),
            trivial=True,
        ),
        Method(
            "persistence",
            "simulators.reference:Persistence",
            "Persistence",
            Line("#767676", (0, (1, 2.5)), "x"),
            trivial=True,
        ),
        Method(
            "mean_trajectory",
            "simulators.reference:MeanTrajectory",
            "Mean trajectory",
            Line("#E69F00", (0, (6, 2, 1, 2, 1, 2)), "v"),
            trivial=True,
        ),
        Method("tracin_cp_all", "simulators.tracin:TracInAll", "TracIn-CP (all)", _TRACIN),
        Method("tracin_cp_10", "simulators.tracin:TracIn10", "TracIn-CP (10)", _TRACIN),
        Method("tracin_cp_update", "simulators.tracin:TracInUpdate", "TracIn-CP (update)", _TRACIN),
        Method("grad_dot", "simulators.tracin:GradDot", "Grad-Dot", Line("#CC79A7", (0, (1, 1.2)), "D")),
    )
}


def method_of(kind: str) -> Method:
    """The row of this kind. Raises ConfigurationError that lists the known ones."""
    if kind not in METHODS:
        raise ConfigurationError(unknown("method", kind, METHODS))
    return METHODS[kind]


def applicable(variants: Sequence[Variant], metric: str, *, known: bool = True) -> list[Variant]:
    """Those of `variants` that predict this metric; known=False: and examples that they were not fitted on.

    A method that refuses unseen examples by itself, with a reason, stays. Raises ConfigurationError if none is left.
    """
    kinds = [(variant, method_of(variant.kind).load()) for variant in variants]
    predicting = [(variant, kind) for variant, kind in kinds if kind.metrics is None or metric in kind.metrics]
    left = [variant for variant, kind in predicting if known or not kind.replays]
    if kinds and not predicting:
        variant, kind = kinds[0]
        raise ConfigurationError(predicts_no(variant.method, kind.metrics, metric))
    if kinds and not left:
        raise ConfigurationError(
            f"method {predicting[0][0].method!r} predicts the held-out runs on known examples only; choose another method"
        )
    return left


def predicts_no(name: str, metrics: Sequence[str] | None, metric: str) -> str:
    """The message for a metric that a method does not predict."""
    return f"method {name!r} predicts {', '.join(metrics or ())}, not {metric!r}; choose another method"
