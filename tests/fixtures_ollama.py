"""Conversations and templates as Ollama handles them: its values, and what Go makes of arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tinydispatch import formats
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Message, Role, ToolCall

_CALL = ToolCall("get_weather", {"location": "Zoë's {{place}}", "date": "<soon>"})
_TWO = (_CALL, ToolCall("get_current_time", {"timezone": "Europe/Oslo"}))
_QWEN_STYLE = (
    "{%- if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% if m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{% if (loop.first and m.content) or not loop.first %}{{ '\\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"ours": formats.default_chat_template(), "qwen's": _QWEN_STYLE}


def go_json(value: object) -> str:
    """JSON as Go writes it, and so Ollama prints the arguments of earlier calls: compact, keys sorted."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def ollama_values(messages: Sequence[Message], has_tools: bool) -> dict[str, Any]:
    """What Ollama hands to a template."""
    return {
        "System": "\n\n".join(message.content or "" for message in messages if message.role is Role.SYSTEM),
        "Tools": ["any"] if has_tools else [],
        "Messages": [
            {
                "Role": str(message.role),
                "Content": message.content or "",
                "ToolCalls": [
                    {"Function": {"Name": call.name, "Arguments": dict(call.arguments)}} for call in message.tool_calls
                ],
            }
            for message in messages
        ],
    }


def expected_text(chat_template: str, messages: Sequence[Message], has_tools: bool) -> str:
    """What the model's own template prints, but for the arguments of earlier calls, which Go spells otherwise."""
    text = formats.render_prompt(messages, bundled_tools() if has_tools else [], chat_template)
    for call in (call for message in messages for call in message.tool_calls):
        spelled = json.dumps(dict(call.arguments), ensure_ascii=False)
        assert spelled in text
        text = text.replace(spelled, go_json(dict(call.arguments)))
    return text


CONVERSATIONS = {
    "a question": [Message(Role.USER, "hi {{ .Tools }}")],
    "with a system text": [Message(Role.SYSTEM, "Today is a day."), Message(Role.USER, "hi")],
    "words and a call": [
        Message(Role.USER, "hi"),
        Message(Role.ASSISTANT, "Let me see.", tool_calls=(_CALL,)),
        Message(Role.TOOL, '{"ok": true}'),
        Message(Role.USER, "and?"),
    ],
    "two calls": [
        Message(Role.SYSTEM, "S"),
        Message(Role.USER, "hi"),
        Message(Role.ASSISTANT, tool_calls=_TWO),
        Message(Role.TOOL, "12"),
        Message(Role.ASSISTANT, "Twelve."),
        Message(Role.USER, "thanks"),
    ],
}
