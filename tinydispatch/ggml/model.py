"""What every graph shares: a file's vocabulary, a cache of ids, checks before native code, and saved states."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tinydispatch.ggml.bindings import GGML_TYPE_BF16, GGML_TYPE_F16, GGML_TYPE_F32
from tinydispatch.ggml.header import GgufError, GgufHeader, read_header
from tinydispatch.ggml.library import load_library
from tinydispatch.ggml.runtime import Logits
from tinydispatch.ggml.state import StateError, fingerprint, pack_state, unpack_state
from tinydispatch.ggml.vocabulary import Vocabulary

# ggml's threads wait for each other by spinning, after every operation. A model of 5 MB at 2 threads on two busy cores
# decoded a token in 10 to 60 ms, at 1 thread in 2 ms; a second thread has to have enough to do.
_BYTES_PER_THREAD = 64 << 20
# Positions of a model that is given no number: the tools of a few servers fit, and ordinary calls need the smaller one.
DEFAULT_CONTEXT, ORDINARY_CONTEXT = 8192, 2048
_UNQUANTIZED = frozenset({GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16})


def default_threads(n_weight_bytes: int) -> int:
    """Threads for a model of that size: one per 64 MiB of weights, at most the CPUs that this process may run on."""
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(n_cpus, -(-n_weight_bytes // _BYTES_PER_THREAD)))


def is_unquantized(header: GgufHeader) -> bool:
    """Whether all of a file's weights are floats: such a file is there to be exact, and so is its cache."""
    return all(tensor.type_id in _UNQUANTIZED for tensor in header.tensors)


class GgufModel(ABC):
    """One GGUF model with one sequence of cached keys and values; implements `Runtime`.

    A subclass opens the file in `_open` and computes in `_compute`. Not safe for use from two threads at once. Use it
    as a context manager, or call `close`.

    Args:
        n_ctx: positions in the cache, at most as many as the model was made for; a longer prompt is refused. None: up
            to 8,192, of which memory is taken as they are needed; 2,048 where so many would not fit into memory.
        threads: None takes as many as suit the model's size.
        header: what `read_header` read from the file, where the caller has it already.

    Raises:
        GgufError: the file is damaged, foreign, or cannot be run.
        LlamaLibraryError: there is no usable llama.cpp.
    """

    def __init__(
        self, path: Path, n_ctx: int | None = None, threads: int | None = None, *, header: GgufHeader | None = None
    ) -> None:
        if (n_ctx is not None and n_ctx < 1) or (threads is not None and threads < 1):
            raise ValueError(f"n_ctx={n_ctx}, threads={threads}: both must be at least 1")
        self.path = Path(path)
        self.header = header or read_header(self.path)
        if not self.header.architecture or not self.header.tensors:
            raise GgufError(self.path, "holds no model: 'general.architecture' or the tensors are missing")
        self._library = load_library()
        self._c: Any = self._library.c
        self._cached_ids: list[int] = []
        self._is_by_need = n_ctx is None
        n_ctx = DEFAULT_CONTEXT if n_ctx is None else n_ctx
        self._n_ctx, self._max_batch = n_ctx, n_ctx
        self._is_open = True
        self._fingerprint: bytes | None = None
        n_bytes = sum(tensor.n_bytes for tensor in self.header.tensors)
        try:
            self._library.take_errors()
            self._vocabulary = self._open(n_ctx, threads or default_threads(n_bytes))
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _open(self, n_ctx: int, threads: int) -> Vocabulary:
        """Load the file; sets `_n_ctx` and `_max_batch`, the most ids that one `_compute` takes."""

    def _reserve(self, n_positions: int) -> None:  # noqa: B027 (most models need nothing here)
        """Make room for that many positions, at most `n_ctx`, where memory is not simply taken as it is written to.

        Raises:
            ComputeError: there is too little memory; the model stays usable.
        """

    @abstractmethod
    def _compute(self, ids: Sequence[int], wanted: Sequence[int]) -> list[Logits]:
        """Append at most `_max_batch` ids to the native cache; the logits after those at the places `wanted`.

        Each row is a copy of its own. `_cached_ids` still holds what was there before.
        """

    @abstractmethod
    def _cut(self, n_positions: int) -> int:
        """Drop the native cache beyond `n_positions`; how many it holds then, which may be fewer."""

    @abstractmethod
    def _read_cache(self) -> bytes | Sequence[npt.NDArray[Any]]:
        """The native cache's content at the cached positions, as one or in pieces that may be views of it."""

    @abstractmethod
    def _write_cache(self, payload: memoryview, n_positions: int) -> bool:
        """Fill the empty native cache with what `_read_cache` gave; False when it cannot."""

    @abstractmethod
    def _release(self) -> None:
        """Free the native memory, as far as it was taken; called once."""

    @property
    @abstractmethod
    def _cache_kind(self) -> str:
        """Everything but the file that a saved cache's bytes depend on."""

    @property
    def computed_by(self) -> str:
        """What does the work, for a reader."""
        return "llama.cpp"

    def close(self) -> None:
        """Free the native memory; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._cached_ids = []
            self._release()

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
    def n_vocab(self) -> int:
        """How many ids there are, those without a text of their own included."""
        return self._vocabulary.n_vocab

    @property
    def eog_ids(self) -> frozenset[int]:
        """Ids that end a generation."""
        return self._vocabulary.eog_ids

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts of the tokens of type CONTROL."""
        return self._vocabulary.control_tokens

    @property
    def marker_tokens(self) -> frozenset[str]:
        """Texts of the tokens of type USER_DEFINED; llama.cpp makes them of plain text too."""
        return self._vocabulary.marker_tokens

    @property
    def cached_ids(self) -> Sequence[int]:
        """The ids whose keys and values are in the cache, from position 0."""
        return self._cached_ids

    @property
    def eos_id(self) -> int | None:
        """The id that the file names as end of sequence."""
        value = self.metadata("tokenizer.ggml.eos_token_id")
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
        return self._vocabulary.special_token(name)

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Ids of a text, without any added at its ends; `parse_special` turns control tokens' texts into them.

        Raises:
            ValueError: the text holds lone surrogates, which UTF-8 cannot carry.
        """
        self._require_open()
        return self._vocabulary.tokenize(text, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        self._check_ids(ids)
        return self._vocabulary.detokenize(ids)

    def token_bytes(self, token: int) -> bytes:
        """What one id spells; a character may be spread over several ids."""
        self._check_ids([token])
        return self._vocabulary.token_bytes(token)

    def token_texts(self) -> list[bytes]:
        """What every id spells, as `token_bytes` says it, at a fraction of the time."""
        self._require_open()
        return self._vocabulary.token_texts()

    def decode(self, ids: Sequence[int]) -> Logits:
        """Append `ids` to the cache; the logits after the last, shape (vocabulary,).

        Raises:
            ValueError: `ids` is empty, holds an unknown id, or does not fit the cache.
        """
        logits: Logits = self._decode(ids, len(ids) - 1)[-1]
        return logits

    def decode_all(self, ids: Sequence[int], first: int = 0) -> Logits:
        """Append `ids` to the cache; the logits after each of them from index `first` on, shape (rest, vocabulary)."""
        return self._decode(ids, first)

    def _decode(self, ids: Sequence[int], first: int) -> Logits:
        self._check_ids(ids)
        if not ids:
            raise ValueError("nothing to decode: no ids were given")
        if len(self._cached_ids) + len(ids) > self._n_ctx:
            raise ValueError(
                f"{len(self._cached_ids)} cached and {len(ids)} new tokens do not fit the context of {self._n_ctx}"
            )
        self._reserve(len(self._cached_ids) + len(ids))
        rows: list[Logits] = []
        for start in range(0, len(ids), self._max_batch):
            chunk = list(ids[start : start + self._max_batch])
            rows += self._compute(chunk, range(max(first - start, 0), len(chunk)))
            self._cached_ids += chunk
        return np.stack(rows)

    def truncate(self, n_positions: int) -> None:
        """Keep the cache's first `n_positions` and drop the rest.

        Raises:
            ValueError: `n_positions` is negative.
        """
        self._require_open()
        if n_positions < 0:
            raise ValueError(f"cannot keep {n_positions} positions")
        del self._cached_ids[self._cut(min(n_positions, len(self._cached_ids))) :]

    def save_state(self) -> bytes:
        """The cache with its ids; belongs to this very model file and carries a checksum."""
        self._require_open()
        return pack_state(self._owner, self._cached_ids, self._read_cache())

    def load_state(self, state: bytes) -> None:
        """Replace the cache by a saved one; `cached_ids` then says which ids it holds.

        Raises:
            StateError: the state is damaged, of another model, or longer than the cache.
        """
        self._require_open()
        ids, payload = unpack_state(self._owner, state)
        if len(ids) > self._n_ctx:
            raise StateError(f"a saved state of {len(ids)} positions does not fit the context of {self._n_ctx}")
        self.truncate(0)
        self._reserve(len(ids))
        if not self._write_cache(payload, len(ids)):
            self.truncate(0)
            raise StateError(f"{self.path}: the saved state cannot be restored: {self._library.take_errors()}")
        self._cached_ids = ids

    @property
    def _owner(self) -> bytes:
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.header, self._cache_kind)
        return self._fingerprint

    def _require_open(self) -> None:
        if not self._is_open:
            raise ValueError(f"{self.path}: the model is closed")

    def _check_ids(self, ids: Sequence[int]) -> None:
        self._require_open()
        if len(ids) and (min(ids) < 0 or max(ids) >= self.n_vocab):
            raise ValueError(f"ids must be from 0 to {self.n_vocab - 1}; got {min(ids)} to {max(ids)}")
