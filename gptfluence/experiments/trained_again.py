"""A recorded training changed: what a simulator says of it, beside what training again says and what costs nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gptfluence.drawing.trajectories import BEFORE
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import Simulator


def predicted(simulator: Simulator, dynamics: GPTDynamics, changed: Curriculum) -> np.ndarray:
    """The losses of the first run of `dynamics`, had it been trained on `changed`: float32 [steps + 1, tests].

    What the simulator says that the change makes is added to what was recorded, so what it is off along the run itself does
    not count. Steps that the run does not have are the simulator's own.
    """
    recorded = dynamics.trajectories("loss")[0]
    start = recorded[None, :1]
    simulated, unchanged = (simulator.simulate([one], start)[0] for one in (changed, dynamics.curricula[0]))
    both = min(len(simulated), len(recorded))
    off = recorded[:both] - unchanged[:both]
    return simulated + np.concatenate([off, np.repeat(off[-1:], len(simulated) - both, axis=0)])


def row(name: str, recorded: np.ndarray, simulated: np.ndarray, truth: np.ndarray) -> dict[str, object]:
    """One what-if, by its last step: losses float [steps + 1, tests] of the run as it was, simulated and trained again.

    Headings, to be read: what if, steps; "change, trained" and "change, simulated" (means over tests, nats per target token);
    root mean squared errors over tests of "tangent", "no change" and "persistence"; and "share explained", 1 - the squared error
    of the simulator / that of no change.
    """
    change = truth[-1] - recorded[-1]
    errors = {"tangent": simulated[-1], "no change": recorded[-1], "persistence": truth[0]}
    squared = {who: float(np.square(values - truth[-1]).mean()) for who, values in errors.items()}
    return {
        "what if": name,
        "steps": len(truth) - 1,
        "change, trained": float(change.mean()),
        "change, simulated": float((simulated[-1] - recorded[-1]).mean()),
        **{f"error of {who}": value**0.5 for who, value in squared.items()},
        "share explained": 1 - squared["tangent"] / squared["no change"] if squared["no change"] else float("nan"),
    }


def frame(recorded: np.ndarray, simulated: np.ndarray, truth: np.ndarray, examples: int) -> pd.DataFrame:
    """What `trajectories.plot_bands` draws: the mean over tests, and `examples` tests, those simulated to change most.

    Losses float [steps + 1, tests] as in `row`. Columns panel, series (before: the run as it was; recorded: trained again;
    tangent), step, value, low and high (nan: there are no bands).
    """
    change = np.abs(simulated[-1] - recorded[-1])
    lines = {BEFORE: recorded, "recorded": truth, "tangent": simulated}
    rows = []
    for example in [None, *np.argsort(-change, kind="stable")[:examples].tolist()]:
        panel = "mean of all tests" if example is None else f"test example {example}"
        for series, values in lines.items():
            shown = values.mean(axis=1) if example is None else values[:, example]
            columns = {"step": np.arange(len(shown)), "value": shown.astype(np.float64), "low": np.nan, "high": np.nan}
            rows.append(pd.DataFrame({"panel": panel, "series": series, **columns}))
    return pd.concat(rows, ignore_index=True)
