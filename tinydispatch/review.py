"""A person's way through a dispatch log: which lines want a look, and what was decided about them.

Decisions go into a file of their own beside the log, one line each, in the log's format
(`data/sources/dispatch_log.py`): the line with its `correction`, or with `is_accepted` false, and `decides`, the id of
the line in whose place it stands. The log itself is never changed.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from tinydispatch.bundled import tools_from_json
from tinydispatch.dispatch_log import line_id
from tinydispatch.folders import append_whole
from tinydispatch.pages.forms import Answer, Problem, read_answer, tool_form
from tinydispatch.redaction import NOBODYS, Redactor
from tinydispatch.tools import Tool, ToolError

DECISIONS = "reviewed.jsonl"
OWN = "own"
# Keys of a line that hold another answer than the model's own, and what the page calls it.
_OTHERS = {"correction": "a correction", "escalation": "the larger model", "challenger": "the challenger"}
_ADDED = (*_OTHERS, "corrected_by", "tool_error")
_MAX_UNREADABLE_SHOWN = 5
_Place = tuple[str | int, ...]


class ReviewError(ValueError):
    """A log or a file of decisions that cannot be used; the message names it and says what to do."""


class Order(StrEnum):
    """Which lines are shown; the least confident first in each."""

    CONFIDENCE = "confidence"
    DISAGREEMENTS = "disagreements"
    CORRECTIONS = "corrections"


class Decision(StrEnum):
    """What a person said of a line."""

    ACCEPT = "accept"
    CORRECT = "correct"
    REJECT = "reject"


class RefusedError(Exception):
    """A decision that cannot be taken, and every reason."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class _Entry:
    """Where a line stands, and what decides its place in the orders.

    `others` are later lines of the same answer, which add what a challenger, a larger model or a person said of it.
    """

    id: str
    file: Path
    number: int
    start: int
    length: int
    confidence: float | None
    orders: frozenset[Order]
    others: tuple[_Entry, ...] = ()


class Stack:
    """The lines of a log that nobody has decided about. Methods may be called from any thread.

    Args:
        log: the folder of `serve --dispatch-log`, or one file of it.
        decisions: where decisions are kept; beside the log if None.
        tools: for lines that name none.

    Raises:
        ReviewError: there is no log, no line of it can be read, or another review is at work.
    """

    def __init__(
        self,
        log: Path,
        decisions: Path | None = None,
        *,
        tools: Sequence[Tool] = (),
        redactor: Redactor | None = None,
    ) -> None:
        self._tools, self._redactor = tuple(tools), redactor or Redactor()
        self._lock = threading.Lock()
        self.decisions = decisions or default_decisions(log)
        files = [file for file in _log_files(log) if file.absolute() != self.decisions.absolute()]
        self.unreadable: list[str] = []
        self._entries: dict[str, _Entry] = {}
        superseded: set[str] = set()
        n_lines = 0
        for file in files:
            for number, start, line in _lines(file):
                n_lines += 1
                try:
                    row = _read(line)
                except ReviewError as error:
                    self.unreadable.append(f"{file}:{number}: {error}")
                    continue
                if isinstance(row.get("decides"), str):
                    superseded.add(row["decides"])
                entry = _entry(row, file, number, start, len(line))
                first = self._entries.get(entry.id)
                if first is not None:
                    entry = replace(first, orders=first.orders | entry.orders, others=(*first.others, entry))
                self._entries[entry.id] = entry
        if not self._entries:
            reason = f"; the first, {self.unreadable[0]}" if self.unreadable else ""
            raise ReviewError(f"{log}: none of its {n_lines} lines is one of a dispatch log{reason}")
        for each in superseded:
            self._entries.pop(each, None)
        self._orders = {
            order: sorted(
                (entry for entry in self._entries.values() if order in entry.orders),
                # Unknown is not confident.
                key=lambda entry: (-1.0 if entry.confidence is None else entry.confidence, entry.file, entry.number),
            )
            for order in Order
        }
        self._descriptor = _open_decisions(self.decisions)
        # Of each decision of this file, where it starts and which line it is about; the last can be taken back.
        self._done: list[tuple[int, str]] = []
        self._read_decisions()

    def _read_decisions(self) -> None:
        for number, start, line in _lines(self.decisions):
            try:
                self._done.append((start, str(_read(line)["decides"])))
            except (ReviewError, KeyError):
                self.unreadable.append(f"{self.decisions}:{number}: no decision; it is left as it is")
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            # A cut line is closed, so that it does not spoil the next; the data stage rejects it by name.
            append_whole(self._descriptor, b"\n")

    @property
    def _decided(self) -> set[str]:
        return {line for _, line in self._done}

    def state(self) -> dict[str, Any]:
        """How much is left and done, and what could not be read."""
        decided = self._decided
        left = {order: sum(entry.id not in decided for entry in entries) for order, entries in self._orders.items()}
        return {
            "left": left,
            "decided": len(self._done),
            "unreadable": {"count": len(self.unreadable), "first": self.unreadable[:_MAX_UNREADABLE_SHOWN]},
            "decisions": str(self.decisions),
        }

    def next(self, order: Order, start: int) -> dict[str, Any]:
        """The first undecided line from place `start` of an order on, and after the last from the first again."""
        entries = self._orders[order]
        with self._lock:
            decided = self._decided
            places = [*range(min(start, len(entries)), len(entries)), *range(min(start, len(entries)))]
            place = next((place for place in places if entries[place].id not in decided), None)
        if place is None:
            return {"line": None, "place": 0, **self.state()}
        return {"line": self._view(entries[place]), "place": place, **self.state()}

    def line(self, wanted: str, order: Order) -> dict[str, Any]:
        """One line, decided or not.

        Raises:
            ReviewError: there is none of that id.
        """
        entry = self._entry(wanted)
        entries = self._orders[order]
        return {"line": self._view(entry), "place": entries.index(entry) if entry in entries else 0, **self.state()}

    def decide(self, wanted: str, decision: Decision, *, answer: str = OWN, correction: Any = None) -> None:
        """Write a decision down.

        Args:
            answer: which of the line's answers is accepted: `own`, `correction`, `escalation` or `challenger`.
            correction: what the answer should have been, where the decision is to correct.

        Raises:
            RefusedError: the answer breaks its tool's schema, is empty, or holds personal data that the log does not.
            ReviewError: the line is gone, or decided already.
            OSError: it could not be written; nothing is kept.
        """
        entry = self._entry(wanted)
        row = self._row(entry)
        said: dict[str, Any] = {"correction": None, "escalation": None, "is_accepted": False}
        if decision is not Decision.REJECT:
            value = correction if decision is Decision.CORRECT else _answers(row).get(answer)
            try:
                tools = self._tools_of(row)
            except ToolError as error:
                raise RefusedError([Problem(f"the line's tools cannot be read ({error}); reject or skip it")]) from None
            right = read_answer(value, tools)
            if not isinstance(right, Answer):
                raise RefusedError(right)
            if decision is Decision.CORRECT and (problems := self._personal(right, row)):
                raise RefusedError(problems)
            said = {"correction": right.to_json()}
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        made = {"decides": wanted, "decision": decision, "decided": now, "corrected_by": "review"}
        line = json.dumps({**row, **said, "id": uuid.uuid4().hex, **made}).encode("ascii") + b"\n"
        with self._lock:
            if wanted in self._decided:
                raise ReviewError("This line is decided already.")
            start = os.fstat(self._descriptor).st_size
            append_whole(self._descriptor, line)
            os.fsync(self._descriptor)
            self._done.append((start, wanted))

    def undo(self) -> str | None:
        """Take the last decision back; the id of its line, None where there is no decision."""
        with self._lock:
            if not self._done:
                return None
            start, wanted = self._done[-1]
            os.ftruncate(self._descriptor, start)
            os.fsync(self._descriptor)
            self._done.pop()
        return wanted

    def close(self) -> None:
        """Let another review begin."""
        os.close(self._descriptor)

    def _entry(self, wanted: str) -> _Entry:
        if wanted not in self._entries:
            raise ReviewError("There is no such line.")
        return self._entries[wanted]

    def _row(self, entry: _Entry) -> dict[str, Any]:
        try:
            with entry.file.open("rb") as stream:
                stream.seek(entry.start)
                row = _read(stream.read(entry.length))
        except (OSError, ReviewError):
            row = {}
        if not row or line_id(row) != entry.id:
            raise ReviewError(f"{entry.file}:{entry.number}: the line is gone or changed; start the review again.")
        for other in entry.others:
            row |= {key: value for key, value in self._row(other).items() if key in _ADDED and value is not None}
        return row

    def _tools_of(self, row: Mapping[str, Any]) -> tuple[Tool, ...]:
        tools = row.get("tools")
        return self._tools if not tools else _known_tools(json.dumps(tools))

    def _view(self, entry: _Entry) -> dict[str, Any]:
        row = self._row(entry)
        problem = None
        tools: tuple[Tool, ...] = ()
        try:
            tools = self._tools_of(row)
            if not tools:
                problem = "the line names no tools; give them with --tools FILE"
        except ToolError as error:
            problem = f"its tools cannot be read: {error}"
        answers = []
        for name, answer in _answers(row).items():
            found = read_answer(answer, tools)
            problems = [] if isinstance(found, Answer) else [each.message for each in found]
            by = row.get("corrected_by") if name == "correction" else _model_of(row.get(name))
            title = "the model" if name == OWN else _OTHERS[name]
            answers.append({"name": name, "title": title, "by": by, "answer": answer, "problems": problems})
        return {
            "id": entry.id,
            "where": f"{entry.file.name}:{entry.number}",
            "messages": [_shown(message) for message in row["messages"] if isinstance(message, Mapping)],
            "answers": answers,
            # What somebody else has said already is what is looked at first.
            "chosen": "correction" if "correction" in _answers(row) else OWN,
            "forms": [tool_form(tool) for tool in tools],
            "problem": problem,
            "orders": sorted(entry.orders),
            **{key: row.get(key) for key in ("time", "model", "confidence", "reference_date", "tool_error")},
        }

    def _personal(self, right: Answer, row: Mapping[str, Any]) -> list[Problem]:
        """The log holds made-up values in place of personal ones; so must what is written about it."""
        found = []
        said = right.to_json()
        public = [row, NOBODYS.findall(json.dumps(said, ensure_ascii=False))]
        cleared = self._redactor.record({"correction": said}, public)["correction"]
        for index, (call, clear) in enumerate(zip(right.calls, cleared["calls"], strict=True)):
            for place, value in _differences(dict(call.arguments), clear["arguments"]):
                message = f"looks like personal data, which the log replaces; take the line's own value, or {value!r}"
                found.append(Problem(message, index, place))
        if right.reply != cleared["reply"]:
            found.append(Problem(f"the reply holds personal data; write instead: {cleared['reply']}"))
        return found


def default_decisions(log: Path) -> Path:
    """Inside the log's folder, where retraining finds it by itself; beside a single file."""
    return log / DECISIONS if log.is_dir() else log.with_name(f"{log.stem}.{DECISIONS}")


def _log_files(log: Path) -> list[Path]:
    if not log.exists():
        raise ReviewError(f"{log}: no such file or folder; give what serve --dispatch-log wrote")
    files = sorted(log.rglob("*.jsonl")) if log.is_dir() else [log]
    if not files:
        raise ReviewError(f"{log}: no .jsonl file in this folder; give what serve --dispatch-log wrote")
    return files


def _open_decisions(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise ReviewError(f"{path}: decisions cannot be kept there: {error.strerror}; give another --out") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        os.close(descriptor)
        is_taken = isinstance(error, BlockingIOError)
        reason = "another review is at work on it" if is_taken else f"cannot be kept private: {error.strerror}"
        raise ReviewError(f"{path}: {reason}") from error
    return descriptor


def _lines(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """Each line that is not empty: its number, where it starts, its bytes."""
    start = 0
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, start, line
                start += len(line)
    except OSError as error:
        raise ReviewError(f"{file}: cannot be read: {error.strerror}") from error


def _read(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        is_cut = not line.endswith(b"\n")
        raise ReviewError("the line is cut off" if is_cut else f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ReviewError("not an object")
    for key in ("messages", "calls"):
        if not isinstance(row.get(key), list):
            raise ReviewError(f"no array '{key}'; another program or version wrote it")
    if not row["messages"]:
        raise ReviewError("'messages' is empty")
    return row


def _entry(row: Mapping[str, Any], file: Path, number: int, start: int, length: int) -> _Entry:
    confidence = row.get("confidence")
    is_known = isinstance(confidence, int | float) and not isinstance(confidence, bool)
    orders = {Order.CONFIDENCE}
    answers = _answers(row)
    if any(_said(answers[name]) != _said(answers[OWN]) for name in ("escalation", "challenger") if name in answers):
        orders.add(Order.DISAGREEMENTS)
    if "correction" in answers:
        orders.add(Order.CORRECTIONS)
    known = float(confidence) if is_known else None  # type: ignore[arg-type]
    return _Entry(line_id(row), file, number, start, length, known, frozenset(orders))


def _answers(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The line's answers by name: the model's own, and what others said in its place."""
    found = {OWN: {"calls": row["calls"], "reply": _text(row.get("reply"))}}
    for name in _OTHERS:
        value = row.get(name)
        if isinstance(value, Mapping) and isinstance(value.get("calls"), list):
            found[name] = {"calls": value["calls"], "reply": _text(value.get("reply"))}
    return found


def _said(answer: Mapping[str, Any]) -> str:
    """What makes two answers the same: the calls, or, where there are none, the words."""
    return json.dumps(answer["calls"] or answer["reply"], sort_keys=True)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _model_of(value: Any) -> str | None:
    return value["model"] if isinstance(value, Mapping) and isinstance(value.get("model"), str) else None


@lru_cache(maxsize=64)
def _known_tools(text: str) -> tuple[Tool, ...]:
    return tools_from_json(json.loads(text))


def _shown(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = []
    for call in message.get("tool_calls") or ():
        inner = call.get("function", call) if isinstance(call, Mapping) else {}
        arguments = inner.get("arguments") if isinstance(inner, Mapping) else None
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                arguments = {"": arguments}
        if isinstance(inner, Mapping):
            calls.append({"name": inner.get("name"), "arguments": arguments or {}})
    content = message.get("content")
    reply = content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)
    return {"role": str(message.get("role")), "answer": {"calls": calls, "reply": reply}}


def _differences(value: Any, other: Any, place: _Place = ()) -> Iterator[tuple[_Place, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _differences(item, other[key], (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _differences(item, other[index], (*place, index))
    elif value != other:
        yield place, other
