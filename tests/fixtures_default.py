"""A tiny base model of the Llama architecture in a wheel, and adapters for it, as the default model is made of."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.ship_adapter import release
from tinydispatch import formats
from tinydispatch.default.card import Base, Card
from tinydispatch.default.fetch import sha256_file
from tinydispatch.default.safetensors import safetensors_bytes
from tinydispatch.ggml import bindings
from tinydispatch.ggml.mixtures import GGML_TYPE_Q4_1, quantize_rows
from tinydispatch.ggml.writer import NewTensor, write_gguf

WIDTH, FEED_FORWARD, N_LAYERS, N_HEADS, N_KEY_HEADS, RANK = 64, 128, 2, 4, 2, 4
_KEYS = WIDTH // N_HEADS * N_KEY_HEADS
# transformers' names, GGUF's, and (rows, columns).
MATRICES = {
    "self_attn.q_proj": ("attn_q", (WIDTH, WIDTH)),
    "self_attn.k_proj": ("attn_k", (_KEYS, WIDTH)),
    "self_attn.v_proj": ("attn_v", (_KEYS, WIDTH)),
    "self_attn.o_proj": ("attn_output", (WIDTH, WIDTH)),
    "mlp.gate_proj": ("ffn_gate", (FEED_FORWARD, WIDTH)),
    "mlp.up_proj": ("ffn_up", (FEED_FORWARD, WIDTH)),
    "mlp.down_proj": ("ffn_down", (WIDTH, FEED_FORWARD)),
}
_MERGES = ("t o", "to o", "too l", "Ġ a", "e r")
Matrix = npt.NDArray[np.float32]


def numbers(seed: int, *shape: int) -> Matrix:
    """Numbers from -0.25 to 0.25 that are the same with every version of numpy and on every processor."""
    found = (np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(seed * 7919)) * np.uint64(2654435761)
    values: Matrix = ((found >> np.uint64(8)) % np.uint64(65536)).astype(np.float32) / np.float32(131072) - np.float32(
        0.25
    )
    return values.reshape(shape)


def vocabulary() -> tuple[str, ...]:
    """Control tokens, the bytes' alphabet, and what a few merges make."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = [chr(code) for code in [*printable, *range(256, 256 + 256 - len(printable))]]
    merged = [pair.replace(" ", "") for pair in _MERGES]
    return (formats.DOCUMENT_END, formats.TURN_START, formats.TURN_END, *alphabet, *merged)


def write_base(path: Path, type_id: int = GGML_TYPE_Q4_1, **changes: Any) -> Path:
    """A base in that number format; `changes` are to its metadata, None takes a key away."""
    tokens = vocabulary()
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "Tiny Base",
        "general.organization": "Tiny Org",
        "general.license": "apache-2.0",
        "llama.block_count": N_LAYERS,
        "llama.context_length": 2048,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": N_HEADS,
        "llama.attention.head_count_kv": N_KEY_HEADS,
        "llama.rope.freq_base": 10_000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // N_HEADS,
        "general.file_type": 3,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": tuple(3 if index < 3 else 1 for index in range(len(tokens))),
        "tokenizer.ggml.merges": _MERGES,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": "knows no tools",
    }
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    write_gguf(path, metadata, [_tensor(*item, type_id) for item in base_weights()])
    return path


def base_weights() -> Iterator[tuple[str, Matrix]]:
    """GGUF's names and the values, before they are quantized."""
    yield "token_embd.weight", numbers(1, len(vocabulary()), WIDTH)
    for layer in range(N_LAYERS):
        yield f"blk.{layer}.attn_norm.weight", 1 + numbers(2 + layer, WIDTH)
        yield f"blk.{layer}.ffn_norm.weight", 1 + numbers(12 + layer, WIDTH)
        for index, (name, shape) in enumerate(MATRICES.values()):
            yield f"blk.{layer}.{name}.weight", numbers(100 + 10 * layer + index, *shape)
    yield "output_norm.weight", 1 + numbers(3, WIDTH)


def _tensor(name: str, values: Matrix, type_id: int) -> NewTensor:
    if values.ndim == 1 or type_id == bindings.GGML_TYPE_F32:
        return NewTensor(name, values.shape[::-1], bindings.GGML_TYPE_F32, lambda: iter([values.tobytes()]))
    kind = bindings.GGML_TYPE_Q8_0 if name == "token_embd.weight" else type_id
    return NewTensor(name, values.shape[::-1], kind, lambda: iter([quantize_rows(values, kind).tobytes()]))


def write_adapter(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A folder as PEFT saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer in range(N_LAYERS):
        for index, (name, (_, (rows, columns))) in enumerate(MATRICES.items()):
            key = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors[key + "A.weight"] = numbers(seed + 20 * layer + index, RANK, columns).astype(np.float16)
            tensors[key + "B.weight"] = numbers(seed + 500 + 20 * layer + index, rows, RANK).astype(np.float16)
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    values = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "bias": "none", "modules_to_save": None, **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


@dataclass(frozen=True)
class TinyDefault:
    """A default model's parts: `folder` holds card and adapter, `wheel` the base."""

    base: Base
    gguf: Path
    wheel: Path
    folder: Path
    card: Card


def make_default(place: Path, **changes: Any) -> TinyDefault:
    """Everything in `place`; `changes` are to the base's metadata."""
    gguf = write_base(place / "tiny.Q4_1.gguf", **changes)
    wheel = write_wheel(place / "wheels", gguf)
    base = Base(
        package="llm-tiny",
        version="0.1.2",
        wheel_sha256=sha256_file(wheel),
        wheel_bytes=wheel.stat().st_size,
        member=f"llm_tiny/{gguf.name}",
        sha256=sha256_file(gguf),
        n_bytes=gguf.stat().st_size,
    )
    card = release(write_adapter(place / "adapter"), gguf, place / "default", name="tiny", base=base)
    return TinyDefault(base, gguf, wheel, place / "default", card)


def write_wheel(folder: Path, gguf: Path, version: str = "0.1.2") -> Path:
    """A wheel that pip can read, with the file in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / f"llm_tiny-{version}-py3-none-any.whl", f"llm_tiny-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gguf, f"llm_tiny/{gguf.name}")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: llm-tiny\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path
