"""Stacks as model names of an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.layers.kitchen import MAIL, OSLO, Kitchen, ScriptedDispatcher, stack
from tinydispatch.layers.toolbox import ToolPolicy

pytest.importorskip("starlette")

from tinydispatch.layers.serving import StackRoutes
from tinydispatch.server.errors import ApiError


async def engine(scope: Any, receive: Any, send: Any) -> None:
    """Stands for the engine's server: says what it was asked."""
    event = await receive()
    body = json.dumps({"data": [{"id": "nano"}], "asked": event["body"].decode()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
    assert scope["type"] == "http"


def ask(routes: StackRoutes, path: str, body: Any = None, method: str = "POST") -> Any:
    data = json.dumps(body).encode()
    events = [
        {"type": "http.request", "body": data[:9], "more_body": True},
        {"type": "http.request", "body": data[9:], "more_body": False},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return events.pop(0)

    async def send(event: Any) -> None:
        sent.append(event)

    asyncio.run(routes({"type": "http", "method": method, "path": path}, receive, send))
    return b"".join(event.get("body", b"") for event in sent).decode()


def chat(routes: StackRoutes, text: str, **more: Any) -> Any:
    body = {"model": "assistant", "messages": [{"role": "user", "content": text}], **more}
    return json.loads(ask(routes, "/v1/chat/completions", body))


def test_a_stack_is_one_more_model_and_other_models_pass() -> None:
    kitchen = Kitchen()
    routes = StackRoutes(engine, {"assistant": stack(kitchen, ScriptedDispatcher([OSLO], "Sunny."))})
    listed = json.loads(ask(routes, "/v1/models", method="GET"))
    assert [model["id"] for model in listed["data"]] == ["nano", "assistant"]
    reply = chat(routes, "Oslo?")
    assert reply["choices"][0]["message"]["content"] == "Sunny."
    assert (reply["model"], reply["tinydispatch"]["state"], kitchen.acted) == ("assistant", "answered", [OSLO])
    assert reply["tinydispatch"]["shares"]["dispatch"] == 1.0
    other = {"model": "nano", "messages": []}
    assert json.loads(json.loads(ask(routes, "/v1/chat/completions", other))["asked"]) == other


def test_a_stream_is_one_event() -> None:
    routes = StackRoutes(engine, {"assistant": stack(Kitchen(), ScriptedDispatcher("Hi."))})
    body = {"model": "assistant", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    events = ask(routes, "/v1/chat/completions", body).split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["delta"]["content"] == "Hi."
    assert events[1] == "data: [DONE]"


def test_a_person_decides_with_the_token_and_only_once() -> None:
    kitchen = Kitchen()
    made = stack(kitchen, ScriptedDispatcher([MAIL], "Sent."), tools=ToolPolicy())
    routes = StackRoutes(engine, {"assistant": made})
    waiting = chat(routes, "Write to jo@kew.example")
    assert waiting["tinydispatch"]["state"] == "needs_confirmation"
    decision = {"confirm": waiting["tinydispatch"]["confirm"], "agreed": True}
    assert kitchen.acted == []
    assert chat(routes, "Yes", tinydispatch=decision)["choices"][0]["message"]["content"] == "Sent."
    assert kitchen.acted == [MAIL]
    with pytest.raises(ApiError, match="Nothing waits"):
        chat(routes, "Yes", tinydispatch=decision)


def test_what_a_stack_cannot_take_is_refused() -> None:
    routes = StackRoutes(engine, {"assistant": stack(Kitchen(), ScriptedDispatcher("Hi."))})
    with pytest.raises(ApiError, match="tools of its own"):
        chat(routes, "Hi", tools=[{"type": "function"}])
    with pytest.raises(ApiError, match="no message with role 'user'"):
        routes.answer({"model": "assistant", "messages": [{"role": "system", "content": "x"}]})
