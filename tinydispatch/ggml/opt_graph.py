"""OPT's layers, with norms before or after attention, as a ggml graph."""

from __future__ import annotations

from typing import Any

from tinydispatch.ggml.architectures import Activation, Shape
from tinydispatch.ggml.cpu import CpuBackend
from tinydispatch.ggml.graph import Graph, GraphSize
from tinydispatch.ggml.kv_cache import KvCache
from tinydispatch.ggml.weights import MappedWeights


class OptGraph(Graph):
    """OPT of that shape for one size of input."""

    def __init__(
        self, c: Any, backend: CpuBackend, shape: Shape, weights: MappedWeights, cache: KvCache, size: GraphSize
    ) -> None:
        self._shape = shape
        super().__init__(c, backend, weights, cache, size, shape.n_layers)

    def _build(self) -> int:
        c, context, shape = self._c, self._context, self._shape
        x = self._product("project_in", self._rows("token_embd", self._ids))
        x = c.ggml_add(context, x, self._rows("position_embd", self._positions))
        for layer in range(shape.n_layers):
            x = self._layer(x, layer)  # (width, T), after the last layer (width, outputs)
        if shape.has_final_norm:
            x = self._norm("output_norm", x)
        head = "output" if "output.weight" in self._weights.handles else "token_embd"
        return self._product(head, self._product("project_out", x))

    def _layer(self, x: int, layer: int) -> int:
        c, context, prefix = self._c, self._context, f"blk.{layer}."
        first_norm, second_norm = (prefix + name for name in self._shape.norms)
        is_pre_norm = self._shape.is_pre_norm
        normed = self._norm(first_norm, x) if is_pre_norm else x
        query, key, value = (self._linear(f"{prefix}attn_{name}", normed) for name in "qkv")
        attended = self._attention(query, key, value, layer)
        if layer == self._shape.n_layers - 1:
            attended, x = self._outputs(attended), self._outputs(x)
        x = c.ggml_add(context, self._linear(prefix + "attn_output", attended), x)
        if not is_pre_norm:
            x = self._norm(first_norm, x)
        hidden = self._linear(prefix + "ffn_up", self._norm(second_norm, x) if is_pre_norm else x)
        hidden = (c.ggml_relu if self._shape.activation is Activation.RELU else c.ggml_gelu_erf)(context, hidden)
        x = c.ggml_add(context, self._linear(prefix + "ffn_down", hidden), x)
        return x if is_pre_norm else self._norm(second_norm, x)

    def _norm(self, name: str, x: int) -> int:
        return self._layer_norm(name, x, self._shape.epsilon)
