"""Models whose vocabulary has no token for a call marker, as SmolLM2's: it is several pieces of ordinary text."""

from __future__ import annotations

from pathlib import Path

import llguidance
import pytest

from tests.fixtures_default import make_default
from tests.fixtures_playback import TODAY, WEATHER, PlaybackRuntime
from tinydispatch import formats
from tinydispatch.bundled import bundled_tools
from tinydispatch.decoding.reply import ReplyShape, ToolChoice, call_format, reply_grammar
from tinydispatch.decoding.tokens import can_force, token_table, token_texts
from tinydispatch.default.model import default_model
from tinydispatch.dispatcher import Dispatch, Dispatcher
from tinydispatch.engine import EngineOptions
from tinydispatch.ggml.open import open_model
from tinydispatch.tools import ToolCall

OSLO, ROME = ToolCall("get_weather", {"location": "Oslo"}), ToolCall("get_weather", {"location": "R\u00f8me <b>"})
# As SmolLM2 cuts a call, with a piece that a marker ends within.
WORDS = (
    "tool",
    "call",
    '{"',
    "name",
    '":',
    ' "',
    "get",
    "weather",
    "location",
    "}}",
    '"}}',
    "</",
    '>{"',
    "Oslo",
    "_call>",
)


def _dispatch(reply: str, has_markers: bool, words: tuple[str, ...] = (), **options: int) -> tuple[Dispatch, int]:
    """The decision, and how many evaluations it took."""
    runtime = PlaybackRuntime(reply, words=words, has_markers=has_markers)
    dispatcher = Dispatcher(runtime, [WEATHER], TODAY, options=EngineOptions(**options))
    return dispatcher.dispatch("Oslo?"), len(runtime.decoded)


@pytest.mark.parametrize("words", [(), WORDS, WORDS[:6]])
@pytest.mark.parametrize(
    "reply",
    [
        formats.render_calls([OSLO]),
        formats.render_calls([OSLO, ROME]),
        "Let me look. " + formats.render_calls([ROME]),
        "Which city < or > that?",
        "<tool> is a word, <tool_call is none yet",
        "",
    ],
)
def test_a_marker_in_pieces_reads_as_a_marker(reply: str, words: tuple[str, ...]) -> None:
    found, _ = _dispatch(reply, False, words)
    expected, _ = _dispatch(reply, True)
    assert (found.calls, found.reply, found.is_usable) == (expected.calls, expected.reply, True)
    assert found.calls == formats.parse_reply(reply).calls
    assert len(found.confidences) == len(found.calls)
    assert all(confidence.tool > 0.5 for confidence in found.confidences)


def test_a_call_that_the_schema_forbids_cannot_be_written_behind_a_marker_in_pieces() -> None:
    found, _ = _dispatch('<tool_call>{"name": "launch", "arguments": {"location": 3}}</tool_call>', False, WORDS)
    assert not found.violations
    assert not found.unparsed or not found.is_complete
    assert all(call.name == "get_weather" for call in found.calls)


def test_the_marker_is_guessed_with_the_prompt_where_it_is_in_pieces() -> None:
    call = formats.render_calls([OSLO])
    guessed, n_guessed = _dispatch(call, False, n_draft_ids=4)
    plain, n_plain = _dispatch(call, False, n_draft_ids=0)
    assert guessed.calls == plain.calls
    assert guessed.confidence == plain.confidence
    # Each byte of the marker is a choice here.
    assert n_guessed <= n_plain - len(formats.CALL_START) + 1


def test_words_are_words_where_no_call_is_allowed() -> None:
    runtime = PlaybackRuntime(formats.render_calls([OSLO]), has_markers=False)
    found = Dispatcher(runtime, [WEATHER], TODAY).dispatch("Oslo?", choice=ToolChoice.NONE, max_new_tokens=30)
    assert found.calls == ()
    first = runtime.detokenize(runtime.decoded[1])  # after the tools, which are kept
    assert first.endswith("assistant\n"), "nothing is guessed that cannot be written"


def test_forced_text_is_cut_as_the_tokenizer_cuts_the_whole_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a model was trained on is the whole reply's ids; forced ids must be the same, wherever a choice ends."""
    monkeypatch.setenv("TINYDISPATCH_CACHE", str(tmp_path))
    tiny = make_default(tmp_path)
    calls = [
        [ToolCall("get_weather", {"location": "Oslo", "date": "2026-03-20", "units": "celsius"})],
        [ToolCall("convert_currency", {"amount": 20.5, "from_currency": "EUR", "to_currency": "NOK"})],
        [ToolCall("send_email", {"to": ["a@b.example"], "subject": "Too later", "body": "to {tool} or"})],
        [ToolCall("get_current_time", {"timezone": "Europe/Oslo"}), ToolCall("search_web", {"query": "a tool"})],
    ]
    with open_model(default_model(folder=tiny.folder, base=tiny.base, wheel=tiny.wheel), 64, 1) as runtime:
        assert can_force(runtime)
        assert len(runtime.tokenize(formats.CALL_START, parse_special=True)) > 1
        table = token_table(runtime, token_texts(runtime))
        grammar = reply_grammar(bundled_tools(), ReplyShape(), call_format(runtime.chat_template))
        n_forced = 0
        for said in calls:
            ids = runtime.tokenize(formats.render_calls(said), parse_special=True)
            matcher, place = llguidance.LLMatcher(table, grammar), 0
            while place < len(ids):
                forced = matcher.compute_ff_tokens()
                assert forced == ids[place : place + len(forced)]
                n_forced += len(forced)
                step = forced or [ids[place]]
                assert matcher.consume_tokens(step), matcher.get_error()
                place += len(step)
            assert matcher.is_accepting()
        assert n_forced > 100


def test_every_id_spells_what_llama_cpp_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYDISPATCH_CACHE", str(tmp_path))
    tiny = make_default(tmp_path)
    with open_model(default_model(folder=tiny.folder, base=tiny.base, wheel=tiny.wheel), 64, 1) as runtime:
        texts = runtime.token_texts()
        assert texts == [runtime.token_bytes(token) for token in range(runtime.n_vocab)]
        assert b"\xff" in texts
        assert b" a" in texts
