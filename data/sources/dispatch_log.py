"""The log of a dispatcher at work, so that a model learns from the traffic it serves.

One JSON object a line, one line for each answered request:

    {"messages": [{"role": "user", "content": "lights off in the kitchen"}],
     "tools": [{"name": "set_light", "description": "…", "parameters": {…}}],
     "calls": [{"name": "set_light", "arguments": {"room": "kitchen", "on": false}}]}

- `messages`: what the model was shown, in OpenAI's chat shape, without the answer. Required.
- `tools`: what was on offer, in OpenAI's shape, bare or wrapped in `function`. Left out: the run's `data.tools`.
- `calls`: the calls that the model answered with, `arguments` an object; `[]` when it made none. Required.
- `reply`: the text that it answered with. Left out: none.
- `correction`: what the answer should have been, written later by a person or a larger model: an object with `calls`
  and, where it is a text, `reply`. It takes the place of the model's own answer. `null` or left out: not corrected.
- `escalation`: the answer of the larger model that the request was handed up to, an object with `calls`, `reply` and,
  where known, `model`. It takes the answer's place, unless a person corrected it.
- `tool_error`: text, or true: the call was made and failed. Without another answer the line teaches nothing
  (`not_accepted`); nor does the line of the same `id`, where a later one says so.
- `is_accepted`: false when the answer was refused and nobody said what was right; such a line is rejected
  (`not_accepted`). Left out: true.
- `reference_date`: "today" as it stood in the prompt, "2026-03-19".
- `session_id`: groups the lines of one conversation, so that none of them is in training while another is held out.
  Left out: the first user message does.
- `client_id`: stands for the key that the request came with, so that one client's share can be limited.
- `model`, `confidence`, `time`: kept in the conversation's metadata under `log`.
- `id`: what a later line names this one by. A line without has a hash of its content in its place.
- `decides`: the id of the line in whose place this one stands, which is then rejected (`decided_elsewhere`). So
  `serve --ui` corrects and `review` decides without touching what is written already.

Other keys are ignored, so that a server may log more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.rejected import Rejected, RejectReason, Repair, RowError, sample_of
from data.sources.files import data_files, iter_rows
from data.sources.openai_chat import conversation_from_openai, dialogue_id_of
from tinydispatch.dispatch_log import line_id
from tinydispatch.tools import Conversation, Message, Role, Tool

SOURCE = "dispatch_log"

_KEPT_KEYS = ("model", "confidence", "time")


class Trust(IntEnum):
    """Whose answer a record holds. Where two disagree about one request, the higher one is believed."""

    MODEL = 1  # the served model's own, which nobody objected to
    LARGER_MODEL = 2
    CURATED = 3  # a file that somebody made: the drop folder, a data set
    PERSON = 4


def labelled(row: Any) -> tuple[Any, Trust]:
    """A log line with its label where `correction` stands, and whose label that is."""
    if not isinstance(row, Mapping):
        return row, Trust.MODEL
    if row.get("correction") is not None:
        return row, Trust.PERSON
    if isinstance(row.get("escalation"), Mapping):
        return {**row, "correction": row["escalation"]}, Trust.LARGER_MODEL
    if row.get("tool_error"):
        return {**row, "is_accepted": False}, Trust.MODEL
    return row, Trust.MODEL


@dataclass(frozen=True)
class Marks:
    """What lines say of others, by id: `decided` have a person's line in their place, the calls of `failed` failed."""

    decided: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()


def marks_of(path: Path) -> Marks:
    """The marks in a file or a folder.

    Raises:
        DataFileError: a file cannot be read.
    """
    return _marks_of(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in data_files(path)))


# A log is read in parts, each of which needs them.
@lru_cache(maxsize=4)
def _marks_of(files: tuple[tuple[Path, int, int], ...]) -> Marks:
    decided, failed = set(), set()
    for file, _, _ in files:
        for row in iter_rows(file):
            if isinstance(row.value, Mapping) and isinstance(row.value.get("decides"), str):
                decided.add(row.value["decides"])
            if isinstance(row.value, Mapping) and row.value.get("id") and row.value.get("tool_error"):
                failed.add(str(row.value["id"]))
    return Marks(frozenset(decided), frozenset(failed))


def conversation_from_log(
    row: Any, row_id: str, default_tools: Sequence[Tool], *, only_corrected: bool = False, marks: Marks | None = None
) -> Conversation | Rejected:
    """One line → the conversation with the answer that it should have had; only that is trained.

    Its metadata say under `log` whose answer that is (`trust`), and from which `session` and `client` it came.

    Args:
        marks: what other lines say of this one.
    """
    marks = marks or Marks()
    if marks.decided and isinstance(row, Mapping) and line_id(row) in marks.decided:
        return Rejected(RejectReason.DECIDED_ELSEWHERE, "a person decided about it", row_id, sample_of(row))
    row, trust = labelled(row)
    if trust is Trust.MODEL and isinstance(row, Mapping) and row.get("id") in marks.failed:
        row = {**row, "is_accepted": False}
    try:
        if not isinstance(row, Mapping) or not isinstance(row.get("messages"), list) or not row["messages"]:
            raise RowError(RejectReason.MALFORMED_ROW, "no list 'messages'")
        correction = row.get("correction")
        if correction is None and (only_corrected or row.get("is_accepted", True) is not True):
            raise RowError(RejectReason.NOT_ACCEPTED, "nobody said what the answer should have been")
        answer = _answer(row if correction is None else correction, "the line" if correction is None else "correction")
        shown = [_untrained(message) for message in row["messages"]]
        whole: dict[str, Any] = {"messages": [*shown, answer], "dialogue_id": _dialogue_id(row)}
        origin = {
            name: str(row[key]) for name, key in (("session", "session_id"), ("client", "client_id")) if row.get(key)
        }
        log = {key: row[key] for key in _KEPT_KEYS if key in row}
        whole["metadata"] = {"log": {**log, "trust": int(trust), **origin}}
        whole |= {key: row[key] for key in ("tools", "reference_date") if row.get(key) is not None}
        repairs = (Repair.ANSWER_CORRECTED,) if correction is not None else ()
    except RowError as error:
        return Rejected(error.reason, error.detail, row_id, sample_of(row))
    return conversation_from_openai(whole, row_id, default_tools, source=SOURCE, repairs=repairs)


def _answer(entry: Any, where: str) -> dict[str, Any]:
    calls = entry.get("calls") if isinstance(entry, Mapping) else None
    if not isinstance(calls, list):
        raise RowError(RejectReason.MALFORMED_CALL, f"no list 'calls' in {where}")
    reply = entry.get("reply") or ""
    if not isinstance(reply, str):
        raise RowError(RejectReason.MALFORMED_ROW, f"'reply' in {where} is no text")
    return {"role": "assistant", "content": reply, "tool_calls": calls}


def _untrained(message: Any) -> Any:
    is_assistant = isinstance(message, Mapping) and message.get("role") == "assistant"
    return {**message, "weight": 0} if is_assistant else message


def _dialogue_id(row: Mapping[str, Any]) -> str:
    if isinstance(row.get("session_id"), str) and row["session_id"]:
        return f"{SOURCE}-{row['session_id']}"
    users = [message for message in row["messages"] if isinstance(message, Mapping) and message.get("role") == "user"]
    return dialogue_id_of(SOURCE, [Message(Role.USER, str(message.get("content"))) for message in users[:1]])
