"""GPTfluence: what would a GPT have learned, had it been trained on other data?

Record how a GPT learns on random curricula, fit a simulator to it, and simulate the whole trajectory of every test
example for a curriculum nobody trained on. After "On Training Data Influence of GPT Models" (EMNLP 2024).

Names are imported when they are first used, so that `import gptfluence` and the command line start at once.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Study": "study.study",
    "record": "recording.record",
    "TrainerRecorder": "trainers.callback",
    "train_again": "trainers.again",
    "Notebook": "workflow.notebook",
    "AdamW": "recording.settings",
    "Recording": "recording.settings",
    "LoRA": "models.settings",
    "Curriculum": "recording.curriculum",
    "draw_curricula": "recording.curriculum",
    "GPTDynamics": "recording.dynamics",
    "load_dynamics": "recording.store:load",
    "Simulator": "simulators.base",
    "GPTfluence": "simulators.gptfluence",
    "Simfluence": "simulators.simfluence",
    "TangentSimulator": "simulators.tangent",
    "LowRank": "simulators.low_rank",
    "Persistence": "simulators.reference",
    "MeanTrajectory": "simulators.reference",
    "evaluate": "scoring.evaluation",
    "summarize": "scoring.evaluation",
}
_MODULES = {
    "tasks": "tasks",
    "encoders": "models.encoders",
    "trajectories": "drawing.trajectories",
    "sweeps": "drawing.sweeps",
    "points": "drawing.points",
    "overview": "drawing.overview",
    "inspection": "drawing.inspection",
    "gallery": "drawing.gallery",
    "task_panels": "drawing.task_panels",
    "tables": "drawing.tables",
    "readings": "drawing.readings",
    "readings_beyond": "drawing.readings_beyond",
    "hyperparameters": "drawing.hyperparameters",
    "names": "drawing.names",
    "paper": "paper",
}

__all__ = [*_WHERE, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"gptfluence.{_MODULES[name]}")
    if name in _WHERE:
        module, _, attribute = _WHERE[name].partition(":")
        value = getattr(import_module(f"gptfluence.{module}"), attribute or name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'gptfluence' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
