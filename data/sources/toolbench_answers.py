"""ToolBench raw answers (`answer/G*/*.json`) → one conversation per list in `train_messages`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from data.rejected import Rejected, RejectReason, RowError, sample_of
from data.sources.literals import LiteralError, parse_arguments
from data.sources.toolbench import ActionTurn, ResultTurn, Turn, UserTurn, build_conversation
from data.sources.toolbench_tools import read_tools
from tinydispatch.tools import Conversation


def conversations_from_answer(
    answer: Mapping[str, Any], row_id: str, *, keep_thoughts: bool = False, group: str = ""
) -> Iterator[Conversation | Rejected]:
    """Each prefix in `train_messages` is a row; a file without any counts as one rejected row.

    Args:
        group: the folder's name ("G1_answer"), kept in the metadata.
    """
    generation = answer.get("answer_generation")
    if not isinstance(generation, Mapping):
        yield Rejected(RejectReason.MALFORMED_ROW, "no 'answer_generation' object", row_id, sample_of(answer))
        return
    sample = sample_of(str(generation.get("query", "")))
    if generation.get("valid_data") is not True:
        yield Rejected(RejectReason.INVALID_ANSWER, "valid_data is not true", row_id, sample)
        return
    prefixes = generation.get("train_messages")
    if not isinstance(prefixes, list) or not prefixes:
        yield Rejected(RejectReason.MALFORMED_ROW, "no 'train_messages'", row_id, sample)
        return
    group_named = {"group": group} if group else {}
    for index, messages in enumerate(prefixes):
        prefix_id = f"{row_id}#{index}"
        try:
            tools = read_tools(json.dumps(generation.get("function")))
            turns = _turns(messages)
            metadata = {"row_id": prefix_id, **group_named}
            yield build_conversation(turns, tools, keep_thoughts=keep_thoughts, metadata=metadata)
        except RowError as error:
            last = messages[-1] if isinstance(messages, list) and messages else messages
            yield Rejected(error.reason, error.detail, prefix_id, sample_of(last))


def _turns(messages: Any) -> list[Turn]:
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise RowError(RejectReason.MALFORMED_ROW, "'train_messages' must hold lists of messages")
    turns: list[Turn] = []
    thoughts: list[str] = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if content is not None and not isinstance(content, str):
            raise RowError(RejectReason.UNSUPPORTED_CONTENT, f"a {role} message whose content is no text")
        if role == "system":
            continue
        if role == "assistant":
            if content:
                thoughts.append(content)
            # A thought and its action are often two messages in a row; the thought alone is no turn.
            if message.get("function_call") is not None:
                turns.append(_action(message["function_call"], "\n".join(thoughts)))
                thoughts = []
        elif role in ("user", "function"):
            thoughts = []
            turns.append(UserTurn(content or "") if role == "user" else ResultTurn(content or ""))
        else:
            raise RowError(RejectReason.MALFORMED_ROW, f"unknown role {role!r}")
    if messages and messages[-1].get("role") == "assistant" and messages[-1].get("function_call") is None:
        raise RowError(RejectReason.THOUGHT_ONLY, "the last turn is a thought without a function_call")
    return turns


def _action(call: Any, thought: str) -> ActionTurn:
    name = call.get("name") if isinstance(call, Mapping) else None
    text = call.get("arguments") if isinstance(call, Mapping) else None
    if not isinstance(name, str) or not isinstance(text, str):
        raise RowError(RejectReason.MALFORMED_CALL, "'function_call' needs 'name' and 'arguments' as text")
    try:
        parsed = parse_arguments(text)
    except LiteralError as error:
        raise RowError(RejectReason.MALFORMED_CALL, f"'{name}': {error}") from error
    return ActionTurn(thought.strip(), name, parsed.arguments, parsed.repairs)
