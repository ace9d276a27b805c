"""What methods, metrics, statistics and tasks are called in print, and how each method is drawn, in every figure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gptfluence.tasks.records import RECORDS


class Line(NamedTuple):
    """How a method is drawn: a colour of Okabe and Ito's colour-blind-safe palette, and never by colour alone."""

    color: str
    dash: str | tuple
    marker: str


METHODS = {
    "recorded": "recorded",
    "before": "recorded, unchanged",
    "gptfluence": "GPTfluence",
    "simfluence": "Simfluence",
    "tangent": "Tangent simulator",
    "tangent_quarter": "A quarter of the coordinates",
    "tangent_one_candidate": "One candidate a token",
    "tangent_base": "Tangents of the base model alone",
    "tangent_uncorrected": "Not corrected by recorded runs",
    "tangent_base_uncorrected": "Base model alone, not corrected",
    "tangent_unfollowed": "Reference run not followed",
    "low_rank": "Low-rank deviations",
    "tracin_cp": "TracIn-CP",
    "grad_dot": "Grad-Dot",
    "persistence": "Persistence",
    "mean_trajectory": "Mean trajectory",
    "random": "Random",
    "ceiling": "Ceiling (expected score)",
    "one_run": "One recorded run of these tests",
}
LINES = {
    "recorded": Line("#000000", "-", ""),
    "before": Line("#999999", (0, (2, 1.5)), ""),
    "gptfluence": Line("#0072B2", "-", "o"),
    "simfluence": Line("#D55E00", (0, (4, 1.5)), "s"),
    "tangent": Line("#56B4E9", (0, (8, 1.5)), "P"),
    "tangent_quarter": Line("#8C510A", (0, (2, 2, 6, 2)), ">"),
    "tangent_one_candidate": Line("#BF812D", (0, (9, 1)), "*"),
    "tangent_base": Line("#7F3C2D", (0, (3, 1, 3, 1, 1, 1)), "X"),
    "tangent_uncorrected": Line("#35978F", (0, (1, 2)), "8"),
    "tangent_base_uncorrected": Line("#01665E", (0, (1, 1, 3, 1)), "D"),
    "tangent_unfollowed": Line("#762A83", (0, (7, 1, 1, 1)), "H"),
    "low_rank": Line("#5E3C99", (0, (5, 1, 1, 1)), "<"),
    "tracin_cp": Line("#009E73", (0, (4, 1.5, 1, 1.5)), "^"),
    "grad_dot": Line("#CC79A7", (0, (1, 1.2)), "D"),
    "persistence": Line("#767676", (0, (1, 2.5)), "x"),
    "mean_trajectory": Line("#E69F00", (0, (6, 2, 1, 2, 1, 2)), "v"),
    "random": Line("#767676", (0, (2, 2)), "+"),
    "ceiling": Line("#404040", (0, (1, 1)), "_"),
    "one_run": Line("#404040", (0, (5, 2)), "d"),
}
OTHER_LINES = (
    Line("#B8860B", (0, (3, 1)), "p"),
    Line("#8C6D31", (0, (2, 1)), "*"),
    Line("#7F3C2D", (0, (7, 2)), "h"),
)
PYTHIA_SIZES = ("14m", "70m", "160m", "410m", "1b", "2.8b")
TRIVIAL = ("persistence", "mean_trajectory")  # baselines that know nothing of the curriculum
METRICS = {"loss": "loss", "bleu": "BLEU", "rouge_l": "ROUGE-L", "accuracy": "accuracy"}
UNITS = {"loss": "nats per target token", "bleu": "0–100", "rouge_l": "0–1", "accuracy": "0–1"}
STATISTICS = {
    "all_steps_mse": "all-steps MSE",
    "all_steps_mae": "all-steps MAE",
    "final_step_spearman": "final-step Spearman ρ",
    "r2_dev": "R²dev",
    "diverged": "diverged",
}
SMALLER_IS_BETTER = {"all_steps_mse": True, "all_steps_mae": True, "final_step_spearman": False, "r2_dev": False}
TASKS = {**{record.name: record.printed for record in RECORDS.values() if record.printed}, "average": "Average"}


def method(name: str) -> str:
    """A method in print; a variant keeps its family's name: "gptfluence order=2" is "GPTfluence (order 2)".

    >>> method("tracin_cp_10"), method("simfluence closed_form")
    ('TracIn-CP (10)', 'Simfluence (closed form)')
    """
    known = family(name)
    if known is None:
        return name.replace("_", " ")
    variant = name[len(known) :].replace("_", " ").replace("=", " ").strip()
    return METHODS[known] + (f" ({variant})" if variant else "")


def knows_the_answer(name: str) -> bool:
    """Whether a method is given what it is to predict: fitted on the test run, or its updates. It competes with no other."""
    return "oracle" in name or name.startswith("tracin_cp_update")


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
    """The known method that `name` is, or is a variant of; None if there is none."""
    fitting = [known for known in METHODS if name == known or name.startswith((f"{known} ", f"{known}_"))]
    return max(fitting, key=len, default=None)


def line(name: str, position: int = 0) -> Line:
    """How a method is drawn; `position` tells methods apart that the project does not know."""
    known = family(name)
    return LINES[known] if known else OTHER_LINES[position % len(OTHER_LINES)]


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
