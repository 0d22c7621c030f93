from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from export.ollama import TemplateError, go_template, modelfile, take_apart
from tests.fixtures_ollama import CONVERSATIONS, TEMPLATES, expected_text, go_json, ollama_values
from tinydispatch import formats
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Message, Role


class _Go:
    """As much of Go's template language as a Modelfile of ours uses; `test_ollama_go.py` runs Go itself."""

    def __init__(self, text: str) -> None:
        self.tokens = re.split(r"(\{\{.*?\}\})", text, flags=re.DOTALL)
        self.at = 0

    def block(self) -> list[Any]:
        nodes: list[Any] = []
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            self.at += 1
            if not token.startswith("{{"):
                nodes.append(("text", token))
                continue
            action = token[2:-2].strip()
            if action in ("end", "else"):
                nodes.append((action,))
                return nodes
            kind, _, rest = action.partition(" ")
            if kind in ("if", "range", "with"):
                body = self.block()
                other = self.block() if body.pop() == ("else",) else [("end",)]
                nodes.append((kind, rest, body, other[:-1]))
            else:
                nodes.append(("value", action))
        return nodes


def _value(expression: str, dot: Any, root: dict[str, Any]) -> Any:
    if expression.startswith('"'):
        return json.loads(expression)
    if match := re.fullmatch(r'eq (\S+) "(\w+)"', expression):
        return _value(match[1], dot, root) == match[2]
    if match := re.fullmatch(r"index (\S+) (\d+)", expression):
        return _value(match[1], dot, root)[int(match[2])]
    if match := re.fullmatch(r"slice (\S+) (\d+)", expression):
        return _value(match[1], dot, root)[int(match[2]) :]
    value = dot
    for name in expression.strip(".").split("."):
        value = value[name]
    return value


def _run(nodes: Sequence[Any], dot: Any, root: dict[str, Any]) -> str:
    text = ""
    for node in nodes:
        if node[0] == "text":
            text += node[1]
        elif node[0] == "value":
            found = _value(node[1], dot, root)
            text += found if isinstance(found, str) else go_json(found)
        else:
            kind, expression, body, other = node
            found = _value(expression, dot, root)
            if kind == "range":
                text += "".join(_run(body, item, root) for item in found)
            else:
                text += _run(body if found else other, found if kind == "with" and found else dot, root)
    return text


def as_ollama(template: str, messages: Sequence[Message], has_tools: bool) -> str:
    """A template rendered as Ollama would."""
    root = ollama_values(messages, has_tools)
    return _run(_Go(template).block(), root, root)


@pytest.mark.parametrize("has_tools", [False, True])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("chat_template", TEMPLATES.values(), ids=TEMPLATES)
def test_ollama_prints_what_the_chat_template_prints(
    chat_template: str, messages: list[Message], has_tools: bool
) -> None:
    template = go_template(take_apart(chat_template, bundled_tools()))
    assert as_ollama(template, messages, has_tools) == expected_text(chat_template, messages, has_tools)


@pytest.mark.parametrize("chat_template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_first_text_under_the_first_condition_on_calls_is_what_opens_a_call(chat_template: str) -> None:
    template = go_template(take_apart(chat_template, bundled_tools()))
    after = template.split("{{ if .ToolCalls }}")[1]
    first_text = re.sub(r"^(\{\{.*?\}\})+", "", after).split("{")[0]
    assert first_text.strip() == "<tool_call>"


def test_two_braces_in_a_tool_reach_the_model_as_they_are() -> None:
    described = [tool for tool in bundled_tools() if tool.name == "get_weather"]
    braced = [replace(described[0], description="Like {{this}}")]
    text = as_ollama(go_template(take_apart(TEMPLATES["ours"], braced)), [Message(Role.USER, "hi")], True)
    assert "Like {{this}}" in text


def test_a_modelfile_names_the_file_and_stops_at_the_turns_end() -> None:
    text = modelfile("nano-q8_0.gguf", TEMPLATES["ours"], bundled_tools(), 2048)
    assert "\nFROM ./nano-q8_0.gguf\n" in text
    assert f'\nPARAMETER stop "{formats.TURN_END}"\n' in text
    assert "\nPARAMETER num_ctx 2048\n" in text


@pytest.mark.parametrize(
    ("chat_template", "problem"),
    [
        ("{{ messages[0].role }}", "does not print 'USERtextQZ'"),
        ("You are kind.\n{% for m in messages %}[{{ m.content }}]{% endfor %}", "a system text of its own|does not"),
        ("{{ raise_exception('never') }}", "never"),
    ],
)
def test_a_template_that_is_not_made_of_turns_is_refused(chat_template: str, problem: str) -> None:
    with pytest.raises(TemplateError, match=problem):
        take_apart(chat_template, bundled_tools())
