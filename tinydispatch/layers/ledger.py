"""Which calls were started and how they ended, by idempotency key: what keeps an e-mail from being sent twice."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from tinydispatch.layers.tool_calls import CallStatus, ToolOutcome
from tinydispatch.tools import ToolCall


class LedgerError(ValueError):
    """A ledger file that cannot be read; nothing is run without it, because it might have been run before."""


class Ledger:
    """Remembers calls; with a file, over restarts too. Safe for use from several threads.

    A call is written down before it starts. One that was started and whose end is not known counts as unknown.

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
        """None when the call is new and now belongs to the caller; else how it ended, UNKNOWN if it has not yet."""
        with self._lock:
            if key in self._ended and self._ended[key].status is not CallStatus.FAILED:
                return self._ended[key]
            if key in self._started:
                return ToolOutcome(call, key, CallStatus.UNKNOWN, error="was started before; how it ended is not known")
            # A failed call had no effect: trying it once more is a new start.
            self._started.add(key)
            self._ended.pop(key, None)
            self._write({"key": key, "started": {"name": call.name, "arguments": dict(call.arguments)}})
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
            self._write({"key": outcome.key, "ended": ended, "call": call})

    def known(self, key: str) -> ToolOutcome | None:
        """How the call ended, where that is known."""
        with self._lock:
            return self._ended.get(key)

    def _write(self, line: dict[str, Any]) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())  # the call may start only after this is safe from a power cut

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
