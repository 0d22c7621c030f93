"""Conversations on disk, writer and reader: JSON Lines, because columnar formats unify the shapes of arguments.

A key whose value is the default is left out, so nothing is ever filled with nulls; everything else comes back exactly.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from data.remembered import Remembered
from data.sources.categories import Behaviour, behaviour_of
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall

_MESSAGE_KEYS = frozenset({"role", "content", "tool_calls", "tool_name", "is_trained"})
_KEYS = frozenset({"messages", "tools", "source", "category", "dialogue_id", "reference_date", "metadata"})


class StoreError(ValueError):
    """A conversation that cannot be written, or a stored line that cannot be read; the message says where."""


def encode(conversation: Conversation) -> str:
    """One line without its newline.

    Raises:
        StoreError: a value that JSON or UTF-8 cannot express: infinity, a date, half a surrogate pair.
    """
    try:
        messages = ",".join(message_text(message) for message in conversation.messages)
        rest: dict[str, Any] = {"source": str(conversation.source), "category": str(conversation.category)}
        if conversation.dialogue_id:
            rest["dialogue_id"] = conversation.dialogue_id
        if conversation.reference_date is not None:
            rest["reference_date"] = conversation.reference_date.isoformat()
        if conversation.metadata:
            rest["metadata"] = dict(conversation.metadata)
        line = f'{{"messages":[{messages}],"tools":{tools_text(conversation.tools)},{_to_json(rest)[1:]}'
        line.encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"conversation {conversation.dialogue_id!r} cannot be stored: {error}") from error
    return line


def message_text(message: Message) -> str:
    """A message as it stands in its line."""
    return _to_json(_message_to_json(message))


def tools_text(tools: tuple[Tool, ...]) -> str:
    """The tools as they stand in their line."""
    return f"[{','.join(map(_tool_text, tools))}]"


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _to_json(value: Any) -> str:
    try:
        return _encoder.encode(value)
    except (ValueError, TypeError) as error:
        raise StoreError(str(error)) from error


def _tool_to_text(tool: Tool) -> str:
    return _to_json({"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)})


_tool_text = Remembered(_tool_to_text)


def decode(line: str) -> Conversation:
    """Read what `encode` wrote.

    Raises:
        StoreError: not JSON, or keys missing, unknown or of the wrong type.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise StoreError(f"expected an object, got {type(value).__name__}")
    if unknown := value.keys() - _KEYS:
        raise StoreError(f"unknown keys {sorted(unknown)}")
    try:
        reference_date = value.get("reference_date")
        return Conversation(
            messages=tuple(_message_from_json(message) for message in value["messages"]),
            tools=tuple(_tool(json.dumps(tool)) for tool in value["tools"]),
            source=value["source"],
            category=value["category"],
            dialogue_id=value.get("dialogue_id", ""),
            reference_date=dt.date.fromisoformat(reference_date) if reference_date is not None else None,
            metadata=value.get("metadata", {}),
        )
    except KeyError as error:
        raise StoreError(f"key {error} is missing") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise StoreError(f"not a stored conversation: {error}") from error


_UNTRAINED = ',"is_trained":false}'


def with_trained_turns(line: str, indices: Collection[int]) -> str:
    """A stored line in which the assistant turns at these message indices are trained as well."""
    value = msgspec.json.decode(line)
    untrained = [i for i, message in enumerate(value["messages"]) if not message.get("is_trained", True)]
    for index in indices:
        value["messages"][index].pop("is_trained", None)
    category = before = value["category"]
    if category in tuple(Behaviour):
        category = str(behaviour_of([_message_from_json(message) for message in value["messages"]]))
    parts = line.split(_UNTRAINED)
    named = f'"source":{_to_json(value["source"])},"category":'
    head, found, tail = line.rpartition(named + _to_json(before))
    if len(parts) != len(untrained) + 1 or not found or _UNTRAINED in tail or named in head:
        # Arguments, a schema or metadata hold what looks like our own keys.
        return _with_trained_turns_anew(line, indices, category)
    # Only what changes is written: a long line takes ten times as long to be encoded as to be copied.
    marks = ["}" if index in indices else _UNTRAINED for index in untrained]
    text = "".join(part + mark for part, mark in zip(parts, [*marks, ""], strict=True))
    return text.replace(named + _to_json(before), named + _to_json(category))


def _with_trained_turns_anew(line: str, indices: Collection[int], category: str) -> str:
    value = json.loads(line)
    for index in indices:
        value["messages"][index].pop("is_trained", None)
    return _to_json({**value, "category": category})


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a file in order.

    Raises:
        StoreError: names the file and the line.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield decode(line)
                except StoreError as error:
                    raise StoreError(f"{path}:{number}: {error}") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}; run scripts.prepare_data first") from error
    except UnicodeDecodeError as error:
        raise StoreError(f"{path}: not UTF-8: {error}") from error


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> int:
    """Write a whole file at once and say how many; a reader sees the old file or the new one, never half of it."""
    with ConversationWriter(path) as writer:
        for conversation in conversations:
            writer.write(conversation)
        writer.commit()
        return writer.count


class ConversationWriter:
    """Writes beside the target and takes its place on `commit`; without one, nothing is left behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._partial.open("w", encoding="utf-8", newline="\n")

    def write(self, conversation: Conversation) -> None:
        """Append one line. Raises StoreError where it cannot be expressed."""
        self.write_line(encode(conversation))

    def write_line(self, line: str) -> None:
        """Append a conversation that is already encoded."""
        self._stream.write(line + "\n")
        self.count += 1

    def finish(self) -> Path:
        """Everything on disk under the partial name, so that several files can be committed together."""
        if not self._stream.closed:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
        return self._partial

    def commit(self) -> None:
        """Take the target's place."""
        self.finish().replace(self.path)

    def __enter__(self) -> ConversationWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._partial.unlink(missing_ok=True)


def data_hash(*paths: Path) -> str:
    """First 16 hex digits of the SHA-256 over the files' bytes in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        digest.update(b"\0")  # a line moved from one file to the next is a different data set
    return digest.hexdigest()[:16]


def _message_to_json(message: Message) -> dict[str, Any]:
    value: dict[str, Any] = {"role": str(message.role)}
    if message.content:
        value["content"] = message.content
    if message.tool_calls:
        value["tool_calls"] = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls]
    if message.tool_name is not None:
        value["tool_name"] = message.tool_name
    if not message.is_trained:
        value["is_trained"] = False
    return value


def _message_from_json(value: Mapping[str, Any]) -> Message:
    if unknown := value.keys() - _MESSAGE_KEYS:
        raise StoreError(f"unknown keys {sorted(unknown)} in a message")
    calls = tuple(ToolCall(call["name"], call["arguments"]) for call in value.get("tool_calls", ()))
    return Message(
        role=Role(value["role"]),
        content=value.get("content", ""),
        tool_calls=calls,
        tool_name=value.get("tool_name"),
        is_trained=value.get("is_trained", True),
    )


# Thousands of conversations offer the same few tools, and checking a schema takes about a millisecond.
@lru_cache(maxsize=4096)
def _tool(text: str) -> Tool:
    value = json.loads(text)
    return Tool(value["name"], value["description"], value["parameters"])
