from __future__ import annotations

import random

import pytest

from eval.cases import Case, ExpectedCall, Suite
from scripts.calibrate_dispatch import Replies, answers, check, fit, main
from scripts.calibration_figures import brier_score, calibration_error, reliability, separation
from tests.fixtures_playback import TODAY, PlaybackRuntime
from tinydispatch.bundled import bundled_tools
from tinydispatch.calibration import UNREACHABLE, Scale
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
    assert "coverage  kept  wrong  error  at most" in report
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


def test_a_kind_that_was_never_wrong_keeps_its_scale_and_the_rest_is_fitted() -> None:
    replies = _made_up(200, 1.0)
    replies.tool.is_right = [True] * 200
    calibration, report = fit(replies, max_error=0.2)
    assert calibration.tool == Scale()
    assert calibration.reply != Scale()
    assert "keeps the model's own scale: cannot calibrate on 200 right and 0 wrong answers" in report


def test_one_wrong_answer_among_many_is_no_obstacle() -> None:
    replies = _made_up(200, 1.0)
    least = min(replies.tool.probabilities)
    replies.tool.is_right = [probability > least for probability in replies.tool.probabilities]
    calibration, report = fit(replies, max_error=0.2)
    assert calibration.tool != Scale()
    assert "tool" in report


def test_a_model_that_is_always_right_keeps_all_its_replies() -> None:
    replies = _made_up(100, 1.0)
    for judged in replies.kinds().values():
        judged.is_right = [True] * 100
    calibration, report = fit(replies, max_error=0.1)
    assert calibration.threshold == pytest.approx(min(replies.reply.probabilities))
    assert "at the threshold: 100 of 100 kept, 0 wrong" in report


def test_a_suite_without_replies_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="asks for no reply"):
        fit(Replies(), max_error=0.1)


def test_calls_whose_parts_cannot_be_told_apart_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.calibrate_dispatch.call_confidences", lambda *_: ())
    replies = _replies([_weather(location="Oslo")], _wanted(location="Oslo"))
    assert (replies.n_unread, len(replies.tool.is_right), replies.reply.is_right) == (1, 0, [True])
    assert "1 replies have calls whose parts cannot be told apart" in fit(replies, max_error=0.1)[1]


@pytest.mark.parametrize("option", ["--max-error", "--sureness"])
def test_shares_lie_between_nothing_and_all(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["absent.gguf", option, "1"]) == 2
    assert f"{option} 1: must lie between 0 and 1" in capsys.readouterr().err


def test_the_figures_are_those_of_their_definitions() -> None:
    confidences, is_right = [0.95, 0.85, 0.15, 0.05], [True, False, True, False]
    assert calibration_error(confidences, is_right) == pytest.approx((0.05 + 0.85 + 0.85 + 0.05) / 4)
    assert brier_score(confidences, is_right) == pytest.approx((0.05**2 + 0.85**2 + 0.85**2 + 0.05**2) / 4)
    assert separation(confidences, is_right) == 0.75
    assert separation([0.5, 0.5], [True, False]) == 0.5
    assert separation([0.5], [True]) is None
    assert reliability([0.95, 0.97, 1.0, 0.2], [True, True, False, False]).splitlines()[1:] == [
        "   0.2-0.3        1    20%     0%",
        "   0.9-1.0        3    97%    67%",
    ]
