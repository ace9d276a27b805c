"""Trainings of a Trainer as they happen: killed and resumed, in several processes; the store is that of a training at rest."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import TrainerCallback

import gptfluence as gf
from gptfluence.common.settings import ROOT
from trainings import content, model_of, rows, trained

OPTIONS = {"weight_decay": 0.1, "warmup_steps": 2, "max_grad_norm": 0.5, "save_strategy": "steps"}
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="a training is killed in a fork")


@pytest.fixture(scope="module")
def data(gpt, webnlg) -> Dataset:
    return rows(webnlg.pool, gpt).select(range(11))


@pytest.fixture(scope="module")
def tests(gpt, webnlg) -> Dataset:
    return rows(webnlg.tests, gpt)


class Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **given) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@forks
@pytest.mark.parametrize(
    ("killed", "torn"), [(1, False), (3, False), (5, True)], ids=["before any checkpoint", "later", "torn"]
)
def test_a_training_that_is_killed_and_resumed_gives_the_same_store(data, tests, tmp_path, killed, torn):
    options = {**OPTIONS, "save_steps": 2, "max_steps": 7}
    trained(
        model_of("gpt2", dropout=0.1), data, tmp_path / "whole", gf.TrainerRecorder(tests, tmp_path / "a"), **options
    )
    child = os.fork()
    if not child:
        recorder = gf.TrainerRecorder(tests, tmp_path / "b")
        trained(model_of("gpt2", dropout=0.1), data, tmp_path / "killed", recorder, Kill(killed), **options)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if torn:  # in the middle of a line
        journal = tmp_path / "b" / "journal" / "train-000.jsonl"
        journal.write_bytes(journal.read_bytes()[:-40])
    recorder = gf.TrainerRecorder(tests, tmp_path / "b")
    trained(model_of("gpt2", dropout=0.1), data, tmp_path / "killed", recorder, resume=killed > 2, **options)
    assert content(tmp_path / "b") == content(tmp_path / "a")


class Whole(TrainerCallback):
    """Marks checkpoints that were written to the end: a Trainer cannot go on from another."""

    def on_save(self, args, state, control, **given) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "whole").touch()


@forks
@pytest.mark.slow
def test_a_training_that_is_killed_again_and_again_at_any_moment_gives_the_same_store(data, tests, tmp_path):
    """While texts are read, the GPT is kept, a step is written, a checkpoint is saved, or the run is put in its place."""
    options = {**OPTIONS, "save_steps": 1, "max_steps": 12, "gradient_accumulation_steps": 2}

    def train(store: str, folder: str, resume: str | None = None) -> None:
        recorder = gf.TrainerRecorder(tests, tmp_path / store)
        trained(model_of("gpt2", dropout=0.1), data, tmp_path / folder, recorder, Whole(), resume=resume, **options)

    started = time.monotonic()
    train("a", "whole")
    lasts, dice, kills = time.monotonic() - started, random.Random(0), 0
    while True:
        marks = tmp_path.glob("killed/checkpoints/checkpoint-*/whole")
        latest = max(marks, key=lambda mark: int(mark.parent.name.split("-")[1]), default=None)
        child = os.fork()
        if not child:
            train("b", "killed", None if latest is None else str(latest.parent))
            os._exit(0)
        if kills < 8:
            time.sleep(dice.uniform(0.1, 0.7) * lasts)
            os.kill(child, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not ended:
            break
        assert ended == -signal.SIGKILL
        kills += 1
    assert kills, "nothing was killed, nothing is tested"
    assert content(tmp_path / "b") == content(tmp_path / "a")


@pytest.mark.slow
def test_two_processes_record_one_store(data, tests, tmp_path):
    """Examples of both, in the order of the processes; and what was recorded is what one process makes of these batches."""
    for name, dataset in (("data", data), ("tests", tests)):
        (tmp_path / f"{name}.json").write_text(json.dumps(dataset.to_list()))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(ROOT / "tests" / "trained_by_torchrun.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in range(2))
    [run] = gf.load_dynamics(tmp_path / "runs").runs
    shown = [run.curriculum.examples(row) for row in range(run.curriculum.steps)]
    assert shown == [one + other for one, other in zip(first, second, strict=True)]
    again = gf.train_again(tmp_path / "runs")
    np.testing.assert_allclose(again.trajectories["loss"], run.trajectories["loss"], atol=1e-5)
    np.testing.assert_allclose(again.batch_loss, run.batch_loss, rtol=1e-4)
