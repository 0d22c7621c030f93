"""Calls that stand as tagged text inside an assistant's turn, as several data sets store them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.rejected import RejectReason, Repair, RowError
from data.sources.literals import LiteralError, parse_arguments, parse_literal


def split_calls(text: str, start: str, end: str, repairs: list[Repair]) -> tuple[str, list[dict[str, Any]]]:
    """An assistant's text → what it says beside its calls, and the calls.

    Between the tags stands one call, or a list of them, in JSON or as a Python literal. The last tag may be left open
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
        calls += _calls(inside.strip(), repairs)
    return "".join([*says, text]).strip(), calls


def _is_whole(text: str) -> bool:
    try:
        return isinstance(parse_literal(text), dict | list)
    except LiteralError:
        return False


def _calls(text: str, repairs: list[Repair]) -> list[dict[str, Any]]:
    try:
        value = parse_literal(text)
    except LiteralError:
        try:
            parsed = parse_arguments(text)
        except LiteralError as error:
            raise RowError(RejectReason.MALFORMED_CALL, f"a call that cannot be read: {error}") from error
        repairs += parsed.repairs
        value = parsed.arguments
    return [call_of(entry) for entry in (value if isinstance(value, list) else [value])]


def call_of(entry: Any) -> dict[str, Any]:
    """`{"name", "arguments"}` out of an object with these keys.

    Raises:
        RowError: it is none.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise RowError(RejectReason.MALFORMED_CALL, "a call without a 'name'")
    return {"name": entry["name"], "arguments": entry.get("arguments", entry.get("parameters", {}))}


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
