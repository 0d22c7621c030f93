from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from tests.fixtures_gguf import QUESTION, TAUGHT_CALL, TODAY, WEATHER, PlaybackRuntime, taught_export
from tinydispatch import formats
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.engine import shared_prefix
from tinydispatch.ggml.header import GgufError
from tinydispatch.tools import Message, Role, ToolCall


def _prompt_text(runtime: PlaybackRuntime) -> str:
    return runtime.detokenize(runtime.cached_ids[: len(runtime.decoded[0])])


def test_a_reply_with_calls_becomes_calls() -> None:
    calls = (ToolCall("get_weather", {"location": "Oslo"}), ToolCall("get_weather", {"location": "Rome"}))
    dispatch = Dispatcher(PlaybackRuntime(formats.render_calls(calls)), [WEATHER], TODAY).dispatch("Oslo or Rome?")
    assert dispatch.calls == calls
    assert dispatch.reply == ""
    assert dispatch.is_usable


def test_a_reply_in_words_has_no_calls() -> None:
    dispatch = Dispatcher(PlaybackRuntime("Which city?"), [WEATHER], TODAY).dispatch("weather?")
    assert (dispatch.calls, dispatch.reply, dispatch.is_usable) == ((), "Which city?", True)


def test_calls_that_break_the_schema_are_returned_and_named() -> None:
    reply = formats.render_calls([ToolCall("get_weather", {"location": 3}), ToolCall("launch", {})])
    dispatch = Dispatcher(PlaybackRuntime(reply), [WEATHER], TODAY).dispatch("hi")
    assert [violation.reason for violation in dispatch.violations] == ["schema_violation", "unknown_tool"]
    assert len(dispatch.calls) == 2
    assert not dispatch.is_usable


def test_a_malformed_call_is_data() -> None:
    dispatch = Dispatcher(PlaybackRuntime("<tool_call>{oops</tool_call>"), [WEATHER], TODAY).dispatch("hi")
    assert dispatch.calls == ()
    assert dispatch.unparsed[0].raw_text == "{oops"
    assert not dispatch.is_usable


def test_a_reply_is_cut_at_the_token_limit_and_says_so() -> None:
    runtime = PlaybackRuntime("abcdefgh")
    dispatch = Dispatcher(runtime, [WEATHER], TODAY, max_new_tokens=3).dispatch("hi")
    assert (dispatch.reply, dispatch.is_complete, dispatch.tokens.generated) == ("abc", False, 3)


def test_a_reply_is_cut_where_the_context_ends() -> None:
    n_prompt = Dispatcher(PlaybackRuntime("x"), [WEATHER], TODAY).dispatch("hi").tokens.prompt
    dispatch = Dispatcher(PlaybackRuntime("abcdefgh", n_ctx=n_prompt + 2), [WEATHER], TODAY).dispatch("hi")
    assert (dispatch.reply, dispatch.is_complete) == ("ab", False)


def test_a_prompt_that_does_not_fit_is_refused_before_decoding() -> None:
    runtime = PlaybackRuntime("x", n_ctx=50)
    with pytest.raises(ValueError, match=r"the prompt of \d+ tokens does not fit the context of 50"):
        Dispatcher(runtime, [WEATHER], TODAY).dispatch("hi")
    assert runtime.decoded == []


def test_the_shared_start_of_two_prompts_is_computed_once() -> None:
    runtime = PlaybackRuntime("ok")
    dispatcher = Dispatcher(runtime, [WEATHER], TODAY)
    first = dispatcher.dispatch("weather in Oslo")
    second = dispatcher.dispatch("weather in Rome")
    assert first.tokens.cached == 0
    second_prefill = runtime.decoded[3]  # after the first prefill, "o" and "k"
    assert runtime.detokenize(second_prefill).startswith("Rome<|im_end|>")
    assert second.tokens.cached == second.tokens.prompt - len(second_prefill)


def test_the_same_prompt_again_decodes_one_token_of_it() -> None:
    dispatcher = Dispatcher(PlaybackRuntime("ok"), [WEATHER], TODAY)
    dispatcher.dispatch("hi")
    again = dispatcher.dispatch("hi")
    assert again.tokens.cached == again.tokens.prompt - 1
    assert again.reply == "ok"


def test_without_a_date_today_is_the_day_of_the_call() -> None:
    runtime = PlaybackRuntime("ok")
    Dispatcher(runtime, [WEATHER]).dispatch("hi")
    assert formats.reference_date_text(dt.date.today()) in _prompt_text(runtime)


def test_a_system_message_keeps_its_words_before_the_date() -> None:
    runtime = PlaybackRuntime("ok")
    messages = [Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "hi")]
    Dispatcher(runtime, [WEATHER], TODAY).dispatch(messages)
    assert "Be brief.\nToday is Thursday 2026-03-19" in _prompt_text(runtime)


def test_no_messages_and_no_room_for_a_reply_are_refused() -> None:
    with pytest.raises(ValueError, match="there are no messages"):
        Dispatcher(PlaybackRuntime("ok"), [WEATHER]).dispatch([])
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        Dispatcher(PlaybackRuntime("ok"), [WEATHER], max_new_tokens=0)


def test_a_runtime_handed_in_stays_open() -> None:
    runtime = PlaybackRuntime("ok")
    with Dispatcher(runtime, [WEATHER], TODAY):
        pass
    assert not runtime.is_closed


def test_a_path_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="no such file"):
        Dispatcher(tmp_path / "absent.gguf", [WEATHER])


@pytest.mark.parametrize("index", [0, 1], ids=["f16", "q8_0"])
def test_an_exported_model_dispatches_what_it_was_taught(index: int) -> None:
    with Dispatcher(taught_export().files[index].path, [WEATHER], TODAY) as dispatcher:
        first = dispatcher.dispatch(QUESTION)
        again = dispatcher.dispatch(QUESTION)
    assert first.calls == again.calls == (TAUGHT_CALL,)
    assert first.is_usable
    assert again.tokens.cached == first.tokens.prompt - 1
    assert 0 < first.timings.prefill_ms <= first.timings.total_ms


@pytest.mark.parametrize(
    ("left", "right", "length"), [([], [], 0), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([2], [1], 0)]
)
def test_shared_prefix_counts_equal_items_at_the_start(left: list[int], right: list[int], length: int) -> None:
    assert shared_prefix(left, right) == length
