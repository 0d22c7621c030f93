"""The checks that hold for every source and need no memory: who speaks, what is trained, calls against their tools."""

from __future__ import annotations

from collections.abc import Sequence

from data.rejected import Rejected, RejectReason, sample_of
from data.sources.tagged import call_marker
from tinydispatch.tools import Conversation, Message, Role, check_calls


def check_conversation(conversation: Conversation) -> Rejected | None:
    """Why a conversation teaches nothing, or something wrong; None where it does not.

    A call of a tool that is not offered rejects the row wherever it stands. A call that breaks its schema does so only
    in a trained turn: before one it is what the model is shown recovering from.
    """
    assistant = [message for message in conversation.messages if message.role is Role.ASSISTANT]
    trained = [message for message in assistant if message.is_trained]
    if not any(message.role is Role.USER and message.content.strip() for message in conversation.messages):
        return reject(conversation, RejectReason.NO_USER_TURN, "no user turn with text")
    if not assistant:
        return reject(conversation, RejectReason.NO_ASSISTANT_TURN, "no assistant turn")
    if not trained:
        return reject(conversation, RejectReason.NOTHING_TRAINED, "every assistant turn is left out of the loss")
    if any(not message.content.strip() and not message.tool_calls for message in trained):
        return reject(conversation, RejectReason.EMPTY_REPLY, "a trained turn with neither text nor a call")
    for message in trained:
        if message.content and (marker := _marker(message.content, conversation)) is not None:
            return reject(conversation, RejectReason.CALL_IN_TEXT, f"{marker!r} in a reply that is trained as text")
    return _check_calls(conversation, trained)


def _marker(text: str, conversation: Conversation) -> str | None:
    """What says that a text holds a call: a format's marker, or the name of a tool with a bracket, as in Python."""
    if (marker := call_marker(text)) is not None:
        return marker
    begin, bracket, _ = text.lstrip("[`\n ").partition("(")
    return f"{begin}(" if bracket and any(tool.name == begin for tool in conversation.tools) else None


def _check_calls(conversation: Conversation, trained: Sequence[Message]) -> Rejected | None:
    names = {tool.name for tool in conversation.tools}
    for call in conversation.calls:
        if call.name not in names:
            offered = ", ".join(tool.name for tool in conversation.tools) or "none"
            return reject(conversation, RejectReason.UNKNOWN_TOOL, f"'{call.name}' is not among the tools: {offered}")
    called = {call.name for message in trained for call in message.tool_calls}
    for tool in conversation.tools:
        if tool.name in called and tool.schema.notes:
            note = tool.schema.notes[0]
            return reject(conversation, RejectReason.INVALID_TOOLS, f"'{tool.name}': {note.path}: {note.text}")
    trained_calls = [call for message in trained for call in message.tool_calls]
    for violation in check_calls(trained_calls, conversation.tools):
        details = "; ".join(f"{d.path}: {d.message}" if d.path else d.message for d in violation.details)
        return reject(conversation, RejectReason.SCHEMA_VIOLATION, f"'{violation.call.name}': {details}")
    return None


def reject(conversation: Conversation, reason: RejectReason, detail: str) -> Rejected:
    """The conversation as a rejected row, with its request and its last answer as the sample."""
    last = next((m for m in reversed(conversation.messages) if m.role is Role.ASSISTANT), None)
    request = next((m.content for m in conversation.messages if m.role is Role.USER), "")
    row_id = str(conversation.metadata.get("row_id", conversation.dialogue_id))
    calls = ", ".join(f"{call.name}({sample_of(dict(call.arguments))})" for call in last.tool_calls) if last else ""
    answer = calls or (last.content if last else "")
    return Rejected(reason, sample_of(detail), row_id, sample_of(f"{request} → {answer}"))
