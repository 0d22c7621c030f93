from __future__ import annotations

import datetime as dt
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydispatch.bundled import bundled_tools
from tinydispatch.formats import (
    TURN_END,
    default_chat_template,
    parse_reply,
    reference_date_text,
    render_calls,
    render_prompt,
    stated_day,
    template_hash,
    with_reference_date,
)
from tinydispatch.tools import Message, Role, ToolCall

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def without_markers(value: Any) -> bool:
    return not any(marker in json.dumps(value, ensure_ascii=False) for marker in ("</tool_call>", TURN_END))


@given(st.text(min_size=1), st.dictionaries(st.text(), VALUES, max_size=4).filter(without_markers))
def test_what_is_written_is_read_back(name: str, arguments: dict[str, Any]) -> None:
    if not without_markers(name):
        return
    calls = [ToolCall(name, arguments), ToolCall("other", {})]
    reply = parse_reply(render_calls(calls) + TURN_END)
    assert list(reply.calls) == calls
    assert reply.unparsed == ()
    assert reply.content == ""


@given(st.text())
def test_no_text_makes_the_reader_fail(text: str) -> None:
    parse_reply(text)
    parse_reply(f"<tool_call>{text}</tool_call>{text}<tool_call>{text}")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ('{"name": "a", "arguments": {}', "not JSON"),
        ('{"name": "a", "arguments": {"x": NaN}}', "NaN"),
        ('{"name": "a", "arguments": {"x": 1, "x": 2}}', "twice"),
        ('{"name": "a", "arguments": "{}"}', "an object"),
        ('{"name": 3, "arguments": {}}', "a string"),
        ('{"name": "a"}', "exactly"),
        ('{"name": "a", "arguments": {}, "id": 1}', "exactly"),
        ('["a", {}]', "exactly"),
        ("[" * 100_000, "not JSON"),
        ("", "not JSON"),
    ],
)
def test_a_malformed_call_is_kept_as_text_with_the_reason(raw: str, reason: str) -> None:
    reply = parse_reply(f"before <tool_call>{raw}</tool_call> after")
    assert reply.calls == ()
    assert [unparsed.raw_text for unparsed in reply.unparsed] == [raw]
    assert reason in reply.unparsed[0].error
    assert reply.content == "before  after"


def test_a_good_call_beside_a_broken_one_is_still_read() -> None:
    good = ToolCall("a", {"x": "}"})
    reply = parse_reply(f"<tool_call>nonsense</tool_call>{render_calls([good])}")
    assert reply.calls == (good,)
    assert len(reply.unparsed) == 1


def test_an_opened_call_that_is_never_closed_is_unparsed_and_not_content() -> None:
    reply = parse_reply('Sure. <tool_call>{"name": "a", "argum')
    assert reply.content == "Sure."
    assert reply.unparsed[0].error == "the call is never closed"


def test_nothing_after_the_end_of_the_turn_counts() -> None:
    assert parse_reply(f"Done.{TURN_END}{render_calls([ToolCall('a', {})])}").calls == ()


@pytest.mark.parametrize(
    ("today", "expected"),
    [
        (dt.date(2026, 3, 19), ["Today is Thursday 2026-03-19.", "2026-03-20 Friday", "2026-03-26 Thursday."]),
        (dt.date(2027, 12, 30), ["Thursday 2027-12-30.", "2028-01-01 Saturday"]),
        (dt.date(2028, 2, 27), ["2028-02-29 Tuesday", "2028-03-01 Wednesday"]),
    ],
)
def test_the_reference_date_lists_today_and_seven_days(today: dt.date, expected: list[str]) -> None:
    text = reference_date_text(today)
    assert all(part in text for part in expected)
    assert text.count(",") == 6


def test_the_reference_date_goes_behind_a_system_message_or_makes_one() -> None:
    today, asked = dt.date(2026, 3, 19), Message(Role.USER, "hi")
    line = reference_date_text(today)
    assert with_reference_date([asked], today) == (Message(Role.SYSTEM, line), asked)
    found = with_reference_date([Message(Role.SYSTEM, "Be brief."), asked], today)
    assert found == (Message(Role.SYSTEM, f"Be brief.\n{line}"), asked)
    assert with_reference_date([asked], None) == (asked,)


def test_a_conversation_that_says_which_day_it_is_keeps_its_own() -> None:
    told = with_reference_date([Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "hi")], dt.date(2026, 3, 19))
    assert with_reference_date(told, dt.date(2027, 1, 1)) == told
    other = [Message(Role.SYSTEM, "Today is Tuesday."), Message(Role.USER, reference_date_text(dt.date(2026, 3, 19)))]
    assert with_reference_date(other, dt.date(2027, 1, 1)) != tuple(other), "only the system message's own line counts"


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("Today is Thursday 2026-01-01.", dt.date(2026, 1, 1)),
        ("You are a bot. The current date is 2026-03-10 (Tuesday).", dt.date(2026, 3, 10)),
        ("Current date: March 10, 2026", dt.date(2026, 3, 10)),
        ("Today's date is the 10th of March 2026.", dt.date(2026, 3, 10)),
        ("**Today’s date:** Tue, 10 Mar. 2026", dt.date(2026, 3, 10)),
        ("<current_date>2026/03/10</current_date>", dt.date(2026, 3, 10)),
        ('{"current_datetime": "2026-03-10T09:30:00Z"}', dt.date(2026, 3, 10)),
        ("Be brief.\n- Date: 10.03.2026 (Tuesday)", None),
        ("Today is Tuesday 10/03/2026.", dt.date(2026, 3, 10)),
        ("Today is 25/03/2026.", dt.date(2026, 3, 25)),
        ("Today is 02/03/2026.", None),
        ("Current time (UTC): 2026-03-10 12:00", dt.date(2026, 3, 10)),
        ("It is now Tuesday, March 10th, 2026, 9 a.m.", dt.date(2026, 3, 10)),
        ("Today is 2026-02-30.", None),
        ("Yesterday was it. Today is 2026-01-01. Now: 2026-01-02", dt.date(2026, 1, 2)),
    ],
)
def test_a_system_message_that_states_the_day_is_not_contradicted(text: str, day: dt.date | None) -> None:
    asked, other = Message(Role.USER, "tomorrow?"), dt.date(2027, 7, 7)
    assert stated_day([Message(Role.SYSTEM, text), asked]) == (0, day)
    told = with_reference_date([Message(Role.SYSTEM, text), asked], other)
    assert told[0].content == (text if day is None else f"{text}\n{reference_date_text(day)}")
    late = with_reference_date([Message(Role.SYSTEM, "Be brief."), asked, Message(Role.SYSTEM, text), asked], other)
    assert "2027" not in "".join(message.content for message in late)
    assert late[2].content == told[0].content


@pytest.mark.parametrize(
    "text",
    [
        "The due date: 2026-05-01.",
        "The shop opened on 2020-01-01.",
        "If today is a holiday, say so.",
        "Your knowledge ends in March 2026.",
        "Today is Tuesday.",
        "Date formats: 2026-01-01 style",
    ],
)
def test_a_date_that_is_not_today_changes_nothing(text: str) -> None:
    today = dt.date(2027, 7, 7)
    assert stated_day([Message(Role.SYSTEM, text)]) is None
    told = with_reference_date([Message(Role.SYSTEM, text)], today)
    assert told[0].content == f"{text}\n{reference_date_text(today)}"


def test_a_long_hostile_system_message_is_searched_in_linear_time() -> None:
    started = time.process_time()
    for text in ("today " * 50_000, "today is the " * 20_000, "\n" * 300_000, "now: tue, " * 30_000):
        assert stated_day([Message(Role.SYSTEM, text)]) is None
    assert time.process_time() - started < 2.0


def test_what_a_user_says_about_the_day_is_the_users() -> None:
    assert stated_day([Message(Role.USER, "Today is 2026-01-01.")]) is None


def test_a_prompt_shows_every_tool_once_and_waits_for_the_assistant() -> None:
    prompt = render_prompt([Message(Role.USER, 'Say "<b>&</b>"')], bundled_tools())
    for tool in bundled_tools():
        assert prompt.count(f"{tool.name}(") == 1
        assert tool.description in prompt
    assert 'Say "<b>&</b>"' in prompt
    assert prompt.endswith("<|im_start|>assistant\n")
    assert not render_prompt([Message(Role.USER, "x")], [], add_generation_prompt=False).endswith("assistant\n")


def test_the_template_writes_calls_as_the_writer_does_and_says_nothing_of_generation() -> None:
    calls = (ToolCall("get_weather", {"location": "Zürich", "days": [1, {"a": None}]}), ToolCall("b", {}))
    text = render_prompt([Message(Role.USER, "x"), Message(Role.ASSISTANT, "", calls)], [], add_generation_prompt=False)
    assert f"assistant\n{render_calls(calls)}{TURN_END}" in text
    assert "generation" not in text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ unclosed", "unexpected end"),
        ("{{ raise_exception('no tools here') }}", "no tools here"),
        ("{{ (messages | map(attribute='role')) | tojson }}", r"chat template [0-9a-f]{16} .* fails with TypeError: "),
        ("{{ messages[0]['content'].split('a', 'b') }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_template_that_fails_says_why(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        render_prompt([Message(Role.USER, "x")], [], template)


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    with pytest.raises(ValueError, match="cannot render"):
        render_prompt([], [], "{{ messages.__class__.__mro__[1].__subclasses__() }}")


def test_the_hash_follows_the_template() -> None:
    assert template_hash(default_chat_template()) == template_hash(default_chat_template())
    assert template_hash("a") != template_hash("b")
    assert len(template_hash("a")) == 16
