"""One process of a training that torchrun starts, recorded: `torchrun --nproc-per-node 2 tests/trained_by_torchrun.py FOLDER`.

FOLDER has data.json and tests.json, and gets the runs and what each process has seen.
"""

import json
import os
import sys
from pathlib import Path

from datasets import Dataset

import gptfluence as gf
from trainings import Seen, model_of, trained

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    data, tests = (Dataset.from_list(json.loads((folder / f"{name}.json").read_text())) for name in ("data", "tests"))
    seen, recorder = Seen(data), gf.TrainerRecorder(tests, folder / "runs")
    options = {"gradient_accumulation_steps": 2, "logging_strategy": "steps", "logging_steps": 2}
    trained(model_of("llama"), data, folder, seen, recorder, ddp_backend="gloo", **options)
    (folder / f"seen-{os.environ['RANK']}.json").write_text(json.dumps(seen.steps))
