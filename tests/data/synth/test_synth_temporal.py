from __future__ import annotations

import datetime as dt
import random
from collections import defaultdict
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.synth import clock, temporal

Value = TypeVar("Value", bound=Hashable)
THURSDAY = dt.date(2026, 3, 19)
SEEDS = st.integers(0, 2**32)
DAYS = st.dates(dt.date(2024, 1, 1), dt.date(2030, 12, 31))


def meanings(draw: Callable[[random.Random], tuple[tuple[str, ...], Value]], draws: int) -> dict[str, set[Value]]:
    """What each wording was drawn for."""
    rng = random.Random(0)
    found: dict[str, set[Value]] = defaultdict(set)
    for _ in range(draws):
        surface, value = draw(rng)
        for form in surface:
            found[form].add(value)
    return found


@lru_cache(maxsize=8)
def dates(today: dt.date) -> dict[str, set[dt.date]]:
    return meanings(lambda rng: temporal.date(rng, today), 6_000)


@lru_cache(maxsize=1)
def ranges() -> dict[str, set[tuple[dt.date, dt.date]]]:
    return meanings(lambda rng: temporal.date_range(rng, THURSDAY), 6_000)


@lru_cache(maxsize=1)
def times() -> dict[str, set[dt.time]]:
    return meanings(clock.time_of_day, 20_000)


@lru_cache(maxsize=1)
def stamps() -> dict[str, set[dt.datetime]]:
    return meanings(lambda rng: temporal.date_time(rng, THURSDAY), 40_000)


@lru_cache(maxsize=1)
def durations() -> dict[str, set[int]]:
    return meanings(clock.duration, 20_000)


@pytest.mark.parametrize(
    ("said", "day"),
    [
        ("today", "2026-03-19"),
        ("later today", "2026-03-19"),
        ("tomorrow", "2026-03-20"),
        ("2morrow", "2026-03-20"),
        ("the day after tomorrow", "2026-03-21"),
        ("Friday", "2026-03-20"),
        ("on Wednesday", "2026-03-25"),
        ("this coming Monday", "2026-03-23"),
        ("next Monday", "2026-03-23"),
        ("next Friday", "2026-03-27"),
        ("on Sunday next week", "2026-03-29"),
        ("in three days", "2026-03-22"),
        ("in a week", "2026-03-26"),
        ("same day next week", "2026-03-26"),
        ("in a fortnight", "2026-04-02"),
        ("the 1st", "2026-04-01"),
        ("the 20th", "2026-03-20"),
        ("April 3rd", "2026-04-03"),
        ("2026-04-07", "2026-04-07"),
        ("the last day of the month", "2026-03-31"),
        ("the first of next month", "2026-04-01"),
        ("Christmas Eve", "2026-12-24"),
        ("New Year's Day", "2027-01-01"),
        ("on Valentine's Day", "2027-02-14"),
    ],
)
def test_a_day_said_on_a_thursday_means_what_it_says(said: str, day: str) -> None:
    assert dates(THURSDAY)[said] == {dt.date.fromisoformat(day)}


@pytest.mark.parametrize("today", [THURSDAY, dt.date(2024, 2, 29), dt.date(2025, 12, 31), dt.date(2027, 8, 1)])
def test_no_wording_of_a_day_means_two_days(today: dt.date) -> None:
    assert {said: days for said, days in dates(today).items() if len(days) > 1} == {}


@pytest.mark.parametrize(
    ("said", "start", "end"),
    [
        ("tomorrow", "2026-03-20", "2026-03-20"),
        ("next week", "2026-03-23", "2026-03-29"),
        ("this weekend", "2026-03-21", "2026-03-22"),
        ("this week", "2026-03-19", "2026-03-22"),
        ("next month", "2026-04-01", "2026-04-30"),
        ("in April", "2026-04-01", "2026-04-30"),
        ("from today to tomorrow", "2026-03-19", "2026-03-20"),
        ("between Friday and Monday", "2026-03-20", "2026-03-23"),
        ("from Saturday until Wednesday", "2026-03-21", "2026-03-25"),
    ],
)
def test_a_span_said_on_a_thursday_means_what_it_says(said: str, start: str, end: str) -> None:
    assert ranges()[said] == {(dt.date.fromisoformat(start), dt.date.fromisoformat(end))}


def test_the_weekend_said_on_a_sunday_is_what_is_left_of_it() -> None:
    sunday = dt.date(2026, 3, 22)
    assert meanings(lambda rng: temporal.date_range(rng, sunday), 2_000)["this weekend"] == {(sunday, sunday)}


@pytest.mark.parametrize(
    ("said", "time"),
    [
        ("3pm", "15:00"),
        ("at 9 a.m.", "09:00"),
        ("12 AM", "00:00"),
        ("noon", "12:00"),
        ("12:30pm", "12:30"),
        ("15:30", "15:30"),
        ("07:15", "07:15"),
        ("9:00", "09:00"),
        ("half past nine in the morning", "09:30"),
        ("quarter to four in the afternoon", "15:45"),
        ("a quarter past 7 in the evening", "19:15"),
        ("half past five in the afternoon", "17:30"),
        ("eight o'clock in the evening", "20:00"),
        ("seven thirty in the evening", "19:30"),
    ],
)
def test_a_time_means_what_it_says(said: str, time: str) -> None:
    assert times()[said] == {dt.time.fromisoformat(time)}


def test_no_wording_of_a_time_means_two_times() -> None:
    assert {said: found for said, found in times().items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("said", "stamp"),
    [
        ("tomorrow at 3pm", "2026-03-20T15:00"),
        ("at 10:00 tomorrow", "2026-03-20T10:00"),
        ("at noon", "2026-03-19T12:00"),
        ("tonight at eight", "2026-03-19T20:00"),
        ("tomorrow morning at half past nine", "2026-03-20T09:30"),
        ("at four tomorrow afternoon", "2026-03-20T16:00"),
        ("Monday evening at seven", "2026-03-23T19:00"),
    ],
)
def test_a_date_time_means_what_it_says(said: str, stamp: str) -> None:
    assert stamps()[said] == {dt.datetime.fromisoformat(stamp)}


@pytest.mark.parametrize(
    ("said", "minutes"),
    [
        ("half an hour", 30),
        ("half-hour", 30),
        ("for 45 minutes", 45),
        ("forty-five minutes", 45),
        ("an hour", 60),
        ("hour-long", 60),
        ("an hour and a half", 90),
        ("1.5-hour", 90),
        ("1h15", 75),
        ("two hours", 120),
        ("2 hours 30 minutes", 150),
        ("two hours and 30 minutes", 150),
        ("4h", 240),
    ],
)
def test_a_duration_means_what_it_says(said: str, minutes: int) -> None:
    assert durations()[said] == {minutes}


def test_no_wording_of_a_duration_means_two_durations() -> None:
    assert {said: found for said, found in durations().items() if len(found) > 1} == {}


@given(SEEDS, DAYS)
@settings(deadline=None)
def test_days_lie_near_today_and_spans_run_forwards(seed: int, today: dt.date) -> None:
    rng = random.Random(seed)
    (bare, adverb), day = temporal.date(rng, today)
    assert bare
    assert adverb
    assert today - dt.timedelta(days=20) <= day <= today + dt.timedelta(days=700)
    _, (start, end) = temporal.date_range(rng, today)
    assert start <= end


@given(SEEDS, DAYS)
@settings(deadline=None)
def test_durations_last_from_a_minute_to_five_hours_and_read_well_after_for(seed: int, today: dt.date) -> None:
    rng = random.Random(seed)
    (bare, adverb, adjective), minutes = clock.duration(rng)
    assert 1 <= minutes <= 300
    assert adverb == f"for {bare}"
    assert adjective
    (_, adverb), stamp = temporal.date_time(rng, today)
    assert adverb
    assert stamp.second == 0
