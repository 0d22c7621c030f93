"""A GGUF file of the Llama architecture and a LoRA adapter → one GGUF file; the same bytes on every processor.

A matrix becomes `W + scale · B·A`. Its product is summed up rank by rank in 32 bits, in one order: a library for matrix
products would take another order on another processor, and the file's hash could not be known in advance.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tinydispatch import formats
from tinydispatch.default.safetensors import Safetensors
from tinydispatch.ggml import bindings
from tinydispatch.ggml.header import GgufError, GgufHeader, TensorInfo, read_header
from tinydispatch.ggml.mixtures import READABLE_TYPES, Quantization, dequantize, quantize_rows, tensor_types
from tinydispatch.ggml.writer import NewTensor, WrittenFile, write_gguf

ARCHITECTURE = "llama"
# PEFT's names of the matrices, and GGUF's.
_MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# GGUF's names in a layer, in the order in which exported files have them.
_LAYER_ORDER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
_ADAPTER_KEY = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.([a-z_]+\.[a-z_]+)\.lora_([AB])\.weight")
# What is computed at a time fits the processor's second-level cache.
_PIECE_BYTES = 128 << 10
# Of the base's own name these hold no longer.
_RENAMED = ("general.name", "general.organization", "general.finetune")


class AdapterError(ValueError):
    """An adapter that does not belong to the base; names the file, the key and what is wrong."""


@dataclass(frozen=True)
class Pair:
    """The two factors of one matrix's change: `a` has shape (rank, columns), `b` (rows, rank)."""

    a: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]


@dataclass(frozen=True)
class MergedFile(WrittenFile):
    """`weights_digest` is of the merged matrices in 32 bits, before they are quantized: BLAKE2b, 32 hex digits."""

    weights_digest: str


def merge(
    base: Path, adapter: Safetensors, adapter_path: Path, scale: float, out: Path, name: str, form: Quantization
) -> MergedFile:
    """Write base and adapter as one file, with our chat template in place of the base's.

    Args:
        scale: what the product counts, alpha / rank.
        name: the new model's `general.name`.

    Raises:
        AdapterError: the adapter holds something else than pairs for the base's matrices.
        GgufError: the base is damaged, of another architecture, or in a number format that cannot be read.
        OSError: `out` cannot be written.
    """
    header = read_header(base)
    if header.architecture != ARCHITECTURE:
        raise GgufError(base, f"a base of architecture {header.architecture!r}, expected {ARCHITECTURE!r}")
    pairs = _pairs(adapter, adapter_path, header)
    infos = sorted(header.tensors, key=_place)
    n_layers = _number(header, "block_count")
    types = tensor_types({info.name: info.shape[::-1] for info in infos}, form, n_layers)
    with base.open("rb") as stream:
        merging = _Merging(header, stream, types, pairs, np.float32(scale))
        tensors = [NewTensor(info.name, info.shape, types[info.name], partial(merging.pieces, info)) for info in infos]
        written = write_gguf(out, _metadata(header, name, form), tensors)
    return MergedFile(written.sha256, written.n_bytes, merging.digest.hexdigest())


def _place(info: TensorInfo) -> tuple[int, int, int, str]:
    """Token table, layers in order, what stands after them."""
    if found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.\w+", info.name):
        kind = found[2]
        return 1, int(found[1]), _LAYER_ORDER.index(kind) if kind in _LAYER_ORDER else len(_LAYER_ORDER), info.name
    return (0 if info.name == "token_embd.weight" else 2), 0, 0, info.name


class _Merging:
    """Turns the base's tensors into the new file's, and hashes the merged ones."""

    def __init__(
        self,
        header: GgufHeader,
        stream: BinaryIO,
        types: Mapping[str, int],
        pairs: Mapping[str, Pair],
        scale: np.float32,
    ) -> None:
        self.header, self.stream, self.types, self.pairs, self.scale = header, stream, types, pairs, scale
        self.digest = hashlib.blake2b(digest_size=16)

    def pieces(self, info: TensorInfo) -> Iterator[bytes | memoryview]:
        """A tensor's bytes in its new number format; left as they are where nothing changes."""
        type_id, pair, base = self.types[info.name], self.pairs.get(info.name), self.header.path
        self.stream.seek(self.header.data_offset + info.offset)
        data = self.stream.read(info.n_bytes)
        if len(data) != info.n_bytes:
            raise GgufError(base, f"truncated while tensor {info.name!r} was being read")
        if pair is None and info.type_id == type_id:
            yield data
            return
        if info.type_id not in READABLE_TYPES:
            known = ", ".join(map(str, sorted(READABLE_TYPES)))
            raise GgufError(base, f"tensor {info.name!r} has the ggml type {info.type_id}; readable are {known}")
        rows = dequantize(memoryview(data), info.type_id).reshape(-1, info.shape[0])
        if pair is not None:
            add_product(rows, pair, self.scale)
        self.digest.update(rows.data)
        if type_id == bindings.GGML_TYPE_F32:
            yield rows.tobytes()
        elif type_id == bindings.GGML_TYPE_F16:
            yield rows.astype("<f2").tobytes()
        else:
            yield quantize_rows(rows, type_id).tobytes()


def add_product(rows: npt.NDArray[np.float32], pair: Pair, scale: np.float32) -> None:
    """Add `scale · b·a` to `rows` in place, each sum in the order of the ranks."""
    n_rows = max(1, _PIECE_BYTES // (4 * rows.shape[1]))
    for first in range(0, len(rows), n_rows):
        piece, b = rows[first : first + n_rows], pair.b[first : first + n_rows]
        total, product = np.zeros_like(piece), np.empty_like(piece)
        for rank in range(len(pair.a)):
            np.multiply(b[:, rank, None], pair.a[rank], out=product)
            total += product
        total *= scale
        piece += total


def _pairs(adapter: Safetensors, path: Path, header: GgufHeader) -> dict[str, Pair]:
    """The factors by GGUF's names of their matrices, rows in GGUF's order."""
    shapes = {info.name: info.shape for info in header.tensors}
    factors: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
    for key, values in adapter.tensors.items():
        found = _ADAPTER_KEY.fullmatch(key)
        if found is None or found[2] not in _MATRICES:
            raise AdapterError(f"{path}: {key!r}: only LoRA factors of a layer's matrices can be merged")
        name = f"blk.{found[1]}.{_MATRICES[found[2]]}.weight"
        if name not in shapes:
            raise AdapterError(f"{path}: {key!r}: {header.path.name} has no {name!r}; the adapter is for another base")
        if values.ndim != 2 or not np.isfinite(values).all():
            raise AdapterError(f"{path}: {key!r}: expected a matrix of finite numbers")
        factors.setdefault(name, {})[found[3]] = values
    pairs = {}
    for name, both in factors.items():
        if both.keys() != {"A", "B"}:
            raise AdapterError(f"{path}: of {name!r} only lora_{next(iter(both))} is there")
        a, b = both["A"], both["B"]
        if a.shape[0] != b.shape[1] or (a.shape[1], b.shape[0]) != shapes[name]:
            raise AdapterError(
                f"{path}: {name!r}: factors {b.shape} and {a.shape} do not fit a matrix of {shapes[name][::-1]}; the "
                "adapter is for another base"
            )
        pairs[name] = Pair(np.ascontiguousarray(a), np.ascontiguousarray(_in_gguf_order(header, name, b)))
    return pairs


def _in_gguf_order(header: GgufHeader, name: str, b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of queries and keys as llama.cpp has them: it rotates neighbours, transformers a head's halves."""
    kind = name.split(".")[2]
    if kind not in ("attn_q", "attn_k"):
        return b
    n_heads = _number(header, "attention.head_count" if kind == "attn_q" else "attention.head_count_kv")
    return b.reshape(n_heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)


def _number(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(f"{ARCHITECTURE}.{key}")
    if type(value) is not int or value < 1:
        raise GgufError(header.path, f"'{ARCHITECTURE}.{key}' is {value!r}, expected a positive number")
    return value


def _metadata(header: GgufHeader, name: str, form: Quantization) -> dict[str, Any]:
    """The base's, with our name, chat template and end of turn."""
    base = header.metadata
    tokens: tuple[str, ...] = base.get("tokenizer.ggml.tokens", ())
    if formats.TURN_END not in tokens:
        raise GgufError(header.path, f"the base has no token {formats.TURN_END}, which ends our turns")
    end, template = tokens.index(formats.TURN_END), formats.default_chat_template()
    kept = {key: value for key, value in base.items() if key not in _RENAMED}
    return kept | {
        "general.name": name,
        "general.base_model.count": 1,
        "general.base_model.0.name": base.get("general.name", ""),
        "general.base_model.0.organization": base.get("general.organization", ""),
        "general.file_type": form.file_type,
        "general.quantization_version": 2,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.eot_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": template,
        "tinydispatch.template_hash": formats.template_hash(template),
    }
