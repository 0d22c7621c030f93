from __future__ import annotations

import copy
import datetime as dt
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema.validators import Draft202012Validator

from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall, ToolError, check_calls

EMPTY = {"type": "object", "properties": {}}
DATED = Tool("book", "", {"type": "object", "properties": {"on": {"type": "string", "format": "date"}}})


def with_format(name: str) -> Tool:
    return Tool("t", "", {"type": "object", "properties": {"value": {"type": "string", "format": name}}})


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "naïve", 'say"hi"', "new\nline"])
def test_a_name_that_servers_refuse_is_refused_here_and_named(name: str) -> None:
    with pytest.raises(ToolError, match="tool name"):
        Tool(name, "", EMPTY)


@pytest.mark.parametrize("parameters", [{}, {"type": "array"}, {"type": ["string"]}, [], None])
def test_parameters_have_to_be_a_schema_of_an_object(parameters: Any) -> None:
    with pytest.raises(ToolError, match="'parameters' must be"):
        Tool("t", "", parameters)


@pytest.mark.parametrize(
    ("broken", "where"),
    [
        ({"properties": {"a": {"type": "strin"}}}, "properties.a.type"),
        ({"properties": {"a": {"enum": []}, "b": {"minimum": "3"}}}, "properties.b.minimum"),
        ({"properties": {"a": {"items": {"pattern": 3}}}}, "properties.a.items.pattern"),
        ({"properties": [1]}, "properties"),
        ({"properties": {}, "required": "a"}, "required"),
    ],
)
def test_a_broken_schema_is_refused_with_the_place_named(broken: dict[str, Any], where: str) -> None:
    for _ in range(2):  # the second time from memory
        with pytest.raises(ToolError, match=f"'t': not a JSON schema at '{where}'"):
            Tool("t", "", {"type": "object", **broken})


SCHEMAS = st.recursive(
    st.sampled_from(
        [{}, True, 3, {"type": "string"}, {"type": "strin"}, {"minimum": 1}, {"minimum": "1"}, {"enum": 1}]
    ),
    lambda inner: st.dictionaries(st.sampled_from(["a", "$ref", "x-y"]), inner, max_size=3).map(
        lambda properties: {"type": "object", "properties": properties}
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=3), SCHEMAS, max_size=3))
def test_property_by_property_accepts_what_the_whole_check_accepts(properties: dict[str, Any]) -> None:
    parameters = {"type": "object", "properties": properties}
    is_schema = Draft202012Validator(Draft202012Validator.META_SCHEMA).is_valid(parameters)
    if is_schema:
        Tool("t", "", parameters)
    else:
        with pytest.raises(ToolError):
            Tool("t", "", parameters)


@pytest.mark.parametrize(
    ("format_name", "good", "bad"),
    [
        ("date", "2028-02-29", "2027-02-29"),
        ("date", "2026-01-01", "20260101"),
        ("local-date-time", "2026-03-19T07:05", "2026-03-19T07:05:00"),
        ("local-date-time", "2026-03-19T23:59", "2026-03-19 23:59"),
        ("local-date-time", "2026-03-19T00:00", "2026-03-19T24:01"),
        ("email", "zoe.o'neill+x@harp.example", "zoe@harp"),
        ("email", "a@b.example", "a b@c.example"),
        ("iana-time-zone", "America/Argentina/Buenos_Aires", "America/Buenos Aires"),
        ("iana-time-zone", "UTC", "Mars/Olympus"),
    ],
)
def test_formats_are_checked(format_name: str, good: str, bad: str) -> None:
    assert with_format(format_name).violations({"value": good}) == []
    assert [violation.path for violation in with_format(format_name).violations({"value": bad})] == ["value"]


def test_a_violation_says_where_and_a_missing_or_unknown_argument_is_one() -> None:
    mail = next(tool for tool in bundled_tools() if tool.name == "send_email")
    arguments = {"to": ["a@b.example", "nobody"], "subject": "", "body": 3, "bcc": []}
    assert {violation.path for violation in mail.violations(arguments)} == {"to.1", "body", "bcc"}
    assert [violation.path for violation in mail.violations({"to": ["a@b.example"], "body": "x"})] == [""]
    assert "subject" in mail.violations({"to": ["a@b.example"], "body": "x"})[0].message


def test_true_is_no_number_and_one_is_no_truth() -> None:
    tool = Tool("t", "", {"type": "object", "properties": {"n": {"type": "number"}, "is_x": {"type": "boolean"}}})
    assert tool.violations({"n": 1, "is_x": True}) == []
    assert {violation.path for violation in tool.violations({"n": True, "is_x": 1})} == {"n", "is_x"}


def test_a_schema_that_lets_other_parameters_pass_does_so() -> None:
    open_tool = Tool("t", "", {"type": "object", "additionalProperties": True})
    assert open_tool.violations({"anything": 1}) == []


def test_a_reference_to_a_url_is_never_fetched_and_said_not_to_be_checked() -> None:
    tool = Tool("t", "", {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}})
    assert tool.violations({"a": 1}) == []
    assert "127.0.0.1" in tool.schema.notes[0].text


@pytest.mark.parametrize("shape", ["openai", "bare", "mcp", "anthropic"])
def test_three_shapes_of_a_tool_are_read_alike(shape: str) -> None:
    openai = DATED.to_openai()
    bare = openai["function"]
    mcp = {"name": "book", "description": "", "inputSchema": bare["parameters"]}
    anthropic = {"name": "book", "description": "", "input_schema": bare["parameters"]}
    value = {"openai": openai, "bare": bare, "mcp": mcp, "anthropic": anthropic}[shape]
    before = copy.deepcopy(value)
    assert Tool.from_openai(value) == DATED
    assert value == before


@pytest.mark.parametrize("value", [None, [], "x", {}, {"function": 1}, {"name": 3}, {"name": "a", "parameters": []}])
def test_what_is_no_tool_is_refused(value: Any) -> None:
    if value == {"name": "a", "parameters": []}:
        assert Tool.from_openai(value).parameters["type"] == "object"
        return
    with pytest.raises(ToolError):
        Tool.from_openai(value)


def test_a_schema_under_an_unknown_key_is_refused_and_not_overlooked() -> None:
    with pytest.raises(ToolError, match="unknown key 'args_schema'"):
        Tool.from_openai({"name": "t", "args_schema": {"type": "object", "properties": {"a": {}}}})
    assert Tool.from_openai({"name": "t", "annotations": {"readOnlyHint": True}}).parameters["properties"] == {}


def test_keywords_and_properties_that_are_null_are_left_out() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "enum": None}, "b": None}, "required": None}
    tool = Tool("t", "", schema)
    assert tool.parameters == {"type": "object", "properties": {"a": {"type": "string"}}}
    kept = {"type": "object", "properties": {"a": {"enum": ["x", None], "default": None}}}
    assert Tool("t", "", kept).parameters == kept


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, 1, 0),
        ({"type": "array", "items": [{"type": "integer"}], "additionalItems": False}, [1], [1, 2]),
        ({"type": "string", "nullable": True}, None, 1),
        ({"type": "object", "dependencies": {"a": ["b"]}}, {"a": 1, "b": 2}, {"a": 1}),
        ({"type": "object", "properties": {"a": {"type": "string", "required": True}}}, {"a": "x"}, {}),
        ({"$ref": "#/definitions/x%20y"}, 1, "a"),
        ({"$ref": "#here"}, 1, "a"),
        ({"$ref": "https://example.org/part"}, 1, "a"),
        ({"$dynamicRef": "#here"}, 1, "a"),
        ({"type": "number", "multipleOf": 0.01}, 19.99, 1.255),
        ({"type": "number", "maximum": 10**400}, 1, "a"),
    ],
)  # fmt: skip
def test_every_draft_and_dialect_is_read(schema: dict[str, Any], good: Any, bad: Any) -> None:
    definitions = {
        "x y": {"$anchor": "here", "$dynamicAnchor": "here", "$id": "https://example.org/part", "type": "integer"}
    }
    tool = Tool("t", "", {"type": "object", "properties": {"v": schema}, "definitions": definitions})
    assert tool.violations({"v": good}) == []
    assert tool.violations({"v": bad}) != []


def test_a_root_may_be_a_reference_or_alternatives() -> None:
    add = {"properties": {"action": {"const": "add"}, "title": {"type": "string"}}, "required": ["action", "title"]}
    drop = {"properties": {"action": {"const": "drop"}, "id": {"type": "integer"}}, "required": ["action", "id"]}
    for root in ({"oneOf": [add, drop]}, {"$ref": "#/$defs/both", "$defs": {"both": {"anyOf": [add, drop]}}}):
        tool = Tool("t", "", root)
        assert tool.violations({"action": "add", "title": "x"}) == []
        assert tool.violations({"action": "add", "id": 3}) != []
        assert [found.path for found in tool.violations({"action": "add", "title": "x", "odd": 1})] == ["odd"]


def _of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _fan_out(depth: int) -> dict[str, Any]:
    levels = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(depth)}
    return {**_of(v={"$ref": "#/$defs/d0"}), "$defs": {**levels, f"d{depth}": {"type": "string"}}}


def _deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return _of(v=schema)


@pytest.mark.parametrize(
    "parameters",
    [
        _of(**{f"k{i}": {"type": "string"} for i in range(3_000)}),
        _fan_out(40),
        _of(v={"enum": [f"value {i}" for i in range(10_000)], "pattern": "1"}),
        _of(v={"type": "string", "pattern": "^" + "(a?){100}" * 25 + "$"}),
        _of(v={"type": "string", "pattern": r"^(?!x)(([a-z])+.)+[A-Z]([a-z])+$"}),
        _of(v={"$ref": "#/properties/v"}),
        {**_of(v={}), "allOf": [{"$ref": "#"}]},
    ],
)  # fmt: skip
def test_a_hostile_schema_is_checked_in_bounded_time(parameters: dict[str, Any]) -> None:
    started = time.thread_time()
    tool = Tool("t", "", parameters)
    for value in ("a" * 30 + "!", {"v": {"v": {}}}, ["value 1"] * 1_000):
        tool.violations({"v": value, "k1": "x"})
    assert time.thread_time() - started < 2


@pytest.mark.parametrize("parameters", [_deep(50_000), _of(**{f"k{i}": {"a": i} for i in range(40_000)})])
def test_a_schema_that_is_too_large_is_refused_at_once_and_says_so(parameters: dict[str, Any]) -> None:
    started = time.thread_time()
    with pytest.raises(ToolError, match=r"nested more than|larger than"):
        Tool("t", "", parameters)
    assert time.thread_time() - started < 1


def test_a_tool_without_parameters_takes_none() -> None:
    tool = Tool.from_openai({"name": "ping"})
    assert tool.violations({}) == []
    assert [violation.path for violation in tool.violations({"x": 1})] == ["x"]


def test_calls_are_checked_against_what_is_offered() -> None:
    calls = [ToolCall("book", {"on": "2026-01-01"}), ToolCall("book", {"on": "soon"}), ToolCall("Book", {})]
    found = check_calls(calls, [DATED])
    assert [(violation.call, violation.reason) for violation in found] == [
        (calls[1], "schema_violation"),
        (calls[2], "unknown_tool"),
    ]


def test_a_conversation_gives_its_calls_in_order_and_its_tools_by_name() -> None:
    first, second = ToolCall("book", {}), ToolCall("book", {"on": "2026-01-01"})
    turns = (Message(Role.USER, "x"), Message(Role.ASSISTANT, "", (first,)), Message(Role.ASSISTANT, "", (second,)))
    conversation = Conversation(turns, (DATED,), "test", "single_call", reference_date=dt.date(2026, 1, 1))
    assert conversation.calls == (first, second)
    assert conversation.tool("book") is DATED
    assert conversation.tool("cook") is None


def test_a_message_keeps_arguments_as_an_object_for_templates() -> None:
    message = Message(Role.ASSISTANT, "", (ToolCall("book", {"on": "2026-01-01"}),)).to_openai()
    assert message["tool_calls"][0]["function"]["arguments"] == {"on": "2026-01-01"}
    assert "name" not in message
    assert Message(Role.TOOL, "{}", tool_name="book").to_openai()["name"] == "book"
