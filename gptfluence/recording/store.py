"""Recorded runs on disk: Parquet and JSON with checksums, each run whole or absent.

A *dynamics folder* is named after everything its numbers depend on and holds

    spec.json           what is recorded: model, task, optimizer, metric settings, seed
    model.json          where the GPT is found: its configuration and path (of no influence on the folder's name)
    pool.parquet        the training examples, in the order curricula speak of them
    tests.parquet       the test examples, in the order trajectories speak of them
    train-007/          one run: run.json, curriculum.parquet, steps.parquet, tests.parquet [, pool.parquet],
                        checksums.json (written last; the folder then gets its name)

curriculum.parquet has a row for each place of each step; where places are masked, a column says which. What a `TrainerRecorder`
wrote holds the tokens of its examples besides (pool_tokens.parquet, tests_tokens.parquet), the GPT before training (start/,
see `models.start`) in place of model.json, and journal/.
Any reader of Parquet can open them. A folder without its checksums is not a run.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from gptfluence.common import files, hub
from gptfluence.common.errors import ArtifactError, unknown
from gptfluence.common.settings import canonical, expanded
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import HubModel, ModelConfig
from gptfluence.models.start import StartingModel
from gptfluence.recording import fed
from gptfluence.recording.curriculum import NOBODY, Curriculum, flipped, named
from gptfluence.recording.dynamics import GPTDynamics, Source, TrainingRun
from gptfluence.recording.settings import RunSpec
from gptfluence.tasks.base import Example, Task, TaskPool

FORMAT = 1
SOURCE = "model.json"
TRAINER = "trainer"  # the setting of runs that a Trainer trained
RUN_NAME = re.compile(r"^[a-z_]+-[0-9a-f]{3,}$")


def write_folder(
    folder: Path,
    spec: RunSpec | dict,
    task: Task,
    source: Source | None = None,
    tables: Mapping[Path, dict[str, Any]] | None = None,
) -> None:
    """Create the dynamics folder with its texts, if it is not there, and say where its GPT is found.

    spec: of recorded runs; a dict for imported ones, which no GPT here made
    tables: path in the folder -> columns, of more than texts
    """
    values = spec.to_json() if isinstance(spec, RunSpec) else spec
    with files.locked(folder / "locks" / "folder.lock"):
        written = ["spec.json", SOURCE, "pool.parquet", "tests.parquet", *(path.name for path in tables or {})]
        for name in written:  # what a process that was killed left half written; whoever writes these has the lock
            for leftover in folder.glob(f".{name}.*"):
                leftover.unlink()
        if source is not None:
            files.write_json(folder / SOURCE, _source_to_json(source))
        if (folder / "spec.json").is_file():
            return
        for part, pool in (("pool", task.pool), ("tests", task.tests)):
            files.write_bytes(folder / f"{part}.parquet", _to_parquet([example.to_dict() for example in pool]))
        for path, columns in (tables or {}).items():
            write_table(path, columns)
        files.write_json(folder / "spec.json", values)  # last: a folder with a spec is complete


def _source_to_json(source: Source) -> dict[str, Any]:
    """Paths are absolute, because they may be read from another working directory, but below the store: it can be moved."""
    gpt, config = source.gpt, canonical(source.gpt.config)
    if config.get("path") and not isinstance(gpt.config, HubModel):
        config["path"] = str(expanded(config["path"]).resolve())
    # links are not followed: the folder of models may be one, to another disk
    cache, artifacts = gpt.cache.absolute(), source.artifacts.absolute()
    if cache.is_relative_to(artifacts):
        cache = cache.relative_to(artifacts)
    return {"name": gpt.name, "config": config, "corpus": gpt.corpus, "models": cache.as_posix()}


def read_source(folder: Path) -> Source | None:
    """The GPT of a dynamics folder; None if the folder does not say, as those of earlier versions and imported runs."""
    try:
        values = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        config = TypeAdapter(ModelConfig).validate_python(values["config"])
        artifacts = _artifacts_of(folder, values["models"])
        gpt = ModelSource(values["name"], config, artifacts / values["models"], values["corpus"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder / SOURCE} is damaged: {error}; delete it and record again: no run is lost"
        ) from None
    return Source(gpt, artifacts)


def _artifacts_of(folder: Path, models: str) -> Path:
    """The store that a dynamics folder lies in: `dynamics/` may be a link to another disk, or `folder` one to the store."""
    seen, real = folder.absolute().parents[1], folder.resolve().parents[1]
    return seen if (seen / models).is_dir() else real


def spec_values(folder: Path) -> dict[str, Any]:
    """The `spec.json` of a folder as it is, of recorded or imported runs. Raises ArtifactError if it is not readable."""
    try:
        return json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if not folder.exists():
            raise ArtifactError(f"there is no folder {str(folder)!r}") from None
        raise ArtifactError(f"{folder} is not a folder of recorded dynamics: it has no readable spec.json") from None


def read_spec(folder: Path) -> RunSpec:
    """How the runs of a folder are recorded. Raises ArtifactError if there is no `spec.json`, or it is of imported runs."""
    values = spec_values(folder)
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        fields = [".".join(map(str, each["loc"])) for each in error.errors() if each["type"] == "extra_forbidden"]
        if fields:
            raise ArtifactError(
                f"{folder / 'spec.json'}: recorded by another version: {', '.join(fields)} not known here; use that version, or "
                "record again into another folder"
            ) from None
        raise ArtifactError(f"{folder / 'spec.json'} does not say how runs are recorded: {error}") from None


def read_task(folder: Path) -> Task:
    """The texts of a dynamics folder. Raises ArtifactError if they are not those its spec was made from."""
    spec = spec_values(folder)
    pools = {}
    for part in ("pool", "tests"):
        path = folder / f"{part}.parquet"
        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowInvalid):
            raise ArtifactError(f"{path} is missing or damaged; delete {folder} to have it made again") from None
        pools[part] = TaskPool(f"{spec['task']}/{part}", tuple(Example.from_dict(row) for row in rows))
        if pools[part].fingerprint != spec[f"{part}_fingerprint"]:
            raise ArtifactError(f"{path} has changed since it was written; delete {folder} to have it made again")
    # whether texts may overlap was decided when the folder was made
    return Task(spec["task"], pools["pool"], pools["tests"], may_overlap=True)


def write_run(folder: Path, run: TrainingRun, facts: dict) -> None:
    """Write a run under its lock. `facts` (JSON) go into run.json; equal runs and facts give equal bytes."""
    with files.new_folder(folder / run.name, f"saving run {run.name}") as new:
        (steps, batch), there = run.curriculum.batches.shape, run.curriculum.batches != NOBODY
        shown = run.curriculum.batches[there]
        curriculum = {
            "step": np.repeat(np.arange(1, steps + 1, dtype=np.int32), there.sum(axis=1)),
            "example": named(shown),
        }
        if (shown < 0).any():
            curriculum["masked"] = shown < 0
        (new / "curriculum.parquet").write_bytes(_to_parquet(curriculum))
        per_step = {
            "step": np.arange(1, steps + 1, dtype=np.int32),
            "learning_rate": run.learning_rate,
            "batch_loss": run.batch_loss,
            "gradient_norm": run.gradient_norm,
        }
        if run.skipped is not None:
            per_step["skipped"] = run.skipped
        (new / "steps.parquet").write_bytes(_to_parquet(per_step))
        (new / "tests.parquet").write_bytes(_to_parquet(_long(run.trajectories)))
        if run.pool_trajectories:
            (new / "pool.parquet").write_bytes(_to_parquet(_long(run.pool_trajectories)))
        files.write_json(new / "run.json", {"name": run.name, "format": FORMAT, "batch_size": batch, **facts})


def replace_run(folder: Path, run: TrainingRun, facts: dict) -> None:
    """`write_run` in place of a run of this name, if there is one; if it fails, that one stays."""
    place, before = folder / run.name, folder / f".{run.name}.before"
    if place.is_dir():
        shutil.rmtree(before, ignore_errors=True)
        place.rename(before)
    try:
        write_run(folder, run, facts)
    except BaseException:
        if before.is_dir():
            before.rename(place)
        raise
    shutil.rmtree(before, ignore_errors=True)


def read_run(folder: Path, name: str) -> TrainingRun:
    """Read a run. Raises ArtifactError naming the file if it is missing, half written or damaged."""
    place = folder / name
    if not place.is_dir():
        raise ArtifactError(f"run {name} is not in {folder}; recorded: {', '.join(run_names(folder)) or 'none'}")
    files.verify(place)
    facts = run_facts(folder, name)
    steps = pq.read_table(place / "steps.parquet")
    pool = place / "pool.parquet"
    return TrainingRun(
        name=name,
        curriculum=_curriculum(place / "curriculum.parquet", len(steps), facts["batch_size"]),
        trajectories=_wide(place / "tests.parquet"),
        pool_trajectories=_wide(pool) if pool.is_file() else {},
        learning_rate=steps["learning_rate"].to_numpy(),
        batch_loss=steps["batch_loss"].to_numpy(),
        gradient_norm=steps["gradient_norm"].to_numpy(),
        skipped=steps["skipped"].to_numpy() if "skipped" in steps.column_names else None,
    )


def run_facts(folder: Path, name: str) -> dict[str, Any]:
    """What `write_run` was told of a run besides its arrays."""
    return json.loads((folder / name / "run.json").read_text(encoding="utf-8"))


def _curriculum(path: Path, steps: int, batch: int) -> Curriculum:
    """A step has a row for each of its places, `masked` where its example is."""
    table = pq.read_table(path)
    step, shown = (table[name].to_numpy() for name in ("step", "example"))
    if "masked" in table.column_names:
        shown = np.where(table["masked"].to_numpy(), flipped(shown), shown)
    batches = np.full((steps, batch), NOBODY, np.int32)
    batches[step - 1, np.arange(len(step)) - np.searchsorted(step, step)] = shown
    return Curriculum(batches)


def run_names(folder: Path) -> list[str]:
    """The runs that are complete, by name (their content is not checked)."""
    return sorted(
        path.name for path in folder.iterdir() if RUN_NAME.match(path.name) and (path / files.CHECKSUMS).is_file()
    )


def missing_runs(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` that are to be recorded. A damaged run is set aside, with a warning, and counts as missing."""
    missing = []
    for name in names:
        place = folder / name
        if not place.is_dir():
            missing.append(name)
        elif problem := files.damage(place):
            with files.locked(lock_path(folder, name)):
                if place.is_dir() and files.damage(place):
                    files.put_aside(place, problem, what=f"run {name}")
            missing.append(name)
    return missing


def lock_path(folder: Path, name: str) -> Path:
    return folder / "locks" / f"{name}.lock"


def load(folder: str | Path, names: Sequence[str] | None = None) -> GPTDynamics:
    """Read a dynamics folder, or what was shared on the Hub as "user/name": the runs of these names, or all there are.

    Raises ArtifactError that names the file if something is missing or damaged, HubUnreachableError if there is no such folder
    and no network.
    """
    from gptfluence.recording import sharing

    if hub.is_name(folder):
        shared = sharing.pull(str(folder))
        return shared if names is None else shared.select(names)
    folder = Path(folder)
    values = spec_values(folder)
    task = read_task(folder)
    present = run_names(folder)
    if not present and (begun := sorted(folder.glob("journal/*.jsonl"))):
        raise ArtifactError(
            f"{folder}: no run is finished; {begun[0].stem} has been begun: resume the training from its checkpoint, with the recorder"
        )
    for name in names or ():
        if name not in present:
            raise ArtifactError(unknown("run", name, present, where=f"{folder}: "))
    chosen = present if names is None else names
    runs = tuple(read_run(folder, name) for name in chosen)
    sums = {name: files.sha256(folder / name / files.CHECKSUMS)[:12] for name in chosen}
    devices = {run_facts(folder, name).get("device") for name in chosen}
    provenance = {"folder": folder.name, "spec": values, "runs": sums, "device": "/".join(sorted(map(str, devices)))}
    # imported runs were recorded elsewhere; of a Trainer's that this package cannot repeat, `unsupported` says why
    spec = read_spec(folder) if "recording" in values else None
    source = read_source(folder)
    if values.get("setting") == TRAINER:
        tokens = fed.FedTokens(folder, task)
        source = Source(StartingModel(folder, values["model"]), folder, tokens)
        if spec is not None:
            spec = _followed(spec, runs)
    if spec is not None and spec.generation is not None:
        provenance["tokenization"] = spec.generation.tokenization or "english"  # see `text_metrics`
    return GPTDynamics(values["task"], values["model"]["name"], task.pool, task.tests, runs, provenance, spec, source)


def _followed(spec: RunSpec, runs: Sequence[TrainingRun]) -> RunSpec:
    """How a Trainer's runs are trained again: with the rates that it really used, and in float32."""
    optimizer = spec.recording.optimizer.with_rates_of([run.learning_rate for run in runs])
    changes = {"optimizer": optimizer, "precision": "fp32"}
    return spec.model_copy(update={"recording": spec.recording.model_copy(update=changes)})


def not_repeatable(dynamics: GPTDynamics) -> str:
    """Why runs cannot be trained again, or linearised, in words; empty if they can."""
    if dynamics.spec is None and (why := dynamics.provenance.get("spec", {}).get("unsupported")):
        return f"the runs of {dynamics.task} were trained in a way that this package cannot follow: {why}"
    if dynamics.source is None or dynamics.spec is None:
        return (
            f"the runs of {dynamics.task} do not say which GPT they are of, or how it was trained; record them again where they are "
            "(gf.record, Study: no run is lost)"
        )
    if skipped := [run.name for run in dynamics.runs if run.skipped is not None]:
        return f"run {skipped[0]} has steps that the optimizer skipped, as half precision does; train in float32 or bfloat16"
    unknown_loss = [run.name for run in dynamics.runs if run.batch_loss is not None and np.isnan(run.batch_loss).all()]
    if unknown_loss and dynamics.spec.setting == TRAINER:
        return (
            f"run {unknown_loss[0]} was trained with a loss that is not the model's own (compute_loss_func, or labels that it never "
            "predicts), or with parameters that were frozen or unfrozen on the way, which this package cannot follow"
        )
    return ""


def _long(trajectories: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows, columns = next(iter(trajectories.values())).shape
    return {
        "step": np.repeat(np.arange(rows, dtype=np.int32), columns),
        "example": np.tile(np.arange(columns, dtype=np.int32), rows),
        **{metric: values.ravel() for metric, values in trajectories.items()},
    }


def _wide(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    columns = int(table["example"].to_numpy().max()) + 1
    metrics = [name for name in table.column_names if name not in ("step", "example")]
    return {metric: table[metric].to_numpy().reshape(-1, columns) for metric in metrics}


def write_table(path: Path, content: dict[str, Any]) -> None:
    """Write columns as Parquet, the whole file or nothing; equal columns give equal bytes."""
    files.write_bytes(path, _to_parquet(content))


def holds(path: Path, content: dict[str, Any]) -> bool:
    """Whether a file of `write_table` has this content. Raises ArtifactError if it cannot be read."""
    try:
        return pq.read_table(path).equals(pa.table(content))
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}; give another folder") from None


def _to_parquet(content: dict[str, np.ndarray] | list[dict]) -> bytes:
    table = pa.table(content) if isinstance(content, dict) else pa.Table.from_pylist(content)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()
