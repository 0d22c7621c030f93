from __future__ import annotations

import json
from typing import Any

from data.rejected import Rejected, RejectReason
from data.sources.toolbench_answers import conversations_from_answer
from tinydispatch.tools import Conversation, ToolCall

FUNCTION = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}, "required": []}}
SYSTEM = {"role": "system", "content": "You are AutoGPT"}
USER = {"role": "user", "content": "\nDo it\nBegin!\n"}
RESULT = {"role": "function", "name": "f", "content": "{}"}


def call(name: str = "f", arguments: str = "{}", content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "function_call": {"name": name, "arguments": arguments}}


def answer(*prefixes: list[Any], **fields: Any) -> dict[str, Any]:
    generation = {"valid_data": True, "query": "Do it", "function": [FUNCTION], "train_messages": list(prefixes)}
    return {"answer_generation": {**generation, **fields}}


def read(value: dict[str, Any], **options: Any) -> list[Conversation | Rejected]:
    return list(conversations_from_answer(value, "a.json[0]", **options))


def test_each_prefix_is_a_row_with_an_id_of_its_own() -> None:
    rows = read(answer([SYSTEM, USER, call()], [SYSTEM, USER, call(), RESULT, call()]), group="G1_answer")
    assert [row.metadata for row in rows if isinstance(row, Conversation)] == [
        {"row_id": "a.json[0]#0", "group": "G1_answer"},
        {"row_id": "a.json[0]#1", "group": "G1_answer"},
    ]


def test_a_thought_in_a_message_of_its_own_belongs_to_the_call_after_it() -> None:
    thought = {"role": "assistant", "content": "I should call f."}
    rows = read(answer([SYSTEM, USER, thought, call()]), keep_thoughts=True)
    assert isinstance(rows[0], Conversation)
    assert rows[0].messages[-1].content == "I should call f."
    assert rows[0].messages[-1].tool_calls == (ToolCall("f", {}),)


def test_a_thought_goes_with_one_call_only() -> None:
    rows = read(answer([SYSTEM, USER, call(content="First."), call(content="Second.")]), keep_thoughts=True)
    assert isinstance(rows[0], Conversation)
    assert [message.content for message in rows[0].messages] == ["Do it", "First.", "Second."]


def test_a_prefix_that_ends_in_a_thought_is_rejected_alone() -> None:
    thought = {"role": "assistant", "content": "I should call f."}
    rows = read(answer([SYSTEM, USER, thought], [SYSTEM, USER, thought, call()]))
    assert [type(row) for row in rows] == [Rejected, Conversation]
    assert isinstance(rows[0], Rejected)
    assert rows[0].reason is RejectReason.THOUGHT_ONLY


def test_an_answer_marked_invalid_counts_as_one_rejected_row() -> None:
    rows = read(answer([SYSTEM, USER, call()], valid_data=False))
    assert [row.reason for row in rows if isinstance(row, Rejected)] == [RejectReason.INVALID_ANSWER]
    assert len(rows) == 1


def test_broken_answers_are_rejected_under_their_reason() -> None:
    cases = [
        ({"answer_generation": 3}, RejectReason.MALFORMED_ROW),
        (answer(), RejectReason.MALFORMED_ROW),
        (answer([SYSTEM, USER, call(arguments="{")]), RejectReason.MALFORMED_CALL),
        (answer([SYSTEM, USER, {"role": "assistant", "function_call": {"name": "f"}}]), RejectReason.MALFORMED_CALL),
        (answer([SYSTEM, USER, call("Finish", json.dumps({"return_type": "give_up"}))]), RejectReason.GAVE_UP),
        (answer([SYSTEM, USER, call()], function=None), RejectReason.INVALID_TOOLS),
        (answer([SYSTEM, {"role": "user", "content": [1]}, call()]), RejectReason.UNSUPPORTED_CONTENT),
        (answer(["text"]), RejectReason.MALFORMED_ROW),
    ]
    for value, reason in cases:
        rows = read(value)
        assert [row.reason if isinstance(row, Rejected) else row for row in rows] == [reason], value
