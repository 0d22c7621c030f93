"""Which of all rows are written: the first of equal ones, and of a dialogue's prefixes the longest, each turn once.

A ToolBench row is the beginning of a dialogue up to one assistant turn. Trained one by one, the first turn's prompt is
read once for each later turn. Where a row is, text for text, the beginning of a longer one, its turn is trained
there instead (docs/decisions/005-toolbench-pairs.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from data.config import GuardConfig
from data.guards import Guarded, guard
from data.near_duplicates import NearDuplicateFilter
from data.rejected import RejectReason
from data.shards import Record

_GUARDS = GuardConfig()


class Fate(StrEnum):
    """What becomes of a row that passed by itself."""

    WRITTEN = "written"
    JOINED = "joined"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    UNGROUNDED_ADDRESS = "ungrounded_address"
    FLOOD = "flood"
    CONTRADICTORY = "contradictory"


@dataclass(frozen=True)
class Verdict:
    """A row's fate; `detail` says of what it is a duplicate, `joined` which other turns a written row trains."""

    fate: Fate
    detail: str = ""
    joined: tuple[int, ...] = ()  # message indices


@dataclass
class _Owner:
    """A row that a longer one begins with, by the state after its turn."""

    side: str
    is_taken: bool = False
    is_elsewhere: bool = False  # on the other side of the split


@dataclass
class Decisions:
    """Verdicts for rows in the order in which they were read."""

    duplicates: set[int] = field(default_factory=set)
    twins: dict[int, str] = field(default_factory=dict)
    joined: dict[int, tuple[int, ...]] = field(default_factory=dict)
    owners: dict[int, _Owner] = field(default_factory=dict)
    guarded: dict[int, Guarded] = field(default_factory=dict)
    begins: dict[int, RejectReason] = field(default_factory=dict)  # state of a turn → why a longer row is rejected

    def verdict(self, position: int, record: Record) -> Verdict:
        """What becomes of the `position`-th row, which was not rejected by itself."""
        if position in self.duplicates:
            return Verdict(Fate.DUPLICATE, "equal to an earlier row")
        if (against := self.guarded.get(position)) is not None:
            return Verdict(Fate(against.reason), against.detail)
        if (owner := self.owners.get(record.own)) is not None:
            if owner.is_taken:
                return Verdict(Fate.JOINED)
            if owner.is_elsewhere:
                return Verdict(Fate.DUPLICATE, "the beginning of a row on the other side of the split")
            return Verdict(Fate.NEAR_DUPLICATE, "the beginning of a row that is a near-duplicate")
        if not record.has_line:
            return Verdict(Fate(self.begins[record.own]), "the beginning of a row that is rejected so")
        if (twin := self.twins.get(position)) is not None:
            return Verdict(Fate.NEAR_DUPLICATE, f"of a row of dialogue '{twin}'")
        return Verdict(Fate.WRITTEN, joined=self.joined.get(position, ()))


def decide(
    records: Callable[[], Iterable[Record]], near_duplicate_threshold: float | None, guards: GuardConfig = _GUARDS
) -> Decisions:
    """Look at all rows in order, several times: which are equal, contradict others, begin others, are written.

    Memory grows by some hundred bytes a row.

    Args:
        records: gives every row read, from the first, each time it is called.
    """
    found = Decisions()
    _find_duplicates(records(), found)
    claims = {place: record.claim for place, record in _survivors(records(), found) if record.claim is not None}
    found.guarded = guard(claims, guards)
    begun = _find_begun(records(), found)
    for _, record in _survivors(records(), found):
        if record.own and record.own in begun:
            found.owners[record.own] = _Owner(record.side)
    near = NearDuplicateFilter(near_duplicate_threshold) if near_duplicate_threshold is not None else None
    for position, record in _survivors(records(), found):
        if record.own in found.owners:
            continue
        if near is not None:
            twin = near.find_or_add_text(record.text, record.bands, record.dialogue_id)
            if twin is not None:
                found.twins[position] = twin
                continue
        if taken := tuple(index for index, state in record.turns if _take(found.owners.get(state), record.side)):
            found.joined[position] = taken
    return found


def _find_duplicates(records: Iterable[Record], found: Decisions) -> None:
    seen: set[bytes] = set()
    for position, record in enumerate(records):
        if not record.reason and record.key in seen:
            found.duplicates.add(position)
        elif not record.reason:
            seen.add(record.key)


def _find_begun(records: Iterable[Record], found: Decisions) -> set[int]:
    """The states of all turns that some row has before its last one; notes those of rows that are not written."""
    begun: set[int] = set()
    for position, record in enumerate(records):
        if (against := found.guarded.get(position)) is not None:
            found.begins.update((state, against.reason) for _, state in record.turns)
        elif not record.reason and position not in found.duplicates:
            begun.update(state for _, state in record.turns)
    return begun


def _survivors(records: Iterable[Record], found: Decisions) -> Iterator[tuple[int, Record]]:
    for position, record in enumerate(records):
        if not record.reason and position not in found.duplicates and position not in found.guarded:
            yield position, record


def _take(owner: _Owner | None, side: str) -> bool:
    """Whether the turn is trained here: once, and never on another side than its own row's."""
    if owner is None or owner.is_taken:
        return False
    if owner.side != side:
        owner.is_elsewhere = True
        return False
    owner.is_taken = True
    return True
