"""Weights of a GGUF in pieces that fit a limit on transfers, and the model's folder from them again, byte for byte.

A machine that is lent for minutes reaches no network and takes files up to a limit. A GGUF holds a model in a fifth of the
bytes of its safetensors. `pack` compresses its quantized numbers and cuts them into pieces of equal size, once they are
seen to give the safetensors that are here; `unpack` needs nothing but numpy.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

INDEX = "weights.json"
SMALL = "model.zip"  # config and tokenizer
BLOCK = {"F32": 4, "Q8_0": 34, "Q4_1": 20}  # bytes, the scales first
SCALES = {"F32": 0, "Q8_0": 2, "Q4_1": 4}  # bytes of these
MAPPED = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}


def plain(kind: str, raw: bytes) -> np.ndarray:
    """float32 [numbers] of a tensor's bytes in a GGUF. kind: F32, Q8_0 or Q4_1 (blocks of 32 numbers)."""
    if kind == "F32":
        return np.frombuffer(raw, np.float32)
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, BLOCK[kind])
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == "Q8_0":
        return (scale * blocks[:, 2:].view(np.int8).astype(np.float32)).ravel()
    least = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (scale * nibbles.astype(np.float32) + least).ravel()


def pack(gguf: Path, model: Path, target: Path, pieces: int) -> None:
    """Write `pieces` files weights.0, weights.1, ... and, beside an index, the small files of the model's folder.

    gguf: of a Llama; model: the folder that the package made of it. Ends the program where the two do not agree.
    """
    from gguf import GGUFReader

    weights = model / "model.safetensors"
    with weights.open("rb") as file:
        header = _header(file)
    tensors = {_named(tensor.name): tensor for tensor in GGUFReader(gguf).tensors}
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors_of: dict[str, list[bytes]] = {kind: [] for kind in BLOCK}
    order = []
    numbers = np.memmap(weights, np.float32, "r", offset=len(header))
    for name, start, end in _places(header):
        rows = np.asarray(tensors[name].data)
        if (part := name.split(".")[-2]) in heads:  # a GGUF interleaves what rotary embeddings turn together
            rows = rows[np.arange(len(rows)).reshape(heads[part], -1, 2).swapaxes(1, 2).ravel()]
        kind, raw = tensors[name].tensor_type.name, rows.tobytes()
        if not np.array_equal(plain(kind, raw), numbers[start // 4 : end // 4]):
            raise SystemExit(f"{name}: the GGUF's numbers are not those of {weights}")
        order.append([kind, len(raw)])
        tensors_of[kind].append(raw)
    streams = [stream for kind in BLOCK for stream in _squeezed(kind, b"".join(tensors_of[kind]))]
    whole = b"".join(streams)
    size = -(-len(whole) // pieces)
    for number in range(pieces):
        folder = target / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"weights.{number}").write_bytes(whole[number * size : (number + 1) * size])
    with zipfile.ZipFile(target / "0" / SMALL, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(model.iterdir()):
            if path.is_file() and path != weights:
                archive.write(path, path.name)
    facts = {
        "folder": model.name,
        "pieces": pieces,
        "header": header.decode("latin-1"),
        "tensors": order,
        "streams": [len(stream) for stream in streams],
        "sha256": hashlib.sha256(whole).hexdigest(),
    }
    (target / "0" / INDEX).write_text(json.dumps(facts), encoding="utf-8")


def unpack(carried: Path, models: Path) -> Path:
    """Make the model's folder below `models` of what was carried; the pieces may lie in any folders below `carried`."""
    index = next(carried.rglob(INDEX))
    facts = json.loads(index.read_text(encoding="utf-8"))
    folder = models / facts["folder"]
    if folder.is_dir():
        return folder
    whole = b"".join(next(carried.rglob(f"weights.{number}")).read_bytes() for number in range(facts["pieces"]))
    if hashlib.sha256(whole).hexdigest() != facts["sha256"]:
        raise SystemExit("the pieces of the weights are not those that were packed")
    ends = np.cumsum(facts["streams"]).tolist()
    streams = iter(whole[end - size : end] for end, size in zip(ends, facts["streams"], strict=True))
    raw = {kind: _whole(kind, [next(streams) for _ in range(SCALES[kind] + 1)]) for kind in BLOCK}
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    with zipfile.ZipFile(index.parent / SMALL) as archive:
        archive.extractall(new)
    at = dict.fromkeys(BLOCK, 0)
    with (new / "model.safetensors").open("wb") as file:
        file.write(facts["header"].encode("latin-1"))
        for kind, size in facts["tensors"]:
            file.write(plain(kind, raw[kind][at[kind] : at[kind] + size]).tobytes())
            at[kind] += size
    new.rename(folder)
    return folder


def _squeezed(kind: str, raw: bytes) -> list[bytes]:
    """Each byte of the scales by itself, then the numbers: bytes of a kind lie together, which saves a tenth."""
    blocks, scales = np.frombuffer(raw, np.uint8).reshape(-1, BLOCK[kind]), SCALES[kind]
    found = []
    for part in [*blocks[:, :scales].T, blocks[:, scales:]]:
        squeezer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
        found.append(squeezer.compress(part.tobytes()) + squeezer.flush())
    return found


def _whole(kind: str, streams: list[bytes]) -> bytes:
    """The opposite of `_squeezed`."""
    *scales, numbers = (np.frombuffer(zlib.decompress(stream), np.uint8) for stream in streams)
    numbers = numbers.reshape(-1, BLOCK[kind] - SCALES[kind])
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


def _named(name: str) -> str:
    """What transformers calls a tensor of a GGUF of a Llama."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{MAPPED[parts[2]]}.{parts[3]}"
    return f"{MAPPED[parts[0]]}.{parts[1]}"
