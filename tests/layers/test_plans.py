"""Plans: a thousand random graphs run as parallel as they can, and broken ones are refused with the place named."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from tinydispatch.bundled import bundled_tools
from tinydispatch.layers.plan import (
    BadPlan,
    Plan,
    PlannedCall,
    StepState,
    is_uncertain,
    plan_from_json,
    plan_from_text,
    run_plan,
)
from tinydispatch.layers.tool_calls import CallStatus, ToolOutcome
from tinydispatch.tools import ToolCall

TOOLS = bundled_tools()
LIST = {
    "id": "day",
    "tool": "list_calendar_events",
    "arguments": {"start_date": "2026-03-19", "end_date": "2026-03-19"},
}


def planned(*calls: dict[str, Any], schemas: Mapping[str, Any] | None = None) -> Plan:
    plan = plan_from_json({"calls": list(calls)}, TOOLS, schemas)
    assert isinstance(plan, Plan), str(plan)
    return plan


def weather(name: str, location: str = "Oslo", **more: Any) -> dict[str, Any]:
    return {"id": name, "tool": "get_weather", "arguments": {"location": location}, **more}


class World:
    """Answers calls by id; an exception stands for a tool that reports an error."""

    def __init__(self, results: Mapping[str, Any] | None = None) -> None:
        self.results = results or {}
        self.arguments: dict[str, Mapping[str, Any]] = {}

    def __call__(self, call: PlannedCall, arguments: Mapping[str, Any]) -> ToolOutcome:
        self.arguments[call.id] = arguments
        result = self.results.get(call.id, {"ok": True})
        made = ToolCall(call.tool, arguments)
        if isinstance(result, Exception):
            return ToolOutcome(made, call.id, CallStatus.FAILED, error=str(result))
        return ToolOutcome(made, call.id, CallStatus.DONE, result)


def random_graph(rng: random.Random) -> dict[str, set[str]]:
    size = rng.randint(1, 9)
    density = rng.choice([0.0, 0.15, 0.4, 0.9])
    order = [f"n{index}" for index in range(size)]
    rng.shuffle(order)
    return {
        name: {other for other in order[:place] if rng.random() < density}
        for place, name in enumerate(order)
    }  # fmt: skip


def check_graph(graph: dict[str, set[str]], rng: random.Random) -> None:
    """Let calls end one at a time, in a random order: at each moment just those run whose needs are done."""
    names = list(graph)
    rng.shuffle(names)
    plan = planned(*(weather(name, depends_on=sorted(graph[name])) for name in names))
    started: queue.SimpleQueue[str] = queue.SimpleQueue()
    may_end = {name: threading.Event() for name in graph}

    def execute(call: PlannedCall, arguments: Mapping[str, Any]) -> ToolOutcome:
        started.put(call.id)
        assert may_end[call.id].wait(20), "the test has given up"
        return ToolOutcome(ToolCall(call.tool, arguments), call.id, CallStatus.DONE, {})

    ends: dict[str, Any] = {}
    runner = threading.Thread(target=lambda: ends.update(run_plan(plan, execute)), daemon=True)
    runner.start()
    running: set[str] = set()
    done: set[str] = set()
    while len(done) < len(graph):
        expected = {name for name in graph if graph[name] <= done} - done
        while running != expected:
            name = started.get(timeout=20)
            assert name in expected, f"{name} was started although {graph[name] - done} had not ended"
            running.add(name)
        name = rng.choice(sorted(running))
        running.discard(name)
        done.add(name)
        may_end[name].set()
    runner.join(20)
    assert started.empty()
    assert {end.state for end in ends.values()} == {StepState.DONE}


def test_a_thousand_random_graphs_run_in_order_with_the_greatest_parallelism() -> None:
    rng = random.Random(7)
    for _ in range(1000):
        check_graph(random_graph(rng), rng)


def test_results_flow_into_arguments_and_conditions() -> None:
    plan = planned(
        LIST,
        weather("w"),
        {
            "id": "book",
            "tool": "create_calendar_event",
            "arguments": {"title": "Lunch, ${w.conditions}", "start": "${day.slot}"},
            "condition": "day.count == 0",
        },
        {"id": "mail", "tool": "send_email",
         "arguments": {"to": ["a@kew.example"], "subject": "Busy", "body": "Not on ${day.date}"},
         "condition": "day.count > 0"},
    )  # fmt: skip
    world = World({"day": {"count": 0, "slot": "2026-03-19T12:00"}, "w": {"conditions": "sunny"}})
    ends = run_plan(plan, world)
    assert world.arguments["book"] == {"title": "Lunch, sunny", "start": "2026-03-19T12:00"}
    assert (ends["book"].state, ends["mail"].state) == (StepState.DONE, StepState.SKIPPED)
    assert ends["mail"].reason == "the condition is false: day.count > 0"


def test_what_is_made_of_a_skipped_result_is_skipped_and_what_only_waits_for_it_runs() -> None:
    plan = planned(
        LIST,
        weather("w", condition="day.count > 5"),
        {"id": "find", "tool": "search_web", "arguments": {"query": "${w.conditions}"}},
        {"id": "after", "tool": "get_current_time", "arguments": {"timezone": "Europe/Oslo"}, "depends_on": ["w"]},
    )
    ends = run_plan(plan, World({"day": {"count": 0}}))
    assert [ends[name].state for name in ("w", "find", "after")] == ["skipped", "skipped", "done"]


def test_nothing_that_waits_for_a_failed_call_is_made_unless_it_asks_about_it() -> None:
    plan = planned(
        LIST,
        weather("direct", depends_on=["day"]),
        weather("indirect", depends_on=["direct"]),
        weather("instead", condition="failed(day)"),
        weather("apart"),
    )
    ends = run_plan(plan, World({"day": ValueError("down")}))
    states = {name: end.state for name, end in ends.items()}
    assert states == {
        "day": "failed", "direct": "not reached", "indirect": "not reached", "instead": "done", "apart": "done",
    }  # fmt: skip
    assert ends["direct"].reason == "'day' failed"


def test_a_condition_that_leads_nowhere_fails_its_call_alone() -> None:
    ends = run_plan(planned(LIST, weather("w", condition="day.total == 0"), weather("x")), World({"day": {"count": 0}}))
    assert (ends["w"].state, ends["x"].state) == (StepState.FAILED, StepState.DONE)
    assert "day.total: the result has no 'total'; its keys are ['count']" in ends["w"].reason


def test_a_plan_ends_when_its_time_is_up_whatever_its_calls_do() -> None:
    hang, is_time_up = threading.Event(), threading.Event()

    def execute(call: PlannedCall, arguments: Mapping[str, Any]) -> ToolOutcome:
        if call.id == "w":
            hang.wait(30)
        is_time_up.set()
        return ToolOutcome(ToolCall(call.tool, arguments), call.id, CallStatus.DONE, {})

    plan = planned(weather("w"), weather("x"), weather("y", depends_on=["w"]))
    ends = run_plan(plan, execute, deadline=60.0, clock=lambda: 61.0 if is_time_up.is_set() else 0.0)
    hang.set()
    assert ends["x"].state is StepState.DONE
    assert [ends[name].reason for name in ("w", "y")] == [
        "was still running when the time was up",
        "was not started when the time was up",
    ]


def test_an_exception_of_the_application_does_not_make_a_plan_wait_for_ever() -> None:
    def execute(call: PlannedCall, arguments: Mapping[str, Any]) -> ToolOutcome:  # noqa: ARG001
        raise OSError("the disk is full")

    ends = run_plan(planned(weather("w"), weather("x", depends_on=["w"])), execute)
    assert (ends["w"].reason, ends["x"].state) == ("OSError: the disk is full", StepState.NOT_REACHED)
    assert is_uncertain(ends["w"])


BROKEN: list[tuple[str, Any, str]] = [
    ("no object", [], "expected an object with 'calls'"),
    ("nothing to do", {"calls": []}, "non-empty array"),
    ("something else", {"calls": [LIST], "note": 1}, "and nothing else"),
    ("too many", {"calls": [weather(f"w{index}") for index in range(65)]}, "calls: 65 calls; at most 64"),
    ("an unknown tool", {"calls": [{**LIST, "tool": "book_table"}]}, "calls[0].tool: unknown tool 'book_table'; there"),
    ("a key too many", {"calls": [{**LIST, "after": []}]}, "calls[0]: expected id, tool, arguments"),
    ("no arguments", {"calls": [{"id": "a", "tool": "get_weather"}]}, "calls[0]: expected id"),
    ("arguments as text", {"calls": [{**LIST, "arguments": "{}"}]}, "calls[0].arguments: expected an object"),
    ("an id that is a word", {"calls": [weather("not")]}, "calls[0].id: 'not'"),
    ("an id twice", {"calls": [weather("a"), weather("a")]}, "calls[1].id: 'a' is calls[0] already"),
    ("depends on nobody", {"calls": [weather("a", depends_on=["b"])]}, "calls[0]: 'a' refers to 'b', and no call"),
    ("depends on a number", {"calls": [weather("a", depends_on=[1])]}, "calls[0].depends_on: expected an array of ids"),
    ("refers to nobody", {"calls": [weather("a", "${b.city}")]}, "calls[0]: 'a' refers to 'b'"),
    ("asks about nobody", {"calls": [weather("a", condition="failed(b)")]}, "calls[0]: 'a' refers to 'b'"),
    ("a broken reference", {"calls": [weather("a", "${b..city}")]}, "calls[0].arguments: 'b..city' is no reference"),
    ("a broken condition", {"calls": [LIST, weather("a", condition="day.count ==")]}, "calls[1].condition: expected"),
    ("a condition in Python", {"calls": [weather("a", condition="open('/etc/passwd')")]}, "calls[0].condition: "),
    ("waits for itself", {"calls": [weather("a", depends_on=["a"])]}, "calls[0]: waits for itself: a waits for a"),
    ("a cycle", {"calls": [weather("a", depends_on=["c"]), weather("b", "${a.x}"), weather("c", depends_on=["b"])]},
     "waits for itself: "),
    ("a date that is none", {"calls": [{**LIST, "arguments": {"start_date": "Thursday", "end_date": "2026-03-19"}}]},
     "calls[0].arguments.start_date: "),
    ("a missing argument", {"calls": [{**LIST, "arguments": {"start_date": "2026-03-19"}}]},
     "calls[0].arguments: 'end_date' is a required property"),
    ("an argument too many", {"calls": [{**weather("a"), "arguments": {"location": "Oslo", "day": "x"}}]},
     "calls[0].arguments.day: unknown parameter 'day'"),
    ("text for a number", {"calls": [weather("a"), {"id": "b", "tool": "convert_currency", "arguments": {
        "amount": "about ${a.price}", "from_currency": "EUR", "to_currency": "CHF"}}]}, "calls[1].arguments.amount: "),
    ("a wrong value deep inside", {"calls": [weather("a"), {"id": "m", "tool": "send_email", "arguments": {
        "to": ["${a.mail}", 5], "subject": "x", "body": "y"}}]}, "calls[1].arguments.to[1]: 5 is not of type 'string'"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "message"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_plan_is_refused_with_the_place_named(value: Any, message: str) -> None:
    plan = plan_from_json(value, TOOLS)
    assert isinstance(plan, BadPlan)
    assert message in str(plan)


def test_references_are_checked_against_what_is_known_of_results() -> None:
    schemas = {
        "get_weather": {"type": "object", "additionalProperties": False, "properties": {
            "temperature": {"type": "number"}, "days": {"type": "array", "items": {"type": "string"}}}}
    }  # fmt: skip
    convert = {"from_currency": "EUR", "to_currency": "CHF"}

    def outcome(reference: str) -> Plan | BadPlan:
        second = {"id": "b", "tool": "convert_currency", "arguments": {"amount": reference, **convert}}
        return plan_from_json({"calls": [weather("a"), second]}, TOOLS, schemas)

    assert isinstance(outcome("${a.temperature}"), Plan)
    assert "calls[1].arguments.amount: '' is not of type 'number'" in str(outcome("${a.days[0]}"))
    assert "a.pressure: results of 'get_weather' have no such place" in str(outcome("${a.pressure}"))
    assert "a.temperature.x: results" in str(outcome("${a.temperature.x}"))


def test_random_cycles_are_always_found() -> None:
    rng = random.Random(3)
    for _ in range(200):
        graph = random_graph(rng)
        names = list(graph)
        first, last = rng.choice(names), rng.choice(names)
        cyclic = {name: set(needs) for name, needs in graph.items()}
        cyclic[first].add(last)
        cyclic[last].add(first)
        plan = plan_from_json({"calls": [weather(name, depends_on=sorted(cyclic[name])) for name in names]}, TOOLS)
        assert isinstance(plan, BadPlan)
        assert "waits for itself" in str(plan)


def test_a_plan_may_stand_in_a_fence_and_must_be_json() -> None:
    text = '```json\n{"calls": [{"id": "a", "tool": "get_weather", "arguments": {"location": "Oslo"}}]}\n```'
    assert isinstance(plan_from_text(text, TOOLS), Plan)
    for text in ("Sure! First I would …", '{"calls": [', '{"calls": [], "calls": []}', "[" * 100_000):
        assert "not JSON" in str(plan_from_text(text, TOOLS))
