"""What the routes besides plain chat answer: JSON replies, responses, completions, logprobs, dates, warnings."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator
from openai.types import completion_create_params
from openai.types.responses import response_create_params
from openapi_spec_validator import validate

from tests.fixtures_server import MODEL, ONE_CALL, OSLO, ROME, TOOLS, TWO_CALLS, Running, running
from tinydispatch import formats
from tinydispatch.decoding.constraint import GrammarConstraint
from tinydispatch.server.completions import CompletionBody
from tinydispatch.server.request import ChatBody
from tinydispatch.server.responses import ResponseBody
from tinydispatch.tools import ToolCall

ASK: Any = [{"role": "user", "content": "Oslo and Rome?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["city", "n"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
ANSWER = formats.render_calls([ToolCall("city", {"city": "Oslo", "n": 3})])
FLAT: Any = [{"type": "function", **TOOLS[0]["function"]}]


@pytest.fixture(scope="module")
def caller() -> Iterator[Running]:
    with running(TWO_CALLS) as server:
        yield server


@pytest.fixture(scope="module")
def answerer() -> Iterator[Running]:
    with running(ANSWER) as server:
        yield server


@pytest.fixture(scope="module")
def speaker() -> Iterator[Running]:
    with running("Which city do you mean?") as server:
        yield server


def _create(server: Running, **more: Any) -> Any:
    return server.openai().chat.completions.create(**{"model": MODEL, "messages": ASK, **more})


def _post(server: Running, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


def test_a_reply_in_json_fits_its_schema_and_is_the_content(answerer: Running) -> None:
    found = _create(answerer, response_format=FORMAT)
    choice = found.choices[0]
    assert (json.loads(choice.message.content), choice.finish_reason) == ({"city": "Oslo", "n": 3}, "stop")
    assert choice.message.tool_calls is None
    chunks = list(_create(answerer, response_format=FORMAT, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert all(chunk.choices[0].delta.tool_calls is None for chunk in chunks)


def test_a_reply_in_json_that_is_cut_off_shows_what_there_is(answerer: Running) -> None:
    choice = _create(answerer, response_format=FORMAT, max_tokens=50).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.content
    assert '{"city": "Oslo", "n": 3}'.startswith(choice.message.content)


def test_tools_may_be_called_before_the_reply_in_json(caller: Running) -> None:
    choice = _create(caller, tools=TOOLS, response_format=FORMAT).choices[0]
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [
        dict(OSLO.arguments),
        dict(ROME.arguments),
    ]
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")


def test_nothing_follows_a_reply_in_json() -> None:
    with running(ANSWER + ONE_CALL) as server:
        choice = _create(server, tools=TOOLS, response_format=FORMAT).choices[0]
        assert json.loads(choice.message.content) == {"city": "Oslo", "n": 3}
        assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")


def test_an_answer_that_was_written_before_the_results_of_its_calls_is_left_out() -> None:
    with running(ONE_CALL + ANSWER) as server:
        choice = _create(server, tools=TOOLS, response_format=FORMAT).choices[0]
        assert len(choice.message.tool_calls) == 1
        assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")


def test_a_form_that_no_reply_can_have_is_a_bad_request(speaker: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "enum": ["x"]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "t", "schema": schema}}
    error = speaker.post({"messages": ASK, "response_format": form}).json()["error"]
    assert (error["param"], error["code"]) == ("response_format.json_schema.schema", "invalid_json_schema")
    text = {"format": {"type": "json_schema", "name": "t", "schema": schema}}
    response = _post(speaker, "/v1/responses", input="hi", text=text)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "text.format.schema")


def test_a_grammar_that_fails_in_the_middle_is_an_error_and_no_empty_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GrammarConstraint, "is_stopped", True)
    monkeypatch.setattr(GrammarConstraint, "problem", "lexer error: too many\n<state>")
    with running() as server:
        response = server.post(server.ask())
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_function_parameters")
        assert response.json()["error"]["message"].endswith("lexer error: too many")


def test_any_json_object_may_be_asked_for() -> None:
    with running(formats.render_calls([ToolCall("answer", {"a": [1, {"b": None}]})])) as server:
        content = _create(server, response_format={"type": "json_object"}).choices[0].message.content
        assert json.loads(content) == {"a": [1, {"b": None}]}


def test_no_answer_is_without_a_word() -> None:
    with running("") as server:
        message = _create(server).choices[0].message
        assert (message.content, message.refusal) == (
            None,
            "The model ended its reply without a call and without a word.",
        )
    with running(ONE_CALL) as server:
        choice = _create(server, tools=TOOLS, tool_choice="required", max_tokens=3).choices[0]
        assert choice.finish_reason == "length"
        assert "cut off" in choice.message.refusal


@pytest.mark.parametrize("is_parallel", [True, False])
def test_usage_never_exceeds_the_limit(is_parallel: bool) -> None:
    with running(ONE_CALL) as server:
        common = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": is_parallel}
        n_tokens = _create(server, **common).usage.completion_tokens
        for limit in (1, 3, 20, n_tokens - 2, n_tokens - 1, n_tokens):
            found = _create(server, **common, max_tokens=limit)
            assert found.usage.completion_tokens <= limit
            assert bool(found.choices[0].message.tool_calls) == (limit >= n_tokens - 1)


def test_logprobs_spell_the_reply_and_name_alternatives(caller: Running) -> None:
    found = _create(caller, tools=TOOLS, logprobs=True, top_logprobs=3)
    content = found.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == TWO_CALLS
    assert len(content) == found.usage.completion_tokens - 1  # the end token is no part of the reply
    assert all(token.logprob <= 0 for token in content)
    assert all(token.top_logprobs[0].token == token.token for token in content), "decoding is greedy"
    assert max(len(token.top_logprobs) for token in content) == 3
    assert math.exp(sum(token.logprob for token in content)) == pytest.approx(
        found.tinydispatch["confidence"], abs=0.02
    )
    chunks = list(_create(caller, tools=TOOLS, logprobs=True, stream=True))
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert [token.logprob for token in streamed] == [token.logprob for token in content]
    assert all(token.top_logprobs == [] for token in streamed)


def test_a_request_says_which_day_it_is(caller: Running) -> None:
    def day(**more: Any) -> str:
        found = _create(caller, tools=TOOLS, **more)
        assert caller.runtime.detokenize(caller.runtime.cached_ids).count("Today is ") == 1
        told: str = found.tinydispatch["reference_date"]
        assert f"Today is {formats.reference_date_text(dt.date.fromisoformat(told))[9:]}" in (
            caller.runtime.detokenize(caller.runtime.cached_ids)
        )
        return told

    assert day() == "2026-03-19"  # the server's own
    assert day(metadata={"reference_date": "2026-01-01"}) == "2026-01-01"
    assert day(extra_body={"tinydispatch": {"reference_date": "2026-01-02"}}) == "2026-01-02"
    system = {"role": "system", "content": "Current date: 3 January 2026"}
    with_system = httpx.post(
        f"{caller.url}/v1/chat/completions",
        json={"messages": [system, *ASK], "tools": TOOLS, "reference_date": "2026-05-05"},
        timeout=60,
    )
    assert with_system.json()["tinydispatch"]["reference_date"] == "2026-01-03"


def test_confidence_is_no_judgement_while_nothing_was_calibrated(caller: Running) -> None:
    assert _create(caller, tools=TOOLS).tinydispatch["is_confident"] is None


def test_what_was_ignored_is_said_in_a_header(caller: Running) -> None:
    response = caller.post({**caller.ask(mirostat=0), "naïve\r\nx": 1})
    assert response.status_code == 200
    assert response.headers["x-tinydispatch-warning"] == (
        "unknown parameter 'mirostat' was ignored; unknown parameter 'na\\xefve\\r\\nx' was ignored"
    )
    assert "x-tinydispatch-warning" in caller.post(caller.ask(mirostat=0, stream=True)).headers
    assert "x-tinydispatch-warning" not in caller.post(caller.ask(temperature=0.3, top_k=4)).headers
    with running(is_strict=True) as server:
        assert server.post(server.ask(mirostat=0)).json()["error"]["code"] == "unknown_parameter"


def test_a_web_page_is_answered_only_where_that_was_asked_for(caller: Running) -> None:
    origin = "https://app.example"
    asks = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    assert "access-control-allow-origin" not in httpx.get(f"{caller.url}/v1/models", headers=asks).headers
    with running(key="a-key-of-enough-letters", cors_origins=(origin,)) as server:
        url = f"{server.url}/v1/chat/completions"
        preflight = httpx.options(url, headers=asks)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, origin)
        assert httpx.options(url, headers={**asks, "origin": "https://evil.example"}).status_code == 400
        refused = httpx.post(url, json={}, headers={"origin": origin})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, origin)
        foreign = httpx.post(url, json={}, headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers


# The Responses API.


def test_every_parameter_of_the_official_client_is_known() -> None:
    responses = response_create_params.ResponseCreateParamsBase.__annotations__
    assert set(responses) <= set(ResponseBody.model_fields)
    completions = completion_create_params.CompletionCreateParamsBase.__annotations__
    assert set(completions) <= set(CompletionBody.model_fields)


def test_a_response_holds_the_calls_and_goes_on_with_their_results(caller: Running) -> None:
    client = caller.openai()
    found = client.responses.create(model=MODEL, input="Oslo and Rome?", instructions="Be brief.", tools=FLAT)
    assert (found.status, found.output_text, found.store) == ("completed", "", False)
    assert [(item.type, item.name, json.loads(item.arguments)) for item in found.output] == [
        ("function_call", "get_weather", dict(OSLO.arguments)),
        ("function_call", "get_weather", dict(ROME.arguments)),
    ]
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    history: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Oslo and Rome?"}]}]
    history += [item.model_dump(exclude_none=True) for item in found.output]
    history += [{"type": "function_call_output", "call_id": item.call_id, "output": "rain"} for item in found.output]
    caller.runtime.reply = "Rain in both."
    try:
        again = client.responses.create(model=MODEL, input=history, tools=FLAT)
    finally:
        caller.runtime.reply = TWO_CALLS
    assert again.output_text == "Rain in both."
    prompt = caller.runtime.detokenize(caller.runtime.cached_ids)
    assert prompt.count("<tool_response>rain</tool_response>") == 2
    assert TWO_CALLS in prompt


def test_a_streamed_response_adds_up_to_the_one_that_is_not(caller: Running, speaker: Running) -> None:
    for server, tools in ((caller, FLAT), (speaker, [])):
        whole = server.openai().responses.create(model=MODEL, input="Oslo?", tools=tools)
        stream = list(server.openai().responses.create(model=MODEL, input="Oslo?", tools=tools, stream=True))
        assert [event.sequence_number for event in stream] == list(range(len(stream)))
        assert [stream[0].type, stream[1].type, stream[-1].type] == [
            "response.created",
            "response.in_progress",
            "response.completed",
        ]
        last = stream[-1].response
        assert last.output_text == whole.output_text
        assert [_without_id(item) for item in last.output] == [_without_id(item) for item in whole.output]
        deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert deltas == whole.output_text
        done = [event.item for event in stream if event.type == "response.output_item.done"]
        assert [item.id for item in done] == [item.id for item in last.output]
        with server.openai().responses.stream(model=MODEL, input="Oslo?", tools=tools) as accumulated:
            accumulated.until_done()
            assert accumulated.get_final_response().output_text == whole.output_text


def _without_id(item: Any) -> dict[str, Any]:
    return {key: value for key, value in item.model_dump().items() if key not in ("id", "call_id")}


def test_a_response_in_json_and_one_that_is_cut(answerer: Running) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}}
    found = answerer.openai().responses.create(model=MODEL, input="Oslo", text=form)
    assert json.loads(found.output_text) == {"city": "Oslo", "n": 3}
    cut = answerer.openai().responses.create(model=MODEL, input="Oslo", text=form, max_output_tokens=50)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert '{"city": "Oslo", "n": 3}'.startswith(cut.output_text)


def test_logprobs_of_a_response_stand_with_its_text(speaker: Running) -> None:
    found = speaker.openai().responses.create(
        model=MODEL, input="hi", include=["message.output_text.logprobs"], top_logprobs=2
    )
    tokens = found.output[0].content[0].logprobs
    assert "".join(token.token for token in tokens) == found.output_text
    assert all(len(token.top_logprobs) == 2 for token in tokens)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a'}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "no spaces"}]}, "tools[0]"),
        ({"tools": FLAT * 2}, "tools[1].name"),
        ({"tools": FLAT, "tool_choice": {"type": "function", "name": "fly"}}, "tool_choice.function.name"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"truncation": "maybe"}, "truncation"),
    ],
)
def test_what_is_wrong_with_a_response_request_is_named(speaker: Running, change: dict[str, Any], param: str) -> None:
    response = _post(speaker, "/v1/responses", **{"model": MODEL, "input": "hi", **change})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_response_that_breaks_after_its_begin_is_raised_by_the_client() -> None:
    with running("It is raining in Oslo. " * 20) as server:
        server.runtime.delay_s = 0.02
        stream = server.openai().responses.create(model=MODEL, input="Oslo?", stream=True)
        begun = next(event for event in stream if event.type == "response.output_text.delta")
        assert begun.delta
        server.runtime.decode_all = None  # type: ignore[assignment, method-assign]
        with pytest.raises(openai.APIError, match="had an error while processing"):
            list(stream)


# Completions.


def test_a_text_is_continued_as_it_stands(speaker: Running) -> None:
    opening = f"{formats.TURN_START}user\nhi{formats.TURN_END}\n{formats.TURN_START}assistant\n"
    client = speaker.openai()
    found = client.completions.create(model=MODEL, prompt=opening, max_tokens=100, logprobs=2)
    assert (found.choices[0].text, found.choices[0].finish_reason) == ("Which city do you mean?", "stop")
    assert "Today is" not in speaker.runtime.detokenize(speaker.runtime.cached_ids)
    logprobs = found.choices[0].logprobs
    assert "".join(logprobs.tokens) == found.choices[0].text
    assert logprobs.text_offset == list(range(len(found.choices[0].text)))
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
    chunks = list(client.completions.create(model=MODEL, prompt=[opening], max_tokens=100, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == found.choices[0].text
    cut = client.completions.create(model=MODEL, prompt=opening)
    assert (len(cut.choices[0].text), cut.choices[0].finish_reason) == (16, "length")
    stopped = client.completions.create(model=MODEL, prompt=opening, max_tokens=100, stop=[" do", "zzz"])
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("Which city", "stop")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": "a" * 5_000}, "prompt"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2}, "n"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
    ],
)
def test_what_is_wrong_with_a_completion_request_is_named(speaker: Running, change: dict[str, Any], param: str) -> None:
    response = _post(speaker, "/v1/completions", **{"model": MODEL, "prompt": "hi", **change})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_the_docs_name_all_that_is_refused() -> None:
    page = Path(__file__).resolve().parents[2].joinpath("docs", "serving.md").read_text("utf-8")
    table = page.partition("### What is refused")[2].partition("\n## ")[0]
    names = {*ChatBody.REFUSED, *ResponseBody.REFUSED, *CompletionBody.REFUSED, "n", "best_of", "modalities"}
    assert [name for name in sorted(names) if f"`{name}`" not in table] == []


def test_the_servers_own_document_is_one_and_its_answers_are_as_it_says(caller: Running) -> None:
    document = httpx.get(f"{caller.url}/openapi.json", timeout=90).json()
    validate(document)
    assert set(document["paths"]) == {
        "/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/feedback", "/v1/models", "/v1/models/{name}",
        "/health", "/metrics", "/openapi.json",
    }  # fmt: skip
    flat_call = {"type": "function_call", "call_id": "a", "name": "x", "arguments": "{}"}
    flat_output = {"type": "function_call_output", "call_id": "a", "output": "1"}
    fits: dict[str, list[tuple[dict[str, Any], bool]]] = {
        "/v1/chat/completions": [
            (caller.ask(stop="x"), True),
            (caller.ask(tool_choice={"type": "function", "function": {"name": "get_weather"}}), True),
            (caller.ask(stop=["x", ""]), False),
            (caller.ask(tool_choice="always"), False),
            ({"messages": []}, False),
            ({"messages": [{"role": "user"}]}, False),
            (caller.ask(temperature=3), False),
        ],
        "/v1/responses": [
            ({"input": "Oslo?", "tools": FLAT}, True),
            ({"input": [flat_call, flat_output]}, True),
            ({"input": [{"type": "picture"}]}, False),
        ],
        "/v1/completions": [({"prompt": "Oslo"}, True), ({"prompt": ["a", "b"]}, False), ({"prompt": ""}, False)],
        "/v1/feedback": [({"id": "x"}, False), ({"id": "x", "tool_error": 1}, False)],
    }
    for path, bodies in fits.items():
        operation = document["paths"][path]["post"]
        asked = operation["requestBody"]["content"]["application/json"]["schema"]
        for body, is_right in bodies:
            answer = caller.send(path, body)
            assert (answer.status_code == 200) is is_right, answer.text
            assert _fits(document, asked, body) is is_right, body
            told = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
            assert _fits(document, told, answer.json())
    for path in ("/v1/models", "/health"):
        told = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert _fits(document, told, httpx.get(f"{caller.url}{path}", timeout=90).json())


def _fits(document: dict[str, Any], schema: dict[str, Any], value: Any) -> bool:
    return Draft202012Validator({**schema, "components": document["components"]}).is_valid(value)


def test_the_document_names_the_key_and_asks_for_it() -> None:
    with running(key="secret-key-of-some-length") as server:
        assert httpx.get(f"{server.url}/openapi.json", timeout=90).status_code == 401
        with_key = {"authorization": "Bearer secret-key-of-some-length"}
        assert httpx.get(f"{server.url}/openapi.json", timeout=90, headers=with_key).json()["security"] == [{"key": []}]
