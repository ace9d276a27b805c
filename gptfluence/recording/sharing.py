"""Recorded runs as a data set of the Hugging Face Hub: a few Parquet tables that any reader can open, and a card.

    data/runs.parquet           run, step, learning_rate, batch_loss, gradient_norm, skipped: of every update
    data/curricula.parquet      run, step, example, masked: who was in every update
    data/trajectories.parquet   run, step, example and a column for each metric: what was measured of every test
    data/examples.parquet       part (pool or tests), position and the text of every example
    spec.json                   how the runs were recorded
    README.md                   the card

The GPT, its tokens and what was measured of the pool are not shared.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gptfluence.common import hub
from gptfluence.common.errors import ArtifactError
from gptfluence.recording import store
from gptfluence.recording.curriculum import NOBODY, Curriculum, flipped, named
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.recording.settings import RunSpec
from gptfluence.tasks.base import Example, TaskPool

TABLES = ("runs", "curricula", "trajectories", "examples")
PER_STEP = ("learning_rate", "batch_loss", "gradient_norm")


def push(dynamics: GPTDynamics, name: str, *, private: bool | None = None) -> str:
    """Upload runs to the data set `name` ("user/name"), which is made if it is not there; returns the address of the commit.

    Raises HubUnreachableError where there is no network; errors of huggingface_hub (no right to write, say) as they are.
    """
    from huggingface_hub import HfApi

    hub.require_reachable(name, "runs cannot be shared")
    api = HfApi()
    api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write(dynamics, Path(folder), name)
        commit = api.upload_folder(
            repo_id=name, repo_type="dataset", folder_path=folder, commit_message=f"{len(dynamics)} runs by gptfluence"
        )
    return str(commit)


def pull(name: str) -> GPTDynamics:
    """Download runs that `push` uploaded, or read them from the local cache.

    Raises HubUnreachableError if there is neither, ArtifactError for a data set of another kind.
    """
    return read(hub.downloaded(name, "dataset", ["spec.json", "data/*.parquet"]), name)


def write(dynamics: GPTDynamics, folder: Path, name: str) -> None:
    """The files of the data set. name: for the card."""
    for table, columns in zip(TABLES, _tables(dynamics), strict=True):
        store.write_table(folder / "data" / f"{table}.parquet", columns)
    spec = dynamics.provenance.get("spec") or {"task": dynamics.task, "model": {"name": dynamics.model}}
    (folder / "spec.json").write_text(json.dumps(spec, indent=1, sort_keys=True), encoding="utf-8")
    (folder / "README.md").write_text(_card(dynamics, name), encoding="utf-8")


def _tables(dynamics: GPTDynamics) -> list[dict[str, Any]]:
    runs, curricula, trajectories = [], [], []
    for run in dynamics.runs:
        steps = np.arange(1, run.curriculum.steps + 1, dtype=np.int32)
        nothing = np.full(len(steps), np.nan, np.float32)
        facts = {key: nothing if getattr(run, key) is None else getattr(run, key) for key in PER_STEP}
        skipped = np.zeros(len(steps), bool) if run.skipped is None else run.skipped
        runs.append({"run": np.full(len(steps), run.name), "step": steps, **facts, "skipped": skipped})
        there = run.curriculum.batches != NOBODY
        shown, sizes = run.curriculum.batches[there], there.sum(axis=1)
        curricula.append(
            {
                "run": np.full(len(shown), run.name),
                "step": np.repeat(steps, sizes),
                "example": named(shown),
                "masked": shown < 0,
            }
        )
        rows, columns = next(iter(run.trajectories.values())).shape
        trajectories.append(
            {
                "run": np.full(rows * columns, run.name),
                "step": np.repeat(np.arange(rows, dtype=np.int32), columns),
                "example": np.tile(np.arange(columns, dtype=np.int32), rows),
                **{metric: values.ravel() for metric, values in run.trajectories.items()},
            }
        )
    texts = [
        {"part": part, "position": position, **example.to_dict()}
        for part, pool in (("pool", dynamics.pool), ("tests", dynamics.tests))
        for position, example in enumerate(pool)
    ]
    examples = {key: [row[key] for row in texts] for key in texts[0]}
    examples |= {
        key: pa.array([list(value) for value in examples[key]], pa.list_(pa.string()))
        for key in ("choices", "references")
    }
    examples["label"] = pa.array(examples["label"], pa.int64())
    return [*map(_joined, (runs, curricula, trajectories)), examples]


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def read(folder: Path, name: str) -> GPTDynamics:
    """The opposite of `write`. Raises ArtifactError if `folder` holds something else."""
    try:
        values = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        tables = {table: pq.read_table(folder / "data" / f"{table}.parquet") for table in TABLES}
        texts = tables["examples"].to_pylist()
        pool, tests = (
            TaskPool(f"{values['task']}/{part}", tuple(_example(row) for row in texts if row["part"] == part))
            for part in ("pool", "tests")
        )
        runs = tuple(_run(run, tables) for run in tables["runs"]["run"].unique().to_pylist())
        spec = RunSpec.model_validate(values) if "recording" in values else None
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{name} holds no runs that gptfluence has shared: {error}") from error
    sums = {run.name: hashlib.sha256(run.trajectories["loss"].tobytes()).hexdigest()[:12] for run in runs}
    provenance = {"folder": name, "spec": values, "runs": sums, "device": "unknown"}
    return GPTDynamics(values["task"], values["model"]["name"], pool, tests, runs, provenance, spec)


def _example(row: dict[str, Any]) -> Example:
    return Example.from_dict({key: value for key, value in row.items() if key not in ("part", "position")})


def _run(name: str, tables: dict[str, pa.Table]) -> TrainingRun:
    steps, places, measured = (
        table.filter(pc.equal(table["run"], name)) for table in (tables[each] for each in TABLES[:3])
    )
    shown = np.where(places["masked"].to_numpy(), flipped(places["example"].to_numpy()), places["example"].to_numpy())
    cuts = np.searchsorted(places["step"].to_numpy(), np.arange(2, len(steps) + 1))
    tests = int(measured["example"].to_numpy().max()) + 1
    skipped = steps["skipped"].to_numpy()
    return TrainingRun(
        name=name,
        curriculum=Curriculum([part.tolist() for part in np.split(shown, cuts)]),
        trajectories={
            metric: measured[metric].to_numpy().reshape(-1, tests)
            for metric in measured.column_names
            if metric not in ("run", "step", "example")
        },
        skipped=skipped if skipped.any() else None,
        **{key: steps[key].to_numpy() for key in PER_STEP},
    )


def _card(dynamics: GPTDynamics, name: str) -> str:
    configurations = "\n".join(f"- config_name: {table}\n  data_files: data/{table}.parquet" for table in TABLES)
    return f"""---
tags:
- gptfluence
- training-dynamics
configs:
{configurations}
---

# Training dynamics of {dynamics.model} on {dynamics.task}

{len(dynamics)} training runs, recorded by the Python package gptfluence: which of the
{len(dynamics.pool)} training examples made each update, and {" and ".join(dynamics.metrics)} of {len(dynamics.tests)} test examples
before training and after each update (losses in nats per target token). Step t of `runs` and `curricula` is update t, which leads
from row t - 1 to row t of `trajectories`. An `example` is a position in the pool (in `curricula`) or in the tests.

    import gptfluence as gf

    dynamics = gf.load_dynamics("{name}")
"""
