from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from data.augment import Augmenter, SimilarTools, is_first_call
from data.clean import check_conversation
from data.config import AugmentConfig
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall

Weather = Callable[..., Conversation]


def augmented(conversation: Conversation, pool: tuple[Tool, ...] = (), seed: int = 0, **shares: Any) -> Conversation:
    return Augmenter(AugmentConfig(**shares), seed, pool).augment(conversation)[0]


def test_nothing_changes_by_default(weather: Weather) -> None:
    assert Augmenter(AugmentConfig(), 0).augment(weather()) == (weather(), ())


def test_without_its_tool_a_request_is_declined(weather: Weather) -> None:
    changed = augmented(weather(), no_call=1.0)
    assert "get_weather" not in [tool.name for tool in changed.tools]
    assert len(changed.tools) == 7
    assert (changed.calls, changed.category) == ((), "no_call")
    assert changed.messages[-1].content
    assert check_conversation(changed) is None


def test_a_step_after_a_result_is_never_made_a_no_call_row(weather: Weather) -> None:
    first = weather()
    later = replace(first, messages=(*first.messages, Message(Role.TOOL, "{}"), first.messages[-1]))
    assert is_first_call(first)
    assert not is_first_call(later)
    assert augmented(later, no_call=1.0) == later


def test_masked_names_stand_alike_in_the_list_the_calls_and_the_results(weather: Weather) -> None:
    result = Message(Role.TOOL, "sun", tool_name="get_weather")
    changed = augmented(weather(messages=(*weather().messages, result)), mask_names=1.0)
    call = changed.calls[0]
    assert call.name.startswith("tool_")
    assert dict(call.arguments) == {"p1": "Oslo"}
    assert changed.messages[-1].tool_name == call.name
    assert len({tool.name for tool in changed.tools}) == 8
    assert check_conversation(changed) is None
    tool = changed.tool(call.name)
    assert tool is not None
    assert tool.parameters["required"] == ["p1"]


def test_parameters_that_a_schema_names_twice_keep_their_names(weather: Weather) -> None:
    properties = {"a": {"type": "string"}, "b": {"type": "string"}}
    for more in ({"dependentRequired": {"a": ["b"]}}, {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}):
        arguments = {"a": "x", "b": "y"} if "oneOf" not in more else {"b": "y"}
        tool = Tool("f", "", {"type": "object", "properties": properties, **more})
        call = Message(Role.ASSISTANT, "", (ToolCall("f", arguments),))
        changed = augmented(weather(tools=(tool,), messages=(weather().messages[0], call)), mask_names=1.0)
        assert changed.calls[0].name != "f"
        assert check_conversation(changed) is None


def test_added_tools_resemble_the_called_one_and_are_no_twins_of_it(weather: Weather) -> None:
    def made(name: str, description: str) -> Tool:
        return Tool(name, description, {"type": "object", "properties": {}})

    gold = next(tool for tool in bundled_tools() if tool.name == "get_weather")
    pool = (
        made("weather_get", gold.description),
        made("weather_history", "Weather of past days for a location"),
        made("play_song", "Play music"),
        gold,
    )
    found = SimilarTools(pool).to(weather(tools=(gold,)), 3)
    assert [tool.name for tool in found] == ["weather_history"]
    changed = augmented(weather(tools=(gold,)), pool, distractors=1.0)
    assert {tool.name for tool in changed.tools} == {"get_weather", "weather_history"}
    assert changed.calls == weather().calls


def test_shuffling_changes_the_order_alone(weather: Weather) -> None:
    changed = augmented(weather(), shuffle_tools=1.0)
    assert changed.tools != weather().tools
    assert sorted(tool.name for tool in changed.tools) == sorted(tool.name for tool in weather().tools)
    assert replace(changed, tools=weather().tools) == weather()


@pytest.mark.parametrize("name", ["no_call", "mask_names", "shuffle_tools"])
def test_a_share_is_drawn_by_the_seed_and_comes_out_alike(weather: Weather, name: str) -> None:
    rows = [weather(dialogue_id=f"d{i}") for i in range(400)]
    shares: dict[str, Any] = {name: 0.3}
    changed = [augmented(row, **shares) != row for row in rows]
    assert 80 < sum(changed) < 160
    assert changed == [augmented(row, **shares) != row for row in rows]
    assert changed != [augmented(row, seed=1, **shares) != row for row in rows]


def test_the_rows_of_a_dialogue_change_alike_so_that_they_can_be_joined(weather: Weather) -> None:
    first = weather(dialogue_id="d")
    call = Message(Role.ASSISTANT, "", (ToolCall("get_weather", {"location": "Rome"}),))
    second = replace(first, messages=(*first.messages, call))
    shares = {"mask_names": 1.0, "shuffle_tools": 1.0}
    one, two = augmented(first, **shares), augmented(second, **shares)
    assert one.tools == two.tools
    assert two.messages[: len(one.messages)] == one.messages
