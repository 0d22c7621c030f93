"""Tools on offer in a dialogue: bundled as they are, or invented anew so that a model has to read them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.synth import lexicon
from data.synth.domains import Clause, ParamSpec, ToolSpec
from data.synth.lexicon import tables
from data.synth.values import SCALARS, SlotSpec
from tinydispatch.tools import Tool, ToolCall


@dataclass(frozen=True)
class Offer:
    """A spec under the names of one schema.

    `names` maps internal parameter keys to schema names, and holds only the parameters that this schema has;
    `enum_values` maps the spec's enum values to the schema's spelling of them.
    """

    spec: ToolSpec
    tool: Tool
    names: Mapping[str, str]
    enum_values: Mapping[str, Mapping[str, str]]

    def call(self, arguments: Mapping[str, Any]) -> ToolCall:
        """The call of this tool for values by internal key, in the schema's order of parameters."""
        by_name = {self.names[key]: self.enum_values.get(key, {}).get(str(v), v) for key, v in arguments.items()}
        order = self.tool.parameters["properties"]
        return ToolCall(self.tool.name, {name: by_name[name] for name in order if name in by_name})


def bundled_offer(spec: ToolSpec, tool: Tool) -> Offer:
    """A bundled tool exactly as it ships."""
    return Offer(spec, tool, {key: key for key in spec.params}, {})


def plain_offer(spec: ToolSpec, rng: random.Random) -> Offer:
    """The spec under one of its other sensible names, its parameters mostly all there and in their own order."""
    params = [p for p in spec.params.values() if p.is_required or rng.random() < 0.9]
    if rng.random() < 0.3:
        rng.shuffle(params)
    taken: dict[str, str] = {}
    for param in params:
        options = [name for name in param.names if name not in taken.values()] or [f"{param.key}_{len(taken)}"]
        taken[param.key] = rng.choice(options)
    properties = {taken[p.key]: p.slot.schema() for p in params}
    required = [taken[p.key] for p in params if p.is_required]
    parameters = {"type": "object", "properties": properties, "required": required}
    return Offer(spec, Tool(rng.choice(spec.names[1:]), rng.choice(spec.descriptions), parameters), taken, {})


def invented_offer(spec: ToolSpec, rng: random.Random, *, skip_first_name: bool = False) -> Offer:
    """The spec under drawn names: tool, parameters, enum spelling, order and optional parameters all vary.

    Args:
        skip_first_name: leave out the canonical name (the bundled ones must stay unseen).
    """
    names = spec.names[1:] if skip_first_name else spec.names
    params = [p for p in spec.params.values() if p.is_required or rng.random() < 0.75]
    rng.shuffle(params)
    params.sort(key=lambda param: not param.is_required and rng.random() < 0.8)
    style = rng.choice(_NAME_STYLES)
    taken: dict[str, str] = {}
    for param in params:
        options = param.names[1:] if skip_first_name and len(param.names) > 1 and rng.random() < 0.7 else param.names
        options = tuple(name for name in options if style(name) not in taken.values()) or (f"{param.key}_{len(taken)}",)
        taken[param.key] = style(rng.choice(options)) if rng.random() < 0.94 else lexicon.pseudo_ascii(rng)
    if len(set(taken.values())) != len(taken):
        taken = {key: f"{name}_{index}" for index, (key, name) in enumerate(taken.items())}
    enum_values = {p.key: _respelled(p.slot, rng) for p in params if p.slot.kind == "enum"}
    properties = {taken[p.key]: _property(p, enum_values.get(p.key)) for p in params}
    required = [taken[p.key] for p in params if p.is_required]
    parameters = {"type": "object", "properties": properties, "required": required}
    name = _tool_name(rng.choice(names), rng)
    description = rng.choice(spec.descriptions)
    return Offer(spec, Tool(name, description, parameters), taken, enum_values)


def _tool_name(name: str, rng: random.Random) -> str:
    name = f"{rng.choice(tables().tool_prefixes)}{name}{rng.choice(tables().tool_affixes)}"
    if rng.random() < 0.04:
        return f"{rng.choice(tables().tool_verbs)}_{lexicon.pseudo_ascii(rng)}"
    return re.sub(r"[^A-Za-z0-9_.\-]", "_", name)


def camel(name: str) -> str:
    """snake_case as camelCase."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


_NAME_STYLES: tuple[Callable[[str], str], ...] = (str, str, str, camel)
_ENUM_STYLES: tuple[Callable[[str], str], ...] = (str, str.upper, str.capitalize)


def _respelled(slot: SlotSpec, rng: random.Random) -> dict[str, str]:
    values = list(slot.argument)
    change = rng.choices(_ENUM_STYLES, [82, 10, 8])[0]
    changed = {value: change(value) for value in values}
    return changed if len(set(changed.values())) == len(values) else {value: value for value in values}


def _property(param: ParamSpec, enum_values: Mapping[str, str] | None) -> dict[str, Any]:
    schema = param.slot.schema()
    return {**schema, "enum": list(enum_values.values())} if enum_values else schema


def random_spec(rng: random.Random) -> ToolSpec:
    """A tool that nobody has heard of, asked for by its own words: only reading the signature can help."""
    verb, thing = rng.choice(tables().tool_verbs), lexicon.pseudo_ascii(rng)
    second = rng.choice(tables().parameter_nouns) if rng.random() < 0.5 else ""
    words = " ".join(part for part in (verb, thing, second) if part)
    params = _random_params(rng)
    descriptions = [words.capitalize(), f"{verb.capitalize()}s the {thing}", f"Tool to {words}"]
    return ToolSpec(
        domain="random",
        names=("_".join(words.split()),),
        descriptions=(rng.choice([*descriptions, f"{thing.capitalize()} {second}".strip()]),),
        params=params,
        heads=_random_heads(verb, thing, second),
        adjuncts={key: _random_adjuncts(key, param.names[0]) for key, param in params.items()},
        ask={key: _random_questions(param.names[0]) for key, param in params.items()},
        result={"status": ["ok", "done"]},
        replies=("Done.", "All set."),
    )


def _random_params(rng: random.Random) -> dict[str, ParamSpec]:
    count = rng.choices([0, 1, 2, 3, 4], [4, 30, 34, 22, 10])[0]
    names = rng.sample(tables().parameter_nouns, count)
    names = [lexicon.pseudo_ascii(rng) if rng.random() < 0.35 else name for name in names]
    kinds = [kind for kind in SCALARS if kind != "task"]
    params = {}
    for index, name in enumerate(dict.fromkeys(names)):
        slot = SlotSpec("integer", (0, 999)) if rng.random() < 0.15 else SlotSpec(rng.choice(kinds))
        slot = SlotSpec("word") if rng.random() < 0.25 else slot
        params[f"p{index}"] = ParamSpec(f"p{index}", (name,), slot, is_required=rng.random() < 0.6)
    return params


def _random_heads(verb: str, thing: str, second: str) -> dict[Clause, tuple[str, ...]]:
    words = " ".join(part for part in (verb, thing, second) if part)
    bare = f"{verb} the {thing} {second}".strip()
    run = f"run {words}", f"use {'_'.join(words.split())}", bare, f"[do|trigger|perform|execute] {words}"
    return {
        Clause.IMPERATIVE: (words, *run),
        Clause.QUESTION: (f"can I {words}", f"is there a way to {words}", f"how about we {words}"),
        Clause.STATEMENT: (f"I [need|want] to {words}", f"we should {words}", f"it's time to {words}"),
        Clause.NOUN: (f"{thing} {second}".strip(), words),
    }


def _random_adjuncts(key: str, name: str) -> tuple[str, ...]:
    value = f"{{{key}}}"
    return tuple(phrase.format(name=name, value=value) for phrase in tables().invented_adjuncts)


def _random_questions(name: str) -> tuple[str, ...]:
    return f"What should the {name} be?", f"Which {name}?", f"Please give me the {name}."
