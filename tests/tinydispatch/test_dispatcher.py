from __future__ import annotations

import datetime as dt
import logging
import math
from pathlib import Path

import pytest

from tests.fixtures_gguf import QUESTION, TAUGHT_CALL, TODAY, WEATHER, PlaybackRuntime, taught_export, tiny_export
from tinydispatch import formats
from tinydispatch.calibration import Calibration, calibration_path
from tinydispatch.decoding.reply import ToolChoice
from tinydispatch.dispatcher import Dispatcher, model_fingerprint
from tinydispatch.engine import Engine, EngineOptions
from tinydispatch.ggml.header import GgufError
from tinydispatch.ggml.open import open_model
from tinydispatch.prefix_cache import shared_prefix
from tinydispatch.tools import Message, Role, Tool, ToolCall

FREE = EngineOptions(is_constrained=False)


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


def test_without_constraint_calls_that_break_the_schema_are_returned_and_named() -> None:
    reply = formats.render_calls([ToolCall("get_weather", {"location": 3}), ToolCall("launch", {})])
    dispatch = Dispatcher(PlaybackRuntime(reply), [WEATHER], TODAY, options=FREE).dispatch("hi")
    assert [violation.reason for violation in dispatch.violations] == ["schema_violation", "unknown_tool"]
    assert len(dispatch.calls) == 2
    assert not dispatch.is_usable


def test_without_constraint_a_malformed_call_is_data() -> None:
    runtime = PlaybackRuntime("<tool_call>{oops</tool_call>")
    dispatch = Dispatcher(runtime, [WEATHER], TODAY, options=FREE).dispatch("hi")
    assert dispatch.calls == ()
    assert dispatch.unparsed[0].raw_text == "{oops"
    assert not dispatch.is_usable


def test_a_reply_that_must_not_call_is_words_and_one_that_must_calls() -> None:
    call = ToolCall("get_weather", {"location": "Oslo"})
    words = Dispatcher(PlaybackRuntime(formats.render_calls([call])), [WEATHER], TODAY)
    assert words.dispatch("Oslo?", choice=ToolChoice.NONE, max_new_tokens=20).calls == ()
    speaks = Dispatcher(PlaybackRuntime("Sure"), [WEATHER], TODAY)
    found = speaks.dispatch("Oslo?", choice=ToolChoice.REQUIRED, max_new_tokens=200)
    assert found.calls or found.unparsed
    assert not found.reply


def test_a_reply_ends_after_one_call_where_only_one_is_wanted() -> None:
    calls = [ToolCall("get_weather", {"location": "Oslo"}), ToolCall("get_weather", {"location": "Rome"})]
    dispatcher = Dispatcher(PlaybackRuntime(formats.render_calls(calls)), [WEATHER], TODAY)
    dispatch = dispatcher.dispatch("Oslo and Rome?", is_parallel=False)
    assert (dispatch.calls, dispatch.is_complete) == ((calls[0],), True)


def test_tools_of_one_call_stand_in_for_the_dispatchers_own() -> None:
    other = Tool("now", "", {"type": "object", "properties": {}})
    runtime = PlaybackRuntime(formats.render_calls([ToolCall("now", {})]))
    dispatch = Dispatcher(runtime, [WEATHER], TODAY).dispatch("time?", tools=[other])
    assert (dispatch.calls, dispatch.is_usable) == ((ToolCall("now", {}),), True)


def test_a_listener_hears_every_byte_and_can_end_the_reply() -> None:
    heard: list[bytes] = []
    dispatcher = Dispatcher(PlaybackRuntime("Zürich it is"), [WEATHER], TODAY)
    dispatcher.dispatch("hi", listener=lambda text: heard.append(text) is None)
    assert b"".join(heard).decode() == "Zürich it is"
    heard.clear()
    cut = dispatcher.dispatch("hi", listener=lambda text: heard.append(text) is not None)
    assert (cut.reply, cut.is_complete, heard) == ("Z", False, [b"Z"])


def test_a_tool_that_no_call_can_fit_is_refused_when_the_dispatcher_is_made_unless_others_are_on_offer() -> None:
    tool = Tool("t", "", {"type": "object", "properties": {"a": False}, "required": ["a"]})
    with pytest.raises(ValueError, match=r"tool 't': a: "):
        Dispatcher(PlaybackRuntime("hi"), [tool], TODAY)
    assert Dispatcher(PlaybackRuntime("hi"), [WEATHER, tool], TODAY).dispatch("hello").reply == "hi"


def test_the_second_tool_set_does_not_cost_the_first_its_prefix() -> None:
    runtime = PlaybackRuntime("ok")
    dispatcher = Dispatcher(runtime, [WEATHER], TODAY)
    first = dispatcher.dispatch("one")
    dispatcher.dispatch("two", tools=[Tool("other", "Something else", {"type": "object"})])
    again = dispatcher.dispatch("three")
    assert again.tokens.cached >= first.tokens.prompt - 40
    assert again.reply == "ok"


def test_a_new_dispatcher_finds_the_prefix_on_disk(tmp_path: Path) -> None:
    for expected in (False, True):
        dispatcher = Dispatcher(PlaybackRuntime("ok"), [WEATHER], TODAY, cache=tmp_path)
        assert (dispatcher.dispatch(f"question {expected}").tokens.cached > 0) is expected
        dispatcher.close()


def test_a_new_dispatcher_loads_the_kept_prefix_before_its_first_call(tmp_path: Path) -> None:
    first = Dispatcher(PlaybackRuntime("ok"), [WEATHER], TODAY, cache=tmp_path)
    n_prompt = first.dispatch("a question").tokens.prompt
    first.close()
    runtime = PlaybackRuntime("ok")
    with Dispatcher(runtime, [WEATHER], TODAY, cache=tmp_path) as dispatcher:
        assert len(runtime.cached_ids) > n_prompt - 60
        assert runtime.decoded == []
        assert dispatcher.dispatch("another").tokens.cached > n_prompt - 60


def test_a_dispatcher_without_kept_prefix_evaluates_nothing_before_its_first_call(tmp_path: Path) -> None:
    runtime = PlaybackRuntime("ok")
    with Dispatcher(runtime, [WEATHER], TODAY, cache=tmp_path):
        assert (list(runtime.cached_ids), runtime.decoded) == ([], [])


def test_an_engine_that_reuses_nothing_leaves_kept_states_alone(tmp_path: Path) -> None:
    options = EngineOptions(reuses_prefix=False)
    for _ in range(2):
        with Dispatcher(PlaybackRuntime("ok"), [WEATHER], TODAY, options=options, cache=tmp_path) as dispatcher:
            assert dispatcher.dispatch("hi").tokens.cached == 0
            assert dispatcher.dispatch("hi").tokens.cached == 0


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


def test_of_tools_that_do_not_fit_the_largest_are_named_with_what_they_cost() -> None:
    small = [Tool(f"small_{number}", "", {"type": "object", "properties": {}}) for number in range(3)]
    large = [Tool(f"large_{number}", "word " * 300, {"type": "object", "properties": {}}) for number in range(2)]
    n_prompt = Dispatcher(PlaybackRuntime("x", n_ctx=9_000), [*small, *large], TODAY).dispatch("hi").tokens.prompt
    with pytest.raises(ValueError, match="does not fit") as caught:
        Dispatcher(PlaybackRuntime("x", n_ctx=n_prompt - 900), [*small, *large], TODAY).dispatch("hi")
    message = str(caught.value)
    assert "it is 901 too long" in message
    assert "its 5 tools, the largest: large_0 1" in message
    assert message.endswith("Without large_0 a short reply fits")
    kept = Dispatcher(PlaybackRuntime("x", n_ctx=n_prompt - 900), [*small, large[1]], TODAY)
    assert kept.dispatch("hi").reply == "x"


def test_the_shared_start_of_two_prompts_is_computed_once() -> None:
    runtime = PlaybackRuntime("ok")
    dispatcher = Dispatcher(runtime, [WEATHER], TODAY)
    first = dispatcher.dispatch("weather in Oslo")
    second = dispatcher.dispatch("weather in Rome")
    assert first.tokens.cached == 0
    second_prefill = runtime.decoded[4]  # after the tools, the rest of the first prompt, "o" and "k"
    assert runtime.detokenize(second_prefill).startswith("Rome<|im_end|>")
    n_guesses = 1  # the first reply's beginning
    assert second.tokens.cached == second.tokens.prompt - (len(second_prefill) - n_guesses)


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


def test_a_calibration_counts_only_beside_the_very_file_that_it_was_fitted_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "model.gguf"
    model.symlink_to(tiny_export().files[0].path)
    with open_model(model, 64) as runtime:
        fitted = Calibration(threshold=0.9, model=model_fingerprint(runtime))
    fitted.save(calibration_path(model))
    with Dispatcher(model, [WEATHER], TODAY, n_ctx=64) as dispatcher:
        assert dispatcher.calibration == fitted
    # A retrained model of the same name and shape.
    model.unlink()
    model.symlink_to(taught_export().files[0].path)
    with caplog.at_level(logging.WARNING), Dispatcher(model, [WEATHER], TODAY, n_ctx=64) as dispatcher:
        assert dispatcher.calibration == Calibration()
    assert "fitted to another model file" in caplog.text


def test_logprobs_are_those_of_the_choices_and_0_where_there_was_none() -> None:
    # Of forced text that several tokens can spell, only one spelling is written, and that was no choice.
    words = ["get_weather", "location", '": "']
    for reply in (formats.render_calls([TAUGHT_CALL]), "No idea. "):
        engine = Engine(PlaybackRuntime(reply, words=words))
        found = engine.complete([Message(Role.USER, QUESTION)], [WEATHER], 200, n_alternatives=2)
        assert b"".join(token.data for token in found.logprobs).decode() == reply == found.text
        chosen = math.prod(choice.probability for choice in found.choices[:-1])  # the last is the end
        assert math.exp(sum(token.logprob for token in found.logprobs)) == pytest.approx(chosen, rel=1e-6)
        assert sum(token.logprob == 0.0 for token in found.logprobs) >= found.tokens.forced


def test_a_reply_holds_no_more_tokens_than_its_limit() -> None:
    engine = Engine(PlaybackRuntime(formats.render_calls([TAUGHT_CALL])))
    for limit in (1, 5, 30, 62):
        found = engine.complete(
            [Message(Role.USER, QUESTION)], [WEATHER], limit, choice=ToolChoice.REQUIRED, n_alternatives=0
        )
        assert max(len(found.logprobs), found.tokens.generated) <= limit
        assert b"".join(token.data for token in found.logprobs).decode() == found.text
