"""Counts what the data card states while rows stream by in their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.card import DataCard, LengthHistogram, SourceCard
from data.rejected import Rejected, sample_of
from data.shards import Record
from data.split import Split

_MAX_SAMPLES = 10


@dataclass
class _Tally:
    """Counts of one source while it is read."""

    read: int = 0
    kept: int = 0
    joined: int = 0
    repeated: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


class CardBuilder:
    """`start_source`, then a call for each of its rows; `build` gives the card.

    Args:
        suites: the user turns of each evaluation suite's cases.
    """

    def __init__(self, length_unit: str, suites: Mapping[str, Sequence[str]]) -> None:
        self._length_unit = length_unit
        self._suites = suites
        self._suites_of: dict[str, list[str]] = {}
        for suite, texts in suites.items():
            for text in dict.fromkeys(texts):
                self._suites_of.setdefault(text, []).append(suite)
        self._tallies: list[_Tally] = []
        self._counts: dict[str, Counter[Any]] = {
            name: Counter()
            for name in ("side", "category", "group", "calls", "tools", "repairs", "shortened", "augmented", "overlaps")
        }
        self._samples: dict[str, list[Mapping[str, str]]] = {}
        self._lengths: list[int] = []

    def start_source(self) -> None:
        """Rows from here on belong to the next source."""
        self._tallies.append(_Tally())

    def add_rejected(self, rejected: Rejected) -> None:
        """Count a row that was read and not kept."""
        tally = self._tallies[-1]
        tally.read += 1
        tally.rejected[str(rejected.reason)] += 1
        self._counts["overlaps"].update(self._suites_of.get(rejected.about, ()))
        samples = self._samples.setdefault(str(rejected.reason), [])
        if len(samples) < _MAX_SAMPLES:
            samples.append(
                {"row": rejected.row_id, "detail": sample_of(rejected.detail), "sample": sample_of(rejected.sample)}
            )

    def add_kept(self, record: Record, *, is_joined: bool = False, times: int = 1) -> None:
        """Count a row that was written so many times, or whose turn is trained within another row's conversation."""
        tally = self._tallies[-1]
        tally.read += 1
        tally.kept += 1
        tally.repeated += times - 1
        counts = self._counts
        if is_joined:
            tally.joined += 1
        else:
            counts["side"][record.side] += 1
            self._lengths.append(record.length)
        counts["category"][record.category] += 1
        counts["group"].update([record.group] if record.group else [])
        counts["calls"][record.calls] += 1
        counts["tools"][record.tools] += 1
        counts["repairs"].update(record.repairs)
        counts["shortened"].update(record.steps)
        counts["augmented"].update(record.augmented)

    @property
    def train(self) -> int:
        """Conversations written for training so far."""
        return self._counts["side"][str(Split.TRAIN)]

    @property
    def heldout(self) -> int:
        """Conversations held out so far, in whatever group."""
        return self._counts["side"].total() - self.train

    @property
    def rejected(self) -> Counter[str]:
        """Rejected rows of all sources so far, by reason."""
        return sum((tally.rejected for tally in self._tallies), Counter())

    @property
    def read(self) -> int:
        """Rows read so far."""
        return sum(tally.read for tally in self._tallies)

    def first_detail(self, reason: str) -> str:
        """What the first row rejected for this reason said."""
        return self._samples[reason][0]["detail"]

    def build(self, sources: Sequence[Mapping[str, Any]], data_hash: str, truth: Mapping[str, Any]) -> DataCard:
        """The finished card; `sources` holds kind, path, licence and revision of each source in reading order."""
        cards = tuple(
            SourceCard(
                **source,
                read=tally.read,
                kept=tally.kept,
                joined=tally.joined,
                rejected=_by_count(tally.rejected),
                repeated=tally.repeated,
            )
            for source, tally in zip(sources, self._tallies, strict=True)
        )
        joined = sum(tally.joined for tally in self._tallies)
        rejected = self.rejected
        assert self.read == self.train + self.heldout + joined + rejected.total(), "a row is neither kept nor rejected"
        counts = self._counts
        return DataCard(
            data_hash=data_hash,
            read=self.read,
            train=self.train,
            heldout=self.heldout,
            joined=joined,
            sources=cards,
            by_side=_by_count(counts["side"]),
            by_category=_by_count(counts["category"]),
            by_group={name: counts["group"][name] for name in sorted(counts["group"])},
            by_calls={str(number): counts["calls"][number] for number in sorted(counts["calls"])},
            by_tools={str(number): counts["tools"][number] for number in sorted(counts["tools"])},
            rejected=_by_count(rejected),
            samples={reason: tuple(self._samples[reason]) for reason in sorted(self._samples)},
            repairs=_by_count(counts["repairs"]),
            shortened=_by_count(counts["shortened"]),
            augmented=_by_count(counts["augmented"]),
            evaluation_texts={suite: len(texts) for suite, texts in self._suites.items()},
            overlaps={suite: counts["overlaps"][suite] for suite in self._suites},
            lengths=histogram(self._lengths, self._length_unit),
            truth=truth,
        )


def histogram(lengths: Sequence[int], unit: str) -> LengthHistogram:
    """Twenty-four buckets of a round width, the last one open. Expects at least one length."""
    ordered = np.sort(np.asarray(lengths))
    p95 = int(ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)])
    width = next(width for width in _WIDTHS if 24 * width > p95)
    buckets = np.bincount(np.minimum(ordered // width, 23))
    return LengthHistogram(
        unit=unit,
        median=int(ordered[len(ordered) // 2]),
        p95=p95,
        longest=int(ordered[-1]),
        buckets={str(index * width): int(count) for index, count in enumerate(buckets)},
    )


_WIDTHS = [factor * 10**power for power in range(1, 12) for factor in (1, 2, 5)]


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
