"""OPT on raw ggml: llama.cpp has no graph for it, post-layer-norm OPT-350m least of all.

The weights stay in the mapped file; llama.cpp serves as the tokenizer and as the source of ggml's operations.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import numpy as np

from tinydispatch.ggml import bindings
from tinydispatch.ggml.bindings import InitParams, KeyOverride
from tinydispatch.ggml.header import GgufError
from tinydispatch.ggml.memory import require_memory
from tinydispatch.ggml.model import GgufModel, is_unquantized
from tinydispatch.ggml.opt_graph import CacheTensors, GraphSize, OptGraph
from tinydispatch.ggml.opt_shape import OptShape, read_shape
from tinydispatch.ggml.runtime import Logits
from tinydispatch.ggml.vocabulary import Vocabulary
from tinydispatch.ggml.weights import MappedWeights

_MAX_BATCH = 512
# Attention sees the cache in steps of this many positions, so that decoding builds a graph once in so many tokens.
_CELL_STEP = 256
# Logits of 128 positions of a vocabulary of 50,000 take 26 MB.
_MAX_LOGIT_ROWS = 128

_SetThreads = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)


class OptModel(GgufModel):
    """A file of architecture `opt`, with layer norms before or after attention, with or without projections.

    The cache holds 16-bit numbers, and 32-bit ones where the file's are not quantized: over values in 16 bits ggml also
    adds in 16 bits when it decodes ids one by one, which at 2,000 positions moved logits of an F16 file by 0.03.
    """

    _tokenizer: int | None = None
    _backend: int | None = None
    _cache_context: int | None = None
    _cache_buffer: int | None = None
    _weights: MappedWeights | None = None
    _shape: OptShape

    def _open(self, n_ctx: int, threads: int) -> Vocabulary:
        self._shape = read_shape(self.header)
        vocabulary = self._open_vocabulary()
        if vocabulary.n_vocab != self._shape.n_vocab:
            problem = f"llama.cpp reads {vocabulary.n_vocab} tokens, the model has {self._shape.n_vocab}"
            raise GgufError(self.path, problem)
        self._n_ctx, self._max_batch = min(n_ctx, self._shape.n_positions), _MAX_BATCH
        self._graphs: dict[bool, OptGraph] = {}
        self._weights = MappedWeights(self._c, self.header)
        self._backend = self._cpu_backend(threads)
        self._make_cache()
        return vocabulary

    def _open_vocabulary(self) -> Vocabulary:
        # llama.cpp loads a tokenizer only under an architecture that it knows; of gpt2 nothing else is read.
        overrides = (KeyOverride * 2)()
        overrides[0].tag = bindings.KEY_OVERRIDE_TEXT
        overrides[0].key, overrides[0].value.text = b"general.architecture", b"gpt2"
        parameters = self._c.llama_model_default_params()
        parameters.vocab_only = True
        parameters.kv_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        self._tokenizer = self._c.llama_model_load_from_file(os.fsencode(self.path), parameters)
        if not self._tokenizer:
            reason = self._library.take_errors() or "no reason given"
            raise GgufError(self.path, f"llama.cpp cannot load its tokenizer: {reason}")
        return Vocabulary(self._library, self._tokenizer, self.header)

    def _cpu_backend(self, threads: int) -> int:
        c = self._c
        backend: int | None = c.ggml_backend_init_by_type(bindings.GGML_BACKEND_DEVICE_TYPE_CPU, None)
        if not backend:
            raise GgufError(self.path, f"{self._library.path}: ggml has no CPU backend")
        registry = c.ggml_backend_dev_backend_reg(c.ggml_backend_get_device(backend))
        # In builds with one library per CPU variant the function is found in no other way.
        address = c.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
        assert address, "every CPU backend sets its threads"
        _SetThreads(address)(backend, threads)
        return backend

    def _make_cache(self) -> None:
        c, n_layers, width = self._c, self._shape.n_layers, self._shape.width
        is_exact = is_unquantized(self.header)
        type_id, item_bytes = (bindings.GGML_TYPE_F32, 4) if is_exact else (bindings.GGML_TYPE_F16, 2)
        self._n_cells = -(-self._n_ctx // _CELL_STEP) * _CELL_STEP
        require_memory(self.path, 2 * n_layers * width * self._n_cells * item_bytes, self._n_cells)
        self._cache_context = c.ggml_init(InitParams(2 * n_layers * c.ggml_tensor_overhead(), None, True))
        new, context = c.ggml_new_tensor_2d, self._cache_context
        handles = [new(context, type_id, width, self._n_cells) for _ in range(2 * n_layers)]
        buffer_type = c.ggml_backend_get_default_buffer_type(self._backend)
        self._cache_buffer = c.ggml_backend_alloc_ctx_tensors_from_buft(self._cache_context, buffer_type)
        if not self._cache_buffer:
            raise GgufError(self.path, f"too little memory for a cache of {self._n_cells} positions")
        # Attention multiplies masked cells by zero, which only zero and other finite numbers survive.
        c.ggml_backend_buffer_clear(self._cache_buffer, 0)
        self._cache = CacheTensors(tuple(handles[:n_layers]), tuple(handles[n_layers:]), item_bytes)

    def _release(self) -> None:
        c = self._c
        for graph in getattr(self, "_graphs", {}).values():
            graph.close()
        self._graphs = {}
        if self._cache_buffer:
            c.ggml_backend_buffer_free(self._cache_buffer)
        if self._cache_context:
            c.ggml_free(self._cache_context)
        if self._backend:
            c.ggml_backend_free(self._backend)
        if self._weights:
            self._weights.close()
        if self._tokenizer:
            c.llama_model_free(self._tokenizer)
        self._cache_buffer = self._cache_context = self._backend = self._weights = self._tokenizer = None

    def _compute(self, ids: Sequence[int], wanted: Sequence[int]) -> list[Logits]:
        first, has_every_logit = len(self._cached_ids), len(wanted) > 1
        step = _MAX_LOGIT_ROWS if has_every_logit else len(ids)
        rows: list[Logits] = []
        for start in range(0, len(ids), step):
            chunk = np.asarray(ids[start : start + step], dtype=np.int32)
            graph = self._graph(len(chunk), first + start + len(chunk), has_every_logit)
            rows += list(graph.run(chunk, first + start))
        return rows[-len(wanted) :] if wanted else []

    def _graph(self, n_ids: int, n_positions: int, has_every_logit: bool) -> OptGraph:
        """The graph for so many ids up to that position; the one for single ids outlives those for batches."""
        assert self._weights is not None
        assert self._backend is not None
        n_cells = min(-(-n_positions // _CELL_STEP) * _CELL_STEP, self._n_cells)
        size = GraphSize(n_ids, n_cells, has_every_logit and n_ids > 1)
        is_single = n_ids == 1
        found = self._graphs.get(is_single)
        if found is not None and found.size == size:
            return found
        if found is not None:
            found.close()
            del self._graphs[is_single]
        graph = OptGraph(self._c, self._backend, self._shape, self._weights.handles, self._cache, size)
        self._graphs[is_single] = graph
        return graph

    def _cut(self, n_positions: int) -> int:
        return n_positions  # what lies beyond is masked, and overwritten by the next ids

    @property
    def _cache_kind(self) -> str:
        return f"opt {self._cache.item_bytes}"

    def _read_cache(self) -> bytes:
        n_bytes = len(self._cached_ids) * self._shape.width * self._cache.item_bytes
        tensors = self._cache.keys + self._cache.values
        rows = np.empty((len(tensors), n_bytes), dtype=np.uint8)
        for row, tensor in zip(rows, tensors, strict=True):
            self._c.ggml_backend_tensor_get(tensor, row.ctypes.data, 0, n_bytes)
        return rows.tobytes()

    def _write_cache(self, payload: memoryview, n_positions: int) -> bool:
        n_bytes = n_positions * self._shape.width * self._cache.item_bytes
        tensors = self._cache.keys + self._cache.values
        if len(payload) != len(tensors) * n_bytes:
            return False
        rows = np.frombuffer(payload, dtype=np.uint8).reshape(len(tensors), n_bytes)
        for row, tensor in zip(rows, tensors, strict=True):
            self._c.ggml_backend_tensor_set(tensor, row.ctypes.data, 0, n_bytes)
        return True
