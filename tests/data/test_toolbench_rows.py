from __future__ import annotations

import ast
import json
from collections.abc import Callable
from typing import Any

import pytest

from data.rejected import Rejected, RejectReason, Repair
from data.sources.toolbench_rows import conversation_from_train_row
from tinydispatch.tools import Conversation, Message, Role, ToolCall

Build = Callable[..., dict[str, Any]]
STEP = '\nThought: \nAction: forecast_for_weather\nAction Input: {"city": "Rome"}'


def kept(row: dict[str, Any], **options: Any) -> Conversation:
    result = conversation_from_train_row(row, "rows.json[0]", **options)
    assert isinstance(result, Conversation), result
    return result


def reason(row: Any) -> RejectReason:
    result = conversation_from_train_row(row, "rows.json[0]")
    assert isinstance(result, Rejected), result
    assert result.row_id == "rows.json[0]"
    assert result.detail
    return result.reason


def repairs(conversation: Conversation) -> list[str]:
    return list(conversation.metadata.get("repairs", []))


def test_a_row_becomes_the_request_the_call_and_the_tools_without_finish(train_row: Build) -> None:
    conversation = kept(train_row())
    assert conversation.messages == (
        Message(Role.USER, "Weather in Oslo?"),
        Message(Role.ASSISTANT, "", (ToolCall("forecast_for_weather", {"city": "Oslo"}),)),
    )
    assert [tool.name for tool in conversation.tools] == ["forecast_for_weather"]
    assert conversation.category == "single_call"
    assert repairs(conversation) == []


def test_the_hub_mirrors_columns_give_the_same_conversation(train_row: Build) -> None:
    row = train_row()
    turns = row["conversations"]
    columns = {key: [turn[key] for turn in turns] for key in ("from", "value")}
    assert kept({**row, "conversations": columns}) == kept(row)


def test_only_the_last_assistant_turn_is_trained(train_row: Build) -> None:
    conversation = kept(train_row(before=(("assistant", STEP), ("function", '{"error": ""}'))))
    assistant = [message for message in conversation.messages if message.role is Role.ASSISTANT]
    assert [message.is_trained for message in assistant] == [False, True]
    assert conversation.category == "next_call"
    assert conversation.messages[2].tool_name == "forecast_for_weather"


def test_steps_of_one_request_share_a_dialogue_even_after_a_retry_hint(train_row: Build) -> None:
    hint = "This is not the first time you try this task, all previous trails failed.\nBefore you generate …"
    first = kept(train_row())
    later = kept(train_row(before=(("assistant", STEP), ("function", "{}"), ("user", hint))))
    assert later.dialogue_id == first.dialogue_id
    assert [message.role for message in later.messages] == ["user", "assistant", "tool", "assistant"]
    assert repairs(later) == [Repair.RETRY_HINT_DROPPED]


def test_finish_with_an_answer_becomes_the_plain_reply(train_row: Build) -> None:
    text = 'Thought: done\nAction: Finish\nAction Input: {"return_type": "give_answer", "final_answer": "Sunny."}'
    conversation = kept(train_row(text, before=(("assistant", STEP), ("function", "{}"))))
    assert conversation.messages[-1] == Message(Role.ASSISTANT, "Sunny.")
    assert conversation.category == "final_answer"
    assert repairs(conversation) == [Repair.THOUGHT_DROPPED]


def test_thoughts_are_trained_on_request(train_row: Build) -> None:
    row = train_row('Thought: Oslo it is.\nAction: forecast_for_weather\nAction Input: {"city": "Oslo"}')
    assert kept(row).messages[-1].content == ""
    assert kept(row, keep_thoughts=True).messages[-1].content == "Oslo it is."


@pytest.mark.parametrize(
    ("assistant", "arguments", "repair"),
    [
        ('Action: f\nAction Input: {"city": "Oslo"}\nThat is it.', {"city": "Oslo"}, Repair.TRAILING_TEXT_DROPPED),
        ("Action: f\nAction Input: {'city': 'Oslo', 'd': None}", {"city": "Oslo", "d": None}, Repair.PYTHON_LITERAL),
        ('Action: f\nAction Input: {"city": "a\nb"}', {"city": "a\nb"}, Repair.RAW_CONTROL_CHARACTERS),
        ("Action: f\nAction Input: ", {}, Repair.EMPTY_ARGUMENTS),
        ('Action: f\nAction Input: "{\\"city\\": \\"Oslo\\"}"', {"city": "Oslo"}, Repair.DOUBLE_ENCODED),
        ('Action: f\nArguments: {"a": 1}', {"a": 1}, Repair.ARGUMENTS_FOR_ACTION_INPUT),
        ('Action: g\nAction Input: {}\nAction: f\nArguments: {"a": 1}', {"a": 1}, Repair.SEVERAL_ACTIONS),
        ('Action: f\nAction Input: {"a": 1}\nAction: g\nAction Input: {"a"', {"a": 1}, Repair.SEVERAL_ACTIONS),
    ],
)
def test_a_mended_action_names_its_repair(
    train_row: Build, assistant: str, arguments: dict[str, Any], repair: Repair
) -> None:
    conversation = kept(train_row("\nThought: \n" + assistant))
    assert conversation.calls == (ToolCall("f", arguments),)
    assert repair in repairs(conversation)


def test_a_renamed_parameter_is_filled_under_its_listed_name(train_row: Build) -> None:
    parameters = {"type": "object", "properties": {"is_id": {"type": "string"}, "from": {"type": "string"}}}
    apis = [{"name": "look_up", "description": "", "parameters": parameters}]
    conversation = kept(train_row('Action: look_up\nAction Input: {"id": "7", "from": "a"}', apis=apis))
    assert conversation.calls == (ToolCall("look_up", {"is_id": "7", "from": "a"}),)
    assert repairs(conversation) == [Repair.RESERVED_WORD_RENAMED]


@pytest.mark.parametrize(
    ("assistant", "expected"),
    [
        ('Action: Finish\nAction Input: {"return_type": "give_up_and_restart"}', RejectReason.GAVE_UP),
        ("\nThought: I wonder.", RejectReason.THOUGHT_ONLY),
        ("Thought: hm\nAction: forecast_for_weather", RejectReason.MALFORMED_CALL),
        ('Action: f\nAction Input: {"city": Oslo}', RejectReason.MALFORMED_CALL),
        ('Action: f\nAction Input: ["Oslo"]', RejectReason.MALFORMED_CALL),
        ('Action: f\nAction Input: {"a": NaN}', RejectReason.MALFORMED_CALL),
        ("Action: f\nAction Input: {'a': {1, 2}}", RejectReason.MALFORMED_CALL),
        ('Action: f\nAction Input: {"a": 1, "a": 2}', RejectReason.MALFORMED_CALL),
        ("Action: f\nAction Input: " + "[" * 100_000, RejectReason.MALFORMED_CALL),
        ("Action: f\nAction Input: __import__('os').getcwd()", RejectReason.MALFORMED_CALL),
        (
            'Action: Finish\nAction Input: {"return_type": "give_answer", "final_answer": 3}',
            RejectReason.MALFORMED_CALL,
        ),
    ],
)
def test_an_unusable_last_turn_is_rejected_under_its_reason(
    train_row: Build, assistant: str, expected: RejectReason
) -> None:
    assert reason(train_row(assistant)) is expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("text", RejectReason.MALFORMED_ROW),
        ({"id": "x"}, RejectReason.MALFORMED_ROW),
        ({"conversations": [{"from": "user", "value": None}]}, RejectReason.MALFORMED_ROW),
        ({"conversations": {"from": ["user"], "value": []}}, RejectReason.MALFORMED_ROW),
        ({"conversations": [{"from": "martian", "value": "hi"}]}, RejectReason.MALFORMED_ROW),
        ({"conversations": [{"from": "user", "value": "hi"}]}, RejectReason.INVALID_TOOLS),
        ({"conversations": [{"from": "system", "value": "no list here"}]}, RejectReason.INVALID_TOOLS),
    ],
)
def test_a_row_of_another_shape_is_rejected_under_its_reason(row: Any, expected: RejectReason) -> None:
    assert reason(row) is expected


def test_a_row_that_ends_in_a_result_is_rejected(train_row: Build) -> None:
    row = train_row(STEP)
    row["conversations"].append({"from": "function", "value": "{}"})
    assert reason(row) is RejectReason.NO_ASSISTANT_TURN


def test_a_result_without_a_call_is_rejected(train_row: Build) -> None:
    assert reason(train_row(before=(("function", "{}"),))) is RejectReason.MALFORMED_ROW


def test_an_api_list_in_json_reads_like_the_python_one(train_row: Build) -> None:
    row = train_row()
    system = row["conversations"][0]
    marker = "following APIs: "
    head, _, literal = system["value"].partition(marker)
    as_json = head + marker + json.dumps(ast.literal_eval(literal))
    assert kept({**row, "conversations": [{"from": "system", "value": as_json}, *row["conversations"][1:]]}) == kept(
        row
    )
