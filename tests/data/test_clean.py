from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.clean import check_conversation
from data.config import DataConfig, OpenAIJsonlSource
from data.fit import CountTokens
from data.join import decide
from data.near_duplicates import NearDuplicateFilter
from data.rejected import Rejected, RejectReason
from data.screen import Screen
from data.shards import Record
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall

Weather = Callable[..., Conversation]
SOURCE = OpenAIJsonlSource(kind="openai_jsonl", path=Path("x"))
ASK = Message(Role.USER, "weather?")
OSLO = Message(Role.ASSISTANT, "", (ToolCall("get_weather", {"location": "Oslo"}),))
WRONG = Message(Role.ASSISTANT, "", (ToolCall("get_weather", {"place": "Oslo"}),))


def screened(
    rows: Sequence[Conversation], case_texts: Sequence[str] = (), count_tokens: CountTokens | None = None, **config: Any
) -> list[Record]:
    screen = Screen(DataConfig(sources=(SOURCE,), **config), seed=0, case_texts=case_texts, count_tokens=count_tokens)
    return [row.record for row in screen.screen(rows, 0)]


def outcomes(rows: Sequence[Conversation], case_texts: Sequence[str] = (), **config: Any) -> list[str]:
    records = screened(rows, case_texts, **config)
    decisions = decide(lambda: records, config.get("near_duplicate_threshold", 0.9))
    return [record.reason or str(decisions.verdict(i, record).fate) for i, record in enumerate(records)]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((OSLO,), RejectReason.NO_USER_TURN),
        ((Message(Role.USER, " \n"), OSLO), RejectReason.NO_USER_TURN),
        ((ASK,), RejectReason.NO_ASSISTANT_TURN),
        ((ASK, replace(OSLO, is_trained=False)), RejectReason.NOTHING_TRAINED),
        ((ASK, Message(Role.ASSISTANT, " ")), RejectReason.EMPTY_REPLY),
        ((ASK, Message(Role.ASSISTANT, "", (ToolCall("fly", {}),))), RejectReason.UNKNOWN_TOOL),
        ((ASK, replace(WRONG, tool_calls=(ToolCall("fly", {}),), is_trained=False), OSLO), RejectReason.UNKNOWN_TOOL),
        ((ASK, WRONG), RejectReason.SCHEMA_VIOLATION),
        ((ASK, Message(Role.ASSISTANT, "", (ToolCall("get_weather", {}),))), RejectReason.SCHEMA_VIOLATION),
    ],
)
def test_a_conversation_that_teaches_nothing_or_wrong_is_rejected(
    weather: Weather, messages: tuple[Message, ...], reason: RejectReason
) -> None:
    rejected = check_conversation(weather(messages=messages))
    assert rejected is not None
    assert rejected.reason is reason


def test_a_wrong_call_that_is_not_trained_may_be_recovered_from(weather: Weather) -> None:
    failed = Message(Role.TOOL, "error: no such parameter", tool_name="get_weather")
    assert check_conversation(weather(messages=(ASK, replace(WRONG, is_trained=False), failed, OSLO))) is None


def test_a_rejection_shows_the_row_the_request_and_the_call(weather: Weather) -> None:
    rejected = check_conversation(weather(messages=(ASK, WRONG), metadata={"row_id": "mine.jsonl:7"}))
    assert rejected == Rejected(
        RejectReason.SCHEMA_VIOLATION,
        "'get_weather': 'location' is a required property; place: unknown parameter 'place'",
        "mine.jsonl:7",
        "weather? → get_weather({'place': 'Oslo'})",
    )


@pytest.mark.parametrize("broken", [{"$ref": "#/nowhere"}, {"$ref": "#/properties/location"}])
def test_a_schema_that_cannot_be_applied_is_rejected_instead_of_raising(
    weather: Weather, broken: dict[str, str]
) -> None:
    tool = Tool("get_weather", "", {"type": "object", "properties": {"location": broken}})
    rejected = check_conversation(weather(tools=(tool,)))
    assert rejected is not None
    assert rejected.reason is RejectReason.INVALID_TOOLS


def test_half_a_character_is_rejected(weather: Weather) -> None:
    assert outcomes([weather("weather in \ud83d?")]) == ["unstorable"]


def test_an_equal_row_is_kept_once_whatever_its_source(weather: Weather) -> None:
    rows = [weather(), weather(source="other", dialogue_id="d2", metadata={"row_id": "z"})]
    assert outcomes(rows, near_duplicate_threshold=None) == ["written", "duplicate"]


def test_other_tools_or_another_date_make_no_exact_duplicate(weather: Weather) -> None:
    rows = [weather(), weather(reference_date=dt.date(2026, 3, 19)), weather(tools=weather().tools[:1])]
    assert outcomes(rows, near_duplicate_threshold=None) == ["written", "written", "written"]


def test_the_same_answer_to_nearly_the_same_request_is_a_near_duplicate(weather: Weather) -> None:
    request = "could you please tell me what the weather is going to be like in Oslo"
    rows = [weather(request), weather(f"{request.upper()}?!"), weather(f"Hm, {request}"), weather("weather oslo")]
    assert outcomes(rows) == ["written", "near_duplicate", "near_duplicate", "written"]


def test_like_requests_with_different_answers_are_no_duplicates(weather: Weather) -> None:
    request = "could you please tell me what the weather is going to be like in the city of {}"
    rows = [weather(request.format(city), {"location": city}) for city in ("Oslo", "Osla", "Bonn")]
    assert outcomes(rows) == ["written", "written", "written"]


def test_steps_of_one_dialogue_are_no_duplicates_even_with_the_same_call(weather: Weather) -> None:
    result = Message(Role.TOOL, "{}", tool_name="get_weather")
    first = weather(messages=(ASK, OSLO))
    second = weather(messages=(ASK, replace(OSLO, is_trained=False), result, OSLO))
    assert outcomes([first, second]) == ["joined", "written"]
    assert outcomes([first, second], join_prefixes=False) == ["written", "written"]


def test_near_duplicates_are_found_among_many_rows_with_the_same_answer(weather: Weather) -> None:
    near = NearDuplicateFilter(0.9)
    requests = [f"{i:04} {i * 7919 % 10007:05} words that are mine {i * 31 % 1009} and Oslo {i}" for i in range(300)]
    assert all(near.find_or_add(weather(request)) is None for request in requests)
    assert all(near.find_or_add(weather(request + "!")) == f"test-{request}" for request in requests)


def test_a_row_that_overlaps_an_evaluation_case_is_rejected(weather: Weather) -> None:
    rows = [weather("What's the weather in Oslo?"), weather("tell me the weather in Bergen")]
    assert outcomes(rows, case_texts=["what’s the weather in oslo"]) == ["evaluation_overlap", "written"]


def test_a_long_row_is_rejected_whole_and_never_cut(weather: Weather) -> None:
    def count(conversation: Conversation) -> int:
        return {"a b c d e": 16, "v w x y z": 17}[conversation.messages[0].content]

    fits, long = screened([weather("a b c d e"), weather("v w x y z")], (), count, max_length_tokens=16, fit=())
    assert (fits.reason, fits.length) == ("", 16)
    assert (long.reason, long.detail) == (RejectReason.TOO_LONG, "17 tokens; at most 16 fit")


def test_a_row_that_was_too_long_does_not_shadow_a_later_equal_one(weather: Weather) -> None:
    lengths = iter([3, 17])  # the rows of a part are looked at from the last one
    records = screened([weather(), weather()], (), lambda _: next(lengths), max_length_tokens=16, fit=())
    decisions = decide(lambda: records, 0.9)
    assert records[0].reason == RejectReason.TOO_LONG
    assert decisions.verdict(1, records[1]).fate == "written"


def test_a_row_that_the_chat_template_refuses_is_rejected(weather: Weather) -> None:
    def refuse(_: Conversation) -> int:
        raise ValueError("roles must alternate")

    record = screened([weather()], (), refuse)[0]
    assert (record.reason, record.detail) == (RejectReason.UNRENDERABLE, "roles must alternate")
