"""Challenger against champion, both as quantized files and on the same cases: better than chance can tell, or refused.

Pure: results in, decision out. Every limit gives one finding, held or not, so that the evidence of a promotion is as
complete as that of a refusal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from eval.comparison import ComparisonError, pair_runs
from eval.matching import Outcome
from eval.metrics import Tally
from eval.results import EvalResult
from retraining.config import GateConfig
from retraining.errors import RetrainError

OVERALL = "overall"
# Replies that a server could not act on: not readable as calls, cut off, or against the tool's schema. No reply at all
# is wrong, but no invalid call.
INVALID = frozenset({Outcome.UNPARSEABLE, Outcome.SCHEMA_VIOLATION})


class Rule(StrEnum):
    """What the gate looks at."""

    COMPLETE = "complete"  # every case has a verdict
    NOT_WORSE = "not_worse"
    FLOOR = "floor"
    VALID_CALLS = "valid_calls"
    LATENCY = "latency"
    SIZE = "size"


@dataclass(frozen=True)
class Finding:
    """One rule applied to one thing: a suite's category, or the file. `detail` states the numbers."""

    rule: Rule
    suite: str
    category: str
    is_held: bool
    detail: str
    p_value: float | None = None

    def __str__(self) -> str:
        where = "/".join(part for part in (self.suite, self.category) if part)
        return f"{self.rule}{f' {where}' if where else ''}: {self.detail}"


@dataclass(frozen=True)
class Judged:
    """A model as the gate sees it: an id, the file's size, and one result per suite."""

    id: str
    n_bytes: int
    results: Sequence[EvalResult]

    def rates(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Counts with Wilson intervals, by suite and category, `overall` among them."""
        return {
            result.suite: {name: count.to_json() for name, count in _counts(result).items()} for result in self.results
        }


@dataclass(frozen=True)
class Decision:
    """Promote or not, with every finding."""

    challenger: str
    champion: str | None
    findings: tuple[Finding, ...]
    evidence: Mapping[str, Any]

    @property
    def is_promotion(self) -> bool:
        """Whether every rule was held."""
        return all(finding.is_held for finding in self.findings)

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The rules that refuse it."""
        return tuple(finding for finding in self.findings if not finding.is_held)

    @property
    def reason(self) -> str:
        """One sentence."""
        if self.broken:
            return "; ".join(map(str, self.broken))
        against = f"no worse than {self.champion}" if self.champion else "there was no champion"
        return f"{against}; {len(self.findings)} rules held"

    def save(self, path: Path) -> Path:
        """Write the decision, whole or not at all."""
        value = {
            "is_promotion": self.is_promotion,
            "reason": self.reason,
            "challenger": self.challenger,
            "champion": self.champion,
            "findings": [asdict(finding) for finding in self.findings],
            **self.evidence,
        }
        partial = path.with_suffix(".json.partial")
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
        partial.replace(path)
        return path


def decide(challenger: Judged, champion: Judged | None, config: GateConfig) -> Decision:
    """Apply every rule. Without a champion there is nothing to be worse than; floors and limits still hold.

    Raises:
        RetrainError: a floor names a suite or category that was not evaluated, or the results are not on the same
            cases.
    """
    check_floors({result.suite: result.categories for result in challenger.results}, config)
    findings = [_complete(judged, result) for judged in _both(challenger, champion) for result in judged.results]
    if champion is not None and all(finding.is_held for finding in findings):
        findings += _not_worse(champion.results, challenger.results, config.significance)
    findings += [finding for result in challenger.results for finding in _floors(result, config)]
    findings.append(_valid_calls(challenger.results, config.max_invalid_calls))
    findings += _latency(challenger, champion, config)
    if config.max_bytes is not None:
        detail = f"{challenger.n_bytes} bytes, at most {config.max_bytes}"
        findings.append(Finding(Rule.SIZE, "", "", challenger.n_bytes <= config.max_bytes, detail))
    evidence = {
        "limits": config.model_dump(mode="json"),
        "rates": {
            "challenger": challenger.rates(),
            "champion": champion.rates() if champion is not None else None,
        },
        "fingerprints": {result.suite: result.suite_fingerprint for result in challenger.results},
    }
    return Decision(challenger.id, champion.id if champion else None, tuple(findings), evidence)


def _both(challenger: Judged, champion: Judged | None) -> list[Judged]:
    return [challenger] if champion is None else [challenger, champion]


def _complete(judged: Judged, result: EvalResult) -> Finding:
    count = result.overall
    detail = f"{judged.id}: {count.total} cases scored, {count.unscored} without a reply"
    return Finding(Rule.COMPLETE, result.suite, "", not count.unscored and count.total > 0, detail)


def _not_worse(first: Sequence[EvalResult], second: Sequence[EvalResult], significance: float) -> list[Finding]:
    by_suite = {result.suite: result for result in second}
    if [result.suite for result in first] != list(by_suite):
        raise RetrainError(f"not the same suites: {[result.suite for result in first]} and {list(by_suite)}")
    findings = []
    for result in first:
        other = by_suite[result.suite]
        for category in (*result.categories, OVERALL):
            findings += _compared(result, other, category, significance)
    return findings


def _compared(champion: EvalResult, challenger: EvalResult, category: str, significance: float) -> list[Finding]:
    before, after = _part(champion, category), _part(challenger, category)
    if not before.cases and not after.cases:
        return []
    try:
        pair = pair_runs(before, after)
    except ComparisonError as error:
        raise RetrainError(str(error)) from error
    gain = pair.difference
    if pair.p_value is None:  # cases that were derived from one another: an interval over their origins
        is_worse = gain.high < 0
        test = f"95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f} points"
    else:
        is_worse = gain.rate < 0 and pair.p_value < significance
        test = f"McNemar's exact p = {pair.p_value:.4f}, threshold {significance:g}"
    detail = (
        f"{before.overall.hits}/{before.overall.total} became {after.overall.hits}/{after.overall.total}, lost "
        f"{pair.counts.only_first}, won {pair.counts.only_second} ({test})"
    )
    return [Finding(Rule.NOT_WORSE, champion.suite, category, not is_worse, detail, pair.p_value)]


def _part(result: EvalResult, category: str) -> EvalResult:
    if category == OVERALL:
        return result
    cases = tuple(case for case in result.cases if case.category == category)
    return replace(result, categories=(category,), cases=cases)


def _floors(result: EvalResult, config: GateConfig) -> list[Finding]:
    counts = _counts(result)
    findings = []
    for category, floor in config.floors.get(result.suite, {}).items():
        rate = counts[category].rate
        shown = "unknown" if rate is None else f"{counts[category].hits}/{counts[category].total} = {rate:.3f}"
        is_held = rate is not None and rate >= floor
        findings.append(Finding(Rule.FLOOR, result.suite, category, is_held, f"{shown}, at least {floor:g}"))
    return findings


def check_floors(categories: Mapping[str, Sequence[str]], config: GateConfig) -> None:
    """Every floor is of something that is evaluated; `categories` is by suite.

    Raises:
        RetrainError: names the key.
    """
    known = {suite: [*names, OVERALL] for suite, names in categories.items()}
    for suite, floors in config.floors.items():
        if suite not in known:
            raise RetrainError(f"gate.floors.{suite}: not one of the evaluated suites {list(known)}")
        for category in floors:
            if category not in known[suite]:
                raise RetrainError(f"gate.floors.{suite}.{category}: not one of {known[suite]}")


def _valid_calls(results: Sequence[EvalResult], most: int) -> Finding:
    cases = [
        f"{case.id} {case.outcome}"
        for result in results
        for case in result.cases
        if case.outcome in INVALID and case.got and case.got.strip()
    ]
    named = f" ({', '.join(cases[:5])})" if cases else ""
    return Finding(Rule.VALID_CALLS, "", "", len(cases) <= most, f"{len(cases)} invalid{named}, at most {most}")


def _latency(challenger: Judged, champion: Judged | None, config: GateConfig) -> list[Finding]:
    own = _median_ms(challenger)
    findings = []
    if config.max_median_latency_ms is not None:
        is_held = own is not None and own <= config.max_median_latency_ms
        detail = f"median {_shown(own)}, at most {config.max_median_latency_ms:g} ms"
        findings.append(Finding(Rule.LATENCY, "", "", is_held, detail))
    if config.max_latency_ratio is not None and champion is not None:
        before = _median_ms(champion)
        is_held = own is not None and before is not None and own <= config.max_latency_ratio * before
        detail = f"median {_shown(own)} after {_shown(before)}, at most {config.max_latency_ratio:g} times as long"
        findings.append(Finding(Rule.LATENCY, "", "relative", is_held, detail))
    return findings


def _median_ms(judged: Judged) -> float | None:
    """Of the first suite: medians of different suites are of different prompts."""
    seconds = judged.results[0].median_latency_s
    return None if seconds is None else 1000 * seconds


def _shown(milliseconds: float | None) -> str:
    return "unknown" if milliseconds is None else f"{milliseconds:.1f} ms"


def _counts(result: EvalResult) -> dict[str, Tally]:
    return {**result.by_category, OVERALL: result.overall}
