"""ToolBench dialogues → conversations: what train rows and raw answers have in common.

The AutoGPT instructions are dropped (the chat template states the tools), `Finish` with an answer becomes a plain
reply, and only the last assistant turn is trained: every row is a prefix of one dialogue, so training all turns
would count the first of them once per later step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.rejected import RejectReason, Repair, RowError
from data.sources.categories import behaviour_of
from data.sources.openai_chat import dialogue_id_of
from data.sources.toolbench_tools import FINISH, ToolSet
from tinydispatch.tools import Conversation, Message, Role, ToolCall

SOURCE = "toolbench"

_RETRY_HINT = "This is not the first time you try this task"
_BEGIN = "Begin!"


@dataclass(frozen=True)
class UserTurn:
    """What a user message says, ToolBench's "Begin!" included."""

    text: str


@dataclass(frozen=True)
class ActionTurn:
    """One assistant step, its arguments already read."""

    thought: str
    name: str
    arguments: Mapping[str, Any]
    repairs: tuple[Repair, ...] = ()


@dataclass(frozen=True)
class ResultTurn:
    """What a tool returned, as text: often no JSON, cut at 1,024 characters by the source."""

    text: str


Turn = UserTurn | ActionTurn | ResultTurn


def build_conversation(
    turns: Sequence[Turn], tools: ToolSet, *, keep_thoughts: bool, metadata: Mapping[str, Any]
) -> Conversation:
    """Turns and tools → one conversation with its repairs in `metadata["repairs"]`.

    Raises:
        RowError: the row gives up, ends without an action, or its turns do not follow each other.
    """
    repairs = list(tools.repairs)
    messages: list[Message] = []
    for turn in turns:
        match turn:
            case UserTurn(text):
                _add_user(text, messages, repairs)
            case ActionTurn():
                messages.append(_assistant(turn, tools, keep_thoughts, repairs))
            case ResultTurn(text):
                if not messages or not messages[-1].tool_calls:
                    raise RowError(RejectReason.MALFORMED_ROW, "a tool result that follows no call")
                messages.append(Message(Role.TOOL, text, tool_name=messages[-1].tool_calls[0].name))
    if not messages or messages[-1].role is not Role.ASSISTANT:
        raise RowError(RejectReason.NO_ASSISTANT_TURN, "the last turn is not the assistant's")
    last = len(messages) - 1
    masked = tuple(
        replace(message, is_trained=False) if message.role is Role.ASSISTANT and i < last else message
        for i, message in enumerate(messages)
    )
    named = {"repairs": sorted({str(repair) for repair in repairs})} if repairs else {}
    return Conversation(
        messages=masked,
        tools=tools.tools,
        source=SOURCE,
        category=behaviour_of(masked),
        dialogue_id=dialogue_id_of(SOURCE, masked),
        metadata={**metadata, **named},
    )


def _add_user(text: str, messages: list[Message], repairs: list[Repair]) -> None:
    text = text.strip()
    if text.startswith(_RETRY_HINT):
        # The search's note to itself about sibling branches: nobody says this to a dispatcher. What follows is
        # still a good step, because the branch was kept.
        repairs.append(Repair.RETRY_HINT_DROPPED)
        return
    messages.append(Message(Role.USER, text.removesuffix(_BEGIN).strip()))


def _assistant(turn: ActionTurn, tools: ToolSet, keep_thoughts: bool, repairs: list[Repair]) -> Message:
    repairs += turn.repairs
    if turn.name == FINISH:
        return Message(Role.ASSISTANT, _final_answer(turn, repairs))
    if turn.thought and not keep_thoughts:
        repairs.append(Repair.THOUGHT_DROPPED)
    name = tools.resolve(turn.name)
    if name != turn.name:
        repairs.append(Repair.TOOL_RENAMED)
    arguments = tools.rename_reserved(name, turn.arguments)
    if arguments.keys() != turn.arguments.keys():
        repairs.append(Repair.RESERVED_WORD_RENAMED)
    return Message(Role.ASSISTANT, turn.thought if keep_thoughts else "", (ToolCall(name, arguments),))


def _final_answer(turn: ActionTurn, repairs: list[Repair]) -> str:
    kind, answer = turn.arguments.get("return_type"), turn.arguments.get("final_answer")
    if kind is None and isinstance(answer, str):
        repairs.append(Repair.MISSING_RETURN_TYPE)
    elif isinstance(kind, str) and kind.startswith("give_up"):
        raise RowError(RejectReason.GAVE_UP, "Finish with give_up_and_restart")
    elif kind != "give_answer":
        raise RowError(RejectReason.MALFORMED_CALL, f"Finish with return_type {kind!r}")
    if turn.thought:
        repairs.append(Repair.THOUGHT_DROPPED)
    if answer is not None and not isinstance(answer, str):
        raise RowError(RejectReason.MALFORMED_CALL, "Finish with a final_answer that is no text")
    return (answer or "").strip()
