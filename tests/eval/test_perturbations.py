"""Derived cases ask for the same as their parents; tried on `dev`, so that nobody needs to read `core`."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from eval.cases import Case, SuiteError
from eval.matching import match
from eval.suites import load_suite
from eval.suites.perturbed import Perturbation, perturbed_cases
from tinydispatch.formats import parse_reply, render_calls

DEV = load_suite("dev")
POOL = load_suite("unseen_tools").tools
PARENTS = {case.id: case for case in DEV.cases}
DERIVED = list(perturbed_cases(DEV, POOL, seed=1))


def of_kind(kind: Perturbation) -> list[Case]:
    return [case for case in DERIVED if case.category == kind]


def copied_values(value: Any, prompt: str) -> list[str]:
    """The expected strings that stand in the prompt."""
    if isinstance(value, dict):
        return [text for key in value if key != "$match" for text in copied_values(value[key], prompt)]
    if isinstance(value, list):
        return [text for item in value for text in copied_values(item, prompt)]
    return [value] if isinstance(value, str) and value in prompt else []


def days_ahead(case: Case) -> list[int]:
    assert case.reference_date is not None
    text = json.dumps([call.to_json() for call in case.expected])
    dates = [part[:10] for part in text.split('"') if part[4:5] == "-" and part[:4].isdigit()]
    return [(dt.date.fromisoformat(day) - case.reference_date).days for day in dates]


@pytest.mark.parametrize("kind", Perturbation)
def test_each_perturbation_applies_to_some_cases_and_keeps_the_parents_id(kind: Perturbation) -> None:
    cases = of_kind(kind)
    assert len(cases) >= 3
    assert all(case.id == f"{case.parent}~{kind}" and case.parent in PARENTS for case in cases)


@pytest.mark.parametrize("name", ["dev", "robust"])
def test_the_expected_calls_stay_right(name: str) -> None:
    suite = load_suite("robust")
    changed = (Perturbation.REFERENCE_DATE, Perturbation.MORE_TOOLS)
    from_dev = [case for case in DERIVED if case.category in changed]
    cases, tools_for = (from_dev, DEV.tools_for) if name == "dev" else (suite.cases, suite.tools_for)
    for case in cases:
        text = render_calls([wanted.examples()[0] for wanted in case.expected]) or "What do you mean?"
        assert match(parse_reply(text), case, tools_for(case)).is_correct, case.id


@pytest.mark.parametrize("case", DERIVED, ids=lambda case: case.id)
def test_nothing_that_is_to_be_copied_is_touched(case: Case) -> None:
    parent = PARENTS[case.parent]
    wanted = copied_values([call.to_json()["arguments"] for call in parent.expected], parent.prompt)
    assert [text for text in wanted if text not in case.prompt and case.category != "reference_date"] == []


def test_typos_swap_letters_and_casing_changes_nothing_else() -> None:
    for case in of_kind(Perturbation.TYPOS):
        words, before = case.prompt.split(" "), PARENTS[case.parent].prompt.split(" ")
        assert [sorted(word) for word in words] == [sorted(word) for word in before]
        assert 1 <= sum(one != other for one, other in zip(words, before, strict=True)) <= 2
    for case in of_kind(Perturbation.CASING):
        before_casing = PARENTS[case.parent].prompt
        assert case.prompt.casefold() == before_casing.casefold()
        assert case.prompt != before_casing


def test_fillers_come_first_and_word_order_keeps_the_words() -> None:
    for case in of_kind(Perturbation.FILLERS):
        assert case.prompt.endswith(PARENTS[case.parent].prompt)
    for case in of_kind(Perturbation.WORD_ORDER):
        words = [
            sorted(text.casefold().replace(":", "").split()) for text in (case.prompt, PARENTS[case.parent].prompt)
        ]
        assert len(words[0]) == len(words[1])


def test_another_day_moves_every_expected_date_by_whole_weeks() -> None:
    for case in of_kind(Perturbation.REFERENCE_DATE):
        parent = PARENTS[case.parent]
        assert case.reference_date is not None
        assert parent.reference_date is not None
        assert (case.reference_date - parent.reference_date).days % 7 == 0
        assert case.reference_date > parent.reference_date
        assert days_ahead(case) == days_ahead(parent)
        assert all(0 <= days <= 14 for days in days_ahead(case))


@pytest.mark.parametrize("text", ["on 14 January", "on the 3rd", "2026-04-01", "next month", "on 5/6", "at Christmas"])
def test_a_day_that_has_a_name_of_its_own_is_not_moved(text: str, tmp_path: Path) -> None:
    case = {"id": "a", "category": "x", "reference_date": "2026-03-19",
            "messages": [{"role": "user", "content": f"How is the weather in Oslo {text}?"}],
            "expected": {"calls": [{"name": "get_weather", "arguments": {"location": "Oslo"}}]}}  # fmt: skip
    (tmp_path / "suite.json").write_text('{"name": "own"}')
    (tmp_path / "cases.jsonl").write_text(json.dumps(case))
    kinds = {case.category for case in perturbed_cases(load_suite(tmp_path), POOL, seed=1)}
    assert kinds == set(Perturbation) - {Perturbation.REFERENCE_DATE, Perturbation.WORD_ORDER}


def test_tools_are_shuffled_or_joined_by_four_others_unless_no_call_is_due() -> None:
    bundled = {tool.name for tool in DEV.tools}
    for case in of_kind(Perturbation.TOOL_ORDER):
        assert sorted(tool.name for tool in case.offer) == sorted(bundled)
        assert [tool.name for tool in case.offer] != [tool.name for tool in DEV.tools]
    for case in of_kind(Perturbation.MORE_TOOLS):
        assert len({tool.name for tool in case.offer} - bundled) == 4
        assert case.expected


def test_the_same_seed_gives_the_same_cases_and_another_gives_others() -> None:
    assert list(perturbed_cases(DEV, POOL, seed=1)) == DERIVED
    assert list(perturbed_cases(DEV, POOL, seed=2)) != DERIVED


def test_a_derived_suite_of_ones_own_follows_its_parent(tmp_path: Path) -> None:
    (tmp_path / "suite.json").write_text(json.dumps({"name": "mine", "derived_from": "dev"}))
    suite = load_suite(tmp_path)
    assert suite.is_derived
    assert Perturbation.MORE_TOOLS not in suite.categories, "without distractors"
    assert suite.fingerprint != load_suite("robust").fingerprint
    (tmp_path / "suite.json").write_text(json.dumps({"name": "mine", "derived_from": "dov"}))
    with pytest.raises(SuiteError, match="did you mean 'dev'"):
        load_suite(tmp_path)
