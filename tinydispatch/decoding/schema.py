"""JSON schemas as grammar rules: what a call's arguments may be, spaced as the writer of calls spaces them.

Enforced: types, required and unknown keys, enum and const, formats, patterns, lengths, number ranges, array sizes,
nesting, local references, anyOf and allOf. Not expressible, and so left to the check of the finished call: `not`,
`if`, `uniqueItems`, `multipleOf`, `dependentRequired`, `propertyNames`, `contains`, more than one branch of `oneOf`,
and equal keys in an object whose keys the schema does not list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from tinydispatch.decoding import terminals
from tinydispatch.decoding.merge import Unmergeable, merged
from tinydispatch.decoding.rules import GrammarError, Rules
from tinydispatch.tools import Tool, ToolError

# Parameters of a rule are 64-bit numbers, one bit for each key.
_MAX_FREE_KEYS = 60
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_STRING_KEYS = ("pattern", "format", "minLength", "maxLength")


class KeyOrder(StrEnum):
    """In which order an object's keys may stand: any, or the schema's, optional ones left out at will."""

    ANY = "any"
    SCHEMA = "schema"


class SchemaCompiler:
    """Compiles one tool's schema into `rules`."""

    def __init__(self, tool: Tool, rules: Rules, order: KeyOrder) -> None:
        self._tool, self._rules, self._order = tool, rules, order
        self._references: dict[str, str] = {}

    def arguments(self) -> str:
        """The rule of the whole arguments object.

        Raises:
            GrammarError: part of the schema cannot be expressed, or admits nothing.
        """
        root = dict(self._tool.parameters)
        # `check_calls` counts a parameter that the tool does not list as wrong.
        root.setdefault("properties", {})
        try:
            return self._compile(root, "")
        except RecursionError:
            raise self._error("", "it refers to itself without end, or is nested too deeply") from None

    def _error(self, path: str, problem: str) -> GrammarError:
        return GrammarError(self._tool.name, path, problem)

    def _compile(self, schema: Any, path: str) -> str:
        if schema is False:
            raise self._error(path, "'false' admits no value")
        if schema is True or not schema:
            return self._rules.any_value()
        if "$ref" in schema:
            return self._reference(schema, path)
        if "allOf" in schema:
            rest = {key: value for key, value in schema.items() if key != "allOf"}
            return self._compile(self._merged([rest, *map(self._resolved, schema["allOf"])], path), path)
        if "enum" in schema or "const" in schema:
            return self._choice(schema, path)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._alternatives(schema, key, path)
        return self._typed(schema, path)

    def _merged(self, parts: Sequence[Any], path: str) -> dict[str, Any]:
        try:
            return merged(parts)
        except Unmergeable as error:
            raise self._error(path, str(error)) from error

    def _resolved(self, schema: Any, depth: int = 0) -> Any:
        if not isinstance(schema, Mapping) or "$ref" not in schema or depth > 20:
            return schema
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return merged([self._resolved(self._pointed(str(schema["$ref"]), ""), depth + 1), rest])

    def _pointed(self, reference: str, path: str) -> Any:
        if reference != "#" and not reference.startswith("#/"):
            raise self._error(path, f"the reference {reference!r} points outside of the schema")
        value: Any = self._tool.parameters
        for part in reference.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                value = value[int(key)] if isinstance(value, Sequence) else value[key]
            except (KeyError, IndexError, TypeError, ValueError):
                raise self._error(path, f"the reference {reference!r} points nowhere") from None
        return value

    def _reference(self, schema: Mapping[str, Any], path: str) -> str:
        reference = str(schema["$ref"])
        rest = {key: value for key, value in schema.items() if key in _CONSTRAINING and key != "$ref"}
        if rest:
            return self._compile(self._merged([self._resolved({"$ref": reference}), rest], path), path)
        if reference not in self._references:
            self._references[reference] = name = self._rules.reserve()
            self._rules.define(name, self._compile(self._pointed(reference, path), path))
        return self._references[reference]

    def _choice(self, schema: Mapping[str, Any], path: str) -> str:
        listed = [schema["const"]] if "const" in schema else list(schema["enum"])
        values = [value for value in listed if self._admits(schema, value)]
        if not values:
            raise self._error(path, f"none of the values {listed!r} fits the rest of the schema")
        try:
            spellings = dict.fromkeys(terminals.literal(value) for value in values)
        except UnicodeEncodeError as error:
            raise self._error(path, f"a value is not valid Unicode: {error.reason}") from error
        return self._rules.rule(" | ".join(spellings))

    def _admits(self, schema: Mapping[str, Any], value: Any) -> bool:
        definitions = {
            key: self._tool.parameters[key] for key in ("$defs", "definitions") if key in self._tool.parameters
        }
        try:
            probe = Tool("probe", "", {**definitions, "type": "object", "properties": {"value": schema}})
        except ToolError:  # `merged` lists several patterns under one key, which is no schema any more
            return True
        return not probe.violations({"value": value})

    def _alternatives(self, schema: Mapping[str, Any], key: str, path: str) -> str:
        rest = {name: value for name, value in schema.items() if name != key and name in _CONSTRAINING}
        names = []
        problems = []
        for index, branch in enumerate(schema[key]):
            place = _join(path, f"{key}.{index}")
            try:
                whole = self._merged([rest, self._resolved(branch)], place) if rest else branch
                names.append(self._compile(whole, place))
            except GrammarError as error:
                # A branch that contradicts what stands beside it is none; the others remain.
                problems.append(error)
        if not names:
            raise problems[0]
        return self._rules.rule(" | ".join(dict.fromkeys(names)))

    def _typed(self, schema: Mapping[str, Any], path: str) -> str:
        kinds = schema.get("type") or _implied_type(schema)
        if kinds is None:
            return self._rules.any_value()
        if isinstance(kinds, list):
            return self._rules.rule(" | ".join(self._typed({**schema, "type": kind}, path) for kind in kinds))
        if kinds == "object":
            return self._object(schema, path)
        if kinds == "array":
            return self._array(schema, path)
        if kinds == "string":
            return self._string(schema, path)
        if kinds in ("integer", "number"):
            return self._number(schema, str(kinds), path)
        return self._rules.rule('"true" | "false"' if kinds == "boolean" else '"null"')

    def _number(self, schema: Mapping[str, Any], kind: str, path: str) -> str:
        bounds = {key: schema[key] for key in _BOUNDS if key in schema}
        if not bounds:
            return self._rules.terminal(terminals.INTEGER if kind == "integer" else terminals.NUMBER)
        name = self._rules.rule("%json " + json.dumps({"type": kind, **bounds}))
        self._rules.origins.setdefault(name, (self._tool.name, path))
        return name

    def _string(self, schema: Mapping[str, Any], path: str) -> str:
        patterns = [terminals.pattern_to_regex(pattern) for pattern in _listed(schema.get("pattern"))]
        for form in _listed(schema.get("format")):
            if form in terminals.FORMATS:
                patterns.append(terminals.FORMATS[form])
            elif form == terminals.TIME_ZONE:
                patterns.append(terminals.time_zone_regex())
        least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
        if most is not None and most < least:
            raise self._error(path, f"maxLength {most} is less than minLength {least}")
        body = terminals.string(patterns, least, None if most is None else int(most))
        return self._rules.terminal(body, self._tool.name, path)

    def _array(self, schema: Mapping[str, Any], path: str) -> str:
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
        if most is not None and most < least:
            raise self._error(path, f"maxItems {most} is less than minItems {least}")
        if "prefixItems" in schema:
            raise self._error(path, "'prefixItems' is not supported: give 'items', or an object with named fields")
        if most == 0:
            return self._rules.rule('"[]"')
        item = self._compile(schema.get("items", True), _join(path, "items"))
        more = f'(", " {item}){{{max(least - 1, 0)},{"" if most is None else int(most) - 1}}}' if most != 1 else ""
        filled = f'"[" {item} {more} "]"'
        return self._rules.rule(filled if least else f'"[]" | {filled}')

    def _object(self, schema: Mapping[str, Any], path: str) -> str:
        extra = schema.get("additionalProperties", "properties" not in schema)
        properties = dict(schema.get("properties", {}))
        required = [str(key) for key in schema.get("required", [])]
        for key in required:
            if key not in properties:
                if extra is False:
                    raise self._error(path, f"{key!r} is required and at the same time not allowed")
                properties[key] = extra
        members = {}
        for key, value in properties.items():
            try:
                members[key] = f"{terminals.literal(key)} {self._compile(value, _join(path, key))}"
            except GrammarError:
                # What admits nothing can be left out, unless it must be there.
                if key in required or value is not False:
                    raise
        # The key and the colon are one string: `"date": `.
        members = {key: text.replace('\\"" ', '\\": " ', 1) for key, text in members.items()}
        more = self._extra_member(extra, properties, path)
        if more is None and not members:
            return self._rules.rule('"{}"')
        is_free = self._order is KeyOrder.ANY and len(members) <= _MAX_FREE_KEYS
        compose = self._in_any_order if is_free else self._in_schema_order
        return compose(members, frozenset(required), more)

    def _extra_member(self, extra: Any, properties: Mapping[str, Any], path: str) -> str | None:
        if extra is False:
            return None
        value = self._compile(extra, _join(path, "additionalProperties"))
        key = terminals.string([])
        if properties:
            listed = " | ".join(terminals.literal(name) for name in properties)
            key = f"({key}) & ~({listed})"
        return f'{self._rules.terminal(key, self._tool.name, path)} ": " {value}'

    def _in_any_order(self, members: Mapping[str, str], required: frozenset[str], more: str | None) -> str:
        bits = {key: bit for bit, key in enumerate(members)}
        rest, first = self._rules.reserve(), self._rules.reserve()
        needed = [f"bit_set({bits[key]})" for key in members if key in required]
        end = '""' + (f" %if {_all(needed)}" if needed else "")
        following = [
            f'", " {text} {rest}::set_bit({bits[key]}) %if bit_clear({bits[key]})' for key, text in members.items()
        ]
        starting = [f"{text} {rest}::{1 << bits[key]:#x}" for key, text in members.items()]
        if more is not None:
            following.append(f'", " {more} {rest}::_')
            starting.append(f"{more} {rest}::0x0")
        self._rules.define(rest, " | ".join([end, *following]), "::_")
        self._rules.define(first, " | ".join([*([] if required else ['""']), *starting]))
        return self._rules.rule(f'"{{" {first} "}}"')

    def _in_schema_order(self, members: Mapping[str, str], required: frozenset[str], more: str | None) -> str:
        # Right to left: what may follow once something stands before it, and what may come first.
        rest = self._rules.rule('""' if more is None else f'(", " {more})*')
        first = self._rules.rule('""' if more is None else f'({more} (", " {more})*)?')
        for key, text in reversed(list(members.items())):
            is_required = key in required
            first = self._rules.rule(f"{text} {rest}" + ("" if is_required else f" | {first}"))
            rest = self._rules.rule(f'", " {text} {rest}' + ("" if is_required else f" | {rest}"))
        return self._rules.rule(f'"{{" {first} "}}"')


_CONSTRAINING = frozenset(
    {*_BOUNDS, *_STRING_KEYS, "type", "enum", "const", "properties", "required", "additionalProperties", "items"}
    | {"minItems", "maxItems", "anyOf", "oneOf", "allOf", "$ref", "prefixItems"}
)


def _implied_type(schema: Mapping[str, Any]) -> str | None:
    if "properties" in schema or "required" in schema or "additionalProperties" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    if any(key in schema for key in _STRING_KEYS):
        return "string"
    return "number" if any(key in schema for key in _BOUNDS) else None


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _all(conditions: Sequence[str]) -> str:
    text = conditions[-1]
    for condition in reversed(conditions[:-1]):
        text = f"and({condition}, {text})"
    return text


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
