from __future__ import annotations

import copy
import datetime as dt
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


@pytest.mark.parametrize("parameters", [{}, {"type": "array"}, {"type": ["object"]}, [], None])
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
        ({"required": ["a", "a"]}, "required"),
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


def test_a_reference_to_a_url_is_never_fetched() -> None:
    tool = Tool("t", "", {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}})
    with pytest.raises(Exception, match=r"(?i)unresolvable|127\.0\.0\.1"):
        tool.violations({"a": 1})


@pytest.mark.parametrize("shape", ["openai", "bare", "mcp"])
def test_three_shapes_of_a_tool_are_read_alike(shape: str) -> None:
    openai = DATED.to_openai()
    bare = openai["function"]
    mcp = {"name": "book", "description": "", "inputSchema": bare["parameters"]}
    value = {"openai": openai, "bare": bare, "mcp": mcp}[shape]
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
