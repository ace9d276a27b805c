"""What all notebooks have in common: they check their parameters, open a study, and save outputs with provenance."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gptfluence.common import files, provenance
from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.common.settings import ROOT, expanded
from gptfluence.drawing import saving
from gptfluence.profile.load import PROFILES, profile_path
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.options import Variant
from gptfluence.study.campaign import Campaign
from gptfluence.study.study import Study
from gptfluence.workflow import catalogue, parameters
from gptfluence.workflow.row import NotInProfileError, Output, methods_of, resolve, tasks_of, varied

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTEBOOKS = ROOT / "notebooks"


def _say_which_python() -> None:
    """Jupyter may find a kernel of another Python than that of the environment in which it was started."""
    active = os.environ.get("VIRTUAL_ENV")
    if active and Path(active).resolve() != Path(sys.prefix).resolve():
        warnings.warn(
            f"this notebook runs in the Python of {sys.prefix}, and the active environment is {active}; if that is not meant, "
            "choose another kernel, or run: python -m ipykernel install --sys-prefix",
            stacklevel=3,
        )


class Notebook:
    """The run of one notebook: its checked parameters, its row of the catalogue, its study, and where its outputs go.

        nb = gf.Notebook("tab02_fine_tuning_loss", globals())
        results = nb.evaluate()

    Parameters are attributes. `tasks`, `task`, `models`, `model`, `metrics` and `methods` are always resolved: what the user
    gave, checked against what is allowed, and otherwise what the catalogue says; `given` tells which of the two.
    `values` are those of the option that the row varies (the user's come unchecked), `variants` the methods with each of
    them, `panels` the pairs of a metric and a task, `tested` the same by metric.

    A parameter that the parameters cell does not have, or that is of another type than it is annotated with there, is an
    error (papermill itself would only warn, or pass it on).

    With the default parameters outputs go to `figures/<study>/`, with others to `build/<study>/figures/`, so that a try
    never overwrites what is cited. `output_dir` names another folder.
    """

    def __init__(self, name: str, namespace: Mapping[str, Any]):
        """Raises ConfigurationError that names the parameter and what is allowed, or what the profile lacks."""
        self.name = name
        self._started = time.monotonic()
        _say_which_python()
        self._declared = parameters.declared_parameters(NOTEBOOKS / f"{name}.py")
        self.parameters = parameters.check_parameters(name, self._declared, namespace)
        for parameter, value in self.parameters.items():
            if not hasattr(type(self), parameter):
                setattr(self, parameter, value)
        self.row = catalogue.row_of(name, self.parameters)
        self.study = Study.load(self.parameters["profile"], self.parameters.get("overrides", ()))
        output = self._resolved() if self.row.setting else Output(self.row)
        self.setting = self.row.setting
        self.panels, self.tested = list(output.panels), output.tested
        self.tasks, self.models, self.methods = output.tasks, list(output.models), output.methods
        self.metrics = list(output.tested)
        asked = self.given(self.row.asked) if self.row.asked else None
        self.values = list(dict.fromkeys(asked or output.values))
        self.task, self.model = next(iter(self.tasks), ""), next(iter(self.models), "")
        label = self.study.label
        default = ROOT / "build" / label / "figures" if self._changed() else ROOT / "figures" / label
        given = self.parameters.get("output_dir")
        self.folder = (expanded(given) if given else default).resolve()
        if given:
            files.check_writable(self.folder / name, f"{name}: parameter 'output_dir':")

    def given(self, parameter: str) -> Any:
        """What the user gave for a parameter; None if the notebook is to choose by itself."""
        value = self.parameters.get(parameter)
        return None if value in ("", []) or value == self._declared[parameter][1] else value

    def output(self, name: str) -> Output:
        """What another output that this notebook saves is of; of nothing if the profile lacks it."""
        tasks, models = self.given("tasks") or (), self.given("models") or ()
        try:
            return resolve(catalogue.by_name()[name], self.study, tasks=tasks, models=models)
        except NotInProfileError:
            return Output(catalogue.by_name()[name])

    @property
    def saved(self) -> dict[str, str]:
        """The outputs that this run of the notebook makes: name -> title."""
        return {row.name: row.title for row in catalogue.ROWS if catalogue.leader(row) == self.row}

    @cached_property
    def variants(self) -> list[Variant]:
        """The methods with each of `values`; baselines as they are."""
        return self.varied(self.values)

    def varied(self, values: Sequence[Any], **options: Any) -> list[Variant]:
        """The methods with each of these values of the option that the row varies, and with further options."""
        return varied(self.row, self.study, self.methods, values, **options)

    def _resolved(self) -> Output:
        """What the row is of in this study, with the user's choice of parts."""
        row, study = self.row, self.study
        models = study.setting(row.setting).models
        # Of several metrics a task may lack some: `resolve` says which it lacks if it has none.
        tasks = (
            study.setting(row.setting).tested_tasks if len(row.metrics) > 1 and not row.unseen else tasks_of(row, study)
        )
        methods = methods_of(row, study)
        chosen: dict[str, list[str]] = {}
        for one, many, allowed in (
            ("task", "tasks", tasks),
            ("model", "models", models),
            ("metric", "metrics", row.metrics),
            ("method", "methods", methods),
        ):
            for parameter in (one, many):
                value = self.given(parameter) if parameter in self._declared else None
                if value is not None:
                    values = value if isinstance(value, list) else [value]
                    self.choose(parameter, values, allowed)
                    chosen[many] = sorted(values, key=list(allowed).index)
        return resolve(row, study, **chosen)

    def _changed(self) -> bool:
        """Whether a parameter that changes what is shown is not the notebook's own."""
        neutral = {"profile", "overrides", "output_dir", *self.row.parameters}
        return any(v != self._declared[name][1] for name, v in self.parameters.items() if name not in neutral)

    def evaluate(
        self, variants: Sequence[Variant] = (), *, observed: int = 1, unseen: str | None = None
    ) -> pd.DataFrame:
        """Every variant on the held-out runs of every model, metric and task: the tidy frame of `Campaign.evaluate`.

        variants: in place of the notebook's own
        observed: how many values the methods are given; unseen: evaluate on runs with unseen examples instead
        """
        found = []
        for model in self.models:
            for metric, tasks in self.tested.items():
                for campaign in self._asked(model, tasks):
                    runs = campaign.unseen(unseen, metric) if unseen else None
                    options = {"metric": metric, "observed": observed, "runs": runs}
                    found.append(campaign.evaluate(variants or self.variants, **options))
        return pd.concat(found, ignore_index=True)

    def predict(self, *, unseen: str | None = None) -> dict[tuple[str, str], tuple[GPTDynamics, dict[str, np.ndarray]]]:
        """(metric, task) of each panel -> the held-out runs, and what each method predicts for them by its name.

        The mean trajectory is among the methods in any case, because R²dev compares with it. Predictions: float32 [runs,
        steps + 1, tests]. unseen: predict runs with unseen examples instead
        """
        methods = list(dict.fromkeys([*self.methods, "mean_trajectory"]))
        found = {}
        for metric, task in self.panels:
            [campaign] = self._asked(self.model, [task])
            runs = campaign.unseen(unseen, metric) if unseen else None
            predictions = campaign.predict(methods, metric=metric, runs=runs).of(task)
            values = {variant.method: value for variant, value in predictions.values.items()}
            found[metric, task] = predictions.recorded, values
        return found

    @cached_property
    def campaigns(self) -> list[Campaign]:
        """The campaigns that the notebook is of: model by model, in fine-tuning one for each task.

        They are made once, so that runs are read from disk once.
        """
        return self.study.campaigns(self.setting, self.tasks, models=self.models)

    def _asked(self, model: str, tasks: Sequence[str]) -> list[Campaign]:
        """The campaigns of a model that test these tasks: those of `campaigns` where they are asked about the same."""
        made = {(one.model, one.tasks): one for one in self.campaigns}
        asked = self.study.campaigns(self.setting, tasks, models=[model])
        return [made.get((one.model, one.tasks), one) for one in asked]

    def choose(self, parameter: str, value: Any, allowed: Sequence[Any]) -> None:
        """Raise ConfigurationError unless `value` (or each of its items) is among `allowed`."""
        for item in value if isinstance(value, list) else [value]:
            if item not in allowed:
                raise ConfigurationError(
                    unknown("value", item, allowed, where=f"{self.name}: parameter {parameter!r}: ")
                )

    def save_figure(
        self,
        figure: Figure,
        frame: pd.DataFrame,
        name: str = "",
        *,
        caption: str,
        sources: Sequence[Any],
        reading: str = "",
    ) -> None:
        """Save a figure as PDF and PNG with the CSV of every plotted number.

        name: of its files (default: the name of the notebook's row in the catalogue)
        sources: the dynamics that it is drawn from; reading: sentences computed from the numbers, kept beside the caption
        """
        name = name or self.row.name
        facts = {**self._provenance(sources), "reading": reading}
        saving.save_figure(figure, frame, self.folder, name, caption=caption, provenance=facts)
        print(f"saved {self._shown(name)}.pdf, .png, .csv, .json\n{reading}".rstrip())

    def save_table(
        self, table: Any, name: str = "", *, caption: str, sources: Sequence[Any], reading: str = ""
    ) -> None:
        """Save a table as CSV, LaTeX, Markdown and HTML. The parameters mean the same as for a figure."""
        name = name or self.row.name
        facts = {**self._provenance(sources), "reading": reading}
        saving.save_table(table, self.folder, name, caption=caption, provenance=facts)
        print(f"saved {self._shown(name)}.csv, .tex, .md, .html, .json\n{reading}".rstrip())

    def _shown(self, name: str) -> str:
        path = self.folder / name
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)

    def _profile_seen_from_repository(self) -> str:
        """The parameter `profile`, as a command takes it that is run in the repository."""
        name = self.parameters["profile"]
        path = profile_path(name).resolve()
        if path.parent == PROFILES.resolve() and path.stem == name:
            return name
        return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)

    def _provenance(self, sources: Sequence[Any]) -> dict:
        declared = {name: default for name, (_, default) in self._declared.items()}
        shown = {
            name: value
            for name, value in self.parameters.items()
            if name != "output_dir" and (value not in ("", []) or value != declared[name])
        }
        given = {**shown, "profile": self._profile_seen_from_repository()}
        runs: dict[str, dict[str, str]] = {}
        for source in sources:  # several may be parts of one folder
            runs.setdefault(source.provenance["folder"], {}).update(source.provenance["runs"])
        # English texts are scored as ever; what is not said of them leaves the files as they were
        scored = sorted({source.provenance.get("tokenization", "english") for source in sources} - {"english"})
        facts = {"tokenization": scored} if scored else {}
        return facts | provenance.collect(
            command=parameters.command(self.name, given),
            profile=self.study.profile,
            parameters=shown,
            sources=runs,
            device=sources[0].provenance["device"] if sources else "cpu",
            seconds=time.monotonic() - self._started,
        )
