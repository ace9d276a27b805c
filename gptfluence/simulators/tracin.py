"""TracIn-CP and Grad-Dot (Pruthi et al., 2020): first-order estimates along the checkpoints of the run they explain.

The influence of step t on a test example z' is the decrease of its loss that the step is held to cause,

    I_t(z') = lr_t sum_{i in c_t} <grad L(z_i), grad L(z')>,    y_t = y_{t-1} - scale I_t

with all gradients taken at one checkpoint: that before the step (TracIn-CP, all steps), the nearest of some (TracIn-CP, 10
steps) or the final one (Grad-Dot). L is the mean loss over an example's tokens, in nats per token: trained tokens of z_i,
recorded ones of z'. A sum over a batch is one gradient, so a step needs one direction and one number for each test example.

Unlike a simulator these methods need the run itself: its checkpoints come from really training on its curriculum. No
checkpoint is stored; the run is recorded again, and scored on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.gradients.products import PARAMETERS, chosen_parameters
from gptfluence.models.gpt import GPT
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import Predictor
from gptfluence.simulators.influence import Influences
from gptfluence.simulators.methods import predicts_no

DIRECTIONS = ("gradient", "update")
SCALES = ("none", "validation", "oracle")
CHECKPOINTS = ("all", "final")


@dataclass(kw_only=True)
class TracIn(Predictor):
    """Gradients along the run that is explained: what is multiplied with what, where, and how the sum is scaled.

    parameters: "last_layer", the last transformer block (see `gradients.products.chosen_parameters` for why), or "all"
    checkpoints: "all": before every step; a number K: the nearest of K, evenly spaced from the initial to the final weights;
        "final": the final weights for every step (Grad-Dot)
    direction: "gradient", or "update": what AdamW really did, I_t = <theta_{t-1} - theta_t, grad L(z')> at theta_{t-1},
        already in nats per token, with no learning rate and nothing to fit
    scale: "none": 1; "validation": one number for each task, fitted on the first validation run; "oracle": one for each task
        and run, fitted on that very run, as the published numbers are. A row with it is no prediction: since scale 0 is
        allowed, its sum of squared errors cannot be larger than persistence's

    Raises ConfigurationError for anything else.
    """

    name = "tracin"
    format = 1
    replays = True
    metrics = ("loss",)  # gradients of anything else cannot be computed

    parameters: str = "last_layer"
    checkpoints: str | int = "all"
    direction: str = "gradient"
    scale: str = "validation"

    _along: Influences | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for key, known in (("parameters", PARAMETERS), ("direction", DIRECTIONS), ("scale", SCALES)):
            if getattr(self, key) not in known:
                raise ConfigurationError(unknown(key, getattr(self, key), known, where=f"{self.name}: "))
        count = self.checkpoints
        if count not in CHECKPOINTS and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ConfigurationError(
                f"{self.name}: checkpoints must be all, final or a number of 1 or more, not {count!r}"
            )
        if self.direction == "update" and count != "all":
            raise ConfigurationError(
                f"{self.name}: direction update is the step that was made from its own checkpoint, so checkpoints must be all, "
                f"not {count!r}"
            )

    def check_gpt(self, gpt: GPT) -> None:
        chosen_parameters(gpt.model, self.parameters)

    @property
    def told_the_answer(self) -> bool:
        return self.scale == "oracle" or self.direction == "update"

    def problem_with_name(self, name: str) -> str:
        """Tables must tell what was fitted on the test run, or given its updates."""
        for option, word, what in (("scale", "oracle", "fitted on"), ("direction", "update", "given the updates of")):
            told = getattr(self, option) == word
            if told != (word in name):
                other = f"e.g. '{self.name}_{word}'" if told else "otherwise,"
                return (
                    f"with {option}: {getattr(self, option)} its name must {'' if told else 'not '}say {word}, so that tables "
                    f"tell what was {what} the test run; call it {other} with kind: {self.name}"
                )
        return ""

    def identity(self) -> dict[str, Any]:
        return {"method": [self.name, {**self.influence_options, "scale": self.scale}], "format": self.format}

    def bind(
        self,
        dynamics: GPTDynamics,
        *,
        load_encoder: Callable[[str], Any] | None = None,
        together: Sequence[Predictor] = (),
    ) -> Self:
        """Replay the runs of `dynamics`, all of them: its first validation run fits the scale."""
        others = [method for method in together if isinstance(method, TracIn)]
        self._along = Influences(dynamics, [self, *others])
        return self

    def predict(self, dynamics: GPTDynamics, observed: int = 1, *, metric: str = "loss") -> np.ndarray:
        """Predict the runs of `dynamics` from the first `observed` losses of each: float32 [runs, steps + 1, tests].

        Raises ConfigurationError for another metric, or before `bind`.
        """
        if metric not in self.metrics:
            raise ConfigurationError(predicts_no(self.name, self.metrics, metric))
        if self._along is None:
            raise ConfigurationError(f"{self.name}: call bind(dynamics) first, with all recorded runs")
        return self._along.predict(self, dynamics, observed)

    @property
    def influence_options(self) -> dict[str, Any]:
        """What the influences depend on (the scale comes later)."""
        return {key: getattr(self, key) for key in ("parameters", "checkpoints", "direction")}

    def states(self, steps: int) -> np.ndarray:
        """int [steps]: after how many updates the weights were those at which step t (in row t-1) is scored."""
        before = np.arange(steps)
        if self.checkpoints == "all":
            return before
        if self.checkpoints == "final":
            return np.full(steps, steps)
        kept = np.unique(np.linspace(0, steps, int(self.checkpoints)).round().astype(int))
        return kept[np.abs(kept[None] - before[:, None]).argmin(axis=1)]  # of two as near, the earlier


@dataclass(kw_only=True)
class TracInAll(TracIn):
    """TracIn-CP: every step is scored at the checkpoint before it."""

    name = "tracin_cp_all"


@dataclass(kw_only=True)
class TracIn10(TracIn):
    """TracIn-CP from few checkpoints: every step is scored at the nearest of 10."""

    name = "tracin_cp_10"

    checkpoints: str | int = 10


@dataclass(kw_only=True)
class TracInUpdate(TracIn):
    """What the optimizer really did, to first order: nothing is fitted, and the run's own updates are given."""

    name = "tracin_cp_update"

    parameters: str = "all"
    direction: str = "update"
    scale: str = "none"


@dataclass(kw_only=True)
class GradDot(TracIn):
    """Grad-Dot: every step is scored at the final weights."""

    name = "grad_dot"

    checkpoints: str | int = "final"
