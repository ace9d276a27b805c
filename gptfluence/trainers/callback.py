"""A callback that records a training of transformers' Trainer or TRL's SFTTrainer: `TrainerRecorder`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gptfluence.common.errors import ArtifactError, ConfigurationError, DataError, unknown
from gptfluence.models import start
from gptfluence.models.gpt import GPT
from gptfluence.recording import fed as kept
from gptfluence.recording import store
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import TrainingRun
from gptfluence.recording.fed import Fed
from gptfluence.recording.settings import Generation, Metric, ModelIdentity, Recording, RunSpec
from gptfluence.recording.text_metrics import TEXT_METRICS
from gptfluence.recording.tokens import TokenizedExample, tokenize
from gptfluence.tasks.base import Example, Task, TaskPool, fingerprint
from gptfluence.trainers.arguments import check_supported, dropout_of, recording_of, run_facts
from gptfluence.trainers.feeding import Feeding, Seen
from gptfluence.trainers.followed import Followed
from gptfluence.trainers.journal import Journal
from gptfluence.trainers.measuring import Measuring, keeps_apart, learns_next_tokens
from gptfluence.trainers.reporting import Reporting
from gptfluence.trainers.texts import by_sft_trainer, check_constant, fed, pool_of, same_random_numbers

WORDS = {  # of what is in `spec.json`
    "pool_fingerprint": "training data",
    "tests_fingerprint": "tests",
    "task": "tests",
    "recording": "training arguments (optimizer, schedule or precision)",
    "unsupported": "training arguments (optimizer, schedule or precision)",
    "model": "model or weights",
}
NOT_FOLLOWED = "The training is recorded, but the tangent simulator, replayed methods and train_again cannot follow it"
_clip = torch.nn.utils.clip_grad_norm_


class RecordingWarning(UserWarning):
    """Something of a training is not recorded as asked. Shown each time: the cell of a notebook may be run again."""


warnings.simplefilter("always", RecordingWarning, append=True)


def _never_harming(event: Callable) -> Callable:
    """What goes wrong in recording stops the recording, with a warning, and not the training."""

    @wraps(event)
    def guarded(self: TrainerRecorder, args, state, control, **given) -> None:
        if self.stopped:
            return
        try:
            event(self, args, state, control, **given)
        except Exception as error:
            self._stop(error)

    return guarded


class TrainerRecorder(TrainerCallback):
    """Records a training while it runs: who was in each update, and every test example's loss before it and after each.

        recorder = TrainerRecorder(tests, "runs/a")
        Trainer(..., callbacks=[recorder]).train()          # or SFTTrainer
        dynamics = gptfluence.load_dynamics("runs/a")

    The training is the same, to the last bit on a CPU. Losses are measured in evaluation mode, in the precision of the training;
    modes, random numbers and gradients are afterwards as they were. What goes wrong in recording is a warning, after which the
    training goes on unrecorded (`stopped` says why). Every process of a distributed training needs the callback; the first one
    measures and writes.

    The store is the truth about what is recorded: a training that is resumed from a checkpoint goes on with the steps up to it.
    """

    def __init__(
        self,
        tests: Any,
        folder: str | Path,
        *,
        run: str = "train-000",
        every: int = 1,
        metrics: Sequence[Metric] = ("loss",),
        generation: Generation | None = None,
        token_budget: int = 1024,
        keep_start: bool = True,
    ) -> None:
        """
        Args:
            tests: a data set, or a sequence, of rows as the Trainer takes them (with input_ids; for SFTTrainer also not yet
                prepared), or examples of gptfluence (`TaskPool` or a sequence of `Example`).
            folder: where the runs of one GPT on one data set lie, with their tests; `load_dynamics` reads it.
            run: the run's name, such as "train-000" or "test-001": several trainings may lie in one folder.
            every: updates from one measurement to the next; values of steps between are nan. The last step is measured, too,
                unless a training that saves only its best model (save_strategy="best") was stopped early and loaded it.
            metrics: what is measured of the tests; the loss always is. Accuracy needs examples of gptfluence, which know
                their labels; BLEU and ROUGE-L compare with the tokens that count.
            generation: how texts are generated for BLEU and ROUGE-L, at the steps that are measured; None: the defaults.
            token_budget: padded tokens that a measuring batch may hold.
            keep_start: let the folder say which GPT the training began with, which the tangent simulator, replayed methods
                and `train_again` need: its path where its weights are those there, and what is not there is saved (adapters;
                a whole model if it was made in memory).

        Raises ConfigurationError for a name that is no run's or no metric's, for accuracy of rows, or if there are no tests.
        """
        if not store.RUN_NAME.match(run):
            raise ConfigurationError(
                f"run: {run!r} is no run's name; write e.g. 'train-000', 'validation-000' or 'test-000'"
            )
        if every < 1:
            raise ConfigurationError(f"every: it must be 1 or more, not {every}")
        if tests is None or not len(tests):
            raise ConfigurationError("tests: there are none; give one example at least")
        if isinstance(metrics, str):
            raise ConfigurationError(f"metrics: give a list, [{metrics!r}]")
        for metric in metrics:
            if metric not in get_args(Metric):
                raise ConfigurationError(unknown("metric", metric, get_args(Metric), where="metrics: "))
        if "accuracy" in metrics and not isinstance(tests[0], Example):
            raise ConfigurationError(
                "metrics: accuracy needs tests that are examples of gptfluence, which know their labels"
            )
        self.tests, self.folder, self.run, self.every = tests, Path(folder), run, every
        self.stopped = ""
        self.metrics = ["loss", *(metric for metric in metrics if metric != "loss")]
        self.generation = (generation or Generation()).model_copy(update={"every": every})
        self._budget, self._keep_start = token_budget, keep_start
        self._feeding: Feeding | None = None
        self._journal: Journal | None = None
        self._measuring: Measuring | None = None
        self._reporting: Reporting | None = None
        self._examples: list[range] = []  # in each row of the training data: one, of packed rows several
        self._norm = self._rate = math.nan
        self._skipped = False
        self._followed: Followed | None = None  # None: it cannot be followed

    # --- what the Trainer calls ---------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self._close()
        self.stopped, self._followed = "", None
        self._begin(args, state, control, **given)

    @_never_harming
    def _begin(
        self, args, state, control, *, model, train_dataloader, processing_class=None, optimizer=None, **given
    ) -> None:
        check_supported(args)
        self._feeding = Feeding(train_dataloader, model, packed=getattr(args, "packing", False))
        if not state.is_world_process_zero:
            return
        with same_random_numbers():
            self._prepare(args, state, model, processing_class, optimizer)
        if not state.global_step:
            self._journal.add(self._measuring.measure(0))

    @_never_harming
    def on_step_begin(self, args, state, control, **given) -> None:
        if self._feeding is None:
            raise ConfigurationError(
                "it was added when the training had begun; give it to the Trainer with callbacks=, or add it before train()"
            )
        if self._journal is not None:
            torch.nn.utils.clip_grad_norm_ = self._watch

    def _watch(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """The Trainer clips by this function, also where it only asks for the norm, and tells callbacks nothing of it."""
        norm = _clip(*arguments, **options)
        self._norm = norm
        return norm

    def on_pre_optimizer_step(self, args, state, control, *, optimizer, **given) -> None:
        torch.nn.utils.clip_grad_norm_ = _clip
        self._rate = float(optimizer.param_groups[0]["lr"])
        if self._followed:
            self._followed.before_update()

    def on_optimizer_step(self, args, state, control, *, optimizer, **given) -> None:
        self._skipped = bool(getattr(optimizer, "step_was_skipped", False))

    def on_step_end(self, args, state, control, **given) -> None:
        if self._feeding is not None:  # all processes, whatever became of the recording in one of them
            seen = self._feeding.take()
            self._end_of_step(args, state, control, seen=_gathered(seen) if args.world_size > 1 else [seen])

    @_never_harming
    def _end_of_step(self, args, state, control, *, seen) -> None:
        if self._journal is None:
            return
        rows = [example for part in seen for row in part.rows for example in self._examples[row]]
        if not rows:
            raise DataError(
                f"step {state.global_step}: the model was not given what was in the batch; a compute_loss of your own must pass "
                "all of `inputs` on to the model"
            )
        tokens = sum(part.tokens for part in seen)
        due = self.generation.due(state.global_step, state.max_steps)
        measured = self._measuring.measure(state.global_step) if due else None
        if measured is not None:
            self._reporting.update(measured["loss"])
        self._journal.add(
            measured,
            rows=rows,
            learning_rate=self._rate,
            batch_loss=sum(part.total for part in seen) / tokens if tokens else math.nan,
            gradient_norm=float(self._norm),
            skipped=self._skipped,
        )
        if self._followed:
            self._cannot_follow(self._followed.after_update(state.global_step, tokens, seen[0].divisor))

    @_never_harming
    def on_epoch_end(self, args, state, control, **given) -> None:
        if control.should_training_stop:
            self._measure_last(state)

    def _measure_last(self, state: TrainerState) -> None:
        """The step at which the training was stopped early, if it lies between measurements."""
        if self._journal is not None and state.global_step and not self._journal.steps[-1]["values"]:
            self._journal.complete(self._measuring.measure(state.global_step))

    @_never_harming
    def on_log(self, args, state, control, logs=None, **given) -> None:
        """The Trainer tells means of the losses that it trained on, which need not be the model's."""
        # the Trainer adds the parts of an update that it does not make to the next loss
        if self._journal is not None and self._followed and not self._feeding.waiting:
            self._cannot_follow(self._followed.after_log(logs or {}, self._journal.steps))

    def _cannot_follow(self, why: str) -> None:
        """Tell the reason, if there is one, and keep it for whoever resumes the training."""
        if why:
            if self._followed:
                self._journal.lose(why)
            self._followed = None
            warnings.warn(f"{self.folder}: {why}. {NOT_FOLLOWED}", RecordingWarning, stacklevel=2)

    @_never_harming
    def on_save(self, args, state, control, **given) -> None:
        if control.should_training_stop:  # an evaluation has stopped it, before a better model is loaded
            self._measure_last(state)
        if self._journal is not None:
            self._journal.sync()

    def on_train_end(self, args, state, control, **given) -> None:
        self._finish(args, state, control)
        self._close()

    @_never_harming
    def _finish(self, args, state, control) -> None:
        if self._journal is None:
            return
        if not args.load_best_model_at_end:  # else the weights are now those of an earlier step
            self._measure_last(state)
        if self._journal.lost:
            self._journal.forget("batch_loss")
        curriculum = Curriculum([step["rows"] for step in self._journal.steps[1:]])
        skipped = self._journal.column("skipped", bool)
        run = TrainingRun(
            name=self.run,
            curriculum=curriculum,
            trajectories=self._journal.trajectories(len(self.tests)),
            skipped=skipped if skipped.any() else None,
            **{name: self._journal.column(name) for name in ("learning_rate", "batch_loss", "gradient_norm")},
        )
        # the run may be there: of the same training, which has been resumed or begun again
        store.replace_run(self.folder, run, {"device": args.device.type, "training": self._journal.header})

    # --- what they do -------------------------------------------------------------------------------------------------

    def _prepare(
        self, args: TrainingArguments, state: TrainerState, model: torch.nn.Module, tokenizer: Any, optimizer: Any
    ) -> None:
        """Read texts, say in the folder what is recorded, and open the journal."""
        tokens, tests = self._tests_of(args, model, tokenizer)
        pool_tokens = self._pool_tokens(model)
        pool = pool_of(f"{tests.name}/pool", pool_tokens, tokenizer)
        header = run_facts(args, state)
        recording, unsupported = recording_of(args, state, model, optimizer)
        counted = next((each for each in pool_tokens if len(each.positions)), None)
        if recording and counted and not learns_next_tokens(model, counted):
            recording, unsupported = None, "the model's loss is not the mean cross-entropy of the next tokens"
        if recording is None:
            self._cannot_follow(unsupported)
        else:
            self._followed = Followed(model, done=state.global_step, processes=args.world_size)
        spec = self._spec(state, model, pool, tests, recording, unsupported)
        tables = {
            kept.path_of(self.folder, side): kept.columns(examples)
            for side, examples in zip(kept.SIDES, (pool_tokens, tokens), strict=True)
        }
        self._check_folder(spec, header, tables, resumed=state.global_step > 0)
        store.write_folder(self.folder, spec, Task(spec["task"], pool, tests, may_overlap=True), tables=tables)
        if self._keep_start and not state.global_step:  # the weights of a training that goes on are others
            self._keep(model, tokenizer)
        self._measuring = Measuring(
            _gpt(model, tokenizer),
            tests,
            tokens,
            metrics=self.metrics,
            generation=self.generation,
            token_budget=self._budget,
        )
        self._reporting = Reporting(self)
        self._journal = Journal(self.folder / "journal" / f"{self.run}.jsonl", header, done=state.global_step)

    def _keep(self, model: torch.nn.Module, tokenizer: Any) -> None:
        """A GPT of a kind that cannot be kept can be recorded."""
        try:
            start.keep(self.folder, model, tokenizer)
        except Exception as error:
            warnings.warn(
                f"{self.folder}: the GPT as it was before training is not kept ({type(error).__name__}: {error}); the training is "
                "recorded, but to simulate or repeat it you must give the GPT yourself",
                RecordingWarning,
                stacklevel=2,
            )

    def _pool_tokens(self, model: torch.nn.Module) -> list[Fed]:
        """Of the training data. Sets which of them are in each row."""
        dataset, collate, packed = self._feeding.dataset, self._feeding.collate, self._feeding.packed
        rows = fed(dataset, collate, "training data", needs_loss=False, packed=packed)
        check_constant(dataset, collate, rows, packed=packed)
        several = next((row for row, examples in enumerate(rows) if len(examples) > 1), None)
        if several is not None and not keeps_apart(model, collate([dataset[several]])):
            raise ConfigurationError(
                "the examples of a packed row see each other in this model, so none has a loss of its own; train with another "
                "attn_implementation (flash_attention_2, say) or with packing=False"
            )
        ends = np.cumsum([len(examples) for examples in rows])
        self._examples = [range(end - len(examples), end) for end, examples in zip(ends.tolist(), rows, strict=True)]
        return [example for examples in rows for example in examples]

    def _tests_of(
        self, args: TrainingArguments, model: torch.nn.Module, tokenizer: Any
    ) -> tuple[Sequence[TokenizedExample | Fed], TaskPool]:
        if isinstance(self.tests[0], Example):
            tests = self.tests if isinstance(self.tests, TaskPool) else TaskPool("training", tuple(self.tests))
            if tokenizer is None:
                raise DataError("tests: examples of gptfluence need a tokenizer; give the Trainer its processing_class")
            return tokenize(tests, _gpt(model, tokenizer)), tests
        rows, columns = self.tests, getattr(self._feeding.dataset, "column_names", None)
        if "input_ids" not in rows[0]:
            rows = by_sft_trainer(rows, args, tokenizer)
        if columns:
            rows = [{name: row[name] for name in columns if name in row} for row in rows]
        tokens = [example for [example] in fed(rows, self._feeding.collate, "tests", needs_loss=True)]
        return tokens, pool_of("training", tokens, tokenizer)

    def _spec(
        self,
        state: TrainerState,
        model: torch.nn.Module,
        pool: TaskPool,
        tests: TaskPool,
        recording: Recording | None,
        unsupported: str,
    ) -> dict[str, Any]:
        """The folder's `spec.json`: how its runs are recorded, or why this package cannot train so itself (`unsupported`)."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        identity = {
            "class": type(model).__name__,
            "weights": start.weights_of(model) if not state.global_step else None,
        }
        identity["config"] = fingerprint(base.config.to_json_string(use_diff=False))
        values = RunSpec(
            format=store.FORMAT,
            setting=store.TRAINER,
            task=tests.name.split("/")[0],
            pool_fingerprint=pool.fingerprint,
            tests_fingerprint=tests.fingerprint,
            model=ModelIdentity(
                name=Path(base.config.name_or_path or "").name or base.config.model_type, identity=identity
            ),
            recording=recording or Recording(),
            seed=0,
            metrics=self.metrics,
            generation=self.generation if {*self.metrics} & {*TEXT_METRICS} else None,
            dropout=dropout_of(model),
        ).to_json()
        if recording is None:
            del values["recording"]
            values["unsupported"] = unsupported
        return values

    def _check_folder(
        self, spec: dict[str, Any], header: dict[str, Any], tables: dict[Path, dict[str, Any]], *, resumed: bool
    ) -> None:
        """Raises ArtifactError if the folder, or the run in it, belongs to another training."""
        if not (self.folder / "spec.json").is_file():
            return
        there = store.spec_values(self.folder)
        if resumed:  # the weights are those of the checkpoint now
            spec["model"]["identity"]["weights"] = there.get("model", {}).get("identity", {}).get("weights")
        different = sorted({WORDS.get(key, key) for key in {*spec, *there} if spec.get(key) != there.get(key)})
        different = different or [path.name for path, columns in tables.items() if not store.holds(path, columns)]
        if different:
            raise ArtifactError(
                f"{self.folder} belongs to another training, with other {', '.join(different)}; give another folder"
            )
        if (self.folder / self.run).is_dir() and not resumed:
            recorded = store.run_facts(self.folder, self.run).get("training")
            if recorded != header:
                raise ArtifactError(
                    f"{self.folder}: {self.run} is there already, of a training with other arguments; give another name, e.g. "
                    "run='train-001'"
                )

    def _stop(self, error: Exception) -> None:
        self.stopped = str(error) or repr(error)
        torch.nn.utils.clip_grad_norm_ = _clip
        if self._reporting is not None:
            self._reporting.close()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        warnings.warn(
            f"TrainerRecorder: recording has stopped, the training goes on: {type(error).__name__}: {self.stopped}",
            RecordingWarning,
            stacklevel=2,
        )

    def _close(self) -> None:
        torch.nn.utils.clip_grad_norm_ = _clip
        for part in (self._feeding, self._measuring, self._reporting, self._journal):
            if part is not None:
                part.close()
        self._feeding = self._measuring = self._reporting = self._journal = None


def _gpt(model: torch.nn.Module, tokenizer: Any) -> GPT:
    positions = getattr(model.config, "max_position_embeddings", None) or getattr(tokenizer, "model_max_length", 0)
    return GPT("the model", model, tokenizer, int(positions))


def _gathered(seen: Seen) -> list[Seen]:
    """What all processes have noted, in their order."""
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, seen)
    return parts
