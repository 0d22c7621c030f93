"""A schema's `pattern`: ECMA-262 expressions of strangers, matched in bounded time.

What llguidance can express is matched by llguidance, in linear time and by the automaton that the grammar uses. The
rest (look-around, back-references, word boundaries) is matched by `regex` under a time limit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import llguidance
import regex as regex_with_timeout  # type: ignore[import-untyped]

MAX_LENGTH = 4_000
_MAX_TEXT = 100_000
_TIMEOUT_S = 0.1
_SPACE = r"\t\n\x0B\x0C\r \u{A0}\u{1680}\u{2000}-\u{200A}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}\u{FEFF}"
_META = frozenset(r"\.+*?()|[]{}^$#&-~/")
_CONTROLS = {"t": r"\t", "n": r"\n", "r": r"\r", "f": r"\x0C", "v": r"\x0B"}
_CLASSES = {
    "d": "[0-9]", "D": "[^0-9]", "w": "[0-9A-Za-z_]", "W": "[^0-9A-Za-z_]", "s": f"[{_SPACE}]", "S": f"[^{_SPACE}]",
}  # fmt: skip
_OPENINGS = ("(?:", "(?i:", "(?s:")


class _Inexpressible(ValueError):  # noqa: N818 (a reason)
    """The expression asks for more than a regular language, or for what llguidance lacks."""


@dataclass(frozen=True)
class Pattern:
    """One expression. `parts` are the expressions, in llguidance's syntax, that a text must all match somewhere; None
    where it has no such form, and `problem` says why.
    """

    source: str
    parts: tuple[str, ...] | None
    problem: str = ""

    def matches(self, text: str) -> bool | None:
        """Whether the expression matches anywhere in the text; None if that could not be found out in time."""
        if len(text) > _MAX_TEXT:
            return None
        if self.parts is not None:
            return all(_walks(part, text) for part in self.parts)
        compiled = _fallback(self.source)
        if compiled is None:
            return None
        try:
            return compiled.search(text, timeout=_TIMEOUT_S) is not None
        except TimeoutError:
            return None

    @property
    def is_readable(self) -> bool:
        """Whether any of the two can match it."""
        return self.parts is not None or _fallback(self.source) is not None


@lru_cache(maxsize=4_096)
def read_pattern(source: str) -> Pattern:
    """The expression, translated once."""
    if len(source) > MAX_LENGTH:
        return Pattern(source, None, f"it is longer than {MAX_LENGTH} characters")
    try:
        parts = tuple(_Translator(part).text() for part in _split_lookaheads(source))
    except (_Inexpressible, IndexError) as error:
        return Pattern(source, None, str(error) or "it ends too early")
    for part in parts:
        if problem := llguidance.LLMatcher.validate_grammar(_grammar(part)):
            return Pattern(source, None, _reason(problem))
    return Pattern(source, parts)


def _reason(problem: str) -> str:
    first, *rest = problem.splitlines()
    # A regular expression's parser gives its reason in the last line.
    return " ".join(
        [first.rpartition("failed to compile JSON schema: ")[2], *(x.strip() for x in rest if "error:" in x)]
    )


def _grammar(part: str) -> str:
    return "%llguidance {}\nstart: %json " + json.dumps({"type": "string", "pattern": part}) + "\n"


class _Bytes:
    """A tokenizer whose tokens are the 256 bytes and an end."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 256
    special_token_ids = (256,)
    tokens = tuple([bytes([value]) for value in range(256)] + [b"<|end|>"])

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@lru_cache(maxsize=1)
def byte_table() -> llguidance.LLTokenizer:
    """A vocabulary of bytes, with which a grammar reads any text."""
    wrapper: Any = _Bytes()
    return llguidance.LLTokenizer(wrapper, eos_token=[256], slices=[])


@lru_cache(maxsize=512)
def _matcher(part: str) -> llguidance.LLMatcher:
    return llguidance.LLMatcher(byte_table(), _grammar(part), log_level=0)


def _walks(part: str, text: str) -> bool:
    # JSON's escapes are read back by the grammar; a lone surrogate has no UTF-8 and so no match.
    ids = list(json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F").encode("utf-8", "replace"))
    matcher = _matcher(part).deep_copy()
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@lru_cache(maxsize=512)
def _fallback(source: str) -> Any | None:
    if len(source) > MAX_LENGTH:
        return None
    try:
        return regex_with_timeout.compile(_for_python(source), regex_with_timeout.VERSION0)
    except (regex_with_timeout.error, ValueError, OverflowError, RecursionError, MemoryError):
        return None


def _for_python(source: str) -> str:
    """ECMA's spelling of groups, code points and the end of the text in Python's."""
    text, position, is_in_class = "", 0, False
    while position < len(source):
        char = source[position]
        if char == "\\":
            pair = source[position : position + 2]
            if pair in (r"\d", r"\w", r"\D", r"\W"):
                body = _CLASSES[pair[1]]
                text += body if not is_in_class else body[1:-1] if pair[1].islower() else pair
            elif source.startswith(r"\u{", position) and "}" in source[position:]:
                end = source.index("}", position)
                text += regex_with_timeout.escape(chr(int(source[position + 3 : end], 16)))
                pair = source[position : end + 1]
            elif source.startswith(r"\k<", position) and ">" in source[position:]:
                end = source.index(">", position)
                text += f"(?P={source[position + 3 : end]})"
                pair = source[position : end + 1]
            else:
                text += pair.replace(r"\/", "/")
            position += len(pair)
            continue
        is_in_class = char == "[" or (is_in_class and char != "]")
        if source.startswith("(?<", position) and source[position + 3 : position + 4] not in ("=", "!"):
            text, position = text + "(?P<", position + 3
            continue
        text += r"\Z" if char == "$" and not is_in_class else char
        position += 1
    return text


def _split_lookaheads(source: str) -> list[str]:
    """`^(?=A)(?=B)C` as the expressions `^(?:A)`, `^(?:B)` and `^(?:C)`, all of which must match."""
    if not source.startswith("^(?="):
        return [source]
    parts, position = [], 1
    while source.startswith("(?=", position):
        end = _closing(source, position)
        parts.append(f"^(?:{source[position + 3 : end]})")
        position = end + 1
    if "|" in source[position:]:
        raise _Inexpressible("look-around beside alternatives")
    return [*parts, "^" + source[position:]]


def _closing(source: str, position: int) -> int:
    depth, is_in_class = 0, False
    while position < len(source):
        char = source[position]
        if char == "\\":
            position += 1
        elif char == "[":
            is_in_class = True
        elif char == "]":
            is_in_class = False
        elif not is_in_class:
            depth += (char == "(") - (char == ")")
            if not depth:
                return position
        position += 1
    raise _Inexpressible("a group is never closed")


class _Translator:
    """Rewrites one ECMA expression in Rust's syntax, character by character."""

    def __init__(self, source: str) -> None:
        self._source, self._at = source, 0

    def text(self) -> str:
        """The whole expression in the other syntax."""
        pieces: list[str] = []
        while self._at < len(self._source):
            pieces.append(self._piece())
        return "".join(pieces)

    def _take(self, size: int = 1) -> str:
        text = self._source[self._at : self._at + size]
        self._at += size
        return text

    def _piece(self) -> str:
        char = self._take()
        if char == "\\":
            return self._escape(is_in_class=False)
        if char == "[":
            return self._class()
        if char == "(":
            return self._group()
        if char == ".":
            return r"[^\n\r\u{2028}\u{2029}]"
        if char in "*+?":
            self._drop_laziness()
            return char
        if char == "{":
            return self._count()
        return "\\" + char if char in "}]#&~/-" else char

    def _drop_laziness(self) -> None:
        # Whether a repetition is greedy changes what is captured, not whether the text matches.
        if self._source.startswith("?", self._at):
            self._at += 1

    def _count(self) -> str:
        end = self._source.find("}", self._at)
        body = self._source[self._at : end] if end >= 0 else ""
        least, comma, most = body.partition(",")
        if not least.isdecimal() or not (most.isdecimal() or not most):
            return r"\{"
        if max(int(least), int(most or 0)) > 1_000:
            raise _Inexpressible("it repeats more than 1,000 times")
        self._at = end + 1
        self._drop_laziness()
        return "{" + least + comma + most + "}"

    def _group(self) -> str:
        if not self._source.startswith("?", self._at):
            return "(?:"
        if self._source.startswith(("?=", "?!", "?<=", "?<!"), self._at):
            raise _Inexpressible("look-around")
        if self._source.startswith(("?<", "?P<"), self._at):
            self._at = self._source.index(">", self._at) + 1 if ">" in self._source[self._at :] else len(self._source)
            return "(?:"
        for opening in (*_OPENINGS, "(?i)"):
            if self._source.startswith(opening[1:], self._at):
                self._at += len(opening) - 1
                return opening
        raise _Inexpressible("a group of unknown kind")

    def _escape(self, *, is_in_class: bool) -> str:
        char = self._take()
        if not char:
            raise _Inexpressible("it ends in a backslash")
        if char in _CLASSES:
            return _CLASSES[char]
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char in "pP" and self._source.startswith("{", self._at) and "}" in self._source[self._at :]:
            return "\\" + char + self._take(self._source.index("}", self._at) + 1 - self._at)
        if char in "AZz" and not is_in_class:
            return "^" if char == "A" else "$"
        if char == "b" and is_in_class:
            return r"\x08"
        if char in "bB":
            raise _Inexpressible("a word boundary")
        if char in "123456789k":
            raise _Inexpressible("a back-reference")
        if char in "xuc0":
            return self._code_point(char)
        return "\\" + char if char in _META else char

    def _code_point(self, kind: str) -> str:
        if kind == "0":
            return r"\x00"
        if kind == "c":
            return rf"\x{ord(self._take()) % 32:02X}"
        if self._source.startswith("{", self._at):
            end = self._source.index("}", self._at) if "}" in self._source[self._at :] else len(self._source)
            digits = self._source[self._at + 1 : end]
            self._at = end + 1
        else:
            digits = self._take(2 if kind == "x" else 4)
        try:
            value = int(digits, 16)
            if 0xD800 <= value < 0xDC00 and self._source.startswith("\\u", self._at):
                low = int(self._source[self._at + 2 : self._at + 6], 16)
                self._at += 6
                value = 0x10000 + ((value - 0xD800) << 10) + (low - 0xDC00)
        except ValueError:
            raise _Inexpressible(f"\\{kind}{digits} is no code point") from None
        if value > 0x10FFFF or 0xD800 <= value < 0xE000:
            raise _Inexpressible(f"\\{kind}{digits} is no character")
        return rf"\u{{{value:X}}}"

    def _class(self) -> str:
        text = "[^" if self._source.startswith("^", self._at) else "["
        self._at += len(text) - 1
        if self._source.startswith("]", self._at):
            self._at += 1
            if text == "[^":
                return r"(?s:.)"
            raise _Inexpressible("a class without characters matches nothing")
        while True:
            char = self._take()
            if not char:
                raise _Inexpressible("a class is never closed")
            if char == "]":
                return text + "]"
            if char == "\\":
                text += self._escape(is_in_class=True)
            elif char == "-":
                is_range = text[-1] not in "[^" and not self._source.startswith("]", self._at)
                text += "-" if is_range and not text.endswith("]") and not self._is_class_next() else r"\-"
            else:
                text += "\\" + char if char in "[^&~#" else char

    def _is_class_next(self) -> bool:
        return self._source.startswith("\\", self._at) and self._source[self._at + 1 : self._at + 2] in tuple(_CLASSES)
