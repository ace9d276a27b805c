"""All weights of a GPT fine-tuned, or LoRA's adapters alone: both by transformers' Trainer, recorded by the callback.

The two ways train the same GPT on the same curricula, with rates of their own. Simulators are fitted on a few of each way's runs.
Held-out runs say how much of a curriculum's effect they predict (R2_dev), and curricula that leave examples out, really
trained, whether they rank these rightly (linear datamodelling score).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from gptfluence.experiments import shifted
from gptfluence.experiments.leave_out import counterfactuals
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import LoRA
from gptfluence.recording.curriculum import Curriculum
from gptfluence.scoring import deviations
from gptfluence.scoring.intervals import Interval
from gptfluence.simulators.options import Variant
from gptfluence.study.campaign import Campaign, Method
from gptfluence.trainers.tuned import Tuned

FULL, ADAPTERS = "full", "lora"
WAYS = {FULL: "all weights trained", ADAPTERS: "LoRA"}
LORA = LoRA(rank=8, alpha=16, dropout=0, target_modules="all-linear")
# LoRA's learning rate, relative to that of all weights. Chosen on other runs (`benchmarks/lora_runs.py develop`), before any
# run that is shown: see docs/your_training.md
TIMES = 20.0
EVERY_COORDINATE = 10**9
KINDS = ("alike", "few")
LEFT_OUT = "left out"
COUNTS = {"train": 4, "validation": 1, "held_out": 6, "sets": 16}  # of curricula, as `Drawn.of` takes them


def ways(campaign: Campaign, *, times: float = TIMES, lora: LoRA = LORA) -> dict[str, Tuned]:
    """The campaign's GPT, trained in each of `WAYS`: all weights as the profile says, adapters at `times` that learning rate."""
    source, recording = campaign.study.model(campaign.model), campaign.setting.recording
    plain, adapted = (
        ModelSource(source.name, source.config.model_copy(update={"lora": given}), source.cache, source.corpus)
        for given in (None, lora)
    )
    rate = times * recording.optimizer.learning_rate
    faster = recording.model_copy(update={"optimizer": recording.optimizer.model_copy(update={"learning_rate": rate})})
    common = {"texts": campaign.texts, "trainings": campaign.study.artifacts / "trainings"}
    return {
        FULL: Tuned(way=FULL, source=plain, recording=recording, **common),
        ADAPTERS: Tuned(way=ADAPTERS, source=adapted, recording=faster, **common),
    }


@dataclass(frozen=True)
class Drawn:
    """The curricula of both ways.

    train: of the runs that simulators are fitted on; validation: of those that select; held_out: kind -> curricula
    without: the first held-out run's, with examples left out
    """

    train: list[Curriculum]
    validation: list[Curriculum]
    held_out: dict[str, list[Curriculum]]
    without: list[Curriculum]

    @classmethod
    def of(cls, campaign: Campaign, *, train: int, validation: int, held_out: int, sets: int) -> Drawn:
        """The campaign's numbers of examples, `held_out` curricula of each of `KINDS`, `sets` that leave out a quarter."""
        first = train + validation
        alike = shifted.draw(campaign, "alike", first + held_out)
        others = {kind: shifted.draw(campaign, kind, held_out) for kind in KINDS if kind != "alike"}
        base = alike[first]
        seed = [campaign.study.profile.seed, shifted.seed_of(LEFT_OUT, campaign.task)]
        chosen = counterfactuals(base, [max(1, len(base.used) // 4)], sets, seed=seed)
        return cls(
            alike[:train],
            alike[train:first],
            {"alike": alike[first:], **others},
            [one.curriculum for one in chosen],
        )

    def parts(self) -> Iterator[tuple[list[Curriculum], bool]]:
        """All that are to be recorded, the most needed first, and whether at their ends only."""
        yield [*self.train, *self.validation], False
        for curricula in self.held_out.values():
            yield curricula, False
        yield self.without, True


def variants(campaign: Campaign, way: str, methods: Sequence[Method], steps: int) -> list[Variant]:
    """The profile's methods; the tangent simulator takes gradients after a sixth and a half of the run, too.

    Before training LoRA's first factors have none. Of adapters all coordinates are kept.
    """
    changes: dict[str, Any] = {"checkpoints": sorted({max(1, steps // 6), max(1, steps // 2)})}
    if way == ADAPTERS:
        changes["coordinates"] = EVERY_COORDINATE
    found = [campaign.variant(method) for method in methods]
    return [replace(one.with_(**changes), variant=one.variant) if one.kind == "tangent" else one for one in found]


def measured(campaign: Campaign, tuned: Tuned, drawn: Drawn, methods: Sequence[Method]) -> shifted.Measured:
    """Every method, fitted on a way's training runs, on its held-out runs and on the curricula that leave examples out.

    methods: simulators of the profile. Returns a frame with columns way, task, model, method, kind, statistic (r2_dev, or lds: the
    linear datamodelling score of final losses), runs, value, low, high, undefined, and the recorded runs.
    """
    fitted_on, selecting = tuned.record(drawn.train), tuned.record(drawn.validation)
    held_out = {kind: tuned.record(curricula) for kind, curricula in drawn.held_out.items()}
    without = tuned.record(drawn.without, ends_only=True)
    mean = shifted.mean_trajectory(fitted_on, drawn.train[0].steps)
    rows = []
    for variant in variants(campaign, tuned.way, methods, drawn.train[0].steps):
        simulator = variant.create()
        # a Trainer's runs know the tokens of their examples; other methods go by the texts, which know labels as well
        pool = fitted_on.pool if "tangents" in simulator.needs else tuned.texts.pool
        train_, select, of_sets = (replace(runs, pool=pool) for runs in (fitted_on, selecting, without))
        simulator.bind(train_, load_encoder=campaign.study.encoder).fit(train_, select)
        scores = []
        for kind, runs in held_out.items():
            runs = replace(runs, pool=pool)
            scores.append(
                (kind, "r2_dev", len(runs), shifted.statistics(simulator.predict(runs), runs, mean)["r2_dev"])
            )
        final = [values[:, -1] for values in (simulator.predict(of_sets), of_sets.trajectories("loss"))]
        scores.append((LEFT_OUT, "lds", len(of_sets), deviations.linear_datamodelling_score(*final)))
        common = (tuned.way, tuned.texts.name, campaign.model, variant.method)
        rows += [(*common, *score[:3], *score[3]) for score in scores]
    columns = [*("way", "task", "model", "method", "kind", "statistic", "runs"), *Interval._fields]
    return shifted.Measured(pd.DataFrame(rows, columns=columns), [fitted_on, selecting, *held_out.values(), without])
