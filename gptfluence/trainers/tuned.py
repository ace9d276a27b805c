"""A GPT that transformers' Trainer trains on curricula that are given, recorded by the callback: `Tuned`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

from gptfluence.common import files
from gptfluence.common.errors import ArtifactError, ConfigurationError, RecordingError
from gptfluence.models import start
from gptfluence.models.gpt import GPT, ModelSource
from gptfluence.recording import store
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.record import devices, named
from gptfluence.recording.recorder import single_thread
from gptfluence.recording.settings import Recording
from gptfluence.recording.tokens import tokenize
from gptfluence.tasks.base import Task, TaskPool, fingerprint
from gptfluence.trainers.callback import TrainerRecorder
from gptfluence.trainers.texts import same_random_numbers

FORMAT = 1
SCHEDULES = {"linear_decay": "linear", "constant": "constant_with_warmup", "cosine": "cosine"}


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A GPT that a Trainer trains on one task in some way, and where its runs are recorded.

    way: a word for the folder's name; source: of the GPT, with adapters if these alone are trained
    recording: the optimizer, and which tokens count
    trainings: the folder that has a folder for every `Tuned`
    """

    way: str
    source: ModelSource
    texts: Task
    recording: Recording
    trainings: Path

    @cached_property
    def folder(self) -> Path:
        """Where the runs are, named after all that their numbers depend on besides their curricula."""
        texts = [self.texts.pool.fingerprint, self.texts.tests.fingerprint]
        key = fingerprint([FORMAT, self.source.identity(), texts, self.recording.model_dump(mode="json")])[:8]
        return self.trainings / f"{files.slug(f'{self.texts.name}-{self.source.name}-{self.way}')}-{key}"

    def missing(self, curricula: Sequence[Curriculum], *, ends_only: bool = False) -> list[Curriculum]:
        """Those that no run was recorded of, or none at every step unless `ends_only`."""
        given = named(curricula)
        missing = store.missing_runs(self.folder, list(given))
        there = [name for name in given if name not in missing]
        if there and not ends_only:
            runs = store.load(self.folder, there).runs
            missing += [run.name for run in runs if np.isnan(run.trajectories["loss"]).all(axis=1).any()]
        return [given[name] for name in given if name in missing]

    def record(self, curricula: Sequence[Curriculum], *, ends_only: bool = False) -> GPTDynamics:
        """The runs on these curricula; those that are missing are trained first, one after the other.

        ends_only: those are measured before the first and after the last step only; other steps are nan. Raises RecordingError
        if a training could not be recorded, ArtifactError if the runs that are there began with other weights.
        """
        for curriculum in self.missing(curricula, ends_only=ends_only):
            if (there := self.folder / next(iter(named([curriculum])))).is_dir():
                files.put_aside(there, "was measured at its ends only", what=f"run {there.name}")
            train(self, curriculum, every=curriculum.steps if ends_only else 1, device=devices()[0])
        self._keep_start()
        return store.load(self.folder, list(named(curricula)))

    def _keep_start(self) -> None:
        """Say in the folder which GPT the runs began with, whose path may be another where they were recorded."""
        if (self.folder / start.FOLDER / files.CHECKSUMS).is_file():
            return
        gpt = self.source.load()
        found, expected = (
            start.weights_of(gpt.model),
            store.spec_values(self.folder)["model"]["identity"]["weights"],
        )
        if found != expected:
            raise ArtifactError(
                f"{self.folder}: its runs began with other weights ({expected}) than {self.source.name} has here ({found}); delete it "
                "to have them recorded again"
            )
        start.keep(self.folder, gpt.model, gpt.tokenizer)


def train(tuned: Tuned, curriculum: Curriculum, *, every: int = 1, device: str = "cpu") -> None:
    """Let a Trainer train the GPT on one curriculum, recorded by the callback.

    every: updates from one measurement to the next; device: "cpu", or any other word for the GPU that torch finds. Raises
    RecordingError if the recording stopped, ConfigurationError for a curriculum or settings that no Trainer follows.
    """
    if (curriculum.batches < 0).any():
        raise ConfigurationError(
            "a Trainer shows whole batches: give a curriculum whose steps have no empty or masked place"
        )
    if tuned.recording.loss_tokens != Recording().loss_tokens:
        raise ConfigurationError(
            f"recording.loss_tokens: {tuned.recording.loss_tokens!r}: the callback measures the tokens of the target; leave it out"
        )

    class InOrder(Trainer):
        """Takes the examples of the curriculum, step by step."""

        def _get_train_sampler(self, *_: Any) -> list[int]:
            return curriculum.batches.ravel().tolist()

    [run], gpt = named([curriculum]), tuned.source.load()
    recorder = TrainerRecorder(
        tuned.texts.tests,
        tuned.folder,
        run=run,
        every=every,
        token_budget=tuned.recording.token_budget,
        keep_start=False,
    )
    with tempfile.TemporaryDirectory() as checkpoints, single_thread(), same_random_numbers():
        arguments = TrainingArguments(
            output_dir=checkpoints,
            per_device_train_batch_size=curriculum.batches.shape[1],
            max_steps=curriculum.steps,
            use_cpu=device == "cpu",
            **_of(tuned.recording),
        )
        arguments._n_gpu = min(
            1, arguments.n_gpu
        )  # of several GPUs the first: a Trainer would split each batch among them
        rows, collate = rows_of(tuned.texts.pool, gpt, tuned.recording), DataCollatorForSeq2Seq(gpt.tokenizer)
        trainer = InOrder(
            gpt.model, arguments, collate, train_dataset=rows, processing_class=gpt.tokenizer, callbacks=[recorder]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if recorder.stopped:
        raise RecordingError(f"{tuned.folder}: run {run} was not recorded: {recorder.stopped}")


def rows_of(pool: TaskPool, gpt: GPT, recording: Recording) -> list[dict[str, list[int]]]:
    """As a Trainer takes them: the package's tokens, and labels where they count. A text that is too long is an error, as in tests."""
    rows = []
    for each in tokenize(pool, gpt):
        labels = np.full(len(each.ids), -100)
        counted = each.scored(recording.train_tokens)
        labels[counted] = each.ids[counted]
        rows.append({"input_ids": each.ids.tolist(), "labels": labels.tolist()})
    return rows


def _of(recording: Recording) -> dict[str, Any]:
    """The arguments of a Trainer that trains as `recording` says, and leaves no files."""
    optimizer = recording.optimizer
    if optimizer.schedule not in SCHEDULES:
        raise ConfigurationError(f"optimizer: no Trainer has the schedule {optimizer.schedule!r}; choose another one")
    return {
        "learning_rate": optimizer.learning_rate,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "adam_epsilon": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "lr_scheduler_type": SCHEDULES[optimizer.schedule],
        "warmup_steps": optimizer.warmup_steps,
        "max_grad_norm": optimizer.max_gradient_norm or 0.0,
        "optim": "adamw_torch",
        "bf16": recording.precision == "bf16",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
