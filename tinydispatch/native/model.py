"""Llama, Qwen2, Qwen3 and OPT in four to eight bits through the native decoder.

It computes what llama.cpp's graph computes, in the same 8-bit blocks, and differs from it by rounding. An id's logits
are the same to the last bit in whatever batch it comes, with however many threads. llama.cpp serves as the tokenizer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tinydispatch.ggml.architectures import ARCHITECTURES, Rotation, Shape, read_shape
from tinydispatch.ggml.bindings import GGML_TYPE_F16, GGML_TYPE_F32
from tinydispatch.ggml.contents import check_contents, check_vocabulary
from tinydispatch.ggml.header import GgufError, GgufHeader
from tinydispatch.ggml.memory import fits, require_memory
from tinydispatch.ggml.model import ORDINARY_CONTEXT
from tinydispatch.ggml.numbers import check_numbers
from tinydispatch.ggml.raw_model import RawModel
from tinydispatch.ggml.runtime import ComputeError, Logits
from tinydispatch.ggml.vocabulary import Vocabulary
from tinydispatch.native.bindings import BLOCK, FORMATS, KEY_BLOCK, MOST_ROWS, WIDEST, Decoder, Layer
from tinydispatch.native.cache import NativeCache, zeroed
from tinydispatch.native.library import NativeLibrary, find_native
from tinydispatch.native.weights import NativeWeights

# A larger batch is no faster: the weights are read once for each, while a thread multiplies 64 rows by them.
_MAX_BATCH = 64
_ROTATED_AT_ONCE = 2048


def read_native_shape(header: GgufHeader) -> Shape | None:
    """The shape of a file that the decoder computes, None for one that is left to what else computes it.

    Raises:
        GgufError: a file that llama.cpp does not know either contradicts itself.
    """
    architecture = ARCHITECTURES.get(header.architecture)
    if architecture is None or not architecture.is_native:
        return None
    try:
        shape = read_shape(header)
    except GgufError:
        if architecture.is_stock:  # with more in it, or in another form, than the table has
            return None
        raise
    return shape if _fits(header, shape) else None


def _fits(header: GgufHeader, shape: Shape) -> bool:
    for tensor in header.tensors:
        if tensor.name == "position_embd.weight":
            is_known = tensor.type_id in (GGML_TYPE_F32, GGML_TYPE_F16)
        elif len(tensor.shape) == 2:
            is_known = tensor.type_id in FORMATS
        else:
            is_known = tensor.type_id == GGML_TYPE_F32
        if not is_known:
            return False
    return not shape.head_width % WIDEST  # heads are read in whole vectors


class NativeModel(RawModel):
    """A file that `read_native_shape` takes, on a processor that `find_native` has a decoder for."""

    _weights: NativeWeights | None = None
    _cache: NativeCache | None = None
    _native: NativeLibrary
    _decoder: Decoder | None = None
    _rope_base = 0.0
    _n_rotated = 0

    def _open(self, n_ctx: int, threads: int) -> Vocabulary:
        architecture = ARCHITECTURES.get(self.header.architecture)
        is_stock = architecture is not None and architecture.is_stock
        if is_stock:
            check_numbers(self.header)
        native, shape = find_native(), read_native_shape(self.header)
        if native is None or shape is None:
            raise GgufError(self.path, "the native decoder does not compute this file on this processor")
        self._native = native
        (check_contents if is_stock else check_vocabulary)(self.header)
        # llama.cpp loads a tokenizer only under an architecture that it knows.
        vocabulary = self._open_vocabulary(shape.n_vocab, None if is_stock else "gpt2")
        self._n_ctx, self._max_batch = min(n_ctx, shape.n_positions), _MAX_BATCH
        self._allocate(shape, threads)
        return vocabulary

    @property
    def computed_by(self) -> str:
        """The native decoder, for which processors it was compiled."""
        return f"the native decoder ({self._native.variant.name})"

    def _allocate(self, shape: Shape, threads: int) -> None:
        if self._is_by_need and not fits(self._n_bytes(shape)):
            self._n_ctx = min(self._n_ctx, ORDINARY_CONTEXT)
        n_cells = _n_cells(self._n_ctx)
        n_bytes = self._n_bytes(shape)
        require_memory(self.path, n_bytes, self._n_ctx, has_weights=True)
        self._layers = (Layer * shape.n_layers)()
        decoder = Decoder(
            n_layers=shape.n_layers,
            n_heads=shape.n_heads,
            n_key_heads=shape.n_key_heads,
            n_cells=n_cells,
            n_threads=threads,
            is_pre_norm=shape.is_pre_norm,
            is_rms=shape.architecture.is_rms,
            activation=shape.activation,
            epsilon=shape.epsilon,
            width=shape.width,
            embedding_width=shape.embedding_width,
            head_width=shape.head_width,
            feed_forward_width=shape.feed_forward_width,
            layers=self._layers,
        )
        try:
            self._cache = NativeCache(shape.n_layers, shape.n_key_heads, shape.head_width, n_cells)
            self._weights = NativeWeights(self._native, self._c, self.header)
            self._arrays = _scratch(shape, n_cells, threads)
        except OSError as error:
            raise GgufError(self.path, f"too little memory for a cache of {self._n_ctx} positions: {error}") from error
        self._weights.fill(decoder, self._layers, shape)
        for layer, keys, values in zip(self._layers, self._cache.keys, self._cache.values, strict=True):
            layer.keys, layer.values = keys.ctypes.data, values.ctypes.data
        embedding, self._positions = (self._weights.table(name) for name in ("token_embd", "position_embd"))
        assert embedding is not None, "every shape has one"
        self._embedding = embedding
        if self._positions is not None:
            self._arrays["placed"] = zeroed(np.float32, _MAX_BATCH, shape.width)
        if shape.architecture.rotation is not Rotation.NONE:
            # Filled as far as positions are used, like the cache.
            self._arrays["rotation"] = zeroed(np.float32, n_cells, 2, shape.head_width // 2)
            self._rope_base = shape.rope_base
        for name, array in self._arrays.items():
            setattr(decoder, name, array.ctypes.data)
        self._decoder = decoder
        if threads > 1:
            decoder.pool = self._native.c.tinydispatch_start_threads(threads, shape.n_layers)
            if not decoder.pool:
                raise ComputeError(f"{self.path}: the system starts no {threads} threads")

    def _compute(self, ids: Sequence[int], wanted: Sequence[int]) -> list[Logits]:
        assert self._decoder is not None
        assert not wanted or wanted[-1] == len(ids) - 1, "logits are wanted of the last ids"
        first = len(self._cached_ids)
        self._embedding.read(ids, self._arrays["embedded"])
        if self._positions is not None:
            self._positions.read(range(first, first + len(ids)), self._arrays["placed"])
        if "rotation" in self._arrays:
            self._rotate(first + len(ids))
        logits = np.empty((len(wanted), self.n_vocab), dtype=np.float32)
        self._native.c.tinydispatch_compute(
            ctypes.byref(self._decoder), len(ids), first, len(wanted), logits.ctypes.data
        )
        return list(logits)

    def _n_bytes(self, shape: Shape) -> int:
        size = (shape.n_layers, shape.n_key_heads, shape.head_width, _n_cells(self._n_ctx))
        return NativeCache.n_bytes(*size) + NativeWeights.n_bytes(self.header)

    def _rotate(self, n_positions: int) -> None:
        """Have the rotations of the first `n_positions`."""
        table = self._arrays["rotation"]
        while self._n_rotated < n_positions:
            end = min(self._n_rotated + _ROTATED_AT_ONCE, len(table))
            table[self._n_rotated : end] = _rotation(self._rope_base, 2 * table.shape[2], range(self._n_rotated, end))
            self._n_rotated = end

    def _stop(self) -> None:
        if self._decoder is not None and self._decoder.pool:
            self._native.c.tinydispatch_stop_threads(self._decoder.pool)
        self._decoder = None

    @property
    def _cache_kind(self) -> str:
        return f"{self.header.architecture} in blocks of {KEY_BLOCK}"


def _scratch(shape: Shape, n_cells: int, threads: int) -> dict[str, npt.NDArray[Any]]:
    """Memory for one batch, by the names that `Decoder` has for it."""
    heads, key_heads = shape.n_heads * shape.head_width, shape.n_key_heads * shape.head_width
    widest = max(shape.width, shape.embedding_width, shape.feed_forward_width, heads)
    n_blocks = widest // BLOCK
    return {
        "embedded": zeroed(np.float32, _MAX_BATCH, shape.embedding_width),
        "stream": zeroed(np.float32, _MAX_BATCH, shape.width),
        "query": zeroed(np.float32, _MAX_BATCH, heads),
        "key": zeroed(np.float32, _MAX_BATCH, key_heads),
        "value": zeroed(np.float32, _MAX_BATCH, key_heads),
        "attended": zeroed(np.float32, _MAX_BATCH, heads),
        "hidden": zeroed(np.float32, _MAX_BATCH, widest),
        "gate": zeroed(np.float32, _MAX_BATCH, widest),
        "scores": zeroed(np.float32, threads, MOST_ROWS, n_cells),
        "quants": zeroed(np.int8, _MAX_BATCH, widest),
        "quant_scales": zeroed(np.float32, _MAX_BATCH, n_blocks),
        "quant_sums": zeroed(np.int32, _MAX_BATCH, 2 * n_blocks),
    }


def _n_cells(n_ctx: int) -> int:
    """Positions in whole blocks of keys."""
    return -(-n_ctx // KEY_BLOCK) * KEY_BLOCK


def _rotation(base: float, width: int, positions: range) -> npt.NDArray[np.float32]:
    """Cosines and sines of the positions' angles, (positions, 2, width / 2), rounded once."""
    frequencies = base ** (-np.arange(0, width, 2) / width)
    angles = np.array(positions)[:, np.newaxis] * frequencies
    return np.ascontiguousarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), dtype=np.float32)
