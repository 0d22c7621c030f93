"""Qwen3's computation as a ggml graph for one size of input, built once and run any number of times.

llama.cpp builds its graph anew whenever the number of ids changes, which it does at almost every step of a call. Here a
graph writes to another part of the cache by moving an address, and the last layer computes only the rows whose logits
are wanted.

Letters in comments: T ids of this call, R of them with logits, P positions that attention sees, D a head's width, K
heads of keys and values, G query heads for each of these. ggml names a tensor's lengths from the innermost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tinydispatch.ggml.bindings import GGML_TYPE_F16, GGML_TYPE_F32, GGML_TYPE_I32, InitParams
from tinydispatch.ggml.kv_cache import KvCache
from tinydispatch.ggml.pages import Address, Pages
from tinydispatch.ggml.qwen_shape import QwenShape
from tinydispatch.ggml.runtime import ComputeError, Logits

# Tensors that a layer makes at most, views included, and those outside of layers.
_LAYER_TENSORS, _OTHER_TENSORS = 56, 32
# Up to so many ids are multiplied one by one.
_FEW = 4
_NEOX = 2  # halves of a head are rotated against each other
_BYTES = {GGML_TYPE_F32: 4, GGML_TYPE_F16: 2}


@dataclass(frozen=True)
class GraphSize:
    """`n_ids` new ids whose attention sees the first `n_cells` of the cache; logits after `n_rows` of them."""

    n_ids: int
    n_cells: int
    n_rows: int

    def waste(self, larger: GraphSize) -> float:
        """What a larger graph computes for nothing, in ids; a row of logits is a part of one, so is its attention."""
        n_cells = (larger.n_cells - self.n_cells) / larger.n_cells
        return larger.n_ids - self.n_ids + (larger.n_rows - self.n_rows) / 8 + n_cells * larger.n_ids / 2


@dataclass(frozen=True)
class GraphOptions:
    """`pointer` is where a tensor holds its address. `multiplies_rows`: a matrix times a few ids is taken id by id.

    ggml's product of matrices is made for many columns. With two it takes twice as long as with one; by single columns
    it reads the matrix once, too, and where that is what takes long, it takes as long as with one.
    """

    pointer: int
    multiplies_rows: bool


class _Rows(NamedTuple):
    """Inputs of queries: where each stands, and which cells it may see (P, G x rows)."""

    positions: int
    mask: int
    n: int


class QwenGraph:
    """The graph of one size; intermediate results lie in the allocator's memory, which graphs share.

    Raises:
        ComputeError: there is too little memory for them.
    """

    def __init__(
        self,
        c: Any,
        allocator: int,
        shape: QwenShape,
        weights: dict[str, int],
        cache: KvCache,
        size: GraphSize,
        options: GraphOptions,
    ) -> None:
        self.size, self._c, self._shape, self._weights, self._cache = size, c, shape, weights, cache
        self._lengths, self._multiplies_rows = dict(shape.tensors()), options.multiplies_rows
        n_tensors = shape.n_layers * _LAYER_TENSORS + _OTHER_TENSORS
        memory = n_tensors * c.ggml_tensor_overhead() + c.ggml_graph_overhead_custom(n_tensors, False)
        self._context: int | None = c.ggml_init(InitParams(memory, None, True))
        self.handle: int = c.ggml_new_graph_custom(self._context, n_tensors, False)
        self._arrays(shape.group, shape.n_vocab)
        self._keys_written: list[int] = []
        self._values_written: list[int] = []
        self._build()
        if not c.ggml_gallocr_alloc_graph(allocator, self.handle):
            self.close()
            raise ComputeError(f"too little memory to compute {size.n_ids} ids at once")
        self._moved = [
            *((Address(tensor, options.pointer), shape.head_width * cache.item_bytes) for tensor in self._keys_written),
            *((Address(tensor, options.pointer), cache.item_bytes) for tensor in self._values_written),
        ]

    def set(self, ids: npt.NDArray[np.int32], first: int) -> None:
        """Take ids that come after `first` others; they may be fewer than the graph has room for."""
        n_given, size, group = len(ids), self.size, self._shape.group
        self._ids[:n_given] = ids
        self._ids[n_given:] = 0
        self._positions[:] = np.arange(first, first + size.n_ids, dtype=np.int32)
        # Every id sees what came before all of them, and of these the ones up to itself.
        self._mask[:, :first] = 0
        self._mask[:, first:] = -np.inf
        self._mask[:, first : first + size.n_ids] = self._triangle[:, : size.n_cells - first]
        if 0 < size.n_rows < size.n_ids:
            self._outputs[:] = np.maximum(np.arange(n_given - size.n_rows, n_given, dtype=np.int32), 0)
            self._output_positions[:] = self._outputs + first
            seen = self._mask.reshape(size.n_ids, group, size.n_cells)
            self._output_mask.reshape(size.n_rows, group, size.n_cells)[:] = seen[self._outputs]
        for address, stride in self._moved:
            address.move(first * stride)

    def logits(self, n_given: int, n_wanted: int) -> Logits:
        """A copy of the logits after the last `n_wanted` of the ids that `set` was given: (n_wanted, vocabulary)."""
        end = n_given if self.size.n_rows == self.size.n_ids else self.size.n_rows
        return self._logits[end - n_wanted : end].copy()

    def close(self) -> None:
        """Free the graph; a second call does nothing."""
        if self._context:
            self._c.ggml_free(self._context)
        self._context = None
        self._pages.close()
        self._moved = []

    def _arrays(self, group: int, n_vocab: int) -> None:
        """The inputs and the logits, in memory of our own."""
        size = self.size
        lengths = {
            "ids": (GGML_TYPE_I32, (size.n_ids,)),
            "positions": (GGML_TYPE_I32, (size.n_ids,)),
            "mask": (GGML_TYPE_F32, (size.n_ids * group, size.n_cells)),
            "outputs": (GGML_TYPE_I32, (size.n_rows,)),
            "output_positions": (GGML_TYPE_I32, (size.n_rows,)),
            "output_mask": (GGML_TYPE_F32, (size.n_rows * group, size.n_cells)),
            "logits": (GGML_TYPE_F32, (size.n_rows, n_vocab)),
        }
        self._pages = Pages(self._c, sum(Pages.size(*entry) for entry in lengths.values()))
        arrays = {name: self._pages.array(*entry) for name, entry in lengths.items()}
        self._ids, self._positions, self._mask = arrays["ids"], arrays["positions"], arrays["mask"]
        self._outputs, self._output_positions = arrays["outputs"], arrays["output_positions"]
        self._output_mask, self._logits = arrays["output_mask"], arrays["logits"]
        is_seen = np.tri(size.n_ids, dtype=np.bool_).repeat(group, axis=0)
        self._triangle = np.where(is_seen, np.float32(0), np.float32(-np.inf))

    def _input(self, array: npt.NDArray[Any]) -> int:
        type_id = GGML_TYPE_I32 if array.dtype == np.int32 else GGML_TYPE_F32
        new = self._c.ggml_new_tensor_1d if array.ndim == 1 else self._c.ggml_new_tensor_2d
        return self._pages.place(new(self._context, type_id, *reversed(array.shape)), array)

    def _build(self) -> None:
        c, context, shape, size = self._c, self._context, self._shape, self.size
        every = _Rows(self._input(self._positions), self._input(self._mask), size.n_ids)
        x = c.ggml_get_rows(context, self._weights["token_embd.weight"], self._input(self._ids))  # (width, T)
        for layer in range(shape.n_layers - 1):
            normed = self._norm(f"blk.{layer}.attn_norm", x)
            self._write_cache(normed, layer, every)
            x = self._rest(x, normed, layer, every)
        layer = shape.n_layers - 1
        normed = self._norm(f"blk.{layer}.attn_norm", x)
        self._write_cache(normed, layer, every)
        if not size.n_rows:
            return
        rows = every
        if size.n_rows < size.n_ids:
            rows = _Rows(self._input(self._output_positions), self._input(self._output_mask), size.n_rows)
            outputs = self._input(self._outputs)
            x, normed = (c.ggml_get_rows(context, tensor, outputs) for tensor in (x, normed))  # (width, R)
        x = self._norm("output_norm", self._rest(x, normed, layer, rows))
        head = "output" if "output.weight" in self._weights else "token_embd"
        logits = self._product(head, x, rows.n)
        # The tensor that is computed may be another's view.
        c.ggml_build_forward_expand(self.handle, c.ggml_cpy(context, logits, self._input(self._logits)))

    def _write_cache(self, normed: int, layer: int, rows: _Rows) -> None:
        c, context, shape, n_cells, prefix = self._c, self._context, self._shape, self._cache.n_cells, f"blk.{layer}."
        item, head, n_heads = self._cache.item_bytes, shape.head_width, shape.n_key_heads
        keys = self._rotated(prefix + "attn_k", normed, n_heads, rows)  # (D, K, T)
        cache = self._cache.keys[layer]
        place = c.ggml_view_3d(context, cache, head, rows.n, n_heads, head * item, n_cells * head * item, 0)
        self._keys_written.append(c.ggml_cpy(context, c.ggml_permute(context, keys, 0, 2, 1, 3), place))
        values = c.ggml_transpose(context, self._product(prefix + "attn_v", normed, rows.n))  # (T, K x D)
        cache = self._cache.values[layer]
        place = c.ggml_view_2d(context, cache, rows.n, n_heads * head, n_cells * item, 0)
        self._values_written.append(c.ggml_cpy(context, values, place))
        # Expanded now, so that they are written before attention reads the cache.
        for written in (self._keys_written[-1], self._values_written[-1]):
            c.ggml_build_forward_expand(self.handle, written)

    def _rest(self, x: int, normed: int, layer: int, rows: _Rows) -> int:
        """What a layer makes of its rows `x`, whose keys and values are in the cache already."""
        c, context, prefix = self._c, self._context, f"blk.{layer}."
        attended = self._product(prefix + "attn_output", self._attention(normed, layer, rows), rows.n)
        x = c.ggml_add(context, attended, x)
        normed = self._norm(prefix + "ffn_norm", x)
        gate, up = (self._product(prefix + name, normed, rows.n) for name in ("ffn_gate", "ffn_up"))
        hidden = self._product(prefix + "ffn_down", c.ggml_swiglu_split(context, gate, up), rows.n)
        return int(c.ggml_add(context, hidden, x))

    def _attention(self, normed: int, layer: int, rows: _Rows) -> int:
        c, context, shape, n, n_cells = self._c, self._context, self._shape, rows.n, self._cache.n_cells
        head, n_heads, group, item = shape.head_width, shape.n_key_heads, shape.group, self._cache.item_bytes
        queries = self._rotated(f"blk.{layer}.attn_q", normed, shape.n_heads, rows)  # (D, G x K, T)
        # Queries that share a head of keys become rows of one product, so that the keys are read once.
        queries = c.ggml_reshape_4d(context, queries, head, group, n_heads, n)
        queries = c.ggml_cont_3d(context, c.ggml_permute(context, queries, 0, 1, 3, 2), head, group * n, n_heads)
        view, seen = c.ggml_view_3d, self.size.n_cells
        keys = view(context, self._cache.keys[layer], head, seen, n_heads, head * item, n_cells * head * item, 0)
        values = self._cache.values[layer]
        values = view(context, values, seen, head, n_heads, n_cells * item, n_cells * head * item, 0)
        scores = c.ggml_mul_mat(context, keys, queries)  # (P, G x T, K)
        scores = c.ggml_soft_max_ext(context, scores, rows.mask, head**-0.5, 0.0)
        mixed = c.ggml_mul_mat(context, values, scores)  # (D, G x T, K)
        mixed = c.ggml_reshape_4d(context, mixed, head, group, n, n_heads)
        return int(c.ggml_cont_2d(context, c.ggml_permute(context, mixed, 0, 1, 3, 2), shape.n_heads * head, n))

    def _rotated(self, name: str, normed: int, n_heads: int, rows: _Rows) -> int:
        """Queries or keys, each head normed and turned by its position: (D, heads, rows)."""
        c, shape = self._c, self._shape
        heads = c.ggml_reshape_3d(self._context, self._product(name, normed, rows.n), shape.head_width, n_heads, rows.n)
        heads = self._norm(f"{name}_norm", heads)
        plain = (shape.head_width, _NEOX, shape.n_positions, shape.rope_base, 1.0, 0.0, 1.0, 32.0, 1.0)
        return int(c.ggml_rope_ext(self._context, heads, rows.positions, None, *plain))

    def _norm(self, name: str, x: int) -> int:
        normed = self._c.ggml_rms_norm(self._context, x, self._shape.epsilon)
        return int(self._c.ggml_mul(self._context, normed, self._weights[f"{name}.weight"]))

    def _product(self, name: str, x: int, n_rows: int) -> int:
        c, context, weight = self._c, self._context, self._weights[f"{name}.weight"]
        if not self._multiplies_rows or not 1 < n_rows <= _FEW:
            return int(c.ggml_mul_mat(context, weight, x))
        n_in, n_out = self._lengths["token_embd.weight" if name == "output" else f"{name}.weight"]
        product = c.ggml_mul_mat(context, weight, c.ggml_reshape_3d(context, x, n_in, 1, n_rows))
        return int(c.ggml_reshape_2d(context, product, n_out, n_rows))
