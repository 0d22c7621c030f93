"""Days, spans of days and date-times: how people say them, and what they mean on a given day.

A surface has a bare form ("Friday", "tomorrow at 3pm") and an adverbial one ("on Friday", "at 3pm tomorrow").
"""

from __future__ import annotations

import calendar
import datetime as dt
import random
from collections.abc import Callable

from babel.dates import get_month_names

from data.synth.clock import Surface, clock, part_of_day, say_clock, say_span, spoken
from data.synth.numerals import number_words, ordinal

WEEKDAYS = tuple(calendar.day_name)
MONTHS = tuple(get_month_names("wide", locale="en")[month] for month in range(1, 13))
_HOLIDAYS = {
    (12, 25): ("Christmas", "Christmas Day"),
    (12, 24): ("Christmas Eve",),
    (12, 31): ("New Year's Eve",),
    (1, 1): ("New Year's Day",),
    (2, 14): ("Valentine's Day",),
    (10, 31): ("Halloween",),
}


def _on(bare: str) -> Surface:
    return bare, f"on {bare}"


def _same(text: str) -> Surface:
    return text, text


def _weekday(rng: random.Random, day: dt.date) -> str:
    name = WEEKDAYS[day.weekday()]
    return name if rng.random() < 0.9 else name[:3]


def _soon(rng: random.Random, today: dt.date) -> tuple[Surface, dt.date]:
    roll = rng.random()
    if roll < 0.3:
        return _same(rng.choice(["today"] * 6 + ["later today", "this very day"])), today
    if roll < 0.85:
        said = rng.choice(["tomorrow"] * 9 + ["tmrw", "tmr", "tomorow", "2morrow"])
        return _same(said), today + dt.timedelta(days=1)
    said = rng.choice(["the day after tomorrow", "day after tomorrow", "in two days", "two days from now"])
    return _same(said), today + dt.timedelta(days=2)


def _this_weekday(rng: random.Random, today: dt.date) -> tuple[Surface, dt.date]:
    day = today + dt.timedelta(days=rng.randint(1, 6))
    name = _weekday(rng, day)
    roll = rng.random()
    if roll < 0.6:
        return _on(name), day
    if roll < 0.8:
        return _same(rng.choice([f"this {name}", f"this coming {name}", f"the coming {name}"])), day
    return (name, rng.choice([f"on {name}", f"come {name}", f"{name}"])), day


def _next_weekday(rng: random.Random, today: dt.date) -> tuple[Surface, dt.date]:
    monday = today + dt.timedelta(days=7 - today.weekday())
    day = monday + dt.timedelta(days=rng.randint(0, 6))
    name = WEEKDAYS[day.weekday()]
    if rng.random() < 0.6:
        return _same(f"next {name}"), day
    return rng.choice([_on(f"{name} next week"), (f"{name} of next week", f"next week on {name}")]), day


def _in_days(rng: random.Random, today: dt.date) -> tuple[Surface, dt.date]:
    if rng.random() < 0.3:
        weeks = rng.randint(1, 3)
        said = rng.choice([number_words(weeks) if weeks > 1 else "a", str(weeks) if weeks > 1 else "one"])
        noun = "week" if weeks == 1 else "weeks"
        texts = [f"in {said} {noun}", f"{said} {noun} from today", f"{said} {noun} from now"]
        if weeks == 1:
            texts += ["a week today", "one week from today", "same day next week"]
        if weeks == 2:
            texts += ["in a fortnight"]
        return _same(rng.choice(texts)), today + dt.timedelta(days=7 * weeks)
    days = rng.randint(2, 12)
    said = rng.choice([number_words(days), str(days)])
    return _same(rng.choice([f"in {said} days", f"{said} days from now", f"{said} days from today"])), (
        today + dt.timedelta(days=days)
    )


def _absolute(rng: random.Random, today: dt.date) -> tuple[Surface, dt.date]:
    day = today + dt.timedelta(days=rng.randint(1, rng.choice([30, 120, 330])))
    month, short = MONTHS[day.month - 1], MONTHS[day.month - 1][:3]
    number, nth = day.day, ordinal(day.day)
    texts = [f"{month} {number}", f"{month} {nth}", f"{number} {month}", f"the {nth} of {month}", f"{nth} {month}"]
    texts += [f"{nth} of {month}", f"{short} {number}", f"{number} {short}", f"{short} {nth}"]
    texts += [f"{WEEKDAYS[day.weekday()]} {month} {nth}", f"{WEEKDAYS[day.weekday()]}, {number} {month}"]
    if 0 < (day - today).days < 28:
        texts += [f"the {nth}"] * 3
    return _on(rng.choice(texts)), day


def _with_year(rng: random.Random, today: dt.date) -> tuple[Surface, dt.date]:
    day = today + dt.timedelta(days=rng.randint(-20, 700))
    month = MONTHS[day.month - 1]
    texts = [day.isoformat()] * 6 + [f"{month} {day.day}, {day.year}", f"{month} {day.day} {day.year}"]
    texts += [f"{day.day} {month} {day.year}", f"the {ordinal(day.day)} of {month} {day.year}"]
    texts += [day.strftime("%Y/%m/%d"), f"{day.day} {month[:3]} {day.year}", f"{day:%d.%m.%Y}"]
    if day.day > 12:  # otherwise the order of day and month is anybody's guess
        texts += [f"{day:%d/%m/%Y}", f"{day:%m/%d/%Y}", f"{day.month}/{day.day}/{day.year}"]
    return _on(rng.choice(texts)), day


def _special(rng: random.Random, today: dt.date) -> tuple[Surface, dt.date]:
    roll = rng.random()
    if roll < 0.35:
        last = today.replace(day=calendar.monthrange(today.year, today.month)[1])
        return _on(
            rng.choice(["the last day of the month", "the last day of this month", "the last of the month"])
        ), last
    if roll < 0.55:
        first = (today.replace(day=1) + dt.timedelta(days=32)).replace(day=1)
        return _on(rng.choice(["the first of next month", "the 1st of next month"])), first
    (month, number), names = rng.choice(list(_HOLIDAYS.items()))
    day = dt.date(today.year, month, number)
    return _on(rng.choice(names)), day if day >= today else day.replace(year=today.year + 1)


_DATE_KINDS: tuple[tuple[float, Callable[[random.Random, dt.date], tuple[Surface, dt.date]]], ...] = (
    (0.20, _soon),
    (0.42, _this_weekday),
    (0.08, _next_weekday),
    (0.06, _in_days),
    (0.14, _absolute),
    (0.07, _with_year),
    (0.03, _special),
)


def date(rng: random.Random, today: dt.date) -> tuple[Surface, dt.date]:
    """A day as somebody would say it on `today`."""
    kind = rng.choices([kind for _, kind in _DATE_KINDS], [share for share, _ in _DATE_KINDS])[0]
    return kind(rng, today)


def date_time(rng: random.Random, today: dt.date) -> tuple[Surface, dt.datetime]:
    """A local date-time: day and time in either order, or a part of the day that settles am and pm."""
    (bare_day, day_adverb), day = date(rng, today)
    time = clock(rng)
    roll = rng.random()
    if roll < 0.09:
        day = today
        said = say_clock(rng, time)
        return (rng.choice([said, f"{said} today"]), f"at {said}"), dt.datetime.combine(day, time)
    if roll < 0.14:
        stamp = dt.datetime.combine(day, time)
        said = rng.choice([f"{stamp:%Y-%m-%dT%H:%M}", f"{stamp:%Y-%m-%d %H:%M}", f"{stamp:%Y-%m-%d} at {stamp:%H:%M}"])
        return (said, rng.choice([f"at {said}", f"on {said}"])), stamp
    if roll < 0.27 and time.hour >= 5:
        return _with_part_of_day(rng, today, time)
    said = say_clock(rng, time)
    bare = rng.choice([f"{bare_day} at {said}", f"{said} {day_adverb}", f"{bare_day}, {said}", f"{bare_day} {said}"])
    adverb = rng.choice(
        [f"{day_adverb} at {said}"] * 3
        + [f"at {said} {day_adverb}"] * 3
        + [f"{bare_day} {said}", f"{day_adverb}, {said}"]
    )
    return (bare, adverb), dt.datetime.combine(day, time)


def meeting(rng: random.Random, today: dt.date) -> tuple[Surface, tuple[dt.datetime, int]]:
    """Start and minutes of what is said by both its ends: "Monday 10:00 to 10:30", "on 3 May from 2 to 3:30pm"."""
    (bare_day, day_adverb), day = date(rng, today)
    minutes = rng.choice([15, 20, 30, 30, 45, 60, 60, 60, 75, 90, 90, 120, 120, 150, 180, 5 * rng.randint(2, 60)])
    latest = min(20 * 60, 24 * 60 - 5 - minutes)
    begins = rng.randrange(7 * 60, latest + 1, rng.choice([60, 60, 30, 15, 5]))
    start = dt.datetime.combine(day, dt.time(begins // 60, begins % 60))
    said = say_span(rng, start.time(), (start + dt.timedelta(minutes=minutes)).time())
    bare = rng.choice([f"{bare_day} {said}", f"{bare_day}, {said}", f"{bare_day} from {said}"])
    adverb = rng.choice([f"{day_adverb} from {said}", f"{day_adverb}, {said}", f"from {said} {day_adverb}"])
    return (bare, adverb), (start, minutes)


def _with_part_of_day(rng: random.Random, today: dt.date, time: dt.time) -> tuple[Surface, dt.datetime]:
    part = part_of_day(time.hour)
    said = spoken(rng, time.hour % 12 or 12, time.minute)
    if rng.random() < 0.4:
        when = "tonight" if part == "evening" and rng.random() < 0.7 else f"this {part}"
        day = today
    else:
        day = today + dt.timedelta(days=rng.randint(1, 6))
        when = f"tomorrow {part}" if (day - today).days == 1 else f"{WEEKDAYS[day.weekday()]} {part}"
    if rng.random() < 0.3:
        said = say_clock(rng, time)
        said = said if " in the " not in said else said.split(" in the ")[0]
    text = rng.choice([f"{when} at {said}", f"at {said} {when}"])
    return (text.removeprefix("at "), text), dt.datetime.combine(day, time)


def date_range(rng: random.Random, today: dt.date) -> tuple[Surface, tuple[dt.date, dt.date]]:
    """A span of days: one day, a week, a weekend, a month, or two named ends."""
    monday = today - dt.timedelta(days=today.weekday())
    roll = rng.random()
    if roll < 0.52:
        surface, day = date(rng, today)
        return surface, (day, day)
    if roll < 0.62:
        start = monday + dt.timedelta(days=7)
        return _same(rng.choice(["next week", "the whole of next week", "all next week"])), (
            start,
            start + dt.timedelta(6),
        )
    if roll < 0.70:
        saturday = monday + dt.timedelta(days=5)
        said = rng.choice(["this weekend", "the weekend", "over the weekend", "at the weekend"])
        return _same(said), (max(saturday, today), saturday + dt.timedelta(1))
    if roll < 0.76:
        return _same(rng.choice(["this week", "the rest of this week", "for the rest of the week"])), (
            today,
            monday + dt.timedelta(days=6),
        )
    if roll < 0.80:
        start = (today.replace(day=1) + dt.timedelta(days=32)).replace(day=1)
        end = start.replace(day=calendar.monthrange(start.year, start.month)[1])
        return rng.choice([_same("next month"), (MONTHS[start.month - 1], f"in {MONTHS[start.month - 1]}")]), (
            start,
            end,
        )
    return _named_ends(rng, today)


def _named_ends(rng: random.Random, today: dt.date) -> tuple[Surface, tuple[dt.date, dt.date]]:
    pick = rng.choice([_this_weekday, _this_weekday, _soon, _absolute, _with_year])
    (first, _), start = pick(rng, today)
    (second, _), end = pick(rng, today)
    if start > end:
        first, second, start, end = second, first, end, start
    if start.month == end.month and pick is _absolute and start < end and rng.random() < 0.5:
        month = MONTHS[start.month - 1]
        said = rng.choice([f"{month} {start.day} to {end.day}", f"{start.day}-{end.day} {month}"])
        return (said, f"from {said}" if said[0].isalpha() else said), (start, end)
    text = rng.choice([f"from {first} to {second}", f"between {first} and {second}", f"from {first} until {second}"])
    return _same(text), (start, end)
