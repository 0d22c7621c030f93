"""What every stage passes around: tools, calls, messages and conversations, frozen once parsed."""

from __future__ import annotations

import datetime as dt
import json
import re
import zoneinfo
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

import jsonschema
import referencing
from jsonschema.validators import Draft202012Validator

# The OpenAI and llama.cpp limit; a longer name is refused by every server that we hand files to.
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_EMAIL = re.compile(r"[^@\s<>,;:\"()]+@[^@\s<>,;:\"()]+\.[^@\s<>,;:\".()]+")

formats = jsonschema.FormatChecker(formats=())


class ToolError(ValueError):
    """A tool definition that cannot be used; the message names the tool and the key."""


@formats.checks("date", raises=ValueError)
def _is_date(value: object) -> bool:
    if not isinstance(value, str):
        return True
    return len(value) == 10 and bool(dt.date.fromisoformat(value))


@formats.checks("local-date-time", raises=ValueError)
def _is_local_date_time(value: object) -> bool:
    """`YYYY-MM-DDTHH:MM`: the user's wall clock, so neither seconds nor an offset."""
    if not isinstance(value, str):
        return True
    return len(value) == 16 and value[10] == "T" and bool(dt.datetime.fromisoformat(value))


@formats.checks("email")
def _is_email(value: object) -> bool:
    return not isinstance(value, str) or _EMAIL.fullmatch(value) is not None


@formats.checks("iana-time-zone")
def _is_time_zone(value: object) -> bool:
    return not isinstance(value, str) or value in _time_zones()


@lru_cache(maxsize=1)
def _time_zones() -> frozenset[str]:
    """Looked up once: it walks through several hundred files."""
    return frozenset(zoneinfo.available_timezones())


class Role(StrEnum):
    """Who speaks a message, in the chat format's own words."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True)
class SchemaViolation:
    """One reason why a call does not fit its tool: `path` is where ("start", "cc.0"), "" for the whole."""

    path: str
    message: str


@lru_cache(maxsize=8_192)
def _is_schema(text: str) -> bool:
    try:
        Draft202012Validator.check_schema(json.loads(text))
    except jsonschema.SchemaError:
        return False
    return True


def _without_words(schema: Any) -> str:
    """A schema as JSON without what no rule of the metaschema looks into, so that more schemas are equal."""
    if isinstance(schema, Mapping):
        free = {"default"} | {key for key in ("description", "title") if isinstance(schema.get(key), str)}
        schema = {key: value for key, value in schema.items() if key not in free}
    return json.dumps(schema)


def _is_composed_of_schemas(parameters: Mapping[str, Any]) -> bool:
    """Whether the object and each property are schemas; tools share most properties, so that these are remembered."""
    properties = parameters.get("properties")
    if not isinstance(properties, Mapping):
        return False
    try:
        rest = {key: value for key, value in parameters.items() if key != "properties"}
        return all(_is_schema(_without_words(schema)) for schema in (rest, *properties.values()))
    except (TypeError, ValueError):
        return False


@dataclass(frozen=True)
class Tool:
    """A function that a model may call; `parameters` is a JSON schema of type object.

    Raises:
        ToolError: the name is empty, too long or has other characters than A-Z a-z 0-9 _ . -,
            or `parameters` is no JSON schema of an object.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _TOOL_NAME.fullmatch(self.name):
            raise ToolError(f"tool name {self.name!r}: expected 1 to 64 of A-Z a-z 0-9 _ . -")
        if not isinstance(self.parameters, Mapping) or self.parameters.get("type") != "object":
            raise ToolError(f"tool {self.name!r}: 'parameters' must be a JSON schema with type 'object'")
        if _is_composed_of_schemas(self.parameters):
            return
        try:
            Draft202012Validator.check_schema(self.parameters)
        except jsonschema.SchemaError as error:
            where = ".".join(str(part) for part in error.absolute_path) or "parameters"
            raise ToolError(f"tool {self.name!r}: not a JSON schema at '{where}': {error.message}") from error

    @cached_property
    def _validator(self) -> Draft202012Validator:
        # The empty registry keeps a "$ref" to a URL from being fetched: schemas come from strangers.
        return Draft202012Validator(dict(self.parameters), format_checker=formats, registry=referencing.Registry())

    def violations(self, arguments: Mapping[str, Any]) -> list[SchemaViolation]:
        """Everything in `arguments` that the schema does not allow; parameters it does not list count too."""
        known = self.parameters.get("properties", {})
        found = [
            SchemaViolation(".".join(str(part) for part in error.absolute_path), error.message)
            for error in self._validator.iter_errors(dict(arguments))
        ]
        if self.parameters.get("additionalProperties") is None:
            found += [SchemaViolation(key, f"unknown parameter '{key}'") for key in arguments if key not in known]
        return found

    def to_openai(self) -> dict[str, Any]:
        """`{"type": "function", "function": {"name", "description", "parameters"}}`."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    @classmethod
    def from_openai(cls, value: Mapping[str, Any]) -> Tool:
        """Read the OpenAI shape, its bare inner object, or an MCP `tools/list` entry (`inputSchema`).

        Raises:
            ToolError: a key is missing or of the wrong type.
        """
        if not isinstance(value, Mapping):
            raise ToolError(f"tool must be an object, not {type(value).__name__}")
        inner = value.get("function", value)
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise ToolError(f"tool without a 'name'; its keys are {sorted(value)}")
        parameters = inner.get("parameters", inner.get("inputSchema")) or {"type": "object", "properties": {}}
        if not isinstance(parameters, Mapping):
            raise ToolError(f"tool {inner['name']!r}: 'parameters' must be an object")
        return cls(inner["name"], str(inner.get("description") or ""), parameters)


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
