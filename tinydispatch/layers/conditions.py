"""When a planned call is made: a small language over the results of earlier calls, read by hand and never by Python.

    calendar.count == 0 and not failed(weather)
    weather.conditions in ["sunny", "cloudy"] or weather.temperature >= 20

Operators, from loose to tight: `or`, `and`, `not`, comparisons (`== != < <= > >= in`, `not in`). Values: references,
JSON literals, lists of literals. Functions: `done(id)`, `failed(id)`, `skipped(id)` of a call; `count(reference)`,
`exists(reference)` of a result. Nothing is converted: `1 == "1"` is false, `"a" < 1` is an error.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinydispatch.layers.references import BadReferenceError, Reference, lookup, read_reference

_MAX_LENGTH, _MAX_DEPTH = 500, 16
_TOKEN = re.compile(
    r"\s*(==|!=|<=|>=|<|>|\(|\)|\[|\]|,|\"(?:[^\"\\]|\\.)*\"|-?[0-9]+(?:\.[0-9]+)?|[A-Za-z_][A-Za-z0-9_]*)"
)
RESERVED = frozenset(
    {"and", "or", "not", "in", "true", "false", "null", "done", "failed", "skipped", "count", "exists"}
)
_STATE_FUNCTIONS = frozenset({"done", "failed", "skipped"})
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class ConditionError(ValueError):
    """A condition that cannot be read, or that has no truth value with the results there are."""


@dataclass(frozen=True)
class Facts:
    """What a condition may look at: results of calls that were done, and how each call ended ("done", …)."""

    results: Mapping[str, Any]
    states: Mapping[str, str]


Node = Callable[[Facts], Any]


@dataclass(frozen=True)
class Condition:
    """A condition that has been read.

    `references` are all that it looks at, `states` the calls whose end it asks for, `needs` those without whose
    result it has no truth value.
    """

    text: str
    node: Node
    references: tuple[Reference, ...]
    states: frozenset[str]
    needs: frozenset[str]

    def holds(self, facts: Facts) -> bool:
        """Whether the call may be made.

        Raises:
            ConditionError: a reference leads nowhere, or values of different kinds are compared by size.
        """
        return _truth(self.node(facts), self.text)


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        ConditionError: says what stands where it should not.
    """
    if len(text) > _MAX_LENGTH:
        raise ConditionError(f"a condition of {len(text)} characters; at most {_MAX_LENGTH} are read")
    parser = _Parser(text)
    node = parser.alternatives(0)
    if parser.peek():
        raise ConditionError(f"unexpected {parser.peek()!r} in {text!r}")
    return Condition(text, node, tuple(parser.references), frozenset(parser.states), parser.needs)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._position = text, 0
        self.references: list[Reference] = []
        self.states: set[str] = set()
        self._optional: set[int] = set()  # positions in `references` that exists() or a state function asks for

    @property
    def needs(self) -> frozenset[str]:
        """Calls whose result is used as a value."""
        used = (reference.call for at, reference in enumerate(self.references) if at not in self._optional)
        return frozenset(used) - self.states

    def peek(self) -> str:
        """The next token, "" at the end."""
        found = _TOKEN.match(self._text, self._position)
        if found is None and self._text[self._position :].strip():
            raise ConditionError(f"cannot read {self._text[self._position :].strip()[:20]!r} in {self._text!r}")
        return found.group(1) if found else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise ConditionError(f"expected {wanted or 'a value'!r}, found {token or 'the end'!r} in {self._text!r}")
        found = _TOKEN.match(self._text, self._position)
        assert found is not None, "peek has found it"
        self._position = found.end()
        return token

    def alternatives(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise ConditionError(f"nested more than {_MAX_DEPTH} deep: {self._text[:40]!r} …")
        parts = [self._all_of(depth)]
        while self.peek() == "or":
            self.take()
            parts.append(self._all_of(depth))
        return parts[0] if len(parts) == 1 else lambda facts: any(_truth(part(facts), self._text) for part in parts)

    def _all_of(self, depth: int) -> Node:
        parts = [self._negated(depth)]
        while self.peek() == "and":
            self.take()
            parts.append(self._negated(depth))
        return parts[0] if len(parts) == 1 else lambda facts: all(_truth(part(facts), self._text) for part in parts)

    def _negated(self, depth: int) -> Node:
        is_negated = False
        while self.peek() == "not":
            self.take()
            is_negated = not is_negated
        node = self._comparison(depth)
        return (lambda facts: not _truth(node(facts), self._text)) if is_negated else node

    def _comparison(self, depth: int) -> Node:
        left = self._operand(depth)
        token = self.peek()
        if token in ("==", "!=", *_ORDERED, "in"):
            return _compared(self.take(), left, self._operand(depth))
        if token == "not":
            self.take()
            self.take("in")
            contains = _compared("in", left, self._operand(depth))
            return lambda facts: not contains(facts)
        return left

    def _operand(self, depth: int) -> Node:
        token = self.peek()
        if token == "(":
            self.take()
            inside = self.alternatives(depth + 1)
            self.take(")")
            return inside
        if token == "[":
            return self._list()
        if token[:1] in '"-0123456789' or token in ("true", "false", "null"):
            return self._literal()
        if token in ("count", "exists", *_STATE_FUNCTIONS):
            return self._function(self.take())
        if not token or token in RESERVED:
            raise ConditionError(f"expected a value, found {token or 'the end'!r} in {self._text!r}")
        reference = self._reference()
        return lambda facts: _looked_up(reference, facts)

    def _literal(self) -> Node:
        token = self.take()
        try:
            value = json.loads(token)
        except ValueError as error:
            raise ConditionError(f"{token!r} is no JSON value in {self._text!r}") from error
        return lambda _: value

    def _list(self) -> Node:
        self.take("[")
        items: list[Node] = []
        while self.peek() != "]":
            if items:
                self.take(",")
            items.append(self._literal())
        self.take("]")
        return lambda facts: [item(facts) for item in items]

    def _reference(self) -> Reference:
        start = self._position + len(self._text[self._position :]) - len(self._text[self._position :].lstrip())
        try:
            reference, self._position = read_reference(self._text, start)
        except BadReferenceError as error:
            raise ConditionError(f"{error} in {self._text!r}") from error
        self.references.append(reference)
        return reference

    def _function(self, name: str) -> Node:
        self.take("(")
        reference = self._reference()
        self.take(")")
        if name != "count":
            self._optional.add(len(self.references) - 1)
        if name in _STATE_FUNCTIONS:
            if reference.path:
                raise ConditionError(f"{name}() asks about a call, not about a place in its result: {reference}")
            self.states.add(reference.call)
            return lambda facts: facts.states.get(reference.call) == name
        if name == "exists":
            return lambda facts: _exists(reference, facts)
        return lambda facts: _counted(reference, facts)


def _compared(sign: str, left: Node, right: Node) -> Node:
    if sign in ("==", "!="):
        return lambda facts: _is_equal(left(facts), right(facts)) is (sign == "==")
    if sign == "in":
        return lambda facts: _is_in(left(facts), right(facts))

    def ordered(facts: Facts) -> bool:
        one, other = left(facts), right(facts)
        if not ((_is_number(one) and _is_number(other)) or (isinstance(one, str) and isinstance(other, str))):
            raise ConditionError(f"cannot tell whether {one!r} {sign} {other!r}: two numbers or two strings are needed")
        return _ORDERED[sign](one, other)

    return ordered


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_equal(one: Any, other: Any) -> bool:
    """As in JSON: 5 and 5.0 are equal, 1 and true are not."""
    if _is_number(one) and _is_number(other):
        return bool(one == other)
    return type(one) is type(other) and bool(one == other)


def _is_in(one: Any, other: Any) -> bool:
    if isinstance(other, str) and isinstance(one, str):
        return one in other
    if isinstance(other, list):
        return any(_is_equal(one, item) for item in other)
    raise ConditionError(f"'in' needs a list, or two strings; the right side is {other!r}")


def _truth(value: Any, text: str) -> bool:
    if not isinstance(value, bool):
        raise ConditionError(f"{text!r}: {value!r} is neither true nor false; compare it with something")
    return value


def _looked_up(reference: Reference, facts: Facts) -> Any:
    try:
        return lookup(reference, facts.results)
    except BadReferenceError as error:
        raise ConditionError(str(error)) from error


def _exists(reference: Reference, facts: Facts) -> bool:
    try:
        return lookup(reference, facts.results) is not None
    except BadReferenceError:
        return False


def _counted(reference: Reference, facts: Facts) -> int:
    value = _looked_up(reference, facts)
    if not isinstance(value, list | dict | str):
        raise ConditionError(f"count({reference}): {value!r} cannot be counted")
    return len(value)
