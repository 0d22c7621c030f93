"""Which number format each weight of a file gets, and a weight's values in such a format and back.

The mixtures are those of `llama-quantize`, so that files are its equals: transcribed from `llama_tensor_get_type_impl`
and its neighbours in llama.cpp 0.6.0's `src/llama-quant.cpp`, for the formats that we write and without an importance
matrix.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from tinydispatch.ggml import bindings
from tinydispatch.ggml.header import TENSOR_BLOCKS
from tinydispatch.ggml.library import load_library

GGML_TYPE_Q4_1 = 3


class Quantization(StrEnum):
    """Number format of the weight matrices in a GGUF file; vectors stay in 32 bits."""

    F32 = "f32"
    F16 = "f16"
    Q8_0 = "q8_0"
    Q5_K_M = "q5_k_m"
    Q4_K_M = "q4_k_m"

    @property
    def file_type(self) -> int:
        """`general.file_type`, llama.cpp's number of the mixture."""
        return _FILE_TYPES[self]


_FILE_TYPES = {
    Quantization.F32: 0,
    Quantization.F16: 1,
    Quantization.Q8_0: 7,
    Quantization.Q5_K_M: 17,
    Quantization.Q4_K_M: 15,
}

_BASE_TYPES: Mapping[Quantization, int] = {
    Quantization.F32: bindings.GGML_TYPE_F32,
    Quantization.F16: bindings.GGML_TYPE_F16,
    Quantization.Q8_0: bindings.GGML_TYPE_Q8_0,
    Quantization.Q5_K_M: bindings.GGML_TYPE_Q5_K,
    Quantization.Q4_K_M: bindings.GGML_TYPE_Q4_K,
}
# For rows that do not divide into blocks of 256; all of these have blocks of 32.
_SMALL_BLOCKS = {
    bindings.GGML_TYPE_Q4_K: bindings.GGML_TYPE_Q5_0,
    bindings.GGML_TYPE_Q5_K: bindings.GGML_TYPE_Q5_1,
    bindings.GGML_TYPE_Q6_K: bindings.GGML_TYPE_Q8_0,
}
_VALUES_OF_ATTENTION = ("attn_v.weight", "attn_qkv.weight")


def tensor_types(shapes: Mapping[str, tuple[int, ...]], quantization: Quantization, n_layers: int) -> dict[str, int]:
    """The ggml type of each weight; names are GGUF's, shapes have the row length last."""
    base = _BASE_TYPES[quantization]
    n_values = sum(name.endswith(_VALUES_OF_ATTENTION) for name in shapes)
    head = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    types: dict[str, int] = {}
    seen_values = seen_downs = 0
    for name, shape in shapes.items():
        if not _is_quantizable(name, shape):
            types[name] = bindings.GGML_TYPE_F32
            continue
        wanted = base
        if quantization in (Quantization.Q5_K_M, Quantization.Q4_K_M):
            if name.endswith(_VALUES_OF_ATTENTION):
                wanted = bindings.GGML_TYPE_Q6_K if _has_more_bits(seen_values, n_values) else base
                seen_values += 1
            elif name.endswith("ffn_down.weight"):
                wanted = bindings.GGML_TYPE_Q6_K if _has_more_bits(seen_downs, n_layers) else base
                seen_downs += 1
            elif name == head:
                is_whole = shape[-1] % TENSOR_BLOCKS[base][0] == 0
                wanted = bindings.GGML_TYPE_Q6_K if is_whole else bindings.GGML_TYPE_Q8_0
        types[name] = _fitting(wanted, shape[-1])
    return types


def _is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    # A position's vector is looked up and added, never multiplied: it costs no time, and its error would be in all.
    is_kept = name.endswith("_norm.weight") or name == "position_embd.weight" or "ssm_conv1d" in name
    return len(shape) > 1 and name.endswith("weight") and not is_kept


def _has_more_bits(index: int, count: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _fitting(type_id: int, row_length: int) -> int:
    for candidate in (type_id, _SMALL_BLOCKS.get(type_id, type_id)):
        if row_length % TENSOR_BLOCKS[candidate][0] == 0:
            return candidate
    return bindings.GGML_TYPE_F16


def quantize_rows(values: npt.NDArray[np.float32], type_id: int) -> npt.NDArray[np.uint8]:
    """Quantize each row with llama.cpp's own code; shape (…, row length) becomes (…, row bytes)."""
    block, block_bytes = TENSOR_BLOCKS[type_id]
    row_length = values.shape[-1]
    assert row_length % block == 0, f"rows of {row_length} do not divide into blocks of {block}"
    values = np.ascontiguousarray(values, dtype=np.float32)
    encoded = np.empty((*values.shape[:-1], row_length // block * block_bytes), dtype=np.uint8)
    written = load_library().c.ggml_quantize_chunk(
        type_id,
        values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        encoded.ctypes.data_as(ctypes.c_void_p),
        0,
        values.size // row_length,
        row_length,
        None,
    )
    assert written == encoded.nbytes, f"ggml wrote {written} bytes of {encoded.nbytes}"
    return encoded


def dequantize(data: memoryview, type_id: int) -> npt.NDArray[np.float32]:
    """A tensor's values in one row, computed step by step in 32 bits, so that every processor gets the same.

    Raises:
        KeyError: `type_id` is none of `READABLE_TYPES`.
    """
    return READABLE_TYPES[type_id](data)


def _from_q8_0(data: memoryview) -> npt.NDArray[np.float32]:
    blocks = np.frombuffer(data, dtype=[("scale", "<f2"), ("values", "i1", 32)])
    values: npt.NDArray[np.float32] = blocks["values"] * blocks["scale"].astype(np.float32)[:, None]
    return values.reshape(-1)


def _from_q4_1(data: memoryview) -> npt.NDArray[np.float32]:
    """Each block: a scale, a minimum, and 32 numbers of four bits; the low halves are the first sixteen."""
    blocks = np.frombuffer(data, dtype=[("scale", "<f2"), ("minimum", "<f2"), ("halves", "u1", 16)])
    numbers = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1).astype(np.float32)
    numbers *= blocks["scale"].astype(np.float32)[:, None]
    numbers += blocks["minimum"].astype(np.float32)[:, None]
    return numbers.reshape(-1)


READABLE_TYPES: Mapping[int, Callable[[memoryview], npt.NDArray[np.float32]]] = {
    bindings.GGML_TYPE_F32: lambda data: np.frombuffer(data, dtype="<f4").astype(np.float32),
    bindings.GGML_TYPE_F16: lambda data: np.frombuffer(data, dtype="<f2").astype(np.float32),
    bindings.GGML_TYPE_Q8_0: _from_q8_0,
    GGML_TYPE_Q4_1: _from_q4_1,
}
