from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures_playback import TODAY, WEATHER, PlaybackRuntime
from tinydispatch import formats
from tinydispatch.bundled import bundled_tools
from tinydispatch.decoding.recall import Recall
from tinydispatch.engine import Completion, Engine, EngineOptions
from tinydispatch.tools import Message, Role, Tool, ToolCall


def _reply(recall: Recall, place: str) -> None:
    trail = recall.trail()
    for run, is_forced in ([1], False), ([2, 3, 4], True), ([ord(place)], False), ([5], False), ([6, 7], True):
        trail.follow(run, is_forced=is_forced)
    trail.learn()


def test_what_varies_between_replies_does_not_hide_what_follows_it() -> None:
    recall = Recall()
    for place in "abc":
        _reply(recall, place)
    trail = recall.trail()
    assert trail.guess(20) == [1, 2, 3, 4]  # then a word that is another one each time
    for run, is_forced in ([1], False), ([2, 3, 4], True), ([ord("b")], False):
        trail.follow(run, is_forced=is_forced)
    assert trail.guess(20) == [5, 6, 7]
    assert trail.guess(2) == [5, 6]


def test_nothing_is_guessed_at_a_place_that_is_new_or_before_a_reply_is_whole() -> None:
    recall = Recall()
    trail = recall.trail()
    trail.follow([1], is_forced=False)
    assert recall.trail().guess(5) == []
    trail.learn()
    assert recall.trail().guess(5) == [1]
    recall.forget()
    assert recall.trail().guess(5) == []


def _asked(runtime: PlaybackRuntime, engine: Engine, reply: str, tools: Sequence[Tool]) -> Completion:
    runtime.reply = reply
    return engine.complete(formats.with_reference_date([Message(Role.USER, "?")], TODAY), tools, 600)


_PLACES = st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=8)
_CALLS = st.builds(
    lambda place, date: ToolCall("get_weather", {"location": place} | ({"date": "2026-03-20"} if date else {})),
    _PLACES,
    st.booleans(),
)


@given(calls=st.lists(st.lists(_CALLS, max_size=2), min_size=2, max_size=5))
@settings(max_examples=20, deadline=None)
def test_no_reply_depends_on_the_replies_before_it(calls: list[list[ToolCall]]) -> None:
    runtime = PlaybackRuntime("")
    engine = Engine(runtime)
    for each in calls:
        reply = formats.render_calls(each) or "Which city?"
        done = _asked(runtime, engine, reply, bundled_tools())
        assert (done.text, done.is_complete) == (reply, True)


def test_a_second_reply_needs_fewer_evaluations() -> None:
    runtime = PlaybackRuntime("")
    engine, plain = Engine(runtime), Engine(runtime, EngineOptions(recalls=False))
    counts = []
    for each in (plain, engine, engine):
        before = len(runtime.decoded)
        _asked(runtime, each, formats.render_calls([ToolCall("get_weather", {"location": "Rome"})]), (WEATHER,))
        counts.append(len(runtime.decoded) - before)
    assert counts[1] == counts[0]
    assert counts[2] < counts[0]


class _Uncuttable(PlaybackRuntime):
    """A recurrent state: dropping its end drops all of it."""

    def truncate(self, n_positions: int) -> None:
        super().truncate(n_positions if n_positions >= len(self.cached_ids) else 0)


def test_a_wrong_guess_is_computed_again_where_a_state_cannot_be_cut() -> None:
    runtime = _Uncuttable("")
    engine = Engine(runtime)
    for place in ("Rome", "Oslo", "Romania"):
        reply = formats.render_calls([ToolCall("get_weather", {"location": place, "date": "2026-03-20"})])
        done = _asked(runtime, engine, reply, bundled_tools())
        assert done.text == reply
        # The cache holds the prompt, and of the reply what was evaluated.
        assert len(runtime.cached_ids) > done.tokens.prompt
        assert reply.startswith(runtime.detokenize(runtime.cached_ids[done.tokens.prompt :]))
