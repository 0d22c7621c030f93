from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import completion_create_params

from tests.fixtures_playback import WEATHER
from tinydispatch.decoding.reply import ToolChoice
from tinydispatch.server.errors import ApiError
from tinydispatch.server.offer import ToolReader
from tinydispatch.server.request import ChatBody, ChatRequest, read_request
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


def _format(**change: Any) -> dict[str, Any]:
    named = {"name": "city", "schema": {"type": "object", "properties": {"city": {"type": "string"}}}, **change}
    return {"type": "json_schema", "json_schema": {key: item for key, item in named.items() if item is not ...}}


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def _deep_arguments() -> dict[str, str]:
    return {"name": "now", "arguments": '{"a": ' * 200 + "1" + "}" * 200}


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


def test_every_parameter_of_the_official_client_is_known() -> None:
    names = {
        *completion_create_params.CompletionCreateParamsStreaming.__annotations__,
        *completion_create_params.CompletionCreateParamsBase.__annotations__,
    }
    assert names <= set(ChatBody.model_fields)


def test_what_agent_frameworks_add_is_accepted() -> None:
    added = {
        "reasoning_effort": "low", "verbosity": "low", "service_tier": "auto", "safety_identifier": "s", "user": "u",
        "prompt_cache_key": "k", "prediction": None, "modalities": ["text"], "logit_bias": {}, "logprobs": False,
        "response_format": {"type": "text"}, "top_k": 40, "min_p": 0.1, "store": True,
    }  # fmt: skip
    assert _read(**added) == _read()
    strict = [{"type": "function", "function": {**WEATHER.to_openai()["function"], "strict": True}}]
    assert _read(tools=strict).tools == (WEATHER,)


def test_tools_are_read_once_and_forgotten_when_they_take_too_much_memory() -> None:
    reader = ToolReader(max_chars=600)
    first = reader([WEATHER.to_openai()], 5)
    assert reader([WEATHER.to_openai()], 5) is first
    for number in range(20):
        reader([{"type": "function", "function": {"name": f"t{number}", "description": "x" * 100}}], 5)
    assert sum(map(len, reader._known)) <= 600
    assert reader([WEATHER.to_openai()], 5) is not first
    reader([{"type": "function", "function": {"name": "large", "description": "x" * 700}}], 5)
    assert sum(map(len, reader._known)) <= 600


def test_more_tokens_than_the_limit_are_capped() -> None:
    assert _read(max_tokens=5_000).max_new_tokens == 100
    assert _read(max_completion_tokens=7).max_new_tokens == _read(max_tokens=7).max_new_tokens == 7


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


def test_a_history_may_leave_out_what_says_nothing() -> None:
    bare = [{**CALL, "function": {"name": "now", "arguments": arguments}} for arguments in (None, "", "null", {})]
    for call in bare:
        said = [USER, {**CALLED, "content": [], "tool_calls": [call]}, {**RESULT, "content": None}, USER]
        _, called, result, _ = _read(messages=said).messages
        assert (dict(called.tool_calls[0].arguments), result.content) == ({}, "")


def test_calls_in_the_older_form_are_read() -> None:
    older = {"role": "assistant", "content": None, "function_call": {"name": "now", "arguments": '{"a": 1}'}}
    _, called, result = _read(messages=[USER, older, {"role": "function", "name": "now", "content": "noon"}]).messages
    assert [(call.name, dict(call.arguments)) for call in called.tool_calls] == [("now", {"a": 1})]
    assert (result.role, result.tool_name, result.content) == (Role.TOOL, "now", "noon")


def test_a_schema_beside_json_object_is_the_replys_form() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    answer = _read(tools=..., response_format={"type": "json_object", "schema": schema}).answer
    assert answer is not None
    assert answer.parameters == schema


def test_one_limit_under_both_names_is_one() -> None:
    assert _read(max_tokens=7, max_completion_tokens=7).max_new_tokens == 7


def test_an_empty_object_as_php_writes_it_is_one() -> None:
    (tool,) = _read(tools=_function(parameters=[])).tools
    assert not tool.violations({})
    assert tool.violations({"a": 1})


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
        ({"messages": [USER, {**CALLED, "tool_calls": "now"}]}, "messages[1].tool_calls"),
        ({"tools": {}}, "tools"),
        ({"tools": [WEATHER.to_openai()] * 4}, "tools"),
        ({"tools": [WEATHER.to_openai()] * 2}, "tools[1].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "now"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": "now"}]}, "tools[0].function"),
        ({"tools": _function(name=None)}, "tools[0].function.name"),
        ({"tools": _function(name=3)}, "tools[0].function.name"),
        ({"tools": _function(name="no spaces")}, "tools[0].function"),
        ({"tools": _function(description=3)}, "tools[0].function.description"),
        ({"tools": _function(strict="yes")}, "tools[0].function.strict"),
        ({"tools": _function(parameters=[1])}, "tools[0].function.parameters"),
        ({"tools": _function(parameters=_nested(300))}, "tools[0].function.parameters"),
        ({"tools": _function(parameters={"type": "array"})}, "tools[0].function"),
        ({"tools": _function(parameters={"type": "object", "properties": {"a": {"type": 3}}})}, "tools[0].function"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": 3}, "tool_choice"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "function", "function": "now"}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools.tools"),
        ({"tool_choice": "required", "tools": ...}, "tool_choice"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_completion_tokens": 7, "max_tokens": 9}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"seed": "x"}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"user": 3}, "user"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": "yes"}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "ash"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"metadata": {"session_id": 3}}, "metadata.session_id"),
        ({"metadata": {"a": 3}}, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "hi", "name": 3}]}, "messages[0].name"),
        ({"messages": [USER, {**CALLED, "tool_calls": [CALL, CALL]}, RESULT]}, "messages[1].tool_calls[1].id"),
        (
            {"messages": [USER, {**CALLED, "tool_calls": [{**CALL, "function": _deep_arguments()}]}, RESULT]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"functions": []}, "functions"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": _format(schema=...)}, "response_format.json_schema.schema"),
        ({"response_format": _format(name=...)}, "response_format.json_schema.name"),
        ({"response_format": _format(name="no spaces")}, "response_format.json_schema.name"),
        ({"response_format": _format(schema=_nested(300))}, "response_format.json_schema.schema"),
        ({"response_format": _format(schema={"type": "array"})}, "response_format.json_schema.schema"),
        ({"reference_date": "tomorrow"}, "reference_date"),
        ({"tinydispatch": {"reference_date": "2026-02-30"}}, "tinydispatch.reference_date"),
        ({"tinydispatch": {"reference_date": 3}}, "tinydispatch.reference_date"),
        ({"tinydispatch": "2026-02-20"}, "tinydispatch"),
        ({"metadata": {"time_zone": "Mars/North"}}, "metadata.time_zone"),
        ({"time_zone": "../../etc/passwd"}, "time_zone"),
        ({"time_zone": "UTC", "metadata": {"time_zone": "Europe/Oslo"}}, "metadata.time_zone"),
        ({"grammar": 'root ::= "yes"'}, "grammar"),
        ({"response_format": {}}, "response_format.type"),
        ({"stop": 3}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"model": 3}, "model"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        _read(**change)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert set(caught.value.body()["error"]) == {"message", "type", "param", "code"}


def test_another_model_is_told_which_one_there_is_and_none_is_needed() -> None:
    with pytest.raises(ApiError, match="`gpt-9` does not exist here: this server has `m`") as caught:
        _read(model="gpt-9")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert _read(model=...) == _read()


def test_an_unknown_parameter_is_ignored_with_a_warning_and_refused_by_a_strict_server() -> None:
    found = _read(**{"mirostat": 0, "tool_choise\n": "none"})
    assert found.warnings == (
        "unknown parameter 'mirostat' was ignored", "unknown parameter 'tool_choise\\n' was ignored",
    )  # fmt: skip
    assert replace(found, warnings=()) == _read()
    with pytest.raises(ApiError) as caught:
        read_request(json.dumps({**ASK, "mirostat": 0}).encode(), ServerSettings("m", is_strict=True))
    assert (caught.value.param, caught.value.code) == ("mirostat", "unknown_parameter")


def test_a_reply_in_json_is_the_call_of_one_more_tool() -> None:
    found = _read(response_format=_format(description="Where"), tools=...)
    assert [(tool.name, tool.description) for tool in found.tools] == [("city", "Where")]
    assert (found.answer, found.choice, found.is_parallel) == (found.tools[0], ToolChoice.REQUIRED, False)
    beside = _read(response_format=_format(name="now"))
    assert [tool.name for tool in beside.tools] == ["get_weather", "now", "now_answer"]
    assert (beside.answer, beside.choice) == (beside.tools[2], ToolChoice.REQUIRED)
    alone = _read(response_format={"type": "json_object"}, tool_choice="none")
    assert alone.tools == (alone.answer,)
    for choice in ("required", {"type": "function", "function": {"name": "now"}}):
        assert _read(response_format=_format(), tool_choice=choice).answer is None


def test_who_asks_for_json_is_not_offered_the_servers_own_tools() -> None:
    settings = ServerSettings("m", tools=(WEATHER,))
    body = {"messages": [USER], "response_format": {"type": "json_object"}}
    found = read_request(json.dumps(body).encode(), settings)
    assert found.tools == (found.answer,)


def test_no_tools_are_none_whatever_is_said_of_choosing() -> None:
    assert _read(tools=[], tool_choice="auto", parallel_tool_calls=True).tools == ()
    assert _read(tools=..., parallel_tool_calls=False, tool_choice="none").tools == ()


@pytest.mark.parametrize(
    "change",
    [
        {"reference_date": "2026-01-01", "time_zone": "Europe/Oslo"},
        {"metadata": {"reference_date": "2026-01-01", "time_zone": "Europe/Oslo"}},
        {"tinydispatch": {"reference_date": "2026-01-01", "time_zone": "Europe/Oslo"}, "reference_date": "2026-01-01"},
    ],
)
def test_a_client_says_which_day_it_is_and_where(change: dict[str, Any]) -> None:
    found = _read(**change)
    assert (found.reference_date, str(found.time_zone)) == (dt.date(2026, 1, 1), "Europe/Oslo")
    assert found.warnings == ()


def test_system_messages_are_read_wherever_they_stand() -> None:
    late = [USER, {"role": "assistant", "content": "hello"}, {"role": "developer", "content": "RULE"}, USER]
    assert [message.role for message in _read(messages=late).messages] == [
        Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.USER,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"n": 2}, "unsupported_value"),
        ({"n": 0}, "integer_below_min_value"),
        ({"response_format": {"type": "json_schema"}}, "missing_required_parameter"),
        ({"response_format": _format(schema={"type": "array"})}, "invalid_value"),
        ({"functions": []}, "unsupported_parameter"),
        ({"max_completion_tokens": 7, "max_tokens": 9}, "invalid_parameter_combination"),
        ({"tools": _function(name=None)}, "missing_required_parameter"),
        ({"seed": "x"}, "invalid_type"),
    ],
)
def test_a_program_can_tell_errors_apart(change: dict[str, Any], code: str) -> None:
    with pytest.raises(ApiError) as caught:
        _read(**change)
    assert caught.value.code == code


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}', b'{"a": "\\ud800"}'])
def test_a_body_that_is_no_json_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(ApiError, match="could not parse the JSON body"):
        read_request(body, ServerSettings("m"))
