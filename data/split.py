"""Training or held out, decided by the dialogue alone: no row of a dialogue is on both sides, in any order, ever."""

from __future__ import annotations

import hashlib
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
    digest = hashlib.sha256(dialogue_id.encode("utf-8", "surrogatepass")).digest()
    return Split.HELDOUT if int.from_bytes(digest[:8]) / 2**64 < eval_fraction else Split.TRAIN
