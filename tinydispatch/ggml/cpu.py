"""ggml's CPU backend for graphs of our own, with threads that outlive a computation."""

from __future__ import annotations

import ctypes
from typing import Any

from tinydispatch.ggml import bindings
from tinydispatch.ggml.bindings import ThreadpoolParams
from tinydispatch.ggml.library import LlamaLibrary, LlamaLibraryError

_SetThreads = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
_NewPool = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(ThreadpoolParams))
_FreePool = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_SetPool = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


class CpuBackend:
    """The processor with so many threads. `close` frees it, after all that was made with it.

    Raises:
        LlamaLibraryError: the library has no code for this processor.
    """

    def __init__(self, library: LlamaLibrary, threads: int) -> None:
        self._c: Any = library.c
        self.handle: int | None = self._c.ggml_backend_init_by_type(bindings.GGML_BACKEND_DEVICE_TYPE_CPU, None)
        self._pool: int | None = None
        if not self.handle:
            raise LlamaLibraryError(f"{library.path}: ggml has no CPU backend")
        self._registry = self._c.ggml_backend_dev_backend_reg(self._c.ggml_backend_get_device(self.handle))
        self.buffer_type: int = self._c.ggml_backend_get_default_buffer_type(self.handle)
        _SetThreads(self._function("ggml_backend_set_n_threads"))(self.handle, threads)
        if threads > 1:
            self._start_threads(library, threads)

    def compute(self, graph: int) -> int:
        """ggml's status: 0 when all went well."""
        return int(self._c.ggml_backend_graph_compute(self.handle, graph))

    def close(self) -> None:
        """End the threads; a second call does nothing."""
        if self.handle:
            self._c.ggml_backend_free(self.handle)
        if self._pool:
            _FreePool(self._function("ggml_threadpool_free"))(self._pool)
        self.handle = self._pool = None

    def _start_threads(self, library: LlamaLibrary, threads: int) -> None:
        # Without a pool, a build without OpenMP starts and ends its threads in each computation.
        parameters = self._c.ggml_threadpool_params_default(threads)
        if (parameters.n_threads, parameters.poll) != (threads, bindings.THREADPOOL_POLL):
            raise LlamaLibraryError(f"{library.path}: another layout of ggml_threadpool_params than build 11549's")
        self._pool = _NewPool(self._function("ggml_threadpool_new"))(ctypes.byref(parameters))
        _SetPool(self._function("ggml_backend_cpu_set_threadpool"))(self.handle, self._pool)

    def _function(self, name: str) -> int:
        # In builds with one library per CPU variant these functions are found in no other way.
        address: int | None = self._c.ggml_backend_reg_get_proc_address(self._registry, name.encode())
        assert address, f"every CPU backend of this version has {name}"
        return address
