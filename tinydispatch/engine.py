"""From a conversation to the model's reply: prompt, reuse of the cached prefix, greedy decoding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinydispatch.ggml.runtime import Logits, Runtime
from tinydispatch.prompt import encode_prompt
from tinydispatch.tools import Message, Tool


@dataclass(frozen=True)
class Timings:
    """Wall-clock milliseconds: `total_ms` holds rendering and tokenizing besides the two others."""

    prefill_ms: float
    decode_ms: float
    total_ms: float


@dataclass(frozen=True)
class TokenCounts:
    """`prompt` tokens in all, of which `cached` came from the previous call's state; `generated` with the end token."""

    prompt: int
    cached: int
    generated: int


@dataclass(frozen=True)
class Completion:
    """A reply's text without its end token; `is_complete` is False when the token limit cut it off."""

    text: str
    is_complete: bool
    timings: Timings
    tokens: TokenCounts


class Engine:
    """Greedy decoding on one runtime; what two consecutive prompts share at their start is computed once."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def complete(self, messages: Sequence[Message], tools: Sequence[Tool], max_new_tokens: int) -> Completion:
        """The most likely reply to `messages`, which carry their reference date already.

        Raises:
            ValueError: the prompt does not fit the context, or the template cannot render the conversation.
        """
        started = time.perf_counter()
        prompt = encode_prompt(self.runtime, messages, tools)
        room = self.runtime.n_ctx - len(prompt)
        if room < 1:
            raise ValueError(
                f"the prompt of {len(prompt)} tokens does not fit the context of {self.runtime.n_ctx}, which the reply "
                "shares: shorten the conversation, offer fewer tools or raise n_ctx"
            )
        prefill_started = time.perf_counter()
        n_cached, logits = self._prefill(prompt)
        decode_started = time.perf_counter()
        ids, is_complete = self._decode_greedily(logits, min(max_new_tokens, room))
        ended = time.perf_counter()
        return Completion(
            text=self.runtime.detokenize(ids),
            is_complete=is_complete,
            timings=Timings(
                prefill_ms=1000 * (decode_started - prefill_started),
                decode_ms=1000 * (ended - decode_started),
                total_ms=1000 * (ended - started),
            ),
            tokens=TokenCounts(len(prompt), n_cached, len(ids) + is_complete),
        )

    def _prefill(self, prompt: Sequence[int]) -> tuple[int, Logits]:
        """How many ids came from the cache, and the logits after the last one."""
        # The last id is decoded in any case: the cache keeps keys and values, not logits.
        shared = shared_prefix(self.runtime.cached_ids, prompt[:-1])
        self.runtime.truncate(shared)
        shared = len(self.runtime.cached_ids)
        return shared, self.runtime.decode(prompt[shared:])

    def _decode_greedily(self, logits: Logits, max_new_tokens: int) -> tuple[list[int], bool]:
        ids: list[int] = []
        while True:
            token = int(np.argmax(logits))
            if token in self.runtime.eog_ids:
                return ids, True
            ids.append(token)
            if len(ids) >= max_new_tokens:
                return ids, False
            logits = self.runtime.decode([token])


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many items two sequences share at their start."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))
