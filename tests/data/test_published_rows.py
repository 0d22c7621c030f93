"""What the published sets hold beyond their documented shape: each seen in rows of the set that is named."""

from __future__ import annotations

import json

from data.clean import check_conversation
from data.rejected import Rejected, RejectReason, Repair
from data.sources.hermes import conversation_from_hermes
from data.sources.sharegpt import conversation_from_sharegpt
from data.sources.when2call import conversation_from_when2call
from data.sources.xlam import conversation_from_xlam
from tinydispatch.tools import Conversation, ToolCall

TOOL = {
    "name": "get_rate",
    "description": "A rate",
    "parameters": {"type": "object", "properties": {"base": {"type": "string"}}, "required": ["base"]},
}
CALL = {"name": "get_rate", "arguments": {"base": "USD"}}
WRAPPED = {"type": "function", "function": TOOL}


def kept(result: Conversation | Rejected) -> Conversation:
    assert isinstance(result, Conversation), result
    assert check_conversation(result) is None
    return result


def test_xlam_defaults_are_text_whatever_the_type_and_make_a_parameter_optional() -> None:
    tools = [
        {"name": "products", "description": "A list", "parameters": {
            "skip": {"description": "how many", "type": "int", "default": ""},
            "limit": {"description": "how many", "type": "int, optional", "default": "10"},
            "is_id": {"description": "the 'id'", "type": "int"}}},
        {"name": "reviews", "description": "", "parameters": {"points": {"type": "List[Tuple[float, float]]"},
                                                             "f": {"type": "Callable[[float], float]"}}},
    ]  # fmt: skip
    answers = [{"name": "products", "arguments": {"is_id": 8899}}] * 2
    row = {"id": 57546, "query": "Both?", "tools": json.dumps(tools), "answers": json.dumps(answers)}
    conversation = kept(conversation_from_xlam(row, "r"))
    assert conversation.category == "parallel_calls"
    assert conversation.tools[0].parameters["required"] == ["is_id"]
    assert conversation.tools[1].parameters["properties"] == {
        "points": {"type": "array", "items": {"type": "array"}},
        "f": {},
    }


def test_hermes_tools_stand_behind_the_instructions_that_name_their_tags() -> None:
    system = f"Signatures are within <tools> </tools> XML tags. <tools> {[WRAPPED]!r} </tools> Call in <tool_call>."
    calls = " ".join(
        f"<tool_call> {{'arguments': {{'base': '{code}'}}, 'name': 'get_rate'}} </tool_call>" for code in "ab"
    )
    turns = [{"from": "system", "value": system}, {"from": "human", "value": "a, b?"}, {"from": "gpt", "value": calls}]
    for tools in (None, "", []):
        assert len(kept(conversation_from_hermes({"conversations": turns, "tools": tools}, "r")).calls) == 2
    others = [{"role": turn["from"].replace("gpt", "model"), "content": turn["value"]} for turn in turns]
    assert len(kept(conversation_from_hermes({"conversations": others}, "r")).calls) == 2


def test_a_call_tag_that_the_text_ends_in_holds_whole_calls_or_none() -> None:
    row = {"tools": [TOOL], "messages": [{"role": "user", "content": "What is a dollar worth?"}]}
    reply = {"role": "assistant", "content": f"<TOOLCALL>[{json.dumps(CALL)}]"}
    conversation = kept(conversation_from_when2call({**row, "chosen_response": reply}, "r"))
    assert conversation.calls == (ToolCall("get_rate", {"base": "USD"}),)
    assert conversation.metadata["repairs"] == [Repair.CALL_TAG_LEFT_OPEN]
    for text in (reply["content"][:-1], f"<TOOLCALL>{json.dumps(CALL)} and then"):
        rejected = conversation_from_when2call({**row, "chosen_response": {**reply, "content": text}}, "r")
        assert isinstance(rejected, Rejected)
        assert rejected.reason is RejectReason.MALFORMED_CALL


def test_glaive_arguments_hold_apostrophes_and_a_row_may_have_no_functions() -> None:
    for name in ("O'Brien", "O\\'Brien"):
        chat = (
            "USER: books?\n\n\nASSISTANT: <functioncall> "
            f'{{"name": "get_rate", "arguments": \'{{"base": "{name}", "x": ""}}\'}} <|endoftext|>\n\n\n'
        )
        row = {"system": f"SYSTEM: Use them if required -\n{json.dumps(TOOL, indent=4)}\n\n", "chat": chat}
        found = conversation_from_sharegpt(row, "r")
        assert isinstance(found, Conversation)
        assert found.calls[0].arguments == {"base": "O'Brien", "x": ""}
    row = {"system": "SYSTEM: no access to external functions.", "chat": "USER: hi\n\n\nASSISTANT: Hi! <|endoftext|>"}
    assert kept(conversation_from_sharegpt(row, "r")).tools == ()
