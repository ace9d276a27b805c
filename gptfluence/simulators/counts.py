"""Counts of labels and formats: a contender that knows which kinds of examples were in the batches, and no text.

Many curves differ from run to run mostly because some batches held more examples of one label, or longer texts, than others.
What such counts explain needs no simulator. The deviation of a test example from its mean trajectory is taken to be

    sum_w sum_g sum_h (x_t(w, g) - mean x_t(w, g)) W(w, g, h) [test example is of group h]

where x_t(w, g) counts the examples of group g in the batches so far, weighted by the learning rate, in a window of w steps: an
exponential filter that keeps 1 - 1/w of it at each step. `Groups` says what groups there are. With two labels, seven
coefficients times the difference of the counts and the label's sign are among the cases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.linear import LinearDeviations, Solution, errors_left_out, exposures, rule, solutions
from gptfluence.tasks.base import Example, TaskPool

WINDOWS = (1, 2, 4, 8, 16, 32, np.inf)  # steps; inf: the whole run
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of counts in overlapping windows, much alike: less than of texts
LENGTHS = ("short", "middling", "long")
_SENTENCE_ENDS = re.compile(r"[.!?](?=\s|$)")


@dataclass(frozen=True)
class Groups:
    """The groups that examples are counted in.

    An example is of the group of its task. One with a label is of the group of this label in its task. One with free text is
    of a group by the length of its target in characters (the thirds of the task's targets), and perhaps of those of targets
    that end a sentence, and of targets of several sentences.

    names: of all groups; thirds: task -> the two lengths that part its free-text targets
    """

    names: tuple[str, ...]
    thirds: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Groups:
        """The groups of these examples."""
        lengths: dict[str, list[int]] = {}
        for example in examples:
            if example.label is None:
                lengths.setdefault(example.task, []).append(len(example.target))
        thirds = {task: tuple(np.quantile(found, [1 / 3, 2 / 3]).tolist()) for task, found in lengths.items()}
        found = {name for example in examples for name in _groups(example, thirds)}
        return cls(tuple(sorted(found)), thirds)

    def __call__(self, examples: Sequence[Example]) -> np.ndarray:
        """float64 [examples, groups]: 1 where an example is of a group, else 0."""
        members = [set(_groups(example, self.thirds)) for example in examples]
        return np.array([[float(name in found) for name in self.names] for found in members])

    def to_array(self) -> np.ndarray:
        """uint8 [bytes]: JSON."""
        return np.frombuffer(json.dumps(asdict(self)).encode(), np.uint8)

    @classmethod
    def from_array(cls, array: np.ndarray) -> Groups:
        """The opposite of `to_array`. Raises ValueError, KeyError for something else."""
        values = json.loads(array.tobytes())
        return cls(tuple(values["names"]), {task: tuple(cuts) for task, cuts in values["thirds"].items()})


def _groups(example: Example, thirds: dict[str, tuple[float, float]]) -> list[str]:
    """The names of the groups of an example; one of a task whose lengths are not known is of no length."""
    task = example.task or "task"
    if example.label is not None:
        return [task, f"{task}: label {example.label}"]
    found = [task]
    if example.task in thirds:
        found.append(f"{task}: {LENGTHS[sum(len(example.target) > cut for cut in thirds[example.task])]}")
    text = example.target.rstrip()
    if text.endswith((".", "!", "?")):
        found.append(f"{task}: ends a sentence")
    if len(_SENTENCE_ENDS.findall(text)) > 1:
        found.append(f"{task}: several sentences")
    return found


@dataclass(kw_only=True, eq=False)
class Counts(LinearDeviations):
    """Mean trajectory plus deviations that are linear in filtered counts of labels, formats and tasks.

    Test examples of the same groups deviate alike. One that was not fitted on starts at its observed value and moves as the
    fitted ones of its groups do on average. The ridge is chosen on runs left out.
    """

    name = "counts"
    trivial = True

    def _learn(self, train: GPTDynamics, batches: np.ndarray, values: np.ndarray) -> tuple[Solution, str]:
        self._groups = Groups.of(train.pool), Groups.of(train.tests)
        self._fitted = self._described(train.pool, of="pool"), self._described(train.tests, of="tests")
        tests = self._directions(None)
        errors = errors_left_out(self._exposed(batches, None), values, tests, RIDGES, measured=self._measured)
        ridge = min(errors, key=errors.__getitem__, default=np.inf)
        said = "one run: its own trajectory"
        if errors:
            said = rule(len(values), errors[ridge], errors[np.inf], f"ridge {ridge}")
        exposed = self._exposed(train.batches, None)
        found = solutions(exposed, values[: len(train)], tests, RIDGES, measured=self._measured)
        return dict(found)[ridge], said

    def _described(self, examples: TaskPool, *, of: str) -> np.ndarray:
        """float64 [examples, groups]"""
        return self._groups[("pool", "tests").index(of)](examples)

    def _exposed(self, batches: np.ndarray, pool: np.ndarray | None) -> np.ndarray:
        """float64 [curricula, steps + 1, windows x groups], each window scaled to the size that random counts have in it."""
        members = self._fitted[0] if pool is None else pool
        found = []
        for window in WINDOWS:
            keep = 1 - 1 / window
            size = np.sqrt(np.square(keep ** np.arange(len(self._rates))).sum())
            found.append(exposures(batches, self._rates[: batches.shape[1]], keep, members) / size)
        return np.concatenate(found, axis=2)

    def _directions(self, tests: np.ndarray | None) -> np.ndarray:
        return self._fitted[1] if tests is None else tests

    def _change(self, tests: np.ndarray | None) -> np.ndarray:
        """The mean change of fitted tests of the same groups, or of several groups the sum: float64 [steps + 1, tests]."""
        mean = self._solution.mean
        of_groups = np.linalg.lstsq(self._directions(None), (mean - mean[0]).T, rcond=None)[0]  # [groups, steps + 1]
        return (self._directions(tests) @ of_groups).T

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = super()._arrays()
        for side, groups, members in zip(("pool", "tests"), self._groups, self._fitted, strict=True):
            arrays |= {f"{side}.groups": groups.to_array(), f"{side}.fitted": members}
        return arrays

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        super()._restore(arrays)
        pool, tests = (Groups.from_array(arrays[f"{side}.groups"]) for side in ("pool", "tests"))
        self._groups = pool, tests
        self._fitted = arrays["pool.fitted"], arrays["tests.fitted"]
