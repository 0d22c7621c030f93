from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import llguidance
import numpy as np
import pytest

from tests.fixtures_playback import TODAY, WEATHER, PlaybackRuntime
from tinydispatch import formats
from tinydispatch.bundled import bundled_tools
from tinydispatch.decoding.constraint import best
from tinydispatch.decoding.lookup import lookup
from tinydispatch.decoding.rules import GrammarError
from tinydispatch.decoding.schema import KeyOrder
from tinydispatch.engine import Completion, Engine, EngineOptions
from tinydispatch.tools import Message, Role, Tool, ToolCall

# Pieces as a tokenizer makes them: some end where a string's content may begin, which no grammar can settle.
_WORDS = ('{"', '":', ' "', ' "(', '", "', '"}}', "name", "arguments", "location", "get_weather", "Oslo", "os", "lo")
_OSLO = formats.render_calls([ToolCall("get_weather", {"location": "Oslo"})])


def _complete(
    runtime: PlaybackRuntime, options: EngineOptions | None = None, tools: Sequence[Tool] = (WEATHER,), asked: str = "?"
) -> Completion:
    messages = formats.with_reference_date([Message(Role.USER, asked)], TODAY)
    return Engine(runtime, options).complete(messages, tools, 600)


_VALID = [
    "Which city?",
    "",
    "I can't do that. <b>Sorry</b> — 1 < 2 🎉",
    _OSLO,
    _OSLO + formats.render_calls([ToolCall("get_weather", {"location": "Rome"})]),
    "Let me see. " + _OSLO,
    formats.render_calls([ToolCall("get_weather", {"location": '(so-called) "Paris"\n\\ ☃'})]),
    formats.render_calls([ToolCall("get_weather", {"location": ""})]),
]


@pytest.mark.parametrize("reply", _VALID)
@pytest.mark.parametrize("words", [(), _WORDS], ids=["bytes", "words"])
@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(),
        EngineOptions(key_order=KeyOrder.ANY),
        EngineOptions(forces_ids=False),
        EngineOptions(n_draft_ids=0),
        EngineOptions(reuses_prefix=False),
    ],
    ids=["all", "any order", "unforced", "no guesses", "no prefix"],
)
def test_a_reply_that_is_valid_is_left_as_it_is(reply: str, words: Sequence[str], options: EngineOptions) -> None:
    runtime = PlaybackRuntime(reply, words=words)
    completion = _complete(runtime, options)
    assert (completion.text, completion.is_complete) == (reply, True)
    # The very ids that the tokenizer makes of the reply, forced ones included.
    ids = list(runtime.cached_ids[completion.tokens.prompt :])
    assert ids[: completion.tokens.generated] == runtime.tokenize(reply, parse_special=True)[: len(ids)]


def test_keys_in_another_order_than_the_schemas_are_kept_where_any_order_is_allowed() -> None:
    arguments = {"date": "2026-03-20", "location": "Oslo"}
    reply = formats.render_calls([ToolCall("get_weather", arguments)])
    completion = _complete(PlaybackRuntime(reply), EngineOptions(key_order=KeyOrder.ANY), bundled_tools())
    assert completion.text == reply


@pytest.mark.parametrize(
    "reply",
    [
        '<tool_call>{"name": "get_wether", "arguments": {"location": "Oslo"}}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": {"place": "Oslo"}}</tool_call>',
        '<tool_call>{"name":"get_weather","arguments":{"location":3}}</tool_call>',
        "<tool_call>nonsense",
        "<tool_call>{}</tool_call>",
    ],
)
def test_a_reply_that_is_not_valid_becomes_one_that_is_or_is_cut(reply: str) -> None:
    completion = _complete(PlaybackRuntime(reply))
    parsed = formats.parse_reply(completion.text)
    if completion.is_complete:
        assert parsed.calls
        assert not parsed.unparsed
    assert all(call.name == "get_weather" and isinstance(call.arguments["location"], str) for call in parsed.calls)


def test_forced_ids_are_evaluated_together() -> None:
    runtime = PlaybackRuntime(_OSLO)
    completion = _complete(runtime, EngineOptions(n_draft_ids=0))
    batches = [runtime.detokenize(ids) for ids in runtime.decoded[1:]]
    assert '{"name": "get_weather", "arguments": {"location": "' in "".join(batches[:2])
    assert completion.tokens.forced > 45
    assert len(batches) < 12


def test_guesses_from_the_prompt_save_evaluations_and_wrong_ones_are_taken_back() -> None:
    asked = "Weather in Oslofjorden please, Oslofest later"
    for place, saves in (("Oslofjorden", True), ("Osloxyz", False)):
        reply = formats.render_calls([ToolCall("get_weather", {"location": place})])
        with_guesses, without = PlaybackRuntime(reply), PlaybackRuntime(reply)
        guessed = _complete(with_guesses, asked=asked)
        plain = _complete(without, EngineOptions(n_draft_ids=0), asked=asked)
        assert guessed.text == plain.text == reply
        assert guessed.tokens.drafted > 0
        if saves:
            assert guessed.tokens.accepted > 0
            assert len(with_guesses.decoded) < len(without.decoded)


def test_a_reply_never_outgrows_the_context() -> None:
    reply = formats.render_calls([ToolCall("get_weather", {"location": "O" * 300})])
    n_prompt = _complete(PlaybackRuntime("x")).tokens.prompt
    for room in (1, 2, 30, 91, 120):
        completion = _complete(PlaybackRuntime(reply, n_ctx=n_prompt + room))
        assert not completion.is_complete
        assert completion.tokens.generated <= room + 90  # forced ids may be known that are never evaluated


def test_probabilities_are_shares_among_what_is_allowed() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    assert best(logits, None) == (0, pytest.approx(0.5))
    assert best(logits, np.array([False, True, True])) == (1, pytest.approx(0.6))
    assert best(logits, np.array([False, False, True])) == (2, 1.0)


def test_lookup_continues_the_latest_longest_match() -> None:
    assert lookup([1, 2, 3, 9, 1, 2, 4], [1, 2], 2) == [4]
    assert lookup([7, 1, 2, 3, 9, 1, 2, 4], [7, 1, 2], 2) == [3, 9]
    assert lookup([1, 2, 3], [5], 2) == []
    assert lookup([1, 2, 3], [8, 9], 2) == []


def test_a_grammar_that_gives_up_is_an_error_with_the_tools_name_and_no_empty_reply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    properties = {f"key {index}": {"type": "integer", "maximum": index + 1} for index in range(60)}
    tool = Tool("wide", "", {"type": "object", "properties": properties})
    reply = formats.render_calls([ToolCall("wide", {"key 3": 1})])
    assert _complete(PlaybackRuntime(reply), tools=[tool]).text == reply
    small = llguidance.LLParserLimits(max_items_in_row=40)
    limited = SimpleNamespace(LLMatcher=partial(llguidance.LLMatcher, limits=small))
    monkeypatch.setattr("tinydispatch.engine.llguidance", limited)
    with pytest.raises(GrammarError, match=r"the grammar failed while the reply was written: .*40") as caught:
        _complete(PlaybackRuntime(reply), tools=[tool])
    assert caught.value.tool == "wide"


def test_a_grammar_that_gives_up_before_a_name_is_written_names_the_tools_on_offer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = llguidance.LLParserLimits(max_items_in_row=40)
    limited = SimpleNamespace(LLMatcher=partial(llguidance.LLMatcher, limits=small))
    monkeypatch.setattr("tinydispatch.engine.llguidance", limited)
    tools = [Tool(f"tool_{number}", "", {"type": "object", "properties": {}}) for number in range(60)]
    with pytest.raises(GrammarError, match=r"tool 'tool_0, tool_1, .*: the grammar failed") as caught:
        _complete(PlaybackRuntime(formats.render_calls([ToolCall("tool_7", {})])), tools=tools)
    assert caught.value.tool.endswith("tool_59")
