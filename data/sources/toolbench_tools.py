"""ToolBench's API lists → tools with valid JSON schemas: odd types, string defaults, names and collisions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data.rejected import RejectReason, Repair, RowError
from data.sources.literals import MAX_LITERAL_CHARS, LiteralError, parse_literal
from tinydispatch.tools import Tool, ToolError

FINISH = "Finish"

_TYPES = {
    "string": "string", "str": "string", "enum": "string", "date": "string", "time": "string", "file": "string",
    "binary": "string", "geopoint": "string", "credentials": "string",
    "integer": "integer", "int": "integer", "long": "integer",
    "number": "number", "float": "number", "double": "number",
    "boolean": "boolean", "bool": "boolean",
    "array": "array", "list": "array", "tuple": "array",
    "object": "object", "dict": "object", "map": "object", "json": "object",
}  # fmt: skip
# What ToolBench renamed in API and parameter names, because they could not be Python identifiers.
_RESERVED = frozenset({"from", "class", "return", "false", "true", "id", "and"})
_MAX_NAME_CHARS = 64
_MAX_DEPTH = 20
_BOILERPLATE = re.compile(
    r'This is the subfunction for tool "[^"]*", you can use this tool\.'
    r'(?:\s*The description of this function is: "(?P<description>.*?)"?)?\s*\Z',
    re.DOTALL,
)


@dataclass(frozen=True)
class ToolSet:
    """The tools of one dialogue. `names` maps each listed name to the one kept; `ambiguous` ones must not be called."""

    tools: tuple[Tool, ...]
    names: Mapping[str, str]
    ambiguous: frozenset[str]
    repairs: tuple[Repair, ...]

    def resolve(self, name: str) -> str:
        """The kept name for a name in a call; unknown names come back as they are.

        Raises:
            RowError: the name stands for two different tools.
        """
        # Tools are listed under the last 64 characters of their name; a model sometimes writes all of it.
        kept = self.names.get(name) or self.names.get(name[-_MAX_NAME_CHARS:]) or name
        if kept in self.ambiguous:
            raise RowError(RejectReason.AMBIGUOUS_TOOL, f"'{name}' is listed more than once, differently")
        return kept

    def rename_reserved(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments with `id` → `is_id` and the like, where only the second is a parameter of the tool."""
        tool = next((tool for tool in self.tools if tool.name == name), None)
        known = tool.parameters["properties"] if tool else {}
        return {
            f"is_{key}" if key in _RESERVED and key not in known and f"is_{key}" in known else key: value
            for key, value in arguments.items()
        }


# The rows of one dialogue follow each other and repeat the list.
@lru_cache(maxsize=64)
def read_tools(text: str) -> ToolSet:
    """An API list as Python literal or JSON → tools, without `Finish`.

    Raises:
        RowError: it cannot be read, or no tool is left.
    """
    repairs: list[Repair] = []
    kept: dict[str, Tool] = {}
    names: dict[str, str] = {}
    ambiguous = set()
    for name, tool, mended in _entries(text):
        repairs += mended
        names[name] = tool.name
        if (earlier := kept.get(tool.name)) is None:
            kept[tool.name] = tool
            continue
        repairs.append(Repair.DUPLICATE_TOOL_DROPPED)
        if earlier != tool:
            ambiguous.add(tool.name)
    if not kept:
        raise RowError(RejectReason.INVALID_TOOLS, "API list: no tool besides Finish")
    return ToolSet(tuple(kept.values()), names, frozenset(ambiguous), tuple(Counter(repairs)))


_Entry = tuple[str, Tool, tuple[Repair, ...]]  # the name as it is listed, the tool, what was mended
_BETWEEN_ENTRIES = re.compile(r"(?<=\}), (?=\{['\"]name['\"]: )")


def _entries(text: str) -> list[_Entry]:
    """Every entry of a list but `Finish`."""
    text = text.strip()
    if text.startswith("[{") and text.endswith("}]") and len(text) <= MAX_LITERAL_CHARS:
        try:
            # Where each piece is a whole value, the pieces are the entries, whatever else they hold.
            return [entry for piece in _BETWEEN_ENTRIES.split(text[1:-1]) if (entry := _entry_of(piece)) is not None]
        except LiteralError:
            pass  # a description holds what looks like the next entry, or the list is no literal at all
    try:
        listed = parse_literal(text)
    except LiteralError as error:
        raise RowError(RejectReason.INVALID_TOOLS, f"API list: {error}") from error
    if not isinstance(listed, list):
        raise RowError(RejectReason.INVALID_TOOLS, "API list: expected a list of objects")
    return [entry for value in listed if (entry := _entry(value)) is not None]


@lru_cache(maxsize=16_384)
def _entry_of(text: str) -> _Entry | None:
    """An entry from its literal: 16,000 APIs make up 126,000 lists.

    Raises:
        LiteralError: not one whole literal.
    """
    return _entry(parse_literal(text))


def _entry(entry: Any) -> _Entry | None:
    if not isinstance(entry, dict):
        raise RowError(RejectReason.INVALID_TOOLS, "API list: expected a list of objects")
    name, repairs = entry.get("name"), list[Repair]()
    if not isinstance(name, str) or not name:
        raise RowError(RejectReason.INVALID_TOOLS, "API list: an entry has no 'name'")
    if name == FINISH:
        return None
    allowed = allowed_name(name)
    if allowed != name:
        repairs.append(Repair.TOOL_RENAMED)
    parameters = entry.get("parameters")
    if not isinstance(parameters, Mapping):
        raise RowError(RejectReason.INVALID_TOOLS, f"'{name}': no 'parameters' object")
    schema = {"properties": {}, **_schema(parameters, repairs), "type": "object"}
    try:
        return name, Tool(allowed, _description(entry.get("description")), schema), tuple(repairs)
    except ToolError as error:
        raise RowError(RejectReason.INVALID_TOOLS, str(error)) from error


def allowed_name(name: str) -> str:
    """A tool's name with the characters and the length that every server takes."""
    return re.sub(r"[^A-Za-z0-9_.\-]", "_", name)[-_MAX_NAME_CHARS:]


def standard_name(name: str) -> str:
    """A name as it stands in dialogues: `Ado-Stock!` → `ado_stock`, `2Captcha` → `get_2captcha`."""
    flat = re.sub(r"_{2,}", "_", re.sub(r"[^\u4e00-\u9fa5a-zA-Z0-9_^]", "_", name)).lower().strip("_")
    return f"get_{flat}" if flat[:1].isdigit() else flat


def parameter_name(name: str) -> str:
    """The same, with the words that Python reserves renamed: `from` → `is_from`."""
    standard = standard_name(name)
    return f"is_{standard}" if standard in _RESERVED else standard


def api_name(api: str, tool: str) -> str:
    """`Search` of `Simple YouTube Search` → `search_for_simple_youtube_search`."""
    return f"{parameter_name(api)}_for_{standard_name(tool)}"[-_MAX_NAME_CHARS:]


def _description(value: Any) -> str:
    """The API's own words: the sentence around them is the same for every tool and costs 25 tokens each."""
    text = str(value or "").strip()
    if (match := _BOILERPLATE.match(text)) is None:
        return text
    return (match["description"] or "").strip()


def _schema(spec: Mapping[str, Any], repairs: list[Repair], depth: int = 0) -> dict[str, Any]:
    """Only what JSON schema knows: `optional` and `example_value` are not part of it and are left out."""
    if depth > _MAX_DEPTH:
        raise RowError(RejectReason.INVALID_TOOLS, f"parameters nested deeper than {_MAX_DEPTH}")
    schema: dict[str, Any] = {}
    if (kind := json_type(spec.get("type"), repairs)) is not None:
        schema["type"] = kind
    if spec.get("description"):
        schema["description"] = str(spec["description"])
    if "enum" in spec:
        _copy_enum(spec["enum"], kind, schema, repairs)
    if "default" in spec and spec["default"] is not None:
        _copy_default(spec["default"], kind, schema, repairs)
    if isinstance(spec.get("items"), Mapping):
        schema["items"] = _schema(spec["items"], repairs, depth + 1)
    if isinstance(spec.get("properties"), Mapping):
        schema["properties"] = {
            str(key): _schema(value if isinstance(value, Mapping) else {}, repairs, depth + 1)
            for key, value in spec["properties"].items()
        }
        listed = [key for key in spec.get("required") or [] if isinstance(key, str)]
        required = [key for key in dict.fromkeys(listed) if key in schema["properties"]]
        if len(required) != len(set(listed)):
            repairs.append(Repair.REQUIRED_UNLISTED)
        if required:
            schema["required"] = required
    return schema


def json_type(value: Any, repairs: list[Repair]) -> str | None:
    """`STRING`, `DATE (YYYY-MM-DD)`, `Integer` → JSON schema's word; an unknown one says nothing about the value."""
    if value is None:
        return None
    words = str(value).lower().split()
    kind = _TYPES.get(words[0]) if words else None
    if kind is None:
        repairs.append(Repair.TYPE_UNKNOWN)
    return kind


def _copy_enum(value: Any, kind: str | None, schema: dict[str, Any], repairs: list[Repair]) -> None:
    values = [_converted(item, kind) for item in value] if isinstance(value, list) else []
    if values and None not in values:
        schema["enum"] = values
    else:
        repairs.append(Repair.ENUM_DROPPED)


def _copy_default(value: Any, kind: str | None, schema: dict[str, Any], repairs: list[Repair]) -> None:
    converted = _converted(value, kind)
    if converted is None:
        repairs.append(Repair.DEFAULT_DROPPED)
        return
    if type(converted) is not type(value):
        repairs.append(Repair.DEFAULT_CONVERTED)
    schema["default"] = converted


def _converted(value: Any, kind: str | None) -> Any:
    """The value as the JSON type `kind`; None where it is none."""
    is_bool, is_text = isinstance(value, bool), isinstance(value, str)
    if kind is None:
        return value
    if kind == "string":
        return value if is_text else None if isinstance(value, dict | list) else str(value)
    if kind == "boolean":
        return value if is_bool else {"true": True, "false": False}.get(str(value).lower())
    if is_text:
        try:
            value = parse_literal(value)
        except LiteralError:
            return None
    wanted = {"integer": int, "number": int | float, "array": list, "object": dict}[kind]
    return value if isinstance(value, wanted) and not isinstance(value, bool) else None
