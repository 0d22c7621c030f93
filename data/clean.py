"""Conversation → kept or rejected, by checks that hold for every source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from referencing.exceptions import Unresolvable

from data.config import DataConfig
from data.near_duplicates import NearDuplicateFilter
from data.overlap import OverlapIndex
from data.rejected import Rejected, RejectReason, sample_of
from data.store import StoreError, encode
from tinydispatch.tools import Conversation, Message, Role, check_calls

# Raises ValueError where the model's chat template refuses the conversation.
CountTokens = Callable[[Conversation], int]


@dataclass(frozen=True)
class Kept:
    """A conversation that passed, with its stored line and its length in tokens (characters without a counter)."""

    conversation: Conversation
    line: str
    length: int


class Cleaner:
    """Applies every filter in order, cheap ones first; remembers rows, so duplicates are found across sources."""

    def __init__(self, config: DataConfig, case_texts: Sequence[str], count_tokens: CountTokens | None) -> None:
        threshold = config.near_duplicate_threshold
        self._near = NearDuplicateFilter(threshold) if threshold is not None else None
        self._overlap = OverlapIndex(case_texts)
        self._count_tokens = count_tokens
        self._max_length_tokens = config.max_length_tokens
        self._seen: set[bytes] = set()

    def clean(self, conversation: Conversation) -> Kept | Rejected:
        """Keep the conversation as it is, or say why not. Nothing is cut or mended here."""
        if (rejected := check_conversation(conversation)) is not None:
            return rejected
        try:
            line = encode(conversation)
        except StoreError as error:
            return _reject(conversation, RejectReason.UNSTORABLE, str(error))
        if (found := self._overlap.match(conversation)) is not None:
            return _reject(conversation, RejectReason.EVALUATION_OVERLAP, f"shares '{found[1]}' with '{found[0]}'")
        # Where a row came from does not make it another example.
        plain = encode(replace(conversation, source="", category="", dialogue_id="", metadata={}))
        key = hashlib.blake2b(plain.encode(), digest_size=16).digest()
        if key in self._seen:
            return _reject(conversation, RejectReason.DUPLICATE, "equal to an earlier row")
        try:
            length = self._count_tokens(conversation) if self._count_tokens else len(line)
        except ValueError as error:
            return _reject(conversation, RejectReason.UNRENDERABLE, str(error))
        if self._count_tokens and length > self._max_length_tokens:
            detail = f"{length} tokens; at most {self._max_length_tokens} fit"
            return _reject(conversation, RejectReason.TOO_LONG, detail)
        if self._near is not None and (twin := self._near.find_or_add(conversation)) is not None:
            return _reject(conversation, RejectReason.NEAR_DUPLICATE, f"of a row of dialogue '{twin}'")
        self._seen.add(key)
        return Kept(conversation, line, length)


def check_conversation(conversation: Conversation) -> Rejected | None:
    """The checks that need no memory: who speaks, what is trained, and calls against the tools on offer.

    A call of a tool that is not offered rejects the row wherever it stands. A call that breaks its schema does so only
    in a trained turn: before one it is what the model is shown recovering from.
    """
    assistant = [message for message in conversation.messages if message.role is Role.ASSISTANT]
    trained = [message for message in assistant if message.is_trained]
    if not any(message.role is Role.USER and message.content.strip() for message in conversation.messages):
        return _reject(conversation, RejectReason.NO_USER_TURN, "no user turn with text")
    if not assistant:
        return _reject(conversation, RejectReason.NO_ASSISTANT_TURN, "no assistant turn")
    if not trained:
        return _reject(conversation, RejectReason.NOTHING_TRAINED, "every assistant turn is left out of the loss")
    if any(not message.content.strip() and not message.tool_calls for message in trained):
        return _reject(conversation, RejectReason.EMPTY_REPLY, "a trained turn with neither text nor a call")
    try:
        return _check_calls(conversation, trained)
    except (Unresolvable, RecursionError) as error:
        # A reference is only followed when a value meets it.
        return _reject(conversation, RejectReason.INVALID_TOOLS, f"a schema cannot be applied: {error}")


def _check_calls(conversation: Conversation, trained: Sequence[Message]) -> Rejected | None:
    for violation in check_calls(conversation.calls, conversation.tools):
        if violation.reason == RejectReason.UNKNOWN_TOOL:
            offered = ", ".join(tool.name for tool in conversation.tools) or "none"
            detail = f"'{violation.call.name}' is not among the tools: {offered}"
            return _reject(conversation, RejectReason.UNKNOWN_TOOL, detail)
    trained_calls = [call for message in trained for call in message.tool_calls]
    for violation in check_calls(trained_calls, conversation.tools):
        details = "; ".join(f"{d.path}: {d.message}" if d.path else d.message for d in violation.details)
        return _reject(conversation, RejectReason.SCHEMA_VIOLATION, f"'{violation.call.name}': {details}")
    return None


def _reject(conversation: Conversation, reason: RejectReason, detail: str) -> Rejected:
    last = next((m for m in reversed(conversation.messages) if m.role is Role.ASSISTANT), None)
    request = next((m.content for m in conversation.messages if m.role is Role.USER), "")
    row_id = str(conversation.metadata.get("row_id", conversation.dialogue_id))
    calls = ", ".join(f"{call.name}({dict(call.arguments)})" for call in last.tool_calls) if last else ""
    answer = calls or (last.content if last else "")
    return Rejected(reason, sample_of(detail), row_id, sample_of(f"{request} → {answer}"))
