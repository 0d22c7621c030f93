"""Training examples for somebody's own tools, from their JSON schemas and a few phrases that people say for them.

The phrases are in the generator's language (docs/generator.md): `[turn|switch] {state} the {room} light`. What stands
for a parameter comes from the phrase file's `values` where they are given, and from the parameter's schema elsewhere.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.synth.domains import Clause
from data.synth.grammar import PhraseError, Segment, SlotRef, Text, choose, parse, slot_refs
from data.synth.lexicon import WordLoader, tables
from data.synth.phrasing import dress
from data.synth.schemas import UnsayableError, filled_from_schema
from data.synth.values import SCALARS, Context, Filled, computed, copied
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall

_NO_CALL_SHARE, _TWO_CALLS_SHARE = 0.1, 0.15
_MOST_OFFERED = 8
# A drawn value may break a pattern or a maximum of the schema; after so many draws it is the schema that cannot be met.
_TRIES = 50


class PhraseFileError(ValueError):
    """A phrase file that cannot be used; the message names the file, the tool and the key."""


@dataclass(frozen=True)
class SpokenTool:
    """A tool, the phrases that ask for it, and by parameter its values with what people say for each.

    `values` maps a parameter to a list (said as they are), an object value → wordings, or the name of one of the
    generator's slots ("city", "datetime", …).
    """

    tool: Tool
    phrases: tuple[str, ...]
    values: Mapping[str, Any]


def load_phrases(path: Path, tools: Sequence[Tool]) -> tuple[SpokenTool, ...]:
    """Read a phrase file: `{tool: {phrases: [...], values: {parameter: ...}}}`.

    A tool without an entry is only offered, never asked for.

    Raises:
        PhraseFileError: names the file, the tool and the phrase or parameter.
    """
    try:
        entries = yaml.load(path.read_text("utf-8"), WordLoader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise PhraseFileError(f"{path}: cannot be read: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise PhraseFileError(f"{path}: expected an object with an entry for each tool")
    by_name = {tool.name: tool for tool in tools}
    found = []
    for name, entry in entries.items():
        where = f"{path}: tool '{name}'"
        if name not in by_name:
            raise PhraseFileError(f"{where}: none of the tools; they are {', '.join(by_name)}")
        if not isinstance(entry, dict) or not isinstance(entry.get("phrases"), list) or not entry["phrases"]:
            raise PhraseFileError(f"{where}: expected 'phrases', a list of at least one")
        if unknown := sorted(entry.keys() - {"phrases", "values"}):
            raise PhraseFileError(f"{where}: unknown keys {unknown}; known are 'phrases' and 'values'")
        spoken = SpokenTool(by_name[name], tuple(map(str, entry["phrases"])), entry.get("values") or {})
        _check(spoken, where)
        found.append(spoken)
    return tuple(found)


def _check(spoken: SpokenTool, where: str) -> None:
    properties = spoken.tool.parameters.get("properties", {})
    for parameter, values in spoken.values.items():
        if parameter not in properties:
            raise PhraseFileError(f"{where}: values.{parameter}: no such parameter; it has {', '.join(properties)}")
        if isinstance(values, str) and values not in SCALARS:
            raise PhraseFileError(f"{where}: values.{parameter}: no slot '{values}'; known are {', '.join(SCALARS)}")
        if not values or not isinstance(values, str | list | dict):
            raise PhraseFileError(f"{where}: values.{parameter}: expected a list, value → wordings, or a slot's name")
    for phrase in spoken.phrases:
        try:
            names = {name for ref in slot_refs(parse(phrase)) for name in ref.covers}
        except PhraseError as error:
            raise PhraseFileError(f"{where}: {error}") from error
        if strangers := sorted(names - set(properties)):
            raise PhraseFileError(f"{where}: phrase '{phrase}' uses {strangers}, no parameters of the tool")
        if missing := [name for name in spoken.tool.parameters.get("required", []) if name not in names]:
            raise PhraseFileError(f"{where}: phrase '{phrase}' does not say {missing}, which the tool requires")
    rng = random.Random(0)
    for phrase in spoken.phrases:
        _request(spoken, phrase, Context(rng, dt.date(2026, 3, 19)), where)


def generate(spoken: Sequence[SpokenTool], offered: Sequence[Tool], count: int, seed: int) -> Iterator[Conversation]:
    """So many conversations; the same arguments give the same ones, and the tenth does not depend on `count`.

    Most make one call. Some make two, and in some the tool that is asked for is not on offer and no call is made.
    """
    for number in range(count):
        rng = random.Random(f"own-tools-{seed}-{number}")
        today = dt.date(2025, 1, 1) + dt.timedelta(days=rng.randrange(1500))
        yield _conversation(spoken, offered, Context(rng, today), f"own-{seed}-{number}")


def _conversation(
    spoken: Sequence[SpokenTool], offered: Sequence[Tool], context: Context, dialogue_id: str
) -> Conversation:
    rng = context.rng
    n_asked = 2 if rng.random() < _TWO_CALLS_SHARE else 1
    asked = [rng.choice(spoken) for _ in range(n_asked)]
    requests = [_request(one, rng.choice(one.phrases), context, f"tool '{one.tool.name}'") for one in asked]
    segments = list(requests[0][0])
    for more, _ in requests[1:]:
        segments += [Segment(rng.choice([" and ", " and also ", ", and "])), *more]
    gold = {one.tool.name for one in asked}
    others = [tool for tool in offered if tool.name not in gold]
    is_refused = bool(others) and rng.random() < _NO_CALL_SHARE
    tools = rng.sample(others, min(len(others), _MOST_OFFERED - len(gold)))
    if not is_refused:
        tools += [tool for tool in offered if tool.name in gold]
    rng.shuffle(tools)
    calls = tuple(call for _, call in requests)
    refusal = Message(Role.ASSISTANT, rng.choice(tables().no_tool))
    reply = refusal if is_refused else Message(Role.ASSISTANT, tool_calls=calls)
    return Conversation(
        messages=(Message(Role.USER, dress(segments, Clause.IMPERATIVE, rng)), reply),
        tools=tuple(tools),
        source="own_tools",
        category="no_call" if is_refused else "single_call" if n_asked == 1 else "parallel_calls",
        dialogue_id=dialogue_id,
        reference_date=context.today,
    )


def _request(spoken: SpokenTool, phrase: str, context: Context, where: str) -> tuple[list[Segment], ToolCall]:
    """One way to say a phrase, and the call that it means."""
    parameters = spoken.tool.parameters
    for _ in range(_TRIES):
        parts = choose(phrase, context.rng)
        names = list(dict.fromkeys(name for part in parts if isinstance(part, SlotRef) for name in part.covers))
        filled = {name: _filled(spoken, name, context, where) for name in names}
        call = ToolCall(spoken.tool.name, {name: filled[name].value for name in names})
        violations = spoken.tool.violations(call.arguments)
        if not violations:
            return [_said(part, filled) for part in parts], call
    first = violations[0]
    known = ", ".join(parameters.get("properties", {}))
    raise PhraseFileError(
        f"{where}: phrase '{phrase}': no value was found that its schema allows ({first.path}: {first.message}); give "
        f"some under 'values' (parameters: {known})"
    )


def _said(part: Text | SlotRef, filled: Mapping[str, Filled]) -> Segment:
    if isinstance(part, Text):
        return Segment(part.text)
    value = filled[part.covers[0]]
    return Segment(value.form(part.form), is_value=True, is_copied=value.is_copied)


def _filled(spoken: SpokenTool, name: str, context: Context, where: str) -> Filled:
    given = spoken.values.get(name)
    if isinstance(given, str):
        return SCALARS[given](context)
    if isinstance(given, list):
        value = context.rng.choice(given)
        return copied(value) if isinstance(value, str) else computed(value, str(value))
    if isinstance(given, dict):
        value, wordings = context.rng.choice(list(given.items()))
        return computed(value, str(context.rng.choice(wordings if isinstance(wordings, list) else [wordings])))
    root = spoken.tool.parameters
    try:
        return filled_from_schema(root["properties"][name], name, context, root)
    except UnsayableError as error:
        raise PhraseFileError(f"{where}: parameter {error}; give some under 'values'") from error
