"""Values of any JSON schema, with what people say for them: for parameters whose values nobody listed."""

from __future__ import annotations

import math
import random
import re
import string
import uuid
from collections.abc import Callable, Mapping, Sequence
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from data.synth import lexicon
from data.synth.values import SCALARS, Context, Filled, computed, copied

_MOST_REPEATS = 6  # of what may occur any number of times
_PATTERN_TRIES = 20
_CATEGORIES = {
    op.CATEGORY_DIGIT: string.digits,
    op.CATEGORY_WORD: string.ascii_letters + string.digits + "_",
    op.CATEGORY_SPACE: " ",
    op.CATEGORY_NOT_DIGIT: string.ascii_letters,
    op.CATEGORY_NOT_WORD: "-. ",
    op.CATEGORY_NOT_SPACE: string.ascii_letters + string.digits,
}
_ANY = string.ascii_letters + string.digits
# What a class with ^ in front picks from.
_PRINTABLE = string.ascii_letters + string.digits + " -_.,:/"


class PatternError(ValueError):
    """A pattern that cannot be turned into texts: no regular expression, or one with lookaround."""


def text_of(pattern: str, rng: random.Random) -> str:
    """A text that contains a match, as JSON schema means it; outside `^` and `$` nothing is added.

    Example: `^[A-Z]{3}-\\d{2,4}$` → "QXB-407".

    Raises:
        PatternError: nothing that matches was found.
    """
    try:
        matches, parsed = re.compile(pattern), parser.parse(pattern)
    except re.error as error:
        raise PatternError(f"pattern '{pattern}' is no regular expression: {error}") from error
    for _ in range(_PATTERN_TRIES):
        text = _sequence(parsed, rng, {})
        if matches.search(text):
            return text
    raise PatternError(f"no text was found that matches the pattern '{pattern}'")


def _sequence(items: Sequence[Any], rng: random.Random, groups: dict[int, str]) -> str:
    return "".join(_item(kind, value, rng, groups) for kind, value in items)


def _item(kind: Any, value: Any, rng: random.Random, groups: dict[int, str]) -> str:
    if kind is op.LITERAL:
        return chr(value)
    if kind is op.NOT_LITERAL:
        return rng.choice([char for char in _ANY if char != chr(value)])
    if kind is op.ANY:
        return rng.choice(_ANY)
    if kind is op.IN:
        return rng.choice(_members(value))
    if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        least, most, inner = value
        count = rng.randint(least, max(least, min(int(most), least + _MOST_REPEATS)))
        return "".join(_sequence(inner, rng, groups) for _ in range(count))
    if kind is op.BRANCH:
        return _sequence(rng.choice(value[1]), rng, groups)
    if kind is op.SUBPATTERN:
        text = _sequence(value[3], rng, groups)
        if value[0] is not None:
            groups[value[0]] = text
        return text
    if kind is op.ATOMIC_GROUP:
        return _sequence(value, rng, groups)
    if kind is op.GROUPREF:
        return groups.get(value, "")
    return ""  # anchors and lookaround add nothing; whether they hold is tried on the whole


def _members(items: Sequence[Any]) -> str:
    chars = ""
    for kind, value in items:
        if kind is op.LITERAL:
            chars += chr(value)
        elif kind is op.RANGE:
            chars += "".join(map(chr, range(value[0], min(value[1], value[0] + 255) + 1)))
        elif kind is op.CATEGORY:
            chars += _CATEGORIES[value]
    if items and items[0][0] is op.NEGATE:
        return "".join(char for char in _PRINTABLE if char not in chars) or _ANY
    return chars


_MAX_DEPTH = 8  # of references to themselves
_MOST_ITEMS = 3
_TRIES = 20
_SLOT_OF_FORMAT = {
    "date": "date", "local-date-time": "datetime", "local-time": "time", "email": "email", "iana-time-zone": "timezone",
    "uri": "url",
}  # fmt: skip
# For texts of which the schema says nothing: copied words, many of them seen nowhere else.
_ANY_TEXT = ("product", "person", "city", "word", "task")


class UnsayableError(ValueError):
    """A schema of which nobody can tell how its values are said; the message names the place in it."""


def filled_from_schema(schema: Any, name: str, context: Context, root: Mapping[str, Any], depth: int = 0) -> Filled:
    """A value that the schema describes, and how it is said.

    Understood are `enum`, `const`, bounds, `multipleOf`, lengths, `format`, `pattern`, arrays, nested objects, lists of
    types, `anyOf`, `oneOf`, `allOf` and references within `root`. What else a schema demands (`not`, `if`) is left to
    the caller, who checks the call and draws again.

    Args:
        name: the parameter's; a text parameter of that name takes the generator's slot of that name, if there is one.

    Raises:
        UnsayableError: for booleans at the top ("on"? "yes"?), and schemas that say nothing about their values.
    """
    schema = _resolved(schema, root, name, depth)
    if "const" in schema or schema.get("enum"):
        value = schema["const"] if "const" in schema else context.rng.choice(schema["enum"])
        return computed(value, _words(value))
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = context.rng.choice([each for each in kind if each != "null"] or kind)
    if kind in ("integer", "number"):
        number = _number(schema, context.rng, is_integer=kind == "integer")
        return computed(number, str(number))
    if kind == "string":
        return _text(schema, name, context)
    if kind == "array" and ("items" in schema or "prefixItems" in schema):
        return _array(schema, name, context, root, depth)
    if kind == "object" and schema.get("properties"):
        return _object(schema, context, root, depth)
    if kind == "boolean" and depth:
        value = context.rng.random() < 0.5
        return computed(value, "yes" if value else "no")
    raise UnsayableError(f"'{name}': nobody can tell how a value of type {kind!r} is said")


def _resolved(schema: Any, root: Mapping[str, Any], name: str, depth: int) -> Mapping[str, Any]:
    """The schema with its reference followed, all of `allOf`, and one of `anyOf` or `oneOf`, merged into it."""
    if depth > _MAX_DEPTH:
        raise UnsayableError(f"'{name}': nested deeper than {_MAX_DEPTH}")
    if not isinstance(schema, Mapping):
        raise UnsayableError(f"'{name}': a schema that says nothing about its values")
    if isinstance(reference := schema.get("$ref"), str):
        found: Any = root if reference.startswith("#") else None
        for part in reference.lstrip("#/").split("/"):
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        if not isinstance(found, Mapping):
            raise UnsayableError(f"'{name}': the reference {reference!r} leads nowhere")
        return _resolved({**found, **rest}, root, name, depth + 1)
    for key in ("allOf", "anyOf", "oneOf"):
        if isinstance(options := schema.get(key), list) and options:
            rest = {other: value for other, value in schema.items() if other != key}
            sayable = [option for option in options if not _is_null(option)] or options
            for option in sayable if key == "allOf" else sayable[:1]:
                rest = _merged(rest, _resolved(option, root, name, depth + 1))
            return _resolved(rest, root, name, depth + 1)
    return schema


def _is_null(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "null"


def _merged(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**left, **right}
    for key, join in (("properties", lambda a, b: {**a, **b}), ("required", lambda a, b: [*a, *b])):
        if key in left and key in right:
            merged[key] = join(left[key], right[key])
    return merged


def _words(value: Any) -> str:
    return value.replace("_", " ") if isinstance(value, str) else str(value)


def _number(schema: Mapping[str, Any], rng: random.Random, *, is_integer: bool) -> int | float:
    """A multiple of the schema's step within its bounds; of tenths, or of what fits between closer bounds."""
    above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
    low, high = max(schema.get("minimum", -math.inf), above), min(schema.get("maximum", math.inf), below)
    if low == -math.inf:
        low = min(1, high - 99)
    if high == math.inf:
        high = low + 99
    finest = 1 if is_integer else 10.0 ** math.floor(math.log10(max(high - low, 1e-9) / 10))
    step = schema.get("multipleOf", min(finest, 0.1) if not is_integer else 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    first += first * step <= above
    last -= last * step >= below
    drawn = rng.randint(first, max(first, last)) * step
    return int(drawn) if is_integer else round(drawn, 10)


def _text(schema: Mapping[str, Any], name: str, context: Context) -> Filled:
    if isinstance(pattern := schema.get("pattern"), str):
        try:
            return copied(text_of(pattern, context.rng))
        except PatternError as error:
            raise UnsayableError(f"'{name}': {error}") from error
    form = schema.get("format", "")
    if (made := _FORMATS.get(form)) is not None:
        return made(context)
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    for _ in range(_TRIES):
        slot = _SLOT_OF_FORMAT.get(form) or (name if name in SCALARS else context.rng.choice(_ANY_TEXT))
        filled = SCALARS[slot](context)
        if least <= len(filled.value) <= most:
            return filled
    length = int(min(max(least, 3), most))
    return copied("".join(context.rng.choices(string.ascii_lowercase + string.digits, k=length)))


def _date_time(context: Context) -> Filled:
    filled = SCALARS["datetime"](context)
    return Filled(f"{filled.value}:00Z", filled.forms, is_copied=False)


def _time(context: Context) -> Filled:
    filled = SCALARS["time"](context)
    return Filled(f"{filled.value}:00Z", filled.forms, is_copied=False)


def _duration(context: Context) -> Filled:
    filled = SCALARS["duration_minutes"](context)
    return Filled(f"PT{filled.value}M", filled.forms, is_copied=False)


_FORMATS: Mapping[str, Callable[[Context], Filled]] = {
    "date-time": _date_time,
    "time": _time,
    "duration": _duration,
    "uuid": lambda context: copied(str(uuid.UUID(int=context.rng.getrandbits(128), version=4))),
    "ipv4": lambda context: copied(".".join(str(context.rng.randint(1, 254)) for _ in range(4))),
    "hostname": lambda context: copied(f"{lexicon.pseudo_ascii(context.rng)}.example.com"),
}


def _array(schema: Mapping[str, Any], name: str, context: Context, root: Mapping[str, Any], depth: int) -> Filled:
    first: Sequence[Any] = schema.get("prefixItems", ())
    low = max(1, schema.get("minItems", 1), len(first))
    size = context.rng.randint(low, max(low, min(_MOST_ITEMS, schema.get("maxItems", _MOST_ITEMS))))
    if not schema.get("items"):
        size = len(first) or size
    items: list[Filled] = []
    for _ in range(size * _TRIES):
        if len(items) == size:
            break
        inner = first[len(items)] if len(items) < len(first) else schema["items"]
        drawn = filled_from_schema(inner, name, context, root, depth + 1)
        if not schema.get("uniqueItems") or drawn.value not in [item.value for item in items]:
            items.append(drawn)
    return _joined([item.value for item in items], [item.form() for item in items], items)


def _object(schema: Mapping[str, Any], context: Context, root: Mapping[str, Any], depth: int) -> Filled:
    """Required properties and half of the others, each said by its name and its value."""
    required = schema.get("required", ())
    names = [name for name in schema["properties"] if name in required or context.rng.random() < 0.5]
    names = names or [context.rng.choice(list(schema["properties"]))]
    inner = {name: filled_from_schema(schema["properties"][name], name, context, root, depth + 1) for name in names}
    said = [f"{_words(name)} {filled.form()}" for name, filled in inner.items()]
    return _joined({name: filled.value for name, filled in inner.items()}, said, list(inner.values()))


def _joined(value: Any, said: Sequence[str], parts: Sequence[Filled]) -> Filled:
    text = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
    return Filled(value, {"": text}, is_copied=all(part.is_copied for part in parts))
