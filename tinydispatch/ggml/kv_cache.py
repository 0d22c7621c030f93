"""Keys and values of every layer, where numpy and ggml both see them."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from tinydispatch.ggml import bindings
from tinydispatch.ggml.bindings import InitParams
from tinydispatch.ggml.cache import Cache
from tinydispatch.ggml.pages import Pages

_ITEM_BYTES = {bindings.GGML_TYPE_F32: 4, bindings.GGML_TYPE_F16: 2}


class KvCache(Cache):
    """Keys (layer, head, position, D) and values (layer, head x D, position), D being a head's width.

    So laid out, both are read in the order in which they lie. What was never written is zero: attention multiplies
    masked cells by zero, which only finite numbers survive.

    Raises:
        OSError: there is too little memory.
    """

    def __init__(self, c: Any, type_id: int, n_layers: int, n_heads: int, head_width: int, n_cells: int) -> None:
        self._c = c
        self.n_heads, self.head_width, self.n_cells, self.item_bytes = (
            n_heads,
            head_width,
            n_cells,
            _ITEM_BYTES[type_id],
        )
        key_lengths, value_lengths = (n_layers, n_heads, n_cells, head_width), (n_layers, n_heads * head_width, n_cells)
        self._pages = Pages(c, Pages.size(type_id, key_lengths) + Pages.size(type_id, value_lengths))
        self._keys, self._values = self._pages.array(type_id, key_lengths), self._pages.array(type_id, value_lengths)
        self._context: int | None = c.ggml_init(InitParams(2 * n_layers * c.ggml_tensor_overhead(), None, True))
        self.keys = tuple(self._tensor(type_id, array) for array in self._keys)  # (D, P, H) each
        self.values = tuple(self._tensor(type_id, array) for array in self._values)  # (P, H x D)

    @staticmethod
    def n_bytes(type_id: int, n_layers: int, n_heads: int, head_width: int, n_cells: int) -> int:
        """What a cache of that size takes."""
        return 2 * n_layers * n_heads * head_width * n_cells * _ITEM_BYTES[type_id]

    def filled(self, n_positions: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Views of the first `n_positions`."""
        return self._keys[:, :, :n_positions], self._values[:, :, :n_positions]

    def close(self) -> None:
        """Make ggml forget it; a second call does nothing."""
        if self._context:
            self._c.ggml_free(self._context)
        self._context = None
        self._pages.close()

    def _tensor(self, type_id: int, array: npt.NDArray[Any]) -> int:
        new = self._c.ggml_new_tensor_3d if array.ndim == 3 else self._c.ggml_new_tensor_2d
        return self._pages.place(new(self._context, type_id, *reversed(array.shape)), array)
