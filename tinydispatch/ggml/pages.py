"""Memory that numpy and ggml share: an array for us is a tensor for a graph, and nothing is copied between them."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tinydispatch.ggml import bindings
from tinydispatch.ggml.bindings import InitParams

_DTYPES: dict[int, Any] = {
    bindings.GGML_TYPE_F32: np.float32,
    bindings.GGML_TYPE_F16: np.float16,
    bindings.GGML_TYPE_I32: np.int32,
}
# ggml's strictest alignment of a tensor, and a cache line.
_ALIGNMENT = 64


class Pages:
    """Zeroed pages, from which arrays are cut one after the other.

    `close` makes ggml forget them; the pages themselves live as long as an array looks into them.
    """

    def __init__(self, c: Any, n_bytes: int) -> None:
        self._c = c
        self._memory = np.frombuffer(mmap.mmap(-1, max(n_bytes, 1)), dtype=np.uint8)
        self._used = 0
        self.buffer: int | None = c.ggml_backend_cpu_buffer_from_ptr(self._memory.ctypes.data, self._memory.size)

    @staticmethod
    def size(type_id: int, lengths: Sequence[int]) -> int:
        """How many bytes an array takes."""
        n_bytes: int = math.prod(lengths) * np.dtype(_DTYPES[type_id]).itemsize
        return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT

    def array(self, type_id: int, lengths: Sequence[int]) -> npt.NDArray[Any]:
        """The next array, its lengths in numpy's order."""
        start, n_bytes = self._used, self.size(type_id, lengths)
        assert start + n_bytes <= self._memory.size, "the caller has counted what it takes"
        self._used += n_bytes
        dtype: np.dtype[Any] = np.dtype(_DTYPES[type_id])
        found: npt.NDArray[Any] = self._memory[start : start + math.prod(lengths) * dtype.itemsize].view(dtype)
        return found.reshape(lengths)

    def place(self, tensor: int, array: npt.NDArray[Any]) -> int:
        """Let a tensor that has no memory yet be that array."""
        assert self._c.ggml_nbytes(tensor) == array.nbytes, "tensor and array hold the same numbers"
        self._c.ggml_backend_tensor_alloc(self.buffer, tensor, array.ctypes.data)
        return tensor

    def close(self) -> None:
        """Make ggml forget the pages; a second call does nothing."""
        if self.buffer:
            self._c.ggml_backend_buffer_free(self.buffer)
        self.buffer = None


class Address:
    """Where a tensor's numbers lie, which can be moved: a graph that is built once writes elsewhere each time.

    `offset` is that of the pointer in ggml's struct, as `pointer_offset` finds it.
    """

    def __init__(self, tensor: int, offset: int) -> None:
        self._pointer = ctypes.c_uint64.from_address(tensor + offset)
        self._start = self._pointer.value

    def move(self, n_bytes: int) -> None:
        """Let the tensor lie so many bytes behind where it was at first."""
        self._pointer.value = self._start + n_bytes


def pointer_offset(c: Any) -> int:
    """Where ggml's tensor struct holds the address of its numbers, found in a tensor whose address is known."""
    pages = Pages(c, _ALIGNMENT)
    context = c.ggml_init(InitParams(2 * c.ggml_tensor_overhead(), None, True))
    try:
        array = pages.array(bindings.GGML_TYPE_F32, (4,))
        tensor = pages.place(c.ggml_new_tensor_1d(context, bindings.GGML_TYPE_F32, 4), array)
        n_words = c.ggml_tensor_overhead() // 8
        words = (ctypes.c_uint64 * n_words).from_address(tensor)
        found = [8 * index for index, word in enumerate(words) if word == array.ctypes.data]
        assert len(found) == 1, f"ggml's tensor holds its address {len(found)} times"
        return found[0]
    finally:
        c.ggml_free(context)
        pages.close()
