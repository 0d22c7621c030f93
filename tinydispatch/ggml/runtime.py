"""What a dispatcher needs of a model file that runs; each architecture's graph implements it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


class ComputeError(RuntimeError):
    """Native code could not compute, most often for want of memory; the model stays usable."""


class Runtime(Protocol):
    """One loaded model with one key/value cache; not safe for use from two threads at once."""

    @property
    def n_ctx(self) -> int:
        """How many positions fit the cache."""
        ...

    @property
    def n_vocab(self) -> int:
        """How many ids there are, those without a text of their own included."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that the file carries."""
        ...

    @property
    def eog_ids(self) -> frozenset[int]:
        """Ids that end a generation."""
        ...

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts of tokens that steer the conversation; they must never arise from a user's words."""
        ...

    @property
    def marker_tokens(self) -> frozenset[str]:
        """Texts of the other added tokens, such as call markers: ordinary in a model's own words, not in a user's."""
        ...

    @property
    def cached_ids(self) -> Sequence[int]:
        """The ids whose keys and values are in the cache, from position 0."""
        ...

    def special_token(self, name: str) -> str | None:
        """The text of the token of that role ("bos", "eos"), None when the file names none."""
        ...

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Ids of a text; with `parse_special` the texts of control tokens become those tokens."""
        ...

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """What one id spells; a character may be spread over several ids."""
        ...

    def decode(self, ids: Sequence[int]) -> Logits:
        """Append `ids` to the cache; the logits after the last, shape (vocabulary,).

        Raises:
            ValueError: `ids` is empty, holds an unknown id, or does not fit the cache.
        """
        ...

    def decode_all(self, ids: Sequence[int], first: int = 0) -> Logits:
        """Append `ids` to the cache; the logits after each of them from index `first` on, shape (rest, vocabulary)."""
        ...

    def truncate(self, n_positions: int) -> None:
        """Keep the cache's first `n_positions` and drop the rest."""
        ...

    def save_state(self) -> bytes:
        """The cache with its ids; belongs to this very model file and carries a checksum."""
        ...

    def load_state(self, state: bytes) -> None:
        """Replace the cache by a saved one; `cached_ids` then says which ids it holds.

        Raises:
            StateError: the state is damaged, of another model, or longer than the cache; the cache is then unchanged
                or empty, never half a state.
        """
        ...

    def close(self) -> None:
        """Free the native memory; a second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
