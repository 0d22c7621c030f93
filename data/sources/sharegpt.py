"""ShareGPT rows with function turns, and Glaive's two texts, → conversations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data.rejected import Rejected, RejectReason, Repair, RowError, sample_of
from data.sources.literals import LiteralError, parse_arguments
from data.sources.openai_chat import conversation_from_openai
from data.sources.tagged import call_of, result_names, tool_list, turn_of
from tinydispatch.tools import Conversation

SOURCE = "sharegpt"

_TEXT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_CALL, _RESULT = "function_call", "observation"

_TURN = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
_FUNCTION_CALL = "<functioncall>"
_END = "<|endoftext|>"
# {"name": "f", "arguments": '{"a": 1}'}: JSON whose arguments are quoted as in Python.
_QUOTED = re.compile(r'^\{\s*"name":\s*"(?P<name>[^"]*)",\s*"arguments":\s*\'(?P<arguments>.*)\'\s*\}$', re.DOTALL)


def conversation_from_sharegpt(row: Any, row_id: str) -> Conversation | Rejected:
    """`{"conversations": [{"from", "value"}], "tools"}`, or Glaive's `{"system", "chat"}`, → a conversation.

    In the first, speakers are human, gpt, `function_call` (a call, or a list of them, as JSON) and `observation`.
    """
    try:
        repairs: list[Repair] = []
        if not isinstance(row, Mapping):
            raise RowError(RejectReason.MALFORMED_ROW, "expected an object")
        if isinstance(row.get("chat"), str):
            messages, tools = _glaive(row["chat"], str(row.get("system") or ""), repairs)
        else:
            messages, tools = _sharegpt(row, repairs)
        result_names(messages)
    except RowError as error:
        return Rejected(error.reason, error.detail, row_id, sample_of(row))
    return conversation_from_openai(
        {"messages": messages, "tools": tools}, row_id, (), source=SOURCE, repairs=tuple(repairs)
    )


def _sharegpt(row: Mapping[str, Any], repairs: list[Repair]) -> tuple[list[dict[str, Any]], list[Any]]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise RowError(RejectReason.MALFORMED_ROW, "no list 'conversations'")
    messages: list[dict[str, Any]] = []
    if isinstance(row.get("system"), str) and row["system"].strip():
        messages.append({"role": "system", "content": row["system"].strip()})
    for turn in turns:
        speaker, value = turn_of(turn)
        if not isinstance(value, str):
            raise RowError(RejectReason.MALFORMED_ROW, "a turn without 'value' as text")
        if speaker == _CALL:
            messages.append(_calls(value, repairs))
        elif speaker == _RESULT:
            messages.append({"role": "tool", "content": value})
        elif speaker in _TEXT_ROLES:
            messages.append({"role": _TEXT_ROLES[speaker], "content": value.strip()})
        else:
            raise RowError(RejectReason.MALFORMED_ROW, f"unknown speaker {speaker!r}")
    return messages, tool_list(row.get("tools") or [])


def _glaive(chat: str, system: str, repairs: list[Repair]) -> tuple[list[dict[str, Any]], list[Any]]:
    pieces = _TURN.split(chat)
    if len(pieces) < 3:
        raise RowError(RejectReason.MALFORMED_ROW, "no 'USER:' in 'chat'")
    messages: list[dict[str, Any]] = []
    for speaker, text in zip(pieces[1::2], pieces[2::2], strict=True):
        text = text.replace(_END, "").strip()
        if speaker == "USER":
            messages.append({"role": "user", "content": text})
        elif speaker == "FUNCTION RESPONSE":
            messages.append({"role": "tool", "content": text})
        elif _FUNCTION_CALL in text:
            before, _, call = text.partition(_FUNCTION_CALL)
            if before.strip():
                repairs.append(Repair.THOUGHT_DROPPED)
            messages.append(_calls(call.strip(), repairs))
        else:
            messages.append({"role": "assistant", "content": text})
    start = system.find("{")
    return messages, tool_list(system[start:]) if start >= 0 else []


def _calls(text: str, repairs: list[Repair]) -> dict[str, Any]:
    if (quoted := _QUOTED.match(text)) is not None:
        calls = [{"name": quoted["name"], "arguments": quoted["arguments"]}]
    else:
        try:
            # A list of calls is wrapped, because arguments are read as an object.
            parsed = parse_arguments(f'{{"calls": {text}}}' if text.startswith("[") else text)
        except LiteralError as error:
            raise RowError(RejectReason.MALFORMED_CALL, f"a call that cannot be read: {error}") from error
        repairs += parsed.repairs
        listed = parsed.arguments.get("calls") if text.startswith("[") else [parsed.arguments]
        calls = [call_of(entry) for entry in listed] if isinstance(listed, list) else []
    return {"role": "assistant", "tool_calls": calls}
