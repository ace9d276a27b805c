"""What `gpu.py` measures recording on: GPTs of Pythia's shapes, texts of random tokens, an obvious loop, and processes.

Weights are random and texts are numbers, since neither changes how long a step takes; depth, width and vocabulary do.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from gptfluence.models.gpt import GPT
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.recorder import Recorder
from gptfluence.recording.settings import AdamW, Recording
from gptfluence.recording.tokens import TokenizedExample
from gptfluence.tasks.base import Example, TaskPool

# width, layers, heads, width of the MLP, tokens of the vocabulary
SHAPES = {
    "tiny": (64, 2, 2, 256, 512),
    "small": (64, 4, 4, 256, 2048),
    "14M": (128, 6, 4, 512, 50304),
    "70M": (512, 6, 8, 2048, 50304),
    "160M": (768, 12, 12, 3072, 50304),
    "410M": (1024, 24, 16, 4096, 50304),
    "1B": (2048, 16, 8, 8192, 50304),
}
BATCH, TEST_BATCH = 4, 8
TEXTS: tuple = (64, 200, (48, 144))  # of pool and tests, and their lengths in tokens
IGNORED = -100


def made(shape: str, device: str = "cpu") -> GPT:
    """A GPT of this shape with random weights, which are the same for the same device; it has no tokenizer."""
    width, layers, heads, inner, vocabulary = SHAPES[shape]
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return GPT(shape, model.float().to(device).eval(), None, 2048)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Work:
    """Random texts. `tokens`: of pool and tests."""

    pool: TaskPool
    tests: TaskPool
    tokens: tuple[list[TokenizedExample], list[TokenizedExample]]

    @classmethod
    def of(cls, shape: str, pool: int, tests: int, lengths: tuple[int, int], target: int = 8) -> Work:
        """lengths: shortest and longest text in tokens, drawn alike; target: tokens of it whose loss counts"""
        rng, vocabulary = np.random.default_rng(0), SHAPES[shape][-1]
        tokens = [
            [
                TokenizedExample(rng.integers(0, vocabulary, length), int(length) - target)
                for length in rng.integers(lengths[0], lengths[1] + 1, count)
            ]
            for count in (pool, tests)
        ]
        pools = [
            TaskPool(name, tuple(Example(str(k), "a", " b") for k in range(count)))
            for name, count in (("random/pool", pool), ("random/tests", tests))
        ]
        return cls(*pools, (tokens[0], tokens[1]))

    def curriculum(self, steps: int) -> Curriculum:
        return Curriculum(np.random.default_rng(1).integers(0, len(self.pool), (steps, BATCH)))

    def recorder(self, gpt: GPT, device: str, kind: type[Recorder] = Recorder, **recording: Any) -> Any:
        return kind(gpt, self.pool, self.tests, Recording(**recording), device=device, tokens=self.tokens)

    @property
    def tokens_a_step(self) -> float:
        """Trained and measured, without padding."""
        pool, tests = ([len(one.ids) - 1 for one in part] for part in self.tokens)
        return BATCH * float(np.mean(pool)) + sum(tests)

    def flops(self, shape: str) -> tuple[float, float]:
        """Of the matrix products of an update and of one pass over the tests: two for each multiplication.

        A backward pass has twice those of its forward pass. Counted is what the recorder needs: attention only looks back, and
        the last MLP and the output embedding see scored tokens alone.
        """
        width, layers, _, inner, vocabulary = SHAPES[shape]

        def forward(one: TokenizedExample) -> float:
            length, scored = len(one.ids) - 1, len(one.ids) - one.target_start
            attention = layers * (8 * width**2 * length + 2 * width * length**2)
            mlp = 4 * width * inner * ((layers - 1) * length + scored)
            return attention + mlp + 2 * width * vocabulary * scored

        pool, tests = ([forward(one) for one in part] for part in self.tokens)
        return 3 * BATCH * float(np.mean(pool)), sum(tests)


class ObviousLoop:
    """Train on a padded batch, then measure all tests in padded batches with an attention mask and all logits."""

    def __init__(self, gpt: GPT, work: Work, device: str, precision: str) -> None:
        self.model, self.device, self.bf16 = gpt.model.to(device), device, precision == "bf16"
        self.pool, self.tests = work.tokens
        self.longest = max(len(one.ids) for one in self.tests)

    def batch(self, examples: Sequence[TokenizedExample], width: int) -> dict[str, torch.Tensor]:
        ids, mask, labels = (torch.full((len(examples), width), fill) for fill in (0, 0, IGNORED))
        for row, one in enumerate(examples):
            ids[row, : len(one.ids)] = torch.from_numpy(one.ids)
            mask[row, : len(one.ids)] = 1
            labels[row, one.target_start : len(one.ids)] = ids[row, one.target_start : len(one.ids)]
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def record(self, curriculum: Curriculum, rates: Sequence[float], on_step: Any) -> np.ndarray:
        """float32 [steps + 1, tests]; `on_step` as the recorder calls it"""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, eps=1e-6, weight_decay=1e-3)
        losses = []
        for step in range(curriculum.steps + 1):
            if step:
                self.model.train()
                examples = [self.pool[row] for row in curriculum.examples(step - 1)]
                with self._autocast():
                    loss = self.model(**self.batch(examples, max(len(one.ids) for one in examples))).loss
                loss.backward()
                for group in optimizer.param_groups:
                    group["lr"] = rates[step - 1]
                optimizer.step()
                optimizer.zero_grad()
                loss.item()
            losses.append(self._measure())
            on_step(step)
        return np.array(losses)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def _measure(self) -> np.ndarray:
        self.model.eval()
        losses = []
        for start in range(0, len(self.tests), TEST_BATCH):
            batch = self.batch(self.tests[start : start + TEST_BATCH], self.longest)
            labels = batch.pop("labels")[:, 1:]
            with self._autocast():
                logits = self.model(**batch).logits[:, :-1].float()
            each = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
            losses.append(each.sum(dim=1) / (labels != IGNORED).sum(dim=1))
        return torch.cat(losses).cpu().numpy()


class _Enough(Exception):
    """The time for a measurement is over."""


def steps_a_second(record: Any, start: float, seconds: float) -> float:
    """Of `record(on_step)`, from `start` (seconds since the epoch) on, for so many seconds and two steps at least."""
    ends: list[float] = []

    def on_step(_: int) -> None:
        ends.append(time.time())  # the step's losses are there, so the GPU is done with it
        if ends[-1] > start + seconds and len(ends) > 2:
            raise _Enough

    time.sleep(max(0.0, start - time.time()))
    with suppress(_Enough):
        record(on_step)
    return (len(ends) - 1) / (ends[-1] - ends[0])


def serve(pipe: Any, device: str) -> None:
    """A process that measures: takes (name, arguments) from the pipe, answers (result, error)."""
    torch.set_num_threads(1)
    server = _Server(device)
    while True:
        name, arguments = pipe.recv()
        if name == "stop":
            return
        try:
            pipe.send((getattr(server, name)(*arguments), None))
        except Exception:
            server.forget()
            pipe.send((None, traceback.format_exc()[-1500:]))


class _Server:
    def __init__(self, device: str) -> None:
        self.device = device
        self._recorder: Recorder | None = None
        self._curriculum: Curriculum | None = None

    def start(self) -> None:
        torch.zeros(1, device=self.device)

    def forget(self) -> None:
        self._recorder = None
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def build(self, shape: str, texts: tuple, precision: str, token_budget: int) -> None:
        """Make a recorder and take two steps with it."""
        self.forget()
        work = Work.of(shape, *texts)
        self._curriculum = work.curriculum(1000)
        self._recorder = work.recorder(
            made(shape, self.device), self.device, precision=precision, token_budget=token_budget
        )
        self._recorder.record("run", work.curriculum(2))

    def recorder(self, start: float, seconds: float) -> float:
        assert self._recorder is not None
        assert self._curriculum is not None
        recorder, curriculum = self._recorder, self._curriculum
        return steps_a_second(lambda on_step: recorder.record("run", curriculum, on_step=on_step), start, seconds)

    def obvious(self, shape: str, texts: tuple, precision: str, seconds: float) -> float:
        self.forget()
        work = Work.of(shape, *texts)
        loop = ObviousLoop(made(shape, self.device), work, self.device, precision)
        rates = AdamW().learning_rates(1000)
        loop.record(work.curriculum(1), rates, lambda _: None)
        return steps_a_second(lambda on_step: loop.record(work.curriculum(1000), rates, on_step), time.time(), seconds)
