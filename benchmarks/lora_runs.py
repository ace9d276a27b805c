"""Runs of `ext08_adapters` that a Trainer records on another machine, for example a GPU that is lent for minutes.

    python benchmarks/lora_runs.py develop                          # here: LoRA's learning rate, on a task that is not shown
    python benchmarks/lora_runs.py prepare FOLDER                   # here: texts and curricula; the weights are those of gpu_runs.py
    python benchmarks/lora_runs.py record FOLDER --out OUT          # there: as many runs as there is time for
    tar -xzf OUT/trainings.tar.gz --skip-old-files -C artifacts     # here again: the notebook finds the runs as recorded

Weights are carried by `gpu_runs.py prepare`; where its pieces lie in FOLDER, too, they are unpacked once for both. A run's key does not
depend on the device. Runs of both ways come in the order in which they are needed, and each is stored when it is done.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import carried
import numpy as np

from gptfluence.common import files

PROFILE, MODEL, TASK, DEVELOPMENT = "laptop", "smollm2-135m", "movies", "products"
TIMES = (5.0, 10.0, 20.0, 40.0)  # LoRA's learning rate over that of all weights
JOB = "lora.json"
EVERY = 15.0  # seconds between two archives


def campaign_of(profile: str, task: str, model: str) -> Any:
    import gptfluence as gf

    study = gf.Study.load(profile, [f"settings.fine_tuning.tasks=[{task}]"])
    return study.campaign("fine_tuning", task, model=model)


def develop(options: argparse.Namespace) -> None:
    """Print how far one run lowers the mean loss of the tests: all weights at the profile's rate, adapters at several."""
    from gptfluence.experiments import adapters, shifted

    campaign = campaign_of(options.profile, options.task, options.model)
    [curriculum] = shifted.draw(campaign, "alike", 1)
    print(f"{campaign.task}, {campaign.model}: mean loss of the tests before and after {curriculum.steps} steps")
    for times in options.times:
        for way, tuned in adapters.ways(campaign, times=times).items():
            if way == adapters.FULL and times != options.times[0]:
                continue
            before, after = np.nanmean(
                tuned.record([curriculum], ends_only=True).trajectories()[0, [0, -1]], axis=1
            ).tolist()
            rate = tuned.recording.optimizer.learning_rate
            print(f"{way:<6}{rate:10.1e}{before:9.4f}{after:9.4f}", flush=True)


def prepare(options: argparse.Namespace) -> None:
    """Write FOLDER/lora.json: everything that `record` needs besides the weights."""
    from gptfluence.experiments import adapters

    campaign = campaign_of(options.profile, options.task, options.model)
    drawn = adapters.Drawn.of(campaign, **adapters.COUNTS)
    runs, tuned = [], adapters.ways(campaign)
    for curricula, ends_only in drawn.parts():
        for way in tuned:
            runs += [{"way": way, "batches": one.batches.tolist(), "ends_only": ends_only} for one in curricula]
    texts = campaign.texts
    job = {
        "task": texts.name,
        **{part: [one.to_dict() for one in getattr(texts, part)] for part in ("pool", "tests")},
        "ways": {
            way: {
                "config": one.source.config.model_dump(mode="json"),
                "corpus": one.source.corpus,
                "recording": one.recording.model_dump(mode="json"),
                "folder": one.folder.name,
            }
            for way, one in tuned.items()
        },
        "model": campaign.model,
        "runs": runs,
    }
    options.folder.mkdir(parents=True, exist_ok=True)
    files.write_json(options.folder / JOB, job)
    print(f"{len(runs)} runs; {options.folder / JOB} is to be carried, and the weights as gpu_runs.py packs them")


def tuned_of(job: dict[str, Any], way: str, artifacts: Path) -> Any:
    """What the notebook will ask for, in another store. Ends the program if it would have another name there."""
    from pydantic import TypeAdapter

    from gptfluence.models.gpt import ModelSource
    from gptfluence.models.settings import ModelConfig
    from gptfluence.recording.settings import Recording
    from gptfluence.tasks.base import Example, Task, TaskPool
    from gptfluence.trainers.tuned import Tuned

    facts = job["ways"][way]
    pool, tests = (
        TaskPool(f"{job['task']}/{part}", tuple(Example.from_dict(row) for row in job[part]))
        for part in ("pool", "tests")
    )
    config = TypeAdapter(ModelConfig).validate_python(facts["config"])
    found = Tuned(
        way=way,
        source=ModelSource(job["model"], config, artifacts / "models", facts["corpus"]),
        texts=Task(job["task"], pool, tests, may_overlap=True),
        recording=Recording.model_validate(facts["recording"]),
        trainings=artifacts / "trainings",
    )
    if found.folder.name != facts["folder"]:
        raise SystemExit(f"{way}: its folder is {found.folder.name} here and {facts['folder']} there")
    return found


def record(options: argparse.Namespace) -> None:
    """Record until all is done or the deadline comes, and write trainings.tar.gz and lora_runs.json into `options.out`."""
    began = time.time()
    path = next(options.folder.rglob(JOB))
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"][: options.most]
    artifacts = next(iter(options.folder.rglob("artifacts/models")), path.parent / "artifacts" / "models").parent
    (artifacts / "models").mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    carried.unpack(options.folder, artifacts / "models")
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    context = multiprocessing.get_context("spawn")
    workers = ProcessPoolExecutor(options.processes, mp_context=context)
    work = [workers.submit(one, path, artifacts, number, options.device) for number in range(len(runs))]
    seconds, errors, packed = {}, [], began
    try:
        for done in as_completed(work, timeout=max(1.0, began + options.deadline - time.time())):
            if error := done.exception():
                errors.append(repr(error))
            else:
                seconds[work.index(done)] = round(done.result(), 2)
            if time.time() - packed > EVERY:
                carried.archive(artifacts, "trainings", options.out / "trainings.tar.gz")
                packed = time.time()
                print(f"{packed - began:.0f} s: {len(seconds)} of {len(runs)} runs", flush=True)
    except TimeoutError:
        errors.append("the deadline came")
    processes = list(workers._processes.values())
    workers.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
    carried.archive(artifacts, "trainings", options.out / "trainings.tar.gz")
    summary = {
        "seconds": round(time.time() - began, 1),
        "device": options.device,
        "processes": options.processes,
        "seconds_of_run": {f"{runs[k]['way']} {k}": value for k, value in sorted(seconds.items())},
        "errors": errors,
    }
    files.write_json(options.out / "lora_runs.json", summary)
    median = float(np.median(list(seconds.values()))) if seconds else float("nan")
    print(f"{len(seconds)} of {len(runs)} runs, {median:.1f} s each, {summary['seconds']} s in all")
    for error in errors[:3]:
        print(error)


def one(path: Path, artifacts: Path, number: int, device: str) -> float:
    """Record one run, in a process of its own; the seconds it took, 0 if it was there."""
    from gptfluence.recording.curriculum import Curriculum
    from gptfluence.trainers.tuned import train

    began, job = time.time(), json.loads(path.read_text(encoding="utf-8"))
    run = job["runs"][number]
    tuned, curriculum = tuned_of(job, run["way"], artifacts), Curriculum(run["batches"])
    if not tuned.missing([curriculum], ends_only=run["ends_only"]):
        return 0.0
    train(tuned, curriculum, every=curriculum.steps if run["ends_only"] else 1, device=device)
    return time.time() - began


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("develop", develop), ("prepare", prepare)):
        here = commands.add_parser(name, help=run.__doc__)
        if run is prepare:
            here.add_argument("folder", type=Path)
        else:
            here.add_argument("--times", type=float, nargs="+", default=TIMES)
        here.add_argument("--profile", default=PROFILE)
        here.add_argument("--model", default=MODEL)
        here.add_argument("--task", default=TASK if run is prepare else DEVELOPMENT)
        here.set_defaults(run=run)
    there = commands.add_parser("record", help=record.__doc__)
    there.add_argument("folder", type=Path, help="holds all that was carried, in any folders")
    there.add_argument("--out", type=Path, required=True)
    there.add_argument("--device", default="cuda")
    there.add_argument("--processes", type=int, default=12)
    there.add_argument("--deadline", type=float, default=300.0, help="seconds")
    there.add_argument("--most", type=int, help="so many runs only, the first")
    there.set_defaults(run=record)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
