"""Near-duplicates: the same trained answer to nearly the same request (MinHash to find pairs, exact Jaccard to judge).

Only rows with an equal answer are compared. "Weather in Oslo?" and "Weather in Bergen?" look alike and teach
copying; the steps of one dialogue share their request and differ in what is trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data.text import normalized_words
from tinydispatch.tools import Conversation, Role

_SHINGLE_CHARS = 5
# 8 bands of 4: a pair at similarity 0.8 becomes a candidate with probability 0.985, at 0.9 with 0.9998.
_BANDS, _ROWS_PER_BAND = 8, 4
_PRIME = np.uint64(4_294_967_311)  # the first prime over 2**32, so that products of two stay below 2**64
_MIXER = np.uint64(0x9E37_79B9_7F4A_7C15)
_random = np.random.Generator(np.random.PCG64(20_190_815))
_FACTORS = _random.integers(1, 1 << 31, _BANDS * _ROWS_PER_BAND, dtype=np.uint64)[:, None]
_OFFSETS = _random.integers(0, 1 << 31, _BANDS * _ROWS_PER_BAND, dtype=np.uint64)[:, None]


class NearDuplicateFilter:
    """Remembers what it has seen; deterministic, and about 1.5 kB a row."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._texts: list[str] = []
        self._ids: list[str] = []
        self._rows_of_band: dict[bytes, list[int]] = {}

    def find_or_add(self, conversation: Conversation) -> str | None:
        """The dialogue id of an earlier near-duplicate; None where there is none, and the row is remembered."""
        text = request_text(conversation)
        return self.find_or_add_text(text, bands_of(text, answer_key(conversation)), conversation.dialogue_id)

    def find_or_add_text(self, text: str, bands: Sequence[bytes], dialogue_id: str) -> str | None:
        """The same for what `request_text` and `bands_of` found, possibly in another process."""
        candidates = {row for band in bands for row in self._rows_of_band.get(band, ())}
        if candidates:
            shingles = _shingles(text)
            for row in sorted(candidates):
                if jaccard(shingles, _shingles(self._texts[row])) >= self._threshold:
                    return self._ids[row]
        for band in bands:
            self._rows_of_band.setdefault(band, []).append(len(self._texts))
        self._texts.append(text)
        self._ids.append(dialogue_id)
        return None


def jaccard(left: frozenset[int], right: frozenset[int]) -> float:
    """Shared share of two sets; 1.0 for two empty ones."""
    shared = len(left & right)
    union = len(left) + len(right) - shared
    return shared / union if union else 1.0


def request_text(conversation: Conversation) -> str:
    """What the user says in all turns, as words."""
    requests = (message.content for message in conversation.messages if message.role is Role.USER)
    return " ".join(normalized_words(" ".join(requests)))


def answer_key(conversation: Conversation) -> bytes:
    """Hash of the trained calls and texts, and of the calls before them: where in the dialogue we stand."""
    answers = [
        [
            message.is_trained,
            [[call.name, dict(call.arguments)] for call in message.tool_calls],
            normalized_words(message.content) if message.is_trained else (),
        ]
        for message in conversation.messages
        if message.role is Role.ASSISTANT
    ]
    text = json.dumps(answers, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


# Rows with the same answer meet the same candidates again and again.
@lru_cache(maxsize=2048)
def _shingles(text: str) -> frozenset[int]:
    data = np.frombuffer(text.encode().ljust(_SHINGLE_CHARS), np.uint8).astype(np.uint64)
    count = len(data) - _SHINGLE_CHARS + 1
    # Five bytes as one number of 40 bits, mixed down to 32; what overflows is meant to.
    numbers = np.zeros(count, np.uint64)
    for i in range(_SHINGLE_CHARS):
        numbers |= data[i : i + count] << np.uint64(8 * i)
    shingles: list[int] = ((numbers * _MIXER) >> np.uint64(32)).tolist()
    return frozenset(shingles)


def bands_of(text: str, key: bytes) -> tuple[bytes, ...]:
    """Short hashes; two rows with the same answer and nearly the same text share at least one."""
    parts = _signature(text).reshape(_BANDS, _ROWS_PER_BAND)
    return tuple(
        hashlib.blake2b(key + bytes([band]) + part.tobytes(), digest_size=8).digest() for band, part in enumerate(parts)
    )


@lru_cache(maxsize=2048)
def _signature(text: str) -> NDArray[np.uint64]:
    shingles = _shingles(text)
    values = np.fromiter(shingles, dtype=np.uint64, count=len(shingles))
    # (32, 1) * (n,) → (32, n) → the least of each permutation, (32,)
    signature: NDArray[np.uint64] = ((_FACTORS * values + _OFFSETS) % _PRIME).min(axis=1)
    return signature
