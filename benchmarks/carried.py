"""Weights of a GGUF in pieces that fit a limit on transfers, and the model's folder from them again, byte for byte.

A machine that is lent for minutes reaches no network and takes files up to a limit. A GGUF holds a model in a fifth of the
bytes of its safetensors. `pack` compresses its quantized numbers and cuts them into pieces of equal size, once they are
seen to give the safetensors that are here; `unpack` needs numpy and the package gguf. Files are named after the model's
folder, so that several models can be carried together.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from gptfluence.common import files

INDEX, SMALL = ".index.json", ".zip"  # behind the name of the model's folder: of its pieces; its config and tokenizer
# bytes of the scales, which a block of the kind begins with; of others none are told apart
SCALES = {"Q8_0": 2, "Q4_1": 4, "Q5_0": 2}
MAPPED = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
GEMMA = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
OF_TYPE = {"gemma3_text": MAPPED | GEMMA}  # by the configuration's model_type; others as a Llama


def plain(kind: str, raw: bytes) -> np.ndarray:
    """float32 [numbers] of a tensor's bytes in a GGUF. kind: F32, or one of gguf's quantizations."""
    if kind == "F32":
        return np.frombuffer(raw, np.float32)
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, _block(kind))
    return quants.dequantize(blocks, GGMLQuantizationType[kind]).ravel()


def pack(gguf: Path, model: Path, target: Path, pieces: int) -> None:
    """Write `pieces` files FOLDER.0, FOLDER.1, ... and, beside an index, the small files of the model's folder.

    gguf: of a Llama or a Gemma 3; model: the folder that the package made of it. Ends the program where the two do not agree.
    """
    weights = model / "model.safetensors"
    with weights.open("rb") as file:
        header = _header(file)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    mapped = OF_TYPE.get(config.get("model_type"), MAPPED)
    tensors = {_named(tensor.name, mapped): tensor for tensor in GGUFReader(gguf).tensors}
    heads = (
        {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]} if mapped is MAPPED else {}
    )
    tensors_of: dict[str, list[bytes]] = {}
    order = []
    numbers = np.memmap(weights, np.float32, "r", offset=len(header))
    for name, start, end in _places(header):
        rows, kind = np.asarray(tensors[name].data), tensors[name].tensor_type.name
        if kind == "F32":  # few; a Gemma's norms are there with 1 added
            rows = numbers[start // 4 : end // 4]
        if (part := name.split(".")[-2]) in heads:  # a Llama's GGUF interleaves what rotary embeddings turn together
            rows = rows[np.arange(len(rows)).reshape(heads[part], -1, 2).swapaxes(1, 2).ravel()]
        raw = rows.tobytes()
        if not np.array_equal(plain(kind, raw), numbers[start // 4 : end // 4]):
            raise SystemExit(f"{name}: the GGUF's numbers are not those of {weights}")
        order.append([kind, len(raw)])
        tensors_of.setdefault(kind, []).append(raw)
    streams = [stream for kind, parts in tensors_of.items() for stream in _squeezed(kind, b"".join(parts))]
    whole = b"".join(streams)
    size = -(-len(whole) // pieces)
    for number in range(pieces):
        folder = target / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{model.name}.{number}").write_bytes(whole[number * size : (number + 1) * size])
    with zipfile.ZipFile(target / "0" / f"{model.name}{SMALL}", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(model.iterdir()):
            if path.is_file() and path != weights and path.name != files.CHECKSUMS:
                archive.write(path, path.name)
    facts = {
        "folder": model.name,
        "pieces": pieces,
        "header": header.decode("latin-1"),
        "tensors": order,
        "kinds": list(tensors_of),
        "streams": [len(stream) for stream in streams],
        "sha256": hashlib.sha256(whole).hexdigest(),
    }
    (target / "0" / f"{model.name}{INDEX}").write_text(json.dumps(facts), encoding="utf-8")


def unpack(carried: Path, models: Path) -> list[Path]:
    """Make the folders below `models` of those models whose pieces are all there, in any folders below `carried`."""
    return [folder for index in sorted(carried.rglob(f"*{INDEX}")) if (folder := _unpacked(carried, index, models))]


def _unpacked(carried: Path, index: Path, models: Path) -> Path | None:
    facts = json.loads(index.read_text(encoding="utf-8"))
    folder = models / facts["folder"]
    if folder.is_dir():
        return folder
    pieces = [next(carried.rglob(f"{folder.name}.{number}"), None) for number in range(facts["pieces"])]
    small = index.parent / f"{folder.name}{SMALL}"
    # a copy that still runs is waited for
    if None in pieces or sum(piece.stat().st_size for piece in pieces) < sum(facts["streams"]) or not small.is_file():
        return None
    return files.made(folder, partial(_unpack, pieces, small, facts), what=f"model {folder.name}")


def _unpack(pieces: list[Path], small: Path, facts: dict[str, Any], folder: Path) -> None:
    whole = b"".join(piece.read_bytes() for piece in pieces)
    if hashlib.sha256(whole).hexdigest() != facts["sha256"]:
        raise SystemExit(f"{facts['folder']}: the pieces of the weights are not those that were packed")
    ends = np.cumsum(facts["streams"]).tolist()
    streams = iter(whole[end - size : end] for end, size in zip(ends, facts["streams"], strict=True))
    raw = {kind: _whole(kind, [next(streams) for _ in range(_streams(kind))]) for kind in facts["kinds"]}
    with zipfile.ZipFile(small) as archive:
        archive.extractall(folder)
    at = dict.fromkeys(raw, 0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(facts["header"].encode("latin-1"))
        for kind, size in facts["tensors"]:
            file.write(plain(kind, raw[kind][at[kind] : at[kind] + size]).tobytes())
            at[kind] += size


def archive(artifacts: Path, kind: str, path: Path) -> None:
    """Write all finished runs, with the files of their folders, as a .tar.gz; the whole archive or nothing.

    kind: the folder of `artifacts` that holds a folder for each set of runs, "dynamics" or "trainings"
    """
    new = path.with_suffix(".new")
    runs = [
        found.parent
        for found in sorted(artifacts.glob(f"{kind}/*/*/{files.CHECKSUMS}"))
        if not found.parent.name.startswith(".")  # it is being written
    ]
    with tarfile.open(new, "w:gz", compresslevel=5) as tar:
        for run in runs:
            tar.add(run, run.relative_to(artifacts).as_posix())
        for folder in dict.fromkeys(run.parent for run in runs):
            for each in sorted(each for each in folder.iterdir() if each.is_file()):
                tar.add(each, each.relative_to(artifacts).as_posix())
    os.replace(new, path)


def _block(kind: str) -> int:
    """Bytes of a block of this kind."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]


def _streams(kind: str) -> int:
    return SCALES.get(kind, 0) + 1


def _squeezed(kind: str, raw: bytes) -> list[bytes]:
    """Each byte of the scales by itself, then the numbers: bytes of a kind lie together, which saves a tenth."""
    blocks, scales = np.frombuffer(raw, np.uint8).reshape(-1, _block(kind)), SCALES.get(kind, 0)
    found = []
    for part in [*blocks[:, :scales].T, blocks[:, scales:]]:
        squeezer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
        found.append(squeezer.compress(part.tobytes()) + squeezer.flush())
    return found


def _whole(kind: str, streams: list[bytes]) -> bytes:
    """The opposite of `_squeezed`."""
    *scales, numbers = (np.frombuffer(zlib.decompress(stream), np.uint8) for stream in streams)
    numbers = numbers.reshape(-1, _block(kind) - len(scales))
    return np.concatenate([*(scale[:, None] for scale in scales), numbers], axis=1).tobytes()


def _header(file) -> bytes:
    """The beginning of a safetensors file, with the length that it begins with."""
    length = file.read(8)
    return length + file.read(int.from_bytes(length, "little"))


def _places(header: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, first and last byte of each tensor, in their order in the file."""
    facts = {name: one["data_offsets"] for name, one in json.loads(header[8:]).items() if name != "__metadata__"}
    for name, (start, end) in sorted(facts.items(), key=lambda item: item[1]):
        yield name, start, end


def _named(name: str, mapped: dict[str, str]) -> str:
    """What transformers calls a tensor of a GGUF."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{mapped[parts[2]]}.{parts[3]}"
    return f"{mapped[parts[0]]}.{parts[1]}"
