"""Chat JSONL as OpenAI, Anthropic, Google, Bedrock, TRL and Axolotl write it → conversations."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.rejected import Rejected, RejectReason, Repair, RowError, sample_of
from data.sources.categories import behaviour_of
from data.sources.literals import LiteralError, parse_arguments, parse_literal
from data.sources.tagged import calls_in_text, tool_list, without_thought
from tinydispatch.formats import RESULT_END, RESULT_START
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall, ToolError

SOURCE = "openai_jsonl"

# "developer" is OpenAI's newer word for system, "function" its older one for tool.
_ROLES = {role.value: role for role in Role} | {
    "developer": Role.SYSTEM, "function": Role.TOOL, "ipython": Role.TOOL, "tool_response": Role.TOOL,
    "human": Role.USER, "model": Role.ASSISTANT, "tool_call": Role.ASSISTANT, "function_call": Role.ASSISTANT,
}  # fmt: skip
# Where servers and writers of data keep what a model thought before it answered.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
_ANTHROPIC = ("tool_use", "tool_result", "thinking", "redacted_thinking")


def conversation_from_openai(
    row: Any,
    row_id: str,
    default_tools: Sequence[Tool],
    *,
    source: str = SOURCE,
    repairs: Sequence[Repair] = (),
    is_columnar: bool = False,
) -> Conversation | Rejected:
    """One row → a conversation. Besides `messages` (or TRL's `prompt` and `completion`), `tools` (or `functions`) and
    Anthropic's `system` it may hold `category`, `dialogue_id` (rows that must stay on one side of the split),
    `reference_date` ("2026-03-19") and `metadata`; other keys are ignored.

    `arguments` may be an object or a JSON string, and so may the lists; content may be text or blocks of it, with
    Anthropic's `tool_use` and `tool_result`. Calls that stand as text in a turn are read (`calls_in_text`).
    `"weight": 0` or `"train": false` on an assistant message keeps it out of the loss. Where `parallel_tool_calls` is
    false, a turn with several calls contradicts its row. A row without `tools` gets `default_tools`; `"tools": []`
    means that none are offered.

    Args:
        source: the adapter that brought the row into this shape.
        repairs: what that adapter mended.
        is_columnar: the row comes from Parquet, which fills keys that a row lacks with nulls.
    """
    try:
        if not isinstance(row, Mapping):
            raise RowError(RejectReason.MALFORMED_ROW, "expected an object")
        mended = list(repairs)
        row = _in_openai_shape(row)
        tools, is_filled = _tools(row, default_tools, mended)
        messages = _messages(
            _entries(row, mended), {tool.name: tool for tool in tools}, is_filled or is_columnar, mended
        )
        if row.get("parallel_tool_calls") is False and any(len(message.tool_calls) > 1 for message in messages):
            raise RowError(RejectReason.MALFORMED_ROW, "several calls in a turn, though parallel_tool_calls is false")
        metadata = {**(_optional(row, "metadata", Mapping) or {}), "row_id": row_id}
        if mended:
            metadata["repairs"] = sorted({str(repair) for repair in mended})
        return Conversation(
            messages=messages,
            tools=tools,
            source=source,
            category=_optional(row, "category", str) or behaviour_of(messages),
            dialogue_id=_optional(row, "dialogue_id", str) or dialogue_id_of(source, messages),
            reference_date=_reference_date(row),
            metadata=metadata,
        )
    except RowError as error:
        return Rejected(error.reason, error.detail, row_id, sample_of(row))


def _in_openai_shape(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rows of other vendors, and pairs with a preferred answer, with messages and tools where OpenAI has them."""
    if isinstance(row.get("input"), Mapping) and isinstance(row.get("preferred_output"), list):  # OpenAI's pairs
        row = {**row["input"], "prompt": row["input"].get("messages"), "completion": row["preferred_output"]}
        return {key: item for key, item in row.items() if key != "messages"}
    if "messages" not in row and isinstance(row.get("chosen"), list):  # TRL's
        prompt = row.get("prompt") if isinstance(row.get("prompt"), list) else row["chosen"][:-1]
        answer = row["chosen"][-1:] if prompt == row["chosen"][:-1] else row["chosen"]
        return {**row, "prompt": prompt, "completion": answer}
    if "messages" not in row and isinstance(row.get("contents"), list):  # Gemini's
        told = row.get("systemInstruction") or row.get("system_instruction") or {}
        said = [{"role": "system", "parts": told.get("parts")}] if isinstance(told, Mapping) and told else []
        listed = [tool for tool in row.get("tools") or [] if isinstance(tool, Mapping)]
        keys = ("functionDeclarations", "function_declarations")
        declared = [each for tool in listed for each in next((tool[key] for key in keys if tool.get(key)), [tool])]
        parts = [message for each in [*said, *row["contents"]] for message in _from_parts(each, "parts")]
        return {**row, "messages": parts, "tools": _lower_types(declared)}
    if "messages" not in row and isinstance(row.get("input"), list):  # OpenAI's Responses
        system = [{"role": "system", "content": row["instructions"]}] if row.get("instructions") else []
        row = {**row, "messages": [*system, *row["input"]]}
    messages = row.get("messages")
    if not isinstance(messages, list):
        return row
    if isinstance(config := row.get("toolConfig"), Mapping):  # Bedrock's
        specs = [tool.get("toolSpec") for tool in config.get("tools") or [] if isinstance(tool, Mapping)]
        named = [{**spec, "inputSchema": (spec.get("inputSchema") or {}).get("json")} for spec in specs if spec]
        system = [{"role": "system", "content": row.get("system")}] if row.get("system") else []
        found = [message for each in [*system, *messages] for message in _from_parts(each, "content")]
        return {**row, "system": None, "messages": found, "tools": named}
    if any(isinstance(each, Mapping) and each.get("type") in _ITEMS for each in messages):
        return {**row, "messages": _from_items(messages)}
    return row


_ITEMS = ("function_call", "function_call_output", "reasoning")


def _from_items(items: Sequence[Any]) -> list[Any]:
    """The items of OpenAI's Responses: calls that follow each other are one turn."""
    messages: list[Any] = []
    for item in items:
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind == "function_call":
            call = {"id": item.get("call_id"), "function": {key: item.get(key) for key in ("name", "arguments")}}
            if not (messages and isinstance(messages[-1], dict) and messages[-1].get("is_item")):
                messages.append({"role": "assistant", "content": "", "tool_calls": [], "is_item": True})
            messages[-1]["tool_calls"].append(call)
        elif kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind != "reasoning":
            messages.append(item)
    return messages


def _from_parts(entry: Any, key: str) -> Iterator[Any]:
    """The parts of Gemini's and Bedrock's messages: text, calls and results, each under its own key."""
    parts = entry.get(key) if isinstance(entry, Mapping) else None
    if not isinstance(parts, list):
        yield entry
        return
    texts, calls = [], []
    for part in parts if all(isinstance(part, Mapping) for part in parts) else []:
        call = part.get("functionCall") or part.get("function_call") or part.get("toolUse")
        result = part.get("functionResponse") or part.get("function_response") or part.get("toolResult")
        if isinstance(call, Mapping):
            arguments = call.get("args", call.get("input", {}))
            calls.append({"id": call.get("toolUseId"), "function": {"name": call.get("name"), "arguments": arguments}})
        elif isinstance(result, Mapping):
            content = json.dumps(result.get("response", result.get("content")), ensure_ascii=False)
            name = {"name": result["name"]} if result.get("name") else {"tool_call_id": result.get("toolUseId")}
            yield {"role": "tool", "content": content, **name}
        else:
            texts.append({"type": "text", **part} if set(part) == {"text"} else part)
    if texts or calls or not parts:
        kept = {name: item for name, item in entry.items() if name not in ("parts", "content")}
        yield {"role": "user", **kept, "content": texts, **({"tool_calls": calls} if calls else {})}


def _lower_types(value: Any) -> Any:
    """Gemini's schemas, whose types are written in capitals, in JSON schema's words."""
    if isinstance(value, Mapping):
        return {
            key: item.lower() if key == "type" and isinstance(item, str) else _lower_types(item)
            for key, item in value.items()
        }
    return [_lower_types(item) for item in value] if isinstance(value, list) else value


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


def _tools(
    row: Mapping[str, Any], default_tools: Sequence[Tool], repairs: list[Repair]
) -> tuple[tuple[Tool, ...], bool]:
    """The tools on offer, and whether a writer of columns has filled them with nulls."""
    entries = row.get("tools")
    if entries is None:
        entries = row.get("functions")
    if entries is None:
        return tuple(default_tools), False
    if not isinstance(entries, list) or any(isinstance(entry, str) for entry in entries):
        entries = tool_list(entries)
    # A writer may leave `strict: null`; within a schema only one who fills columns writes nulls.
    is_filled = any(_has_null(_schema(entry)) for entry in entries)
    entries = [_without_nulls(entry) if is_filled else _without_null_keys(entry) for entry in entries]
    if is_filled:
        repairs.append(Repair.FILLED_NULLS_DROPPED)
    try:
        tools = tuple(Tool.from_openai(entry) for entry in entries)
    except ToolError as error:
        raise RowError(RejectReason.INVALID_TOOLS, str(error)) from error
    if len({tool.name for tool in tools}) != len(tools):
        raise RowError(RejectReason.INVALID_TOOLS, "two tools have the same name")
    return tools, is_filled


def _without_null_keys(entry: Any) -> Any:
    return {key: item for key, item in entry.items() if item is not None} if isinstance(entry, Mapping) else entry


def _schema(entry: Any) -> Any:
    inner = (entry.get("function") or entry) if isinstance(entry, Mapping) else None
    keys = ("parameters", "inputSchema", "input_schema")
    return [inner.get(key) for key in keys if inner.get(key)] if isinstance(inner, Mapping) else None


# Null is a value of these keywords, which a person may have written.
_NULL_KEYWORDS = ("const", "default", "example")


def _has_null(value: Any, key: str = "const") -> bool:
    """Whether a key is null that no author of a schema makes so."""
    if isinstance(value, Mapping):
        return any(_has_null(item, name) for name, item in value.items())
    if isinstance(value, list):
        return key != "enum" and any(_has_null(item, key) for item in value)
    return value is None and key not in _NULL_KEYWORDS


def _without_nulls(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(item, name) for name, item in value.items() if item is not None}
    return [_without_nulls(item, key) for item in value] if isinstance(value, list) and key != "enum" else value


def _entries(row: Mapping[str, Any], repairs: list[Repair]) -> Iterator[Mapping[str, Any]]:
    """The messages, each with one speaker and its content as text."""
    listed = _list(row, "messages")
    listed = _list(row, "conversations") if listed is None else listed
    if listed is None and (completion := _list(row, "completion")) is not None:
        prompt = _list(row, "prompt") or []
        # TRL trains the completion alone.
        listed = [{**m, "weight": 0} if isinstance(m, Mapping) else m for m in prompt] + completion
    if listed is None:
        raise RowError(RejectReason.MALFORMED_ROW, "no list 'messages'")
    if isinstance(row.get("system"), str | list) and row["system"]:
        yield {"role": "system", "content": row["system"]}
    for entry in listed:
        if not isinstance(entry, Mapping):
            raise RowError(RejectReason.MALFORMED_ROW, f"a message without a known 'role': {sample_of(entry)}")
        content = entry.get("content")
        if isinstance(content, list) and any(isinstance(b, Mapping) and b.get("type") in _ANTHROPIC for b in content):
            yield from _from_blocks(entry, content, repairs)
        elif isinstance(content, str) and entry.get("role") in ("user", "tool") and RESULT_START in content:
            yield from _from_results(entry, content)
        else:
            yield entry


def _list(row: Mapping[str, Any], key: str) -> list[Any] | None:
    value = row.get(key)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_literal(value)
        except LiteralError as error:
            raise RowError(RejectReason.MALFORMED_ROW, f"'{key}' is no list: {error}") from error
    return value if isinstance(value, list) else None


def _from_blocks(entry: Mapping[str, Any], blocks: Sequence[Any], repairs: list[Repair]) -> Iterator[Mapping[str, Any]]:
    """Anthropic's blocks: calls and thoughts of an assistant, results and words of a user."""
    calls, texts = [], []
    for block in blocks:
        match block.get("type") if isinstance(block, Mapping) else None:
            case "tool_use":
                function = {"name": block.get("name"), "arguments": block.get("input")}
                calls.append({"id": block.get("id"), "function": function})
            case "tool_result":
                yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": block.get("content")}
            case "thinking" | "redacted_thinking":
                repairs.append(Repair.THOUGHT_DROPPED)
            case _:
                texts.append(block)
    if texts or calls or not any(isinstance(b, Mapping) and b.get("type") == "tool_result" for b in blocks):
        yield {**entry, "content": texts, **({"tool_calls": calls} if calls else {})}


def _from_results(entry: Mapping[str, Any], content: str) -> Iterator[Mapping[str, Any]]:
    """Results that Qwen's and Hermes' templates put into a turn as text, each a message of its own."""
    rest = content
    while RESULT_START in rest:
        before, _, after = rest.partition(RESULT_START)
        inside, end, after_end = after.partition(RESULT_END)
        if before.strip() or not end:
            break
        yield {**entry, "role": "tool", "content": inside.strip()}
        rest = after_end
    if rest.strip():
        yield {**entry, "content": rest}


def _messages(
    entries: Iterator[Mapping[str, Any]], tools: Mapping[str, Tool], is_filled: bool, repairs: list[Repair]
) -> tuple[Message, ...]:
    messages = []
    name_of_call: dict[str, str] = {}
    waiting: list[str] = []
    for entry in entries:
        role = _ROLES.get(str(entry.get("role")))
        if role is None:
            raise RowError(RejectReason.MALFORMED_ROW, f"a message without a known 'role': {sample_of(entry)}")
        text = _text(entry.get("content"))
        if role is not Role.ASSISTANT:
            name = _result_name(entry, name_of_call, waiting) if role is Role.TOOL else None
            messages.append(Message(role, text, (), name))
            continue
        if any(entry.get(key) for key in _THOUGHTS):
            repairs.append(Repair.THOUGHT_DROPPED)
        text = without_thought(text or _text(entry.get("refusal")), repairs)
        listed = _listed_calls(entry)
        is_trained = _weight(entry) == 1
        if not listed and text and (listed := _calls_in_text(text, tools, is_trained, repairs)):
            text = ""
        calls = tuple(_call(item, tools, is_filled, name_of_call, repairs) for item in listed)
        waiting = [call.name for call in calls]
        messages.append(Message(role, text, calls, None, is_trained))
    return tuple(messages)


def _calls_in_text(
    text: str, tools: Mapping[str, Tool], is_trained: bool, repairs: list[Repair]
) -> list[dict[str, Any]]:
    try:
        return calls_in_text(text, tuple(tools.values()), repairs)
    except RowError:
        # What carries no loss may be anything, as what a user says may.
        if is_trained:
            raise
        return []


def _result_name(entry: Mapping[str, Any], name_of_call: Mapping[str, str], waiting: list[str]) -> str:
    """Which tool a result is of: by its name, by the call's id, or, where it has neither, by the order of the calls."""
    name = entry.get("name") or name_of_call.get(str(entry.get("tool_call_id")))
    if name is None and entry.get("tool_call_id") is None and waiting:
        name = waiting[0]
    if not isinstance(name, str):
        raise RowError(RejectReason.MALFORMED_ROW, "a tool message that answers no earlier call: check tool_call_id")
    if name in waiting:
        waiting.remove(name)
    return name


def _weight(entry: Mapping[str, Any]) -> int:
    weight = entry.get("weight")
    if weight not in (None, 0, 1):
        raise RowError(RejectReason.MALFORMED_ROW, f"'weight' must be 0 or 1, not {sample_of(weight)}")
    is_left_out = any(entry.get(key) is False for key in ("train", "training", "loss"))  # Axolotl, ms-swift
    return 0 if is_left_out else 1 if weight is None else int(weight)


def _text(content: Any) -> str:
    """Plain text, nothing, or a list of `{"type": "text", "text": …}` parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    kinds = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
    texts = [part.get(kinds.get(str(part.get("type")), "")) if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RowError(RejectReason.UNSUPPORTED_CONTENT, f"a message holds more than text: {sample_of(content)}")
    return "".join(str(text) for text in texts)


def _listed_calls(entry: Mapping[str, Any]) -> list[Any]:
    listed = entry.get("tool_calls") or []
    if isinstance(listed, str):
        try:
            listed = parse_literal(listed)
        except LiteralError as error:
            raise RowError(RejectReason.MALFORMED_CALL, f"'tool_calls' is text that is no list: {error}") from error
    if not isinstance(listed, list):
        raise RowError(RejectReason.MALFORMED_CALL, "'tool_calls' must be an array")
    older = entry.get("function_call")
    is_filled = isinstance(older, Mapping) and all(item is None for item in older.values())
    return listed if older is None or is_filled else [*listed, older]


def _call(
    item: Any, tools: Mapping[str, Tool], is_filled: bool, name_of_call: dict[str, str], repairs: list[Repair]
) -> ToolCall:
    inner = (item.get("function") or item) if isinstance(item, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise RowError(RejectReason.MALFORMED_CALL, f"a call without a 'name': {sample_of(item)}")
    name = inner["name"]
    key = next((key for key in ("arguments", "parameters", "input", "args") if key in inner), "arguments")
    arguments = inner.get(key, {})
    if arguments is None or arguments == []:
        arguments = {}
        repairs.append(Repair.EMPTY_ARGUMENTS)
    if isinstance(arguments, str):
        arguments = _arguments_from_text(name, arguments, repairs)
    if not isinstance(arguments, Mapping):
        raise RowError(RejectReason.MALFORMED_CALL, f"'{name}': 'arguments' must be an object")
    if isinstance(item.get("id"), str):
        name_of_call[item["id"]] = name
    tool = tools.get(name)
    if tool is not None and _holds_null(arguments):
        kept = _without_filled(arguments, tool, is_filled)
        if kept != arguments:
            repairs.append(Repair.FILLED_NULLS_DROPPED)
        return ToolCall(name, kept)
    return ToolCall(name, dict(arguments))


def _holds_null(value: Any) -> bool:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(item is None or _holds_null(item) for item in items)


def _without_filled(arguments: Mapping[str, Any], tool: Tool, is_filled: bool) -> dict[str, Any]:
    """Arguments without the keys that a writer of columns has filled with null.

    A null that the schema allows is a value, unless the row shows that it was filled.
    """
    n_broken = len(tool.violations(arguments))
    bare: dict[str, Any] = _without_nulls(arguments)
    if not tool.violations(bare):
        return bare if n_broken or is_filled else dict(arguments)
    # Some null is needed, or something else is wrong: each by itself.
    kept = dict(arguments)
    for key in [key for key, item in arguments.items() if item is None or _holds_null(item)]:
        rest = {name: item for name, item in kept.items() if name != key}
        without = rest if kept[key] is None else {**kept, key: _without_nulls(kept[key])}
        now = len(tool.violations(without))
        if now < n_broken or (is_filled and now == n_broken):
            kept, n_broken = without, now
    return dict(arguments) if n_broken else kept


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
