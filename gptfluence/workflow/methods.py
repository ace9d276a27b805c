"""What the workflow asks of a study's methods; all of it in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gptfluence.drawing import names
from gptfluence.simulators import influence, takes
from gptfluence.study.study import Study


@dataclass(frozen=True)
class Variant:
    """A stand-in until simulators have variants."""

    method: str
    variant: str = ""

    @property
    def text(self) -> str:
        return f"{self.method} {self.variant}".strip()


def variant(study: Study, name: str, **changes: Any) -> Variant:
    return Variant(name, " ".join(f"{option}={value}" for option, value in changes.items()))


def is_trivial(study: Study, name: str) -> bool:
    return name in names.TRIVIAL


def replays(study: Study, name: str) -> bool:
    return name in influence.methods_of(study.profile.simulators)


def has_option(study: Study, name: str, option: str) -> bool:
    return not replays(study, name) and takes(study.options(name)[0], option)


def trains(study: Study, model: str) -> bool:
    return not study.is_published(model)


def is_mixture(setting: str) -> bool:
    return setting == "instruction_tuning"


def takes_time(study: Study, one: Variant, metric: str, *, unseen: bool) -> bool:
    """Whether there is something to make before a notebook asks for this variant's predictions of a metric."""
    if is_trivial(study, one.method):
        return False
    return not replays(study, one.method) or (metric == "loss" and not unseen)


def needs_gpt(study: Study, one: Variant) -> bool:
    return replays(study, one.method) or takes(study.options(one.method)[0], "tangents")


def as_json(one: Variant) -> Any:
    return one.text


def from_json(study: Study, value: Any) -> Variant:
    method, _, changes = value.partition(" ")
    return Variant(method, changes)


def make(study: Study, one: Variant, metric: str, *, setting: str, task: str | None, model: str | None) -> str:
    """Fit a variant, or have it replay the held-out runs; returns what was done, in words."""
    if not replays(study, one.method):
        return str(study.simulator(one.text, setting, task, metric=metric, model=model).report)
    test, _ = study.simulate(setting, task, metric=metric, methods=[one.text], model=model)
    return f"predicted {len(test)} held-out runs"
