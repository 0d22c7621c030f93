"""`index.html` of a registry, self-contained: what was promoted and why not, pass rates over time, data, time, cost."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retraining.ledger import Ledger, RunRecord
from retraining.stages import RunState, Stage
from tinydispatch.registry import champion_id

PAGE = "index.html"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 300, 130, 44, 20
_STYLE = """
:root{color-scheme:light dark;--ink:#1c2330;--dim:#667085;--line:#d9dee7;--ground:#fff;--good:#1a7f4b;--bad:#c0362c;
--mild:#8a6d1f;--bar:#3566b8}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ef;--dim:#98a2b3;--line:#343b48;--ground:#14181f;--good:#4cc38a;
--bad:#ff7b72;--mild:#d9b24c;--bar:#7aa7f0}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:72rem;margin:2rem auto;
padding:0 1.2rem}h1{margin-bottom:.2rem}h2{margin-top:2.2rem}.dim{color:var(--dim)}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .7rem;
border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.promoted{color:var(--good)}.refused,.failed,.rolled_back{color:var(--bad)}.skipped,.running{color:var(--mild)}
b.state,.when{white-space:nowrap}.wide{overflow-x:auto}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:1rem}figure{margin:0}
figcaption{font-weight:600}svg{width:100%;height:auto;font:11px system-ui,sans-serif}svg text{fill:var(--dim)}
"""


@dataclass(frozen=True)
class Point:
    """The challenger of one run on one category; None where not measured."""

    run: RunRecord
    hits: int
    total: int
    low: float
    high: float


@dataclass(frozen=True)
class _Row:
    run: RunRecord
    results: Mapping[Stage, Mapping[str, Any]]
    seconds: Mapping[Stage, float]


def write_page(registry: Path, ledger: Ledger, cost_per_hour: float = 0.0) -> Path:
    """Write the page, whole or not at all."""
    rows = [_row(ledger, run) for run in ledger.runs()]
    path = registry / PAGE
    partial = path.with_suffix(".html.partial")
    partial.write_text(page(rows, champion_id(registry), cost_per_hour), "utf-8")
    partial.replace(path)
    return path


def page(rows: Sequence[_Row], champion: str | None, cost_per_hour: float) -> str:
    """The page's text."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Retraining</title><style>{_STYLE}</style><h1>Retraining</h1>",
        f"<p>In service: <b>{_text(champion or 'no model yet')}</b></p>",
        _runs_table(rows, cost_per_hour),
        _charts(rows),
        _data(rows),
        _times(rows),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _row(ledger: Ledger, run: RunRecord) -> _Row:
    stages = ledger.stages(run.id)
    # Attempts that failed or were killed took time as well; of a killed one nobody knows how much.
    seconds: dict[Stage, float] = {}
    for attempt in ledger.attempts(run.id):
        stage = Stage(attempt["stage"])
        seconds[stage] = seconds.get(stage, 0.0) + (attempt["seconds"] or 0.0)
    return _Row(run, {record.stage: record.result for record in stages}, seconds)


def _runs_table(rows: Sequence[_Row], cost_per_hour: float) -> str:
    lines = []
    for row in reversed(rows):
        intake, hours = row.results.get(Stage.INTAKE, {}), sum(row.seconds.values()) / 3600
        cost = f"<td class=n>{hours * cost_per_hour:.2f}</td>" if cost_per_hour else ""
        state = str(row.run.state)
        lines.append(
            f"<tr><td>{_text(row.run.id)}<br><span class='dim when'>{_when(row.run)}</span></td>"
            f"<td><b class='state {state}'>{state.replace('_', ' ')}</b></td><td>{_text(row.run.reason)}</td>"
            f"<td class=n>{intake.get('new', '–')}</td><td class=n>{_duration(3600 * hours)}</td>{cost}</tr>"
        )
    cost_head = "<th class=n>cost</th>" if cost_per_hour else ""
    head = f"<tr><th>run</th><th>outcome</th><th>why</th><th class=n>new data</th><th class=n>time</th>{cost_head}</tr>"
    body = "".join(lines) or "<tr><td colspan=6>no run yet</td></tr>"
    return f"<h2>Runs</h2><div class=wide><table>{head}{body}</table></div>"


def _charts(rows: Sequence[_Row]) -> str:
    series: dict[tuple[str, str], list[Point]] = {}
    for row in rows:
        rates = row.results.get(Stage.COMPARE, {}).get("rates", {}).get("challenger", {})
        for suite, counts in rates.items():
            for category, count in counts.items():
                if count["total"]:
                    low, high = count["wilson_95"]
                    point = Point(row.run, count["hits"], count["total"], low, high)
                    series.setdefault((suite, category), []).append(point)
    if not series:
        return ""
    figures = "".join(_chart(f"{suite}: {category}", points) for (suite, category), points in series.items())
    note = (
        "Each run's challenger with its 95 % interval, oldest left; filled where it was promoted. The line follows "
        "what was promoted."
    )
    return f"<h2>Pass rate by category</h2><p class=dim>{note}</p><div class=grid>{figures}</div>"


def _chart(title: str, points: Sequence[Point]) -> str:
    step = (_WIDTH - _LEFT - 16) / max(1, len(points) - 1)
    marks = [_axis(rate) for rate in (0.0, 0.5, 1.0)]
    line = []
    for index, point in enumerate(points):
        x = _LEFT + 8 + (step * index if len(points) > 1 else step / 2)
        was_promoted = point.run.state in (RunState.PROMOTED, RunState.ROLLED_BACK)
        colour = "var(--good)" if was_promoted else "var(--bad)"
        fill = colour if was_promoted else "var(--ground)"
        y = _y(point.hits / point.total)
        if was_promoted:
            line.append(f"{x:.1f},{y:.1f}")
        shown = f"{point.run.id} {point.run.state}: {point.hits}/{point.total}"
        marks.append(
            f'<path d="M{x:.1f} {_y(point.low):.1f}V{_y(point.high):.1f}" stroke="{colour}" stroke-width="2" '
            f'opacity=".45"/><circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}" '
            f'stroke-width="2"><title>{_text(shown)}</title></circle>'
        )
    path = f'<polyline points="{" ".join(line)}" fill="none" stroke="var(--good)"/>' if len(line) > 1 else ""
    last = points[-1]
    caption = f"{_text(title.replace('_', ' '))} <span class=dim>{last.hits}/{last.total}</span>"
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT + _BOTTOM}" role="img" aria-label="{_text(title)}"'
    return f"<figure><figcaption>{caption}</figcaption><svg {box}>{path}{''.join(marks)}</svg></figure>"


def _axis(rate: float) -> str:
    y = _y(rate)
    return (
        f'<path d="M{_LEFT} {y:.1f}H{_WIDTH}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * rate:.0f} %</text>'
    )


def _y(rate: float) -> float:
    return 8 + (_HEIGHT - 8) * (1 - rate)


def _data(rows: Sequence[_Row]) -> str:
    found = [(row.run, row.results[Stage.INTAKE]) for row in rows if Stage.INTAKE in row.results]
    if not found:
        return ""
    most = max(1, *(intake["pool"] for _, intake in found))
    lines = []
    for run, intake in found:
        width = 12 * intake["pool"] / most
        bar = f"<span style='display:inline-block;height:.7em;width:{width:.2f}rem;background:var(--bar)'></span>"
        lines.append(
            f"<tr><td>{_text(run.id)}</td><td class=n>{intake['read']}</td><td class=n>{intake['new']}</td>"
            f"<td>{_counts(intake['quarantined'])}</td><td>{_counts(intake['dropped'])}</td>"
            f"<td>{bar} {intake['pool']}</td></tr>"
        )
    titles = "<th>run</th><th class=n>read</th><th class=n>new</th><th>quarantined</th><th>dropped</th><th>pool</th>"
    head = f"<tr>{titles}</tr>"
    return f"<h2>Data</h2><div class=wide><table>{head}{''.join(lines)}</table></div>"


def _times(rows: Sequence[_Row]) -> str:
    stages = [stage for stage in Stage if any(stage in row.seconds for row in rows)]
    if not stages:
        return ""
    head = "<tr><th>run</th>" + "".join(f"<th class=n>{stage}</th>" for stage in stages) + "</tr>"
    body = ""
    for row in rows:
        cells = "".join(f"<td class=n>{_duration(row.seconds.get(stage))}</td>" for stage in stages)
        body += f"<tr><td>{_text(row.run.id)}</td>{cells}</tr>"
    return f"<h2>Time per stage</h2><div class=wide><table>{head}{body}</table></div>"


def _counts(counts: Mapping[str, int]) -> str:
    return _text(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()) or "–")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _when(run: RunRecord) -> str:
    return _text(f"{run.started_at[:16].replace('T', ' ')} UTC")


def _text(value: str) -> str:
    return html.escape(value)
