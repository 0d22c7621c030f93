"""What a tool is here, besides its schema, and how a call of one can end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tinydispatch.tools import Tool, ToolCall


class ToolsetError(ValueError):
    """Tools that cannot be offered as they are; the message names the source, the tool and the key."""


class ToolFailure(Exception):  # noqa: N818 (what a tool reports; for a conversation it is a result like another)
    """Raised by a tool to say what went wrong.

    `did_act`: whether the call had its effect all the same; None where that is not known. `is_transient`: the same call
    may well succeed later.
    """

    def __init__(self, message: str, *, did_act: bool | None = None, is_transient: bool = False) -> None:
        super().__init__(message)
        self.did_act, self.is_transient = did_act, is_transient


@dataclass(frozen=True)
class CallContext:
    """What a running tool is told besides its arguments. The same key twice means: this is the same call again."""

    idempotency_key: str
    timeout_s: float


@dataclass(frozen=True)
class BoundTool:
    """A tool that can be run.

    `has_side_effects`: it changes something, so it is confirmed, and never run twice for one request.
    `takes_key`: it does nothing a second time for the same idempotency key, so that a retry is safe.
    `did_happen`: asks, after a call whose end nobody knows, whether it had its effect; returns its result, or None.
    `result_schema`: JSON schema of the result, where known.
    """

    tool: Tool
    run: Callable[[Mapping[str, Any], CallContext], Any]
    has_side_effects: bool = True
    takes_key: bool = False
    timeout_s: float = 30.0
    did_happen: Callable[[Mapping[str, Any], CallContext], Any] | None = None
    result_schema: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_repeatable(self) -> bool:
        """Whether a second attempt can do no harm."""
        return not self.has_side_effects or self.takes_key


class CallStatus(StrEnum):
    """How a call ended."""

    DONE = "done"
    FAILED = "failed"  # and it had no effect, or none is known
    UNKNOWN = "unknown"  # it was started, and may have had its effect
    REFUSED = "refused"  # never started: not allowed, no such tool, arguments against the schema
    UNCONFIRMED = "unconfirmed"  # never started: a person has to agree first
    DECLINED = "declined"  # never started: a person has said no


@dataclass(frozen=True)
class ToolOutcome:
    """The end of one call. `value` is what the tool returned, `error` what went wrong; `attempts` were made.

    `is_replayed`: the call had been made before under the same key, and this is its result of then.
    """

    call: ToolCall
    key: str
    status: CallStatus
    value: Any = None
    error: str = ""
    attempts: int = 0
    duration_s: float = 0.0
    is_replayed: bool = False

    @property
    def is_done(self) -> bool:
        """Whether the tool did what was asked."""
        return self.status is CallStatus.DONE


def result_text(outcome: ToolOutcome, max_characters: int) -> str:
    """What a model reads: the result as JSON, or `{"error": …}`. A longer one is cut, and says so itself."""
    value = outcome.value if outcome.is_done else {"error": outcome.error, "status": str(outcome.status)}
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = json.dumps(str(value), ensure_ascii=False)
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= max_characters:
        return text
    cut = {"truncated": True, "characters": len(text), "shown": max_characters, "beginning": text[:max_characters]}
    return json.dumps(cut, ensure_ascii=False)


def canonical(call: ToolCall) -> str:
    """Equal for calls of the same tool with the same arguments, whatever their order; 1, 1.0 and true differ."""
    return json.dumps([call.name, dict(call.arguments)], sort_keys=True, ensure_ascii=True, default=str)


def idempotency_key(conversation: str, request: int, call: ToolCall, occurrence: int = 0) -> str:
    """One key for one call of one request of a conversation: however often it is tried, it is the same.

    Args:
        request: the number of the user's message that the call answers; later the same words mean a new call.
        occurrence: tells equal calls of one plan apart, where they may stand on purpose. Their ids would not do: a plan
            that is made once more has others.
    """
    text = json.dumps([conversation, request, canonical(call), occurrence])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
