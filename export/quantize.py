"""A weight in a GGUF file's number format."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export.errors import ExportError
from tinydispatch.ggml import bindings
from tinydispatch.ggml.header import TENSOR_BLOCKS
from tinydispatch.ggml.library import load_library

_F16_MAX = float(np.finfo(np.float16).max)


def encode(name: str, weight: torch.Tensor, type_id: int) -> npt.NDArray[Any]:
    """A weight's values as they stand in the file.

    Returns:
        float32 or float16 of the weight's shape, or for quantized types bytes of shape (…, row bytes).

    Raises:
        ExportError: a value is not finite, or too large for 16 bits.
    """
    values: npt.NDArray[np.float32] = weight.detach().to(torch.float32).contiguous().numpy()
    if not np.isfinite(values).all():
        raise ExportError(f"weight {name} holds values that are not finite; the training diverged")
    if type_id == bindings.GGML_TYPE_F32:
        return values
    if type_id == bindings.GGML_TYPE_F16:
        if float(np.abs(values).max(initial=0.0)) > _F16_MAX:
            raise ExportError(f"weight {name} holds values beyond {_F16_MAX:.0f}, which 16-bit floats cannot")
        return values.astype(np.float16)
    return quantize_rows(values, type_id)


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
