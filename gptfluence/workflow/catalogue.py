"""What each notebook of the paper needs: which runs recorded and which simulators fitted.

Notebooks make for themselves what is missing; the workflow asks here what to make before, in parallel. A profile without
instruction tuning, or without unseen examples, has the outputs that need none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import names
from gptfluence.models.settings import PublishedModel
from gptfluence.simulators import METHODS
from gptfluence.study.study import Study

INTERVALS = (1, 2, 4, 6, 8, 10)  # figure 3
ORDERS = (1, 2, 3, 5, 10)  # table 10, figure 4
ORDER_TASKS = ("rte", "webnlg")  # table 10, tables 11 and 12
EXAMPLE_PANELS = (("loss", "rte"), ("loss", "wmt16_de_en"), ("bleu", "webnlg"), ("rouge_l", "wmt16_de_en"))  # figure 2
UNSEEN_PANELS = (("loss", "rte"), ("bleu", "webnlg"))  # figure 8
PAPER = ("tab*", "fig*", "explore_quickstart")  # the outputs that `paper` stands for
BEYOND = ("persistence", "mean_trajectory", "simfluence", "gptfluence", "low_rank", "tangent")  # simulators of ext*
BEYOND_TASKS = ("sst2", "webnlg")


@dataclass(frozen=True)
class Runs:
    """The recorded runs of one GPT; task is "" for a mixture."""

    setting: str
    model: str
    task: str

    @property
    def name(self) -> str:
        return f"{self.setting}--{self.model}--{self.task or 'mixture'}"


@dataclass(frozen=True)
class Output:
    """One run of a notebook. `fits`: runs -> the "metric:simulator" to fit on them; `unseen`: runs needed unseen, too."""

    notebook: str
    parameters: dict[str, Any] = field(default_factory=dict)
    fits: dict[Runs, list[str]] = field(default_factory=dict)
    unseen: bool = False
    trains: bool = False  # the notebook itself trains the GPT, or replays its training


def gallery(figure: int) -> tuple[str, str, str]:
    """Setting, metric and size of model of figures 10 to 18."""
    if figure >= 16:
        return "fine_tuning", ("loss", "bleu", "rouge_l")[figure - 16], ""
    return "instruction_tuning", ("loss", "bleu", "rouge_l")[(figure - 10) // 2], ("410m", "1b")[figure % 2]


def gallery_setting(figure: int) -> str:
    """The setting of figures 10 to 18, by number alone: a notebook needs it before it can check its parameters."""
    return "instruction_tuning" if figure in range(10, 16) else "fine_tuning"


def gallery_model(study: Study, figure: int) -> str:
    """The model of figures 10 to 18: the one of its size, in fine-tuning the first.

    Raises ConfigurationError if the profile has none of that size.
    """
    setting, _, size = gallery(figure)
    models = study.setting(setting).models
    fitting = [model for model in models if not size or names.size(model) == size]
    if not fitting:
        raise ConfigurationError(
            f"figure {figure} is of a model of size {size}, and profile {study.profile.name!r} has none in {setting}; "
            f"choose one by the parameter `model`: {', '.join(models)}"
        )
    return fitting[0]


def panels_of(
    study: Study, setting: str, panels: Sequence[tuple[str, str]], *, unseen: bool = False
) -> list[tuple[str, str]]:
    """Those of these panels (metric, task) that the profile tests; with `unseen`, on examples kept apart.

    Raises ConfigurationError if it tests none.
    """
    metrics = study.setting(setting).metrics
    found = [
        (metric, task)
        for metric, task in panels
        if metric in metrics and task in study.tested(setting, metric) and (not unseen or study.keeps_unseen(task))
    ]
    if not found:
        wanted = ", ".join(f"{metric} on {task}" for metric, task in panels)
        apart = " and keep unseen examples (unseen_pool_size, unseen_test_size)" if unseen else ""
        raise ConfigurationError(
            f"profile {study.profile.name!r}: settings.{setting}: nothing to draw; record one of these{apart}: {wanted}"
        )
    return found


def unseen_gallery(figure: int) -> tuple[str, str, str]:
    """Task, metric and what is unseen of figures 19 to 30."""
    row, column = divmod(figure - 19, 3)
    task, metric = (("rte", "loss"), ("webnlg", "loss"), ("webnlg", "bleu"), ("webnlg", "rouge_l"))[row]
    return task, metric, ("test", "training", "both")[column]


def gallery_name(figure: int) -> str:
    """What figure 10 to 30 is called: fig10_instruction_tuning_loss_410m, fig19_rte_loss_unseen_test."""
    if figure <= 18:
        return f"fig{figure}_" + "_".join(part for part in gallery(figure) if part)
    task, metric, unseen = unseen_gallery(figure)
    return f"fig{figure}_{task}_{metric}_unseen_{unseen}"


def paper_models(study: Study, setting: str = "instruction_tuning") -> list[str]:
    """The models that stand for those of tables 1 and 3 (410M, 1B, 2.8B), or all where the profile has none of them."""
    models = study.setting(setting).models
    chosen = [model for size in ("410m", "1b", "2.8b") for model in models if names.size(model) == size]
    return chosen or list(models)


def orders(study: Study, setting: str = "fine_tuning") -> list[int]:
    """The Markov orders of table 10, as far as a run has steps left to predict after so many observed values."""
    chosen = study.setting(setting)
    if isinstance(study.model(chosen.model).config, PublishedModel):
        return list(ORDERS)  # its curricula are not the profile's, and long enough
    curriculum = chosen.curriculum.for_model(chosen.model)
    steps = curriculum.subset_size // curriculum.batch_size * int(curriculum.epochs)  # type: ignore[arg-type]
    return [order for order in ORDERS if order < steps]


def tested(study: Study, setting: str, metrics: Sequence[str], tasks: Sequence[str]) -> dict[str, list[str]]:
    """metric -> those of `tasks` that have it; metrics that none of them has are left out.

    Raises ConfigurationError if nothing is left.
    """
    found = {metric: [task for task in tasks if task in study.tested(setting, metric)] for metric in metrics}
    found = {metric: having for metric, having in found.items() if having}
    if not found:
        raise ConfigurationError(
            f"profile {study.profile.name!r}: settings.{setting}: none of {', '.join(tasks) or 'no tasks'} is recorded with "
            f"{' or '.join(metrics) or 'a metric'}; record them (`metrics`), or choose other tasks"
        )
    return found


def of_paper(tasks: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Those of the profile's tasks that the paper shows; all if it shows none of them."""
    return [task for task in wanted if task in tasks] or list(tasks)


def unseen_tasks(study: Study, setting: str) -> list[str]:
    """The tasks of tables 11 and 12 of which the profile keeps examples apart; all such tasks if it has none of those."""
    kept = [task for task in study.tested(setting, "loss") if study.keeps_unseen(task)]
    return of_paper(kept, ORDER_TASKS)


def outputs(study: Study) -> dict[str, Output]:
    """Every output that the profile can make: its name -> the notebook's run."""
    settings, found = study.profile.settings, dict[str, Output]()

    def fits(
        setting: str, models: Iterable[str], tasks: Iterable[str], metrics: Iterable[str], simulators: Sequence[str]
    ):
        needed: dict[Runs, list[str]] = {}
        for model in models:
            for task in tasks:
                runs = Runs(setting, model, task if setting == "fine_tuning" else "")
                wanted = needed.setdefault(runs, [])
                for metric in metrics:
                    if task in study.tested(setting, metric):
                        wanted += [entry for name in simulators if (entry := f"{metric}:{name}") not in wanted]
        return needed

    if "fine_tuning" in settings:
        chosen = study.setting("fine_tuning")
        learned = [name for name in study.methods(setting="fine_tuning") if study.is_fitted(name)]
        model, tasks, metrics = chosen.models[:1], chosen.tasks, [m for m in chosen.metrics if m != "accuracy"]
        texts = [metric for metric in metrics if metric != "loss"]
        trainable = not isinstance(study.model(chosen.model).config, PublishedModel)
        if trainable and "gptfluence" in learned:
            found["explore_quickstart"] = Output("explore_quickstart", trains=True)  # records what it needs
        if "gptfluence" in learned:
            found["fig01_overview"] = Output(
                "fig01_overview", fits=fits("fine_tuning", model, tasks[:1], ["loss"], learned)
            )
        loss = fits("fine_tuning", model, tasks, ["loss"], learned)
        found["tab02_fine_tuning_loss"] = Output("tab02_fine_tuning_loss", fits=loss)
        labelled = [task for task in tasks if study.is_labelled(task)]
        if trainable and labelled and "gptfluence" in learned:
            found["fig07_mislabelled_data"] = Output("fig07_mislabelled_data", trains=True)
        if learned:
            found["fig09_convergence"] = Output("fig09_convergence", fits=loss)
        text_tasks = [task for task in tasks if any(task in study.tested("fine_tuning", metric) for metric in texts)]
        if text_tasks:
            text = fits("fine_tuning", model, text_tasks, texts, learned)
            found["tab04_fine_tuning_generation"] = Output("tab04_fine_tuning_generation", fits=text)
        for figure in (16, 17, 18):
            metric = gallery(figure)[1]
            if metric in metrics and study.tested("fine_tuning", metric):
                needed = fits("fine_tuning", model, study.tested("fine_tuning", metric), [metric], learned)
                found[gallery_name(figure)] = Output("fig10_18_qualitative", {"figure": figure}, needed)
        ordered = of_paper(tasks, ORDER_TASKS)
        if "gptfluence" in learned:
            variants = [f"gptfluence markov_order={order}" for order in orders(study)]
            found["tab10_markov_order"] = Output(
                "tab10_markov_order", fits=fits("fine_tuning", model, ordered, metrics, variants)
            )
        unseen = unseen_tasks(study, "fine_tuning")
        if unseen and "gptfluence" in learned:
            needed = fits("fine_tuning", model, unseen, metrics, ["gptfluence"])
            found["tab11_unseen_fine_tuning"] = Output(
                "tab11_12_unseen", {"setting": "fine_tuning"}, needed, unseen=True
            )
            if any(metric in metrics and task in unseen for metric, task in UNSEEN_PANELS):
                found["fig08_unseen_examples"] = Output("fig08_unseen_examples", fits=needed, unseen=True)
            for figure in range(19, 31):
                task, metric, _ = unseen_gallery(figure)
                if task in unseen and metric in metrics:
                    parameters = {"figure": figure}
                    one = fits("fine_tuning", model, [task], [metric], ["gptfluence"])
                    found[gallery_name(figure)] = Output("fig19_30_unseen_qualitative", parameters, one, unseen=True)
        if set(BEYOND) <= set(study.profile.simulators) and not study.is_published(chosen.model):
            found |= _beyond(study, fits)
    if "instruction_tuning" in settings:
        chosen = study.setting("instruction_tuning")
        compared = study.methods(setting="instruction_tuning")
        learned = [name for name in compared if study.is_fitted(name)]
        metrics = [metric for metric in chosen.metrics if metric != "accuracy"]
        texts, main = [metric for metric in metrics if metric != "loss"], paper_models(study)
        tasks, first = study.tested("instruction_tuning", "loss"), chosen.models[:1]
        loss = fits(
            "instruction_tuning",
            main,
            tasks,
            ["loss"],
            [*learned, *(name for name in compared if METHODS[study.variant(name).kind].load().replays)],
        )
        found["tab01_instruction_tuning_loss"] = Output("tab01_instruction_tuning_loss", fits=loss)
        if any(study.tested("instruction_tuning", metric) for metric in texts):
            text = fits("instruction_tuning", main, tasks, texts, learned)
            found["tab03_instruction_tuning_generation"] = Output("tab03_instruction_tuning_generation", fits=text)
        every = fits("instruction_tuning", first, tasks, metrics, learned)
        if any(metric in metrics and task in tasks for metric, task in EXAMPLE_PANELS):
            found["fig02_example_trajectories"] = Output("fig02_example_trajectories", fits=every)
        variants = [
            f"{name} checkpoint_interval={c}"
            for name in learned
            if name in ("simfluence", "gptfluence")
            for c in INTERVALS
        ]
        if variants:
            found["fig03_checkpoint_interval"] = Output(
                "fig03_checkpoint_interval", fits=fits("instruction_tuning", first, tasks, ["loss"], variants)
            )
        if "gptfluence" in learned:
            variants = [f"gptfluence encoder={encoder}" for encoder in study.profile.encoders]
            found["fig05_encoders"] = Output(
                "fig05_encoders", fits=fits("instruction_tuning", first, tasks, ["loss"], variants)
            )
        sizes = fits("instruction_tuning", chosen.models, tasks, ["loss"], learned)
        found["fig06_model_sizes"] = Output("fig06_model_sizes", fits=sizes)
        for figure in range(10, 16):
            _, metric, size = gallery(figure)
            models = [model for model in chosen.models if names.size(model) == size]
            if models and metric in metrics:
                needed = fits(
                    "instruction_tuning", models, study.tested("instruction_tuning", metric), [metric], learned
                )
                found[gallery_name(figure)] = Output("fig10_18_qualitative", {"figure": figure}, needed)
        unseen = unseen_tasks(study, "instruction_tuning")
        if unseen and "gptfluence" in learned:
            needed = fits("instruction_tuning", first, unseen, metrics, ["gptfluence"])
            parameters = {"setting": "instruction_tuning"}
            found["tab12_unseen_instruction_tuning"] = Output("tab11_12_unseen", parameters, needed, unseen=True)
    found["tab05_hyperparameters"] = Output("tab05_hyperparameters")
    if "fine_tuning" in settings and not isinstance(study.model(settings["fine_tuning"].model).config, PublishedModel):
        found["tab13_computational_cost"] = Output("tab13_computational_cost", trains=True)
    return found


def _beyond(study: Study, fits: Callable[..., dict[Runs, list[str]]]) -> dict[str, Output]:
    """What goes beyond the paper. Runs unlike the training runs, and fits on fewer of them, are the notebooks' own."""
    setting = study.setting("fine_tuning")
    tasks = [task for task in BEYOND_TASKS if task in setting.tasks] or setting.tasks[:1]
    fitted = [name for name in BEYOND if study.is_fitted(name)]
    every = fits("fine_tuning", setting.models[:1], tasks, ["loss"], fitted)
    of_all = fits("fine_tuning", setting.models[:1], setting.tasks, ["loss"], fitted)
    other_metrics = fits("fine_tuning", setting.models[:1], tasks, setting.metrics, fitted)
    one = dict(list(every.items())[:1])
    of_tangent = {runs: ["loss:tangent"] for runs in one}
    known = {
        "ext01_explained_deviation": of_all | other_metrics,
        "ext02_horizon": every,
        "ext03_runs_needed": every,
        "ext04_leave_out": every,
        "ext05_bands": every,
        "ext06_curriculum_search": one,
        "ext07_ablation": of_tangent,
        "explore_what_if": of_tangent,
    }
    trains = known.keys() - {"ext02_horizon"}  # runs of their own, or fits on fewer runs, which take gradients
    return {name: Output(name, fits=needed, trains=name in trains) for name, needed in known.items()}


def needs_gpt(study: Study, simulators: Iterable[str]) -> bool:
    """Whether some of these "metric:simulator" need the GPT itself: they replay its training, or take its gradients."""
    kinds = {METHODS[study.variant(entry.partition(":")[2]).kind].load() for entry in simulators}
    return any(kind.replays or "tangents" in kind.needs for kind in kinds)


def chosen(study: Study, pattern: str = "*") -> dict[str, Output]:
    """The outputs whose name, or whose notebook's, fits the pattern; "paper": those of the paper.

    Raises ConfigurationError if none does.
    """
    known, patterns = outputs(study), PAPER if pattern == "paper" else (pattern,)
    wanted = {
        name: output
        for name, output in known.items()
        if any(fnmatch(name, one) or fnmatch(output.notebook, one) for one in patterns)
    }
    if not wanted:
        raise ConfigurationError(f"only={pattern!r} matches no notebook and no output; known: {', '.join(known)}")
    return wanted


def merged(wanted: Mapping[str, Output]) -> dict[str, tuple[Runs, list[str]]]:
    """What these outputs need together: name of runs -> the runs and the simulators to fit on them, each once."""
    fitting: dict[str, tuple[Runs, list[str]]] = {}
    for output in wanted.values():
        for runs, simulators in output.fits.items():
            known = fitting.setdefault(runs.name, (runs, []))[1]
            known += [simulator for simulator in simulators if simulator not in known]
    return fitting
