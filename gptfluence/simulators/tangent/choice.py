"""Which correction to trust: of fitted test examples, and of others; by runs that it was not learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gptfluence.simulators.base import carried
from gptfluence.simulators.tangent.correction import Correction, of_others

KINDS = ("seen", "unseen")  # of test examples: fitted on, or not


@dataclass(frozen=True)
class Compared:
    """Runs as the linearisation simulates them, and as they were recorded: both float [runs, steps + 1, tests].

    times: float [steps + 1], the step of a fitted run that each step is like
    measured: int [rows], the steps that were measured
    """

    simulated: np.ndarray
    recorded: np.ndarray
    times: np.ndarray
    measured: np.ndarray

    @cached_property
    def mean(self) -> np.ndarray:
        """float32 [steps + 1, tests]: the simulated runs' mean."""
        return self.simulated.mean(axis=0, dtype=np.float64).astype(np.float32)

    @cached_property
    def residual(self) -> np.ndarray:
        """float32 [steps + 1, tests]: what the linearisation was off, on average over runs."""
        return (self.recorded - self.simulated).mean(axis=0, dtype=np.float64).astype(np.float32)


@dataclass(frozen=True)
class Chosen:
    """The correction of one kind of test examples.

    carried: float [steps]. The share of the error at each step that remains at later steps.
    """

    correction: Correction
    carried: np.ndarray


@dataclass(frozen=True)
class Choice:
    """What corrections are chosen by.

    train: training runs; validation: runs that select, if there are any
    own: what the reference run was off at each fitted test, less its mean over these, if other tests follow it: none or one
    learns: whether corrections may be learned from runs at all; learns_unseen: also those of other tests
    stays: whether what is off at the last observed step is off for ever, as of a loss (or only as far as it was in training)
    """

    train: Compared
    validation: Compared | None
    own: Sequence[np.ndarray]
    learns: bool
    learns_unseen: bool
    stays: bool

    def chosen(self) -> tuple[dict[str, Chosen], str]:
        """For each of `KINDS` the correction, and in words how it was chosen."""
        shared = self.train.residual.mean(axis=1, keepdims=True)
        kinds = dict(zip(KINDS, ([self.train.residual], [*self.own, shared]), strict=True))
        fitted = self._fitted()
        rule = "corrections from training runs, each left out in turn" if fitted else "one training run: no correction"
        if not self.learns:
            rule = "no correction, as asked for"
        validation = self.validation if self.learns else None
        if validation is not None:
            rule = "validation all-steps MSE"
        found = {}
        for label, off in kinds.items():
            candidates = {
                "tangents": Correction.constant(len(off), 0, 0),
                "corrected": fitted.get(label),
                "off as before": Correction.constant(len(off), 1, 0),
                "mean trajectory": Correction.constant(len(off), 1, -1),  # of unseen tests its estimate
            }
            candidates = {name: each for name, each in candidates.items() if each is not None}
            kept = "corrected" if label in fitted else "tangents"
            if validation is not None:
                errors = {name: self._error(each, off, validation) for name, each in candidates.items()}
                kept = min(errors, key=errors.__getitem__)
                listed = ", ".join(f"{name} {error:.3g}" for name, error in errors.items())
                rule += f"; {label} tests: {kept} of {listed}"
            found[label] = Chosen(candidates[kept], self._carried(candidates[kept], off))
        return found, rule

    def _fitted(self) -> dict[str, Correction]:
        rows = self.train.measured
        simulated, recorded = self.train.simulated[:, rows], self.train.recorded[:, rows]
        if not self.learns or len(recorded) < 2:
            return {}
        others, at = of_others(recorded - simulated), rows / rows[-1]
        fitted = {"seen": Correction.fit(simulated, recorded, [others], at)}
        if self.learns_unseen:
            off = [*(own[rows] for own in self.own), others.mean(axis=2, keepdims=True)]
            fitted["unseen"] = Correction.fit(simulated, recorded, off, at)
        return fitted

    def _carried(self, correction: Correction, off: Sequence[np.ndarray]) -> np.ndarray:
        train = self.train
        if self.stays:
            return np.ones(len(train.mean) - 1)
        left = train.recorded - correction.apply(train.simulated, off, train.mean, train.times)
        return carried(left, train.measured)

    def _error(self, correction: Correction, off: Sequence[np.ndarray], validation: Compared) -> float:
        """All-steps MSE on validation runs."""
        share = self._carried(correction, off)[0]
        corrected = correction.apply(validation.simulated, off, self.train.mean, validation.times)
        corrected = corrected + share * (validation.recorded[:, :1] - corrected[:, :1])
        return float(np.square(corrected - validation.recorded)[:, validation.measured[1:]].mean())
