from __future__ import annotations

import pytest

from tinydispatch import formats
from tinydispatch.confidence import call_confidences, reply_confidence
from tinydispatch.decoding.greedy import Choice
from tinydispatch.tools import ToolCall

_TEXT = formats.render_calls([ToolCall("now", {"zone": "Zürich", "count": 3}), ToolCall("other", {})])


def _at(text: str, probability: float, occurrence: int = 0) -> Choice:
    position = -1
    for _ in range(occurrence + 1):
        position = _TEXT.index(text, position + 1)
    return Choice(len(_TEXT[:position].encode()), probability)


def test_each_choice_counts_where_its_text_stands() -> None:
    choices = [_at("<tool_call>", 0.9), _at("now", 0.8), _at("zone", 0.7), _at("Zür", 0.6), _at(", \"count", 0.5),
               _at("3", 0.4), _at("<tool_call>", 0.3, 1), _at("other", 0.2)]  # fmt: skip
    first, second = call_confidences(_TEXT, choices)
    assert first.tool == pytest.approx(0.9 * 0.8)
    assert first.arguments == {"zone": pytest.approx(0.7 * 0.6), "count": pytest.approx(0.5 * 0.4)}
    assert first.call == pytest.approx(0.9 * 0.8 * 0.7 * 0.6 * 0.5 * 0.4)
    assert (second.tool, second.arguments) == (pytest.approx(0.3 * 0.2), {})
    assert reply_confidence(choices, has_calls=True) == pytest.approx(first.call * second.call)


def test_words_are_as_sure_as_the_choice_to_speak() -> None:
    assert reply_confidence([Choice(0, 0.9), Choice(3, 0.1)], has_calls=False) == 0.9


def test_a_call_that_is_cut_or_no_call_has_no_confidence() -> None:
    for text in ("", "hi", "<tool_call>{", "<tool_call>nonsense</tool_call>", '<tool_call>{"name": 3'):
        assert call_confidences(text, [Choice(0, 0.5)]) == ()
