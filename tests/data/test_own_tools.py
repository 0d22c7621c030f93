"""Examples for a user's own tools: every call fits its schema, what it says is asked for, and bad files are named."""

from __future__ import annotations

import datetime as dt
import json
import random
from pathlib import Path
from typing import Any

import pytest
from jsonschema import FormatChecker
from jsonschema.validators import Draft202012Validator

from data.config import DataConfig, PhrasesSource
from data.own_tools import PhraseFileError, SpokenTool, generate, load_phrases
from data.prepare import prepare
from data.rejected import Rejected
from data.sources.files import DataFileError
from data.sources.openai_chat import conversation_from_openai
from data.store import read_conversations
from data.synth.schemas import filled_from_schema
from data.synth.values import Context
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


KINDS: dict[str, Any] = {
    "number": {"type": "number", "minimum": 2, "maximum": 3},
    "above": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.05},
    "few": {"type": "integer", "exclusiveMaximum": 0},
    "quarter": {"type": "integer", "multipleOf": 15, "minimum": 10, "maximum": 59},
    "const": {"const": "x"},
    "enum": {"enum": [1, "two", None]},
    "nullable": {"type": ["string", "null"]},
    "query": {"type": "string"},
    "short": {"type": "string", "maxLength": 2},
    "long": {"type": "string", "minLength": 40, "maxLength": 50},
    "mail": {"type": "string", "format": "email"},
    "zone": {"type": "string", "format": "iana-time-zone"},
    "moment": {"type": "string", "format": "date-time"},
    "key": {"type": "string", "format": "uuid"},
    "plate": {"type": "string", "pattern": r"^[A-Z]{1,3}-\d{2,4}( [HE])?$"},
    "version": {"type": "string", "pattern": r"^v?(\d+)\.\d+(?:\.\d+|-rc[1-9])?$"},
    "hex": {"type": "string", "pattern": r"^#(?:[0-9a-fA-F]{3}){1,2}$"},
    "twice": {"type": "string", "pattern": r"^(?P<a>[^\W_]+)=(?P=a)$"},
    "days": {"type": "array", "items": {"type": "string", "format": "date"}, "minItems": 2},
    "set": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 3},
    "point": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "integer"}], "items": False},
    "address": {"type": "object", "required": ["city", "geo"], "additionalProperties": False, "properties": {
        "city": {"type": "string"}, "is_home": {"type": "boolean"},
        "geo": {"type": "object", "required": ["lat"], "properties": {"lat": {"type": "number", "maximum": 90}}}}},
    "either": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 5}]},
    "both": {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 6}]},
    "named": {"$ref": "#/$defs/size"},
    "rows": {"type": "array", "items": {"$ref": "#/$defs/row"}},
}  # fmt: skip
DEFS = {
    "size": {"type": "string", "enum": ["small", "large"]},
    "row": {"type": "object", "required": ["size"], "properties": {"size": {"$ref": "#/$defs/size"}}},
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_schema_has_values_of_its_own(name: str) -> None:
    schema = {"type": "object", "properties": {name: KINDS[name]}, "required": [name], "$defs": DEFS}
    tool = Tool("t", "", schema)
    strict = Draft202012Validator(schema, format_checker=FormatChecker())
    values = []
    for row in generate([SpokenTool(tool, (f"do {{{name}}}",), {})], [tool], 30, seed=0):
        assert tool.violations(row.calls[0].arguments) == []
        assert list(strict.iter_errors(row.calls[0].arguments)) == []
        values.append(json.dumps(row.calls[0].arguments))
    assert len(set(values)) > (0 if name == "const" else 1)


@pytest.mark.parametrize(
    ("bounds", "least", "most"),
    [
        ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, 1, 2),
        ({"type": "integer", "exclusiveMinimum": 0, "minimum": 2, "maximum": 3}, 2, 3),
        ({"type": "integer", "minimum": -5, "maximum": -5}, -5, -5),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.2}, 0.001, 0.199),
        ({"type": "number", "maximum": -200}, -300, -200),
        ({"type": "integer", "multipleOf": 7, "minimum": 8, "maximum": 20}, 14, 14),
    ],
)
def test_a_number_keeps_within_its_bounds_at_the_first_draw(bounds: dict[str, Any], least: float, most: float) -> None:
    for seed in range(50):
        context = Context(random.Random(seed), dt.date(2026, 3, 19))
        assert least <= filled_from_schema(bounds, "x", context, {}).value <= most


def test_the_parts_of_a_nested_value_are_said_by_their_names() -> None:
    schema = {"type": "object", "properties": {"address": KINDS["address"]}, "required": ["address"]}
    tool = Tool("t", "", schema)
    for row in generate([SpokenTool(tool, ("ship to {address}",), {})], [tool], 40, seed=5):
        said = row.messages[0].content.lower()
        for call in row.calls:
            address = call.arguments["address"]
            assert f"city {address['city'].lower()}" in said
            assert f"geo lat {address['geo']['lat']}" in said
            assert ("is home" in said) or "is_home" not in address


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "pattern": "^(?!a)a$"}, r"parameter 'x': no text was found that matches the pattern"),
        ({"$ref": "#/$defs/none"}, r"'x': the reference '#/\$defs/none' leads nowhere"),
        ({"$ref": "#/properties/x"}, r"'x': nested deeper than 8"),
        ({"type": "object"}, r"'x': nobody can tell how a value of type 'object' is said"),
        ({}, r"'x': nobody can tell how a value of type None is said"),
        ({"type": "integer", "not": {"type": "integer"}}, "no value was found that its schema allows"),
    ],
)
def test_a_schema_whose_values_nobody_can_say_is_named(schema: dict[str, Any], message: str) -> None:
    tool = Tool("t", "", {"type": "object", "properties": {"x": schema}})
    with pytest.raises(PhraseFileError, match=message):
        next(generate([SpokenTool(tool, ("do {x}",), {})], [tool], 1, seed=0))


def test_phrases_are_a_source_of_a_run_for_the_runs_own_tools(files: tuple[Path, Path], tmp_path: Path) -> None:
    source = PhrasesSource(kind="phrases", path=files[1], count=60)
    config = DataConfig(sources=(source,), tools=files[0], eval_fraction=0.1)
    done = prepare(config, seed=4, out_dir=tmp_path / "run", case_texts=[], count_tokens=None)
    assert done.card.read == 60
    assert done.card.sources[0].kind == "phrases"
    assert done.card.sources[0].revision.startswith("sha256 ")
    assert done.card.rejected.keys() <= {"duplicate", "near_duplicate"}
    assert {call.name for row in read_conversations(done.train_path) for call in row.calls} == {
        "set_light",
        "book_table",
    }
    files[1].write_text("set_light: {phrases: ['light {room}']}")
    with pytest.raises(DataFileError, match=r"does not say \['state'\]"):
        prepare(config, seed=4, out_dir=tmp_path / "other", case_texts=[], count_tokens=None)
