from __future__ import annotations

from collections.abc import Callable

import pytest

from data.config import FitStep
from data.fit import fit, shortened
from data.store import encode
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall

Weather = Callable[..., Conversation]
CALL = Message(Role.ASSISTANT, "", (ToolCall("gold", {"p": "x"}),))
EARLIER = Message(Role.ASSISTANT, "", (ToolCall("gold", {"p": "y"}),), is_trained=False)


def tool(name: str, words: int = 20) -> Tool:
    spec = {"type": "string", "description": "parameter words " * words, "enum": ["x", "y"]}
    schema = {"type": "object", "properties": {"p": spec, "description": spec}, "required": ["p"]}
    return Tool(name, "First sentence. " + "tool words " * words, schema)


@pytest.fixture
def long(weather: Weather) -> Conversation:
    """A called tool among five others, an old result and a new one, each of 1,000 characters."""
    tools = (tool("a"), tool("b"), tool("gold"), tool("c"), tool("d"), tool("e"))
    old, new = (Message(Role.TOOL, letter * 1000, tool_name="gold") for letter in "on")
    ask = Message(Role.USER, "do it, and then do it again")
    return weather(messages=(ask, EARLIER, old, EARLIER, new, CALL), tools=tools)


def length(conversation: Conversation) -> int:
    return len(encode(conversation))


def test_what_fits_is_left_as_it_is(long: Conversation) -> None:
    fitted = fit(long, length(long), length, FitStep)
    assert (fitted.conversation, fitted.steps) == (long, ())


def test_steps_follow_each_other_and_stop_where_the_limit_is_met(long: Conversation) -> None:
    seen = {}
    for limit in range(length(long), 0, -50):
        fitted = fit(long, limit, length, FitStep)
        assert fitted.length == length(fitted.conversation)
        seen.setdefault(fitted.steps, limit)
    assert list(seen) == [(), tuple(FitStep)[:1], tuple(FitStep)[:2], tuple(FitStep)]


def test_descriptions_get_shorter_and_schemas_stay_as_strict(long: Conversation) -> None:
    fitted = fit(long, length(long) - 1, length, FitStep)
    gold = fitted.conversation.tool("gold")
    assert gold is not None
    assert gold.description == "First sentence."
    assert list(gold.parameters["properties"]) == ["p", "description"]
    assert gold.parameters["properties"]["p"]["enum"] == ["x", "y"]
    assert gold.violations({"p": "z"})


def test_no_more_distractors_go_than_have_to_and_the_called_tool_never(long: Conversation) -> None:
    only = [FitStep.DISTRACTORS]
    whole = length(long)
    names = [tool.name for tool in fit(long, whole - 1, length, only).conversation.tools]
    assert names == ["a", "b", "gold", "c", "d"]
    assert [tool.name for tool in fit(long, 1, length, only).conversation.tools] == ["gold"]


def test_old_results_are_cut_and_the_one_that_is_answered_is_not(long: Conversation) -> None:
    fitted = fit(long, 1, length, FitStep)
    assert [len(m.content) for m in fitted.conversation.messages if m.role is Role.TOOL] == [64, 1000]
    assert fitted.conversation.calls == long.calls
    assert fitted.length > 1  # and the caller rejects it


def test_a_step_that_is_not_allowed_is_not_taken(long: Conversation) -> None:
    assert fit(long, 1, length, ()).conversation == long


def test_shortened_text_ends_at_a_sentence_or_a_word() -> None:
    assert shortened("One. Two three.", 10) == "One."
    assert shortened("alpha beta gamma", 12) == "alpha beta…"
    assert shortened("anything", 0) == ""
    assert shortened("fits", 4) == "fits"
