from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.store import (
    ConversationWriter,
    StoreError,
    data_hash,
    decode,
    encode,
    read_conversations,
    write_conversations,
)
from tinydispatch.tools import Conversation, Message, Role, Tool, ToolCall

Weather = Callable[..., Conversation]

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
objects = st.dictionaries(st.text(), values, max_size=4)
calls = st.builds(ToolCall, st.text(), objects)
messages = st.builds(
    Message,
    role=st.sampled_from(Role),
    content=st.text(),
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    tool_name=st.none() | st.text(),
    is_trained=st.booleans(),
)
tools = st.builds(
    Tool,
    st.from_regex(r"[A-Za-z0-9_.\-]{1,64}", fullmatch=True),
    st.text(),
    objects.map(lambda example: {"type": "object", "properties": {"p": {"default": example}}}),
)
conversations = st.builds(
    Conversation,
    messages=st.lists(messages, max_size=3).map(tuple),
    tools=st.lists(tools, max_size=2).map(tuple),
    source=st.text(),
    category=st.text(),
    dialogue_id=st.text(),
    reference_date=st.none() | st.dates(),
    metadata=objects,
)


def exact(value: Any) -> str:
    """Tells 5 from 5.0, True from 1, 0.0 from -0.0 and one key order from another."""
    return repr(value)


@settings(deadline=None, max_examples=60)  # a loaded machine is no failure
@given(conversations)
def test_a_conversation_comes_back_exactly(conversation: Conversation) -> None:
    again = decode(encode(conversation))
    assert again == conversation
    assert exact(again) == exact(conversation)


def test_arguments_of_differing_shape_are_not_filled_with_nulls(tmp_path: Path, weather: Weather) -> None:
    shapes = [{"a": None}, {"b": {}}, {"a": {"c": 5.0}}, {"a": [1, "2", [None]]}, {}, {"ä": "日本\u2028\r\n"}]
    path = tmp_path / "rows.jsonl"
    assert write_conversations(path, [weather(arguments=shape) for shape in shapes]) == len(shapes)
    assert [exact(row.calls[0].arguments) for row in read_conversations(path)] == [exact(shape) for shape in shapes]


def test_keys_with_default_values_are_not_written(weather: Weather) -> None:
    stored = json.loads(encode(weather()))
    assert stored["messages"][0] == {"role": "user", "content": "weather in Oslo tomorrow please"}
    assert "reference_date" not in stored
    assert json.loads(encode(weather(reference_date=dt.date(2026, 3, 19))))["reference_date"] == "2026-03-19"


@pytest.mark.parametrize("value", [float("inf"), float("nan"), dt.date(2026, 1, 1), "half \ud83d"])
def test_a_value_that_json_or_utf8_cannot_express_is_refused(weather: Weather, value: Any) -> None:
    with pytest.raises(StoreError, match="test-"):
        encode(weather(arguments={"location": value}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"messages": [], "tools": [], "source": ""}', "'category' is missing"),
        ('{"messages": [{"role": "martian"}], "tools": [], "source": "", "category": ""}', "martian"),
        ('{"messages": [{"role": "user", "text": ""}], "tools": [], "source": "", "category": ""}', "text"),
        ('{"messages": [], "tools": [], "source": "", "category": "", "x": 1}', "unknown keys"),
        ('{"messages": 3, "tools": [], "source": "", "category": ""}', "not a stored conversation"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_with_file_and_number(
    tmp_path: Path, weather: Weather, line: str, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(encode(weather()) + "\n" + line + "\n", "utf-8")
    rows = read_conversations(path)
    next(rows)
    with pytest.raises(StoreError, match=message) as caught:
        next(rows)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"prepare_data"):
        list(read_conversations(tmp_path / "rows.jsonl"))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, weather: Weather) -> None:
    path = tmp_path / "rows.jsonl"
    write_conversations(path, [weather()])
    before = path.read_bytes()
    with pytest.raises(StoreError):
        write_conversations(path, [weather(), weather(arguments={"location": float("inf")})])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_without_commit_nothing_is_left(tmp_path: Path, weather: Weather) -> None:
    with ConversationWriter(tmp_path / "rows.jsonl") as writer:
        writer.write(weather())
    assert list(tmp_path.iterdir()) == []


def test_the_data_hash_sees_content_order_and_which_file(tmp_path: Path, weather: Weather) -> None:
    one, two, none = tmp_path / "one", tmp_path / "two", tmp_path / "none"
    write_conversations(one, [weather("a")])
    write_conversations(two, [weather("b")])
    write_conversations(none, [])
    hashes = {data_hash(one), data_hash(two), data_hash(one, two), data_hash(two, one), data_hash(one, none)}
    assert len(hashes | {data_hash(none, one)}) == 6
    assert data_hash(one) == data_hash(one)
