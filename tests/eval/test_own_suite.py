"""A user's own folder: tools, simulators and played cases of one's own, and errors that name file, case and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.backends import PlaybackBackend
from eval.cases import Suite, SuiteError
from eval.evaluate import evaluate
from eval.matching import Outcome
from eval.results import CaseResult
from eval.suites import load_suite
from tinydispatch.formats import render_calls
from tinydispatch.tools import ToolCall

TOOLS = [
    {"name": "find_orders", "description": "", "parameters": {
        "type": "object", "properties": {"customer": {"type": "string"}}, "required": ["customer"]}},
    {"name": "cancel_order", "description": "", "parameters": {
        "type": "object", "properties": {"order_id": {"type": "integer"}}, "required": ["order_id"]}},
    {"name": "change_order", "description": "", "parameters": {
        "type": "object", "properties": {"order_id": {"type": "integer"}, "size": {"type": "string"}},
        "required": ["order_id", "size"]}},
    {"name": "place_order", "description": "", "parameters": {
        "type": "object", "properties": {"customer": {"type": "string"}, "size": {"type": "string"}},
        "required": ["customer", "size"]}},
    {"name": "ping", "description": "", "parameters": {"type": "object", "properties": {}}},
]  # fmt: skip
SIMULATORS: dict[str, Any] = {
    "find_orders": {"action": "find", "collection": "orders", "where": {"customer": "customer"}},
    "cancel_order": {"action": "remove", "collection": "orders", "where": {"id": "order_id"}},
    "change_order": {"action": "update", "collection": "orders", "where": {"id": "order_id"}},
    "place_order": {"action": "add", "collection": "orders", "returns": {"placed": True}},
}
ORDERS = [{"id": 7, "customer": "Ada", "size": "M"}, {"id": 8, "customer": "Bo", "size": "L"}]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


CASE: dict[str, Any] = {
    "id": "a",
    "category": "x",
    "messages": [{"role": "user", "content": "Cancel Ada's order"}],
    "steps": [{"calls": [call("find_orders", customer="Ada")]}, {"calls": [call("cancel_order", order_id=7)]}],
    "world": {"state": {"orders": ORDERS}},
    "final_state": {"orders": [{"id": 8}]},
}


def write(folder: Path, case: dict[str, Any] = CASE, simulators: Any = SIMULATORS) -> Path:
    (folder / "suite.json").write_text(
        json.dumps({"name": "own", "tools": "tools.json", "simulators": "simulators.json"})
    )
    (folder / "tools.json").write_text(json.dumps(TOOLS))
    (folder / "simulators.json").write_text(simulators if isinstance(simulators, str) else json.dumps(simulators))
    (folder / "cases.jsonl").write_text(json.dumps(case))
    return folder


def play(suite: Suite, *replies: list[dict[str, Any]] | str) -> CaseResult:
    texts = [
        reply if isinstance(reply, str) else render_calls([ToolCall(c["name"], c["arguments"]) for c in reply])
        for reply in replies
    ]
    return evaluate(PlaybackBackend({"Cancel Ada's order": texts}), suite, model_name="m", progress=False).cases[0]


def test_described_tools_find_remove_and_leave_the_wanted_state(tmp_path: Path) -> None:
    result = play(load_suite(write(tmp_path)), *[step["calls"] for step in CASE["steps"]], "Cancelled.")
    assert result.outcome is Outcome.CORRECT
    contents = [json.loads(line["content"]) for line in result.transcript if line["role"] == "tool"]
    assert contents == [{"count": 1, "orders": [ORDERS[0]]}, {"status": "ok"}]


def test_described_tools_add_update_and_report_what_is_not_there(tmp_path: Path) -> None:
    steps = [call("change_order", order_id=7, size="S"), call("place_order", customer="Cy", size="L"),
             call("cancel_order", order_id=99), call("ping")]  # fmt: skip
    case = {
        **CASE,
        "steps": [{"calls": [step]} for step in steps],
        "final_state": {"orders": [{"id": 7, "size": "S"}, {"id": 8, "size": "L"}, {"customer": "Cy", "size": "L"}]},
    }
    result = play(load_suite(write(tmp_path, case)), *[[step] for step in steps], "Done.")
    assert (result.outcome, result.explanation) == (Outcome.CORRECT, "")
    lines = [line for line in result.transcript if line["role"] == "tool"]
    assert [line["is_error"] for line in lines] == [False, False, True, False]
    assert "nothing in orders with id 99" in lines[2]["content"]


def test_a_script_that_is_followed_and_leaves_another_state_fails_by_the_state(tmp_path: Path) -> None:
    case = {**CASE, "steps": [{"calls": [call("cancel_order", order_id={"$match": "any"})]}]}
    suite = load_suite(write(tmp_path, case))
    assert play(suite, [call("cancel_order", order_id=7)], "Done.").outcome is Outcome.CORRECT
    wrong = play(suite, [call("cancel_order", order_id=8)], "Done.")
    assert (wrong.outcome, wrong.is_goal_reached) == (Outcome.WRONG_ARGUMENT, False)
    assert wrong.explanation.startswith('final state: orders: {"id": 8} is not there; orders: {"id": 7')


def test_a_call_that_breaks_its_schema_or_is_not_on_offer_has_no_effect(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path, {**CASE, "tools": ["find_orders", "cancel_order"], "final_state": {}}))
    broken = play(suite, [call("cancel_order", order_id="7")], [call("place_order", customer="A", size="S")], "Done.")
    lines = [line for line in broken.transcript if line["role"] == "tool"]
    assert all(line["is_error"] for line in lines)
    assert "unknown tool 'place_order'" in lines[1]["content"]
    assert broken.is_goal_reached


def test_an_optional_step_may_be_left_out_but_not_made_up_for_later(tmp_path: Path) -> None:
    ping = {"calls": [call("ping")], "optional": True}
    suite = load_suite(write(tmp_path, {**CASE, "steps": [CASE["steps"][0], ping, CASE["steps"][1]]}))
    find, cancel = (step["calls"] for step in CASE["steps"])
    assert play(suite, find, [call("ping")], cancel, "Done.").outcome is Outcome.CORRECT
    assert play(suite, find, cancel, "Done.").outcome is Outcome.CORRECT
    assert play(suite, find, cancel, [call("ping")], "Done.").outcome is Outcome.EXTRA_CALL
    assert play(suite, find, [call("ping"), *cancel], "Done.").outcome is Outcome.PREMATURE_CALL


def test_an_error_that_holds_for_one_call_lets_the_next_one_through(tmp_path: Path) -> None:
    rules = [{"tool": "find_orders", "when": {"customer": "Ada"}, "error": "busy", "times": 1},
             {"tool": "find_orders", "when": {"customer": "Bo"}, "result": {"count": 5}}]  # fmt: skip
    find = [call("find_orders", customer="Ada")]
    case = {**CASE, "steps": [{"calls": find}, {"calls": find}, {"calls": [call("find_orders", customer="Bo")]}],
            "world": {"state": {"orders": ORDERS}, "rules": rules}, "final_state": {}}  # fmt: skip
    result = play(load_suite(write(tmp_path, case)), find, find, [call("find_orders", customer="Bo")], "Five.")
    assert result.outcome is Outcome.CORRECT
    contents = [json.loads(line["content"]) for line in result.transcript if line["role"] == "tool"]
    assert contents == [{"error": "busy"}, {"count": 1, "orders": [ORDERS[0]]}, {"count": 5}]


def test_the_fingerprint_follows_the_simulators(tmp_path: Path) -> None:
    first = load_suite(write(tmp_path)).fingerprint
    assert load_suite(write(tmp_path)).fingerprint == first
    assert load_suite(write(tmp_path, simulators={**SIMULATORS, "ping": {"action": "return"}})).fingerprint != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expected": {"calls": []}}, r"cases.jsonl:1: case 'a': key 'expected': unknown key"),
        ({"stepps": []}, r"key 'stepps': unknown key; did you mean 'steps'\?"),
        ({"steps": {}}, r"case 'a': key 'steps': expected an array of steps"),
        ({"steps": [{"calls": []}]}, r"key 'steps.0.calls': a step without calls"),
        ({"steps": [{"calls": [call("fly")]}]}, r"key 'steps.0.calls.0.name': 'fly' is none of the suite's tools"),
        ({"steps": [{"calls": [call("ping")], "wait": False}]}, r"key 'steps.0.wait': .*did you mean 'waits'"),
        ({"steps": [{"calls": [call("ping")], "waits": 1}]}, r"key 'steps.0.waits': expected true or false"),
        ({"steps": [{"calls": [call("cancel_order", order_id="x")]}]}, r"'steps.0.calls.0.arguments.order_id': breaks"),
        ({"follow_ups": [{"steps": []}]}, r"key 'follow_ups.0.user': expected what the user says"),
        ({"world": {"rule": []}}, r"key 'world.rule': unknown key"),
        ({"world": {"rules": [{"tool": "ping"}]}}, r"key 'world.rules.0': expected either 'result' or 'error'"),
        ({"world": {"rules": [{"tool": "ping", "error": "x", "times": 0}]}}, r"'world.rules.0.times': 0: expected"),
        ({"world": {"rules": [{"tool": "ping", "when": {"x": 1}, "error": "e"}]}}, r"rules.0.when.x': tool 'ping'"),
        ({"world": {"state": {"orders": [5]}}}, r"key 'world.state.orders.0': expected an object"),
        ({"final_state": {"orders": {}}}, r"key 'final_state.orders': expected an array"),
        ({"final_state": {"orders": [{"id": {"$match": "x"}}]}}, r"'final_state.orders.0.id': unknown matcher"),
        ({"needs_success": ["fly"]}, r"key 'needs_success': 'fly' is none"),
        ({"max_turns": 2}, r"key 'max_turns': 2: expected more than the 2 calls"),
    ],
)  # fmt: skip
def test_a_malformed_played_case_is_named_by_file_case_and_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SuiteError, match=message):
        load_suite(write(tmp_path, {**CASE, **changes}))


@pytest.mark.parametrize(
    ("simulators", "message"),
    [
        ("{", r"simulators.json: not JSON"),
        ({"pong": {"action": "return"}}, r"simulators.json: key 'pong': unknown key; did you mean 'ping'"),
        ({"ping": {"action": "fly"}}, r"key 'ping.action': 'fly' is none of return, add, find, update, remove"),
        ({"ping": {"action": "add"}}, r"key 'ping.collection': expected the name"),
        ({"cancel_order": {"action": "remove", "collection": "orders", "where": {"id": "no"}}}, r"cancel_order.where"),
    ],
)
def test_a_malformed_simulator_is_named_by_file_tool_and_key(tmp_path: Path, simulators: Any, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        load_suite(write(tmp_path, simulators=simulators))
    (tmp_path / "simulators.json").unlink()
    with pytest.raises(SuiteError, match=r"simulators.json: cannot be read"):
        load_suite(tmp_path)
