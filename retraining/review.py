"""Which records go into the pool: what data/guards.py lets through, what earlier runs took, and the sources' shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.guards import guard
from retraining.config import IntakeConfig
from retraining.records import PoolRow, Record


@dataclass(frozen=True)
class Finding:
    """A record in quarantine, and why."""

    reason: str
    detail: str
    record: Record

    def to_json(self) -> dict[str, Any]:
        """A line of `quarantine.jsonl`; the record in it is free of personal data, as everything that is written."""
        return {"reason": self.reason, "detail": self.detail, "source": self.record.source, "row": self.record.to_row()}


@dataclass(frozen=True)
class Reviewed:
    """`kept` of the earlier records and the `new` ones; `superseded` and `postponed` count what is in neither.

    A postponed record is over its source's share now, and new again for the next run.
    """

    kept: tuple[PoolRow, ...]
    new: tuple[Record, ...]
    findings: tuple[Finding, ...]
    superseded: int
    postponed: int


def review(records: Sequence[Record], pool: Sequence[PoolRow], config: IntakeConfig) -> Reviewed:
    """Decide about records by what stands beside them; the order of `records` does not matter."""
    rest = sorted(records, key=lambda record: record.key)
    against = guard({place: record.claim for place, record in enumerate(rest)}, config)
    findings = [Finding(str(found.reason), found.detail, rest[place]) for place, found in sorted(against.items())]
    rest = [record for place, record in enumerate(rest) if place not in against]
    kept, rest = _against_pool(pool, rest, findings)
    new = _within_shares(kept, rest, config.max_share_per_source)
    return Reviewed(tuple(kept), tuple(new), tuple(findings), len(pool) - len(kept), len(rest) - len(new))


def _against_pool(
    pool: Sequence[PoolRow], records: Sequence[Record], findings: list[Finding]
) -> tuple[list[PoolRow], list[Record]]:
    """A new answer to a request that earlier runs trained takes the old one's place where it is trusted more."""
    known = {row.request: row for row in pool}
    new, superseded = [], set()
    for record in records:
        old = known.get(record.request)
        if old is None:
            new.append(record)
        elif record.trust > old.trust:
            superseded.add(old.key)
            new.append(record)
        else:
            findings.append(Finding("contradictory", f"an earlier run took another answer (record {old.key})", record))
    return [row for row in pool if row.key not in superseded], new


def _within_shares(pool: Sequence[PoolRow], records: Sequence[Record], share: float) -> list[Record]:
    """As many of each source's records, by key, as keep it within its share of all records, old and new."""
    have = Counter(row.source for row in pool)
    counts = have + Counter(record.source for record in records)
    # Taking from one source lowers the whole, and so what another may have: down to where it settles.
    while True:
        most = int(share * counts.total())
        lowered = Counter({source: max(have[source], min(count, most)) for source, count in counts.items()})
        if lowered == counts or share == 1:
            break
        counts = lowered
    left = {source: counts[source] - have[source] for source in counts}
    new = []
    for record in records:
        if left[record.source] > 0:
            left[record.source] -= 1
            new.append(record)
    return new
