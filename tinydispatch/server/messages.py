"""The `messages` of a chat request → `Message`s, checked as the OpenAI API checks them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinydispatch.server.errors import invalid, unsupported, wrong_type
from tinydispatch.server.nesting import MAX_LEVELS, is_too_deep
from tinydispatch.tools import Message, Role, ToolCall

# "developer" is OpenAI's newer word for system, "function" its older one for tool.
_ROLES = {role.value: role for role in Role} | {"developer": Role.SYSTEM, "function": Role.TOOL}


def read_messages(value: Any) -> tuple[Message, ...]:
    """Every message in order; each tool result is named by the call that it answers.

    Raises:
        ApiError: names the message and the key.
    """
    if not isinstance(value, list):
        raise wrong_type("messages", "an array of objects", value)
    if not value:
        raise invalid(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "messages",
            "empty_array",
        )
    messages = []
    due: dict[str, str] = {}  # id of each call that waits for its result → the tool's name
    for index, entry in enumerate(value):
        where = f"messages[{index}]"
        role = _role(entry, where)
        if role is Role.TOOL:
            messages.append(_result(entry, where, due))
            continue
        _check_nothing_due(due, where)
        calls = _calls(entry.get("tool_calls"), f"{where}.tool_calls", due) if role is Role.ASSISTANT else ()
        is_optional = role is Role.ASSISTANT and (bool(calls) or entry.get("refusal") is not None)
        content = _text(entry, where, is_optional=is_optional) or _refusal(entry, where)
        messages.append(Message(role, content, calls))
    _check_nothing_due(due, f"messages[{len(value) - 1}]")
    return tuple(messages)


def _role(entry: Any, where: str) -> Role:
    if not isinstance(entry, Mapping):
        raise wrong_type(where, "an object", entry)
    name = entry.get("role")
    if not isinstance(name, str):
        raise invalid(f"Missing required parameter: '{where}.role'.", f"{where}.role", "missing_required_parameter")
    if name not in _ROLES:
        known = ", ".join(f"'{role}'" for role in sorted(_ROLES))
        raise invalid(f"Invalid value: '{name}'. Supported values are: {known}.", f"{where}.role", "invalid_value")
    return _ROLES[name]


def _text(entry: Mapping[str, Any], where: str, *, is_optional: bool) -> str:
    content = entry.get("content")
    if not isinstance(entry.get("name"), str | None):
        raise wrong_type(f"{where}.name", "a string", entry["name"])
    where = f"{where}.content"
    if content is None and is_optional:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(where, "a string or an array of objects", content)
    if not content:
        raise invalid(
            f"Invalid '{where}': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            where,
            "empty_array",
        )
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "refusal"):
            raise invalid(
                f"Invalid value at '{where}[{index}]': this model reads parts of type 'text' alone.",
                f"{where}[{index}].type",
                "invalid_value",
            )
        if not isinstance(part.get(kind), str):
            raise wrong_type(f"{where}[{index}].{kind}", "a string", part.get(kind))
        texts.append(part[kind])
    return "".join(texts)


def _refusal(entry: Mapping[str, Any], where: str) -> str:
    refusal = entry.get("refusal")
    if refusal is not None and not isinstance(refusal, str):
        raise wrong_type(f"{where}.refusal", "a string", refusal)
    return refusal or ""


def _calls(value: Any, where: str, due: dict[str, str]) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong_type(where, "an array of objects", value)
    calls = []
    for index, entry in enumerate(value):
        at = f"{where}[{index}]"
        if not isinstance(entry, Mapping):
            raise wrong_type(at, "an object", entry)
        if entry.get("type", "function") != "function":
            raise unsupported(f"{at}.type", "only calls of type 'function' can be read.")
        function, call_id = entry.get("function"), entry.get("id")
        if not isinstance(function, Mapping):
            raise wrong_type(f"{at}.function", "an object", function)
        if not isinstance(call_id, str):
            raise wrong_type(f"{at}.id", "a string", call_id)
        if not isinstance(function.get("name"), str):
            raise wrong_type(f"{at}.function.name", "a string", function.get("name"))
        if call_id in due:
            raise invalid(f"Invalid '{at}.id': '{call_id}' occurs twice.", f"{at}.id", "invalid_value")
        calls.append(ToolCall(function["name"], _arguments(function.get("arguments"), f"{at}.function.arguments")))
        due[call_id] = function["name"]
    return tuple(calls)


def _arguments(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, str):
        raise wrong_type(where, "a string", value)
    try:
        arguments = json.loads(value or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise invalid(f"Invalid '{where}': expected a JSON object, written as a string.", where, "invalid_value")
    if is_too_deep(arguments):
        raise invalid(f"Invalid '{where}': nested more than {MAX_LEVELS} levels deep.", where, "invalid_value")
    return arguments


def _result(entry: Mapping[str, Any], where: str, due: dict[str, str]) -> Message:
    content = _text(entry, where, is_optional=False)
    if entry.get("role") == "function":
        if not isinstance(entry.get("name"), str):
            raise wrong_type(f"{where}.name", "a string", entry.get("name"))
        return Message(Role.TOOL, content, tool_name=entry["name"])
    call_id = entry.get("tool_call_id")
    if not isinstance(call_id, str):
        raise invalid(
            f"Missing required parameter: '{where}.tool_call_id'.",
            f"{where}.tool_call_id",
            "missing_required_parameter",
        )
    if call_id not in due:
        raise invalid(
            f"Invalid parameter: messages with role 'tool' must be a response to a preceding message with "
            f"'tool_calls'; '{where}' answers no call that waits for a result.",
            f"{where}.role",
        )
    return Message(Role.TOOL, content, tool_name=due.pop(call_id))


def _check_nothing_due(due: Mapping[str, str], where: str) -> None:
    if due:
        ids = ", ".join(due)
        raise invalid(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {ids}",
            f"{where}.role",
        )
