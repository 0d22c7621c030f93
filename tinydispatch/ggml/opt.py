"""OPT on raw ggml: llama.cpp has no graph for it, post-layer-norm OPT-350m least of all.

The weights stay in the mapped file; llama.cpp serves as the tokenizer and as the source of ggml's operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinydispatch.ggml import bindings
from tinydispatch.ggml.architectures import Shape, read_shape
from tinydispatch.ggml.contents import check_vocabulary
from tinydispatch.ggml.cpu import CpuBackend
from tinydispatch.ggml.graph import CELL_STEP, Graph, GraphSize, GraphStore
from tinydispatch.ggml.header import GgufError
from tinydispatch.ggml.kv_cache import KvCache
from tinydispatch.ggml.memory import require_memory
from tinydispatch.ggml.model import is_unquantized
from tinydispatch.ggml.opt_graph import OptGraph
from tinydispatch.ggml.raw_model import RawModel
from tinydispatch.ggml.runtime import Logits
from tinydispatch.ggml.vocabulary import Vocabulary
from tinydispatch.ggml.weights import MappedWeights

# Scores of a batch over 2,048 positions take 8 MB; with 128 ids the peak of memory is 13 MB higher.
_MAX_BATCH = 64
# Logits of 64 positions of a vocabulary of 50,000 take 13 MB.
_MAX_LOGIT_ROWS = 64
# A graph of one id takes 0.9 MB at OPT-350M's size, one of 128 ids over 2,048 positions 25 MB.
_MAX_GRAPH_BYTES = 16 << 20


class OptModel(RawModel):
    """A file of architecture `opt`, with layer norms before or after attention, with or without projections.

    The cache holds 16-bit numbers, and 32-bit ones where the file's are not quantized: those are there to be exact.
    """

    _backend: CpuBackend | None = None
    _weights: MappedWeights | None = None
    _cache: KvCache | None = None
    _graphs: GraphStore | None = None
    _shape: Shape

    def _open(self, n_ctx: int, threads: int) -> Vocabulary:
        self._shape = read_shape(self.header)
        if self._shape.architecture.is_stock:
            raise GgufError(self.path, f"its architecture is {self.header.architecture!r}, and this graph is OPT's")
        check_vocabulary(self.header)
        # llama.cpp loads a tokenizer only under an architecture that it knows.
        vocabulary = self._open_vocabulary(self._shape.n_vocab, "gpt2")
        self._n_ctx, self._max_batch = min(n_ctx, self._shape.n_positions), _MAX_BATCH
        self._backend = CpuBackend(self._library, threads)
        self._weights = MappedWeights(self._c, self.header, self._backend.handle)
        n_cells = -(-self._n_ctx // CELL_STEP) * CELL_STEP
        self._cache = self._make_cache(n_cells)
        self._graphs = GraphStore(self._build_graph, _MAX_GRAPH_BYTES)
        return vocabulary

    @property
    def computed_by(self) -> str:
        """ggml, on a graph of ours."""
        return "a graph on ggml"

    def _build_graph(self, size: GraphSize) -> Graph:
        assert self._weights is not None
        assert self._backend is not None
        assert self._cache is not None
        return OptGraph(self._c, self._backend, self._shape, self._weights, self._cache, size)

    def _make_cache(self, n_cells: int) -> KvCache:
        type_id = bindings.GGML_TYPE_F32 if is_unquantized(self.header) else bindings.GGML_TYPE_F16
        size = (type_id, self._shape.n_layers, self._shape.n_heads, self._shape.head_width, n_cells)
        require_memory(self.path, KvCache.n_bytes(*size), self._n_ctx)
        try:
            return KvCache(self._c, *size)
        except OSError as error:
            raise GgufError(self.path, f"too little memory for a cache of {self._n_ctx} positions: {error}") from error

    def _stop(self) -> None:
        if self._graphs is not None:
            self._graphs.close()
        self._graphs = None

    def _release(self) -> None:
        super()._release()
        if self._backend is not None:
            self._backend.close()
        self._backend = None

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
