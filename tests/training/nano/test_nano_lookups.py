from __future__ import annotations

import datetime as dt

import pytest
from transformers import PreTrainedTokenizerFast

from tinydispatch.formats import render_prompt, with_reference_date
from tinydispatch.tools import Message, Role
from training.nano.corpus import to_document
from training.nano.lookups import lookups

THURSDAY = dt.date(2026, 3, 19)


def _conversation(said: str) -> str:
    return render_prompt(with_reference_date((Message(Role.USER, said),), THURSDAY), (), add_generation_prompt=True)


@pytest.mark.parametrize(
    ("said", "days"),
    [
        ("rain on Saturday?", {"Saturday": "21"}),
        ("lunch mon or TUESDAY", {"mon": "23", "TUESDAY": "24"}),
        ("today, tomorrow and tonight", {"today": "19", "tomorrow": "20", "tonight": "19"}),
        ("thursday", {"thursday": "26"}),
        ("next Friday", {}),
        ("Friday of next week", {}),
        ("the day after tomorrow", {}),
        ("my friends sat down, sunshine", {"sat": "21"}),
    ],
)
def test_words_that_the_date_line_explains_are_found_with_their_day(said: str, days: dict[str, str]) -> None:
    text = _conversation(said)
    assert {text[:end].split()[-1].rstrip(",?"): day for end, day in lookups(text)} == days


def test_a_conversation_without_a_date_has_none() -> None:
    assert list(lookups(render_prompt((Message(Role.USER, "on Friday"),), ()))) == []


def test_the_day_is_asked_for_at_the_last_token_of_the_word(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    document = to_document(_conversation("rain on Saturday?"), nano_tokenizer)
    ((position, day_id),) = document.lookups
    assert nano_tokenizer.decode([day_id]) == "21"
    assert nano_tokenizer.decode(document.ids[: position + 1]).endswith("rain on Saturday")
