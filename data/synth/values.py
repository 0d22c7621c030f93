"""Values that a parameter can take, drawn with what people say for them.

A share of all copied values is made of words that occur nowhere else. A small model that has only seen real names
learns the names; one that has seen noise learns to copy (97 % on unseen values).
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.synth import lexicon, temporal
from data.synth.clock import duration, time_of_day
from data.synth.numerals import amount
from data.synth.vocabulary import common_words, free_text

NOISE_SHARE = 0.22
_NOISY_TEXTS = frozenset(["product", "song", "movie", "book", "event"])


@dataclass(frozen=True)
class Filled:
    """A value with its surface forms; `forms` holds at least "" (the bare one)."""

    value: Any
    forms: Mapping[str, str]
    is_copied: bool = True

    def form(self, name: str = "") -> str:
        """The surface in that form; forms that a slot does not have fall back to the bare one."""
        if name == "q":
            return f'"{self.forms[""]}"'
        return self.forms.get(name, self.forms[""])


@dataclass(frozen=True)
class Context:
    """What sampling a slot needs: the random source and the reference date."""

    rng: random.Random
    today: dt.date
    noise_share: float = NOISE_SHARE


Sampler = Callable[[Context], Filled]


def copied(said: str) -> Filled:
    """A value that stands in the call exactly as it is said."""
    return Filled(said, {"": said})


def computed(value: object, said: str) -> Filled:
    """A value that has to be worked out from what is said."""
    return Filled(value, {"": said}, is_copied=False)


def _noise(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return lexicon.odd_string(rng)
    return " ".join(lexicon.pseudo_word(rng) for _ in range(rng.choice([1, 1, 2]))).title()


def _verbatim(source: Callable[[random.Random], str], *, is_noisy: bool = False) -> Sampler:
    def sample(context: Context) -> Filled:
        is_noise = is_noisy and context.rng.random() < context.noise_share
        return copied(_noise(context.rng) if is_noise else source(context.rng))

    return sample


def _text(kind: str) -> Sampler:
    return _verbatim(lambda rng: free_text(kind, rng), is_noisy=kind in _NOISY_TEXTS)


def _place(context: Context) -> Filled:
    rng = context.rng
    if rng.random() < context.noise_share:
        said = _noise(rng)
    elif rng.random() < 0.07:
        said = f"{lexicon.city(rng)}, {rng.choice(lexicon.countries())}"
    elif rng.random() < 0.06:
        said = rng.choice(lexicon.countries())
    else:
        said = lexicon.city(rng)
    return copied(said.lower() if rng.random() < 0.05 else said)


def _word(rng: random.Random) -> str:
    return lexicon.pseudo_word(rng) if rng.random() < 0.5 else rng.choice(common_words())


def _date(context: Context) -> Filled:
    (bare, adverb), day = temporal.date(context.rng, context.today)
    return Filled(day.isoformat(), {"": bare, "adv": adverb}, is_copied=False)


def _time(context: Context) -> Filled:
    (bare, adverb), time = time_of_day(context.rng)
    return Filled(f"{time:%H:%M}", {"": bare, "adv": adverb}, is_copied=False)


def _datetime(context: Context) -> Filled:
    (bare, adverb), stamp = temporal.date_time(context.rng, context.today)
    return Filled(f"{stamp:%Y-%m-%dT%H:%M}", {"": bare, "adv": adverb}, is_copied=False)


def _duration(context: Context) -> Filled:
    (bare, adverb, adjective), minutes = duration(context.rng)
    return Filled(minutes, {"": bare, "adv": adverb, "adj": adjective}, is_copied=False)


def _amount(context: Context) -> Filled:
    return computed(*amount(context.rng))


def _currency(context: Context) -> Filled:
    said, code = lexicon.currency(context.rng)
    return computed(code, said)


def _timezone(context: Context) -> Filled:
    said, name = lexicon.zone(context.rng)
    return computed(name, said)


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 4)))
    codes = [f"{letters}-{rng.randint(10, 99999)}", f"{letters}{rng.randint(100, 999999)}"]
    codes.append(str(rng.randint(1000, 9_999_999)))
    return rng.choice([*codes, f"{rng.getrandbits(28):x}", f"#{rng.randint(100, 99999)}"])


def _phone(rng: random.Random) -> str:
    digits = "".join(str(rng.randrange(10)) for _ in range(10))
    numbers = [f"+{rng.randint(1, 98)}{digits[:9]}", f"{digits[:3]}-{digits[3:6]}-{digits[6:]}", f"0{digits[:9]}"]
    return rng.choice([*numbers, f"+{rng.randint(1, 98)} {digits[:3]} {digits[3:]}"])


def coordinate(rng: random.Random, said: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(said) == 1:
        return said[0]
    return f"{', '.join(said[:-1])}{rng.choice([' and ', ' and ', ' and ', ', and ', ' & ', ', '])}{said[-1]}"


# Made-up tools draw from the kinds by index, so new ones go to the end.
SCALARS: dict[str, Sampler] = {
    "place": _place,
    "city": _verbatim(lexicon.city, is_noisy=True),
    "country": _verbatim(lambda rng: rng.choice(lexicon.countries())),
    "address": _verbatim(lexicon.street),
    "person": _verbatim(lexicon.person, is_noisy=True),
    "email": _verbatim(lexicon.email),
    "phone": _verbatim(_phone),
    "date": _date,
    "time": _time,
    "datetime": _datetime,
    "duration_minutes": _duration,
    "amount": _amount,
    "currency": _currency,
    "timezone": _timezone,
    "language": _verbatim(lambda rng: rng.choice(lexicon.languages())),
    "company": _verbatim(lexicon.company, is_noisy=True),
    "task": _text("task"),
    "word": _verbatim(_word),
    "code": _verbatim(_code),
    "hashtag": _verbatim(lambda rng: f"#{lexicon.pseudo_ascii(rng)}"),
    "song": _text("song"),
    "movie": _text("movie"),
    "book": _text("book"),
    "query": _text("query"),
    "event": _text("event"),
    "note": _text("note"),
    "subject": _text("subject"),
    "message": _text("message"),
    "product": _text("product"),
    "food": _text("food"),
    "ingredient": _text("ingredient"),
    "filename": _text("filename"),
    "color": _text("color"),
    "venue": _text("venue"),
    "url": _text("url"),
}
