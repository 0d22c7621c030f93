"""What records say about each other: contradictions, floods from one session, shares, addresses out of nowhere."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retraining.config import IntakeConfig
from retraining.records import PoolRow, Record
from tinydispatch.tools import Conversation, Role

_ADDRESS = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}|https?://[^\s\"'<>]+")


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
        rest = _without_strange_addresses(rest, findings)
    rest = _without_floods(rest, config.max_per_session, findings)
    rest = _without_contradictions(rest, findings)
    kept, rest = _against_pool(pool, rest, findings)
    new = _within_shares(kept, rest, config.max_share_per_source)
    return Reviewed(tuple(kept), tuple(new), tuple(findings), len(pool) - len(kept), len(rest) - len(new))


def strange_addresses(conversation: Conversation) -> set[str]:
    """E-mail addresses and links in trained calls that stand nowhere in what was said or returned before."""
    said = " ".join(message.content for message in conversation.messages if message.role is not Role.ASSISTANT).lower()
    texts = (
        text
        for message in conversation.messages
        if message.role is Role.ASSISTANT and message.is_trained
        for call in message.tool_calls
        for text in _strings(call.arguments)
    )
    return {found for text in texts for found in _ADDRESS.findall(text) if found.lower() not in said}


def _without_strange_addresses(records: Sequence[Record], findings: list[Finding]) -> list[Record]:
    kept = []
    for record in records:
        if strange := strange_addresses(record.conversation):
            detail = f"a call sends to {', '.join(sorted(strange))}, which nobody mentioned"
            findings.append(Finding("ungrounded_address", detail, record))
        else:
            kept.append(record)
    return kept


def _without_floods(records: Sequence[Record], limit: int, findings: list[Finding]) -> list[Record]:
    counts = Counter(record.session for record in records if record.session)
    floods = {session for session, count in counts.items() if count > limit}
    findings += [
        Finding("flood", f"one of {counts[record.session]} records of one session, more than {limit}", record)
        for record in records
        if record.session in floods
    ]
    return [record for record in records if record.session not in floods]


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


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [text for item in items for text in _strings(item)]
