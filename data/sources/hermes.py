"""Hermes function-calling rows (`conversations` with `<tool_call>` tags) → conversations."""

from __future__ import annotations

import re
from typing import Any

from data.rejected import Rejected, RejectReason, Repair, RowError, sample_of
from data.sources.openai_chat import conversation_from_openai
from data.sources.tagged import result_names, split_calls, tool_list, turn_of, turns_of
from tinydispatch.formats import CALL_END, CALL_START, RESULT_END, RESULT_START
from tinydispatch.tools import Conversation

SOURCE = "hermes"

_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
          "model": "assistant", "tool": "tool", "developer": "system"}  # fmt: skip
_TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
_RESULT = re.compile(re.escape(RESULT_START) + r"(.*?)" + re.escape(RESULT_END), re.DOTALL)


def conversation_from_hermes(row: Any, row_id: str) -> Conversation | Rejected:
    """One row `{"conversations": [{"from", "value"}], "tools"}` → a conversation without the format's own system turn.

    A system turn that names the tags only explains the format and lists the tools, both of which the chat template
    does; any other stays. Where the row has no `tools`, they are read from `<tools>…</tools>` there.
    """
    try:
        repairs: list[Repair] = []
        turns = turns_of(row)
        messages: list[dict[str, Any]] = []
        listed = row.get("tools") or None
        for turn in turns:
            speaker, value = turn_of(turn)
            role = _ROLES.get(speaker)
            if role is None or not isinstance(value, str):
                raise RowError(RejectReason.MALFORMED_ROW, f"a turn without 'from' and 'value': {sample_of(turn)}")
            if role != "system" or not ("<tools>" in value or CALL_START in value):
                messages += _messages(role, value, repairs)
            elif listed is None:
                # The instructions before the list name the tags as well, with nothing between them.
                listed = next((found for found in _TOOLS.findall(value) if found.strip()), None)
        if listed is None:
            raise RowError(RejectReason.INVALID_TOOLS, "neither 'tools' nor <tools> in a system turn")
        result_names(messages)
        whole = {"messages": messages, "tools": tool_list(listed)}
    except RowError as error:
        return Rejected(error.reason, error.detail, row_id, sample_of(row))
    return conversation_from_openai(whole, row_id, (), source=SOURCE, repairs=repairs)


def _messages(role: str, value: str, repairs: list[Repair]) -> list[dict[str, Any]]:
    if role == "assistant" and "<function=" in value:
        return [{"role": role, "content": value}]  # elements, whose types the schemas say
    if role == "assistant":
        text, calls = split_calls(value, CALL_START, CALL_END, repairs)
        # What is said beside a call is a thought; a dispatcher would pay for every token of it.
        if text and calls:
            repairs.append(Repair.THOUGHT_DROPPED)
        return [{"role": role, "content": "" if calls else text, "tool_calls": calls}]
    if role == "tool":
        return [{"role": role, "content": text.strip()} for text in _RESULT.findall(value) or [value]]
    return [{"role": role, "content": value.strip()}]
