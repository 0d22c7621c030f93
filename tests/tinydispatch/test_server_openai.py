"""What the official client sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.fixtures_server import MODEL, ONE_CALL, OSLO, ROME, TOOLS, TWO_CALLS, Running, events, running
from tinydispatch.server.settings import Limits

ASK: Any = [{"role": "user", "content": "Oslo and Rome?"}]
KEY = "a-key-of-enough-letters"


@pytest.fixture(scope="module")
def caller() -> Iterator[Running]:
    with running(TWO_CALLS) as server:
        yield server


@pytest.fixture(scope="module")
def speaker() -> Iterator[Running]:
    with running(" Which city do you mean?\nOslo, say. ") as server:
        yield server


def _create(server: Running, **more: Any) -> Any:
    return server.openai().chat.completions.create(**{"model": MODEL, "messages": ASK, "tools": TOOLS, **more})


def _calls(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


BOTH = [("get_weather", dict(OSLO.arguments)), ("get_weather", dict(ROME.arguments))]


def test_parallel_calls_have_ids_a_finish_reason_and_usage(caller: Running) -> None:
    found = _create(caller)
    message = found.choices[0].message
    assert _calls(message) == BOTH
    assert message.content is None
    assert found.choices[0].finish_reason == "tool_calls"
    assert len({call.id for call in message.tool_calls}) == 2
    assert all(call.id.startswith("call_") and call.type == "function" for call in message.tool_calls)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.usage.completion_tokens > 20
    assert (found.object, found.model, found.system_fingerprint) == ("chat.completion", MODEL, "fp_first")
    assert 0 <= found.tinydispatch["confidence"] <= 1


def test_a_stream_adds_up_to_the_reply_that_is_not_streamed(caller: Running) -> None:
    whole = _create(caller)
    chunks = list(_create(caller, stream=True, stream_options={"include_usage": True}))
    calls: dict[int, dict[str, str]] = {}
    for chunk in chunks[:-1]:
        for delta in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(delta.index, {"id": delta.id, "name": delta.function.name, "arguments": ""})
            call["arguments"] += delta.function.arguments
    assert [(call["name"], json.loads(call["arguments"])) for call in calls.values()] == BOTH
    assert len({call["id"] for call in calls.values()}) == 2
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "tool_calls"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {(chunk.id, chunk.object) for chunk in chunks} == {(chunks[0].id, "chat.completion.chunk")}


def test_the_clients_own_accumulator_reads_a_stream(caller: Running) -> None:
    with caller.openai().chat.completions.stream(model=MODEL, messages=ASK, tools=TOOLS) as stream:
        message = stream.get_final_completion().choices[0].message
    assert _calls(message) == BOTH


def test_a_stream_ends_in_done_and_says_nothing_of_usage_unasked(caller: Running) -> None:
    response = caller.post(caller.ask(stream=True))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert not any("usage" in chunk for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)


def test_one_call_where_parallel_calls_are_not_wanted(caller: Running) -> None:
    found = _create(caller, parallel_tool_calls=False)
    assert _calls(found.choices[0].message) == BOTH[:1]
    assert found.choices[0].finish_reason == "tool_calls"


def test_a_named_tool_is_called_and_the_reason_is_stop(speaker: Running) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    found = _create(speaker, tool_choice=choice).choices[0]
    if found.finish_reason != "length":
        assert [name for name, _ in _calls(found.message)] == ["get_weather"]
        assert found.finish_reason == "stop"


def test_none_forbids_calls(caller: Running) -> None:
    found = _create(caller, tool_choice="none", max_tokens=8).choices[0]
    assert (found.message.tool_calls, found.finish_reason) == (None, "stop")


def test_words_are_streamed_as_they_are_written(speaker: Running) -> None:
    whole = _create(speaker).choices[0]
    assert (whole.message.content, whole.finish_reason) == ("Which city do you mean?\nOslo, say.", "stop")
    texts = [chunk.choices[0].delta.content or "" for chunk in _create(speaker, stream=True)]
    assert "".join(texts) == whole.message.content
    assert sum(bool(text) for text in texts) > 10


def test_a_reply_ends_before_a_stop(speaker: Running) -> None:
    for stream in (False, True):
        found = _create(speaker, stop=["mean", "zzz"], stream=stream)
        choices = [chunk.choices[0] for chunk in found] if stream else [found.choices[0]]
        texts = [(choice.delta if stream else choice.message).content or "" for choice in choices]
        assert "".join(texts) == "Which city do you"
        assert choices[-1].finish_reason == "stop"


def test_without_tools_the_reply_is_words(speaker: Running) -> None:
    found = speaker.openai().chat.completions.create(model=MODEL, messages=ASK)
    assert found.choices[0].message.content.startswith("Which city")


def test_the_servers_own_tools_stand_in_for_those_that_a_request_leaves_out() -> None:
    from tests.fixtures_playback import WEATHER

    with running(ONE_CALL, tools=(WEATHER,)) as server:
        found = server.openai().chat.completions.create(model=MODEL, messages=ASK)
    assert _calls(found.choices[0].message) == BOTH[:1]


def test_a_conversation_goes_on_with_the_calls_results(caller: Running) -> None:
    message = _create(caller).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "12 °C"} for call in message.tool_calls]
    again = _create(caller, messages=[*ASK, message, *results, *ASK])
    assert again.usage.prompt_tokens > 100
    assert "12 °C" in caller.runtime.detokenize(caller.runtime.cached_ids)


def test_a_reply_that_is_cut_says_length_and_shows_no_half_call(caller: Running) -> None:
    found = _create(caller, max_completion_tokens=60).choices[0]
    assert found.finish_reason == "length"
    assert _calls(found.message) in ([], BOTH[:1])
    streamed = events(caller.post(caller.ask(stream=True, max_tokens=60)))
    assert streamed[-2]["choices"][0]["finish_reason"] == "length"


def test_models_lists_the_one_in_service(caller: Running) -> None:
    client = caller.openai()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"


def test_an_unknown_model_is_not_found(caller: Running) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        _create(caller, model="gpt-5")
    error = caught.value
    assert (error.type, error.param, error.code) == ("invalid_request_error", "model", "model_not_found")
    assert error.message.count(f"The model `gpt-5` does not exist here: this server has `{MODEL}`.") == 1
    assert error.request_id is not None


def test_a_wrong_key_a_missing_key_and_the_right_one() -> None:
    with running(key=KEY) as server:
        with pytest.raises(openai.AuthenticationError) as caught:
            server.openai("another-key-that-is-wrong").chat.completions.create(model=MODEL, messages=ASK)
        assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")
        assert "another-key" not in caught.value.message
        for path in ("/v1/models", "/metrics", "/v1/other"):
            assert httpx.get(server.url + path).status_code == 401
        assert server.post(server.ask(), headers={"authorization": f"Basic {KEY}"}).status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.openai(KEY).chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS).choices


def test_a_body_that_is_too_large_is_refused_by_its_length_and_as_it_comes() -> None:
    with running(limits=Limits(max_body_bytes=5_000)) as server:
        with pytest.raises(openai.APIStatusError) as caught:
            _create(server, messages=[{"role": "user", "content": "x" * 50_000}])
        assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
        pieces = (b"x" * 1_000 for _ in range(50))
        headers = {"content-type": "application/json"}
        response = httpx.post(f"{server.url}/v1/chat/completions", content=pieces, headers=headers)
        assert response.status_code == 413
        assert server.runtime.decoded == []
        assert _create(server).choices


def test_a_prompt_that_does_not_fit_the_context_is_a_bad_request() -> None:
    with running(n_ctx=900) as server:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                _create(server, messages=[{"role": "user", "content": "x" * 1_000}], stream=stream)
            assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
            assert "maximum context length" in caught.value.message


def test_a_schema_that_no_call_can_fit_is_a_bad_request_and_takes_no_other_tool_down(caller: Running) -> None:
    function = {"name": "t", "parameters": {"type": "object", "properties": {"a": False}, "required": ["a"]}}
    impossible = {"type": "function", "function": function}
    with pytest.raises(openai.BadRequestError) as caught:
        _create(caller, tools=[impossible])
    assert (caught.value.param, caught.value.code) == ("tools[0].function.parameters", "invalid_function_parameters")
    assert "'t'" in caught.value.message
    assert _create(caller, tools=[*TOOLS, impossible]).choices


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/v1/models/tiny", 405),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/", 404),
    ],
)
def test_what_is_not_served_is_said_in_the_same_form(caller: Running, method: str, path: str, status: int) -> None:
    response = httpx.request(method, caller.url + path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.headers["x-request-id"].startswith("req_")
    assert ("allow" in response.headers) == (status == 405)


def test_head_answers_as_get_does_without_a_body(caller: Running) -> None:
    for path in ("/v1/models", f"/v1/models/{MODEL}", "/health", "/metrics"):
        response = httpx.head(caller.url + path)
        assert (response.status_code, response.content) == (200, b"")


def test_a_web_page_can_neither_post_nor_rebind_a_name(caller: Running) -> None:
    body = json.dumps(caller.ask())
    plain = httpx.post(f"{caller.url}/v1/chat/completions", content=body, headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    assert httpx.post(f"{caller.url}/v1/chat/completions", content=body, headers=packed).status_code == 415
    assert httpx.get(f"{caller.url}/v1/models", headers={"host": "evil.example:80"}).status_code == 403
    assert httpx.get(f"{caller.url}/v1/models", headers={"host": "localhost"}).status_code == 200
