"""What a GPU gives: the same numbers, and how fast runs are recorded, tangents taken and curricula simulated there.

    python benchmarks/gpu.py --results FOLDER                        # all sections, at most eight minutes
    python benchmarks/gpu.py --sections card checks --results FOLDER # some; the others in FOLDER/gpu.json stay
    python benchmarks/gpu.py --device cpu --quick                    # tiny GPTs on the CPU: shows that everything works

Sections: card (peak of matrix products, bandwidth), checks (CPU and GPU agree; a run twice on the GPU), tangents, rollouts, speed
(recording GPTs of Pythia's shapes, in one process and in several), ways (other ways to measure the tests: `gpu_ways.py`), and, only
if it is named, compiled (by torch.compile, which takes minutes). Each has a time limit and writes what it found; a section that
fails or is cut off is noted with its error, and the next one begins. Weights are random, texts are random tokens.

A step is one update with 4 texts and the losses of all tests. Its share of the card's peak is that of the multiplications that the
recorder needs (`gpu_work.Work.flops`), whoever does the work, of the measured bf16 peak.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gpu_ways
import gpu_work
import numpy as np
import torch
from common import RESULTS, Comparison, Load, Side, as_text, write
from gpu_work import Work, made

from gptfluence.gradients.outputs import OutputGradients
from gptfluence.gradients.products import Replayer
from gptfluence.recording.generation import Generator
from gptfluence.recording.logits import ScoredLogits
from gptfluence.recording.settings import AdamW, Generation
from gptfluence.simulators.fitting import rollout

CANDIDATES, POSITIONS = 8, 48
WEIGHTS = 20  # bytes a parameter while a run is recorded: weights, their copy, gradients, two moments


class Bench:
    """Where and how large to measure, and what was found so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.quick = options.device, options.quick
        self.gpu = self.device != "cpu"
        self.peak: float | None = None
        self.facts: dict[str, Any] = {}

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def seconds(self, way: Callable[[], object], repeats: int = 5, warm_up: int = 2) -> list[float]:
        """Of each call, the work of the GPU included."""
        found = []
        for number in range(warm_up + repeats):
            self.wait()
            started = time.perf_counter()
            way()
            self.wait()
            if number >= warm_up:
                found.append(time.perf_counter() - started)
        return found


# --- the card ----------------------------------------------------------------------------------------------------------


def card(bench: Bench) -> Iterator[Comparison]:
    size, rows = (512, 2**20) if bench.quick else (8192, 2**31)
    if bench.gpu:
        properties = torch.cuda.get_device_properties(0)
        bench.facts["card"] = {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    sides = []
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"),
        ("TF32", torch.float32, "high"),
        ("fp32", torch.float32, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        left, right = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
        seconds = bench.seconds(lambda left=left, right=right: left @ right, 10 if name == "bf16" else 4)
        sides.append(Side(f"matrix product {size} x {size}, {name}", [2e-12 * size**3 / each for each in seconds]))
    torch.set_float32_matmul_precision("highest")
    bench.peak = bench.facts["peak_tflops"] = sides[0].median
    yield Comparison("Peak", "TFLOP/s", sides)
    source = torch.ones(rows, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.seconds(lambda: target.copy_(source), 10)
    yield Comparison(
        "Copy on the device", "TB/s", [Side("bytes read and written", [2e-12 * rows / s for s in seconds])]
    )


# --- the same numbers ---------------------------------------------------------------------------------------------------


def outputs(model: torch.nn.Module, tokens: int) -> torch.Tensor:
    """float32 [tokens * CANDIDATES], of the last tokens of a text of `POSITIONS`; as in tangents.py."""
    device = next(model.parameters()).device
    ids = torch.arange(POSITIONS, device=device)[None] * 7 % model.config.vocab_size
    hidden = model.base_model(input_ids=ids, use_cache=False)[0][0, -tokens:]
    logits = model.get_output_embeddings()(hidden)
    return (logits[:, :CANDIDATES] - logits[:, CANDIDATES:].logsumexp(1)[:, None]).flatten()


def taker(model: torch.nn.Module, coordinates: int, tokens: int) -> Callable[[], torch.Tensor]:
    """What takes float32 [outputs, coordinates], as `TangentFeatures` does."""
    size = sum(p.numel() for p in model.parameters())
    index = np.sort(np.random.default_rng(0).choice(size, min(coordinates, size), replace=False))
    ours = OutputGradients(model, dict(model.named_parameters()), index)

    def take() -> torch.Tensor:
        with ours.watching():
            return ours.of(outputs(model, tokens))

    return take


def found_on(device: str, shape: str, work: Work, steps: int) -> dict[str, np.ndarray]:
    """All kinds of numbers of one GPT, computed in float32 (or TF32, if that is switched on)."""
    gpt, found = made(shape), {}
    with work.recorder(gpt, device, Replayer, optimizer=AdamW(learning_rate=1e-4)) as recorder:
        for which in ("last_layer", "all"):
            gradients = recorder.gradients(which)
            direction = gradients.gradient(recorder.pool_batch([0, 1, 2, 3]))
            values = np.empty(len(work.tests), np.float32)
            for batch in recorder.test_batches:
                values[batch.rows.cpu().numpy()] = gradients.products(batch, [direction])[0].cpu().numpy()
            found[f"TracIn products, {which}"] = values
        found["losses"] = recorder.record("run", work.curriculum(steps)).trajectories["loss"]
    found["gradients of outputs"] = taker(gpt.model, 4096, 2)().cpu().numpy()
    prompts = [one.ids[: one.target_start] for one in work.tokens[1]]
    scored = ScoredLogits(gpt.model)
    try:
        names = [example.id for example in work.tests]
        settings = Generation(temperature=0, max_new_tokens=16)
        texts = Generator(scored, prompts, settings, ids=names, end=None, token_budget=4096, device=device)
        found["greedy tokens"] = np.array(texts.generate(0, 0))
    finally:
        scored.close()
    return found


def difference(name: str, ours: np.ndarray, truth: np.ndarray) -> float:
    """Losses: nats; greedy tokens: share of texts that differ; else relative to the largest."""
    if name == "greedy tokens":
        return float((ours != truth).any(axis=1).mean())
    apart = float(np.abs(ours.astype(np.float64) - truth).max())
    return apart if name == "losses" else apart / float(np.abs(truth).max())


def checks(bench: Bench) -> Iterator[Comparison]:
    steps, shapes = (2, ["tiny"]) if bench.quick else (8, ["14M", "160M"])
    for shape in shapes:
        work = Work.of(shape, 16, 24, (12, 40))
        truth = found_on("cpu", shape, work, steps)
        sides = {name: [] for name in truth}
        ways = [("fp32", "highest"), ("TF32", "high")] if bench.gpu else [("fp32", "highest")]
        for _, precision in ways:
            torch.set_float32_matmul_precision(precision)
            try:
                for name, values in found_on(bench.device, shape, work, steps).items():
                    sides[name].append(difference(name, values, truth[name]))
            finally:
                torch.set_float32_matmul_precision("highest")
        largest = [
            Side(name, found[:1], dict(zip([way for way, _ in ways[1:]], found[1:], strict=True)))
            for name, found in sides.items()
        ]
        yield Comparison(
            f"Pythia {shape} shape, CPU and {bench.device} differ at most by, {steps} steps",
            "fp32",
            largest,
            notes=["losses in nats", "greedy tokens: share of texts", "others: of the largest value"],
        )
        yield twice(bench, shape, work, steps, truth["losses"])


def twice(bench: Bench, shape: str, work: Work, steps: int, truth: np.ndarray) -> Comparison:
    """The same run twice in each precision, by two recorders: what differs, and how far bf16 is from the CPU's losses."""
    sides = []
    for precision in ("fp32", "bf16") if bench.gpu else ("fp32",):
        found = []
        for _ in range(2):
            settings = {"optimizer": AdamW(learning_rate=1e-4), "precision": precision}
            weights = {}
            with work.recorder(made(shape), bench.device, Replayer, **settings) as recorder:
                keep = lambda step, r=recorder, w=weights: w.update(r.weights()) if step == steps else None  # noqa: E731
                run = recorder.record("run", work.curriculum(steps), on_step=keep)
            found.append((run, {name: tensor.cpu().numpy() for name, tensor in weights.items()}))
        (first, ours), (second, others) = found
        sides.append(
            Side(
                precision,
                [float(np.abs(first.trajectories["loss"] - second.trajectories["loss"]).max())],
                {
                    "gradient norms, relative": float(np.abs(first.gradient_norm / second.gradient_norm - 1).max()),
                    "weights after the run": max(float(np.abs(ours[name] - others[name]).max()) for name in ours),
                    "losses, from the CPU's": float(np.abs(first.trajectories["loss"] - truth).max()),
                },
            )
        )
    return Comparison(
        f"Pythia {shape} shape, the same run twice on {bench.device}: largest differences", "losses, nats", sides
    )


# --- tangents and rollouts ----------------------------------------------------------------------------------------------


def tangents(bench: Bench) -> Iterator[Comparison]:
    shape, coordinates, tokens, few = ("tiny", 2048, 2, 2) if bench.quick else ("410M", 131072, 16, 8)
    gpt = made(shape, bench.device)
    parameters = list(gpt.model.parameters())
    index = torch.from_numpy(
        np.sort(np.random.default_rng(0).choice(sum(p.numel() for p in parameters), coordinates, replace=False))
    ).to(bench.device)

    def one_by_one() -> torch.Tensor:
        values, rows = outputs(gpt.model, tokens), []
        for value in values[:few]:
            found = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([gradient.flatten() for gradient in found])[index])
        return torch.stack(rows)

    count, take = tokens * CANDIDATES, taker(gpt.model, coordinates, tokens)
    truth, ours = one_by_one(), take()[:few]
    off = float((ours - truth).abs().max() / truth.abs().max())
    sides = [
        Side("autograd, one output at a time", [1000 / few * s for s in bench.seconds(one_by_one, 3, 1)]),
        Side("gptfluence, fp32", [1000 / count * s for s in bench.seconds(take, 3, 1)], {"difference": off}),
    ]
    if bench.gpu:
        torch.set_float32_matmul_precision("high")
        off = float((take()[:few] - truth).abs().max() / truth.abs().max())
        sides.append(
            Side("gptfluence, TF32", [1000 / count * s for s in bench.seconds(take, 3, 1)], {"difference": off})
        )
        torch.set_float32_matmul_precision("highest")
    yield Comparison(
        f"Tangents, Pythia {shape} shape: {count} outputs of a text of {POSITIONS} tokens, {coordinates:,} coordinates",
        "ms an output",
        sides,
        reference=sides[0].label,
        notes=["difference: of the largest gradient, from autograd's"],
    )


def rollouts(bench: Bench) -> Iterator[Comparison]:
    curricula, steps, tests = (100, 10, 20) if bench.quick else (10_000, 96, 200)
    rng = np.random.default_rng(0)
    tables = torch.from_numpy(rng.normal(0, 0.02, (200, 2 * tests)).astype(np.float32))
    tables[:, :tests] += 0.24  # of each of four examples
    batches = torch.from_numpy(rng.integers(0, 200, (curricula, steps, 4)).astype(np.int32))
    start = torch.ones(curricula, 1, tests)
    sides, found = [], {}
    for label, device in (("CPU", "cpu"), (bench.device, bench.device)):
        given = [tensor.to(device) for tensor in (tables, batches, start)]
        seconds = bench.seconds(lambda given=given: rollout(*given), 3, 1)
        found[label] = rollout(*given).cpu()
        sides.append(Side(f"{label}, {torch.get_num_threads()} threads" if label == "CPU" else label, seconds))
    off = float((found["CPU"] - found[bench.device]).abs().max())
    yield Comparison(
        f"Rollouts of GPTfluence: {curricula:,} curricula x {steps} steps x {tests} tests",
        "seconds",
        sides,
        reference=sides[0].label,
        notes=[f"largest difference {off:.1e}"],
    )


# --- speed of recording -------------------------------------------------------------------------------------------------


class Pool:
    """Processes that measure at the same time."""

    def __init__(self, count: int, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=gpu_work.serve, args=(theirs, device), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def ask(self, count: int, name: str, *arguments: Any) -> list[Any]:
        """The answers of the first `count` processes; RuntimeError with the traceback of one that failed."""
        for pipe in self.pipes[:count]:
            pipe.send((name, arguments))
        answers = [pipe.recv() for pipe in self.pipes[:count]]
        for _, error in answers:
            if error:
                raise RuntimeError(error)
        return [answer for answer, _ in answers]

    def close(self) -> None:
        for process in self.processes:
            process.kill()


def fitting(shape: str, counts: list[int]) -> list[int]:
    """As many processes as the card has memory for."""
    if not torch.cuda.is_available():
        return counts
    width, layers, _, inner, vocabulary = gpu_work.SHAPES[shape]
    parameters = layers * (4 * width**2 + 2 * width * inner) + 2 * width * vocabulary
    room = 0.85 * torch.cuda.get_device_properties(0).total_memory
    most = int(room // (WEIGHTS * parameters + 4 * 2**30))
    return sorted({min(count, most) for count in counts if min(count, most) > 1})


def speed(bench: Bench) -> Iterator[Comparison]:
    texts = gpu_work.TEXTS
    shapes = [("14M", "bf16"), ("410M", "bf16"), ("70M", "bf16"), ("160M", "bf16"), ("1B", "bf16"), ("14M", "fp32"), ("410M", "fp32")]  # fmt: skip
    budgets, counts, seconds = [1024, 4096, 16384], [4, 8, 12], 1.5
    if bench.quick:
        texts, shapes, budgets, counts, seconds = (8, 12, (12, 24)), [("tiny", "fp32")], [1024], [2], 0.5
    pool = Pool(max(counts), bench.device)
    try:
        pool.ask(max(counts), "start")
        for shape, precision in shapes:
            try:
                yield recording(bench, pool, shape, precision, (texts, budgets, fitting(shape, counts), seconds))
            except RuntimeError as error:
                bench.facts.setdefault("failed", []).append(f"{shape}, {precision}: {error}")
    finally:
        pool.close()


def recording(bench: Bench, pool: Pool, shape: str, precision: str, plan: tuple) -> Comparison:
    texts, budgets, counts, seconds = plan
    work = Work.of(shape, *texts)
    flops, tokens = sum(work.flops(shape)), work.tokens_a_step

    def side(label: str, rates: list[float]) -> Side:
        rate = sum(rates)
        share = 1e-12 * flops * rate / bench.peak if bench.peak else None
        return Side(label, [1000 / rate], {"tokens a second": tokens * rate, "share of the bf16 peak": share})

    sides = [side("obvious loop", pool.ask(1, "obvious", shape, texts, precision, seconds))]
    alone: dict[int, float] = {}
    for budget in budgets:
        pool.ask(1, "build", shape, texts, precision, budget)
        (alone[budget],) = pool.ask(1, "recorder", time.time(), seconds)
        sides.append(side(f"recorder, token_budget {budget}", [alone[budget]]))
    best = max(alone, key=lambda budget: alone[budget])
    for count in counts:
        pool.ask(count, "build", shape, texts, precision, best)
        rates = pool.ask(count, "recorder", time.time() + 0.3, seconds)
        sides.append(side(f"{count} processes, token_budget {best}", rates))
    pool.ask(max([1, *counts]), "forget")
    lengths = "{} to {}".format(*texts[2])
    return Comparison(
        f"Recording, Pythia {shape} shape, {precision}: {texts[1]} tests of {lengths} tokens",
        "ms a step",
        sides,
        reference=sides[0].label,
    )


# --- sections -----------------------------------------------------------------------------------------------------------

# seconds that each may take
SECTIONS: dict[str, tuple[Callable[[Bench], Iterator[Comparison]], int]] = {
    "card": (card, 30),
    "checks": (checks, 110),
    "tangents": (tangents, 40),
    "rollouts": (rollouts, 30),
    "speed": (speed, 200),
    "ways": (gpu_ways.section, 60),
    "compiled": (partial(gpu_ways.section, compiled=True), 300),
}
ASKED_FOR = ("compiled",)  # only: torch.compile takes minutes


class OutOfTime(BaseException):
    """A section has had its seconds. Nothing that it calls may take this for an error of its own."""


def run(name: str, bench: Bench, limit: float) -> dict[str, Any]:
    """The section's comparisons as far as they came, its seconds, and its error."""
    section, comparisons, error, started = SECTIONS[name][0], [], None, time.perf_counter()

    def end(*_: object) -> None:
        raise OutOfTime(f"{limit} seconds were over")

    signal.signal(signal.SIGALRM, end)
    signal.alarm(int(limit))
    try:
        for comparison in section(bench):
            comparisons.append(comparison.facts())
            print(as_text(comparisons[-1]), flush=True)
    except (Exception, OutOfTime):
        error = traceback.format_exc().replace(f"{RESULTS.parents[1]}/", "")  # results name no folder of the machine
        print(f"\n{name}: {error}", flush=True)
    finally:
        signal.alarm(0)
        torch.set_float32_matmul_precision("highest")
    return {"comparisons": comparisons, "seconds": round(time.perf_counter() - started, 1), "error": error}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--quick", action="store_true", help="tiny GPTs")
    parser.add_argument(
        "--sections", nargs="+", choices=list(SECTIONS), default=[name for name in SECTIONS if name not in ASKED_FOR]
    )
    parser.add_argument("--results", type=Path, help="write gpu.json into this folder; other sections in it stay")
    parser.add_argument("--commit", help="of the package, where there is no git")
    options = parser.parse_args(arguments)
    bench, load = Bench(options), Load()
    path = None if options.results is None else options.results / "gpu.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
    sections = known.get("sections", {})
    bench.facts |= known.get("facts", {})
    bench.peak = bench.facts.get("peak_tflops")
    for name in options.sections:
        limit = 60 if options.quick else SECTIONS[name][1]
        sections[name] = run(name, bench, limit)
        if path is not None:
            content = {
                "sections": sections,
                "comparisons": [each for one in SECTIONS if one in sections for each in sections[one]["comparisons"]],
                "facts": bench.facts,
                "options": {"device": options.device},
                "mode": "quick" if options.quick else "full",
                "seconds": sum(one["seconds"] for one in sections.values()),
            }
            write(options.results, "gpu", content, load)
            if options.commit:
                facts = json.loads(path.read_text(encoding="utf-8")) | {"commit": options.commit, "clean": True}
                path.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print()
    for name, found in sections.items():
        print(f"{name:<12}{found['seconds']:>8.1f} s   {(found['error'] or 'done').strip().splitlines()[-1]}")


if __name__ == "__main__":
    main()
