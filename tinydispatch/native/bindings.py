"""decoder.h's structs. What a file does not have stays NULL."""

from __future__ import annotations

import ctypes as c
from typing import NamedTuple

from tinydispatch.ggml import bindings as ggml

BLOCK, KEY_BLOCK, MOST_ROWS = 32, 16, 8
# LANES of the widest processor.
WIDEST = 16

_Pointer = c.c_void_p


class Format(NamedTuple):
    """A row's block of one number format: its inputs, and the bytes that numbers and scales take when laid out."""

    inputs: int
    quant_bytes: int
    scale_bytes: int


# In the order in which `tinydispatch_sizes` gives them.
FORMATS = {
    ggml.GGML_TYPE_Q4_0: Format(32, 16, 2),
    ggml.GGML_TYPE_Q4_1: Format(32, 16, 4),
    ggml.GGML_TYPE_Q5_0: Format(32, 20, 2),
    ggml.GGML_TYPE_Q5_1: Format(32, 20, 4),
    ggml.GGML_TYPE_Q8_0: Format(32, 32, 2),
    ggml.GGML_TYPE_Q4_K: Format(256, 128, 20),
    ggml.GGML_TYPE_Q5_K: Format(256, 160, 20),
    ggml.GGML_TYPE_Q6_K: Format(256, 192, 18),
}


class Matrix(c.Structure):
    """Weights as `pack` lays them out."""

    _fields_ = (
        ("quants", _Pointer),
        ("scales", _Pointer),
        ("bias", _Pointer),
        *((name, c.c_int64) for name in ("n_in", "n_out", "type")),
    )


class Norm(c.Structure):
    """A norm's factors, and what is added."""

    _fields_ = (("weight", _Pointer), ("bias", _Pointer))


LAYER_NORMS = ("attention_norm", "feed_forward_norm", "query_norm", "key_norm")
LAYER_MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


class Layer(c.Structure):
    """One layer, and its part of the cache."""

    _fields_ = (
        *((name, Norm) for name in LAYER_NORMS),
        *((name, Matrix) for name in LAYER_MATRICES),
        ("keys", _Pointer),
        ("values", _Pointer),
    )


class Decoder(c.Structure):
    """The whole, with the memory for one batch."""

    _fields_ = (
        *((name, c.c_int32) for name in ("n_layers", "n_heads", "n_key_heads", "n_cells", "n_threads")),
        *((name, c.c_int32) for name in ("is_pre_norm", "is_rms", "activation")),
        ("epsilon", c.c_float),
        *((name, c.c_int64) for name in ("width", "embedding_width", "head_width", "feed_forward_width")),
        ("rotation", _Pointer),
        *((name, Matrix) for name in ("project_in", "project_out", "head")),
        ("final_norm", Norm),
        ("layers", c.POINTER(Layer)),
        *((name, _Pointer) for name in ("embedded", "placed")),
        *((name, _Pointer) for name in ("stream", "query", "key", "value", "attended", "hidden", "gate", "scores")),
        *((name, _Pointer) for name in ("quants", "quant_scales", "quant_sums")),
        ("pool", _Pointer),
    )


# name → (result type, argument types)
SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "tinydispatch_sizes": (None, (c.POINTER(c.c_int64),)),
    "tinydispatch_pack": (None, (c.c_int64, _Pointer, c.c_int64, c.c_int64, c.c_int64, _Pointer, _Pointer)),
    "tinydispatch_start_threads": (_Pointer, (c.c_int32, c.c_int32)),
    "tinydispatch_stop_threads": (None, (_Pointer,)),
    "tinydispatch_compute": (None, (c.POINTER(Decoder), c.c_int64, c.c_int64, c.c_int64, _Pointer)),
}
