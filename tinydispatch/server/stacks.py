"""Stacks behind the server: each is one more model name of `/v1/chat/completions`.

What a client sends is a conversation; the tools are the stack's own and are run here. The reply is the run's last word.
Calls that wait for a person come back as a question with a token: `"tinydispatch": {"confirm": token, "agreed": true}`
in the next request of the same client decides about them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tinydispatch.layers.stack import RunEnd, Stack, shares
from tinydispatch.server.errors import invalid, queue_full, unsupported
from tinydispatch.server.holder import ModelHolder, QueueFullError, StoppingError
from tinydispatch.server.messages import read_messages
from tinydispatch.server.reply import json_bytes
from tinydispatch.tools import Message, Role, Tool

# Runs at a time, and further ones that wait: they wait for other servers and tools, and not for the model here.
_MAX_RUNS, _MAX_QUEUED = 4, 8
_MAX_WAITING = 1_000
_RETRY_S = 5.0


class HeldDispatcher:
    """The server's model as a stack's dispatch layer: its turns wait in the same queue as all others."""

    def __init__(self, holder: ModelHolder) -> None:
        self._holder = holder

    def dispatch(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, listener: Any = None
    ) -> Any:
        """A `Dispatch`.

        Raises:
            ValueError: the model is too busy, or cannot read the conversation.
        """
        try:
            future = self._holder.submit(
                lambda serving: serving.dispatcher.dispatch(messages, tools=tools, listener=listener)
            )
        except (QueueFullError, StoppingError) as error:
            raise ValueError(f"the dispatch model takes no more requests: {error}") from error
        return future.result()


class StackModels:
    """Stacks by the names that clients ask for; on threads of their own, so that slow runs delay nobody else."""

    def __init__(self, stacks: Mapping[str, Stack]) -> None:
        self._stacks = dict(stacks)
        self._pool = ThreadPoolExecutor(_MAX_RUNS, "stack")
        self._waiting: OrderedDict[str, tuple[str, str, RunEnd]] = OrderedDict()
        self._lock = threading.Lock()
        self._n_open = 0

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may ask for."""
        return tuple(self._stacks)

    def wanted(self, body: bytes) -> dict[str, Any] | None:
        """The request, where it is for a stack; None leaves it to the model, and so does what is no request."""
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) and value.get("model") in self._stacks else None

    async def chat(self, request: Request, body: dict[str, Any]) -> Response:
        """Run the stack to the request's end.

        Raises:
            ApiError: 400 for a request that no stack can take, 429 when too many runs are under way.
        """
        if self._n_open >= _MAX_RUNS + _MAX_QUEUED:
            raise queue_full(_RETRY_S)
        self._n_open += 1
        try:
            # The header itself is not kept: conversations and tokens belong to whoever holds the key.
            owner = hashlib.sha256(request.headers.get("authorization", "").encode()).hexdigest()
            run = asyncio.get_running_loop().run_in_executor(self._pool, self.answer, body, owner)
            run.add_done_callback(self._one_less)
        except BaseException:
            self._n_open -= 1
            raise
        end, token = await asyncio.shield(run)
        request.state.fields |= {"run": str(end.state), "calls": len(end.outcomes)}
        written = completion(str(body["model"]), end, token)
        if body.get("stream"):
            return Response(_events(written), media_type="text/event-stream")
        return Response(json_bytes(written), media_type="application/json")

    def _one_less(self, run: asyncio.Future[Any]) -> None:
        self._n_open -= 1
        if not run.cancelled():
            run.exception()  # whoever waited has it; nobody may be left

    def answer(self, body: Mapping[str, Any], owner: str = "") -> tuple[RunEnd, str]:
        """Run the stack that the request names; with the token that a decision is given under, "" where none is due.

        Raises:
            ApiError: a message is none, tools are offered, or nothing of this client's waits under the token.
        """
        name = str(body["model"])
        stack = self._stacks[name]
        extra = body.get("tinydispatch") or {}
        if not isinstance(extra, dict):
            raise invalid("Invalid type for 'tinydispatch': expected an object.", "tinydispatch", "invalid_type")
        if body.get("tools"):
            raise unsupported("tools", f"the model '{name}' has tools of its own and runs them itself.")
        if "confirm" in extra:
            end = stack.resume(self._taken(name, owner, extra["confirm"]), is_agreed=extra.get("agreed") is True)
        else:
            messages = read_messages(body.get("messages"))
            if not any(message.role is Role.USER for message in messages):
                raise invalid("Invalid 'messages': there is no message with role 'user'.", "messages", "invalid_value")
            conversation = extra.get("conversation")
            if not isinstance(conversation, str | None):
                raise invalid("Invalid type for 'tinydispatch.conversation': expected a string.", "tinydispatch")
            # Two clients may name theirs alike, and must not get each other's results.
            end = stack.run(messages, json.dumps([name, owner, conversation]) if conversation else "")
        return end, self._kept(name, owner, end) if end.waiting else ""

    def close(self) -> None:
        """Take no more runs; those under way end by their own limits, and nobody waits for them."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for stack in self._stacks.values():
            stack.close()

    def _kept(self, name: str, owner: str, end: RunEnd) -> str:
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._waiting[token] = (name, owner, end)
            while len(self._waiting) > _MAX_WAITING:
                self._waiting.popitem(last=False)
        return token

    def _taken(self, name: str, owner: str, token: Any) -> RunEnd:
        with self._lock:
            found = self._waiting.get(str(token))
            if found is None or found[:2] != (name, owner):
                raise invalid("Nothing waits for a decision under this token.", "tinydispatch.confirm", "invalid_value")
            del self._waiting[str(token)]
            return found[2]


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


def _events(body: Mapping[str, Any]) -> bytes:
    """A run has one last word and no parts, so it is one event."""
    choice = body["choices"][0]
    delta = {"index": 0, "delta": choice["message"], "finish_reason": choice["finish_reason"]}
    chunk = {**body, "object": "chat.completion.chunk", "choices": [delta]}
    return b"data: " + json_bytes(chunk) + b"\n\ndata: [DONE]\n\n"
