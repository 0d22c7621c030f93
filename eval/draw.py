"""A part of a large suite, the same one every time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from eval.case import Case


def drawn(cases: Sequence[Case], max_per_category: int | None) -> list[Case]:
    """So many cases of each category, in their order; None keeps all.

    Drawn by a hash of what a case comes from, so that more data later moves few of them.
    """
    if max_per_category is None:
        return list(cases)
    kept: set[str] = set()
    for category in {case.category for case in cases}:
        mine = [case for case in cases if case.category == category]
        mine.sort(key=lambda case: (hashlib.sha256((case.parent or case.id).encode()).digest(), case.id))
        kept |= {case.id for case in mine[:max_per_category]}
    return [case for case in cases if case.id in kept]
