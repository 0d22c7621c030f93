from __future__ import annotations

import datetime as dt
import random
import re
from collections import defaultdict
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Generic, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.synth import temporal

Value = TypeVar("Value", bound=Hashable)
THURSDAY = dt.date(2026, 3, 19)
SEEDS = st.integers(0, 2**32)
DAYS = st.dates(dt.date(2024, 1, 1), dt.date(2030, 12, 31))


class Meanings(Generic[Value]):
    """What each wording was drawn for; draws on until a wording that is looked up has come."""

    def __init__(self, draw: Callable[[random.Random], tuple[tuple[str, ...], Value]]) -> None:
        self.draw, self.rng = draw, random.Random(0)
        self.found: dict[str, set[Value]] = defaultdict(set)

    def extend(self, draws: int) -> None:
        for _ in range(draws):
            surface, value = self.draw(self.rng)
            for form in surface:
                self.found[form].add(value)

    def of(self, said: str) -> set[Value]:
        for _ in range(200):
            if said in self.found:
                return self.found[said]
            self.extend(1_000)
        raise AssertionError(f"nobody said {said!r} in 200,000 draws")

    def ambiguous(self, draws: int) -> dict[str, set[Value]]:
        self.extend(draws)
        return {said: values for said, values in self.found.items() if len(values) > 1}


@lru_cache(maxsize=8)
def dates(today: dt.date) -> Meanings[dt.date]:
    return Meanings(lambda rng: temporal.date(rng, today))


@lru_cache(maxsize=2)
def spans(today: dt.date) -> Meanings[tuple[dt.date, dt.date]]:
    return Meanings(lambda rng: temporal.date_range(rng, today))


TIMES = Meanings(temporal.time_of_day)
STAMPS = Meanings(lambda rng: temporal.date_time(rng, THURSDAY))
DURATIONS = Meanings(temporal.duration)


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
    assert dates(THURSDAY).of(said) == {dt.date.fromisoformat(day)}


@pytest.mark.parametrize("today", [THURSDAY, dt.date(2024, 2, 29), dt.date(2025, 12, 31), dt.date(2027, 8, 1)])
def test_no_wording_of_a_day_means_two_days(today: dt.date) -> None:
    assert dates(today).ambiguous(5_000) == {}


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
    assert spans(THURSDAY).of(said) == {(dt.date.fromisoformat(start), dt.date.fromisoformat(end))}


def test_the_weekend_said_on_a_sunday_is_what_is_left_of_it() -> None:
    sunday = dt.date(2026, 3, 22)
    assert spans(sunday).of("this weekend") == {(sunday, sunday)}


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
    assert TIMES.of(said) == {dt.time.fromisoformat(time)}


def test_no_wording_of_a_time_means_two_times() -> None:
    assert TIMES.ambiguous(10_000) == {}


@pytest.mark.parametrize(
    ("said", "stamp"),
    [
        ("tomorrow at 3pm", "2026-03-20T15:00"),
        ("at 10:00 tomorrow", "2026-03-20T10:00"),
        ("at noon", "2026-03-19T12:00"),
        ("tonight at eight", "2026-03-19T20:00"),
        ("tomorrow morning at nine", "2026-03-20T09:00"),
        ("at four tomorrow afternoon", "2026-03-20T16:00"),
        ("Monday evening at seven", "2026-03-23T19:00"),
    ],
)
def test_a_date_time_means_what_it_says(said: str, stamp: str) -> None:
    assert STAMPS.of(said) == {dt.datetime.fromisoformat(stamp)}


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
    assert DURATIONS.of(said) == {minutes}


def test_no_wording_of_a_duration_means_two_durations() -> None:
    assert DURATIONS.ambiguous(10_000) == {}


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
    (bare, adverb, adjective), minutes = temporal.duration(rng)
    assert 1 <= minutes <= 300
    assert adverb == f"for {bare}"
    assert adjective
    (_, adverb), stamp = temporal.date_time(rng, today)
    assert adverb
    assert stamp.second == 0


_SPAN = re.compile(
    r"(\d+)(?::(\d\d))?( ?[ap]\.?m\.?)?(?: to | until | till | - |-)(\d+)(?::(\d\d))?( ?[ap]\.?m\.?)?", re.IGNORECASE
)


@pytest.mark.parametrize("seed", range(300))
def test_a_span_of_time_reads_back_as_its_two_ends(seed: int) -> None:
    rng = random.Random(seed)
    first, last = sorted(dt.time(rng.randrange(24), rng.randrange(0, 60, 5)) for _ in range(2))
    said = temporal.say_span(rng, first, last)
    found = _SPAN.fullmatch(said)
    assert found, said
    hour, minute, half, last_hour, last_minute, last_half = found.groups()

    def time(hour: str, minute: str | None, half: str | None) -> dt.time:
        in_dial = int(hour) % 12 + 12 * (half.strip().lower()[0] == "p") if half else int(hour)
        return dt.time(in_dial, int(minute or 0))

    assert time(last_hour, last_minute, last_half) == last, said
    assert time(hour, minute, half or last_half) == first, said


@pytest.mark.parametrize("seed", range(50))
def test_a_meeting_ends_on_its_day(seed: int) -> None:
    (bare, adverb), (start, minutes) = temporal.meeting(random.Random(seed), THURSDAY)
    assert minutes > 0
    assert (start + dt.timedelta(minutes=minutes)).date() == start.date()
    assert bare
    assert adverb
