"""Archives in the published form, small and made up, for the tests of published runs; and what was stored of them."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np

from gptfluence.common import files
from gptfluence.models.settings import PublishedModel
from gptfluence.published import importing
from gptfluence.recording import store

STEPS, BATCH, TESTS = 5, 3, 4
SIZES = {  # training texts, test texts
    "rte": (210, TESTS),
    "webnlg": (8, TESTS),
    "sst2": (9, TESTS),
    "flan": (12, 1055),
    "mislabelled": (7, TESTS),
}
TEXTS = {
    "rte": ("sft_tasks/rte/rte_0_399_train.json", "sft_tasks/rte/rte_0_276_eval.json"),
    "webnlg": ("sft_tasks/webnlg/webnlg_train_0-399.json", "sft_tasks/webnlg/webnlg_dev_0-177.json"),
    "sst2": ("sft_tasks/sst2/sst2_train_0-199.json", "sft_tasks/sst2/sst2_validation_0-199.json"),
    "flan": ("it_tasks/flan_train_0_1599.json", "it_tasks/flan_eval_0_1054.json"),
    "mislabelled": (
        "sft_tasks/sst2/sst2_flan-prompt_dataset-debug_mislabelled-0.4_train_0-127.json",
        "sft_tasks/sst2/sst2_flan-prompt_dataset-debug_eval_0-127.json",
    ),
}
FIRST_OF_FLAN = {"sst2": 0, "rte": 200, "boolq": 477, "webnlg": 677, "wmt16_de_en": 855}
GENERATED = ("webnlg", "wmt16_de_en")
LAYOUTS = ("processed", "raw")
CHECKPOINT = "checkpoint-3.out"


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(kind):
    return {
        name: lines(
            {"id": k, "input": f"{part} {kind} {k}. Yes.", "context": f"{part} {kind} {k}."} for k in range(count)
        )
        for part, name, count in zip(("train", "test"), TEXTS[kind], SIZES[kind], strict=True)
    }


def series(kind):
    return f"output_{'sst2_mislabelled-0.4' if kind == 'mislabelled' else kind}_bs-3_model-pythia-410m-deduped_lr-5e-7"


def numbers(kind, seed, steps=STEPS, ids=None):
    """What a run measured: batches, and metric -> {published test id: values by step}."""
    rng = np.random.default_rng([seed, len(kind)])
    low, high = ids or (0, min(200, SIZES[kind][0]))
    batches = rng.integers(low, high, (steps, BATCH)).tolist()
    task = "sst2" if kind == "mislabelled" else kind
    firsts = FIRST_OF_FLAN if kind == "flan" else {task: 0}
    measured = {}
    for metric, scale in (("loss", 5), ("bleu", 100), ("rougeL", 1)):
        tests = [
            (name, first + k)
            for name, first in firsts.items()
            if metric == "loss" or name in GENERATED
            for k in range(TESTS)
        ]
        if tests:
            measured[metric] = {test: (scale * rng.random(steps)).tolist() for test in tests}
    return batches, measured


def processed(kind, seed, **options):
    batches, measured = numbers(kind, seed, **options)
    run = {"train_samples_id.json": lines({"step": k, "samples_id": b} for k, b in enumerate(batches, 1))}
    for metric, values in measured.items():
        run[f"all_{metric}_trajectory.out"] = lines(
            {"id": test, "loss_trajectory": [{"step": k, "loss": value} for k, value in enumerate(row, 1)]}
            for (_, test), row in values.items()
        )
    return {f"runs/{kind}/{series(kind)}_seed-{seed}/{name}": content for name, content in run.items()}


def raw(kind, seed, **options):
    batches, measured = numbers(kind, seed, **options)
    log = "loading\n{'train_runtime': 3.2}\n"
    for k, batch in enumerate(batches, 1):
        log += f" 1%|= | {k}/9\r{ {'loss': 2 / k, 'learning_rate': 1e-7 * k, 'samples_id': batch, 'step': k} }\n"
    run = {"log.out": log}
    for step in range(1, len(batches) + 1):
        rows = {}
        for metric, values in measured.items():
            for (task, test), row in values.items():
                local = test - (FIRST_OF_FLAN[task] if kind == "flan" else 0)
                rows.setdefault(task, {}).setdefault(local, {"id": local})[metric] = row[step - 1]
        for task, by_id in rows.items():
            what = "metric" if task in GENERATED else "loss"
            run[f"{what}_{task}/{what}_{task}_checkpoint-{step}.out"] = lines(by_id.values())
    return {f"raw/{kind}/{series(kind)}_seed-{seed}/{name}": content for name, content in run.items()}


WRITE = {"processed": processed, "raw": raw}


def archive(layout, kind="rte", seeds=(1, 2, 3), **options):
    content = texts(kind)
    for seed in seeds:
        content |= WRITE[layout](kind, seed, **options)
    return content


def in_folder(content, folder):
    for name, text in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def in_tar(content, path, mode="w", extra=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, text in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        for member in extra:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def in_tar_beside_texts(content, path):
    """As the data set has it: texts in folders, runs in a tar."""
    in_folder({name: text for name, text in content.items() if "_tasks/" in name}, path)
    in_tar({name: text for name, text in content.items() if "_tasks/" not in name}, path / "GPTDynamics.tar")
    return path


PACKED = {
    "folder": in_folder,
    "tar": lambda content, path: in_tar(content, path / "all.tar"),
    "tar.gz": lambda content, path: in_tar(content, path / "all.tar.gz", "w:gz"),
    "tar.xz in a folder": lambda content, path: in_tar(content, path / "runs.tar.xz", "w:xz").parent,
    "texts and a tar": in_tar_beside_texts,
    "a tar, texts beside it": lambda content, path: in_tar_beside_texts(content, path) / "GPTDynamics.tar",
}


def stored(root):
    """Checksum of every stored file but locks."""
    return {
        path.relative_to(root).as_posix(): files.sha256(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def load(root, kind="rte", task=None, pool="seen"):
    setting = {"flan": "instruction_tuning", "mislabelled": "mislabelled"}.get(kind, "fine_tuning")
    model = PublishedModel(source="published", gpt="pythia-410m", pool=pool)
    return store.load(importing.find(root / "dynamics", model, setting=setting, task=task or kind))


def reasons(report):
    return [run.note for run in report.runs if run.result == "skipped"]


def edit(content, end, change):
    """`content` with the file of seed 2 whose name ends so changed (None: taken away)."""
    (name,) = [name for name in content if name.endswith(end) and "_seed-2/" in name]
    text = change(content[name]) if change else None
    return {key: text if key == name else value for key, value in content.items() if key != name or text is not None}
