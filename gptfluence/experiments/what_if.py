"""What if? A recorded run's curriculum changed by hand: simulated inside bands, and checked by really training.

Bands are calibrated on the recorded runs that the simulator was not fitted on (validation and held-out runs, without the
one that is changed). They promise coverage for curricula drawn alike; a changed curriculum is not, and the more it is
changed the less they promise (see `conformal`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing.trajectories import BEFORE
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.scoring import conformal
from gptfluence.study.campaign import Campaign
from gptfluence.tasks.base import Example, Task, TaskPool


@dataclass(frozen=True)
class Changes:
    """What is done to a curriculum, in this order. Examples are positions in the pool.

    mask: their places left empty, while all others stay where they are; drop: left out everywhere, all others moving up; repeat: shown `times` more times, spread evenly; first, last: all their occurrences moved to
    the beginning or the end; rewrite: "POSITION=new target", such as "17= negative"
    """

    drop: tuple[int, ...] = ()
    repeat: tuple[int, ...] = ()
    times: int = 8
    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    rewrite: tuple[str, ...] = ()
    mask: tuple[int, ...] = ()

    def curriculum(self, base: Curriculum) -> Curriculum:
        """The changed curriculum. Raises ConfigurationError for an example that is not where it would have to be."""
        changed = base.masked(self.mask) if self.mask else base
        changed = changed.without(self.drop) if self.drop else changed
        for example in self.repeat:
            changed = changed.repeated(example, self.times)
        for examples, front in ((self.first, True), (self.last, False)):
            if examples:
                changed = changed.moved(examples, front=front)
        return changed

    def pool(self, pool: TaskPool) -> TaskPool:
        """The pool with targets rewritten (the same object if none is). Raises ConfigurationError, naming the entry."""
        examples = list(pool)
        for entry in self.rewrite:
            position, equals, target = entry.partition("=")
            if not equals or not position.strip().isdigit() or not target.strip():
                raise ConfigurationError(f"rewrite {entry!r}: expected POSITION=new target, e.g. '17= negative'")
            place = int(position)
            if place >= len(pool):
                raise ConfigurationError(f"rewrite {entry!r}: the pool has examples 0 to {len(pool) - 1}")
            examples[place] = _rewritten(pool, place, target)
        return TaskPool(pool.name, tuple(examples)) if self.rewrite else pool

    def __str__(self) -> str:
        parts = [
            f"{_listed(self.mask)} masked" if self.mask else "",
            f"without {_listed(self.drop)}" if self.drop else "",
            f"{_listed(self.repeat)} {self.times} times more" if self.repeat else "",
            f"{_listed(self.first)} first" if self.first else "",
            f"{_listed(self.last)} last" if self.last else "",
            f"{_listed(self.rewrite)} rewritten" if self.rewrite else "",
        ]
        return "; ".join(part for part in parts if part) or "unchanged"


@dataclass(frozen=True)
class Answer:
    """A what-if question answered: losses in nats per target token, [steps + 1, tests] each."""

    changes: Changes
    curriculum: Curriculum
    pool: TaskPool
    base: GPTDynamics  # the run that was changed
    method: str
    predicted: np.ndarray
    predicted_base: np.ndarray  # of the unchanged curriculum
    bands: conformal.Bands
    truth: GPTDynamics | None = None  # the run of the changed curriculum, if it was trained

    def table(self) -> pd.DataFrame:
        """One row: final losses (means over tests, nats per target token) unchanged and changed, and coverage where trained.

        A change is what the simulator, or training, says of the changed curriculum less what the same says of the
        unchanged one. The band is that of single tests at the last step, above and below, on average.

        Columns, headings to be read: changes, method, steps; "unchanged, trained", "unchanged, simulated", "changed, simulated",
        "90% band of one test" (the level of the bands), "change, simulated". Where the changed curriculum was trained, too:
        "changed, trained", "change, trained" and "paths inside the band" (0-1).
        """
        before = self.base.trajectories("loss")[0]
        low, high = self.bands.around(self.predicted)
        row = {
            "changes": str(self.changes),
            "method": self.method,
            "steps": self.curriculum.steps,
            "unchanged, trained": before[-1].mean(),
            "unchanged, simulated": self.predicted_base[-1].mean(),
            "changed, simulated": self.predicted[-1].mean(),
            f"{self.bands.level:.0%} band of one test": (high[-1] - low[-1]).mean() / 2,
            "change, simulated": (self.predicted[-1] - self.predicted_base[-1]).mean(),
        }
        if self.truth is not None:
            truth = self.truth.trajectories("loss")[0]
            row |= {
                "changed, trained": truth[-1].mean(),
                "change, trained": (truth[-1] - before[-1]).mean(),
                "paths inside the band": self.bands.covered(self.predicted, truth).mean(),
            }
        return pd.DataFrame([row])

    def frame(self, examples: int) -> pd.DataFrame:
        """What `trajectories.plot_bands` draws: the mean over tests, and `examples` tests, those simulated to change most.

        Columns panel, series (before, recorded, the method), step, value, low and high (the band; nan where there is none), all
        losses in nats per target token.
        """
        change = np.abs(self.predicted[-1] - self.predicted_base[-1])
        chosen = np.argsort(-change, kind="stable")[:examples].tolist()
        low, high = self.bands.around(self.predicted)
        before = self.base.trajectories("loss")[0].astype(np.float64)
        truth = None if self.truth is None else self.truth.trajectories("loss")[0].astype(np.float64)
        rows = []
        for example in [None, *chosen]:
            cut = lambda values, e=example: values.mean(axis=1) if e is None else values[:, e]  # noqa: E731
            panel = "mean of all tests" if example is None else f"test example {example}"
            nothing = lambda values: np.full(len(values), np.nan)  # noqa: E731
            lines = {BEFORE: (cut(before), nothing(before), nothing(before))}
            if truth is not None:
                lines["recorded"] = (cut(truth), nothing(truth), nothing(truth))
            edges = (low, high) if example is not None else None  # bands are of single paths, not of their mean
            predicted = cut(self.predicted.astype(np.float64))
            lines[self.method] = (
                predicted,
                cut(edges[0]) if edges else nothing(predicted),
                cut(edges[1]) if edges else nothing(predicted),
            )
            for series, (value, lower, upper) in lines.items():
                columns = {"value": value, "low": lower, "high": upper}
                step = {"panel": panel, "series": series, "step": np.arange(len(value))}
                rows.append(pd.DataFrame({**step, **columns}))
        return pd.concat(rows, ignore_index=True)


def ask(
    campaign: Campaign,
    changes: Changes,
    *,
    run: int = 0,
    method: str = "tangent",
    level: float = 0.9,
    train: bool = True,
) -> Answer:
    """Change the curriculum of held-out run `run`, simulate it, and (`train`) really train on it.

    Raises ConfigurationError for examples that are not there, a run that is not, a simulator that cannot simulate what was
    changed, or fewer than one run to calibrate bands on.
    """
    conformal.check_level(level)
    campaign.variant(method)
    if campaign.source.trains:  # what is wrong with the question is said before runs are recorded
        _check(changes, campaign.texts.pool)
    dynamics = campaign.dynamics("loss")
    fitted_on, validation, test = dynamics.split()
    if not 0 <= run < len(test):
        raise ConfigurationError(f"run: there is no held-out run {run}; choose 0 to {len(test) - 1}")
    base = test.select([test.names[run]])
    others = dynamics.select([name for name in validation.names + test.names if name not in base.names])
    if not len(others):
        raise ConfigurationError(
            f"profile {campaign.study.profile.name!r}: settings.{campaign.setting_name}.runs: no run is left to calibrate bands on; set validation "
            "to 1 or test to 2"
        )
    _check(changes, dynamics.pool)
    curriculum, pool = changes.curriculum(base.curricula[0]), changes.pool(dynamics.pool)
    simulator = campaign.simulator(method)
    start = base.trajectories("loss")[:, :1]
    changed_pool = pool if changes.rewrite else None
    predicted = simulator.simulate([curriculum], start, pool=changed_pool)[0]
    predicted_base = simulator.simulate(base.curricula, start)[0]

    def simulated(of: GPTDynamics) -> tuple[np.ndarray, np.ndarray]:
        truth = of.trajectories("loss")
        return simulator.simulate(of.curricula, truth[:, :1]), truth

    typical = conformal.Typical.of(*simulated(fitted_on))
    bands = conformal.calibrate(*simulated(others), typical, level=level)
    bands = replace(bands, typical=typical.extended(max(curriculum.steps, base.curricula[0].steps)))
    truth = None
    if train:
        texts = Task(campaign.task, pool, dynamics.tests) if changes.rewrite else None
        truth = campaign.losses_only.with_(texts=texts).record([curriculum])
    return Answer(changes, curriculum, pool, base, method, predicted, predicted_base, bands, truth)


def _check(changes: Changes, pool: TaskPool) -> None:
    """Raise ConfigurationError for a change that names no example of the pool, or another target than it may have."""
    changes.pool(pool)
    for name in ("mask", "drop", "repeat", "first", "last"):
        for example in getattr(changes, name):
            if not 0 <= example < len(pool):
                raise ConfigurationError(f"{name}: there is no training example {example}; choose 0 to {len(pool) - 1}")


def _rewritten(pool: TaskPool, place: int, target: str) -> Example:
    """The example at `place` with another target. Raises ConfigurationError if it has choices and this is none of them."""
    example = pool[place]
    if not example.choices:
        return replace(example, target=target, references=())
    if target not in example.choices:
        known = ", ".join(map(repr, example.choices))
        raise ConfigurationError(f"rewrite: {target!r} is no label of example {place}; choose one of {known}")
    return example.with_label(example.choices.index(target))


def _listed(examples: Sequence[int] | Sequence[str]) -> str:
    """The examples one by one; how many there are if they are more than ten."""
    if len(examples) > 10:
        return f"{len(examples)} examples"
    return ", ".join(map(str, examples))
