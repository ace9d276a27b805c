"""A study's profile: what is trained on what, recorded how, and simulated by which methods.

The settings of tasks, models and recordings stand in their rooms (`tasks/settings.py`, ...), with their defaults.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.common.settings import Name, Settings
from gptfluence.models.settings import BUILTIN_MODELS, ModelConfig
from gptfluence.recording.settings import AdamW, CurriculumConfig, Generation, Metric, Recording, Runs
from gptfluence.simulators.options import MethodOptions, read_options
from gptfluence.tasks.settings import TaskConfig, unknown_task

LEARNING, SLOW_DRIFT = "learning", "slow drift"


class Setting(Settings):
    """A way to train: which GPTs on which tasks, from which curricula, with what recorded.

    In fine-tuning each task has GPTs of its own. In instruction tuning a GPT is trained on all tasks at once, with
    instructions, and tested on `test_tasks`.
    """

    models: list[str] = Field(min_length=1)  # the first is the default
    tasks: list[str] = Field(min_length=1)
    test_tasks: list[str] = []  # instruction tuning only; default: all
    pool_size: int | None = Field(None, ge=1)  # of each task only the first so many examples; None: all
    test_size: int | None = Field(None, ge=1)
    runs: Runs = Runs()
    unseen_runs: int = Field(3, ge=1)  # runs on examples that no simulator was fitted on, where they are asked for
    curriculum: CurriculumConfig = CurriculumConfig()
    recording: Recording = Recording()
    # loss: of every test example; bleu (0-100), rouge_l (0-1): of those with free text; accuracy (0-1): of those with
    # labels to choose from
    metrics: list[Metric] = Field(["loss"], min_length=1)
    generation: Generation = Generation()
    methods: list[str] = []  # which of the profile's simulators are compared in this setting; default: all
    simulators: dict[str, dict[str, Any]] = {}  # options that some of them have in this setting only

    @field_validator("metrics")
    @classmethod
    def _loss_is_always_recorded(cls, metrics: list[Metric]) -> list[Metric]:
        return ["loss", *(metric for metric in metrics if metric != "loss")]

    @property
    def model(self) -> str:
        return self.models[0]

    @property
    def tested_tasks(self) -> list[str]:
        return [task for task in self.tasks if not self.test_tasks or task in self.test_tasks]


class AnyAdamW(AdamW):
    """AdamW whose learning rate may be one number, or one for each task (in instruction tuning: for each model)."""

    learning_rate: float | dict[str, float] = AdamW.model_fields["learning_rate"].default  # type: ignore[assignment]

    @field_validator("learning_rate")
    @classmethod
    def _not_negative(cls, given: float | dict[str, float]) -> float | dict[str, float]:
        for name, rate in given.items() if isinstance(given, dict) else [("", given)]:
            if rate < 0:
                raise ValueError(f"{f'{name}: ' if name else ''}must not be negative, got {rate}")
        return given


class AnyRecording(Recording):
    optimizer: AnyAdamW = AnyAdamW()


class AnyCurriculum(CurriculumConfig):
    """Random curricula whose number of epochs may be one number, or one for each model."""

    epochs: int | dict[str, int] = CurriculumConfig.model_fields["epochs"].default  # type: ignore[assignment]

    @field_validator("epochs")
    @classmethod
    def _at_least_one(cls, given: int | dict[str, int]) -> int | dict[str, int]:
        for name, epochs in given.items() if isinstance(given, dict) else [("", given)]:
            if epochs < 1:
                raise ValueError(f"{f'{name}: ' if name else ''}must be 1 or more, got {epochs}")
        return given


class ProfileSetting(Setting):
    """A setting as a profile says it, where a number may differ from task to task or from model to model."""

    curriculum: AnyCurriculum = AnyCurriculum()
    recording: AnyRecording = AnyRecording()

    def resolved(self, *, task: str | None, model: str) -> Setting:
        """The setting of one campaign, with one learning rate and one number of epochs. task: None for a mixture

        Raises ConfigurationError if there is no value for this task or model.
        """
        one = model if task is None else task
        values = self.model_dump()
        rates = values["recording"]["optimizer"]
        rates["learning_rate"] = _value(rates["learning_rate"], one, "recording.optimizer.learning_rate")
        values["curriculum"]["epochs"] = _value(values["curriculum"]["epochs"], model, "curriculum.epochs")
        return Setting.model_validate(values)


def _value(given: Any, name: str, field: str) -> Any:
    if not isinstance(given, dict):
        return given
    if name not in given:
        raise ConfigurationError(unknown("name", name, given, where=f"{field}: "))
    return given[name]


def is_mixture(setting: str) -> bool:
    """Whether a setting trains on all its tasks at once: the one place that decides it."""
    return setting == "instruction_tuning"


class Profile(Settings):
    """A whole study."""

    name: str  # of its folders in figures/ and build/
    regime: Literal["learning", "slow drift"] = LEARNING  # in which its GPTs are fine-tuned (docs/glossary.md)
    title: str  # one line for captions: which models, which data; see `subject`
    seed: int = Field(0, ge=0)
    data_dir: Path = Path("data")  # a relative one: see `settings.located`
    tasks: dict[Name, TaskConfig]
    models: dict[Name, ModelConfig]
    settings: dict[Literal["fine_tuning", "instruction_tuning"], ProfileSetting]
    simulators: dict[Name, SerializeAsAny[MethodOptions]]  # by the name of an entry; `kind` says which method it is
    markov_orders: list[Annotated[int, Field(ge=1)]] = [1, 2, 3, 5, 10]  # compared in table 10; default: the paper's
    encoders: list[str] = ["minilm-cls", "minilm-mean", "index"]  # compared in figure 5; a model's name: its last token
    jobs_per_device: int = Field(1, ge=1)  # runs recorded at once on one GPU

    @field_validator("name")
    @classmethod
    def _names_folders(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", name):
            raise ValueError(
                f"{name!r} is to name folders: give it 1 to 80 of the letters a-z and A-Z, digits, _ . and -, a letter or digit first"
                " (the title may be any text)"
            )
        return name

    @property
    def subject(self) -> str:
        """What captions say that a figure is about: which models, which data, and the regime."""
        return self.title if self.title.endswith(self.regime) else f"{self.title}, {self.regime}"

    @model_validator(mode="before")
    @classmethod
    def _builtin_models(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("models", {}), dict):
            values = {**values, "models": {**BUILTIN_MODELS, **values.get("models", {})}}
        return values

    @model_validator(mode="before")
    @classmethod
    def _typed_methods(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("simulators"), dict):
            return values
        typed, problems = {}, []
        for name, given in values["simulators"].items():
            try:
                typed[name] = read_options(name, given)
            except ConfigurationError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))
        return {**values, "simulators": typed}

    @model_validator(mode="after")
    def _names_exist(self) -> Profile:
        for name, setting in self.settings.items():
            where = f"settings.{name}"
            for model in setting.models:
                if model not in self.models:
                    raise ValueError(f"{where}.models: {unknown('model', model, self.models)}")
            for task in setting.tasks:
                if task not in self.tasks:
                    raise ValueError(f"{where}.tasks: {unknown_task(task, self.tasks)}")
            if setting.test_tasks and not is_mixture(name):
                raise ValueError(f"{where}.test_tasks: in fine-tuning each task is tested on itself; leave it out")
            for task in setting.test_tasks:
                if task not in setting.tasks:
                    raise ValueError(f"{where}.test_tasks: {unknown('task', task, setting.tasks)}")
            for method in setting.methods:
                if method not in self.simulators:
                    raise ValueError(f"{where}.methods: {unknown('method', method, self.simulators)}")
            for method in setting.simulators:
                try:
                    self.options(method, name)
                except ConfigurationError as error:
                    raise ValueError(f"settings.{name}.{error}") from None
            rates, epochs = setting.recording.optimizer.learning_rate, setting.curriculum.epochs
            kind, keys = ("model", setting.models) if is_mixture(name) else ("task", setting.tasks)
            for field, values, of, wanted in (
                ("recording.optimizer.learning_rate", rates, kind, keys),
                ("curriculum.epochs", epochs, "model", setting.models),
            ):
                for key in wanted if isinstance(values, dict) else ():
                    if key not in values:
                        raise ValueError(
                            f"{where}.{field}: no value for {of} {key!r}; give one number or one for each {of}"
                        )
        return self

    def options(self, method: str, setting: str | None = None) -> MethodOptions:
        """The options of a method of this profile; in a setting that gives it some of its own, with these.

        Raises ConfigurationError that names the field, also for a method that the profile does not have.
        """
        if method not in self.simulators:
            raise ConfigurationError(unknown("method", method, self.simulators, where=f"simulators.{method}: "))
        entry = self.simulators[method]
        own = self.settings[setting].simulators.get(method) if setting in self.settings else None  # type: ignore[index]
        return entry if not own else read_options(method, {"kind": entry.kind, **entry.arguments(), **own})
