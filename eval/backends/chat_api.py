"""Requests as OpenAI's chat API writes them, and its answers as text that the scorer reads."""

from __future__ import annotations

import json
from typing import Any

from eval.backends.base import Generation, Request
from eval.config import EvalConfig
from tinydispatch.formats import CALL_END, CALL_START, json_decoder, with_reference_date
from tinydispatch.tools import Message, Role


class GarbageError(ValueError):
    """A body that is no chat completion; the message names the key."""


class ChatApi:
    """OpenAI's chat completions: the server shows the tools to its model and reads the calls out of the reply."""

    path = "/chat/completions"

    def __init__(self, model: str, config: EvalConfig) -> None:
        self._model, self._config = model, config

    def body(self, request: Request) -> dict[str, Any]:
        """The body of a chat completion."""
        messages = chat_messages(with_reference_date(request.messages, request.reference_date))
        body = {"model": self._model, "messages": messages, **sampling_settings(request, self._config)}
        if request.tools:
            body["tools"] = [tool.to_openai() for tool in request.tools]
            body["parallel_tool_calls"] = True
        return body

    def generation(self, value: Any, latency_s: float) -> Generation:
        """A reply as a model would have written it, see `generation_from_response`."""
        return generation_from_response(value, latency_s)


def sampling_settings(request: Request, config: EvalConfig) -> dict[str, Any]:
    """Replies are greedy unless `eval.temperature` says otherwise."""
    settings: dict[str, Any] = {"max_tokens": config.max_new_tokens, "temperature": config.temperature}
    if config.temperature > 0:
        settings["seed"] = config.seed + request.sample
    return settings


def chat_messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Messages with call ids: results answer the calls of the last assistant turn, in their order and by name."""
    found: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []  # (id, tool) of calls without a result
    for position, message in enumerate(messages):
        entry: dict[str, Any] = {"role": str(message.role), "content": message.content}
        if message.tool_calls:
            waiting = [(f"call_{position}_{index}", call.name) for index, call in enumerate(message.tool_calls)]
            entry["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
                }
                for (call_id, _), call in zip(waiting, message.tool_calls, strict=True)
            ]
        if message.role is Role.TOOL:
            answered = next((item for item in waiting if message.tool_name in (None, item[1])), None)
            if answered is not None:
                waiting.remove(answered)
            entry["tool_call_id"] = answered[0] if answered is not None else f"call_{position}"
        found.append(entry)
    return found


def generation_from_response(value: Any, latency_s: float) -> Generation:
    """A reply as a model would have written it: text, then each call between call markers.

    Arguments that are no JSON object are left as they came, so that the scorer finds them unparseable.

    Raises:
        GarbageError: not a chat completion.
    """
    try:
        choice = value["choices"][0]
        message = choice["message"]
        content, calls = message.get("content") or "", message.get("tool_calls") or []
        text = content + "".join(_call_text(call["function"]) for call in calls)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise GarbageError(f"{type(error).__name__} {error}") from error
    return Generation(text, latency_s, tokens_of(value), is_complete=choice.get("finish_reason") != "length")


def tokens_of(value: dict[str, Any]) -> int:
    """How many tokens the server says it generated; 0 where it does not say."""
    usage = value.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else 0


def _call_text(function: dict[str, Any]) -> str:
    name, arguments = function["name"], function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    try:
        json_decoder().decode(arguments)
        # A marker inside a string would end the call.
        arguments = arguments.replace(CALL_END, CALL_END.replace("<", "\\u003c"))
    except (ValueError, RecursionError):
        pass  # not JSON: shown to the scorer as it is
    return f'{CALL_START}{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}{CALL_END}'
