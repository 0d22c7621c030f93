"""A GGUF file loaded by llama.cpp: text to ids, ids to logits, and a cache that can be cut back."""

from __future__ import annotations

import ctypes
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tinydispatch.ggml.header import GgufError, read_header
from tinydispatch.ggml.library import load_library
from tinydispatch.ggml.runtime import Logits

# Set by our converter when the checkpoint's tokenizer normalizes; llama.cpp's own BPE tokenizers never do.
NORMALIZER_KEY = "tinydispatch.tokenizer.normalizer"

_TOKEN_NORMAL, _TOKEN_CONTROL, _TOKEN_USER_DEFINED = 1, 3, 4
_MAX_BATCH = 512
_SEQUENCE = 0


# ggml's threads wait for each other by spinning, after every operation. A model of 5 MB at 2 threads on two busy cores
# decoded a token in 10 to 60 ms, at 1 thread in 2 ms; a second thread has to have enough to do.
_BYTES_PER_THREAD = 64 << 20


def default_threads(n_weight_bytes: int) -> int:
    """Threads for a model of that size: one per 64 MiB of weights, at most the CPUs that this process may run on."""
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(n_cpus, -(-n_weight_bytes // _BYTES_PER_THREAD)))


class LlamaModel:
    """One GGUF model with one sequence of cached keys and values; implements `Runtime`.

    Not safe for use from two threads at once. Use it as a context manager, or call `close`.

    Args:
        n_ctx: positions in the cache, at most as many as the model was made for; a longer prompt is refused.
        threads: None takes as many as suit the model's size.

    Raises:
        GgufError: the file is damaged, foreign, or llama.cpp refuses it.
        LlamaLibraryError: there is no usable llama.cpp.
    """

    def __init__(self, path: Path, n_ctx: int = 2048, threads: int | None = None) -> None:
        if n_ctx < 1 or (threads is not None and threads < 1):
            raise ValueError(f"n_ctx={n_ctx}, threads={threads}: both must be at least 1")
        self.path = Path(path)
        self.header = read_header(self.path)
        if not self.header.architecture or not self.header.tensors:
            raise GgufError(self.path, "holds no model: 'general.architecture' or the tensors are missing")
        self._library = load_library()
        self._c: Any = self._library.c
        self._cached_ids: list[int] = []
        self._model: int | None = None
        self._context: int | None = None
        try:
            self._open(n_ctx, threads or default_threads(sum(tensor.n_bytes for tensor in self.header.tensors)))
        except BaseException:
            self.close()
            raise

    def _open(self, n_ctx: int, threads: int) -> None:
        self._library.take_errors()
        parameters = self._c.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = self._c.llama_model_load_from_file(os.fsencode(self.path), parameters)
        if not self._model:
            raise GgufError(self.path, f"llama.cpp cannot load it: {self._library.take_errors() or 'no reason given'}")
        self._vocab = self._c.llama_model_get_vocab(self._model)
        self.n_vocab = int(self._c.llama_vocab_n_tokens(self._vocab))
        if not self.n_vocab:
            raise GgufError(self.path, "holds no vocabulary")
        n_ctx_train = int(self._c.llama_model_n_ctx_train(self._model))
        n_ctx = min(n_ctx, n_ctx_train) if n_ctx_train > 0 else n_ctx
        context = self._c.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = n_ctx, min(n_ctx, _MAX_BATCH), min(n_ctx, _MAX_BATCH)
        context.n_threads = context.n_threads_batch = threads
        self._context = self._c.llama_init_from_model(self._model, context)
        if not self._context:
            reason = self._library.take_errors() or "not enough memory?"
            raise GgufError(self.path, f"llama.cpp cannot make a context of {n_ctx} positions: {reason}")
        # llama.cpp rounds a context up to its block size; the caller's limit stays what was asked for.
        self._n_ctx = min(n_ctx, int(self._c.llama_n_ctx(self._context)))
        self._n_batch = int(context.n_batch)
        self._memory = self._c.llama_get_memory(self._context)
        self._read_special_tokens()

    def _read_special_tokens(self) -> None:
        tokens: tuple[str, ...] = self.header.metadata.get("tokenizer.ggml.tokens", ())
        types: tuple[int, ...] = self.header.metadata.get("tokenizer.ggml.token_type", ())
        special = [token for token, kind in enumerate(types) if kind != _TOKEN_NORMAL] or range(self.n_vocab)
        named = {self.header.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom")}
        candidates = {*special, *(token for token in named if isinstance(token, int) and token < self.n_vocab)}
        self._eog_ids = frozenset(token for token in candidates if self._c.llama_vocab_is_eog(self._vocab, token))
        typed = list(zip(tokens, types, strict=False))
        self._control_tokens = frozenset(text for text, kind in typed if kind == _TOKEN_CONTROL)
        self._marker_tokens = frozenset(text for text, kind in typed if kind == _TOKEN_USER_DEFINED)

    def close(self) -> None:
        """Free the native memory; a second call does nothing."""
        if self._context:
            self._c.llama_free(self._context)
        if self._model:
            self._c.llama_model_free(self._model)
        self._context = self._model = None
        self._cached_ids = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def n_ctx(self) -> int:
        """How many positions fit the cache."""
        return self._n_ctx

    @property
    def eog_ids(self) -> frozenset[int]:
        """Ids that end a generation."""
        return self._eog_ids

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts of the tokens of type CONTROL."""
        return self._control_tokens

    @property
    def marker_tokens(self) -> frozenset[str]:
        """Texts of the tokens of type USER_DEFINED; llama.cpp makes them of plain text too."""
        return self._marker_tokens

    @property
    def cached_ids(self) -> Sequence[int]:
        """The ids whose keys and values are in the cache, from position 0."""
        return self._cached_ids

    @property
    def eos_id(self) -> int | None:
        """The id that the file names as end of sequence."""
        value = self.header.metadata.get("tokenizer.ggml.eos_token_id")
        return value if isinstance(value, int) else None

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that the file carries."""
        value = self.metadata("tokenizer.chat_template")
        return value if isinstance(value, str) else None

    def metadata(self, key: str) -> Any:
        """The file's value of that key (arrays as tuples), None when it has none."""
        return self.header.metadata.get(key)

    def special_token(self, name: str) -> str | None:
        """The text of the token of that role ("bos", "eos"), None when the file names none."""
        token = self.metadata(f"tokenizer.ggml.{name}_token_id")
        texts = self.metadata("tokenizer.ggml.tokens") or ()
        return texts[token] if isinstance(token, int) and token < len(texts) else None

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Ids of a text, without any added at its ends; `parse_special` turns control tokens' texts into them.

        Raises:
            ValueError: the text holds lone surrogates, which UTF-8 cannot carry.
        """
        self._require_open()
        if self.metadata(NORMALIZER_KEY) == "NFC":
            text = unicodedata.normalize("NFC", text)
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode at character {error.start}: {error.reason}") from error
        # No token is made of less than a byte, so this never overflows.
        ids = (ctypes.c_int32 * (len(data) + 1))()
        count = self._c.llama_tokenize(self._vocab, data, len(data), ids, len(ids), False, parse_special)
        if count < 0:
            raise ValueError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(ids[:count])

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        self._check_ids(ids)
        return b"".join(self._piece(token) for token in ids).decode("utf-8", "replace")

    def _piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._c.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def decode(self, ids: Sequence[int]) -> Logits:
        """Append `ids` to the cache; the logits after the last, shape (vocabulary,).

        Raises:
            ValueError: `ids` is empty, holds an unknown id, or does not fit the cache.
        """
        logits: Logits = self._decode(ids, every_position=False)[-1]
        return logits

    def decode_all(self, ids: Sequence[int]) -> Logits:
        """Append `ids` to the cache; the logits after each of them, shape (len(ids), vocabulary)."""
        return self._decode(ids, every_position=True)

    def _decode(self, ids: Sequence[int], *, every_position: bool) -> Logits:
        self._check_ids(ids)
        if not ids:
            raise ValueError("nothing to decode: no ids were given")
        if len(self._cached_ids) + len(ids) > self._n_ctx:
            raise ValueError(
                f"{len(self._cached_ids)} cached and {len(ids)} new tokens do not fit the context of {self._n_ctx}"
            )
        rows = []
        batch = self._c.llama_batch_init(self._n_batch, 0, 1)
        try:
            for start in range(0, len(ids), self._n_batch):
                chunk = list(ids[start : start + self._n_batch])
                is_last = start + len(chunk) == len(ids)
                wanted = range(len(chunk)) if every_position else ([len(chunk) - 1] if is_last else [])
                rows += self._decode_chunk(batch, chunk, wanted)
        finally:
            self._c.llama_batch_free(batch)
        return np.stack(rows)

    def _decode_chunk(self, batch: Any, chunk: list[int], wanted: Sequence[int]) -> list[Logits]:
        first = len(self._cached_ids)
        batch.n_tokens = len(chunk)
        for row, token in enumerate(chunk):
            batch.token[row], batch.pos[row] = token, first + row
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, _SEQUENCE
            batch.logits[row] = 0
        for row in wanted:
            batch.logits[row] = 1
        status = self._c.llama_decode(self._context, batch)
        if status:
            self.truncate(first)
            raise RuntimeError(f"{self.path}: llama_decode failed with {status}: {self._library.take_errors()}")
        self._cached_ids += chunk
        # The native buffer is overwritten by the next call, so each row is copied.
        get_logits = self._c.llama_get_logits_ith
        shape = (self.n_vocab,)
        return [np.ctypeslib.as_array(get_logits(self._context, row), shape).copy() for row in wanted]

    def truncate(self, n_positions: int) -> None:
        """Keep the cache's first `n_positions` and drop the rest.

        Raises:
            ValueError: `n_positions` is negative.
        """
        self._require_open()
        if n_positions < 0:
            raise ValueError(f"cannot keep {n_positions} positions")
        if not self._c.llama_memory_seq_rm(self._memory, _SEQUENCE, n_positions, -1):
            # A recurrent state cannot be cut in the middle; dropping all of it always works.
            self._c.llama_memory_seq_rm(self._memory, _SEQUENCE, -1, -1)
            n_positions = 0
        del self._cached_ids[n_positions:]

    def _require_open(self) -> None:
        if not self._context:
            raise ValueError(f"{self.path}: the model is closed")

    def _check_ids(self, ids: Sequence[int]) -> None:
        self._require_open()
        if len(ids) and (min(ids) < 0 or max(ids) >= self.n_vocab):
            raise ValueError(f"ids must be from 0 to {self.n_vocab - 1}; got {min(ids)} to {max(ids)}")
