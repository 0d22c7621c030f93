from __future__ import annotations

from collections.abc import Callable

import pytest

from data.overlap import Overlap, find_overlap
from data.text import normalized_words
from tinydispatch.tools import Conversation, Message, Role

Weather = Callable[..., Conversation]


@pytest.mark.parametrize(
    ("training", "case"),
    [
        ("What's  the weather?", "what’s the WEATHER"),
        ("Weather Oslo", "weather, Oslo!"),
        ("hey, what's the weather in Oslo tomorrow please", "What's the weather in Oslo tomorrow?"),
        ("convert 50 usd to eur", "Convert 50 USD to EUR, then mail the result to Bob"),
        (
            "first of all send an email to bob@x.org about the party on Friday",
            "please send an email to bob@x.org about the party, thanks",
        ),
        ("東京の明日の天気を教えて", "東京の明日の天気を教えて。"),
        ("ＷＨＡＴ ｔｉｍｅ is it", "what time is it"),
    ],
)
def test_the_same_request_in_other_clothes_overlaps(weather: Weather, training: str, case: str) -> None:
    assert find_overlap([weather(training)], [case])


@pytest.mark.parametrize(
    ("training", "case"),
    [
        ("what time is it in Tokyo right now", "What time is it?"),
        ("what's the weather in Bergen tomorrow", "What's the weather in Oslo tomorrow?"),
        ("remind me to call mom at 6 pm", "remind me to call mom at 5 pm"),
        ("Oslo", "What's the weather in Oslo tomorrow?"),
        ("anything", "?!"),
        ("…", "?!"),
    ],
)
def test_another_request_does_not_overlap(weather: Weather, training: str, case: str) -> None:
    assert find_overlap([weather(training)], [case]) == []


def test_a_short_reply_overlaps_only_where_it_opens_the_dialogue(weather: Weather) -> None:
    reply = Message(Role.ASSISTANT, "You are welcome.")
    later = weather(messages=(Message(Role.USER, "hello there you"), reply, Message(Role.USER, "thanks!"), reply))
    first = weather(messages=(Message(Role.USER, "thanks!"), reply))
    assert [found.index for found in find_overlap([later, first], ["Thanks"])] == [1]


def test_any_user_turn_counts_and_the_report_names_the_case(weather: Weather) -> None:
    reply = Message(Role.ASSISTANT, "Hello.")
    messages = (Message(Role.USER, "hi"), reply, Message(Role.USER, "book a table at Nobu"), reply)
    found = find_overlap([weather("free"), weather(messages=messages)], ["a", "Book a table at Nobu."])
    assert found == [Overlap(1, "Book a table at Nobu.", "book a table at nobu")]


def test_what_the_assistant_says_is_not_compared(weather: Weather) -> None:
    messages = (Message(Role.USER, "hi"), Message(Role.ASSISTANT, "what's the weather in Oslo tomorrow"))
    assert find_overlap([weather(messages=messages)], ["What's the weather in Oslo tomorrow?"]) == []


def test_words_lose_case_width_and_punctuation_and_cjk_is_cut_by_character() -> None:
    assert normalized_words("What’s UP, ｆｏｏ_1?") == ("what", "s", "up", "foo_1")
    assert normalized_words("東京 tower") == ("東", "京", "tower")
