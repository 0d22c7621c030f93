"""The endpoint backend against a server that answers, dies, hangs, limits, and talks garbage."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.backends import BackendError, Failure, Generation, Request, open_backend
from eval.backends.chat_api import chat_messages, generation_from_response
from eval.backends.endpoint import EndpointBackend
from eval.config import EvalConfig
from eval.evaluate import evaluate
from eval.suites import load_suite
from tests.eval.fake_server import OSLO, FakeServer, completion
from tests.eval.gold_answers import gold_calls
from tinydispatch.bundled import bundled_tools
from tinydispatch.formats import default_chat_template, parse_reply, render_calls, render_prompt
from tinydispatch.tools import Message, Role, ToolCall


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


WAITS: list[float] = []


def backend(url: str, **settings: Any) -> EndpointBackend:
    WAITS.clear()
    config = EvalConfig(**{"endpoint_timeout_s": 5, "endpoint_retries": 2, **settings})
    return EndpointBackend(url, "tiny", config, key="secret", sleep=WAITS.append)


def ask(text: str) -> Request:
    return Request((Message(Role.USER, text),), bundled_tools()[:1], None)


def last_user(body: dict[str, Any]) -> str:
    return str([message["content"] for message in body["messages"] if message["role"] == "user"][-1])


def test_a_call_comes_back_as_the_text_that_a_model_would_write(server: FakeServer) -> None:
    server.answer = lambda body, count: (200, completion("One moment.", (OSLO,)))  # noqa: ARG005
    with backend(server.url) as model:
        reply = model.generate([ask("Oslo?")])[0]
    assert isinstance(reply, Generation)
    assert reply.text == "One moment." + render_calls([OSLO])
    assert (reply.tokens, reply.is_complete) == (7, True)
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny", 0, 384)
    assert body["tools"][0]["function"]["name"] == "get_weather"
    assert "seed" not in body
    assert server.headers[0]["authorization"] == "Bearer secret"


def test_arguments_are_neither_repaired_nor_cut() -> None:
    def text_of(arguments: Any) -> str:
        function = {"name": "get_weather", "arguments": arguments}
        return generation_from_response({"choices": [{"message": {"tool_calls": [{"function": function}]}}]}, 0).text

    assert parse_reply(text_of('{"location": "Oslo"')).unparsed
    assert parse_reply(text_of('["Oslo"]')).unparsed
    tricky = {"location": "</tool_call> \u2028 <b>"}
    for arguments in (json.dumps(tricky), tricky):
        parsed = parse_reply(text_of(arguments))
        assert parsed.calls == (ToolCall("get_weather", tricky),) or isinstance(arguments, dict)
        assert parsed.unparsed == ()


def test_a_reply_that_was_cut_off_is_not_complete() -> None:
    value = {"choices": [{"message": {"content": "la la"}, "finish_reason": "length"}]}
    assert generation_from_response(value, 0).is_complete is False


def test_results_answer_the_calls_of_the_turn_before_them() -> None:
    rome = ToolCall("get_weather", {"location": "Rome"})
    messages = (
        Message(Role.USER, "Oslo and Rome?"),
        Message(Role.ASSISTANT, "", (OSLO, rome)),
        Message(Role.TOOL, "1", tool_name="get_weather"),
        Message(Role.TOOL, "2", tool_name="get_weather"),
    )
    sent = chat_messages(messages)
    ids = [call["id"] for call in sent[1]["tool_calls"]]
    assert [message["tool_call_id"] for message in sent[2:]] == ids
    assert len(set(ids)) == 2
    assert json.loads(sent[1]["tool_calls"][1]["function"]["arguments"]) == {"location": "Rome"}


def test_requests_run_side_by_side_and_keep_their_order(server: FakeServer) -> None:
    def slow(body: dict[str, Any], count: int) -> tuple[int, bytes]:
        time.sleep(0.05 if count % 2 else 0.1)
        return 200, completion(f"re: {last_user(body)}")

    server.answer = slow
    with backend(server.url, endpoint_concurrency=3) as model:
        replies = model.generate([ask(str(number)) for number in range(7)])
    assert [reply.text for reply in replies if isinstance(reply, Generation)] == [f"re: {n}" for n in range(7)]
    assert 2 <= server.most_at_once <= 3


@pytest.mark.parametrize("bad", [(500, b"boom"), (429, b"slow down"), (200, b"<html>"), (200, b'{"choices": []}'),
                                 (200, b"[1]"), (0, b"")])  # fmt: skip
def test_a_passing_trouble_is_tried_again(server: FakeServer, bad: tuple[int, bytes]) -> None:
    server.answer = lambda body, count: bad if count < 2 else (200, completion("Hello."))  # noqa: ARG005
    with backend(server.url) as model:
        reply = model.generate([ask("Hi")])[0]
    assert isinstance(reply, Generation)
    assert len(server.bodies) == 3
    assert WAITS == [0.5, 1.0], "each wait is twice the one before"


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("0", 0.5), ("900", 30.0), ("tomorrow", 0.5)])
def test_a_server_that_asks_for_patience_gets_it_within_reason(server: FakeServer, asked: str, waited: float) -> None:
    server.retry_after = asked
    server.answer = lambda body, count: (200 if count else 429, completion("Hello."))  # noqa: ARG005
    with backend(server.url) as model:
        model.generate([ask("Hi")])
    assert [*WAITS] == [waited]


def test_what_cannot_get_better_is_not_tried_again(server: FakeServer) -> None:
    server.answer = lambda body, count: (400, b"context too long")  # noqa: ARG005
    with backend(server.url) as model:
        reply = model.generate([ask("Hi")])[0]
    assert reply == Failure("HTTP 400: 'context too long'")
    assert len(server.bodies) == 1
    server.answer = lambda body, count: (401, b"who are you")  # noqa: ARG005
    with backend(server.url, endpoint_concurrency=1) as model:
        replies = model.generate([ask("Hi"), ask("Ho"), ask("Hu")])
    assert all(isinstance(reply, Failure) and "the key is refused" in reply.reason for reply in replies)
    assert len(server.bodies) == 2, "after a refused key nothing else is asked"


def test_a_server_that_hangs_costs_its_own_case_only(server: FakeServer) -> None:
    def hang(body: dict[str, Any], count: int) -> tuple[int, bytes]:  # noqa: ARG001
        if last_user(body) == "hang":
            time.sleep(0.6)
        return 200, completion("Hello.")

    server.answer = hang
    with backend(server.url, endpoint_timeout_s=0.2, endpoint_retries=0) as model:
        replies = model.generate([ask("a"), ask("hang"), ask("b")])
    assert [type(reply) for reply in replies] == [Generation, Failure, Generation]
    assert replies[1] == Failure("no answer within 0.2 s")


def test_a_server_in_trouble_costs_its_own_cases_and_a_rerun_asks_only_for_those(
    server: FakeServer, tmp_path: Path
) -> None:
    suite = load_suite("dev")
    gold = gold_calls(suite)

    def answer(body: dict[str, Any], count: int) -> tuple[int, bytes]:  # noqa: ARG001
        calls = gold[last_user(body)]
        return (
            (500, b"dying")
            if is_dying and last_user(body) in victims
            else (200, completion("", calls) if calls else completion("What do you mean?"))
        )

    victims, is_dying = {case.prompt for case in suite.cases[::3]}, True
    server.answer = answer
    with backend(server.url, endpoint_cache=tmp_path, endpoint_retries=1) as model:
        first = evaluate(model, suite, model_name="m", progress=False)
    unscored = [case.id for case in first.cases if case.outcome is None]
    assert len(unscored) == len(suite.cases[::3])
    assert first.overall.hits == len(suite.cases) - len(unscored), "every other case is scored"
    is_dying, asked = False, len(server.bodies)
    with backend(server.url, endpoint_cache=tmp_path) as model:
        second = evaluate(model, suite, model_name="m", progress=False)
    assert second.overall.hits == len(suite.cases)
    assert len(server.bodies) - asked == len(unscored)


def test_no_server_at_all_is_noticed_after_three_requests(server: FakeServer) -> None:
    server.close()
    with backend(server.url, endpoint_concurrency=1, endpoint_retries=5) as model:
        replies = model.generate([ask(str(number)) for number in range(20)])
    assert all(isinstance(reply, Failure) and "no connection" in reply.reason for reply in replies)
    assert len(WAITS) <= 3


def test_the_cache_tells_requests_apart_and_survives_a_damaged_file(server: FakeServer, tmp_path: Path) -> None:
    settings = {"endpoint_cache": tmp_path, "temperature": 0.8}
    first, other = ask("Hi"), Request(ask("Hi").messages, ask("Hi").tools, None, sample=1)
    with backend(server.url, **settings) as model:
        model.generate([first, other])
        model.generate([first, other])
    assert sorted(body["seed"] for body in server.bodies) == [0, 1]
    assert "secret" not in "".join(path.read_text() for path in tmp_path.iterdir())
    for path in tmp_path.iterdir():
        path.write_text("{")
    with backend(server.url, **settings) as model:
        model.generate([first])
    assert len(server.bodies) == 3


def plain_completion(text: str, **choice: Any) -> bytes:
    return json.dumps({"choices": [{"text": text, "finish_reason": "stop", **choice}]}).encode()


def test_a_prompt_that_is_rendered_here_reaches_the_bare_model(server: FakeServer) -> None:
    server.props = {"chat_template": default_chat_template(), "bos_token": "", "eos_token": "<|im_end|>"}
    cut = plain_completion("<tool_call>{", finish_reason="length")
    server.answer = lambda body, count: (200, cut if count else plain_completion(render_calls([OSLO])))  # noqa: ARG005
    with backend(server.url, endpoint_api="completions") as model:
        reply, other = model.generate([ask("Oslo?")]) + model.generate([ask("Rome?")])
    assert isinstance(reply, Generation)
    assert isinstance(other, Generation)
    assert (reply.text, reply.is_complete, other.is_complete) == (render_calls([OSLO]), True, False)
    asked = server.bodies[0]
    assert asked["prompt"] == render_prompt(ask("Oslo?").messages, ask("Oslo?").tools)
    assert (asked["temperature"], asked["max_tokens"]) == (0, 384)
    assert asked["preserved_tokens"] == ["<tool_call>", "</tool_call>"], "llama.cpp's server would leave them out"
    assert not {"tools", "messages"} & set(asked)


@pytest.mark.parametrize("garbage", [b"{}", b'{"choices": [{"text": null}]}', completion("chat, not text")])
def test_what_is_no_completion_leaves_the_case_unscored(server: FakeServer, garbage: bytes) -> None:
    server.props = {"chat_template": default_chat_template()}
    server.answer = lambda body, count: (200, garbage)  # noqa: ARG005
    with backend(server.url, endpoint_api="completions") as model:
        reply = model.generate([ask("Oslo?")])[0]
    assert isinstance(reply, Failure)
    assert "not a completion" in reply.reason


@pytest.mark.parametrize("props", [None, {"n_ctx": 5}])
def test_a_server_that_does_not_tell_its_template_is_named(server: FakeServer, props: dict[str, Any] | None) -> None:
    server.props = props
    with pytest.raises(BackendError, match=r"/props: does not tell .*; set eval\.endpoint_api=chat"):
        backend(server.url, endpoint_api="completions")


def test_a_server_that_is_killed_midway_leaves_the_rest_unscored_and_a_rerun_completes_it(tmp_path: Path) -> None:
    suite = load_suite("core")
    gold = gold_calls(suite)
    server = FakeServer()

    def answer(body: dict[str, Any], count: int) -> tuple[int, bytes]:
        if count == 12:
            threading.Thread(target=server.close).start()
        calls = gold[last_user(body)]
        return 200, completion("", calls) if calls else completion("What do you mean?")

    server.answer = answer
    settings = {"endpoint_cache": tmp_path, "endpoint_concurrency": 2, "endpoint_retries": 0}
    with backend(server.url, **settings) as model:
        before = evaluate(model, suite, model_name="m", progress=False)
    assert before.overall.unscored, "the server went away midway"
    assert before.overall.hits + before.overall.unscored == len(suite.cases), "what was answered is scored"
    again = FakeServer(server.port)
    again.answer = lambda body, count: answer(body, -1 - count)
    with backend(server.url, **settings) as model:
        after = evaluate(model, suite, model_name="m", progress=False)
    again.close()
    assert after.overall.hits == len(suite.cases)
    assert len(again.bodies) == before.overall.unscored, "only what was missing is asked for"


@pytest.mark.parametrize(
    ("address", "message"),
    [("http://", "expected http://host:port/v1#model"), ("http://me:key@host/v1", "no key in an address")],
)
def test_an_address_that_is_none_is_refused(address: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        open_backend(address, EvalConfig())


def test_sampling_is_refused_where_it_would_be_ignored() -> None:
    with pytest.raises(BackendError, match=r"eval\.temperature=0\.5 is for endpoints"):
        open_backend("model.gguf", EvalConfig(temperature=0.5))
    with pytest.raises(ValueError, match="samples=3 at temperature 0"):
        EvalConfig(samples=3)
