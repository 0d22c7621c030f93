"""OPT on raw ggml: llama.cpp has no graph for it, post-layer-norm OPT-350m least of all.

The weights stay in the mapped file; llama.cpp serves as the tokenizer and as the source of ggml's operations.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tinydispatch.ggml import bindings
from tinydispatch.ggml.bindings import KeyOverride
from tinydispatch.ggml.contents import check_vocabulary
from tinydispatch.ggml.cpu import CpuBackend
from tinydispatch.ggml.graph import CELL_STEP, Graph, GraphSize, GraphStore
from tinydispatch.ggml.header import GgufError
from tinydispatch.ggml.kv_cache import KvCache
from tinydispatch.ggml.memory import require_memory
from tinydispatch.ggml.model import GgufModel, is_unquantized
from tinydispatch.ggml.opt_graph import OptGraph
from tinydispatch.ggml.opt_shape import OptShape, read_shape
from tinydispatch.ggml.runtime import Logits
from tinydispatch.ggml.vocabulary import Vocabulary
from tinydispatch.ggml.weights import MappedWeights

# Scores of a batch over 2,048 positions take 17 MB.
_MAX_BATCH = 128
# Logits of 64 positions of a vocabulary of 50,000 take 13 MB.
_MAX_LOGIT_ROWS = 64
# A graph of one id takes 0.9 MB at OPT-350M's size, one of 128 ids over 2,048 positions 25 MB.
_MAX_GRAPH_BYTES = 32 << 20


class OptModel(GgufModel):
    """A file of architecture `opt`, with layer norms before or after attention, with or without projections.

    The cache holds 16-bit numbers, and 32-bit ones where the file's are not quantized: those are there to be exact.
    """

    _tokenizer: int | None = None
    _backend: CpuBackend | None = None
    _weights: MappedWeights | None = None
    _cache: KvCache | None = None
    _graphs: GraphStore | None = None
    _shape: OptShape

    def _open(self, n_ctx: int, threads: int) -> Vocabulary:
        self._shape = read_shape(self.header)
        check_vocabulary(self.header)
        vocabulary = self._open_vocabulary()
        if vocabulary.n_vocab != self._shape.n_vocab:
            problem = f"llama.cpp reads {vocabulary.n_vocab} tokens, the model has {self._shape.n_vocab}"
            raise GgufError(self.path, problem)
        self._n_ctx, self._max_batch = min(n_ctx, self._shape.n_positions), _MAX_BATCH
        self._backend = CpuBackend(self._library, threads)
        self._weights = MappedWeights(self._c, self.header, self._backend.handle)
        self._cache = self._make_cache()
        self._graphs = GraphStore(self._build_graph, _MAX_GRAPH_BYTES)
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

    def _make_cache(self) -> KvCache:
        shape = self._shape
        type_id = bindings.GGML_TYPE_F32 if is_unquantized(self.header) else bindings.GGML_TYPE_F16
        n_cells = -(-self._n_ctx // CELL_STEP) * CELL_STEP
        size = (type_id, shape.n_layers, shape.n_heads, shape.head_width, n_cells)
        require_memory(self.path, KvCache.n_bytes(*size), n_cells)
        try:
            return KvCache(self._c, *size)
        except OSError as error:
            raise GgufError(self.path, f"too little memory for a cache of {n_cells} positions: {error}") from error

    def _build_graph(self, size: GraphSize) -> Graph:
        assert self._weights is not None
        assert self._backend is not None
        assert self._cache is not None
        return OptGraph(self._c, self._backend, self._shape, self._weights, self._cache, size)

    def _release(self) -> None:
        for part in (self._graphs, self._cache, self._weights, self._backend):
            if part is not None:
                part.close()
        if self._tokenizer:
            self._c.llama_model_free(self._tokenizer)
        self._graphs = self._cache = self._weights = self._backend = self._tokenizer = None

    def _compute(self, ids: Sequence[int], wanted: Sequence[int]) -> list[Logits]:
        assert self._graphs is not None
        assert self._cache is not None
        start, left = 0, len(wanted)
        rows: list[Logits] = []
        while start < len(ids):
            # The first batch also takes the ids whose logits nobody wants.
            n_outputs, stop = min(left, _MAX_LOGIT_ROWS) or 1, len(ids) - max(left - _MAX_LOGIT_ROWS, 0)
            n_positions = len(self._cached_ids) + stop
            n_cells = min(-(-n_positions // CELL_STEP) * CELL_STEP, self._cache.n_cells)
            graph = self._graphs.get(GraphSize(stop - start, n_cells, n_outputs))
            rows.extend(graph.run(np.asarray(ids[start:stop], dtype=np.int32), len(self._cached_ids) + start))
            start, left = stop, left - n_outputs
        return rows[: len(wanted)]

    def _cut(self, n_positions: int) -> int:
        return n_positions  # what lies beyond is masked, and overwritten by the next ids

    @property
    def _cache_kind(self) -> str:
        assert self._cache is not None
        return f"opt by heads {self._cache.item_bytes}"

    def _read_cache(self) -> list[npt.NDArray[Any]]:
        assert self._cache is not None
        return self._cache.read(len(self._cached_ids))

    def _write_cache(self, payload: memoryview, n_positions: int) -> bool:
        assert self._cache is not None
        return self._cache.write(payload, n_positions)
