"""Which options methods are to have: for each method one setting, for all tasks of a way to train together.

Every method is fitted on the training runs with many settings of its options, by the same rule: a setting is scored by the
all-steps MSE of its rollouts on validation runs, relative to the mean trajectory's, and the one with the lowest mean logarithm
over tasks is chosen. A setting that is far behind on the first tasks is tried on no others. Held-out runs are neither recorded
nor read. Scores are kept below `artifacts/tuning`, so that a search that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from itertools import product, zip_longest
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd

from gptfluence.common import files, provenance
from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.recording.settings import Metric
from gptfluence.simulators.options import Variant
from gptfluence.study.campaign import Campaign
from gptfluence.study.study import Study
from gptfluence.tasks.base import fingerprint

VALIDATION_RUNS = 5  # at least: two choose badly
HOPELESS = 1.15  # times the best setting's error on the same tasks: such a setting is tried on no further task
IN_EPOCHS: dict[str, tuple] = {
    "target": ("value", "deviation"),
    "standardize": (True, False),
    "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3),
    "batch_size": (8192, 32768),
    "max_epochs": (30, 100, 300),
    "patience": (30, None),  # None: to the end of the schedule, where the rate is 0; with patience few fits get so far
    "weight_decay": (1e-5, 1e-1, 1.0),
}
# What is tried of each kind of method: grids, each the values of some options. A float in `checkpoints` is a share of a run.
SPACES: dict[str, list[dict[str, tuple]]] = {
    "gptfluence": [{**IN_EPOCHS, "heads": ("mlp", "linear", "concat")}],
    "simfluence": [
        {"method": ("closed_form",), "target": ("value", "deviation")},
        {"method": ("gradient_descent",), **IN_EPOCHS},
    ],
    "low_rank": [{"rank": (12, 24, 48, 96)}],
    "counts": [],  # nothing to choose; scored beside the others
    "tangent": [{"checkpoints": ((), (0.4,), (0.2, 0.7)), "coordinates": (3072, 6144)}],
}
RELATIVE = ["relative_to_mean", "relative_to_persistence"]
COLUMNS = ["method", "variant", "task", "metric", *RELATIVE, "seconds", "epoch", "ended", "chosen"]
ALL = "all"  # in columns task and metric: over all of them


def drawn(kind: str, steps: int, count: int) -> list[dict[str, Any]]:
    """The settings that are tried: none, which is the method's entry in the profile, then those of `SPACES`.

    A grid of more than `count` settings is drawn from, without repetition; a larger `count` adds settings and changes none.
    steps: of the curricula
    """
    found: list[dict[str, Any]] = [{}]
    for number, options in enumerate(SPACES.get(kind, [])):
        grid = [dict(zip(options, values, strict=True)) for values in product(*options.values())]
        if len(grid) > count:
            dice = np.random.default_rng(int(fingerprint(["tuning", kind, number]), 16))
            grid = [grid[place] for place in dice.permutation(len(grid))[:count]]
        found += grid
    for options in found:
        if "checkpoints" in options:
            options["checkpoints"] = tuple(max(1, round(share * steps)) for share in options["checkpoints"])
    return found


@dataclass(frozen=True)
class Request:
    """One fit that is to be scored, as plain values: `study` is what `Study.load` is given."""

    study: tuple[str, tuple[str, ...], Path]
    setting: str
    task: str | None
    model: str
    metric: Metric
    method: str
    options: tuple[tuple[str, Any], ...]

    @property
    def campaign(self) -> Campaign:
        return _campaign(self.study, self.setting, self.task, self.model)

    @property
    def variant(self) -> Variant:
        return self.campaign.variant(self.method).with_(**dict(self.options))


def with_validation(campaign: Campaign) -> Campaign:
    """The same campaign with validation runs enough, and without held-out runs."""
    return campaign.with_(runs={"validation": max(VALIDATION_RUNS, campaign.setting.runs.validation), "test": 0})


@lru_cache(maxsize=8)
def _campaign(given: tuple[str, tuple[str, ...], Path], setting: str, task: str | None, model: str) -> Campaign:
    origin, overrides, artifacts = given
    return with_validation(Study.load(origin, overrides, artifacts=artifacts).campaign(setting, task, model=model))


def score(request: Request) -> dict[str, Any]:
    """Fit and score, or read what was scored before: seconds, epochs, ended and errors, task -> method -> all-steps MSE.

    The methods are "it", "mean_trajectory" and "persistence". Raises ConfigurationError if there are too few validation runs.
    """
    from gptfluence.simulators.base import Simulator, fit_key
    from gptfluence.simulators.reference import Persistence

    campaign, variant, metric = request.campaign, request.variant, request.metric
    dynamics = campaign.dynamics(metric)
    train, validation, _ = dynamics.split()
    if len(validation) < VALIDATION_RUNS:
        raise ConfigurationError(
            f"{campaign!r}: it has {len(validation)} validation runs, and {VALIDATION_RUNS} are needed to choose by; record more"
        )
    simulator = variant.create().bind(dynamics, load_encoder=campaign.study.encoder)
    assert isinstance(simulator, Simulator)
    name = f"{request.method}-{campaign.task}-{campaign.model}-{metric}-{fit_key(simulator, dynamics, metric)}.json"
    path = campaign.study.artifacts / "tuning" / name
    if not path.is_file():
        begin = time.perf_counter()
        simulator.fit(train, validation, metric=metric)
        seconds, report = time.perf_counter() - begin, simulator.report
        assert report is not None
        found = campaign.predictions(validation, metric, held_out=True)
        found.values[variant] = simulator.predict(validation, metric=metric)
        found.values[Variant.of("persistence")] = (
            Persistence().fit(train, metric=metric).predict(validation, metric=metric)
        )
        errors = {task: _errors(found.of(task).evaluate(), request.method) for task in campaign.tested(metric)}
        files.write_json(path, {"seconds": seconds, "epochs": report.epochs, "ended": report.ended, "errors": errors})
    return json.loads(path.read_text(encoding="utf-8"))


def _errors(frame: pd.DataFrame, method: str) -> dict[str, float]:
    """All-steps MSE over all runs, infinite if undefined, from rows of `Predictions.evaluate`."""
    wanted = {
        "it": (method, "all_steps_mse"),
        "persistence": ("persistence", "all_steps_mse"),
        "mean_trajectory": (method, "mse_mean_trajectory"),
    }
    by_method = frame.set_index(["method", "statistic"])["value"]
    means = {name: float(by_method.loc[key].to_numpy().mean()) for name, key in wanted.items()}
    return {name: mean if np.isfinite(mean) else float("inf") for name, mean in means.items()}


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    by_task: a frame with `COLUMNS`, one row for each setting, task and metric that was scored
    settings: the same over all tasks and metrics: geometric means of errors, sums of seconds, the largest number of epochs, and
        the share of fits that ended by themselves; only settings that were scored on all of them
    """

    by_task: pd.DataFrame
    settings: pd.DataFrame
    options: Mapping[tuple[str, str], dict[str, Any]]  # (method, variant) -> what was set

    def snippet(self, setting: str, said: Sequence[str]) -> str:
        """The chosen options as YAML that a profile can hold, under comments that say where they come from."""
        lines = [*(f"# {line}" for line in said), "settings:", f"  {setting}:", "    simulators:"]
        for row in self.settings[self.settings["chosen"]].itertuples():
            of_method = self.settings[self.settings["method"] == row.method]
            own = of_method.loc[of_method["variant"] == "", "relative_to_mean"]
            options = ", ".join(
                f"{name}: {json.dumps(value)}" for name, value in self.options[row.method, row.variant].items()
            )
            before = f", its entry before {own.iloc[0]:.3f}" if len(own) else ""
            lines.append(
                f"      # {row.relative_to_mean:.3f} times the mean trajectory's error{before}; best of {len(of_method)}"
            )
            lines.append(f"      {row.method}: {{{options}}}")
        return "\n".join(lines) + "\n"


def tune(
    study: Study,
    setting: str = "fine_tuning",
    methods: Sequence[str] = (),
    *,
    tasks: Sequence[str] = (),
    model: str = "",
    metrics: Sequence[Metric] = ("loss",),
    count: int = 24,
    seconds: float = 3600.0,
) -> Tuned:
    """Score settings of methods, and choose one of each.

    methods: of the profile; default: all of the kinds in `SPACES`. tasks: default: all of the setting
    count: how many settings are drawn of a large grid; seconds: after which no fit is begun

    As many fits run at once as the study has `jobs`, each in a process with one thread. Raises ConfigurationError for a method of
    another kind, or if no setting of a method was scored on all tasks in time.
    """
    given = (study.origin, study.overrides, study.artifacts)
    cells = [
        (campaign, metric)
        for campaign in study.campaigns(setting, tasks, models=[model] if model else ())
        for metric in metrics
        if campaign.tested(metric)
    ]
    if not cells:
        raise ConfigurationError(f"tune: no task of {setting} has {', '.join(metrics)}; choose another metric")
    known = [name for name in study.profile.simulators if study.variant(name).kind in SPACES]
    for name in methods:
        if name not in known:
            raise ConfigurationError(unknown("method", name, known, where="tune: "))
    # what is missing is recorded before any fit, with all processes
    steps = max(with_validation(campaign).dynamics().curricula[0].steps for campaign, _ in cells)
    tried = {name: drawn(study.variant(name).kind, steps, count) for name in methods or known}
    plan = []
    for settings in zip_longest(*([(name, options) for options in found] for name, found in tried.items())):
        for name, options in filter(None, settings):
            for campaign, metric in cells:
                task = None if campaign.is_mixture else campaign.task
                plan.append(Request(given, setting, task, campaign.model, metric, name, tuple(options.items())))
    scored = _run(plan, study.jobs, time.monotonic() + seconds)
    wanted = {(task, metric) for campaign, metric in cells for task in campaign.tested(metric)}
    by_task = _by_task(scored, wanted)
    options = {}
    for request in plan:
        before = study.setting(setting).simulators.get(request.method, {})
        options[request.method, request.variant.variant] = {**before, **dict(request.options)}
    return _chosen(by_task, list(tried), len(wanted), options)


def _run(plan: Sequence[Request], jobs: int, end: float) -> dict[Request, dict[str, Any]]:
    """Score what is planned, in order, `jobs` at a time; nothing is begun after `end` (`time.monotonic`)."""
    scored: dict[Request, dict[str, Any]] = {}
    running: dict[Future, Request] = {}
    waiting = iter(plan)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _worker, (os.getpid(),)) as pool:
        while True:
            while len(running) < jobs and time.monotonic() < end and (request := next(waiting, None)) is not None:
                if not _hopeless(request, scored):
                    running[pool.submit(score, request)] = request
            if not running:
                return scored
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                request = running.pop(future)
                found = scored[request] = future.result()
                relative = [errors["it"] / errors["mean_trajectory"] for errors in found["errors"].values()]
                shown = ", ".join(f"{one:.3f}" for one in relative)
                print(
                    f"{request.task or 'mixture'}, {request.metric}: {request.method} {dict(request.options) or ''}: "
                    f"{shown} of the mean trajectory's error, {found['seconds']:.0f} s",
                    flush=True,
                )


def _hopeless(request: Request, scored: Mapping[Request, dict[str, Any]]) -> bool:
    """Whether its setting is so far behind the best one, on the tasks that it was scored on, that no more are worth a fit."""
    logs: dict[tuple, dict[tuple, float]] = {}
    for other, found in scored.items():
        if other.method == request.method:
            of_setting = logs.setdefault(other.options, {})
            for task, errors in found["errors"].items():
                of_setting[task, other.metric] = np.log(errors["it"] / errors["mean_trajectory"])
    own = logs.get(request.options)
    if not own or not request.options:  # what the profile says now is scored in any case
        return False
    best = min(np.mean([each[cell] for cell in own]) for each in logs.values() if own.keys() <= each.keys())
    return bool(np.mean([*own.values()]) > best + np.log(HOPELESS))


def _worker(parent: int) -> None:
    """Begin a process of fits: one thread, and an end when nobody waits for it any more."""
    import torch

    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _by_task(scored: Mapping[Request, dict[str, Any]], cells: set[tuple[str, str]]) -> pd.DataFrame:
    """Rows with `COLUMNS` for these pairs of task and metric, none of them chosen yet."""
    rows = []
    for request, found in scored.items():
        for task, errors in found["errors"].items():
            if (task, request.metric) in cells:
                relative = [errors["it"] / errors[name] for name in ("mean_trajectory", "persistence")]
                row = (request.method, request.variant.variant, task, request.metric, *relative)
                seconds = found["seconds"] / len(found["errors"])  # of a mixture one fit is for all tasks
                rows.append((*row, seconds, found["epochs"], found["ended"], False))
    return pd.DataFrame(rows, columns=COLUMNS)


def _over_tasks(part: pd.DataFrame) -> pd.Series:
    """One setting over all tasks and metrics; part: its rows."""
    in_epochs = part.loc[part["ended"] != "", "ended"]
    with np.errstate(divide="ignore"):
        means = {name: float(np.exp(np.log(part[name]).mean())) for name in RELATIVE}
    ended = f"{(in_epochs == 'patience').sum()} of {len(in_epochs)} by patience" if len(in_epochs) else ""
    return pd.Series(
        {
            "task": ALL,
            "metric": ALL,
            **means,
            "seconds": part["seconds"].sum(),
            "epoch": part["epoch"].max(),
            "ended": ended,
            "chosen": False,
        }
    )


def _chosen(
    by_task: pd.DataFrame, methods: Sequence[str], cells: int, options: Mapping[tuple[str, str], dict[str, Any]]
) -> Tuned:
    """The setting of each method with the lowest mean logarithm of relative errors, of those scored on all tasks and metrics."""
    whole = by_task.groupby(["method", "variant"], sort=False).filter(lambda part: len(part) == cells)
    parts = whole.groupby(["method", "variant"], sort=False)
    settings = pd.DataFrame(columns=COLUMNS)
    if len(whole):
        settings = parts[COLUMNS[2:]].apply(_over_tasks).reset_index().infer_objects()
    for method in methods:
        of_method = settings[settings["method"] == method]
        if of_method.empty:
            raise ConfigurationError(f"tune: no setting of {method} was scored on all tasks in time; give more seconds")
        best = of_method.loc[of_method["relative_to_mean"].idxmin(), "variant"]
        for frame in (settings, by_task):
            frame.loc[(frame["method"] == method) & (frame["variant"] == best), "chosen"] = True
    return Tuned(by_task, settings[COLUMNS], options)


def save(
    tuned: Tuned, study: Study, setting: str, folder: Path, *, command: str, parameters: Mapping[str, Any]
) -> list[Path]:
    """Write tuning_SETTING.csv (a row a setting), _by_task.csv, .yaml (for the profile) and .json (provenance); their paths."""
    facts = provenance.collect(command=command, profile=study.profile, parameters=parameters)
    tasks = ", ".join(tuned.by_task["task"].unique())
    caption = (
        f"Settings of methods, scored by all-steps MSE on at least {VALIDATION_RUNS} validation runs of each task ({tasks}). "
        "Held-out runs were not used."
    )
    commit = facts["run"]["commit"] or "unknown"
    clean = "" if facts["run"]["clean"] else ", with changes that were not committed"
    said = [
        f"Made by: {command}",
        f"at commit {commit}{clean}, {facts['run']['date']}, study seed {study.profile.seed}.",
        caption,
    ]
    contents = {
        ".csv": tuned.settings.to_csv(index=False),
        "_by_task.csv": tuned.by_task.to_csv(index=False),
        ".yaml": tuned.snippet(setting, said),
    }
    encoded = {suffix: text.encode() for suffix, text in contents.items()}
    return provenance.save(folder, f"tuning_{setting}", encoded, caption=caption, provenance=facts)
