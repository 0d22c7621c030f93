"""One outcome per reply, by the documented precedence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.cases import Case, ExpectedCall
from eval.matchers import accepts, parse_expected
from eval.matching import REMEDY, Outcome, Score, match
from eval.suites import load_suite, shipped_suites
from tinydispatch.bundled import bundled_tools
from tinydispatch.formats import parse_reply, render_calls
from tinydispatch.tools import Message, Role, ToolCall

TOOLS = bundled_tools()
OSLO = {"name": "get_weather", "arguments": {"location": "Oslo"}}
ROME = {"name": "get_weather", "arguments": {"location": "Rome"}}
NEW_YEAR = {"name": "get_weather", "arguments": {"location": "Oslo", "date": "2026-01-01"}}
TIME = {"name": "get_current_time", "arguments": {"timezone": "Asia/Tokyo"}}
SWIM = {"name": "create_calendar_event", "arguments": {"title": "Swim", "start": "2026-03-20T18:00"}}
SUITES = {name: load_suite(name) for name in shipped_suites()}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def exchange(amount: float) -> dict[str, Any]:
    return call("convert_currency", amount=amount, from_currency="USD", to_currency="EUR")


def make_case(*expected: Mapping[str, Any], **options: Any) -> Case:
    calls = tuple(ExpectedCall(item["name"], parse_expected(item["arguments"])) for item in expected)
    return Case("c", "x", (Message(Role.USER, "…"),), calls, **options)


def score(case: Case, *calls: Mapping[str, Any], text: str = "") -> Score:
    written = render_calls([ToolCall(item["name"], item["arguments"]) for item in calls])
    return match(parse_reply(text + written), case, TOOLS)


FAILED_HISTORY = (
    Message(Role.USER, "weather in Osol"),
    Message(Role.ASSISTANT, "", (ToolCall("get_weather", {"location": "Osol"}),)),
    Message(Role.TOOL, '{"error": "unknown place"}', tool_name="get_weather"),
)


def after_error(*expected: ExpectedCall) -> Case:
    return Case("c", "x", FAILED_HISTORY, expected, is_after_error=True)


TABLE: list[tuple[str, Case, list[Mapping[str, Any]], Outcome]] = [
    ("the wanted call", make_case(OSLO), [OSLO], Outcome.CORRECT),
    ("parallel calls in any order", make_case(OSLO, TIME), [TIME, OSLO], Outcome.CORRECT),
    ("the same call wanted twice", make_case(OSLO, OSLO), [OSLO, OSLO], Outcome.CORRECT),
    ("the same call wanted once, made twice", make_case(OSLO), [OSLO, OSLO], Outcome.EXTRA_CALL),
    ("ordered calls in order", make_case(OSLO, TIME, is_ordered=True), [OSLO, TIME], Outcome.CORRECT),
    ("ordered calls out of order", make_case(OSLO, TIME, is_ordered=True), [TIME, OSLO], Outcome.WRONG_ORDER),
    ("a wanted call is absent", make_case(OSLO, TIME), [OSLO], Outcome.NO_CALL),
    ("a call too many", make_case(OSLO), [OSLO, TIME], Outcome.EXTRA_CALL),
    ("a call where none was wanted", make_case(), [OSLO], Outcome.EXTRA_CALL),
    ("another tool", make_case(OSLO), [TIME], Outcome.WRONG_TOOL),
    ("a tool that is not on offer", make_case(OSLO), [call("weather", location="Oslo")], Outcome.WRONG_TOOL),
    ("a dependent call too early", make_case(OSLO, premature=(SWIM["name"],)), [OSLO, SWIM], Outcome.PREMATURE_CALL),
    ("only the dependent call", make_case(OSLO, premature=(SWIM["name"],)), [SWIM], Outcome.PREMATURE_CALL),
    ("a premature call of the first call's tool", make_case(OSLO, premature=("get_weather",)), [OSLO, ROME],
     Outcome.PREMATURE_CALL),
    ("the first call alone, of a dependent tool", make_case(OSLO, premature=("get_weather",)), [ROME],
     Outcome.WRONG_ARGUMENT),
    ("a failed call again", after_error(), [call("get_weather", location="Osol")], Outcome.IGNORED_ERROR),
    ("another call after a failure", after_error(), [OSLO], Outcome.EXTRA_CALL),
    ("a retry where one is wanted", after_error(ExpectedCall("get_weather", {"location": "Osol"})),
     [call("get_weather", location="Osol")], Outcome.CORRECT),
    ("another value", make_case(OSLO), [ROME], Outcome.WRONG_ARGUMENT),
    ("other capitals", make_case(OSLO), [call("get_weather", location="oslo")], Outcome.WRONG_ARGUMENT),
    ("an argument that nobody asked for", make_case(OSLO), [call("get_weather", location="Oslo", units="celsius")],
     Outcome.WRONG_ARGUMENT),
    ("an optional parameter's wanted value is absent", make_case(NEW_YEAR), [OSLO], Outcome.MISSING_ARGUMENT),
    ("a required argument is absent", make_case(SWIM), [call("create_calendar_event", title="Swim")],
     Outcome.MISSING_ARGUMENT),
    ("a parameter that does not exist", make_case(OSLO), [call("get_weather", location="Oslo", city="Oslo")],
     Outcome.SCHEMA_VIOLATION),
    ("a date in words", make_case(NEW_YEAR),
     [call("get_weather", location="Oslo", date="tomorrow")], Outcome.SCHEMA_VIOLATION),
    ("a violation and an absence", make_case(SWIM), [call("create_calendar_event", title=7)], Outcome.SCHEMA_VIOLATION),
    ("a value that the matcher takes and the schema refuses",
     make_case(call("get_weather", location={"$match": "any"})), [call("get_weather", location=5)],
     Outcome.SCHEMA_VIOLATION),
    ("a string for an integer", make_case(call("search_web", query="q", max_results=3)),
     [call("search_web", query="q", max_results="3")], Outcome.SCHEMA_VIOLATION),
    ("a float for an integer", make_case(call("search_web", query="q", max_results=3)),
     [call("search_web", query="q", max_results=3.0)], Outcome.WRONG_ARGUMENT),
    ("true for 1", make_case(call("search_web", query="q", max_results=1)),
     [call("search_web", query="q", max_results=True)], Outcome.SCHEMA_VIOLATION),
    ("a whole float for a number", make_case(exchange(5)), [exchange(5.0)], Outcome.CORRECT),
    ("true for a number", make_case(exchange(1)), [exchange(True)], Outcome.SCHEMA_VIOLATION),
    ("one wrong among parallel calls", make_case(OSLO, ROME), [OSLO, call("get_weather", location="Bonn")],
     Outcome.WRONG_ARGUMENT),
]  # fmt: skip


@pytest.mark.parametrize(("case", "calls", "outcome"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_each_reply_has_the_documented_outcome(case: Case, calls: list[Mapping[str, Any]], outcome: Outcome) -> None:
    found = score(case, *calls)
    assert found.outcome is outcome
    assert bool(found.explanation) is not found.is_correct


def test_text_alone_is_no_call_where_one_was_wanted_and_correct_where_none_was() -> None:
    assert score(make_case(OSLO), text="It is sunny.").outcome is Outcome.NO_CALL
    assert score(make_case(), text="Which city?").outcome is Outcome.CORRECT


def test_an_empty_reply_never_passes() -> None:
    assert score(make_case()).outcome is Outcome.UNPARSEABLE
    assert score(make_case(OSLO), text=" ").outcome is Outcome.NO_CALL


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "get_weather", "arguments": {"location": "Oslo"}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": {"location": "Oslo"}}',
        '<tool_call>{"name": "get_weather", "arguments": "{}"}</tool_call>',
        render_calls([ToolCall("get_weather", {"location": "Oslo"})]) + "<tool_call>{",
    ],
)
def test_a_call_that_cannot_be_read_is_unparseable_even_beside_the_right_one(text: str) -> None:
    assert match(parse_reply(text), make_case(OSLO), TOOLS).outcome is Outcome.UNPARSEABLE


def test_every_outcome_has_a_remedy_and_a_row_in_the_table() -> None:
    assert set(REMEDY) == set(Outcome)
    assert {row[3] for row in TABLE} | {Outcome.UNPARSEABLE} == set(Outcome)


def test_overlapping_matchers_are_paired_so_that_all_fit() -> None:
    either = call("get_weather", location={"$match": "one_of", "values": ["Oslo", "Rome"]})
    # Greedy pairing would give Oslo to the matcher and leave the plain Oslo without a call.
    assert score(make_case(either, OSLO), OSLO, ROME).is_correct


def test_the_explanation_names_argument_wanted_and_got() -> None:
    assert score(make_case(OSLO), ROME).explanation == 'location: expected "Oslo", got "Rome"'


SHIPPED = [(suite, case) for suite in SUITES.values() for case in suite.cases]
WITH_CALLS = [(suite, case) for suite, case in SHIPPED if case.expected]
WITH_ARGUMENTS = [(suite, case) for suite, case in WITH_CALLS if all(call.arguments for call in case.expected)]


@settings(deadline=None)
@given(st.data())
def test_a_rendered_gold_reply_is_always_correct(data: st.DataObject) -> None:
    suite, case = data.draw(st.sampled_from(WITH_CALLS))
    calls = [data.draw(st.sampled_from(wanted.examples())) for wanted in case.expected]
    if not case.is_ordered:
        calls = data.draw(st.permutations(calls))
    found = match(parse_reply(render_calls(calls)), case, suite.tools_for(case))
    assert found.is_correct, (case.id, found)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.data())
def test_any_single_changed_argument_fails(data: st.DataObject) -> None:
    suite, case = data.draw(st.sampled_from(WITH_ARGUMENTS))
    calls = [wanted.examples()[0] for wanted in case.expected]
    index = data.draw(st.integers(0, len(calls) - 1))
    wanted, arguments = case.expected[index], dict(calls[index].arguments)
    schema = next(tool.parameters for tool in suite.tools if tool.name == wanted.name)
    name = data.draw(st.sampled_from(sorted(arguments)))
    changed = data.draw(near(arguments[name]) | JSON_VALUES)
    if accepts(wanted.arguments[name], changed, schema["properties"][name]):
        return
    calls[index] = ToolCall(wanted.name, {**arguments, name: changed})
    assert not match(parse_reply(render_calls(calls)), case, suite.tools_for(case)).is_correct


@settings(deadline=None)
@given(st.data())
def test_any_single_dropped_or_added_argument_fails(data: st.DataObject) -> None:
    suite, case = data.draw(st.sampled_from(WITH_ARGUMENTS))
    wanted = case.expected[0]
    smallest = min(wanted.examples(), key=lambda example: len(example.arguments)).arguments
    dropped = data.draw(st.sampled_from(sorted(smallest)))
    rest = [other.examples()[0] for other in case.expected[1:]]
    without = {name: value for name, value in smallest.items() if name != dropped}
    added = {**smallest, data.draw(st.text().filter(lambda name: name not in wanted.arguments)): "x"}
    for arguments in (without, added):
        reply = parse_reply(render_calls([ToolCall(wanted.name, arguments), *rest]))
        assert not match(reply, case, suite.tools_for(case)).is_correct


def near(value: Any) -> st.SearchStrategy[Any]:
    """Small slips: another type of the same look, other capitals, a space, one item fewer."""
    slips: list[Any] = [json.dumps(value), [value], None]
    if isinstance(value, str):
        slips += [value.upper(), f" {value}", f"{value}!", value[:-1], value.replace("'", "")]
    if isinstance(value, int | float):
        slips += [value + 1, -value, float(value), str(value), bool(value)]
    if isinstance(value, list):
        slips += [value[:-1], [*value, *value], ", ".join(map(str, value))]
    if isinstance(value, dict):
        slips += [{key: item for key, item in value.items() if key != drop} for drop in value]
    return st.sampled_from(slips)
