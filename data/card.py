"""The data card: where every row came from and went to, as JSON for programs and Markdown for people."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.clean import Kept
from data.rejected import Rejected, RejectReason, sample_of
from data.split import Split

_MAX_SAMPLES = 10
_BAR_CHARS = 40


class CardError(ValueError):
    """A data card that cannot be read."""


@dataclass(frozen=True)
class SourceCard:
    """One source: read = kept + the sum of `rejected`."""

    kind: str
    path: str | None
    licence: str
    revision: str
    read: int
    kept: int
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class LengthHistogram:
    """How long the kept conversations are. `buckets` maps each lower bound to the rows from there to the next one."""

    unit: str
    median: int
    p95: int
    longest: int
    buckets: Mapping[str, int]


@dataclass(frozen=True)
class DataCard:
    """What `data_card.json` holds. Counts by reason, category, calls and tools are of rows, not of dialogues."""

    data_hash: str
    read: int
    train: int
    heldout: int
    sources: tuple[SourceCard, ...]
    by_category: Mapping[str, int]
    by_calls: Mapping[str, int]
    by_tools: Mapping[str, int]
    rejected: Mapping[str, int]
    samples: Mapping[str, tuple[Mapping[str, str], ...]]
    repairs: Mapping[str, int]
    evaluation_texts: int
    lengths: LengthHistogram

    @property
    def kept(self) -> int:
        """Rows in train.jsonl and heldout.jsonl together."""
        return self.train + self.heldout

    def to_json(self) -> str:
        """The card as indented JSON, in a fixed order."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2) + "\n"

    def to_markdown(self) -> str:
        """The card for reading: tables, and up to ten samples of every rejection."""
        return "\n".join([*_head(self), *_sources(self), *_contents(self), *_lengths(self.lengths), *_rejections(self)])

    @classmethod
    def read_json(cls, path: Path) -> DataCard:
        """Read a `data_card.json`.

        Raises:
            CardError: names the file and what is wrong with it.
        """
        try:
            value = json.loads(path.read_text("utf-8"))
            value["sources"] = tuple(SourceCard(**source) for source in value["sources"])
            value["samples"] = {reason: tuple(samples) for reason, samples in value["samples"].items()}
            value["lengths"] = LengthHistogram(**value["lengths"])
            return cls(**value)
        except OSError as error:
            raise CardError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CardError(f"{path}: not a data card: {error!r}") from error


@dataclass
class SourceTally:
    """Counts of one source while it is read."""

    read: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


class CardBuilder:
    """Collects what the card states while rows stream by; `build` gives the card."""

    def __init__(self, length_unit: str, evaluation_texts: int) -> None:
        self._length_unit = length_unit
        self._evaluation_texts = evaluation_texts
        self._tallies: list[SourceTally] = []
        self._splits: Counter[Split] = Counter()
        self._categories: Counter[str] = Counter()
        self._calls: Counter[int] = Counter()
        self._tools: Counter[int] = Counter()
        self._repairs: Counter[str] = Counter()
        self._samples: dict[str, list[Mapping[str, str]]] = {}
        self._lengths: list[int] = []

    def start_source(self) -> None:
        """Rows from here on belong to the next source."""
        self._tallies.append(SourceTally())

    def add_rejected(self, rejected: Rejected) -> None:
        """Count a row that was read and not kept."""
        tally = self._tallies[-1]
        tally.read += 1
        tally.rejected[str(rejected.reason)] += 1
        samples = self._samples.setdefault(str(rejected.reason), [])
        if len(samples) < _MAX_SAMPLES:
            samples.append(
                {"row": rejected.row_id, "detail": sample_of(rejected.detail), "sample": sample_of(rejected.sample)}
            )

    def add_kept(self, kept: Kept, split: Split) -> None:
        """Count a row that was written."""
        self._tallies[-1].read += 1
        self._tallies[-1].kept += 1
        conversation = kept.conversation
        self._splits[split] += 1
        self._categories[str(conversation.category)] += 1
        self._calls[sum(len(message.tool_calls) for message in conversation.messages if message.is_trained)] += 1
        self._tools[len(conversation.tools)] += 1
        self._repairs.update(conversation.metadata.get("repairs", ()))
        self._lengths.append(kept.length)

    @property
    def splits(self) -> Mapping[Split, int]:
        """Rows written so far on each side."""
        return self._splits

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

    def build(self, sources: list[Mapping[str, Any]], data_hash: str) -> DataCard:
        """The finished card; `sources` holds kind, path, licence and revision of each source in reading order."""
        cards = tuple(
            SourceCard(**source, read=tally.read, kept=tally.kept, rejected=_by_count(tally.rejected))
            for source, tally in zip(sources, self._tallies, strict=True)
        )
        return DataCard(
            data_hash=data_hash,
            read=self.read,
            train=self._splits[Split.TRAIN],
            heldout=self._splits[Split.HELDOUT],
            sources=cards,
            by_category=_by_count(self._categories),
            by_calls={str(number): self._calls[number] for number in sorted(self._calls)},
            by_tools={str(number): self._tools[number] for number in sorted(self._tools)},
            rejected=_by_count(self.rejected),
            samples={reason: tuple(self._samples[reason]) for reason in sorted(self._samples)},
            repairs=_by_count(self._repairs),
            evaluation_texts=self._evaluation_texts,
            lengths=histogram(self._lengths, self._length_unit),
        )


def histogram(lengths: list[int], unit: str) -> LengthHistogram:
    """Buckets that double, so that short and long rows are both seen. Expects at least one length."""
    ordered = sorted(lengths)
    buckets: Counter[int] = Counter(0 if length < 64 else 1 << (length.bit_length() - 1) for length in ordered)
    return LengthHistogram(
        unit=unit,
        median=ordered[len(ordered) // 2],
        p95=ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)],
        longest=ordered[-1],
        buckets={str(bound): buckets[bound] for bound in sorted(buckets)},
    )


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _head(card: DataCard) -> list[str]:
    overlap = card.rejected.get(RejectReason.EVALUATION_OVERLAP, 0)
    return [
        "# Data card",
        "",
        f"{card.read} rows read = {card.train} for training + {card.heldout} held out + "
        f"{sum(card.rejected.values())} rejected. Data hash `{card.data_hash}`.",
        "",
        f"Duplicates: {card.rejected.get(RejectReason.DUPLICATE, 0)} exact, "
        f"{card.rejected.get(RejectReason.NEAR_DUPLICATE, 0)} near. "
        f"Overlap with {card.evaluation_texts} evaluation texts: {overlap} rows, left out.",
        "",
    ]


def _sources(card: DataCard) -> list[str]:
    lines = ["## Sources", "", "| source | licence | revision | read | kept | rejected |", "| --- " * 6 + "|"]
    for source in card.sources:
        name = source.kind if source.path is None else f"{source.kind}: {source.path}"
        rejected = ", ".join(f"{count} {reason}" for reason, count in source.rejected.items()) or "0"
        cells = [name, source.licence, source.revision, str(source.read), str(source.kept), rejected]
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return [*lines, ""]


def _contents(card: DataCard) -> list[str]:
    lines = []
    for title, counts in (
        ("Category", card.by_category),
        ("Trained calls in a row", card.by_calls),
        ("Tools on offer", card.by_tools),
        ("Repaired before use", card.repairs),
    ):
        lines += [f"## {title}", "", "| | rows |", "| --- | --- |"]
        lines += [f"| {_cell(name)} | {count} |" for name, count in counts.items()] or ["| none | 0 |"]
        lines.append("")
    return lines


def _lengths(lengths: LengthHistogram) -> list[str]:
    longest_bar = max(lengths.buckets.values())
    lines = [f"## Length in {lengths.unit}", ""]
    lines += [f"Median {lengths.median}, 95 % up to {lengths.p95}, longest {lengths.longest}.", "", "```"]
    for bound, count in lengths.buckets.items():
        bar = "█" * max(1, round(_BAR_CHARS * count / longest_bar))
        lines.append(f"{bound:>8}+ {bar} {count}")
    return [*lines, "```", ""]


def _rejections(card: DataCard) -> list[str]:
    lines = ["## Rejected", ""]
    for reason, count in card.rejected.items():
        lines += [f"### {reason}: {count}", "", f"{RejectReason(reason).meaning.capitalize()}.", ""]
        for sample in card.samples[reason]:
            lines.append(f"- `{_cell(sample['row'])}` {_cell(sample['detail'])}")
            if sample["sample"]:
                lines.append(f"  > {_cell(sample['sample'])}")
        lines.append("")
    return lines if card.rejected else [*lines, "Nothing.", ""]


def _cell(text: str) -> str:
    """Text that cannot break out of a table cell or a list item."""
    flat = " ".join(text.split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
