"""Tasks: what a GPT is trained on (a pool of examples) and what it is measured on (the tests).

Three sources: `mini` generates text, `local` reads JSON Lines, `hub` loads Hugging Face data sets; `instructions` puts
an instruction around the examples of any of them. Tasks that are known by name stand in `records`.
"""

from gptfluence.tasks.base import Example, Task, TaskPool
from gptfluence.tasks.local import read_jsonl
from gptfluence.tasks.records import TASKS

__all__ = ["TASKS", "Example", "Task", "TaskPool", "read_jsonl"]
