"""The record of every run, stage, attempt and switch of the champion: one SQLite file, written through on each change.

A stage stands here only when it is complete, so a process that dies leaves at most an attempt without an end.
"""

from __future__ import annotations

import datetime as dt
import json
import secrets
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from retraining.errors import RetrainError
from retraining.stages import RunState, Stage, Stop

_VERSION = 1
_SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, started_at TEXT NOT NULL, finished_at TEXT, reason TEXT NOT NULL,
    failures INTEGER NOT NULL, host TEXT NOT NULL, is_announced INTEGER NOT NULL);
CREATE UNIQUE INDEX one_running ON runs (state) WHERE state = 'running';
CREATE TABLE stages (
    run_id TEXT NOT NULL REFERENCES runs, stage TEXT NOT NULL, inputs TEXT NOT NULL, outputs TEXT NOT NULL,
    result TEXT NOT NULL, seconds REAL NOT NULL, finished_at TEXT NOT NULL, PRIMARY KEY (run_id, stage));
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs, stage TEXT NOT NULL, started_at TEXT NOT NULL,
    seconds REAL, error TEXT);
CREATE TABLE switches (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, kind TEXT NOT NULL, run_id TEXT, model_id TEXT NOT NULL,
    previous TEXT, is_done INTEGER NOT NULL);
"""


class SwitchKind(StrEnum):
    """How a model became champion."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    ADOPT = "adopt"


@dataclass(frozen=True)
class RunRecord:
    """One run; times are ISO 8601 in UTC. `failures` counts how often one of its stages failed for good."""

    id: str
    state: RunState
    started_at: str
    finished_at: str | None
    reason: str
    failures: int
    host: str
    is_announced: bool


@dataclass(frozen=True)
class StageRecord:
    """A complete stage: the hash of all that decided it, its files with their SHA-256, its result, its duration."""

    stage: Stage
    inputs: str
    outputs: Mapping[str, str]
    result: Mapping[str, Any]
    seconds: float
    finished_at: str


@dataclass(frozen=True)
class Switch:
    """A change of champion. One that is not done was begun, and whether it took place the registry's link tells."""

    id: int
    at: str
    kind: SwitchKind
    run_id: str | None
    model_id: str
    previous: str | None
    is_done: bool


class Ledger:
    """Open it as a context manager. Every method is one transaction.

    Raises:
        RetrainError: the file is no ledger, or of another version.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        try:
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            with self._transaction():
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in _SCHEMA.split(";"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.DatabaseError as error:
            raise RetrainError(f"{path}: cannot be used as the ledger: {error}") from error
        if version not in (0, _VERSION):
            raise RetrainError(f"{path}: a ledger of version {version}, this program reads {_VERSION}")

    def begin_run(self) -> RunRecord:
        """A new run in state `running`; there must be no other."""
        now = dt.datetime.now(dt.UTC)
        run_id = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        with self._transaction():
            self._db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, NULL, '', 0, ?, 0)",
                (run_id, RunState.RUNNING, _iso(now), socket.gethostname()),
            )
        return self.run(run_id)

    def resumable(self, max_failures: int) -> RunRecord | None:
        """The run that was killed, or the latest one where it failed less than `max_failures` times."""
        row = self._db.execute("SELECT * FROM runs WHERE state = ?", (RunState.RUNNING,)).fetchone()
        if row is None:
            row = self._db.execute("SELECT * FROM runs ORDER BY rowid DESC LIMIT 1").fetchone()
            if row is None or row["state"] != RunState.FAILED or row["failures"] >= max_failures:
                return None
        return _run(row)

    def reopen(self, run_id: str) -> None:
        """Put a failed run back to work."""
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET state = ?, finished_at = NULL, reason = '', is_announced = 0 WHERE id = ?",
                (RunState.RUNNING, run_id),
            )

    def finish_run(self, run_id: str, stop: Stop) -> None:
        """End a run that no stage ends by itself: it failed, or was rolled back."""
        with self._transaction():
            self._finish(run_id, stop)

    def announced(self, run_id: str) -> None:
        """The run's end was told to whoever wants to know."""
        with self._transaction():
            self._db.execute("UPDATE runs SET is_announced = 1 WHERE id = ?", (run_id,))

    def begin_attempt(self, run_id: str, stage: Stage) -> int:
        """A stage is about to be worked on; what was known of it and of all after it no longer counts."""
        stages = list(Stage)
        gone = stages[stages.index(stage) :]
        with self._transaction():
            for each in gone:
                self._db.execute("DELETE FROM stages WHERE run_id = ? AND stage = ?", (run_id, each))
            cursor = self._db.execute(
                "INSERT INTO attempts (run_id, stage, started_at) VALUES (?, ?, ?)", (run_id, stage, _iso())
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def end_attempt(self, attempt: int, seconds: float, error: str) -> None:
        """The attempt failed with `error`."""
        with self._transaction():
            self._db.execute("UPDATE attempts SET seconds = ?, error = ? WHERE id = ?", (seconds, error, attempt))

    def complete(self, run_id: str, attempt: int, record: StageRecord, stop: Stop | None) -> None:
        """A stage is done, and with `stop` the run as well: both at once, or neither."""
        outputs, result = json.dumps(dict(record.outputs)), json.dumps(dict(record.result), ensure_ascii=False)
        with self._transaction():
            self._db.execute(
                "INSERT INTO stages VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run_id, record.stage, record.inputs, outputs, result, record.seconds, record.finished_at),
            )
            self._db.execute("UPDATE attempts SET seconds = ? WHERE id = ?", (record.seconds, attempt))
            if stop is not None:
                self._finish(run_id, stop)
                self._db.execute("UPDATE switches SET is_done = 1 WHERE run_id = ? AND kind = 'promote'", (run_id,))

    def stage(self, run_id: str, stage: Stage) -> StageRecord | None:
        """The record of a complete stage."""
        row = self._db.execute("SELECT * FROM stages WHERE run_id = ? AND stage = ?", (run_id, stage)).fetchone()
        return None if row is None else _stage(row)

    def stages(self, run_id: str) -> list[StageRecord]:
        """The complete stages of a run, in their order."""
        found = (self.stage(run_id, stage) for stage in Stage)
        return [record for record in found if record is not None]

    def attempts(self, run_id: str) -> list[Mapping[str, Any]]:
        """Every time that a stage was begun: `stage`, `started_at`, `seconds` (None: killed on the way), `error`."""
        rows = self._db.execute("SELECT * FROM attempts WHERE run_id = ? ORDER BY id", (run_id,))
        return [{key: row[key] for key in ("stage", "started_at", "seconds", "error")} for row in rows]

    def run(self, run_id: str) -> RunRecord:
        """Raises RetrainError where there is no such run."""
        row = self._db.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise RetrainError(f"{self.path}: no run '{run_id}'")
        return _run(row)

    def runs(self) -> list[RunRecord]:
        """All runs, oldest first."""
        return [_run(row) for row in self._db.execute("SELECT * FROM runs ORDER BY rowid")]

    def intend_switch(self, kind: SwitchKind, model_id: str, previous: str | None, run_id: str | None = None) -> int:
        """A switch that is about to take place; a run's promotion that was intended before is not intended twice."""
        with self._transaction():
            if run_id is not None:
                row = self._db.execute("SELECT id FROM switches WHERE run_id = ? AND kind = ?", (run_id, kind))
                if (found := row.fetchone()) is not None:
                    return int(found["id"])
            cursor = self._db.execute(
                "INSERT INTO switches (at, kind, run_id, model_id, previous, is_done) VALUES (?, ?, ?, ?, ?, 0)",
                (_iso(), kind, run_id, model_id, previous),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def settle_switch(self, switch: int, *, took_place: bool) -> None:
        """The switch is done; or it never took place and is forgotten."""
        statement = (
            "UPDATE switches SET is_done = 1 WHERE id = ?" if took_place else "DELETE FROM switches WHERE id = ?"
        )
        with self._transaction():
            self._db.execute(statement, (switch,))

    def switches(self) -> list[Switch]:
        """All switches, oldest first."""
        rows = self._db.execute("SELECT * FROM switches ORDER BY id")
        return [
            Switch(**{**dict(row), "kind": SwitchKind(row["kind"]), "is_done": bool(row["is_done"])}) for row in rows
        ]

    def close(self) -> None:
        """A second call does nothing."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish(self, run_id: str, stop: Stop) -> None:
        failed = int(stop.state is RunState.FAILED)
        self._db.execute(
            "UPDATE runs SET state = ?, reason = ?, finished_at = ?, failures = failures + ? WHERE id = ?",
            (stop.state, stop.reason, _iso(), failed, run_id),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _iso(moment: dt.datetime | None = None) -> str:
    return (moment or dt.datetime.now(dt.UTC)).isoformat(timespec="seconds")


def _run(row: sqlite3.Row) -> RunRecord:
    return RunRecord(**{**dict(row), "state": RunState(row["state"]), "is_announced": bool(row["is_announced"])})


def _stage(row: sqlite3.Row) -> StageRecord:
    outputs, result = json.loads(row["outputs"]), json.loads(row["result"])
    return StageRecord(Stage(row["stage"]), row["inputs"], outputs, result, row["seconds"], row["finished_at"])
