"""Which calls were started and how they ended, by idempotency key: what keeps an e-mail from being sent twice."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from tinydispatch.folders import append_whole
from tinydispatch.layers.tool_calls import CallStatus, ToolOutcome
from tinydispatch.tools import ToolCall

_LOG = logging.getLogger(__name__)


class LedgerError(ValueError):
    """A ledger file that cannot be read; nothing is run without it, because it might have been run before."""


class Ledger:
    """Remembers calls; with a file, over restarts too. Safe for use from several threads.

    A call is written down before it starts; where that cannot be done (the disk is full), it does not start. One that
    was started and whose end is not known, or could not be written down, counts as unknown after a restart.

    Raises:
        LedgerError: the file is there and damaged; names the line.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._ended: dict[str, ToolOutcome] = {}
        self._started: set[str] = set()
        if path is not None and path.exists():
            self._read(path)

    def begin(self, key: str, call: ToolCall) -> ToolOutcome | None:
        """None when the call is new and now belongs to the caller; else how it ended, UNKNOWN if it has not yet.

        REFUSED: the call cannot be written down, and may not start.
        """
        with self._lock:
            if key in self._ended and self._ended[key].status is not CallStatus.FAILED:
                return self._ended[key]
            if key in self._started:
                return ToolOutcome(call, key, CallStatus.UNKNOWN, error="was started before; how it ended is not known")
            # A failed call had no effect: trying it once more is a new start.
            started = {"name": call.name, "arguments": dict(call.arguments)}
            if problem := self._write({"key": key, "started": started}):
                return ToolOutcome(call, key, CallStatus.REFUSED, error=f"was not made: {problem}")
            self._started.add(key)
            self._ended.pop(key, None)
            return None

    def end(self, outcome: ToolOutcome) -> None:
        """How a call that was begun ended; UNKNOWN leaves it open, so that a later answer can still close it."""
        with self._lock:
            if outcome.status is CallStatus.UNKNOWN:
                return
            self._started.discard(outcome.key)
            self._ended[outcome.key] = outcome
            ended = {"status": str(outcome.status), "value": outcome.value, "error": outcome.error}
            call = {"name": outcome.call.name, "arguments": dict(outcome.call.arguments)}
            # Where it cannot be written, this process knows it all the same, and the next one that it is not known.
            if problem := self._write({"key": outcome.key, "ended": ended, "call": call}):
                _LOG.error("the end of call %s of %s stands nowhere: %s", outcome.key, outcome.call.name, problem)

    def known(self, key: str) -> ToolOutcome | None:
        """How the call ended, where that is known."""
        with self._lock:
            return self._ended.get(key)

    def _write(self, line: dict[str, Any]) -> str:
        """Append a line, or nothing; why it could not be written, "" where it was."""
        if self._path is None:
            return ""
        data = json.dumps(line, ensure_ascii=True, default=str).encode("ascii") + b"\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                append_whole(descriptor, data)
                os.fsync(descriptor)  # the call may start only after this is safe from a power cut
            finally:
                os.close(descriptor)
        except OSError as error:
            return f"{self._path}: the ledger cannot be written: {error.strerror}"
        return ""

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        # What stands after the last line feed was cut off by a crash, before the call it speaks of could start, or
        # before its end was safe; the next line must not be glued to it.
        whole, _, rest = data.rpartition(b"\n")
        if rest:
            os.truncate(path, len(data) - len(rest))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._replay(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise LedgerError(f"{path}:{number}: not an entry of a ledger: {error}") from error

    def _replay(self, entry: dict[str, Any]) -> None:
        key = entry["key"]
        if "started" in entry:
            self._started.add(key)
            self._ended.pop(key, None)
            return
        call, ended = entry["call"], entry["ended"]
        self._started.discard(key)
        self._ended[key] = ToolOutcome(
            ToolCall(call["name"], call["arguments"]),
            key,
            CallStatus(ended["status"]),
            ended["value"],
            ended["error"],
        )
