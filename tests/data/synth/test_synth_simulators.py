from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from data.synth.simulators import simulate
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import ToolCall

CALLS: dict[str, dict[str, Any]] = {
    "get_weather": {"location": "Oslo"},
    "convert_currency": {"amount": 12.5, "from_currency": "EUR", "to_currency": "NOK"},
    "set_reminder": {"text": "water the fern", "remind_at": "2026-03-20T09:00"},
    "send_email": {"to": ["a@b.io"], "subject": "Hi", "body": "Hello"},
    "create_calendar_event": {"title": "Tennis", "start": "2026-03-20T18:00"},
    "get_current_time": {"timezone": "Asia/Tokyo"},
    "search_web": {"query": "fern care", "max_results": 3},
    "list_calendar_events": {"start_date": "2026-03-20", "end_date": "2026-03-27"},
}


def answer(name: str, **changes: object) -> Mapping[str, Any]:
    return simulate(ToolCall(name, {**CALLS[name], **changes}))


def test_every_bundled_tool_is_played() -> None:
    assert {tool.name for tool in bundled_tools()} == set(CALLS)
    assert all(tool.violations(CALLS[tool.name]) == [] for tool in bundled_tools())


@pytest.mark.parametrize("name", CALLS)
def test_the_same_call_gets_the_same_answer_in_any_order_of_arguments(name: str) -> None:
    turned = dict(reversed(CALLS[name].items()))
    assert answer(name) == answer(name) == simulate(ToolCall(name, turned))


def test_fahrenheit_is_warmer_in_numbers_than_celsius() -> None:
    for place in ("Oslo", "Lima", "Rome"):
        result = answer("get_weather", location=place, units="fahrenheit")
        assert 14 <= result["temperature"] <= 95
        assert 20 <= result["humidity_percent"] <= 95
        assert -10 <= answer("get_weather", location=place)["temperature"] <= 35


def test_a_rate_belongs_to_the_pair_and_scales_the_amount() -> None:
    small, large = answer("convert_currency", amount=1), answer("convert_currency", amount=100)
    assert small["rate"] == large["rate"]
    assert large["converted"] == pytest.approx(100 * large["rate"])
    assert answer("convert_currency", to_currency="EUR") == {"converted": 12.5, "rate": 1.0}


def test_the_clock_stands_still_and_knows_its_zones() -> None:
    assert answer("get_current_time") == {"time": "21:00", "timezone": "Asia/Tokyo"}
    assert answer("get_current_time", timezone="America/New_York")["time"] == "08:00"


def test_a_search_finds_no_more_than_was_wanted() -> None:
    assert all(1 <= answer("search_web", query=f"fern {n}")["results_found"] <= 3 for n in range(20))


def test_an_empty_calendar_has_no_first_event() -> None:
    results = [answer("list_calendar_events", end_date=f"2026-04-{day:02}") for day in range(1, 20)]
    assert {result["count"] for result in results} == {0, 1, 2, 3}
    assert all(("first_event" in result) == (result["count"] > 0) for result in results)


def test_things_set_sent_and_created_get_a_number() -> None:
    assert answer("set_reminder")["status"] == "set"
    assert answer("send_email")["message_id"].startswith("M-")
    assert answer("create_calendar_event")["event_id"].startswith("E-")


def test_an_unknown_tool_is_no_bundled_one() -> None:
    with pytest.raises(KeyError, match="fly"):
        simulate(ToolCall("fly", {}))
