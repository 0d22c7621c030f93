"""The scorer against every shipped case: the wanted calls pass, and each way of getting one of them wrong fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from eval.cases import Case, Suite
from eval.matchers import Matcher, MatcherKind, accepts
from eval.matching import Outcome, Score, match
from eval.suites import load_suite
from tinydispatch.formats import ParsedReply
from tinydispatch.tools import ToolCall

SUITES = [load_suite(name) for name in ("core", "dev", "unseen_tools", "own_tools", "robust")]
Calls = list[ToolCall]


def score(case: Case, suite: Suite, calls: Calls) -> Score:
    return match(ParsedReply("" if calls else "What do you mean?", tuple(calls)), case, suite.tools_for(case))


def gold(case: Case) -> Calls:
    return [wanted.examples()[0] for wanted in case.expected]


def failing(suite: Suite, mutated: Iterator[tuple[Case, Calls, set[Outcome]]]) -> list[str]:
    """What was scored as something else than it should; at least one mutation must have been tried."""
    found, tried = [], 0
    for case, calls, allowed in mutated:
        tried += 1
        outcome = score(case, suite, calls).outcome
        if outcome not in allowed:
            found.append(f"{case.id}: {calls} is {outcome}")
    assert tried, "no case to mutate"
    return found


def one_call_changed(case: Case) -> Iterator[tuple[int, Calls, ToolCall]]:
    for index, wanted in enumerate(gold(case)):
        yield index, [other for place, other in enumerate(gold(case)) if place != index], wanted


def other_values(value: Any) -> list[Any]:
    """A slip of the same type."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, -value - 1]
    if isinstance(value, str):
        return [f"{value} x", f"x{value}", value.upper() if value != value.upper() else value.lower()]
    if isinstance(value, list):
        return [[*value, *value], value[:-1], *([changed, *value[1:]] for changed in other_values(value[0])[:1])]
    return [{**value, key: other_values(item)[0]} for key, item in value.items()]


def other_types(value: Any) -> list[Any]:
    """The same look in another type."""
    if isinstance(value, bool):
        return [int(value), str(value).lower(), None]
    if isinstance(value, int | float):
        return [str(value), [value], bool(value), None]
    return [[value], {"value": value}, None, *([", ".join(map(str, value))] if isinstance(value, list) else [])]


def is_open(wanted: Any) -> bool:
    return isinstance(wanted, Matcher) and wanted.kind in (MatcherKind.ANY, MatcherKind.ANY_STRING)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
class TestEveryCase:
    def test_passes_with_its_own_calls_in_any_order(self, suite: Suite) -> None:
        assert failing(suite, ((case, gold(case), {Outcome.CORRECT}) for case in suite.cases)) == []
        assert failing(suite, ((case, gold(case)[::-1], {Outcome.CORRECT}) for case in suite.cases)) == []

    def test_fails_when_a_name_differs(self, suite: Suite) -> None:
        def mutated() -> Iterator[tuple[Case, Calls, set[Outcome]]]:
            for case in suite.cases:
                for _, rest, wanted in one_call_changed(case):
                    for name in ("look_up", wanted.name.upper(), f"{wanted.name} "):
                        yield case, [*rest, ToolCall(name, wanted.arguments)], {Outcome.WRONG_TOOL}

        assert failing(suite, mutated()) == []

    @pytest.mark.parametrize("slips", [other_values, other_types], ids=["value", "type"])
    def test_fails_when_any_argument_differs(self, suite: Suite, slips: Any) -> None:
        wrong = {Outcome.WRONG_ARGUMENT, Outcome.SCHEMA_VIOLATION}

        def mutated() -> Iterator[tuple[Case, Calls, set[Outcome]]]:
            for case in suite.cases:
                schemas = {tool.name: tool.parameters["properties"] for tool in suite.tools_for(case)}
                for index, rest, wanted in one_call_changed(case):
                    for name, value in wanted.arguments.items():
                        accepted = case.expected[index].arguments[name]
                        schema = schemas[wanted.name][name]
                        refused = [other for other in slips(value) if not accepts(accepted, other, schema)]
                        assert refused or is_open(accepted), f"{case.id}: nothing wrong could be put into {name}"
                        for other in refused:
                            changed = ToolCall(wanted.name, {**wanted.arguments, name: other})
                            # Two calls to one tool, and the slip may be the other one's value.
                            yield case, [*rest, changed], wrong

        assert failing(suite, mutated()) == []

    def test_fails_when_an_argument_is_dropped_or_added(self, suite: Suite) -> None:
        def mutated() -> Iterator[tuple[Case, Calls, set[Outcome]]]:
            for case in suite.cases:
                for index, rest, wanted in one_call_changed(case):
                    for name in wanted.arguments:
                        accepted = case.expected[index].arguments[name]
                        if isinstance(accepted, Matcher) and accepted.kind is MatcherKind.OPTIONAL:
                            continue
                        left = {key: value for key, value in wanted.arguments.items() if key != name}
                        yield case, [*rest, ToolCall(wanted.name, left)], {Outcome.MISSING_ARGUMENT}
                    more = {**wanted.arguments, "surplus": "x"}
                    wrong = {Outcome.SCHEMA_VIOLATION, Outcome.WRONG_ARGUMENT}
                    yield case, [*rest, ToolCall(wanted.name, more)], wrong

        assert failing(suite, mutated()) == []

    def test_fails_when_a_call_is_dropped_or_made_twice(self, suite: Suite) -> None:
        def mutated() -> Iterator[tuple[Case, Calls, set[Outcome]]]:
            for case in suite.cases:
                extra = {Outcome.EXTRA_CALL, Outcome.PREMATURE_CALL}
                for _, rest, wanted in one_call_changed(case):
                    yield case, rest, {Outcome.NO_CALL}
                    yield case, [*gold(case), wanted], extra
                if not case.expected:
                    yield case, [ToolCall(suite.tools_for(case)[0].name, {})], extra

        assert failing(suite, mutated()) == []

    def test_fails_in_another_order_where_an_order_is_asked_for(self, suite: Suite) -> None:
        ordered = [replace(case, is_ordered=True) for case in suite.cases if len(case.expected) > 1]
        assert failing(suite, ((case, gold(case), {Outcome.CORRECT}) for case in ordered)) == []
        turned = ((case, gold(case)[1:] + gold(case)[:1], {Outcome.WRONG_ORDER}) for case in ordered)
        assert failing(suite, turned) == []
