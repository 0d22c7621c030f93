"""How sure a model was of each call: products of the probabilities of the choices that the grammar left it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tinydispatch.decoding.greedy import Choice
from tinydispatch.formats import CALL_END, CALL_START, FUNCTION_START, PARAMETER

_DECODER = json.JSONDecoder()
_ARGUMENTS = ', "arguments": '


@dataclass(frozen=True)
class CallConfidence:
    """From 0 to 1: how sure the tool's choice is, each argument, and the call as a whole.

    `tool` includes the decision to call at all; an argument's includes the decision to give it.
    """

    tool: float
    arguments: Mapping[str, float]
    call: float


def call_confidences(text: str, choices: Sequence[Choice]) -> tuple[CallConfidence, ...]:
    """One confidence for each complete call of a reply; every choice counts where its text begins."""
    found = []
    start = 0
    while (marker := text.find(CALL_START, start)) >= 0:
        end = text.find(CALL_END, marker)
        if end < 0:
            break
        spans = _spans(text, marker + len(CALL_START), end)
        if spans is not None:
            name_end, arguments = spans
            found.append(
                CallConfidence(
                    tool=_product(text, choices, start, name_end),
                    arguments={key: _product(text, choices, *span) for key, span in arguments.items()},
                    call=_product(text, choices, start, end + len(CALL_END)),
                )
            )
        start = end + len(CALL_END)
    return tuple(found)


def reply_confidence(choices: Sequence[Choice], *, has_calls: bool) -> float:
    """Of a reply with calls, all its choices together; of one in words, the first: to speak and not to call."""
    if not has_calls:
        return choices[0].probability if choices else 1.0
    return math.prod(choice.probability for choice in choices)


def _product(text: str, choices: Sequence[Choice], start: int, end: int) -> float:
    first, last = len(text[:start].encode()), len(text[:end].encode())
    return math.prod(choice.probability for choice in choices if first <= choice.position < last)


def _spans(text: str, start: int, end: int) -> tuple[int, dict[str, tuple[int, int]]] | None:
    """Where a call's name ends, and where each argument stands with what leads to it; None for what is no call."""
    if element := re.compile(rf"\s*{FUNCTION_START}[^>\n]+>").match(text, start, end):
        return element.end(), {found[1]: found.span() for found in PARAMETER.finditer(text, element.end(), end)}
    try:
        opening = text.index('"name": ', start, end)
        _, name_end = _DECODER.raw_decode(text, opening + len('"name": '))
        if not text.startswith(_ARGUMENTS + "{", name_end):
            return None
        return name_end, dict(_members(text, name_end + len(_ARGUMENTS) + 1))
    except ValueError:
        return None


def _members(text: str, position: int) -> Iterator[tuple[str, tuple[int, int]]]:
    while text[position] != "}":
        key_start = position + 2 if text.startswith(", ", position) else position
        key, key_end = _DECODER.raw_decode(text, key_start)
        _, value_end = _DECODER.raw_decode(text, key_end + len(": "))
        yield key, (position, value_end)
        position = value_end
