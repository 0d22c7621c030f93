"""Calls as text and text as calls: the Hermes-style format's writer and reader, and the chat template around it."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tinydispatch.tools import Message, Role, Tool, ToolCall

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CALL_START, CALL_END = "<tool_call>", "</tool_call>"
RESULT_START, RESULT_END = "<tool_response>", "</tool_response>"
DOCUMENT_END = "<|endoftext|>"

# Seven, because OPT's embedding has seven rows that no token uses (50,272 rows, 50,265 tokens).
SPECIAL_TOKENS = (TURN_START, TURN_END, CALL_START, CALL_END, RESULT_START, RESULT_END, DOCUMENT_END)

# Not strftime, whose names follow the locale of the process.
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_DATED = re.compile(rf"^Today is (?:{'|'.join(_WEEKDAYS)}) \d{{4}}-\d\d-\d\d\. Next: ", re.MULTILINE)
_CALL = re.compile(re.escape(CALL_START) + r"(.*?)" + re.escape(CALL_END), re.DOTALL)


@dataclass(frozen=True)
class UnparsedToolCall:
    """Text between call markers that is no call, and why."""

    raw_text: str
    error: str


@dataclass(frozen=True)
class ParsedReply:
    """What a model's reply holds: the text outside calls, the calls, and what could not be read."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    unparsed: tuple[UnparsedToolCall, ...] = ()


def render_calls(calls: Sequence[ToolCall]) -> str:
    """Calls as the model writes them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>` each.

    What would end a call within a string, and a delete character, are escaped.
    """
    return "".join(
        f'{CALL_START}{{"name": {_to_json(call.name)}, "arguments": {value_in_call(dict(call.arguments))}}}{CALL_END}'
        for call in calls
    )


def value_in_call(value: Any, *, allow_nan: bool = True) -> str:
    """A JSON value as calls spell it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=allow_nan).replace("\x7f", "\\u007f")
    for cutting in (CALL_END, TURN_END):
        text = text.replace(cutting, "\\u003c" + cutting[1:])
    return text


def parse_reply(text: str) -> ParsedReply:
    """Read a reply without repairing anything: a malformed call is data (`unparsed`), never an exception.

    The text may end in the turn's end token. An opened call that is never closed is unparsed.
    """
    text = text.split(TURN_END, 1)[0]
    calls: list[ToolCall] = []
    unparsed: list[UnparsedToolCall] = []
    for match in _CALL.finditer(text):
        call = _parse_call(match.group(1))
        if isinstance(call, ToolCall):
            calls.append(call)
        else:
            unparsed.append(call)
    rest = _CALL.sub("", text)
    if CALL_START in rest:
        rest, _, tail = rest.partition(CALL_START)
        unparsed.append(UnparsedToolCall(tail, "the call is never closed"))
    return ParsedReply(rest.strip(), tuple(calls), tuple(unparsed))


def _parse_call(raw: str) -> ToolCall | UnparsedToolCall:
    try:
        value = json_decoder().decode(raw)
    except (ValueError, RecursionError) as error:
        return UnparsedToolCall(raw, f"not JSON: {error}")
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        return UnparsedToolCall(raw, "expected an object with exactly 'name' and 'arguments'")
    if not isinstance(value["name"], str) or not isinstance(value["arguments"], dict):
        return UnparsedToolCall(raw, "'name' must be a string and 'arguments' an object")
    return ToolCall(value["name"], value["arguments"])


def json_decoder(*, strict: bool = True) -> json.JSONDecoder:
    """A decoder that refuses what Python's own lets pass: NaN, Infinity, and a key that occurs twice.

    Args:
        strict: False lets control characters stand in strings.
    """
    return json.JSONDecoder(strict=strict, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def reference_date_text(today: dt.date) -> str:
    """The line that lets relative dates be looked up: today and each day of the coming week.

    The coming days are given date first: a model that reads "Friday" has just read the date that it stands for.

    Example: "Today is Thursday 2026-03-19. Next: 2026-03-20 Friday, … 2026-03-26 Thursday."
    """
    days = (today + dt.timedelta(days=ahead) for ahead in range(1, 8))
    week = ", ".join(f"{day.isoformat()} {_weekday(day)}" for day in days)
    return f"Today is {_weekday(today)} {today.isoformat()}. Next: {week}."


def _weekday(day: dt.date) -> str:
    return _WEEKDAYS[day.weekday()]


def with_reference_date(messages: Sequence[Message], today: dt.date | None) -> tuple[Message, ...]:
    """Messages whose system message ends in the reference date; a system message is added when there is none.

    One that says so already, in the very words of `reference_date_text`, keeps its own day: two would contradict.
    """
    if today is None or (messages and messages[0].role is Role.SYSTEM and _DATED.search(messages[0].content)):
        return tuple(messages)
    text = reference_date_text(today)
    if messages and messages[0].role is Role.SYSTEM:
        first = Message(Role.SYSTEM, f"{messages[0].content}\n{text}")
        return (first, *messages[1:])
    return (Message(Role.SYSTEM, text), *messages)


def default_chat_template() -> str:
    """Our template for models that have none; `{% generation %}` surrounds exactly what is trained."""
    return resources.files("tinydispatch").joinpath("templates/chatml_tools.jinja").read_text("utf-8")


def template_hash(template: str) -> str:
    """First 16 hex digits of the template's SHA-256; runs and GGUF files are compared by it."""
    return hashlib.sha256(template.encode()).hexdigest()[:16]


def render_prompt(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    template: str | None = None,
    *,
    add_generation_prompt: bool = True,
    special_tokens: Mapping[str, str] | None = None,
) -> str:
    """The text that the model reads, by the template that its file carries.

    Args:
        template: a Jinja chat template; None takes ours.
        special_tokens: `bos_token` and `eos_token` for templates that print them.

    Raises:
        ValueError: the template does not compile or refuses these messages.
    """
    try:
        return _compiled(template if template is not None else default_chat_template()).render(
            messages=[message.to_openai() for message in messages],
            tools=[tool.to_openai() for tool in tools] or None,
            add_generation_prompt=add_generation_prompt,
            **(special_tokens or {}),
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template cannot render this conversation: {error}") from error


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    # The settings of transformers and llama.cpp; their tojson does not escape HTML, jinja2's own would.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_in_template
    return environment.from_string(template)


class _GenerationTag(Extension):
    """`{% generation %}` marks what is trained; for reading a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as a plain attribute)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_in_template(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
