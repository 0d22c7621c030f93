"""Renders a conversation and turns it into ids such that only the template can place special tokens.

A user's text may hold the very characters of a special token ("<|im_end|>"). Rendered and tokenized as one string, it
would end the user's turn and open another one. So each such spelling in the conversation or in a tool is replaced by
a mark before rendering, and afterwards, where the mark stands, tokenized as the ordinary text it is. The model reads
exactly what was written, in ordinary tokens.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tinydispatch import formats
from tinydispatch.ggml.runtime import Runtime
from tinydispatch.tools import Message, Role, Tool, ToolCall

# Noncharacters: Unicode reserves them for a program's own use. Where a text holds the first one all the same, that
# character is itself marked, so no text can forge a mark.
_MARK_START, _MARK_END = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"{_MARK_START}([0-9]+){_MARK_END}")

# Turns that are worth remembering, in characters; how many of them, and how many tools.
_LONG_TURN, _MAX_REMEMBERED = 256, 64


def encode_prompt(runtime: Runtime, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
    """The ids of one conversation; `PromptEncoder` is faster for many.

    Raises:
        ValueError: the file carries no template, the template refuses the conversation, or a text is not Unicode.
    """
    return PromptEncoder(runtime).encode(messages, tools)


class PromptEncoder:
    """Renders conversations for one runtime, and remembers the ids of long turns, such as the one with the tools."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._marker = _Marker(runtime.control_tokens, runtime.marker_tokens)
        self._turn = re.compile("|".join(f"(?={re.escape(text)})" for text in sorted(runtime.control_tokens)) or "$^")
        self._turns: OrderedDict[str, list[int]] = OrderedDict()
        self._tools: OrderedDict[int, tuple[Tool, Tool]] = OrderedDict()

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        """The ids of a conversation, rendered by the model file's own chat template, up to where the reply begins.

        Raises:
            ValueError: the file carries no template, the template refuses the conversation, or a text is not Unicode.
        """
        runtime, marker = self._runtime, self._marker
        if runtime.chat_template is None:
            raise ValueError("the model file carries no chat template, so a conversation cannot be rendered for it")
        names = {f"{role}_token": runtime.special_token(role) for role in ("bos", "eos")}
        text = formats.render_prompt(
            [marker.message(message) for message in messages],
            [self._marked(tool) for tool in tools],
            runtime.chat_template,
            special_tokens={name: token for name, token in names.items() if token is not None},
        )
        ids: list[int] = []
        # re.split with one group: template text and mark numbers take turns.
        for index, part in enumerate(_MARK.split(text)):
            if index % 2 == 0:
                ids += self._template_text(part)
            else:
                ids += _encode_literal(runtime, marker.spellings[int(part)])
        return ids

    def _marked(self, tool: Tool) -> Tool:
        # The tool is kept, so that its id stays its own.
        known = self._tools.get(id(tool))
        if known is None:
            known = self._tools[id(tool)] = (tool, self._marker.tool(tool))
            while len(self._tools) > _MAX_REMEMBERED:
                self._tools.popitem(last=False)
        return known[1]

    def _template_text(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are meant; tokenizers split there first, so that turns stand alone."""
        turns = self._turn.split(text)
        if all(turn in self._turns for turn in turns if len(turn) >= _LONG_TURN):
            return [token for turn in turns for token in self._turn_ids(turn)]
        whole = self._runtime.tokenize(text, parse_special=True)
        by_turn = [self._runtime.tokenize(turn, parse_special=True) for turn in turns if turn]
        # Some tokenizers take white space before a special token away: then nothing is remembered.
        if [token for ids in by_turn for token in ids] == whole:
            found = zip((turn for turn in turns if turn), by_turn, strict=True)
            self._turns |= {turn: ids for turn, ids in found if len(turn) >= _LONG_TURN}
            while len(self._turns) > _MAX_REMEMBERED:
                self._turns.popitem(last=False)
        return whole

    def _turn_ids(self, turn: str) -> list[int]:
        if turn in self._turns:
            self._turns.move_to_end(turn)
            return self._turns[turn]
        return self._runtime.tokenize(turn, parse_special=True) if turn else []


def _encode_literal(runtime: Runtime, spelling: str) -> list[int]:
    # llama.cpp makes user-defined tokens out of plain text too; cut in two, no spelling is whole any more.
    head, rest = spelling[:1], spelling[1:]
    return runtime.tokenize(head, parse_special=False) + runtime.tokenize(rest, parse_special=False)


class _Marker:
    """Replaces special tokens' spellings in everything that a caller hands in."""

    def __init__(self, control_tokens: Collection[str], marker_tokens: Collection[str]) -> None:
        everything = {_MARK_START, *control_tokens, *marker_tokens}
        # Longest first, so that a token whose text begins with another's is marked as a whole.
        self.spellings = sorted((text for text in everything if text), key=lambda text: (-len(text), text))
        self._number = {text: number for number, text in enumerate(self.spellings)}
        self._any = re.compile("|".join(map(re.escape, self.spellings)))
        # The model's own turns may hold markers such as <think>, which templates look for.
        own = [text for text in self.spellings if text == _MARK_START or text in control_tokens]
        self._control = re.compile("|".join(map(re.escape, own)))

    def _mark(self, found: re.Match[str]) -> str:
        return f"{_MARK_START}{self._number[found.group()]}{_MARK_END}"

    def _text(self, text: str) -> str:
        return self._any.sub(self._mark, text)

    def _json(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {self._text(key): self._json(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._json(item) for item in value]
        return value

    def message(self, message: Message) -> Message:
        pattern = self._control if message.role is Role.ASSISTANT else self._any
        calls = (ToolCall(self._text(call.name), self._json(call.arguments)) for call in message.tool_calls)
        return replace(
            message,
            content=pattern.sub(self._mark, message.content),
            tool_calls=tuple(calls),
            tool_name=None if message.tool_name is None else self._text(message.tool_name),
        )

    def tool(self, tool: Tool) -> Tool:
        description, parameters = self._text(tool.description), self._json(tool.parameters)
        # A new tool checks its schema, which takes longer than all the rest here.
        if description == tool.description and parameters == tool.parameters:
            return tool
        return replace(tool, description=description, parameters=parameters)
