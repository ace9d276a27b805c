"""How runs are drawn, trained and measured, as a profile says it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from gptfluence.common.errors import ConfigurationError
from gptfluence.common.settings import Settings

SAME_RATE = 1e-3  # relative; schedules are computed in float64 and recorded in float32


class AdamW(Settings):
    """The GPT's optimizer and schedule (paper, table 7). Weight decay spares biases and norms, as the HF Trainer does."""

    learning_rate: float = Field(5e-7, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(1e-3, ge=0)
    # recorded: of no rule that is known here; `rates` are those of a run that was recorded
    schedule: Literal["linear_decay", "constant", "cosine", "recorded"] = "linear_decay"
    warmup_steps: int = Field(0, ge=0)
    max_gradient_norm: float | None = Field(None, gt=0)  # None: gradients are not clipped
    rates: tuple[float, ...] | None = None  # of each update, where the schedule is `recorded`

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without rates that there are none of: what was recorded before there could be any keeps its name."""
        return {name: value for name, value in write(self).items() if name != "rates" or value is not None}

    def learning_rates(self, steps: int) -> list[float]:
        """The rate of each update: warm-up from 0, then constant, or linear or by a cosine to 0 after the last one, as in
        transformers.

        Raises ConfigurationError for recorded rates that are those of another number of steps.
        """
        if self.schedule == "recorded":
            if self.rates is None:
                raise ConfigurationError(
                    "learning rates follow no schedule that is known here, and these runs do not share theirs; load runs that do "
                    "(load_dynamics(folder, names))"
                )
            if len(self.rates) != steps:
                raise ConfigurationError(
                    "learning rates follow no schedule that is known here, and are known for the "
                    f"{len(self.rates)} steps of the recorded run, not for {steps} steps; change the curriculum so that it keeps "
                    "its steps (`masked`), or give an optimizer with a schedule (`trained_with`)"
                )
            return list(self.rates)
        rate, rates = self.learning_rate, []
        for step in range(steps):
            if step < self.warmup_steps:
                factor = step / self.warmup_steps
            elif self.schedule == "linear_decay":
                factor = (steps - step) / max(1, steps - self.warmup_steps)
            elif self.schedule == "cosine":
                factor = 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / max(1, steps - self.warmup_steps)))
            else:
                factor = 1.0
            rates.append(rate * factor)
        return rates

    def with_rates_of(self, runs: Sequence[np.ndarray]) -> Self:
        """These settings with the rates that were recorded, float [steps] of each run, where the schedule gives others.

        Runs that differ in their rates are left to the schedule.
        """
        follows = [
            self.schedule != "recorded" and np.allclose(rates, self.learning_rates(len(rates)), rtol=SAME_RATE)
            for rates in runs
        ]
        if all(follows) or any(not np.array_equal(rates, runs[0]) for rates in runs):
            return self
        return self.model_copy(update={"schedule": "recorded", "rates": tuple(map(float, runs[0]))})


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


Tokenization = Literal["english", "unicode"]


class Generation(Settings):
    """How the texts are generated that BLEU and ROUGE-L score (paper, section 4.1: sampled, temperature 0.2, top-p 0.95)."""

    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.2, ge=0)  # 0: greedy
    top_p: float = Field(0.95, gt=0, le=1)
    every: int = Field(1, ge=1)  # steps between texts; a score stands until the next one, and the last step has its own
    tokenization: Tokenization | None = None  # of what is scored (`text_metrics`); None: as the references ask for

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the tokenization that texts ask for: what was recorded before it could be chosen keeps its name."""
        return {name: value for name, value in write(self).items() if name != "tokenization" or value}

    def due(self, step: Any, last: int) -> Any:
        """Whether `every` asks for a measurement after a step, int or int [steps], of a run that ends with `last`."""
        return (step % self.every == 0) | (step == last)


class CurriculumConfig(Settings):
    """Random curricula: `subset_size` examples of the pool (instruction tuning: of each task), shuffled in each epoch."""

    subset_size: int = Field(128, ge=1)
    batch_size: int = Field(4, ge=1)
    epochs: int = Field(3, ge=1)


Metric = Literal["loss", "bleu", "rouge_l", "accuracy"]


class Runs(Settings):
    """How many runs fit the simulators, select among their epochs, and are held out."""

    train: int = Field(25, ge=1)
    validation: int = Field(2, ge=0)
    test: int = Field(5, ge=0)

    @property
    def names(self) -> list[str]:
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        return [f"{split}-{index:03d}" for split, count in counts.items() for index in range(count)]


class DrawnCurricula(CurriculumConfig):
    """How the curricula of a folder's runs are drawn, of a mixture with the sizes of its parts."""

    groups: list[int] | None = None  # instruction tuning: how many examples of the pool each task has, in order


class ModelIdentity(Settings):
    """A GPT by its name and by everything its numbers depend on (`ModelSource.identity`)."""

    name: str
    identity: dict[str, Any]


class RunSpec(Settings):
    """What the runs of a folder are recorded from: its `spec.json`, and by its hash the folder's name.

    Fields that later versions added are written only if they differ from their defaults, so that names stay as they were.
    """

    format: int
    setting: str
    task: str
    pool_fingerprint: str
    tests_fingerprint: str
    model: ModelIdentity
    recording: Recording
    curriculum: DrawnCurricula | None = None  # None: every curriculum is given
    seed: int
    metrics: list[Metric] = ["loss"]
    ends_only: bool = False  # measured before the first and after the last step only
    generation: Generation | None = None  # if texts are scored
    dropout: float = 0.0  # the highest that a Trainer trained with; this package's recorder finds it in the model

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as they are written and hashed."""
        values = json.loads(self.model_dump_json())
        if set(self.metrics) == {"loss"}:
            del values["metrics"]
        else:
            values["metrics"] = sorted(self.metrics)
        for field in ("ends_only", "generation", "dropout"):
            if not values[field]:
                del values[field]
        if values["curriculum"] and not values["curriculum"]["groups"]:
            del values["curriculum"]["groups"]
        return values
