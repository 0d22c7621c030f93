"""A transformers model as a `Runtime`, so that the product's engine decodes a checkpoint as it decodes a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from transformers import DynamicCache

from tinydispatch.formats import default_chat_template
from tinydispatch.ggml.runtime import Logits
from tinydispatch.ggml.state import StateError


class TorchRuntime:
    """One model with its tokenizer and one sequence of keys and values; implements `Runtime`.

    Only for models whose every layer keeps all keys and values (`BatchedGreedy.can_decode`) and whose tokenizer is a
    byte-level BPE. States are neither saved nor loaded.

    Args:
        eog_ids: any of these ends a reply.
        n_ctx: positions of prompt and reply together.
    """

    def __init__(self, model: Any, tokenizer: Any, eog_ids: frozenset[int], n_ctx: int) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.n_ctx, self.eog_ids = n_ctx, eog_ids
        self.n_vocab = int(model.config.get_text_config().vocab_size)
        self._cache = DynamicCache(config=model.config)
        self._ids: list[int] = []
        added = tokenizer.added_tokens_decoder
        self._added = {token: entry.content for token, entry in added.items()}
        self._special = {token for token, entry in added.items() if entry.special or token in eog_ids}
        self._byte_of = {char: value for value, char in _byte_characters().items()}

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's own, the one for tools of several; ours where it has none."""
        return (
            self._tokenizer.get_chat_template(tools=[{}]) if self._tokenizer.chat_template else default_chat_template()
        )

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts of special tokens."""
        return frozenset(self._added[token] for token in self._special if token in self._added)

    @property
    def marker_tokens(self) -> frozenset[str]:
        """Texts of the other added tokens."""
        return frozenset(text for token, text in self._added.items() if token not in self._special)

    @property
    def cached_ids(self) -> Sequence[int]:
        """The ids whose keys and values are in the cache."""
        return self._ids

    def special_token(self, name: str) -> str | None:
        """The text of "bos" or "eos"."""
        text: str | None = getattr(self._tokenizer, f"{name}_token", None)
        return text

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Ids of a text; with `parse_special` the texts of special tokens become those tokens."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=not parse_special)[
            "input_ids"
        ]
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """What one id spells; rows of the embedding without a token spell nothing."""
        if token in self._added:
            return bytes(self._added[token], "utf-8")
        text: str | None = self._tokenizer.convert_ids_to_tokens(token) if token < len(self._tokenizer) else None
        return bytes(self._byte_of[char] for char in text) if text is not None else b""

    def decode(self, ids: Sequence[int]) -> Logits:
        """Append `ids`; the logits after the last."""
        row: Logits = self.decode_all(ids, len(ids) - 1)[0]
        return row

    def decode_all(self, ids: Sequence[int], first: int = 0) -> Logits:
        """Append `ids`; the logits after each of them from index `first` on, shape (rest, vocabulary)."""
        if not ids or len(self._ids) + len(ids) > self.n_ctx:
            raise ValueError(f"{len(ids)} ids do not fit: {len(self._ids)} of {self.n_ctx} positions are taken")
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([list(ids)], device=self._model.device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=len(ids) - first,
            )
        self._ids += ids
        rows: Logits = output.logits[0].float().cpu().numpy().astype(np.float32)
        return rows

    def truncate(self, n_positions: int) -> None:
        """Keep the first `n_positions`."""
        if n_positions < len(self._ids):
            if n_positions:
                self._cache.crop(n_positions - len(self._ids))
            else:
                self._cache = DynamicCache(config=self._model.config)
            self._ids = self._ids[:n_positions]

    def save_state(self) -> bytes:
        """States of a checkpoint are not kept."""
        raise StateError("the state of a checkpoint cannot be saved")

    def load_state(self, state: bytes) -> None:
        """States of a checkpoint are not kept."""
        raise StateError(f"a state of {len(state)} bytes cannot be loaded into a checkpoint")

    def close(self) -> None:
        """Drop the cache."""
        self._cache, self._ids = DynamicCache(config=self._model.config), []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _byte_characters() -> dict[int, str]:
    """The printable character that byte-level BPE (GPT-2) writes for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(rest)}
