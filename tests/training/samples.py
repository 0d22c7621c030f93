"""Conversations that tests train on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Conversation, Message, Role, ToolCall
from training.config import RunConfig

MakeRun = Callable[..., RunConfig]


def conversation(*messages: Message) -> Conversation:
    """With the first two bundled tools and a reference date."""
    return Conversation(tuple(messages), bundled_tools()[:2], "test", "single_call", "d1", dt.date(2026, 3, 19))


def weather_call(location: str) -> ToolCall:
    return ToolCall("get_weather", {"location": location})


def simple_conversation(location: str) -> Conversation:
    user = Message(Role.USER, f"What's the weather in {location}?")
    return conversation(user, Message(Role.ASSISTANT, tool_calls=(weather_call(location),)))
