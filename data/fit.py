"""Makes a conversation that is too long fit, by named steps: what matters least goes first, and a call is never cut."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from data.config import FitStep
from data.remembered import Remembered
from tinydispatch.tools import Conversation, Message, Role, Tool

# Raises ValueError where the model's chat template refuses the conversation.
CountTokens = Callable[[Conversation], int]

# (characters of a tool's description, of a parameter's): a first sentence, then little more than a name.
_DESCRIPTION_CHARS = ((160, 60), (80, 0))
_RESULT_CHARS = (512, 256, 128, 64)
_ELLIPSIS = "…"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s")


@dataclass(frozen=True)
class Fitted:
    """A conversation with its length in tokens and the steps it took; `length` may still exceed the limit."""

    conversation: Conversation
    length: int
    steps: tuple[FitStep, ...] = ()


def fit(conversation: Conversation, limit: int, count_tokens: CountTokens, allowed: Collection[FitStep]) -> Fitted:
    """The conversation, shortened no further than it takes to have at most `limit` tokens.

    Each step keeps what the steps before it did. Tools that any turn calls stay on the list, with their schemas whole.

    Raises:
        ValueError: the chat template refuses the conversation.
    """
    length = count_tokens(conversation)
    steps: list[FitStep] = []
    for step in FitStep:
        if length <= limit or step not in allowed:
            continue
        shorter = _STEPS[step](conversation, limit, count_tokens)
        if shorter != conversation:
            steps.append(step)
            conversation, length = shorter, count_tokens(shorter)
    return Fitted(conversation, length, tuple(steps))


def _shorten_descriptions(conversation: Conversation, limit: int, count_tokens: CountTokens) -> Conversation:
    return _first_that_fits(
        (replace(conversation, tools=tuple(map(shorter, conversation.tools))) for shorter in _SHORTER_TOOLS),
        limit,
        count_tokens,
    )


def _drop_distractors(conversation: Conversation, limit: int, count_tokens: CountTokens) -> Conversation:
    """Without as few uncalled tools as possible, the last of the list first; one tool stays in any case."""
    called = {call.name for call in conversation.calls}
    idle = [tool.name for tool in conversation.tools if tool.name not in called]
    most = len(idle) if called else len(idle) - 1

    def without(count: int) -> Conversation:
        gone = set(idle[len(idle) - count :])
        return replace(conversation, tools=tuple(tool for tool in conversation.tools if tool.name not in gone))

    if most <= 0:
        return conversation
    counts = range(1, most + 1)
    # Each tool makes the prompt longer, so the least number that fits is found by halving.
    index = bisect_left(counts, True, key=lambda count: count_tokens(without(count)) <= limit)
    return without(counts[min(index, most - 1)])


def _shorten_results(conversation: Conversation, limit: int, count_tokens: CountTokens) -> Conversation:
    """All tool results but those that the last turn answers, which it may have to copy from."""
    messages = conversation.messages
    newest = max((i for i, message in enumerate(messages) if message.role is Role.ASSISTANT), default=0)
    while newest > 0 and messages[newest - 1].role is Role.TOOL:
        newest -= 1
    return _first_that_fits(
        (
            replace(
                conversation,
                messages=(*(_cut_result(message, chars) for message in messages[:newest]), *messages[newest:]),
            )
            for chars in _RESULT_CHARS
        ),
        limit,
        count_tokens,
    )


_STEPS: Mapping[FitStep, Callable[[Conversation, int, CountTokens], Conversation]] = {
    FitStep.DESCRIPTIONS: _shorten_descriptions,
    FitStep.DISTRACTORS: _drop_distractors,
    FitStep.RESULTS: _shorten_results,
}


def _first_that_fits(tries: Iterable[Conversation], limit: int, count_tokens: CountTokens) -> Conversation:
    """The first of ever shorter conversations within the limit; the last where none is."""
    for shorter in tries:
        if count_tokens(shorter) <= limit:
            break
    return shorter


def _shorter_tool(tool: Tool, tool_chars: int, parameter_chars: int) -> Tool:
    """The tool with shorter words; what its schema allows stays the same."""
    parameters = _shorter_schema(tool.parameters, parameter_chars)
    return Tool(tool.name, shortened(tool.description, tool_chars), parameters)


# Thousands of conversations offer the same tools, and checking a schema takes about a millisecond.
_SHORTER_TOOLS = tuple(
    Remembered(partial(_shorter_tool, tool_chars=tool, parameter_chars=parameter))
    for tool, parameter in _DESCRIPTION_CHARS
)


def shortened(text: str, max_chars: int) -> str:
    """The first sentence where it fits, else as many whole words as do."""
    text = " ".join(text.split())
    if len(text) <= max_chars:
        return text
    sentence = _SENTENCE_END.split(text, maxsplit=1)[0]
    if len(sentence) <= max_chars:
        return sentence
    return text[: max_chars - 1].rsplit(" ", 1)[0] + _ELLIPSIS if max_chars else ""


def _shorter_schema(schema: Mapping[str, Any], chars: int) -> dict[str, Any]:
    shorter: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "description" and isinstance(value, str):
            if text := shortened(value, chars):
                shorter[key] = text
        elif key == "properties" and isinstance(value, Mapping):
            # A parameter may itself be named "description".
            shorter[key] = {
                name: _shorter_schema(inner, chars) if isinstance(inner, Mapping) else inner
                for name, inner in value.items()
            }
        elif key == "items" and isinstance(value, Mapping):
            shorter[key] = _shorter_schema(value, chars)
        else:
            shorter[key] = value
    return shorter


def _cut_result(message: Message, chars: int) -> Message:
    if message.role is not Role.TOOL or len(message.content) <= chars:
        return message
    return replace(message, content=message.content[: chars - 1] + _ELLIPSIS)
