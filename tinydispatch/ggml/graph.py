"""A decoder's computation as a ggml graph, for one shape of input: built once, run any number of times.

What architectures share is here: inputs, products with named weights, layer norm, and attention over the cache.
Letters in comments: T ids of this call, P positions that attention sees, H heads, D a head's width. ggml names a
tensor's lengths from the innermost, so a matrix of T rows of `width` is (width, T).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinydispatch.ggml import bindings
from tinydispatch.ggml.bindings import InitParams
from tinydispatch.ggml.cpu import CpuBackend
from tinydispatch.ggml.kv_cache import KvCache
from tinydispatch.ggml.pages import Address, pointer_offset
from tinydispatch.ggml.runtime import ComputeError, Logits
from tinydispatch.ggml.weights import MappedWeights

# Tensors that a layer makes at most, views included, and those outside of layers.
_LAYER_TENSORS, _OTHER_TENSORS = 64, 32
# Attention sees the cache in steps of this many positions, so that decoding builds a graph once in so many tokens.
CELL_STEP = 64
# ggml's product of matrices is made for many columns: at OPT-350M's size two take 50 ms and one 21. Up to so many are
# multiplied as single ones, in 42 ms for two and 55 instead of 66 for three; with four nothing is gained.
_FEW = 3


@dataclass(frozen=True)
class GraphSize:
    """`n_ids` new ids whose attention sees the first `n_cells` of the cache; logits of the last `n_outputs` of them."""

    n_ids: int
    n_cells: int
    n_outputs: int


class Graph(ABC):
    """The graph of one size. It holds its own memory for intermediate results.

    Raises:
        ComputeError: there is too little memory for them.
    """

    def __init__(
        self, c: Any, backend: CpuBackend, weights: MappedWeights, cache: KvCache, size: GraphSize, n_layers: int
    ) -> None:
        self.size = size
        self._c, self._backend, self._weights, self._cache = c, backend, weights, cache
        n_tensors = n_layers * _LAYER_TENSORS + _OTHER_TENSORS
        self._meta_bytes: int = n_tensors * c.ggml_tensor_overhead() + c.ggml_graph_overhead_custom(n_tensors, False)
        self._context: int | None = c.ggml_init(InitParams(self._meta_bytes, None, True))
        self._graph = c.ggml_new_graph_custom(self._context, n_tensors, False)
        self._ids = self._input(bindings.GGML_TYPE_I32, size.n_ids)
        self._positions = self._input(bindings.GGML_TYPE_I32, size.n_ids)
        self._mask = self._input(bindings.GGML_TYPE_F32, size.n_cells, size.n_ids)
        self._written: list[tuple[int, int]] = []  # tensors that write to the cache, and bytes from cell to cell
        self._logits = self._build()
        self._n_vocab = c.ggml_nbytes(self._logits) // (4 * size.n_outputs)
        c.ggml_set_output(self._logits)
        c.ggml_build_forward_expand(self._graph, self._logits)
        self._allocator: int | None = c.ggml_gallocr_new(backend.buffer_type)
        if not c.ggml_gallocr_alloc_graph(self._allocator, self._graph):
            self.close()
            raise ComputeError(f"too little memory for a graph of {size.n_ids} ids over {size.n_cells} positions")
        pointer = pointer_offset(c)
        self._addresses = [(Address(tensor, pointer), stride) for tensor, stride in self._written]

    @abstractmethod
    def _build(self) -> int:
        """The logits, (vocabulary, outputs), computed from the inputs."""

    @property
    def n_bytes(self) -> int:
        """Memory that this graph holds."""
        return self._meta_bytes + int(self._c.ggml_gallocr_get_buffer_size(self._allocator, 0))

    def run(self, ids: npt.NDArray[np.int32], first: int) -> Logits:
        """Compute `ids` at positions from `first`; logits of shape (outputs, vocabulary), a copy.

        Raises:
            ComputeError: ggml could not compute.
        """
        positions = np.arange(first, first + self.size.n_ids)
        seen = np.arange(self.size.n_cells) <= positions[:, np.newaxis]
        self._set(self._ids, ids.astype(np.int32))
        self._set(self._positions, positions.astype(np.int32))
        self._set(self._mask, np.where(seen, np.float32(0), np.float32(-np.inf)))
        for address, stride in self._addresses:
            address.move(first * stride)
        status = self._backend.compute(self._graph)
        if status:
            raise ComputeError(f"ggml could not compute {self.size.n_ids} ids: status {status}")
        logits = np.empty((self.size.n_outputs, self._n_vocab), dtype=np.float32)
        self._c.ggml_backend_tensor_get(self._logits, logits.ctypes.data, 0, logits.nbytes)
        return logits

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        if self._allocator:
            self._c.ggml_gallocr_free(self._allocator)
        if self._context:
            self._c.ggml_free(self._context)
        self._allocator = self._context = None
        self._addresses = []

    def _input(self, type_id: int, *lengths: int) -> int:
        new = self._c.ggml_new_tensor_1d if len(lengths) == 1 else self._c.ggml_new_tensor_2d
        tensor: int = new(self._context, type_id, *lengths)
        self._c.ggml_set_input(tensor)
        return tensor

    def _set(self, tensor: int, values: npt.NDArray[Any]) -> None:
        self._c.ggml_backend_tensor_set(tensor, values.ctypes.data, 0, values.nbytes)

    def _attention(self, query: int, key: int, value: int, layer: int) -> int:
        """Write keys and values of the new ids to the cache; all they then see, weighted: (width, T) each."""
        c, context, n_ids, cache = self._c, self._context, self.size.n_ids, self._cache
        head, n_heads, item, seen = cache.head_width, cache.n_heads, cache.item_bytes, self.size.n_cells
        self._write(key, value, layer)
        # Not ggml's flash attention: for single ids it adds 16-bit values in 16 bits, and it takes longer.
        row, plane, column = head * item, head * item * cache.n_cells, item * cache.n_cells
        keys = c.ggml_view_3d(context, cache.keys[layer], head, seen, n_heads, row, plane, 0)  # (D, P, H)
        values = c.ggml_view_3d(context, cache.values[layer], seen, head, n_heads, column, plane, 0)  # (P, D, H)
        scores = c.ggml_mul_mat(context, keys, self._by_head(query))  # (P, T, H)
        scores = c.ggml_soft_max_ext(context, scores, self._mask, head**-0.5, 0.0)
        mixed = c.ggml_permute(context, c.ggml_mul_mat(context, values, scores), 0, 2, 1, 3)  # (D, H, T)
        return int(c.ggml_cont_2d(context, mixed, head * n_heads, n_ids))

    def _write(self, key: int, value: int, layer: int) -> None:
        """Copy them to the first cells; `run` moves the copies to where they belong."""
        c, context, n_ids, cache = self._c, self._context, self.size.n_ids, self._cache
        head, n_heads, item = cache.head_width, cache.n_heads, cache.item_bytes
        row, plane, column = head * item, head * item * cache.n_cells, item * cache.n_cells
        keys = c.ggml_view_3d(context, cache.keys[layer], head, n_ids, n_heads, row, plane, 0)
        values = c.ggml_view_2d(context, cache.values[layer], n_ids, n_heads * head, column, 0)
        for written, stride in (
            (c.ggml_cpy(context, self._by_head(key), keys), row),
            (c.ggml_cpy(context, c.ggml_transpose(context, value), values), item),
        ):
            # Expanded now, so that they are written before attention reads the cache.
            c.ggml_build_forward_expand(self._graph, written)
            self._written.append((written, stride))

    def _by_head(self, x: int) -> int:
        c, context, cache = self._c, self._context, self._cache
        heads = c.ggml_reshape_3d(context, x, cache.head_width, cache.n_heads, self.size.n_ids)
        return int(c.ggml_permute(context, heads, 0, 2, 1, 3))  # (D, T, H)

    def _outputs(self, x: int) -> int:
        """The rows whose logits are wanted, (width, outputs)."""
        size, width = self.size, self._cache.n_heads * self._cache.head_width
        if size.n_outputs == size.n_ids:
            return x
        start = (size.n_ids - size.n_outputs) * 4 * width
        return int(self._c.ggml_view_2d(self._context, x, width, size.n_outputs, 4 * width, start))

    def _rows(self, name: str, ids: int) -> int:
        return int(self._c.ggml_get_rows(self._context, self._weights.handles[f"{name}.weight"], ids))

    def _product(self, name: str, x: int) -> int:
        """`x` through a matrix, which only some files have."""
        c, context, weight = self._c, self._context, self._weights.handles.get(f"{name}.weight")
        if weight is None:
            return x
        n_in, n_out = self._weights.shapes[f"{name}.weight"]
        n_rows = c.ggml_nbytes(x) // (4 * n_in)
        if not 1 < n_rows <= _FEW or f"{name}.weight" in self._weights.repacked:
            return int(c.ggml_mul_mat(context, weight, x))
        product = c.ggml_mul_mat(context, weight, c.ggml_reshape_3d(context, x, n_in, 1, n_rows))
        return int(c.ggml_reshape_2d(context, product, n_out, n_rows))

    def _linear(self, name: str, x: int) -> int:
        product, bias = self._product(name, x), self._weights.handles.get(f"{name}.bias")
        return product if bias is None else self._c.ggml_add(self._context, product, bias)

    def _layer_norm(self, name: str, x: int, epsilon: float) -> int:
        c, context, handles = self._c, self._context, self._weights.handles
        x = c.ggml_mul(context, c.ggml_norm(context, x, epsilon), handles[f"{name}.weight"])
        return int(c.ggml_add(context, x, handles[f"{name}.bias"]))


class GraphStore:
    """Graphs by their size, the most recently used ones, as far as they fit `max_bytes`."""

    def __init__(self, build: Callable[[GraphSize], Graph], max_bytes: int) -> None:
        self._build, self._max_bytes = build, max_bytes
        self._graphs: OrderedDict[GraphSize, Graph] = OrderedDict()

    def get(self, size: GraphSize) -> Graph:
        """The graph of that size, built where it is not there yet.

        Raises:
            ComputeError: there is too little memory for it.
        """
        graph = self._graphs.get(size)
        if graph is None:
            graph = self._graphs[size] = self._build(size)
            while len(self._graphs) > 1 and sum(each.n_bytes for each in self._graphs.values()) > self._max_bytes:
                self._graphs.popitem(last=False)[1].close()
        self._graphs.move_to_end(size)
        return graph

    def close(self) -> None:
        """Free all of them."""
        while self._graphs:
            self._graphs.popitem()[1].close()
