"""Two results on the same cases: what changed, how sure that is, and which cases to read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from eval.matching import REMEDY, Outcome
from eval.metrics import Comparison, Difference, Tally, compare, paired_bootstrap, require_verdicts
from eval.results import CaseResult, EvalResult
from tinydispatch.formats import parse_reply

_SIGNIFICANT = 0.05


class ComparisonError(ValueError):
    """Two results that cannot be compared; the message says why and what to do."""


@dataclass(frozen=True)
class PairedRuns:
    """`counts` is by case; `p_value` is None where cases were derived from one another and so are not independent."""

    first: EvalResult
    second: EvalResult
    counts: Comparison
    p_value: float | None
    difference: Difference

    @property
    def is_worse(self) -> bool:
        """Whether the second passes fewer cases by more than chance explains."""
        if self.p_value is None:
            return self.difference.high < 0
        return self.difference.rate < 0 and self.p_value < _SIGNIFICANT


def pair_runs(first: EvalResult, second: EvalResult) -> PairedRuns:
    """Compare two results case by case.

    Raises:
        ComparisonError: other suites, other versions of a suite, or a case without a verdict.
    """
    if first.suite != second.suite:
        raise ComparisonError(f"one result is on suite '{first.suite}', the other on '{second.suite}'")
    if first.suite_fingerprint != second.suite_fingerprint:
        raise ComparisonError(
            f"the results are on different versions of suite '{first.suite}' ({first.suite_fingerprint}, "
            f"{second.suite_fingerprint}): evaluate both models again"
        )
    origin = {case.id: case.parent or case.id for case in first.cases}
    is_derived = any(case.parent for case in first.cases)
    try:
        require_verdicts(first.verdicts())
        require_verdicts(second.verdicts())
        counts = compare(first.verdicts(), second.verdicts())
        difference = paired_bootstrap(first.verdicts(), second.verdicts(), cluster_of=origin)
    except ValueError as error:
        raise ComparisonError(str(error)) from error
    return PairedRuns(first, second, counts, None if is_derived else counts.p_value, difference)


def comparison_report(runs: PairedRuns) -> Group:
    """Pass rates side by side by category, the tests, and the cases that changed, with what would win the lost back."""
    first, second = runs.first, runs.second
    table = Table(title=f"suite {escape(first.suite)}: cases passed", title_justify="left", box=box.SIMPLE_HEAD)
    for title in ("category", f"A: {escape(first.model_name)}", f"B: {escape(second.model_name)}"):
        table.add_column(title, justify="left" if title == "category" else "right", overflow="fold")
    for title in ("only A", "only B"):
        table.add_column(title, justify="right")
    for category in first.categories:
        table.add_row(escape(category), *_row(_of(first, category), _of(second, category)))
    table.add_row("overall", *_row(first.cases, second.cases), style="bold")
    return Group(table, *(Text(line) for line in difference_lines(runs)), *_changes(runs))


def difference_lines(runs: PairedRuns) -> list[str]:
    """The difference with its interval, and how likely one as large is by chance."""
    gain = runs.difference
    return [
        f"B − A = {100 * gain.rate:+.1f} points, 95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f} "
        f"(paired bootstrap over {gain.clusters} {'parents' if runs.p_value is None else 'cases'})",
        f"McNemar's exact p = {runs.p_value:.4f}"
        if runs.p_value is not None
        else "no McNemar test: cases derived from one parent are not independent",
    ]


def reply_lines(first: EvalResult, second: EvalResult) -> list[str]:
    """How many cases got the same replies, words and calls, and each of the others with both."""
    others = {case.id: case for case in second.cases}
    differing = [(case, others[case.id]) for case in first.cases if _said(case) != _said(others[case.id])]
    lines = [f"the same replies in {len(first.cases) - len(differing)} of {len(first.cases)} cases"]
    for one, other in differing:
        lines.append(f"  {one.id}  A {one.outcome or 'unscored'}, B {other.outcome or 'unscored'}")
        lines += [f"    A {one.got}", f"    B {other.got}"]
    return lines


def _said(case: CaseResult) -> list[str]:
    """Every reply of a case; of calls that can be read, what they say and not how their JSON is spaced."""
    replies = [turn["content"] for turn in case.transcript if turn["role"] == "assistant"] or [case.got or ""]
    return [_normal(reply) for reply in replies]


def _normal(reply: str) -> str:
    parsed = parse_reply(reply)
    if parsed.unparsed:
        return reply
    return json.dumps([parsed.content, [[call.name, dict(call.arguments)] for call in parsed.calls]], sort_keys=True)


def _of(result: EvalResult, category: str) -> list[CaseResult]:
    return [case for case in result.cases if case.category == category]


def _row(first: Sequence[CaseResult], second: Sequence[CaseResult]) -> list[str]:
    passed = [{case.id for case in cases if case.is_correct} for cases in (first, second)]
    counts = [Tally(len(ids), len(cases)) for ids, cases in zip(passed, (first, second), strict=True)]
    shown = [f"{count.hits}/{count.total}" if count.total else "–" for count in counts]
    return [*shown, str(len(passed[0] - passed[1])), str(len(passed[1] - passed[0]))]


def _changes(runs: PairedRuns) -> list[Text]:
    before, after = ({case.id: case for case in result.cases} for result in (runs.first, runs.second))
    lost = [after[case] for case in before if before[case].is_correct and not after[case].is_correct]
    won = [before[case] for case in before if after[case].is_correct and not before[case].is_correct]
    blocks = [Text(f"\nB fails, A passes ({len(lost)}):", style="bold")] if lost else []
    blocks += [Text(f"  {case.id}  {case.outcome}: {case.explanation}") for case in lost]
    outcomes = Counter(case.outcome for case in lost)
    blocks += [
        Text(f"  {count} × {kind}: {REMEDY[kind]}") for kind, count in outcomes.most_common() if kind is not None
    ]
    if won:
        blocks.append(Text(f"\nB passes, A fails ({len(won)}):", style="bold"))
        blocks += [Text(f"  {case.id}  was {case.outcome or Outcome.UNPARSEABLE}: {case.explanation}") for case in won]
    return blocks
