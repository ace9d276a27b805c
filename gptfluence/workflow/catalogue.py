"""The catalogue: one row for each table and figure.

The workflow asks it what to record and fit before, notebooks ask it what to show, the page and `gptfluence cite` what things
are called. Adding a notebook means its files in notebooks/ and a row here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.drawing import names
from gptfluence.simulators.options import Variant
from gptfluence.study.study import Study
from gptfluence.workflow.row import (
    NotInProfileError,
    Output,
    Row,
    Runs,
    baselines_and,
    each_of,
    everything,
    first,
    first_of,
    fitted,
    labelled,
    of_size,
    one_of_each,
    one_of_each_sort,
    pretrained,
    resolve,
    simulating,
    those,
)

INSTRUCTION, FINE = "instruction_tuning", "fine_tuning"
EVERY, TEXT = ("loss", "bleu", "rouge_l"), ("bleu", "rouge_l")  # metrics
INTERVALS = (1, 2, 4, 6, 8, 10)
MAIN = of_size("410m", "1b", "2.8b", otherwise=everything)  # models of tables 1 and 3
TWO = those("rte", "webnlg")  # tasks of tables 10 to 12
PAIR = those("sst2", "webnlg", otherwise=one_of_each_sort)  # tasks beyond the paper: labels, and free text
BEYOND = ("mean_trajectory", "counts", "simfluence", "gptfluence", "low_rank", "tangent")


def orders(study: Study) -> list[int]:
    """The Markov orders of table 10 after which a run has steps left to predict."""
    setting, compared = study.setting(FINE), study.profile.markov_orders
    if not study.trains(setting.model):
        return compared  # its curricula are not the profile's, and long enough
    curriculum = study.campaign(FINE).setting.curriculum
    steps = curriculum.subset_size // curriculum.batch_size * curriculum.epochs
    return [order for order in compared if order < steps]


def encoders(study: Study) -> list[str]:
    """The text encoders of figure 5."""
    return study.profile.encoders


def _galleries() -> Iterator[Row]:
    """Figures 10 to 18: trajectories by setting, metric and size of model."""
    shown = [(INSTRUCTION, metric, size) for metric in EVERY for size in ("410m", "1b")]
    shown += [(FINE, metric, "") for metric in EVERY]
    for figure, (setting, metric, size) in enumerate(shown, start=10):
        words = [names.metric(metric), setting.replace("fine_", "fine-").replace("_", " "), size.upper()]
        yield Row(
            f"fig{figure}_" + "_".join(filter(None, [setting, metric, size])),
            "Trajectories: " + ", ".join(filter(None, words)),
            "fig10_18_qualitative",
            parameters={"figure": figure},
            setting=setting,
            models=of_size(size) if size else first,
            metrics=(metric,),
            methods=simulating,
        )


def _unseen_galleries() -> Iterator[Row]:
    """Figures 19 to 30: trajectories with unseen examples by task, metric and what is unseen."""
    panels = [("loss", "rte"), ("loss", "webnlg"), ("bleu", "webnlg"), ("rouge_l", "webnlg")]
    order = ("test", "training", "both")  # the paper's
    for figure, (panel, unseen) in enumerate([(panel, unseen) for panel in panels for unseen in order], start=19):
        metric, task = panel
        yield Row(
            f"fig{figure}_{task}_{metric}_unseen_{unseen}",
            f"Trajectories: {names.task(task)}, {names.metric(metric)}, {names.unseen(unseen)}",
            "fig19_30_unseen_qualitative",
            parameters={"figure": figure},
            panels=(panel,),
            methods=baselines_and("gptfluence"),
            unseen=(unseen,),
        )


def _hyperparameters() -> Iterator[Row]:
    """Tables 5 to 9, all saved by one notebook."""
    titles = {
        "tab05_hyperparameters_instruction_tuning": "Hyperparameters of instruction tuning",
        "tab06_hyperparameters_gptfluence_instruction_tuning": "Hyperparameters of GPTfluence, instruction tuning",
        "tab07_hyperparameters_fine_tuning": "Hyperparameters of fine-tuning",
        "tab08_hyperparameters_gptfluence_fine_tuning": "Hyperparameters of GPTfluence, fine-tuning",
        "tab09_hyperparameters_simfluence": "Hyperparameters of Simfluence",
    }
    leader = next(iter(titles))
    for name, title in titles.items():
        saved_with = "" if name == leader else leader
        yield Row(name, title, "tab05_09_hyperparameters", saved_with=saved_with, setting=None)


def _beyond(name: str, title: str, **more: Any) -> Row:
    """A row of what goes beyond the paper; its notebook records runs of its own, too."""
    given = {"tasks": PAIR, "methods": each_of(*BEYOND), "able": simulating, "trains": True}
    return Row(name, title, beyond=True, **{**given, **more})


ROWS: tuple[Row, ...] = (
    Row(
        "explore_quickstart",
        "The whole method on one page",
        tasks=first_of("sst2"),
        methods=each_of("gptfluence"),
        own_runs=True,
        trains=True,
    ),
    Row(
        "tab01_instruction_tuning_loss",
        "Loss simulation in instruction tuning",
        setting=INSTRUCTION,
        models=MAIN,
    ),
    Row("tab02_fine_tuning_loss", "Loss simulation in fine-tuning"),
    Row(
        "tab03_instruction_tuning_generation",
        "BLEU and ROUGE-L simulation in instruction tuning",
        setting=INSTRUCTION,
        models=MAIN,
        metrics=TEXT,
    ),
    Row("tab04_fine_tuning_generation", "BLEU and ROUGE-L simulation in fine-tuning", metrics=TEXT),
    *_hyperparameters(),
    Row(
        "tab10_markov_order",
        "Markov order",
        tasks=TWO,
        metrics=EVERY,
        methods=baselines_and("gptfluence"),
        varies="markov_order",
        values=orders,
        asked="orders",
        every_step=True,  # between measured steps a lag would be of a value that nobody measured
    ),
    Row(
        "tab11_unseen_fine_tuning",
        "Unseen examples, fine-tuning",
        "tab11_12_unseen",
        parameters={"setting": FINE},
        tasks=TWO,
        metrics=EVERY,
        methods=baselines_and("gptfluence"),
        able=baselines_and("gptfluence"),
        unseen=tuple(names.UNSEEN),
    ),
    Row(
        "tab12_unseen_instruction_tuning",
        "Unseen examples, instruction tuning",
        "tab11_12_unseen",
        parameters={"setting": INSTRUCTION},
        setting=INSTRUCTION,
        tasks=TWO,
        metrics=EVERY,
        methods=baselines_and("gptfluence"),
        able=baselines_and("gptfluence"),
        unseen=tuple(names.UNSEEN),
    ),
    Row("tab13_computational_cost", "Computational cost", methods=None, own_runs=True, trains=True),
    Row("fig01_overview", "Collect, fit, simulate", tasks=first, methods=each_of("gptfluence")),
    Row(
        "fig02_example_trajectories",
        "Example trajectories",
        setting=INSTRUCTION,
        panels=(("loss", "rte"), ("loss", "wmt16_de_en"), ("bleu", "webnlg"), ("rouge_l", "wmt16_de_en")),
        methods=one_of_each,
    ),
    Row(
        "fig03_checkpoint_interval",
        "Checkpoint interval",
        setting=INSTRUCTION,
        methods=baselines_and("simfluence", "gptfluence"),
        varies="checkpoint_interval",
        values=INTERVALS,
        asked="intervals",
    ),
    Row(
        "fig04_markov_order",
        "Markov order",
        saved_with="tab10_markov_order",
        tasks=TWO,
        metrics=EVERY,
        methods=baselines_and("gptfluence"),
        varies="markov_order",
        values=orders,
        asked="orders",
        every_step=True,
    ),
    Row(
        "fig05_encoders",
        "Encoders",
        setting=INSTRUCTION,
        methods=baselines_and("gptfluence"),
        varies="encoder",
        values=encoders,
        asked="encoders",
    ),
    Row(
        "fig06_model_sizes",
        "Model sizes",
        setting=INSTRUCTION,
        models=everything,
        methods=baselines_and("simfluence", "gptfluence"),
    ),
    Row(
        "fig07_mislabelled_data",
        "Mislabelled data",
        tasks=labelled("sst2"),
        methods=each_of("gptfluence"),
        own_runs=True,
        trains=True,
    ),
    Row(
        "fig08_unseen_examples",
        "Unseen examples",
        panels=(("loss", "rte"), ("bleu", "webnlg")),
        methods=baselines_and("gptfluence"),
        unseen=("training",),
    ),
    Row("fig09_convergence", "Convergence of fitting", able=fitted),
    *_galleries(),
    *_unseen_galleries(),
    _beyond("ext00_tasks", "What tasks teach, and whether content matters", tasks=everything, methods=None),
    _beyond(
        "ext00_statistics",
        "What tasks teach, and whether content matters: all statistics",
        saved_with="ext00_tasks",
        tasks=everything,
        methods=None,
    ),
    _beyond(
        "ext01_explained_deviation",
        "How much of a curriculum's effect is predicted",
        tasks=everything,
        methods=each_of("persistence", *BEYOND),
    ),
    _beyond(
        "ext01_other_metrics",
        "How much of a curriculum's effect is predicted: all tasks and metrics",
        saved_with="ext01_explained_deviation",
        metrics=("accuracy", "bleu", "rouge_l"),
        methods=each_of("persistence", *BEYOND),
    ),
    _beyond("ext02_horizon", "Error by training step", trains=False),
    _beyond("ext03_runs_needed", "How many recorded runs are needed"),
    _beyond("ext04_leave_out", "Training examples left out, checked by retraining"),
    _beyond("ext05_bands", "Coverage of bands around simulated losses"),
    _beyond(
        "ext05_bands_paths",
        "Bands around simulated losses",
        saved_with="ext05_bands",
    ),
    _beyond(
        "ext06_curriculum_search",
        "Search for a curriculum",
        tasks=first_of("sst2", "webnlg"),
        methods=each_of("gptfluence", "low_rank", "tangent"),
    ),
    _beyond(
        "ext07_ablation",
        "Ablation of the tangent simulator",
        tasks=first_of("sst2", "webnlg"),
        methods=each_of("tangent"),
    ),
    _beyond(
        "ext08_adapters",
        "All weights or LoRA, recorded by a Trainer",
        models=pretrained,
        tasks=first,
        methods=each_of("mean_trajectory", "counts", "gptfluence", "low_rank", "tangent"),
        own_runs=True,
    ),
    _beyond(
        "explore_what_if",
        "A curriculum changed by hand",
        tasks=first_of("sst2", "webnlg"),
        methods=each_of("tangent"),
    ),
    _beyond(
        "explore_your_training",
        "A training by a Trainer, recorded and asked",
        tasks=first_of("sst2", "webnlg"),
        methods=each_of("tangent"),
        own_runs=True,
    ),
)


def by_name() -> dict[str, Row]:
    """Every row by the name of its output."""
    return {row.name: row for row in ROWS}


def leader(row: Row) -> Row:
    """The row whose run of a notebook makes this output: its own, or the one that it is saved with."""
    return by_name()[row.saved_with] if row.saved_with else row


def outputs(study: Study) -> dict[str, Output]:
    """What a study can make: name of the output -> what it is of.

    Outputs that one run of a notebook makes need the same: what any of them needs.
    """
    found: dict[str, Output] = {}
    for row in ROWS:
        try:
            found[row.name] = resolve(row, study)
        except NotInProfileError:
            continue
    together: dict[str, list[Output]] = {}
    for output in found.values():
        together.setdefault(leader(output.row).name, []).append(output)
    return {name: replace(output, needs=before(together[leader(output.row).name])) for name, output in found.items()}


def before(wanted: Iterable[Output]) -> dict[Runs, list[tuple[str, Variant]]]:
    """What outputs need together: runs -> the (metric, variant) to fit on them, each once."""
    needed: dict[Runs, list[tuple[str, Variant]]] = {}
    for output in wanted:
        for runs, pairs in output.needs.items():
            known = needed.setdefault(runs, [])
            known += [pair for pair in pairs if pair not in known]
    return needed


def chosen(study: Study, pattern: str = "*") -> dict[str, Output]:
    """The outputs whose name, or whose notebook's, fits the pattern, or that it means as `named` says; "paper": all that the
    paper has.

    Raises ConfigurationError if there is none.
    """
    known = outputs(study)
    if pattern == "paper":
        return {name: output for name, output in known.items() if not output.row.beyond}
    meant = named(pattern, known)
    wanted = {
        name: output
        for name, output in known.items()
        if name in meant or any(fnmatch(one, pattern) for one in (name, notebook_of(output.row)))
    }
    if not wanted:
        raise ConfigurationError(unknown("notebook or output", pattern, known, where="only: "))
    return wanted


def notebook_of(row: Row) -> str:
    """The notebook that makes an output."""
    return leader(row).notebook or leader(row).name


def runs_of_notebooks(wanted: Mapping[str, Output]) -> dict[str, Output]:
    """The runs of notebooks that make these outputs, by the name of the first output that each makes."""
    found: dict[str, Output] = {}
    for output in wanted.values():
        found.setdefault(leader(output.row).name, replace(output, row=leader(output.row)))
    return found


def row_of(notebook: str, parameters: Mapping[str, Any]) -> Row:
    """The row that a notebook with these parameters makes.

    Raises ConfigurationError if the notebook has no row, or none with these parameters.
    """
    rows = [row for row in ROWS if notebook_of(row) == notebook and not row.saved_with]
    if not rows:
        known = dict.fromkeys(notebook_of(row) for row in ROWS)
        problem = unknown("notebook", notebook, known)
        raise ConfigurationError(f"{problem}; add a row for it to gptfluence/workflow/catalogue.py")
    for name in rows[0].parameters:
        allowed = [row.parameters[name] for row in rows]
        if parameters.get(name) not in allowed:
            raise ConfigurationError(
                unknown("value", parameters.get(name), allowed, where=f"{notebook}: parameter {name!r}: ")
            )
        rows = [row for row in rows if row.parameters[name] == parameters.get(name)]
    return rows[0]


def label_of(name: str) -> str:
    """What an output is called in the paper: "Table 2"; "" beyond the paper, or if there is no such output."""
    row = by_name().get(name)
    return row.label if row else ""


def title_of(name: str) -> str:
    """The heading of an output: its title in the catalogue, or its name in words if it has no row."""
    row = by_name().get(name)
    return row.title if row else name.replace("_", " ")


def named(text: str, known: Iterable[str]) -> list[str]:
    """The outputs among `known` that a text means: "tab06_hyperparameters_...", "tab06", "tab6", "Table 6", "fig16"."""
    known = list(known)
    if text in known:
        return [text]
    numbered = re.fullmatch(r"(tab|fig)(?:le|ure)?[ _.]*(\d{1,2})", text.strip().lower())
    start = f"{numbered[1]}{int(numbered[2]):02d}" if numbered else text
    return [name for name in known if name.split("_")[0] == start]


def markdown() -> str:
    """The catalogue as Markdown, for docs/outputs.md: a line for each output, by kind."""
    kinds = {"Tables": "Table", "Figures": "Figure", "Beyond the paper": ""}
    parts = []
    for heading, kind in kinds.items():
        rows = [row for row in ROWS if row.label.partition(" ")[0] == kind]
        parts += [f"### {heading}", "", "| | | files | notebook |", "|---|---|---|---|"]
        parts += [
            f"| {row.label} | {row.title} | `{row.name}` | [`{notebook_of(row)}`](../notebooks/{notebook_of(row)}.ipynb) |"
            for row in sorted(rows, key=lambda row: row.name)
        ]
        parts.append("")
    return "\n".join(parts)
