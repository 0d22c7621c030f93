"""ToolBench train rows (`toolllama_*_train.json`, and the Hub mirror's columns) → conversations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from data.rejected import Rejected, RejectReason, Repair, RowError, sample_of
from data.sources.literals import LiteralError, parse_arguments
from data.sources.toolbench import ActionTurn, ResultTurn, Turn, UserTurn, build_conversation
from data.sources.toolbench_tools import ToolSet, read_tools
from tinydispatch.tools import Conversation

_API_LIST = "Specifically, you have access to the following APIs:"
_ACTION = re.compile(r"^[ \t]*Action:[ \t]*(?P<name>[^\n]*?)[ \t]*\n\s*(?P<word>Action Input|Arguments):", re.MULTILINE)


def conversation_from_train_row(row: Any, row_id: str, *, keep_thoughts: bool = False) -> Conversation | Rejected:
    """One row `{"id", "conversations"}` → a conversation whose last assistant turn is trained.

    `conversations` is a list of `{"from", "value"}`, or the columns `{"from": […], "value": […]}`.
    """
    try:
        tools: ToolSet | None = None
        turns: list[Turn] = []
        for role, value in _pairs(row):
            if role == "system":
                tools = _tools(value)
            elif role == "user":
                turns.append(UserTurn(value))
            elif role == "assistant":
                turns.append(parse_action(value))
            elif role == "function":
                turns.append(ResultTurn(value))
            else:
                raise RowError(RejectReason.MALFORMED_ROW, f"unknown speaker {role!r}")
        if tools is None:
            raise RowError(RejectReason.INVALID_TOOLS, "no system turn with an API list")
        return build_conversation(turns, tools, keep_thoughts=keep_thoughts, metadata={"row_id": row_id})
    except RowError as error:
        return Rejected(error.reason, error.detail, row_id, sample_of(row))


# The rows of one dialogue repeat its earlier turns.
@lru_cache(maxsize=1024)
def parse_action(text: str) -> ActionTurn:
    """`Thought: … Action: … Action Input: {…}` → the last block whose arguments can be read.

    Raises:
        RowError: no block (`thought_only`), or none that can be read (`malformed_call`).
    """
    blocks = list(_ACTION.finditer(text))
    if not blocks:
        if "Action:" in text:
            raise RowError(RejectReason.MALFORMED_CALL, "an Action without an Action Input")
        raise RowError(RejectReason.THOUGHT_ONLY, "no Action in the assistant's turn")
    thought = text[: blocks[0].start()].strip().removeprefix("Thought:").strip()
    ends = [block.start() for block in blocks[1:]] + [len(text)]
    problem = ""
    for block, end in reversed(list(zip(blocks, ends, strict=True))):
        try:
            parsed = parse_arguments(text[block.end() : end])
        except LiteralError as error:
            problem = problem or f"'{block['name']}': {error}"
            continue
        mended = [Repair.SEVERAL_ACTIONS] if len(blocks) > 1 else []
        if block["word"] == "Arguments":
            mended.append(Repair.ARGUMENTS_FOR_ACTION_INPUT)
        return ActionTurn(thought, block["name"], parsed.arguments, (*mended, *parsed.repairs))
    raise RowError(RejectReason.MALFORMED_CALL, problem)


def _pairs(row: Any) -> list[tuple[str, str]]:
    turns = row.get("conversations") if isinstance(row, Mapping) else None
    if isinstance(turns, Mapping):
        roles, values = turns.get("from"), turns.get("value")
        if not isinstance(roles, list) or not isinstance(values, list) or len(roles) != len(values):
            raise RowError(RejectReason.MALFORMED_ROW, "'conversations' needs columns 'from' and 'value' of one length")
        pairs = list(zip(roles, values, strict=True))
    elif isinstance(turns, list) and all(isinstance(turn, Mapping) for turn in turns):
        pairs = [(turn.get("from"), turn.get("value")) for turn in turns]
    else:
        raise RowError(RejectReason.MALFORMED_ROW, "no list 'conversations'")
    if not all(isinstance(role, str) and isinstance(value, str) for role, value in pairs):
        raise RowError(RejectReason.MALFORMED_ROW, "a turn without 'from' and 'value' as text")
    return pairs


def _tools(system_text: str) -> ToolSet:
    _, marker, rest = system_text.partition(_API_LIST)
    if not marker:
        raise RowError(RejectReason.INVALID_TOOLS, "the system turn lists no APIs")
    return read_tools(rest[: rest.rfind("]") + 1])
