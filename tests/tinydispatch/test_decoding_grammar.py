from __future__ import annotations

import json
from typing import Any

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures_playback import PlaybackRuntime
from tinydispatch import formats
from tinydispatch.bundled import bundled_tools
from tinydispatch.decoding.reply import CallFormat, ReplyShape, ToolChoice, call_format, check_grammar, reply_grammar
from tinydispatch.decoding.rules import GrammarError
from tinydispatch.decoding.schema import KeyOrder
from tinydispatch.decoding.tokens import token_table, token_texts
from tinydispatch.tools import Tool, ToolCall, check_calls

_RUNTIME = PlaybackRuntime("")
_TABLE = token_table(_RUNTIME, token_texts(_RUNTIME))
_ANY_ORDER = ReplyShape(order=KeyOrder.ANY)


def _tool(schema: dict[str, Any], required: bool = True) -> Tool:
    return Tool("t", "", {"type": "object", "properties": {"v": schema}, "required": ["v"] if required else []})


def _accepts(tools: list[Tool], text: str, shape: ReplyShape = _ANY_ORDER) -> bool:
    form = CallFormat()
    grammar = reply_grammar(tools, shape, form)
    check_grammar(grammar, tools, shape, form)
    matcher = llguidance.LLMatcher(_TABLE, grammar)
    ids = _RUNTIME.tokenize(text, parse_special=True)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def _accepts_value(schema: dict[str, Any], value: Any) -> bool:
    return _accepts([_tool(schema)], formats.render_calls([ToolCall("t", {"v": value})]))


_INT = {"type": "integer"}
_DATE = {"type": "string", "format": "date"}
_MOMENT = {"type": "string", "format": "local-date-time"}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string"}, ["", "a", 'say "hi"\n', "Zürich ☃ 🎉", "a<b>c", "back\\slash"], [1, None, ["a"]]),
        (_DATE, ["2026-03-19", "2024-02-29", "2000-02-29"], ["2026-02-29", "1900-02-29", "2026-04-31", "19.3.2026"]),
        (_MOMENT, ["2026-03-19T10:30"], ["2026-03-19T24:00", "2026-03-19", "2026-03-19T10:30:00", "2026-02-30T10:30"]),
        ({"type": "string", "format": "email"}, ["a@b.co", "zoë.o'neill@x-y.example"], ["a@b", "a b@c.de", "@b.co"]),
        ({"type": "string", "format": "iana-time-zone"}, ["Europe/Oslo", "UTC"], ["Europe/Atlantis", "oslo"]),
        ({"type": "string", "format": "time"}, ["19:00:30Z", "19:00:30.5+01:00"], ["24:00:00Z", "7pm", "19:00"]),
        ({"type": "string", "format": "date-time"}, ["2026-03-19T19:00:00+01:00"], ["2026-03-19", "2026-03-19T19:00"]),
        ({"type": "string", "format": "local-time"}, ["19:00"], ["19:00:00", "24:00"]),
        ({"type": "string", "format": "duration"}, ["P1D", "PT1H30M", "P2W"], ["P", "1h", "PT1D"]),
        ({"type": "string", "format": "currency"}, ["USD"], ["usd", "USDX"]),
        ({"type": "string", "format": "uri"}, ["https://a.example/x?y=1"], ["no scheme", "a b://c"]),
        ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
        ({"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["256.0.0.1", "1.2.3"]),
        ({"type": "string", "format": "never heard of"}, ["anything"], [1]),
        ({"type": "string", "pattern": "^[A-Z]{3}$"}, ["ABC"], ["ABCD", "abc"]),
        ({"type": "string", "pattern": "b+"}, ["abc", "b"], ["ac"]),
        ({"type": "string", "pattern": r"^a\$"}, ["a$", "a$b"], ["a", "ba$"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "äöü", 'a"'], ["a", "abcd"]),
        ({"type": "string", "enum": ["a", "b c"]}, ["a", "b c"], ["c", "ab"]),
        ({"const": {"a": [1, "x"]}}, [{"a": [1, "x"]}], [{"a": [1]}]),
        ({"type": "integer", "minimum": 1, "maximum": 20}, [1, 9, 20], [0, 21, -1, 1.5]),
        ({"type": "number", "exclusiveMinimum": 0}, [0.5, 1, 12.25], [0, -1]),
        ({"type": "number"}, [0, -1.5, 1e16, 1e-7], ["1", None]),
        ({"type": "boolean"}, [True, False], ["true", 1]),
        ({"type": ["string", "null"]}, ["a", None], [1]),
        ({"type": "array", "items": _INT}, [[], [1], [1, 2]], [["a"], 1]),
        ({"type": "array", "items": _INT, "minItems": 2, "maxItems": 3}, [[1, 2], [1, 2, 3]], [[1], [1] * 4]),
        ({"type": "array", "items": _INT, "maxItems": 1}, [[], [1]], [[1, 2]]),
        ({"type": "array", "maxItems": 0}, [[]], [[1]]),
        ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}, [3, "a"], ["ab"]),
        ({"type": "object"}, [{}, {"a": [1, {"b": None}]}], [[], "a"]),
        ({}, ["a", 1, None, {"a": 1}, [True]], []),
        ({"type": "integer", "enum": [1.0, 2.0]}, [1, 2], [3]),
        ({"nullable": True, "allOf": [{"type": "object", "required": ["x"]}]}, [None, {"x": 1}], [{}, 1]),
        ({"type": "object", "properties": [], "required": {}}, [{}, {"a": 1}], [[]]),
        ({"type": "object", "additionalProperties": []}, [{"a": 1}], [1]),
        ({"type": ["string", "string"], "allOf": []}, ["a"], [1]),
        ({"properties": {"default": {}, "enum": []}, "required": ["enum", "enum"]}, [{"enum": 1}], [{}]),
    ],
)  # fmt: skip
def test_the_grammar_draws_the_line_where_the_schema_does(
    schema: dict[str, Any], good: list[Any], bad: list[Any]
) -> None:
    assert [value for value in good if not _accepts_value(schema, value)] == []
    assert [value for value in bad if _accepts_value(schema, value)] == []


_NESTED = {
    "type": "object",
    "properties": {
        "frequency": {"enum": ["daily", "weekly"]},
        "count": {"type": "integer"},
        "note": {"type": "string"},
    },
    "required": ["frequency", "count"],
}


def test_nested_objects_need_their_required_keys_and_take_others_unless_they_are_closed() -> None:
    assert _accepts_value(_NESTED, {"frequency": "daily", "count": 3})
    assert _accepts_value(_NESTED, {"note": "x", "count": 3, "frequency": "daily"})
    assert not _accepts_value(_NESTED, {"frequency": "daily"})
    more = {"frequency": "daily", "count": 3, "extra": 1}
    assert _accepts_value(_NESTED, more)
    assert not _accepts_value({**_NESTED, "additionalProperties": False}, more)
    assert _accepts_value({**_NESTED, "additionalProperties": {"type": "integer"}}, more)
    assert not _accepts_value({**_NESTED, "additionalProperties": {"type": "string"}}, more)


def test_no_key_stands_twice() -> None:
    twice = '<tool_call>{"name": "t", "arguments": {"v": 1, "v": 2}}</tool_call>'
    assert not _accepts([_tool({"type": "integer"})], twice)
    open_ended = _tool({**_NESTED, "additionalProperties": True})
    text = '<tool_call>{"name": "t", "arguments": {"v": {"frequency": "daily", "count": 1, "count": 2}}}</tool_call>'
    assert not _accepts([open_ended], text)


def test_in_the_schemas_order_keys_stand_in_order_and_optional_ones_may_be_missing() -> None:
    ordered = ReplyShape(order=KeyOrder.SCHEMA)
    tools = [_tool(_NESTED)]
    for keys, is_fine in [
        (["frequency", "count", "note"], True),
        (["frequency", "count"], True),
        (["count", "frequency"], False),
        (["frequency", "note"], False),
    ]:
        values = {"frequency": "daily", "count": 1, "note": "n"}
        call = ToolCall("t", {"v": {key: values[key] for key in keys}})
        assert _accepts(tools, formats.render_calls([call]), ordered) is is_fine, keys


def test_references_and_recursion_are_followed() -> None:
    tree = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        "required": ["name"],
    }
    tool = Tool("t", "", {"type": "object", "properties": {"v": {"$ref": "#/$defs/node"}}, "$defs": {"node": tree}})
    deep = {"name": "a", "children": [{"name": "b", "children": [{"name": "c"}]}]}
    assert _accepts([tool], formats.render_calls([ToolCall("t", {"v": deep})]))
    deep["children"][0]["children"][0] = {"nom": "c"}  # type: ignore[index]
    assert not _accepts([tool], formats.render_calls([ToolCall("t", {"v": deep})]))


def test_all_of_is_the_intersection() -> None:
    schema = {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}, {"minimum": 2}]}
    assert [value for value in range(8) if _accepts_value(schema, value)] == [3, 4, 5]


@pytest.mark.parametrize(
    ("schema", "path", "problem"),
    [
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "v", "no type is common"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "v", "greater than maximum"),
        ({"type": "array", "items": False, "minItems": 1}, "v.items", "admits no value"),
        ({"type": "string", "enum": [1, 2]}, "v", "none of the values"),
        ({"type": "object", "properties": {"x": False}, "required": ["x"]}, "v.x", "admits no value"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "v", "less than minLength"),
    ],
)  # fmt: skip
def test_what_no_value_fits_names_the_tool_and_the_place_and_takes_no_other_tool_down(
    schema: dict[str, Any], path: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(GrammarError, match=problem) as caught:
        _accepts_value(schema, 1)
    assert (caught.value.tool, caught.value.path) == ("t", path)
    call = formats.render_calls([ToolCall("get_current_time", {"timezone": "Europe/Oslo"})])
    assert _accepts([_tool(schema), *bundled_tools()], call)
    assert "not offered" in caplog.text


@pytest.mark.parametrize(
    ("schema", "note", "good", "bad"),
    [
        ({"type": "string", "pattern": "^a(?!b)"}, "look-around", "ac", "ab"),
        ({"type": "string", "pattern": r"^(\w)\1$"}, "back-reference", "aa", "ab"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems", [1, 2], [1, 1]),
        ({"type": "integer", "not": {"const": 3}}, "'not'", 4, 3),
        ({"type": "integer", "maximum": 10**30}, "bound", 5, 10**31),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, "'if'", "ab", "a"),
    ],
)  # fmt: skip
def test_what_the_grammar_cannot_say_is_checked_afterwards_with_a_warning(
    schema: dict[str, Any], note: str, good: Any, bad: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert _accepts_value(schema, good)
    assert _accepts_value(schema, bad)
    assert note in caplog.text
    assert not check_calls([ToolCall("t", {"v": good})], [_tool(schema)])
    assert check_calls([ToolCall("t", {"v": bad})], [_tool(schema)])


def test_a_reference_that_leads_nowhere_lets_any_value_pass_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    for reference in ("https://example.org/schema", "#/$defs/absent", "#absent"):
        assert _accepts_value({"$ref": reference}, {"any": ["value"]})
        assert reference in caplog.text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 5_000},
        {"type": "string", "minLength": 1, "maxLength": 40, "pattern": r"\S"},
        {"enum": [f"value {index}" for index in range(5_000)]},
        {"oneOf": [{"const": f"value {index}", "title": "x"} for index in range(2_000)]},
        {"type": "object", "properties": {f"key {index}": {"type": "string"} for index in range(1_000)}},
        {"type": "array", "items": {"type": "string"}, "maxItems": 100_000},
    ],
)
def test_sizes_that_real_servers_publish_compile_and_can_be_written(schema: dict[str, Any]) -> None:
    value: Any = {"key 7": "x", "key 900": "y"} if schema.get("type") == "object" else "value 1234"
    assert _accepts_value(schema, [value] if schema.get("type") == "array" else value)


def test_objects_nested_in_objects_seventy_deep_compile() -> None:
    schema: dict[str, Any] = {"type": "string"}
    value: Any = "x"
    for _ in range(70):
        schema, value = {"type": "object", "properties": {"a": schema}, "required": ["a"]}, {"a": value}
    assert _accepts_value(schema, value)


def test_an_address_never_is_a_run_of_signs() -> None:
    assert not _accepts_value({"type": "string", "format": "email"}, "????????@example.org")
    assert not check_calls(
        [ToolCall("t", {"v": "o'neill+x@a-b.example"})], [_tool({"type": "string", "format": "email"})]
    )


def test_words_calls_and_both_are_replies_but_a_marker_in_words_is_none() -> None:
    tools = list(bundled_tools())
    call = formats.render_calls([ToolCall("get_current_time", {"timezone": "Europe/Oslo"})])
    for text in ("", "Which city?", call, call + call, "Sure. " + call, call + "\n" + call + " Done.", "a < b > c"):
        assert _accepts(tools, text), text
    for text in ("<tool_call>", "<tool_call>no", call[:-3], call.replace("get_current_time", "launch")):
        assert not _accepts(tools, text), text
    assert not _accepts(tools, call, ReplyShape(choice=ToolChoice.NONE))
    assert not _accepts(tools, "hi", ReplyShape(choice=ToolChoice.REQUIRED))
    assert _accepts(tools, call + call, ReplyShape(choice=ToolChoice.REQUIRED))
    assert not _accepts(tools, call + call, ReplyShape(is_parallel=False))


@pytest.mark.parametrize("cutting", [formats.CALL_END, formats.TURN_END])
def test_a_string_never_holds_what_would_cut_its_call(cutting: str) -> None:
    raw = '<tool_call>{"name": "t", "arguments": {"v": "a%sb"}}</tool_call>'
    for schema in ({"type": "string"}, {"type": "string", "pattern": "."}, {}, {"type": "string", "maxLength": 50}):
        assert _accepts([_tool(schema)], raw % cutting[:-1])
        assert not _accepts([_tool(schema)], raw % cutting)
    written = formats.render_calls([ToolCall("t", {"v": f"a{cutting}b"})])
    assert formats.parse_reply(written).calls == (ToolCall("t", {"v": f"a{cutting}b"}),)
    chosen = _tool({"enum": [f"a{cutting}b", "c"]})
    escaped = '<tool_call>{"name": "t", "arguments": {"v": "a%sb"}}</tool_call>' % ("\\u003c" + cutting[1:])
    assert _accepts([chosen], escaped)
    assert formats.parse_reply(escaped).calls == (ToolCall("t", {"v": f"a{cutting}b"}),)


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(max_size=12) | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(value=_values)
@settings(deadline=None, max_examples=60)
def test_whatever_the_writer_writes_the_grammar_reads(value: Any) -> None:
    text = formats.render_calls([ToolCall("t", {"v": value})])
    if not any(cutting in text for cutting in (formats.CALL_END, formats.TURN_END)):
        assert _accepts([_tool({})], text)


def test_the_call_format_is_learned_from_the_template() -> None:
    assert call_format(None) == CallFormat()
    spaced = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}<tool_call>\n"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>\n'
        "{% endfor %}{% endfor %}"
    )
    assert call_format(spaced) == CallFormat("\n", "\n")
    with pytest.raises(ValueError, match="does not write calls as"):
        call_format("{% for m in messages %}{{ m.content }}{% endfor %}")


def test_every_bundled_tool_compiles_and_takes_its_fullest_call() -> None:
    arguments = {
        "title": "Lunch", "start": "2026-03-20T12:00", "duration_minutes": 1440, "attendees": ["a@b.co"],
        "location": "Oslo", "recurrence": {"frequency": "weekly", "count": 365},
    }  # fmt: skip
    call = ToolCall("create_calendar_event", arguments)
    assert not check_calls([call], bundled_tools())
    assert _accepts(list(bundled_tools()), formats.render_calls([call]))
    broken = ToolCall("create_calendar_event", {**arguments, "duration_minutes": 1441})
    assert not _accepts(list(bundled_tools()), formats.render_calls([broken]))
    assert json.loads(json.dumps(arguments)) == arguments
