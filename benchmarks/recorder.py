"""Speed of recording runs, next to the obvious loop: train a step, then measure every test example.

    python benchmarks/recorder.py                       # some minutes
    python benchmarks/recorder.py --steps 6 --runs 2    # shorter, to see that it works

CPU, float32, nano-410m of the profile mini. All rows train on the same curricula, and no table is printed unless their
losses agree. The rows:

- obvious loop: one run after another with torch's default threads. A collator tokenises the texts of every batch again;
  tests come in batches of 8, padded to the longest of the data set, with an attention mask; logits of all positions, of
  which cross-entropy with `reduction="none"` takes those of the target; AdamW is not fused.
- obvious loop, checkpoints on disk: the same, but weights are saved after every step and, when the run is over, every
  checkpoint is loaded and measured, as in the pipeline that was published with the paper. Weights only: with the
  optimizer's state, as the HF Trainer saves it, it would be slower.
- obvious loop, one thread: the first row in one thread.
- recorder, one process: `gptfluence.recording.recorder.Recorder` in one thread, its preparation counted.
- recorder, a process per core: `Study.record` into an artifacts folder that has the model alone, everything counted:
  start of the processes, imports, loading, files. What a step costs once the processes run is given apart; it follows
  from runs of two lengths.

Loading the initial model is counted in the last rows alone. Those in one process are timed in turn, run by run. On a
machine that also does other work the loop with several threads suffers more than the rest, whose threads wait for
nobody; the loop in one thread is there to tell that from what the recorder saves.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import gptfluence as gf
from gptfluence.models.gpt import GPT
from gptfluence.recording.curriculum import Curriculum, draw_curricula
from gptfluence.recording.recorder import Recorder, build_optimizer, single_thread
from gptfluence.recording.settings import AdamW
from gptfluence.study.study import Study
from gptfluence.tasks.base import Example, Task

PROFILE, MODEL, TASKS = "mini", "nano-410m", ("sst2", "webnlg")
TEST_BATCH = 8
LONGER = 4  # the second run length, in units of the first
TOLERANCE = 1e-4
IGNORED = -100


class Collator:
    """Texts to a padded batch, tokenised at every call. Only targets are labelled."""

    def __init__(self, gpt: GPT) -> None:
        self.tokenizer = gpt.tokenizer

    def _tokens(self, example: Example) -> tuple[list[int], list[int]]:
        prompt = self.tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
        target = self.tokenizer(example.target, add_special_tokens=False)["input_ids"]
        return prompt, target if example.choices else [*target, self.tokenizer.eos_token_id]

    def longest(self, examples: Sequence[Example]) -> int:
        return max(len(prompt) + len(target) for prompt, target in map(self._tokens, examples))

    def __call__(self, examples: Sequence[Example], length: int | None = None) -> dict[str, torch.Tensor]:
        tokens = [self._tokens(example) for example in examples]
        length = length or max(len(prompt) + len(target) for prompt, target in tokens)
        ids, mask, labels = [], [], []
        for prompt, target in tokens:
            padding = length - len(prompt) - len(target)
            ids.append(prompt + target + [self.tokenizer.pad_token_id] * padding)
            mask.append([1] * (length - padding) + [0] * padding)
            labels.append([IGNORED] * len(prompt) + target + [IGNORED] * padding)
        return {name: torch.tensor(v) for name, v in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))}


class ObviousLoop:
    def __init__(self, gpt: GPT, task: Task, settings: AdamW) -> None:
        self.gpt, self.task, self.settings = gpt, task, settings
        self.collator = Collator(gpt)
        self.length = self.collator.longest(task.tests)

    def record(self, curriculum: Curriculum) -> np.ndarray:
        """float32 [steps + 1, tests]."""
        return np.array([self.measure(model) for model in self._train(curriculum)])

    def record_by_checkpoints(self, curriculum: Curriculum) -> np.ndarray:
        """The same by way of the disk."""
        with tempfile.TemporaryDirectory() as folder:
            for step, model in enumerate(self._train(curriculum)):
                model.save_pretrained(Path(folder) / f"checkpoint-{step}")
            losses = []
            for step in range(curriculum.steps + 1):
                path = Path(folder) / f"checkpoint-{step}"
                losses.append(self.measure(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)))
        return np.array(losses)

    def _train(self, curriculum: Curriculum) -> Iterator[torch.nn.Module]:
        """The model before the first and after every update."""
        model = copy.deepcopy(self.gpt.model)
        optimizer = build_optimizer(dict(model.named_parameters()), self.settings, fused=False)
        yield model
        for batch, rate in zip(curriculum.batches, self.settings.learning_rates(curriculum.steps), strict=True):
            model.train()
            model(**self.collator([self.task.pool[int(row)] for row in batch])).loss.backward()
            if self.settings.max_gradient_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.settings.max_gradient_norm)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            yield model

    @torch.no_grad()
    def measure(self, model: torch.nn.Module) -> np.ndarray:
        model.eval()
        losses = []
        for start in range(0, len(self.task.tests), TEST_BATCH):
            batch = self.collator(self.task.tests[start : start + TEST_BATCH], self.length)
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch).logits[:, :-1]
            each = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
            losses.append(each.sum(dim=1) / (labels != IGNORED).sum(dim=1))
        return torch.cat(losses).numpy()


def curricula_of(study: Study, pool_size: int, steps: int, runs: int) -> list[Curriculum]:
    """Drawn as the profile says, with as many epochs as `steps` need."""
    drawn = study.setting().curriculum
    epochs = -(-steps * drawn.batch_size // drawn.subset_size)
    whole = draw_curricula(pool_size, runs=runs, subset=drawn.subset_size, batch=drawn.batch_size, epochs=epochs)
    return [Curriculum(curriculum.batches[:steps]) for curriculum in whole]


def record_in_processes(models: Path, task: str, curricula: list[Curriculum], jobs: int) -> tuple[float, np.ndarray]:
    """Seconds and losses of `Study.record` into a fresh artifacts folder that has the model already."""
    with tempfile.TemporaryDirectory() as folder:
        for made in models.glob(f"{MODEL}-*"):
            shutil.copytree(made, Path(folder) / "models" / made.name)
        started = time.perf_counter()
        study = gf.Study.load(PROFILE, artifacts=folder, jobs=jobs)
        dynamics = study.record(curricula, task=task, model=MODEL)
        return time.perf_counter() - started, dynamics.trajectories()


def compare(task: str, found: dict[str, np.ndarray]) -> float:
    """The largest difference from the obvious loop's losses. Ends the program where it is above the tolerance."""
    reference = found["obvious loop"]
    worst = 0.0
    for row, losses in found.items():
        difference = float(np.abs(losses - reference).max())
        if not difference <= TOLERANCE:  # nan, too
            raise SystemExit(f"{task}: losses of {row!r} differ from the obvious loop's by {difference:.1e}")
        worst = max(worst, difference)
    return worst


def measure_task(study: Study, name: str, steps: int, runs: int, jobs: int) -> None:
    task, setting = study.task(name), study.setting()
    recording = setting.recording.model_copy(update={"optimizer": setting.recording.optimizer.for_one(name)})
    source = study.model(MODEL)
    obvious = ObviousLoop(source.load(), task, recording.optimizer)
    long = curricula_of(study, len(task.pool), LONGER * steps, runs)
    short = [Curriculum(curriculum.batches[:steps]) for curriculum in long]

    started = time.perf_counter()
    recorder = Recorder(source.load(), task.pool, task.tests, recording)
    preparation = time.perf_counter() - started

    def record_in_one_thread(curriculum: Curriculum) -> np.ndarray:
        with single_thread():
            return recorder.record("run", curriculum).trajectories["loss"]

    def obvious_in_one_thread(curriculum: Curriculum) -> np.ndarray:
        with single_thread():
            return obvious.record(curriculum)

    rows = {
        "obvious loop": obvious.record,
        "obvious loop, checkpoints on disk": obvious.record_by_checkpoints,
        "obvious loop, one thread": obvious_in_one_thread,
        "recorder, one process": record_in_one_thread,
    }
    first = Curriculum(short[0].batches[:3])
    compare(name, {row: record(first) for row, record in rows.items()})  # warms up, too

    seconds = dict.fromkeys(rows, 0.0)
    losses: dict[str, list[np.ndarray]] = {row: [] for row in rows}
    for curriculum in short:
        for row, record in rows.items():
            started = time.perf_counter()
            losses[row].append(record(curriculum))
            seconds[row] += time.perf_counter() - started
    seconds["recorder, one process"] += preparation
    recorder.close()

    parallel = f"recorder, {min(jobs, runs)} processes"
    seconds[parallel], of_processes = record_in_processes(source.cache, name, short, jobs)
    longer, _ = record_in_processes(source.cache, name, long, jobs)
    found = {row: np.array(values) for row, values in losses.items()}
    worst = compare(name, {**found, parallel: of_processes})

    count = runs * steps
    per_step = (longer - seconds[parallel]) / ((LONGER - 1) * count)
    print(f"\n{name}: {len(task.tests)} tests of at most {obvious.length} tokens, {runs} runs of {steps} steps")
    print(f"(losses agree to {worst:.0e}; default threads: {torch.get_num_threads()})")
    print(f"{'':<44}{'s per step':>12}{'obvious loop / it':>20}")
    table = {row: total / count for row, total in seconds.items()}
    table[f"{parallel}, runs of {LONGER * steps}"] = longer / (LONGER * count)
    table[f"{parallel}, once running"] = per_step
    for row, value in table.items():
        # two lengths on a busy machine may say nothing
        shown, ratio = (f"{value:.4f}", f"{table['obvious loop'] / value:.1f}x") if value > 0 else ("?", "?")
        print(f"{row:<44}{shown:>12}{ratio:>20}")
    print(f"  (start-up of the processes: {seconds[parallel] - count * per_step:.1f} s in all)", flush=True)


def measure_metrics(study: Study, name: str, steps: int, runs: int) -> None:
    """What texts and accuracies cost besides losses, in one thread, side by side."""
    task, setting = study.task(name), study.setting()
    recording = setting.recording.model_copy(update={"optimizer": setting.recording.optimizer.for_one(name)})
    rows = {"loss": (("loss",), None)}
    if study.is_labelled(name):
        rows["loss and accuracy"] = (("loss", "accuracy"), None)
    else:
        for every in (1, setting.generation.every):
            generation = setting.generation.model_copy(update={"every": every})
            rows["loss, BLEU, ROUGE-L, texts at every step" + (f" in {every}" if every > 1 else "")] = (
                ("loss", "bleu", "rouge_l"),
                generation,
            )
    seconds = dict.fromkeys(rows, 0.0)
    recorders = {
        row: Recorder(
            study.model(MODEL).load(), task.pool, task.tests, recording, metrics=metrics, generation=generation
        )
        for row, (metrics, generation) in rows.items()
    }
    with single_thread():
        for curriculum in curricula_of(study, len(task.pool), steps, runs):
            for row, recorder in recorders.items():
                started = time.perf_counter()
                recorder.record("run", curriculum)
                seconds[row] += time.perf_counter() - started
    print(f"\n{name}: {len(task.tests)} tests, {runs} runs of {steps} steps, one process")
    for row, value in seconds.items():
        recorders[row].close()
        print(f"{row:<52}{value / runs / steps:>12.4f}{value / seconds['loss']:>10.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="tasks of the profile")
    parser.add_argument("--metrics", action="store_true", help="what other metrics cost besides the loss, instead")
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else Study.record would use a GPU
    logging.disable_progress_bar()
    study = gf.Study.load(PROFILE)
    for task in options.tasks:
        if options.metrics:
            measure_metrics(study, task, options.steps, options.runs)
        else:
            measure_task(study, task, options.steps, options.runs, study.jobs)


if __name__ == "__main__":
    main()
