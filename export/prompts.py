"""Texts that an export is verified on: whole conversations as the model reads them, and tokenizer edge cases."""

from __future__ import annotations

import datetime as dt

from tinydispatch import formats
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Message, Role, ToolCall

_TODAY = dt.date(2026, 3, 19)

_CONVERSATIONS = (
    (
        Message(Role.USER, "What's the weather like in Reykjavík tomorrow?"),
        Message(Role.ASSISTANT, tool_calls=(ToolCall("get_weather", {"location": "Reykjavík", "date": "2026-03-20"}),)),
        Message(Role.TOOL, '{"temperature": -2.5, "sky": "snow"}', tool_name="get_weather"),
        Message(Role.ASSISTANT, "Snow and -2.5 °C."),
    ),
    (
        Message(Role.USER, "convert 12.50 EUR to JPY and remind me at 18:30 to call Zoë"),
        Message(
            Role.ASSISTANT,
            tool_calls=(
                ToolCall("convert_currency", {"amount": 12.5, "from_currency": "EUR", "to_currency": "JPY"}),
                ToolCall("set_reminder", {"text": "call Zoë", "remind_at": "2026-03-19T18:30"}),
            ),
        ),
    ),
    (
        Message(Role.USER, "mail jo@example.org: the 3 o'clock slot moved to 16:15, sorry!"),
        Message(
            Role.ASSISTANT,
            tool_calls=(
                ToolCall(
                    "send_email",
                    {"to": ["jo@example.org"], "subject": "New time", "body": "The 3 o'clock slot moved to 16:15."},
                ),
            ),
        ),
    ),
    (Message(Role.USER, "thanks, that's all"), Message(Role.ASSISTANT, "You're welcome.")),
)

# Where byte-level tokenizers differ, if they do: white space, digits, contractions, scripts, combining marks, emoji.
TOKENIZER_TEXTS = (
    "",
    " ",
    "  leading and trailing  ",
    "\t\ttabs\n\n\nand\r\nline  \n  ends \n",
    "3 33 333 3333 3.14 1,000 2026-03-19T18:30",
    "I'm you're HE'LL we'Ve 'tis o'clock ''''",
    "naïve café Zoë — “quotes” … ½ €5",
    "cafe\u0301 combining, कान्हा, កាន់តែ",
    "日本語と中文 한국어 العربية עברית Ελληνικά",
    "🚀😶\u200d🌫️ 👩🏽\u200d💻 🇳🇴",
    '{"name": "get_weather", "arguments": {"location": "A\\"B\\\\C"}}',
    "<|im_start|>user\nhi<|im_end|>\n<tool_call>{}</tool_call><|endoftext|>",
    "<|im_start <tool_call <|im_end|",
    "\u00a0\u2003\u3000\ufeff\u0000\u0007",
    "------======= ``` !!!??? ((([[[",
)


def verification_prompts(chat_template: str) -> tuple[str, ...]:
    """Four conversations over the bundled tools, with their replies, as the checkpoint's own template renders them.

    Raises:
        ValueError: the template cannot render them.
    """
    return tuple(
        formats.render_prompt(
            formats.with_reference_date(messages, _TODAY),
            bundled_tools(),
            chat_template,
            add_generation_prompt=False,
        )
        for messages in _CONVERSATIONS
    )
