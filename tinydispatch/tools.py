"""What every stage passes around: tools, calls, messages and conversations, frozen once parsed."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from tinydispatch.json_schema import Schema, SchemaError, tidied
from tinydispatch.json_schema import SchemaViolation as SchemaViolation
from tinydispatch.patterns import read_pattern

# The OpenAI and llama.cpp limit; a longer name is refused by every server that we hand files to.
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
# Where the three shapes of a tool have its schema: OpenAI's, MCP's and Anthropic's.
_SCHEMA_KEYS = ("parameters", "inputSchema", "input_schema")
_OTHER_KEYS = frozenset(
    {"name", "description", "title", "type", "strict", "annotations", "outputSchema", "output_schema", "_meta", "meta"}
    | {"icons", "execution", "cache_control", "examples", "input_examples", "function"}
)
# Any of these makes a schema without a type one of an object.
_OBJECT_KEYS = ("properties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf")


class ToolError(ValueError):
    """A tool definition that cannot be used; the message names the tool and the key."""


class Role(StrEnum):
    """Who speaks a message, in the chat format's own words."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True)
class Tool:
    """A function that a model may call; `parameters` is a JSON schema of an object, as its author wrote it.

    Any draft and OpenAPI 3.0's dialect are read. A keyword that is null is left out.

    Raises:
        ToolError: the name is empty, too long or has other characters than A-Z a-z 0-9 _ . -,
            or `parameters` is no JSON schema of an object, or too large.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _TOOL_NAME.fullmatch(self.name):
            raise ToolError(f"tool name {self.name!r}: expected 1 to 64 of A-Z a-z 0-9 _ . -")
        if not isinstance(self.parameters, Mapping) or not _is_of_an_object(self.parameters):
            raise ToolError(f"tool {self.name!r}: 'parameters' must be a JSON schema with type 'object'")
        try:
            Schema(self.parameters)
            object.__setattr__(self, "parameters", tidied(self.parameters))
        except SchemaError as error:
            where = error.path or "parameters"
            raise ToolError(f"tool {self.name!r}: not a JSON schema at '{where}': {error.problem}") from error
        except RecursionError as error:
            raise ToolError(f"tool {self.name!r}: 'parameters' are nested too deeply") from error

    @cached_property
    def schema(self) -> Schema:
        """The parameters in one form, whatever dialect they are written in."""
        return Schema(self.parameters)

    def violations(self, arguments: Mapping[str, Any]) -> list[SchemaViolation]:
        """Everything in `arguments` that the schema does not allow; parameters it does not list count too."""
        schema = self.schema
        found = schema.violations(dict(arguments))
        if not schema.says_which_others:
            named = {violation.path for violation in found}
            found += [
                SchemaViolation(key, f"unknown parameter '{key}'", "additionalProperties", (key,))
                for key in arguments
                if key not in schema.listed_keys and key not in named and not self._is_patterned(key)
            ]
        return found

    def _is_patterned(self, key: str) -> bool:
        return any(read_pattern(pattern).matches(key) for pattern in self.schema.key_patterns)

    def to_openai(self) -> dict[str, Any]:
        """`{"type": "function", "function": {"name", "description", "parameters"}}`."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    @classmethod
    def from_openai(cls, value: Mapping[str, Any]) -> Tool:
        """Read the OpenAI shape, its bare inner object, an MCP `tools/list` entry (`inputSchema`) or Anthropic's shape
        (`input_schema`).

        Raises:
            ToolError: a key is missing or of the wrong type, or the schema stands under a key of another name.
        """
        if not isinstance(value, Mapping):
            raise ToolError(f"tool must be an object, not {type(value).__name__}")
        inner = value.get("function", value)
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise ToolError(f"tool without a 'name'; its keys are {sorted(value)}")
        key = next((key for key in _SCHEMA_KEYS if inner.get(key)), None)
        if key is None:
            for other, item in inner.items():
                if isinstance(item, Mapping) and item and other not in (*_OTHER_KEYS, *_SCHEMA_KEYS):
                    raise ToolError(
                        f"tool {inner['name']!r}: unknown key {other!r}, and no schema: give it as 'parameters'"
                    )
        parameters = inner[key] if key else {"type": "object", "properties": {}}
        if not isinstance(parameters, Mapping):
            raise ToolError(f"tool {inner['name']!r}: '{key}' must be an object")
        return cls(inner["name"], str(inner.get("description") or ""), parameters)


def _is_of_an_object(parameters: Mapping[str, Any]) -> bool:
    kind = parameters.get("type")
    if kind is None:
        return any(parameters.get(key) for key in _OBJECT_KEYS)
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


@dataclass(frozen=True)
class ToolCall:
    """A request to run the tool `name` with `arguments` (an object, never a JSON string)."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn. `tool_name` is set on tool results; `is_trained` False keeps an assistant turn out of the loss."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str | None = None
    is_trained: bool = True

    def to_openai(self) -> dict[str, Any]:
        """The chat-template shape: arguments stay an object, because templates encode a string twice."""
        message: dict[str, Any] = {"role": str(self.role), "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in self.tool_calls
            ]
        if self.tool_name is not None:
            message["name"] = self.tool_name
        return message


@dataclass(frozen=True)
class Conversation:
    """Messages with the tools on offer; the unit that the data stage keeps, splits and renders.

    `reference_date` is "today" for relative dates. `source` names the adapter, `category` the kind of
    behaviour shown ("single_call", "no_call", …), `dialogue_id` groups what must stay on one side of a split.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    source: str
    category: str
    dialogue_id: str = ""
    reference_date: dt.date | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Every call of every assistant turn, in order."""
        return tuple(call for message in self.messages for call in message.tool_calls)

    def tool(self, name: str) -> Tool | None:
        """The offered tool of that name, if any."""
        return next((tool for tool in self.tools if tool.name == name), None)


@dataclass(frozen=True)
class CallViolation:
    """A call that contradicts what was offered; `reason` is "unknown_tool" or "schema_violation"."""

    call: ToolCall
    reason: str
    details: tuple[SchemaViolation, ...] = ()


def check_calls(calls: Sequence[ToolCall], tools: Sequence[Tool]) -> list[CallViolation]:
    """The calls that name no offered tool or break its schema."""
    by_name = {tool.name: tool for tool in tools}
    found = []
    for call in calls:
        tool = by_name.get(call.name)
        if tool is None:
            found.append(CallViolation(call, "unknown_tool"))
        elif details := tool.violations(call.arguments):
            found.append(CallViolation(call, "schema_violation", tuple(details)))
    return found
