"""Each adapter on rows in the shape of its data set, good ones and broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.clean import check_conversation
from data.config import DataConfig, HermesSource, XlamSource
from data.hub import fetched
from data.rejected import Rejected, RejectReason, Repair
from data.sources.dispatch_log import Trust, conversation_from_log
from data.sources.files import DataFileError
from data.sources.hermes import conversation_from_hermes
from data.sources.sharegpt import conversation_from_sharegpt
from data.sources.when2call import conversation_from_when2call
from data.sources.xlam import conversation_from_xlam
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Conversation, Message, Role, ToolCall

TOOL = {
    "name": "get_rate",
    "description": "A rate",
    "parameters": {"type": "object", "properties": {"base": {"type": "string"}}, "required": ["base"]},
}
CALL = {"name": "get_rate", "arguments": {"base": "USD"}}
WRAPPED = {"type": "function", "function": TOOL}


def log(row: Any, **options: Any) -> Conversation | Rejected:
    return conversation_from_log(row, "r", bundled_tools(), **options)


def kept(result: Conversation | Rejected) -> Conversation:
    assert isinstance(result, Conversation), result
    assert check_conversation(result) is None
    return result


XLAM = {
    "query": "rates for dollars?",
    "answers": json.dumps([CALL, {"name": "get_rate", "arguments": {"base": "EUR", "days": [1, 2]}}]),
    "tools": json.dumps(
        [
            {
                "name": "get_rate",
                "description": "A rate",
                "parameters": {
                    "base": {"description": "code", "type": "str"},
                    "days": {"type": "List[int], optional", "description": ""},
                    "limit": {"type": "int", "default": 10},
                    "where": {"type": "Union[str, int], optional"},
                },
            }
        ]
    ),
}


def test_xlam_rows_become_a_request_with_parallel_calls_and_json_schemas() -> None:
    conversation = kept(conversation_from_xlam(XLAM, "r"))
    assert conversation.category == "parallel_calls"
    assert [dict(call.arguments) for call in conversation.calls] == [{"base": "USD"}, {"base": "EUR", "days": [1, 2]}]
    schema = conversation.tools[0].parameters
    assert schema["required"] == ["base"]
    assert schema["properties"]["days"] == {"type": "array", "items": {"type": "integer"}}
    assert schema["properties"]["limit"] == {"type": "integer"}
    assert schema["properties"]["where"] == {}


HERMES = {
    "conversations": [
        {"from": "system", "value": f"You may call <tools>{json.dumps(WRAPPED)}</tools>"},
        {"from": "human", "value": "What is a dollar worth?"},
        {"from": "gpt", "value": f"Let me see.\n<tool_call>\n{CALL!r}\n</tool_call>"},
        {"from": "tool", "value": '<tool_response>\n{"rate": 1.1}\n</tool_response>'},
        {"from": "gpt", "value": "1.1 euros."},
    ]
}


@pytest.mark.parametrize("tools", [None, json.dumps([WRAPPED]), [WRAPPED]])
def test_hermes_rows_lose_their_instructions_and_keep_calls_and_results(tools: Any) -> None:
    conversation = kept(conversation_from_hermes({**HERMES, "tools": tools}, "r"))
    assert conversation.messages == (
        Message(Role.USER, "What is a dollar worth?"),
        Message(Role.ASSISTANT, "", (ToolCall("get_rate", {"base": "USD"}),)),
        Message(Role.TOOL, '{"rate": 1.1}', tool_name="get_rate"),
        Message(Role.ASSISTANT, "1.1 euros."),
    )
    assert conversation.metadata["repairs"] == [Repair.THOUGHT_DROPPED]


def test_sharegpt_rows_have_calls_and_observations_as_turns() -> None:
    row = {
        "tools": json.dumps([TOOL]),
        "conversations": [
            {"from": "human", "value": "What is a dollar worth?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "1.1"},
            {"from": "gpt", "value": "1.1 euros."},
        ],
    }
    conversation = kept(conversation_from_sharegpt(row, "r"))
    assert [m.role for m in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    row["conversations"][1] = {"from": "function_call", "value": json.dumps([CALL, CALL])}  # type: ignore[index]
    assert len(kept(conversation_from_sharegpt(row, "r")).calls) == 2


def test_glaive_texts_are_taken_apart() -> None:
    other = {**TOOL, "name": "other"}
    row = {
        "system": "SYSTEM: You have functions. Use them if required -\n"
        + "\n\n".join(json.dumps(tool, indent=4) for tool in (TOOL, other)),
        "chat": "USER: What is a dollar worth?\n\n\nASSISTANT: <functioncall> "
        '{"name": "get_rate", "arguments": \'{"base": "USD"}\'} <|endoftext|>\n\n\n'
        'FUNCTION RESPONSE: {"rate": 1.1}\n\n\nASSISTANT: 1.1 euros. <|endoftext|>',
    }
    conversation = kept(conversation_from_sharegpt(row, "r"))
    assert [tool.name for tool in conversation.tools] == ["get_rate", "other"]
    assert conversation.calls == (ToolCall("get_rate", {"base": "USD"}),)
    assert conversation.messages[2] == Message(Role.TOOL, '{"rate": 1.1}', tool_name="get_rate")


def test_when2call_rows_show_calls_and_refusals() -> None:
    ask = {"role": "user", "content": "What is a dollar worth?"}
    for answer, category in ((f"<TOOLCALL>[{json.dumps(CALL)}]</TOOLCALL>", "single_call"), ("I cannot.", "no_call")):
        reply = {"role": "assistant", "content": answer}
        row = {"tools": [json.dumps(TOOL)], "messages": [ask, reply]}
        assert kept(conversation_from_when2call(row, "r")).category == category
        preference = {"tools": [json.dumps(TOOL)], "messages": [ask], "chosen_response": reply, "rejected_response": {}}
        assert kept(conversation_from_when2call(preference, "r")).category == category


PYTHON_TYPED = {
    "name": "get_rate", "description": "A rate", "required": ["base"],
    "parameters": {"type": "dict", "properties": {
        "base": {"type": "str", "description": "code", "enum": ["USD", "EUR"]},
        "days": {"type": "int, optional"}, "exact": {"type": "bool", "default": True}}},
}  # fmt: skip


def test_when2calls_tools_in_pythons_words_become_json_schemas() -> None:
    ask = {"role": "user", "content": "What is a dollar worth?"}
    reply = {"role": "assistant", "content": f"<TOOLCALL>[{json.dumps(CALL)}]</TOOLCALL>"}
    row = {"tools": [json.dumps(PYTHON_TYPED)], "messages": [ask], "chosen_response": reply}
    assert kept(conversation_from_when2call(row, "r")).tools[0].parameters == {
        "type": "object",
        "properties": {
            "base": {"type": "string", "description": "code", "enum": ["USD", "EUR"]},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
        },
        "required": ["base"],
    }
    wrong = {**reply, "content": reply["content"].replace("USD", "GBP")}
    conversation = conversation_from_when2call({**row, "chosen_response": wrong}, "r")
    assert isinstance(conversation, Conversation)
    assert check_conversation(conversation) is not None


def test_of_hermes_on_the_hub_only_files_that_call_tools_are_read() -> None:
    names = ["func-calling.json", "func-calling-singleturn.json", "glaive-function-calling-5k.json"]
    others = ["json-mode-agentic.json", "json-mode-singleturn.json"]
    patterns = HermesSource(kind="hermes", hub="NousResearch/hermes-function-calling-v1").files
    assert [name for name in [*names, *others] if any(fnmatch(name, pattern) for pattern in patterns)] == names


LOG = {
    "messages": [{"role": "user", "content": "weather in Oslo"}],
    "calls": [{"name": "get_weather", "arguments": {"location": "Olso"}}],
    "model": "v7",
    "confidence": 0.4,
    "latency_ms": 12,
}
FIXED = {"calls": [{"name": "get_weather", "arguments": {"location": "Oslo"}}]}


def test_a_logged_answer_is_trained_as_it_was_or_as_it_was_corrected() -> None:
    plain, corrected = kept(log(LOG)), kept(log({**LOG, "correction": FIXED}))
    assert plain.calls[0].arguments == {"location": "Olso"}
    assert corrected.calls[0].arguments == {"location": "Oslo"}
    assert corrected.metadata["repairs"] == [Repair.ANSWER_CORRECTED]
    assert plain.metadata["log"] == {"model": "v7", "confidence": 0.4, "trust": Trust.MODEL}
    assert plain.tools == bundled_tools()


def test_a_refused_answer_without_a_correction_is_not_learned() -> None:
    for row, only in (({**LOG, "is_accepted": False}, False), (LOG, True)):
        rejected = log(row, only_corrected=only)
        assert isinstance(rejected, Rejected)
        assert rejected.reason is RejectReason.NOT_ACCEPTED
    assert kept(log({**LOG, "is_accepted": False, "correction": FIXED}, only_corrected=True))


def test_lines_of_one_session_stay_together_and_earlier_answers_are_not_trained_again() -> None:
    earlier = {"role": "assistant", "tool_calls": [FIXED["calls"][0]]}
    longer = [*LOG["messages"], earlier, {"role": "user", "content": "and in Rome?"}]  # type: ignore[misc]
    first, second = kept(log(LOG)), kept(log({**LOG, "messages": longer}))
    assert first.dialogue_id == second.dialogue_id
    assert [m.is_trained for m in second.messages if m.role is Role.ASSISTANT] == [False, True]
    assert kept(log({**LOG, "session_id": "s1"})).dialogue_id == "dispatch_log-s1"


ADAPTERS: dict[str, Callable[[Any], Conversation | Rejected]] = {
    "xlam": lambda row: conversation_from_xlam(row, "r"),
    "hermes": lambda row: conversation_from_hermes(row, "r"),
    "sharegpt": lambda row: conversation_from_sharegpt(row, "r"),
    "when2call": lambda row: conversation_from_when2call(row, "r"),
    "dispatch_log": log,
}


@pytest.mark.parametrize(
    ("adapter", "row", "reason"),
    [
        ("xlam", {}, RejectReason.MALFORMED_ROW),
        ("xlam", {**XLAM, "tools": "["}, RejectReason.INVALID_TOOLS),
        ("xlam", {**XLAM, "answers": "3"}, RejectReason.MALFORMED_CALL),
        ("xlam", {**XLAM, "answers": '[{"arguments": {}}]'}, RejectReason.MALFORMED_CALL),
        ("hermes", {"conversations": "x"}, RejectReason.MALFORMED_ROW),
        ("hermes", {"conversations": [{"from": "martian", "value": ""}]}, RejectReason.MALFORMED_ROW),
        ("hermes", {"conversations": HERMES["conversations"][1:]}, RejectReason.INVALID_TOOLS),
        (
            "hermes",
            {"tools": [TOOL], "conversations": [{"from": "gpt", "value": "<tool_call>{"}]},
            RejectReason.MALFORMED_CALL,
        ),
        ("hermes", {"tools": [TOOL], "conversations": [{"from": "tool", "value": "1"}]}, RejectReason.MALFORMED_ROW),
        ("sharegpt", [], RejectReason.MALFORMED_ROW),
        ("sharegpt", {"chat": "nobody speaks"}, RejectReason.MALFORMED_ROW),
        ("sharegpt", {"chat": "USER: a\nASSISTANT: <functioncall> {"}, RejectReason.MALFORMED_CALL),
        ("sharegpt", {"tools": "{", "conversations": []}, RejectReason.INVALID_TOOLS),
        ("when2call", {"messages": []}, RejectReason.MALFORMED_ROW),
        ("when2call", {"messages": [{"role": "assistant", "content": "<TOOLCALL>[1]</TOOLCALL>"}]},
         RejectReason.MALFORMED_CALL),
        ("dispatch_log", {"messages": []}, RejectReason.MALFORMED_ROW),
        ("dispatch_log", {"messages": [{"role": "user"}]}, RejectReason.MALFORMED_CALL),
        ("dispatch_log", {**LOG, "correction": {}}, RejectReason.MALFORMED_CALL),
    ],
)  # fmt: skip
def test_a_broken_row_is_rejected_under_its_reason(adapter: str, row: Any, reason: RejectReason) -> None:
    result = ADAPTERS[adapter](row)
    assert isinstance(result, Rejected)
    assert result.reason is reason


def test_a_source_is_either_here_or_on_the_hub() -> None:
    for places in ("", '"path": "a", "hub": "b/c",', '"hub": "no slash",'):
        with pytest.raises(ValidationError):
            DataConfig.model_validate_json(f'{{"sources": [{{{places} "kind": "hermes"}}]}}')


def test_a_hub_data_set_is_fetched_at_its_revision_and_its_commit_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / "0c0ffee"
    snapshot.mkdir(parents=True)
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = XlamSource(kind="xlam", hub="Salesforce/xlam-function-calling-60k", revision="main", files=("*.json",))
    with pytest.raises(DataFileError, match=r"no file that matches \*\.json"):
        fetched(source)
    (snapshot / "rows.json").write_text("[]", "utf-8")
    found = fetched(source)
    assert (found.path, found.revision) == (snapshot, "0c0ffee")  # type: ignore[union-attr]
    assert asked == {
        "name": "Salesforce/xlam-function-calling-60k",
        "repo_type": "dataset",
        "revision": "main",
        "allow_patterns": ["*.json"],
    }


def test_a_hub_data_set_that_cannot_be_fetched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(DataFileError, match=r"'a/b' .*no network"):
        fetched(HermesSource(kind="hermes", hub="a/b"))
