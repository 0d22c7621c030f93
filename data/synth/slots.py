"""Slots: the type of a parameter as domain files spell it, its JSON schema, and draws of its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.synth import grammar
from data.synth.numerals import number_words
from data.synth.values import SCALARS, Context, Filled, computed, coordinate, copied

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
