from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.config import DataConfig, GuardConfig, OpenAIJsonlSource
from data.join import Fate, Verdict, decide
from data.prepare import prepare
from data.screen import Screen
from data.shards import Record
from data.store import decode, encode, read_conversations, with_trained_turns
from tinydispatch.tools import Conversation, Message, Role, ToolCall

Weather = Callable[..., Conversation]
SOURCE = OpenAIJsonlSource(kind="openai_jsonl", path=Path("x"))
ASK = Message(Role.USER, "compare the weather in many towns, one after the other")


def step(index: int) -> tuple[Message, Message]:
    call = ToolCall("get_weather", {"location": f"Town{index}"})
    return (Message(Role.ASSISTANT, "", (call,)), Message(Role.TOOL, f"sun {index}", tool_name="get_weather"))


@pytest.fixture
def prefix(weather: Weather) -> Callable[..., Conversation]:
    """Builds the row of a dialogue that ends in its n-th call, the only one trained."""

    def build(length: int, **fields: Any) -> Conversation:
        turns = [message for i in range(length) for message in step(i)][:-1]
        turns = [replace(m, is_trained=False) if m.role is Role.ASSISTANT and m is not turns[-1] else m for m in turns]
        return weather(messages=(ASK, *turns), **{"dialogue_id": "d", **fields})

    return build


def records_of(*parts: list[Conversation]) -> list[Record]:
    screen = Screen(DataConfig(sources=(SOURCE,), eval_fraction=0), seed=0, case_texts=(), count_tokens=None)
    return [row.record for part in parts for row in screen.screen(part, 0)]


def verdicts(records: list[Record], *, is_guarded: bool = True) -> list[Verdict]:
    decisions = decide(lambda: records, 0.9, GuardConfig(reject_contradictions=is_guarded))
    return [decisions.verdict(i, record) for i, record in enumerate(records)]


def test_row_by_row_each_row_trains_its_last_turn_alone(prefix: Callable[..., Conversation], tmp_path: Path) -> None:
    """The published form: three rows of one dialogue are three sequences."""

    def shown(message: Message) -> dict[str, Any]:
        calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls]
        value: dict[str, Any] = {"role": str(message.role), "content": message.content}
        value |= {"tool_calls": calls, "weight": int(message.is_trained)} if calls else {}
        return value | ({"name": message.tool_name} if message.tool_name else {})

    rows = [{"messages": [shown(message) for message in prefix(length).messages]} for length in (1, 2, 3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    counts = {}
    for is_joined in (True, False):
        source = OpenAIJsonlSource(kind="openai_jsonl", path=path)
        config = DataConfig(sources=(source,), eval_fraction=0, join_prefixes=is_joined)
        done = prepare(config, seed=0, out_dir=tmp_path / str(is_joined), case_texts=[], count_tokens=None)
        trained = [
            sum(message.is_trained for message in row.messages if message.role is Role.ASSISTANT)
            for row in read_conversations(done.train_path)
        ]
        counts[is_joined] = trained
    assert counts == {True: [3], False: [1, 1, 1]}


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 2, 1], [2, 3, 1]])
@pytest.mark.parametrize("is_split", [False, True])
def test_prefixes_are_trained_in_the_longest_row_whatever_their_order_and_part(
    prefix: Callable[..., Conversation], order: list[int], is_split: bool
) -> None:
    rows = [prefix(length) for length in order]
    found = verdicts(records_of(*([row] for row in rows)) if is_split else records_of(rows))
    by_length = dict(zip(order, found, strict=True))
    assert [by_length[length].fate for length in (1, 2, 3)] == [Fate.JOINED, Fate.JOINED, Fate.WRITTEN]
    assert by_length[3].joined == (1, 3)


def test_a_turn_whose_own_row_was_not_kept_is_not_trained_in_a_longer_one(
    prefix: Callable[..., Conversation],
) -> None:
    assert verdicts(records_of([prefix(1), prefix(3)]))[1].joined == (1,)


def test_a_turn_that_two_branches_share_is_trained_in_the_first_only(
    prefix: Callable[..., Conversation],
) -> None:
    other = prefix(2)
    branch = replace(other, messages=(*other.messages[:-1], Message(Role.ASSISTANT, "Sunny everywhere, I am sure.")))
    records = records_of([prefix(1), prefix(2), branch])
    found = verdicts(records, is_guarded=False)
    assert [(v.fate, v.joined) for v in found] == [(Fate.JOINED, ()), (Fate.WRITTEN, (1,)), (Fate.WRITTEN, ())]
    assert {v.fate for v in verdicts(records)} == {Fate.CONTRADICTORY}  # a call and a reply to one request


def test_another_list_of_tools_is_another_prompt_and_joins_nothing(prefix: Callable[..., Conversation]) -> None:
    short = prefix(1)
    found = verdicts(records_of([replace(short, tools=short.tools[:3]), prefix(2)]))
    assert [v.fate for v in found] == [Fate.WRITTEN, Fate.WRITTEN]


def test_an_equal_row_in_another_part_takes_its_prefixes_along(prefix: Callable[..., Conversation]) -> None:
    found = verdicts(records_of([prefix(2)], [prefix(1), prefix(2)]))
    assert [v.fate for v in found] == [Fate.WRITTEN, Fate.JOINED, Fate.DUPLICATE]
    assert found[0].joined == (1,)


def test_a_prefix_on_the_other_side_of_the_split_is_left_out_and_not_trained(
    prefix: Callable[..., Conversation],
) -> None:
    records = records_of([prefix(1)], [prefix(2)])
    moved = [Record(**{**{n: getattr(records[0], n) for n in Record.__struct_fields__}, "side": "heldout"}), records[1]]
    found = verdicts(moved)
    assert [v.fate for v in found] == [Fate.DUPLICATE, Fate.WRITTEN]
    assert found[1].joined == ()


def test_a_joined_line_trains_the_turns_and_names_what_they_now_show(prefix: Callable[..., Conversation]) -> None:
    row = replace(prefix(3), category="next_call")
    joined = decode(with_trained_turns(encode(row), (1, 5)))
    assert [m.is_trained for m in joined.messages if m.role is Role.ASSISTANT] == [True, False, True]
    assert joined.category == "multi_step"
    assert joined.tools == row.tools


@pytest.mark.parametrize("key", ["arguments", "metadata", "content"])
def test_a_line_that_holds_what_looks_like_its_own_keys_is_joined_all_the_same(
    prefix: Callable[..., Conversation], key: str
) -> None:
    row = replace(prefix(3), category="next_call")
    trap = {"x": 1, "is_trained": False}
    if key == "metadata":
        row = replace(row, metadata={**row.metadata, "trap": {**trap, "source": row.source, "category": "next_call"}})
    else:
        first = row.messages[1]
        calls = tuple(replace(call, arguments=trap) for call in first.tool_calls)
        text = f'"source":"{row.source}","category":"next_call","is_trained":false}}'
        changed = replace(first, tool_calls=calls) if key == "arguments" else replace(first, content=text)
        row = replace(row, messages=(row.messages[0], changed, *row.messages[2:]))
    joined = decode(with_trained_turns(encode(row), (1, 5)))
    assert joined == replace(
        row,
        category="multi_step",
        messages=tuple(replace(m, is_trained=True) if i in (1, 5) else m for i, m in enumerate(row.messages)),
    )
