"""A form for a tool's arguments, made from its JSON schema, and what was filled in, checked against the schema.

A form is JSON that `static/calls.js` draws:

    {"name": "set_light", "description": "…", "field": {"kind": "object", "fields": [
        {"name": "room", "is_required": true, "field": {"kind": "choice", "values": ["kitchen", "hall"]}},
        {"name": "level", "is_required": false, "field": {"kind": "integer", "hint": "0 to 100"}}]}}

Kinds are object, array (with `item`), choice (with `values`), string, integer, number, boolean, and json for what no
form can show: alternatives, objects with any keys, schemas without an end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinydispatch.json_schema import Node, Schema
from tinydispatch.tools import Tool, ToolCall, check_calls

# Of one tool; what comes after so many, or lies deeper, is filled in as JSON.
_MAX_FIELDS, _MAX_DEPTH = 400, 8
_SIMPLE = ("string", "integer", "number", "boolean")
_MAX_HINT_CHARS = 120


def tool_form(tool: Tool) -> dict[str, Any]:
    """The form of one tool's arguments."""
    field = _Form(tool.schema, tool.parameters).field(tool.schema.root, tool.parameters, 0)
    if field["kind"] != "object":
        field = {"kind": "object", "fields": [], "has_others": True}
    return {"name": tool.name, "description": tool.description, "field": field}


class _Form:
    """Walks a schema in its one form, and beside it the document as it was written, which has the descriptions."""

    def __init__(self, schema: Schema, document: Mapping[str, Any]) -> None:
        self._schema, self._document = schema, document
        self._n_fields = 0

    def field(self, node: Node, written: Any, depth: int) -> dict[str, Any]:
        self._n_fields += 1
        written = self._behind_references(written)
        found = self._kind(node, written, depth) if self._n_fields <= _MAX_FIELDS and depth <= _MAX_DEPTH else None
        found = found or {"kind": "json"}
        for key in ("title", "description"):
            if isinstance(written, Mapping) and isinstance(written.get(key), str) and depth:
                found[key] = written[key]
        return found

    def _kind(self, node: Node, written: Any, depth: int) -> dict[str, Any] | None:
        if isinstance(node, bool):
            return None
        parts = list(self._schema.in_place(node, conditional=False))
        if (found := self._alternative(parts, written, depth)) is not None:
            return found
        listed = next((part["enum"] for part in parts if "enum" in part), None)
        if listed is None:
            listed = next(([part["const"]] for part in parts if "const" in part), None)
        types = next((part["type"] for part in parts if "type" in part), ())
        if listed is not None:
            values = [value for value in listed if value is not None]
            return {"kind": "choice", "values": values, "is_nullable": None in listed}
        kinds = [kind for kind in types if kind != "null"]
        kind = kinds[0] if len(kinds) == 1 else "object" if not kinds and _is_object(parts) else None
        nullable = {"is_nullable": True} if "null" in types else {}
        if kind == "object":
            return self._object(parts, written, depth) | nullable
        if kind == "array":
            item = next((part["items"] for part in parts if "items" in part), True)
            if any("prefixItems" in part for part in parts):
                return None
            inner = written.get("items") if isinstance(written, Mapping) else None
            return {"kind": "array", "item": self.field(item, inner, depth + 1), "hint": _hint(parts)} | nullable
        return {"kind": kind, "hint": _hint(parts)} | nullable if kind in _SIMPLE else None

    def _alternative(self, parts: Sequence[Mapping[str, Any]], written: Any, depth: int) -> dict[str, Any] | None:
        """Of `anyOf` with null and one more thing, that thing; of several, nothing that a form can show."""
        for part in parts:
            for key in ("anyOf", "oneOf"):
                if key not in part:
                    continue
                rest = [inner for inner in part[key] if not _is_null(inner)]
                if len(rest) != 1:
                    return {"kind": "json"}
                texts = written.get(key) if isinstance(written, Mapping) else None
                inner_text = next((text for text in texts or () if not _is_null(text)), written)
                found = self._kind(rest[0], self._behind_references(inner_text), depth + 1) or {"kind": "json"}
                return found | ({"is_nullable": True} if len(rest) < len(part[key]) else {})
        return None

    def _object(self, parts: Sequence[Mapping[str, Any]], written: Any, depth: int) -> dict[str, Any]:
        properties = {name: node for part in parts for name, node in part.get("properties", {}).items()}
        required = {name for part in parts for name in part.get("required", ())}
        texts = written.get("properties") if isinstance(written, Mapping) else None
        fields = []
        for name, node in properties.items():
            text = texts.get(name) if isinstance(texts, Mapping) else None
            fields.append({"name": name, "is_required": name in required, "field": self.field(node, text, depth + 1)})
        others = any(part.get(key, False) is not False for part in parts
                     for key in ("additionalProperties", "patternProperties", "unevaluatedProperties"))  # fmt: skip
        return {"kind": "object", "fields": fields, "has_others": others or not fields}

    def _behind_references(self, written: Any) -> Any:
        for _ in range(_MAX_DEPTH):
            if not isinstance(written, Mapping) or not isinstance(written.get("$ref"), str):
                break
            if isinstance(written.get("description"), str) or not written["$ref"].startswith("#/"):
                break
            target: Any = self._document
            for key in written["$ref"][2:].split("/"):
                key = key.replace("~1", "/").replace("~0", "~")
                target = target.get(key) if isinstance(target, Mapping) else None
            written = target
        return written


def _is_object(parts: Sequence[Mapping[str, Any]]) -> bool:
    return any("properties" in part for part in parts)


def _is_null(node: Any) -> bool:
    return isinstance(node, Mapping) and node.get("type") in (["null"], "null")


def _hint(parts: Sequence[Mapping[str, Any]]) -> str:
    """What must be true of a value, in a few words."""
    said = {key: value for part in reversed(parts) for key, value in part.items()}
    words = [
        f"{text} {said[key]}"
        for key, text in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "more than"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "less than"),
            ("multipleOf", "a multiple of"),
            ("minLength", "characters: at least"),
            ("maxLength", "characters: at most"),
            ("minItems", "items: at least"),
            ("maxItems", "items: at most"),
            ("format", ""),
            ("pattern", "pattern"),
        )
        if key in said
    ]
    return ", ".join(word.strip() for word in words)[:_MAX_HINT_CHARS]


@dataclass(frozen=True)
class Answer:
    """What a reply should have been: calls that fit their tools, or words, or both."""

    calls: tuple[ToolCall, ...]
    reply: str

    def to_json(self) -> dict[str, Any]:
        """As `correction` in a line of the dispatch log."""
        calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in self.calls]
        return {"calls": calls, "reply": self.reply}


@dataclass(frozen=True)
class Problem:
    """Why an answer cannot be taken: `call` is the call's index, None for the answer as a whole; `place` leads to the
    argument.
    """

    message: str
    call: int | None = None
    place: tuple[str | int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the form reads it."""
        return {"message": self.message, "call": self.call, "place": list(self.place)}


def read_answer(value: Any, tools: Sequence[Tool]) -> Answer | list[Problem]:
    """`{"calls": [{"name", "arguments"}], "reply": "…"}` → the answer, or everything that is wrong with it."""
    calls = value.get("calls") if isinstance(value, Mapping) else None
    reply = (value.get("reply") if isinstance(value, Mapping) else None) or ""
    if not isinstance(calls, list) or not isinstance(reply, str):
        return [Problem("an answer is an object with an array 'calls' and a text 'reply'")]
    found, problems = [], []
    for index, call in enumerate(calls):
        name = call.get("name") if isinstance(call, Mapping) else None
        arguments = call.get("arguments") if isinstance(call, Mapping) else None
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            problems.append(Problem("a call has a text 'name' and an object 'arguments'", index))
            continue
        made = ToolCall(name, arguments)
        found.append(made)
        for violation in check_calls([made], tools):
            if violation.reason == "unknown_tool":
                problems.append(Problem(f"'{name}' is none of the tools on offer", index))
            problems += [Problem(detail.message, index, detail.place) for detail in violation.details]
    if not calls and not reply.strip():
        problems.append(Problem("the answer is empty: add a call, or write what should have been said"))
    return problems or Answer(tuple(found), reply)
