"""One case of a suite, and its reader from a line of `cases.jsonl`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.episode import EPISODE_KEYS, Episode, episode_from_row
from eval.expected import ExpectedCall, expected_calls, tool_names
from eval.places import Place
from tinydispatch.tools import Message, Role, Tool, ToolCall

_KEYS = {"id", "category", "reference_date", "messages", "tools", "note"}
_SINGLE_TURN_KEYS = {"expected", "premature", "after_error"}
_MESSAGE_KEYS = {"role", "content", "tool_calls", "name"}


UNDATED_DAY = dt.date(2026, 3, 19)


@dataclass(frozen=True)
class Case:
    """One conversation and the calls that its next reply must hold; no calls means that it must hold none.

    `premature` names the tools that must wait for a result. `is_after_error` says that the last assistant
    turn's calls failed. `tools` are the names on offer, () for all of the suite's; `offer`, where given, are the
    tools themselves in the order of the prompt. A case with an `episode` is played to its end, and `expected` are the
    calls of its first step. `parent` is the id of the case that this one was derived from.
    """

    id: str
    category: str
    messages: tuple[Message, ...]
    expected: tuple[ExpectedCall, ...]
    reference_date: dt.date | None = None
    is_ordered: bool = False
    premature: tuple[str, ...] = ()
    is_after_error: bool = False
    tools: tuple[str, ...] = ()
    note: str = ""
    episode: Episode | None = None
    parent: str = ""
    offer: tuple[Tool, ...] = ()

    @property
    def today(self) -> dt.date:
        """The day that the model is told, as service tells it one in every request: `UNDATED_DAY` where the case has none."""
        return self.reference_date or UNDATED_DAY

    @property
    def prompt(self) -> str:
        """What the user said last."""
        return next((message.content for message in reversed(self.messages) if message.role is Role.USER), "")

    @property
    def user_texts(self) -> list[str]:
        """All that the user says, in an episode's later messages too."""
        later = self.episode.phases[1:] if self.episode else ()
        said = [message.content for message in self.messages if message.role is Role.USER]
        return said + [phase.user for phase in later if phase.user is not None]


def case_from_row(row: Any, tools: Sequence[Tool], place: Place) -> Case:
    """Read one line; a row with `steps` is played, one with `expected` is scored on the next reply alone.

    Raises:
        SuiteError: names file, line, case and key.
    """
    is_episode = isinstance(row, dict) and "steps" in row
    if isinstance(row, dict) and isinstance(row.get("id"), str):
        place.case_id = row["id"]
    place.check_keys(row, _KEYS | (EPISODE_KEYS if is_episode else _SINGLE_TURN_KEYS), "")
    for key in ("id", "category"):
        if not isinstance(row.get(key), str) or not row[key]:
            place.fail(key, "expected a non-empty string")
    messages = _messages(row.get("messages"), place)
    common: dict[str, Any] = {
        "id": row["id"],
        "category": row["category"],
        "messages": messages,
        "reference_date": _date(row.get("reference_date"), place),
        "tools": tool_names(row.get("tools", []), tools, "tools", place),
        "note": str(row.get("note", "")),
    }
    if is_episode:
        episode = episode_from_row(row, tools, place)
        return Case(**common, expected=episode.first_calls, premature=episode.waiting_tools, episode=episode)
    expected = row.get("expected")
    place.check_keys(expected, {"calls", "ordered"}, "expected")
    return Case(
        **common,
        expected=expected_calls(expected.get("calls"), tools, "expected.calls", place),
        is_ordered=place.flag(expected, "ordered", "expected."),
        premature=tool_names(row.get("premature", []), tools, "premature", place),
        is_after_error=place.flag(row, "after_error"),
    )


def _messages(value: Any, place: Place) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        place.fail("messages", "expected a non-empty array")
    messages = tuple(_message(item, f"messages.{index}", place) for index, item in enumerate(value))
    if messages[-1].role not in (Role.USER, Role.TOOL):
        place.fail(f"messages.{len(value) - 1}.role", "the last message must be the user's or a tool's")
    return messages


def _message(value: Any, key: str, place: Place) -> Message:
    place.check_keys(value, _MESSAGE_KEYS, key)
    if value.get("role") not in list(Role):
        place.fail(f"{key}.role", f"{value.get('role')!r} is none of {', '.join(Role)}")
    for name in ("content", "name"):
        if not isinstance(value.get(name, ""), str):
            place.fail(f"{key}.{name}", "expected a string")
    calls = value.get("tool_calls", [])
    if not isinstance(calls, list):
        place.fail(f"{key}.tool_calls", "expected an array")
    for index, call in enumerate(calls):
        place.check_keys(call, {"name", "arguments"}, f"{key}.tool_calls.{index}")
        if not isinstance(call.get("name"), str) or not isinstance(call.get("arguments"), dict):
            place.fail(f"{key}.tool_calls.{index}", "expected a 'name' string and an 'arguments' object")
    return Message(
        Role(value["role"]),
        value.get("content", ""),
        tuple(ToolCall(call["name"], call["arguments"]) for call in calls),
        value.get("name"),
    )


def _date(value: Any, place: Place) -> dt.date | None:
    if value is None:
        return None
    try:
        return dt.date.fromisoformat(value)
    except (TypeError, ValueError):
        place.fail("reference_date", f"{value!r} is no date; expected YYYY-MM-DD")
