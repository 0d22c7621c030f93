"""Which number format each weight of a file gets: the mixtures of `llama-quantize`, so that files are its equals.

Transcribed from `llama_tensor_get_type_impl` and its neighbours in llama.cpp 0.6.0's `src/llama-quant.cpp`, for the
formats that we write and without an importance matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

from export.config import Quantization
from tinydispatch.ggml import bindings
from tinydispatch.ggml.header import TENSOR_BLOCKS

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
