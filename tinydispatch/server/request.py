"""The body of a chat request → `ChatRequest`: everything is checked before the request waits for the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from tinydispatch.decoding.reply import ToolChoice
from tinydispatch.server import parameters
from tinydispatch.server.errors import invalid, unknown_model, wrong_type
from tinydispatch.server.messages import read_messages
from tinydispatch.server.offer import ToolReader, read_offer
from tinydispatch.server.settings import ServerSettings
from tinydispatch.tools import Message, Tool

_read_tools = ToolReader()


@dataclass(frozen=True)
class ChatRequest:
    """A request that can be computed.

    `tools` is what the reply may call: for a named `tool_choice`, that tool alone, and `is_named` is True.
    `stop` are texts before which a reply in words ends. `session` groups the requests of one dialogue in the log;
    `may_log` is False where the client said `"store": false`.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    choice: ToolChoice = ToolChoice.AUTO
    is_named: bool = False
    is_parallel: bool = True
    max_new_tokens: int = 384
    is_stream: bool = False
    includes_usage: bool = False
    stop: tuple[str, ...] = ()
    session: str | None = None
    may_log: bool = True


def read_request(body: bytes, settings: ServerSettings) -> ChatRequest:
    """Read and check a body of `/v1/chat/completions`.

    Raises:
        ApiError: 400 names the key at fault; 404 for another model.
    """
    value = _json(body)
    _check_model(value.get("model"), settings.model_name)
    parameters.check_parameters(value)
    tools = _tools(value, settings)
    offer = read_offer(tools, value.get("tool_choice"))
    return ChatRequest(
        messages=read_messages(parameters.required(value, "messages")),
        tools=offer.tools,
        choice=offer.choice,
        is_named=offer.is_named,
        is_parallel=parameters.flag(value, "parallel_tool_calls", True) and not offer.is_named,
        max_new_tokens=parameters.max_new_tokens(value, settings.limits.max_new_tokens),
        is_stream=parameters.flag(value, "stream", False),
        includes_usage=parameters.includes_usage(value),
        stop=parameters.stops(value.get("stop")),
        session=parameters.session(value),
        may_log=parameters.flag(value, "store", True),
    )


def _tools(value: Mapping[str, Any], settings: ServerSettings) -> tuple[Tool, ...]:
    if value.get("tools") is not None:
        return _read_tools(value["tools"], settings.limits.max_tools)
    if settings.tools is None and value.get("parallel_tool_calls") is not None:
        raise invalid("'parallel_tool_calls' is only allowed when 'tools' are specified.", "parallel_tool_calls")
    return settings.tools or ()


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        # Half of a surrogate pair passes as JSON and is no text.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise invalid(
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
            f"library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON: {error})"
        ) from error
    if not isinstance(value, dict):
        raise wrong_type("body", "an object", value)
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _check_model(name: Any, served: str) -> None:
    if name is None:
        raise invalid("you must provide a model parameter")
    if not isinstance(name, str):
        raise wrong_type("model", "a string", name)
    if name != served:
        raise unknown_model(name)
