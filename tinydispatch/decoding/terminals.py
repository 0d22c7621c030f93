"""The smallest pieces of the grammar: JSON literals, numbers, and strings of a known shape, as Lark terminals.

A regular expression between slashes describes a string's content *as JSON text*, without its quotes; what stands in a
`%json` leaf describes its characters, and llguidance adds the escapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinydispatch.formats import CALL_END, TURN_END, value_in_call
from tinydispatch.string_formats import FORMATS

# A reader cuts a call at these texts wherever they stand, so no string may hold them unescaped.
_CUTTING = (CALL_END, TURN_END)

_ESCAPED = (
    r"\\([\"\\\/bfnrt]|u([0-9a-cA-CefEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}"
    r"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
)
CHARACTER = rf"({_ESCAPED}|[^\"\\\x00-\x1F])"
# A name is spelled as the writer spells it, so that no name has two spellings.
_NAME_CHARACTER = r"(\\([\"\\bfnrt]|u00([01][0-9a-f]|7f))|[^\"\\\x00-\x1F\x7F])"

INTEGER = "/-?(0|[1-9][0-9]{0,39})/"
NUMBER = r"/-?(0|[1-9][0-9]{0,39})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?/"
# Numbers that Python and JavaScript write with an exponent, because they are small or large.
TINY = r"[1-9](\.[0-9]{1,20})?e-(0[5-9]|[1-9][0-9])"
HUGE = r"[1-9](\.[0-9]{1,20})?e\+(1[6-9]|[2-9][0-9])"
NOT_NEGATIVE = rf"/(0|[1-9][0-9]{{0,39}})(\.[0-9]{{1,20}})?|{TINY}|{HUGE}/"
POSITIVE = rf"/([1-9][0-9]{{0,39}}(\.[0-9]{{1,20}})?|0\.[0-9]{{1,20}}|{TINY}|{HUGE})/ & ~/0\.0+/"


def _without_texts(texts: Sequence[str]) -> str:
    """An expression for all that holds none of the texts, each of which has its first character, `<`, only there."""

    def following(endings: list[str]) -> dict[str, list[str]]:
        return {
            char: [end[1:] for end in endings if end[0] == char] for char in dict.fromkeys(end[0] for end in endings)
        }

    def begun(endings: list[str]) -> str:
        # A beginning of a text, cut off by the next `<` or the end.
        branches = [re.escape(char) + begun(rest) for char, rest in following(endings).items() if all(rest)]
        return f"({'|'.join(branches)})?" if branches else ""

    def missed(endings: list[str]) -> str:
        # A beginning of a text, and then a character that is not the text's next.
        ways = following(endings)
        branches = [f"[^<{''.join(map(re.escape, ways))}]"]
        branches += [re.escape(char) + missed(rest) for char, rest in ways.items() if all(rest)]
        return f"({'|'.join(branches)})"

    ends = [text[1:] for text in texts]
    return f"([^<]|(<{begun(ends)})*<{missed(ends)})*(<{begun(ends)})*"


_SANE = f"^{_without_texts(_CUTTING)}$"


def spelled(value: Any) -> str:
    """A JSON value as the writer of calls spells it, none of the cutting texts in it.

    Raises:
        ValueError: the value holds half of a surrogate pair, or a number that JSON lacks; no model can write them.
    """
    text = value_in_call(value, allow_nan=False)
    text.encode("utf-8")
    return text


def literal(value: Any) -> str:
    """A JSON value as a Lark string, spelled as the writer of calls spells it."""
    return quoted(spelled(value))


def quoted(text: str) -> str:
    """Exactly this text, as a Lark string."""
    return json.dumps(text)


def one_of(texts: Iterable[str]) -> str:
    """Any of these texts, as one terminal: a single automaton, however many there are."""
    return " | ".join(quoted(text) for text in texts)


def not_containing(*texts: str) -> str:
    """Lark's exclusion of everything that holds one of the texts; to be intersected with something."""
    return " & ".join(f"~/(?s:.*){_escaped(text)}(?s:.*)/" for text in texts)


def any_string() -> str:
    """A JSON string, quotes included, of any content that cuts no call."""
    return f'"\\"" (/{CHARACTER}*/ & {not_containing(*_CUTTING)}) "\\""'


def name_other_than(names: Sequence[str]) -> str:
    """A key, quotes included, that is none of the names."""
    others = "" if not names else f" & ~({one_of(spelled(name)[1:-1] for name in names)})"
    return f'"\\"" (/{_NAME_CHARACTER}*/ & {not_containing(*_CUTTING)}{others}) "\\""'


def of_format(form: str) -> str:
    """A JSON string of a known format, none of which needs an escape."""
    return f'"\\"" /{_slashed(FORMATS[form])}/ "\\""'


def expression(regex: str) -> str:
    """A regular expression of a whole text that stands without quotation marks."""
    return f"/{_slashed(regex)}/"


def string_leaf(patterns: Sequence[str], least: int = 0, most: int | None = None) -> str:
    """A `%json` leaf for strings that match all of the patterns and have that many characters."""
    leaf: dict[str, Any] = {"type": "string", "allOf": [{"pattern": pattern} for pattern in (*patterns, _SANE)]}
    if least:
        leaf["minLength"] = least
    if most is not None:
        leaf["maxLength"] = most
    return json_leaf(leaf)


def json_leaf(schema: Mapping[str, Any]) -> str:
    """A rule's body: llguidance's own compilation of a small schema."""
    # Without white space between tokens the leaf is part of the grammar around it; with it, the parser would have to
    # choose between the two where both may go on.
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}})


def _slashed(regex: str) -> str:
    return re.sub(r"(?<!\\)/", r"\/", regex)


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
