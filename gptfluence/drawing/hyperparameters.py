"""The hyperparameters of a profile beside the paper's (tables 5 to 9)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from gptfluence import paper
from gptfluence.drawing import names
from gptfluence.drawing.typeset import Table
from gptfluence.models import encoders
from gptfluence.models.settings import PublishedModel
from gptfluence.profile.schema import Profile, Setting

COLUMNS = ["table", "of", "parameter", "paper", "profile", "differs"]
NOT_USED = "–"  # the profile has no such part
AS_PUBLISHED = "as published"  # the paper's own runs: nothing is trained
THE_MODELS = "the model's"  # what the model was built for; not known without it
TITLES = {
    5: "5: GPT, instruction tuning",
    6: "6: GPTfluence, instruction tuning",
    7: "7: GPT, fine-tuning",
    8: "8: GPTfluence, fine-tuning",
    9: "9: Simfluence",
}


def compared(profile: Profile) -> pd.DataFrame:
    """One row for each hyperparameter of the paper's tables 5 to 9.

    Returns a frame: table (number), of (what the table is about), parameter, paper and profile (as text), differs. What a
    profile lacks ("–"), and what the paper's own published runs were trained with, does not differ. A parameter with a
    value for each model or task has a row for each pair of values; of models, only for the sizes that the profile's are or
    stand for.
    """
    given = paper.hyperparameters()
    rows: list[tuple[int, str, Any, Any]] = []
    for table, setting, theirs in (
        (5, "instruction_tuning", given["instruction_tuning_gpt"]),
        (7, "fine_tuning", given["fine_tuning_gpt"]),
    ):
        chosen = profile.settings.get(setting)  # type: ignore[call-overload]
        rows += [(table, *row) for row in _gpt(profile, chosen, theirs)]
        rows += [(table, *row) for row in _generation(profile, chosen, given["generation"])]
    for table, name, part, settings in (
        (6, "gptfluence", "gptfluence_instruction_tuning", {"instruction_tuning"}),
        (8, "gptfluence", "gptfluence_fine_tuning", {"fine_tuning"}),
        (9, "simfluence", "simfluence", {"fine_tuning", "instruction_tuning"}),
    ):
        used = name in profile.simulators and bool(settings & set(profile.settings))
        rows += [(table, *row) for row in _simulator(profile, name if used else None, given[part])]
    printed = [(table, TITLES[table], *one) for table, parameter, a, b in rows for one in _each(parameter, a, b)]
    frame = pd.DataFrame(printed, columns=COLUMNS[:-1])
    known = ~frame["profile"].isin([NOT_USED, AS_PUBLISHED, THE_MODELS])
    frame["differs"] = known & (frame["paper"].str.lower() != frame["profile"].str.lower())
    return frame.sort_values("table", kind="stable", ignore_index=True)


def table(frame: pd.DataFrame) -> Table:
    """The rows of `compared` in print; what differs is bold and marked."""
    rows = [[r.of, r.parameter, r.paper, r.profile, "≠" if r.differs else ""] for r in frame.itertuples()]
    bold = np.array([[False, False, False, r.differs, False] for r in frame.itertuples()])
    columns = [("Table of the paper", ""), ("Hyperparameter", ""), ("paper", ""), ("profile", ""), ("", "")]
    notes = (
        "≠ differs from the paper. – not part of this profile.",
        "Values for each model: those of the sizes that the profile's models are or stand for.",
    )
    return Table(columns, rows, frame, bold, stubs=2, notes=notes)


def reading(frame: pd.DataFrame) -> str:
    """How much differs, by table."""
    parts = []
    for title, rows in frame.groupby("of", sort=False):
        known = rows[~rows["profile"].isin([NOT_USED])]
        parts.append(f"{title}: {int(rows['differs'].sum())} of {len(known)}" if len(known) else f"{title}: not used")
    return f"Hyperparameters that differ from the paper's; {'; '.join(parts)}."


def _gpt(profile: Profile, setting: Setting | None, theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(parameter, paper's value, profile's) of the GPTs of a setting."""
    models = setting.models if setting else []
    sizes = {names.paper_model(model): model for model in models if names.size(model)}
    published = all(isinstance(profile.models[model], PublishedModel) for model in models)
    mixed = "mixture" in theirs  # instruction tuning
    recording = setting.recording if setting else None
    optimizer = recording.optimizer if recording else None

    def ours(value: Any) -> Any:
        return NOT_USED if setting is None else AS_PUBLISHED if published else value

    def each(values: Any, per: Mapping[str, str]) -> dict[str, Any]:
        """A value for each of the paper's names that the profile has; per: the paper's name -> the profile's."""
        return {name: values.get(own) if isinstance(values, Mapping) else values for name, own in per.items()}

    def chosen(values: Any) -> Any:
        """The paper's values for those models that the profile has (for all if it has none)."""
        return (
            {name: values[name] for name in sizes if name in values} or values
            if isinstance(values, Mapping)
            else values
        )

    if not mixed:
        model = getattr(profile.models[models[0]], "gpt", models[0]) if models else NOT_USED
        yield "model", theirs["model"].rpartition("/")[2], model
    else:
        known, own = set(theirs["mixture"]), set(setting.tasks if setting else ())
        others = f" and {len(own - known)} others" if own - known else ""
        count = len(known) if own == known else f"{len(own & known)} of them{others}"
        yield "tasks of the mixture", len(known), count if setting else NOT_USED
    yield "optimizer", theirs["optimizer"]["name"], ours("AdamW")
    for key in ("betas", "eps", "weight_decay"):
        yield _words(key), theirs["optimizer"][key], ours(_value(getattr(optimizer, key, None)))
    rates = theirs["learning_rate"]
    per = sizes if mixed else {task: task for task in rates if setting and task in setting.tasks}
    wanted = chosen(rates) if mixed else {task: rates[task] for task in per} or rates
    yield "learning rate", wanted, ours(each(getattr(optimizer, "learning_rate", None), per))
    yield "schedule", theirs["schedule"]["name"], ours(getattr(optimizer, "schedule", None))
    yield "warm-up steps", theirs["schedule"]["warmup_steps"], ours(getattr(optimizer, "warmup_steps", None))
    curriculum = setting.curriculum if setting else None
    yield "batch size", theirs["batch_size"], ours(getattr(curriculum, "batch_size", None))
    epochs = getattr(curriculum, "epochs", None)
    if not mixed and isinstance(epochs, Mapping):
        epochs = epochs[models[0]]
    yield "epochs", chosen(theirs["epochs"]), ours(each(epochs, sizes) if mixed else epochs)
    subset = curriculum.subset_size * (len(setting.tasks) if mixed else 1) if curriculum and setting else 0
    per_epoch = subset // curriculum.batch_size if curriculum else 0
    if mixed:
        of_size = {name: curriculum.for_model(own).epochs for name, own in sizes.items()} if curriculum else {}
        yield "steps", chosen(theirs["steps"]), ours({name: per_epoch * count for name, count in of_size.items()})
        yield "training examples a run", theirs["instances_per_run"], ours(subset)
    else:
        yield "steps", theirs["steps"], ours(per_epoch * (epochs or 0))
        pool = min((_pool_size(profile, setting, task) for task in setting.tasks), default=0) if setting else 0
        yield "training examples a task", theirs["pool_size"], ours(pool)
        yield "training examples a run", theirs["subset_size"], ours(subset)
    yield "precision", theirs["precision"], ours(getattr(recording, "precision", None))
    lengths = theirs["max_sequence_length"]
    if mixed:
        limit: Any = {name: _longest(profile, model) for name, model in sizes.items()}
        lengths = {name: lengths.get(name, lengths["default"]) for name in limit} or lengths
    else:
        limit = _longest(profile, models[0]) if models else NOT_USED
    yield "longest sequence, tokens", lengths, ours(limit)
    runs = setting.runs if setting else None
    counts = theirs["runs"]
    fitting = counts.get("train_and_validation") or f"{counts['train']} + {counts['validation']}"
    own_runs = (runs.train + runs.validation if mixed else f"{runs.train} + {runs.validation}") if runs else NOT_USED
    yield "training + validation runs", fitting, own_runs
    yield "test runs", counts["test"], runs.test if runs else NOT_USED
    if "lora" in theirs:
        lora = theirs["lora"]
        large = [model for model in models if names.paper_model(model) == lora["applies_to"]]
        of = getattr(profile.models[large[0]], "lora", None) if large else None
        value = f"rank {of.rank}, alpha {of.alpha:g}, dropout {of.dropout:g}" if of else "none"
        text = f"rank {lora['rank']}, alpha {lora['alpha']}, dropout {lora['dropout']}"
        yield f"LoRA of {lora['applies_to']}", text, ours(value) if large else NOT_USED


def _generation(profile: Profile, setting: Setting | None, theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    written = setting is not None and {"bleu", "rouge_l"} & set(setting.metrics)
    published = setting is not None and isinstance(profile.models[setting.model], PublishedModel)
    own = setting.generation if setting and written and not published else None
    lacking = AS_PUBLISHED if written and published else NOT_USED
    for key in ("temperature", "top_p"):
        yield f"generation: {_words(key)}", theirs[key], getattr(own, key, lacking)
    yield "generation: every so many steps", 1, getattr(own, "every", lacking)  # section 4.1: at every step


def _simulator(profile: Profile, name: str | None, theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(parameter, paper's value, profile's with its defaults) of the simulator that a profile calls `name`, if any."""
    own: dict[str, Any] = {}
    if name is not None:
        own = profile.simulators[name].arguments()
    used = own.get("method") != "closed_form"
    torch_defaults = inspect.signature(torch.optim.AdamW).parameters

    def ours(key: str) -> Any:
        return own.get(key, NOT_USED) if used else NOT_USED

    yield "optimizer", theirs["optimizer"]["name"], ours("optimizer")
    for key in ("betas", "eps"):
        yield _words(key), theirs["optimizer"][key], _value(torch_defaults[key].default) if own and used else NOT_USED
    yield "L2 strength", theirs["l2_lambda"], ours("weight_decay")
    rate = theirs["learning_rate"]
    if isinstance(rate, Mapping):
        setting = profile.settings.get("instruction_tuning")
        sizes = [size for m in (setting.models if setting else ()) if (size := names.paper_model(m)) in rate]
        rate = {size: rate[size] for size in sizes} or rate
        yield (
            "learning rate",
            rate,
            dict.fromkeys(rate, own["learning_rate"]) if own and sizes else ours("learning_rate"),
        )
    else:
        yield "learning rate", rate, ours("learning_rate")
    yield "schedule", theirs["schedule"]["name"], "linear_decay" if own and used else NOT_USED
    yield "warm-up steps (here at most a tenth of all)", theirs["schedule"]["warmup_steps"], ours("warmup_steps")
    yield "batch size, transitions", theirs["batch_size"], ours("batch_size")
    yield "epochs at most", theirs["max_epochs"], ours("max_epochs")
    yield "early stopping", theirs["early_stopping"], (own["patience"] is not None) if own and used else NOT_USED
    if "encoder" in theirs:
        encoder = own.get("encoder", NOT_USED)
        same = encoder == encoders.DEFAULT
        yield "encoder", theirs["encoder"].rpartition("/")[2], encoders.MINILM.rpartition("/")[2] if same else encoder
        yield (
            "encoder's longest text, tokens",
            theirs["encoder_max_sequence_length"],
            encoders.MAX_TOKENS if own else NOT_USED,
        )
        yield "Markov order", theirs["markov_order"], ours("markov_order")
    yield "precision", theirs["precision"], "fp32" if own else NOT_USED
    yield "seed", theirs["seed"], ours("seed")


def _longest(profile: Profile, model: str) -> Any:
    """Tokens that a model of the profile is given at most."""
    given = profile.models[model]
    return getattr(given, "max_length", None) or getattr(given, "positions", None) or THE_MODELS


def _pool_size(profile: Profile, setting: Setting, task: str) -> int:
    size = getattr(profile.tasks[task], "pool_size", 0)
    return min(size, setting.pool_size) if setting.pool_size else size


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
