"""Counterfactuals checked by retraining: k training examples left out, predicted and really trained without.

The curriculum is that of a held-out run. The places of the examples left out are taken by others of the same curriculum
(`recording.kinds.replaced`), so that all counterfactuals are equally long and differ in nothing else. Every one is trained
from the same initial weights; the linear datamodelling score (Park et al., 2023) asks whether a method ranks them rightly.

TracIn-CP and Grad-Dot score training examples along the held-out run itself, whose checkpoints they need:

    G_k(i, z') = <grad L(z_i), grad L(z')> at checkpoint k,    y_T(c) = y_0 - sum_t lr_t sum_{i in c_t} G_k(t)(i, z')

with nothing fitted: a rank correlation does not see the scale. Simulators see the curriculum and the first losses alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.experiments.shifted import Measured, seed_of
from gptfluence.gradients.products import Replayer
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.recording.kinds import replaced
from gptfluence.recording.record import devices
from gptfluence.recording.recorder import single_thread
from gptfluence.recording.workers import run_seed
from gptfluence.scoring import deviations
from gptfluence.simulators.influence import origin
from gptfluence.simulators.replay import example_products, scored_losses
from gptfluence.simulators.tracin import GradDot, TracIn10
from gptfluence.study.campaign import Campaign, Method

ALL = "all"  # the row over counterfactuals of every size
SCORES = {"tracin_cp_10": TracIn10(), "grad_dot": GradDot()}
COLUMNS = ["setting", "model", "task", "metric", "left_out", "method", "variant", "runs", "value", "low", "high"]


@dataclass(frozen=True)
class Counterfactual:
    """One curriculum without `dropped` (positions in the pool)."""

    dropped: tuple[int, ...]
    curriculum: Curriculum


def counterfactuals(
    curriculum: Curriculum, sizes: Sequence[int], draws: int, *, seed: Sequence[int]
) -> list[Counterfactual]:
    """`draws` random sets of each size, left out of `curriculum`; each depends on seed, size and number alone.

    Raises ConfigurationError for a size that would leave nothing, or fewer than 3 draws, of which no rank correlation
    means anything.
    """
    examples = curriculum.used
    if draws < 3:
        raise ConfigurationError(f"leave-out: draws must be 3 or more, not {draws}")
    for size in sizes:
        if not 1 <= size < len(examples):
            raise ConfigurationError(f"leave-out: {size} of {len(examples)} examples cannot be left out; choose fewer")
    found = []
    for size in sizes:
        for draw in range(draws):
            rng = np.random.default_rng([*seed, size, draw])
            dropped = np.sort(rng.choice(examples, size, replace=False))
            found.append(Counterfactual(tuple(dropped.tolist()), replaced(curriculum, dropped.tolist(), rng)))
    return found


def drawn(campaign: Campaign, curriculum: Curriculum, sizes: Sequence[int], draws: int) -> list[Counterfactual]:
    """`counterfactuals` with the seed of a campaign, which differs between tasks."""
    seed = [campaign.study.profile.seed, seed_of("leave-out", campaign.task)]
    return counterfactuals(curriculum, sizes, draws, seed=seed)


class Retrained(NamedTuple):
    """Counterfactuals of the first of the held-out runs `base`, and the runs that were trained on them.

    order: of each of `chosen` the position in `recorded`, whose runs are measured before the first and after the last step
    """

    base: GPTDynamics
    chosen: list[Counterfactual]
    recorded: GPTDynamics
    order: list[int]  # equal curricula are recorded once


def retrained(campaign: Campaign, sizes: Sequence[int], draws: int) -> Retrained:
    """Train the GPT of a campaign on `draws` counterfactuals of each size. Raises ConfigurationError as `counterfactuals`."""
    base = campaign.held_out()
    chosen = drawn(campaign, base.runs[0].curriculum, sizes, draws)
    recorded = campaign.losses_only.record([one.curriculum for one in chosen], ends_only=True)
    by_run = {curriculum: r for r, curriculum in enumerate(recorded.curricula)}
    return Retrained(base, chosen, recorded, [by_run[one.curriculum] for one in chosen])


def leave_out(
    campaign: Campaign, methods: Sequence[Method], scores: Sequence[str], *, sizes: Sequence[int], draws: int
) -> Measured:
    """Linear datamodelling scores of final losses, over the counterfactuals of each size, and over all of them.

    methods: simulators of the profile; scores: of `SCORES`. Returns a frame with `COLUMNS` (left_out: a size or "all"; runs:
    how many counterfactuals) and `undefined`. Raises ConfigurationError as `counterfactuals`, and
    with `scores` for runs that do not say which GPT they are of, as imported ones.
    """
    for name in scores:
        if name not in SCORES:
            raise ConfigurationError(unknown("score", name, SCORES, where="leave-out: "))
    base, chosen, recorded, order = retrained(campaign, sizes, draws)
    run, curricula = base.runs[0], [one.curriculum for one in chosen]
    truth = recorded.trajectories("loss")[order]
    [simulated] = campaign.predict_each(methods, [recorded])
    for variant, reason in simulated.refused.items():
        raise ConfigurationError(f"leave-out: method {variant}: {reason}; choose another method")
    predicted = {
        (variant.method, variant.variant): values[order, -1].astype(np.float64)
        for variant, values in simulated.values.items()
    }
    scored = _scored(base, run, scores, curricula, truth[0, 0])
    predicted |= {(name, ""): values for name, values in scored.items()}
    size_of = np.array([len(one.dropped) for one in chosen])
    rows = []
    for size in (*sizes, ALL):
        mask = np.ones(len(size_of), bool) if size == ALL else size_of == size
        for name, values in predicted.items():
            found = deviations.linear_datamodelling_score(values[mask], truth[mask, -1])
            common = (campaign.setting_name, base.model, campaign.task, "loss", str(size), *name, int(mask.sum()))
            rows.append((*common, *found))
    return Measured(pd.DataFrame(rows, columns=[*COLUMNS, "undefined"]), [base, recorded])


def _scored(
    base: GPTDynamics, run: TrainingRun, scores: Sequence[str], curricula: Sequence[Curriculum], start: np.ndarray
) -> dict[str, np.ndarray]:
    """Score -> float64 [curricula, tests], final losses by gradients along `run` of `base`.

    Raises ConfigurationError if `base` does not say which GPT it is of, as imported runs do not.
    """
    if not scores:
        return {}
    source, spec = origin(base)
    recording = spec.recording.model_copy(update={"record_pool": False})
    examples = run.curriculum.used.tolist()
    methods = {name: SCORES[name] for name in scores}
    gpt = source.gpt.load()
    with single_thread(), Replayer(gpt, base.pool, base.tests, recording, device=devices()[0]) as recorder:
        products = example_products(recorder, run, methods, examples, seed=run_seed(spec.seed, run.name))
    rates = recording.optimizer.learning_rates(run.curriculum.steps)
    return {
        name: scored_losses(products[name], method, rates, examples, curricula, start)
        for name, method in methods.items()
    }
