"""Results as terminal tables: pass rates with their n and interval, failed cases with their remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from eval.matching import REMEDY, Outcome
from eval.metrics import Tally, UnknownRateError, compare, pass_hat_k
from eval.results import EvalResult

_MAX_K = 8


def label(result: EvalResult) -> str:
    """A result's row: the model, and which draw of several."""
    return result.model_name if result.draw is None else f"{result.model_name} (draw {result.draw})"


def goal_lines(results: Sequence[EvalResult]) -> list[str]:
    """The lenient score of played cases, apart from the strict one."""
    lines = []
    for result in results:
        if (goals := result.goals_reached) is not None and not goals.unscored:
            lines.append(
                f"{label(result)}: right final state in {goals.hits}/{goals.total}, by whatever way (lenient; the "
                "table asks for the right calls at the right time)"
            )
    return lines


def lenient_lines(results: Sequence[EvalResult]) -> list[str]:
    """Scores by a suite's other rule, apart from the strict ones."""
    lines = []
    for result in results:
        by_category = result.lenient_by_category
        overall = sum(by_category.values(), Tally(0, 0))
        if overall.total and not overall.unscored:
            shown = ", ".join(
                f"{name} {count.hits}/{count.total}" for name, count in by_category.items() if count.total
            )
            lines.append(f"{label(result)} by {result.lenient_rule} (lenient): {overall.hits}/{overall.total}: {shown}")
    return lines


def robustness_lines(results: Sequence[EvalResult], others: Sequence[EvalResult]) -> list[str]:
    """For derived suites: of the cases that the model passes as they were written, how many it still passes.

    Args:
        others: results on all suites, among them the parents', of the same models.
    """
    lines = []
    for result in results:
        parents = {case.parent for case in result.cases} - {""}
        base = next((other for other in others if _is_parent_run(other, result, parents)), None)
        if not parents or base is None or base.overall.unscored or result.overall.unscored:
            continue
        passed = {case.id for case in base.cases if case.is_correct}
        kept = {name: _kept(result, name, passed) for name in result.categories}
        shown = ", ".join(f"{name.replace('_', ' ')} {count.hits}/{count.total}" for name, count in kept.items())
        lines.append(f"{label(result)}: of the {base.suite} cases that it passes unchanged, it still passes: {shown}")
    return lines


def _is_parent_run(other: EvalResult, derived: EvalResult, parents: set[str]) -> bool:
    is_same_model = (other.model_name, other.draw) == (derived.model_name, derived.draw)
    return is_same_model and other.suite != derived.suite and parents <= {case.id for case in other.cases}


def _kept(result: EvalResult, category: str, passed: set[str]) -> Tally:
    verdicts = [case.is_correct for case in result.cases if case.category == category and case.parent in passed]
    return Tally(sum(map(bool, verdicts)), len(verdicts))


def pass_hat_k_lines(results: Sequence[EvalResult]) -> list[str]:
    """pass^k for every model that was drawn from more than once on one suite."""
    lines = []
    for model in dict.fromkeys(result.model_name for result in results if result.draw is not None):
        draws = [result for result in results if result.model_name == model and result.draw is not None]
        verdicts = [draw.verdicts() for draw in draws]
        if len(draws) < 2 or any(other.keys() != verdicts[0].keys() for other in verdicts):
            continue
        samples = {case: [draw[case] for draw in verdicts] for case in verdicts[0]}
        try:
            rates = [f"k={k} {100 * pass_hat_k(samples, k):.1f} %" for k in range(1, min(len(draws), _MAX_K) + 1)]
            lines.append(f"{model}: pass^k over {len(draws)} draws of {len(samples)} cases: {', '.join(rates)}")
        except UnknownRateError as error:
            lines.append(f"{model}: no pass^k: {error}")
    return lines


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


@dataclass(frozen=True)
class Published:
    """One table of somebody else's: `metric` says what its figures are, `difference` why ours are not the same.

    `rows` maps each model to its figures, as printed there, in the order of `columns`.
    """

    title: str
    source: str
    metric: str
    difference: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[str]]


_EIGHT_TOOLS = Published(
    title="13 local models on 40 requests to eight tools",
    source="jdhodges.com, I Tested 13 Local LLMs on Tool Calling: March 2026",
    metric="share of 40 cases passed, deterministic; models served by LM Studio, most of them as Q4_K_M",
    difference="its cases and its harness are not public: ours are other requests to tools of the same kind",
    columns=("published pass rate",),
    rows={
        "Qwen3.5 4B": ("97.5 %",),
        "GLM-4.7-Flash": ("95.0 %",),
        "Nemotron Nano 4B": ("95.0 %",),
        "Mistral Nemo 12B": ("92.5 %",),
        "Qwen3 8B": ("85.0 %",),
        "GPT-OSS 20B": ("85.0 %",),
        "Mistral Small 3.2": ("42.5 %",),
        "Hammer 2.1 7B": ("20.0 %",),
        "xLAM-2 8B": ("15.0 %",),
    },
)
_TOOLBENCH = Published(
    title="OPT-350M fine-tuned on ToolBench",
    source="arXiv 2512.15943",
    metric="ToolEval pass rate: a judge model decides whether a whole solution path solves the request",
    difference="ours asks whether the next reply is the held-out one, call by call, and no judge is asked",
    columns=("G1 instruction", "G1 tool", "G1 category", "G2 instruction", "G2 category", "G3 instruction", "all"),
    rows={
        "OPT-350M, one epoch": ("78.5 %", "79.0 %", "74.0 %", "74.5 %", "80.5 %", "80.0 %", "77.55 %"),
        "ToolLLaMA, DFS": ("", "", "", "", "", "", "30.18 %"),
        "ChatGPT, CoT": ("", "", "", "", "", "", "26.00 %"),
    },
)

PUBLISHED: Mapping[str, Published] = {"core": _EIGHT_TOOLS, "toolbench": _TOOLBENCH}
