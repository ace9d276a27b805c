"""Every family of causal language models, recorded and compared with plain loops: `python tools/zoo/compare.py [FAMILY ...]`.

A tiny random model of each family (`families.py`) is saved, recorded for three runs of four steps through `gf.record`, and
compared: losses before training with `model(input_ids, labels)`, losses after four steps with a loop over the same batches
(AdamW and weight decay as the Trainer of transformers has them), a GPTfluence fit, gradients of outputs and products of
gradients with autograd, greedy texts with `generate`. Then the Trainer of transformers trains it on chats, by a chat template and a
label mask, and the callback records: weights with a training without it, losses with `model(input_ids, labels)`, and what
`gf.train_again` makes of the record. A line is printed for each family, and a summary at the end; the exit
code is 1 if anything differs. What the installed transformers lacks is passed over.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from datasets import Dataset
from families import FAMILIES, REFUSED, VOCABULARY

import gptfluence as gf
from gptfluence.common.errors import ModelError
from gptfluence.gradients.outputs import OutputGradients
from gptfluence.gradients.products import Replayer
from gptfluence.models.gpt import GPT, ModelSource
from gptfluence.models.settings import LocalModel
from gptfluence.recording.generation import Generator
from gptfluence.recording.logits import ScoredLogits
from gptfluence.recording.recorder import single_thread
from gptfluence.recording.settings import AdamW, Generation, Recording
from gptfluence.recording.store import not_repeatable
from gptfluence.recording.tokens import TokenizedExample, tokenize
from gptfluence.tasks import Example, Task, mini
from gptfluence.trainers.arguments import takes_number_of_tokens

OPTIMIZER = AdamW(learning_rate=1e-3, weight_decay=0.1)
CHECKS = ("first", "after", "fit", "outputs", "last", "all", "texts", "trainer", "again")
CHAT = (
    "{% for message in messages %}<{{ message.role }}>{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ message.content }}{% endif %}{% endfor %}"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="all of them if none is given")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=CHECKS, help="all of them if none is given")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    known = {**FAMILIES, **{f"{name} (refused)": made for name, made in REFUSED.items()}}
    chosen = arguments.families or list(known)
    task = mini.generate("webnlg", pool_size=8, test_size=5)
    print(f"{'family':28}" + "".join(f"{check:>9}" for check in arguments.checks) + "  seconds", flush=True)
    wrong, unmade = [], []
    with tempfile.TemporaryDirectory() as folder, single_thread():
        tokenizer = byte_pairs(task)
        for name in chosen:
            started = time.perf_counter()
            place = Path(folder) / name
            try:
                make(*known[name], tokenizer, place)
            except Exception as error:
                print(f"{name:28} not made: {one_line(error)}", flush=True)
                unmade.append(name)
                continue
            expected = "(refused)" not in name
            checks = arguments.checks
            found = check(place, task, checks, shown=arguments.traceback) if expected else refusal(place)
            print(
                f"{name:28}" + "".join(f"{value:>9}" for value in found) + f"  {time.perf_counter() - started:.1f}",
                flush=True,
            )
            if any(value != "ok" for value in found):
                wrong.append(name)
    made = len(chosen) - len(unmade)
    for what, names in ((f"{made - len(wrong)} of {made} as they should be; not", wrong), ("not made", unmade)):
        print(f"{what}: {', '.join(names) or 'none'}")
    return int(bool(wrong))


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


def byte_pairs(task: Task):
    """A tokenizer like GPT-2's, of `VOCABULARY` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    end, alphabet = "<|endoftext|>", sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([*task.pool.texts, *task.tests.texts], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end, pad_token=end)


def make(model_type: str, options: dict, tokenizer: object, folder: Path) -> None:
    """Save a model of random weights, without dropout and random routing, so that plain loops are the same training."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **options)
    for part in (config, config.get_text_config()):
        for key, value in vars(part).items():
            if isinstance(value, float) and ("drop" in key or "jitter" in key):
                setattr(part, key, 0.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]


def refusal(folder: Path) -> list[str]:
    try:
        ModelSource("zoo", LocalModel(source="local", path=folder), folder).load()
    except ModelError as error:
        expected = ("tokens see those that come later", "cannot be used as a causal language model")
        return ["ok"] if any(words in str(error) for words in expected) else [one_line(error)]
    return ["loaded"]


def check(folder: Path, task: Task, checks: Sequence[str] = CHECKS, *, shown: bool = False) -> list[str]:
    """For each of these "ok", by how much it differs, or the error."""
    found: dict[str, str] = {}

    def attempt(name: str, measure: Callable[[], float], allowed: float) -> None:
        if name not in checks:
            return
        try:
            difference = measure()
            found[name] = "ok" if difference <= allowed else f"{difference:.1e}"
        except Exception as error:
            found[name] = "error"
            print(f"    {name}: {one_line(error)}", flush=True)
            if shown:
                traceback.print_exc()

    source = ModelSource("zoo", LocalModel(source="local", path=folder), folder)
    curricula = gf.draw_curricula(task.pool, runs=3, subset=8, batch=2, epochs=1, seed=0)
    dynamics: list = []

    def recorded() -> gf.GPTDynamics:
        if not dynamics:
            artifacts = folder / "artifacts"
            dynamics.append(
                gf.record(folder, *task, curricula=curricula, optimizer=OPTIMIZER, artifacts=artifacts, jobs=1)
            )
        return dynamics[0]

    attempt("first", lambda: first_losses(recorded(), source.load()), 2e-5)
    attempt("after", lambda: later_losses(recorded(), source.load()), 1e-4)
    attempt("fit", lambda: fit(recorded()), 0)
    attempt("outputs", lambda: output_gradients(task, source.load()), 1e-4)
    attempt("last", lambda: products(task, source.load(), "last_layer"), 1e-4)
    attempt("all", lambda: products(task, source.load(), "all"), 1e-4)
    attempt("texts", lambda: greedy_texts(task, source.load()), 0)
    attempt("trainer", lambda: by_trainer(folder, task), 2e-5)
    attempt("again", lambda: trained_again(folder), 1e-4)
    return [found[name] for name in checks]


# --- plain loops ---------------------------------------------------------------------------------------------------------


def loss_of(model: torch.nn.Module, example: TokenizedExample) -> torch.Tensor:
    """`model(input_ids, labels).loss`; the decoders of BART and its kin take labels that are shifted already."""
    ids = torch.from_numpy(example.ids)[None]
    labels = ids.clone()
    labels[0, : example.target_start] = -100
    if hasattr(model.config, "decoder_layers"):
        labels = torch.cat([labels[:, 1:], torch.full((1, 1), -100)], dim=1)
    return model(input_ids=ids, labels=labels, use_cache=False).loss


@torch.no_grad()
def losses(model: torch.nn.Module, examples: list[TokenizedExample]) -> np.ndarray:
    return np.array([float(loss_of(model.eval(), example)) for example in examples])


def first_losses(dynamics: gf.GPTDynamics, gpt: GPT) -> float:
    expected = losses(gpt.model, tokenize(dynamics.tests, gpt))
    return max(float(np.abs(run.trajectories["loss"][0] - expected).max()) for run in dynamics.runs)


def later_losses(dynamics: gf.GPTDynamics, gpt: GPT) -> float:
    from transformers import Trainer

    pool, run, model = tokenize(dynamics.pool, gpt), dynamics.runs[0], gpt.model
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for name, p in model.named_parameters() if name in decayed], "weight_decay": 0.1},
            {"params": [p for name, p in model.named_parameters() if name not in decayed], "weight_decay": 0.0},
        ],
        betas=OPTIMIZER.betas,
        eps=OPTIMIZER.eps,
    )
    rates = OPTIMIZER.learning_rates(run.curriculum.steps)
    for rows, rate in zip(run.curriculum.batches, rates, strict=True):
        model.train()
        sizes = [len(pool[row].ids) - pool[row].target_start for row in rows]
        loss = sum(loss_of(model, pool[row]) * size for row, size in zip(rows, sizes, strict=True)) / sum(sizes)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    expected = losses(model, tokenize(dynamics.tests, gpt))
    return float(np.abs(run.trajectories["loss"][-1] - expected).max())


def fit(dynamics: gf.GPTDynamics) -> float:
    train, validation, test = dynamics.split(validation=1, test=1)
    simulator = gf.GPTfluence(encoder="index", max_epochs=1).fit(train, validation)
    predicted = simulator.simulate(test.curricula, test.trajectories("loss")[:, :1])
    return float(not np.isfinite(predicted).all())


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def output_gradients(task: Task, gpt: GPT) -> float:
    parameters = {name: p for name, p in gpt.model.named_parameters() if p.requires_grad}
    index = np.arange(sum(p.numel() for p in parameters.values()))[::7]
    ids = torch.from_numpy(tokenize(task.tests, gpt)[0].ids)[None]
    gradients = OutputGradients(gpt.model, parameters, index)
    with gradients.watching():
        logits = gpt.model(input_ids=ids, use_cache=False).logits[0]
        values = torch.stack([logits[-1, 5], logits[-2, 7], logits[3, 9] - logits[3].logsumexp(0)])
        found = gradients.of(values)
    rows = [
        torch.autograd.grad(value, list(parameters.values()), retain_graph=True, materialize_grads=True)
        for value in values
    ]
    expected = torch.stack([torch.cat([part.flatten() for part in row])[index] for row in rows])
    return relative(found, expected)


def products(task: Task, gpt: GPT, which: str) -> float:
    with Replayer(gpt, *task, Recording(optimizer=OPTIMIZER, token_budget=150)) as recorder:
        gradients = recorder.gradients(which)
        directions = [gradients.gradient(recorder.pool_batch(rows)) for rows in ([0, 1, 2], [5, 7])]
        found = torch.empty(2, len(task.tests))
        for batch in recorder.test_batches:
            for row, values in enumerate(gradients.products(batch, directions)):
                found[row, batch.rows] = values
        norms = recorder.squared_norms(gradients)
    of_pool, of_tests = (flat_gradients(gpt, tokenize(part, gpt), gradients.parameters) for part in task)
    expected = torch.stack([of_tests @ of_pool[rows].sum(0) for rows in ([0, 1, 2], [5, 7])])
    return max(relative(found, expected), relative(norms, of_pool.square().sum(1)))


def flat_gradients(gpt: GPT, examples: list[TokenizedExample], parameters: dict) -> torch.Tensor:
    rows = [
        torch.autograd.grad(loss_of(gpt.model, example), list(parameters.values()), materialize_grads=True)
        for example in examples
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def greedy_texts(task: Task, gpt: GPT) -> float:
    """How many of the texts differ from those of `generate`, and from those of whole forward passes (`generate` counts the
    positions of RoBERTa in another way than its forward pass, and ends the texts of BART by a rule)."""
    prompts = [example.ids[: example.target_start] for example in tokenize(task.tests, gpt)]
    end = gpt.tokenizer.eos_token_id
    expected = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt)[None]
        text = gpt.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
        whole = ids
        for _ in range(8):
            with torch.no_grad():
                logits = gpt.model(input_ids=whole, use_cache=False).logits
            whole = torch.cat([whole, logits[:, -1].argmax(1, keepdim=True)], dim=1)
        either = [one[0, len(prompt) :].tolist() for one in (text, whole)]
        expected.append([one[: one.index(end)] if end in one else one for one in either])
    scored = ScoredLogits(gpt.model)
    settings = Generation(max_new_tokens=8, temperature=0)
    names = [example.id for example in task.tests]
    generator = Generator(scored, prompts, settings, ids=names, end=end, token_budget=4096, device="cpu")
    found = generator.generate(0, 0)
    scored.close()
    return float(sum(text not in either for text, either in zip(found, expected, strict=True)))


# --- a training by the Trainer ---------------------------------------------------------------------------------------------


def chat(tokenizer: Any, example: Example) -> dict[str, list[int]]:
    """A row as the Trainer takes it: the loss is of the assistant's tokens."""
    messages = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.target}]
    made = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, counted = made["input_ids"], made["assistant_masks"]
    return {"input_ids": ids, "labels": [token if mark else -100 for token, mark in zip(ids, counted, strict=True)]}


def by_trainer(folder: Path, task: Task) -> float:
    """How far recorded losses are from the model's own, before and after training."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    pool, tests = (Dataset.from_list([chat(tokenizer, example) for example in part]) for part in task)
    fed = [
        TokenizedExample(
            np.array(row["input_ids"]), next(at for at, label in enumerate(row["labels"]) if label != -100)
        )
        for row in tests
    ]
    plain, _, _ = trained(folder, pool, tokenizer, fed)
    recorder = gf.TrainerRecorder(tests, folder / "runs")
    weights, before, after = trained(folder, pool, tokenizer, fed, recorder)
    if recorder.stopped:
        raise RuntimeError(recorder.stopped)
    if wrong := [name for name, value in weights.items() if not torch.equal(value, plain[name])]:
        raise RuntimeError(f"recorded, {wrong[0]} is trained to something else")
    measured = gf.load_dynamics(folder / "runs").trajectories("loss")[0]
    return float(max(np.abs(measured[0] - before).max(), np.abs(measured[-1] - after).max()))


def trained(
    folder: Path, pool: Dataset, tokenizer: Any, tests: list[TokenizedExample], *callbacks: Any
) -> tuple[dict[str, torch.Tensor], np.ndarray, np.ndarray]:
    """The weights at the end, and the losses of `tests` before and after."""
    transformers.set_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2 if takes_number_of_tokens(model) else 1,
        learning_rate=1e-3,
        weight_decay=0.1,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        transformers.DataCollatorForSeq2Seq(tokenizer),
        train_dataset=pool,
        processing_class=tokenizer,
        callbacks=[*callbacks],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    before = losses(model, tests)
    trainer.train()
    return model.state_dict(), before, losses(model, tests)


def trained_again(folder: Path) -> float:
    """How far a training from the record is from what was recorded; 0 where the loss is none that this package trains with."""
    dynamics = gf.load_dynamics(folder / "runs")
    own_labels = hasattr(dynamics.source.gpt.load().model.config, "decoder_layers")
    if own_labels and "not the mean cross-entropy of the next tokens" in not_repeatable(dynamics):
        return 0.0
    return float(np.abs(gf.train_again(folder / "runs").trajectories["loss"] - dynamics.trajectories("loss")[0]).max())


if __name__ == "__main__":
    sys.exit(main())
