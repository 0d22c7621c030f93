"""The gate promotes what is shown to lose little, refuses a shown loss, and says where it cannot tell."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from data.config import DataConfig, SynthSource
from data.store import write_conversations
from data.synth.generate import generate
from eval.cases import Suite
from eval.matching import Outcome
from eval.metrics import loss_bounds, paired_score, wanted
from eval.results import CaseResult, EvalResult
from eval.suites import load_suite
from retraining.cases import generated_suite
from retraining.config import GateConfig
from retraining.errors import RetrainError
from retraining.gate import (
    Decision,
    Judged,
    Pair,
    Rule,
    Verdict,
    cases_needed,
    categories_of,
    decide,
    is_invalid,
    judge_losses,
)
from tinydispatch.tools import Role

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


def test_what_is_promoted_has_its_one_sided_bound_within_the_margin() -> None:
    config = GateConfig(confidence=0.95, max_category_loss=0.10)
    for lost in range(40, 80):
        high = loss_bounds(lost, 40, 300, 0.95)[1]
        verdict = judge_losses({"a": Pair(lost, 40, 300)}, config)["a"]
        assert (verdict is Verdict.PROMOTE) is (high < 0.10), (lost, high)


@pytest.mark.parametrize(("looks", "opponents"), [(1, 1), (4, 1), (1, 2), (4, 2)])
def test_the_risk_to_refuse_is_shared_out_over_categories_opponents_and_looks(looks: int, opponents: int) -> None:
    config = GateConfig(rounds=looks, refusal_risk=0.05, max_category_loss=0.01)
    level = 0.05 / ((2 + 2) * looks * opponents)  # two categories, all cases together, and invalid calls
    decided = Counter[bool]()
    for lost in range(20, 80):
        luck = 1 - NormalDist().cdf(paired_score(lost, 20, 300, 0.0))
        verdicts = judge_losses({"a": Pair(lost, 20, 300), "b": Pair(5, 5, 300)}, config, opponents)
        assert (verdicts["a"] is Verdict.REFUSE) is (luck < level), (lost, luck)
        decided[luck < level] += 1
    assert min(decided[True], decided[False]) > 10


def test_about_as_many_cases_as_are_asked_for_show_an_equal_model_in_85_of_100_trials() -> None:
    # (1.645 + 1.036)² · 0.2 / 0.03², the usual formula for a paired comparison with a fifth of the pairs discordant
    assert cases_needed(Pair(60, 60, 600), 0.03, 0.95) == 1598
    before = result({"tool_selection": 20, "multi_tool": 16}, total=24)
    decision = verdict(before, result({"tool_selection": 19, "multi_tool": 16}, total=24))
    assert f"about {cases_needed(Pair(1, 0, 48), 0.03, 0.95)} cases would tell" in decision.reason


def test_a_model_that_is_shown_to_lose_little_is_promoted() -> None:
    decision = verdict(GOOD, result({"tool_selection": 248, "multi_tool": 203}))
    assert decision.verdict is Verdict.PROMOTE
    assert decision.reason.startswith("no worse than old")
    assert not decision.wants_cases


def test_a_category_that_lost_refuses_it_by_name_though_another_gained_as_much() -> None:
    decision = verdict(GOOD, result({"tool_selection": 190, "multi_tool": 260}))
    assert decision.verdict is Verdict.REFUSE
    assert not decision.wants_cases, "more cases would not change it"
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
def test_each_limit_refuses_by_itself(after: EvalResult, limits: dict[str, Any], rule: Rule) -> None:
    decision = verdict(GOOD, after, **limits)
    assert decision.verdict is Verdict.REFUSE
    assert {finding.rule for finding in decision.broken} == {rule}


def test_invalid_calls_count_beyond_the_champions_and_few_of_them_decide_nothing() -> None:
    some, others = result({"tool_selection": 250, "multi_tool": 200}, invalid=range(280, 284)), (280, 281, 282, 299)
    after = result({"tool_selection": 250, "multi_tool": 200}, invalid=others)
    assert verdict(some, after).verdict is Verdict.PROMOTE
    three = result({"tool_selection": 250, "multi_tool": 200}, invalid=range(280, 283))
    assert verdict(GOOD, three).verdict is Verdict.PROMOTE, "half a point of 600 cases"
    four = verdict(GOOD, some)
    assert four.verdict is Verdict.INCONCLUSIVE
    assert four.broken[0].rule is Rule.VALID_CALLS


def test_no_call_that_could_be_made_is_invalid_and_no_reply_is_not() -> None:
    case = GOOD.cases[0]
    found = {
        (outcome, got): is_invalid(replace(case, outcome=outcome, got=got))
        for outcome in (Outcome.UNPARSEABLE, Outcome.SCHEMA_VIOLATION, Outcome.WRONG_TOOL)
        for got in ("got", " ", None)
    }
    assert [key for key, is_so in found.items() if is_so] == [
        (Outcome.UNPARSEABLE, "got"),
        (Outcome.SCHEMA_VIOLATION, "got"),
    ]


def test_a_champion_that_did_not_answer_every_case_is_no_ground_to_promote() -> None:
    (broken,) = verdict(result({"tool_selection": 250, "multi_tool": 200}, unscored=1), GOOD).broken
    assert (broken.rule, broken.verdict) == (Rule.COMPLETE, Verdict.REFUSE)
    assert "old: 599 cases scored, 1 without a reply" in broken.detail


@pytest.mark.parametrize(
    ("lost", "won", "expected"),
    [(0, 0, Verdict.PROMOTE), (2, 2, Verdict.PROMOTE), (30, 0, Verdict.REFUSE), (14, 12, Verdict.INCONCLUSIVE)],
)
def test_cases_that_were_derived_from_others_are_judged_by_their_origins(
    lost: int, won: int, expected: Verdict
) -> None:
    """Sixty origins with five cases each, which pass or fail together."""
    own = result({"tool_selection": 200, "multi_tool": 150})

    def derived(passes: range) -> EvalResult:
        cases = [
            replace(
                own.cases[0],
                id=f"{origin}-{number}",
                parent=f"{origin}",
                outcome=Outcome.CORRECT if origin in passes else Outcome.WRONG_TOOL,
            )
            for origin in range(60)
            for number in range(5)
        ]
        return EvalResult("changed", "abc", "model", ("tool_selection",), tuple(cases))

    before, after = derived(range(0, 30 + lost)), derived(range(lost, 30 + lost + won))
    decision = decide(Judged("new", 100, [own, after]), Judged("old", 100, [own, before]), GateConfig(generated=0))
    (found,) = [each for each in decision.findings if each.rule is Rule.LOSS and each.suite == "changed"]
    assert found.verdict is expected
    assert decision.verdict is expected
    (pooled,) = [each for each in decision.findings if each.category == "overall"]
    assert pooled.evidence["total"] == 600, "they are in no other comparison"


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


def prompts(suite: Suite | None) -> list[str]:
    assert suite is not None
    return [case.prompt for case in suite.cases]


def test_generated_cases_are_new_in_each_run_and_round_and_never_in_training(tmp_path: Path) -> None:
    data = DataConfig(sources=(SynthSource(kind="synth", count=3),))
    train = tmp_path / "train.jsonl"
    write_conversations(train, [])
    suites = [load_suite("dev")]
    first = generated_suite(data, "run-1 1", 60, suites, train)
    assert first is not None
    assert prompts(generated_suite(data, "run-1 1", 60, suites, train)) == prompts(first)
    for seed in ("run-1 2", "run-2 1"):
        assert len(set(prompts(generated_suite(data, seed, 60, suites, train))) & set(prompts(first))) < 5

    again = generated_suite(data, "run-1 1", 60, [*suites, first], train)
    assert again is not None
    assert set(prompts(again)).isdisjoint(prompts(first)), "what was asked before is not asked again"
    assert (first.name, again.name) == ("generated", "generated-2")

    kinds = Counter(wanted(len(case.expected)) for suite in (*suites, first) for case in suite.cases)
    assert kinds == {"one_call": 82, "no_call": 49, "several_calls": 49}, "what the suite has little of is made first"
    assert generated_suite(data, "run-1 1", 0, suites, train) is None


def test_what_a_run_trains_on_is_no_generated_case(tmp_path: Path) -> None:
    data = DataConfig(sources=(SynthSource(kind="synth", count=3),))
    train = tmp_path / "train.jsonl"
    write_conversations(train, [])
    asked = set(prompts(generated_suite(data, "run-1 1", 40, [], train)))
    trained = [
        replace(each, messages=(replace(each.messages[0], content=text), *each.messages[1:]))
        for each, text in zip(generate(len(asked), 5), sorted(asked), strict=True)
    ]
    assert all(each.messages[0].role is Role.USER for each in trained)
    write_conversations(train, trained)
    assert asked.isdisjoint(prompts(generated_suite(data, "run-1 1", 40, [], train)))
