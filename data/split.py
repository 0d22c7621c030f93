"""What is decided by the dialogue alone, in any order and on any machine: training or held out, sampled, how often.

So no row of a dialogue is on both sides of the split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum


class Split(StrEnum):
    """Which file a conversation goes to."""

    TRAIN = "train"
    HELDOUT = "heldout"


def split_of(dialogue_id: str, eval_fraction: float) -> Split:
    """A stable side for a dialogue: more data later, or another seed, does not move it.

    Args:
        eval_fraction: share of dialogues (not rows) held out; raising it only moves dialogues out of training.
    """
    return Split.HELDOUT if _place(dialogue_id) < eval_fraction else Split.TRAIN


def sampled(dialogues: Sequence[str], most: int) -> set[int] | None:
    """Positions of at most so many rows, whole dialogues by hash and of the last one its first rows; None: all.

    Args:
        dialogues: of each row, in reading order.
    """
    if len(dialogues) <= most:
        return None
    rows: dict[str, list[int]] = {}
    for position, dialogue in enumerate(dialogues):
        rows.setdefault(dialogue, []).append(position)
    chosen: list[int] = []
    for dialogue in sorted(rows, key=lambda dialogue: _place(f"max_rows {dialogue}")):
        chosen += rows[dialogue]
        if len(chosen) >= most:
            break
    return set(chosen[:most])


def copies(dialogue: str, weight: float) -> int:
    """How often the conversations of a dialogue are written for training where their source has this weight."""
    return int(weight) + (_place(f"weight {dialogue}") < weight - int(weight))


def _place(text: str) -> float:
    """Somewhere from 0 to 1, always the same for a text."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64
