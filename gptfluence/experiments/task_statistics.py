"""What tasks teach a GPT, and whether it matters what is in the examples: the numbers of ext00, for two regimes.

*Learning* is training at the profile's own rates. *Slow drift* is the paper's regime: rates so low that the curves of different
curricula nearly coincide. It is recorded here, a few runs with losses and accuracy alone. (A profile whose own rates are those of
slow drift has this regime only.) Both are described by as many runs, since the fewer there are, the more of their deviations lies
in one component, and the less counts can learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from gptfluence.common.errors import ConfigurationError
from gptfluence.experiments.leave_out import retrained
from gptfluence.experiments.shifted import Measured
from gptfluence.profile.schema import LEARNING, SLOW_DRIFT
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.scoring import variation
from gptfluence.study.campaign import Campaign

COLUMNS = ["model", "task", "regime", "statistic", "value"]
HEAVY = 4  # degrees of freedom of noise with heavy tails


def of_tasks(campaigns: Sequence[Campaign], *, slow_drift: float, train: int, held_out: int, left_out: int) -> Measured:
    """What each campaign teaches in each regime, as a tidy frame with `COLUMNS`.

    slow_drift: the learning rate of slow drift, as a fraction of the profile's
    train, held_out: how many runs describe each regime; at the profile's own rates they are the first of the campaign's
    left_out: how many examples of the first held-out run are left out, one at a time, and the GPT trained again; 0: none

    Statistics, over the held-out runs where nothing else is said (see `scoring.variation`):
        loss_before, loss_after             mean over tests and runs, nats per target token
        accuracy_before, accuracy_after     the same of accuracy, 0 to 1; only of tasks with labels
        first_component_share, counts_share shares of the deviations of all runs, 0 to 1
        counts_r2_dev                       R²dev of counts of labels and formats
        persistence_ratio                   MSE of persistence over MSE of the mean trajectory
        pool_examples_that_matter           how many examples of a curriculum move a test by themselves, mean over tests;
                                            some of them by chance (see `chance`)
        move_ratio                          how many times further an example moves tests that share a rare word with it
    The last two are of the profile's own rates, and only with `left_out`.

    Raises ConfigurationError where a campaign cannot be recorded so, or has fewer runs.
    """
    rows: list[tuple] = []
    sources: list[GPTDynamics] = []
    for campaign in campaigns:
        slow = slowly(campaign, slow_drift, train, held_out)
        own = campaign.study.profile.regime
        for regime, one in [(own, campaign), *([(SLOW_DRIFT, slow)] if own == LEARNING else [])]:
            found, used = _described(one, train, held_out)
            if one is campaign and left_out:
                more, retrained_runs = _left_out(one, left_out)
                found |= more
                used.append(retrained_runs)
            rows += [(campaign.model, campaign.task, regime, *pair) for pair in found.items()]
            sources += used
    return Measured(pd.DataFrame(rows, columns=COLUMNS), sources)


def slowly(campaign: Campaign, slow_drift: float, train: int, held_out: int) -> Campaign:
    """The campaign in the regime of slow drift, with so many runs; arguments as of `of_tasks`."""
    return campaign.with_(
        learning_rate=slow_drift * campaign.setting.recording.optimizer.learning_rate,
        metrics=["loss", "accuracy"],
        runs={"train": train, "validation": 0, "test": held_out},
        record_pool=False,
    )


def with_accuracy(campaign: Campaign) -> Campaign:
    """The campaign, with accuracies measured."""
    return campaign.with_(metrics=["loss", "accuracy"], record_pool=False)


def chance(campaign: Campaign, draws: int) -> str:
    """How many pool examples would seem to matter by chance, for a caption; draws: `left_out` of `of_tasks`."""
    size = campaign.setting.curriculum.subset_size
    normal, heavy = (size * variation.moved_by_chance(draws, freedom) for freedom in (None, HEAVY))
    return (
        f"Pool examples that matter: of the {size} of a curriculum, extrapolated from those left out. If none mattered, "
        f"{normal:.1f} would be expected by chance where noise is normal, and {heavy:.1f} where it has heavy tails (Student's "
        f"t with {HEAVY} degrees of freedom)."
    )


def _first(dynamics: GPTDynamics, train: int, held_out: int) -> GPTDynamics:
    """The first training and held-out runs, no others. Raises ConfigurationError if there are fewer."""
    parts = (("train", dynamics.split()[0], train), ("test", dynamics.split()[2], held_out))
    for split, runs, wanted in parts:
        if len(runs) < wanted:
            raise ConfigurationError(
                f"tasks: {wanted} {split} runs of {dynamics.task} are asked for, and {len(runs)} are recorded; ask for fewer"
            )
    return replace(dynamics, runs=tuple(run for _, runs, wanted in parts for run in runs.runs[:wanted]))


def _described(campaign: Campaign, train: int, test: int) -> tuple[dict[str, float], list[GPTDynamics]]:
    """The statistics of a campaign that need no further training but for accuracy, and the runs they are of."""
    dynamics = _first(campaign.dynamics("loss"), train, test)
    held_out = dynamics.split()[2]
    sources, found = [dynamics], {}
    found["loss_before"], found["loss_after"] = variation.before_and_after(held_out)
    if any(example.choices for example in campaign.texts.tests):
        measured = held_out
        if "accuracy" not in campaign.setting.metrics:
            measured = with_accuracy(campaign).record(held_out.curricula, ends_only=True)
            sources.append(measured)
        found["accuracy_before"], found["accuracy_after"] = variation.before_and_after(measured, "accuracy")
    found["first_component_share"] = variation.first_component_share(dynamics)
    found["counts_share"] = variation.counts_share(dynamics)
    found["counts_r2_dev"] = variation.counts_r2_dev(dynamics)
    found["persistence_ratio"] = variation.mean_errors(dynamics).ratio
    return found, sources


def _left_out(campaign: Campaign, draws: int) -> tuple[dict[str, float], GPTDynamics]:
    """What single examples of a curriculum do to single tests, by training without each of `draws` of them."""
    base, chosen, recorded, order = retrained(campaign, [1], draws)
    unchanged = base.runs[0].trajectories["loss"][-1].astype(np.float64)
    moves = recorded.trajectories("loss")[order, -1] - unchanged
    examples = [base.pool[position] for one in chosen for position in one.dropped]
    shared = variation.shared_words(examples, base.tests, base.pool)
    in_curriculum = len(base.runs[0].curriculum.used)
    found = {
        "pool_examples_that_matter": float(variation.moved(moves).mean() * in_curriculum),
        "move_ratio": variation.move_ratio(moves, shared),
    }
    return found, recorded
