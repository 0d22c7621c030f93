from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

from data.rejected import Rejected, RejectReason, Repair
from data.sources.openai_chat import conversation_from_openai
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Conversation, Role, ToolCall

USER = {"role": "user", "content": "Weather in Oslo?"}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def assistant(arguments: Any, **fields: Any) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": function}], **fields}


def read(**row: Any) -> Conversation | Rejected:
    return conversation_from_openai(row, "mine.jsonl:1", bundled_tools())


def kept(**row: Any) -> Conversation:
    result = read(**row)
    assert isinstance(result, Conversation), result
    return result


@pytest.mark.parametrize("arguments", [{"location": "Oslo"}, '{"location": "Oslo"}'])
def test_arguments_are_read_as_object_or_as_json_string(arguments: Any) -> None:
    conversation = kept(messages=[USER, assistant(arguments)])
    assert conversation.calls == (ToolCall("get_weather", {"location": "Oslo"}),)
    assert conversation.category == "single_call"
    assert conversation.metadata == {"row_id": "mine.jsonl:1"}


def test_a_row_without_tools_gets_the_default_ones_and_an_empty_list_means_none() -> None:
    reply = {"role": "assistant", "content": "Hello!"}
    assert kept(messages=[USER, reply]).tools == bundled_tools()
    assert kept(messages=[USER, reply], tools=[]).tools == ()
    assert [tool.name for tool in kept(messages=[USER, reply], tools=[TOOL]).tools] == ["f"]


def test_a_tool_result_takes_its_name_from_the_call_it_answers() -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    conversation = kept(messages=[USER, assistant({}), result, {"role": "assistant", "content": "Rain."}])
    assert conversation.messages[2].tool_name == "get_weather"
    assert conversation.category == "single_call"


def test_older_and_newer_words_of_the_format_are_understood() -> None:
    call = {"role": "assistant", "function_call": {"name": "get_weather", "arguments": "{}"}}
    result = {"role": "function", "name": "get_weather", "content": "rain"}
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    conversation = kept(messages=[{"role": "developer", "content": parts}, USER, call, result, assistant({})])
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert conversation.messages[0].content == "Be brief."


def test_weight_zero_keeps_an_assistant_turn_out_of_the_loss() -> None:
    conversation = kept(messages=[USER, assistant({}, weight=0), USER, assistant({})])
    trained = [message.is_trained for message in conversation.messages if message.role is Role.ASSISTANT]
    assert trained == [False, True]


def test_a_row_for_fine_tuning_at_openai_is_read_as_it_stands() -> None:
    call = {"id": "call_id", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answers = [{"role": "assistant", "tool_calls": [call], "weight": 1}, {"role": "assistant", "content": "Sun."}]
    result = {"role": "tool", "tool_call_id": "call_id", "content": [{"type": "text", "text": "sun"}]}
    row = {"messages": [USER, answers[0], result, answers[1]], "parallel_tool_calls": False, "tools": [TOOL]}
    assert [m.content for m in kept(**row).messages] == ["Weather in Oslo?", "", "sun", "Sun."]
    both = {"role": "assistant", "tool_calls": [call, call]}
    assert kept(messages=[USER, both], parallel_tool_calls=True, tools=[TOOL]).category == "parallel_calls"


def test_date_category_and_dialogue_are_taken_from_the_row() -> None:
    row = {"reference_date": "2026-03-19", "category": "mine", "dialogue_id": "d7", "metadata": {"by": "me"}}
    conversation = kept(messages=[USER, assistant({})], **row)
    assert conversation.reference_date == dt.date(2026, 3, 19)
    assert (conversation.category, conversation.dialogue_id) == ("mine", "d7")
    assert conversation.metadata["by"] == "me"


def test_rows_with_the_same_request_share_a_dialogue_whatever_the_answer() -> None:
    one, other = kept(messages=[USER, assistant({"a": 1})]), kept(messages=[USER, assistant({"a": 2})])
    assert one.dialogue_id == other.dialogue_id


def test_a_mended_arguments_string_names_its_repair() -> None:
    conversation = kept(messages=[USER, assistant("{'location': 'Oslo'}")])
    assert conversation.metadata["repairs"] == [Repair.PYTHON_LITERAL]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, RejectReason.MALFORMED_ROW),
        ({"messages": "hi"}, RejectReason.MALFORMED_ROW),
        ({"messages": ["hi"]}, RejectReason.MALFORMED_ROW),
        ({"messages": [{"role": "martian"}]}, RejectReason.MALFORMED_ROW),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, RejectReason.MALFORMED_ROW),
        ({"messages": [USER], "reference_date": "tomorrow"}, RejectReason.MALFORMED_ROW),
        ({"messages": [USER], "category": 3}, RejectReason.MALFORMED_ROW),
        ({"messages": [USER, assistant({}, weight=0.5)]}, RejectReason.MALFORMED_ROW),
        ({"messages": [USER, assistant({}, weight=[])]}, RejectReason.MALFORMED_ROW),
        (
            {
                "messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f"}, {"name": "f"}]}],
                "parallel_tool_calls": False,
            },
            RejectReason.MALFORMED_ROW,
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, RejectReason.UNSUPPORTED_CONTENT),
        ({"messages": [USER, assistant("{")]}, RejectReason.MALFORMED_CALL),
        ({"messages": [USER, assistant([1])]}, RejectReason.MALFORMED_CALL),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, RejectReason.MALFORMED_CALL),
        ({"messages": [USER, {"role": "assistant", "tool_calls": "f()"}]}, RejectReason.MALFORMED_CALL),
        ({"messages": [USER], "tools": [{"name": "f", "parameters": {"type": "array"}}]}, RejectReason.INVALID_TOOLS),
        ({"messages": [USER], "tools": [TOOL, TOOL]}, RejectReason.INVALID_TOOLS),
        ({"messages": [USER], "tools": {}}, RejectReason.INVALID_TOOLS),
    ],
)
def test_an_unusable_row_is_rejected_under_its_reason(row: dict[str, Any], reason: RejectReason) -> None:
    result = read(**row)
    assert isinstance(result, Rejected)
    assert (result.reason, result.row_id) == (reason, "mine.jsonl:1")


def test_nested_arguments_arrive_exactly() -> None:
    arguments: dict[str, Any] = {"a": None, "b": {}, "c": [{"d": 5.0}, []], "ü": "\u2028"}
    assert kept(messages=[USER, assistant(json.dumps(arguments))]).calls[0].arguments == arguments
