"""Chat JSONL in OpenAI's shape (`messages`, `tools`) → conversations: how a user brings examples of their own."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from data.rejected import Rejected, RejectReason, Repair, RowError, sample_of
from data.sources.categories import behaviour_of
from data.sources.literals import LiteralError, parse_arguments
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall, ToolError

SOURCE = "openai_jsonl"

# "developer" is OpenAI's newer word for system, "function" its older one for tool.
_ROLES = {role.value: role for role in Role} | {"developer": Role.SYSTEM, "function": Role.TOOL}


def conversation_from_openai(
    row: Any, row_id: str, default_tools: Sequence[Tool], *, source: str = SOURCE, repairs: Sequence[Repair] = ()
) -> Conversation | Rejected:
    """One row → a conversation. Besides `messages` and `tools` it may hold `category`, `dialogue_id` (rows that must
    stay on one side of the split), `reference_date` ("2026-03-19") and `metadata`; other keys are ignored.

    `arguments` may be an object or a JSON string. `"weight": 0` on an assistant message keeps it out of the loss. Where
    `parallel_tool_calls` is false, a turn with several calls contradicts its row. A row without `tools` gets
    `default_tools`; `"tools": []` means that none are offered.

    Args:
        source: the adapter that brought the row into this shape.
        repairs: what that adapter mended.
    """
    try:
        if not isinstance(row, Mapping) or not isinstance(row.get("messages"), list):
            raise RowError(RejectReason.MALFORMED_ROW, "no list 'messages'")
        mended = list(repairs)
        messages = _messages(row["messages"], mended)
        if row.get("parallel_tool_calls") is False and any(len(message.tool_calls) > 1 for message in messages):
            raise RowError(RejectReason.MALFORMED_ROW, "several calls in a turn, though parallel_tool_calls is false")
        metadata = {**(_optional(row, "metadata", Mapping) or {}), "row_id": row_id}
        if mended:
            metadata["repairs"] = sorted({str(repair) for repair in mended})
        return Conversation(
            messages=messages,
            tools=_tools(row, default_tools),
            source=source,
            category=_optional(row, "category", str) or behaviour_of(messages),
            dialogue_id=_optional(row, "dialogue_id", str) or dialogue_id_of(source, messages),
            reference_date=_reference_date(row),
            metadata=metadata,
        )
    except RowError as error:
        return Rejected(error.reason, error.detail, row_id, sample_of(row))


def _optional(row: Mapping[str, Any], key: str, kind: type) -> Any:
    value = row.get(key)
    if value is not None and not isinstance(value, kind):
        raise RowError(RejectReason.MALFORMED_ROW, f"'{key}' must not be {type(value).__name__}")
    return value


def _reference_date(row: Mapping[str, Any]) -> dt.date | None:
    text = _optional(row, "reference_date", str)
    try:
        return dt.date.fromisoformat(text) if text else None
    except ValueError as error:
        raise RowError(RejectReason.MALFORMED_ROW, f"'reference_date' is not YYYY-MM-DD: {text!r}") from error


def _tools(row: Mapping[str, Any], default_tools: Sequence[Tool]) -> tuple[Tool, ...]:
    entries = row.get("tools", row.get("functions"))
    if entries is None:
        return tuple(default_tools)
    if not isinstance(entries, list):
        raise RowError(RejectReason.INVALID_TOOLS, "'tools' must be an array")
    try:
        tools = tuple(Tool.from_openai(entry) for entry in entries)
    except ToolError as error:
        raise RowError(RejectReason.INVALID_TOOLS, str(error)) from error
    if len({tool.name for tool in tools}) != len(tools):
        raise RowError(RejectReason.INVALID_TOOLS, "two tools have the same name")
    return tools


def _messages(entries: Sequence[Any], repairs: list[Repair]) -> tuple[Message, ...]:
    messages = []
    name_of_call: dict[str, str] = {}
    for entry in entries:
        role = _ROLES.get(str(entry.get("role"))) if isinstance(entry, Mapping) else None
        if role is None:
            raise RowError(RejectReason.MALFORMED_ROW, f"a message without a known 'role': {sample_of(entry)}")
        calls = _calls(entry, name_of_call, repairs) if role is Role.ASSISTANT else ()
        tool_name = entry.get("name") or name_of_call.get(str(entry.get("tool_call_id"))) if role is Role.TOOL else None
        if role is Role.TOOL and not isinstance(tool_name, str):
            raise RowError(
                RejectReason.MALFORMED_ROW, "a tool message that answers no earlier call: check tool_call_id"
            )
        is_trained = role is not Role.ASSISTANT or _weight(entry) == 1
        messages.append(Message(role, _text(entry.get("content")), calls, tool_name, is_trained))
    return tuple(messages)


def _weight(entry: Mapping[str, Any]) -> int:
    weight = entry.get("weight")
    if weight not in (None, 0, 1):
        raise RowError(RejectReason.MALFORMED_ROW, f"'weight' must be 0 or 1, not {sample_of(weight)}")
    return 1 if weight is None else int(weight)


def _text(content: Any) -> str:
    """Plain text, nothing, or a list of `{"type": "text", "text": …}` parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RowError(RejectReason.UNSUPPORTED_CONTENT, f"a message holds more than text: {sample_of(content)}")
    return "".join(str(text) for text in texts)


def _calls(entry: Mapping[str, Any], name_of_call: dict[str, str], repairs: list[Repair]) -> tuple[ToolCall, ...]:
    listed = entry.get("tool_calls") or []
    if not isinstance(listed, list):
        raise RowError(RejectReason.MALFORMED_CALL, "'tool_calls' must be an array")
    if entry.get("function_call") is not None:
        listed = [*listed, entry["function_call"]]
    calls = []
    for item in listed:
        inner = item.get("function", item) if isinstance(item, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise RowError(RejectReason.MALFORMED_CALL, f"a call without a 'name': {sample_of(item)}")
        arguments = inner.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _arguments_from_text(inner["name"], arguments, repairs)
        if not isinstance(arguments, Mapping):
            raise RowError(RejectReason.MALFORMED_CALL, f"'{inner['name']}': 'arguments' must be an object")
        if isinstance(item.get("id"), str):
            name_of_call[item["id"]] = inner["name"]
        calls.append(ToolCall(inner["name"], dict(arguments)))
    return tuple(calls)


def _arguments_from_text(name: str, text: str, repairs: list[Repair]) -> dict[str, Any]:
    try:
        parsed = parse_arguments(text)
    except LiteralError as error:
        raise RowError(RejectReason.MALFORMED_CALL, f"'{name}': {error}") from error
    repairs += parsed.repairs
    return parsed.arguments


def dialogue_id_of(source: str, messages: Sequence[Message]) -> str:
    """Rows that ask the same belong together; the answer is left out on purpose."""
    requests = "\n".join(message.content for message in messages if message.role is Role.USER)
    return f"{source}-{hashlib.sha256(requests.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
