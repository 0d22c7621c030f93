"""One request in words: a head, adjuncts in any order, politeness around them, and a register over the whole."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.synth import grammar, lexicon
from data.synth.domains import Clause, ToolSpec
from data.synth.grammar import Segment, SlotRef
from data.synth.lexicon import free_text, tables
from data.synth.temporal import date_range, meeting
from data.synth.values import Context, Filled, SlotSpec

_CLAUSE_WEIGHTS = {Clause.IMPERATIVE: 42, Clause.QUESTION: 22, Clause.STATEMENT: 20, Clause.NOUN: 16}
_FRONTED = frozenset({"date", "time", "datetime", "place", "city", "timezone", "venue", "duration_minutes"})
# Slots that read well with several values in one phrase ("in Oslo and Bergen").
_MULTIPLIABLE = {"place", "city", "currency", "timezone", "date", "company", "person", "code", "word"}
_MULTIPLIABLE |= {"song", "product", "food", "ingredient"}
_SLOPPY_ABBREVIATIONS = 0.25


@dataclass(frozen=True)
class Request:
    """A wish in words with the arguments it determines (by internal parameter key)."""

    spec: ToolSpec
    segments: tuple[Segment, ...]
    clause: Clause
    filled: Mapping[str, Filled]

    @property
    def arguments(self) -> dict[str, Any]:
        """Values by internal parameter key, in the schema's order."""
        return {key: self.filled[key].value for key in self.spec.params if key in self.filled}


def compose(
    spec: ToolSpec,
    context: Context,
    *,
    allowed: Iterable[str] | None = None,
    omitted: str | None = None,
    clause: Clause | None = None,
    optional_share: float = 0.33,
) -> Request | None:
    """Put one request into words.

    Args:
        allowed: parameters that may be said; None allows all.
        omitted: a required parameter that stays unsaid (the assistant has to ask for it).
        clause: the wanted kind of clause; None draws one.

    Returns:
        None when no head of this clause goes without the omitted or forbidden parameters.
    """
    may_say = (set(spec.params) if allowed is None else set(allowed)) - {omitted}
    head = _pick_head(spec, context.rng, may_say, clause)
    if head is None:
        return None
    kind, parts = head
    said = _keys(spec, parts)
    wanted = {key for key, param in spec.params.items() if param.is_required and key != omitted} - said
    phrases: list[tuple[tuple[str, ...], list[grammar.Text | SlotRef]]] = []
    options = [key for key in spec.adjuncts if set(spec.covers(key)) <= may_say]
    context.rng.shuffle(options)
    for option in sorted(options, key=lambda key: -len(spec.covers(key)) * (context.rng.random() < 0.7)):
        covered = set(spec.covers(option))
        needed = bool(covered & wanted)
        if covered & said or not (needed or context.rng.random() < optional_share):
            continue
        parts_said = grammar.choose(context.rng.choice(spec.adjuncts[option]), context.rng)
        said |= covered
        wanted -= covered
        phrases.append((tuple(covered), parts_said))
    if wanted:
        return None
    filled = _sample(spec, context, said, [parts, *(p for _, p in phrases)])
    if not is_sensible(spec, filled):
        return None
    segments = _assemble(spec, context, kind, parts, phrases, filled)
    return Request(spec, tuple(segments), kind, filled)


def _keys(spec: ToolSpec, parts: list[grammar.Text | SlotRef]) -> set[str]:
    return {key for part in parts if isinstance(part, SlotRef) for key in spec.covers(part.name)}


def _pick_head(
    spec: ToolSpec, rng: random.Random, may_say: set[str], clause: Clause | None
) -> tuple[Clause, list[grammar.Text | SlotRef]] | None:
    for _ in range(12):
        kinds = [kind for kind in Clause if spec.heads.get(kind) and clause in (None, kind)]
        if not kinds:
            return None
        kind = rng.choices(kinds, [_CLAUSE_WEIGHTS[kind] for kind in kinds])[0]
        parts = grammar.choose(rng.choice(spec.heads[kind]), rng)
        if _keys(spec, parts) <= may_say:
            return kind, parts
    return None


def _sample(
    spec: ToolSpec, context: Context, said: set[str], phrases: list[list[grammar.Text | SlotRef]]
) -> dict[str, Filled]:
    filled = {key: spec.params[key].slot.sample(context) for key in spec.params if key in said}
    refs = [part for parts in phrases for part in parts if isinstance(part, SlotRef)]
    for ref in refs:
        covered = spec.covers(ref.name)
        kinds = tuple(spec.params[key].slot.kind for key in covered)
        if ref.form == "np":
            text = free_text("event", context.rng)
            filled[ref.name] = Filled(text, {"": text})
        elif kinds == ("date", "date"):
            _fill_range(filled, covered, context, is_one_phrase=ref.name not in spec.params)
        elif kinds == ("datetime", "duration_minutes") and ref.form == "ends":
            (bare, adverb), (start, minutes) = meeting(context.rng, context.today)
            said_once = {"": bare, "adv": adverb, "ends": adverb}
            filled[covered[0]] = Filled(f"{start:%Y-%m-%dT%H:%M}", said_once, is_copied=False)
            filled[covered[1]] = Filled(minutes, {"": ""}, is_copied=False)
    _order_dates(spec, filled, said)
    return filled


def _fill_range(filled: dict[str, Filled], keys: tuple[str, ...], context: Context, *, is_one_phrase: bool) -> None:
    surface, (start, end) = date_range(context.rng, context.today)
    forms = {"": surface[1], "adv": surface[1]} if is_one_phrase else {"": surface[0]}
    filled[keys[0]] = Filled(start.isoformat(), forms, is_copied=False)
    filled[keys[1]] = Filled(end.isoformat(), {"": ""}, is_copied=False)


def _order_dates(spec: ToolSpec, filled: dict[str, Filled], said: set[str]) -> None:
    """Two dates said apart ("from … to …") must not run backwards."""
    dates = [key for key in spec.params if key in said and spec.params[key].slot.kind == "date"]
    if len(dates) == 2 and filled[dates[1]].forms[""] and filled[dates[0]].value > filled[dates[1]].value:
        filled[dates[0]], filled[dates[1]] = filled[dates[1]], filled[dates[0]]


def is_sensible(spec: ToolSpec, filled: Mapping[str, Filled]) -> bool:
    """Whether a span runs forwards and a conversion changes the currency."""
    by_kind: dict[str, list[Any]] = {}
    for key in spec.params:
        if key in filled:
            by_kind.setdefault(spec.params[key].slot.kind, []).append(filled[key].value)
    dates, currencies = by_kind.get("date", []), by_kind.get("currency", [])
    return dates == sorted(dates) and len(set(currencies)) == len(currencies)


def surface(spec: ToolSpec, ref: SlotRef, filled: Mapping[str, Filled], rng: random.Random) -> Segment:
    """What is said for a reference, combined ones included."""
    covered = spec.covers(ref.name)
    values = [filled[key] for key in covered]
    if len(covered) == 1:
        return Segment(values[0].form(ref.form), is_value=True, is_copied=values[0].is_copied)
    kinds = tuple(spec.params[key].slot.kind for key in covered)
    if kinds == ("amount", "currency"):
        said = lexicon.money(rng, values[0].form(), values[1].value, values[1].form())
        return Segment(said, is_value=True)
    text = " ".join(value.form(ref.form) for value in values).strip()
    return Segment(text, is_value=True, is_copied=any(value.is_copied for value in values))


def _assemble(
    spec: ToolSpec,
    context: Context,
    kind: Clause,
    head: list[grammar.Text | SlotRef],
    phrases: list[tuple[tuple[str, ...], list[grammar.Text | SlotRef]]],
    filled: Mapping[str, Filled],
) -> list[Segment]:
    rng = context.rng

    def spoken(parts: list[grammar.Text | SlotRef]) -> list[Segment]:
        return grammar.fill(parts, lambda ref: surface(spec, ref, filled, rng))

    rng.shuffle(phrases)
    fronted: list[Segment] = []
    front = [p for p in phrases if all(spec.params[key].slot.kind in _FRONTED for key in p[0])]
    if front and kind is not Clause.NOUN and rng.random() < 0.16:
        phrases.remove(front[0])
        fronted = [*spoken(front[0][1]), Segment(rng.choice([", ", " ", ", "]))]
    segments = [*fronted, *spoken(head)]
    for _, parts in phrases:
        segments += [Segment(", " if rng.random() < 0.1 else " "), *spoken(parts)]
    return segments


def polite(request: Request, rng: random.Random) -> list[Segment]:
    """The request with what people put around it."""
    segments = list(request.segments)
    if request.clause is Clause.IMPERATIVE and rng.random() < 0.45:
        opener = rng.choice(tables().imperative_openers)
        segments.insert(0, Segment(opener))
    return segments


def dress(segments: list[Segment], clause: Clause, rng: random.Random) -> str:
    """The final text: openings and closings, then a register (neat, casual, sloppy, spoken)."""
    if rng.random() < 0.14:
        segments = [Segment(rng.choice(tables().openings)), *segments]
    if rng.random() < 0.14 and clause is not Clause.QUESTION:
        segments = [*segments, Segment(rng.choice(tables().closings))]
    register = rng.choices(["neat", "casual", "sloppy", "spoken"], [56, 26, 10, 8])[0]
    if register == "neat":
        return _neat(segments, clause, rng)
    segments = [_lowered(segment, rng) for segment in segments]
    if register == "sloppy":
        segments = [_mangled(segment, rng) for segment in segments]
    if register == "spoken":
        segments = [_hesitant(segment, rng) for segment in segments]
    text = grammar.join(segments)
    return text + ("?" if clause is Clause.QUESTION and rng.random() < 0.3 else "")


def _neat(segments: list[Segment], clause: Clause, rng: random.Random) -> str:
    first = segments[0]
    text = grammar.join(segments)
    if not first.is_copied:
        text = text[:1].upper() + text[1:]
    text = re.sub(r"\bi\b(?=['\s])", "I", text) if not any(segment.is_copied for segment in segments) else text
    if text[-1:] in "?!.":
        return text
    is_question = clause is Clause.QUESTION or text.lower().startswith(
        ("can ", "could ", "would ", "will ", "is it ", "are you ", "any chance")
    )
    end = "?" if is_question else "." if clause is not Clause.NOUN or rng.random() < 0.3 else ""
    return text + (end if rng.random() < 0.85 else rng.choice(["", "", "!"]))


def _lowered(segment: Segment, rng: random.Random) -> Segment:
    if segment.is_copied:
        return segment
    keep = segment.is_value and rng.random() < 0.5
    return segment if keep else replace(segment, text=segment.text.lower())


def _mangled(segment: Segment, rng: random.Random) -> Segment:
    if segment.is_value:
        return segment
    words = [_mangle_word(word, rng) for word in segment.text.split(" ")]
    return replace(segment, text=" ".join(words))


def _mangle_word(word: str, rng: random.Random) -> str:
    if word in tables().abbreviations and rng.random() < _SLOPPY_ABBREVIATIONS:
        return tables().abbreviations[word]
    if len(word) < 4 or not word.isalpha() or rng.random() > 0.14:
        return word
    at = rng.randrange(1, len(word) - 1)
    roll = rng.random()
    if roll < 0.4:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if roll < 0.75:
        return word[:at] + word[at + 1 :]
    return word[:at] + word[at] + word[at:]


def _hesitant(segment: Segment, rng: random.Random) -> Segment:
    if segment.is_value or rng.random() > 0.18 or " " not in segment.text.strip():
        return segment
    text = segment.text.rstrip()
    return replace(segment, text=f"{text}{rng.choice(tables().fillers)} ")


def spoken_values(request: Request, count: int, context: Context) -> tuple[str, list[Filled]] | None:
    """A parameter said once whose value can be multiplied ("in Oslo and Bergen"), with `count` distinct values.

    Returns:
        (parameter key, values) or None when the request has no such parameter.
    """
    params = request.spec.params
    kinds = [param.slot.kind for param in params.values()]
    keys = [
        key
        for key, param in params.items()
        # Multiplying one end of a span would leave the other where nobody said it.
        if key in request.filled
        and param.slot.kind in _MULTIPLIABLE
        and (param.slot.kind != "date" or kinds.count("date") == 1)
    ]
    if not keys:
        return None
    key = context.rng.choice(keys)
    slot: SlotSpec = request.spec.params[key].slot
    values: dict[str, Filled] = {}
    while len(values) < count:
        one = slot.sample(context)
        values.setdefault(str(one.value), one)
    return key, list(values.values())
