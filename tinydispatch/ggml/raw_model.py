"""What models share that llama.cpp does not compute: llama.cpp as the tokenizer, and a cache that numpy sees."""

from __future__ import annotations

import ctypes
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy.typing as npt

from tinydispatch.ggml import bindings
from tinydispatch.ggml.bindings import KeyOverride
from tinydispatch.ggml.cache import Cache
from tinydispatch.ggml.header import GgufError
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.vocabulary import Vocabulary


class Part(Protocol):
    """What a model opens, and closes again."""

    def close(self) -> None:
        """Free it; a second call does nothing."""
        ...


class RawModel(GgufModel):
    """A model whose weights and cache are ours."""

    _tokenizer: int | None = None
    _weights: Part | None = None
    _cache: Cache | None = None

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

    @abstractmethod
    def _stop(self) -> None:
        """Free what points into cache and weights, as far as there is any."""

    def _release(self) -> None:
        self._stop()
        for part in (self._cache, self._weights):
            if part is not None:
                part.close()
        if self._tokenizer:
            self._c.llama_model_free(self._tokenizer)
        self._cache = self._weights = self._tokenizer = None

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
