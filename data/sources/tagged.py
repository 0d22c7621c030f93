"""Calls that stand as text inside an assistant's turn: where they begin, and what can be read of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.rejected import RejectReason, Repair, RowError
from data.sources.literals import LiteralError, parse_arguments, parse_literal, parse_values, python_calls
from tinydispatch.formats import (
    CALL_END,
    CALL_START,
    FUNCTION_END,
    FUNCTION_START,
    PARAMETER_END,
    PARAMETER_START,
    parse_reply,
)
from tinydispatch.tools import Tool

# How some model's own format begins, ends or divides a call. A reply with any of these teaches a call that nobody
# checked against a schema. Every repetition is bounded: the text may be anybody's.
_MARKER = re.compile(
    r"</?tool_?calls?\b|</?function_?calls?\b|</?function\s?=|</?invoke\b|</?tool_use\b|<start_function_call>|<parameter="
    r"|<[|｜](?:/?tool|python_tag|action_start|plugin|function|channel[|｜]>\s?commentary|DSML)"
    r"|\[/?TOOL_(?:CALLS?|REQUEST)\]|\[TOOL_CALLS|\bfunctools\[|✿(?:FUNCTION|ARGS)✿|```\s?tool_(?:code|calls?)"
    r"|\bAction Input:|<\|START_ACTION\|>|<\|python_start\|>|<arg_key>|^>>>\w{1,99}\n\s{0,9}\{|\"action_input\"\s{0,9}:"
    r"|\"tool_name\"\s{0,9}:\s{0,9}\"[^\"]{0,99}\"\s{0,9},\s{0,9}\"parameters\"\s{0,9}:"
    r"|\"name\"\s{0,9}:\s{0,9}\"[^\"]{0,99}\"\s{0,9},\s{0,9}\"(?:arguments|parameters)\"\s{0,9}:"
    r"|\"arguments\"\s{0,9}:\s{0,9}[{\"][^{}]{0,2000}\}?\"?\s{0,9},\s{0,9}\"name\"\s{0,9}:"
    r"|\"(?:tool_calls|function_call)\"\s{0,9}:",
    re.IGNORECASE | re.MULTILINE,
)
# One of these stands in every marker; looking for them takes a hundredth of the time.
_HINTS = ("<", "[", "{", "✿", "```", "nput:", ">>>")

_TAGS = ((CALL_START, CALL_END), ("<TOOLCALL>", "</TOOLCALL>"), ("<functioncall>", "</functioncall>"),
         ("<tool_calls>", "</tool_calls>"), ("[TOOL_REQUEST]", "[END_TOOL_REQUEST]"),
         ("<|action_start|><|plugin|>", "<|action_end|>"), ("<|START_ACTION|>", "<|END_ACTION|>"))  # fmt: skip
# After these come calls to the end of the turn: Mistral, Llama, Phi and Granite, Firefunction.
_STARTS = ("[TOOL_CALLS]", "<|python_tag|>", "<|python_start|>", "<|tool_call|>", "<|tool_call_start|>", "functools")
_TURN_ENDS = re.compile(
    r"(?:\s|</s>|<\|(?:eot_id|eot|eom_id|eom|im_end|endoftext|/tool_call|tool_call_end|python_end|call|end)\|>)+\Z"
)
# A name and an object in JSON: Llama 3.1, Qwen-Agent, Mistral, DeepSeek, Kimi, gpt-oss, Functionary, ReAct.
_INSIDE = r"(?P<arguments>(?:(?!{end}).){{0,99999}})"
_NAMED = (
    re.compile(
        r"<function=(?P<name>[^<>\s]{1,99})>" + _INSIDE.format(end="</function>") + r"(?:</function>|\Z)", re.DOTALL
    ),
    re.compile(r"✿FUNCTION✿:\s{0,9}(?P<name>[^\s✿]{1,99})\s{0,9}✿ARGS✿:(?P<arguments>[^✿]{0,99999})"),
    re.compile(
        r"\[TOOL_CALLS\]\s?(?P<name>[\w.\-]{1,99})(?:\[CALL_ID\]\w{0,99})?(?:\[ARGS\]|(?=\{))"
        + _INSIDE.format(end=r"\[TOOL_CALLS\]"),
        re.DOTALL,
    ),
    re.compile(
        r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>[^\s<]{1,99})(?:<｜tool▁sep｜>|\s*```json)"
        + _INSIDE.format(end=r"(?:\s*```\s*)?<｜tool▁call▁end｜>") + r"(?:\s*```\s*)?<｜tool▁call▁end｜>",
        re.DOTALL,
    ),
    re.compile(
        r"<\|tool_call_begin\|>\s*functions\.(?P<name>[^\s:<]{1,99}):\d{1,9}\s*<\|tool_call_argument_begin\|>"
        + _INSIDE.format(end=r"<\|tool_call_end\|>") + r"<\|tool_call_end\|>",
        re.DOTALL,
    ),
    re.compile(
        r"(?:<\|start\|>assistant)?<\|channel\|>commentary to=functions\.(?P<name>[^\s<]{1,99})[^<]{0,99}"
        r"(?:<\|constrain\|>json)?<\|message\|>" + _INSIDE.format(end=r"<\|call\|>") + r"(?:<\|call\|>|\Z)",
        re.DOTALL,
    ),
    re.compile(r">>>(?P<name>[\w.\-]{1,99})\n" + _INSIDE.format(end=">>>"), re.DOTALL),
    re.compile(
        r"Action:\s{0,9}(?P<name>[^\n]{1,99}?)\s{0,9}\nAction Input:"
        + _INSIDE.format(end=r"\n(?:Action|Observation):"),
        re.DOTALL,
    ),
)  # fmt: skip
# A name, and an element for each argument, whose schema says what its text stands for.
_ELEMENTS = (
    (
        re.compile(
            r"<function=(?P<name>[^<>\s]{1,99})>\s*(?P<inside>(?:<parameter(?:(?!</function>).){0,99999})?)</function>",
            re.DOTALL,
        ),
        re.compile(r"<parameter=(?P<key>[^<>\n]{1,99})>(?P<value>.*?)</parameter>", re.DOTALL),
    ),
    (
        re.compile(
            r"<invoke name=\"(?P<name>[^\"<>]{1,99})\">(?P<inside>(?:(?!</invoke>).){0,99999})</invoke>", re.DOTALL
        ),
        re.compile(r"<parameter name=\"(?P<key>[^\"<>]{1,99})\"[^<>]{0,99}>(?P<value>.*?)</parameter>", re.DOTALL),
    ),
    (
        re.compile(
            r"<tool_call>(?P<name>[\w.\-]{1,99})\s*(?P<inside>(?:<arg_key>(?:(?!</tool_call>).){0,99999})?)</tool_call>",
            re.DOTALL,
        ),
        re.compile(r"<arg_key>(?P<key>[^<>]{1,99})</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>", re.DOTALL),
    ),
)
# What such calls are wrapped in, and says nothing more.
_WRAPPERS = re.compile(
    r"</?(?:\w{1,20}:)?(?:function_calls|tool_calls?)>|<｜tool▁calls▁(?:begin|end)｜>|<｜end▁of▁sentence｜>"
    r"|<\|tool_calls_section_(?:begin|end)\|>"
)
_FENCE = re.compile(r"\A```(?:json|tool_call|tool_code|python)?\s*\n(?P<inside>.*)\n\s*```\Z", re.DOTALL)
_PYTHON = re.compile(r"\A\[?\s*(?:print\()?[\w.\-]{1,99}\(")
_THOUGHT = re.compile(r"\A\s*<think(?:ing)?>(.*?)</think(?:ing)?>", re.DOTALL)


def call_marker(text: str) -> str | None:
    """What in a text looks like the beginning of a call in some model's format; None in a text for people."""
    if not any(hint in text for hint in _HINTS):
        return None
    found = _MARKER.search(text)
    return found.group() if found is not None else None


def without_thought(text: str, repairs: list[Repair]) -> str:
    """The text after a leading `<think>…</think>`."""
    if "<think" not in text or (found := _THOUGHT.match(text)) is None:
        return text
    repairs.append(Repair.THOUGHT_DROPPED)
    return text[found.end() :].strip()


def calls_in_text(text: str, tools: Sequence[Tool], repairs: list[Repair]) -> list[dict[str, Any]]:
    """The calls that an assistant's text consists of or ends in; none where it is a reply, or cannot be read.

    Read are calls in JSON between the tags or after the marks of the formats above, alone, or in a fence; in elements
    (Qwen3-Coder, Anthropic, GLM), whose types are the schema's; and in Python (Gemma, Llama 4). What is said beside
    them is a thought and dropped.

    Raises:
        RowError: a marker that no reader here takes apart, or broken JSON behind one.
    """
    marker = call_marker(text)
    if marker is None and not _is_python_call(text, tools):
        return []
    mended: list[Repair] = []
    rest, calls = _read(text, tools, mended)
    if not calls or (call_marker(rest) is not None):
        raise RowError(RejectReason.CALL_IN_TEXT, f"{marker!r} in a reply, which cannot be read as a call")
    repairs += [*mended, Repair.CALL_READ_FROM_TEXT, *([Repair.THOUGHT_DROPPED] if rest.strip() else [])]
    return calls


def _is_python_call(text: str, tools: Sequence[Tool]) -> bool:
    begin = text.lstrip("[`\n ").removeprefix("print(").partition("(")[0].rpartition(".")
    return "(" in text and any(tool.name in (begin[2], "".join(begin)) for tool in tools)


def _read(text: str, tools: Sequence[Tool], repairs: list[Repair]) -> tuple[str, list[dict[str, Any]]]:
    """What is left of the text, and the calls in it."""
    for whole, element in _ELEMENTS:
        if found := list(whole.finditer(text)):
            calls = [_from_elements(each["name"], each["inside"], element, tools) for each in found]
            return _TURN_ENDS.sub("", _WRAPPERS.sub("", whole.sub("", text))), calls
    for start, end in _TAGS:
        if start in text and "<function=" not in text:
            return split_calls(text, start, end, repairs)
    for pattern in _NAMED:
        if found := list(pattern.finditer(text)):
            calls = [{"name": each["name"], "arguments": _TURN_ENDS.sub("", each["arguments"])} for each in found]
            return _TURN_ENDS.sub("", _WRAPPERS.sub("", pattern.sub("", text))), calls
    for start in _STARTS:
        before, marker, after = text.partition(start)
        if marker:
            return before, _calls_alone(_TURN_ENDS.sub("", after.replace(start, ";")), repairs)
    whole_text = _TURN_ENDS.sub("", text).strip()
    fenced = _FENCE.match(whole_text)
    inside = fenced["inside"] if fenced is not None else whole_text
    is_read = inside[:1] in ("{", "[") or _PYTHON.match(inside) is not None
    return ("", _calls_alone(inside, repairs)) if is_read else (text, [])


def _calls_alone(text: str, repairs: list[Repair]) -> list[dict[str, Any]]:
    if _PYTHON.match(text.strip()) is None:
        return text_calls(text, repairs)
    try:
        return python_calls(text)
    except LiteralError as error:
        raise RowError(RejectReason.CALL_IN_TEXT, f"a call in Python that cannot be read: {error}") from error


def _from_elements(name: str, inside: str, element: re.Pattern[str], tools: Sequence[Tool]) -> dict[str, Any]:
    """One element for each argument, written anew as Qwen3-Coder writes them for the reader of a model's replies."""
    found = list(element.finditer(inside))
    members = "".join(f"{PARAMETER_START}{each['key']}>\n{_bare(each['value'])}{PARAMETER_END}" for each in found)
    reply = parse_reply(f"{CALL_START}{FUNCTION_START}{name}>\n{members}{FUNCTION_END}{CALL_END}", tools)
    if element.sub("", inside).strip() or not reply.calls:
        why = reply.unparsed[0].error if reply.unparsed else "something beside the elements of its arguments"
        raise RowError(RejectReason.MALFORMED_CALL, f"'{name}': {why}")
    return {"name": name, "arguments": dict(reply.calls[0].arguments)}


def _bare(value: str) -> str:
    return value.removeprefix("\n").removesuffix("\n")


def split_calls(text: str, start: str, end: str, repairs: list[Repair]) -> tuple[str, list[dict[str, Any]]]:
    """An assistant's text → what it says beside its calls, and the calls.

    Between the tags stand calls, one or several, in JSON, or one as a Python literal. The last tag may be left open
    where nothing but whole calls follows it.

    Raises:
        RowError: what is between two tags is no call, or the text ends within one.
    """
    calls: list[dict[str, Any]] = []
    says: list[str] = []
    while start in text:
        before, _, text = text.partition(start)
        inside, closed, text = text.partition(end)
        if not closed:
            if not _is_whole(inside):
                raise RowError(RejectReason.MALFORMED_CALL, f"{start} without {end}")
            repairs.append(Repair.CALL_TAG_LEFT_OPEN)
        says.append(before)
        calls += text_calls(inside.strip(), repairs)
    return "".join([*says, text]).strip(), calls


def _is_whole(text: str) -> bool:
    try:
        return isinstance(parse_literal(text), dict | list)
    except LiteralError:
        return False


def text_calls(text: str, repairs: list[Repair]) -> list[dict[str, Any]]:
    """The calls of a text that is nothing but calls: one, a list, or one after the other.

    Raises:
        RowError: it is something else, or nothing.
    """
    try:
        values = parse_values(text)
    except LiteralError:
        try:
            parsed = parse_arguments(text)
        except LiteralError as error:
            raise RowError(RejectReason.MALFORMED_CALL, f"a call that cannot be read: {error}") from error
        repairs += parsed.repairs
        values = [parsed.arguments]
    if not values:
        raise RowError(RejectReason.MALFORMED_CALL, "nothing where a call should stand")
    return [call_of(entry) for entry in values]


def call_of(entry: Any) -> dict[str, Any]:
    """`{"name", "arguments"}` out of an object with these keys, bare or under `function`.

    Raises:
        RowError: it is none.
    """
    inner = entry.get("function", entry) if isinstance(entry, Mapping) else None
    if not isinstance(inner, Mapping):
        raise RowError(RejectReason.MALFORMED_CALL, "a call that is no object")
    name = next((inner[key] for key in ("name", "tool_name", "action") if isinstance(inner.get(key), str)), None)
    if name is None:
        raise RowError(RejectReason.MALFORMED_CALL, "a call without a 'name'")
    key = next(
        (key for key in ("arguments", "parameters", "action_input", "input", "args") if key in inner), "arguments"
    )
    return {"name": name, "arguments": inner.get(key, {})}


def tool_list(value: Any) -> list[Any]:
    """Tools as a list, as JSON text, as several JSON texts in a list, or as objects one after the other.

    Raises:
        RowError: none of these.
    """
    if isinstance(value, str):
        value = _values(value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise RowError(RejectReason.INVALID_TOOLS, "the tools are no list")
    found: list[Any] = []
    for entry in value:
        found += tool_list(entry) if isinstance(entry, str) else [entry]
    return found


def _values(text: str) -> Sequence[Any]:
    text = text.strip()
    if not text:
        return []
    try:
        value = parse_literal(text)
    except LiteralError:
        pass
    else:
        return value if isinstance(value, list) else [value]
    # Glaive writes one object after the other, with an empty line between them.
    parts = re.split(r"\}\s*\n\s*\{", text)
    try:
        return [
            parse_literal(("" if i == 0 else "{") + part + ("" if i == len(parts) - 1 else "}"))
            for i, part in enumerate(parts)
        ]
    except LiteralError as error:
        raise RowError(RejectReason.INVALID_TOOLS, f"the tools cannot be read: {error}") from error


def turns_of(row: Any) -> list[Mapping[str, Any]]:
    """The turns under `conversations` or `messages`: a list of objects, or the columns that Arrow makes of one.

    Raises:
        RowError: neither.
    """
    value = row.get("conversations", row.get("messages")) if isinstance(row, Mapping) else None
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, cells, strict=False)) for cells in zip(*value.values(), strict=False)]
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise RowError(RejectReason.MALFORMED_ROW, "no list 'conversations'")
    return value


def turn_of(turn: Mapping[str, Any]) -> tuple[str, Any]:
    """Who speaks and what they say: `from` and `value`, or the `role` and `content` that some copies have instead."""
    return str(turn.get("from", turn.get("role"))), turn.get("value", turn.get("content"))


def result_names(messages: Sequence[dict[str, Any]]) -> None:
    """Name each tool message by the call that it answers: results come in the order of the calls before them."""
    waiting: list[str] = []
    last = ""
    for message in messages:
        if message["role"] == "assistant":
            waiting = [call["name"] for call in message.get("tool_calls", ())]
        elif message["role"] == "tool" and "name" not in message:
            last = waiting.pop(0) if waiting else last
            if not last:
                raise RowError(RejectReason.MALFORMED_ROW, "a tool result that follows no call")
            message["name"] = last
