"""One run at a time in a registry: the kernel holds the lock, and the file says who has it.

`flock` is let go by the kernel when its holder dies, by whatever signal, so on one machine a dead holder blocks nobody.
What the file says (process id, its start time, host, boot) names the holder to others, and guards a folder that several
machines share where the file system does not pass locks on.
"""

from __future__ import annotations

import datetime as dt
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from retraining.errors import LockHeldError

_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


@dataclass(frozen=True)
class Holder:
    """A process, told apart from a later one with the same id by its start time and the machine's boot."""

    pid: int
    host: str
    boot_id: str
    started: str  # in the kernel's ticks since boot; "" where /proc does not tell
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold the lock for the block.

    Raises:
        LockHeldError: another process has it, or had it on a machine that cannot be asked from here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        has_flock = _take(descriptor, path)
        found = read_holder(path)
        if found is not None and _may_live(found, has_flock):
            raise LockHeldError(
                f"{path}: held by {found}; if that process is gone and its machine cannot say so, remove the file"
            )
        _write(descriptor, json.dumps(asdict(this_process())))
        try:
            yield
        finally:
            _write(descriptor, "")
    finally:
        os.close(descriptor)


def read_holder(path: Path) -> Holder | None:
    """Who holds the lock, or held it until it died; None where nobody does."""
    try:
        return Holder(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def this_process() -> Holder:
    """The calling process as a holder."""
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return Holder(os.getpid(), socket.gethostname(), boot_id(), start_time(os.getpid()), now)


def is_alive(holder: Holder) -> bool:
    """Whether a process of this machine still runs, and is the same one."""
    if holder.boot_id != boot_id():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, under another user
    return bool(holder.started) and start_time(holder.pid) == holder.started


def boot_id() -> str:
    """What changes with every start of the machine; containers on it share it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return socket.gethostname()


def start_time(pid: int) -> str:
    """When a process started, in ticks since boot; "" where it is gone or dead."""
    try:
        # The name, field 2, is in brackets and may hold anything: fields are counted from after the last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        # A dead process keeps its entry until its parent has asked about it.
        return "" if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        return ""


def _take(descriptor: int, path: Path) -> bool:
    """Whether the kernel granted the lock; False where this file system knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = read_holder(path)
        raise LockHeldError(f"{path}: held by {holder or 'a process that has just started'}") from None
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _may_live(holder: Holder, has_flock: bool) -> bool:
    if holder.boot_id == boot_id():
        # The same kernel: it would not have granted the lock beside a living holder.
        return not has_flock and is_alive(holder)
    # The same host has started anew since. Another host cannot be asked.
    return holder.host != socket.gethostname()


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
    os.fsync(descriptor)
