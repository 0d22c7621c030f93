"""OPT's computation as a ggml graph, for one shape of input: built and given memory once, run any number of times.

Letters in comments: T ids of this call, P positions that attention sees, H heads, D a head's width. ggml names a
tensor's lengths from the innermost, so a matrix of T rows of `width` is (width, T).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tinydispatch.ggml import bindings
from tinydispatch.ggml.bindings import InitParams
from tinydispatch.ggml.opt_shape import OptShape
from tinydispatch.ggml.runtime import Logits

# Tensors that a layer makes at most, views included, and those outside of layers.
_LAYER_TENSORS, _OTHER_TENSORS = 48, 32


@dataclass(frozen=True)
class CacheTensors:
    """Keys and values of each layer, (width, n_cells) each; `item_bytes` is the size of one number."""

    keys: tuple[int, ...]
    values: tuple[int, ...]
    item_bytes: int


@dataclass(frozen=True)
class GraphSize:
    """`n_ids` new ids whose attention sees the first `n_cells` of the cache; logits of each id, or of the last only."""

    n_ids: int
    n_cells: int
    has_every_logit: bool


class OptGraph:
    """The graph of one size. It holds its own memory for intermediate results.

    Raises:
        RuntimeError: there is too little memory for them.
    """

    def __init__(
        self, c: Any, backend: int, shape: OptShape, weights: dict[str, int], cache: CacheTensors, size: GraphSize
    ) -> None:
        self.size = size
        self._c, self._backend, self._shape, self._weights, self._cache = c, backend, shape, weights, cache
        n_tensors = shape.n_layers * _LAYER_TENSORS + _OTHER_TENSORS
        memory = n_tensors * c.ggml_tensor_overhead() + c.ggml_graph_overhead_custom(n_tensors, False)
        self._context: int | None = c.ggml_init(InitParams(memory, None, True))
        self._graph = c.ggml_new_graph_custom(self._context, n_tensors, False)
        self._ids = self._input(bindings.GGML_TYPE_I32, size.n_ids)
        self._positions = self._input(bindings.GGML_TYPE_I32, size.n_ids)
        self._cells = self._input(bindings.GGML_TYPE_I64, size.n_ids)
        self._mask = self._input(bindings.GGML_TYPE_F16, size.n_cells, size.n_ids)
        self._logits = self._build()
        c.ggml_set_output(self._logits)
        c.ggml_build_forward_expand(self._graph, self._logits)
        self._allocator: int | None = c.ggml_gallocr_new(c.ggml_backend_get_default_buffer_type(backend))
        if not c.ggml_gallocr_alloc_graph(self._allocator, self._graph):
            self.close()
            raise RuntimeError(f"too little memory for a graph of {size.n_ids} ids over {size.n_cells} positions")

    def run(self, ids: npt.NDArray[np.int32], first: int) -> Logits:
        """Compute `ids` at positions from `first`; logits of shape (T or 1, vocabulary), a copy.

        Raises:
            RuntimeError: ggml could not compute.
        """
        positions = np.arange(first, first + self.size.n_ids)
        seen = np.arange(self.size.n_cells) <= positions[:, np.newaxis]
        self._set(self._ids, ids.astype(np.int32))
        self._set(self._positions, positions.astype(np.int32))
        self._set(self._cells, positions.astype(np.int64))
        self._set(self._mask, np.where(seen, np.float16(0), np.float16(-np.inf)))
        status = self._c.ggml_backend_graph_compute(self._backend, self._graph)
        if status:
            raise RuntimeError(f"ggml could not compute {self.size.n_ids} ids: status {status}")
        rows = self.size.n_ids if self.size.has_every_logit else 1
        logits = np.empty((rows, self._shape.n_vocab), dtype=np.float32)
        self._c.ggml_backend_tensor_get(self._logits, logits.ctypes.data, 0, logits.nbytes)
        return logits

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        if self._allocator:
            self._c.ggml_gallocr_free(self._allocator)
        if self._context:
            self._c.ggml_free(self._context)
        self._allocator = self._context = None

    def _input(self, type_id: int, *lengths: int) -> int:
        new = self._c.ggml_new_tensor_1d if len(lengths) == 1 else self._c.ggml_new_tensor_2d
        tensor: int = new(self._context, type_id, *lengths)
        self._c.ggml_set_input(tensor)
        return tensor

    def _set(self, tensor: int, values: npt.NDArray[Any]) -> None:
        self._c.ggml_backend_tensor_set(tensor, values.ctypes.data, 0, values.nbytes)

    def _build(self) -> int:
        c, context, shape = self._c, self._context, self._shape
        x = c.ggml_get_rows(context, self._weights["token_embd.weight"], self._ids)
        x = self._product("project_in", x)
        x = c.ggml_add(context, x, c.ggml_get_rows(context, self._weights["position_embd.weight"], self._positions))
        for layer in range(shape.n_layers):
            x = self._layer(x, layer)  # (width, T), after the last layer (width, outputs)
        if shape.has_final_norm:
            x = self._norm("output_norm", x)
        x = self._product("project_out", x)
        head = self._weights.get("output.weight", self._weights["token_embd.weight"])
        logits: int = c.ggml_mul_mat(context, head, x)
        return logits

    def _layer(self, x: int, layer: int) -> int:
        c, context, prefix = self._c, self._context, f"blk.{layer}."
        first_norm, second_norm = (prefix + name for name in self._shape.norms)
        is_pre_norm = self._shape.is_pre_norm
        attended = self._attention(self._norm(first_norm, x) if is_pre_norm else x, layer)
        if layer == self._shape.n_layers - 1 and not self.size.has_every_logit:
            attended, x = self._last_row(attended), self._last_row(x)
        x = c.ggml_add(context, attended, x)
        if not is_pre_norm:
            x = self._norm(first_norm, x)
        hidden = self._linear(prefix + "ffn_up", self._norm(second_norm, x) if is_pre_norm else x)
        hidden = (c.ggml_relu if self._shape.activation == "relu" else c.ggml_gelu_erf)(context, hidden)
        x = c.ggml_add(context, self._linear(prefix + "ffn_down", hidden), x)
        return x if is_pre_norm else self._norm(second_norm, x)

    def _attention(self, x: int, layer: int) -> int:
        c, context, prefix, size = self._c, self._context, f"blk.{layer}.", self.size
        width, n_heads, head = self._shape.width, self._shape.n_heads, self._shape.head_width
        for name, cache in (("attn_k", self._cache.keys[layer]), ("attn_v", self._cache.values[layer])):
            # Expanded now, so that they are written before attention reads the cache.
            written = c.ggml_set_rows(context, cache, self._linear(prefix + name, x), self._cells)
            c.ggml_build_forward_expand(self._graph, written)
        query = c.ggml_reshape_3d(context, self._linear(prefix + "attn_q", x), head, n_heads, size.n_ids)
        query = c.ggml_permute(context, query, 0, 2, 1, 3)  # (D, T, H)
        item = self._cache.item_bytes
        keys, values = (  # (D, P, H)
            c.ggml_view_3d(context, cache, head, size.n_cells, n_heads, width * item, head * item, 0)
            for cache in (self._cache.keys[layer], self._cache.values[layer])
        )
        scale = head**-0.5
        attended = c.ggml_flash_attn_ext(context, query, keys, values, self._mask, scale, 0.0, 0.0)  # (D, H, T)
        return self._linear(prefix + "attn_output", c.ggml_reshape_2d(context, attended, width, size.n_ids))

    def _last_row(self, x: int) -> int:
        row_bytes = 4 * self._shape.width
        view: int = self._c.ggml_view_2d(
            self._context, x, self._shape.width, 1, row_bytes, (self.size.n_ids - 1) * row_bytes
        )
        return view

    def _linear(self, name: str, x: int) -> int:
        product: int = self._c.ggml_mul_mat(self._context, self._weights[f"{name}.weight"], x)
        bias = self._weights.get(f"{name}.bias")
        return product if bias is None else self._c.ggml_add(self._context, product, bias)

    def _norm(self, name: str, x: int) -> int:
        c, context = self._c, self._context
        x = c.ggml_mul(context, c.ggml_norm(context, x, self._shape.epsilon), self._weights[f"{name}.weight"])
        return int(c.ggml_add(context, x, self._weights[f"{name}.bias"]))

    def _product(self, name: str, x: int) -> int:
        """`x` through a matrix that only some files have."""
        weight = self._weights.get(f"{name}.weight")
        return x if weight is None else int(self._c.ggml_mul_mat(self._context, weight, x))
