"""What records say about each other: contradictions, floods from one session, shares, addresses out of nowhere."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.near_duplicates import NearDuplicateFilter, answer_key, bands_of, request_text
from data.truth import own_addresses, strange_addresses
from retraining.config import IntakeConfig
from retraining.production import Trust
from retraining.records import PoolRow, Record

_ALIKE = 0.8


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
    findings: list[Finding] = []
    rest = sorted(records, key=lambda record: record.key)
    if config.require_grounded_addresses:
        rest = _without_strange_addresses(rest, config.min_sessions_per_address, findings)
    rest = _without_floods(rest, [record.session for record in rest], config.max_per_session, "session", findings)
    if config.max_per_client is not None:
        rest = _without_floods(rest, [record.client for record in rest], config.max_per_client, "client", findings)
    rest = _without_floods(rest, _alike(rest), config.max_similar, "kind", findings)
    rest = _without_contradictions(rest, findings)
    kept, rest = _against_pool(pool, rest, findings)
    new = _within_shares(kept, rest, config.max_share_per_source)
    return Reviewed(tuple(kept), tuple(new), tuple(findings), len(pool) - len(kept), len(rest) - len(new))


def _without_strange_addresses(records: Sequence[Record], least: int, findings: list[Finding]) -> list[Record]:
    """An address needs a ground: a result, a system message, a person, or several sessions that use it.

    That its sender says it is none: who wants a model to send somewhere says so. Addresses that redaction has made up
    stand for a copy of whatever was said, and pass.
    """
    sessions: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for address in own_addresses(record.conversation):
            sessions[address.lower()].add(record.session or record.key)
    kept = []
    for record in records:
        strange = strange_addresses(record.conversation)
        own = own_addresses(record.conversation) - strange if record.trust < Trust.CURATED else set()
        few = {address for address in own if len(sessions[address.lower()]) < least}
        if strange:
            detail = f"a call sends to {', '.join(sorted(strange))}, which nobody mentioned"
            findings.append(Finding("ungrounded_address", detail, record))
        elif few:
            detail = f"a call sends to {', '.join(sorted(few))}, which only its sender mentions"
            findings.append(Finding("ungrounded_address", detail, record))
        else:
            kept.append(record)
    return kept


def _alike(records: Sequence[Record]) -> list[str]:
    """For each record of a model's the key of the first with the same answer to nearly the same words; else ""."""
    near = NearDuplicateFilter(_ALIKE)
    groups = []
    for record in records:
        if record.trust >= Trust.CURATED:
            groups.append("")
            continue
        text = request_text(record.conversation)
        bands = bands_of(text, answer_key(record.conversation))
        groups.append(near.find_or_add_text(text, bands, record.key) or record.key)
    return groups


def _without_floods(
    records: Sequence[Record], groups: Sequence[str], limit: int, of_one: str, findings: list[Finding]
) -> list[Record]:
    counts = Counter(group for group in groups if group)
    kept = []
    for record, group in zip(records, groups, strict=True):
        if counts[group] > limit:
            detail = f"one of {counts[group]} records of one {of_one}, more than {limit}"
            findings.append(Finding("flood", detail, record))
        else:
            kept.append(record)
    return kept


def _without_contradictions(records: Sequence[Record], findings: list[Finding]) -> list[Record]:
    """Of different answers to one request the most trusted stays, where it is one; else all are quarantined."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.request].append(record)
    kept = []
    for group in groups.values():
        trust = max(record.trust for record in group)
        trusted = [record for record in group if record.trust is trust]
        if len(trusted) == 1:
            kept += trusted
        beaten = [record for record in group if len(trusted) > 1 or record.trust is not trust]
        detail = f"{len(group)} different answers to one request"
        findings += [Finding("contradictory", detail, record) for record in beaten]
    return kept


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
