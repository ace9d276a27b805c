"""A GGUF from packages, whole or in parts: joined in order, converted once, and the same model every time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gguf as format_of
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from gptfluence.common.errors import ModelError, PackageError
from gptfluence.models.gpt import ModelSource
from gptfluence.models.loading import from_gguf
from gptfluence.models.settings import GGUFModel
from gptfluence.recording import store
from gptfluence.recording.dynamics import Source
from packages_of_ones_own import index, put, wheel  # noqa: F401

WIDTH, HEADS, INNER = 32, 2, 64
WORDS = ["<|end|>", *map(chr, range(97, 123)), "Ġ", "an", "Ġb"]
MERGES = ["a n", "Ġ b"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """A Llama of one layer that knows 30 tokens."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    random = np.random.default_rng(0)
    writer = format_of.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, *[1] * (len(WORDS) - 1)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    shapes = {"token_embd": (len(WORDS), WIDTH), "output_norm": (WIDTH,), "output": (len(WORDS), WIDTH)}
    block = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH)}
    block |= {"ffn_down": (WIDTH, INNER), **{f"attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}}
    for name, shape in {**shapes, **{f"blk.0.{part}": shape for part, shape in block.items()}}.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.5, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def parts(whole, index) -> list[dict[str, Any]]:
    """The pins of three packages that hold it, all of them here."""
    third = len(whole) // 3
    found = []
    for number, content in enumerate((whole[:third], whole[third : 2 * third], whole[2 * third :]), start=1):
        file = f"tiny{number}/tiny.gguf.part"
        found.append({**wheel(index, f"tiny{number}", {file: content}), "file": file})
        put(index, found[-1])
    return found


def model(parts: list[dict[str, Any]], whole: bytes, cache: Path, **more: Any) -> ModelSource:
    config = GGUFModel(source="gguf", parts=parts, sha256=hashlib.sha256(whole).hexdigest(), **more)
    return ModelSource("tiny", config, cache)


def test_parts_are_joined_converted_once_and_the_same_model_as_the_file(parts, whole, tmp_path, monkeypatch):
    path = tmp_path / "mine.gguf"
    path.write_bytes(whole)
    direct, tokenizer = from_gguf("direct", path)
    joined = model(parts, whole, tmp_path / "models")
    ids = torch.tensor([tokenizer("ban a ban")["input_ids"]])
    assert ids.shape[1] < len("ban a ban")  # merged as the file says

    for repeated in range(2):
        if repeated:  # neither packages nor GGUF are needed any more
            monkeypatch.setattr("gptfluence.models.loading.from_gguf", lambda *_: pytest.fail("was converted before"))
            for part in joined.config.parts:
                part.place.unlink(missing_ok=True)
        loaded = joined.load()
        assert loaded.tokenizer("ban a ban")["input_ids"] == ids[0].tolist()
        assert loaded.max_length == 64
        assert torch.equal(loaded.model(ids).logits, direct(ids).logits)
        assert all(p.dtype == torch.float32 and p.requires_grad for p in loaded.model.parameters())
    [folder] = (tmp_path / "models").glob("gguf-*/")
    assert folder.name == f"gguf-{hashlib.sha256(whole).hexdigest()[:12]}"
    assert joined.location() == str(folder)

    own = ModelSource("tiny", GGUFModel(source="gguf", path=path), tmp_path / "models")
    assert own.identity() == joined.identity()  # where the file comes from changes no number
    assert own.location() == str(folder)


@pytest.mark.parametrize("order", [[0, 2, 1], [0, 1]], ids=["swapped", "missing"])
def test_parts_in_the_wrong_order_or_missing_are_named(parts, whole, tmp_path, order):
    wrong = [parts[number] for number in order]
    with pytest.raises(
        ModelError,
        match=rf"its {len(order)} parts, .* one is missing or their order is wrong; models\.tiny\.parts: list",
    ):
        model(wrong, whole, tmp_path / "models").load()
    assert not list((tmp_path / "models").glob("gguf-*"))


def test_parts_of_which_the_first_is_not_the_beginning_are_no_gguf(parts, whole, tmp_path):
    with pytest.raises(ModelError, match=r"its 3 parts, joined as listed, are not a GGUF file; models\.tiny\.parts"):
        model(parts[::-1], whole, tmp_path / "models").load()


def test_a_package_that_is_not_here_is_needed_for_the_weights_and_not_to_name_them(parts, whole, tmp_path):
    source = model(parts, whole, tmp_path / "models")
    source.config.parts[1].place.unlink()
    assert source.identity()["weights"] == [hashlib.sha256(whole).hexdigest()]
    with pytest.raises(PackageError, match=r"tiny2==1\.0 .* is not here; get it with: gptfluence fetch"):
        source.load()


def test_a_recording_says_which_packages_its_gpt_is_in(parts, whole, tmp_path):
    source = Source(model(parts, whole, tmp_path / "models"), tmp_path)
    values = store._source_to_json(source)
    assert GGUFModel(**values["config"]) == source.gpt.config


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "a GGUF has a path, or parts in packages"),
        ({"path": "a.gguf", "parts": True, "sha256": "0" * 64}, "a GGUF has a path, or parts in packages"),
        ({"parts": True}, "sha256 is missing; it says whether the parts are all there"),
    ],
)
def test_a_gguf_has_one_place_and_parts_a_hash(given, said):
    part = {"archive": "a-1-py3-none-any.whl", "sha256": "0" * 64, "size": 1, "licence": "MIT", "file": "a"}
    with pytest.raises(ValidationError, match=said):
        GGUFModel(source="gguf", **{**given, **({"parts": [part]} if "parts" in given else {})})
