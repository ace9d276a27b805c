"""Where the runs of a campaign come from: recorded here, or published with the paper and imported.

Both give `GPTDynamics`. Only a GPT that is here can be trained on further curricula.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptfluence.common.errors import ConfigurationError
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import PublishedModel
from gptfluence.profile.schema import Setting
from gptfluence.published import importing
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, Source, join_tests
from gptfluence.recording.record import Wanted, record_missing
from gptfluence.recording.settings import DrawnCurricula, Metric
from gptfluence.study.texts import Texts


class RunSource(Protocol):
    """What a campaign asks for its runs."""

    trains: bool  # whether the GPT is here and can be trained on further curricula

    def of_profile(self, setting: Setting, texts: Texts | None) -> GPTDynamics:
        """The runs that the profile asks for, by its names."""

    def of_curricula(
        self,
        setting: Setting,
        texts: Texts | None,
        curricula: Mapping[str, Curriculum] | Sequence[str],
        *,
        unseen: str | None = None,
        ends_only: bool = False,
    ) -> GPTDynamics:
        """Runs of these curricula, by name, or of those that are drawn for these names."""


@dataclass(frozen=True)
class Recorded:
    """Runs that are recorded here when they are missing.

    name: of the setting, which names the folder; jobs: runs recorded at once on the CPU
    """

    name: str
    model: ModelSource
    artifacts: Path
    seed: int
    jobs: int
    jobs_per_device: int
    trains = True

    def of_profile(self, setting: Setting, texts: Texts | None) -> GPTDynamics:
        assert texts is not None
        return self.of_curricula(setting, texts, setting.runs.names)

    def of_curricula(
        self,
        setting: Setting,
        texts: Texts | None,
        curricula: Mapping[str, Curriculum] | Sequence[str],
        *,
        unseen: str | None = None,
        ends_only: bool = False,
    ) -> GPTDynamics:
        wanted = self.wanted(setting, texts, curricula, unseen=unseen, ends_only=ends_only)
        return record_missing(wanted, jobs=self.jobs, jobs_per_device=self.jobs_per_device)

    def wanted(
        self,
        setting: Setting,
        texts: Texts | None,
        curricula: Mapping[str, Curriculum] | Sequence[str],
        *,
        unseen: str | None = None,
        ends_only: bool = False,
    ) -> Wanted:
        """What `of_curricula` records."""
        assert texts is not None
        return Wanted(
            setting=self.name if unseen is None else f"{self.name}-unseen_{unseen}",
            texts=texts.task,
            source=Source(self.model, self.artifacts),
            recording=setting.recording,
            drawn=DrawnCurricula(**setting.curriculum.model_dump(), groups=list(texts.groups) or None),
            metrics=metrics_of({bool(example.choices) for example in texts.task.tests}, setting.metrics),
            generation=setting.generation,
            seed=self.seed,
            names=list(curricula),
            curricula=curricula if isinstance(curricula, Mapping) else {},
            ends_only=ends_only,
        )


@dataclass(frozen=True)
class Imported:
    """Runs that were published and imported; the GPT itself is not here.

    tasks: those that the campaign is tested on, whose runs lie in folders of their own
    """

    name: str
    profile: str
    model: str
    config: PublishedModel
    artifacts: Path
    tasks: tuple[str, ...]
    trains = False

    def of_profile(self, setting: Setting, texts: Texts | None) -> GPTDynamics:
        parts = []
        for task in self.tasks:
            folder = importing.find(self.artifacts / "dynamics", self.config, setting=self.name, task=task)
            seeds = self.config.seeds[task].model_dump() if task in self.config.seeds else None
            parts.append(importing.load(folder, setting.runs, seeds))
        return parts[0] if len(parts) == 1 else join_tests("mixture", parts)

    def of_curricula(self, *_: object, **__: object) -> GPTDynamics:
        raise ConfigurationError(
            f"profile {self.profile!r}: model {self.model!r} has published runs only and cannot be trained; record "
            "with a profile whose model has another `source`"
        )


def metrics_of(labelled: set[bool], metrics: Sequence[Metric]) -> list[Metric]:
    """Those metrics that some of the tests have: accuracy needs labels, BLEU and ROUGE-L free text.

    labelled: whether targets are labels, of each test
    """
    needed = {"loss": labelled, "accuracy": {True}, "bleu": {False}, "rouge_l": {False}}
    return [metric for metric in metrics if needed[metric] & labelled]
