"""Weights that stay in the file: its pages are mapped into memory, and ggml tensors point into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tinydispatch.ggml.bindings import InitParams
from tinydispatch.ggml.header import GgufHeader, TensorInfo
from tinydispatch.ggml.mapped_file import MappedFile
from tinydispatch.ggml.repack import N_ROWS, layout

# Rows of these are looked up, which only the file's own order of numbers allows.
_TABLES = ("token_embd.weight", "position_embd.weight")


class MappedWeights:
    """The tensors of a checked file by name, as ggml handles; pages are read when first used.

    Nothing is copied; but with a `backend`, matrices of number formats that it multiplies faster in another layout are
    kept in that one, and their pages given back to the system. `repacks` is for benchmarks to compare.

    Raises:
        GgufError: the file became shorter since its header was read.
    """

    repacks: ClassVar[bool] = True

    def __init__(self, c: Any, header: GgufHeader, backend: int | None = None) -> None:
        self._c = c
        self._contexts: list[int] = []
        self._buffers: list[int] = []
        self.handles: dict[str, int] = {}
        self.shapes = {tensor.name: tensor.shape for tensor in header.tensors}
        self.repacked: set[str] = set()
        self._file: MappedFile | None = MappedFile(header, is_kept=True)
        self._map_tensors(header)
        if self.repacks and backend is not None:
            self._repack(header, backend)

    def close(self) -> None:
        """Unmap the file; a second call does nothing."""
        for buffer in self._buffers:
            self._c.ggml_backend_buffer_free(buffer)
        for context in self._contexts:
            self._c.ggml_free(context)
        self._buffers, self._contexts, self.handles = [], [], {}
        if self._file is not None:
            self._file.close()
            self._file = None

    def _map_tensors(self, header: GgufHeader) -> None:
        assert self._file is not None
        c, context = self._c, self._new_context(len(header.tensors))
        buffer = c.ggml_backend_cpu_buffer_from_ptr(self._file.address, self._file.size)
        self._buffers.append(buffer)
        for tensor in header.tensors:
            handle = self._new_tensor(context, tensor)
            c.ggml_backend_tensor_alloc(buffer, handle, self._file.address_of(tensor))
            self.handles[tensor.name] = handle

    def _repack(self, header: GgufHeader, backend: int) -> None:
        matrices = [
            tensor
            for tensor in header.tensors
            if len(tensor.shape) == 2 and not tensor.shape[1] % N_ROWS and tensor.name not in _TABLES
        ]
        for type_id in {tensor.type_id for tensor in matrices}:
            if (buffer_type := layout(self._c, backend, type_id)) is not None:
                self._copy([tensor for tensor in matrices if tensor.type_id == type_id], buffer_type)

    def _copy(self, tensors: Sequence[TensorInfo], buffer_type: int) -> None:
        assert self._file is not None
        c, context = self._c, self._new_context(len(tensors))
        handles = [self._new_tensor(context, tensor) for tensor in tensors]
        buffer = c.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            return  # too little memory: the mapped ones do as well
        self._buffers.append(buffer)
        for tensor, handle in zip(tensors, handles, strict=True):
            c.ggml_backend_tensor_set(handle, self._file.address_of(tensor), 0, tensor.n_bytes)
            self.handles[tensor.name] = handle
            self.repacked.add(tensor.name)
            self._file.give_back(tensor)

    def _new_context(self, n_tensors: int) -> int:
        context: int = self._c.ggml_init(InitParams(n_tensors * self._c.ggml_tensor_overhead(), None, True))
        self._contexts.append(context)
        return context

    def _new_tensor(self, context: int, tensor: TensorInfo) -> int:
        new = self._c.ggml_new_tensor_1d if len(tensor.shape) == 1 else self._c.ggml_new_tensor_2d
        handle: int = new(context, tensor.type_id, *tensor.shape)
        # The header's reader has its own table of block sizes; past the mapping, native code would abort.
        assert self._c.ggml_nbytes(handle) == tensor.n_bytes, f"{tensor.name}: ggml counts another number of bytes"
        return handle
