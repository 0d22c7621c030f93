"""An OpenAI-compatible endpoint as a layer, through the official `openai` client; failures are values."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tinydispatch.formats import UnparsedToolCall, json_decoder
from tinydispatch.layers.policy import EndpointConfig, PolicyError
from tinydispatch.layers.toolbox import run_with_timeout
from tinydispatch.tools import Message, Role, Tool, ToolCall

_LONGEST_WAIT_S = 20.0


class FailureKind(StrEnum):
    """Why a layer gave no reply."""

    DOWN = "down"
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    GARBAGE = "garbage"
    REFUSED = "refused"


@dataclass(frozen=True)
class LayerFailure:
    """No reply; the endpoint's key never stands in `detail`."""

    kind: FailureKind
    detail: str


@dataclass(frozen=True)
class LayerReply:
    """A reply: words, calls, or both. `unparsed` holds calls whose arguments are no JSON object."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    unparsed: tuple[UnparsedToolCall, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_complete: bool = True


@dataclass
class Endpoint:
    """One layer's model.

    Raises:
        PolicyError: the address is none, the variable of the key is not set, or the package `openai` is not installed.
    """

    config: EndpointConfig
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    # Names the endpoint in failures: its URL without what may hold a secret.
    address: str = field(init=False)
    _client: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.config.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.password:
            raise PolicyError(f"base_url: '{parts.hostname or self.config.base_url}': expected http://host:port/v1")
        self.address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        key = os.environ.get(self.config.api_key_env, "") if self.config.api_key_env else "none"
        if not key:
            raise PolicyError(f"api_key_env: the environment variable {self.config.api_key_env} is not set")
        try:
            import openai
        except ImportError as error:
            raise PolicyError("endpoints need the package 'openai': pip install 'tinydispatch[layers]'") from error
        # A proxy of the environment does not lead to this machine; retries are counted here and nowhere else.
        is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        http = openai.DefaultHttpxClient(trust_env=not is_local)
        self._client = openai.OpenAI(
            base_url=self.config.base_url,
            api_key=key,
            max_retries=0,
            timeout=self.config.timeout_s,
            http_client=http,
        )

    def complete(
        self, messages: Sequence[Message], tools: Sequence[Tool], deadline: float = float("inf")
    ) -> LayerReply | LayerFailure:
        """The model's reply. Asked a second time where the endpoint was busy, and there is time."""
        found = self._attempt(messages, tools, deadline)
        if isinstance(found, LayerReply):
            return found
        failure, wait_s = found
        if wait_s is None or wait_s > _LONGEST_WAIT_S or self.clock() + wait_s >= deadline:
            return failure
        self.sleep(wait_s)
        again = self._attempt(messages, tools, deadline)
        return again if isinstance(again, LayerReply) else again[0]

    def cost(self: Endpoint | RecordedEndpoint, reply: LayerReply | LayerFailure) -> float:
        """What the request cost; a failed one is taken to cost nothing."""
        if isinstance(reply, LayerFailure):
            return 0.0
        tokens = reply.prompt_tokens * self.config.input_price + reply.completion_tokens * self.config.output_price
        return self.config.price_per_call + tokens / 1e6

    def close(self) -> None:
        """Drop the connections."""
        self._client.close()

    def _attempt(
        self, messages: Sequence[Message], tools: Sequence[Tool], deadline: float
    ) -> LayerReply | tuple[LayerFailure, float | None]:
        """A reply; or why there is none, and after how many seconds to try once more, None for never."""
        timeout_s = min(self.config.timeout_s, deadline - self.clock())
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": chat_messages(messages),
            "max_tokens": self.config.max_tokens,
            "temperature": 0,
        }
        if tools:
            body["tools"] = [tool.to_openai() for tool in tools]
        if timeout_s <= 0:
            return LayerFailure(FailureKind.TIMEOUT, "no time is left"), None
        # The client's time-out is for each read; a server that sends a byte a second would go on for ever.
        end = run_with_timeout(
            lambda: self._client.chat.completions.with_raw_response.create(timeout=timeout_s, **body), timeout_s
        )
        if end is None:
            return LayerFailure(FailureKind.TIMEOUT, f"{self.address}: no reply within {timeout_s:g} s"), None
        if end.error is not None:
            return _failure(end.error, self.address)
        try:
            raw: Any = end.value
            return reply_from_completion(json_decoder(strict=False).decode(raw.text))
        except (ValueError, RecursionError) as error:
            return LayerFailure(FailureKind.GARBAGE, f"{self.address}: not a chat completion: {str(error)[:200]}"), 0.0


class RecordedEndpoint:
    """Plays a file of recorded replies, request by request: a stack is tried out without an account.

    A request is the user's last message. Asked once more about the same, it gives the next reply, and after the last
    one the first again.

    Raises:
        PolicyError: names the file, and what of it is no reply.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self._n_asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        try:
            value = json.loads(Path(config.replies).read_text("utf-8"))
            self._replies = {
                str(request): [_recorded(entry) for entry in entries] for request, entries in value.items()
            }
        except OSError as error:
            raise PolicyError(f"replies: {config.replies}: cannot be read: {error.strerror}") from error
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise PolicyError(f"replies: {config.replies}: {error}; expected {{request: [{{text, calls}}]}}") from error

    def complete(
        self, messages: Sequence[Message], tools: Sequence[Tool], deadline: float = float("inf")
    ) -> LayerReply | LayerFailure:
        """The next recorded reply to the user's last message."""
        del tools, deadline
        request = next((message.content for message in reversed(messages) if message.role is Role.USER), "")
        replies = self._replies.get(request)
        if not replies:
            return LayerFailure(FailureKind.DOWN, f"{self.config.replies}: no reply is recorded to {request[:100]!r}")
        with self._lock:
            number = self._n_asked[request]
            self._n_asked[request] += 1
        return replies[number % len(replies)]

    cost = Endpoint.cost

    def close(self) -> None:
        """Nothing is open."""


def open_endpoint(
    config: EndpointConfig, sleep: Callable[[float], None], clock: Callable[[], float]
) -> Endpoint | RecordedEndpoint:
    """What answers for a layer."""
    return RecordedEndpoint(config) if config.replies else Endpoint(config, sleep, clock)


def _recorded(entry: Any) -> LayerReply:
    calls = tuple(ToolCall(call["name"], call["arguments"]) for call in entry.get("calls", []))
    text = entry.get("text", "")
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)  # a plan may stand there as it is
    return LayerReply(text, calls, (), entry.get("prompt_tokens", 0), entry.get("completion_tokens", 0))


def _failure(error: Exception, address: str) -> tuple[LayerFailure, float | None]:
    import openai

    if isinstance(error, openai.APITimeoutError):
        return LayerFailure(FailureKind.TIMEOUT, f"{address}: no reply in time"), None
    if isinstance(error, openai.APIConnectionError):
        return LayerFailure(FailureKind.DOWN, f"{address}: no connection: {error.__cause__ or error}"), 0.0
    if isinstance(error, openai.APIStatusError):
        status, detail = error.status_code, f"{address}: HTTP {error.status_code}: {error.response.text[:200]!r}"
        if status == 429:
            return LayerFailure(FailureKind.RATE_LIMITED, detail), _retry_after_s(error.response.headers)
        if status >= 500:
            return LayerFailure(FailureKind.DOWN, detail), 0.5
        return LayerFailure(FailureKind.REFUSED, detail), None
    if isinstance(error, openai.OpenAIError):
        return LayerFailure(FailureKind.GARBAGE, f"{address}: {type(error).__name__}: {str(error)[:200]}"), 0.0
    raise error


def _retry_after_s(headers: Any) -> float:
    try:
        return max(0.0, float(headers.get("retry-after", 1.0)))
    except ValueError:
        return 1.0  # a date


def chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the API writes them: results answer the calls of the last assistant turn, in order and by name.

    What a tool returned stays a tool's message, whatever it says.
    """
    found: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []  # (id, tool) of calls without a result
    for position, message in enumerate(messages):
        entry: dict[str, Any] = {"role": str(message.role), "content": message.content}
        if message.tool_calls:
            waiting = [(f"call_{position}_{index}", call.name) for index, call in enumerate(message.tool_calls)]
            entry["tool_calls"] = [
                {"id": name, "type": "function", "function": {"name": call.name, "arguments": _json(call.arguments)}}
                for (name, _), call in zip(waiting, message.tool_calls, strict=True)
            ]
        if message.role is Role.TOOL:
            answered = next((item for item in waiting if message.tool_name in (None, item[1])), None)
            if answered is not None:
                waiting.remove(answered)
            entry["tool_call_id"] = answered[0] if answered is not None else f"call_{position}"
        found.append(entry)
    return found


def _json(arguments: Any) -> str:
    return json.dumps(dict(arguments), ensure_ascii=False)


def reply_from_completion(value: Any) -> LayerReply:
    """Read a chat completion.

    Raises:
        ValueError: it is none; names what is missing.
    """
    try:
        choice = value["choices"][0]
        message = choice["message"]
        content, entries = message.get("content") or "", message.get("tool_calls") or []
        parsed = [_call(entry["function"]["name"], entry["function"].get("arguments", "{}")) for entry in entries]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from error
    if not isinstance(content, str):
        raise ValueError("'content' is no string")
    usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
    tokens = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
    return LayerReply(
        text=content.strip(),
        calls=tuple(call for call in parsed if isinstance(call, ToolCall)),
        unparsed=tuple(call for call in parsed if isinstance(call, UnparsedToolCall)),
        prompt_tokens=tokens[0] if isinstance(tokens[0], int) else 0,
        completion_tokens=tokens[1] if isinstance(tokens[1], int) else 0,
        is_complete=choice.get("finish_reason") != "length",
    )


def _call(name: Any, arguments: Any) -> ToolCall | UnparsedToolCall:
    try:
        value = json_decoder().decode(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:
        return UnparsedToolCall(str(arguments)[:500], f"not JSON: {error}")
    if not isinstance(name, str) or not isinstance(value, dict):
        return UnparsedToolCall(str(arguments)[:500], "expected a name, and an object of arguments")
    return ToolCall(name, value)
