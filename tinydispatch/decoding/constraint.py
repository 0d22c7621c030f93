"""Which ids may come next: llguidance's matcher for one reply, or no constraint at all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import llguidance
import numpy as np
import numpy.typing as npt

from tinydispatch.ggml.runtime import Logits, Runtime

Mask = npt.NDArray[np.bool_]
_MAX_TAILS = 1024


class Constraint(Protocol):
    """What one reply may still become; it follows the ids that are taken."""

    seconds: float

    @property
    def is_stopped(self) -> bool:
        """Whether nothing may follow but the end."""
        ...

    @property
    def problem(self) -> str:
        """Why the grammar cannot go on, "" while it can."""
        ...

    def take_forced(self) -> list[int]:
        """The ids that must come next, taken already."""
        ...

    def likely(self, recalled: Sequence[int], copied: Sequence[int]) -> list[int]:
        """Ids that may well come next, none of them taken: the first guess of which some are allowed.

        That is `recalled`, what the grammar all but forces, or `copied`, in this order.
        """
        ...

    def mask(self) -> Mask | None:
        """Shape (vocabulary,): True for the ids that may come next; None for all."""
        ...

    def take(self, token: int) -> None:
        """Follow an id that the mask allows."""
        ...


class Free:
    """No constraint."""

    is_stopped = False
    problem = ""
    seconds = 0.0

    def take_forced(self) -> list[int]:
        """Nothing is forced."""
        return []

    def likely(self, recalled: Sequence[int], copied: Sequence[int]) -> list[int]:
        """The first guess that there is."""
        return list(recalled or copied)

    def mask(self) -> Mask | None:
        """All ids may come next."""
        return None

    def take(self, token: int) -> None:
        """Any id is fine."""


class GrammarConstraint:
    """One reply under a compiled grammar. `seconds` is the time spent in the grammar so far.

    Args:
        tails: ids of ends of forced text, which replies with the same tools share.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, runtime: Runtime, *, can_force: bool, tails: dict[bytes, list[int]]
    ) -> None:
        self._matcher, self._runtime, self._can_force = matcher, runtime, can_force
        self._tails = tails
        self.seconds = 0.0

    @property
    def is_stopped(self) -> bool:
        """Whether nothing may follow but the end."""
        return self._matcher.is_stopped()

    @property
    def problem(self) -> str:
        """Why the grammar cannot go on, "" while it can."""
        return self._matcher.get_error()

    def take_forced(self) -> list[int]:
        """The ids that must come next, in the tokenizer's own split, up to where the next free id may join them."""
        if not self._can_force or self._matcher.is_stopped():
            return []
        started = time.perf_counter()
        ids = self._matcher.compute_ff_tokens()
        if ids:
            self._matcher.consume_tokens(ids)
        self.seconds += time.perf_counter() - started
        return ids

    def likely(self, recalled: Sequence[int], copied: Sequence[int]) -> list[int]:
        """What was recalled; else forced text whose last token might yet grow longer; else what was copied."""
        started = time.perf_counter()
        allowed = self._allowed(recalled) or self._allowed(self._tail()) or self._allowed(copied)
        self.seconds += time.perf_counter() - started
        return allowed

    def _tail(self) -> list[int]:
        # After `take_forced` what is left of the forced text is its end: ` "` may still become ` "(`.
        tail = self._matcher.compute_ff_bytes() if self._can_force else b""
        if tail not in self._tails:
            try:
                ids = self._runtime.tokenize(tail.decode(), parse_special=True) if tail else []
            except UnicodeDecodeError:
                ids = []
            if len(self._tails) > _MAX_TAILS:
                self._tails.clear()
            self._tails[tail] = ids
        return self._tails[tail]

    def _allowed(self, ids: Sequence[int]) -> list[int]:
        return list(ids[: self._matcher.validate_tokens(list(ids))]) if ids else []

    def mask(self) -> Mask | None:
        """Shape (vocabulary,): True for the ids that may come next."""
        started = time.perf_counter()
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask = np.unpackbits(bits, bitorder="little", count=self._runtime.n_vocab).view(np.bool_)
        self.seconds += time.perf_counter() - started
        return mask

    def take(self, token: int) -> None:
        """Follow an id that the mask allows."""
        started = time.perf_counter()
        self._matcher.consume_token(token)
        self.seconds += time.perf_counter() - started


def best(logits: Logits, mask: Mask | None) -> tuple[int, float]:
    """The most likely allowed id, and its probability among the allowed ones."""
    token = int(np.argmax(logits))
    if mask is None:
        return token, _share(logits, float(logits[token]))
    allowed = np.flatnonzero(mask)
    if len(allowed) == 1:
        return int(allowed[0]), 1.0
    if not len(allowed):
        return token, 0.0
    values = logits[allowed]
    if not mask[token]:
        token = int(allowed[np.argmax(values)])
    return token, _share(values, float(logits[token]))


def _share(values: Logits, peak: float) -> float:
    # The peak is the largest, so nothing overflows.
    return float(1.0 / np.exp(values - peak).sum(dtype=np.float64))
