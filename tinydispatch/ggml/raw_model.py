"""What models on graphs of our own share: llama.cpp as the tokenizer, a cache that numpy sees, and the processor."""

from __future__ import annotations

import ctypes
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from tinydispatch.ggml import bindings
from tinydispatch.ggml.bindings import KeyOverride
from tinydispatch.ggml.cpu import CpuBackend
from tinydispatch.ggml.header import GgufError
from tinydispatch.ggml.kv_cache import KvCache
from tinydispatch.ggml.memory import require_memory
from tinydispatch.ggml.model import GgufModel, is_unquantized
from tinydispatch.ggml.vocabulary import Vocabulary
from tinydispatch.ggml.weights import MappedWeights


class RawModel(GgufModel):
    """A model that ggml computes by a graph of ours.

    The cache holds 16-bit numbers, and 32-bit ones where the file's are not quantized: those are there to be exact.
    """

    _tokenizer: int | None = None
    _backend: CpuBackend | None = None
    _weights: MappedWeights | None = None
    _cache: KvCache | None = None

    def _open_vocabulary(self, n_vocab: int, architecture: str | None = None) -> Vocabulary:
        """The file's tokenizer, whose tokens have to be as many as the model's.

        Args:
            architecture: under which llama.cpp loads it, where it does not know the file's own; nothing else is read.
        """
        parameters = self._c.llama_model_default_params()
        parameters.vocab_only = True
        if architecture is not None:
            overrides = (KeyOverride * 2)()
            overrides[0].tag = bindings.KEY_OVERRIDE_TEXT
            overrides[0].key, overrides[0].value.text = b"general.architecture", architecture.encode()
            parameters.kv_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        self._tokenizer = self._c.llama_model_load_from_file(os.fsencode(self.path), parameters)
        if not self._tokenizer:
            reason = self._library.take_errors() or "no reason given"
            raise GgufError(self.path, f"llama.cpp cannot load its tokenizer: {reason}")
        vocabulary = Vocabulary(self._library, self._tokenizer, self.header)
        if vocabulary.n_vocab != n_vocab:
            raise GgufError(self.path, f"llama.cpp reads {vocabulary.n_vocab} tokens, the model has {n_vocab}")
        return vocabulary

    def _make_cache(self, n_layers: int, n_heads: int, head_width: int, n_cells: int) -> KvCache:
        type_id = bindings.GGML_TYPE_F32 if is_unquantized(self.header) else bindings.GGML_TYPE_F16
        size = (type_id, n_layers, n_heads, head_width, n_cells)
        require_memory(self.path, KvCache.n_bytes(*size), self._n_ctx)
        try:
            return KvCache(self._c, *size)
        except OSError as error:
            raise GgufError(self.path, f"too little memory for a cache of {self._n_ctx} positions: {error}") from error

    @abstractmethod
    def _drop_graphs(self) -> None:
        """Free the graphs, which point into cache and weights; `_open` may have ended before there were any."""

    def _release(self) -> None:
        self._drop_graphs()
        for part in (self._cache, self._weights, self._backend):
            if part is not None:
                part.close()
        if self._tokenizer:
            self._c.llama_model_free(self._tokenizer)
        self._cache = self._weights = self._backend = self._tokenizer = None

    def _cut(self, n_positions: int) -> int:
        return n_positions  # what lies beyond is masked, and overwritten by the next ids

    @property
    def _cache_kind(self) -> str:
        assert self._cache is not None
        return f"{self.header.architecture} by heads {self._cache.item_bytes}"

    def _read_cache(self) -> Sequence[npt.NDArray[Any]]:
        assert self._cache is not None
        return self._cache.read(len(self._cached_ids))

    def _write_cache(self, payload: memoryview, n_positions: int) -> bool:
        assert self._cache is not None
        return self._cache.write(payload, n_positions)
