"""Numbers, times of day, durations, days and date-times: how people say them, and what they mean on a given day."""

from __future__ import annotations

import calendar
import datetime as dt
import random
from collections.abc import Callable

from babel.dates import get_month_names

from data.synth.lexicon import tables

_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ROUND_AMOUNTS = (*range(1, 20), 20, 25, 30, 40, 50, 60, 75, 80, 90, 100, 200, 250, 300, 500, 750)
_THOUSANDS = (1, 2, 3, 5, 10, 12, 15, 20, 25, 50, 100)


def number_words(value: int) -> str:
    """English words of 0 to 999."""
    ones = tables().small_numbers
    if value < 20:
        return ones[value]
    if value < 100:
        return _TENS[value // 10] + (f"-{ones[value % 10]}" if value % 10 else "")
    rest = f" and {number_words(value % 100)}" if value % 100 else ""
    return f"{ones[value // 100]} hundred{rest}"


def ordinal(day: int) -> str:
    """1st, 2nd, 3rd, 4th, …"""
    return f"{day}{'th' if 10 <= day % 100 <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


def amount(rng: random.Random) -> tuple[int | float, str]:
    """A positive amount and how it is written or said."""
    roll = rng.random()
    if roll < 0.12:
        value = rng.choice(_ROUND_AMOUNTS)
        return value, "a hundred" if value == 100 and rng.random() < 0.5 else number_words(value)
    if roll < 0.2:
        thousands = rng.choice(_THOUSANDS)
        words = f"{number_words(thousands)} thousand"
        return thousands * 1000, rng.choice([f"{thousands}k", words, f"{thousands} thousand", f"{thousands},000"])
    if roll < 0.45:
        return _with_cents(rng)
    drawn = [rng.randint(1, 99), rng.randint(1, 999), rng.randint(1, 9999), rng.randint(1, 200) * 10]
    value = rng.choice([*drawn, rng.randint(1, 999_999), rng.randint(1, 90) * 100])
    return value, f"{value:,}" if rng.random() < 0.35 else str(value)


def _with_cents(rng: random.Random) -> tuple[int | float, str]:
    value = round(rng.uniform(0.01, rng.choice([10, 100, 1000, 10000])), rng.choice([1, 2, 2, 2])) or 0.01
    text = f"{value:,.2f}" if rng.random() < 0.3 else f"{value:.2f}" if rng.random() < 0.5 else str(value)
    return (int(value) if value == int(value) else value), text


Surface = tuple[str, str]  # bare, adverbial

_SUFFIXES = (("am", "pm"), (" am", " pm"), (" a.m.", " p.m."), ("AM", "PM"), (" AM", " PM"))
_COMMON_MINUTES = (15, 20, 25, 30, 30, 45, 45, 60, 60, 75, 90, 90, 120, 150, 180, 240)


def clock(rng: random.Random) -> dt.time:
    """A time of day; the round ones are likelier, as in life."""
    hour = rng.choice([*range(7, 22), *range(8, 20), *range(0, 24)])
    minute = rng.choices([0, 30, 15, 45, rng.randrange(0, 60, 5), rng.randrange(60)], [50, 20, 8, 8, 8, 6])[0]
    return dt.time(hour, minute)


def part_of_day(hour: int) -> str:
    """The word for the part of the day that `hour` falls in."""
    return "morning" if hour < 12 else "afternoon" if hour < 18 else "evening"


def say_clock(rng: random.Random, time: dt.time) -> str:
    """A time without a preposition: "3pm", "15:00", "quarter past nine in the morning"."""
    hour, minute, twelve = time.hour, time.minute, time.hour % 12 or 12
    suffix = rng.choice(_SUFFIXES)[hour >= 12]
    if hour == 12 and minute == 0 and rng.random() < 0.6:
        return rng.choice(["noon", "midday", "12 noon"])
    roll = rng.random()
    if roll < 0.3:
        padded = f"{hour:02d}:{minute:02d}"
        # Without its zero, "9:15" may mean the evening too, so that spelling is rare before one in the afternoon.
        is_free = hour >= 13 or hour < 1 or roll < 0.1
        return rng.choice([padded, padded, f"{hour}:{minute:02d}"]) if is_free else padded
    if roll < 0.86 or hour == 0:
        point = "." if rng.random() < 0.07 else ":"
        return f"{twelve}{suffix}" if minute == 0 and rng.random() < 0.8 else f"{twelve}{point}{minute:02d}{suffix}"
    return f"{spoken(rng, twelve, minute)} in the {part_of_day(hour)}"


def say_span(rng: random.Random, start: dt.time, end: dt.time) -> str:
    """Two times of one day, without a preposition: "10:00 to 10:30", "2-3:30pm", "9am until noon"."""
    joint = rng.choice([" to ", " to ", "-", " - ", " until ", " till "])
    if rng.random() < 0.4:
        return f"{start:%H:%M}{joint}{end:%H:%M}"
    suffixes = rng.choice(_SUFFIXES)
    first, second = (_dial(time) for time in (start, end))
    # "2 to 3pm" is one half of the day said once; "11 to 1pm" crosses noon and would not be understood.
    is_shared = (start.hour < 12) == (end.hour < 12) and rng.random() < 0.6
    return f"{first}{'' if is_shared else suffixes[start.hour >= 12]}{joint}{second}{suffixes[end.hour >= 12]}"


def _dial(time: dt.time) -> str:
    return f"{time.hour % 12 or 12}:{time.minute:02d}" if time.minute else str(time.hour % 12 or 12)


def spoken(rng: random.Random, twelve: int, minute: int) -> str:
    """A time on the twelve-hour dial in words: "half past nine", "quarter to 4", "nine o'clock"."""
    named = number_words(twelve) if rng.random() < 0.6 else str(twelve)
    following = number_words(twelve % 12 + 1) if rng.random() < 0.6 else str(twelve % 12 + 1)
    if minute == 0:
        return rng.choice([named, f"{named} o'clock"])
    if minute == 30:
        return rng.choice([f"half past {named}", f"{named} thirty" if named.isalpha() else f"{named}:30"])
    if minute == 15:
        return rng.choice([f"quarter past {named}", f"a quarter past {named}"])
    if minute == 45:
        return rng.choice([f"quarter to {following}", f"a quarter to {following}"])
    return f"{twelve}:{minute:02d}"


def time_of_day(rng: random.Random) -> tuple[Surface, dt.time]:
    """A time with its bare and adverbial forms."""
    time = clock(rng)
    said = say_clock(rng, time)
    return (said, f"at {said}"), time


def duration(rng: random.Random) -> tuple[tuple[str, str, str], int]:
    """A duration in minutes with its bare, adverbial and adjective forms."""
    minutes = rng.choice([*_COMMON_MINUTES, rng.randint(1, 300)])
    bare, adjective = rng.choice(_durations(minutes))
    return (bare, f"for {bare}", adjective), minutes


def _durations(minutes: int) -> list[tuple[str, str]]:
    """Every (bare, adjective) for a number of minutes; what is likelier stands more than once."""
    words = [(f"{minutes} minutes", f"{minutes}-minute"), (f"{minutes} min", f"{minutes} min")]
    words.append((f"{minutes} mins", f"{minutes}min"))
    if minutes < 100:
        words.append((f"{number_words(minutes)} minutes", f"{number_words(minutes)}-minute"))
    if minutes == 30:
        return words + [("half an hour", "half-hour"), ("half an hour", "half hour")] * 2
    if minutes == 90:
        halves = [("an hour and a half", "hour-and-a-half"), ("1.5 hours", "1.5-hour")]
        return [*words, *halves, ("one and a half hours", "90-minute")]
    if minutes == 60:
        return words[:1] + [("an hour", "hour-long"), ("one hour", "one-hour"), ("1 hour", "1-hour")] * 2
    hours, rest = divmod(minutes, 60)
    if hours == 0:
        return words
    named = number_words(hours)
    if rest == 0:
        whole = [(f"{named} hours", f"{named}-hour"), (f"{hours} hours", f"{hours}-hour"), (f"{hours}h", f"{hours}h")]
        return words[:1] + whole * 2
    plural, adjective = "hour" if hours == 1 else "hours", f"{minutes}-minute"
    mixed = [f"{hours} {plural} {rest} minutes", f"{hours}h{rest:02d}", f"{named} {plural} and {rest} minutes"]
    return [*words, *((bare, adjective) for bare in mixed)]


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
