"""Whatever is wrong with a row, it is kept or rejected under a name: nothing raises, nothing is lost."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.config import (
    DataConfig,
    DispatchLogSource,
    FileSource,
    HermesSource,
    OpenAIJsonlSource,
    ShareGptSource,
    ToolBenchSource,
    When2CallSource,
    XlamSource,
)
from data.rejected import RejectReason
from data.screen import Screen
from data.sources import conversations_of
from data.sources.files import RawRow
from tinydispatch.bundled import bundled_tools

PATH = Path("rows.json")
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
CALL = {"name": "f", "arguments": {"a": "x"}}
ASK = {"role": "user", "content": "do it"}
API = f"Specifically, you have access to the following APIs: {[TOOL]!r}"
TURN = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": "x"}'}}

SOURCES: list[tuple[FileSource, Any]] = [
    (
        ToolBenchSource(kind="toolbench", path=PATH),
        {
            "id": "Step 2",
            "conversations": [
                {"from": "system", "value": API},
                {"from": "user", "value": "\ndo it\nBegin!\n"},
                {"from": "assistant", "value": 'Thought: t\nAction: f\nAction Input: {"a": "x"}'},
                {"from": "function", "value": '{"error": ""}'},
                {"from": "assistant", "value": "Action: Finish\nAction Input: {'return_type': 'give_answer',"
                 " 'final_answer': 'so'}"},
            ],
        },
    ),
    (
        ToolBenchSource(kind="toolbench", path=PATH),
        {
            "answer_generation": {
                "valid_data": True,
                "query": "do it",
                "function": [TOOL],
                "train_messages": [[{"role": "system", "content": ""}, ASK, TURN]],
            }
        },
    ),
    (
        OpenAIJsonlSource(kind="openai_jsonl", path=PATH),
        {"messages": [ASK, {"role": "assistant", "tool_calls": [{"id": "1", "function": CALL}]},
                      {"role": "tool", "tool_call_id": "1", "content": "r"}], "tools": [TOOL], "metadata": {"a": [1]}},
    ),
    (
        XlamSource(kind="xlam", path=PATH),
        {"query": "do it", "tools": json.dumps([{**TOOL, "parameters": {"a": {"type": "str"}}}]), "answers": [CALL]},
    ),
    (
        HermesSource(kind="hermes", path=PATH),
        {"conversations": [{"from": "system", "value": f"<tools>{json.dumps([TOOL])}</tools>"},
                           {"from": "human", "value": "do it"},
                           {"from": "gpt", "value": f"<tool_call>{json.dumps(CALL)}</tool_call>"}]},
    ),
    (
        ShareGptSource(kind="sharegpt", path=PATH),
        {"tools": [TOOL], "conversations": [{"from": "human", "value": "do it"},
                                            {"from": "function_call", "value": json.dumps(CALL)}]},
    ),
    (
        ShareGptSource(kind="sharegpt", path=PATH),
        {"system": f"SYSTEM: {json.dumps(TOOL)}", "chat": f"USER: do it\nASSISTANT: <functioncall> {json.dumps(CALL)}"},
    ),
    (
        When2CallSource(kind="when2call", path=PATH),
        {"tools": [json.dumps(TOOL)], "messages": [ASK, {"role": "assistant",
                                                         "content": f"<TOOLCALL>{[CALL]!r}</TOOLCALL>"}]},
    ),
    (DispatchLogSource(kind="dispatch_log", path=PATH), {"messages": [ASK], "tools": [TOOL], "calls": [CALL]}),
]  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a value that is not nested absurdly deep."""
    if len(path) > 12:
        return []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def shallow_copies(value: Any, path: tuple[Any, ...]) -> Any:
    """The value with containers of its own along the path."""
    if not path:
        return value
    value = copy.copy(value)
    value[path[0]] = shallow_copies(value[path[0]], path[1:])
    return value


def mutated(row: Any, draw: Callable[..., Any]) -> Any:
    """The row with something deleted, replaced, cut off, doubled or nested."""
    path = draw(st.sampled_from(places(row)))
    if not path:
        return draw(json_values)
    row = shallow_copies(row, path)
    parent = row
    for key in path[:-1]:
        parent = parent[key]
    old = parent[path[-1]]
    how = draw(st.sampled_from(["replace", "delete", "cut", "insert", "nest", "double"]))
    if how == "delete":
        del parent[path[-1]]
    elif how == "cut" and isinstance(old, str):
        parent[path[-1]] = old[: draw(st.integers(0, max(0, len(old) - 1)))]
    elif how == "insert" and isinstance(old, str):
        at = draw(st.integers(0, len(old)))
        parent[path[-1]] = (
            old[:at] + draw(st.text(max_size=5) | st.sampled_from(["\ud83d", "'", '"', "}", "\\"])) + old[at:]
        )
    elif how == "nest":
        for _ in range(draw(st.sampled_from([1, 3, 1500]))):
            old = [old]
        parent[path[-1]] = old
    elif how == "double" and isinstance(old, list):
        parent[path[-1]] = old + old
    else:
        parent[path[-1]] = draw(json_values)
    return row


@pytest.mark.parametrize("index", range(len(SOURCES)))
def test_a_row_that_is_whole_is_kept(index: int) -> None:
    source, row = SOURCES[index]
    assert outcome(source, row) == [""]


@pytest.mark.parametrize("index", range(len(SOURCES)))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_row_is_kept_or_rejected_under_a_name_and_never_raises(index: int, data: st.DataObject) -> None:
    source, row = SOURCES[index]
    for _ in range(data.draw(st.integers(1, 3))):
        row = mutated(row, data.draw)
    reasons = outcome(source, row)
    assert reasons
    assert all(reason == "" or reason in tuple(RejectReason) for reason in reasons)


def outcome(source: FileSource, row: Any) -> list[str]:
    """The reason of each conversation that the row gives; "" for those that may be kept."""
    config = DataConfig(sources=(source,))
    screen = Screen(config, seed=0, case_texts=["something else"], count_tokens=len_of_line)
    rows = list(conversations_of(source, RawRow("rows.json[0]", row), PATH, bundled_tools()))
    return [screened.record.reason for screened in screen.screen(rows, 0)]


def len_of_line(conversation: Any) -> int:
    return sum(len(message.content) for message in conversation.messages)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"x", {("a",): 1}, "\ud83d"])
@pytest.mark.parametrize("place", ["arguments", "schema", "metadata"])
def test_a_value_that_cannot_be_stored_is_rejected_wherever_it_stands(place: str, value: Any) -> None:
    properties = {"a": {"default": value} if place == "schema" else {}}
    call = {"name": "f", "arguments": {"a": value if place == "arguments" else 1}}
    row = {
        "messages": [ASK, {"role": "assistant", "tool_calls": [{"function": call}]}],
        "tools": [{"name": "f", "parameters": {"type": "object", "properties": properties}}],
        "metadata": {"a": value if place == "metadata" else 1},
    }
    assert outcome(OpenAIJsonlSource(kind="openai_jsonl", path=PATH), row) == [RejectReason.UNSTORABLE]


PLANTED = {
    "unknown_tool": {"name": "g", "arguments": {}},
    "schema_violation: missing": {"name": "f", "arguments": {}},
    "schema_violation: extra": {"name": "f", "arguments": {"n": 1, "b": 2}},
    "schema_violation: type": {"name": "f", "arguments": {"n": "1"}},
    "schema_violation: bool for integer": {"name": "f", "arguments": {"n": True}},
    "schema_violation: enum": {"name": "f", "arguments": {"n": 1, "e": "z"}},
    "schema_violation: bound": {"name": "f", "arguments": {"n": 0}},
    "schema_violation: items": {"name": "f", "arguments": {"n": 1, "l": ["a", 3]}},
    "schema_violation: nested": {"name": "f", "arguments": {"n": 1, "o": {"x": "no number"}}},
    "schema_violation: format": {"name": "f", "arguments": {"n": 1, "d": "tomorrow"}},
    "malformed_call": {"name": "f", "arguments": "{"},
}


@pytest.mark.parametrize("name", PLANTED)
def test_each_kind_of_wrong_call_is_rejected_under_its_name(name: str) -> None:
    properties = {
        "n": {"type": "integer", "minimum": 1},
        "e": {"enum": ["x", "y"]},
        "l": {"type": "array", "items": {"type": "string"}},
        "o": {"type": "object", "properties": {"x": {"type": "number"}}},
        "d": {"type": "string", "format": "date"},
    }
    tool = {"name": "f", "parameters": {"type": "object", "properties": properties, "required": ["n"]}}
    row = {"messages": [ASK, {"role": "assistant", "tool_calls": [{"function": PLANTED[name]}]}], "tools": [tool]}
    source = OpenAIJsonlSource(kind="openai_jsonl", path=PATH)
    assert outcome(source, row) == [name.partition(":")[0]]
