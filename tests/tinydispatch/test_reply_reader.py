from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures_playback import WEATHER
from tinydispatch.formats import parse_reply, render_calls
from tinydispatch.server.reader import ReplyReader
from tinydispatch.tools import ToolCall

OSLO = ToolCall("get_weather", {"location": "Oslo"})
PIECES = st.sampled_from(
    [
        render_calls([OSLO]),
        "<tool_call>",
        "</tool_call>",
        "<tool_",
        "<",
        "Zürich ☃",
        " ",
        "\n",
        "{oops}",
        '{"name": "get_weather", "arguments": {"location": 3}}',
    ]
)


def _read(data: bytes, cuts: list[int], stop: tuple[str, ...] = ()) -> tuple[ReplyReader, str, list[ToolCall]]:
    reader = ReplyReader([WEATHER], stop)
    found: list[Any] = []
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    for start, end in zip([0, *ends], ends, strict=False):
        found += reader.feed(data[start:end])
    found += reader.end()
    texts = [delta for delta in found if isinstance(delta, str)]
    assert all(texts)
    return reader, "".join(texts), [delta for delta in found if isinstance(delta, ToolCall)]


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=8).map("".join), st.lists(st.integers(0, 1000), max_size=6))
def test_however_a_reply_is_cut_it_reads_as_a_whole(text: str, cuts: list[int]) -> None:
    reader, content, calls = _read(text.encode(), cuts)
    parsed = parse_reply(text)
    assert content == parsed.content
    broken = [violation.call for violation in reader.violations]
    assert [call for call in parsed.calls if call not in broken] == calls
    assert len(reader.unparsed) == len(parsed.unparsed)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1000), max_size=6))
def test_a_text_ends_before_the_first_stop_however_it_is_cut(cuts: list[int]) -> None:
    reader, content, _ = _read(b" one two stop three END", cuts, ("END", "stop t", "stop it"))
    assert (content, reader.is_stopped) == ("one two", True)


def test_a_stop_inside_a_call_is_none() -> None:
    reader, content, calls = _read(render_calls([OSLO]).encode(), [], ("Oslo",))
    assert (content, calls, reader.is_stopped) == ("", [OSLO], False)


def test_a_call_is_shown_when_it_is_whole_and_not_before() -> None:
    reader = ReplyReader([WEATHER])
    *start, last = render_calls([OSLO])
    assert [delta for letter in start for delta in reader.feed(letter.encode())] == []
    assert reader.feed(last.encode()) == [OSLO]


def test_a_call_that_breaks_its_schema_is_not_shown() -> None:
    reader, content, calls = _read(render_calls([ToolCall("get_weather", {})]).encode(), [])
    assert (content, calls) == ("", [])
    assert reader.violations[0].reason == "schema_violation"
