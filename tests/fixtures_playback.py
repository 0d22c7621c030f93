"""A runtime that plays back a reply without any model, and what the tests ask it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from tinydispatch import formats
from tinydispatch.ggml.runtime import Logits
from tinydispatch.ggml.state import StateError
from tinydispatch.tools import Tool, ToolCall

TODAY = dt.date(2026, 3, 19)
QUESTION = "What is the weather in Oslo?"
TAUGHT_CALL = ToolCall("get_weather", {"location": "Oslo"})
WEATHER = Tool(
    "get_weather",
    "Weather for a place",
    {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
)


class PlaybackRuntime:
    """Answers every prompt with the same text; a token is one of the special tokens, a byte, or one of `words`.

    `decoded` collects the ids of each evaluation. A saved state is its ids. Without `has_markers` the call markers are
    no tokens but ordinary text.
    """

    def __init__(self, reply: str, n_ctx: int = 4096, words: Sequence[str] = (), *, has_markers: bool = True) -> None:
        self._special = [text for text in formats.SPECIAL_TOKENS if has_markers or text in self.control_tokens]
        if not has_markers:
            self.marker_tokens = frozenset()
        self._texts = [
            *(text.encode() for text in self._special),
            *(bytes([value]) for value in range(256)),
            *(word.encode() for word in words),
        ]
        self._words = sorted(words, key=len, reverse=True)
        self.n_ctx = n_ctx
        self.n_vocab = len(self._texts)
        self.chat_template: str | None = formats.default_chat_template()
        self.cached_ids: list[int] = []
        self.decoded: list[list[int]] = []
        self.is_closed = False
        self.reply = reply
        self._opening = self.tokenize(f"{formats.TURN_START}assistant\n", parse_special=True)

    eog_ids = frozenset({formats.SPECIAL_TOKENS.index(formats.TURN_END)})
    control_tokens = frozenset({formats.TURN_START, formats.TURN_END, formats.DOCUMENT_END})
    marker_tokens = frozenset(
        {formats.CALL_START, formats.CALL_END, formats.RESULT_START, formats.RESULT_END},
    )

    def special_token(self, name: str) -> str | None:
        return formats.TURN_END if name == "eos" else None

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        ids: list[int] = []
        # As in llama.cpp, markers arise from any text and control tokens from special parsing only.
        special = [token for token in self._special if parse_special or token in self.marker_tokens]
        while text:
            found = next((token for token in [*special, *self._words] if text.startswith(token)), None)
            if found is None:
                ids += [len(self._special) + value for value in text[0].encode()]
            else:
                ids.append(self._texts.index(found.encode()))
            text = text[len(found or text[0]) :]
        return ids

    def token_bytes(self, token: int) -> bytes:
        return self._texts[token]

    def detokenize(self, ids: Sequence[int]) -> str:
        return b"".join(self._texts[token] for token in ids).decode("utf-8", "replace")

    def decode(self, ids: Sequence[int]) -> Logits:
        logits: Logits = self.decode_all(ids)[-1]
        return logits

    def decode_all(self, ids: Sequence[int], first: int = 0) -> Logits:
        assert ids, "nothing to decode"
        assert len(self.cached_ids) + len(ids) <= self.n_ctx, "the context is full"
        self.decoded.append(list(ids))
        rows = []
        for token in ids:
            self.cached_ids.append(token)
            rows.append(self._logits())
        return np.stack(rows[first:])

    def _logits(self) -> Logits:
        """The reply's next id is likely, wherever the ids after the last opening are a start of the reply."""
        logits = np.zeros(self.n_vocab, dtype=np.float32)
        size = len(self._opening)
        ends = (end for end in range(len(self.cached_ids), size - 1, -1))
        end = next((end for end in ends if self.cached_ids[end - size : end] == self._opening), None)
        if end is not None:
            reply = [*self.tokenize(self.reply, parse_special=True), *self.eog_ids]
            written = len(self.cached_ids) - end
            logits[reply[written] if written < len(reply) else min(self.eog_ids)] = 10.0
        return logits

    def truncate(self, n_positions: int) -> None:
        del self.cached_ids[n_positions:]

    def save_state(self) -> bytes:
        return b"STATE" + np.asarray(self.cached_ids, dtype="<i4").tobytes()

    def load_state(self, state: bytes) -> None:
        if not state.startswith(b"STATE"):
            raise StateError("a damaged state")
        self.cached_ids = np.frombuffer(state[5:], dtype="<i4").tolist()

    def close(self) -> None:
        self.is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
