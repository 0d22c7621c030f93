"""Layouts of ggml's own, in which this processor multiplies matrices of some number formats faster than the file's.

A mapped file cannot have them: weights that are laid out anew are copies.
"""

from __future__ import annotations

import ctypes
from typing import Any

from tinydispatch.ggml import bindings
from tinydispatch.ggml.bindings import InitParams

_ExtraBuffers = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
# A matrix that every such layout takes: whole blocks, and as many rows as the widest interleaves.
_ROW_LENGTH, N_ROWS = 256, 64


def layout(c: Any, backend: int, type_id: int) -> int | None:
    """The kind of buffer whose layout multiplies matrices of that type, if they have a multiple of `N_ROWS` rows."""
    device = c.ggml_backend_get_device(backend)
    registry = c.ggml_backend_dev_backend_reg(device)
    address = c.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    kinds = _ExtraBuffers(address)(device) if address else None
    index = 0
    while kinds and kinds[index]:
        if _multiplies(c, device, kinds[index], type_id):
            return int(kinds[index])
        index += 1
    return None


def _multiplies(c: Any, device: int, buffer_type: int | None, type_id: int) -> bool:
    weights = c.ggml_init(InitParams(c.ggml_tensor_overhead(), None, True))
    others = c.ggml_init(InitParams(2 * c.ggml_tensor_overhead(), None, True))
    buffer = None
    try:
        matrix = c.ggml_new_tensor_2d(weights, type_id, _ROW_LENGTH, N_ROWS)
        buffer = c.ggml_backend_alloc_ctx_tensors_from_buft(weights, buffer_type)
        if not buffer:
            return False
        x = c.ggml_new_tensor_2d(others, bindings.GGML_TYPE_F32, _ROW_LENGTH, 1)
        # Asked of a matrix in that buffer, the device answers for the layout that it has chosen there.
        return bool(c.ggml_backend_dev_supports_op(device, c.ggml_mul_mat(others, matrix, x)))
    finally:
        if buffer:
            c.ggml_backend_buffer_free(buffer)
        c.ggml_free(others)
        c.ggml_free(weights)
