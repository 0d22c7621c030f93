"""Stacks behind the engine's server: each is one more model name of its OpenAI-compatible API.

What a client sends is a conversation; the tools are the stack's own and are run here. The reply is the run's last word.
Calls that wait for a person come back as a question with a token: `"tinydispatch": {"confirm": token, "agreed": true}`
in the next request decides about them.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from tinydispatch.layers.stack import RunEnd, Stack, shares
from tinydispatch.server.errors import invalid, unsupported
from tinydispatch.server.messages import read_messages
from tinydispatch.tools import Role

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# A longer body is none for a stack and goes to the server behind, which has a limit and a message of its own.
_MAX_BODY_BYTES = 4_000_000
_MAX_WAITING = 1_000


def offer_stacks(app: Any, stacks: Mapping[str, Stack]) -> None:
    """Add stacks to the application that `tinydispatch.server.app.create_app` made, before it is started.

    They stand behind its checks of keys and names, as its own routes do.
    """
    from starlette.middleware import Middleware

    app.user_middleware.append(Middleware(StackRoutes, stacks=stacks))  # the last one is the innermost


class StackRoutes:
    """ASGI middleware: answers for the model names in `stacks`, and lets everything else pass."""

    def __init__(self, app: App, stacks: Mapping[str, Stack]) -> None:
        self._app, self._stacks = app, dict(stacks)
        self._waiting: OrderedDict[str, tuple[str, RunEnd]] = OrderedDict()
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = (scope.get("method"), scope.get("path"))
        if scope["type"] == "http" and route == ("GET", "/v1/models"):
            await self._models(scope, receive, send)
        elif scope["type"] == "http" and route == ("POST", "/v1/chat/completions"):
            await self._chat(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The server's own list, and the stacks."""
        parts: list[bytes] = []
        status = 500

        async def catch(event: Event) -> None:
            nonlocal status
            status = event.get("status", status)
            parts.append(event.get("body", b""))

        await self._app(scope, receive, catch)
        body = json.loads(b"".join(parts))
        if status == 200:
            body["data"] += [_model(name) for name in self._stacks]
        await _send(send, status, body)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        data, is_whole = await _read(receive)
        value = _json(data) if is_whole else None
        if not isinstance(value, dict) or value.get("model") not in self._stacks:
            await self._app(scope, _replayed(data, receive, is_whole=is_whole), send)
            return
        end, token = await asyncio.to_thread(self.answer, value)
        body = completion(str(value["model"]), end, token)
        await (_send_events if value.get("stream") else _send)(send, 200, body)

    def answer(self, body: Mapping[str, Any]) -> tuple[RunEnd, str]:
        """Run the stack that the request names; with the token that a decision is given under, "" where none is due.

        Raises:
            ApiError: a message is none, tools are offered, or nothing waits under the token.
        """
        name = str(body["model"])
        stack = self._stacks[name]
        extra = body.get("tinydispatch") or {}
        if not isinstance(extra, dict):
            raise invalid("Invalid type for 'tinydispatch': expected an object.", "tinydispatch", "invalid_type")
        if body.get("tools"):
            raise unsupported("tools", f"the model '{name}' has tools of its own and runs them itself.")
        if "confirm" in extra:
            end = stack.resume(self._taken(name, extra["confirm"]), is_agreed=extra.get("agreed") is True)
        else:
            messages = read_messages(body.get("messages"))
            if not any(message.role is Role.USER for message in messages):
                raise invalid("Invalid 'messages': there is no message with role 'user'.", "messages", "invalid_value")
            end = stack.run(messages, str(extra.get("conversation") or ""))
        return end, self._kept(name, end) if end.waiting else ""

    def _kept(self, name: str, end: RunEnd) -> str:
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._waiting[token] = (name, end)
            while len(self._waiting) > _MAX_WAITING:
                self._waiting.popitem(last=False)
        return token

    def _taken(self, name: str, token: Any) -> RunEnd:
        with self._lock:
            found = self._waiting.get(str(token))
            if found is None or found[0] != name:
                raise invalid("Nothing waits for a decision under this token.", "tinydispatch.confirm", "invalid_value")
            del self._waiting[str(token)]
            return found[1]


def completion(model: str, end: RunEnd, token: str = "") -> dict[str, Any]:
    """A run's end as the OpenAI API writes a reply; `tinydispatch` says how it ended and who decided."""
    found = shares([end.use])
    used = end.use.values()
    prompt, written = sum(use.prompt_tokens for use in used), sum(use.completion_tokens for use in used)
    extra = {
        "state": str(end.state),
        "calls": [{"name": outcome.call.name, "status": str(outcome.status)} for outcome in end.outcomes],
        "handed_up": [{"from": str(layer), "reason": str(handover.reason)} for layer, handover in end.handovers],
        "shares": {str(layer): share for layer, share in found.items()} if found else None,
        "cost": end.cost,
        **({"confirm": token} if token else {}),
    }
    message = {"role": "assistant", "content": end.reply, "refusal": None}
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
        "tinydispatch": extra,
    }


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tinydispatch"}


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None  # the server behind says what is wrong with it


async def _read(receive: Receive) -> tuple[bytes, bool]:
    """The body, and whether it is all of it."""
    data = b""
    while len(data) <= _MAX_BODY_BYTES:
        event = await receive()
        data += event.get("body", b"")
        if event["type"] != "http.request":
            return data, False
        if not event.get("more_body"):
            return data, True
    return data, False


def _replayed(data: bytes, receive: Receive, *, is_whole: bool) -> Receive:
    """Gives what was read once more, then goes on."""
    is_given = False

    async def again() -> Event:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": data, "more_body": not is_whole}

    return again


async def _send(send: Send, status: int, body: Mapping[str, Any]) -> None:
    await _send_bytes(send, status, json.dumps(body).encode(), b"application/json")


async def _send_events(send: Send, status: int, body: Mapping[str, Any]) -> None:
    """A run has one last word and no parts, so it is one event."""
    choice = body["choices"][0]
    delta = {"index": 0, "delta": choice["message"], "finish_reason": choice["finish_reason"]}
    chunk = {**body, "object": "chat.completion.chunk", "choices": [delta]}
    data = b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n"
    await _send_bytes(send, status, data, b"text/event-stream")


async def _send_bytes(send: Send, status: int, data: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
