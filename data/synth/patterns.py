"""Texts that a regular expression matches, for parameters whose schema has a `pattern`."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

_MOST_REPEATS = 6  # of what may occur any number of times
_TRIES = 20
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
    for _ in range(_TRIES):
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
