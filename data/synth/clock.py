"""Times of day and durations: how people say them.

A surface has a bare form ("3pm", "45 minutes") and an adverbial one ("at 3pm", "for 45 minutes"); durations have an
adjective too ("45-minute").
"""

from __future__ import annotations

import datetime as dt
import random

from data.synth.numerals import number_words

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
