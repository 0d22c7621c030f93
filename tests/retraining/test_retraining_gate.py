"""The gate promotes what is shown to lose little, refuses a shown loss, and says where it cannot tell."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from eval.matching import Outcome
from eval.metrics import loss_bounds, paired_score
from eval.results import CaseResult, EvalResult
from retraining.config import GateConfig
from retraining.errors import RetrainError
from retraining.gate import Decision, Judged, Rule, Verdict, categories_of, decide

CATEGORIES = ("tool_selection", "multi_tool")
CALL = {"name": "get_weather", "arguments": {}}


def result(
    passed: dict[str, int], *, total: int = 300, latency_s: float = 0.05, unscored: int = 0, invalid: Sequence[int] = ()
) -> EvalResult:
    """The first `passed` cases of each category pass; of the first category's, `invalid` cannot be read."""
    cases = []
    for category in CATEGORIES:
        for index in range(total):
            outcome = Outcome.CORRECT if index < passed[category] else Outcome.WRONG_TOOL
            if category == CATEGORIES[0] and index in invalid:
                outcome = Outcome.UNPARSEABLE
            wanted = (CALL,) * (1 + (category == "multi_tool"))
            cases.append(CaseResult(f"{category}-{index}", category, "?", wanted, "got", outcome, "", latency_s, 3))
    for index in range(unscored):
        cases[index] = CaseResult(cases[index].id, cases[index].category, "?", (), None, None, "gone", None, None)
    return EvalResult("core", "abc", "model", CATEGORIES, tuple(cases))


def judged(name: str, found: EvalResult, n_bytes: int = 100) -> Judged:
    return Judged(name, n_bytes, [found])


def verdict(before: EvalResult, after: EvalResult, best: EvalResult | None = None, **limits: object) -> Decision:
    config = GateConfig.model_validate({"generated": 0, **limits})
    return decide(judged("new", after), judged("old", before), config, judged("best", best) if best else None)


GOOD = result({"tool_selection": 250, "multi_tool": 200})


@pytest.mark.parametrize(
    ("lost", "won", "total", "confidence", "published"),
    [
        # Airway hyper-responsiveness, Bentur et al. 2009, in Fagerland, Lydersen and Laake (2014), table of intervals
        (1, 7, 21, 0.975, (-0.517, -0.026)),
        # R's PropCIs 0.3-0, scoreci.mp(b=25, c=28, n=618, conf.level=0.9), with the other sign
        (25, 28, 618, 0.95, (-0.0247, 0.0148)),
    ],
)
def test_tangos_bounds_are_the_published_ones(
    lost: int, won: int, total: int, confidence: float, published: tuple[float, float]
) -> None:
    assert loss_bounds(lost, won, total, confidence) == pytest.approx(published, abs=1e-3 if total < 100 else 1e-4)


def test_tangos_bounds_mirror_and_hold_without_a_discordant_pair() -> None:
    low, high = loss_bounds(9, 3, 32, 0.95)
    assert loss_bounds(3, 9, 32, 0.95) == pytest.approx((-high, -low))
    low, high = loss_bounds(0, 0, 100, 0.95)
    assert -0.03 < low < 0 < high < 0.03
    assert paired_score(9, 3, 32, 0.0) == pytest.approx(6 / 12**0.5), "McNemar's statistic where nothing is lost"


def test_a_model_that_is_shown_to_lose_little_is_promoted() -> None:
    decision = verdict(GOOD, result({"tool_selection": 248, "multi_tool": 203}))
    assert decision.verdict is Verdict.PROMOTE
    assert decision.reason.startswith("no worse than old")


def test_a_category_that_lost_refuses_it_by_name_though_another_gained_as_much() -> None:
    decision = verdict(GOOD, result({"tool_selection": 190, "multi_tool": 260}))
    assert decision.verdict is Verdict.REFUSE
    (broken,) = decision.broken
    assert (broken.rule, broken.category) == (Rule.LOSS, "tool_selection")
    assert "lost 60 and won 0 of 300 cases" in decision.reason


def test_losses_within_every_categorys_margin_refuse_it_together() -> None:
    decision = verdict(GOOD, result({"tool_selection": 235, "multi_tool": 185}))
    categories = {finding.category: finding.verdict for finding in decision.findings if finding.rule is Rule.LOSS}
    assert categories == {"tool_selection": "promote", "multi_tool": "promote", "overall": "refuse"}


def test_too_few_cases_refuse_nobody_and_promote_nobody_and_say_how_many_would_tell() -> None:
    before = result({"tool_selection": 20, "multi_tool": 16}, total=24)
    decision = verdict(before, result({"tool_selection": 19, "multi_tool": 17}, total=24))
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.wants_cases
    assert "cases would tell" in decision.reason


def test_small_categories_are_judged_with_others_that_want_as_many_calls() -> None:
    cases = [*GOOD.cases, *(replace(GOOD.cases[0], id=f"rare-{i}", category="rare") for i in range(20))]
    assert set(categories_of(cases, GateConfig())) == {"tool_selection", "multi_tool", "one_call"}


def test_a_slow_decline_is_stopped_by_the_best_champion_of_the_last_weeks() -> None:
    now, best = result({"tool_selection": 243, "multi_tool": 194}), result({"tool_selection": 262, "multi_tool": 212})
    after = result({"tool_selection": 241, "multi_tool": 192})
    assert verdict(now, after).verdict is Verdict.PROMOTE
    decision = verdict(now, after, best)
    assert decision.verdict is Verdict.REFUSE
    assert {finding.rule for finding in decision.broken} == {Rule.LOSS_ON_BEST}


@pytest.mark.parametrize(
    ("after", "limits", "rule"),
    [
        (GOOD, {"floors": {"core": {"multi_tool": 0.7}}}, Rule.FLOOR),
        (GOOD, {"floors": {"core": {"overall": 0.9}}}, Rule.FLOOR),
        (result({"tool_selection": 265, "multi_tool": 200}, invalid=range(10)), {}, Rule.VALID_CALLS),
        (GOOD, {"max_median_latency_ms": 20.0}, Rule.LATENCY),
        (
            result({"tool_selection": 250, "multi_tool": 200}, latency_s=0.2),
            {"max_latency_ratio": 1.5},
            Rule.LATENCY,
        ),
        (GOOD, {"max_bytes": 99}, Rule.SIZE),
        (result({"tool_selection": 300, "multi_tool": 300}, unscored=1), {}, Rule.COMPLETE),
    ],
)
def test_each_limit_refuses_by_itself(after: EvalResult, limits: dict[str, object], rule: Rule) -> None:
    decision = verdict(GOOD, after, **limits)
    assert decision.verdict is Verdict.REFUSE
    assert {finding.rule for finding in decision.broken} == {rule}


def test_invalid_calls_count_beyond_the_champions_and_few_of_them_decide_nothing() -> None:
    some, others = result({"tool_selection": 250, "multi_tool": 200}, invalid=range(280, 284)), (280, 281, 282, 299)
    after = result({"tool_selection": 250, "multi_tool": 200}, invalid=others)
    assert verdict(some, after).verdict is Verdict.PROMOTE
    four = verdict(GOOD, some)
    assert four.verdict is Verdict.INCONCLUSIVE
    assert four.broken[0].rule is Rule.VALID_CALLS


def test_the_first_champion_has_floors_of_its_own() -> None:
    config = GateConfig(generated=0)
    assert decide(judged("new", GOOD), None, config).verdict is Verdict.PROMOTE
    poor = result({"tool_selection": 100, "multi_tool": 100})
    assert "the first champion: 200/600 cases passed" in decide(judged("new", poor), None, config).reason
    broken = result({"tool_selection": 250, "multi_tool": 250}, invalid=range(20))
    assert decide(judged("new", broken), None, config).broken[0].rule is Rule.VALID_CALLS


def test_a_floor_for_a_category_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(RetrainError, match=r"gate\.floors\.core\.multi_tol: not one of"):
        verdict(GOOD, GOOD, floors={"core": {"multi_tol": 0.5}})


def test_results_on_other_cases_are_an_error() -> None:
    other = EvalResult("core", "other version", "model", CATEGORIES, GOOD.cases)
    with pytest.raises(RetrainError, match="different versions"):
        verdict(GOOD, other)


def test_the_decision_is_written_with_its_evidence(tmp_path: Path) -> None:
    path = verdict(GOOD, result({"tool_selection": 150, "multi_tool": 250})).save(tmp_path / "decision.json")
    value = json.loads(path.read_text())
    assert value["verdict"] == "refuse"
    assert "tool_selection" in value["reason"]
    assert value["rates"]["champion"]["core"]["tool_selection"]["hits"] == 250
    assert value["limits"]["max_loss"] == 0.03
    assert {finding["rule"] for finding in value["findings"]} >= {"loss", "valid_calls", "complete"}
    (finding,) = (f for f in value["findings"] if (f["rule"], f["category"]) == ("loss", "tool_selection"))
    assert finding["evidence"]["lost"] == 100
