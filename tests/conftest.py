"""What several test modules share: a GPT small enough to be trained in milliseconds, and texts for it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: models this small gain nothing from threads

from gptfluence.models.gpt import GPT, ModelSource
from gptfluence.models.settings import NanoModel
from gptfluence.tasks import Task, mini
from gptfluence.workflow.notebook import NOTEBOOKS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def pytest_configure() -> None:
    """Give each process of pytest-xdist a core of its own: what records takes all that it sees."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def nano(tmp_path_factory) -> ModelSource:
    """A GPT-NeoX of one layer, trained for a moment."""
    config = NanoModel(source="nano", width=16, layers=1, heads=2, vocabulary=400, positions=128, pretraining_steps=5)
    corpus = {"names": ["sst2", "webnlg"], "seed": 0, "examples_per_task": 60}
    return ModelSource("nano-test", config, tmp_path_factory.mktemp("models"), corpus)


@pytest.fixture(scope="session")
def gpt(nano) -> GPT:
    """The same, loaded once; a test that changes it loads its own with `nano.load()`."""
    return nano.load()


@pytest.fixture(scope="session")
def sst2() -> Task:
    """Labels as targets."""
    return mini.generate("sst2", pool_size=12, test_size=7)


@pytest.fixture(scope="session")
def webnlg() -> Task:
    """Sentences of different lengths as targets."""
    return mini.generate("webnlg", pool_size=12, test_size=7)


@pytest.fixture(scope="session")
def smoke_store(tmp_path_factory) -> Path:
    """A store of artifacts for all tests that run notebooks of profile smoke, so that each run is recorded once.

    Processes of pytest-xdist share it: their temporary folders have one parent.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return folder / "smoke-artifacts"


@pytest.fixture
def load(monkeypatch):
    """Import a module of benchmarks/, as its scripts do; it is forgotten after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture(scope="module")
def papermill(tmp_path_factory: pytest.TempPathFactory, smoke_store: Path):
    """Run a notebook of profile smoke by papermill alone, from another folder, with parameters such as "runs: 2".

    A module's runs share one folder of outputs.
    """
    folder = tmp_path_factory.mktemp("papermill")

    def run(name: str, *parameters: str) -> tuple[subprocess.CompletedProcess, Path]:
        outputs = folder / "outputs"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "papermill", str(NOTEBOOKS / f"{name}.ipynb"), str(folder / f"{name}.ipynb")),
                *("-k", "python3", "--no-progress-bar", "-p", "profile", "smoke", "-p", "output_dir", str(outputs)),
                *(part for parameter in parameters for part in ("-y", parameter)),
            ],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "GPTFLUENCE_ARTIFACTS": str(smoke_store)},
        )
        return done, outputs

    return run
