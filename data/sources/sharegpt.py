"""ShareGPT rows with function turns, and Glaive's two texts, → conversations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data.rejected import Rejected, RejectReason, Repair, RowError, sample_of
from data.sources.openai_chat import conversation_from_openai
from data.sources.tagged import result_names, text_calls, tool_list, turn_of, turns_of, without_thought
from tinydispatch.tools import Conversation

SOURCE = "sharegpt"

_TEXT_ROLES = {"system": "system", "developer": "system", "human": "user", "user": "user", "gpt": "assistant",
               "assistant": "assistant", "model": "assistant", "chatgpt": "assistant"}  # fmt: skip
_CALL = ("function_call", "function-call", "tool_call")
_RESULT = ("observation", "tool", "function", "function_response", "function-response", "tool_response", "ipython")

_TURN = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
_FUNCTION_CALL = "<functioncall>"
_END = "<|endoftext|>"
# {"name": "f", "arguments": '{"a": 1}'}: JSON whose arguments are quoted as in Python.
_QUOTED = re.compile(r'^\{\s*"name":\s*"(?P<name>[^"]*)",\s*"arguments":\s*\'(?P<arguments>.*)\'\s*\}$', re.DOTALL)


def conversation_from_sharegpt(row: Any, row_id: str) -> Conversation | Rejected:
    """`{"conversations": [{"from", "value"}], "tools"}`, or Glaive's `{"system", "chat"}`, → a conversation.

    In the first, speakers are human, gpt, `function_call` (calls as JSON, in a list or one after the other) and
    `observation`; `"weight": 0` keeps a turn out of the loss.
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
    turns = turns_of(row)
    messages: list[dict[str, Any]] = []
    if isinstance(row.get("system"), str) and row["system"].strip():
        messages.append({"role": "system", "content": row["system"].strip()})
    for turn in turns:
        speaker, value = turn_of(turn)
        if not isinstance(value, str):
            raise RowError(RejectReason.MALFORMED_ROW, "a turn without 'value' as text")
        if speaker in _CALL:
            messages.append(_calls(without_thought(value, repairs), repairs))
        elif speaker in _RESULT:
            messages.append({"role": "tool", "content": value})
        elif speaker in _TEXT_ROLES:
            messages.append({"role": _TEXT_ROLES[speaker], "content": value.strip()})
        else:
            raise RowError(RejectReason.MALFORMED_ROW, f"unknown speaker {speaker!r}")
        messages[-1] |= {key: turn[key] for key in ("weight", "train") if turn.get(key) is not None}
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
        calls = text_calls(text.strip(), repairs)
    return {"role": "assistant", "tool_calls": calls}
