"""Importing published instruction-tuning runs: seconds and peak memory, next to the obvious way to read them.

    python benchmarks/published.py            # a quarter of an hour, 1.2 GB of disk
    python benchmarks/published.py --quick    # half a minute: two short runs

Writes an archive of the published form and size with made-up numbers: texts and a tar of runs, losses of all five tasks,
and BLEU and ROUGE-L of the two with sentences as answers. Then, in a process of its own each:

- import: `gptfluence import-published`, everything counted: start, imports, checks, checksums, files written.
- import again: the same on the store that is there already.
- obvious way: unpack the tar, then for each run a loop over lines with json.loads into a data frame, pivoted. It checks
  nothing and writes nothing. It reads the first `--read` runs, and its seconds are scaled to all.

What is stored must equal what the obvious way reads, or no table is printed.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from common import Apart, Benchmark, Comparison, Side, measured_apart

from gptfluence.models.settings import PublishedModel
from gptfluence.published import importing
from gptfluence.published.text import FLAN_TESTS, TEXTS
from gptfluence.recording import store

BATCH = 8
GENERATED = ("webnlg", "wmt16_de_en")  # tasks with BLEU and ROUGE-L
SERIES = "output_flan_bs-8_shot-200_sample-128_model-pythia-410m-deduped_lr-2e-7_weight-decay-0.001_epoch-3"
LAYOUTS = ("processed", "raw")


# --- an archive of the published form ----------------------------------------------------------------------------------


def write_texts(folder: Path) -> None:
    texts = TEXTS["flan"]
    for name, count in zip((texts.train, texts.test), texts.expected, strict=True):
        lines = [
            json.dumps({"id": k, "input": f"{name} {k}. Answer: True.", "context": f"{name} {k}. Answer:"}) + "\n"
            for k in range(count)
        ]
        (folder / "it_tasks").mkdir(exist_ok=True)
        (folder / "it_tasks" / name).write_text("".join(lines), encoding="utf-8")


def write_tar(path: Path, layout: str, runs: int, steps: int) -> None:
    write = {"processed": processed_files, "raw": raw_files}[layout]
    with tarfile.open(path, "w") as tar:
        for seed in range(1, runs + 1):
            for name, content in write(np.random.default_rng(seed), steps).items():
                member = tarfile.TarInfo(f"runs/flan/{SERIES}_seed-{seed}/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def draw(rng: np.random.Generator, steps: int, tests: int, largest: float) -> list[list[float]]:
    """[tests][steps], with as many digits as a float32 has."""
    return np.round(rng.uniform(0, largest, (tests, steps)), 7).tolist()


def processed_files(rng: np.random.Generator, steps: int) -> dict[str, bytes]:
    batches = rng.integers(0, 1200, (steps, BATCH)).tolist()
    rows = [json.dumps({"step": k, "samples_id": batch}) for k, batch in enumerate(batches, start=1)]
    files = {"train_samples_id.json": "\n".join(rows).encode()}
    for metric, largest in (("loss", 5.0), ("bleu", 100.0), ("rougeL", 1.0)):
        ids = [
            test
            for task, (first, last) in FLAN_TESTS.items()
            if metric == "loss" or task in GENERATED
            for test in range(first, last + 1)
        ]
        values = draw(rng, steps, len(ids), largest)
        rows = [
            json.dumps(
                {"id": test, "loss_trajectory": [{"step": k, "loss": value} for k, value in enumerate(row, start=1)]}
            )
            for test, row in zip(ids, values, strict=True)
        ]
        files[f"all_{metric}_trajectory.out"] = "\n".join(rows).encode()
    return files


def raw_files(rng: np.random.Generator, steps: int) -> dict[str, bytes]:
    batches = rng.integers(0, 1200, (steps, BATCH)).tolist()
    log = [
        f" {k}/{steps} [00:01<00:02]{ {'loss': 1.5, 'learning_rate': 2e-7, 'samples_id': batch, 'step': k}!s}"
        for k, batch in enumerate(batches, start=1)
    ]
    files = {"log.out": "\n".join(log).encode()}
    for task, (first, last) in FLAN_TESTS.items():
        count = last - first + 1
        keys = ("loss", "rouge1", "rouge2", "rougeL", "bleu") if task in GENERATED else ("loss",)
        values = np.array([draw(rng, steps, count, 100.0 if key == "bleu" else 1.0) for key in keys])
        kind = "metric" if task in GENERATED else "loss"
        for step in range(steps):
            rows = [
                json.dumps({"id": test, **dict(zip(keys, values[:, test, step].tolist(), strict=True))})
                for test in range(count)
            ]
            files[f"{kind}_{task}/{kind}_{task}_checkpoint-{step + 1}.out"] = "\n".join(rows).encode()
    return files


# --- the obvious way ---------------------------------------------------------------------------------------------------


def read_obviously(tar: Path, runs: int) -> dict[tuple[int, str, str], np.ndarray]:
    """(seed, task, metric) -> float32 [published steps, tests of the task]"""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(tar) as archive:
            members = [member for member in archive if int(member.name.split("_seed-")[1].split("/")[0]) <= runs]
            archive.extractall(folder, members, filter="data")
        for run in sorted(Path(folder).glob("runs/flan/*")):
            seed = int(run.name.split("_seed-")[1])
            raw = (run / "log.out").is_file()
            frame = pd.DataFrame(raw_rows(run) if raw else processed_rows(run))
            for (metric, task), part in frame.groupby(["metric", "task"]):
                table = part.pivot(index="step", columns="id", values="value")
                found[seed, str(task), str(metric)] = table.to_numpy(np.float32)
    return found


def processed_rows(run: Path) -> list[dict]:
    rows = []
    for name, metric in (("loss", "loss"), ("bleu", "bleu"), ("rougeL", "rouge_l")):
        with (run / f"all_{name}_trajectory.out").open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                (task,) = [task for task, (first, last) in FLAN_TESTS.items() if first <= row["id"] <= last]
                for point in row["loss_trajectory"]:
                    at = {"id": row["id"], "task": task, "step": point["step"]}
                    rows.append({**at, "metric": metric, "value": point["loss"]})
    return rows


def raw_rows(run: Path) -> list[dict]:
    rows = []
    with (run / "log.out").open(encoding="utf-8") as file:
        for line in file:
            ast.literal_eval(line[line.index("{") :])
    for path in run.glob("*/*.out"):
        task, step = re.fullmatch(r"(?:loss|metric)_(\w+)_checkpoint-(\d+)\.out", path.name).groups()  # type: ignore[union-attr]
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                for name, metric in (("loss", "loss"), ("bleu", "bleu"), ("rougeL", "rouge_l")):
                    if name in row:
                        at = {"id": row["id"], "task": task, "step": int(step)}
                        rows.append({**at, "metric": metric, "value": row[name]})
    return rows


# --- measuring ---------------------------------------------------------------------------------------------------------


def do_import(path: Path, artifacts: Path, runs: int) -> None:
    report = importing.import_published(path, artifacts)
    if report.count("imported") + report.count("there already") != runs:
        raise SystemExit(f"not every run was imported: {[run.note for run in report.runs if run.note][:3]}")


def read_and_drop(tar: Path, runs: int) -> None:
    read_obviously(tar, runs)


def check_equal(tar: Path, artifacts: Path, runs: int) -> None:
    for (seed, task, metric), values in read_obviously(tar, runs).items():
        model = PublishedModel(source="published", gpt="pythia-410m")
        folder = importing.find(artifacts / "dynamics", model, setting="instruction_tuning", task=task)
        if not np.array_equal(store.read_run(folder, f"seed-{seed:03d}").trajectories[metric], values):
            raise SystemExit(f"seed {seed}, {task}, {metric}: what was stored is not what was published")


def compare(layout: str, runs: int, steps: int, read: int, repeats: int) -> Comparison:
    """read: how many runs the obvious way reads"""
    obvious = f"obvious way, from {read} of {runs} runs"
    rows: dict[str, list[Apart]] = {"import": [], "import again": [], obvious: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "gptdynamics"
        folder.mkdir()
        tar = folder / "GPTDynamics.tar"
        write_texts(folder)
        write_tar(tar, layout, runs, steps)
        size = tar.stat().st_size / 1e6
        for repetition in range(repeats):
            artifacts = Path(name) / f"artifacts-{repetition}"
            rows["import"].append(measured_apart(do_import, tar, artifacts, runs))
            rows["import again"].append(measured_apart(do_import, tar, artifacts, runs))
            found = measured_apart(read_and_drop, tar, read)
            rows[obvious].append(found._replace(seconds=found.seconds * runs / read))
            if repetition == 0:
                check_equal(tar, artifacts, read)
            shutil.rmtree(artifacts)
    return Comparison(
        f"{layout}: {runs} runs x {steps} steps x {TEXTS['flan'].expected[1]} tests, {size:.0f} MB",
        "seconds",
        [
            Side(row, [each.seconds for each in found], {"peak GiB": max(each.peak for each in found)})
            for row, found in rows.items()
        ],
        reference=obvious,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--steps", type=int, default=288)
    parser.add_argument("--read", type=int, default=2, help="runs that the obvious way reads")
    parser.add_argument("--repeats", type=int, default=3, help="of each row")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))


def measure(options: argparse.Namespace) -> Iterator[Comparison]:
    for layout in options.layouts:
        yield compare(layout, options.runs, options.steps, min(options.read, options.runs), options.repeats)


BENCHMARK = Benchmark("published", __doc__, add_options, {"runs": 2, "steps": 12, "repeats": 1}, measure)

if __name__ == "__main__":
    BENCHMARK.main()
