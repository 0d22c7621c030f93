from __future__ import annotations

import random

import pytest

from eval.cases import Case, ExpectedCall, Suite
from scripts.calibrate_dispatch import Replies, answers, check, fit
from tests.fixtures_playback import TODAY, PlaybackRuntime
from tinydispatch.bundled import bundled_tools
from tinydispatch.calibration import UNREACHABLE
from tinydispatch.engine import Engine
from tinydispatch.formats import render_calls
from tinydispatch.tools import Message, Role, ToolCall

_TOOLS = tuple(tool for tool in bundled_tools() if tool.name in ("get_weather", "get_current_time"))


def _suite(*expected: ExpectedCall) -> Suite:
    case = Case("one", "any", (Message(Role.USER, "?"),), expected, TODAY)
    return Suite("s", "", _TOOLS, ("any",), (case,), "")


def _replies(said: list[ToolCall], *expected: ExpectedCall) -> Replies:
    return answers(Engine(PlaybackRuntime(render_calls(said))), _suite(*expected))


def _weather(**arguments: str) -> ToolCall:
    return ToolCall("get_weather", arguments)


def _wanted(**arguments: str) -> ExpectedCall:
    return ExpectedCall("get_weather", arguments)


def test_tool_and_arguments_are_judged_each_on_its_own() -> None:
    replies = _replies([_weather(location="Oslo", units="celsius")], _wanted(location="Oslo", units="fahrenheit"))
    assert replies.reply.is_right == [False]
    assert replies.tool.is_right == [True]
    assert replies.argument.is_right == [True, False]


def test_an_argument_that_nobody_wanted_is_wrong() -> None:
    assert _replies([_weather(location="Oslo", units="celsius")], _wanted(location="Oslo")).argument.is_right == [
        True,
        False,
    ]


def test_a_tool_that_is_not_wanted_is_wrong_and_its_arguments_are_not_judged() -> None:
    replies = _replies([ToolCall("get_current_time", {"timezone": "UTC"})], _wanted(location="Oslo"))
    assert (replies.tool.is_right, replies.argument.is_right) == ([False], [])


def test_of_two_calls_to_one_tool_each_meets_its_own() -> None:
    said = [_weather(location="Rome"), _weather(location="Oslo")]
    replies = _replies(said, _wanted(location="Oslo"), _wanted(location="Rome"))
    assert replies.argument.is_right == [True, True]
    twice = _replies([_weather(location="Oslo")] * 2, _wanted(location="Oslo"))
    assert twice.tool.is_right == [True, False]


def _made_up(n_cases: int, share_right: float) -> Replies:
    rng = random.Random(3)
    replies = Replies()
    for number in range(n_cases):
        for judged in (replies.reply, replies.tool, replies.argument):
            probability = rng.random()
            judged.add(probability, number, is_right=rng.random() < share_right * probability)
    return replies


def test_the_report_gives_the_error_at_each_coverage_and_the_threshold_keeps_it_low() -> None:
    replies = _made_up(400, 1.0)
    calibration, report = fit(replies, max_error=0.2, model="m")
    assert calibration.model == "m"
    assert 0.2 < calibration.threshold < 1
    assert "coverage  kept  wrong  error" in report
    kept = int(report.rsplit("at the threshold: ", 1)[1].split()[0])
    wrong = int(report.rsplit(" kept, ", 1)[1].split()[0])
    assert 0 < wrong <= 0.2 * kept
    assert "expected calibration error" in check(_made_up(50, 1.0), calibration)


def test_a_model_that_is_too_often_wrong_gets_no_threshold() -> None:
    calibration, report = fit(_made_up(200, 0.3), max_error=0.01)
    assert calibration.threshold == UNREACHABLE
    assert "at the threshold: 0 of 200 kept, 0 wrong" in report


def test_the_confidence_of_a_case_never_comes_from_a_scale_that_has_seen_it() -> None:
    replies = _made_up(100, 1.0)
    before = replies.reply.cross_validated()
    replies.reply.is_right[0] = not replies.reply.is_right[0]
    after = replies.reply.cross_validated()
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_too_few_cases_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="reply: cannot calibrate on"):
        fit(_replies([_weather(location="Oslo")], _wanted(location="Oslo")), max_error=0.1)
