"""JSON schemas of strangers: read whatever their dialect, bounded in size, and checked in bounded time.

`Schema` turns drafts 3 to 2020-12 and OpenAPI 3.0 into one form, draft 2020-12 with every reference a pointer into the
document, and checks values against it. Each pair of a schema and a value is looked at once, so that neither recursion
nor references that fan out cost more than their product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from tinydispatch.patterns import read_pattern
from tinydispatch.string_formats import fits_format

Node = bool | dict[str, Any]

MAX_DEPTH = 160
MAX_VALUES = 60_000
MAX_CHARACTERS = 2_000_000
_MAX_STEPS = 300_000
_MAX_PROBLEMS = 50

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_ONE = frozenset({"not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames"}
                 | {"unevaluatedItems", "unevaluatedProperties"})  # fmt: skip
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS = frozenset({"properties", "patternProperties", "dependentSchemas"})
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
                    | {"minContains", "maxContains"})  # fmt: skip
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_HOLDERS = ("$defs", "definitions")
_OBJECTS = frozenset({*_ONE, *_MAPS, *_HOLDERS, "dependentRequired", "dependencies"} - {"items"})
# The keywords under which the same value is described further, in place.
IN_PLACE = ("allOf", "anyOf", "oneOf", "if", "then", "else", "dependentSchemas")


class SchemaError(ValueError):
    """What is no JSON schema, or too large to be one of a tool; `path` is where, "" for the whole."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path or 'parameters'}: {problem}")
        self.path, self.problem = path, problem


@dataclass(frozen=True)
class SchemaViolation:
    """One reason why a call does not fit its tool: `path` is where ("start", "cc.0"), "" for the whole.

    `keyword` is the schema's keyword that is broken, `place` the path as a tuple.
    """

    path: str
    message: str
    keyword: str = ""
    place: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Note:
    """Something in a schema that is not enforced as its author wrote it, and where."""

    path: str
    text: str


class _TooManySteps(Exception):  # noqa: N818 (never leaves this file)
    pass


_Problem = tuple[tuple[str | int, ...], str, str]


class Schema:
    """One schema in one form. `root` is that form, `notes` what of it nobody can check.

    Raises:
        SchemaError: a keyword has a value of the wrong type, or the schema is too large or nested too deeply.
    """

    def __init__(self, document: Any) -> None:
        _measure(document)
        document = tidied(document)
        self.notes: list[Note] = []
        self._document = document
        self._places = _Places(document)
        self._nodes: dict[str, Node] = {}
        self._pending: list[tuple[str, Any, str]] = []
        self._enumerations: dict[int, frozenset[Any]] = {}
        self._n_read = 0
        self.root: Node = self._node(document, "", "")
        while self._pending:
            pointer, value, base = self._pending.pop()
            self._nodes[pointer] = self._node(value, _path(pointer), base)
        self._note_circles()

    def _note_circles(self) -> None:
        """References that lead to nothing but themselves say nothing."""
        is_done: set[str] = set()
        for start in self._nodes:
            chain: list[str] = []
            pointer: str | None = start
            while pointer is not None and pointer not in is_done and pointer not in chain:
                chain.append(pointer)
                node = self.target(pointer)
                pointer = node.get("$ref") if isinstance(node, dict) else None
            if pointer in chain:
                self.notes.append(Note(_path(pointer), "the reference leads to itself without end: any value passes"))
            is_done.update(chain)

    def target(self, reference: str) -> Node:
        """What a reference in this form stands for."""
        return self.root if reference == "" else self._nodes[reference]

    def keys_of(self, listed: list[Any]) -> frozenset[Any]:
        """The values of an enumeration in a form that is found at once, however many there are."""
        if id(listed) not in self._enumerations:
            self._enumerations[id(listed)] = frozenset(map(_key, listed))
        return self._enumerations[id(listed)]

    # Reading

    def _node(self, value: Any, path: str, base: str) -> Node:
        if value is None:
            return True
        if isinstance(value, bool):
            return value
        if not isinstance(value, Mapping):
            raise SchemaError(path, f"{_shown(value)} is not of type 'object', 'boolean'")
        self._n_read += 1
        if self._n_read > 2 * MAX_VALUES:
            raise SchemaError(path, "its references stand for more than can be read: offer a smaller schema")
        identity = value.get("$id", value.get("id"))
        if isinstance(identity, str) and identity in self._places.resources:
            base = self._places.resources[identity]
        node: dict[str, Any] = {}
        for key, item in value.items():
            if item is not None or key in ("const", "enum"):
                self._keyword(node, str(key), item, _join(path, str(key)), base)
        self._references(node, value, path, base)
        self._old_spellings(node, value, path, base)
        if value.get("nullable") is True and not _admits_null(node):
            return {"anyOf": [node, {"type": ["null"]}]}
        return node

    def _keyword(self, node: dict[str, Any], key: str, value: Any, path: str, base: str) -> None:
        if key in _ONE and not (key == "items" and isinstance(value, list)):
            node[key] = self._node(value, path, base)
        elif key in _LISTS or key == "items":
            if value == [] and key == "allOf":
                return
            if not isinstance(value, list) or (not value and key != "items"):
                raise SchemaError(path, f"{_shown(value)} is not a non-empty array of schemas")
            node[key] = [self._node(item, _join(path, str(index)), base) for index, item in enumerate(value)]
        elif key in _MAPS:
            self._map(node, key, value, path, base)
        elif key in _HOLDERS:
            if not isinstance(value, Mapping):
                raise SchemaError(path, f"{_shown(value)} is not of type 'object'")
            for name, item in value.items():
                self._node(item, _join(path, str(name)), base)
        elif key in _COUNTS:
            if not _is_count(value):
                raise SchemaError(path, f"{_shown(value)} is not a number of things, 0 or more")
            node[key] = int(value)
        elif key in _BOUNDS:
            if not (_is_number(value) or (key.startswith("exclusive") and isinstance(value, bool))):
                raise SchemaError(path, f"{_shown(value)} is not of type 'number'")
            if isinstance(value, bool) or math.isfinite(_as_float(value)) or isinstance(value, int):
                node[key] = value
        elif key == "multipleOf":
            if not _is_number(value) or not value > 0:
                raise SchemaError(path, f"{_shown(value)} is not a number greater than 0")
            if isinstance(value, int) or math.isfinite(value):
                node[key] = value
        else:
            self._other(node, key, value, path)

    def _map(self, node: dict[str, Any], key: str, value: Any, path: str, base: str) -> None:
        if not isinstance(value, Mapping):
            raise SchemaError(path, f"{_shown(value)} is not of type 'object'")
        node[key] = {
            str(name): self._node(item, _join(path, str(name)), base)
            for name, item in value.items()
            if item is not None or key != "properties"
        }
        if key == "patternProperties":
            for pattern in node[key]:
                self._note_pattern(pattern, path)
        if key == "properties":
            # Draft 3, and many since by mistake, say in the property itself that it is required.
            listed = [str(name) for name, item in value.items() if _says_required(item)]
            if listed:
                node["required"] = list(dict.fromkeys([*node.get("required", []), *listed]))

    def _other(self, node: dict[str, Any], key: str, value: Any, path: str) -> None:
        if key == "type":
            kinds = value if isinstance(value, list) else [value]
            if "any" in [kind for kind in kinds if isinstance(kind, str)]:
                return
            if not kinds or any(kind not in _TYPES for kind in kinds):
                raise SchemaError(path, f"{_shown(value)} is not one of {', '.join(map(repr, _TYPES))}")
            node[key] = list(dict.fromkeys(kinds))
        elif key == "enum":
            if value is None:
                return
            if not isinstance(value, list):
                raise SchemaError(path, f"{_shown(value)} is not of type 'array'")
            node[key] = list(value)
        elif key == "const":
            node[key] = value
        elif key == "required":
            if isinstance(value, bool):
                return
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise SchemaError(path, f"{_shown(value)} is not an array of names")
            node[key] = list(dict.fromkeys([*value, *node.get("required", [])]))
        elif key == "pattern":
            if not isinstance(value, str):
                raise SchemaError(path, f"{_shown(value)} is not of type 'string'")
            node[key] = value
            self._note_pattern(value, path)
        elif key == "format":
            if not isinstance(value, str):
                raise SchemaError(path, f"{_shown(value)} is not of type 'string'")
            node[key] = value
        elif key == "uniqueItems":
            if not isinstance(value, bool):
                raise SchemaError(path, f"{_shown(value)} is not of type 'boolean'")
            node[key] = value
        elif key == "dependentRequired":
            if not isinstance(value, Mapping) or not all(isinstance(names, list) for names in value.values()):
                raise SchemaError(path, f"{_shown(value)} does not give an array of names for each name")
            node[key] = {str(name): [str(item) for item in names] for name, names in value.items()}

    def _note_pattern(self, pattern: str, path: str) -> None:
        if not read_pattern(pattern).is_readable:
            self.notes.append(Note(path, f"the pattern {_shown(pattern)} cannot be read and is not checked"))

    def _references(self, node: dict[str, Any], value: Mapping[str, Any], path: str, base: str) -> None:
        found = []
        for key in _REFERENCES:
            reference = value.get(key)
            if reference is None:
                continue
            if not isinstance(reference, str):
                raise SchemaError(_join(path, key), f"{reference!r} is not of type 'string'")
            pointer = self._places.find(reference, base)
            if pointer is None:
                self.notes.append(
                    Note(
                        path, f"the reference {_shown(reference)} leads out of the schema or nowhere: any value passes"
                    )
                )
                continue
            if pointer and pointer not in self._nodes:
                self._nodes[pointer] = True  # until it is read
                self._pending.append((pointer, self._places.at(pointer), base))
            found.append(pointer)
        if len(found) == 1:
            node["$ref"] = found[0]
        elif found:
            node["allOf"] = [*node.get("allOf", []), *({"$ref": pointer} for pointer in found)]

    def _old_spellings(self, node: dict[str, Any], value: Mapping[str, Any], path: str, base: str) -> None:
        for key, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if isinstance(node.get(key), bool) and node.pop(key) and bound in node:
                node[key] = node.pop(bound)
        if isinstance(node.get("items"), list):
            prefix = node.pop("items")
            if prefix:
                node.setdefault("prefixItems", prefix)
            if value.get("additionalItems") is not None:
                node["items"] = self._node(value["additionalItems"], _join(path, "additionalItems"), base)
        dependencies = value.get("dependencies")
        for name, item in dependencies.items() if isinstance(dependencies, Mapping) else ():
            if isinstance(item, (list, str)):
                names = [item] if isinstance(item, str) else [str(part) for part in item]
                node.setdefault("dependentRequired", {})[str(name)] = names
            else:
                place = _join(_join(path, "dependencies"), str(name))
                node.setdefault("dependentSchemas", {})[str(name)] = self._node(item, place, base)

    # Checking

    def violations(self, value: Any) -> list[SchemaViolation]:
        """Everything in `value` that the schema does not allow, at most fifty things."""
        try:
            problems = _Check(self).problems(self.root, value)
        except (_TooManySteps, RecursionError):
            return [SchemaViolation("", "it is too large or too deeply nested to be checked against its schema")]
        return [
            SchemaViolation(".".join(map(str, place)), message, keyword, place) for place, message, keyword in problems
        ]

    def is_valid(self, node: Node, value: Any) -> bool:
        """Whether a part of this schema allows the value."""
        try:
            return not _Check(self).problems(node, value)
        except (_TooManySteps, RecursionError):
            return False

    def in_place(self, node: Node, *, conditional: bool = True) -> Iterator[dict[str, Any]]:
        """The node and all that describe the same value: behind references, `allOf`, and, if wanted, alternatives."""
        stack: list[Node] = [node]
        seen: set[int] = set()
        while stack:
            part = stack.pop()
            if isinstance(part, bool) or id(part) in seen:
                continue
            seen.add(id(part))
            yield part
            following: list[Node] = [self.target(part["$ref"])] if "$ref" in part else []
            for key in IN_PLACE if conditional else ("allOf",):
                inner = part.get(key, [])
                inner = inner.values() if isinstance(inner, dict) and key == "dependentSchemas" else inner
                following += [inner] if isinstance(inner, (dict, bool)) else inner
            stack += reversed(following)

    @cached_property
    def listed_keys(self) -> frozenset[str]:
        """The names that the schema lists, or asks for, for the object as a whole, wherever it does."""
        return frozenset(
            key for part in self.in_place(self.root) for key in (*part.get("properties", ()), *part.get("required", ()))
        )

    @cached_property
    def key_patterns(self) -> tuple[str, ...]:
        """The patterns of names that the schema lists for the object as a whole."""
        return tuple(pattern for part in self.in_place(self.root) for pattern in part.get("patternProperties", {}))

    @cached_property
    def says_which_others(self) -> bool:
        """Whether it says of other names than the listed ones that they may stand."""
        keys = ("additionalProperties", "unevaluatedProperties")
        return any(part.get(key, False) is not False for part in self.in_place(self.root) for key in keys)


def _measure(document: Any) -> None:
    """Refuse what is too large, without recursion, before anything else looks at it."""
    level, n_values, n_characters, depth = [document], 0, 0, 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise SchemaError("", f"it is nested more than {MAX_DEPTH} levels deep, or holds itself")
        following: list[Any] = []
        for value in level:
            if isinstance(value, str):
                n_characters += len(value)
            elif isinstance(value, Mapping):
                n_characters += sum(len(key) for key in value if isinstance(key, str))
                following += value.values()
            elif isinstance(value, (list, tuple)):
                following += value
            elif isinstance(value, int) and value.bit_length() > 4_096:
                raise SchemaError("", "it holds a number of more than a thousand digits")
        n_values += len(level)
        if n_values > MAX_VALUES or n_characters > MAX_CHARACTERS:
            raise SchemaError(
                "", f"it is larger than {MAX_VALUES:,} values or {MAX_CHARACTERS:,} characters: offer a smaller schema"
            )
        level = following


class _Places:
    """Where the references of a document lead: JSON pointers, `$id`s and anchors."""

    def __init__(self, document: Any) -> None:
        self._document = document
        self.resources: dict[str, str] = {}
        self._anchors: dict[str, str] = {}
        self._found: dict[tuple[str, str], str | None] = {}
        stack: list[tuple[str, Any]] = [("", document)]
        while stack:
            pointer, value = stack.pop()
            if isinstance(value, Mapping):
                self._collect(pointer, value)
                stack += [(f"{pointer}/{_escaped(str(key))}", item) for key, item in value.items()
                          if isinstance(item, (Mapping, list))]  # fmt: skip
            elif isinstance(value, list):
                stack += [(f"{pointer}/{index}", item) for index, item in enumerate(value)
                          if isinstance(item, (Mapping, list))]  # fmt: skip

    def _collect(self, pointer: str, value: Mapping[str, Any]) -> None:
        for key in ("$id", "id"):
            identity = value.get(key)
            if isinstance(identity, str):
                if identity.startswith("#"):
                    self._anchors.setdefault(identity[1:], pointer)
                else:
                    self.resources.setdefault(identity, pointer)
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(value.get(key), str):
                self._anchors.setdefault(value[key], pointer)

    def find(self, reference: str, base: str) -> str | None:
        """The pointer that a reference means, from within the resource at `base`; None if it means nothing here."""
        if (reference, base) not in self._found:
            self._found[reference, base] = self._find(reference, base)
        return self._found[reference, base]

    def _find(self, reference: str, base: str) -> str | None:
        resource, _, fragment = reference.strip().partition("#")
        fragment = unquote(fragment)
        if resource:
            start = self._resource(resource)
            if start is None:
                return None
            starts = [start]
        else:
            # What stands in a part with an `$id` was often written for the whole document.
            starts = [base, ""]
        if fragment and not fragment.startswith("/"):
            return self._anchors.get(fragment)
        return next((start + fragment for start in starts if self.at(start + fragment) is not None), None)

    def _resource(self, name: str) -> str | None:
        if name in self.resources:
            return self.resources[name]
        # A relative reference is the end of an absolute `$id`.
        tail = "/" + name.removeprefix("./").lstrip("/")
        return next((pointer for identity, pointer in self.resources.items() if identity.endswith(tail)), None)

    def at(self, pointer: str) -> Any:
        """The value under a pointer, None where there is none."""
        value = self._document
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, Mapping) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                return None
        return value if isinstance(value, (Mapping, bool)) else None


class _Check:
    """One value against one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema, self._steps = schema, 0
        self._known: dict[tuple[int, int], list[_Problem]] = {}
        self._kept: list[Any] = []

    def problems(self, node: Node, value: Any) -> list[_Problem]:
        """What is wrong with the value, places counted from it."""
        if isinstance(node, bool):
            return [] if node else [((), f"{_shown(value)} is not allowed here", "false")]
        key = (id(node), id(value))
        if key not in self._known:
            self._steps += 1
            if self._steps > _MAX_STEPS:
                raise _TooManySteps
            # While it is being looked at it counts as right: a schema that contains itself in place adds nothing.
            self._known[key] = []
            self._kept.append(value)
            found: list[_Problem] = []
            for problem in self._all(node, value):
                if problem not in found:
                    found.append(problem)
                if len(found) >= _MAX_PROBLEMS:
                    break
            self._known[key] = found
        return self._known[key]

    def _all(self, node: dict[str, Any], value: Any) -> Iterator[_Problem]:
        for keyword, expected in node.items():
            if keyword == "$ref":
                yield from self.problems(self._schema.target(expected), value)
            elif keyword in _GENERAL:
                yield from _GENERAL[keyword](self, node, expected, value)
            elif isinstance(value, dict):
                yield from _OBJECT[keyword](self, node, expected, value) if keyword in _OBJECT else ()
            elif isinstance(value, list):
                yield from _ARRAY[keyword](self, node, expected, value) if keyword in _ARRAY else ()
            elif isinstance(value, str):
                if keyword in _STRING and (message := _STRING[keyword](expected, value)):
                    yield (), message, keyword
            elif _is_number(value) and keyword in _NUMBER and (message := _NUMBER[keyword](expected, value)):
                yield (), message, keyword

    def _within(self, step: str | int, node: Node, value: Any) -> Iterator[_Problem]:
        for place, message, keyword in self.problems(node, value):
            yield (step, *place), message, keyword

    def _is_valid(self, node: Node, value: Any) -> bool:
        return not self.problems(node, value)

    # Any value

    def _type(self, _: Any, kinds: list[str], value: Any) -> Iterator[_Problem]:
        if not any(_is_of(kind, value) for kind in kinds):
            yield (), f"{_shown(value)} is not of type {', '.join(map(repr, kinds))}", "type"

    def _enum(self, _: Any, listed: list[Any], value: Any) -> Iterator[_Problem]:
        if _key(value) not in self._schema.keys_of(listed):
            yield (), f"{_shown(value)} is not one of {_shown(listed)}", "enum"

    def _const(self, _: Any, wanted: Any, value: Any) -> Iterator[_Problem]:
        if not equal(wanted, value):
            yield (), f"{_shown(wanted)} was expected", "const"

    def _all_of(self, _: Any, branches: list[Node], value: Any) -> Iterator[_Problem]:
        for branch in branches:
            yield from self.problems(branch, value)

    def _any_of(self, _: Any, branches: list[Node], value: Any) -> Iterator[_Problem]:
        if not any(self._is_valid(branch, value) for branch in branches):
            yield (), f"{_shown(value)} is not valid under any of the given schemas", "anyOf"

    def _one_of(self, _: Any, branches: list[Node], value: Any) -> Iterator[_Problem]:
        n_valid = sum(self._is_valid(branch, value) for branch in branches)
        if not n_valid:
            yield (), f"{_shown(value)} is not valid under any of the given schemas", "oneOf"
        elif n_valid > 1:
            yield (), f"{_shown(value)} is valid under {n_valid} of the given schemas, and not under one alone", "oneOf"

    def _not(self, _: Any, forbidden: Node, value: Any) -> Iterator[_Problem]:
        if self._is_valid(forbidden, value):
            yield (), f"{_shown(value)} should not be valid under {_shown(forbidden)}", "not"

    def _if(self, node: dict[str, Any], condition: Node, value: Any) -> Iterator[_Problem]:
        yield from self.problems(node.get("then" if self._is_valid(condition, value) else "else", True), value)

    # Objects

    def _properties(self, _: Any, properties: dict[str, Node], value: dict[str, Any]) -> Iterator[_Problem]:
        for key, item in value.items():
            if key in properties:
                yield from self._within(key, properties[key], item)

    def _pattern_properties(self, _: Any, patterns: dict[str, Node], value: dict[str, Any]) -> Iterator[_Problem]:
        for pattern, node in patterns.items():
            for key, item in value.items():
                if read_pattern(pattern).matches(key):
                    yield from self._within(key, node, item)

    def _additional(self, node: dict[str, Any], rest: Node, value: dict[str, Any]) -> Iterator[_Problem]:
        listed, patterns = node.get("properties", {}), node.get("patternProperties", {})
        extras = [key for key in value if key not in listed and not _matches_any(patterns, key)]
        if rest is False and extras:
            shown, verb = ", ".join(map(_shown, sorted(extras))), "was" if len(extras) == 1 else "were"
            yield (), f"Additional properties are not allowed ({shown} {verb} unexpected)", "additionalProperties"
        elif rest is not False:
            for key in extras:
                yield from self._within(key, rest, value[key])

    def _names(self, _: Any, node: Node, value: dict[str, Any]) -> Iterator[_Problem]:
        for key in value:
            for _place, message, keyword in self.problems(node, key):
                yield (), f"the name {_shown(key)}: {message}", keyword

    def _required(self, _: Any, names: list[str], value: dict[str, Any]) -> Iterator[_Problem]:
        for name in names:
            if name not in value:
                yield (), f"{name!r} is a required property", "required"

    def _dependent_required(self, _: Any, needs: dict[str, list[str]], value: dict[str, Any]) -> Iterator[_Problem]:
        for name, others in needs.items():
            for other in others if name in value else ():
                if other not in value:
                    yield (), f"{other!r} is a dependency of {name!r}", "dependentRequired"

    def _dependent_schemas(self, _: Any, nodes: dict[str, Node], value: dict[str, Any]) -> Iterator[_Problem]:
        for name, node in nodes.items():
            if name in value:
                yield from self.problems(node, value)

    def _min_properties(self, _: Any, least: int, value: dict[str, Any]) -> Iterator[_Problem]:
        if len(value) < least:
            yield (), f"{_shown(value)} does not have enough properties", "minProperties"

    def _max_properties(self, _: Any, most: int, value: dict[str, Any]) -> Iterator[_Problem]:
        if len(value) > most:
            yield (), f"{_shown(value)} has too many properties", "maxProperties"

    def _unevaluated_properties(self, node: dict[str, Any], rest: Node, value: dict[str, Any]) -> Iterator[_Problem]:
        known = self._evaluated(node, value, is_top=True)
        extras = [key for key in value if key not in known]
        if rest is False and extras:
            shown, verb = ", ".join(map(_shown, sorted(extras))), "was" if len(extras) == 1 else "were"
            yield (), f"Unevaluated properties are not allowed ({shown} {verb} unexpected)", "unevaluatedProperties"
        elif rest is not False:
            for key in extras:
                yield from self._within(key, rest, value[key])

    # Arrays

    def _items(self, node: dict[str, Any], rest: Node, value: list[Any]) -> Iterator[_Problem]:
        n_prefix = len(node.get("prefixItems", ()))
        if rest is False and len(value) > n_prefix:
            yield (), f"Expected at most {n_prefix} items but found {len(value) - n_prefix} extra", "items"
        elif rest is not False:
            for index in range(n_prefix, len(value)):
                yield from self._within(index, rest, value[index])

    def _prefix_items(self, _: Any, nodes: list[Node], value: list[Any]) -> Iterator[_Problem]:
        for index, (node, item) in enumerate(zip(nodes, value, strict=False)):
            yield from self._within(index, node, item)

    def _contains(self, node: dict[str, Any], wanted: Node, value: list[Any]) -> Iterator[_Problem]:
        n_found = sum(self._is_valid(wanted, item) for item in value)
        least, most = node.get("minContains", 1), node.get("maxContains")
        if n_found < least:
            yield (), f"{_shown(value)} does not contain {least} items matching the given schema", "contains"
        elif most is not None and n_found > most:
            yield (), f"Too many items match the given schema (expected at most {most})", "maxContains"

    def _unique(self, _: Any, is_unique: bool, value: list[Any]) -> Iterator[_Problem]:
        if is_unique and len({_key(item) for item in value}) < len(value):
            yield (), f"{_shown(value)} has non-unique elements", "uniqueItems"

    def _min_items(self, _: Any, least: int, value: list[Any]) -> Iterator[_Problem]:
        if len(value) < least:
            yield (), f"{_shown(value)} {'should be non-empty' if least == 1 else 'is too short'}", "minItems"

    def _max_items(self, _: Any, most: int, value: list[Any]) -> Iterator[_Problem]:
        if len(value) > most:
            yield (), f"{_shown(value)} {'is expected to be empty' if not most else 'is too long'}", "maxItems"

    def _unevaluated_items(self, node: dict[str, Any], rest: Node, value: list[Any]) -> Iterator[_Problem]:
        known = self._evaluated(node, value, is_top=True)
        extras = [index for index in range(len(value)) if index not in known]
        if rest is False and extras:
            yield (), f"Unevaluated items are not allowed ({len(extras)} unexpected)", "unevaluatedItems"
        elif rest is not False:
            for index in extras:
                yield from self._within(index, rest, value[index])

    def _evaluated(self, node: Node, value: Any, *, is_top: bool = False) -> set[Any]:
        """The keys or indices that a node, and what applies in place, speaks of."""
        known: set[Any] = set()
        stack: list[tuple[Node, bool]] = [(node, is_top)]
        seen: set[int] = set()
        while stack:
            part, is_first = stack.pop()
            if isinstance(part, bool) or id(part) in seen:
                continue
            seen.add(id(part))
            known |= self._own(part, value, is_first)
            following: list[Node] = [self._schema.target(part["$ref"])] if "$ref" in part else []
            following += part.get("allOf", [])
            following += [x for key in ("anyOf", "oneOf") for x in part.get(key, []) if self._is_valid(x, value)]
            if "if" in part:
                holds = self._is_valid(part["if"], value)
                following += [part["if"]] if holds else []
                following += [part.get("then" if holds else "else", True)]
            if isinstance(value, dict):
                following += [x for name, x in part.get("dependentSchemas", {}).items() if name in value]
            stack += [(x, False) for x in following]
        return known

    def _own(self, part: dict[str, Any], value: Any, is_first: bool) -> set[Any]:
        if isinstance(value, dict):
            if "additionalProperties" in part or ("unevaluatedProperties" in part and not is_first):
                return set(value)
            listed, patterns = part.get("properties", {}), part.get("patternProperties", {})
            return {key for key in value if key in listed or _matches_any(patterns, key)}
        if "items" in part or ("unevaluatedItems" in part and not is_first):
            return set(range(len(value)))
        known = set(range(len(part.get("prefixItems", ()))))
        if "contains" in part:
            known |= {index for index, item in enumerate(value) if self._is_valid(part["contains"], item)}
        return known


_Rule = Callable[[_Check, dict[str, Any], Any, Any], Iterator[_Problem]]
_GENERAL: Mapping[str, _Rule] = {
    "type": _Check._type, "enum": _Check._enum, "const": _Check._const, "allOf": _Check._all_of,
    "anyOf": _Check._any_of, "oneOf": _Check._one_of, "not": _Check._not, "if": _Check._if,
}  # fmt: skip
_OBJECT: Mapping[str, _Rule] = {
    "properties": _Check._properties, "patternProperties": _Check._pattern_properties,
    "additionalProperties": _Check._additional, "propertyNames": _Check._names, "required": _Check._required,
    "dependentRequired": _Check._dependent_required, "dependentSchemas": _Check._dependent_schemas,
    "minProperties": _Check._min_properties, "maxProperties": _Check._max_properties,
    "unevaluatedProperties": _Check._unevaluated_properties,
}  # fmt: skip
_ARRAY: Mapping[str, _Rule] = {
    "items": _Check._items, "prefixItems": _Check._prefix_items, "contains": _Check._contains,
    "uniqueItems": _Check._unique, "minItems": _Check._min_items, "maxItems": _Check._max_items,
    "unevaluatedItems": _Check._unevaluated_items,
}  # fmt: skip


def _check_pattern(pattern: str, value: str) -> str:
    expression = read_pattern(pattern)
    if not expression.is_readable or (found := expression.matches(value)):
        return ""
    if found is None:
        return f"{_shown(value)} could not be matched against {_shown(pattern)} in time"
    return f"{_shown(value)} does not match {_shown(pattern)}"


def _check_format(form: str, value: str) -> str:
    return "" if fits_format(value, form) else f"{_shown(value)} is not a {form!r}"


def _too_short(least: int, value: str) -> str:
    if len(value) >= least:
        return ""
    return f"{_shown(value)} {'should be non-empty' if least == 1 else 'is too short'}"


def _too_long(most: int, value: str) -> str:
    return "" if len(value) <= most else f"{_shown(value)} is too long"


def _multiple(step: float, value: float) -> str:
    if not math.isfinite(_as_float(value)) and isinstance(value, float):
        return f"{_shown(value)} is not a multiple of {step}"
    # As written, in decimal: 19.99 is a multiple of 0.01.
    return "" if not Fraction(repr(value)) % Fraction(repr(step)) else f"{_shown(value)} is not a multiple of {step}"


_STRING: Mapping[str, Callable[[Any, str], str]] = {
    "pattern": _check_pattern, "format": _check_format, "minLength": _too_short, "maxLength": _too_long,
}  # fmt: skip
_NUMBER: Mapping[str, Callable[[Any, Any], str]] = {
    "minimum": lambda least, x: "" if x >= least else f"{x!r} is less than the minimum of {least!r}",
    "maximum": lambda most, x: "" if x <= most else f"{x!r} is greater than the maximum of {most!r}",
    "exclusiveMinimum": lambda least, x: (
        "" if x > least else f"{x!r} is less than or equal to the minimum of {least!r}"
    ),
    "exclusiveMaximum": lambda most, x: (
        "" if x < most else f"{x!r} is greater than or equal to the maximum of {most!r}"
    ),
    "multipleOf": _multiple,
}


def equal(one: Any, two: Any) -> bool:
    """Whether two JSON values are the same: 1 is 1.0, but neither is true."""
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    if isinstance(one, (dict, list)) or isinstance(two, (dict, list)):
        return type(one) is type(two) and _key(one) == _key(two)
    return bool(one == two)


def _key(value: Any) -> Any:
    """Something hashable that is equal for equal JSON values and for no others."""
    if isinstance(value, dict):
        return "object", frozenset((key, _key(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "array", tuple(map(_key, value))
    return (type(value) is bool, value)


def _is_of(kind: str, value: Any) -> bool:
    if kind == "integer":
        return _is_number(value) and (isinstance(value, int) or value.is_integer())
    if kind == "number":
        return _is_number(value)
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "null":
        return value is None
    return isinstance(value, {"string": str, "array": list, "object": dict}[kind])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and (isinstance(value, int) or value.is_integer())


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _admits_null(node: dict[str, Any]) -> bool:
    if any(key in node for key in ("$ref", "allOf", "anyOf", "oneOf")):
        return False  # what stands there may forbid it
    if "type" not in node and not node.get("enum"):
        return True
    return "null" in node.get("type", ()) and None in node.get("enum", [None])


def _says_required(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("required") is True


def _matches_any(patterns: Mapping[str, Node], key: str) -> bool:
    return any(read_pattern(pattern).matches(key) for pattern in patterns)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 240 else f"{text[:200]}… ({len(text)} characters)"


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _path(pointer: str) -> str:
    return ".".join(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def tidied(value: Any, *, is_map: bool = False) -> Any:
    """A schema as its author meant it: without keywords and properties that are null, as Go and Arrow write, and with
    `{}` in place of the `[]` that PHP writes for an empty object. The same object where there are none of these.

    Args:
        is_map: it maps names to schemas.
    """
    if isinstance(value, list):
        items = [tidied(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if not isinstance(value, Mapping):
        return value
    kept: dict[Any, Any] = {}
    for key, item in value.items():
        if not is_map and key in ("const", "default", "enum", "example", "examples"):
            if item is not None or key not in ("enum", "examples"):
                kept[key] = item
        elif item == [] and (is_map or key in _OBJECTS):
            kept[key] = {}
        elif item == {} and key == "required" and not is_map:
            kept[key] = []
        elif item is not None:
            kept[key] = tidied(item, is_map=not is_map and key in (*_MAPS, *_HOLDERS))
    return kept if len(kept) < len(value) or any(kept[key] is not value[key] for key in kept) else value
