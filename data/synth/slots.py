"""Slots: what kind of value a parameter takes, what people say for it, and what stands in the call.

A share of all copied values is made of words that occur nowhere else. A small model that has only seen real names
learns the names; one that has seen noise learns to copy (97 % on unseen values).
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from data.synth import grammar, lexicon, temporal

NOISE_SHARE = 0.22
_NOISE_KINDS = frozenset(["place", "city", "person", "company", "product", "word", "song", "movie", "book", "event"])


class SlotError(ValueError):
    """A slot definition that the generator does not know."""


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


@dataclass
class Context:
    """What sampling a slot needs: the random source and the reference date."""

    rng: random.Random
    today: dt.date
    noise_share: float = field(default=NOISE_SHARE)


@dataclass(frozen=True)
class SlotSpec:
    """A parsed slot: `kind` is a name of SCALARS, or integer, number, enum, boolean, words, list, recurrence."""

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
            frequency = {"type": "string", "enum": list(_FREQUENCIES)}
            count = {"type": "integer", "minimum": 1, "maximum": 365}
            return {
                "type": "object",
                "properties": {"frequency": frequency, "count": count},
                "required": ["frequency", "count"],
            }
        text_format = _FORMATS.get(self.kind)
        return {"type": "string", "format": text_format} if text_format else {"type": "string"}

    def sample(self, context: Context) -> Filled:
        """Draw a value and its surface forms."""
        if self.kind in SCALARS:
            return SCALARS[self.kind](context)
        return _COMPOUND[self.kind](self.argument, context)


_FORMATS = {
    "date": "date",
    "time": "time",
    "datetime": "local-date-time",
    "email": "email",
    "currency": "currency",
    "timezone": "iana-time-zone",
    "url": "uri",
}
_FREQUENCIES = {"daily": ("day", "daily"), "weekly": ("week", "weekly"), "monthly": ("month", "monthly")}


def _bare(value: Any, said: str, *, is_copied: bool = True) -> Filled:
    return Filled(value, {"": said}, is_copied)


@lru_cache(maxsize=1)
def _vocabulary() -> dict[str, list[str]]:
    loaded: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("vocabulary.yaml").read_text("utf-8"))
    return loaded


def free_text(kind: str, context: Context) -> str:
    """A wording of a free-text kind of vocabulary.yaml."""
    rng = context.rng
    parts = grammar.choose(rng.choice(_vocabulary()[kind]), rng)
    return grammar.join(grammar.fill(parts, lambda ref: grammar.Segment(_filler(ref.name, context))))


def _filler(name: str, context: Context) -> str:
    rng = context.rng
    if name in {"Event", "food"}:
        text = free_text(name.lower(), context)
        return text[:1].upper() + text[1:]
    if name in {"word", "Word"}:
        word = lexicon.pseudo_word(rng) if rng.random() < 0.45 else rng.choice(_common_words())
        return word.capitalize() if name == "Word" else word
    return str(_FILLERS[name](rng))


_FILLERS: dict[str, Callable[[random.Random], object]] = {
    "person": lambda rng: rng.choice(lexicon.people()),
    "first": lambda rng: rng.choice(lexicon.people()).split(" ")[0],
    "last": lambda rng: rng.choice(lexicon.people()).split(" ")[-1],
    "city": lexicon.city,
    "company": lambda rng: rng.choice(lexicon.companies()),
    "street": lambda rng: rng.choice(lexicon.streets()),
    "weekday": lambda rng: rng.choice(temporal.WEEKDAYS),
    "n": lambda rng: rng.randint(2, 40),
    "digit": lambda rng: rng.randint(1, 9),
    "letter": lambda rng: rng.choice("ABCDEFGH"),
    "odd": lexicon.odd_string,
    "ascii": lexicon.pseudo_ascii,
}


@lru_cache(maxsize=1)
def _common_words() -> tuple[str, ...]:
    """Nouns and adjectives of the vocabulary itself, so that free text shares words without sharing sentences."""
    words: set[str] = set()
    for phrases in _vocabulary().values():
        for phrase in phrases:
            words.update(
                word for word in phrase.replace("|", " ").replace("[", " ").replace("]", " ").split() if word.isalpha()
            )
    return tuple(sorted(word.lower() for word in words if len(word) > 3))


def _noise(context: Context) -> str:
    rng = context.rng
    if rng.random() < 0.3:
        return lexicon.odd_string(rng)
    return " ".join(lexicon.pseudo_word(rng) for _ in range(rng.choice([1, 1, 2]))).title()


def _text(kind: str) -> Callable[[Context], Filled]:
    def sample(context: Context) -> Filled:
        if kind in _NOISE_KINDS and context.rng.random() < context.noise_share:
            said = _noise(context)
        else:
            said = free_text(kind, context)
        return _bare(said, said)

    return sample


def _name(source: Callable[[random.Random], str], *, noisy: bool = True) -> Callable[[Context], Filled]:
    def sample(context: Context) -> Filled:
        said = _noise(context) if noisy and context.rng.random() < context.noise_share else source(context.rng)
        return _bare(said, said)

    return sample


def _place(context: Context) -> Filled:
    rng = context.rng
    if rng.random() < context.noise_share:
        said = _noise(context)
    elif rng.random() < 0.07:
        said = f"{lexicon.city(rng)}, {rng.choice(lexicon.countries())}"
    elif rng.random() < 0.06:
        said = rng.choice(lexicon.countries())
    else:
        said = lexicon.city(rng)
    if rng.random() < 0.05:
        said = said.lower()
    return _bare(said, said)


def _task(context: Context) -> Filled:
    """A verb phrase; its `np` form is a noun phrase, so the value depends on the form that is said."""
    said = free_text("task", context)
    return _bare(said, said)


def _word(context: Context) -> Filled:
    said = lexicon.pseudo_word(context.rng) if context.rng.random() < 0.5 else context.rng.choice(_common_words())
    return _bare(said, said)


def _date(context: Context) -> Filled:
    (bare, adverb), day = temporal.date(context.rng, context.today)
    return Filled(day.isoformat(), {"": bare, "adv": adverb}, is_copied=False)


def _time(context: Context) -> Filled:
    (bare, adverb), time = temporal.time_of_day(context.rng)
    return Filled(f"{time:%H:%M}", {"": bare, "adv": adverb}, is_copied=False)


def _datetime(context: Context) -> Filled:
    (bare, adverb), stamp = temporal.date_time(context.rng, context.today)
    return Filled(f"{stamp:%Y-%m-%dT%H:%M}", {"": bare, "adv": adverb}, is_copied=False)


def _duration(context: Context) -> Filled:
    (bare, adverb, adjective), minutes = temporal.duration(context.rng)
    return Filled(minutes, {"": bare, "adv": adverb, "adj": adjective}, is_copied=False)


def _amount(context: Context) -> Filled:
    value, said = amount(context.rng)
    return _bare(value, said, is_copied=False)


def amount(rng: random.Random) -> tuple[int | float, str]:
    """A positive amount and how it is written or said."""
    roll = rng.random()
    if roll < 0.12:
        value = rng.choice([*range(1, 20), 20, 25, 30, 40, 50, 60, 75, 80, 90, 100, 200, 250, 300, 500, 750])
        return value, "a hundred" if value == 100 and rng.random() < 0.5 else temporal.number_words(value)
    if roll < 0.2:
        thousands = rng.choice([1, 2, 3, 5, 10, 12, 15, 20, 25, 50, 100])
        return thousands * 1000, rng.choice(
            [
                f"{thousands}k",
                f"{temporal.number_words(thousands)} thousand",
                f"{thousands} thousand",
                f"{thousands},000",
            ]
        )
    if roll < 0.45:
        value = round(rng.uniform(0.01, rng.choice([10, 100, 1000, 10000])), rng.choice([1, 2, 2, 2]))
        text = f"{value:,.2f}" if rng.random() < 0.3 else f"{value:.2f}" if rng.random() < 0.5 else str(value)
        return (int(value) if value == int(value) else value), text
    value = rng.choice(
        [
            rng.randint(1, 99),
            rng.randint(1, 999),
            rng.randint(1, 9999),
            rng.randint(1, 200) * 10,
            rng.randint(1, 999_999),
            rng.randint(1, 90) * 100,
        ]
    )
    return value, f"{value:,}" if rng.random() < 0.35 else str(value)


def _currency(context: Context) -> Filled:
    said, code = lexicon.currency(context.rng)
    return _bare(code, said, is_copied=False)


def _timezone(context: Context) -> Filled:
    said, name = lexicon.zone(context.rng)
    return _bare(name, said, is_copied=False)


def _code(context: Context) -> Filled:
    rng = context.rng
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 4)))
    said = rng.choice(
        [
            f"{letters}-{rng.randint(10, 99999)}",
            f"{letters}{rng.randint(100, 999999)}",
            str(rng.randint(1000, 9_999_999)),
            f"{rng.getrandbits(28):x}",
            f"#{rng.randint(100, 99999)}",
        ]
    )
    return _bare(said, said)


def _phone(context: Context) -> Filled:
    rng = context.rng
    digits = "".join(str(rng.randrange(10)) for _ in range(10))
    said = rng.choice(
        [
            f"+{rng.randint(1, 98)}{digits[:9]}",
            f"{digits[:3]}-{digits[3:6]}-{digits[6:]}",
            f"0{digits[:9]}",
            f"+{rng.randint(1, 98)} {digits[:3]} {digits[3:]}",
        ]
    )
    return _bare(said, said)


def _email(context: Context) -> Filled:
    said = lexicon.email(context.rng)
    return _bare(said, said)


def _hashtag(context: Context) -> Filled:
    said = f"#{lexicon.pseudo_ascii(context.rng)}"
    return _bare(said, said)


SCALARS: dict[str, Callable[[Context], Filled]] = {
    "place": _place, "city": _name(lexicon.city), "country": _name(lambda rng: rng.choice(lexicon.countries()), noisy=False),
    "address": _name(lambda rng: rng.choice(lexicon.streets()), noisy=False), "person": _name(lambda rng: rng.choice(lexicon.people())),
    "email": _email, "phone": _phone, "date": _date, "time": _time, "datetime": _datetime, "duration_minutes": _duration,
    "amount": _amount, "currency": _currency, "timezone": _timezone, "language": _name(lambda rng: rng.choice(lexicon.languages()), noisy=False),
    "company": _name(lambda rng: rng.choice(lexicon.companies())), "task": _task, "word": _word, "code": _code, "hashtag": _hashtag,
    **{kind: _text(kind) for kind in ("song", "movie", "book", "query", "event", "note", "subject", "message", "product", "food",
                                      "ingredient", "filename", "color", "venue", "url")},
}  # fmt: skip


def coordinate(rng: random.Random, said: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(said) == 1:
        return said[0]
    return f"{', '.join(said[:-1])}{rng.choice([' and ', ' and ', ' and ', ', and ', ' & ', ', '])}{said[-1]}"


def _list(item: SlotSpec, context: Context) -> Filled:
    filled = [item.sample(context) for _ in range(context.rng.choices([1, 2, 3], [60, 28, 12])[0])]
    values = list(dict.fromkeys(one.value for one in filled))
    filled = filled[: len(values)] if len(values) == len(filled) else filled[:1]
    return _bare([one.value for one in filled], coordinate(context.rng, [one.form() for one in filled]))


def _enum(values: Mapping[str, tuple[str, ...]], context: Context) -> Filled:
    value = context.rng.choice(list(values))
    return _bare(value, grammar.expand(context.rng.choice(values[value] or (value,)), context.rng), is_copied=False)


def _integer(bounds: tuple[int, int], context: Context) -> Filled:
    value = context.rng.randint(*bounds)
    said = temporal.number_words(value) if 0 <= value < 100 and context.rng.random() < 0.3 else str(value)
    return _bare(value, said, is_copied=False)


def _number(bounds: tuple[float, float], context: Context) -> Filled:
    value = round(context.rng.uniform(*bounds), context.rng.choice([0, 1, 1, 2]))
    value = int(value) if value == int(value) else value
    return _bare(value, str(value), is_copied=False)


def _boolean(value: bool, _: Context) -> Filled:
    return _bare(value, "yes" if value else "no", is_copied=False)


def _recurrence(_: Any, context: Context) -> Filled:
    rng = context.rng
    frequency, (unit, adverb) = rng.choice(list(_FREQUENCIES.items()))
    count = rng.choice([*range(2, 13), *range(2, 13), rng.randint(2, 60)])
    said = temporal.number_words(count) if rng.random() < 0.4 else str(count)
    times, units = rng.choice(["times", "occurrences", "sessions", "repetitions"]), f"{unit}s"
    text = rng.choice([
        f"every {unit} for {said} {units}", f"{adverb} for {said} {units}", f"{adverb}, {said} {times}", f"every {unit}, {said} {times}",
        f"{adverb} for {said} {times}", f"every {unit} for the next {said} {units}", f"each {unit} for {said} {units}", f"{said} {times}, {adverb}",
        f"once a {unit} for {said} {units}", f"{adverb} x{count}", f"every {unit}, {said} {times} in total", f"for {said} {units}, once a {unit}",
    ])  # fmt: skip
    return _bare({"frequency": frequency, "count": count}, text, is_copied=False)


_COMPOUND: dict[str, Callable[[Any, Context], Filled]] = {
    "list": _list, "enum": _enum, "integer": _integer, "number": _number, "boolean": _boolean, "recurrence": _recurrence,
    "words": lambda words, context: (lambda said: _bare(said, said))(context.rng.choice(words)),
    "emails": lambda _, context: _list(SlotSpec("email"), context),
}  # fmt: skip
