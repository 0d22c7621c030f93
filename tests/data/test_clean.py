from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from data.clean import Cleaner, Kept, check_conversation
from data.config import DataConfig, OpenAIJsonlSource
from data.near_duplicates import NearDuplicateFilter
from data.rejected import Rejected, RejectReason
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall

Weather = Callable[..., Conversation]
SOURCE = OpenAIJsonlSource(kind="openai_jsonl", path=Path("x"))
ASK = Message(Role.USER, "weather?")
OSLO = Message(Role.ASSISTANT, "", (ToolCall("get_weather", {"location": "Oslo"}),))
WRONG = Message(Role.ASSISTANT, "", (ToolCall("get_weather", {"place": "Oslo"}),))


def outcomes(rows: Sequence[Conversation], case_texts: Sequence[str] = (), **config: object) -> list[str]:
    cleaner = Cleaner(DataConfig(sources=(SOURCE,), **config), case_texts, None)  # type: ignore[arg-type]
    results = [cleaner.clean(row) for row in rows]
    return ["kept" if isinstance(result, Kept) else str(result.reason) for result in results]


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
    assert outcomes(rows, near_duplicate_threshold=None) == ["kept", "duplicate"]


def test_other_tools_or_another_date_make_no_exact_duplicate(weather: Weather) -> None:
    rows = [weather(), weather(reference_date=dt.date(2026, 3, 19)), weather(tools=weather().tools[:1])]
    assert outcomes(rows, near_duplicate_threshold=None) == ["kept", "kept", "kept"]


def test_the_same_answer_to_nearly_the_same_request_is_a_near_duplicate(weather: Weather) -> None:
    request = "could you please tell me what the weather is going to be like in Oslo"
    rows = [weather(request), weather(f"{request.upper()}?!"), weather(f"Hm, {request}"), weather("weather oslo")]
    assert outcomes(rows) == ["kept", "near_duplicate", "near_duplicate", "kept"]


def test_like_requests_with_different_answers_are_no_duplicates(weather: Weather) -> None:
    request = "could you please tell me what the weather is going to be like in the city of {}"
    rows = [weather(request.format(city), {"location": city}) for city in ("Oslo", "Osla", "Bonn")]
    assert outcomes(rows) == ["kept", "kept", "kept"]


def test_steps_of_one_dialogue_are_no_duplicates_even_with_the_same_call(weather: Weather) -> None:
    result = Message(Role.TOOL, "{}", tool_name="get_weather")
    first = weather(messages=(ASK, OSLO))
    second = weather(messages=(ASK, replace(OSLO, is_trained=False), result, OSLO))
    assert outcomes([first, second]) == ["kept", "kept"]


def test_near_duplicates_are_found_among_many_rows_with_the_same_answer(weather: Weather) -> None:
    near = NearDuplicateFilter(0.9)
    requests = [f"{i:04} {i * 7919 % 10007:05} words that are mine {i * 31 % 1009} and Oslo {i}" for i in range(300)]
    assert all(near.find_or_add(weather(request)) is None for request in requests)
    assert all(near.find_or_add(weather(request + "!")) == f"test-{request}" for request in requests)


def test_a_row_that_overlaps_an_evaluation_case_is_rejected(weather: Weather) -> None:
    rows = [weather("What's the weather in Oslo?"), weather("tell me the weather in Bergen")]
    assert outcomes(rows, case_texts=["what’s the weather in oslo"]) == ["evaluation_overlap", "kept"]


def test_a_long_row_is_rejected_whole_and_never_cut(weather: Weather) -> None:
    config = DataConfig(sources=(SOURCE,), max_length_tokens=16)
    lengths = iter([16, 17])
    cleaner = Cleaner(config, (), lambda _: next(lengths))
    fits, long = cleaner.clean(weather("a b c d e")), cleaner.clean(weather("v w x y z"))
    assert isinstance(fits, Kept)
    assert fits.conversation == weather("a b c d e")
    assert isinstance(long, Rejected)
    assert (long.reason, long.detail) == (RejectReason.TOO_LONG, "17 tokens; at most 16 fit")


def test_a_row_that_was_too_long_does_not_shadow_a_later_equal_one(weather: Weather) -> None:
    config = DataConfig(sources=(SOURCE,), max_length_tokens=16)
    lengths = iter([17, 3])
    cleaner = Cleaner(config, (), lambda _: next(lengths))
    assert isinstance(cleaner.clean(weather()), Rejected)
    assert isinstance(cleaner.clean(weather()), Kept)


def test_a_row_that_the_chat_template_refuses_is_rejected(weather: Weather) -> None:
    def refuse(_: Conversation) -> int:
        raise ValueError("roles must alternate")

    result = Cleaner(DataConfig(sources=(SOURCE,)), (), refuse).clean(weather())
    assert isinstance(result, Rejected)
    assert (result.reason, result.detail) == (RejectReason.UNRENDERABLE, "roles must alternate")
