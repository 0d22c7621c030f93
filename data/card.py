"""The data card: where every row came from and went to. data/card_pages.py shows it to people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class CardError(ValueError):
    """A data card that cannot be read."""


@dataclass(frozen=True)
class SourceCard:
    """One source, in rows: read = kept + the sum of `rejected`; `joined` of the kept are trained in longer rows.

    `repeated` lines of train.jsonl stand there once more, because the source has a `weight` above 1.
    """

    kind: str
    path: str | None
    licence: str
    revision: str
    read: int
    kept: int
    joined: int
    rejected: Mapping[str, int]
    repeated: int = 0


@dataclass(frozen=True)
class LengthHistogram:
    """How long the written conversations are; `buckets` maps each lower bound to the number from there to the next."""

    unit: str
    median: int
    p95: int
    longest: int
    buckets: Mapping[str, int]


@dataclass(frozen=True)
class DataCard:
    """What `data_card.json` holds: read = train + heldout + joined + the sum of `rejected`.

    `train` and `heldout` count conversations, each once, whatever the weight of its source; `joined` counts rows whose
    turn is trained within one of them. Counts by reason, category, calls and tools are of rows. `evaluation_texts` and
    `overlaps` are by suite: the user turns of its cases, and the rows rejected for sharing one; a row that shares one
    with two suites counts twice.
    """

    data_hash: str
    read: int
    train: int
    heldout: int
    joined: int
    sources: tuple[SourceCard, ...]
    by_side: Mapping[str, int]
    by_category: Mapping[str, int]
    by_group: Mapping[str, int]
    by_calls: Mapping[str, int]
    by_tools: Mapping[str, int]
    rejected: Mapping[str, int]
    samples: Mapping[str, tuple[Mapping[str, str], ...]]
    repairs: Mapping[str, int]
    shortened: Mapping[str, int]
    augmented: Mapping[str, int]
    evaluation_texts: Mapping[str, int]
    overlaps: Mapping[str, int]
    lengths: LengthHistogram
    # data/truth.py: by tool and argument, personal data, different answers; cards of before have none.
    truth: Mapping[str, Any] = field(default_factory=dict)

    @property
    def repeated(self) -> int:
        """Lines of train.jsonl that stand there once more, by the weight of their source."""
        return sum(source.repeated for source in self.sources)

    @property
    def kept(self) -> int:
        """Rows whose turn is in train.jsonl or heldout.jsonl."""
        return self.train + self.heldout + self.joined

    def to_json(self) -> str:
        """The card as indented JSON, in a fixed order."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2) + "\n"

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
