"""Results as terminal tables: pass rates with their n and interval, failed cases with their remedy."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from eval.matching import REMEDY, Outcome
from eval.metrics import Tally, compare
from eval.report_lines import goal_lines, label, lenient_lines, pass_hat_k_lines, robustness_lines
from eval.results import EvalResult


def print_report(
    results: Sequence[EvalResult], console: Console, *, show_outcomes: bool = False, show_failures: bool = False
) -> None:
    """One table per suite, rows are models; on request what went wrong with its remedy, and the failed cases."""
    for suite in dict.fromkeys(result.suite for result in results):
        of_suite = [result for result in results if result.suite == suite]
        console.print(summary_table(of_suite))
        if unscored := sum(result.overall.unscored for result in of_suite):
            console.print(f"?: {unscored} without a reply, not scored; no rate over an unknown number", highlight=False)
        lines = comparison_lines(of_suite) + goal_lines(of_suite) + lenient_lines(of_suite)
        lines += pass_hat_k_lines(of_suite)
        for line in lines + robustness_lines(of_suite, results):
            console.print(line, highlight=False, markup=False)
        if show_outcomes and any(result.outcomes for result in of_suite):
            console.print(outcome_table(of_suite))
        if show_failures:
            for result in of_suite:
                console.print(failures(result))


def summary_table(results: Sequence[EvalResult]) -> Table:
    """Rows: models. Columns: categories and overall as hits/total, the overall one with its Wilson 95 % interval."""
    categories = list(dict.fromkeys(name for result in results for name in result.categories))
    title = f"suite {escape(results[0].suite)}: cases passed" if results else None
    # Narrow enough for 80 columns with the five shipped categories.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("model", overflow="fold")
    for name in categories:
        table.add_column(escape(name.replace("_", "\n")), justify="right", overflow="fold")
    table.add_column("overall", justify="right", style="bold")
    table.add_column("95 %\ninterval", justify="right")
    table.add_column("median\nlatency", justify="right")
    for result in results:
        counts = result.by_category
        latency = result.median_latency_s
        table.add_row(
            escape(label(result)),
            *(_cell(counts.get(name, Tally(0, 0))) for name in categories),
            _cell(result.overall),
            _interval(result.overall),
            "–" if latency is None else f"{latency * 1000:.0f} ms",
        )
    return table


def outcome_table(results: Sequence[EvalResult]) -> Table:
    """Rows: what went wrong, most frequent first, each with what would help. Columns: models."""
    title = f"suite {escape(results[0].suite)}: cases failed, and what would help" if results else None
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("outcome")
    for result in results:
        table.add_column(escape(label(result)), justify="right", overflow="fold")
    table.add_column("remedy", overflow="fold")
    counts = {outcome: [result.outcomes.get(outcome, 0) for result in results] for outcome in Outcome}
    for outcome in sorted(counts, key=lambda outcome: -sum(counts[outcome])):
        if sum(counts[outcome]):
            table.add_row(str(outcome), *(str(count or "") for count in counts[outcome]), REMEDY[outcome])
    return table


def comparison_lines(results: Sequence[EvalResult]) -> list[str]:
    """Each model against the first one, by McNemar's exact test, where both were fully scored on the same cases."""
    lines = []
    for result in results[1:]:
        base = results[0]
        if result.draw is not None or any(case.parent for case in result.cases):
            continue  # draws of one model, or cases that hang together: McNemar's test does not apply
        if result.suite_fingerprint != base.suite_fingerprint:
            lines.append(f"{result.model_name} and {base.model_name} were scored on different versions of the suite")
        elif not (result.overall.unscored or base.overall.unscored):
            found = compare(base.verdicts(), result.verdicts())
            lines.append(
                f"{result.model_name} against {base.model_name}: passes {found.only_second} that it fails, fails "
                f"{found.only_first} that it passes (McNemar's exact p = {_p_value(found.p_value)})"
            )
    return lines


def failures(result: EvalResult) -> Group:
    """Every case that did not pass: request, wanted, got, why; then each outcome's count and remedy."""
    blocks: list[Text] = [Text(f"{result.model_name} on {result.suite}: not passed", style="bold")]
    for case in result.cases:
        if case.outcome is Outcome.CORRECT:
            continue
        block = Text(f"{case.id} {case.outcome or 'unscored'}\n", style="red" if case.outcome else "yellow")
        block.append(f"  asked  {case.prompt}\n  got    {case.got}\n  why    {case.explanation}", style="default")
        for line in case.transcript:
            block.append(f"\n    {line['role']:<9} {line['content']}", style="dim")
        blocks.append(block)
    blocks += [Text(f"{count} × {outcome}: {REMEDY[outcome]}") for outcome, count in result.outcomes.items()]
    return Group(*blocks)


def _cell(count: Tally) -> str:
    if count.unscored:
        return f"{count.hits} +{count.unscored}?"
    return f"{count.hits}/{count.total}" if count.total else "–"


def _interval(count: Tally) -> str:
    interval = count.interval
    return "–" if interval is None else f"{interval[0] * 100:.0f}–{interval[1] * 100:.0f} %"


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
