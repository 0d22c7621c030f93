"""Suite `toolbench`: held-out turns as cases, in their groups, and gold answers that pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data.groups import HeldoutGroup
from data.store import write_conversations
from eval.backends import PlaybackBackend
from eval.cases import Suite, SuiteError
from eval.evaluate import evaluate
from eval.matching import Outcome
from eval.results import EvalResult
from eval.suites import load_suite
from scripts import evaluate as evaluate_script
from tinydispatch.formats import render_calls
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall

FORECAST = Tool("forecast_for_weather", "", {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "number"}}})  # fmt: skip
CALL = ToolCall("forecast_for_weather", {"city": "Oslo", "days": 3})


def dialogue(number: int, group: str | None, *, is_first_trained: bool = True, **changes: Any) -> Conversation:
    """A request, a call, its result, and a reply in words."""
    return Conversation(
        messages=(
            Message(Role.USER, f"Weather, number {number}?"),
            Message(Role.ASSISTANT, tool_calls=(CALL,), is_trained=is_first_trained),
            Message(Role.TOOL, "rain", tool_name=FORECAST.name),
            Message(Role.ASSISTANT, "It rains."),
        ),
        tools=changes.get("tools", (FORECAST,)),
        source="toolbench",
        category="single_call",
        dialogue_id=f"d{number}",
        metadata={"heldout_group": group} if group else {},
    )


@pytest.fixture
def heldout(tmp_path: Path) -> Path:
    path = tmp_path / "heldout.jsonl"
    groups = [HeldoutGroup.G3_INSTRUCTION, HeldoutGroup.G1_INSTRUCTION, HeldoutGroup.G1_TOOL]
    rows = [dialogue(index, str(group)) for index, group in enumerate(groups)]
    write_conversations(path, [*rows, dialogue(9, None)])
    return path


def played(suite: Suite, *replies: str) -> EvalResult:
    return evaluate(
        PlaybackBackend({case.prompt: list(replies) for case in suite.cases}), suite, model_name="m", progress=False
    )


def test_every_trained_turn_of_a_group_is_a_case_and_gold_answers_pass(heldout: Path) -> None:
    suite = load_suite(heldout)
    assert suite.name == "toolbench"
    assert suite.categories == ("G1_instruction", "G1_tool", "G3_instruction")
    assert [case.id for case in suite.cases] == ["d0#1", "d0#3", "d1#1", "d1#3", "d2#1", "d2#3"]
    result = played(suite, render_calls([CALL]), "Bad weather, take a coat.")
    assert result.overall.hits == result.overall.total == 6


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (render_calls([ToolCall(CALL.name, {"city": "oslo", "days": 3})]), Outcome.WRONG_ARGUMENT),
        (render_calls([ToolCall(CALL.name, {"city": "Oslo"})]), Outcome.MISSING_ARGUMENT),
        (render_calls([ToolCall(CALL.name, {"city": "Oslo", "days": "3"})]), Outcome.SCHEMA_VIOLATION),
        (render_calls([ToolCall("other", {})]), Outcome.WRONG_TOOL),
        (render_calls([CALL, CALL]), Outcome.EXTRA_CALL),
        ("It rains.", Outcome.NO_CALL),
    ],
)
def test_a_reply_that_is_not_the_one_held_out_is_named(heldout: Path, reply: str, outcome: Outcome) -> None:
    result = played(load_suite(heldout), reply, render_calls([CALL]))
    assert [case.outcome for case in result.cases[:2]] == [outcome, Outcome.EXTRA_CALL]


def test_turns_without_loss_are_asked_for_in_no_case(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    write_conversations(path, [dialogue(0, "G1_tool", is_first_trained=False)])
    assert [case.id for case in load_suite(path).cases] == ["d0#3"]


def test_a_dialogue_without_tools_is_offered_none(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    write_conversations(path, [dialogue(0, None), dialogue(1, None, tools=())])
    suite = load_suite(path)
    assert suite.name == "heldout"
    assert [len(suite.tools_for(case)) for case in suite.cases] == [1, 1, 0, 0]


def many(path: Path, numbers: Sequence[int]) -> Path:
    write_conversations(path, [dialogue(number, "G1_tool") for number in numbers])
    return path


def test_a_drawn_suite_is_stable_by_dialogue(tmp_path: Path) -> None:
    few = load_suite(many(tmp_path / "a.jsonl", range(40)), max_per_category=10)
    more = load_suite(many(tmp_path / "b.jsonl", range(39, -1, -1)), max_per_category=10)
    assert len(few.cases) == 10
    assert {case.id for case in few.cases} == {case.id for case in more.cases}
    larger = load_suite(many(tmp_path / "c.jsonl", range(60)), max_per_category=10)
    assert len({case.id for case in few.cases} & {case.id for case in larger.cases}) >= 4


def test_the_fingerprint_follows_the_right_answers(heldout: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(heldout.read_text("utf-8").replace('"days":3', '"days":4'), "utf-8")
    assert load_suite(heldout).fingerprint != load_suite(other).fingerprint
    assert load_suite(heldout).fingerprint == load_suite(heldout).fingerprint


def test_files_that_hold_nothing_to_ask_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    with pytest.raises(SuiteError, match=r"h\.jsonl: cannot be read"):
        load_suite(path)
    path.write_text("{}\n")
    with pytest.raises(SuiteError, match=r"h\.jsonl:1: key 'messages' is missing"):
        load_suite(path)
    path.write_text("")
    with pytest.raises(SuiteError, match="holds no assistant turn"):
        load_suite(path)


def test_the_command_takes_the_file_and_says_where_toolbench_lies(
    heldout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = {case.prompt: [render_calls([CALL]), "Rain."] for case in load_suite(heldout).cases}
    monkeypatch.setattr("eval.evaluate.open_backend", lambda *_: PlaybackBackend(replies))
    assert evaluate_script.main(["a.gguf", "--suite", str(heldout), "--max-per-category", "1"]) == 0
    assert "suite toolbench" in capsys.readouterr().out
    assert evaluate_script.main(["a.gguf", "--suite", "toolbench"]) == 2
    assert "give --config of that run, or the path of its data/heldout.jsonl" in capsys.readouterr().err
