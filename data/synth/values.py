"""Slots, as domain files spell the type of a parameter, and draws of their values with what people say for them."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.synth import grammar, lexicon, temporal
from data.synth.lexicon import common_words, free_text
from data.synth.temporal import amount, duration, number_words, time_of_day

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


_FORMATS = {
    "date": "date",
    "time": "local-time",
    "datetime": "local-date-time",
    "email": "email",
    "currency": "currency",
    "timezone": "iana-time-zone",
}
_FREQUENCIES = {"daily": ("day", "daily"), "weekly": ("week", "weekly"), "monthly": ("month", "monthly")}


class SlotError(ValueError):
    """A slot definition that the generator does not know."""


@dataclass(frozen=True)
class SlotSpec:
    """A parsed slot; `kind` is a name of SCALARS or of the compound ones, whose `argument` says more."""

    kind: str
    argument: Any = None

    @classmethod
    def parse(cls, raw: object) -> SlotSpec:
        """Read the YAML spelling: a name, or a mapping with one key.

        Raises:
            SlotError: names the slot.
        """
        if isinstance(raw, str) and (raw in SCALARS or raw in {"recurrence", "emails"}):
            return cls(raw)
        if isinstance(raw, Mapping) and len(raw) == 1:
            kind, argument = next(iter(raw.items()))
            if kind == "list":
                return cls(kind, cls.parse(argument))
            if kind in {"integer", "number"} and isinstance(argument, list) and len(argument) == 2:
                return cls(kind, tuple(argument))
            if kind == "enum" and isinstance(argument, Mapping):
                return cls(kind, {str(value): tuple(map(str, said)) for value, said in argument.items()})
            if kind == "words" and isinstance(argument, list):
                return cls(kind, tuple(map(str, argument)))
            if kind == "boolean" and isinstance(argument, bool):
                return cls(kind, argument)
        raise SlotError(f"unknown slot {raw!r}")

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the slot's values."""
        if self.kind in {"integer", "duration_minutes"}:
            low, high = self.argument or (1, 1440)
            return {"type": "integer", "minimum": low, "maximum": high}
        if self.kind in {"number", "amount"}:
            return {"type": "number"}
        if self.kind == "boolean":
            return {"type": "boolean"}
        if self.kind == "enum":
            return {"type": "string", "enum": list(self.argument)}
        if self.kind == "list":
            return {"type": "array", "items": self.argument.schema()}
        if self.kind == "emails":
            return {"type": "array", "items": {"type": "string", "format": "email"}, "minItems": 1}
        if self.kind == "recurrence":
            return _recurrence_schema()
        text_format = _FORMATS.get(self.kind)
        return {"type": "string", "format": text_format} if text_format else {"type": "string"}

    def sample(self, context: Context) -> Filled:
        """Draw a value and its surface forms."""
        if self.kind in SCALARS:
            return SCALARS[self.kind](context)
        return _COMPOUND[self.kind](self.argument, context)


def _recurrence_schema() -> dict[str, Any]:
    frequency = {"type": "string", "enum": list(_FREQUENCIES)}
    count = {"type": "integer", "minimum": 1, "maximum": 365}
    properties = {"frequency": frequency, "count": count}
    return {"type": "object", "properties": properties, "required": ["frequency", "count"]}


def _list(item: SlotSpec, context: Context) -> Filled:
    filled = [item.sample(context) for _ in range(context.rng.choices([1, 2, 3], [60, 28, 12])[0])]
    if len({one.value for one in filled}) < len(filled):
        filled = filled[:1]
    said = coordinate(context.rng, [one.form() for one in filled])
    return Filled([one.value for one in filled], {"": said})


def _enum(values: Mapping[str, tuple[str, ...]], context: Context) -> Filled:
    value = context.rng.choice(list(values))
    return computed(value, grammar.expand(context.rng.choice(values[value] or (value,)), context.rng))


def _integer(bounds: tuple[int, int], context: Context) -> Filled:
    value = context.rng.randint(*bounds)
    return computed(value, number_words(value) if 0 <= value < 100 and context.rng.random() < 0.3 else str(value))


def _number(bounds: tuple[float, float], context: Context) -> Filled:
    value = round(context.rng.uniform(*bounds), context.rng.choice([0, 1, 1, 2]))
    value = int(value) if value == int(value) else value
    return computed(value, str(value))


def _boolean(value: bool, _: Context) -> Filled:
    return computed(value, "yes" if value else "no")


def _words(words: tuple[str, ...], context: Context) -> Filled:
    return copied(context.rng.choice(words))


def _emails(_: None, context: Context) -> Filled:
    return _list(SlotSpec("email"), context)


def _recurrence(_: None, context: Context) -> Filled:
    rng = context.rng
    frequency, (unit, adverb) = rng.choice(list(_FREQUENCIES.items()))
    count = rng.choice([*range(2, 13), *range(2, 13), rng.randint(2, 60)])
    said = number_words(count) if rng.random() < 0.4 else str(count)
    times, units = rng.choice(["times", "occurrences", "sessions", "repetitions"]), f"{unit}s"
    wordings = (
        f"every {unit} for {said} {units}",
        f"{adverb} for {said} {units}",
        f"{adverb}, {said} {times}",
        f"every {unit}, {said} {times}",
        f"{adverb} for {said} {times}",
        f"every {unit} for the next {said} {units}",
        f"each {unit} for {said} {units}",
        f"{said} {times}, {adverb}",
        f"once a {unit} for {said} {units}",
        f"{adverb} x{count}",
        f"every {unit}, {said} {times} in total",
        f"for {said} {units}, once a {unit}",
    )
    return computed({"frequency": frequency, "count": count}, rng.choice(wordings))


_COMPOUND: dict[str, Callable[[Any, Context], Filled]] = {
    "list": _list,
    "enum": _enum,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "recurrence": _recurrence,
    "words": _words,
    "emails": _emails,
}
