"""The gate refuses what is measurably worse, names the category, and keeps the evidence either way."""

import json
from pathlib import Path

import pytest

from eval.matching import Outcome
from eval.results import CaseResult, EvalResult
from retraining.config import GateConfig
from retraining.errors import RetrainError
from retraining.gate import Decision, Judged, Rule, decide

CATEGORIES = ("tool_selection", "multi_tool")


def result(
    passed: dict[str, int], *, total: int = 12, latency_s: float = 0.05, unscored: int = 0, **kinds: str
) -> EvalResult:
    """The first `passed` cases of each category pass, the rest fail as `kinds` says (wrong_tool)."""
    cases = []
    for category in CATEGORIES:
        for index in range(total):
            failure = Outcome(kinds.get(category, "wrong_tool"))
            outcome = Outcome.CORRECT if index < passed[category] else failure
            cases.append(CaseResult(f"{category}-{index}", category, "?", (), "got", outcome, "", latency_s, 3))
    for index in range(unscored):
        cases[index] = CaseResult(cases[index].id, cases[index].category, "?", (), None, None, "gone", None, None)
    return EvalResult("core", "abc", "model", CATEGORIES, tuple(cases))


def judged(name: str, found: EvalResult, n_bytes: int = 100) -> Judged:
    return Judged(name, n_bytes, [found])


def verdict(before: EvalResult, after: EvalResult, **limits: object) -> Decision:
    return decide(judged("new", after), judged("old", before), GateConfig.model_validate(limits))


GOOD = result({"tool_selection": 10, "multi_tool": 8})


def test_a_model_that_is_no_worse_is_promoted() -> None:
    decision = verdict(GOOD, result({"tool_selection": 9, "multi_tool": 9}))
    assert decision.is_promotion
    assert decision.reason.startswith("no worse than old")


def test_a_category_that_is_significantly_worse_refuses_it_by_name_though_another_gained_as_much() -> None:
    decision = verdict(GOOD, result({"tool_selection": 4, "multi_tool": 12}))
    assert not decision.is_promotion
    (broken,) = decision.broken
    assert (broken.rule, broken.category) == (Rule.NOT_WORSE, "tool_selection")
    assert broken.p_value == pytest.approx(2 / 2**6)
    assert "core/tool_selection: 10/12 became 4/12, lost 6, won 0" in decision.reason


def test_the_threshold_is_the_configs() -> None:
    five_lost = result({"tool_selection": 5, "multi_tool": 8})
    assert verdict(GOOD, five_lost, significance=0.05).is_promotion
    assert not verdict(GOOD, five_lost, significance=0.1).is_promotion


def test_losses_too_small_for_any_category_refuse_it_together() -> None:
    decision = verdict(GOOD, result({"tool_selection": 6, "multi_tool": 4}))
    assert [finding.category for finding in decision.broken] == ["overall"]


@pytest.mark.parametrize(
    ("after", "limits", "rule"),
    [
        (GOOD, {"floors": {"core": {"multi_tool": 0.7}}}, Rule.FLOOR),
        (GOOD, {"floors": {"core": {"overall": 0.9}}}, Rule.FLOOR),
        (result({"tool_selection": 11, "multi_tool": 11}, multi_tool="unparseable"), {}, Rule.VALID_CALLS),
        (result({"tool_selection": 11, "multi_tool": 11}, multi_tool="schema_violation"), {}, Rule.VALID_CALLS),
        (GOOD, {"max_median_latency_ms": 20.0}, Rule.LATENCY),
        (result({"tool_selection": 10, "multi_tool": 8}, latency_s=0.2), {"max_latency_ratio": 1.5}, Rule.LATENCY),
        (GOOD, {"max_bytes": 99}, Rule.SIZE),
        (result({"tool_selection": 12, "multi_tool": 12}, unscored=1), {}, Rule.COMPLETE),
    ],
)
def test_each_limit_refuses_by_itself(after: EvalResult, limits: dict[str, object], rule: Rule) -> None:
    decision = verdict(GOOD, after, **limits)
    assert [finding.rule for finding in decision.broken] == [rule]


def test_without_a_champion_floors_and_limits_still_hold() -> None:
    config = GateConfig(floors={"core": {"overall": 0.9}})
    assert decide(judged("new", GOOD), None, GateConfig()).is_promotion
    assert not decide(judged("new", GOOD), None, config).is_promotion


def test_a_floor_for_a_category_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(RetrainError, match=r"gate\.floors\.core\.multi_tol: not one of"):
        verdict(GOOD, GOOD, floors={"core": {"multi_tol": 0.5}})


def test_results_on_other_cases_are_an_error() -> None:
    other = EvalResult("core", "other version", "model", CATEGORIES, GOOD.cases)
    with pytest.raises(RetrainError, match="different versions"):
        verdict(GOOD, other)


def test_the_decision_is_written_with_its_evidence(tmp_path: Path) -> None:
    path = verdict(GOOD, result({"tool_selection": 4, "multi_tool": 12})).save(tmp_path / "decision.json")
    value = json.loads(path.read_text())
    assert value["is_promotion"] is False
    assert "tool_selection" in value["reason"]
    assert value["rates"]["champion"]["core"]["tool_selection"]["hits"] == 10
    assert value["limits"]["significance"] == 0.05
    assert {finding["rule"] for finding in value["findings"]} >= {"not_worse", "valid_calls", "complete"}
