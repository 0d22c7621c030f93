"""Personal data leaves a record before anything of it is written: by the same rules as the server's own log.

Logs come redacted already; files that people drop and data sets do not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tinydispatch.redaction import NOBODYS, Redactor
from tinydispatch.tools import Conversation, ToolCall


@dataclass(frozen=True)
class Cleared:
    """A record that may be written, and whether something in it was replaced."""

    conversation: Conversation
    is_changed: bool


def clear(conversation: Conversation, redactor: Redactor) -> Cleared:
    """The record with made-up values in place of personal ones, the same throughout, and without its metadata.

    What is copied from the request into a call is still copied then. Metadata go, since who logs may write anything
    there.
    """
    said = [
        [message.content, [{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls]]
        for message in conversation.messages
    ]
    public = [[tool.to_openai() for tool in conversation.tools], NOBODYS.findall(str(said))]
    redacted = redactor.record({"said": said}, public)["said"]
    messages = tuple(
        replace(message, content=content, tool_calls=tuple(ToolCall(call["name"], call["arguments"]) for call in calls))
        for message, (content, calls) in zip(conversation.messages, redacted, strict=True)
    )
    return Cleared(replace(conversation, messages=messages, metadata={}), redacted != said)
