"""Calls in the form of Qwen3.5 and Qwen3-Coder: an element for the function and one for each argument."""

from __future__ import annotations

import random
from importlib import resources
from typing import Any

import llguidance
import pytest

from eval.backends import Generation
from eval.cases import Place, case_from_row
from eval.evaluate import score_generation
from tinydispatch import formats
from tinydispatch.bundled import bundled_tools
from tinydispatch.confidence import call_confidences
from tinydispatch.decoding.greedy import Choice
from tinydispatch.decoding.reply import ReplyShape, ToolChoice, call_format, check_grammar, reply_grammar
from tinydispatch.formats import parse_reply, render_prompt, render_xml_calls
from tinydispatch.patterns import byte_table
from tinydispatch.server.reader import ReplyReader
from tinydispatch.tools import Message, Role, Tool, ToolCall

_KINDS = ("string", "integer", "number", "boolean", "array", "object")
_MIXED = Tool(
    "mixed",
    "",
    {
        "type": "object",
        "properties": {
            "note": {"type": ["string", "null"]},
            "is_on": {"type": "boolean"},
            "level": {"anyOf": [{"type": "integer", "minimum": 3}, {"enum": ["few", "many"]}]},
            "code": {"type": "string", "pattern": "^[A-Z]{3}$"},
            "list": {"type": "object", "properties": {"k": {"type": "array", "items": {"type": "number"}}}},
            "digits": {"type": "string"},
        },
        "required": ["is_on"],
    },
)
_TOOLS = (*bundled_tools(), _MIXED)
_CALLS = (
    ToolCall("get_weather", {"location": "Oslo\n<b> \n"}),
    ToolCall("get_weather", {"location": "", "date": "2026-03-20", "units": "celsius"}),
    ToolCall("convert_currency", {"amount": 12.5, "from_currency": "EUR", "to_currency": "JPY"}),
    ToolCall("send_email", {"to": ["a@b.co"], "subject": "x", "body": "two\nlines <parameter=x>\n</paramete>"}),
    ToolCall(
        "create_calendar_event",
        {"title": "t", "start": "2026-03-20T10:00", "duration_minutes": 30,
         "recurrence": {"frequency": "daily", "count": 3}},
    ),
    ToolCall("get_current_time", {"timezone": "Europe/Oslo"}),
    ToolCall("mixed", {"note": None, "is_on": True, "level": 4, "code": "ABC", "list": {"k": [1, 2.5]}}),
    ToolCall("mixed", {"is_on": False, "level": "few", "digits": "12"}),
    ToolCall("mixed", {"note": "None of it", "is_on": False}),
)  # fmt: skip


def template(name: str) -> str:
    return resources.files("trl").joinpath(f"chat_templates/{name}.jinja").read_text("utf-8")


def matcher(*tools: Tool, choice: ToolChoice = ToolChoice.AUTO) -> llguidance.LLMatcher:
    form, shape = call_format(template("qwen3_5_think")), ReplyShape(choice)
    grammar = reply_grammar(tools, shape, form)
    check_grammar(grammar, tools, shape, form)
    return llguidance.LLMatcher(byte_table(), grammar)


def admits(constraint: llguidance.LLMatcher, text: str) -> bool:
    copy, data = constraint.deep_copy(), list(text.encode())
    return copy.try_consume_tokens(data) == len(data) and copy.is_accepting()


@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8"])
def test_the_writer_writes_what_the_template_writes(name: str) -> None:
    form = call_format(template(name))
    assert form.is_xml
    calls = _CALLS[:2] + _CALLS[6:]
    messages = [Message(Role.USER, "go"), Message(Role.ASSISTANT, "", calls)]
    text = render_prompt(messages, _TOOLS, template(name), add_generation_prompt=False)
    assert render_xml_calls(calls, python_literals=form.has_python_literals) in text


@pytest.mark.parametrize("call", _CALLS, ids=lambda call: f"{call.name}-{len(call.arguments)}")
def test_what_is_written_is_read_with_its_types_and_the_grammar_admits_it(call: ToolCall) -> None:
    text = render_xml_calls([call])
    assert parse_reply(f"Sure.\n\n{text}", _TOOLS) == formats.ParsedReply("Sure.", (call,))
    assert admits(matcher(*_TOOLS), text)
    assert admits(matcher(*_TOOLS), f"Sure.\n\n{text}\n{text}")
    assert admits(matcher(*_TOOLS, choice=ToolChoice.REQUIRED), text)


@pytest.mark.parametrize(
    "call",
    [
        ToolCall("get_weather", {}),
        ToolCall("get_weather", {"location": "o", "date": "tomorrow"}),
        ToolCall("get_weather", {"location": "o", "planet": "Mars"}),
        ToolCall("convert_currency", {"amount": "x", "from_currency": "EUR", "to_currency": "JPY"}),
        ToolCall("mixed", {"is_on": "maybe"}),
        ToolCall("mixed", {"is_on": True, "code": "ABCD"}),
        ToolCall("mixed", {"is_on": True, "level": 2}),
        ToolCall("missing", {}),
    ],
)
def test_the_grammar_refuses_what_the_schema_does(call: ToolCall) -> None:
    assert not admits(matcher(*_TOOLS), render_xml_calls([call]))


def random_value(kind: str, source: random.Random) -> Any:
    if kind == "string":
        return "".join(source.choices(["a", "7", "\n", "<", ">", "</", "é", " ", "null", "[]", "parameter"], k=4))
    values = {
        "integer": source.randint(-9, 9),
        "number": source.choice([0.5, 3, 1e22]),
        "boolean": source.random() < 0.5,
    }
    if kind in values:
        return values[kind]
    inner = [random_value(source.choice(_KINDS[:4]), source) for _ in range(source.randint(0, 3))]
    return inner if kind == "array" else {f"k{place}": item for place, item in enumerate(inner)}


def test_any_arguments_survive_writing_and_reading() -> None:
    source = random.Random(0)
    for _ in range(300):
        kinds = {f"p{place}": source.choice(_KINDS) for place in range(source.randint(0, 4))}
        properties = {key: {"type": kind} for key, kind in kinds.items()}
        tool = Tool("f", "", {"type": "object", "properties": properties})
        call = ToolCall("f", {key: random_value(kind, source) for key, kind in kinds.items()})
        for is_python in (True, False):
            read = parse_reply(render_xml_calls([call], python_literals=is_python), [tool])
            assert read.calls == (call,)
            assert [type(value) for value in read.calls[0].arguments.values()] == [
                type(value) for value in call.arguments.values()
            ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<tool_call>\n<function=f>\n<parameter=a>\n1\n</function>\n</tool_call>", "each closed"),
        ("<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=a>\n2\n</parameter>\n</function>\n"
         "</tool_call>", "twice"),
        ("<tool_call>\n<function=f>\n", "never closed"),
    ],
)  # fmt: skip
def test_a_call_that_is_broken_is_data(text: str, problem: str) -> None:
    read = parse_reply(text, _TOOLS)
    assert not read.calls
    assert problem in read.unparsed[0].error


def test_an_argument_that_no_element_can_hold_is_refused_by_the_writer() -> None:
    for text in ("a\n</parameter>\nb", "</tool_call>", formats.TURN_END):
        with pytest.raises(ValueError, match="cannot be written"):
            render_xml_calls([ToolCall("f", {"a": text})])


def test_a_stream_and_a_score_read_the_same_call() -> None:
    call = _CALLS[2]
    text = render_xml_calls([call])
    reader = ReplyReader(_TOOLS)
    pieces = [piece for place in range(0, len(text), 5) for piece in reader.feed(text[place : place + 5].encode())]
    assert [*pieces, *reader.end()] == [call]
    row = {"id": "1", "category": "c", "messages": [{"role": "user", "content": "x"}],
           "expected": {"calls": [{"name": call.name, "arguments": dict(call.arguments)}]}}  # fmt: skip
    case = case_from_row(row, _TOOLS, Place("test"))
    assert score_generation(Generation(text, 0.0, 9), case, _TOOLS).is_correct


def test_each_argument_has_its_own_confidence() -> None:
    text = render_xml_calls([_CALLS[1]])
    place = text.index("2026")
    (found,) = call_confidences(text, [Choice(0, 0.9), Choice(place, 0.5)])
    assert found.tool == pytest.approx(0.9)
    assert found.arguments == {"location": 1.0, "date": 0.5, "units": 1.0}
    assert found.call == pytest.approx(0.45)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6"])
def test_a_prompt_asks_for_no_thinking_and_begins_the_reply_as_training_writes_it(name: str) -> None:
    messages = [Message(Role.USER, "weather in Oslo?"), Message(Role.ASSISTANT, "", (_CALLS[0],))]
    own = template(name)
    prompt = render_prompt(messages[:1], _TOOLS, own)
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert render_prompt(messages, _TOOLS, own, add_generation_prompt=False).startswith(prompt)
    # What a server renders that leaves the switch alone, or turns it on.
    quiet = formats.without_thinking(own)
    assert formats.without_thinking(quiet) == quiet
    assert render_prompt(messages[:1], _TOOLS, quiet) == prompt
