"""xLAM rows (`query`, `tools`, `answers`) → one request with its calls; parameters in Python's type names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.rejected import Rejected, RejectReason, Repair, RowError, sample_of
from data.sources.literals import LiteralError, parse_literal
from data.sources.openai_chat import conversation_from_openai
from data.sources.toolbench_tools import allowed_name, json_type
from tinydispatch.tools import Conversation

SOURCE = "xlam"

# "List[str]", "Tuple[float, float]", "Dict[str, Any]": what stands in the brackets is read for lists alone.
_TYPE = re.compile(r"(?P<outer>\w+)(?:\[(?P<inner>.*)\])?")


def conversation_from_xlam(row: Any, row_id: str) -> Conversation | Rejected:
    """One row `{"query", "tools", "answers"}` → a request and its calls; `tools` and `answers` may be JSON text.

    Example: `{"city": {"type": "str, optional", "default": "Oslo"}}` → `city`, a string that is not required.
    """
    try:
        if not isinstance(row, Mapping) or not isinstance(row.get("query"), str):
            raise RowError(RejectReason.MALFORMED_ROW, "no text 'query'")
        repairs: list[Repair] = []
        tools = [_tool(entry, repairs) for entry in _list(row, "tools", RejectReason.INVALID_TOOLS)]
        calls = [_call(entry) for entry in _list(row, "answers", RejectReason.MALFORMED_CALL)]
        messages = [{"role": "user", "content": row["query"]}, {"role": "assistant", "tool_calls": calls}]
    except RowError as error:
        return Rejected(error.reason, error.detail, row_id, sample_of(row))
    return conversation_from_openai(
        {"messages": messages, "tools": tools}, row_id, (), source=SOURCE, repairs=tuple(repairs)
    )


def _list(row: Mapping[str, Any], key: str, reason: RejectReason) -> Sequence[Any]:
    value = row.get(key)
    if isinstance(value, str):
        try:
            value = parse_literal(value)
        except LiteralError as error:
            raise RowError(reason, f"'{key}': {error}") from error
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise RowError(reason, f"'{key}': expected a list of objects")
    return value


def _call(entry: Mapping[str, Any]) -> dict[str, Any]:
    name = entry.get("name")
    return {"name": allowed_name(name) if isinstance(name, str) else name, "arguments": entry.get("arguments", {})}


def _tool(entry: Mapping[str, Any], repairs: list[Repair]) -> dict[str, Any]:
    name = entry.get("name")
    if isinstance(name, str) and allowed_name(name) != name:
        repairs.append(Repair.TOOL_RENAMED)
    tool = python_typed_tool(entry, repairs)
    return {**tool, "name": allowed_name(tool["name"])}


def python_typed_tool(entry: Mapping[str, Any], repairs: list[Repair]) -> dict[str, Any]:
    """A tool whose types are Python's words → one in JSON schema; one that is in JSON schema comes back as it is.

    Parameters stand side by side (`{"city": {"type": "str, optional"}}`) or under `properties` of a "dict"; then
    `required` may stand beside `parameters`.

    Raises:
        RowError: no name, or parameters that are no objects.
    """
    inner = entry.get("function", entry)
    inner = inner if isinstance(inner, Mapping) else {}
    name, parameters = inner.get("name"), inner.get("parameters") or {}
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise RowError(RejectReason.INVALID_TOOLS, f"a tool without 'name' and 'parameters': {sample_of(entry)}")
    listed = parameters.get("properties")
    if isinstance(listed, Mapping) and parameters.get("type") == "object":
        schema = dict(parameters)
    elif isinstance(listed, Mapping):
        required = parameters.get("required", inner.get("required"))
        schema = _schema(listed, repairs, required if isinstance(required, list) else None)
    else:
        schema = _schema(parameters, repairs)
    return {"name": name, "description": inner.get("description"), "parameters": schema}


def _schema(parameters: Mapping[str, Any], repairs: list[Repair], listed: list[Any] | None = None) -> dict[str, Any]:
    """`listed` names the required ones; without it, those are required that are neither optional nor have a default."""
    properties: dict[str, Any] = {}
    required = []
    for name, spec in parameters.items():
        if not isinstance(spec, Mapping):
            raise RowError(RejectReason.INVALID_TOOLS, f"parameter '{name}': expected an object")
        words, _, rest = str(spec.get("type", "")).partition(", optional")
        properties[str(name)] = _type(words.removesuffix(",").strip(), repairs)
        if spec.get("description"):
            properties[str(name)]["description"] = str(spec["description"])
        if isinstance(spec.get("enum"), list) and spec["enum"]:
            properties[str(name)]["enum"] = spec["enum"]
        is_optional = "optional" in f"{rest}{spec.get('type', '')}".lower() or "default" in spec
        if name in listed if listed is not None else not is_optional:
            required.append(str(name))
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return {**schema, "required": required} if required else schema


def _type(text: str, repairs: list[Repair]) -> dict[str, Any]:
    match = _TYPE.match(text)
    if match is None:
        return {}
    outer, inner = match["outer"], match["inner"]
    if outer.lower() == "optional" and inner:
        return _type(inner, repairs)
    if outer.lower() in ("union", "any"):
        return {}
    kind = json_type(outer, repairs)
    if kind is None:
        return {}
    if outer.lower() == "list" and inner and (items := _type(inner, repairs)):
        return {"type": "array", "items": items}
    return {"type": kind}
