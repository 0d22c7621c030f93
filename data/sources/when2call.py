"""When2Call training rows → conversations: a call, a question back, or "no tool of mine does that"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.rejected import Rejected, RejectReason, Repair, RowError, sample_of
from data.sources.openai_chat import conversation_from_openai
from data.sources.tagged import result_names, split_calls, tool_list
from data.sources.xlam import python_typed_tool
from tinydispatch.tools import Conversation

SOURCE = "when2call"

_START, _END = "<TOOLCALL>", "</TOOLCALL>"


def conversation_from_when2call(row: Any, row_id: str) -> Conversation | Rejected:
    """One row `{"tools": ["{…}", …], "messages": [{"role", "content"}]}`; calls stand in `<TOOLCALL>[…]</TOOLCALL>`.

    In the preference file `chosen_response` is the last turn; what was not chosen is left out. Calls are there alone:
    the other file holds refusals and questions back.
    """
    try:
        repairs: list[Repair] = []
        turns = row.get("messages") if isinstance(row, Mapping) else None
        if not isinstance(turns, list) or not turns:
            raise RowError(RejectReason.MALFORMED_ROW, "no list 'messages'")
        chosen = row.get("chosen_response")
        messages = [_message(turn, repairs) for turn in ([*turns, chosen] if chosen is not None else turns)]
        result_names(messages)
        whole = {"messages": messages, "tools": [_tool(entry, repairs) for entry in tool_list(row.get("tools") or [])]}
    except RowError as error:
        return Rejected(error.reason, error.detail, row_id, sample_of(row))
    return conversation_from_openai(whole, row_id, (), source=SOURCE, repairs=repairs)


def _tool(entry: Any, repairs: list[Repair]) -> dict[str, Any]:
    """Most of its tools stem from xLAM and keep the types' names in Python."""
    if not isinstance(entry, Mapping):
        raise RowError(RejectReason.INVALID_TOOLS, f"a tool that is no object: {sample_of(entry)}")
    return python_typed_tool(entry, repairs)


def _message(turn: Any, repairs: list[Repair]) -> dict[str, Any]:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
    if role not in ("system", "user", "assistant", "tool") or not isinstance(content, str):
        raise RowError(RejectReason.MALFORMED_ROW, f"a message without 'role' and text: {sample_of(turn)}")
    if role != "assistant":
        return {"role": role, "content": content.strip()}
    text, calls = split_calls(content, _START, _END, repairs)
    if text and calls:
        repairs.append(Repair.THOUGHT_DROPPED)
    return {"role": role, "content": "" if calls else text, "tool_calls": calls}
