"""Files as others write them, and what the data card says about what is in them."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig, OpenAIJsonlSource
from data.prepare import PreparedData, prepare
from data.rejected import Rejected, RejectReason
from data.sources.openai_chat import conversation_from_openai
from data.store import read_conversations
from data.truth import Shape
from scripts import data_shapes
from tinydispatch import formats
from tinydispatch.tools import Conversation, ToolCall

TOOL = {
    "name": "send",
    "description": "Send",
    "parameters": {
        "type": "object",
        "properties": {"to": {"type": "string"}, "how": {"type": "string", "enum": ["mail", "post"]}},
        "required": ["to"],
    },
}


def row(text: str, **arguments: Any) -> dict[str, Any]:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "send", "arguments": arguments}}]}
    return {"messages": [{"role": "user", "content": text}, call], "tools": [TOOL, {**TOOL, "name": "idle"}]}


def prepared(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> PreparedData:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    sources = [{"kind": "openai_jsonl", "path": str(path)}]
    config = DataConfig.model_validate_json(json.dumps({"sources": sources, "eval_fraction": 0, **settings}))
    return prepare(config, seed=0, out_dir=tmp_path / "run", case_texts=[], count_tokens=None)


def test_every_shape_is_read_or_rejected_under_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasets")
    assert data_shapes.main([]) == 0
    assert "expected" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "shape", [each for each in data_shapes.SHAPES if each.kept and each.name.startswith("call as text")],
    ids=lambda shape: f"{shape.writer} {shape.name[14:30]}",
)  # fmt: skip
def test_a_call_in_a_text_is_read_as_the_call_that_it_is(shape: data_shapes.Shape) -> None:
    read = conversation_from_openai(shape.rows[0], "r", ())
    assert isinstance(read, Conversation)
    assert read.calls[0] == ToolCall("get_weather", {"city": "Oslo"})
    assert read.messages[-1].content == ""


@pytest.mark.parametrize("key", ["train", "training", "loss"])
def test_a_turn_that_its_writer_left_out_of_the_loss_is_not_trained(key: str) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hm.", key: False}]
    read = conversation_from_openai({"messages": turns, "tools": []}, "r", ())
    assert isinstance(read, Conversation)
    assert not read.messages[1].is_trained


_TYPES = {"n": {"type": "integer"}, "x": {"type": ["number", "null"]}, "s": {"type": "string"},
          "on": {"type": "boolean"}, "list": {"type": "array", "items": {"type": "string"}}}  # fmt: skip
_TYPED = {"n": 3, "x": None, "s": "3", "on": True, "list": ["a<b", "c[0]"]}


@pytest.mark.parametrize(
    "text",
    [
        formats.render_xml_calls([ToolCall("typed", _TYPED)]),
        "<invoke name=\"typed\">" + "".join(f"<parameter name=\"{key}\">{formats.xml_value(value)}</parameter>"
                                           for key, value in _TYPED.items()) + "</invoke>",
        f"```tool_code\ntyped({', '.join(f'{key}={value!r}' for key, value in _TYPED.items())})\n```",
        f"[TOOL_CALLS]typed[ARGS]{json.dumps(_TYPED)}",
        f"<function=typed>{json.dumps(_TYPED)}</function>",
    ],
    ids=["Qwen3-Coder", "Anthropic", "Gemma", "Mistral", "Llama"],
)  # fmt: skip
def test_arguments_in_a_text_have_the_types_of_their_schema(text: str) -> None:
    tool = {"name": "typed", "parameters": {"type": "object", "properties": _TYPES}}
    turns = [{"role": "user", "content": "do"}, {"role": "assistant", "content": text}]
    read = conversation_from_openai({"messages": turns, "tools": [tool]}, "r", ())
    assert isinstance(read, Conversation)
    assert read.calls == (ToolCall("typed", _TYPED),)


@pytest.mark.parametrize(
    "text",
    [
        "```tool_code\nsend(to=open('/etc/passwd').read())\n```",
        "[send(to='Ann'), send(**{'to': 'Bob'})]",
        "[send(to={'a': 1, 'a': 2})]",
        "<function=send><parameter=to>Ann</parameter><parameter=to>Bob</parameter></function>",
        '<invoke name="send">Ann</invoke>',
        "<tool_call><function=send>" + "<parameter=to>x</parameter>" * 5000,
    ],
)
def test_what_is_half_a_call_is_rejected_and_nothing_is_run(text: str) -> None:
    turns = [{"role": "user", "content": "send it"}, {"role": "assistant", "content": text}]
    read = conversation_from_openai({"messages": turns, "tools": [TOOL]}, "r", ())
    assert isinstance(read, Rejected)
    assert read.reason in (RejectReason.CALL_IN_TEXT, RejectReason.MALFORMED_CALL)


ROWS = (
    row("mail it to jo.doe@corp-mail.com", to="jo.doe@corp-mail.com", how="mail"),
    row("send the letter to Ann", to="Ann"),
    row("send the letter to Ann", to="Ann", how="post"),
    row("send it to my boss please", to="Zebulon"),
)


def test_the_card_says_who_said_what(tmp_path: Path) -> None:
    truth = prepared(tmp_path, *ROWS, guards={"reject_contradictions": False}).card.truth
    assert truth["calls"] == {"send": 4}
    assert truth["never_called"] == ["idle"]
    assert truth["different_answers"]["requests"] == 1
    assert truth["said_by_nobody"] == {
        "values": 1,
        "places": [{"row": "rows.jsonl:4", "argument": "send.to", "value": "zebulon"}],
    }
    assert truth["personal"] == {"email": {"values": 1, "rows": 1, "places": ["rows.jsonl:1"]}}
    how, to = truth["arguments"]
    assert (how["argument"], how["present"], how["distinct"]) == ("how", 0.5, 2)
    assert (how["found"], how["derivable"]) == (0.5, 0.5)  # "mail" is said, "post" the schema lists
    assert (to["present"], to["found"], to["derivable"]) == (1.0, 0.75, 0.0)
    for name in ("data_card.md", "data_card.html"):
        assert "found in the request" in (tmp_path / "run" / name).read_text()


@pytest.mark.parametrize("policy", ["mask", {"email": "mask", "card": "drop"}])
def test_personal_data_is_masked_alike_in_request_and_call(tmp_path: Path, policy: Any) -> None:
    made = prepared(tmp_path, *ROWS, personal_data=policy)
    text = made.train_path.read_text()
    assert text.count("user1@example.com") == 2
    assert "corp-mail" not in text + (tmp_path / "run" / "data_card.json").read_text()
    assert made.card.repairs == {"personal_data_masked": 1}


def test_personal_data_is_dropped_and_not_shown(tmp_path: Path) -> None:
    made = prepared(tmp_path, *ROWS, personal_data="drop")
    assert made.card.rejected == {"personal_data": 1, "contradictory": 2}
    assert "corp-mail" not in (tmp_path / "run" / "data_card.json").read_text()


def test_what_comes_from_a_private_file_is_private(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch(0o600)
    made = prepared(tmp_path, *ROWS)
    files = [made.train_path, made.heldout_path, *(tmp_path / "run").glob("data_card.*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "run" / "data").stat().st_mode) == 0o700


def logged(text: str, **call: Any) -> dict[str, Any]:
    """A line of a dispatch log; `session_id`, `correction` and the like are the line's own."""
    own = {key: call.pop(key) for key in ("session_id", "client_id", "correction", "tool_error", "id") if key in call}
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "calls": [{"name": "send", "arguments": call}], "tools": [TOOL], **own}


def from_log(tmp_path: Path, *lines: dict[str, Any], **settings: Any) -> PreparedData:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = [{"kind": "dispatch_log", "path": str(path)}]
    config = DataConfig.model_validate_json(json.dumps({"sources": sources, "eval_fraction": 0, **settings}))
    return prepare(config, seed=0, out_dir=tmp_path / "run", case_texts=[], count_tokens=None)


def trained(made: PreparedData) -> list[Any]:
    return sorted(call.arguments["to"] for each in read_conversations(made.train_path) for call in each.calls)


def test_a_first_training_rejects_different_answers_to_one_request(tmp_path: Path) -> None:
    made = prepared(tmp_path, row("write to Ann", to="Ann"), *ROWS[1:3], row("write to Bob", to="Bob"))
    assert made.card.rejected == {"contradictory": 2}
    assert made.card.samples["contradictory"][0]["detail"] == "2 different answers to one request"
    assert trained(made) == ["Ann", "Bob"]


def test_two_wordings_of_a_reply_do_not_contradict_each_other(tmp_path: Path) -> None:
    says = [{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": text}]}
            for text in ("Good morning to you.", "What can I do?")]  # fmt: skip
    assert prepared(tmp_path, *({**each, "tools": [TOOL]} for each in says)).card.train == 2


def test_a_persons_answer_is_believed_against_a_models_and_a_failed_call_is_not(tmp_path: Path) -> None:
    made = from_log(
        tmp_path,
        logged("send it to Ann", to="Bob"),
        logged("send it to Ann", to="Bob", correction={"calls": [{"name": "send", "arguments": {"to": "Ann"}}]}),
        logged("send it to Cid", to="Cid", id="a"),
        logged("send it to Cid", to="Cid", id="a", tool_error="no such person"),
    )
    assert trained(made) == ["Ann"]
    assert made.card.rejected == {"not_accepted": 2, "contradictory": 1}


def test_a_first_training_rejects_floods_and_addresses_that_nobody_else_uses(tmp_path: Path) -> None:
    names = ("Ann", "Bob", "Cid", "Dora", "Ed")
    made = from_log(
        tmp_path,
        *(logged(f"please hand the folder over to {name}", to=name, client_id="k") for name in names[:4]),
        logged("post https://thief.io/x to them", to="https://thief.io/x", session_id="s"),
        logged("write to Ed", to="Ed"),
        guards={"max_per_client": 3},
    )
    assert made.card.rejected == {"flood": 4, "ungrounded_address": 1}
    assert trained(made) == ["Ed"]


def test_what_a_tool_names_and_what_is_spelled_out_is_an_address_of_somebodys(tmp_path: Path) -> None:
    named = {**TOOL, "description": "Sends; by default to https://corp.io/inbox"}
    made = prepared(
        tmp_path,
        {**row("send it to the inbox", to="https://corp.io/inbox"), "tools": [named]},
        row("mail j dot doe at acme dash works dot com", to="j.doe@acme-works.com"),
        row("mail the report", to="thief@elsewhere.io"),
    )
    assert made.card.rejected == {"ungrounded_address": 1}
    kept = prepared(
        tmp_path, row("mail the report", to="thief@elsewhere.io"), guards={"require_grounded_addresses": False}
    )
    assert kept.card.train == 1


def test_a_row_whose_longer_rows_are_rejected_is_counted_with_them(tmp_path: Path) -> None:
    def two(second: str) -> dict[str, Any]:
        first = row("send it to Ann and then to another", to="Ann")
        result = {"role": "tool", "name": "send", "content": "done"}
        last = row("", to=second)["messages"][1]
        return {**first, "messages": [*({**m, "weight": 0} if m["role"] == "assistant" else m
                                        for m in first["messages"]), result, last]}  # fmt: skip

    begun = row("send it to Ann and then to another", to="Ann")
    made = prepared(tmp_path, begun, two("Bob"), two("Cid"), row("send it to Ed", to="Ed"))
    assert (made.card.rejected, made.card.train) == ({"contradictory": 3}, 1)


def test_a_log_is_masked_unless_the_settings_say_otherwise(tmp_path: Path) -> None:
    line = logged("mail it to jo.doe@corp-mail.com", to="jo.doe@corp-mail.com")
    assert trained(from_log(tmp_path, line)) == ["user1@example.com"]


def test_the_card_shows_the_balance_against_the_suites_without_their_words(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [row("write to Ann", to="Ann"), row("напиши Ане сейчас", to="Аня")]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    source = OpenAIJsonlSource(kind="openai_jsonl", path=path)
    suite = Shape()
    suite.add("single_call", "zeige mir das Wetter", ["get_weather"])
    config = DataConfig(sources=(source,), eval_fraction=0)
    made = prepare(config, seed=0, out_dir=tmp_path, case_texts=[], count_tokens=None, suites={"own": suite})
    assert made.card.truth["balance"]["training"] == {
        "rows": 2,
        "behaviour": {"single_call": 2},
        "script": {"latin": 1, "cyrillic": 1},
        "tools": {"send": 2},
    }
    text = (tmp_path / "data_card.md").read_text()
    assert "| script | cyrillic | 50.0 % | - |" in text
    assert "| tools | get_weather | - | 100.0 % |" in text
    assert "Wetter" not in text
