"""The page's list of cases that some model did not pass: asked, wanted, and for each model what came and why not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from eval.matching import Outcome
from eval.report_lines import label
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
