"""A training in two processes: one store, with the examples of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gptfluence as gf

SCRIPT = """
import sys
from pathlib import Path
from datasets import Dataset
import gptfluence as gf
from test_trainer_recorder import Seen, collate, model_of, trained

folder = Path(sys.argv[1])
data = Dataset.from_list([{"input_ids": [k, k + 1, 2 * k], "labels": [-100, k + 1, 2 * k]} for k in range(1, 11)])
seen = Seen(data)
trained(model_of("llama"), data, folder, seen, gf.TrainerRecorder(data.select(range(3)), folder / "runs"),
        gradient_accumulation_steps=2, num_train_epochs=1, ddp_backend="gloo")
import os
(folder / f"seen-{os.environ['RANK']}.txt").write_text(repr(seen.steps))
"""


@pytest.mark.slow
def test_two_processes_record_one_store(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}", "OMP_NUM_THREADS": "1"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py", str(tmp_path)]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "TrainerRecorder" not in done.stderr
    parts = [eval((tmp_path / f"seen-{rank}.txt").read_text()) for rank in range(2)]
    [run] = gf.load_dynamics(tmp_path / "runs").runs
    expected = [first + second for first, second in zip(*parts, strict=True)]
    assert [run.curriculum.examples(row) for row in range(run.curriculum.steps)] == expected
    assert np.isfinite(run.batch_loss).all()
    assert np.abs(np.diff(run.trajectories["loss"], axis=0)).min(axis=1).max() > 0
