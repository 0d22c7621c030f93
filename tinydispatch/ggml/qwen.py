"""Qwen3 on raw ggml, with graphs that are built once for each size of input and used again.

llama.cpp computes the same, but a call consists of many small batches, each of another size than the one before, and it
builds a graph for each: at nano's size that takes longer than computing it. llama.cpp serves as the tokenizer and as
the source of ggml's operations; the weights stay in the mapped file.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from tinydispatch.ggml.contents import check_contents
from tinydispatch.ggml.cpu import CpuBackend
from tinydispatch.ggml.header import GgufError
from tinydispatch.ggml.numbers import check_numbers
from tinydispatch.ggml.pages import pointer_offset
from tinydispatch.ggml.qwen_graph import GraphOptions, GraphSize, QwenGraph
from tinydispatch.ggml.qwen_shape import QwenShape, read_shape
from tinydispatch.ggml.raw_model import RawModel
from tinydispatch.ggml.runtime import ComputeError, Logits
from tinydispatch.ggml.vocabulary import Vocabulary
from tinydispatch.ggml.weights import MappedWeights

_MAX_BATCH = 512
# Attention sees the cache in steps of this many positions, and a batch is rounded up to one of a few sizes.
_CELL_STEP = 64
_ROUNDING = ((4, 1), (16, 2), (48, 4), (128, 16), (_MAX_BATCH, 64))
# On a large model an id more takes longer than a graph.
_LARGE_ROUNDING = ((64, 1), (_MAX_BATCH, 8))
# So are the rows of logits, where the vocabulary is a small part of the weights.
_ROW_STEP, _SMALL_PART = 4, 1 / 8
_MAX_GRAPHS, _MAX_LARGE_GRAPHS = 96, 32
# What a call asks for, ids and rows of logits, on a small model: there a graph takes longer to build than to compute.
_USUAL = (
    *((n_ids, 1) for n_ids in (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48)),
    *((n_ids, 4) for n_ids in (4, 6, 8, 12, 16, 20)),
    *((n_ids, 8) for n_ids in (8, 12, 16, 20, 24)),
)
_MOST_WASTED = 1.4
# In ids that could be computed while a graph is built.
_WORTH_A_GRAPH = 4
# Weights beyond that are read from memory each time, and not from the processor's cache.
_CACHED_BYTES = 32 << 20


class QwenModel(RawModel):
    """A file of architecture `qwen3` that `read_shape` takes."""

    _allocator: int | None = None
    _shape: QwenShape

    def _open(self, n_ctx: int, threads: int) -> Vocabulary:
        check_numbers(self.header)
        shape = read_shape(self.header)
        if shape is None:
            raise GgufError(self.path, "not a plain Qwen3 file; llama.cpp's own graph has to compute it")
        check_contents(self.header)
        self._shape = shape
        self._graphs: OrderedDict[GraphSize, QwenGraph] = OrderedDict()
        self._wasted: dict[GraphSize, float] = {}
        vocabulary = self._open_vocabulary(shape.n_vocab)
        self._n_ctx, self._max_batch = min(n_ctx, shape.n_positions), _MAX_BATCH
        self._weights = MappedWeights(self._c, self.header)
        self._backend = CpuBackend(self._library, threads)
        self._allocator = self._c.ggml_gallocr_new(self._backend.buffer_type)
        # A batch is rounded up by less than a step, and what it writes there is overwritten later.
        self._n_cells = _round_up(self._n_ctx, _CELL_STEP) + _CELL_STEP
        self._cache = self._make_cache(shape.n_layers, shape.n_key_heads, shape.head_width, self._n_cells)
        n_bytes = sum(tensor.n_bytes for tensor in self.header.tensors)
        self._options = GraphOptions(pointer_offset(self._c), n_bytes > _CACHED_BYTES)
        n_weights = sum(math.prod(tensor.shape) for tensor in self.header.tensors)
        self._row_step = _ROW_STEP if shape.n_vocab * shape.width < _SMALL_PART * n_weights else 1
        return vocabulary

    def _release(self) -> None:
        self._drop_graphs()
        if self._allocator:
            self._c.ggml_gallocr_free(self._allocator)
        self._allocator = None
        super()._release()

    def _drop_graphs(self) -> None:
        graphs, self._graphs = getattr(self, "_graphs", {}), OrderedDict()
        for graph in graphs.values():
            graph.close()

    def _compute(self, ids: Sequence[int], wanted: Sequence[int]) -> list[Logits]:
        first = len(self._cached_ids)
        assert not wanted or wanted[-1] == len(ids) - 1, "logits are wanted of the last ids"
        graph = self._graph(len(ids), first + len(ids), len(wanted))
        graph.set(np.asarray(ids, dtype=np.int32), first)
        assert self._backend is not None
        status = self._backend.compute(graph.handle)
        if status:
            raise ComputeError(f"{self.path}: ggml could not compute {len(ids)} ids: status {status}")
        return list(graph.logits(len(ids), len(wanted)))

    def _graph(self, n_ids: int, n_positions: int, n_rows: int) -> QwenGraph:
        """The graph for at least so many ids up to that position, and at least so many rows of logits."""
        rounding = _LARGE_ROUNDING if self._options.multiplies_rows else _ROUNDING
        step = next(step for most, step in rounding if n_ids <= most)
        n_computed = _round_up(n_ids, step)
        n_outputs = n_rows if n_rows < 2 else min(_round_up(n_rows, self._row_step), n_computed)
        size = GraphSize(n_computed, _round_up(n_positions, _CELL_STEP), n_outputs)
        found = size if size in self._graphs else self._near(size)
        if found is None:
            return self._build(size)
        self._graphs.move_to_end(found)
        return self._graphs[found]

    def _near(self, size: GraphSize) -> GraphSize | None:
        """A somewhat larger graph, until it has computed as much for nothing as a graph of that size takes to build."""
        if self._options.multiplies_rows or self._wasted.get(size, 0.0) >= _WORTH_A_GRAPH:
            return None
        fitting = [
            graph
            for graph in self._graphs
            if size.n_ids <= graph.n_ids <= _MOST_WASTED * size.n_ids
            and size.n_rows <= graph.n_rows <= size.n_rows + _ROW_STEP
            and size.n_cells <= graph.n_cells <= size.n_cells + _CELL_STEP
        ]
        if not fitting:
            return None
        found = min(fitting, key=size.waste)
        self._wasted[size] = self._wasted.get(size, 0.0) + size.waste(found)
        return found

    def prepare(self) -> None:
        """Build the graphs that a call needs on top of what is cached."""
        if self._options.multiplies_rows:
            return
        first = len(self._cached_ids)
        cells = {_round_up(first + n_new, _CELL_STEP) for n_new in (_CELL_STEP // 2, 3 * _CELL_STEP // 2)}
        sizes = [GraphSize(n_ids, min(n_cells, self._n_cells), n_rows) for n_cells in cells for n_ids, n_rows in _USUAL]
        # The largest first: graphs share their memory, and those that were built before it grew are lost.
        for size in sorted(sizes, key=lambda size: -size.n_ids * size.n_cells):
            if size not in self._graphs:
                self._build(size)

    def _build(self, size: GraphSize) -> QwenGraph:
        assert self._allocator is not None
        assert self._cache is not None
        assert self._weights is not None
        while len(self._graphs) >= (_MAX_LARGE_GRAPHS if self._options.multiplies_rows else _MAX_GRAPHS):
            self._graphs.popitem(last=False)[1].close()
        memory = self._c.ggml_gallocr_get_buffer_size(self._allocator, 0)
        graph = QwenGraph(
            self._c, self._allocator, self._shape, self._weights.handles, self._cache, size, self._options
        )
        if self._c.ggml_gallocr_get_buffer_size(self._allocator, 0) != memory:
            self._drop_graphs()  # their memory has moved
        self._graphs[size] = graph
        return graph


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step
