"""Weights that stay in the file: its pages are mapped into memory, and ggml tensors point into them."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from tinydispatch.ggml.bindings import InitParams
from tinydispatch.ggml.header import GgufError, GgufHeader


class MappedWeights:
    """The tensors of a checked file by name, as ggml handles. Nothing is copied; pages are read when first used.

    Raises:
        GgufError: the file became shorter since its header was read.
    """

    def __init__(self, c: Any, header: GgufHeader) -> None:
        self._c = c
        self._context: int | None = None
        self._buffer: int | None = None
        self.handles: dict[str, int] = {}
        with header.path.open("rb") as stream:
            self._map: mmap.mmap | None = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._pages: Any = np.frombuffer(self._map, dtype=np.uint8)
        end = max((header.data_offset + tensor.offset + tensor.n_bytes for tensor in header.tensors), default=0)
        if end > self._pages.size:
            raise GgufError(header.path, f"truncated since it was checked: {self._pages.size} bytes of {end}")
        base = self._pages.ctypes.data
        self._context = c.ggml_init(InitParams(len(header.tensors) * c.ggml_tensor_overhead(), None, True))
        self._buffer = c.ggml_backend_cpu_buffer_from_ptr(base, self._pages.size)
        for tensor in header.tensors:
            new = c.ggml_new_tensor_1d if len(tensor.shape) == 1 else c.ggml_new_tensor_2d
            handle = new(self._context, tensor.type_id, *tensor.shape)
            # The header's reader has its own table of block sizes; past the mapping, native code would abort.
            assert c.ggml_nbytes(handle) == tensor.n_bytes, f"{tensor.name}: ggml counts another number of bytes"
            c.ggml_backend_tensor_alloc(self._buffer, handle, base + header.data_offset + tensor.offset)
            self.handles[tensor.name] = handle

    def close(self) -> None:
        """Unmap the file; a second call does nothing."""
        if self._buffer:
            self._c.ggml_backend_buffer_free(self._buffer)
        if self._context:
            self._c.ggml_free(self._context)
        self._buffer = self._context = None
        self.handles = {}
        self._pages = None  # the mapping cannot be closed while an array looks into it
        if self._map is not None:
            self._map.close()
            self._map = None
