"""Catalogue requests, and those of labelled intent data, as training conversations: who is offered which tools on
which day.

Ten or more requests share one list of tools and one day, so that tree packing computes the list once. Each pass over
the catalogue makes other lists of the same requests: other neighbours, another order, other names, other days.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data.augment import SimilarTools, with_masked_names
from data.catalogue.reader import Domain, Kind, Request
from data.config import HardeningConfig
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall

SOURCE = "catalogue"

_EARLIEST, _DAYS = dt.date(2024, 1, 1), 365 * 6

# Answers where the tool that would serve is not on offer, by language; other languages get the English ones.
_CANNOT: Mapping[str, tuple[str, ...]] = {
    "en": (
        "I can't do that with the tools I have here.",
        "Sorry, none of my tools can do that.",
        "That is outside what I can do here.",
        "I have no tool for that, I'm afraid.",
    ),
    "de": ("Dafür habe ich hier kein Werkzeug.", "Das kann ich mit meinen Werkzeugen leider nicht."),
    "fr": ("Je n'ai pas d'outil pour cela ici.", "Désolé, aucun de mes outils ne permet de faire cela."),
    "es": ("No tengo ninguna herramienta para eso.", "Lo siento, eso no puedo hacerlo con mis herramientas."),
    "it": ("Mi dispiace, non ho uno strumento per questo.",),
    "pt": ("Desculpe, não tenho nenhuma ferramenta para isso.",),
    "nl": ("Daar heb ik hier helaas geen gereedschap voor.",),
}

_SYSTEMS = (
    "You are a helpful assistant.",
    "You are the assistant of our {about}. Use the tools where they fit.",
    "Call a tool if one fits the request. Ask when something required is missing.",
    "You help with: {about}. Answer briefly.",
    "Assistant for {about}. Never guess values that the user did not give.",
)


def mixed(
    domains: Sequence[Domain],
    *,
    seed: int,
    passes: int = 1,
    requests_per_list: int = 12,
    most_tools: int = 40,
    whole: bool = False,
    hardening: HardeningConfig | None = None,
    source: str = SOURCE,
) -> Iterator[Conversation]:
    """Conversations for every request of every domain, `passes` times, each list's requests one after the other.

    Deterministic by `seed`. A domain's `dialogue_id`s do not depend on it, so a request is on one side of a split in
    all passes. With `whole` every list is a domain's own tools, all of them in their order.
    """
    strangers = {
        domain.name: tuple(t for other in domains if other is not domain for t in other.tools) for domain in domains
    }
    similar = {name: SimilarTools(tools) for name, tools in strangers.items()}
    for index in range(passes):
        order = list(domains)
        random.Random(f"domains-{seed}-{index}").shuffle(order)
        for domain in order:
            mixer = _Mixer(
                domain,
                strangers[domain.name],
                similar[domain.name],
                0 if whole else most_tools,
                hardening or HardeningConfig(),
                source,
            )
            yield from mixer.conversations(random.Random(f"{domain.name}-{seed}-{index}"), index, requests_per_list)


class _Mixer:
    """Makes lists for one domain."""

    def __init__(
        self,
        domain: Domain,
        strangers: Sequence[Tool],
        similar: SimilarTools,
        most_tools: int,
        hardening: HardeningConfig,
        source: str,
    ) -> None:
        self._source = source
        self._domain, self._strangers, self._similar = domain, strangers, similar
        self._most_tools, self._hardening = most_tools, hardening
        self._by_name = {tool.name: tool for tool in domain.tools}

    def conversations(self, rng: random.Random, index: int, per_list: int) -> Iterator[Conversation]:
        for number, (names, requests) in enumerate(self._groups(rng, per_list)):
            yield from self._with_list(rng, names, requests, f"{index}.{number}")
        yield from self._taken_away(rng, f"{index}.without")

    def _groups(self, rng: random.Random, per_list: int) -> Iterator[tuple[frozenset[str], list[Request]]]:
        """Tool names of the domain with requests that need no other: halves of the domain, then all of it."""
        left = list(self._domain.requests)
        rng.shuffle(left)
        names = list(self._by_name)
        if not self._most_tools:
            for first in range(0, len(left), per_list):
                yield frozenset(names), left[first : first + per_list]
            return
        rng.shuffle(names)
        cut = rng.randint(2, max(2, len(names) - 2)) if len(names) > 3 else len(names)
        # A near miss is one of the tool that looks right, so it needs the whole domain.
        for part in (frozenset(names[:cut]), frozenset(names[cut:])):
            fitting = [r for r in left if r.tools_used and r.tools_used <= part and r.kind is not Kind.NEAR_MISS]
            while len(fitting) >= per_list:
                chosen, fitting = fitting[: per_list + 4], fitting[per_list + 4 :]
                if 0 < len(left) - len(chosen) < per_list:
                    break  # what would be left is too little for a list of its own
                yield part, chosen
                gone = set(map(id, chosen))
                left = [request for request in left if id(request) not in gone]
        while left:
            n = per_list + 4 if len(left) >= 2 * per_list else len(left)
            yield frozenset(names), left[:n]
            left = left[n:]

    def _with_list(
        self, rng: random.Random, names: frozenset[str], requests: Sequence[Request], label: str
    ) -> Iterator[Conversation]:
        today = _EARLIEST + dt.timedelta(days=rng.randrange(_DAYS))
        tools = [tool for tool in self._domain.tools if tool.name in names]
        if self._most_tools:
            tools += self._neighbours(rng, tools, frozenset().union(*(request.shuns for request in requests)))
            rng.shuffle(tools)
        made = [self._conversation(request, tuple(tools), today, label) for request in requests]
        yield from self._hardened(rng, made)

    def _neighbours(self, rng: random.Random, tools: Sequence[Tool], shunned: frozenset[str]) -> list[Tool]:
        """Tools of other domains: mostly a few, seldom dozens; never a twin of one of the list, nor one shunned."""
        room = self._most_tools - len(tools)
        wanted = min(room, rng.choices([0, 2, 5, 10, 24], [40, 25, 20, 11, 4])[0])
        if not wanted:
            return []
        probe = Conversation((), tuple(tools), self._source, "", "")
        near = list(self._similar.to(probe, wanted // 2))
        near = [tool for tool in near if tool.name not in shunned]
        taken = shunned | {tool.name for tool in (*tools, *near)}
        others = [
            tool
            for tool in rng.sample(self._strangers, min(len(self._strangers), 4 * wanted))
            if tool.name not in taken
        ]
        chosen = {tool.name: tool for tool in (*near, *others)}
        return list(chosen.values())[:wanted]

    def _taken_away(self, rng: random.Random, label: str) -> Iterator[Conversation]:
        """Some requests again, on a list without the tools that they need, answered in words."""
        asked = [request for request in self._domain.requests if request.calls and len(request.turns) == 1]
        count = round(self._hardening.without_gold * len(self._domain.requests))
        if not count or not asked:
            return
        gone = rng.choice([request.calls[0].name for request in asked])
        chosen = [r for r in asked if {call.name for call in r.calls} == {gone}][:count]
        rest = frozenset(self._by_name) - {gone}
        # A near-twin of the absent tool could serve as well.
        twins = {"search", "list", "find", "get", "lookup", "show", "check"}
        if any(_verb(name) in twins for name in rest) and _verb(gone) in twins:
            rest = frozenset(name for name in rest if _verb(name) not in twins)
        if not rest:
            return
        without = [replace(r, calls=(), reply=cannot(r.language, rng), kind=Kind.NONE) for r in chosen]
        yield from self._with_list(rng, rest, without, label)

    def _conversation(self, request: Request, tools: tuple[Tool, ...], today: dt.date, label: str) -> Conversation:
        return Conversation(
            messages=request.messages(today),
            tools=tools,
            source=self._source,
            category=str(request.kind),
            dialogue_id=request.dialogue_id or f"{self._source}-{request.domain}-{request.line}",
            reference_date=today,
            metadata={
                "row_id": f"{request.where}/{label}",
                "domain": request.domain,
                **({"voice": str(request.voice)} if request.voice is not None else {}),
                "language": request.language,
            },
        )

    def _hardened(self, rng: random.Random, made: Sequence[Conversation]) -> Iterator[Conversation]:
        """One list's conversations, all changed alike."""
        shares = self._hardening
        if rng.random() < shares.system:
            text = rng.choice(_SYSTEMS).format(about=self._domain.about or self._domain.name.replace("_", " "))
            made = [_with_system(conversation, text) for conversation in made]
        if rng.random() < shares.reordered:
            made = _reordered(made, rng)
        if rng.random() < shares.undescribed:
            made = _with_tools(made, {tool.name: _undescribed(tool) for tool in made[0].tools} if made else {})
        elif rng.random() < shares.masked:
            # The same numbers for each conversation of the list.
            state = rng.getrandbits(32)
            made = [with_masked_names(conversation, random.Random(state)) for conversation in made]
            yield from made
            return
        if rng.random() < shares.restyled:
            style = rng.choice([_camel, _kebab, _dotted])
            made = [_renamed(conversation, style) for conversation in made]
        yield from made


def cannot(language: str, rng: random.Random) -> str:
    """An answer where no tool on offer serves, in the language if it is known here, else in English."""
    return rng.choice(_CANNOT.get(language, _CANNOT["en"]))


def _verb(name: str) -> str:
    head = name.replace(".", "_").replace("-", "_")
    snake = "".join(f"_{char.lower()}" if char.isupper() else char for char in head)
    parts = [part for part in snake.split("_") if part]
    return next(
        (part for part in parts if part in {"search", "list", "find", "get", "lookup", "show", "check"}), parts[0]
    )


def _with_system(conversation: Conversation, text: str) -> Conversation:
    if conversation.messages[0].role is Role.SYSTEM:
        return conversation
    return replace(conversation, messages=(Message(Role.SYSTEM, text), *conversation.messages))


def _with_tools(made: Sequence[Conversation], tools: Mapping[str, Tool]) -> list[Conversation]:
    return [replace(one, tools=tuple(tools[tool.name] for tool in one.tools)) for one in made]


def _undescribed(tool: Tool) -> Tool:
    return Tool(tool.name, "", _without_descriptions(tool.parameters))


def _without_descriptions(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {
            key: {name: _without_descriptions(item) for name, item in value.items()}
            if key == "properties"
            else _without_descriptions(value)
            for key, value in schema.items()
            if key != "description" or not isinstance(value, str)
        }
    return [_without_descriptions(item) for item in schema] if isinstance(schema, list) else schema


def _reordered(made: Sequence[Conversation], rng: random.Random) -> list[Conversation]:
    """Parameters in another order, in the list and in every call."""
    orders: dict[str, list[str]] = {}
    tools: dict[str, Tool] = {}
    for tool in made[0].tools if made else ():
        names = list(tool.parameters.get("properties", {}))
        rng.shuffle(names)
        orders[tool.name] = names
        properties = {name: tool.parameters["properties"][name] for name in names}
        tools[tool.name] = Tool(tool.name, tool.description, {**tool.parameters, "properties": properties})

    def call_of(call: ToolCall) -> ToolCall:
        order = orders.get(call.name, [])
        return ToolCall(
            call.name, {name: call.arguments[name] for name in order if name in call.arguments} | {**call.arguments}
        )

    return [
        replace(
            one,
            tools=tuple(tools[tool.name] for tool in one.tools),
            messages=tuple(replace(m, tool_calls=tuple(map(call_of, m.tool_calls))) for m in one.messages),
        )
        for one in made
    ]


def _camel(name: str) -> str:
    first, *rest = name.replace("-", "_").replace(".", "_").split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _kebab(name: str) -> str:
    return name.replace("_", "-").replace(".", "-")


def _dotted(name: str) -> str:
    verb, _, rest = name.partition("_")
    return f"{rest}.{verb}" if rest else name


def _renamed(conversation: Conversation, style: Any) -> Conversation:
    names = {tool.name: style(tool.name) for tool in conversation.tools}
    if len(set(names.values())) != len(names):
        return conversation
    return replace(
        conversation,
        tools=tuple(Tool(names[tool.name], tool.description, tool.parameters) for tool in conversation.tools),
        messages=tuple(
            replace(
                message,
                tool_calls=tuple(ToolCall(names.get(c.name, c.name), c.arguments) for c in message.tool_calls),
                tool_name=names.get(message.tool_name, message.tool_name) if message.tool_name else None,
            )
            for message in conversation.messages
        ),
    )
