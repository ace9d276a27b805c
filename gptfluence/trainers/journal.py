"""What was recorded so far, on disk after every step: a training that is killed goes on from it.

A line of JSON for each step. Its measurements are float32, little-endian, in base64, so that they come back to the bit. A line
that a kill has cut off is no line.
"""

from __future__ import annotations

import base64
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from gptfluence.common.errors import ArtifactError
from gptfluence.common.files import write_errors


class Journal:
    """The steps that were recorded: row t of `steps` is what `add` was told of step t, 0 before training."""

    def __init__(self, path: Path, header: dict[str, Any], *, done: int) -> None:
        """done: updates that the training has made so far; later lines are cut off, and all earlier ones must be there.

        Raises ArtifactError if they are not, or if the disk cannot be written.
        """
        self.path, self.header = path, header
        self._lost = path.with_suffix(".lost")
        self.steps: list[dict[str, Any]] = []
        with write_errors(path, "recording"):
            path.parent.mkdir(parents=True, exist_ok=True)
            end = self._read(done) if done else 0
            self._file = path.open("r+b" if done else "wb")
            self._file.truncate(end)
            self._file.seek(end)
            if not done:
                self._write(header)
                self._lost.unlink(missing_ok=True)

    def _read(self, done: int) -> int:
        """Read the header and steps 0 to `done`; where they end."""
        lines = self.path.read_bytes().splitlines(keepends=True)[: done + 2] if self.path.is_file() else []
        try:
            header, *steps = [json.loads(line) for line in lines if line.endswith(b"\n")]
        except ValueError:
            header, steps = None, []
        if [step["step"] for step in steps] != list(range(done + 1)):
            raise ArtifactError(
                f"{self.path} does not hold the {done} steps that this training has made before its checkpoint; record from the "
                "first step on, or begin again"
            )
        self.header, self.steps = header, steps
        return sum(map(len, lines))

    def add(self, values: dict[str, np.ndarray] | None, **facts: Any) -> None:
        """The next step: metric -> float32 [tests], None if nothing was measured; facts: JSON values."""
        coded = {metric: _coded(array) for metric, array in (values or {}).items()}
        line = {"step": len(self.steps), **facts, "values": coded}
        with write_errors(self.path, "recording"):
            self._write(line)
        self.steps.append(line)

    def lose(self, why: str) -> None:
        """Say, for whoever resumes the training, too, that its losses are not what it was trained on."""
        with write_errors(self._lost, "recording"):
            self._lost.write_text(why + "\n", encoding="utf-8")

    @property
    def lost(self) -> bool:
        """Whether it was said."""
        return self._lost.exists()

    def complete(self, values: dict[str, np.ndarray]) -> None:
        """What was measured of the last step when the training turned out to end there.

        Not on disk: if the training is resumed and goes on, this step is one between measurements.
        """
        self.steps[-1]["values"] = {metric: _coded(array) for metric, array in values.items()}

    def forget(self, name: str) -> None:
        """A fact of every update is not what it was taken for: nan."""
        for step in self.steps[1:]:
            step[name] = math.nan

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """What was written outlives a crash of the machine, as a checkpoint made now would."""
        with write_errors(self.path, "recording"):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def trajectories(self, tests: int) -> dict[str, np.ndarray]:
        """Metric -> float32 [steps + 1, tests]; nan where nothing was measured."""
        metrics = list(self.steps[0]["values"])
        nothing = np.full(tests, np.nan, np.float32)
        return {
            metric: np.stack([_decoded(s["values"][metric]) if s["values"] else nothing for s in self.steps])
            for metric in metrics
        }

    def column(self, name: str, kind: type = np.float32) -> np.ndarray:
        """[steps]: a fact of every update."""
        return np.array([step[name] for step in self.steps[1:]], kind)


def _coded(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
