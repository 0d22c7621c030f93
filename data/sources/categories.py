"""The kind of behaviour that a conversation trains, for sources that do not say it themselves."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from tinydispatch.tools import Message, Role


class Behaviour(StrEnum):
    """What the trained turns do; the data card counts by it."""

    NO_CALL = "no_call"
    SINGLE_CALL = "single_call"
    PARALLEL_CALLS = "parallel_calls"
    NEXT_CALL = "next_call"
    MULTI_STEP = "multi_step"
    FINAL_ANSWER = "final_answer"


def behaviour_of(messages: Sequence[Message]) -> Behaviour:
    """Read the trained turns: how many of them call, and whether a tool result stands before the first."""
    trained = [i for i, message in enumerate(messages) if message.role is Role.ASSISTANT and message.is_trained]
    calling = [i for i in trained if messages[i].tool_calls]
    after_result = any(message.role is Role.TOOL for message in messages[: (calling or trained or [0])[0]])
    if not calling:
        return Behaviour.FINAL_ANSWER if after_result else Behaviour.NO_CALL
    if len(calling) > 1:
        return Behaviour.MULTI_STEP
    if len(messages[calling[0]].tool_calls) > 1:
        return Behaviour.PARALLEL_CALLS
    return Behaviour.NEXT_CALL if after_result else Behaviour.SINGLE_CALL
