"""Prompt lookup: a reply copies names and dates, so what followed its last ids in the prompt may follow again.

The method is prompt-lookup decoding (Saxena, 2023): an n-gram match in the prompt in place of a draft model.
"""

from __future__ import annotations

from collections.abc import Sequence

# The words that are copied stand at the prompt's end, after the tools.
_REGION = 192
_LONGEST, _SHORTEST = 3, 2


def lookup(prompt: Sequence[int], reply: Sequence[int], n_ids: int) -> list[int]:
    """Up to `n_ids` ids that followed the latest occurrence of the reply's last few in the end of the prompt."""
    region = list(prompt[-_REGION:])
    for size in range(_LONGEST, _SHORTEST - 1, -1):
        if len(reply) < size:
            continue
        pattern = list(reply[-size:])
        for start in range(len(region) - size - 1, -1, -1):
            if region[start] == pattern[0] and region[start : start + size] == pattern:
                return region[start + size : start + size + n_ids]
    return []
