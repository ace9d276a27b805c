"""A row of the catalogue: what one table or figure is of, and what a study makes of that.

A row names its parts by selectors, functions that pick from what a profile has: the first task, all models. `resolve` applies
them to a study, and to what the user of a notebook chose instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gptfluence.common import files
from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names as printed
from gptfluence.models.settings import NanoModel
from gptfluence.profile.schema import is_mixture
from gptfluence.simulators.methods import method_of
from gptfluence.simulators.options import Variant, read_options
from gptfluence.study.campaign import Campaign
from gptfluence.study.study import Study

if TYPE_CHECKING:
    from gptfluence.simulators.base import Predictor

Selector = Callable[[Study, Sequence[str]], list[str]]  # (study, names that there are) -> those chosen
Panel = tuple[str, str]  # metric, task


class NotInProfileError(ConfigurationError):
    """A profile lacks what an output is of."""


@dataclass(frozen=True)
class Runs:
    """The runs of one campaign: a GPT trained on one task, or on a mixture of tasks (task is "")."""

    setting: str
    model: str
    task: str

    @property
    def name(self) -> str:
        """What the workflow calls their files: no two campaigns alike, and nothing that a shell takes for its own."""
        return files.slug_of_its_own(self.setting, self.model, self.task or "mixture")

    def campaign(self, study: Study) -> Campaign:
        """The campaign whose runs they are."""
        return study.campaign(self.setting, self.task or None, model=self.model)


def kind_of(study: Study, method: str) -> type[Predictor]:
    """The class of a method of a profile."""
    return method_of(study.variant(method).kind).load()


def everything(study: Study, names: Sequence[str]) -> list[str]:
    """All that there are."""
    return list(names)


def first(study: Study, names: Sequence[str]) -> list[str]:
    """The first that there is."""
    return list(names[:1])


def those(*wanted: str, otherwise: Selector = everything) -> Selector:
    """Those of `wanted` that there are; what `otherwise` selects if there are none of them."""
    return lambda study, names: [name for name in wanted if name in names] or otherwise(study, names)


def first_of(*wanted: str) -> Selector:
    """The first of `wanted` that there is; if there is none of them the first at all."""
    return lambda study, names: those(*wanted)(study, names)[:1]


def one_of_each_sort(study: Study, names: Sequence[str]) -> list[str]:
    """Tasks: the first whose targets are labels, and the first of free text."""
    first_of_sort = {study.is_labelled(name): name for name in reversed(names)}
    return [name for name in names if name in first_of_sort.values()]


def labelled(*wanted: str) -> Selector:
    """Tasks whose targets are labels, those of `wanted` before the others."""

    def select(study: Study, names: Sequence[str]) -> list[str]:
        return sorted((name for name in names if study.is_labelled(name)), key=lambda name: name not in wanted)

    return select


def of_size(*sizes: str, otherwise: Selector | None = None) -> Selector:
    """Models that are, or stand for, Pythias of these sizes, in the order of `sizes`."""

    def select(study: Study, names: Sequence[str]) -> list[str]:
        found = [name for size in sizes for name in names if printed.size(name) == size]
        return found or (otherwise(study, names) if otherwise else [])

    return select


def each_of(*wanted: str) -> Selector:
    """Methods: these, all of them; nothing if one is missing."""
    return lambda study, names: list(wanted) if set(wanted) <= set(names) else []


def baselines_and(*wanted: str) -> Selector:
    """Methods: those of `wanted` that there are, and the baselines; nothing if there are none of `wanted`."""

    def select(study: Study, names: Sequence[str]) -> list[str]:
        found = [name for name in names if name in wanted or kind_of(study, name).trivial]
        return found if set(found) & set(wanted) else []

    return select


def fitted(study: Study, names: Sequence[str]) -> list[str]:
    """Methods that are fitted on runs: neither baselines nor methods that replay the held-out run."""
    return [name for name in names if not kind_of(study, name).trivial and not kind_of(study, name).replays]


def simulating(study: Study, names: Sequence[str]) -> list[str]:
    """Methods that do not replay the held-out run: all but TracIn-CP and Grad-Dot."""
    return [name for name in names if not kind_of(study, name).replays]


def pretrained(study: Study, names: Sequence[str]) -> list[str]:
    """Models: the first that others have pre-trained, which is no nano GPT."""
    return [name for name in names if not isinstance(study.model(name).config, NanoModel)][:1]


def one_of_each(study: Study, names: Sequence[str]) -> list[str]:
    """Methods that make real predictions; of TracIn-CP only the kind that uses all checkpoints."""
    variants = {name: study.variant(name) for name in names}
    return [
        name
        for name, variant in variants.items()
        if variant.kind != "tracin_cp_10" and not variant.create().told_the_answer
    ]


@dataclass(frozen=True)
class Row:
    """One table or figure.

    name: what its files are called; those of the paper begin with its number there, as tab06_ or fig16_
    title: its heading on the page and in lists
    notebook: the notebook that makes it; default: the one that has the same name
    saved_with: another output. The run of a notebook that makes that one saves this one, too. Default: it has its own run
    parameters: values of the notebook's parameters; they tell it from other outputs of the same notebook
    setting: the setting that its training runs are of, as the profile names it; None if it shows no training runs
    models: which of the setting's GPTs it shows
    tasks: which of the setting's tasks it shows
    metrics: which metrics it shows, each on every one of `tasks` that has it
    panels: pairs of metric and task to show, in place of `metrics` and `tasks`
    methods: which methods it compares, of the setting's methods; beyond the paper of all that the profile has. None: no method
    able: which methods a user may choose for its notebook; default: all
    varies: the name of an option of the methods, if it compares several values of one
    values: those values, or a function that reads them from a study
    asked: the parameter of its notebook by which a user gives other values
    every_step: it shows only metrics that the profile measures at every step
    own_runs: nothing has to be recorded or fitted before; the notebook does it
    unseen: which examples are unseen in the runs that it shows: "training", "test", "both". These runs are recorded, too
    trains: the notebook itself trains the GPT, or takes its gradients
    beyond: the paper does not have it
    """

    name: str
    title: str
    notebook: str = ""
    saved_with: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    setting: str | None = "fine_tuning"
    models: Selector = first
    tasks: Selector = everything
    metrics: tuple[str, ...] = ("loss",)
    panels: tuple[Panel, ...] = ()
    methods: Selector | None = everything
    able: Selector = everything
    varies: str = ""
    values: Sequence[Any] | Callable[[Study], Sequence[Any]] = ()
    asked: str = ""
    every_step: bool = False
    own_runs: bool = False
    unseen: tuple[str, ...] = ()
    trains: bool = False
    beyond: bool = False

    @property
    def label(self) -> str:
        """What it is called in the paper: "Table 6" of tab06_...; "" beyond the paper."""
        kind = {"tab": "Table", "fig": "Figure"}.get(self.name[:3])
        return f"{kind} {int(self.name[3:5])}" if kind else ""


@dataclass(frozen=True)
class Output:
    """What a row is of in one study: every part by its name. `needs` is what must be recorded and fitted before."""

    row: Row
    panels: tuple[Panel, ...] = ()
    models: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    values: tuple[Any, ...] = ()
    needs: Mapping[Runs, list[tuple[str, Variant]]] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for _, task in self.panels))

    @property
    def tested(self) -> dict[str, list[str]]:
        """metric -> the tasks that it is shown of."""
        return {metric: [task for one, task in self.panels if one == metric] for metric, _ in self.panels}

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(variant.method for variant in self.variants))


def tasks_of(row: Row, study: Study) -> list[str]:
    """The tasks that a row could be of: tested, and measured by one of its metrics."""
    setting = study.setting(row.setting)
    wanted = {metric for metric, _ in row.panels} or set(row.metrics)
    having = {task for metric in _shown(row, study) if metric in wanted for task in study.tested(row.setting, metric)}
    ordered = [task for task in setting.tasks if task in having]
    return [task for task in ordered if study.keeps_unseen(task)] if row.unseen else ordered


def methods_of(row: Row, study: Study) -> list[str]:
    """The methods of a profile that the notebook of a row may be asked for."""
    known = row.able(study, list(study.profile.simulators))
    return [name for name in known if not row.varies or row.varies in study.variant(name).options.arguments()]


def resolve(
    row: Row,
    study: Study,
    *,
    models: Sequence[str] = (),
    tasks: Sequence[str] = (),
    metrics: Sequence[str] = (),
    methods: Sequence[str] = (),
    values: Sequence[Any] = (),
) -> Output:
    """What a row is of in a study; what is given takes the place of what the row selects.

    Raises NotInProfileError that says what the profile lacks.
    """
    if row.setting is None:
        return Output(row)
    if row.setting not in study.profile.settings:
        known = ", ".join(study.profile.settings)
        raise NotInProfileError(f"profile {study.profile.name!r}: {row.name} is of {row.setting}; it has {known}")
    setting = study.setting(row.setting)
    where = f"profile {study.profile.name!r}: settings.{row.setting}: "
    models = list(models) or row.models(study, setting.models)
    if not models and row.beyond:
        raise NotInProfileError(
            f"{where}{row.name} is of a pretrained GPT, and there is none; choose one by the parameter `models`: "
            f"{', '.join(setting.models)}"
        )
    if not models:
        size = row.name.rpartition("_")[2]
        raise NotInProfileError(
            f"{row.label.lower()} is of a model of size {size}, and profile {study.profile.name!r} has none in "
            f"{row.setting}; choose one by the parameter `model`: {', '.join(setting.models)}"
        )
    if (row.trains or row.beyond) and not all(study.trains(model) for model in models):
        raise NotInProfileError(f"{where}{row.name} trains {', '.join(models)}, which has published runs only")
    if held := [metric for metric in metrics if metric in setting.metrics and metric not in _shown(row, study)]:
        raise NotInProfileError(
            f"{where}{row.name} shows metrics that are measured at every step, {' and '.join(held)} once in "
            f"{setting.generation.every} steps; set generation.every to 1, or choose other metrics"
        )
    panels = _panels(row, study, tasks, metrics)
    if not panels:
        wanted = ", ".join(f"{m} on {t}" for m, t in row.panels) or " or ".join(metrics or row.metrics)
        apart = " and keep unseen examples (unseen_pool_size, unseen_test_size)" if row.unseen else ""
        of = f" of {', '.join(tasks)}" if tasks else ""
        raise NotInProfileError(f"{where}nothing to draw; record one of these{apart}: {wanted}{of}")
    known = list(study.profile.simulators) if row.beyond else study.methods(setting=row.setting)
    chosen = list(methods) or (row.methods(study, row.able(study, known)) if row.methods else [])
    if row.methods and not chosen:
        raise NotInProfileError(f"{where}{row.name} compares methods of which none is among {', '.join(known)}")
    values = tuple(values or (row.values(study) if callable(row.values) else row.values))
    variants = varied(row, study, chosen, values)
    needs = {} if row.own_runs else _needs(row, study, panels, models, variants)
    return Output(row, tuple(panels), tuple(models), tuple(variants), values, needs)


def varied(row: Row, study: Study, methods: Sequence[str], values: Sequence[Any], **options: Any) -> list[Variant]:
    """Each method with each value of the option that a row varies, and with further options; baselines as they are."""
    variants = []
    for name in methods:
        if row.varies and not kind_of(study, name).trivial:
            variants += [study.variant(name, row.setting, **{row.varies: value}, **options) for value in values]
        else:
            variants.append(study.variant(name, row.setting))
    return variants


def takes_time(variant: Variant, metric: str, *, unseen: bool) -> bool:
    """Whether something is to be made before a method predicts a metric: a fit, or a replay of the held-out runs."""
    kind = method_of(variant.kind).load()
    refuses = unseen and (kind.replays or kind.refuses_unseen)
    return not (kind.trivial or refuses) and (kind.metrics is None or metric in kind.metrics)


def needs_gpt(variant: Variant) -> bool:
    """Whether a method needs the GPT itself: it replays its training, or takes its gradients."""
    kind = method_of(variant.kind).load()
    return kind.replays or "tangents" in kind.needs


def to_json(variant: Variant) -> dict[str, Any]:
    """A variant as plain JSON, for a job of the workflow."""
    return {"method": variant.method, "variant": variant.variant, "options": variant.options.model_dump(mode="json")}


def from_json(values: Mapping[str, Any]) -> Variant:
    """The variant that `to_json` wrote."""
    return Variant(values["method"], values["variant"], read_options(values["method"], values["options"]))


def _shown(row: Row, study: Study) -> list[str]:
    """The setting's metrics that a row could show."""
    known = study.setting(row.setting).metrics
    return [metric for metric in known if not row.every_step or study.measures_every_step(row.setting, metric)]


def _panels(row: Row, study: Study, tasks: Sequence[str], metrics: Sequence[str]) -> list[Panel]:
    could = tasks_of(row, study)
    tested = {m: study.tested(row.setting, m) for m in _shown(row, study)}
    if row.panels:
        return [(metric, task) for metric, task in row.panels if task in could and task in tested.get(metric, ())]
    chosen = list(tasks) or row.tasks(study, could)
    return [(m, task) for m in metrics or row.metrics for task in chosen if task in could and task in tested.get(m, ())]


def _needs(
    row: Row, study: Study, panels: Sequence[Panel], models: Sequence[str], variants: Sequence[Variant]
) -> dict[Runs, list[tuple[str, Variant]]]:
    needs: dict[Runs, list[tuple[str, Variant]]] = {}
    for model in models:
        for metric, task in panels:
            wanted = needs.setdefault(Runs(row.setting, model, "" if is_mixture(row.setting) else task), [])
            able = [one for one in variants if takes_time(one, metric, unseen=bool(row.unseen))]
            wanted += [pair for one in able if (pair := (metric, one)) not in wanted]
    return needs
