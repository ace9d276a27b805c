"""What a recorder costs a training of transformers' Trainer, next to the same wish met with the Trainer's own `evaluate()`.

    python benchmarks/trainer.py                        # a quarter of an hour, nearly all of it for SmolLM2
    python benchmarks/trainer.py --quick                # half a minute: a nano GPT, few steps
    python benchmarks/trainer.py --models nano-410m
    python benchmarks/trainer.py --models smollm2-135m --tests 64   # without the 256 tests

CPU, float32, torch's default threads. nano-410m of profile mini on WebNLG, and SmolLM2-135M of profile laptop on movie reviews
(left out where its weights or texts cannot be had). Every row is the same training from the same weights:

- training alone: no callback but the clock.
- recorder: `gf.TrainerRecorder` with so many tests, measured after every update or after every 8th.
- evaluate(), losses of each test: `eval_strategy="steps"` with a data set of 64 tests in batches of 8, as the Trainer's default
  has it, and `preprocess_logits_for_metrics`, which makes a loss of each row's logits.
- forward passes alone: the same 64 tests go through the layers of the GPT, of like lengths together, and neither logits nor losses
  are made of what comes out. It shows how much of a measurement is the GPT's own work.
- evaluate(), one test in a batch: the same without code of one's own, by `include_for_metrics=["loss"]`.

Seconds a step are from the first update's begin to the last one's end, measurements between them included; what the recorder does
before and after (reading texts, the first measurement, naming or keeping the GPT, writing the run) is a column of its own. No table
is printed unless the losses that both ways measure agree, and the weights at the end are those of the training alone.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from common import Benchmark, Comparison, Side, number
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

import gptfluence as gf
from gptfluence.common.errors import GPTfluenceError
from gptfluence.models.gpt import GPT
from gptfluence.recording.fed import Fed
from gptfluence.recording.tokens import bucketed

MODELS = {"nano-410m": ("mini", "webnlg"), "smollm2-135m": ("laptop", "movies")}
TESTS, COMPARED, EVERY, BATCH = (16, 64, 256), 64, 8, 8
ALONE = "training alone"
TOKENS = 1024  # of a batch at most, as the recorder has it
TOLERANCE = 1e-4  # nats, or relative where a loss is above 1
IGNORED = -100
OF_TRAINER = ("compute_metrics", "preprocess_logits_for_metrics", "eval_dataset")  # no arguments of `TrainingArguments`


class Clock(TrainerCallback):
    """The seconds of all updates, with what other callbacks and the Trainer do between them; the first of the callbacks."""

    def __init__(self) -> None:
        self.seconds = self._began = 0.0

    def on_step_begin(self, args, state, control, **given) -> None:
        self._began = self._began or time.perf_counter()

    def on_train_end(self, args, state, control, **given) -> None:
        self.seconds = time.perf_counter() - self._began


class ForwardPasses(TrainerCallback):
    """After every update the tests go through the layers of the GPT, and nothing is made of what comes out."""

    def __init__(self, tests: Dataset) -> None:
        labels = (np.array(each) != IGNORED for each in tests["labels"])
        fed = [Fed(np.array(ids), at.nonzero()[0]) for ids, at in zip(tests["input_ids"], labels, strict=True)]
        self._batches = [batch.input_ids for batch in bucketed(fed, TOKENS, "target")]

    def on_step_end(self, args, state, control, model=None, **given) -> None:
        model.eval()
        with torch.no_grad():
            for ids in self._batches:
                model.base_model(input_ids=ids, use_cache=False)
        model.train()


@dataclass
class Training:
    """A training, ready to be run in several ways; `measured` holds the losses [steps, tests] of each way's last run."""

    gpt: GPT
    pool: Dataset
    tests: Dataset
    steps: int
    folder: Path
    seconds: dict[str, list[float]] = field(default_factory=dict)
    around: dict[str, list[float]] = field(default_factory=dict)
    measured: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def run(self, way: str, callbacks: list[TrainerCallback], **options: object) -> None:
        set_seed(0)
        clock, model = Clock(), copy.deepcopy(self.gpt.model)
        behaviour = {name: options.pop(name) for name in OF_TRAINER if name in options}
        arguments = TrainingArguments(
            output_dir=str(self.folder / "checkpoints"),
            max_steps=self.steps,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-5,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            **options,
        )
        collate = DataCollatorForSeq2Seq(self.gpt.tokenizer)
        trainer = Trainer(
            model, arguments, collate, train_dataset=self.pool, callbacks=[clock, *callbacks], **behaviour
        )
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
        whole = time.perf_counter() - began
        self.seconds.setdefault(way, []).append(clock.seconds / self.steps)
        self.around.setdefault(way, []).append(whole - clock.seconds)
        self._check_weights(way, model)

    def _check_weights(self, way: str, model: torch.nn.Module) -> None:
        if not self.weights:
            self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            if not torch.equal(p, self.weights[name]):
                raise SystemExit(f"{way}: {name} is not as in the training alone; no times are printed")

    def record(self, way: str, tests: int, every: int) -> None:
        place = self.folder / "runs"
        shutil.rmtree(place, ignore_errors=True)
        recorder = gf.TrainerRecorder(self.tests.select(range(tests)), place, every=every, token_budget=TOKENS)
        self.run(way, [recorder])
        self.measured[way] = gf.load_dynamics(place).trajectories("loss")[0, 1:]

    def evaluate(self, way: str, batch: int) -> None:
        """The losses of each test after every update, by the Trainer itself."""
        found: list[np.ndarray] = []

        def keep(prediction) -> dict[str, float]:
            losses = prediction.predictions if batch > 1 else prediction.losses
            found.append(np.asarray(losses, np.float32)[:COMPARED])
            return {}

        options = {"compute_metrics": keep, "preprocess_logits_for_metrics": _each} if batch > 1 else {}
        if batch == 1:
            options = {"compute_metrics": keep, "include_for_metrics": ["loss"], "preprocess_logits_for_metrics": _none}
        self.run(
            way,
            [],
            eval_dataset=self.tests.select(range(COMPARED)),
            eval_strategy="steps",
            eval_steps=1,
            per_device_eval_batch_size=batch,
            **options,
        )
        self.measured[way] = np.stack(found)


def _each(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """float32 [batch]: the mean loss of each row."""
    wanted = labels[:, 1:]
    # sums over a vocabulary that does not lie together in memory are off by 1e-4
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(wanted.shape).sum(1) / (wanted != IGNORED).sum(1)


def _none(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits of all tests at once would fill the memory."""
    return logits.new_zeros(len(logits))


def rows(gpt: GPT, examples) -> Dataset:
    parts = [[gpt.tokenizer(text)["input_ids"] for text in (each.prompt, each.target)] for each in examples]
    return Dataset.from_list([{"input_ids": a + b, "labels": [IGNORED] * len(a) + b} for a, b in parts])


def compare(name: str, steps: int, repeats: int, most: int) -> Comparison | None:
    """The ways, in turn, for one GPT; None, with a word on the terminal, where it cannot be had."""
    profile, task = MODELS[name]
    try:
        study = gf.Study.load(profile, [f"tasks.{task}.test_size={most}"])
        gpt, texts = study.model(name).load(), study.campaign("fine_tuning", task, model=name).texts
    except GPTfluenceError as error:
        print(f"{name} is left out: {error}")
        return None
    counts = [tests for tests in TESTS if tests <= most]
    with tempfile.TemporaryDirectory() as folder:
        training = Training(gpt, rows(gpt, texts.pool), rows(gpt, texts.tests), steps, Path(folder))
        ways: dict[str, Callable[[str], None]] = {ALONE: lambda way: training.run(way, [])}
        for every in (1, EVERY):
            for tests in counts:
                label = f"recorder, {tests} tests, every {f'{every}th ' if every > 1 else ''}step"
                ways[label] = lambda way, tests=tests, every=every: training.record(way, tests, every)
        evaluated = f"evaluate(), losses of each of {COMPARED} tests, every step"
        ways[evaluated] = lambda way: training.evaluate(way, BATCH)
        passes = f"forward passes alone of {COMPARED} tests, every step"
        ways[passes] = lambda way: training.run(way, [ForwardPasses(training.tests.select(range(COMPARED)))])
        ways[f"evaluate(), one of {COMPARED} tests in a batch, every step"] = lambda way: training.evaluate(way, 1)
        training.run("warms up", [])
        del training.seconds["warms up"], training.around["warms up"]
        for _ in range(repeats):
            for label, way in ways.items():
                way(label)
        recorded = f"recorder, {COMPARED} tests, every step"
        expected = training.measured[recorded]
        off = max(
            float((np.abs(training.measured[label] - expected) / np.maximum(1, np.abs(expected))).max())
            for label in ways
            if "evaluate" in label
        )
    if not off <= TOLERANCE:  # nan, too
        raise SystemExit(f"{name}: losses by evaluate() differ from the recorder's by {off:.1e}; no times are printed")
    alone = median(training.seconds[ALONE])
    more = {label: median(values) - alone for label, values in training.seconds.items()}
    around = median(training.around[ALONE])
    sides = [
        Side(
            label,
            values,
            {
                "more than alone": more[label],
                "before and after, s": median(training.around[label]) - around,
            },
        )
        for label, values in training.seconds.items()
    ]
    return Comparison(
        f"{name}, {task}: {steps} steps of {BATCH} examples",
        "seconds a step",
        sides,
        reference=ALONE,
        slowdown=True,
        notes=[
            f"losses agree to {off:.0e}, weights to the last bit",
            f"what {COMPARED} tests at every step cost: evaluate() / recorder = {number(more[evaluated] / more[recorded])}, "
            f"evaluate() / forward passes alone = {number(more[evaluated] / more[passes])}",
        ],
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", type=int, default=24, help="of a nano GPT's training; SmolLM2's has a third")
    parser.add_argument("--repeats", type=int, default=3, help="of a nano GPT's training; SmolLM2's is run once")
    parser.add_argument("--tests", type=int, default=max(TESTS), help="at most, of 16, 64 and 256")


def measure(options: argparse.Namespace) -> Iterator[Comparison]:
    logging.disable_progress_bar()
    for name in options.models:
        nano = name.startswith("nano")
        steps, repeats = (options.steps, options.repeats) if nano else (max(1, options.steps // 3), 1)
        found = compare(name, steps, repeats, options.tests)
        if found is not None:
            yield found


QUICK = {"models": ["nano-410m"], "steps": 8, "repeats": 1, "tests": 64}
BENCHMARK = Benchmark("trainer", __doc__, add_options, QUICK, measure)

if __name__ == "__main__":
    BENCHMARK.main()
