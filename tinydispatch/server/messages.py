"""The messages of a request → `Message`s, checked as the OpenAI API checks them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinydispatch.server.errors import invalid, unsupported, wrong_type
from tinydispatch.server.nesting import MAX_LEVELS, is_too_deep
from tinydispatch.tools import Message, Role, ToolCall

# "developer" is OpenAI's newer word for system, "function" its older one for tool.
_ROLES = {role.value: role for role in Role} | {"developer": Role.SYSTEM, "function": Role.TOOL}


class History:
    """Collects a conversation; each tool result is named by the call that it answers, and each call needs one.

    `where` is the place of a part in the request, for messages.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._due: dict[str, str] = {}  # id of each call that waits for its result → the tool's name

    def say(self, role: Role, content: str, where: str, *, ends_calls: bool = True) -> None:
        """A message in words. Without `ends_calls`, words of the assistant may stand between its calls and results."""
        last = self.messages[-1] if self.messages else None
        if not ends_calls and self._due and last is not None and role is last.role is Role.ASSISTANT:
            self.messages[-1] = Message(Role.ASSISTANT, last.content + content, last.tool_calls)
            return
        self.check_nothing_due(where)
        self.messages.append(Message(role, content))

    def call(self, name: Any, arguments: Any, call_id: Any, place: str, id_place: str) -> None:
        """A call of the assistant's last message, or of a new one where that came before something else."""
        if not isinstance(call_id, str):
            raise wrong_type(id_place, "a string", call_id)
        if not isinstance(name, str):
            raise wrong_type(f"{place}.name", "a string", name)
        if call_id in self._due:
            raise invalid(f"Invalid '{id_place}': '{call_id}' occurs twice.", id_place, "invalid_value")
        made = ToolCall(name, _arguments(arguments, f"{place}.arguments"))
        last = self.messages[-1] if self.messages and self.messages[-1].role is Role.ASSISTANT else None
        if last is None:
            self.messages.append(Message(Role.ASSISTANT, "", (made,)))
        else:
            self.messages[-1] = Message(Role.ASSISTANT, last.content, (*last.tool_calls, made))
        self._due[call_id] = name

    def result(self, call_id: Any, content: str, id_place: str, place: str) -> None:
        """What a tool returned."""
        if not isinstance(call_id, str):
            raise invalid(f"Missing required parameter: '{id_place}'.", id_place, "missing_required_parameter")
        if call_id not in self._due:
            message = (
                "Invalid parameter: messages with role 'tool' must be a response to a preceding message with "
                f"'tool_calls'; '{place}' answers no call that waits for a result."
            )
            raise invalid(message, place)
        self.messages.append(Message(Role.TOOL, content, tool_name=self._due.pop(call_id)))

    def named_call(self, name: Any, arguments: Any, place: str) -> None:
        """The assistant's call in the older form, which has no id and may stay without a result."""
        if not isinstance(name, str):
            raise wrong_type(f"{place}.name", "a string", name)
        last, made = self.messages[-1], ToolCall(name, _arguments(arguments, f"{place}.arguments"))
        self.messages[-1] = Message(Role.ASSISTANT, last.content, (*last.tool_calls, made))

    def named_result(self, name: Any, content: str, where: str) -> None:
        """What a function returned, in the older form, which names it and no call."""
        if not isinstance(name, str):
            raise wrong_type(f"{where}.name", "a string", name)
        self.messages.append(Message(Role.TOOL, content, tool_name=name))

    def check_nothing_due(self, where: str) -> None:
        """Refuse a call without its result."""
        if self._due:
            ids = ", ".join(self._due)
            raise invalid(
                "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
                f"'tool_call_id'. The following tool_call_ids did not have response messages: {ids}",
                where,
            )


def read_messages(value: Any) -> tuple[Message, ...]:
    """Every message in order.

    Raises:
        ApiError: names the message and the key.
    """
    if not isinstance(value, list):
        raise wrong_type("messages", "an array of objects", value)
    if not value:
        raise empty_array("messages")
    history = History()
    for index, entry in enumerate(value):
        _read(history, entry, f"messages[{index}]")
    history.check_nothing_due(f"messages[{len(value) - 1}].role")
    return tuple(history.messages)


def _read(history: History, entry: Any, where: str) -> None:
    role = read_role(entry, where)
    if role is Role.TOOL:
        content = _content(entry, where, is_optional=True)  # of a tool that returns nothing
        if entry["role"] == "function":
            history.named_result(entry.get("name"), content, where)
        else:
            history.result(entry.get("tool_call_id"), content, f"{where}.tool_call_id", f"{where}.role")
        return
    calls = entry.get("tool_calls") if role is Role.ASSISTANT else None
    if not isinstance(calls, list | None):
        raise wrong_type(f"{where}.tool_calls", "an array of objects", calls)
    older = entry.get("function_call") if role is Role.ASSISTANT else None
    is_optional = role is Role.ASSISTANT and (bool(calls or older) or entry.get("refusal") is not None)
    history.say(role, _content(entry, where, is_optional=is_optional) or _refusal(entry, where), f"{where}.role")
    for index, call in enumerate(calls or ()):
        at = f"{where}.tool_calls[{index}]"
        if not isinstance(call, Mapping):
            raise wrong_type(at, "an object", call)
        if call.get("type", "function") != "function":
            raise unsupported(f"{at}.type", "only calls of type 'function' can be read.")
        function = call.get("function")
        if not isinstance(function, Mapping):
            raise wrong_type(f"{at}.function", "an object", function)
        history.call(function.get("name"), function.get("arguments"), call.get("id"), f"{at}.function", f"{at}.id")
    if older is not None:
        if not isinstance(older, Mapping):
            raise wrong_type(f"{where}.function_call", "an object", older)
        history.named_call(older.get("name"), older.get("arguments"), f"{where}.function_call")


def read_role(entry: Any, where: str) -> Role:
    """Who speaks.

    Raises:
        ApiError: nobody does, or somebody unknown.
    """
    if not isinstance(entry, Mapping):
        raise wrong_type(where, "an object", entry)
    name = entry.get("role")
    if not isinstance(name, str):
        raise invalid(f"Missing required parameter: '{where}.role'.", f"{where}.role", "missing_required_parameter")
    if name not in _ROLES:
        known = ", ".join(f"'{role}'" for role in sorted(_ROLES))
        raise invalid(f"Invalid value: '{name}'. Supported values are: {known}.", f"{where}.role", "invalid_value")
    return _ROLES[name]


def _content(entry: Mapping[str, Any], where: str, *, is_optional: bool) -> str:
    if not isinstance(entry.get("name"), str | None):
        raise wrong_type(f"{where}.name", "a string", entry["name"])
    content = entry.get("content")
    if is_optional and (content is None or content == []):
        return ""
    return read_text(content, f"{where}.content", ("text", "refusal"))


def read_text(content: Any, where: str, kinds: tuple[str, ...]) -> str:
    """A text, or the texts of an array of parts, whose types are `kinds`; a refusal's text stands under `refusal`.

    Raises:
        ApiError: names the part.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(where, "a string or an array of objects", content)
    if not content:
        raise empty_array(where)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in kinds:
            raise invalid(
                f"Invalid value at '{where}[{index}]': this model reads parts of type '{kinds[0]}' alone.",
                f"{where}[{index}].type",
                "invalid_value",
            )
        key = "refusal" if kind == "refusal" else "text"
        if not isinstance(part.get(key), str):
            raise wrong_type(f"{where}[{index}].{key}", "a string", part.get(key))
        texts.append(part[key])
    return "".join(texts)


def empty_array(where: str) -> Exception:
    """400: an array without entries where there must be some."""
    return invalid(
        f"Invalid '{where}': empty array. Expected an array with minimum length 1, but got an empty array instead.",
        where,
        "empty_array",
    )


def _refusal(entry: Mapping[str, Any], where: str) -> str:
    refusal = entry.get("refusal")
    if refusal is not None and not isinstance(refusal, str):
        raise wrong_type(f"{where}.refusal", "a string", refusal)
    return refusal or ""


def _arguments(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:  # so some clients write a call without arguments, Go's as "null"
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
            value = {} if value is None else value
        except (ValueError, RecursionError) as error:
            reason = f"not JSON: {error}" if isinstance(error, ValueError) else "nested too deeply"
            message = f"Invalid '{where}': expected a JSON object, written as a string ({reason})."
            raise invalid(message, where, "invalid_value") from None
        if not isinstance(value, dict):
            raise invalid(f"Invalid '{where}': expected a JSON object, written as a string.", where, "invalid_value")
    elif not isinstance(value, dict):  # an object as it is: some clients send what they have read
        raise wrong_type(where, "a string", value)
    if is_too_deep(value):
        raise invalid(f"Invalid '{where}': nested more than {MAX_LEVELS} levels deep.", where, "invalid_value")
    return value
