"""Stacks as model names of the server: who may use them, what they share, and whom they delay."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.fixtures_server import MODEL, ONE_CALL, running
from tests.layers.kitchen import MAIL, OSLO, Kitchen, ScriptedDispatcher, stack
from tinydispatch.layers.policy import Escalation
from tinydispatch.layers.toolbox import ToolPolicy
from tinydispatch.server.holder import ModelHolder
from tinydispatch.server.settings import Limits
from tinydispatch.server.stacks import HeldDispatcher, StackModels

ASKING = ToolPolicy()


def one(kitchen: Kitchen, dispatcher: Any, **policy: Any) -> Callable[[ModelHolder], StackModels]:
    return lambda _: StackModels({"assistant": stack(kitchen, dispatcher, **policy)})


def ask(url: str, text: str = "Oslo?", headers: Any = None, **more: Any) -> httpx.Response:
    body = {"model": "assistant", "messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def test_a_stack_is_one_more_model_name_and_the_model_answers_beside_it() -> None:
    kitchen = Kitchen()
    with running(stacks=one(kitchen, ScriptedDispatcher([OSLO], "Sunny."))) as server:
        listed = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert [model["id"] for model in listed] == [MODEL, "assistant"]
        assert httpx.get(f"{server.url}/v1/models/assistant").json()["id"] == "assistant"
        reply = ask(server.url).json()
        assert reply["choices"][0]["message"]["content"] == "Sunny."
        assert (reply["model"], reply["tinydispatch"]["state"], kitchen.acted) == ("assistant", "answered", [OSLO])
        assert server.post(server.ask()).json()["choices"][0]["message"]["tool_calls"]
        other = ask(server.url, model="other")
        assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


def test_a_stack_takes_turns_with_the_servers_own_model() -> None:
    kitchen = Kitchen()
    sure = Escalation(min_confidence=0.0)
    make = lambda holder: StackModels({"assistant": stack(kitchen, HeldDispatcher(holder), escalation=sure)})  # noqa: E731
    with running(ONE_CALL, stacks=make) as server:
        assert ask(server.url).json()["tinydispatch"]["calls"] == [{"name": "get_weather", "status": "done"}]
    assert kitchen.acted == [OSLO]


def test_a_stream_is_one_event() -> None:
    with running(stacks=one(Kitchen(), ScriptedDispatcher("Hi."))) as server:
        assert '"content": "Hi."' in (text := ask(server.url, stream=True).text) or '"content":"Hi."' in text
        assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain", "origin": "https://evil.example"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"host": "evil.example"}, 403),
    ],
)
def test_a_foreign_page_cannot_run_a_tool(headers: dict[str, str], status: int) -> None:
    kitchen = Kitchen()
    with running(stacks=one(kitchen, ScriptedDispatcher([MAIL], "Sent."))) as server:
        assert ask(server.url, "Write to jo@kew.example", headers).status_code == status
    assert kitchen.acted == []


def test_clients_with_the_same_conversation_do_not_share_results_or_tokens() -> None:
    kitchen = Kitchen(send_email=[{"id": 1}, {"id": 2}])
    script = [[MAIL], [MAIL], "One.", "Two."]
    named = {"conversation": "c"}
    with running(stacks=one(kitchen, ScriptedDispatcher(*script), tools=ASKING)) as server:
        first, second = {"authorization": "Bearer a"}, {"authorization": "Bearer b"}
        words = "Write to jo@kew.example"
        tokens = [
            ask(server.url, words, who, tinydispatch=named).json()["tinydispatch"]["confirm"] for who in (first, second)
        ]
        stolen = ask(server.url, "Yes", second, tinydispatch={"confirm": tokens[0], "agreed": True})
        assert (stolen.status_code, kitchen.acted) == (400, [])
        for who, token in zip((first, second), tokens, strict=True):
            assert ask(server.url, "Yes", who, tinydispatch={"confirm": token, "agreed": True}).status_code == 200
        assert kitchen.acted == [MAIL, MAIL], "the second is no replay of the first"
        again = ask(server.url, "Yes", first, tinydispatch={"confirm": tokens[0], "agreed": True})
        assert again.status_code == 400, "a token decides once"


def test_what_a_stack_cannot_take_is_refused() -> None:
    with running(stacks=one(Kitchen(), ScriptedDispatcher("Hi."))) as server:
        assert "tools of its own" in ask(server.url, tools=[{"type": "function"}]).text
        assert ask(server.url, messages=[{"role": "system", "content": "x"}]).status_code == 400
        assert ask(server.url, tinydispatch={"conversation": 5}).status_code == 400
        assert ask(server.url, tinydispatch=[1]).status_code == 400


def test_a_body_that_stalls_is_given_up() -> None:
    limits = Limits(body_timeout_s=0.3)
    with running(limits=limits, stacks=one(Kitchen(), ScriptedDispatcher("Hi."))) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as open_one:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            open_one.sendall(f'{head}content-length: 99\r\n\r\n{{"model": "assistant"'.encode())
            assert b" 408 " in open_one.recv(4096)


def test_slow_runs_delay_no_plain_request_and_too_many_are_answered_429() -> None:
    kitchen = Kitchen(send_email="hang after acting")
    dispatcher = ScriptedDispatcher(*[[MAIL]] * 40)
    with running(stacks=one(kitchen, dispatcher)) as server, ThreadPoolExecutor(16) as clients:
        runs = [clients.submit(ask, server.url, "Write to jo@kew.example") for _ in range(14)]
        refused = [run for run in runs if _ends_early(run)]
        assert len(refused) == 2, "4 run, 8 wait"
        assert {run.result().status_code for run in refused} == {429}
        assert server.post(server.ask()).status_code == 200, "while all of them hang"
        kitchen.release.set()
        assert {run.result().status_code for run in runs if run not in refused} == {200}


def _ends_early(run: Any) -> bool:
    ended = threading.Event()
    run.add_done_callback(lambda _: ended.set())
    return ended.wait(1.0)
