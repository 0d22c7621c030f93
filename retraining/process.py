"""A stage's command in a process of its own: its log, its time budget, and what a killed run left running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from retraining.errors import BudgetExceededError, CommandFailedError

# Every process of a stage inherits it, so that a later start finds those that outlived a killed run.
MARKER = "TINYDISPATCH_RETRAIN"
# Training saves a checkpoint on SIGTERM before it ends; a checkpoint of 4 billion parameters takes a while.
_GRACE_S = 60.0
_LAST_LINES = 15


def run_command(command: Sequence[str], *, log: Path, marker: str, folder: Path, deadline: float | None = None) -> None:
    """Run to the end, with output appended to `log`.

    Raises:
        BudgetExceededError: it was stopped at the deadline (of `time.monotonic()`).
        CommandFailedError: it ended with another status than 0, or could not be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, MARKER: marker}
    with log.open("ab") as stream:
        stream.write(f"\n$ {' '.join(command)}\n".encode())
        stream.flush()
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise CommandFailedError(f"'{command[0]}' cannot be started: {error.strerror}") from error
    try:
        status = process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        stop_group(process)
        raise BudgetExceededError(f"'{' '.join(command)}' was stopped at the end of its time budget") from None
    except BaseException:  # interrupted: whoever interrupted us wants this to end as well
        stop_group(process)
        raise
    if status != 0:
        raise CommandFailedError(f"'{' '.join(command)}' ended with status {status}; {log} ends:\n{_tail(log)}")


def stop_group(process: subprocess.Popen[bytes], grace_s: float = _GRACE_S) -> None:
    """SIGTERM to the process and all it started; SIGKILL for what is left after the grace time."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stop_leftovers(marker: str) -> list[int]:
    """Kill the processes that carry this marker and whose run is gone; returns their ids.

    Two trainings must never write into one folder. Call it with the registry's lock held. Linux alone tells the
    environment of a process; elsewhere nothing is found.
    """
    killed = []
    for pid in _marked(marker):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
    deadline = time.monotonic() + 10
    while any(_is_marked(pid, marker) for pid in killed) and time.monotonic() < deadline:
        time.sleep(0.02)
    return killed


def _marked(marker: str) -> Iterator[int]:
    own = os.getpid()
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        if pid != own and _is_marked(pid, marker):
            yield pid


def _is_marked(pid: int, marker: str) -> bool:
    try:
        return f"{MARKER}={marker}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False  # gone, or another user's


def _tail(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:]
    return "\n".join(f"  {line}" for line in lines)
