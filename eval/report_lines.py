"""Sentences below the report's tables: goals reached by another way, what a perturbation costs, pass^k."""

from __future__ import annotations

from collections.abc import Sequence

from eval.metrics import Tally
from eval.resampling import UnknownRateError, pass_hat_k
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
