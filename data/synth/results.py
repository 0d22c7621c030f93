"""What a tool answers, for tools without a simulator, and how an assistant reports it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from data.synth import grammar
from data.synth.domains import ToolSpec
from data.synth.phrasing import Request
from data.synth.slots import SlotError, SlotSpec
from data.synth.values import Context


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
