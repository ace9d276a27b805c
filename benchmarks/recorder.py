"""Speed of recording runs, next to the obvious loop: train a step, then measure every test example.

    python benchmarks/recorder.py                    # some minutes
    python benchmarks/recorder.py --quick            # half a minute: fewer and shorter runs, losses of one task
    python benchmarks/recorder.py --parts metrics    # what other metrics cost besides the loss

CPU, float32, nano-410m of the profile mini. All rows train on the same curricula, and no table is printed unless their
losses agree. The rows of the first part:

- obvious loop: one run after another with torch's default threads. A collator tokenises the texts of every batch again;
  tests come in batches of 8, padded to the longest of the data set, with an attention mask; logits of all positions, of
  which cross-entropy with `reduction="none"` takes those of the target; AdamW is not fused.
- obvious loop, checkpoints on disk: the same, but weights are saved after every step and, when the run is over, every
  checkpoint is loaded and measured, as in the pipeline that was published with the paper. Weights only: with the
  optimizer's state, as the HF Trainer saves it, it would be slower.
- obvious loop, one thread: the first row in one thread.
- recorder, one process: `gptfluence.recording.recorder.Recorder` in one thread, its preparation counted and shared by the
  runs.
- recorder, a process per core: `Campaign.record` into an artifacts folder that has the model alone, everything counted:
  start of the processes, imports, loading, files. What a step costs once the processes run is given apart; it follows
  from runs of two lengths.

Loading the initial model is counted in the last rows alone. Those in one process are timed in turn, run by run. On a
machine that also does other work the loop with several threads suffers more than the rest, whose threads wait for
nobody; the loop in one thread is there to tell that from what the recorder saves.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Benchmark, Comparison, Side, number, timed
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import gptfluence as gf
from gptfluence.models.gpt import GPT
from gptfluence.recording.curriculum import Curriculum, draw_curricula
from gptfluence.recording.recorder import Recorder, build_optimizer, single_thread
from gptfluence.recording.settings import AdamW
from gptfluence.study.campaign import Campaign
from gptfluence.tasks.base import Example, Task

PROFILE, MODEL, TASKS = "mini", "nano-410m", ("sst2", "webnlg")
TEST_BATCH = 8
LONGER = 4  # the second run length, in units of the first
TOLERANCE = 1e-4
OBVIOUS, ONE_PROCESS = "obvious loop", "recorder, one process"
PARTS = ("losses", "metrics")
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
        optimizer = build_optimizer(model, self.settings, fused=False)
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


def curricula_of(campaign: Campaign, steps: int, runs: int) -> list[Curriculum]:
    """Drawn as the profile says, with as many epochs as `steps` need."""
    drawn, pool_size = campaign.setting.curriculum, len(campaign.texts.pool)
    epochs = -(-steps * drawn.batch_size // drawn.subset_size)
    whole = draw_curricula(pool_size, runs=runs, subset=drawn.subset_size, batch=drawn.batch_size, epochs=epochs)
    return [Curriculum(curriculum.batches[:steps]) for curriculum in whole]


def record_in_processes(models: Path, task: str, curricula: list[Curriculum], jobs: int) -> tuple[float, np.ndarray]:
    """Seconds and losses of `Campaign.record` into a fresh artifacts folder that has the model already."""
    with tempfile.TemporaryDirectory() as folder:
        for made in models.glob(f"{MODEL}-*"):
            shutil.copytree(made, Path(folder) / "models" / made.name)

        def record() -> np.ndarray:
            study = gf.Study.load(PROFILE, artifacts=folder, jobs=jobs)
            return study.campaign("fine_tuning", task, model=MODEL).record(curricula).trajectories()

        return timed(record)


def largest_difference(task: str, found: dict[str, np.ndarray]) -> float:
    """The largest difference from the obvious loop's losses. Ends the program where it is above the tolerance."""
    worst = 0.0
    for row, losses in found.items():
        difference = float(np.abs(losses - found[OBVIOUS]).max())
        if not difference <= TOLERANCE:  # nan, too
            raise SystemExit(f"{task}: losses of {row!r} differ from the obvious loop's by {difference:.1e}")
        worst = max(worst, difference)
    return worst


def ways_of(obvious: ObviousLoop, recorder: Recorder) -> dict[str, Callable[[Curriculum], np.ndarray]]:
    """The rows that are measured in this process: a curriculum -> losses, float32 [steps + 1, tests]."""

    def record_in_one_thread(curriculum: Curriculum) -> np.ndarray:
        with single_thread():
            return recorder.record("run", curriculum).trajectories["loss"]

    def obvious_in_one_thread(curriculum: Curriculum) -> np.ndarray:
        with single_thread():
            return obvious.record(curriculum)

    return {
        OBVIOUS: obvious.record,
        "obvious loop, checkpoints on disk": obvious.record_by_checkpoints,
        "obvious loop, one thread": obvious_in_one_thread,
        ONE_PROCESS: record_in_one_thread,
    }


def compare_losses(campaign: Campaign, steps: int, runs: int) -> Comparison:
    """The recorder next to the obvious loop, which measure losses only."""
    name, task, recording = campaign.task, campaign.texts, campaign.setting.recording
    source, jobs = campaign.study.model(MODEL), campaign.study.jobs
    obvious = ObviousLoop(source.load(), task, recording.optimizer)
    long = curricula_of(campaign, LONGER * steps, runs)
    short = [Curriculum(curriculum.batches[:steps]) for curriculum in long]
    preparation, recorder = timed(lambda: Recorder(source.load(), task.pool, task.tests, recording))
    ways = ways_of(obvious, recorder)
    first = Curriculum(short[0].batches[:3])
    largest_difference(name, {row: record(first) for row, record in ways.items()})  # warms up, too

    seconds: dict[str, list[float]] = {row: [] for row in ways}
    losses: dict[str, list[np.ndarray]] = {row: [] for row in ways}
    for curriculum in short:
        for row, record in ways.items():
            took, found = timed(lambda record=record, curriculum=curriculum: record(curriculum))  # type: ignore[misc]
            seconds[row].append(took)
            losses[row].append(found)
    recorder.close()
    seconds[ONE_PROCESS] = [took + preparation / runs for took in seconds[ONE_PROCESS]]

    parallel, count = f"recorder, {min(jobs, runs)} processes", runs * steps
    took, of_processes = record_in_processes(source.cache, name, short, jobs)
    longer, _ = record_in_processes(source.cache, name, long, jobs)
    worst = largest_difference(
        name, {**{row: np.array(found) for row, found in losses.items()}, parallel: of_processes}
    )
    per_step = (longer - took) / ((LONGER - 1) * count)
    sides = [Side(row, [each / steps for each in values]) for row, values in seconds.items()]
    sides.append(Side(f"{parallel}, started for {steps} steps", [took / count]))
    sides.append(Side(f"{parallel}, started for {LONGER * steps} steps", [longer / (LONGER * count)]))
    if per_step > 0:  # two lengths on a busy machine may say nothing
        sides.append(Side(f"{parallel}, once running", [per_step]))
    return Comparison(
        f"{name}: {len(task.tests)} tests of at most {obvious.length} tokens, {runs} runs of {steps} steps",
        "seconds a step",
        sides,
        reference=OBVIOUS,
        notes=[
            f"losses agree to {worst:.0e}",
            f"threads by default: {torch.get_num_threads()}",
            f"start-up of the processes: {number(took - count * per_step)} s in all",
        ],
    )


def compare_metrics(campaign: Campaign, steps: int, runs: int) -> Comparison:
    """What texts and accuracies cost besides losses, in one thread, side by side."""
    name, task, recording = campaign.task, campaign.texts, campaign.setting.recording
    generated, rows = campaign.setting.generation, {"loss": (("loss",), None)}
    if campaign.study.is_labelled(name):
        rows["loss and accuracy"] = (("loss", "accuracy"), None)
    else:
        for every in (1, generated.every):
            generation = generated.model_copy(update={"every": every})
            label = "loss, BLEU, ROUGE-L, texts at every step" + (f" in {every}" if every > 1 else "")
            rows[label] = (("loss", "bleu", "rouge_l"), generation)
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    recorders = {
        row: Recorder(
            campaign.study.model(MODEL).load(), task.pool, task.tests, recording, metrics=metrics, generation=generation
        )
        for row, (metrics, generation) in rows.items()
    }
    with single_thread():
        for curriculum in curricula_of(campaign, steps, runs):
            for row, recorder in recorders.items():
                work = functools.partial(recorder.record, "run", curriculum)
                seconds[row].append(timed(work)[0] / steps)
    for recorder in recorders.values():
        recorder.close()
    return Comparison(
        f"{name}: {len(task.tests)} tests, {runs} runs of {steps} steps, one process, by what is measured",
        "seconds a step",
        [Side(row, values) for row, values in seconds.items()],
        reference="loss",
        slowdown=True,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="tasks of the profile")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))


def measure(options: argparse.Namespace) -> Iterator[Comparison]:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else Campaign.record would use a GPU
    logging.disable_progress_bar()
    study = gf.Study.load(PROFILE)
    campaigns = study.campaigns("fine_tuning", options.tasks, models=[MODEL])
    for part, compare in (("losses", compare_losses), ("metrics", compare_metrics)):
        if part in options.parts:
            yield from (compare(campaign, options.steps, options.runs) for campaign in campaigns)


QUICK = {"steps": 4, "runs": 2, "tasks": ["sst2"], "parts": ["losses"]}
BENCHMARK = Benchmark("recorder", __doc__, add_options, QUICK, measure)

if __name__ == "__main__":
    BENCHMARK.main()
