"""The hyperparameters of a profile beside the paper's, one table for each of the paper's tables 5 to 9."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from gptfluence import paper
from gptfluence.drawing import names
from gptfluence.drawing.typeset import Table
from gptfluence.models import encoders
from gptfluence.models.settings import PublishedModel
from gptfluence.profile.schema import Profile, ProfileSetting, Setting
from gptfluence.simulators import fitting

COLUMNS = ["table", "parameter", "paper", "profile", "differs"]
NOT_USED = "–"  # the profile has no such part
AS_PUBLISHED = "as published"  # the paper's own runs: nothing is trained
THE_MODELS = "the model's"  # what the model was built for; not known without it
Rows = Iterator[tuple[str, Any, Any]]  # (parameter, the paper's value, the profile's)


def compared(profile: Profile) -> dict[int, pd.DataFrame]:
    """One row for each hyperparameter of the paper's tables 5 to 9: number of the table -> its frame.

    A frame has columns table (number), parameter, paper and profile (as text), differs. What a profile lacks ("–"), and
    what the paper's own published runs were trained with, does not differ. A parameter with a value for each model or task
    has a row for each pair of values; of models, only for the sizes that the profile's are or stand for.
    """
    given = paper.hyperparameters()
    found: dict[int, list[tuple[str, Any, Any]]] = {}
    for number, name in ((5, "instruction_tuning"), (7, "fine_tuning")):
        setting = profile.settings.get(name)  # type: ignore[call-overload]
        gpt = _Trained(profile, setting, given[f"{name}_gpt"])
        found[number] = [*gpt.rows(), *_generation(profile, setting, given["generation"])]
    for number, name, part, settings in (
        (6, "gptfluence", "gptfluence_instruction_tuning", ["instruction_tuning"]),
        (8, "gptfluence", "gptfluence_fine_tuning", ["fine_tuning"]),
        (9, "simfluence", "simfluence", ["fine_tuning", "instruction_tuning"]),
    ):
        setting = next((one for one in settings if one in profile.settings and name in profile.simulators), None)
        own = profile.options(name, setting).arguments() if setting else {}
        found[number] = list(_simulator(profile, own, given[part]))
    return {number: _frame(number, found[number]) for number in sorted(found)}


def table(frame: pd.DataFrame) -> Table:
    """A frame of `compared` in print; what differs is bold and marked."""
    rows = [[r.parameter, r.paper, r.profile, "≠" if r.differs else ""] for r in frame.itertuples()]
    bold = np.array([[False, False, r.differs, False] for r in frame.itertuples()])
    columns = [("Hyperparameter", ""), ("paper", ""), ("profile", ""), ("", "")]
    notes = (
        "≠ differs from the paper. – not part of this profile.",
        "Values for each model: those of the sizes that the profile's models are or stand for.",
    )
    return Table(columns, rows, frame, bold, stubs=1, notes=notes)


def _frame(number: int, rows: list[tuple[str, Any, Any]]) -> pd.DataFrame:
    printed = [(number, *one) for parameter, theirs, ours in rows for one in _each(parameter, theirs, ours)]
    frame = pd.DataFrame(printed, columns=COLUMNS[:-1])
    known = ~frame["profile"].isin([NOT_USED, AS_PUBLISHED, THE_MODELS])
    return frame.assign(differs=known & (frame["paper"].str.lower() != frame["profile"].str.lower()))


@dataclass(frozen=True)
class _Trained:
    """How the GPTs of a setting are trained, beside the paper's; setting None: the profile has no such setting."""

    profile: Profile
    setting: ProfileSetting | None
    theirs: Mapping[str, Any]

    @property
    def models(self) -> list[str]:
        return self.setting.models if self.setting else []

    @property
    def sizes(self) -> dict[str, str]:
        """The paper's names of models that the profile's are or stand for -> the profile's."""
        return {names.paper_model(model): model for model in self.models if names.size(model)}

    @property
    def mixed(self) -> bool:
        """Whether this is instruction tuning, on a mixture of tasks."""
        return "mixture" in self.theirs

    def rows(self) -> Rows:
        yield from self._trained_on()
        yield from self._optimizer()
        yield from self._length_of_runs()
        yield from self._numbers()

    def ours(self, value: Any) -> Any:
        """The profile's value, unless it trains nothing."""
        if self.setting is None:
            return NOT_USED
        published = all(isinstance(self.profile.models[model], PublishedModel) for model in self.models)
        return AS_PUBLISHED if published else value

    def resolved(self, task: str = "", model: str = "") -> Setting:
        """The setting for one task and one model (default: its first), with one learning rate and number of epochs."""
        if self.setting is None:
            raise ValueError("the profile has no such setting")
        task_of = None if self.mixed else task or self.setting.tasks[0]
        return self.setting.resolved(task=task_of, model=model or self.models[0])

    def chosen(self, values: Any) -> Any:
        """The paper's values for those models that the profile has (for all if it has none)."""
        if not isinstance(values, Mapping):
            return values
        return {name: values[name] for name in self.sizes if name in values} or values

    def _trained_on(self) -> Rows:
        if not self.mixed:
            model = getattr(self.profile.models[self.models[0]], "gpt", self.models[0]) if self.models else NOT_USED
            yield "model", self.theirs["model"].rpartition("/")[2], model
            return
        known, own = set(self.theirs["mixture"]), set(self.setting.tasks if self.setting else ())
        others = f" and {len(own - known)} others" if own - known else ""
        count = len(known) if own == known else f"{len(own & known)} of them{others}"
        yield "tasks of the mixture", len(known), count if self.setting else NOT_USED

    def _optimizer(self) -> Rows:
        own = self.resolved().recording.optimizer if self.setting else None
        yield "optimizer", self.theirs["optimizer"]["name"], self.ours(type(own).__name__)
        for key in ("betas", "eps", "weight_decay"):
            yield _words(key), self.theirs["optimizer"][key], self.ours(_value(getattr(own, key, None)))
        rates = self.theirs["learning_rate"]
        tasks = [task for task in rates if self.setting and task in self.setting.tasks]
        if self.mixed:
            each = {name: self.resolved(model=model) for name, model in self.sizes.items()}
        else:
            each = {task: self.resolved(task) for task in tasks}
        wanted = self.chosen(rates) if self.mixed else {task: rates[task] for task in tasks} or rates
        own_rates = {name: setting.recording.optimizer.learning_rate for name, setting in each.items()}
        yield "learning rate", wanted, self.ours(own_rates)
        schedule = self.theirs["schedule"]
        yield "schedule", schedule["name"], self.ours(getattr(own, "schedule", None))
        yield "warm-up steps", schedule["warmup_steps"], self.ours(getattr(own, "warmup_steps", None))

    def _length_of_runs(self) -> Rows:
        own, theirs = (self.setting.curriculum if self.setting else None), self.theirs
        yield "batch size", theirs["batch_size"], self.ours(getattr(own, "batch_size", None))
        epochs = {name: self.resolved(model=model).curriculum.epochs for name, model in self.sizes.items()}
        first = self.resolved().curriculum.epochs if own else 0
        yield "epochs", self.chosen(theirs["epochs"]), self.ours(epochs if self.mixed else first)
        subset = own.subset_size * (len(self.setting.tasks) if self.mixed else 1) if own and self.setting else 0
        per_epoch = subset // own.batch_size if own else 0
        if self.mixed:
            steps = {name: per_epoch * count for name, count in epochs.items()}
            yield "steps", self.chosen(theirs["steps"]), self.ours(steps)
            yield "training examples a run", theirs["instances_per_run"], self.ours(subset)
        else:
            yield "steps", theirs["steps"], self.ours(per_epoch * first)
            yield "training examples a task", theirs["pool_size"], self.ours(_pool_size(self.profile, self.setting))
            yield "training examples a run", theirs["subset_size"], self.ours(subset)

    def _numbers(self) -> Rows:
        """Precision, lengths of texts, numbers of runs, and LoRA."""
        recording, theirs = (self.setting.recording if self.setting else None), self.theirs
        yield "precision", theirs["precision"], self.ours(getattr(recording, "precision", None))
        lengths = theirs["max_sequence_length"]
        if self.mixed:
            limit: Any = {name: _longest(self.profile, model) for name, model in self.sizes.items()}
            lengths = {name: lengths.get(name, lengths["default"]) for name in limit} or lengths
        else:
            limit = _longest(self.profile, self.models[0]) if self.models else NOT_USED
        yield "longest sequence, tokens", lengths, self.ours(limit)
        runs, counts = (self.setting.runs if self.setting else None), theirs["runs"]
        fitting_runs = counts.get("train_and_validation") or f"{counts['train']} + {counts['validation']}"
        both = (
            (runs.train + runs.validation if self.mixed else f"{runs.train} + {runs.validation}") if runs else NOT_USED
        )
        yield "training + validation runs", fitting_runs, both
        yield "test runs", counts["test"], runs.test if runs else NOT_USED
        if "lora" in theirs:
            yield self._lora(theirs["lora"])

    def _lora(self, theirs: Mapping[str, Any]) -> tuple[str, Any, Any]:
        large = [model for model in self.models if names.paper_model(model) == theirs["applies_to"]]
        own = getattr(self.profile.models[large[0]], "lora", None) if large else None
        value = f"rank {own.rank}, alpha {own.alpha:g}, dropout {own.dropout:g}" if own else "none"
        text = f"rank {theirs['rank']}, alpha {theirs['alpha']}, dropout {theirs['dropout']}"
        return f"LoRA of {theirs['applies_to']}", text, self.ours(value) if large else NOT_USED


def _generation(profile: Profile, setting: Setting | None, theirs: Mapping[str, Any]) -> Rows:
    written = setting is not None and {"bleu", "rouge_l"} & set(setting.metrics)
    published = setting is not None and isinstance(profile.models[setting.model], PublishedModel)
    own = setting.generation if setting and written and not published else None
    lacking = AS_PUBLISHED if written and published else NOT_USED
    for key in ("temperature", "top_p"):
        yield f"generation: {_words(key)}", theirs[key], getattr(own, key, lacking)
    yield "generation: every so many steps", 1, getattr(own, "every", lacking)  # section 4.1: at every step


def _simulator(profile: Profile, own: Mapping[str, Any], theirs: Mapping[str, Any]) -> Rows:
    """A simulator of a profile. own: its options, defaults included; empty if the profile has none."""
    trained = bool(own) and own.get("method") != "closed_form"
    torch_defaults = inspect.signature(torch.optim.AdamW).parameters

    def ours(key: str) -> Any:
        return own.get(key, NOT_USED) if trained else NOT_USED

    def if_trained(value: Any) -> Any:
        return value if trained else NOT_USED

    yield "what is predicted: value, or deviation from the mean", "value", own.get("target", NOT_USED)
    yield "optimizer", theirs["optimizer"]["name"], ours("optimizer")
    for key in ("betas", "eps"):
        yield _words(key), theirs["optimizer"][key], if_trained(_value(torch_defaults[key].default))
    yield "L2 strength", theirs["l2_lambda"], ours("weight_decay")
    rate = theirs["learning_rate"]
    if isinstance(rate, Mapping):
        setting = profile.settings.get("instruction_tuning")
        sizes = [size for m in (setting.models if setting else ()) if (size := names.paper_model(m)) in rate]
        rate = {size: rate[size] for size in sizes} or rate
        own_rate = dict.fromkeys(rate, own["learning_rate"]) if own and sizes else ours("learning_rate")
        yield "learning rate", rate, own_rate
    else:
        yield "learning rate", rate, ours("learning_rate")
    yield "schedule", theirs["schedule"]["name"], if_trained(_schedule())
    yield "warm-up steps (here at most a tenth of all)", theirs["schedule"]["warmup_steps"], ours("warmup_steps")
    yield "batch size, transitions", theirs["batch_size"], ours("batch_size")
    yield "epochs at most", theirs["max_epochs"], ours("max_epochs")
    yield "early stopping", theirs["early_stopping"], if_trained(own.get("patience") is not None)
    if "encoder" in theirs:
        encoder = own.get("encoder", NOT_USED)
        same = encoder == encoders.DEFAULT
        longest = encoders.MAX_TOKENS if own else NOT_USED
        yield "encoder", theirs["encoder"].rpartition("/")[2], encoders.MINILM.rpartition("/")[2] if same else encoder
        yield "encoder's longest text, tokens", theirs["encoder_max_sequence_length"], longest
        yield "Markov order", theirs["markov_order"], ours("markov_order")
    yield "precision", theirs["precision"], _precision() if own else NOT_USED
    yield "seed", theirs["seed"], ours("seed")


def _schedule() -> str:
    """The schedule that simulators are fitted with, told from its factors."""
    linear = [fitting.schedule(update, 10, 0) for update in range(10)]
    return "linear_decay" if np.allclose(linear, np.linspace(1, 0.1, 10)) else "another"


def _precision() -> str:
    """The precision of the simulators' weights: that in which torch makes them."""
    return {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}[torch.get_default_dtype()]


def _longest(profile: Profile, model: str) -> Any:
    """Tokens that a model of the profile is given at most."""
    given = profile.models[model]
    return getattr(given, "max_length", None) or getattr(given, "positions", None) or THE_MODELS


def _pool_size(profile: Profile, setting: Setting | None) -> int:
    """Training examples of the setting's task that has the fewest."""
    sizes = [getattr(profile.tasks[task], "pool_size", 0) for task in setting.tasks] if setting else []
    least = min(sizes, default=0)
    return min(least, setting.pool_size) if setting and setting.pool_size else least


def _value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _words(key: str) -> str:
    return {"weight_decay": "weight decay", "top_p": "top-p"}.get(key, key)


def _each(parameter: str, theirs: Any, ours: Any) -> Iterator[tuple[str, str, str]]:
    """(parameter, paper's value, profile's) as text; of values by name, a row for the names that agree in both."""
    keys = [*theirs] if isinstance(theirs, Mapping) else [*ours] if isinstance(ours, Mapping) else []
    pairs: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        pair = tuple(_text(value.get(key) if isinstance(value, Mapping) else value) for value in (theirs, ours))
        pairs.setdefault(pair, []).append(str(key).removeprefix("pythia-"))  # type: ignore[arg-type]
    if not keys:
        pairs = {(_text(theirs), _text(ours)): []}
    for (paper_value, own_value), found in pairs.items():
        yield f"{parameter} ({', '.join(found)})" if len(pairs) > 1 else parameter, paper_value, own_value


def _text(value: Any) -> str:
    """A value in print, the same for values that are the same."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}" if abs(value) < 1 else f"{value:.10g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "all" if value is None else str(value)
