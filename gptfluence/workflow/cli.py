"""Record training runs, fit simulators on them, ask what-if questions, cite results, import published runs."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptfluence.common.errors import GPTfluenceError, unknown
from gptfluence.common.settings import ROOT, artifacts_dir

if TYPE_CHECKING:
    from gptfluence.study.campaign import Campaign
    from gptfluence.study.study import Study

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

ProfileOption = Annotated[str, typer.Option(help="a name in profiles/, or the path of a YAML file")]
SettingOption = Annotated[str, typer.Option(help="a setting of the profile")]
TaskOption = Annotated[
    str | None, typer.Option(help="a task of the setting (default: its first; instruction tuning: all)")
]
ModelOption = Annotated[str | None, typer.Option(help="a model of the setting (default: its first)")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="field=value: change a field of the profile")]
JobsOption = Annotated[
    int | None, typer.Option(help="runs recorded at once (default: $GPTFLUENCE_JOBS, else one per core)")
]
IndexOption = Annotated[Path | None, typer.Option(help="write what was made, as JSON, to this file")]


@dataclass(frozen=True)
class Chosen:
    """Which campaign a command is about: the options that `record`, `fit` and `tune` have in common."""

    task: TaskOption = None
    profile: ProfileOption = "mini"
    setting: SettingOption = "fine_tuning"
    model: ModelOption = None
    overrides: SetOption = None
    jobs: JobsOption = None

    def study(self) -> Study:
        from gptfluence.study.study import Study

        return Study.load(self.profile, self.overrides or (), jobs=self.jobs)

    def campaign(self) -> Campaign:
        """Raises ConfigurationError that names what the profile does not have."""
        return self.study().campaign(self.setting, self.task, model=self.model)


def of_campaign(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is a `Chosen`, as typer needs it: with the fields of `Chosen` as options."""
    chosen = list(inspect.signature(Chosen, eval_str=True).parameters.values())
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(Chosen(**{field.name: given.pop(field.name) for field in fields(Chosen)}), **given)

    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*chosen, *own)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


@app.command()
@of_campaign
def record(
    chosen: Chosen,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="record the runs on unseen training and test examples, too")
    ] = False,
    index: IndexOption = None,
) -> None:
    """Record the missing runs of a task. You can stop it at any time: the next call goes on."""
    campaign = chosen.campaign()
    recorded = [campaign.dynamics()]
    if unseen:
        recorded += [campaign.unseen(part) for part in ("training", "test")]
    for dynamics in recorded:
        print(dynamics)
        print(f"in {campaign.study.artifacts / 'dynamics' / dynamics.provenance['folder']}")
    _write_index(index, {"recorded": [dynamics.provenance for dynamics in recorded]})


@app.command()
@of_campaign
def fit(
    chosen: Chosen,
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[METRIC:]METHOD...",
            help="a method of the profile, for the loss or another metric: gptfluence, bleu:simfluence",
        ),
    ] = None,
    index: IndexOption = None,
    variants: Annotated[
        str | None, typer.Option(hidden=True, help="the workflow's: [metric, variant] pairs as JSON")
    ] = None,
) -> None:
    """Fit methods on the training runs of a task, which are recorded if they are missing. Without names: all methods."""
    from gptfluence.simulators.methods import method_of
    from gptfluence.workflow.row import from_json

    campaign = chosen.campaign()
    study = campaign.study
    if variants is not None:
        wanted = [(metric, from_json(value)) for metric, value in json.loads(variants)]
    else:
        named = [(metric or "loss", name) for metric, _, name in (given.rpartition(":") for given in methods or ())]
        named = named or [("loss", name) for name in study.methods(setting=chosen.setting)]
        wanted = [(metric, campaign.variant(name)) for metric, name in named]
    for metric, variant in wanted:
        kind = method_of(variant.kind).load()
        if kind.trivial or kind.replays:  # no fit that takes time, but perhaps runs to replay
            found = campaign.predict([variant], metric=metric)
            said = f"predicted {len(found.recorded)} held-out runs"
        else:
            said = str(campaign.simulator(variant, metric=metric).report)
        print(f"{metric}: {variant}: {said}", flush=True)
    fitted = [[metric, str(variant)] for metric, variant in wanted]
    _write_index(index, {"setting": chosen.setting, "task": chosen.task, "model": chosen.model, "fitted": fitted})


@app.command()
@of_campaign
def tune(
    chosen: Chosen,
    methods: Annotated[
        list[str] | None,
        typer.Argument(metavar="METHOD...", help="methods of the profile (default: all that have options to choose)"),
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="loss (the default), bleu, ...; may be repeated")] = None,
    count: Annotated[int, typer.Option(help="how many settings are drawn of a large grid")] = 24,
    seconds: Annotated[float, typer.Option(help="after so many seconds no fit is begun")] = 3600.0,
    output_dir: Annotated[
        Path | None, typer.Option(help="where tuning_SETTING.csv and .yaml go (default: build/<study>/tuning)")
    ] = None,
) -> None:
    """Choose the options of methods on validation runs of all tasks of a setting, or of --task.

    Stopped at any time, it goes on when called again. Some tasks: --set 'settings.fine_tuning.tasks=[rte, sst2]'.
    """
    from gptfluence.experiments import tuning

    study = chosen.study()
    tasks = [chosen.task] if chosen.task else []
    parameters = {"methods": methods or [], "tasks": tasks, "model": chosen.model or "", "metrics": metric or ["loss"]}
    parameters |= {"count": count, "seconds": seconds}
    tuned = tuning.tune(study, chosen.setting, **parameters)
    folder = output_dir or ROOT / "build" / study.label / "tuning"
    command = shlex.join(["gptfluence", *sys.argv[1:]])
    for path in tuning.save(tuned, study, chosen.setting, folder, command=command, parameters=parameters):
        print(f"saved {path}")


@app.command()
def what_if(
    task: TaskOption = None,
    drop: Annotated[
        list[int] | None, typer.Option(help="a training example (position in the pool) to leave out")
    ] = None,
    repeat: Annotated[list[int] | None, typer.Option(help="an example to show --times more times")] = None,
    times: Annotated[int, typer.Option(help="how many more times")] = 8,
    first: Annotated[list[int] | None, typer.Option(help="an example to move to the beginning")] = None,
    last: Annotated[list[int] | None, typer.Option(help="an example to move to the end")] = None,
    rewrite: Annotated[list[str] | None, typer.Option(help="POSITION=new target, e.g. '17= negative'")] = None,
    mask: Annotated[
        list[int] | None, typer.Option(help="an example to leave out while all others keep their places and weights")
    ] = None,
    run: Annotated[int, typer.Option(help="the held-out run whose curriculum is changed")] = 0,
    method: Annotated[str, typer.Option(help="a method of the profile")] = "tangent",
    level: Annotated[float, typer.Option(help="the share of paths that bands are to hold")] = 0.9,
    check: Annotated[bool, typer.Option("--check", help="train on the changed curriculum, too, to compare")] = False,
    figure: Annotated[Path, typer.Option(help="where the picture goes (.png or .pdf)")] = Path("what_if.png"),
    profile: ProfileOption = "mini",
    overrides: SetOption = None,
    jobs: JobsOption = None,
) -> None:
    """Simulate a held-out curriculum with examples dropped, masked, repeated, moved or rewritten. Options may be repeated."""
    import numpy as np

    from gptfluence.common.errors import ConfigurationError
    from gptfluence.drawing import names
    from gptfluence.drawing.style import style
    from gptfluence.drawing.trajectories import plot_bands
    from gptfluence.experiments.what_if import Changes, ask
    from gptfluence.study.study import Study

    if figure.suffix not in (".png", ".pdf"):
        raise ConfigurationError(f"--figure {figure}: its name must end in .png or .pdf")
    lists = (tuple(values or ()) for values in (drop, repeat, first, last, rewrite, mask))
    dropped, repeated, front, back, rewritten, masked = lists
    changes = Changes(dropped, repeated, times, front, back, rewritten, masked)
    campaign = Study.load(profile, overrides or (), jobs=jobs).campaign("fine_tuning", task)
    answer = ask(campaign, changes, run=run, method=method, level=level, train=check)
    print("final losses: means over test examples, nats per target token")
    for column, value in answer.table().iloc[0].items():
        print(f"{column:22} {value:.4f}" if isinstance(value, float | np.floating) else f"{column:22} {value}")
    labels = {"recorded": "trained on the change"}
    picture = plot_bands(answer.frame(5), ylabel=names.metric("loss", unit=True), labels=labels)
    figure.parent.mkdir(parents=True, exist_ok=True)
    with style():
        picture.savefig(figure)
    print(f"saved {figure}")


def _write_index(index: Path | None, facts: dict) -> None:
    if index is not None:
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


@app.command()
def cite(
    figure: Annotated[str, typer.Argument(help="a figure or table: fig16, 'Table 6', tab02_fine_tuning_loss")],
    profile: Annotated[str, typer.Option(help="the study that it was drawn from")] = "mini",
) -> None:
    """Print BibTeX for a figure or table, and a line of provenance for its caption."""
    from gptfluence.workflow.citation import cite as entry

    print(entry(figure, ROOT / "figures" / profile))


@app.command()
def download_published(
    folder: Annotated[Path, typer.Argument(help="where the data set goes")] = Path("data/GPTDynamics"),
    revision: Annotated[
        str,
        typer.Option(
            help="branch, tag or commit; for a paper give a commit (40 digits; download.json says which it was)"
        ),
    ] = "main",
) -> None:
    """Download the published GPTDynamics data from the Hugging Face Hub. Stopped at any time, it goes on when called again."""
    from gptfluence.published.download import download

    found = download(folder, revision)
    print(f"commit {found['commit']} of {found['dataset']} is in {folder}; next: gptfluence import-published {folder}")


@app.command()
def import_published(
    path: Annotated[Path, typer.Argument(help="the folder of the data set, or its tar of runs")],
    index: IndexOption = None,
) -> None:
    """Import published runs, raw or processed, with their texts. Stopped at any time, it goes on when called again."""
    from gptfluence.published import summary

    report = summary.run(path, artifacts_dir())
    _write_index(index, {"runs": [run.to_row() for run in report.runs], "notes": report.notes})


@app.command()
def doctor() -> None:
    """List what this machine has: device, cores, hub, encoder, and whether versions are those of requirements.lock."""
    import torch

    from gptfluence.common.hub import hub_reachable
    from gptfluence.models import encoders
    from gptfluence.recording.record import cores

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"python     {platform.python_version()} in {sys.prefix}")
    print(f"device     {', '.join(gpus) or 'cpu (no CUDA device)'}")
    print(f"cores      {cores()}")
    print(f"hub        {'reachable' if hub_reachable() else 'not reachable: only mini, smoke and local files work'}")
    for key, value in encoders.describe().items():
        print(f"encoder    {key}: {value}")
    print(f"artifacts  {artifacts_dir()}")
    lock = ROOT / "requirements.lock"
    if not lock.is_file():
        print("versions   no requirements.lock beside the package: nothing to compare with")
        return
    different = _different_from(lock)
    print(f"versions   {'as in requirements.lock' if not different else 'other than in requirements.lock:'}")
    for line in different:
        print(f"           {line}")
    if different:
        raise GPTfluenceError("this environment is not the locked one; ./run_all.sh makes one that is")


def _different_from(lock: Path) -> list[str]:
    from packaging.requirements import Requirement

    different = []
    for line in lock.read_text().splitlines():
        text = line.split("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            found = "not installed"
        if not wanted.specifier.contains(found.split("+")[0] if found[0].isdigit() else "0", prereleases=True):
            different.append(f"{wanted.name}: {found}, locked {wanted.specifier}")
    return different


@app.command()
def outputs(
    profile: ProfileOption = "mini",
    overrides: SetOption = None,
) -> None:
    """List the tables and figures that a study can make, by the names that `cite` and `run_all.sh --only` know."""
    from gptfluence.study.study import Study
    from gptfluence.workflow import catalogue

    for name, output in catalogue.outputs(Study.load(profile, overrides or ())).items():
        print(f"{output.row.label:10} {name:52} {output.row.title}")


@app.command(hidden=True)
def run_notebook(
    notebook: Annotated[str, typer.Argument(help="a notebook of notebooks/, by name")],
    output: Annotated[Path, typer.Option(help="the executed notebook")],
    parameters: Annotated[str, typer.Option(help="parameters, as JSON")] = "{}",
    failure: Annotated[
        Path | None, typer.Option(help="if it fails, write where and why, as JSON, to this file")
    ] = None,
) -> None:
    """Execute a notebook with papermill. If it fails, show its error alone, without papermill's own traceback."""
    # jsonschema would build a grammar for URIs, a second for each notebook, and uses it on none of theirs
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import papermill
    from papermill.exceptions import PapermillExecutionError

    if failure is not None:
        failure.unlink(missing_ok=True)  # of an earlier run
    source = ROOT / "notebooks" / f"{notebook}.ipynb"
    if not source.is_file():
        known = sorted(path.stem for path in source.parent.glob("*.ipynb"))
        raise GPTfluenceError(unknown("notebook", notebook, known))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".running.ipynb")
    try:
        papermill.execute_notebook(
            str(source), str(partial), json.loads(parameters), kernel_name="python3", progress_bar=False
        )
    except PapermillExecutionError as error:
        print("\n".join(error.traceback[-1:]), file=sys.stderr)
        if failure is not None:
            from gptfluence.workflow.outcomes import write_failure

            write_failure(failure, notebook, error.exec_count, f"{error.ename}: {error.evalue}")
        raise GPTfluenceError(
            f"notebook {notebook}, cell {error.exec_count}: {error.ename}: {error.evalue} (executed so far: {partial})"
        ) from error
    partial.replace(output)


@app.command(hidden=True)
def report(
    profile: ProfileOption = "mini",
    overrides: SetOption = None,
    only: Annotated[str, typer.Option(help="the outputs that the summary is about, by pattern")] = "*",
    build: Annotated[
        Path | None, typer.Option(help="the folder of logs and executed notebooks (default: build/<study>)")
    ] = None,
) -> None:
    """Write the page with everything that a study has drawn, and list what failed, where and why."""
    from gptfluence.study.study import Study
    from gptfluence.workflow.page import write

    study = Study.load(profile, overrides or ())
    _, summary = write(study, build or ROOT / "build" / study.label, only=only)
    print(summary)


def main() -> None:
    """Run the command. Errors that a user can mend are one line on standard error, and the exit code is 1."""
    shown = logging.StreamHandler()  # to standard error: how far a long fit is
    shown.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("gptfluence").addHandler(shown)
    logging.getLogger("gptfluence").setLevel(logging.INFO)
    try:
        app()
    except GPTfluenceError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
