"""Exchanges between a user, an assistant and tools: single and parallel calls, dependent steps, questions, no call.

Rule for several wishes in one message: joined as equals ("and", "also") all are called at once; where words make
one wait for another ("then", "once", "if I'm free") only the first is called, the rest after its result.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data.synth import grammar, phrasing
from data.synth.domains import Clause, Link, ToolSpec, links, small_talk
from data.synth.lexicon import tables
from data.synth.offer import Offer
from data.synth.phrasing import Request
from data.synth.simulators import simulate
from data.synth.values import Context, Filled, SlotError, SlotSpec, coordinate
from tinydispatch.tools import Message, Role, ToolCall


def draw_result(spec: ToolSpec, arguments: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """A result by the spec's `result`: a list of values, a slot, `{echo: parameter}`, or a constant."""
    return {key: _draw(raw, arguments, context) for key, raw in spec.result.items()}


def _draw(raw: object, arguments: Mapping[str, Any], context: Context) -> Any:
    if isinstance(raw, list):
        return context.rng.choice(raw) if raw else None
    if isinstance(raw, Mapping) and "echo" in raw:
        return arguments.get(raw["echo"])
    try:
        return SlotSpec.parse(raw).sample(context).value
    except SlotError:
        return raw


def as_text(value: object) -> str:
    """A value as it stands in a sentence."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(as_text(one) for one in value)
    return json.dumps(value, ensure_ascii=False)


def report(request: Request, result: Mapping[str, Any], rng: random.Random) -> str:
    """A reply by one of the spec's templates, or a plain "Done." when none can be filled."""
    known = {key: as_text(value) for key, value in request.arguments.items()}
    known |= {f"result.{key}": as_text(value) for key, value in result.items() if value is not None}
    for template in rng.sample(request.spec.replies, min(6, len(request.spec.replies))):
        parts = grammar.choose(template, rng)
        if all(part.name in known for part in parts if isinstance(part, grammar.SlotRef)):
            return grammar.join(grammar.fill(parts, lambda ref: grammar.Segment(known[ref.name])))
    return rng.choice(["Done.", "All done.", "OK, that is done."])


_ATTEMPTS = 12


@dataclass
class Scene:
    """One dialogue being made: the tools on offer, the context, and specs of tools that are *not* on offer."""

    context: Context
    offers: list[Offer]
    absent: list[ToolSpec] = field(default_factory=list)
    result_share: float = 0.35
    is_simulated: bool = False

    @property
    def rng(self) -> random.Random:
        """The dialogue's random source."""
        return self.context.rng

    def request(self, clause: Clause | None = None, offer: Offer | None = None) -> tuple[Offer, Request] | None:
        """A complete request to an offered tool, or None after a dozen tries."""
        for _ in range(_ATTEMPTS):
            chosen = offer or self.rng.choice(self.offers)
            request = phrasing.compose(chosen.spec, self.context, allowed=chosen.names, clause=clause)
            if request is not None:
                return chosen, request
        return None

    def result(self, offer: Offer, request: Request, call: ToolCall) -> dict[str, Any]:
        """What the tool answers."""
        return simulate(call) if self.is_simulated else draw_result(offer.spec, request.arguments, self.context)


def user(text: str) -> Message:
    """A user turn."""
    return Message(Role.USER, text)


def calling(*calls: ToolCall) -> Message:
    """An assistant turn that only calls."""
    return Message(Role.ASSISTANT, "", calls)


def saying(text: str) -> Message:
    """An assistant turn in words."""
    return Message(Role.ASSISTANT, text)


def _result_message(name: str, result: object) -> Message:
    return Message(Role.TOOL, json.dumps(result, ensure_ascii=False), tool_name=name)


def _say(request: Request, scene: Scene) -> str:
    return phrasing.dress(phrasing.polite(request, scene.rng), request.clause, scene.rng)


def single_call(scene: Scene) -> list[Message]:
    """One wish, one call; sometimes with its result, or an error, and the report of it."""
    found = scene.request()
    if found is None:
        return []
    offer, request = found
    call = offer.call(request.arguments)
    messages = [user(_say(request, scene)), calling(call)]
    return messages + (_answered(scene, offer, request, call) if scene.rng.random() < scene.result_share else [])


def _answered(scene: Scene, offer: Offer, request: Request, call: ToolCall) -> list[Message]:
    if scene.rng.random() < 0.12:
        error = scene.rng.choice(tables().tool_errors)
        return [
            _result_message(call.name, {"error": error}),
            saying(scene.rng.choice(tables().sorry).format(error=error)),
        ]
    result = scene.result(offer, request, call)
    return [_result_message(call.name, result), saying(report(request, result, scene.rng))]


def follow_up(scene: Scene) -> list[Message]:
    """A wish, then a fragment that changes one value of it ("and on Friday?")."""
    found = scene.request()
    if found is None:
        return []
    offer, request = found
    keys = [key for key in offer.spec.adjuncts if key in request.filled and offer.spec.params[key].slot.kind != "task"]
    if not keys:
        return []
    key = scene.rng.choice(keys)
    again = replace(request, filled={**request.filled, key: offer.spec.params[key].slot.sample(scene.context)})
    if not phrasing.is_sensible(offer.spec, again.filled):
        return []
    parts = grammar.choose(scene.rng.choice(offer.spec.adjuncts[key]), scene.rng)
    if any(isinstance(part, grammar.SlotRef) and part.name != key for part in parts):
        return []
    fragment = grammar.fill(parts, lambda ref: phrasing.surface(offer.spec, ref, again.filled, scene.rng))
    before, _, after = scene.rng.choice(tables().follow_ups).partition("{change}")
    text = phrasing.dress([grammar.Segment(before), *fragment, grammar.Segment(after)], Clause.NOUN, scene.rng)
    call = offer.call(request.arguments)
    middle = _answered(scene, offer, request, call) if scene.rng.random() < 0.5 else []
    return [user(_say(request, scene)), calling(call), *middle, user(text), calling(offer.call(again.arguments))]


def same_tool(scene: Scene) -> list[Message]:
    """One wish over several values ("in Oslo and Bergen"): one call each, in the order said."""
    found = scene.request()
    if found is None:
        return []
    offer, request = found
    multiplied = phrasing.spoken_values(request, scene.rng.choices([2, 3], [75, 25])[0], scene.context)
    if multiplied is None:
        return []
    key, values = multiplied
    said = [value.form() for value in values]
    is_adverbial = [value.form("adv") for value in values][:1] + said[1:]
    prefix = "both " if len(said) == 2 and scene.rng.random() < 0.12 else ""
    joint = replace(
        values[0], forms={"": prefix + coordinate(scene.rng, said), "adv": coordinate(scene.rng, is_adverbial)}
    )
    segments = _respoken(request, key, joint)
    if segments is None:
        return []
    text = phrasing.dress(phrasing.polite(replace(request, segments=segments), scene.rng), request.clause, scene.rng)
    calls = [offer.call({**request.arguments, key: value.value}) for value in values]
    return [user(text), calling(*calls)]


def _respoken(request: Request, key: str, joint: Filled) -> tuple[grammar.Segment, ...] | None:
    """The request's segments with the one that says `key` replaced; None when it is said inside another phrase."""
    old = request.filled[key]
    for index, segment in enumerate(request.segments):
        for form in ("", "adv"):
            if segment.is_value and segment.text == old.form(form):
                changed = replace(segment, text=joint.form(form))
                return (*request.segments[:index], changed, *request.segments[index + 1 :])
    return None


def _linked(scene: Scene, kind: str, count: int) -> tuple[Link, list[tuple[Offer, Request]], str] | None:
    link = scene.rng.choice(links()[kind])
    clause = Clause.IMPERATIVE if link.needs_imperative else None
    firsts = [offer for offer in scene.offers if offer.spec.names[0] in link.first]
    if link.first and not firsts:
        return None
    found = []
    for index in range(count):
        one = scene.request(clause, scene.rng.choice(firsts) if firsts and index == 0 else None)
        if one is None:
            return None
        found.append(one)
    letters = dict(zip("ABC", found, strict=False))
    segments: list[grammar.Segment] = []
    for part in grammar.choose(link.phrase, scene.rng):
        if isinstance(part, grammar.Text):
            segments.append(grammar.Segment(part.text))
            continue
        request = letters[part.name][1]
        spoken = list(request.segments) if link.needs_imperative else phrasing.polite(request, scene.rng)
        before = segments[-1].text.rstrip(" ") if segments else ""
        if before.endswith((".", "\n")) and not spoken[0].is_copied and scene.rng.random() < 0.7:
            spoken[0] = replace(spoken[0], text=spoken[0].text[:1].upper() + spoken[0].text[1:])
        segments += spoken
    first_said = grammar.choose(link.phrase, random.Random(0))
    clause_said = found[-1][1].clause if not isinstance(first_said[-1], grammar.Text) else Clause.IMPERATIVE
    return link, found, phrasing.dress(segments, clause_said, scene.rng)


def parallel_calls(scene: Scene) -> list[Message]:
    """Two or three independent wishes in one message, all called at once."""
    count = scene.rng.choices([2, 3], [80, 20])[0]
    linked = _linked(scene, "three" if count == 3 else "parallel", count)
    if linked is None:
        return []
    _, found, text = linked
    calls = [offer.call(request.arguments) for offer, request in found]
    if len({json.dumps([call.name, dict(call.arguments)], sort_keys=True) for call in calls}) < count:
        return []
    messages = [user(text), calling(*calls)]
    if scene.rng.random() < scene.result_share * 0.6:
        results = [scene.result(offer, request, call) for (offer, request), call in zip(found, calls, strict=True)]
        messages += [_result_message(call.name, result) for call, result in zip(calls, results, strict=True)]
        reports = [report(request, result, scene.rng) for (_, request), result in zip(found, results, strict=True)]
        messages.append(saying(" ".join(reports)))
    return messages


def dependent_calls(scene: Scene) -> list[Message]:
    """A second wish that waits for the first one's result; what a condition decides is left open."""
    linked = _linked(scene, "dependent", 2)
    if linked is None:
        return []
    link, [(first_offer, first), (second_offer, second)], text = linked
    call = first_offer.call(first.arguments)
    messages = [user(text), calling(call)]
    if link.is_conditional or scene.rng.random() < 0.5:
        return messages
    messages.append(_result_message(call.name, scene.result(first_offer, first, call)))
    return [*messages, calling(second_offer.call(second.arguments))]


def missing_argument(scene: Scene) -> list[Message]:
    """A required value left out: the assistant asks, and usually gets it."""
    options = [
        (o, key) for o in scene.offers for key in o.names if o.spec.params[key].is_required and o.spec.ask.get(key)
    ]
    if not options:
        return []
    offer, key = scene.rng.choice(options)
    request = phrasing.compose(offer.spec, scene.context, allowed=offer.names, omitted=key)
    if request is None:
        return []
    question = grammar.expand(
        scene.rng.choice(offer.spec.ask[key]), scene.rng, {k: f.form() for k, f in request.filled.items()} | {key: ""}
    )
    messages = [user(_say(request, scene)), saying(question)]
    if scene.rng.random() < 0.25:
        return messages
    value = offer.spec.params[key].slot.sample(scene.context)
    answer = value.form(scene.rng.choice(["", "", "adv"]))
    full = replace(request, filled={**request.filled, key: value})
    if not phrasing.is_sensible(offer.spec, full.filled):
        return []
    segment = grammar.Segment(answer, is_value=True, is_copied=value.is_copied)
    return [*messages, user(phrasing.dress([segment], Clause.NOUN, scene.rng)), calling(offer.call(full.arguments))]


def no_call(scene: Scene) -> list[Message]:
    """Small talk, or a wish that no offered tool serves."""
    if scene.absent and scene.rng.random() < (0.35 if scene.is_simulated else 0.6):
        spec = scene.rng.choice(scene.absent)
        request = phrasing.compose(spec, scene.context)
        if request is None:
            return []
        return [user(_say(request, scene)), saying(scene.rng.choice(tables().no_tool))]
    talk = small_talk()
    phrase, kind = scene.rng.choice(talk.utterances)
    parts = grammar.fill(grammar.choose(phrase, scene.rng), lambda ref: grammar.Segment(ref.name))
    reply = grammar.expand(scene.rng.choice(talk.replies[kind]), scene.rng)
    return [user(phrasing.dress(parts, Clause.STATEMENT, scene.rng)), saying(reply)]


# Shares of exchanges; single calls carry most of what a dispatch model meets.
EXCHANGES: dict[str, tuple[int, Callable[[Scene], list[Message]]]] = {
    "single_call": (50, single_call),
    "parallel_calls": (13, parallel_calls),
    "same_tool": (8, same_tool),
    "dependent_calls": (9, dependent_calls),
    "missing_argument": (7, missing_argument),
    "no_call": (8, no_call),
    "follow_up": (5, follow_up),
}


def exchange(scene: Scene) -> tuple[str, list[Message]]:
    """One exchange and its category, drawn by share."""
    names = list(EXCHANGES)
    while True:
        name = scene.rng.choices(names, [EXCHANGES[name][0] for name in names])[0]
        if messages := EXCHANGES[name][1](scene):
            return name, messages
