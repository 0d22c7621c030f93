"""Calls as text and text as calls: writer and reader of both forms in use, and the chat template around them.

Most models write a call as JSON between `<tool_call>` and `</tool_call>` (Hermes, Qwen3, ours). Qwen3.5 and Qwen3-Coder
write between the same markers one element for the function and one for each argument, whose text says nothing about
its type: the tool's schema does.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from importlib import resources
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from tinydispatch.json_schema import Node, Schema
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
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = rf"({'|'.join(_MONTHS)})[a-z]{{0,6}}\.?"
# What a system message says before the day it calls today. Every repetition is bounded: the text is a stranger's.
_SAYS_TODAY = (
    r"(?:(?:^|\n)\W{0,8}date(?:[ _-]?time)?|\btoday(?:['’]s[ _-]date)?"
    r"|\b(?:current|present)[ _-]?(?:local[ _-])?(?:date(?:[ _-]?(?:and[ _-]|&[ ]?)?time)?|day|time)"
    r"|\bnow|\bit(?:[ ]is|['’]s))(?:[ ]\([a-z ]{1,20}\))?"
    r"\W{1,8}(?:is\W{1,4})?(?:(?:now|currently|today|on|the)\W{1,4}){0,2}"
)
_STATED = re.compile(
    rf"{_SAYS_TODAY}(?:(mon|tue|wed|thu|fri|sat|sun)[a-z]{{0,6}}\W{{1,4}})?(?:the\s)?(?:"
    r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)"
    rf"|(\d{{1,2}})(?:st|nd|rd|th)?\.?\s(?:of\s)?{_MONTH},?\s(\d{{4}})"
    rf"|{_MONTH}\s(\d{{1,2}})(?:st|nd|rd|th)?,?\s(\d{{4}})"
    r"|(\d{1,2})[-/.](\d{1,2})[-/.](\d{4}))",
    re.IGNORECASE,
)
# What Python raises inside a template that treats a value as something it is not.
_TEMPLATE_FAULTS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError,
                    MemoryError)  # fmt: skip
# What rendering may cost: two thousand messages with sixty tools take a twentieth of it.
_MAX_STEPS, _MAX_TEXT, _MAX_TEMPLATE, _MAX_POWER = 200_000, 4_000_000, 1_000_000, 1_000
# Filters that make as much of a text as a number says, and calls that write a number out (schemas name 2^63).
_PADDING_FILTERS = frozenset({"center", "indent", "batch", "slice", "truncate", "wordwrap", "round"})
_WRITES_NUMBERS = frozenset({"tojson", "do_tojson", "string", "default", "d", "int", "float", "abs", "append", "get"})
_STEP, _JOIN = "_td_step", "_td_join"
_WIDE = re.compile(r"\d{6}|%[^%]{0,9}\*|\{[^{}]*\{")
_CALL = re.compile(re.escape(CALL_START) + r"(.*?)" + re.escape(CALL_END), re.DOTALL)

FUNCTION_START, FUNCTION_END = "<function=", "</function>"
PARAMETER_START, PARAMETER_END = "<parameter=", "\n</parameter>\n"
_FUNCTION = re.compile(
    rf"\s*{FUNCTION_START}([^>\n]+)>\n((?:{PARAMETER_START}[^>\n]+>\n.*?{PARAMETER_END})*){FUNCTION_END}\s*", re.DOTALL
)
PARAMETER = re.compile(rf"{PARAMETER_START}([^>\n]+)>\n(.*?){PARAMETER_END}", re.DOTALL)
# How an argument that is no text is spelled: as Python's `str` does by the templates that say `| string`, or as JSON.
_PYTHON_LITERALS = {"True": True, "False": False, "None": None}
# Turns that end in an empty thought are answered at once; a template without the switch ignores it.
_NO_THINKING = "{% set enable_thinking = false %}"


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


def render_xml_calls(calls: Sequence[ToolCall], *, python_literals: bool = True) -> str:
    """Calls as Qwen3.5's template writes them: `<function=…>` with a `<parameter=…>` for each argument.

    Args:
        python_literals: arguments that are true, false or null stand as `True`, `False` or `None`.

    Raises:
        ValueError: a name or text holds what would end it; the form has no escape.
    """
    return "\n".join(f"{CALL_START}\n{_xml_call(call, python_literals)}\n{CALL_END}" for call in calls)


def _xml_call(call: ToolCall, python_literals: bool) -> str:
    parts = []
    for key, value in call.arguments.items():
        text = xml_value(value, python_literals=python_literals)
        # A line break before the text and one after it belong to the element.
        if "</parameter>" in text or CALL_END in text or TURN_END in text or not re.fullmatch(r"[^>\n]+", key):
            raise ValueError(f"tool '{call.name}': the argument {key!r} cannot be written between <parameter=…> marks")
        parts.append(f"{PARAMETER_START}{key}>\n{text}{PARAMETER_END}")
    return f"{FUNCTION_START}{call.name}>\n{''.join(parts)}{FUNCTION_END}"


def xml_value(value: Any, *, python_literals: bool = True) -> str:
    """An argument as its element holds it: text as it is, everything else spelled out."""
    if isinstance(value, str):
        return value
    if python_literals and (value is None or isinstance(value, bool)):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def value_in_call(value: Any, *, allow_nan: bool = True) -> str:
    """A JSON value as calls spell it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=allow_nan).replace("\x7f", "\\u007f")
    for cutting in (CALL_END, TURN_END):
        text = text.replace(cutting, "\\u003c" + cutting[1:])
    return text


def parse_reply(text: str, tools: Sequence[Tool] = ()) -> ParsedReply:
    """Read a reply without repairing anything: a malformed call is data (`unparsed`), never an exception.

    The text may end in the turn's end token. An opened call that is never closed is unparsed.

    Args:
        tools: their schemas give arguments in `<parameter=…>` elements their types. An argument that may be a text and
            something else is something else where it reads as that; without a schema it is what it reads as.
    """
    text = text.split(TURN_END, 1)[0]
    calls: list[ToolCall] = []
    unparsed: list[UnparsedToolCall] = []
    for match in _CALL.finditer(text):
        body = match.group(1)
        call = _parse_xml_call(body, tools) if body.lstrip().startswith("<") else _parse_call(body)
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


def _parse_xml_call(raw: str, tools: Sequence[Tool]) -> ToolCall | UnparsedToolCall:
    found = _FUNCTION.fullmatch(raw)
    if found is None:
        return UnparsedToolCall(raw, "expected <function=name> with a <parameter=name> for each argument, each closed")
    name, members = found[1], PARAMETER.findall(found[2])
    if len({key for key, _ in members}) != len(members):
        return UnparsedToolCall(raw, "an argument occurs twice")
    schema = next((tool.schema for tool in tools if tool.name == name), None)
    return ToolCall(name, {key: _typed(text, key, schema) for key, text in members})


def _typed(text: str, key: str, schema: Schema | None) -> Any:
    """What an element's text stands for; a text that no type of the schema fits stays the one that is nearest."""
    try:
        value = _PYTHON_LITERALS[text] if text in _PYTHON_LITERALS else json_decoder().decode(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, str):
        return text  # it wrote quotation marks, and they are its words
    if schema is None:
        return value
    nodes: list[Node] = []
    for part in schema.in_place(schema.root):
        own = part.get("properties", {})
        nodes += [own[key]] if key in own else []
    nodes = nodes or [part["additionalProperties"] for part in schema.in_place(schema.root)
                      if "additionalProperties" in part]  # fmt: skip
    if any(schema.is_valid(node, value) for node in nodes) or not nodes:
        return value
    types = [part["type"] for node in nodes for part in schema.in_place(node) if "type" in part]
    admits_text = not types or any("string" in kinds for kinds in types)
    return text if admits_text else value


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
    """Messages in which a system message ends in the reference date; one is added when there is none.

    A day that a system message states itself wins over `today` (`stated_day`): the line then follows that message and
    starts from that day, and where the day cannot be read for certain nothing is added. None adds nothing at all.
    """
    if today is None:
        return tuple(messages)
    stated = stated_day(messages)
    if stated is None:
        is_first_system = bool(messages) and messages[0].role is Role.SYSTEM
        return _with_line(messages if is_first_system else (Message(Role.SYSTEM), *messages), 0, today)
    place, day = stated
    if day is None or _DATED.search(messages[place].content):
        return tuple(messages)
    return _with_line(messages, place, day)


def _with_line(messages: Sequence[Message], place: int, day: dt.date) -> tuple[Message, ...]:
    text = f"{messages[place].content}\n{reference_date_text(day)}".lstrip("\n")
    return (*messages[:place], replace(messages[place], content=text), *messages[place + 1 :])


def stated_day(messages: Sequence[Message]) -> tuple[int, dt.date | None] | None:
    """The last system message that says which day is today, and that day; None where none does.

    "Today is Thursday 2026-01-01", "Current date: March 10, 2026" and the like. The day is None where it is written in
    a way that can be read as two days (02/03/2026), or is no day.
    """
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].role is Role.SYSTEM:
            found = [*_STATED.finditer(messages[place].content)]
            if found:
                return place, _read_day(found[-1])
    return None


def reference_date_of(messages: Sequence[Message], today: dt.date) -> dt.date | None:
    """The day that `with_reference_date` tells; None where a system message states one that cannot be read."""
    stated = stated_day(messages)
    return today if stated is None else stated[1]


def _read_day(found: re.Match[str]) -> dt.date | None:
    weekday, y1, m1, d1, d2, m2, y2, m3, d3, y3, first, second, y4 = found.groups()
    if y4 is None:
        year, day = int(y1 or y2 or y3), int(d1 or d2 or d3)
        month = int(m1) if m1 else _MONTHS.index((m2 or m3).lower()) + 1
        return _day(year, month, day)
    # Day first or month first: certain where only one of them is a day, or falls on the weekday that is named.
    days = {_day(int(y4), int(second), int(first)), _day(int(y4), int(first), int(second))} - {None}
    if weekday and len(days) > 1:
        days = {day for day in days if day is not None and _weekday(day).lower().startswith(weekday.lower())}
    return days.pop() if len(days) == 1 else None


def _day(year: int, month: int, day: int) -> dt.date | None:
    try:
        return dt.date(year, month, day)
    except ValueError:
        return None


def default_chat_template() -> str:
    """Our template for models that have none; `{% generation %}` surrounds exactly what is trained."""
    return resources.files("tinydispatch").joinpath("templates/chatml_tools.jinja").read_text("utf-8")


def without_thinking(template: str) -> str:
    """The template with thinking switched off for good, where it has such a switch; else as it is.

    A dispatcher is trained to call at once. Servers leave the switch at its default, so the default has to say so, and
    then they render what the model was trained on.
    """
    has_switch = "enable_thinking" in template and not template.startswith(_NO_THINKING)
    return _NO_THINKING + template if has_switch else template


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
    """The text that the model reads, by the template that its file carries; thinking is off where it can be.

    Args:
        template: a Jinja chat template; None takes ours.
        special_tokens: `bos_token` and `eos_token` for templates that print them.

    Raises:
        ValueError: the template does not compile, refuses these messages, or fails on them; says which and why.
    """
    try:
        environment, compiled = _compiled(template if template is not None else default_chat_template())
        environment.n_steps = 0
        return compiled.render(
            messages=[message.to_openai() for message in messages],
            tools=[tool.to_openai() for tool in tools] or None,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,
            **(special_tokens or {}),
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template cannot render this conversation: {error}") from error
    except _TEMPLATE_FAULTS as error:
        name = f"the chat template {template_hash(template)}" if template is not None else "the bundled chat template"
        raise ValueError(
            f"{name} cannot render this conversation: it fails with {type(error).__name__}: {error}"
        ) from error


@lru_cache(maxsize=8)
def _compiled(template: str) -> tuple[_Environment, jinja2.Template]:
    if len(template) > _MAX_TEMPLATE:
        raise jinja2.TemplateError(f"a template of {len(template)} characters; at most {_MAX_TEMPLATE} are read")
    if template == default_chat_template():  # ours, which needs no watching
        plain = _Environment()
        return plain, plain.from_string(template)
    environment = _BudgetedEnvironment()
    tree = _Budgeted().visit(environment.parse(template))
    return environment, environment.from_string(tree)


class _Budgeted(NodeTransformer):
    """Has each turn of a loop and each joined text say so to the environment."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (jinja2's name)
        self.generic_visit(node)
        step = nodes.Call(nodes.Name(_STEP, "load"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        if node.test is not None:  # what it leaves out are turns, too
            node.test = nodes.And(nodes.Call(nodes.Name(_STEP, "load"), [], [], None, None), node.test)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 (jinja2's name)
        self.generic_visit(node)
        return nodes.Call(nodes.Name(_JOIN, "load"), node.nodes, [], None, None)


class _Environment(ImmutableSandboxedEnvironment):
    """The settings of transformers and llama.cpp; their tojson does not escape HTML, jinja2's own would."""

    n_steps = 0

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_in_template


class _BudgetedEnvironment(_Environment):
    """A sandbox in which a template may take so many steps and make texts of such a size, and no more.

    A template comes with a model file of a stranger: what it says in a loop, it may say for ever.
    """

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__()
        self.filters = {name: self._bounded(name, filter_) for name, filter_ in self.filters.items()}
        self.filters["tojson"] = _to_json
        del self.globals["lipsum"]
        self.globals |= {_STEP: self.step, _JOIN: self._join}

    def step(self) -> bool:
        """One turn of a loop, or one call."""
        self.n_steps += 1
        if self.n_steps > _MAX_STEPS:
            raise jinja2.TemplateError(f"it takes more than {_MAX_STEPS} steps")
        return True

    def concat(self, parts: Iterable[str]) -> str:
        """What a template or a macro writes."""
        pieces, n_characters = [], 0
        for part in parts:
            pieces.append(part)
            n_characters += len(part)
            _check_size(n_characters)
        return "".join(pieces)

    def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        """A function or method of the template's."""
        if function == self.step:
            return self.step()
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        name = getattr(function, "__name__", "")
        values = ([owner] if isinstance(owner, str) else []) + [*arguments, *named.values()]
        # A number that is written out makes nothing long; what a macro does with one is checked where it does it.
        has_numbers = function != self._join and not isinstance(function, Macro | type)
        self._check_work(name, values, has_numbers=has_numbers)
        return _sized(super().call(context, function, *arguments, **named))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator that can make much of little."""
        if operator == "**":
            _check_numbers((left, right), _MAX_POWER)
        elif operator == "*":
            sides = [len(side) if isinstance(side, (str, list, tuple)) else side for side in (left, right)]
            if sides != [left, right]:
                _check_size(math.prod(side for side in sides if isinstance(side, int)))
        self._check_work("format" if operator == "%" else operator, (left, right))
        return _sized(super().call_binop(context, operator, left, right))

    def _join(self, *parts: Any) -> str:
        return self.concat(map(str, parts))

    def _bounded(self, name: str, filter_: Any) -> Any:
        @wraps(filter_)
        def run(*arguments: Any, **named: Any) -> Any:
            self._check_work(name, (*arguments, *named.values()), has_numbers=name in _PADDING_FILTERS)
            return _sized(filter_(*arguments, **named))

        return run

    def _check_work(self, name: str, values: Sequence[Any], *, has_numbers: bool = True) -> None:
        self.step()
        if has_numbers and name not in _WRITES_NUMBERS:
            _check_numbers(values)
        texts = [value for value in values if isinstance(value, str)]
        if name in ("format", "format_map") and texts and _WIDE.search(texts[0]):
            raise jinja2.TemplateError("it formats with a width of six digits, or one that is itself formatted")
        if name == "replace" and len(texts) > 2:
            _check_size(len(texts[0]) + (texts[0].count(texts[1]) + 1) * len(texts[2]))
        if name == "join":
            lists = [value for value in values if isinstance(value, (list, tuple))]
            longest = max(map(len, texts), default=0)
            _check_size(sum(longest + (len(item) if isinstance(item, str) else 1) for each in lists for item in each))


def _check_numbers(values: Iterable[Any], most: int = 1_000_000) -> None:
    for value in values:
        if isinstance(value, (int, float)) and abs(value) > most:
            raise jinja2.TemplateError(f"it computes with a number of more than {most}")


def _check_size(n_characters: int) -> None:
    if n_characters > _MAX_TEXT:
        raise jinja2.TemplateError(f"it makes a text of more than {_MAX_TEXT} characters")


def _sized(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)):
        _check_size(len(value))
    return value


class _GenerationTag(Extension):
    """`{% generation %}` marks what is trained; for reading a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as a plain attribute)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_in_template(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
