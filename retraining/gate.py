"""Challenger against champion, both as quantized files and on the same cases: promote, refuse, or too little is known.

A challenger is promoted where Tango's one-sided bound shows that it loses less than the margins: on all cases together,
and in each category. It is refused where a loss is shown that is not within its margin, and the champion stays where
neither is shown. `python -m scripts.gate_power` says how often each happens to models that are equal or worse.

Pure: results in, decision out. Every rule gives one finding, held or not, so that the evidence of a promotion is as
complete as that of a refusal.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

from eval.comparison import ComparisonError, pair_runs
from eval.matching import Outcome
from eval.metrics import Tally, loss_bounds, paired_score, tally, wanted
from eval.results import CaseResult, EvalResult
from retraining.config import GateConfig
from retraining.errors import RetrainError

OVERALL = "overall"
# Replies that a server could not act on: not readable as calls, cut off, or against the tool's schema. No reply at all
# is wrong, but no invalid call.
INVALID = frozenset({Outcome.UNPARSEABLE, Outcome.SCHEMA_VIOLATION})
# How often an equal model should be promoted with the number of cases that an unclear comparison asks for.
_POWER = 0.85


class Verdict(StrEnum):
    """What one rule, or the gate as a whole, says of a challenger."""

    PROMOTE = "promote"
    REFUSE = "refuse"
    INCONCLUSIVE = "inconclusive"


class Rule(StrEnum):
    """What the gate looks at."""

    COMPLETE = "complete"  # every case has a verdict
    LOSS = "loss"  # against the champion
    LOSS_ON_BEST = "loss_on_best"  # against the best champion of the last weeks
    FLOOR = "floor"
    VALID_CALLS = "valid_calls"
    LATENCY = "latency"
    SIZE = "size"


@dataclass(frozen=True)
class Pair:
    """Two models on the same cases: `lost` passes only the first, `won` only the second; so for any other yes or no."""

    lost: int
    won: int
    total: int

    def __add__(self, other: Pair) -> Pair:
        return Pair(self.lost + other.lost, self.won + other.won, self.total + other.total)


@dataclass(frozen=True)
class Finding:
    """One rule applied to one thing: all cases, a category, or the file. `detail` states the numbers."""

    rule: Rule
    suite: str
    category: str
    verdict: Verdict
    detail: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

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
    """A verdict with every finding that led to it."""

    challenger: str
    champion: str | None
    findings: tuple[Finding, ...]
    evidence: Mapping[str, Any]

    @property
    def verdict(self) -> Verdict:
        """Refused where one rule refuses; promoted where all are held."""
        found = {finding.verdict for finding in self.findings}
        return next((each for each in (Verdict.REFUSE, Verdict.INCONCLUSIVE) if each in found), Verdict.PROMOTE)

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The findings that decide against promotion: what refuses it or, where nothing does, what is not known."""
        if self.verdict is Verdict.PROMOTE:
            return ()
        return tuple(finding for finding in self.findings if finding.verdict is self.verdict)

    @property
    def wants_cases(self) -> bool:
        """Whether nothing but too few cases stands against promotion."""
        rules = {finding.rule for finding in self.broken}
        return self.verdict is Verdict.INCONCLUSIVE and rules <= {Rule.LOSS, Rule.LOSS_ON_BEST, Rule.VALID_CALLS}

    @property
    def reason(self) -> str:
        """One sentence."""
        if self.broken:
            return "; ".join(map(str, self.broken))
        against = f"no worse than {self.champion} within the margins" if self.champion else "there was no champion"
        return f"{against}; {len(self.findings)} rules held"

    def save(self, path: Path) -> Path:
        """Write the decision, whole or not at all."""
        value = {
            "verdict": self.verdict,
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


def decide(challenger: Judged, champion: Judged | None, config: GateConfig, best: Judged | None = None) -> Decision:
    """Apply every rule. Without a champion there is nothing to be worse than; the floors hold then, and all limits.

    Args:
        best: the best champion of the last weeks, where it is another than `champion`.

    Raises:
        RetrainError: a floor names a suite or category that was not evaluated, or the results are not on the same
            cases.
    """
    check_floors({result.suite: result.categories for result in challenger.results}, config)
    opponents = {rule: each for rule, each in ((Rule.LOSS, champion), (Rule.LOSS_ON_BEST, best)) if each is not None}
    findings = [_complete(each, r) for each in (challenger, *opponents.values()) for r in each.results]
    if all(finding.verdict is Verdict.PROMOTE for finding in findings):
        for rule, each in opponents.items():
            findings += _losses(rule, each.results, challenger.results, config, len(opponents))
        findings.append(
            _first_validity(challenger, config)
            if champion is None
            else _valid_calls(champion.results, challenger.results, config, len(opponents))
        )
    findings += [finding for result in challenger.results for finding in _floors(result, config)]
    if champion is None:
        findings.append(_first_rate(challenger, config))
    findings += _latency(challenger, champion, config)
    if config.max_bytes is not None:
        detail = f"{challenger.n_bytes} bytes, at most {config.max_bytes}"
        findings.append(Finding(Rule.SIZE, "", "", _held(challenger.n_bytes <= config.max_bytes), detail))
    evidence = {
        "limits": config.model_dump(mode="json"),
        "best": best.id if best is not None else None,
        "rates": {
            "challenger": challenger.rates(),
            "champion": champion.rates() if champion is not None else None,
            "best": best.rates() if best is not None else None,
        },
        "fingerprints": {result.suite: result.suite_fingerprint for result in challenger.results},
    }
    return Decision(challenger.id, champion.id if champion else None, tuple(findings), evidence)


def judge_losses(pairs: Mapping[str, Pair], config: GateConfig, n_opponents: int = 1) -> dict[str, Verdict]:
    """The verdict on each category and on all of them together (`OVERALL`).

    Promoted is a loss that the upper bound keeps within the margin at `config.confidence`; of the rest a loss is
    refused whose lower bound is above nothing. The risk to refuse an equal model, `config.refusal_risk`, is shared out
    evenly over all comparisons and looks (Bonferroni), that of invalid calls among them.
    """
    whole = {**pairs, OVERALL: sum(pairs.values(), Pair(0, 0, 0))}
    surely = _surely(config, len(pairs), n_opponents)
    return {
        name: _bounded(
            pair, config.max_loss if name == OVERALL else config.max_category_loss, config.confidence, surely
        )
        for name, pair in whole.items()
    }


@lru_cache(maxsize=1 << 16)
def _bounded(pair: Pair, margin: float, confidence: float, surely: float) -> Verdict:
    # A bound lies within the margin where the margin's own score is extreme: no search for the bound is needed.
    if paired_score(pair.lost, pair.won, pair.total, margin) < -NormalDist().inv_cdf(confidence):
        return Verdict.PROMOTE
    is_loss = paired_score(pair.lost, pair.won, pair.total, 0.0) > NormalDist().inv_cdf(surely)
    return Verdict.REFUSE if is_loss else Verdict.INCONCLUSIVE


def _surely(config: GateConfig, n_categories: int, n_opponents: int) -> float:
    return 1 - config.refusal_risk / ((n_categories + 2) * n_opponents * config.looks)


def judge_invalid(pair: Pair, config: GateConfig, n_categories: int, n_opponents: int = 1) -> Verdict:
    """The verdict on invalid calls: `won` counts the cases that became invalid, `lost` those that ceased to be."""
    if pair.won - pair.lost <= config.max_invalid_excess * pair.total:
        return Verdict.PROMOTE
    surely = _surely(config, n_categories, n_opponents)
    is_excess = paired_score(pair.won, pair.lost, pair.total, 0.0) > NormalDist().inv_cdf(surely)
    return Verdict.REFUSE if is_excess else Verdict.INCONCLUSIVE


def cases_needed(pair: Pair, margin: float, confidence: float) -> int:
    """How many cases would show that an equal model is one, in 85 of 100 trials, where as many verdicts differ."""
    z = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(_POWER)
    changed = max(1, pair.lost + pair.won) / pair.total
    return math.ceil(changed * (z / margin) ** 2)


def categories_of(cases: Sequence[CaseResult], config: GateConfig) -> list[str]:
    """The category in which each case is judged.

    Categories of one name count as one, whatever suite they are of. One with fewer cases than
    `config.min_category_cases` could never be bounded: its cases are judged with others that want as many calls.
    """
    counts = Counter(case.category for case in cases)
    return [
        case.category if counts[case.category] >= config.min_category_cases else str(wanted(len(case.expected)))
        for case in cases
    ]


def _complete(judged: Judged, result: EvalResult) -> Finding:
    count = result.overall
    detail = f"{judged.id}: {count.total} cases scored, {count.unscored} without a reply"
    return Finding(Rule.COMPLETE, result.suite, "", _held(not count.unscored and count.total > 0), detail)


def _losses(
    rule: Rule, first: Sequence[EvalResult], second: Sequence[EvalResult], config: GateConfig, n_opponents: int
) -> Iterator[Finding]:
    matched = list(_matched(first, second))
    alone = [pair for pair in matched if not _is_derived(pair[0])]
    before = [case for result, _ in alone for case in result.cases]
    after = {(result.suite, case.id): case for _, result in alone for case in result.cases}
    suites = [result.suite for result, _ in alone for _ in result.cases]
    pairs: dict[str, Pair] = {}
    for suite, case, category in zip(suites, before, categories_of(before, config), strict=True):
        pair = _pair(bool(case.is_correct), bool(after[suite, case.id].is_correct))
        pairs[category] = pairs.get(category, Pair(0, 0, 0)) + pair
    if pairs:
        verdicts = judge_losses(pairs, config, n_opponents)
        whole = {**pairs, OVERALL: sum(pairs.values(), Pair(0, 0, 0))}
        for category, verdict in verdicts.items():
            yield _loss(rule, category, whole[category], verdict, config)
    for one, other in matched:
        if _is_derived(one):
            yield _derived_loss(rule, one, other, config)


def _loss(rule: Rule, category: str, pair: Pair, verdict: Verdict, config: GateConfig) -> Finding:
    margin = config.max_loss if category == OVERALL else config.max_category_loss
    low, high = loss_bounds(pair.lost, pair.won, pair.total, config.confidence)
    detail = (
        f"lost {pair.lost} and won {pair.won} of {pair.total} cases, so at most {100 * high:.1f} points are lost "
        f"({100 * config.confidence:g} % sure), and less than {100 * margin:g} may be"
    )
    if verdict is Verdict.REFUSE:
        detail = (
            f"lost {pair.lost} and won {pair.won} of {pair.total} cases, so at least {100 * low:.1f} points are lost "
            f"({100 * config.confidence:g} % sure), and less than {100 * margin:g} are not shown"
        )
    if verdict is Verdict.INCONCLUSIVE:
        detail += f"; about {cases_needed(pair, margin, config.confidence)} cases would tell"
    bounds = {"low": round(low, 5), "high": round(high, 5), "margin": margin}
    return Finding(rule, "", category, verdict, detail, {**asdict(pair), **bounds})


def _derived_loss(rule: Rule, first: EvalResult, second: EvalResult, config: GateConfig) -> Finding:
    """Cases of one origin pass and fail together: an interval over the origins takes the place of Tango's."""
    gain = pair_runs(first, second).difference
    margin = config.max_category_loss
    verdict = Verdict.PROMOTE if gain.low > -margin else Verdict.REFUSE if gain.high < 0 else Verdict.INCONCLUSIVE
    detail = (
        f"95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f} points over {gain.clusters} origins, and less "
        f"than {100 * margin:g} may be lost"
    )
    return Finding(rule, first.suite, "", verdict, detail)


def _matched(first: Sequence[EvalResult], second: Sequence[EvalResult]) -> Iterator[tuple[EvalResult, EvalResult]]:
    by_suite = {result.suite: result for result in second}
    if [result.suite for result in first] != list(by_suite):
        raise RetrainError(f"not the same suites: {[result.suite for result in first]} and {list(by_suite)}")
    for result in first:
        other = by_suite[result.suite]
        try:
            pair_runs(result, other)
        except ComparisonError as error:
            raise RetrainError(str(error)) from error
        yield result, other


def _is_derived(result: EvalResult) -> bool:
    return any(case.parent for case in result.cases)


def _pair(before: bool, after: bool) -> Pair:
    return Pair(int(before and not after), int(after and not before), 1)


def _floors(result: EvalResult, config: GateConfig) -> list[Finding]:
    counts = _counts(result)
    findings = []
    for category, floor in config.floors.get(result.suite, {}).items():
        rate = counts[category].rate
        shown = "unknown" if rate is None else f"{counts[category].hits}/{counts[category].total} = {rate:.3f}"
        is_held = rate is not None and rate >= floor
        findings.append(Finding(Rule.FLOOR, result.suite, category, _held(is_held), f"{shown}, at least {floor:g}"))
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


def _first_rate(challenger: Judged, config: GateConfig) -> Finding:
    count = tally([case.is_correct for result in challenger.results for case in result.cases])
    is_held = count.rate is not None and count.rate >= config.first_min_rate
    detail = f"the first champion: {count.hits}/{count.total} cases passed, at least {config.first_min_rate:g} of them"
    return Finding(Rule.FLOOR, "", OVERALL, _held(is_held), detail)


def _first_validity(challenger: Judged, config: GateConfig) -> Finding:
    cases = [case for result in challenger.results for case in result.cases]
    invalid = [case for case in cases if is_invalid(case)]
    is_held = len(invalid) <= config.first_max_invalid * len(cases)
    detail = (
        f"the first champion: {len(invalid)} of {len(cases)} replies invalid{_named(invalid)}, at most "
        f"{100 * config.first_max_invalid:g} %"
    )
    return Finding(Rule.VALID_CALLS, "", "", _held(is_held), detail)


def _valid_calls(
    first: Sequence[EvalResult], second: Sequence[EvalResult], config: GateConfig, n_opponents: int
) -> Finding:
    before = {(result.suite, case.id): case for result in first for case in result.cases}
    after = [(result.suite, case) for result in second for case in result.cases]
    pair = sum((_pair(is_invalid(before[suite, case.id]), is_invalid(case)) for suite, case in after), Pair(0, 0, 0))
    n_categories = len(set(categories_of([case for _, case in after], config)))
    verdict = judge_invalid(pair, config, n_categories, n_opponents)
    invalid = [case for _, case in after if is_invalid(case)]
    detail = (
        f"{pair.won} of {pair.total} replies became invalid and {pair.lost} ceased to be{_named(invalid)}, an excess "
        f"of {100 * (pair.won - pair.lost) / pair.total:.2f} % where {100 * config.max_invalid_excess:g} % may be"
    )
    return Finding(Rule.VALID_CALLS, "", "", verdict, detail, asdict(pair))


def is_invalid(case: CaseResult) -> bool:
    """Whether a reply holds something that nobody could act on."""
    return case.outcome in INVALID and bool(case.got and case.got.strip())


def _named(invalid: Sequence[CaseResult]) -> str:
    return f" ({', '.join(f'{case.id} {case.outcome}' for case in invalid[:5])})" if invalid else ""


def _latency(challenger: Judged, champion: Judged | None, config: GateConfig) -> list[Finding]:
    own = _median_ms(challenger)
    findings = []
    if config.max_median_latency_ms is not None:
        is_held = own is not None and own <= config.max_median_latency_ms
        detail = f"median {_shown(own)}, at most {config.max_median_latency_ms:g} ms"
        findings.append(Finding(Rule.LATENCY, "", "", _held(is_held), detail))
    if config.max_latency_ratio is not None and champion is not None:
        before = _median_ms(champion)
        is_held = own is not None and before is not None and own <= config.max_latency_ratio * before
        detail = f"median {_shown(own)} after {_shown(before)}, at most {config.max_latency_ratio:g} times as long"
        findings.append(Finding(Rule.LATENCY, "", "relative", _held(is_held), detail))
    return findings


def _median_ms(judged: Judged) -> float | None:
    """Of the first suite: medians of different suites are of different prompts."""
    seconds = judged.results[0].median_latency_s
    return None if seconds is None else 1000 * seconds


def _shown(milliseconds: float | None) -> str:
    return "unknown" if milliseconds is None else f"{milliseconds:.1f} ms"


def _held(is_held: bool) -> Verdict:
    return Verdict.PROMOTE if is_held else Verdict.REFUSE


def _counts(result: EvalResult) -> dict[str, Tally]:
    return {**result.by_category, OVERALL: result.overall}
