"""What methods, metrics, statistics and tasks are called in print, and how each method is drawn, in every figure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from gptfluence.simulators import methods
from gptfluence.simulators.methods import Line
from gptfluence.tasks.records import RECORDS

METHODS = {  # who is drawn and tabled, in this order
    "recorded": "recorded",
    "before": "recorded, unchanged",
    **{method.name: method.printed for method in methods.METHODS.values()},
    "tracin_cp": "TracIn-CP",
    "own_loss": "Own training loss",
    "random": "Random",
    "paper": "Paper, nothing corrected",
    "ceiling": "Ceiling (expected score)",
    "one_run": "One recorded run of these tests",
}
LINES = {
    "recorded": Line("#000000", "-", ""),
    "before": Line("#999999", (0, (2, 1.5)), ""),
    **{method.name: method.line for method in methods.METHODS.values()},
    "tracin_cp": methods.METHODS["tracin_cp_all"].line,
    "own_loss": Line("#D55E00", (0, (3, 1, 1, 1)), "d"),
    "random": Line("#767676", (0, (2, 2)), "+"),
    "paper": Line("#000000", "", "*"),
    "ceiling": Line("#404040", (0, (1, 1)), "_"),
    "one_run": Line("#404040", (0, (5, 2)), "d"),
}
OTHER_LINES = (  # of variants that stand beside their method, and of methods that have no line of their own
    Line("#B8860B", (0, (3, 1)), "p"),
    Line("#762A83", (0, (7, 1, 1, 1)), "*"),
    Line("#66CCEE", (0, (7, 2)), "h"),
    Line("#35978F", (0, (1, 2)), "8"),
    Line("#BF812D", (0, (9, 1)), ">"),
    Line("#01665E", (0, (1, 1, 3, 1)), "X"),
    Line("#8C510A", (0, (2, 2, 6, 2)), "H"),
)
OPTIONS = {  # the options of simulators, as variants print them
    "markov_order": "order",
    "parameters": "",
    "use_corrections": "corrections",
    "follow_reference": "following of the reference run",
    "checkpoints": "reference run",
}
PYTHIA_SIZES = ("14m", "70m", "160m", "410m", "1b", "2.8b")
TRIVIAL = tuple(method.name for method in methods.METHODS.values() if method.trivial)  # know nothing of what texts say
BLIND = ("persistence", "mean_trajectory")  # know nothing of the curriculum at all
METRICS = {"loss": "loss", "bleu": "BLEU", "rouge_l": "ROUGE-L", "accuracy": "accuracy"}
UNITS = {"loss": "nats per target token", "bleu": "0–100", "rouge_l": "0–1", "accuracy": "0–1"}
STATISTICS = {
    "all_steps_mse": "all-steps MSE",
    "all_steps_mae": "all-steps MAE",
    "all_steps_mse_relative": "all-steps MSE / persistence's",
    "all_steps_mae_relative": "all-steps MAE / persistence's",
    "final_step_spearman": "final-step Spearman ρ",
    "r2_dev": "R²dev",
    "diverged": "diverged",
}
SMALLER_IS_BETTER = {
    "all_steps_mse": True,
    "all_steps_mae": True,
    "all_steps_mse_relative": True,
    "all_steps_mae_relative": True,
    "final_step_spearman": False,
    "r2_dev": False,
}
UNSEEN = {  # what simulators may not have been fitted on
    "training": "unseen training examples",
    "test": "unseen test examples",
    "both": "unseen training and test examples",
}
TASKS = {
    **{record.name: record.printed for record in RECORDS.values() if record.printed},
    "over_tasks": "Over tasks",
    "average": "Mean in the paper",
}


def method(name: str, variant: str = "") -> str:
    """A method in print, with what differs from its entry in the profile.

    >>> method("tracin_cp_10"), method("gptfluence", "markov_order=2"), method("tangent", "checkpoints=[]")
    ('TracIn-CP (10)', 'GPTfluence (order 2)', 'Tangent simulator (no reference run)')
    """
    known = family(name)
    printed = METHODS[known] if known else name.replace("_", " ")
    rest = name[len(known) :].replace("_", " ").strip() if known else ""
    details = ", ".join(filter(None, [rest, _options(variant)]))
    if not details:
        return printed
    return f"{printed[:-1]}, {details})" if printed.endswith(")") else f"{printed} ({details})"


def _options(variant: str) -> str:
    parts = []
    for option in re.split(r"[, ]+(?=\w+=)", variant):
        key, _, value = option.partition("=")
        printed = OPTIONS.get(key, key.replace("_", " "))
        parts.append(
            f"no {printed}" if value in ("False", "false", "[]") else f"{printed} {value.replace('_', ' ')}".strip()
        )
    return ", ".join(parts)


def name_and_variant(series: Any) -> tuple[str, str]:
    """(method, variant) of a name, or of anything that has both as attributes."""
    return (series, "") if isinstance(series, str) else (series.method, series.variant)


def place(name: str, variant: str = "") -> tuple[int, str, str]:
    """A key that sorts methods as METHODS lists them, and variants by their numbers (order 2 before order 10)."""
    known = family(name)
    listed = list(METHODS).index(known) if known else len(METHODS)
    return (listed, *(re.sub(r"\d+", lambda digits: digits[0].zfill(9), text) for text in (name, variant)))


def knows_the_answer(name: str) -> bool:
    """Whether a method is given what it is to predict: fitted on the test run, or its updates. It competes with no other.

    Frames hold names alone, and these tell: a profile must call such a method by a name with "oracle" or "update" in it, and
    no other method so (`Predictor.problem_with_name`).
    """
    return "oracle" in name or "update" in name


def size(model: str) -> str:
    """The size of the Pythia that a model is or stands for: "410m" of "nano-410m"; "" if its name has none."""
    return next((part for part in model.lower().split("-") if part in PYTHIA_SIZES), "")


def paper_model(model: str) -> str:
    """The paper's name for the model that this one is or stands for: "pythia-410m"; "" if there is none."""
    return f"pythia-{size(model)}" if size(model) else ""


def by_size(models: Iterable[str]) -> list[str]:
    """Models from the smallest to the largest by their names; those that name no size come first, as they were given."""
    return sorted(models, key=lambda model: PYTHIA_SIZES.index(size(model)) if size(model) else -1)


def family(name: str) -> str | None:
    """The known method that a name begins with: "tracin_cp" of "tracin_cp_10"; None if there is none."""
    fitting = [known for known in METHODS if name == known or name.startswith(f"{known}_")]
    return max(fitting, key=len, default=None)


def lines(series: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Line]:
    """How the series of one figure are drawn, (method, variant) -> line: no two alike, as far as lines suffice.

    The first of a method has the method's line. Its further variants, and methods that the project does not know, have
    the others in turn.
    """
    found: dict[tuple[str, str], Line] = {}
    others = 0
    for name, variant in dict.fromkeys(series):
        line = LINES.get(family(name) or "")
        if line and line not in found.values():
            found[name, variant] = line
        else:
            found[name, variant] = OTHER_LINES[others % len(OTHER_LINES)]
            others += 1
    return found


def metric(name: str, *, unit: bool = False) -> str:
    """A metric in print, with its unit on request: "loss (nats per target token)"."""
    printed = METRICS.get(name, name.replace("_", " "))
    return f"{printed} ({UNITS[name]})" if unit and name in UNITS else printed


def statistic(name: str, *, arrow: bool = False) -> str:
    """A statistic in print, on request with an arrow that says which way is better."""
    printed = STATISTICS.get(name, name.replace("_", " "))
    return f"{printed} {'↓' if SMALLER_IS_BETTER[name] else '↑'}" if arrow and name in SMALLER_IS_BETTER else printed


def task(name: str) -> str:
    """A task in print."""
    return TASKS.get(name, name.replace("_", " "))


def unseen(which: str) -> str:
    """Which examples are unseen (training, test or both), in print."""
    return UNSEEN[which]
