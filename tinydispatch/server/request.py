"""The body of a chat request → `ChatRequest`: everything is checked before the request waits for the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NoReturn

from tinydispatch.decoding.reply import ToolChoice
from tinydispatch.server.errors import ApiError, invalid, unknown_model, unsupported, wrong_type
from tinydispatch.server.messages import read_messages
from tinydispatch.server.settings import ServerSettings
from tinydispatch.tools import Message, Tool, ToolError

# What changes the wording of replies in other models: decoding is greedy here, so they are checked and change nothing.
_WITHOUT_EFFECT = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_MAX_STOPS = 4


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
    _check_unsupported(value)
    request = ChatRequest(
        messages=read_messages(_required(value, "messages")),
        tools=_tools(value.get("tools"), settings),
        is_parallel=_optional(value, "parallel_tool_calls", bool, "a boolean", True),
        max_new_tokens=_max_new_tokens(value, settings.limits.max_new_tokens),
        is_stream=_optional(value, "stream", bool, "a boolean", False),
        includes_usage=_includes_usage(value),
        stop=_stop(value.get("stop")),
        session=_session(value),
        may_log=_optional(value, "store", bool, "a boolean", True),
    )
    if value.get("tools") is None and value.get("parallel_tool_calls") is not None and not request.tools:
        raise invalid("'parallel_tool_calls' is only allowed when 'tools' are specified.", "parallel_tool_calls")
    return _with_choice(request, value.get("tool_choice"))


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


def _required(value: Mapping[str, Any], key: str) -> Any:
    if value.get(key) is None:
        raise invalid(f"Missing required parameter: '{key}'.", key, "missing_required_parameter")
    return value[key]


def _optional(value: Mapping[str, Any], key: str, kind: type, expected: str, default: Any) -> Any:
    found = value.get(key)
    if found is None:
        return default
    if not isinstance(found, kind) or (kind is not bool and isinstance(found, bool)):
        raise wrong_type(key, expected, found)
    return found


def _check_unsupported(value: Mapping[str, Any]) -> None:
    for key, (low, high) in _WITHOUT_EFFECT.items():
        number = _optional(value, key, (int | float), "a decimal number", low)  # type: ignore[arg-type]
        if not low <= number <= high:
            message = f"Invalid '{key}': expected a value between {low:g} and {high:g}, but got {number} instead."
            raise invalid(message, key, "decimal_out_of_range")
    if _optional(value, "n", int, "an integer", 1) != 1:
        raise unsupported("n", "decoding is greedy, so 'n' can only be 1.")
    if value.get("logprobs") or value.get("top_logprobs"):
        raise unsupported("logprobs", "'logprobs' is not returned by this server.")
    for key in ("functions", "function_call"):
        if value.get(key) is not None:
            raise unsupported(key, f"'{key}' is not supported with this model. Use 'tools' and 'tool_choice' instead.")
    form = _optional(value, "response_format", dict, "an object", {"type": "text"})
    if form.get("type") != "text":
        raise unsupported("response_format", "only 'response_format' of type 'text' is supported; use a tool.")


def _max_new_tokens(value: Mapping[str, Any], limit: int) -> int:
    # Agent frameworks send generous defaults, so more than the limit is capped; a cut reply says finish_reason length.
    for key in ("max_completion_tokens", "max_tokens"):
        number: int | None = _optional(value, key, int, "an integer", None)
        if number is None:
            continue
        if number < 1:
            raise invalid(
                f"Invalid '{key}': integer below minimum value. Expected a value >= 1, but got {number} instead.",
                key,
                "integer_below_min_value",
            )
        return min(number, limit)
    return limit


def _includes_usage(value: Mapping[str, Any]) -> bool:
    options = _optional(value, "stream_options", dict, "an object", None)
    if options is None:
        return False
    if value.get("stream") is not True:
        raise invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
    found = options.get("include_usage")
    if not isinstance(found, bool | None):
        raise wrong_type("stream_options.include_usage", "a boolean", found)
    return bool(found)


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise wrong_type("stop", "a string or an array of strings", value)
    if len(texts) > _MAX_STOPS:
        raise _too_many("stop", len(texts), _MAX_STOPS)
    return tuple(texts)


def _session(value: Mapping[str, Any]) -> str | None:
    metadata = _optional(value, "metadata", dict, "an object", {})
    session = metadata.get("session_id")
    if session is not None and not isinstance(session, str):
        raise wrong_type("metadata.session_id", "a string", session)
    return session


def _too_many(param: str, number: int, limit: int) -> ApiError:
    return invalid(
        f"Invalid '{param}': array too long. Expected an array with maximum length {limit}, but got an array with "
        f"length {number} instead.",
        param,
        "array_above_max_length",
    )


def _tools(value: Any, settings: ServerSettings) -> tuple[Tool, ...]:
    if value is None:
        return settings.tools or ()
    if not isinstance(value, list):
        raise wrong_type("tools", "an array of objects", value)
    if not value:
        raise invalid(
            "Invalid 'tools': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "tools",
            "empty_array",
        )
    if len(value) > settings.limits.max_tools:
        raise _too_many("tools", len(value), settings.limits.max_tools)
    return _checked_tools(json.dumps(value, sort_keys=False))


@lru_cache(maxsize=64)
def _checked_tools(text: str) -> tuple[Tool, ...]:
    """Remembered: most requests bring the same tools again, and checking their schemas may take longer than a call."""
    tools: list[Tool] = []
    for index, entry in enumerate(json.loads(text)):
        where = f"tools[{index}]"
        if not isinstance(entry, dict):
            raise wrong_type(where, "an object", entry)
        if entry.get("type") != "function":
            raise invalid(
                f"Invalid value at '{where}.type': {entry.get('type')!r}. Supported values are: 'function'.",
                f"{where}.type",
                "invalid_value",
            )
        if not isinstance(entry.get("function"), dict):
            raise wrong_type(f"{where}.function", "an object", entry.get("function"))
        try:
            tool = Tool.from_openai(entry)
        except ToolError as error:
            raise invalid(
                f"Invalid '{where}.function': {error}.", f"{where}.function", "invalid_function_parameters"
            ) from error
        if any(tool.name == other.name for other in tools):
            raise invalid(f"Invalid '{where}.function.name': '{tool.name}' occurs twice.", f"{where}.function.name")
        tools.append(tool)
    return tuple(tools)


def _with_choice(request: ChatRequest, choice: Any) -> ChatRequest:
    if choice is None:
        return request
    if choice == ToolChoice.NONE:
        return replace(request, choice=ToolChoice.NONE)
    if not request.tools:
        raise invalid("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
    if isinstance(choice, str):
        if choice not in list(ToolChoice):
            raise invalid(
                f"Invalid value: '{choice}'. Supported values are: 'none', 'auto', and 'required'.",
                "tool_choice",
                "invalid_value",
            )
        return replace(request, choice=ToolChoice(choice))
    if not isinstance(choice, dict):
        raise wrong_type("tool_choice", "a string or an object", choice)
    readers: dict[Any, Callable[[ChatRequest, Any], ChatRequest]] = {"function": _named, "allowed_tools": _allowed}
    reader = readers.get(choice.get("type"))
    if reader is None:
        raise invalid(
            f"Invalid value at 'tool_choice.type': {choice.get('type')!r}. Supported values are: 'function' and "
            "'allowed_tools'.",
            "tool_choice.type",
            "invalid_value",
        )
    return reader(request, choice.get(choice["type"]))


def _named(request: ChatRequest, function: Any) -> ChatRequest:
    name = function.get("name") if isinstance(function, dict) else None
    tools = (_tool_named(request, name, "tool_choice.function.name"),)
    return replace(request, tools=tools, choice=ToolChoice.REQUIRED, is_named=True, is_parallel=False)


def _allowed(request: ChatRequest, allowed: Any) -> ChatRequest:
    where = "tool_choice.allowed_tools"
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list) or not allowed["tools"]:
        raise wrong_type(f"{where}.tools", "a non-empty array of objects", allowed)
    if allowed.get("mode") not in ("auto", "required"):
        raise invalid(f"Invalid value at '{where}.mode': expected 'auto' or 'required'.", f"{where}.mode")
    functions = [entry.get("function") if isinstance(entry, dict) else None for entry in allowed["tools"]]
    names = [function.get("name") if isinstance(function, dict) else None for function in functions]
    tools = tuple(_tool_named(request, name, f"{where}.tools") for name in names)
    return replace(request, tools=tools, choice=ToolChoice(allowed["mode"]))


def _tool_named(request: ChatRequest, name: Any, where: str) -> Tool:
    tool = next((tool for tool in request.tools if tool.name == name), None)
    if tool is None:
        raise invalid(f"Tool choice '{name}' not found in 'tools' parameter.", where)
    return tool
