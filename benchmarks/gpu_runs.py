"""Recordings of a study that are made on another machine, for example a GPU that is lent for minutes.

    python benchmarks/gpu_runs.py prepare FOLDER --pieces 3            # here: texts, curricula and the GPTs, ready to be carried
    python benchmarks/gpu_runs.py record FOLDER --out OUT --deadline 300   # there: as many runs as there is time for
    tar -xzf OUT/recordings.tar.gz --skip-old-files -C artifacts       # here again: notebooks find the runs as recorded

`prepare` writes what the study itself would write before it records (`Wanted`), so the runs have the names and keys of this
machine's; a key does not depend on the device. The device is written down in each run's run.json. `record` needs neither the
packages that texts come from nor a hub. Runs come in the order of `GROUPS`, those of a GPT whose weights have not come yet
wait for them; each is stored when it is done, the archive is written anew every 20 seconds, and recording ends at the deadline
or when the process is told to end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import carried
from common import Comparison, Side, write

from gptfluence.common import files

PROFILE, TASKS = "laptop", ("movies", "operations")
FINE = "settings.fine_tuning"
LOSSES = [f"{FINE}.metrics=[loss]"]
SLOW = [
    "regime=slow drift",
    f"{FINE}.recording.optimizer.learning_rate=1e-6",
    f"{FINE}.curriculum.epochs=8",
    f"{FINE}.runs={{train: 25, validation: 2, test: 5}}",
    *LOSSES,
]
PAPER = [f"{FINE}.runs={{train: 25, validation: 2, test: 10}}"]
SEED = ["seed=1", *LOSSES]
GEMMA = [
    f"{FINE}.models=[gemma3-270m]",
    f"{FINE}.tasks=[movies]",
    f"{FINE}.runs={{train: 10, validation: 1, test: 5}}",
    *LOSSES,
]
OTHER = ("few", "sorted", "biased")
FURTHER = ("dropped", "added", "faster", "longer")
OF_A_KIND = 5
# (name, changes to the profile, what is recorded); the first are the most wanted
GROUPS: list[tuple[str, list[str], Sequence[str]]] = [
    ("profile", [], ["profile"]),
    ("other kinds", [], OTHER),
    ("unseen examples", [], ["unseen training", "unseen test"]),
    ("what tasks teach", [], ["slow drift", "accuracy", "left out"]),
    ("another seed", SEED, ["profile", *OTHER]),
    ("mixture", [], ["mixture", "mixture unseen training", "mixture unseen test"]),
    ("Gemma", GEMMA, ["profile", *OTHER]),
    ("slow drift, 96 steps", SLOW, ["profile"]),
    ("further kinds", [], FURTHER),
    ("again, for the ceiling", [], ["again"]),
    ("as many runs as the paper has", PAPER, ["profile"]),
]
RUNS = "runs.json"
EVERY = 20.0  # seconds between two archives


class Late(Exception):
    """The deadline came in the middle of a run."""


# --- here --------------------------------------------------------------------------------------------------------------


def prepare(options: argparse.Namespace) -> None:
    """Write FOLDER/0, FOLDER/1, ...: what each transfer takes. `artifacts/` and the list of runs are in the first."""
    import gptfluence as gf
    from gptfluence.recording import store

    target = options.folder
    runs: dict[tuple[str, str], dict[str, Any]] = {}  # a run that several groups want belongs to the first of them
    models = {}
    for group, changes, what in GROUPS:
        study = gf.Study.load(options.profile, changes)
        for each in what:
            for wanted in wanted_of(study, each, options.tasks):
                there = replace(wanted, source=source_there(wanted.source, (target / "0" / "artifacts").resolve()))
                store.write_folder(there.folder, there.spec, there.texts, there.source)
                folder = there.folder.relative_to(there.source.artifacts).as_posix()
                model = wanted.source.gpt
                models[model.name] = model
                for name in wanted.names:
                    if options.missing and (wanted.folder / name).is_dir():
                        continue
                    given = wanted.curricula.get(name)
                    batches = None if given is None else given.batches.tolist()
                    run = {"group": group, "folder": folder, "name": name, "curriculum": batches}
                    runs.setdefault((folder, name), run | {"model": Path(model.location()).name})
    files.write_json(target / "0" / RUNS, list(runs.values()))
    for model in models.values():
        pack_model(model, target, options.pieces)
    print(f"{len(runs)} runs in {len({folder for folder, _ in runs})} folders; {target} holds what is to be carried")


def pack_model(source: Any, target: Path, pieces: int) -> None:
    """The weights of a GGUF that packages hold (`ModelSource`), in pieces."""
    from gptfluence.common.packages import opened

    whole = target / "whole.gguf"
    with whole.open("wb") as joined:
        for part in source.config.parts:
            with opened(part) as contents, contents.open(part.file) as file:
                joined.write(file.read())
    carried.pack(whole, Path(source.location()), target, pieces)
    whole.unlink()


def source_there(source: Any, artifacts: Path) -> Any:
    """The same GPT in another store, the one that is carried (`dynamics.Source`)."""
    from gptfluence.models.gpt import ModelSource

    gpt = source.gpt
    return replace(source, gpt=ModelSource(gpt.name, gpt.config, artifacts / "models", gpt.corpus), artifacts=artifacts)


def wanted_of(study: Any, what: str, tasks: Sequence[str]) -> Iterator[Any]:
    """What a study would record (`Wanted`) with its first GPT: runs of the profile, on unseen examples, of a kind, of the mixture."""
    from gptfluence.experiments import shifted

    if what.startswith("mixture"):
        yield study.campaign("instruction_tuning").wanted(what.partition("unseen ")[2] or None)
        return
    setting = study.setting("fine_tuning")
    tasks = [task for task in setting.tasks if task in tasks]
    for campaign in study.campaigns("fine_tuning", tasks, models=[setting.model]):
        if what == "profile" or what.startswith("unseen "):
            yield campaign.wanted(what.partition("unseen ")[2] or None)
        elif what in ("slow drift", "accuracy", "left out"):
            yield from _teaching(campaign, what)
        elif what == "again":  # the held-out curricula once more, with other random numbers for the texts
            if not study.is_labelled(campaign.task):
                yield given(campaign, _held_out(campaign))
        else:
            other = campaign.losses_only
            if what == "faster":
                other = other.with_(learning_rate=2 * campaign.setting.recording.optimizer.learning_rate)
            yield given(other, shifted.draw(campaign, what, OF_A_KIND))


def given(campaign: Any, curricula: Sequence[Any], *, ends_only: bool = False) -> Any:
    """`Wanted` of runs on these curricula, as `Campaign.record` names them."""
    from gptfluence.recording.record import named
    from gptfluence.study.texts import Texts

    return campaign.source.wanted(campaign.setting, Texts(campaign.texts), named(curricula), ends_only=ends_only)


def _teaching(campaign: Any, what: str) -> Iterator[Any]:
    """What ext00_tasks records (`Wanted`) with its defaults: in the regime of slow drift, for accuracies, and with examples left out."""
    from gptfluence.experiments import leave_out, task_statistics
    from gptfluence.workflow.notebook import NOTEBOOKS
    from gptfluence.workflow.parameters import declared_parameters

    declared = declared_parameters(NOTEBOOKS / "ext00_tasks.py")
    slow_drift, train, test, left_out = (declared[name][1] for name in ("slow_drift", "train", "held_out", "left_out"))
    held_out = _held_out(campaign)
    if what == "slow drift":
        runs = campaign.setting.runs
        yield task_statistics.slowly(campaign, slow_drift, min(train, runs.train), min(test, runs.test)).wanted()
    if what == "accuracy" and campaign.study.is_labelled(campaign.task):
        yield given(task_statistics.with_accuracy(campaign), held_out[:test], ends_only=True)
    if what == "left out":
        without = leave_out.drawn(campaign, held_out[0], [1], left_out)
        yield given(campaign.losses_only, [one.curriculum for one in without], ends_only=True)


def _held_out(campaign: Any) -> list[Any]:
    from gptfluence.recording.workers import curriculum_of

    wanted = campaign.wanted()
    names = [name for name in wanted.names if name.startswith("test-")]
    return [curriculum_of(wanted.spec, name, len(wanted.texts.pool)) for name in names]


# --- there -------------------------------------------------------------------------------------------------------------


def record(options: argparse.Namespace) -> None:
    """Record until all is done or the deadline comes, and write recordings.tar.gz and gpu_runs.json into `options.out`."""
    started = time.time()
    store = next(options.folder.rglob(RUNS)).parent
    runs = json.loads((store / RUNS).read_text(encoding="utf-8"))[: options.most]
    artifacts = store / "artifacts"
    if not (artifacts / "models").exists():
        (artifacts / "models").mkdir()
    options.out.mkdir(parents=True, exist_ok=True)
    here = carried.unpack(options.folder, artifacts / "models")
    unpacked = time.time()
    print(f"{len(here)} GPTs were unpacked in {unpacked - started:.1f} s; {len(runs)} runs", flush=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    context = multiprocessing.get_context("spawn")
    deadline = context.Value("d", started + options.deadline)
    signal.signal(signal.SIGTERM, lambda *_: setattr(deadline, "value", 0.0))
    logs = store / "logs"
    logs.mkdir(exist_ok=True)
    workers = [
        context.Process(target=work, args=(logs / f"{k}.jsonl", artifacts, runs, deadline, options.device))
        for k in range(options.processes)
    ]
    for worker in workers:
        worker.start()
    packed = looked = time.time()
    try:
        while any(worker.is_alive() for worker in workers) and time.time() < deadline.value + 5:
            time.sleep(0.2)
            if time.time() - looked > 1.0:  # for what has come since
                carried.unpack(options.folder, artifacts / "models")
                looked = time.time()
            if time.time() - packed > EVERY:
                carried.archive(artifacts, "dynamics", options.out / "recordings.tar.gz")
                packed = time.time()
                done = sum("seconds" in one for one in _noted(logs))
                print(f"{packed - started:.0f} s: {done} runs", flush=True)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
        carried.archive(artifacts, "dynamics", options.out / "recordings.tar.gz")
    summary = summary_of(runs, _noted(logs))
    content = {
        "mode": "full",
        "options": {"device": options.device, "processes": options.processes},
        "comparisons": [compared(summary).facts()],
        "facts": {"card": card(options.device), "seconds": round(time.time() - started, 1)},
    }
    write(options.out, "gpu_runs", content | summary, None)
    for group in summary["groups"]:
        print(
            "{group:<32}{done:>5} of {asked:>4} runs{seconds_a_run!s:>12} s each{elapsed!s:>10} s in all".format(
                **group
            )
        )
    for error in summary["errors"][:3]:
        print(error)


def work(log: Path, artifacts: Path, runs: list[dict[str, Any]], deadline: Any, device: str) -> None:
    """Take one run after another until none is left, and note a line of JSON for each; in a process of its own.

    A run that fails is tried once more, and runs of a GPT that is not there yet wait for it.
    """
    import torch

    torch.set_num_threads(1)
    recorders, failures, left = Recorders(artifacts, device), 0, dict.fromkeys(range(len(runs)), 2)

    def in_time(_: int) -> None:
        if time.time() > deadline.value:
            raise Late

    def free() -> Iterator[int]:
        """Runs that nobody has recorded, as often as they may be tried."""
        while left:
            for number in list(left):
                if (artifacts / runs[number]["folder"] / runs[number]["name"]).is_dir():
                    del left[number]
                elif (artifacts / "models" / runs[number].get("model", "")).is_dir():
                    yield number
            time.sleep(0.1)

    for number in free():
        if time.time() > deadline.value or failures > 2:
            return
        run = runs[number]
        noted = {key: run[key] for key in ("group", "folder", "name")} | {"began": time.time()}
        try:
            if not recorders.record(run, in_time):
                continue
            failures = 0
            noted |= {"seconds": time.time() - recorders.began, "ended": time.time()}
            if device != "cpu":
                noted["gib"] = torch.cuda.max_memory_reserved() / 2**30
        except Late:
            return
        except Exception:
            failures += 1
            noted["error"] = traceback.format_exc()[-2000:]
            left[number] -= 1
            if not left[number]:
                del left[number]
            recorders = Recorders(artifacts, device)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(noted) + "\n")


class Recorders:
    """Records runs of several dynamics folders with one GPT in memory. `began`: when the last run was begun."""

    def __init__(self, artifacts: Path, device: str) -> None:
        self._artifacts, self._device, self.began = artifacts, device, 0.0
        self._gpts: dict[str, Any] = {}
        self._place: Path | None = None
        self._recorder: Any = None
        self._spec: Any = None

    def record(self, run: dict[str, Any], on_step: Any) -> bool:
        """Whether the run was recorded; not if it is there, or another process is at it."""
        from gptfluence.recording import store, workers

        folder, name = self._artifacts / run["folder"], run["name"]
        with files.locked(store.lock_path(folder, name), wait=False) as mine:
            if not mine or (folder / name).is_dir():
                return False
            if folder != self._place:
                self._open(folder)
            self.began = time.time()
            workers.record_run(folder, self._spec, self._recorder, name, run["curriculum"], on_step)
        return True

    def _open(self, folder: Path) -> None:
        from gptfluence.recording import store, workers

        if self._recorder is not None:
            self._recorder.close()
        self._recorder = self._place = None  # its memory before that of the next
        self._spec, source = store.read_spec(folder), store.read_source(folder)
        assert source is not None
        key = json.dumps(source.gpt.identity(), sort_keys=True)
        if key not in self._gpts:
            self._gpts[key] = source.gpt.load()
        self._recorder = workers.recorder_of(self._spec, store.read_task(folder), self._gpts[key], self._device)
        self._place = folder


def _noted(logs: Path) -> list[dict[str, Any]]:
    lines = [line for path in logs.glob("*.jsonl") for line in path.read_text(encoding="utf-8").splitlines()]
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # it is being written
            continue
    return found


def summary_of(runs: list[dict[str, Any]], noted: list[dict[str, Any]]) -> dict[str, Any]:
    """What was recorded, by group, in how many seconds; and what failed."""
    groups = []
    for group in dict.fromkeys(run["group"] for run in runs):
        asked = sum(run["group"] == group for run in runs)
        done = [one for one in noted if one["group"] == group and "seconds" in one]
        elapsed = max(one["ended"] for one in done) - min(one["began"] for one in done) if done else None
        groups.append(
            {
                "group": group,
                "asked": asked,
                "done": len(done),
                "seconds_a_run": round(median(one["seconds"] for one in done), 2) if done else None,
                "elapsed": None if elapsed is None else round(elapsed, 1),
            }
        )
    return {"groups": groups, "errors": [one["error"] for one in noted if "error" in one], "runs": noted}


def compared(summary: dict[str, Any]) -> Comparison:
    """How long a run of each group took in its process, for the README."""
    sides = []
    for group in summary["groups"]:
        done = [one for one in summary["runs"] if one["group"] == group["group"] and "seconds" in one]
        if done:
            memory = [one["gib"] for one in done if "gib" in one]
            also = {"runs": float(len(done)), "GiB of the GPU a process": median(memory) if memory else None}
            sides.append(Side(group["group"], [round(one["seconds"], 2) for one in done], also))
    return Comparison("Runs of profile laptop", "seconds a run", sides)


def card(device: str) -> dict[str, Any] | None:
    """The GPU's name and memory."""
    if device == "cpu":
        return None
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    here = commands.add_parser("prepare", help="write what is to be carried")
    here.add_argument("folder", type=Path)
    here.add_argument("--profile", default=PROFILE)
    here.add_argument("--tasks", nargs="+", default=list(TASKS))
    here.add_argument("--missing", action="store_true", help="only runs that are not recorded here")
    here.add_argument("--pieces", type=int, default=3, help="of the weights, a folder for each")
    here.set_defaults(run=prepare)
    there = commands.add_parser("record", help="record what was carried")
    there.add_argument("folder", type=Path, help="holds all that was carried, in any folders")
    there.add_argument("--out", type=Path, required=True)
    there.add_argument("--device", default="cuda:0")
    there.add_argument("--processes", type=int, default=10)
    there.add_argument("--deadline", type=float, default=300.0, help="seconds")
    there.add_argument("--most", type=int, help="so many runs only, the first")
    there.set_defaults(run=record)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
