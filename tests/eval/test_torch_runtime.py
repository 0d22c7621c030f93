"""Checkpoints under the tools' grammar: decoded by the engine that decodes GGUF files."""

import datetime as dt

import pytest

from eval.backends import Generation, Request, open_backend
from eval.config import EvalConfig
from tests.fixtures_gguf import QUESTION, TAUGHT_CALL, TODAY, WEATHER, taught_export, tiny_export
from tinydispatch.bundled import bundled_tools
from tinydispatch.formats import parse_reply
from tinydispatch.tools import Message, Role, check_calls


def request(text: str, today: dt.date = TODAY) -> Request:
    return Request((Message(Role.USER, text),), (WEATHER,), today, 0)


def reply(model: object, text: str, **settings: object) -> str:
    with open_backend(str(model), EvalConfig(max_new_tokens=48, **settings)) as backend:
        (generation,) = backend.generate([request(text)])
    assert isinstance(generation, Generation), generation
    return generation.text


def test_a_checkpoint_and_its_file_write_the_same_under_the_grammar() -> None:
    report = taught_export()
    f16 = next(file.path for file in report.files if "f16" in file.path.name)
    for text in (QUESTION, "Something that it was never taught"):
        assert reply(report.checkpoint, text) == reply(f16, text)
    assert parse_reply(reply(report.checkpoint, QUESTION)).calls == (TAUGHT_CALL,)


def test_under_the_grammar_even_a_random_checkpoint_writes_calls_that_fit() -> None:
    checkpoint = tiny_export().checkpoint
    with open_backend(str(checkpoint), EvalConfig(max_new_tokens=200)) as backend:
        replies = backend.generate([request(f"question {number}") for number in range(6)])
    calls = [call for one in replies if isinstance(one, Generation) for call in parse_reply(one.text).calls]
    assert check_calls(calls, (WEATHER,)) == []


def test_requests_in_a_row_share_a_prompt_and_answer_as_alone() -> None:
    checkpoint = taught_export().checkpoint
    texts = [QUESTION, "Oslo?", QUESTION, "Rain in Rome tomorrow?"]
    with open_backend(str(checkpoint), EvalConfig(max_new_tokens=48)) as backend:
        together = [one.text for one in backend.generate([request(text) for text in texts])]
    assert together == [reply(checkpoint, text) for text in texts]


def test_a_prompt_that_does_not_fit_is_a_failure_and_no_reply() -> None:
    with open_backend(str(tiny_export().checkpoint), EvalConfig(n_ctx=64)) as backend:
        (answer,) = backend.generate([Request((Message(Role.USER, "x " * 300),), bundled_tools(), TODAY, 0)])
    assert not isinstance(answer, Generation)
    assert "does not fit" in answer.reason


@pytest.mark.parametrize("constrained", [True, False])
def test_both_ways_give_a_reply(constrained: bool) -> None:
    assert reply(taught_export().checkpoint, QUESTION, constrained=constrained)
