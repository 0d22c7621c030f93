"""Conversations run to their end: dependent steps wait, doubtful turns go up, and one layer may be absent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fixtures_playback import PlaybackRuntime
from tests.layers.kitchen import (
    BOOK,
    FREE,
    LIST,
    MAIL,
    OSLO,
    ROME,
    THURSDAY,
    Kitchen,
    ScriptedDispatcher,
    Server,
    endpoint,
    fails,
    stack,
)
from tinydispatch.formats import render_calls
from tinydispatch.layers.policy import ErrorAction, ErrorRule, Escalation, Limits
from tinydispatch.layers.stack import EndState, Layer, Reason, shares
from tinydispatch.layers.toolbox import ToolPolicy
from tinydispatch.tools import Message, Role, ToolCall

PLAN = {
    "calls": [
        {"id": "day", "tool": LIST.name, "arguments": dict(LIST.arguments)},
        {"id": "book", "tool": BOOK.name, "arguments": dict(BOOK.arguments), "condition": "day.count == 0"},
    ]
}


def reasons(end: Any) -> list[tuple[Layer, Reason]]:
    return [(layer, handover.reason) for layer, handover in end.handovers]


def test_a_simple_request_never_leaves_the_dispatch_layer(mid: Server) -> None:
    kitchen, dispatcher = Kitchen(), ScriptedDispatcher([OSLO, ROME], "Both are fine.")
    end = stack(kitchen, dispatcher, orchestration=endpoint(mid.url)).run("Weather in Oslo and Rome?")
    assert (end.state, end.reply, kitchen.acted, mid.bodies) == (EndState.ANSWERED, "Both are fine.", [OSLO, ROME], [])
    assert [message.role for message in end.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert shares([end.use]) == {Layer.DISPATCH: 1.0, Layer.ORCHESTRATION: 0.0, Layer.PLANNING: 0.0}


def test_dispatch_alone_makes_dependent_calls_one_step_at_a_time() -> None:
    kitchen, dispatcher = Kitchen(), ScriptedDispatcher([OSLO, ROME, MAIL], [MAIL], "Sent.")
    end = stack(kitchen, dispatcher).run("Weather in Oslo and Rome, then write to jo@kew.example.")
    assert kitchen.acted == [OSLO, ROME, MAIL]
    assert end.steps[0].held_back == (MAIL,)
    assert dispatcher.seen[1][-1].role is Role.TOOL, "it was asked again with the results"


def test_an_effect_under_a_condition_is_not_made_before_anything_was_looked_up() -> None:
    kitchen, dispatcher = Kitchen(), ScriptedDispatcher([BOOK])
    end = stack(kitchen, dispatcher).run(THURSDAY)
    assert (end.state, kitchen.acted) == (EndState.ASKED, [])
    assert reasons(end) == [(Layer.DISPATCH, Reason.EFFECT_BEFORE_RESULT)]


@pytest.mark.parametrize(("count", "acted"), [(0, [LIST, BOOK]), (2, [LIST])])
def test_orchestration_waits_for_the_result_and_honours_the_condition(
    mid: Server, count: int, acted: list[ToolCall]
) -> None:
    kitchen = Kitchen(list_calendar_events={"count": count})
    mid.replies = [[LIST, BOOK], [BOOK] if count == 0 else "You are busy.", "Booked."]
    end = stack(kitchen, ScriptedDispatcher(), orchestration=endpoint(mid.url)).run(THURSDAY)
    assert (end.state, kitchen.acted) == (EndState.ANSWERED, acted)
    assert reasons(end) == [(Layer.DISPATCH, Reason.DEPENDENT_WORDS)]
    fed_back = mid.bodies[1]["messages"]
    assert [message["role"] for message in fed_back] == ["system", "user", "assistant", "tool"]
    assert fed_back[-1]["content"] == json.dumps({"count": count})
    assert fed_back[-1]["tool_call_id"] == fed_back[-2]["tool_calls"][0]["id"]


@pytest.mark.parametrize(("count", "acted"), [(0, [LIST, BOOK]), (2, [LIST])])
def test_planning_writes_a_graph_that_is_run(mid: Server, large: Server, count: int, acted: list[ToolCall]) -> None:
    kitchen = Kitchen(list_calendar_events={"count": count})
    large.replies = [PLAN]
    mid.replies = ["That is that."]
    layers = {"orchestration": endpoint(mid.url), "planning": endpoint(large.url)}
    end = stack(kitchen, ScriptedDispatcher(), **layers).run(THURSDAY)
    assert (end.state, end.reply, kitchen.acted) == (EndState.ANSWERED, "That is that.", acted)
    assert (end.use[Layer.PLANNING].calls, len(large.bodies)) == (len(acted), 1)
    assert "tools" not in large.bodies[0]


def test_without_a_layer_below_planning_says_itself_what_was_done(large: Server) -> None:
    large.replies = [PLAN]
    end = stack(Kitchen(list_calendar_events={"count": 1}), ScriptedDispatcher(), planning=endpoint(large.url)).run(
        THURSDAY
    )
    assert end.state is EndState.ANSWERED
    assert end.reply.splitlines()[0].startswith('- done: list_calendar_events(start_date="2026-03-19"')
    assert end.reply.endswith("(the condition is false: day.count == 0)")


def test_a_broken_plan_is_repaired_once_and_then_refused(large: Server) -> None:
    broken = {"calls": [{"id": "a", "tool": "book_table", "arguments": {}}]}
    large.replies = [broken, PLAN]
    kitchen = Kitchen(list_calendar_events={"count": 0})
    assert stack(kitchen, planning=endpoint(large.url)).run(THURSDAY).state is EndState.ANSWERED
    assert "calls[0].tool: unknown tool 'book_table'" in large.bodies[1]["messages"][-1]["content"]
    large.replies = [broken, "I cannot.", PLAN]
    kitchen = Kitchen()
    end = stack(kitchen, planning=endpoint(large.url)).run(THURSDAY)
    assert (end.state, kitchen.acted, len(large.bodies)) == (EndState.REFUSED_PLAN, [], 4)


def test_a_plan_that_is_made_once_more_with_other_ids_has_no_effect_twice(mid: Server, large: Server) -> None:
    again = json.loads(
        json.dumps(PLAN).replace('"day"', '"d"').replace("day.count", "d.count").replace('"book"', '"b"')
    )
    large.replies = [PLAN, again]
    mid.replies = [[BOOK], "Booked."]
    kitchen = Kitchen(list_calendar_events={"count": 0})
    layers = {"orchestration": endpoint(mid.url), "planning": endpoint(large.url)}
    end = stack(kitchen, ScriptedDispatcher(), **layers).run(THURSDAY)
    assert (end.state, len(large.bodies), kitchen.acted) == (EndState.ANSWERED, 2, [LIST, BOOK])


@pytest.mark.parametrize(
    ("script", "settings", "reason"),
    [
        ([[OSLO]], {"confidence": 0.2}, Reason.LOW_CONFIDENCE),
        ([[ToolCall("fly", {})]], {}, Reason.INVALID_CALL),
        ([[ToolCall("get_weather", {"location": 5})]], {}, Reason.INVALID_CALL),
        ([[OSLO, OSLO]], {}, Reason.REPEATED_CALL),
        ([[OSLO], [OSLO]], {}, Reason.REPEATED_CALL),
        ([""], {}, Reason.NOTHING_SAID),
        ([ValueError("the prompt of 9 tokens does not fit the context of 8")], {}, Reason.TOO_MANY_TOOLS),
        ([ValueError("a schema cannot be expressed")], {}, Reason.LAYER_FAILED),
    ],
)
def test_a_doubtful_turn_is_handed_up_with_its_reason(
    mid: Server, script: list[Any], settings: dict[str, Any], reason: Reason
) -> None:
    dispatcher = ScriptedDispatcher(*script, **settings)
    end = stack(Kitchen(), dispatcher, orchestration=endpoint(mid.url)).run("Weather in Oslo?")
    assert reasons(end) == [(Layer.DISPATCH, reason)]
    assert (end.state, end.reply) == (EndState.ANSWERED, "Done.")
    alone = stack(Kitchen(), ScriptedDispatcher(*script, **settings)).run("Weather in Oslo?")
    assert (alone.state, reasons(alone)) == (EndState.ASKED, [(Layer.DISPATCH, reason)])
    assert alone.reply.endswith(("?", "."))


def test_more_tools_than_fit_are_handed_up(mid: Server) -> None:
    dispatcher = ScriptedDispatcher()
    few = Escalation(max_tools=7)
    end = stack(Kitchen(), dispatcher, orchestration=endpoint(mid.url), escalation=few).run("Weather?")
    assert (reasons(end), dispatcher.seen) == ([(Layer.DISPATCH, Reason.TOO_MANY_TOOLS)], [])


def test_an_error_is_repaired_asked_about_replaced_or_handed_up_by_policy(mid: Server) -> None:
    unknown = Kitchen(get_weather=fails("the moon is full"))
    end = stack(unknown, ScriptedDispatcher([OSLO]), orchestration=endpoint(mid.url)).run("Oslo?")
    assert (end.state, reasons(end)) == (EndState.ANSWERED, [(Layer.DISPATCH, Reason.UNKNOWN_ERROR)])
    repaired = Kitchen(get_weather=[fails("location not found; did you mean Oslo, Norway?"), {"sky": "sun"}])
    better = ToolCall("get_weather", {"location": "Oslo, Norway"})
    end = stack(repaired, ScriptedDispatcher([OSLO], [better], "Sun.")).run("Oslo?")
    assert (end.state, end.reply, repaired.acted, end.handovers) == (EndState.ANSWERED, "Sun.", [better], ())
    asked = stack(Kitchen(get_weather=fails("permission denied")), ScriptedDispatcher([OSLO])).run("Oslo?")
    assert asked.state is EndState.ASKED
    assert "permission denied" in asked.reply
    rules = (ErrorRule("closed", ErrorAction.ALTERNATIVE, alternative="search_web"),)
    web = ToolCall("search_web", {"query": "Oslo"})
    replaced = Kitchen(get_current_time=fails("closed"), search_web={"results": []})
    wrong = ToolCall("get_current_time", {"timezone": "Europe/Oslo"})
    end = stack(replaced, ScriptedDispatcher([wrong], [web], "Here."), errors=rules).run("Oslo?")
    assert [outcome.call.name for outcome in end.outcomes] == ["get_current_time", "search_web", "search_web"]
    assert replaced.acted == [web], "arguments that the alternative does not take are refused, and repaired"


def test_a_run_waits_for_a_person_and_goes_on_where_it_was(mid: Server, large: Server) -> None:
    asking = ToolPolicy()
    kitchen, dispatcher = Kitchen(), ScriptedDispatcher([OSLO, MAIL], "Sent.")
    made = stack(kitchen, dispatcher, tools=asking)
    waiting = made.run("Weather in Oslo, and write Hello to jo@kew.example")
    assert (waiting.state, kitchen.acted) == (EndState.NEEDS_CONFIRMATION, [OSLO])
    assert waiting.reply.startswith('Shall I do this?\n- send_email(to=["jo@kew.example"]')
    end = made.resume(waiting, is_agreed=True)
    assert (end.state, kitchen.acted, len(dispatcher.seen)) == (EndState.ANSWERED, [OSLO, MAIL], 2)
    with pytest.raises(ValueError, match="nothing waits"):
        made.resume(end, is_agreed=True)
    kitchen = Kitchen(list_calendar_events={"count": 0})
    large.replies = [PLAN]
    planned = stack(kitchen, tools=asking, orchestration=endpoint(mid.url), planning=endpoint(large.url))
    waiting = stack(kitchen, tools=asking, planning=endpoint(large.url)).run(THURSDAY)
    assert (waiting.state, kitchen.acted) == (EndState.NEEDS_CONFIRMATION, [LIST])
    end = planned.resume(waiting, is_agreed=False)
    assert kitchen.acted == [LIST]
    assert "- failed: create_calendar_event" in end.reply


def test_an_application_that_confirms_at_once_is_asked_per_call() -> None:
    asked: list[str] = []

    def confirm(call: ToolCall, why: str) -> bool:
        asked.append(f"{call.name}: {why}")
        return False

    kitchen = Kitchen()
    end = stack(kitchen, ScriptedDispatcher([MAIL]), tools=ToolPolicy(), confirm=confirm).run("Mail jo@kew.example")
    assert (end.state, end.reply, kitchen.acted) == (EndState.ANSWERED, "I have left that undone.", [])
    assert asked == ["send_email: has side effects"]


@pytest.mark.parametrize(
    ("limits", "state"),
    [
        (Limits(max_steps=3), EndState.STEP_LIMIT),
        (Limits(max_calls=2), EndState.STEP_LIMIT),
        (Limits(max_cost=0.5), EndState.COST_LIMIT),
    ],
)
def test_a_model_that_never_stops_is_stopped(mid: Server, limits: Limits, state: EndState) -> None:
    mid.replies = [[ToolCall("get_weather", {"location": f"City {index}"})] for index in range(50)]
    kitchen = Kitchen()
    end = stack(kitchen, orchestration=endpoint(mid.url, price_per_call=0.3), limits=limits).run("Weather?")
    assert end.state is state
    assert len(kitchen.acted) <= 3


def test_a_real_dispatcher_is_a_dispatch_layer() -> None:
    from tinydispatch.dispatcher import Dispatcher

    kitchen = Kitchen()
    dispatcher: Any = Dispatcher(PlaybackRuntime(render_calls([OSLO])), [tool.tool for tool in kitchen.bound()])
    end = stack(kitchen, dispatcher, escalation=Escalation(min_confidence=0.0)).run("Weather in Oslo?")
    assert kitchen.acted == [OSLO]
    assert reasons(end) == [(Layer.DISPATCH, Reason.REPEATED_CALL)], "it plays the same reply once more"


def test_a_conversation_without_the_user_is_refused() -> None:
    with pytest.raises(ValueError, match="no message of the user's"):
        stack(Kitchen(), ScriptedDispatcher()).run([Message(Role.SYSTEM, "x")])


def test_the_policy_of_tools_holds_for_what_models_see(mid: Server) -> None:
    only = ToolPolicy(allowed=frozenset({"get_weather"}), is_confirming=False)
    stack(Kitchen(), orchestration=endpoint(mid.url), tools=only).run("Hi")
    assert [tool["function"]["name"] for tool in mid.bodies[0]["tools"]] == ["get_weather"]
    assert FREE.allowed is None
