"""What users give to simulators, checked; errors say what shape is needed and how it comes about."""

from __future__ import annotations

import numpy as np

from gptfluence.common.errors import ConfigurationError, DataError, OutOfReachError
from gptfluence.recording.curriculum import named
from gptfluence.recording.dynamics import GPTDynamics


def checked_runs(dynamics: GPTDynamics, metric: str, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Trajectories float32 [runs, steps + 1, tests] and batches int32 [runs, steps, batch], checked to be finite."""
    if not len(dynamics):
        raise ConfigurationError(f"fit: there are no {role} runs; record some, or check the names of the split")
    values, batches = dynamics.trajectories(metric), dynamics.batches
    finite = np.isfinite(values).all(axis=(1, 2))
    if not finite.all():
        raise DataError(
            f"fit: run {dynamics.names[int(np.argmin(finite))]} holds values of {metric} that are not finite; leave "
            "the run out or record it again (of runs that were measured at some steps only, give dynamics.interpolated())"
        )
    return values, batches


def checked_batches(batches: np.ndarray, pool_size: int) -> np.ndarray:
    """int [curricula, steps, batch], as in `Curriculum`: each a position in the pool, masked or not, or nobody's."""
    batches = np.asarray(batches)
    if batches.ndim != 3 or batches.size == 0 or not np.issubdtype(batches.dtype, np.integer):
        raise ConfigurationError(
            f"simulate: curricula must be whole numbers of shape [curricula, steps, batch], not {batches.dtype} "
            f"{list(batches.shape)}"
        )
    high = int(named(batches).max())
    if high >= pool_size:
        raise ConfigurationError(
            f"simulate: a curriculum names example {high}, but the pool has {pool_size} (0 to "
            f"{pool_size - 1}); pass pool= if the ids are those of another pool"
        )
    return batches


def checked_observed(observed: np.ndarray, curricula: int, steps: int, tests: int) -> np.ndarray:
    """float32 [curricula, k, tests], finite, 1 <= k <= steps; one set of rows is repeated for all curricula."""
    observed = np.asarray(observed, np.float32)
    if observed.ndim != 3 or observed.shape[0] not in (1, curricula) or observed.shape[2] != tests:
        raise ConfigurationError(
            f"simulate: observed must be [curricula, k, tests] = [{curricula}, k, {tests}], not "
            f"{list(observed.shape)}; pass tests= if the columns are other test examples than the fitted ones"
        )
    if not 1 <= observed.shape[1] <= steps:
        raise ConfigurationError(
            f"simulate: observed has {observed.shape[1]} rows, but needs 1 to {steps}, the curriculum's steps"
        )
    if not np.isfinite(observed).all():
        raise ConfigurationError("simulate: observed holds values that are not finite; start from recorded values")
    return np.broadcast_to(observed, (curricula, *observed.shape[1:]))


def check_mean_reaches(steps: int, fitted: int, *, name: str) -> None:
    """That a curriculum of so many steps is no longer than the fitted runs, whose mean trajectory the simulator `name` needs.

    Raises OutOfReachError.
    """
    if steps > fitted:
        raise OutOfReachError(
            f"{name}: a curriculum has {steps} steps, but the fitted runs have {fitted}; there is no mean beyond them"
        )
