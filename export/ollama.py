"""A Modelfile for Ollama, whose TEMPLATE prints what the model's own chat template prints.

Ollama speaks Go's template language and hands a template the tools as structs that have lost half of their schemas.
So the text about the tools is taken from the model's own template, rendered once for the tools of the bundle, and put
in whole: what the model reads is what it was trained on, for these tools. Everything else is found by rendering
conversations of marked words and looking at what stands between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinydispatch import formats
from tinydispatch.tools import Message, Role, Tool, ToolCall

# Words that no template prints by itself; plain, because templates trim and escape.
_SYSTEM, _USER, _SECOND, _REPLY, _RESULT = "SYSTEMtextQZ", "USERtextQZ", "SECONDtextQZ", "REPLYtextQZ", "RESULTtextQZ"
_CALLS = (ToolCall("firstCallQZ", {"k": 1}), ToolCall("secondCallQZ", {"k": 2}))


class TemplateError(ValueError):
    """A chat template that cannot be taken apart."""


@dataclass(frozen=True)
class TurnParts:
    """What a chat template prints around a conversation's own words; pairs are what stands before and after them.

    `heads` are by (with tools, with system text); without a system text the second half is empty. `calls` are the
    text before a call's JSON, after it, and between two calls; `lead` stands between words and a call in one reply.
    """

    heads: dict[tuple[bool, bool], tuple[str, str]]
    user: tuple[str, str]
    assistant: tuple[str, str]
    result: tuple[str, str]
    calls: tuple[str, str, str]
    lead: str
    generation: str


def take_apart(chat_template: str, tools: Sequence[Tool]) -> TurnParts:
    """The parts of a Jinja chat template, for these tools.

    Raises:
        TemplateError: its text is not made of turns that stand one after the other.
    """
    read = _Reader(chat_template, tools)
    bare = read.render([_user(_USER)])
    asked = _between(bare, "", _USER), _after(bare, _USER)
    turn = asked[0] + _USER + asked[1]
    heads = {}
    for has_tools in (False, True):
        without = _before(read.render([_user(_USER)], has_tools=has_tools), turn)
        heads[has_tools, False] = (without, "")
        text = _before(read.render([Message(Role.SYSTEM, _SYSTEM), _user(_USER)], has_tools=has_tools), turn)
        heads[has_tools, True] = (_between(text, "", _SYSTEM), _after(text, _SYSTEM))
    if heads[False, False][0]:
        raise TemplateError("it prints a system text of its own")
    follow_up = asked[0] + _SECOND
    replied = _between(read.render([_user(_USER), _reply(_REPLY), _user(_SECOND)]), turn, follow_up)
    assistant = _between(replied, "", _REPLY), _after(replied, _REPLY)
    prompted = read.render([_user(_USER)], is_open=True)
    calls, lead, result = _call_parts(read, turn, follow_up, assistant)
    return TurnParts(heads, asked, assistant, result, calls, lead, _after(prompted, turn))


def modelfile(gguf_name: str, chat_template: str, tools: Sequence[Tool], n_ctx: int) -> str:
    """The text of a Modelfile for a GGUF file beside it.

    Raises:
        TemplateError: the chat template cannot be taken apart.
    """
    template = go_template(take_apart(chat_template, tools))
    if '"""' in template:
        raise TemplateError('a tool\'s description holds """, which ends a TEMPLATE')
    lines = [
        "# ollama create NAME -f Modelfile",
        f"# Whichever tools are sent, the model reads these: {', '.join(tool.name for tool in tools)}",
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{template}"""',
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {n_ctx}",
        f'PARAMETER stop "{formats.TURN_END}"',
    ]
    return "\n".join(lines) + "\n"


def go_template(parts: TurnParts) -> str:
    """The same turns in Go's template language, with Ollama's names."""
    heads = {key: tuple(map(_literal, pair)) for key, pair in parts.heads.items()}

    def head(has_tools: bool) -> str:
        (before, after), (alone, _) = heads[has_tools, True], heads[has_tools, False]
        return "{{ if .System }}" + before + "{{ .System }}" + after + "{{ else }}" + alone + "{{ end }}"

    user, result = (tuple(map(_literal, pair)) for pair in (parts.user, parts.result))
    return (
        "{{ if .Tools }}" + head(True) + "{{ else }}" + head(False) + "{{ end }}"
        "{{ range .Messages }}"
        '{{ if eq .Role "user" }}' + user[0] + "{{ .Content }}" + user[1] + "{{ end }}"
        '{{ if eq .Role "assistant" }}' + _assistant(parts) + "{{ end }}"
        '{{ if eq .Role "tool" }}' + result[0] + "{{ .Content }}" + result[1] + "{{ end }}"
        "{{ end }}" + _literal(parts.generation)
    )


def _assistant(parts: TurnParts) -> str:
    before, after = map(_literal, parts.assistant)
    opening, closing, separator = map(_literal, parts.calls)
    call = opening + '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}' + closing
    # Ollama finds what opens a call as the first text inside the first `if .ToolCalls`: no other text may stand there.
    lead = "{{ if .Content }}{{ with .ToolCalls }}" + _literal(parts.lead) + "{{ end }}{{ end }}" if parts.lead else ""
    first = "{{ with index .ToolCalls 0 }}" + call + "{{ end }}"
    others = "{{ range slice .ToolCalls 1 }}" + separator + call + "{{ end }}"
    return before + "{{ .Content }}" + lead + "{{ if .ToolCalls }}" + first + others + "{{ end }}" + after


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


class _Reader:
    def __init__(self, chat_template: str, tools: Sequence[Tool]) -> None:
        self._template, self._tools = chat_template, tools

    def render(self, messages: Sequence[Message], *, has_tools: bool = False, is_open: bool = False) -> str:
        tools = self._tools if has_tools else ()
        try:
            return formats.render_prompt(messages, tools, self._template, add_generation_prompt=is_open)
        except ValueError as error:
            raise TemplateError(str(error)) from error


def _call_parts(
    read: _Reader, turn: str, follow_up: str, assistant: tuple[str, str]
) -> tuple[tuple[str, str, str], str, tuple[str, str]]:
    def reply(content: str, calls: Sequence[ToolCall]) -> str:
        messages = [_user(_USER), _reply(content, calls), Message(Role.TOOL, _RESULT), _user(_SECOND)]
        return _between(read.render(messages), turn, follow_up)

    first, second = (f'{{"name": "{call.name}", "arguments": {{"k": {call.arguments["k"]}}}}}' for call in _CALLS)
    two, one = reply("", _CALLS), reply("", _CALLS[:1])
    opening, between = _after(_between(two, "", first), assistant[0]), _between(two, first, second)
    # Between two calls stand the end of one, what separates them, and the beginning of the next.
    if not between.endswith(opening):
        raise TemplateError(f"it begins a second call otherwise than with {opening!r}")
    rest, tail = between.removesuffix(opening), _after(one, first)
    closing = _common_start(rest, tail)
    result = _after(tail.removeprefix(closing), assistant[1])
    if _RESULT not in result:
        raise TemplateError("it prints no results of tools")
    spoken = _before(_after(reply(_REPLY, _CALLS[:1]), _REPLY), opening + first)
    calls = (opening, closing, rest.removeprefix(closing))
    return calls, spoken, (_between(result, "", _RESULT), _after(result, _RESULT))


def _user(text: str) -> Message:
    return Message(Role.USER, text)


def _reply(text: str, calls: Sequence[ToolCall] = ()) -> Message:
    return Message(Role.ASSISTANT, text, tool_calls=tuple(calls))


def _before(text: str, mark: str) -> str:
    return _between(text, "", mark)


def _after(text: str, mark: str) -> str:
    at = text.find(mark)
    if at < 0:
        raise TemplateError(f"it does not print {mark!r} where that was expected: {text[:200]!r}")
    return text[at + len(mark) :]


def _between(text: str, start: str, end: str) -> str:
    rest = _after(text, start)
    at = rest.find(end)
    if at < 0:
        raise TemplateError(f"it does not print {end!r} where that was expected: {rest[:200]!r}")
    return rest[:at]


def _common_start(first: str, second: str) -> str:
    pairs = enumerate(zip(first, second, strict=False))
    length = next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))
    return first[:length]
