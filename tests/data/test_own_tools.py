"""Examples for a user's own tools: every call fits its schema, what it says is asked for, and bad files are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.own_tools import PhraseFileError, generate, load_phrases
from data.rejected import Rejected
from data.sources.openai_chat import conversation_from_openai
from scripts import generate_examples
from tinydispatch.bundled import load_tools
from tinydispatch.tools import Tool, check_calls

TOOLS = [
    {"name": "set_light", "description": "Switch a light", "parameters": {
        "type": "object", "required": ["room", "state"], "additionalProperties": False, "properties": {
            "room": {"type": "string", "enum": ["kitchen", "living_room"]}, "state": {"type": "boolean"},
            "level": {"type": "integer", "minimum": 1, "maximum": 10}}}},
    {"name": "book_table", "description": "Book a table", "inputSchema": {
        "type": "object", "required": ["guests", "at"], "properties": {
            "guests": {"type": "array", "items": {"type": "string", "format": "email"}, "maxItems": 2},
            "at": {"type": "string", "format": "local-date-time"}, "note": {"type": "string"}}}},
    {"name": "ring_bell", "description": "Ring", "parameters": {"type": "object", "properties": {}}},
]  # fmt: skip
PHRASES = """
set_light:
  phrases: ["[turn|switch] {state} the {room} light[ to level {level}|]", "{room} light {state}"]
  values: {state: {true: [on], false: [off, "off please"]}}
book_table:
  phrases: ["book a table {at:adv} with {guests}[, note: {note}|]"]
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "tools.json").write_text(json.dumps({"tools": TOOLS}))
    (tmp_path / "phrases.yaml").write_text(PHRASES)
    return tmp_path / "tools.json", tmp_path / "phrases.yaml"


def test_every_call_fits_its_schema_and_is_on_offer(files: tuple[Path, Path]) -> None:
    tools = load_tools(files[0])
    rows = list(generate(load_phrases(files[1], tools), tools, 300, seed=1))
    assert all(check_calls(row.calls, row.tools) == [] for row in rows)
    assert {row.category for row in rows} == {"single_call", "parallel_calls", "no_call"}
    assert {call.name for row in rows for call in row.calls} == {"set_light", "book_table"}
    assert {len(row.tools) for row in rows} == {1, 2, 3}
    refused = [row for row in rows if not row.calls]
    assert all(row.messages[-1].content for row in refused)
    assert 10 < len(refused) < 60


def test_what_a_call_holds_is_what_was_said(files: tuple[Path, Path]) -> None:
    tools = load_tools(files[0])
    for row in generate(load_phrases(files[1], tools), tools, 200, seed=2):
        said = row.messages[0].content.lower()
        for call in row.calls:
            if call.name == "set_light":
                # One in ten is written sloppily, which never touches a value.
                assert call.arguments["room"].replace("_", " ") in said
                assert ("on" if call.arguments["state"] else "off") in said
            else:
                assert all(guest.lower() in said for guest in call.arguments["guests"])


def test_a_conversation_does_not_depend_on_how_many_were_asked_for(files: tuple[Path, Path]) -> None:
    tools = load_tools(files[0])
    spoken = load_phrases(files[1], tools)
    assert list(generate(spoken, tools, 5, seed=3)) == list(generate(spoken, tools, 20, seed=3))[:5]
    assert list(generate(spoken, tools, 5, seed=3)) != list(generate(spoken, tools, 5, seed=4))


def test_the_command_writes_rows_that_the_data_stage_keeps(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "mine.jsonl"
    command = ["--tools", str(files[0]), "--phrases", str(files[1]), "--count", "40", "--out", str(out)]
    assert generate_examples.main(command) == 0
    lines = out.read_text("utf-8").splitlines()
    rows = [conversation_from_openai(json.loads(line), "1", ()) for line in lines]
    assert len(rows) == 40
    assert not [row for row in rows if isinstance(row, Rejected)]
    tools = load_tools(files[0])
    generated = list(generate(load_phrases(files[1], tools), tools, 40, seed=1))
    for row, wanted in zip(rows, generated, strict=True):
        assert not isinstance(row, Rejected)
        assert (row.messages, row.tools, row.reference_date) == (wanted.messages, wanted.tools, wanted.reference_date)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected an object with an entry for each tool"),
        ("sing: {phrases: [a]}", "tool 'sing': none of the tools; they are set_light"),
        ("ring_bell: {phrases: []}", "'ring_bell': expected 'phrases'"),
        ("ring_bell: {phrases: [a], say: 1}", r"unknown keys \['say'\]"),
        ("ring_bell: {phrases: ['ring {bell}']}", r"'ring \{bell\}' uses \['bell'\], no parameters"),
        ("ring_bell: {phrases: ['ring [a']}", "never closed"),
        ("set_light: {phrases: ['light {room}']}", r"does not say \['state'\], which the tool requires"),
        (
            "set_light: {phrases: ['{room} {state}']}",
            "parameter 'state': nobody can tell how a value of type 'boolean'",
        ),
        ("set_light: {phrases: ['{room} {state}'], values: {state: planet}}", "no slot 'planet'"),
        ("set_light: {phrases: ['{room} {state}'], values: {colour: [red]}}", "values.colour: no such parameter"),
        ("set_light: {phrases: ['{room} {state}'], values: {state: [maybe]}}", "no value was found .*state: 'maybe'"),
    ],
)
def test_a_bad_phrase_file_is_named_by_tool_and_phrase(
    files: tuple[Path, Path], text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files[1].write_text(text)
    with pytest.raises(PhraseFileError, match=message):
        load_phrases(files[1], load_tools(files[0]))
    out = str(files[1].with_suffix(".jsonl"))
    assert generate_examples.main(["--tools", str(files[0]), "--phrases", str(files[1]), "--out", out]) == 2
    assert "phrases.yaml" in capsys.readouterr().err


def test_each_kind_of_schema_has_values_of_its_own() -> None:
    kinds: dict[str, dict[str, Any]] = {
        "number": {"type": "number", "minimum": 2, "maximum": 3}, "const": {"const": "x"}, "query": {"type": "string"},
        "mail": {"type": "string", "format": "email"}, "zone": {"type": "string", "format": "iana-time-zone"},
        "days": {"type": "array", "items": {"type": "string", "format": "date"}, "minItems": 2},
    }  # fmt: skip
    tool = Tool("t", "", {"type": "object", "properties": kinds, "required": list(kinds)})
    from data.own_tools import SpokenTool

    spoken = SpokenTool(tool, (" ".join(f"{{{name}}}" for name in kinds),), {})
    for row in generate([spoken], [tool], 20, seed=0):
        assert row.calls
        assert tool.violations(row.calls[0].arguments) == []
        assert len(row.calls[0].arguments["days"]) >= 2
