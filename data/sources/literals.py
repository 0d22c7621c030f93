"""Values out of model-written text: JSON first, Python literals second, never `eval`, with every mending named."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

from data.rejected import Repair
from tinydispatch.formats import json_decoder

# ast.literal_eval builds a tree of about 100 bytes a character; real API lists stay under 60,000 characters.
MAX_LITERAL_CHARS = 1_000_000
MAX_ARGUMENTS_CHARS = 100_000


# How a call without arguments is written, besides `{}`: PHP has no other word for an empty object than `[]`.
_NOTHING = ("", "null", "None", "[]")


class LiteralError(ValueError):
    """Text that is neither JSON nor a Python literal of JSON values."""


@dataclass(frozen=True)
class ParsedArguments:
    """A call's arguments and what it took to read them."""

    arguments: dict[str, Any]
    repairs: tuple[Repair, ...] = ()


def parse_literal(text: str, max_chars: int = MAX_LITERAL_CHARS) -> Any:
    """A JSON value, or the same written by Python's `repr`.

    Raises:
        LiteralError: too long, neither of both, or a value that JSON does not have (set, bytes, infinity).
    """
    if len(text) > max_chars:
        raise LiteralError(f"{len(text)} characters; at most {max_chars} are read")
    text = text.strip()
    try:
        return json_decoder(strict=True).decode(text)
    except (ValueError, RecursionError):
        return _python_literal(text)


def parse_arguments(text: str) -> ParsedArguments:
    """Read the arguments of a call as models write them.

    Example: `{'city': 'Oslo'}\\nThought: …` → `{"city": "Oslo"}` with PYTHON_LITERAL and TRAILING_TEXT_DROPPED.

    Raises:
        LiteralError: no object can be read from the beginning of the text.
    """
    if len(text) > MAX_ARGUMENTS_CHARS:
        raise LiteralError(f"{len(text)} characters; at most {MAX_ARGUMENTS_CHARS} are read")
    text = text.strip()
    if text in _NOTHING:
        return ParsedArguments({}, (Repair.EMPTY_ARGUMENTS,))
    value, repairs = _first_value(text)
    if isinstance(value, str):  # an object that was encoded twice
        value, inner = _first_value(value.strip())
        repairs += (Repair.DOUBLE_ENCODED, *inner)
    if not isinstance(value, dict):
        raise LiteralError(f"expected an object, got {type(value).__name__}")
    return ParsedArguments(value, repairs)


def parse_values(text: str) -> list[Any]:
    """JSON values one after the other, with nothing but blanks, commas and semicolons between them; lists are opened.

    Raises:
        LiteralError: something else stands before, between or after them.
    """
    if len(text) > MAX_LITERAL_CHARS:
        raise LiteralError(f"{len(text)} characters; at most {MAX_LITERAL_CHARS} are read")
    found: list[Any] = []
    position, decoder = 0, json_decoder(strict=True)
    while text := text[position:].lstrip(" \t\r\n,;"):
        try:
            value, position = decoder.raw_decode(text)
        except (ValueError, RecursionError) as error:
            if found:
                raise LiteralError(f"not JSON after {len(found)} values: {error}") from None
            value, position = _python_literal(text), len(text)
        found += value if isinstance(value, list) else [value]
    return found


def python_calls(text: str) -> list[dict[str, Any]]:
    """Calls as Python writes them, one a line or in a list: `f(city='Oslo')`, `print(api.f(x=1))`, `f.call(x=1)`.

    Nothing is run: an argument is a constant, or lists and dictionaries of constants, under its keyword.

    Raises:
        LiteralError: anything else.
    """
    if len(text) > MAX_ARGUMENTS_CHARS:
        raise LiteralError(f"{len(text)} characters; at most {MAX_ARGUMENTS_CHARS} are read")
    try:
        found = []
        for statement in ast.parse(text.strip()).body:
            value = statement.value if isinstance(statement, ast.Expr) else None
            found += [_python_call(each) for each in (value.elts if isinstance(value, ast.List) else [value])]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise LiteralError(f"no calls in Python: {error}") from error
    if not found:
        raise LiteralError("no calls in Python")
    return found


def _python_call(node: ast.AST | None) -> dict[str, Any]:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and len(node.args) == 1
    ):
        node = node.args[0]
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("expected name(key=value, …)")
    name = ast.unparse(node.func).removesuffix(".call").removeprefix("default_api.")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("'**' is no argument")
        _refuse_repeated_keys(keyword.value)
        arguments[keyword.arg] = json.loads(json.dumps(ast.literal_eval(keyword.value), allow_nan=False))
    return {"name": name, "arguments": arguments}


def _first_value(text: str) -> tuple[Any, tuple[Repair, ...]]:
    problem = ""
    for strict, repairs in ((True, ()), (False, (Repair.RAW_CONTROL_CHARACTERS,))):
        try:
            value, end = json_decoder(strict=strict).raw_decode(text)
        except (ValueError, RecursionError) as error:
            problem = problem or str(error)
            continue
        if text[end:].lstrip(" \t\r\n,;")[:1] in ("{", "["):
            raise LiteralError("a second value follows the first: half of what was written would be lost")
        return value, repairs if end == len(text) else (*repairs, Repair.TRAILING_TEXT_DROPPED)
    try:
        return _python_literal(text), (Repair.PYTHON_LITERAL,)
    except LiteralError:
        cut = text.rfind("}") + 1
        if not 0 < cut < len(text):
            raise LiteralError(f"not JSON: {problem}") from None
        return _python_literal(text[:cut]), (Repair.PYTHON_LITERAL, Repair.TRAILING_TEXT_DROPPED)


def _python_literal(text: str) -> Any:
    """The value of a literal; by way of JSON where the two differ only in quotes and in the words for constants."""
    try:
        return json_decoder(strict=True).decode(_STRING_OR_WORD.sub(_as_json, text))
    except (ValueError, RecursionError):
        pass  # tuples, hexadecimal numbers, strings side by side, or no literal at all
    try:
        tree = ast.parse(text, mode="eval")
        _refuse_repeated_keys(tree)
        value = ast.literal_eval(tree)
        # The round trip refuses what JSON does not have and turns tuples into arrays.
        return json.loads(json.dumps(value, allow_nan=False))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise LiteralError(f"neither JSON nor a Python literal: {type(error).__name__}: {error}") from error


_STRING_OR_WORD = re.compile(r"""'([^'\\\n]*(?:\\.[^'\\\n]*)*)'|"([^"\\\n]*(?:\\.[^"\\\n]*)*)"|[^\W\d]\w*""")
_WORDS = {"True": "true", "False": "false", "None": "null"}


def _as_json(found: re.Match[str]) -> str:
    """One string or word of Python as JSON; a word that JSON lacks stays, and is refused there."""
    text = found.group()
    if text[0] not in "'\"":
        return _WORDS.get(text, f"?{text}")
    inside = text[1:-1]
    if "\\" in inside or '"' in inside:
        return json.dumps(ast.literal_eval(text), ensure_ascii=False)
    return f'"{inside}"'


def _refuse_repeated_keys(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            if len(set(keys)) != len(keys):
                raise ValueError("a key occurs twice")
