"""Calls that stand as text inside an assistant's turn: where they begin, and what can be read of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.rejected import RejectReason, Repair, RowError
from data.sources.literals import LiteralError, parse_arguments, parse_literal, parse_values
from tinydispatch.formats import CALL_END, CALL_START

# How some model's own format begins, ends or divides a call. A reply with any of these teaches a call that nobody
# checked against a schema. Every repetition is bounded: the text may be anybody's.
_MARKER = re.compile(
    r"</?tool_?calls?\b|</?function_?calls?\b|</?function\s?=|</?invoke\b|</?tool_use\b|<start_function_call>|<parameter="
    r"|<[|｜](?:/?tool|python_tag|action_start|plugin|function|channel[|｜]>\s?commentary|DSML)"
    r"|\[/?TOOL_(?:CALLS?|REQUEST)\]|\[TOOL_CALLS|\bfunctools\[|✿(?:FUNCTION|ARGS)✿|```\s?tool_(?:code|calls?)"
    r"|\bAction Input:"
    r"|\"name\"\s{0,9}:\s{0,9}\"[^\"]{0,99}\"\s{0,9},\s{0,9}\"(?:arguments|parameters)\"\s{0,9}:"
    r"|\"arguments\"\s{0,9}:\s{0,9}[{\"][^{}]{0,2000}\}?\"?\s{0,9},\s{0,9}\"name\"\s{0,9}:"
    r"|\"(?:tool_calls|function_call)\"\s{0,9}:",
    re.IGNORECASE,
)
# One of these stands in every marker; looking for them takes a hundredth of the time.
_HINTS = ("<", "[", "{", "✿", "```", "nput:")

_TAGS = ((CALL_START, CALL_END), ("<TOOLCALL>", "</TOOLCALL>"), ("<functioncall>", "</functioncall>"),
         ("<tool_calls>", "</tool_calls>"))  # fmt: skip
# After these comes JSON to the end of the turn: Mistral, Llama 3.1, Phi and Granite, Firefunction.
_STARTS = ("[TOOL_CALLS]", "<|python_tag|>", "<|tool_call|>", "functools")
_TURN_ENDS = re.compile(r"(?:\s|</s>|<\|(?:eot_id|eom_id|im_end|endoftext|/tool_call|end)\|>)+\Z")
_NAMED = re.compile(r"<function=(?P<name>[^<>\s]{1,99})>(?P<arguments>[^<]{0,99999})</function>")
_FLOWER = re.compile(r"✿FUNCTION✿:\s{0,9}(?P<name>[^\s✿]{1,99})\s{0,9}✿ARGS✿:(?P<arguments>[^✿]{0,99999})")
_MISTRAL_NAMED = re.compile(
    r"\[TOOL_CALLS\]\s?(?P<name>[\w.\-]{1,99})(?:\[CALL_ID\]\w{0,99})?\[ARGS\](?P<arguments>[^\[]{0,99999})"
)
_FENCE = re.compile(r"\A```(?:json|tool_call|tool_code)?\s*\n(?P<inside>.*)\n\s*```\Z", re.DOTALL)
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


def calls_in_text(text: str, repairs: list[Repair]) -> list[dict[str, Any]]:
    """The calls that an assistant's text consists of or ends in; none where it is a reply, or cannot be read.

    Read are Hermes' and Qwen's `<tool_call>`, Nemotron's `<TOOLCALL>`, Glaive's `<functioncall>`, Mistral's
    `[TOOL_CALLS]`, Llama's `<|python_tag|>` and `<function=…>`, Phi's and Granite's `<|tool_call|>`, `functools[…]`,
    Qwen-Agent's `✿FUNCTION✿`, and JSON alone, also in a fence. What is said beside them is a thought and dropped.

    Raises:
        RowError: a marker that no reader here takes apart, or broken JSON behind one.
    """
    if (marker := call_marker(text)) is None:
        return []
    mended: list[Repair] = []
    rest, calls = _read(text, mended)
    if not calls or (call_marker(rest) is not None):
        raise RowError(RejectReason.CALL_IN_TEXT, f"{marker!r} in a reply, which cannot be read as a call")
    repairs += [*mended, Repair.CALL_READ_FROM_TEXT, *([Repair.THOUGHT_DROPPED] if rest.strip() else [])]
    return calls


def _read(text: str, repairs: list[Repair]) -> tuple[str, list[dict[str, Any]]]:
    """What is left of the text, and the calls in it."""
    for start, end in _TAGS:
        if start in text and "<function=" not in text:
            return split_calls(text, start, end, repairs)
    for pattern in (_NAMED, _FLOWER, _MISTRAL_NAMED):
        if found := list(pattern.finditer(text)):
            calls = [{"name": each["name"], "arguments": _TURN_ENDS.sub("", each["arguments"])} for each in found]
            return _TURN_ENDS.sub("", pattern.sub("", text)), calls
    for start in _STARTS:
        before, marker, after = text.partition(start)
        if marker:
            return before, text_calls(_TURN_ENDS.sub("", after), repairs)
    fenced = _FENCE.match(text.strip())
    whole = fenced["inside"] if fenced is not None else text.strip()
    return ("", text_calls(whole, repairs)) if whole[:1] in ("{", "[") else (text, [])


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
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise RowError(RejectReason.MALFORMED_CALL, "a call without a 'name'")
    return {"name": inner["name"], "arguments": inner.get("arguments", inner.get("parameters", {}))}


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
