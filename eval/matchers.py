"""What a case accepts as an argument's value: a plain JSON value, or a matcher where more than one value is right."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MATCH_KEY = "$match"


class MatcherKind(StrEnum):
    """The closed set of matchers; `eval/suites/README.md` shows each with an example."""

    ONE_OF = "one_of"
    ANY = "any"
    ANY_STRING = "any_string"
    CONTAINS = "contains"
    TEXT = "text"
    UNORDERED = "unordered"
    OPTIONAL = "optional"
    NUMBER = "number"
    DATE_TIME = "date_time"
    EMAIL = "email"


# The keys that carry each matcher's operands; "values" is an array.
_OPERANDS: dict[MatcherKind, tuple[str, ...]] = {
    MatcherKind.ONE_OF: ("values",),
    MatcherKind.ANY: (),
    MatcherKind.ANY_STRING: (),
    MatcherKind.CONTAINS: ("values",),
    MatcherKind.TEXT: ("values",),
    MatcherKind.UNORDERED: ("values",),
    MatcherKind.OPTIONAL: ("value",),
    MatcherKind.NUMBER: ("value", "tolerance"),
    MatcherKind.DATE_TIME: ("value",),
    MatcherKind.EMAIL: ("value",),
}
_STRINGS_ONLY = (MatcherKind.CONTAINS, MatcherKind.TEXT)


class MatcherError(ValueError):
    """A matcher that cannot be read; `key` is the dotted place inside the value."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key
        self.message = message


@dataclass(frozen=True)
class Matcher:
    """A set of accepted values; `values` may nest matchers and is empty for `any` and `any_string`."""

    kind: MatcherKind
    values: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Difference:
    """One argument that is not as expected; `is_missing` means that a wanted argument is absent."""

    argument: str
    is_missing: bool
    explanation: str


def parse_expected(value: Any, key: str = "") -> Any:
    """JSON with `{"$match": …}` objects anywhere in it → the same value with `Matcher`s in their place.

    Raises:
        MatcherError: an unknown matcher, or one without its operand or with other keys.
    """
    if isinstance(value, list):
        return [parse_expected(item, f"{key}.{index}" if key else str(index)) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if MATCH_KEY not in value:
        return {name: parse_expected(item, f"{key}.{name}" if key else name) for name, item in value.items()}
    kinds = ", ".join(MatcherKind)
    if value[MATCH_KEY] not in list(MatcherKind):
        raise MatcherError(key, f"unknown matcher {value[MATCH_KEY]!r}; known are {kinds}")
    kind = MatcherKind(value[MATCH_KEY])
    operands = _OPERANDS[kind]
    wanted = {MATCH_KEY, *operands}
    if set(value) != wanted:
        raise MatcherError(key, f"matcher '{kind}' takes the keys {sorted(wanted)}, not {sorted(value)}")
    if operands != ("values",):
        found = Matcher(kind, tuple(parse_expected(value[name], f"{key}.{name}") for name in operands))
        _check_operands(found, key)
        return found
    values = value["values"]
    if not isinstance(values, list) or not values:
        raise MatcherError(key, f"matcher '{kind}' needs a non-empty array 'values'")
    if kind in _STRINGS_ONLY and not all(isinstance(item, str) and item for item in values):
        raise MatcherError(key, f"matcher '{kind}' takes non-empty strings only")
    return Matcher(kind, tuple(parse_expected(values, f"{key}.values")))


def _check_operands(matcher: Matcher, key: str) -> None:
    match matcher.kind:
        case MatcherKind.NUMBER:
            if not all(_is_number(value) for value in matcher.values) or matcher.values[1] < 0:
                raise MatcherError(key, "matcher 'number' takes a number and a tolerance from 0")
        case MatcherKind.DATE_TIME:
            if _moment(matcher.values[0]) is None:
                raise MatcherError(key, f"matcher 'date_time': {matcher.values[0]!r} is no ISO date or date-time")
        case MatcherKind.EMAIL:
            if not isinstance(matcher.values[0], str) or "@" not in matcher.values[0]:
                raise MatcherError(key, f"matcher 'email': {matcher.values[0]!r} is no address")


def to_json(expected: Any) -> Any:
    """The inverse of `parse_expected`."""
    if isinstance(expected, Matcher):
        operands = _OPERANDS[expected.kind]
        values = [to_json(value) for value in expected.values]
        carried = {"values": values} if operands == ("values",) else dict(zip(operands, values, strict=True))
        return {MATCH_KEY: str(expected.kind), **carried}
    if isinstance(expected, Mapping):
        return {key: to_json(value) for key, value in expected.items()}
    if isinstance(expected, list):
        return [to_json(value) for value in expected]
    return expected


def accepts(expected: Any, got: Any, schema: Mapping[str, Any]) -> bool:
    """Whether `got` is what the case wants, by value and by type.

    `1`, `1.0`, `"1"` and `True` all differ, with one exception: where the schema says "number", JSON itself makes
    no difference between 5 and 5.0, so neither do we.
    """
    if isinstance(expected, Matcher):
        return _matcher_accepts(expected, got, schema)
    if isinstance(expected, Mapping):
        return isinstance(got, Mapping) and not differences(expected, got, schema)
    if isinstance(expected, list):
        return (
            isinstance(got, list)
            and len(got) == len(expected)
            and all(accepts(one, other, _items(schema)) for one, other in zip(expected, got, strict=True))
        )
    if type(expected) is not type(got):
        return _is_number_schema(schema) and {type(expected), type(got)} == {int, float} and expected == got
    return bool(expected == got)


def differences(expected: Mapping[str, Any], got: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Difference]:
    """The arguments in which `got` differs: wanted but absent, wrong, or not asked for."""
    properties = schema.get("properties", {})
    found = []
    for name, value in expected.items():
        if name not in got:
            if not is_optional(value):
                found.append(Difference(name, True, f"{name}: expected {show(value)}, absent"))
        elif not accepts(value, got[name], properties.get(name, {})):
            found.append(Difference(name, False, f"{name}: expected {show(value)}, got {show(got[name])}"))
    extra = [name for name in got if name not in expected]
    return found + [Difference(name, False, f"{name}: not asked for, got {show(got[name])}") for name in extra]


def is_optional(expected: Any) -> bool:
    """Whether the argument may be absent."""
    return isinstance(expected, Matcher) and expected.kind is MatcherKind.OPTIONAL


def is_open(expected: Any) -> bool:
    """Whether the accepted values cannot be listed, so that examples of them are made up."""
    if isinstance(expected, Matcher):
        made_up = (MatcherKind.ANY, MatcherKind.ANY_STRING, MatcherKind.CONTAINS)
        return expected.kind in made_up or any(is_open(value) for value in expected.values)
    if isinstance(expected, Mapping):
        return any(is_open(value) for value in expected.values())
    return isinstance(expected, list) and any(is_open(value) for value in expected)


def examples(expected: Any) -> list[Any]:
    """Concrete values that are accepted; every alternative that a case names occurs in one of them."""
    if isinstance(expected, Matcher):
        return _matcher_examples(expected)
    if isinstance(expected, Mapping):
        return object_examples(expected)
    if isinstance(expected, list):
        return [[examples(item)[0] for item in expected]]
    return [expected]


def object_examples(expected: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same for an object: one example in full, one without what is optional, one per further alternative."""
    first = {name: examples(value)[0] for name, value in expected.items()}
    found = [first]
    if any(is_optional(value) for value in expected.values()):
        found.append({name: value for name, value in first.items() if not is_optional(expected[name])})
    for name, value in expected.items():
        found += [{**first, name: alternative} for alternative in examples(value)[1:]]
    return found


def show(value: Any) -> str:
    """A value as JSON for an explanation, matchers in words."""
    if isinstance(value, Matcher):
        if value.kind is MatcherKind.OPTIONAL:
            return f"{show(value.values[0])} or nothing"
        if value.kind is MatcherKind.NUMBER:
            return f"{value.values[0]} ± {value.values[1]}"
        if not value.values:
            return {MatcherKind.ANY: "anything", MatcherKind.ANY_STRING: "any text"}[value.kind]
        return f"{value.kind} {' | '.join(show(item) for item in value.values)}"
    return json.dumps(to_json(value), ensure_ascii=False)


def pair_up(wanted: Sequence[Any], got: Sequence[Any], fits: Callable[[Any, Any], bool]) -> dict[int, int]:
    """The largest one-to-one pairing of `wanted` with `got`, as index → index (augmenting paths)."""
    owner: dict[int, int] = {}  # index in `got` → index in `wanted`

    def assign(one: int, seen: set[int]) -> bool:
        for other in range(len(got)):
            if other in seen or not fits(wanted[one], got[other]):
                continue
            seen.add(other)
            if other not in owner or assign(owner[other], seen):
                owner[other] = one
                return True
        return False

    for one in range(len(wanted)):
        assign(one, set())
    return {one: other for other, one in owner.items()}


def _matcher_accepts(matcher: Matcher, got: Any, schema: Mapping[str, Any]) -> bool:
    match matcher.kind:
        case MatcherKind.ANY:
            return True
        case MatcherKind.ANY_STRING:
            return isinstance(got, str) and bool(got.strip())
        case MatcherKind.ONE_OF | MatcherKind.OPTIONAL:
            return any(accepts(value, got, schema) for value in matcher.values)
        case MatcherKind.CONTAINS:
            return isinstance(got, str) and all(part in got for part in matcher.values)
        case MatcherKind.TEXT:
            return isinstance(got, str) and any(_plain(value) == _plain(got) for value in matcher.values)
        case MatcherKind.NUMBER:
            return _is_number(got) and bool(abs(got - matcher.values[0]) <= matcher.values[1])
        case MatcherKind.DATE_TIME:
            return _moment(got) == _moment(matcher.values[0])
        case MatcherKind.EMAIL:
            return isinstance(got, str) and got.casefold() == matcher.values[0].casefold()
        case MatcherKind.UNORDERED:
            if not isinstance(got, list) or len(got) != len(matcher.values):
                return False
            pairs = pair_up(matcher.values, got, lambda one, other: accepts(one, other, _items(schema)))
            return len(pairs) == len(got)


def _plain(text: str) -> str:
    """Free text without what is a matter of taste: the case of its first letter and a full stop at its end."""
    return text[:1].lower() + text[1:].removesuffix(".")


def _matcher_examples(matcher: Matcher) -> list[Any]:
    match matcher.kind:
        case MatcherKind.ANY | MatcherKind.ANY_STRING:
            return ["text"]
        case MatcherKind.CONTAINS:
            return [" ".join(matcher.values)]
        case MatcherKind.NUMBER | MatcherKind.DATE_TIME | MatcherKind.EMAIL:
            return [matcher.values[0]]
        case MatcherKind.UNORDERED:
            listed = [examples(value)[0] for value in matcher.values]
            return [listed, listed[::-1]]
        case _:
            return [example for value in matcher.values for example in examples(value)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _moment(value: Any) -> tuple[bool, dt.datetime] | None:
    """Whether a time of day is given, and when; None for what is no ISO date or date-time."""
    try:
        return "T" in value or " " in value, dt.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def _items(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    items = schema.get("items")
    return items if isinstance(items, Mapping) else {}


def _is_number_schema(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    return kind == "number" or (isinstance(kind, list) and "number" in kind)
