"""A tool's JSON schema as grammar rules: what a call's arguments may be, spaced as the writer of calls spaces them.

A place in a schema is described by several parts that must all hold: what `allOf`, `$ref` and the keywords beside them
say. The parts of a place are gathered first and compiled together, once, so that recursion through any of them ends.
Strings with patterns or lengths, and numbers with bounds, are llguidance's own `%json` leaves.

What the grammar cannot say is left out of it: the finished call is checked, and a `Note` says so (`docs/schemas.md`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from typing import Any

import llguidance

from tinydispatch.decoding import terminals
from tinydispatch.decoding.rules import GrammarError, Rules
from tinydispatch.formats import CALL_END, PARAMETER_END, PARAMETER_START, TURN_END, xml_value
from tinydispatch.json_schema import Node, Note
from tinydispatch.patterns import read_pattern
from tinydispatch.string_formats import FORMATS, TIME_ZONE, time_zones
from tinydispatch.tools import Tool

# Parameters of a rule are 64-bit numbers, one bit for each key.
_MAX_FREE_KEYS = 60
# Ways to choose a branch of each `anyOf` of one place.
_MAX_WAYS = 64
# Optional keys in a row that keep the schema's order; the parser's rows grow with them.
_MAX_ORDERED = 150
_MAX_BRANCHES = 300
_MAX_COUNTED_ITEMS = 200
_MAX_COUNTED_CHARACTERS = 20_000
_MAX_COMPILED = 5_000
_MAX_EXCLUDED_NAMES = 400
# Automata that must hold together multiply: of more patterns than these at one place, all are left to the check.
_MAX_PATTERNS, _MAX_NAME_PATTERNS = 5, 16
# Of the processor's time, on all patterns of a schema together.
_MAX_SECONDS = 0.3
# Bounds beyond these are left to the check: llguidance computes with 64-bit integers and doubles.
_MAX_INTEGER, _MAX_NUMBER = 10**18, 1e15
_MAX_STEP = 10_000

_KINDS = ("string", "number", "boolean", "null", "array", "object")
_SPEAKS_OF: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties", "patternProperties", "propertyNames"}
                        | {"minProperties", "maxProperties", "dependentRequired", "unevaluatedProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains", "unevaluatedItems"}),
    "string": frozenset({"pattern", "format", "minLength", "maxLength"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
}  # fmt: skip
# Never in a grammar; what is written is checked against them.
_GATHERED = ("$ref", "allOf", "anyOf", "oneOf")
_UNSAID = ("not", "if", "dependentSchemas", "dependentRequired", "contains", "uniqueItems")


_ELEMENT_ENDS = ("</parameter>", CALL_END, TURN_END)
_IN_ELEMENT = terminals.not_containing(*_ELEMENT_ENDS)
_ANY_TEXT = f"(/(?s:.*)/ & {_IN_ELEMENT})"


class KeyOrder(StrEnum):
    """In which order an object's keys may stand: any, or the schema's, optional ones left out at will."""

    ANY = "any"
    SCHEMA = "schema"


class Spelling(StrEnum):
    """How true, false and null stand where an argument is an element of its own."""

    JSON = "json"
    PYTHON = "python"


class _Nothing(Exception):  # noqa: N818 (becomes a GrammarError where the tool is known)
    """No value fits a place."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(problem)
        self.path, self.problem = path, problem


class _TooLarge(Exception):  # noqa: N818 (never leaves this file)
    """The schema stands for more rules than a grammar may have."""


_Parts = tuple[dict[str, Any], ...]


@dataclass
class _Gathered:
    """What holds at one place: `parts` without alternatives, and the branches of each alternative."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    choices: list[list[Node]] = field(default_factory=list)
    is_impossible: bool = False


class SchemaCompiler:
    """Compiles one tool's schema into `rules`. `notes` says what of it is left to the check.

    `is_risky` says that llguidance may yet give up on what was compiled, `is_loose` that most was left out of it.

    Args:
        is_loose: keep the names, the required ones and the kinds of the arguments, and leave all else to the check.
        elements: each argument stands in a `<parameter=…>` of its own, its text unquoted, in the schema's order; None
            writes one JSON object.
    """

    def __init__(
        self,
        tool: Tool,
        rules: Rules,
        order: KeyOrder,
        *,
        is_loose: bool = False,
        elements: Spelling | None = None,
    ) -> None:
        self._tool, self._rules, self._order, self.is_loose = tool, rules, order, is_loose
        self.elements = elements
        self._schema = tool.schema
        self.notes: list[Note] = list(self._schema.notes)
        self._known: dict[tuple[int, ...], str] = {}
        self._open: dict[tuple[int, ...], str | None] = {}
        self._bare: dict[int, dict[str, Any]] = {}
        self._unions: dict[tuple[int, ...], dict[str, Any]] = {}
        self._n_compiled = 0
        self._seconds = 0.0
        self.is_risky = False

    def arguments(self) -> str:
        """The rule of the whole arguments object.

        Raises:
            GrammarError: no arguments fit the schema.
        """
        try:
            return self._place((self._schema.root,), "", is_root=True)
        except _Nothing as error:
            raise GrammarError(self._tool.name, error.path, error.problem) from None
        except (_TooLarge, RecursionError):
            if self.is_loose:
                raise GrammarError(self._tool.name, "", "it stands for too many rules") from None
            self.is_loose = True
            self.notes.append(Note("", "it stands for too many rules: only names and kinds of arguments are enforced"))
            self._known.clear()
            self._open.clear()
            self._n_compiled = 0
            return self.arguments()

    def _note(self, path: str, text: str) -> None:
        note = Note(path, text)
        if note not in self.notes and len(self.notes) < 100:
            self.notes.append(note)

    # Gathering

    def _gather(self, nodes: Sequence[Node]) -> _Gathered:
        found = _Gathered()
        stack: list[Node] = list(reversed(nodes))
        seen: set[int] = set()
        while stack:
            node = stack.pop()
            if node is False:
                found.is_impossible = True
            if isinstance(node, bool) or id(node) in seen:
                continue
            seen.add(id(node))
            bare = self._bare_of(node)
            if bare:
                found.parts.append(bare)
            found.choices += [node[key] for key in ("anyOf", "oneOf") if key in node]
            stack += reversed(node.get("allOf", []))
            if "$ref" in node:
                stack.append(self._schema.target(node["$ref"]))
        return found

    def _bare_of(self, node: dict[str, Any]) -> dict[str, Any]:
        """The node without what is gathered from it; always the same object, by which the place is known."""
        if not any(key in node for key in _GATHERED):
            return node
        if id(node) not in self._bare:
            self._bare[id(node)] = {key: value for key, value in node.items() if key not in _GATHERED}
        return self._bare[id(node)]

    def union(self, nodes: Sequence[dict[str, Any] | bool]) -> Node:
        """What any of the nodes allows; always the same object for the same nodes."""
        key = tuple(map(id, nodes))
        return self._unions.setdefault(key, {"anyOf": list(nodes)})

    def _place(self, nodes: Sequence[Node], path: str, *, is_root: bool = False) -> str:
        """The rule for a value that all of the nodes allow."""
        found = self._gather(nodes)
        if found.is_impossible:
            raise _Nothing(path, "'false' admits no value")
        if self.is_loose and not is_root:
            return self._loose(found.parts, path)
        if not found.parts and not found.choices and not is_root:
            return self._rules.any_value()
        key = (*(id(part) for part in found.parts), -1, *(id(branches) for branches in found.choices), is_root)
        if key in self._known:
            return self._known[key]
        if key in self._open:
            # It contains itself: the name is given now, the body follows.
            self._open[key] = self._open[key] or self._rules.reserve()
            return str(self._open[key])
        self._n_compiled += 1
        if self._n_compiled > _MAX_COMPILED:
            raise _TooLarge
        self._open[key] = None
        try:
            rule = self._choices(found, path, is_root) if found.choices else self._value(found.parts, path, is_root)
        except _Nothing:
            if reserved := self._open.pop(key):
                # What was compiled meanwhile may hold the name of a rule that admits nothing: it is compiled anew.
                self._rules.define(reserved, '"\\u0001"')
                self._known.clear()
            raise
        reserved = self._open.pop(key)
        if reserved is not None:
            self._rules.define(reserved, rule)
            rule = reserved
        self._known[key] = rule
        return rule

    def _loose(self, parts: Sequence[dict[str, Any]], path: str) -> str:
        kinds = self._kinds(parts, path)
        return self._rules.rule(" | ".join(map(self._any_of_kind, kinds)))

    def _any_of_kind(self, kind: str) -> str:
        if kind == "object":
            return self._rules.any_object()
        if kind == "array":
            return self._rules.any_array()
        if kind in ("boolean", "null"):
            return self._rules.rule('"true" | "false"' if kind == "boolean" else '"null"')
        bodies = {"string": terminals.any_string(), "number": terminals.NUMBER, "integer": terminals.INTEGER}
        return self._rules.terminal(bodies[kind])

    # Alternatives

    def _choices(self, found: _Gathered, path: str, is_root: bool) -> str:
        choices: list[list[Node]] = []
        n_ways = 1
        for branches in sorted(found.choices, key=len):
            if choices and n_ways * len(branches) > _MAX_WAYS:
                self._note(path, "several 'anyOf' or 'oneOf' hold at once: not all of them are in the grammar")
                continue
            n_ways *= len(branches)
            choices.append(branches)
        rules, listed, problems = [], [], []
        for way in itertools.product(*choices):
            nodes = [*found.parts, *way]
            try:
                values = self._finite(nodes, path)
                if values is None:
                    rules.append(self._place(nodes, path, is_root=is_root))
                else:
                    listed += values
            except _Nothing as error:
                # A branch that contradicts what stands beside it is none; the others remain.
                problems.append(error)
        if listed:
            rules.append(self._literals(listed, path))
        if not rules:
            raise problems[0] if problems else _Nothing(path, "no alternative admits a value")
        rules = list(dict.fromkeys(rules))
        if len(rules) > _MAX_BRANCHES:
            self._note(path, f"it has more than {_MAX_BRANCHES} alternatives: any value passes the grammar")
            return self._rules.any_object() if is_root else self._rules.any_value()
        return rules[0] if len(rules) == 1 else self._rules.rule(" | ".join(rules))

    def _finite(self, nodes: Sequence[Node], path: str) -> list[Any] | None:
        """The values of a place that lists them, None for one that does not."""
        found = self._gather(nodes)
        if found.choices or found.is_impossible or not any("enum" in part or "const" in part for part in found.parts):
            return None
        return self._listed(found.parts, path)

    def _listed(self, parts: Sequence[dict[str, Any]], path: str) -> list[Any]:
        lists = [[part["const"]] for part in parts if "const" in part] + [
            part["enum"] for part in parts if "enum" in part
        ]
        values = min(lists, key=len)
        is_plain = len(lists) == 1 and all(set(part) <= {"enum", "const", "type"} for part in parts)
        kinds = set(self._kinds(parts, path))
        fitting = [
            value
            for value in values
            if _kind_of(value) in kinds or (_kind_of(value) == "integer" and "number" in kinds)
            or (isinstance(value, float) and value.is_integer() and "integer" in kinds)
        ]  # fmt: skip
        if not is_plain:
            fitting = [value for value in fitting if all(self._schema.is_valid(part, value) for part in parts)]
        if not fitting:
            raise _Nothing(path, f"none of the values {_shown(values)} fits the rest of the schema")
        return fitting

    def _literals(self, values: Sequence[Any], path: str) -> str:
        spellings: dict[str, None] = {}
        others: dict[str, None] = {}
        for value in values:
            try:
                if isinstance(value, (dict, list)):
                    others[_lexemes(value)] = None
                else:
                    if isinstance(value, float) and value.is_integer() and abs(value) < _MAX_NUMBER:
                        spellings[terminals.spelled(int(value))] = None  # JavaScript's spelling of 2.0
                    spellings[terminals.spelled(value)] = None
            except ValueError:
                self._note(path, f"the value {_shown(value)} cannot be written as JSON and is left out")
        rules = [self._rules.terminal(terminals.one_of(spellings))] if spellings else []
        if len(others) > _MAX_BRANCHES:
            self._note(path, f"it lists more than {_MAX_BRANCHES} objects or arrays: any is allowed by the grammar")
            return self._rules.any_value()
        rules += map(self._rules.rule, others)
        if not rules:
            raise _Nothing(path, "none of its values can be written as JSON")
        return rules[0] if len(rules) == 1 else self._rules.rule(" | ".join(rules))

    # One value

    def _value(self, parts: Sequence[dict[str, Any]], path: str, is_root: bool) -> str:
        for part in parts:
            for keyword in _UNSAID:
                if keyword in part and (keyword != "uniqueItems" or part[keyword]):
                    self._note(path, f"'{keyword}' is checked afterwards")
        if any("enum" in part or "const" in part for part in parts):
            return self._literals(self._listed(parts, path), path)
        kinds = ["object"] if is_root else self._kinds(parts, path)
        if not is_root and len(kinds) == len(_KINDS) and not any(set(part) & _ALL_KEYS for part in parts):
            return self._rules.any_value()
        rules, problems = [], []
        for kind in kinds:
            try:
                rules.append(self._of_kind(kind, parts, path, is_root))
            except _Nothing as error:
                problems.append(error)
        if not rules:
            raise problems[0]
        return rules[0] if len(rules) == 1 else self._rules.rule(" | ".join(dict.fromkeys(rules)))

    def _kinds(self, parts: Sequence[dict[str, Any]], path: str) -> list[str]:
        kinds: list[str] = list(_KINDS)
        for part in parts:
            if "type" in part:
                kinds = _common_kinds(kinds, part["type"])
        if not kinds:
            listed = " and ".join(repr(part["type"]) for part in parts if "type" in part)
            raise _Nothing(path, f"no type is common to {listed}")
        if not any("type" in part for part in parts):
            # Without a type, keywords of one kind alone mean that kind.
            spoken = [kind for kind, keys in _SPEAKS_OF.items() if any(keys & set(part) for part in parts)]
            kinds = spoken if len(spoken) == 1 else kinds
        return kinds

    def _of_kind(self, kind: str, parts: Sequence[dict[str, Any]], path: str, is_root: bool) -> str:
        if kind == "object":
            return _ObjectCompiler(self, parts, path, is_root).rule()
        if kind == "array":
            return self._array(parts, path)
        if kind == "string":
            return self._string(parts, path)
        if kind in ("integer", "number"):
            return self._number(parts, kind, path)
        return self._rules.rule('"true" | "false"' if kind == "boolean" else '"null"')

    def _number(self, parts: Sequence[dict[str, Any]], kind: str, path: str) -> str:
        low, high = _bounds(parts)
        steps = [Fraction(repr(part["multipleOf"])) for part in parts if "multipleOf" in part]
        if low is not None and high is not None and (low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))):
            raise _Nothing(path, f"minimum {low[0]} is greater than maximum {high[0]}, or equal to it and excluded")
        if kind == "integer":
            return self._integer(low, high, steps, path)
        step = self._step(steps, path)
        if low is None and high is None and step is None:
            return self._rules.terminal(terminals.NUMBER)
        if low is not None and low[0] == 0 and high is None and step is None:
            return self._rules.terminal(terminals.POSITIVE if low[1] else terminals.NOT_NEGATIVE)
        if (low is not None and low[0] > _MAX_NUMBER) or (high is not None and high[0] < -_MAX_NUMBER):
            self._note(path, "bounds of such size are checked afterwards")
            return self._rules.terminal(terminals.NUMBER)
        leaf: dict[str, Any] = {"type": "number"}
        for bound, name, most in ((low, "inimum", -_MAX_NUMBER), (high, "aximum", _MAX_NUMBER)):
            first = "m"
            if bound is None or abs(bound[0]) > _MAX_NUMBER:
                if bound is not None:
                    self._note(path, f"the bound {bound[0]!r} is checked afterwards")
                leaf[first + name] = most
            else:
                leaf[f"exclusive{first.upper()}{name}" if bound[1] else first + name] = bound[0]
        if step is not None:
            leaf["multipleOf"] = float(step) if step.denominator > 1 else step.numerator
        rules = [self._rules.rule(terminals.json_leaf(leaf))]
        if step is None:
            rules += self._exponents(low, high)
        return rules[0] if len(rules) == 1 else self._rules.rule(" | ".join(rules))

    def _exponents(self, low: tuple[float, bool] | None, high: tuple[float, bool] | None) -> list[str]:
        """Numbers written with an exponent, where the bounds let all of them pass."""
        least, most = (-math.inf if low is None else low[0]), (math.inf if high is None else high[0])
        found = []
        if least <= 0 and most >= 1e-4:
            found.append(terminals.TINY)
        if least <= -1e-4 and most >= 0:
            found.append("-" + terminals.TINY)
        if most == math.inf and least <= _MAX_NUMBER:
            found.append(terminals.HUGE)
        if least == -math.inf and most >= -_MAX_NUMBER:
            found.append("-" + terminals.HUGE)
        return [self._rules.terminal(f"/{'|'.join(found)}/")] if found else []

    def _integer(
        self, low: tuple[float, bool] | None, high: tuple[float, bool] | None, steps: Sequence[Fraction], path: str
    ) -> str:
        # n is a multiple of p/q, in lowest terms, where it is one of p.
        step = self._step([Fraction(each.numerator) for each in steps], path)
        least = None if low is None else math.floor(low[0]) + 1 if low[1] else math.ceil(low[0])
        most = None if high is None else math.ceil(high[0]) - 1 if high[1] else math.floor(high[0])
        if least is not None and most is not None and least > most:
            raise _Nothing(path, "no integer lies between minimum and maximum")
        if least is None and most is None and step is None:
            return self._rules.terminal(terminals.INTEGER)
        for bound in (least, most):
            if bound is not None and _MAX_INTEGER < abs(bound) < 10**40:
                self._note(path, f"the bound {bound} is checked afterwards")
        if (least is not None and least > _MAX_INTEGER) or (most is not None and most < -_MAX_INTEGER):
            return self._rules.terminal(terminals.INTEGER)
        is_open = (least is None or least < -_MAX_INTEGER) and (most is None or most > _MAX_INTEGER)
        if is_open and step is None:
            return self._rules.terminal(terminals.INTEGER)
        leaf: dict[str, Any] = {
            "type": "integer",
            "minimum": -_MAX_INTEGER + 1 if least is None else max(least, -_MAX_INTEGER + 1),
            "maximum": _MAX_INTEGER - 1 if most is None else min(most, _MAX_INTEGER - 1),
        }
        if step is not None:
            leaf["multipleOf"] = step.numerator
            first = -(-leaf["minimum"] // step.numerator) * step.numerator
            if first > leaf["maximum"]:
                raise _Nothing(path, f"no multiple of {step.numerator} lies between minimum and maximum")
        return self._rules.rule(terminals.json_leaf(leaf))

    def _step(self, steps: Sequence[Fraction], path: str) -> Fraction | None:
        steps = [step for step in dict.fromkeys(steps) if step != 1 or step.denominator != 1]
        if not steps:
            return None
        if len(steps) > 1 or steps[0].numerator > _MAX_STEP or 10**6 % steps[0].denominator:
            self._note(path, "'multipleOf' is checked afterwards")
            return None
        return steps[0]

    def _string(self, parts: Sequence[dict[str, Any]], path: str) -> str:
        patterns, forms = [], []
        for part in parts:
            if "pattern" in part:
                expression = read_pattern(part["pattern"])
                if expression.parts is None:
                    self._note(
                        path, f"the pattern {_shown(part['pattern'])} is checked afterwards: {expression.problem}"
                    )
                patterns += list(expression.parts or ())
            if part.get("format") in FORMATS or part.get("format") == TIME_ZONE:
                forms.append(part["format"])
        least = max((part["minLength"] for part in parts if "minLength" in part), default=0)
        most = min((part["maxLength"] for part in parts if "maxLength" in part), default=None)
        if most is not None and most < least:
            raise _Nothing(path, f"maxLength {most} is less than minLength {least}")
        if least > _MAX_COUNTED_CHARACTERS or (most or 0) > _MAX_COUNTED_CHARACTERS:
            self._note(path, f"a length of more than {_MAX_COUNTED_CHARACTERS:,} characters is checked afterwards")
            least = min(least, _MAX_COUNTED_CHARACTERS)
            most = None if most is not None and most > _MAX_COUNTED_CHARACTERS else most
        forms = list(dict.fromkeys(forms))
        if TIME_ZONE in forms:
            if all(set(part) <= {"type", "format"} for part in parts) and len(forms) == 1:
                return self._rules.terminal(_any_time_zone())
            zones = [zone for zone in time_zones() if all(self._schema.is_valid(part, zone) for part in parts)]
            return self._literals(sorted(zones), path)
        patterns = list(dict.fromkeys(patterns))
        if not patterns and not forms and not least and most is None:
            return self._rules.terminal(terminals.any_string())
        if len(forms) == 1 and not patterns and not least and most is None:
            return self._rules.terminal(terminals.of_format(forms[0]))
        if most == 0 and not patterns:
            return self._rules.rule(r'"\"\""')
        wanted = [*patterns, *(f"^(?:{FORMATS[form]})$" for form in forms)]
        return self._leaf(wanted, least, most, path)

    def _leaf(self, patterns: Sequence[str], least: int, most: int | None, path: str) -> str:
        """A string of some shape; of what llguidance cannot build together, the length at least."""
        self.is_risky = True
        for some in (patterns, ()):
            body = terminals.string_leaf(some, least, most)
            started = time.thread_time()
            if len(some) <= _MAX_PATTERNS and self._seconds < _MAX_SECONDS and _can_be_built(body):
                self._seconds += time.thread_time() - started
                return self._rules.rule(body)
            self._seconds += time.thread_time() - started
            self._note(path, "its patterns are too much for the grammar together and are checked afterwards")
        return self._rules.terminal(terminals.any_string())

    def _array(self, parts: Sequence[dict[str, Any]], path: str) -> str:
        least = max((part["minItems"] for part in parts if "minItems" in part), default=0)
        most = min((part["maxItems"] for part in parts if "maxItems" in part), default=None)
        n_prefix = max((len(part["prefixItems"]) for part in parts if "prefixItems" in part), default=0)
        if n_prefix > _MAX_COUNTED_ITEMS:
            self._note(path, f"items after the first {_MAX_COUNTED_ITEMS} are checked afterwards")
            n_prefix = _MAX_COUNTED_ITEMS
        prefix: list[str] = []
        item: str | None = None
        try:
            for index in range(n_prefix if most is None else min(n_prefix, most)):
                nodes = [_item_at(part, index) for part in parts]
                prefix.append(self._place(nodes, _join(path, str(index))))
            item = self._place([_item_at(part, n_prefix) for part in parts], _join(path, "items"))
        except _Nothing:
            # There is no further item; an array that must have one is impossible.
            if least > len(prefix):
                raise
            most = len(prefix) if most is None else min(most, len(prefix))
        if most is not None and most < least:
            raise _Nothing(path, f"maxItems {most} is less than minItems {least}")
        if least > _MAX_COUNTED_ITEMS or (most or 0) > _MAX_COUNTED_ITEMS + n_prefix:
            self._note(path, f"a number of items beyond {_MAX_COUNTED_ITEMS} is checked afterwards")
            least, most = min(least, _MAX_COUNTED_ITEMS), None if (most or 0) > _MAX_COUNTED_ITEMS else most
        return self._rules.rule(self._array_body(prefix, item, least, most))

    def _array_body(self, prefix: list[str], item: str | None, least: int, most: int | None) -> str:
        if most is not None:
            prefix = prefix[:most]
        n = len(prefix)
        rest = ""
        if item is not None and (most is None or most > n):
            if n:
                rest = f'(", " {item}){{{max(least - n, 0)},{"" if most is None else most - n}}}'
            else:
                more = f'(", " {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}' if most != 1 else ""
                filled = f'"[" {item} {more} "]"'
                return filled if least else f'"[]" | {filled}'
        if not n:
            return '"[]"'
        # From the end: what follows the first k items, which may be left out from the least number on.
        tail = self._rules.rule(rest or '""')
        for index in range(n - 1, 0, -1):
            body = f'", " {prefix[index]} {tail}'
            tail = self._rules.rule(body if index < least else f'"" | {body}')
        filled = f'"[" {prefix[0]} {tail} "]"'
        return filled if least else f'"[]" | {filled}'


@dataclass
class _Member:
    """One key of an object: what stands after its key, and whether it must be there."""

    key: str
    value: str
    is_required: bool


class _ObjectCompiler:
    """The rule of one object."""

    def __init__(self, owner: SchemaCompiler, parts: Sequence[dict[str, Any]], path: str, is_root: bool) -> None:
        self._owner, self._parts, self._path, self._is_root = owner, parts, path, is_root
        self._rules = owner._rules

    def rule(self) -> str:
        """`{`, the members, `}`."""
        required = list(dict.fromkeys(name for part in self._parts for name in part.get("required", [])))
        if self._is_root and self._owner.elements is not None:
            return self._as_elements(required)
        members = self._members(required)
        more = self._others(members)
        least = max((part["minProperties"] for part in self._parts if "minProperties" in part), default=0)
        most = min((part["maxProperties"] for part in self._parts if "maxProperties" in part), default=None)
        if most is not None and most < max(least, len(required)):
            raise _Nothing(self._path, f"at most {most} keys may stand and {max(least, len(required))} must")
        if most is not None and most < len(members) + bool(more):
            if most == 0:
                return self._rules.rule('"{}"')
            self._note("'maxProperties' is checked afterwards")
        if least > max(1, len(required)) and (members or least > _MAX_COUNTED_ITEMS):
            self._note("'minProperties' is checked afterwards")
        if least and not members and not more:
            raise _Nothing(self._path, "a key must stand and none may")
        if not members and more and least > 1:
            return self._rules.rule(f'"{{" {self._map(more, min(least, _MAX_COUNTED_ITEMS), most)} "}}"')
        if not members and more and most is not None and most <= _MAX_COUNTED_ITEMS:
            body = self._map(more, max(least, 1), most)
            return self._rules.rule(f'"{{" {body} "}}"' if least else f'"{{}}" | "{{" {body} "}}"')
        return self._joined(members, more, is_filled=least > 0)

    def _as_elements(self, required: Sequence[str]) -> str:
        """Arguments as elements, one after the other; only those that the schema lists."""
        members = [member for member in self._members(required) if _is_element_name(member)]
        if self._owner._schema.says_which_others:
            self._note("only the arguments that it lists can be written")
        if any({"minProperties", "maxProperties"} & set(part) for part in self._parts):
            self._note("'minProperties' and 'maxProperties' are checked afterwards")
        rules = [
            self._rules.rule(f"{terminals.quoted(f'{PARAMETER_START}{member.key}>' + chr(10))} {member.value}")
            for member in members
        ]
        pieces = [rule if each.is_required else f"{rule}?" for rule, each in zip(rules, members, strict=True)]
        return self._rules.rule(" ".join(pieces) or '""')

    def _note(self, text: str) -> None:
        self._owner._note(self._path, text)

    def _map(self, more: str, least: int, most: int | None) -> str:
        return f'{more} (", " {more}){{{least - 1},{"" if most is None else most - 1}}}'

    def _keys(self, required: Sequence[str]) -> Iterator[str]:
        listed: dict[str, None] = {}
        for part in self._parts:
            listed |= dict.fromkeys(part.get("properties", {}))
            names = part.get("propertyNames")
            if isinstance(names, dict) and isinstance(names.get("enum"), list):
                listed |= dict.fromkeys(name for name in names["enum"] if isinstance(name, str))
        listed |= dict.fromkeys(required)
        for part in self._parts:
            listed |= dict.fromkeys(key for inner in self._conditional(part) for key in inner.get("properties", {}))
        yield from listed

    def _conditional(self, part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What conditions, which are not in the grammar, may add to a part."""
        for node in (*part.get("dependentSchemas", {}).values(), part.get("then", True), part.get("else", True)):
            yield from self._owner._schema.in_place(node)

    def _members(self, required: Sequence[str]) -> list[_Member]:
        must = set(required)
        members = []
        for key in self._keys(required):
            path = _join(self._path, key)
            try:
                is_element = self._is_root and self._owner.elements is not None
                compiled = _element if is_element else SchemaCompiler._place
                value = compiled(self._owner, self._nodes_of(key), path)
                terminals.spelled(key)
            except _Nothing:
                # What admits nothing can be left out, unless it must be there.
                if key in must:
                    raise
                continue
            except ValueError:
                if key in must:
                    raise _Nothing(path, "its name is not valid Unicode") from None
                continue
            members.append(_Member(key, value, key in must))
        return members

    def _nodes_of(self, key: str) -> list[Node]:
        """Every schema that applies to the value of that key."""
        nodes: list[Node] = []
        is_listed = False
        for part in self._parts:
            own: list[Node] = []
            if key in part.get("properties", {}):
                own.append(part["properties"][key])
            own += [node for pattern, node in part.get("patternProperties", {}).items()
                    if read_pattern(pattern).matches(key)]  # fmt: skip
            is_listed = is_listed or bool(own)
            nodes += own or [part.get("additionalProperties", True)]
            names = part.get("propertyNames")
            if names is not None and not self._owner._schema.is_valid(names, key):
                nodes.append(False)
        if not is_listed:
            nodes += self._where_conditional(key)
        return nodes

    def _where_conditional(self, key: str) -> list[Node]:
        """What the branches of conditions, which are not in the grammar, say of a key that only they list."""
        found: list[Node] = [
            inner["properties"][key]
            for part in self._parts
            for inner in self._conditional(part)
            if key in inner.get("properties", {})
        ]
        if len(found) == 1:
            return found
        return [] if not found else [self._owner.union(found)]

    def _others(self, members: Sequence[_Member]) -> str:
        """A member that is not listed, "" where there can be none."""
        if self._is_root and not self._owner._schema.says_which_others:
            rest: list[Node] = [False]
        else:
            rest = [part.get("additionalProperties", True) for part in self._parts]
            for part in self._parts:
                if "unevaluatedProperties" in part and "additionalProperties" not in part:
                    rest.append(part["unevaluatedProperties"])
                    if len(self._parts) > 1:
                        self._note("'unevaluatedProperties' of keys that another part lists is checked afterwards")
        rules = []
        patterns = dict.fromkeys(pattern for part in self._parts for pattern in part.get("patternProperties", {}))
        names: list[Node] = [part["propertyNames"] for part in self._parts if "propertyNames" in part]
        if len(patterns) > _MAX_NAME_PATTERNS:
            self._note(f"more than {_MAX_NAME_PATTERNS} patterns of names: its other keys are checked afterwards")
            return f'{self._rules.terminal(terminals.name_other_than(()))} ": " {self._rules.any_value()}'
        for pattern in patterns:
            nodes = [
                part["patternProperties"][pattern]
                if pattern in part.get("patternProperties", {})
                else part.get("additionalProperties", True)
                for part in self._parts
            ]
            rules += self._member_of_pattern(pattern, nodes)
        listed = {name for node in names if isinstance(node, dict) for name in node.get("enum", ())}
        if not listed and False not in names:
            rules += self._any_other(rest, names, members, has_patterns=bool(patterns))
        return self._rules.rule(" | ".join(rules)) if rules else ""

    def _member_of_pattern(self, pattern: str, nodes: list[Node]) -> list[str]:
        expression = read_pattern(pattern)
        try:
            value = self._owner._place(nodes, _join(self._path, pattern))
        except _Nothing:
            return []
        if expression.parts is None:
            self._note(f"names like {_shown(pattern)} are checked afterwards: {expression.problem}")
            return [f'{self._rules.terminal(terminals.name_other_than(()))} ": " {value}']
        return [f'{self._owner._leaf(expression.parts, 0, None, self._path)} ": " {value}']

    def _any_other(
        self, rest: list[Node], names: list[Node], members: Sequence[_Member], *, has_patterns: bool
    ) -> list[str]:
        try:
            value = self._owner._place(rest, _join(self._path, "additionalProperties"))
            if names:
                name = self._owner._string(self._owner._gather(names).parts, self._path)
                if self._owner._gather(names).choices:
                    self._note("'propertyNames' is checked afterwards")
                return [f'{name} ": " {value}']
        except _Nothing:
            return []
        if has_patterns:
            self._note("names that a pattern of 'patternProperties' takes are told from others afterwards")
        taken = [key for part in self._parts for key in part.get("properties", {})] + [each.key for each in members]
        taken = list(dict.fromkeys(taken))
        if len(taken) > _MAX_EXCLUDED_NAMES:
            self._note("that no key stands twice is checked afterwards")
            taken = []
        return [f'{self._rules.terminal(terminals.name_other_than(taken))} ": " {value}']

    # Joining

    def _joined(self, members: list[_Member], more: str, *, is_filled: bool) -> str:
        if not members and not more:
            return self._rules.rule('"{}"')
        if self._owner._order is KeyOrder.ANY and len(members) <= _MAX_FREE_KEYS and not is_filled:
            return self._in_any_order(members, more)
        pieces: list[_Piece] = []
        run: list[_Member] = []
        for member in members:
            if member.is_required:
                pieces += self._run(run)
                run = []
                pieces.append(self._piece(self._text_of(member), is_required=True))
            else:
                run.append(member)
        pieces += self._run(run)
        if more:
            pieces.append(self._many(more))
        whole = self._tree(pieces)
        can_be_empty = whole.is_optional and not is_filled
        return self._rules.rule(f'"{{" {whole.first} "}}"' + (' | "{}"' if can_be_empty else ""))

    def _text_of(self, member: _Member) -> str:
        return f'{terminals.literal(member.key)} ": " {member.value}'

    def _piece(self, text: str, *, is_required: bool) -> _Piece:
        after = f'", " {text}'
        return _Piece(
            self._rules.rule(text), self._rules.rule(after if is_required else f'"" | {after}'), not is_required
        )

    def _many(self, member: str) -> _Piece:
        return _Piece(
            self._rules.rule(f'{member} (", " {member})*'), self._rules.rule(f'(", " {member})*'), is_optional=True
        )

    def _run(self, run: Sequence[_Member]) -> list[_Piece]:
        """Optional members one after the other: in order, or, where they are very many, by the kind of their values."""
        if len(run) <= _MAX_ORDERED:
            return [self._piece(self._text_of(member), is_required=False) for member in run]
        self._note(f"more than {_MAX_ORDERED} optional keys: their order is free, and one may stand twice")
        by_value: dict[str, list[str]] = {}
        for member in run:
            by_value.setdefault(member.value, []).append(member.key)
        if len(by_value) > _MAX_BRANCHES:
            self._note("the values of its keys are checked afterwards")
            by_value = {self._rules.any_value(): [member.key for member in run]}
        ways = [
            f'{self._rules.terminal(terminals.one_of(map(terminals.spelled, keys)))} ": " {value}'
            for value, keys in by_value.items()
        ]
        return [self._many(self._rules.rule(" | ".join(ways)))]

    def _tree(self, pieces: Sequence[_Piece]) -> _Piece:
        """The pieces in a row, halves joined to wholes: no rule is nested deeper than the logarithm of their number."""
        if len(pieces) == 1:
            return pieces[0]
        left, right = self._tree(pieces[: len(pieces) // 2]), self._tree(pieces[len(pieces) // 2 :])
        first = f"{left.first} {right.after}" + (f" | {right.first}" if left.is_optional else "")
        is_optional = left.is_optional and right.is_optional
        return _Piece(self._rules.rule(first), self._rules.rule(f"{left.after} {right.after}"), is_optional)

    def _in_any_order(self, members: Sequence[_Member], more: str) -> str:
        bits = {member.key: bit for bit, member in enumerate(members)}
        rest, first = self._rules.reserve(), self._rules.reserve()
        needed = [f"bit_set({bits[member.key]})" for member in members if member.is_required]
        end = '""' + (f" %if {_all(needed)}" if needed else "")
        following = [
            f'", " {self._text_of(member)} {rest}::set_bit({bits[member.key]}) %if bit_clear({bits[member.key]})'
            for member in members
        ]
        starting = [f"{self._text_of(member)} {rest}::{1 << bits[member.key]:#x}" for member in members]
        if more:
            following.append(f'", " {more} {rest}::_')
            starting.append(f"{more} {rest}::0x0")
        self._rules.define(rest, " | ".join([end, *following]), "::_")
        self._rules.define(first, " | ".join([*([] if needed else ['""']), *starting]))
        return self._rules.rule(f'"{{" {first} "}}"')


def _is_element_name(member: _Member) -> bool:
    """Whether an element can have that name.

    Raises:
        _Nothing: it cannot, and must stand.
    """
    is_fine = not set(member.key) & {">", "\n"} and bool(member.key)
    if not is_fine and member.is_required:
        raise _Nothing(member.key, "no <parameter=…> can have this name")
    return is_fine


def _element(owner: SchemaCompiler, nodes: Sequence[Node], path: str) -> str:
    """The rule of an argument's text in an element of its own, and the element's end.

    What is text, or a single word, is one lexeme with the end, which is its first: a text may hold anything else.
    """
    texts, others = _element_ways(owner, nodes, path)
    rules = []
    if texts:
        ended = f"({' | '.join(dict.fromkeys(texts))}) {terminals.quoted(PARAMETER_END)}"
        rule = owner._rules.reserve()
        owner._rules.define(rule, owner._rules.terminal(ended), "[lazy]")
        rules.append(rule)
    if others:
        rules.append(owner._rules.rule(f"({' | '.join(dict.fromkeys(others))}) {terminals.quoted(PARAMETER_END)}"))
    return rules[0] if len(rules) == 1 else owner._rules.rule(" | ".join(rules))


def _element_ways(owner: SchemaCompiler, nodes: Sequence[Node], path: str) -> tuple[list[str], list[str]]:
    """What an argument may be: regular expressions of texts and words, and rules of numbers, arrays and objects."""
    found = owner._gather(nodes)
    if found.is_impossible:
        raise _Nothing(path, "'false' admits no value")
    if found.choices and not owner.is_loose:
        return _element_choices(owner, found, path)
    if any("enum" in part or "const" in part for part in found.parts) and not owner.is_loose:
        words = [xml_value(value, python_literals=owner.elements is Spelling.PYTHON)
                 for value in owner._listed(found.parts, path)]  # fmt: skip
        if any(not _fits_an_element(word) for word in words):
            raise _Nothing(path, "one of its values cannot be written in an element")
        return [f"({terminals.one_of(words)})"], []
    texts, others = [], []
    for kind in owner._kinds(found.parts, path):
        if kind == "string":
            texts += _element_text(owner, () if owner.is_loose else found.parts, path)
        elif kind in ("boolean", "null"):
            values = (True, False) if kind == "boolean" else (None,)
            texts.append(terminals.one_of(xml_value(value, python_literals=owner.elements is Spelling.PYTHON)
                                          for value in values))  # fmt: skip
        else:
            others.append(
                owner._any_of_kind(kind) if owner.is_loose else owner._of_kind(kind, found.parts, path, is_root=False)
            )
    if _ANY_TEXT in texts:
        return [_ANY_TEXT], []  # a number, too, is some text
    return texts, others


def _element_choices(owner: SchemaCompiler, found: _Gathered, path: str) -> tuple[list[str], list[str]]:
    texts: list[str] = []
    others: list[str] = []
    problems = []
    ways = list(itertools.islice(itertools.product(*found.choices), _MAX_WAYS + 1))
    if len(ways) > _MAX_WAYS:
        owner._note(path, "it has too many alternatives: any value passes the grammar")
        return [_ANY_TEXT], []
    for way in ways:
        try:
            more_texts, more_others = _element_ways(owner, [*found.parts, *way], path)
        except _Nothing as error:
            problems.append(error)
            continue
        texts, others = texts + more_texts, others + more_others
    if not texts and not others:
        raise problems[0]
    return ([_ANY_TEXT], []) if _ANY_TEXT in texts else (texts, others)


def _element_text(owner: SchemaCompiler, parts: Sequence[dict[str, Any]], path: str) -> list[str]:
    """A text without quotation marks: of a form, a pattern for the whole of it, or a length."""
    forms = [part["format"] for part in parts if part.get("format") in FORMATS]
    shapes = [terminals.expression(FORMATS[form]) for form in dict.fromkeys(forms)]
    if any(part.get("format") == TIME_ZONE for part in parts):
        shapes.append(f"({terminals.one_of(sorted(time_zones()))})")
    for part in parts:
        for piece in read_pattern(part["pattern"]).parts or () if "pattern" in part else ():
            inner = piece[1:-1]
            if piece[:1] == "^" and piece[-1:] == "$" and not set(inner) & set("^$|/"):
                shapes.append(terminals.expression(inner))
            else:
                owner._note(path, f"the pattern {_shown(part['pattern'])} is checked afterwards")
    least = max((part["minLength"] for part in parts if "minLength" in part), default=0)
    most = min((part["maxLength"] for part in parts if "maxLength" in part), default=None)
    if most is not None and most < least:
        raise _Nothing(path, f"maxLength {most} is less than minLength {least}")
    if least or most is not None:
        if max(least, most or 0) > _MAX_COUNTED_CHARACTERS:
            owner._note(path, f"a length of more than {_MAX_COUNTED_CHARACTERS:,} characters is checked afterwards")
        else:
            shapes.append(f"/(?s:.){{{least},{'' if most is None else most}}}/")
    if not shapes:
        return [_ANY_TEXT]
    return [f"({' & '.join(shapes)} & {_IN_ELEMENT})"]


def _fits_an_element(text: str) -> bool:
    return not any(mark in text for mark in _ELEMENT_ENDS)


@dataclass(frozen=True)
class _Piece:
    """Some members in a row: `first` where none stands before them, never empty; `after` with a comma before each."""

    first: str
    after: str
    is_optional: bool


_ALL_KEYS = frozenset[str]().union(*_SPEAKS_OF.values())


@lru_cache(maxsize=1)
def _any_time_zone() -> str:
    return terminals.one_of(map(terminals.spelled, sorted(time_zones())))


@lru_cache(maxsize=4_096)
def _can_be_built(leaf: str) -> bool:
    return not llguidance.LLMatcher.validate_grammar(f"%llguidance {{}}\nstart: {leaf}\n")


def _common_kinds(kinds: Sequence[str], allowed: Sequence[str]) -> list[str]:
    found = []
    for kind in kinds:
        if kind in allowed or (kind == "integer" and "number" in allowed):
            found.append(kind)
        elif kind == "number" and "integer" in allowed:
            found.append("integer")
    return found


def _lexemes(value: Any) -> str:
    """A JSON value in the pieces that any value has: the lexer follows the longest piece, and one of these must not be
    part of a longer one.
    """
    comma = ' ", " '
    if isinstance(value, dict):
        members = [f'{terminals.literal(str(key))} ": " {_lexemes(item)}' for key, item in value.items()]
        return f'"{{" {comma.join(members)} "}}"' if members else '"{}"'
    if isinstance(value, list):
        return f'"[" {comma.join(map(_lexemes, value))} "]"' if value else '"[]"'
    return terminals.literal(value)


def _kind_of(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, (int, float)):
        return "integer" if isinstance(value, int) else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _bounds(parts: Sequence[dict[str, Any]]) -> tuple[tuple[float, bool] | None, tuple[float, bool] | None]:
    """The tightest lower and upper bound, each with whether it is excluded itself."""
    lows = [(part[key], key != "minimum") for part in parts for key in ("minimum", "exclusiveMinimum") if key in part]
    highs = [(part[key], key != "maximum") for part in parts for key in ("maximum", "exclusiveMaximum") if key in part]
    low = max(lows, default=None)
    high = min(((value, not is_out) for value, is_out in highs), default=None)
    return low, None if high is None else (high[0], not high[1])


def _item_at(part: Mapping[str, Any], index: int) -> Node:
    prefix = part.get("prefixItems", [])
    if index < len(prefix):
        node: Node = prefix[index]
        return node
    rest: Node = part.get("items", part.get("unevaluatedItems", True))
    return rest


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _all(conditions: Sequence[str]) -> str:
    text = conditions[-1]
    for condition in reversed(conditions[:-1]):
        text = f"and({condition}, {text})"
    return text


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
