"""Keys and values of every layer, as attention.h reads them."""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

from tinydispatch.ggml.cache import Cache
from tinydispatch.native.bindings import KEY_BLOCK

_ITEM_BYTES = 2


def zeroed(dtype: npt.DTypeLike, *lengths: int, is_large: bool = False) -> npt.NDArray[Any]:
    """An array in fresh pages, which take memory when they are first written to; it begins at a page's start.

    Args:
        is_large: all of it will be written, and read again and again: large pages are asked for.
    """
    found = np.dtype(dtype)
    count = math.prod(lengths)
    memory = mmap.mmap(-1, max(count * found.itemsize, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if is_large and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=found, count=count).reshape(lengths)


class NativeCache(Cache):
    """Keys (layer, head, block, D, `KEY_BLOCK`) and values (layer, head, position, D) in 16-bit floats.

    Raises:
        OSError: there is too little memory.
    """

    def __init__(self, n_layers: int, n_heads: int, head_width: int, n_cells: int) -> None:
        assert not n_cells % KEY_BLOCK, "whole blocks of keys"
        self.item_bytes = _ITEM_BYTES
        self.keys = zeroed(np.float16, n_layers, n_heads, n_cells // KEY_BLOCK, head_width, KEY_BLOCK)
        self.values = zeroed(np.float16, n_layers, n_heads, n_cells, head_width)

    @staticmethod
    def n_bytes(n_layers: int, n_heads: int, head_width: int, n_cells: int) -> int:
        """What a cache of that size takes."""
        return 2 * n_layers * n_heads * head_width * n_cells * _ITEM_BYTES

    def close(self) -> None:
        """Nothing of it belongs to anybody else."""

    def filled(self, n_positions: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Views of the first `n_positions`, of the keys in whole blocks."""
        return self.keys[:, :, : -(-n_positions // KEY_BLOCK)], self.values[:, :, :n_positions]
