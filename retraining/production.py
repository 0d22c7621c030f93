"""What became of a logged answer decides what it teaches.

Besides the keys of `data/sources/dispatch_log.py` a line may hold:

- `tool_error`: text, or true: the call was made and failed. Without a correction the line teaches nothing.
- `escalation`: the answer of the larger model that the request was handed up to, an object with `calls`, `reply` and,
  where known, `model`. Its answer is then the label, unless a person corrected it.
- `correction`: as there; `corrected_by`: free text, kept nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class Trust(IntEnum):
    """Whose answer a record holds. Where two disagree about one request, the higher one is believed."""

    MODEL = 1  # the served model's own, which nobody objected to
    LARGER_MODEL = 2
    CURATED = 3  # a file that somebody made: the drop folder, a data set
    PERSON = 4


def labelled(row: Any) -> tuple[Any, Trust]:
    """A log line with its label where `conversation_from_log` looks for it, and whose label that is."""
    if not isinstance(row, Mapping):
        return row, Trust.MODEL
    if row.get("correction") is not None:
        return row, Trust.PERSON
    if isinstance(row.get("escalation"), Mapping):
        return {**row, "correction": row["escalation"]}, Trust.LARGER_MODEL
    if row.get("tool_error"):
        return {**row, "is_accepted": False}, Trust.MODEL
    return row, Trust.MODEL
