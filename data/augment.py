"""Changes that make a small model read its tools instead of remembering them; each named, seeded, and a share.

- `no_call`: the tool that the first call names is taken off the list, and the answer becomes a plain "I cannot".
- `distractors`: tools that resemble the called ones are added to the list.
- `mask_names`: tools and their parameters get names that mean nothing, in the list and in every call.
- `shuffle_tools`: the list changes its order.

All but the first are drawn per dialogue, so the rows of one dialogue change alike and can still be joined.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

from data.config import AugmentConfig
from data.sources.categories import Behaviour
from data.text import normalized_words
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall

# Above this share of common words a tool may well be another name for the called one, and calling it would be right.
_TWIN = 0.6
_CANDIDATES = 200

_CANNOT = (
    "None of my tools can do that.",
    "I'm sorry, I have no tool for that.",
    "I can't do that with the tools I have.",
    "That is not something my tools can help with.",
)


class Augmentation(StrEnum):
    """What was done to a conversation; the data card counts by it."""

    NO_CALL = "no_call"
    DISTRACTORS = "distractors"
    MASK_NAMES = "mask_names"
    SHUFFLE_TOOLS = "shuffle_tools"


class Augmenter:
    """Applies what the configuration asks for; the same seed and conversation give the same result."""

    def __init__(self, config: AugmentConfig, seed: int, pool: Sequence[Tool] = ()) -> None:
        self._config = config
        self._seed = seed
        self._similar = SimilarTools(pool)

    def augment(self, conversation: Conversation) -> tuple[Conversation, tuple[str, ...]]:
        """The conversation and the names of what was done to it."""
        done: list[str] = []
        row = str(conversation.metadata.get("row_id", conversation.dialogue_id))
        if self._is_drawn(Augmentation.NO_CALL, row, self._config.no_call) and is_first_call(conversation):
            conversation = without_gold_tool(conversation, self._rng(Augmentation.NO_CALL, row))
            done.append(Augmentation.NO_CALL)
        dialogue = conversation.dialogue_id
        if self._is_drawn(Augmentation.DISTRACTORS, dialogue, self._config.distractors):
            added = self._similar.to(conversation, self._config.max_distractors)
            if added:
                tools = [*conversation.tools, *added]
                # At the end of the list they would be easy to tell.
                self._rng(Augmentation.DISTRACTORS, dialogue).shuffle(tools)
                conversation = replace(conversation, tools=tuple(tools))
                done.append(Augmentation.DISTRACTORS)
        if self._is_drawn(Augmentation.MASK_NAMES, dialogue, self._config.mask_names) and conversation.tools:
            conversation = with_masked_names(conversation, self._rng(Augmentation.MASK_NAMES, dialogue))
            done.append(Augmentation.MASK_NAMES)
        shuffled = self._is_drawn(Augmentation.SHUFFLE_TOOLS, dialogue, self._config.shuffle_tools)
        if shuffled and len(conversation.tools) > 1:
            tools = list(conversation.tools)
            self._rng(Augmentation.SHUFFLE_TOOLS, dialogue).shuffle(tools)
            conversation = replace(conversation, tools=tuple(tools))
            done.append(Augmentation.SHUFFLE_TOOLS)
        return conversation, tuple(map(str, done))

    def _rng(self, name: Augmentation, key: str) -> random.Random:
        return random.Random(f"{name}-{self._seed}-{key}")

    def _is_drawn(self, name: Augmentation, key: str, share: float) -> bool:
        return share > 0 and random.Random(f"draw-{name}-{self._seed}-{key}").random() < share


def is_first_call(conversation: Conversation) -> bool:
    """Whether the one thing trained is a call, before any tool has been used, and other tools are on offer."""
    last = conversation.messages[-1]
    called = {call.name for call in last.tool_calls}
    return (
        bool(called)
        and not any(message.tool_calls or message.role is Role.TOOL for message in conversation.messages[:-1])
        and len(conversation.tools) > len(called)
    )


def without_gold_tool(conversation: Conversation, rng: random.Random) -> Conversation:
    """The same request where the called tools are not on offer, and an answer that says so."""
    gold = {call.name for call in conversation.messages[-1].tool_calls}
    return replace(
        conversation,
        messages=(*conversation.messages[:-1], Message(Role.ASSISTANT, rng.choice(_CANNOT))),
        tools=tuple(tool for tool in conversation.tools if tool.name not in gold),
        category=str(Behaviour.NO_CALL),
    )


def with_masked_names(conversation: Conversation, rng: random.Random) -> Conversation:
    """Tools and top-level parameters under names that mean nothing: only descriptions tell what they are for."""
    numbers = rng.sample(range(10, 10 + 10 * len(conversation.tools)), len(conversation.tools))
    names = {tool.name: f"tool_{number}" for tool, number in zip(conversation.tools, numbers, strict=True)}
    keys = {tool.name: _masked_keys(tool.parameters) for tool in conversation.tools}
    tools = tuple(_masked_tool(json.dumps(_plain(tool)), names[tool.name]) for tool in conversation.tools)
    messages = tuple(
        replace(
            message,
            tool_calls=tuple(
                ToolCall(names[call.name], {keys[call.name].get(k, k): v for k, v in call.arguments.items()})
                for call in message.tool_calls
            ),
            tool_name=names.get(message.tool_name, message.tool_name) if message.tool_name else message.tool_name,
        )
        for message in conversation.messages
    )
    return replace(conversation, messages=messages, tools=tools)


# Next to these a schema may name its parameters again, anywhere inside.
_NAMING = frozenset({
    "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies",
    "patternProperties", "propertyNames", "$ref", "$dynamicRef",
})  # fmt: skip


def _masked_keys(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Parameter → its new name; empty where the schema says more about parameters than their list does."""
    if _NAMING & parameters.keys():
        return {}
    return {key: f"p{i}" for i, key in enumerate(parameters.get("properties", {}), 1)}


def _plain(tool: Tool) -> dict[str, object]:
    return {"description": tool.description, "parameters": dict(tool.parameters)}


@lru_cache(maxsize=4096)
def _masked_tool(text: str, name: str) -> Tool:
    value = json.loads(text)
    parameters = value["parameters"]
    keys = _masked_keys(parameters)
    properties = {keys.get(key, key): spec for key, spec in parameters.get("properties", {}).items()}
    masked = {**parameters, "properties": properties}
    if "required" in parameters:
        masked["required"] = [keys.get(key, key) for key in parameters["required"]]
    return Tool(name, value["description"], masked)


class SimilarTools:
    """Finds tools of a pool that look like those of a conversation, by the words of names and descriptions."""

    def __init__(self, pool: Sequence[Tool]) -> None:
        unique = {tool.name: tool for tool in pool}
        self._tools = [unique[name] for name in sorted(unique)]
        self._words = [_words(tool) for tool in self._tools]
        self._with_word: Mapping[str, list[int]] = defaultdict(list)
        for index, words in enumerate(self._words):
            for word in sorted(words):
                self._with_word[word].append(index)

    def to(self, conversation: Conversation, count: int) -> tuple[Tool, ...]:
        """Up to `count` tools that resemble the called ones (any, where none is called) and are no twins of them."""
        called = {call.name for call in conversation.calls}
        models = [_words(tool) for tool in conversation.tools if tool.name in called or not called]
        offered = {tool.name for tool in conversation.tools}
        wanted = sorted(set().union(*models), key=lambda word: (len(self._with_word.get(word, ())), word))
        # Rare words first: what shares only "get" and "the" resembles everything.
        near: dict[int, None] = {}
        for word in wanted:
            near |= dict.fromkeys(self._with_word.get(word, ()))
            if len(near) >= _CANDIDATES:
                break
        scored = [
            (max(_likeness(self._words[index], model) for model in models), index)
            for index in near
            if self._tools[index].name not in offered
        ]
        best = sorted(((-score, index) for score, index in scored if 0 < score < _TWIN))[:count]
        return tuple(self._tools[index] for _, index in best)


def _words(tool: Tool) -> frozenset[str]:
    spoken = f"{tool.name} {tool.description}".replace("_", " ").replace(".", " ")
    return frozenset(normalized_words(spoken))


def _likeness(left: frozenset[str], right: frozenset[str]) -> float:
    return len(left & right) / len(left | right) if left or right else 0.0
