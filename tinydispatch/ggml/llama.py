"""A GGUF file whose graph llama.cpp itself knows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from tinydispatch.ggml.bindings import GGML_TYPE_F16, GGML_TYPE_F32
from tinydispatch.ggml.contents import check_contents
from tinydispatch.ggml.header import GgufError
from tinydispatch.ggml.memory import cache_bytes, fits, require_memory
from tinydispatch.ggml.model import ORDINARY_CONTEXT, GgufModel, is_unquantized
from tinydispatch.ggml.numbers import check_numbers
from tinydispatch.ggml.runtime import ComputeError, Logits
from tinydispatch.ggml.vocabulary import Vocabulary

_MAX_BATCH = 512
_SEQUENCE = 0
# On a CPU, llama.cpp's flash attention is faster for a long prompt, which is computed once and kept, and slower for the
# few ids at a time that calls consist of. Without it the scores of a batch are kept whole: 4 bytes a position and head.
_NO_FLASH, _LLAMA_CPPS_CHOICE = 0, -1
SHORT_CONTEXT = 4096


class LlamaModel(GgufModel):
    """A model that llama.cpp computes.

    `flash_attention` is 0 for off, 1 for on, None for off in contexts as short as a dispatcher's. `cache_type` are the
    numbers in which keys and values are kept, None for 16 bits, and for 32 where the file's own are not quantized: such
    a file is there to be exact. `python -m scripts.bench_attention` compares.
    """

    flash_attention: ClassVar[int | None] = None
    cache_type: ClassVar[int | None] = None

    _flash = 0
    _kept_as = GGML_TYPE_F16
    _model: int | None = None
    _context: int | None = None
    _batch: Any = None

    def _open(self, n_ctx: int, threads: int) -> Vocabulary:
        check_numbers(self.header)
        check_contents(self.header)
        kept = GGML_TYPE_F32 if is_unquantized(self.header) else GGML_TYPE_F16
        self._kept_as = kept if self.cache_type is None else self.cache_type
        item_bytes = 4 if self._kept_as == GGML_TYPE_F32 else 2
        self._bytes_of = partial(cache_bytes, self.header, item_bytes=item_bytes)
        if self._is_by_need and not fits(self._bytes_of(n_ctx)):
            n_ctx = min(n_ctx, ORDINARY_CONTEXT)
        n_cells = min(n_ctx, ORDINARY_CONTEXT) if self._is_by_need else n_ctx
        require_memory(self.path, self._bytes_of(n_cells), n_cells)
        parameters = self._c.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = self._c.llama_model_load_from_file(os.fsencode(self.path), parameters)
        if not self._model:
            raise GgufError(self.path, f"llama.cpp cannot load it: {self._library.take_errors() or 'no reason given'}")
        vocabulary = Vocabulary(self._library, self._model, self.header)
        n_ctx_train = int(self._c.llama_model_n_ctx_train(self._model))
        self._n_ctx = min(n_ctx, n_ctx_train) if n_ctx_train > 0 else n_ctx
        self._threads = threads
        self._make_context(min(n_cells, self._n_ctx))
        self._batch = self._c.llama_batch_init(self._max_batch, 0, 1)
        return vocabulary

    def _make_context(self, n_ctx: int) -> None:
        context = self._c.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = n_ctx, min(n_ctx, _MAX_BATCH), min(n_ctx, _MAX_BATCH)
        context.n_threads = context.n_threads_batch = self._threads
        short = _NO_FLASH if n_ctx <= SHORT_CONTEXT else _LLAMA_CPPS_CHOICE
        self._flash = short if self.flash_attention is None else self.flash_attention
        context.flash_attn_type = self._flash
        context.type_k = context.type_v = self._kept_as
        self._context = self._c.llama_init_from_model(self._model, context)
        if not self._context:
            reason = self._library.take_errors() or "not enough memory?"
            raise GgufError(self.path, f"llama.cpp cannot make a context of {n_ctx} positions: {reason}")
        # llama.cpp rounds a context up to its block size; the caller's limit stays what was asked for.
        self._n_cells = min(n_ctx, int(self._c.llama_n_ctx(self._context)))
        self._n_ctx = self._n_ctx if self._is_by_need else self._n_cells
        self._max_batch = int(context.n_batch)
        self._memory = self._c.llama_get_memory(self._context)
        self._fingerprint = None  # attention, and with it a kept state, may be of another kind now

    def _reserve(self, n_positions: int) -> None:
        before = self._n_cells
        if n_positions <= before:
            return
        wanted = min(1 << (n_positions - 1).bit_length(), self._n_ctx)
        if not fits(self._bytes_of(wanted) - self._bytes_of(before)):
            megabytes = self._bytes_of(wanted) / 1e6
            raise ComputeError(f"{self.path}: too little memory for {wanted} positions, which take {megabytes:.0f} MB")
        ids, self._cached_ids = self._cached_ids, []
        self._c.llama_free(self._context)
        try:
            self._make_context(wanted)
        except GgufError as error:
            self._make_context(before)
            raise ComputeError(str(error)) from error
        for start in range(0, len(ids), self._max_batch):
            chunk = ids[start : start + self._max_batch]
            self._compute(chunk, ())
            self._cached_ids += chunk

    def _release(self) -> None:
        if self._batch is not None:
            self._c.llama_batch_free(self._batch)
        if self._context:
            self._c.llama_free(self._context)
        if self._model:
            self._c.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    def _compute(self, ids: Sequence[int], wanted: Sequence[int]) -> list[Logits]:
        batch, first = self._batch, len(self._cached_ids)
        batch.n_tokens = len(ids)
        for row, token in enumerate(ids):
            batch.token[row], batch.pos[row] = token, first + row
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, _SEQUENCE
            batch.logits[row] = 0
        for row in wanted:
            batch.logits[row] = 1
        status = self._c.llama_decode(self._context, batch)
        if status:
            self.truncate(first)
            raise ComputeError(f"{self.path}: llama_decode failed with {status}: {self._library.take_errors()}")
        # The native buffer is overwritten by the next call, so each row is copied.
        get_logits = self._c.llama_get_logits_ith
        shape = (self.n_vocab,)
        return [np.ctypeslib.as_array(get_logits(self._context, row), shape).copy() for row in wanted]

    def _cut(self, n_positions: int) -> int:
        if self._c.llama_memory_seq_rm(self._memory, _SEQUENCE, n_positions, -1):
            return n_positions
        # A recurrent state cannot be cut in the middle; dropping all of it always works.
        self._c.llama_memory_seq_rm(self._memory, _SEQUENCE, -1, -1)
        return 0

    @property
    def _cache_kind(self) -> str:
        # Without flash attention the values are kept transposed.
        return f"llama {self._library.version} type {self._kept_as} flash {self._flash}"

    def _read_cache(self) -> bytes:
        size = int(self._c.llama_state_seq_get_size(self._context, _SEQUENCE))
        buffer = np.empty(size, dtype=np.uint8)
        written = int(self._c.llama_state_seq_get_data(self._context, buffer.ctypes.data, size, _SEQUENCE))
        assert written <= size, f"llama.cpp wrote {written} bytes of state into {size}"
        return buffer[:written].tobytes()

    def _write_cache(self, payload: memoryview, n_positions: int) -> bool:
        if not n_positions:
            return True
        source = np.frombuffer(payload, dtype=np.uint8)
        read = self._c.llama_state_seq_set_data(self._context, source.ctypes.data, source.size, _SEQUENCE)
        return int(read) == source.size
