"""The data card for people: Markdown for a terminal or a repository, one self-contained HTML page for a browser."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence

from data.card import DataCard, LengthHistogram
from data.rejected import RejectReason
from data.truth import rows_of

_BAR_CHARS = 40
_PLOT_WIDTH, _PLOT_HEIGHT, _AXIS = 720, 180, 24

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } td, th { padding: .2rem .8rem .2rem 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums } tr { border-bottom: 1px solid #e4e4e4 }
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 0 2rem }
svg { width: 100%; height: auto } rect { fill: #4878a8 } svg text { font-size: 11px; fill: #555 }
summary { cursor: pointer; padding: .3rem 0 } li { margin-bottom: .6rem } code, q { overflow-wrap: anywhere }
q { color: #555; display: block; quotes: none } .bar { background: #4878a8; height: .6rem; display: inline-block }
"""


def markdown(card: DataCard) -> str:
    """The card as tables and lists, with up to ten samples of every rejection."""
    lines = ["# Data card", "", f"{_equation(card)} Data hash `{card.data_hash}`.", "", _duplicates(card), ""]
    lines += _markdown_table(_SOURCE_HEAD, _source_rows(card), "## Sources")
    for title, counts in _tables(card):
        lines += _markdown_table(("", "rows"), [(name, str(n)) for name, n in counts.items()] or [("none", "0")], title)
    for title, head, rows in rows_of(card.truth):
        lines += _markdown_table(head, rows or [("none", *[""] * (len(head) - 1))], f"## {title}")
    lines += [*_markdown_lengths(card.lengths), *_markdown_rejections(card)]
    return "\n".join(lines)


def page(card: DataCard) -> str:
    """The card as one HTML file that needs nothing else: no script, no network."""
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Data card</title>',
        f"<style>{_STYLE}</style><h1>Data card</h1>",
        f"<p>{_text(_equation(card))} Data hash <code>{_text(card.data_hash)}</code>.</p>",
        f"<p>{_text(_duplicates(card))}</p><h2>Sources</h2>",
        _html_table(_SOURCE_HEAD, _source_rows(card)),
        f"<h2>Length in {_text(card.lengths.unit)}</h2><p>{_text(_length_line(card.lengths))}</p>",
        _plot(card.lengths),
        '<div class="columns">',
        *(f"<div><h2>{_text(title.lstrip('# '))}</h2>{_html_counts(counts)}</div>" for title, counts in _tables(card)),
        "</div>",
        *(f"<h2>{_text(title)}</h2>{_html_table(head, rows)}" for title, head, rows in rows_of(card.truth)),
        "<h2>Rejected</h2>",
        *(_html_rejection(card, reason, count) for reason, count in card.rejected.items()),
        "" if card.rejected else "<p>Nothing.</p>",
    ]
    return "\n".join(parts) + "\n"


def _equation(card: DataCard) -> str:
    joined = f" + {card.joined:,} joined into these" if card.joined else ""
    repeated = f" (and {card.repeated:,} lines more, by the sources' weights)" if card.repeated else ""
    return (
        f"{card.read:,} rows read = {card.train:,} for training{repeated} + {card.heldout:,} held out{joined} + "
        f"{sum(card.rejected.values()):,} rejected."
    )


def _duplicates(card: DataCard) -> str:
    overlaps = ", ".join(
        f"{suite} {card.overlaps.get(suite, 0)} (of {texts} texts)" for suite, texts in card.evaluation_texts.items()
    )
    return (
        f"Duplicates left out: {card.rejected.get(RejectReason.DUPLICATE, 0):,} exact, "
        f"{card.rejected.get(RejectReason.NEAR_DUPLICATE, 0):,} near. Rows left out for sharing their request with an "
        f"evaluation suite: {overlaps or 'no suite was given'}."
    )


_SOURCE_HEAD = ("source", "licence", "revision", "read", "kept", "of these joined", "rejected")


def _source_rows(card: DataCard) -> list[tuple[str, ...]]:
    return [
        (
            source.kind if source.path is None else f"{source.kind}: {source.path}",
            source.licence,
            source.revision,
            str(source.read),
            str(source.kept),
            str(source.joined),
            ", ".join(f"{count} {reason}" for reason, count in source.rejected.items()) or "0",
        )
        for source in card.sources
    ]


def _tables(card: DataCard) -> Iterator[tuple[str, Mapping[str, int]]]:
    yield "## Side of the split (conversations)", card.by_side
    yield "## Category", card.by_category
    if card.by_group:
        yield "## ToolBench's groups", card.by_group
    yield "## Trained calls in a row", card.by_calls
    yield "## Tools on offer", card.by_tools
    yield "## Shortened to fit", card.shortened
    yield "## Changed on purpose", card.augmented
    yield "## Repaired before use", card.repairs


def _length_line(lengths: LengthHistogram) -> str:
    return f"Median {lengths.median:,}, 95 % up to {lengths.p95:,}, longest {lengths.longest:,}."


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> list[str]:
    lines = [title, "", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    return [*lines, *("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows), ""]


def _markdown_lengths(lengths: LengthHistogram) -> list[str]:
    longest_bar = max(lengths.buckets.values())
    lines = [f"## Length in {lengths.unit}", "", _length_line(lengths), "", "```"]
    for bound, count in lengths.buckets.items():
        bar = "█" * round(_BAR_CHARS * count / longest_bar)
        lines.append(f"{bound:>8}+ {bar} {count}")
    return [*lines, "```", ""]


def _markdown_rejections(card: DataCard) -> list[str]:
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


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' * cell.isdecimal()}>{_text(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _html_counts(counts: Mapping[str, int]) -> str:
    most = max(counts.values(), default=1)
    rows = "".join(
        f'<tr><td>{_text(name)}</td><td class="n">{count:,}</td>'
        f'<td><span class="bar" style="width:{6 * count / most:.2f}rem"></span></td></tr>'
        for name, count in counts.items()
    )
    return f"<table>{rows}</table>" if counts else "<p>none</p>"


def _plot(lengths: LengthHistogram) -> str:
    """The histogram as a drawing: one bar a bucket, its lower bound below every fourth."""
    counts = list(lengths.buckets.items())
    step, most = _PLOT_WIDTH / len(counts), max(lengths.buckets.values())
    bars = []
    for i, (bound, count) in enumerate(counts):
        height = _PLOT_HEIGHT * count / most
        place = f'x="{i * step:.1f}" y="{_PLOT_HEIGHT - height:.1f}" width="{step - 2:.1f}" height="{height:.1f}"'
        bars.append(f"<rect {place}><title>{_text(bound)}+: {count:,} rows</title></rect>")
        if i % 4 == 0:
            bars.append(f'<text x="{i * step:.1f}" y="{_PLOT_HEIGHT + 16}">{_text(bound)}</text>')
    box = f"0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT + _AXIS}"
    return f'<svg viewBox="{box}" role="img" aria-label="rows by length">{"".join(bars)}</svg>'


def _html_rejection(card: DataCard, reason: str, count: int) -> str:
    samples = "".join(
        f"<li><code>{_text(sample['row'])}</code> {_text(sample['detail'])}<q>{_text(sample['sample'])}</q></li>"
        for sample in card.samples[reason]
    )
    meaning = _text(RejectReason(reason).meaning)
    return f"<details><summary><b>{_text(reason)}</b>: {count:,} – {meaning}</summary><ol>{samples}</ol></details>"


def _text(value: str) -> str:
    return html.escape(value)
