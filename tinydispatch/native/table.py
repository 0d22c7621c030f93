"""Rows of a matrix that are looked up and not multiplied: they stay as they lie in the mapped file."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from tinydispatch.ggml.bindings import GGML_TYPE_F16, GGML_TYPE_F32, ROW_READERS
from tinydispatch.ggml.header import TensorInfo

_FLOATS: dict[int, Any] = {GGML_TYPE_F32: np.float32, GGML_TYPE_F16: np.float16}


class RowTable:
    """A tensor's rows in 32 bits, read by ggml where they are quantized.

    Args:
        address: where the tensor lies; it has to stay there.
    """

    def __init__(self, ggml: Any, tensor: TensorInfo, address: int) -> None:
        self.width, n_rows = tensor.shape
        self._address, self._row_bytes = address, tensor.n_bytes // n_rows
        self._rows: npt.NDArray[Any] | None = None
        if tensor.type_id in _FLOATS:
            memory: Any = (ctypes.c_uint8 * tensor.n_bytes).from_address(address)
            self._rows = np.frombuffer(memory, dtype=_FLOATS[tensor.type_id]).reshape(n_rows, self.width)
        else:
            self._read = getattr(ggml, ROW_READERS[tensor.type_id])

    def read(self, rows: Iterable[int], out: npt.NDArray[np.float32]) -> None:
        """Write these rows one after the other to the start of `out`, which has no gaps."""
        if self._rows is not None:
            indices = list(rows)
            out.reshape(-1)[: len(indices) * self.width] = self._rows[indices].reshape(-1)
            return
        place = out.ctypes.data
        for row in rows:
            self._read(self._address + row * self._row_bytes, place, self.width)
            place += 4 * self.width
