from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fixtures_playback import WEATHER
from tinydispatch.decoding.reply import ToolChoice
from tinydispatch.server.errors import ApiError
from tinydispatch.server.request import ChatRequest, read_request
from tinydispatch.server.settings import Limits, ServerSettings
from tinydispatch.tools import Role, Tool

NOW = Tool("now", "The time", {"type": "object", "properties": {}})
USER = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "noon"}
ASK: dict[str, Any] = {"model": "m", "messages": [USER], "tools": [WEATHER.to_openai(), NOW.to_openai()]}


def _read(**change: Any) -> ChatRequest:
    settings = ServerSettings("m", limits=Limits(max_tools=3, max_new_tokens=100))
    value = {key: item for key, item in {**ASK, **change}.items() if item is not ...}
    return read_request(json.dumps(value).encode(), settings)


def _function(**change: Any) -> list[Any]:
    return [{"type": "function", "function": {**WEATHER.to_openai()["function"], **change}}]


def test_a_plain_request_takes_the_defaults() -> None:
    found = _read()
    assert found.tools == (WEATHER, NOW)
    assert (found.choice, found.is_parallel, found.is_stream) == (ToolChoice.AUTO, True, False)
    assert found.max_new_tokens == 100
    assert found.may_log


def test_null_means_not_given() -> None:
    nothing = dict.fromkeys(["tool_choice", "temperature", "n", "stop", "stream", "stream_options", "max_tokens"])
    assert _read(**nothing) == _read()


def test_settings_of_sampling_are_accepted_without_effect() -> None:
    assert _read(temperature=0.7, top_p=1, seed=3, user="u", presence_penalty=-1, n=1) == _read()


def test_more_tokens_than_the_limit_are_capped() -> None:
    assert _read(max_tokens=5_000).max_new_tokens == 100
    assert _read(max_completion_tokens=7, max_tokens=9).max_new_tokens == 7


def test_a_named_tool_is_offered_alone() -> None:
    found = _read(tool_choice={"type": "function", "function": {"name": "now"}})
    assert (found.tools, found.choice, found.is_named, found.is_parallel) == ((NOW,), ToolChoice.REQUIRED, True, False)


def test_allowed_tools_narrow_the_offer() -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}
    found = _read(tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert (found.tools, found.choice, found.is_named) == ((NOW,), ToolChoice.REQUIRED, False)


def test_a_whole_conversation_is_read() -> None:
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]
    found = _read(messages=[{"role": "developer", "content": parts}, USER, CALLED, RESULT, USER])
    assert [message.role for message in found.messages] == [
        Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL, Role.USER,
    ]  # fmt: skip
    assert found.messages[0].content == "be brief"
    assert found.messages[2].tool_calls[0].name == found.messages[3].tool_name == "now"


def test_a_session_is_taken_from_the_metadata_and_store_false_keeps_out_of_the_log() -> None:
    found = _read(metadata={"session_id": "s1"}, store=False)
    assert (found.session, found.may_log) == ("s1", False)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": ...}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [RESULT]}, "messages[0].role"),
        ({"messages": [USER, CALLED, USER]}, "messages[2].role"),
        ({"messages": [USER, CALLED]}, "messages[1].role"),
        ({"messages": [USER, {**CALLED, "tool_calls": [3]}]}, "messages[1].tool_calls[0]"),
        (
            {"messages": [USER, {**CALLED, "tool_calls": [{**CALL, "function": {"name": "a", "arguments": "{"}}]}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"tools": []}, "tools"),
        ({"tools": {}}, "tools"),
        ({"tools": [WEATHER.to_openai()] * 4}, "tools"),
        ({"tools": [WEATHER.to_openai()] * 2}, "tools[1].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": _function(name="no spaces")}, "tools[0].function"),
        ({"tools": _function(parameters={"type": "array"})}, "tools[0].function"),
        ({"tools": _function(parameters={"type": "object", "properties": {"a": {"type": 3}}})}, "tools[0].function"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": 3}, "tool_choice"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "function", "function": "now"}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools.tools"),
        ({"tool_choice": "required", "tools": ...}, "tool_choice"),
        ({"parallel_tool_calls": True, "tools": ...}, "parallel_tool_calls"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"functions": []}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"model": 3}, "model"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        _read(**change)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert set(caught.value.body()["error"]) == {"message", "type", "param", "code"}


def test_a_model_must_be_named() -> None:
    with pytest.raises(ApiError, match="you must provide a model parameter"):
        _read(model=...)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}', b'{"a": "\\ud800"}'])
def test_a_body_that_is_no_json_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(ApiError, match="could not parse the JSON body"):
        read_request(body, ServerSettings("m"))
