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
    name, parameters = entry.get("name"), entry.get("parameters") or {}
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise RowError(RejectReason.INVALID_TOOLS, f"a tool without 'name' and 'parameters': {sample_of(entry)}")
    if allowed_name(name) != name:
        repairs.append(Repair.TOOL_RENAMED)
    if not isinstance(parameters.get("properties"), Mapping):
        parameters = _schema(parameters, repairs)
    return {"name": allowed_name(name), "description": entry.get("description"), "parameters": parameters}


def _schema(parameters: Mapping[str, Any], repairs: list[Repair]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required = []
    for name, spec in parameters.items():
        if not isinstance(spec, Mapping):
            raise RowError(RejectReason.INVALID_TOOLS, f"parameter '{name}': expected an object")
        words, _, rest = str(spec.get("type", "")).partition(", optional")
        properties[str(name)] = _type(words.removesuffix(",").strip(), repairs)
        if spec.get("description"):
            properties[str(name)]["description"] = str(spec["description"])
        if "optional" not in f"{rest}{spec.get('type', '')}".lower() and "default" not in spec:
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
