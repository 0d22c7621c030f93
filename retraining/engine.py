"""Runs the stages in order and goes on from the last complete one, whatever stopped the run before.

A stage counts as complete when the ledger says so, its inputs are what they were, and its files still have the hashes
that they had. Everything else is done again, from that stage on.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retraining.errors import BudgetExceededError, RetrainError, StepFailedError
from retraining.ledger import Ledger, RunRecord, StageRecord
from retraining.stages import Done, RunState, Stage, Step, StepContext, Stop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """The stages of every run in one registry; call `run` with the registry's lock held.

    Args:
        runs_dir: each run keeps its files in a folder of its own here.
        max_failures: a run in which stages failed so often for good is given up, and the next start begins anew.
        sleep: waits between attempts.
    """

    ledger: Ledger
    steps: Sequence[Step]
    runs_dir: Path
    max_failures: int = 3
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def run(self, until: Stage | None = None) -> RunRecord:
        """Go on with the run that is not finished, or begin one; ends as the run does, or after the stage `until`.

        Raises:
            StepFailedError: a stage failed for good. The run is recorded as failed and can be resumed.
        """
        record = self._open()
        results: dict[Stage, Mapping[str, Any]] = {}
        chain = ""
        for step in self.steps:
            context = StepContext(record.id, self.runs_dir / record.id, dict(results))
            inputs = _hash([step.inputs(record.id), chain])
            found = self._kept(record, step, inputs, context.folder)
            if found is None:
                found = self._do(step, inputs, context)
            results[step.stage] = found.result
            chain = _hash([inputs, dict(found.outputs), dict(found.result)])
            if self.ledger.run(record.id).state is not RunState.RUNNING or step.stage is until:
                break
        return self.ledger.run(record.id)

    def _open(self) -> RunRecord:
        found = self.ledger.resumable(self.max_failures)
        if found is None:
            found = self.ledger.begin_run()
            logger.info("run %s", found.id)
            return found
        if found.state is RunState.FAILED:
            self.ledger.reopen(found.id)
        logger.info("run %s: going on", found.id)
        return found

    def _kept(self, run: RunRecord, step: Step, inputs: str, folder: Path) -> StageRecord | None:
        record = self.ledger.stage(run.id, step.stage)
        if record is None:
            return None
        if record.inputs != inputs:
            logger.info("── %s: its inputs have changed, done again", step.stage)
            return None
        for name, digest in record.outputs.items():
            if not (folder / name).is_file() or sha256_of(folder / name) != digest:
                logger.info("── %s: %s is not what it was, done again", step.stage, folder / name)
                return None
        logger.info("── %s: complete, kept", step.stage)
        return record

    def _do(self, step: Step, inputs: str, context: StepContext) -> StageRecord:
        for number in range(1, step.attempts + 1):
            attempt = self.ledger.begin_attempt(context.run_id, step.stage)
            logger.info("── %s%s", step.stage, f" (attempt {number} of {step.attempts})" if number > 1 else "")
            started = time.monotonic()
            try:
                with _time_limit(step) as deadline:
                    done = step.work(StepContext(context.run_id, context.folder, context.results, deadline))
                record = _record(step.stage, inputs, done, context.folder, time.monotonic() - started)
            # Whatever a stage raises ends its attempt and is written down; an interruption is no Exception.
            except Exception as error:  # noqa: BLE001
                message = f"{type(error).__name__}: {error}"
                self.ledger.end_attempt(attempt, round(time.monotonic() - started, 3), message)
                self._wait_or_fail(step, number, error, context.run_id)
                continue
            self.ledger.complete(context.run_id, attempt, record, done.stop)
            return record
        raise AssertionError("the last attempt returns or raises")

    def _wait_or_fail(self, step: Step, number: int, error: Exception, run_id: str) -> None:
        # A stage that used up its time would use it up again; one that found nonsense would find it again.
        is_final = isinstance(error, BudgetExceededError | RetrainError | AssertionError)
        if number == step.attempts or is_final:
            self.ledger.finish_run(run_id, Stop(RunState.FAILED, f"{step.stage}: {error}"))
            raise StepFailedError(f"{step.stage} failed: {error}") from error
        wait = min(step.max_backoff_s, step.backoff_s * 2 ** (number - 1)) * random.uniform(0.5, 1.0)
        logger.warning("%s failed: %s; once more in %.0f s", step.stage, error, wait)
        self.sleep(wait)


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _record(stage: Stage, inputs: str, done: Done, folder: Path, seconds: float) -> StageRecord:
    missing = [str(path) for path in done.outputs if not path.is_file()]
    assert not missing, f"{stage} says that it wrote {missing}"
    outputs = {path.relative_to(folder).as_posix(): sha256_of(path) for path in done.outputs}
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    # As they will be read back, so that the next stage's inputs hash alike after a restart.
    result = json.loads(json.dumps(dict(done.result)))
    return StageRecord(stage, inputs, outputs, result, round(seconds, 3), now)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _time_limit(step: Step) -> Iterator[float | None]:
    """The deadline of a stage, enforced by an alarm where this is the main thread; commands look at it themselves."""
    if step.budget_s is None:
        yield None
        return
    deadline = time.monotonic() + step.budget_s
    if threading.current_thread() is not threading.main_thread():
        yield deadline
        return

    def stop(_signal: int, _frame: object) -> None:
        raise BudgetExceededError(f"{step.stage} took longer than its budget of {step.budget_s:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, step.budget_s)
    try:
        yield deadline
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
