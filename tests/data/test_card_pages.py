from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data.card import DataCard
from data.card_builder import CardBuilder, histogram
from data.card_pages import markdown, page
from data.rejected import Rejected, RejectReason
from data.shards import Record
from data.truth import truth_of

SOURCE = {"kind": "toolbench", "path": "a|b.json", "licence": "Apache-2.0", "revision": "abc"}


@pytest.fixture
def card() -> DataCard:
    """Six rows: two written, one joined, one held out in a group, two rejected."""
    builder = CardBuilder("tokens", {"core": ["what time is it", "hi"], "dev": ["what time is it"]})
    builder.start_source()
    for length, side in ((100, "train"), (900, "train"), (300, "G1_tool")):
        builder.add_kept(Record("r", side=side, category="single_call", calls=1, tools=4, length=length))
    builder.add_kept(Record("r", side="train", category="next_call", calls=1, tools=4), is_joined=True)
    overlap = Rejected(RejectReason.EVALUATION_OVERLAP, "shares", "x:1", "<script>alert(1)</script>", "what time is it")
    builder.add_rejected(overlap)
    builder.add_rejected(Rejected(RejectReason.GAVE_UP, "Finish", "x:2", "a `b` | c"))
    return builder.build([SOURCE], "0123", truth_of([], 0))


def test_read_is_kept_and_rejected_in_whole_and_for_each_source(card: DataCard) -> None:
    assert card.read == card.train + card.heldout + card.joined + sum(card.rejected.values()) == 6
    source = card.sources[0]
    assert source.read == source.kept + sum(source.rejected.values()) == 6
    assert (card.by_side, card.joined, card.kept) == ({"train": 2, "G1_tool": 1}, 1, 4)


def test_an_overlap_counts_for_each_suite_that_says_the_same(card: DataCard) -> None:
    assert card.evaluation_texts == {"core": 2, "dev": 1}
    assert card.overlaps == {"core": 1, "dev": 1}


def test_the_card_comes_back_from_its_json(card: DataCard, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(card.to_json(), "utf-8")
    assert DataCard.read_json(tmp_path / "card.json") == card


class _Reader(HTMLParser):
    """Collects tags and what they load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "html", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "html":
            assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(card: DataCard) -> None:
    reader = _Reader()
    text = page(card)
    reader.feed(text)
    assert reader.open == []
    assert reader.loaded == []
    assert "script" not in reader.seen
    assert "&lt;script&gt;" in text
    assert reader.seen.count("rect") == len(card.lengths.buckets)
    for part in ("6 rows read = 2 for training + 1 held out + 1 joined into these + 2 rejected", "G1_tool", "Apache"):
        assert part in text


def test_markdown_keeps_foreign_text_inside_its_cell(card: DataCard) -> None:
    text = markdown(card)
    assert "a\\|b.json" in text
    assert "<script" not in text
    heads = {line.count(" | ") for line in re.findall(r"^\| (?:source|toolbench).*$", text, re.MULTILINE)}
    assert heads == {6}


def test_the_histogram_holds_every_length_and_ends_in_an_open_bucket() -> None:
    found = histogram([*range(100), 10_000], "tokens")
    assert sum(found.buckets.values()) == 101
    assert (found.median, found.p95, found.longest) == (50, 95, 10_000)
    assert len(found.buckets) == 24
