"""Writes what a dispatcher decided, a JSON object a line, for people to correct and models to learn from.

The data stage reads the lines back (`kind: dispatch_log`). Personal data is redacted before anything is written.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinydispatch.dispatcher import Dispatch
from tinydispatch.folders import append_whole
from tinydispatch.redaction import Redactor
from tinydispatch.tools import Message, Tool

_LOG = logging.getLogger(__name__)
# A clock that is years ahead, for a moment, deletes no more than what lies beyond these.
_MIN_KEPT = 7
_PREFIX, _SUFFIX = "dispatch-", ".jsonl"


@dataclass(frozen=True)
class LoggedAnswer:
    """What was answered: calls as the log has them, and words; `confidence` None where it is not known."""

    calls: Sequence[Mapping[str, Any]]
    reply: str = ""
    confidence: float | None = None


class DispatchLog:
    """A folder with a file for each day (UTC), readable by its owner alone.

    A line is written whole or, when the machine stops just then, cut off; a cut line is closed by the next start, and
    the data stage rejects it by name. A disk that is full costs lines, never an answer: it is reported once.

    Args:
        keep_days: older files are deleted when a new day begins, except the newest seven (or `keep_days`, if that is
            less), which stay whatever the clock says; None keeps all.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, redactor: Redactor | None = None, *, keep_days: int | None = None) -> None:
        self._folder, self._redactor, self._keep_days = folder, redactor or Redactor(), keep_days
        self._day: dt.date | None = None
        self._descriptor: int | None = None
        self._is_reported = False
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write(
        self,
        *,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        dispatch: Dispatch,
        reference_date: dt.date | None,
        model: str,
        session: str | None = None,
        client: str = "",
        reply_id: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Append one answered request.

        Args:
            reference_date: the day that the model was told; None: today.
            session: groups the requests of one dialogue; its hash is written.
            client: tells one API key's requests from another's ("" for none); its hash is written.
            reply_id: names the answer, so that a later line about it can be found.
            extra: further keys, such as `tool_error`, `correction`, `challenger`. Such a line is a second one of its
                answer: it is accepted only for what a person or a larger model said.
        """
        calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in dispatch.calls]
        said = {"calls": calls, "reply": dispatch.reply, **(extra or {})}
        is_accepted = dispatch.is_usable and not extra
        more: dict[str, Any] = {"confidence": round(dispatch.confidence, 4), "is_accepted": is_accepted}
        if session is not None:
            more["session_id"] = session_hash(session)
        if client:
            more["client_id"] = session_hash(f"client {client}")
        try:
            self._append(said, more, messages, tools, reference_date or dt.date.today(), model, reply_id)
        except OSError as error:
            if not self._is_reported:
                _LOG.error("%s: the dispatch log cannot be written: %s", self._folder, error.strerror)
            self._is_reported = True

    def correct(
        self,
        decides: str,
        correction: Mapping[str, Any],
        *,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        answer: LoggedAnswer,
        reference_date: dt.date,
        model: str,
    ) -> None:
        """Append what a person said of an answer; it takes the place of the line whose `reply_id` is `decides`.

        Raises:
            OSError: it could not be written; nothing is kept.
        """
        said = {"calls": answer.calls, "reply": answer.reply, "correction": correction}
        more: dict[str, Any] = {"decides": decides, "corrected_by": "ui"}
        if answer.confidence is not None:
            more["confidence"] = answer.confidence
        self._append(said, more, messages, tools, reference_date, model, uuid.uuid4().hex)

    def _append(
        self,
        said: Mapping[str, Any],
        more: Mapping[str, Any],
        messages: Sequence[Message],
        tools: Sequence[Tool],
        reference_date: dt.date,
        model: str,
        reply_id: str | None,
    ) -> None:
        now = dt.datetime.now(dt.UTC)
        offered = [tool.to_openai() for tool in tools]
        shown = {"messages": [message.to_openai() for message in messages], **said}
        entry = {
            **({} if reply_id is None else {"id": reply_id}),
            "time": now.isoformat(timespec="milliseconds"),
            "model": model,
            **self._redactor.record(shown, offered),
            "tools": offered,
            "reference_date": reference_date.isoformat(),
            **more,
        }
        # Escaped, so that half of a surrogate pair in an argument can be written too.
        line = json.dumps(entry).encode("ascii") + b"\n"
        with self._lock:
            append_whole(self._open(now.date()), line)

    def _open(self, day: dt.date) -> int:
        path = self._folder / f"{_PREFIX}{day.isoformat()}{_SUFFIX}"
        if self._descriptor is not None and day == self._day and _is_at(path, self._descriptor):
            return self._descriptor
        self._close()
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._day = day
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            append_whole(self._descriptor, b"\n")
        if self._keep_days is not None:
            self._delete_before(day - dt.timedelta(days=self._keep_days), min(self._keep_days, _MIN_KEPT))
        return self._descriptor

    def _delete_before(self, first: dt.date, n_kept: int) -> None:
        # ISO dates sort as text.
        names = sorted((path.name for path in self._folder.glob(f"{_PREFIX}*{_SUFFIX}")), reverse=True)
        for name in names[1 + n_kept :]:
            if name < f"{_PREFIX}{first.isoformat()}":
                (self._folder / name).unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        with self._lock:
            self._close()


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one of that name: it may have been deleted, or moved away, meanwhile."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))  # noqa: PTH116 (beside fstat)
    except FileNotFoundError:
        return False


def line_id(row: Mapping[str, Any]) -> str:
    """What a decision names a line by: its `id`, or, of a line that has none, a hash of what it holds."""
    if isinstance(row.get("id"), str):
        return str(row["id"])
    text = json.dumps(row, sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def session_hash(session: str) -> str:
    """What stands for a session's or a client's id in the log."""
    return hashlib.sha256(session.encode("utf-8", "surrogatepass")).hexdigest()[:16]
