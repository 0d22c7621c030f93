"""Results as one HTML page that needs nothing else: no network, no other file.

What a model writes can hold anything, so every text is escaped; besides, the page's policy lets no script run but its
own, known by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from eval.comparison import ComparisonError, difference_lines, pair_runs
from eval.matching import REMEDY, Outcome
from eval.metrics import Tally
from eval.report import PUBLISHED, Published, goal_lines, label, lenient_lines, pass_hat_k_lines, robustness_lines
from eval.results import CaseResult, EvalResult

_ABSENT = "-"  # a model that was not run on the case's suite


def link(*, suite: str, model: int, category: str = "", outcome: str = "") -> tuple[str, str]:
    """Start and end of a link to the cases of a cell; `model` counts the page's models from 0."""
    wanted = {"suite": suite, "category": category, "model": str(model), "outcome": outcome}
    address = urlencode({name: value for name, value in wanted.items() if value})
    return f'<a href="#{escape(address)}">', "</a>"


def cases_section(results: Sequence[EvalResult]) -> str:
    """The filter and below it one entry for each case that at least one model did not pass."""
    models = list(dict.fromkeys(map(label, results)))
    entries = []
    for suite in dict.fromkeys(result.suite for result in results):
        by_model = {label(result): _by_id(result) for result in results if result.suite == suite}
        for case_id in dict.fromkeys(case_id for cases in by_model.values() for case_id in cases):
            verdicts = [by_model.get(model, {}).get(case_id) for model in models]
            if any(case is not None and not case.is_correct for case in verdicts):
                entries.append(_entry(suite, models, verdicts))
    if not entries:
        return "<h2>Cases</h2><p>Every case was passed.</p>" + _filters(results, models, is_hidden=True)
    return "\n".join(["<h2>Cases that were not passed</h2>", _filters(results, models), *entries])


def _by_id(result: EvalResult) -> Mapping[str, CaseResult]:
    return {case.id: case for case in result.cases}


def _filters(results: Sequence[EvalResult], models: Sequence[str], *, is_hidden: bool = False) -> str:
    outcomes = [str(outcome) for outcome in Outcome if any(outcome in result.outcomes for result in results)]
    outcomes += ["unscored"] if any(result.overall.unscored for result in results) else []
    fields = {
        "suite": {suite: suite for suite in dict.fromkeys(result.suite for result in results)},
        "category": {name: name.replace("_", " ") for result in results for name in result.categories},
        "model": {str(index): model for index, model in enumerate(models)},
        "outcome": {outcome: outcome.replace("_", " ") for outcome in outcomes},
    }
    if len(models) > 1:
        fields["change"] = {"lost": f"only {models[0]} passes", "won": f"{models[0]} fails, another passes"}
    shown = "".join(_select(name, options) for name, options in fields.items())
    text = '<label>words<input name="text" type="search"></label>'
    return f'<form id="filters"{" hidden" * is_hidden}>{shown}{text}<output id="shown"></output></form>'


def _select(name: str, options: Mapping[str, str]) -> str:
    listed = "".join(f'<option value="{escape(value)}">{escape(shown)}</option>' for value, shown in options.items())
    return f'<label>{name}<select name="{name}"><option value="">any</option>{listed}</select></label>'


def _entry(suite: str, models: Sequence[str], verdicts: Sequence[CaseResult | None]) -> str:
    """One case; `verdicts` are in the order of `models`, None where a model was not run on the suite."""
    case = next(case for case in verdicts if case is not None)
    outcomes = [_outcome(case) for case in verdicts]
    data = f'data-suite="{escape(suite)}" data-category="{escape(case.category)}" data-outcomes="{" ".join(outcomes)}"'
    ran = [
        (model, verdict, outcome)
        for model, verdict, outcome in zip(models, verdicts, outcomes, strict=True)
        if verdict is not None
    ]
    chips = "".join(_chip(f"{model}: " if len(models) > 1 else "", outcome) for model, _, outcome in ran)
    body = [_field("asked", case.prompt), _field("wanted", _calls(case.expected))]
    for model, verdict, outcome in ran:
        body += [f'<div class="who">{escape(model)} {_chip("", outcome)}</div>', _field("got", verdict.got or "")]
        if verdict.explanation:
            body.append(_field("difference" if outcome != "unscored" else "not scored", verdict.explanation))
        if verdict.transcript:
            body.append(_field("transcript", _transcript(verdict.transcript)))
    return (
        f'<details class="case" {data}><summary><code>{escape(case.id)}</code>'
        f'<span class="muted">{escape(case.category.replace("_", " "))}</span>'
        f'<span class="asked">{escape(case.prompt)}</span><span class="chips">{chips}</span></summary>'
        f'<div class="body">{"".join(body)}</div></details>'
    )


def _outcome(case: CaseResult | None) -> str:
    return _ABSENT if case is None else str(case.outcome or "unscored")


def _chip(before: str, outcome: str) -> str:
    return f'<span class="chip o-{outcome}">{escape(before)}{outcome.replace("_", " ")}</span>'


def _field(name: str, text: str) -> str:
    return f'<span class="muted">{name}</span><pre>{escape(text) or "(nothing)"}</pre>'


def _calls(expected: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}" for call in expected]
    return "\n".join(lines) or "no call, but text"


def _transcript(turns: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in turns)


PAGE_NAME = "report.html"

_ASSETS = Path(__file__).parent / "assets"


def write_page(results: Sequence[EvalResult], path: Path) -> Path:
    """Write the page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    # A reply may spell half a surrogate pair, which no file takes.
    partial.write_text(evaluation_page(results), "utf-8", errors="backslashreplace")
    return partial.replace(path)


def evaluation_page(results: Sequence[EvalResult]) -> str:
    """The whole page: for each suite a heat map and the outcomes with their remedies, then every case not passed.

    Models keep the order of `results`; those after the first are compared with it.
    """
    script = (_ASSETS / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    models = list(dict.fromkeys(map(label, results)))
    suites = list(dict.fromkeys(result.suite for result in results))
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Evaluation: {escape(', '.join(models))}</title>",
        f"<style>{(_ASSETS / 'page.css').read_text('utf-8')}</style></head><body>",
        "<h1>Evaluation</h1><p>Strict and deterministic: the right tools with exactly the right arguments, and nothing "
        "else. Follow a number to its cases.</p>",
        *(_suite(suite, [result for result in results if result.suite == suite], results) for suite in suites),
        cases_section(results),
        f"<script>{script}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _suite(suite: str, results: Sequence[EvalResult], others: Sequence[EvalResult]) -> str:
    models = list(dict.fromkeys(map(label, others)))
    lines = goal_lines(results) + lenient_lines(results) + pass_hat_k_lines(results) + robustness_lines(results, others)
    parts = [
        f"<section><h2>Suite {escape(suite)}</h2>",
        _heat_map(results, models),
        *(f"<p>{escape(line)}</p>" for line in lines),
        *(_against_first(results[0], result) for result in results[1:]),
        "<h3>What became of the cases</h3>",
        *(_outcome_bar(result, models) for result in results),
        _remedies(results, models),
        _published(PUBLISHED[suite]) if suite in PUBLISHED else "",
    ]
    return "\n".join([*parts, "</section>"])


def _heat_map(results: Sequence[EvalResult], models: Sequence[str]) -> str:
    """Rows: models. Columns: categories, all cases with the interval, then what a reply costs."""
    categories = list(dict.fromkeys(name for result in results for name in result.categories))
    head = ["model", *(name.replace("_", " ") for name in categories), "all", "95 % interval"]
    head += ["median latency", "tokens per reply", "size on disk"]
    rows = []
    for result in results:
        model = models.index(label(result))
        counts = result.by_category
        cells = [
            _rate(counts.get(name, Tally(0, 0)), suite=result.suite, category=name, model=model) for name in categories
        ]
        cells.append(_rate(result.overall, suite=result.suite, model=model))
        interval, latency, tokens = result.overall.interval, result.median_latency_s, result.tokens_per_reply
        cells += [
            f"<td>{cell}</td>"
            for cell in (
                "–" if interval is None else f"{100 * interval[0]:.0f}–{100 * interval[1]:.0f} %",
                "–" if latency is None else f"{1000 * latency:,.0f} ms",
                "–" if tokens is None else f"{tokens:,.0f}",
                "–" if result.size_bytes is None else f"{result.size_bytes / 1e6:,.1f} MB",
            )
        ]
        rows.append(f"<tr><td>{escape(label(result))}</td>{''.join(cells)}</tr>")
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead>{"".join(rows)}</table></div>'


def _rate(count: Tally, *, suite: str, model: int, category: str = "") -> str:
    """A cell of the heat map; without a colour where the rate is not known."""
    if count.unscored:
        shown, colour = f"{count.hits}<small> +{count.unscored} not scored</small>", ""
    elif not count.total:
        return '<td class="rate">–</td>'
    else:
        # From red by way of yellow to green, pale enough for black figures.
        colour = f' style="--heat:hsl({120 * count.hits / count.total:.0f} 55% 86%)"'
        shown = f"{count.hits}/{count.total}"
    link_start, link_end = link(suite=suite, category=category, model=model)
    return f'<td class="rate"{colour}>{link_start}{shown}{link_end}</td>'


def _against_first(first: EvalResult, result: EvalResult) -> str:
    if result.draw is not None:
        return ""
    head = f"<b>{escape(label(result))}</b> (B) against <b>{escape(label(first))}</b> (A): "
    try:
        lines = difference_lines(runs := pair_runs(first, result))
    except ComparisonError as error:
        return f"<p>{head}not compared: {escape(str(error))}</p>"
    lines.append(f"only A passes {runs.counts.only_first}, only B passes {runs.counts.only_second}")
    return f"<p>{head}{escape('; '.join(lines))}.</p>"


def _outcome_bar(result: EvalResult, models: Sequence[str]) -> str:
    counts: dict[str, int] = {"correct": result.overall.hits}
    counts |= {str(outcome): result.outcomes.get(outcome, 0) for outcome in Outcome if outcome is not Outcome.CORRECT}
    counts["unscored"] = result.overall.unscored
    pieces = []
    for outcome, count in counts.items():
        if not count:
            continue
        start, end = ("<span", "</span>")
        if outcome != "correct":
            start, end = link(suite=result.suite, model=models.index(label(result)), outcome=outcome)
        title = f"{outcome.replace('_', ' ')}: {count}"
        start = f'{start.removesuffix(">")} class="seg o-{outcome}" style="flex:{count}" title="{title}">'
        pieces.append(f"{start}{count}{end}")
    return f'<div class="bar"><span>{escape(label(result))}</span><div>{"".join(pieces)}</div></div>'


def _remedies(results: Sequence[EvalResult], models: Sequence[str]) -> str:
    """Rows: what went wrong, most frequent first. Columns: models, and what would help."""
    counts = {outcome: [result.outcomes.get(outcome, 0) for result in results] for outcome in Outcome}
    found = sorted((outcome for outcome in counts if sum(counts[outcome])), key=lambda o: -sum(counts[o]))
    if not found:
        return "<p>Nothing to mend.</p>"
    rows = []
    for outcome in found:
        cells = []
        for result, count in zip(results, counts[outcome], strict=True):
            start, end = link(suite=result.suite, model=models.index(label(result)), outcome=str(outcome))
            cells.append(f"<td>{f'{start}{count}{end}' if count else ''}</td>")
        name = f'<i class="dot o-{outcome}"></i>{outcome.replace("_", " ")}'
        rows.append(f'<tr><td>{name}</td>{"".join(cells)}<td class="words">{escape(REMEDY[outcome])}</td></tr>')
    top = "".join(f"<th>{escape(label(result))}</th>" for result in results)
    head = f'<thead><tr><th>outcome</th>{top}<th class="words">what would help</th></tr></thead>'
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _published(published: Published) -> str:
    """Somebody else's figures, in a table of their own."""
    top = "".join(f"<th>{escape(column)}</th>" for column in ("model", *published.columns))
    rows = []
    for name, figures in published.rows.items():
        cells = "".join(f"<td>{escape(figure) or '–'}</td>" for figure in figures)
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return (
        f'<div class="reference"><h3>For reference only: {escape(published.title)}</h3>'
        f"<p>{escape(published.source)}. Metric: {escape(published.metric)}. "
        f"<b>Not comparable with the table above:</b> {escape(published.difference)}.</p>"
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead>{"".join(rows)}</table></div></div>'
    )
