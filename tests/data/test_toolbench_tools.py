from __future__ import annotations

import json
from typing import Any

import pytest

from data.rejected import RejectReason, Repair, RowError
from data.sources.toolbench_tools import ToolSet, read_tools


def toolset(*apis: dict[str, Any]) -> ToolSet:
    return read_tools(repr(list(apis)))


def api(name: str = "f", **properties: Any) -> dict[str, Any]:
    return {"name": name, "description": "", "parameters": {"type": "object", "properties": properties, "required": []}}


def schema_of(spec: dict[str, Any]) -> Any:
    return toolset(api(p=spec)).tools[0].parameters["properties"]["p"]


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        ("STRING", "string"),
        ("Integer", "integer"),
        ("NUMBER", "number"),
        ("BOOLEAN", "boolean"),
        ("ENUM", "string"),
        ("DATE (YYYY-MM-DD)", "string"),
        ("TIME (24-hour HH:MM)", "string"),
        ("ARRAY", "array"),
        ("OBJECT", "object"),
        ("BINARY", "string"),
    ],
)
def test_types_of_any_spelling_become_json_schema_words(raw: str, word: str) -> None:
    assert schema_of({"type": raw}) == {"type": word}


def test_an_unknown_type_allows_any_value_and_is_counted() -> None:
    tools = toolset(api(p={"type": "WIBBLE"}))
    assert tools.tools[0].parameters["properties"]["p"] == {}
    assert tools.repairs == (Repair.TYPE_UNKNOWN,)


@pytest.mark.parametrize(
    ("kind", "default", "expected"),
    [
        ("integer", "10", 10),
        ("number", "1.5", 1.5),
        ("boolean", "true", True),
        ("string", 5, "5"),
        ("array", "['a']", ["a"]),
        ("integer", 0, 0),
    ],
)
def test_defaults_get_the_type_of_their_parameter(kind: str, default: Any, expected: Any) -> None:
    value = schema_of({"type": kind, "default": default})["default"]
    assert (type(value), value) == (type(expected), expected)


@pytest.mark.parametrize(("kind", "default"), [("integer", "soon"), ("boolean", "maybe"), ("integer", True)])
def test_a_default_of_no_such_type_is_dropped_and_counted(kind: str, default: Any) -> None:
    tools = toolset(api(p={"type": kind, "default": default}))
    assert tools.tools[0].parameters["properties"]["p"] == {"type": kind}
    assert tools.repairs == (Repair.DEFAULT_DROPPED,)


def test_keys_that_are_no_json_schema_are_left_out() -> None:
    assert schema_of({"type": "string", "example_value": "x", "description": ""}) == {"type": "string"}
    assert "optional" not in toolset(api()).tools[0].parameters


def test_a_required_parameter_that_is_not_listed_is_not_required() -> None:
    entry = {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}, "required": ["a", "b"]}}
    tools = toolset(entry)
    assert tools.tools[0].parameters["required"] == ["a"]
    assert tools.repairs == (Repair.REQUIRED_UNLISTED,)


def test_a_name_with_other_characters_is_renamed_for_tool_and_call() -> None:
    tools = toolset(api("获取_for_tool"))
    assert [tool.name for tool in tools.tools] == ["___for_tool"]
    assert tools.resolve("获取_for_tool") == tools.tools[0].name
    assert tools.repairs == (Repair.TOOL_RENAMED,)


def test_a_call_by_the_whole_name_finds_the_tool_listed_by_its_last_64_characters() -> None:
    whole = "get_everything_there_is_" * 4
    tools = toolset(api(whole[-64:]))
    assert tools.resolve(whole) == whole[-64:]


def test_a_tool_listed_twice_alike_is_kept_once() -> None:
    tools = toolset(api(a={"type": "string"}), api(a={"type": "string"}))
    assert len(tools.tools) == 1
    assert tools.resolve("f") == "f"
    assert tools.repairs == (Repair.DUPLICATE_TOOL_DROPPED,)


def test_a_name_that_stands_for_two_tools_cannot_be_called() -> None:
    tools = toolset(api(a={"type": "string"}), api(b={"type": "string"}))
    with pytest.raises(RowError) as caught:
        tools.resolve("f")
    assert caught.value.reason is RejectReason.AMBIGUOUS_TOOL


@pytest.mark.parametrize(
    "text", ["", "[{'name': 'f'}]", "{'a': 1}", "[1]", "[{'parameters': {}}]", "[{'name': 'Finish'}]"]
)
def test_a_list_without_usable_tools_is_invalid(text: str) -> None:
    with pytest.raises(RowError) as caught:
        read_tools(text)
    assert caught.value.reason is RejectReason.INVALID_TOOLS


def test_a_list_of_a_million_characters_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(RowError, match="at most 1000000"):
        read_tools("[" + "'a'," * 300_000 + "]")


def test_the_sentence_around_descriptions_is_removed() -> None:
    entry = api()
    entry["description"] = (
        'This is the subfunction for tool "t", you can use this tool.'
        'The description of this function is: "Say "hi" to them"'
    )
    assert toolset(entry).tools[0].description == 'Say "hi" to them'
    entry["description"] = 'This is the subfunction for tool "t", you can use this tool.'
    assert toolset(entry).tools[0].description == ""


def test_a_description_that_looks_like_the_next_entry_ends_no_entry() -> None:
    for trap in (
        "}, {'name': 'g', 'parameters': {}}",
        "}, {'name': ",
        '"}, {"name": "g"}',
        "\\', {'name': 1}, {'name': ",
    ):
        apis = [{**api("f"), "description": f"see {trap}"}, api("h")]
        for text in (repr(apis), json.dumps(apis)):
            found = read_tools(text)
            assert [tool.name for tool in found.tools] == ["f", "h"]
            assert found.tools[0].description == f"see {trap}".strip()


def test_entries_that_other_lists_hold_are_read_once() -> None:
    first, second = toolset(api("f"), api("g")), toolset(api("h"), api("f"))
    assert first.tools[0] is second.tools[1]


def test_a_list_is_no_better_for_being_cut_into_entries() -> None:
    for text in ("[{'name': 'f'}, {'name': 'g'}", "[{'name': 'f', 'name': 'g', 'parameters': {}}]", "[{'f'}]", "[{}]"):
        with pytest.raises(RowError) as error:
            read_tools(text)
        assert error.value.reason is RejectReason.INVALID_TOOLS
