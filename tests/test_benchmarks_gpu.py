"""The benchmark of a GPU, its recordings on another machine, and the weights that are carried there; here on the CPU."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from gptfluence.common import files
from gptfluence.recording import store
from gptfluence.recording.dynamics import Source
from gptfluence.recording.record import Wanted, record_missing
from gptfluence.recording.settings import DrawnCurricula, Generation, Recording
from gptfluence.recording.tokens import bucketed


@pytest.fixture
def llama(tmp_path):
    """A tiny Llama as a GGUF with quantized weights, and the folder that transformers would save of it."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants
    from safetensors.torch import save_file

    rng = np.random.default_rng(0)
    kinds = {"Q8_0": GGMLQuantizationType.Q8_0, "Q4_1": GGMLQuantizationType.Q4_1}
    made = {
        "token_embd": ("model.embed_tokens", "Q8_0", (50, 64)),
        "blk.0.attn_q": ("model.layers.0.self_attn.q_proj", "Q4_1", (64, 64)),
        "blk.0.attn_k": ("model.layers.0.self_attn.k_proj", "Q4_1", (32, 64)),
        "blk.0.attn_norm": ("model.layers.0.input_layernorm", "F32", (64,)),
    }
    heads = {"blk.0.attn_q": 4, "blk.0.attn_k": 2}
    writer, weights = GGUFWriter(tmp_path / "tiny.gguf", "llama"), {}
    for name, (saved, kind, shape) in made.items():
        values = rng.normal(size=shape).astype(np.float32)
        if kind == "F32":
            writer.add_tensor(f"{name}.weight", values)
        else:
            raw = quants.quantize(values, kinds[kind])
            writer.add_tensor(f"{name}.weight", raw, raw_dtype=kinds[kind])
            values = quants.dequantize(raw, kinds[kind])
        if name in heads:  # as transformers undoes it
            values = values.reshape(heads[name], -1, 2, 64).swapaxes(1, 2).reshape(shape)
        weights[f"{saved}.weight"] = torch.from_numpy(np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    def save(folder):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"num_attention_heads": 4, "num_key_value_heads": 2}))

    return tmp_path / "tiny.gguf", files.made(tmp_path / "models" / "gguf-tiny", save, what="a model")


@pytest.mark.parametrize("pieces", [1, 3])
def test_weights_are_put_together_again_byte_for_byte(load, llama, tmp_path, pieces):
    carried, (whole, model) = load("carried"), llama
    carried.pack(whole, model, tmp_path / "carry", pieces)
    there = tmp_path / "there"
    there.mkdir()
    assert len(list((tmp_path / "carry").glob("*/gguf-tiny.[0-9]"))) == pieces
    (found,) = carried.unpack(tmp_path / "carry", there)
    assert found == there / "gguf-tiny"
    assert files.damage(found) is None
    assert (found / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_weights_that_are_damaged_on_the_way_are_noticed(load, llama, tmp_path):
    carried, (whole, model) = load("carried"), llama
    carried.pack(whole, model, tmp_path / "carry", 2)
    piece = tmp_path / "carry" / "1" / "gguf-tiny.1"
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    with pytest.raises(SystemExit, match="not those that were packed"):
        carried.unpack(tmp_path / "carry", tmp_path)


def test_a_piece_that_is_still_being_copied_is_waited_for(load, llama, tmp_path):
    carried, (whole, model) = load("carried"), llama
    carried.pack(whole, model, tmp_path / "carry", 2)
    piece = tmp_path / "carry" / "1" / "gguf-tiny.1"
    content = piece.read_bytes()
    piece.write_bytes(content[:-1])
    assert carried.unpack(tmp_path / "carry", tmp_path) == []
    piece.write_bytes(content)
    assert carried.unpack(tmp_path / "carry", tmp_path) == [tmp_path / "gguf-tiny"]


@pytest.fixture
def elsewhere(load, nano, webnlg, tmp_path, monkeypatch):
    """The module, the arguments of `record`, and what is wanted here: of its runs two are carried, behind one that fails."""
    gpu_runs = load("gpu_runs")
    wanted = Wanted(
        setting="fine_tuning",
        texts=webnlg,
        source=Source(nano, tmp_path / "artifacts"),
        recording=Recording(),
        seed=0,
        names=["train-000", "train-001", "test-000"],
        drawn=DrawnCurricula(subset_size=8, batch_size=4, epochs=1),
        metrics=["loss", "bleu"],
        generation=Generation(max_new_tokens=4),
    )
    nano.location()  # makes it
    carry = tmp_path / "carry" / "0"
    (carry / "artifacts").mkdir(parents=True)
    (carry / "artifacts" / "models").symlink_to(nano.cache)
    there = replace(wanted, source=gpu_runs.source_there(wanted.source, carry / "artifacts"))
    store.write_folder(there.folder, there.spec, there.texts, there.source)
    runs = [
        {"group": "first", "folder": f"dynamics/{there.folder.name}", "name": name, "curriculum": None}
        for name in wanted.names[:2]
    ]
    runs.insert(0, {**runs[0], "name": "run-bad", "curriculum": [[10**6]]})
    files.write_json(carry / "runs.json", runs)
    monkeypatch.setattr(gpu_runs.carried, "unpack", lambda *_: [])
    arguments = ["record", str(tmp_path / "carry"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    return gpu_runs, [*arguments, "--processes", "1"], wanted


def test_runs_recorded_elsewhere_are_found_here_and_a_failure_is_noted(elsewhere, tmp_path):
    gpu_runs, arguments, wanted = elsewhere
    gpu_runs.main([*arguments, "--deadline", "100"])
    with tarfile.open(tmp_path / "out" / "recordings.tar.gz") as archive:
        archive.extractall(tmp_path / "artifacts", filter="data")
    folder = tmp_path / "artifacts" / "dynamics" / wanted.folder.name
    assert store.missing_runs(folder, wanted.names) == wanted.names[2:]
    found = record_missing(wanted, jobs=1)  # one run alone is missing
    before = {name: found.provenance["runs"][name] for name in wanted.names[:2]}
    shutil.rmtree(folder)
    again = record_missing(wanted, jobs=1).provenance["runs"]
    assert before == {name: again[name] for name in before}  # the same bytes as if recorded here
    facts = json.loads((tmp_path / "out" / "gpu_runs.json").read_text())
    (group,) = facts["groups"]
    assert (group["group"], group["asked"], group["done"]) == ("first", 3, 2)
    assert len(facts["errors"]) == 2  # it was tried again, behind the others
    assert all("names example 1000000" in error for error in facts["errors"])


def test_runs_are_prepared_in_the_order_of_the_groups_each_once(load, tmp_path, monkeypatch):
    gpu_runs = load("gpu_runs")
    small = ["settings.fine_tuning.runs.test=1"]
    groups = [("first", small, ["profile"]), ("kinds", small, ["few"]), ("more", ["settings.fine_tuning.runs.test=2"], ["profile"])]  # fmt: skip
    monkeypatch.setattr(gpu_runs, "GROUPS", groups)
    monkeypatch.setattr(gpu_runs, "pack_model", lambda *_: None)
    gpu_runs.main(["prepare", str(tmp_path), "--profile", "smoke", "--tasks", "sst2"])
    runs = json.loads((tmp_path / "0" / "runs.json").read_text())
    assert [run["group"] for run in runs] == sorted(
        (run["group"] for run in runs), key=["first", "kinds", "more"].index
    )
    assert [run["name"] for run in runs if run["group"] == "more"] == ["test-001"]
    kinds = [run for run in runs if run["group"] == "kinds"]
    assert len(kinds) == gpu_runs.OF_A_KIND
    for run in runs:
        assert store.read_spec(tmp_path / "0" / "artifacts" / run["folder"]).task == "sst2"
        assert (run["curriculum"] is None) == (run["group"] != "kinds")


def test_nothing_is_begun_after_the_deadline(elsewhere, tmp_path):
    gpu_runs, arguments, _ = elsewhere
    gpu_runs.main([*arguments, "--deadline", "0"])
    assert json.loads((tmp_path / "out" / "gpu_runs.json").read_text())["groups"][0]["done"] == 0


def test_sections_are_kept_and_a_failure_ends_only_its_own(load, tmp_path, monkeypatch, capsys):
    gpu = load("gpu")

    def broken(_):
        raise RuntimeError("no such kernel")
        yield

    monkeypatch.setitem(gpu.SECTIONS, "checks", (broken, 5))
    common = ["--device", "cpu", "--quick", "--results", str(tmp_path)]
    gpu.main([*common, "--sections", "checks", "rollouts"])
    gpu.main([*common, "--sections", "tangents", "--commit", "0" * 40])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["sections"]) == {"checks", "rollouts", "tangents"}
    assert "no such kernel" in found["sections"]["checks"]["error"]
    assert found["commit"] == "0" * 40
    titles = [comparison["title"] for comparison in found["comparisons"]]
    assert titles[0].startswith("Tangents")
    assert titles[1].startswith("Rollouts")
    assert "no such kernel" in capsys.readouterr().out


def test_a_section_ends_when_its_time_is_over(load):
    import argparse
    import time

    gpu = load("gpu")

    def slow(_):
        time.sleep(30)
        yield

    gpu.SECTIONS["slow"] = (slow, 1)
    found = gpu.run("slow", gpu.Bench(argparse.Namespace(device="cpu", quick=True)), 1)
    assert found["seconds"] < 5
    assert "OutOfTime" in found["error"]


def test_the_obvious_loop_and_the_recorder_do_the_same_work(load):
    gpu_work = load("gpu_work")
    work = gpu_work.Work.of("tiny", 8, 12, (12, 30))
    curriculum = work.curriculum(3)
    rates = [1e-3, 5e-4, 1e-4]
    with work.recorder(gpu_work.made("tiny"), "cpu") as recorder:
        ours = recorder.record("run", curriculum, rates=rates).trajectories["loss"]
    loop = gpu_work.ObviousLoop(gpu_work.made("tiny"), work, "cpu", "fp32")
    theirs = loop.record(curriculum, rates, lambda _: None)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert not np.allclose(ours[0], ours[-1], atol=1e-3)


def test_other_ways_to_measure_give_the_recorders_losses(load):
    gpu_ways, gpu_work = load("gpu_ways"), load("gpu_work")
    work, gpt = gpu_work.Work.of("tiny", 8, 12, (12, 30)), gpu_work.made("tiny")
    batches = bucketed(work.tokens[1], 64, "target")
    losses = {name: make()() for name, make in gpu_ways.ways(gpt, batches, compiled=False)}
    truth = losses.pop("fp32")
    assert len(losses) == 3
    for found in losses.values():
        assert 0 < (found - truth).abs().max() < 0.02  # bfloat16 has 8 bits
    with work.recorder(gpt, "cpu", token_budget=64) as recorder:
        recorded = recorder._measure(recorder._test_batches, work.tests, "run", 0)
    ours = torch.cat([batch.rows[batch.owner] for batch in batches])
    means = [float(truth[ours == row].mean()) for row in range(len(work.tests))]
    np.testing.assert_allclose(recorded, means, atol=1e-5)


def test_a_traced_pass_has_the_attention_of_the_others(load, monkeypatch):
    """With no mask, as a captured or compiled pass must have it to be the same work."""
    gpu_ways, gpu_work = load("gpu_ways"), load("gpu_work")
    work, gpt, seen = gpu_work.Work.of("tiny", 8, 12, (12, 30)), gpu_work.made("tiny"), []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(*given, attn_mask=None, is_causal=False, **named):
        seen.append((attn_mask is None, is_causal))
        return attend(*given, attn_mask=attn_mask, is_causal=is_causal, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    one = gpu_ways.Pass(gpt, bucketed(work.tokens[1], 64, "target"), weights=torch.float32)
    seen.clear()
    one()
    expected = seen.copy()
    seen.clear()
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *_: True)
    one.traced()
    assert seen == expected
    assert set(seen) == {(True, True)}


def test_flops_are_those_of_torchs_counter(load):
    from torch.utils.flop_counter import FlopCounterMode

    gpu_work = load("gpu_work")
    work = gpu_work.Work.of("small", 8, 6, (20, 20))
    with work.recorder(gpu_work.made("small"), "cpu") as recorder:
        with FlopCounterMode(display=False) as counter:
            recorder.record("run", work.curriculum(1))
        with FlopCounterMode(display=False) as measuring:
            recorder._measure(recorder._test_batches, work.tests, "run", 0)
    counted = counter.get_total_flops() - measuring.get_total_flops()  # one step
    assert sum(work.flops("small")) == pytest.approx(counted, rel=0.1)
