"""The smallest pieces of the grammar: JSON literals, numbers, and strings of a known shape, as Lark terminals.

Every regular expression describes a string's content *as JSON text*, without its quotes.
"""

from __future__ import annotations

import json
import re
import zoneinfo
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import llguidance

from tinydispatch.formats import CALL_END, TURN_END

# A reader cuts a call at these texts wherever they stand, so no string may hold them unescaped.
_CUTTING = (CALL_END, TURN_END)

_ESCAPED = (
    r"\\([\"\\\/bfnrt]|u([0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}"
    r"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
)
CHARACTER = rf"({_ESCAPED}|[^\"\\\x00-\x1F])"
_PLAIN = r"[^\"\\\x00-\x1F]"

INTEGER = "/-?(0|[1-9][0-9]{0,39})/"
NUMBER = r"/-?(0|[1-9][0-9]{0,39})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?/"

_YEAR = r"(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
# Multiples of four, but of a hundred only those that are multiples of four hundred.
_LEAP_YEAR = r"([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    rf"|{_LEAP_YEAR}-02-29)"
)
_MINUTES = r"([01][0-9]|2[0-3]):[0-5][0-9]"
# Wider than RFC 3339, which asks for seconds and an offset: tools mean a wall clock's 19:00, too.
_TIME = rf"{_MINUTES}(:[0-5][0-9](\.[0-9]{{1,9}})?)?(Z|[+-]{_MINUTES})?"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_MAIL = r"[^@\s<>,;:\"()\\\x00-\x1F]"

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "date": _DATE,
        "local-date-time": f"{_DATE}T{_MINUTES}",
        "date-time": f"{_DATE}T{_TIME}",
        "time": _TIME,
        "currency": "[A-Z]{3}",
        # The shape that `tools.py` checks, each part no longer than mail servers take, so that it ends.
        "email": rf"{_MAIL}{{1,64}}@{_MAIL}{{1,190}}\.[^@\s<>,;:\".()\\\x00-\x1F]{{1,63}}",
        "uri": r"[a-zA-Z][a-zA-Z0-9+.\-]*:[^\s\"\\<>\x00-\x1F]+",
        "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
        "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
        "hostname": rf"{_LABEL}(\.{_LABEL})*",
    }
)
TIME_ZONE = "iana-time-zone"

# Beyond this many characters a counted repetition costs more than the check afterwards.
_MAX_COUNTED = 1000


def literal(value: Any) -> str:
    """A JSON value as a Lark string, spelled as the writer of calls spells it.

    Raises:
        ValueError: the value holds half of a surrogate pair, which no model can write.
    """
    text = json.dumps(value, ensure_ascii=False)
    for cutting in _CUTTING:
        text = text.replace(cutting, "\\u003c" + cutting[1:])
    text.encode("utf-8")
    return quoted(text)


def quoted(text: str) -> str:
    """Exactly this text, as a Lark string."""
    return json.dumps(text)


def not_containing(*texts: str) -> str:
    """Lark's exclusion of everything that holds one of the texts; to be intersected with something."""
    return " & ".join(f"~/(?s:.*){_escaped(text)}(?s:.*)/" for text in texts)


def string(patterns: list[str], min_length: int = 0, max_length: int | None = None) -> str:
    """A JSON string, quotes included, whose content fulfils all of the regular expressions.

    With patterns given, content that needs an escape is left out: a pattern speaks of the characters, the grammar
    sees their spelling.
    """
    character = _PLAIN if patterns else CHARACTER
    parts = [f"/{character}{_repeat(min_length, max_length)}/", *(f"/{pattern}/" for pattern in patterns)]
    return f'"\\"" ({" & ".join(parts)} & {not_containing(*_CUTTING)}) "\\""'


def _repeat(minimum: int, maximum: int | None) -> str:
    if maximum is not None and maximum <= _MAX_COUNTED:
        return f"{{{minimum},{maximum}}}"
    return f"{{{minimum},}}" if 0 < minimum <= _MAX_COUNTED else "*"


def pattern_to_regex(pattern: str) -> str:
    """A JSON schema's `pattern`, which may match anywhere, as an expression for the whole content."""
    body = pattern
    # Under a top-level "|" an anchor belongs to one branch only; such a pattern is left to the compiler to refuse.
    starts = body.startswith("^")
    ends = body.endswith("$") and (len(body) - len(body[:-1].rstrip("\\"))) % 2 == 1
    body = body[starts : len(body) - ends]
    if not (starts and ends and "|" not in body):
        body = f"({body})"
    return f"{'' if starts else '(?s:.*)'}{llguidance.regex_to_lark(body, 'dw')}{'' if ends else '(?s:.*)'}"


@lru_cache(maxsize=1)
def time_zone_regex() -> str:
    """Every time zone name that this machine knows."""
    return "|".join(re.escape(name).replace("/", r"\/") for name in sorted(zoneinfo.available_timezones()))


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
